//! Copies of the database, and what `fsck` compares with files.
//!
//! **What.** [`Db::backup`] writes a consistent copy while the controller runs; [`restore`] puts one in place; [`Db::check`]
//! lists what the rows refer to.
//! **Why not a copy of the file.** A copied SQLite file without its log lacks the newest transactions; `VACUUM INTO` reads
//! one snapshot. PostgreSQL has `pg_dump`, which is run with the address of the store; `pg_restore` is the operator's,
//! because it needs rights that the controller has not.
//! **Invariants.** A backup appears under its name only when it is whole and synced. A backup is never restored over
//! existing data, nor one of a newer version.

use std::path::{Path, PathBuf};

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::ImageId;
use sqlx::any::AnyConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Row as _};

use super::contents::Content;
use super::error::DbError;
use super::images::Image;
use super::schema;
use super::store::{Db, Engine, sqlite_url};

/// What rows refer to outside the database, and what is wrong among the rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Check {
    /// Every content: each needs its content object, index and manifest.
    pub contents: Vec<Content>,
    /// Every image that is not deleted: one with `original_kept` needs its original.
    pub images: Vec<Image>,
    /// Images that refer to a content without a row.
    pub missing_contents: Vec<(ImageId, ContentId)>,
    /// Contents that nothing refers to: their files may go.
    pub unused_contents: Vec<ContentId>,
    /// What the engine's own check says; empty if it finds nothing.
    pub engine: Vec<String>,
}

impl Db {
    /// Writes a copy of the database to `to`, which must not exist. PostgreSQL: runs `pg_dump --format=custom`, to be
    /// restored with `pg_restore --clean --if-exists --dbname=… FILE`.
    ///
    /// # Errors
    /// [`DbError::Backup`] if `to` exists or `pg_dump` fails; [`DbError::File`]; a failed statement.
    pub async fn backup(&self, to: &Path) -> Result<(), DbError> {
        if to.exists() {
            let what = format!("{} exists", to.display());
            return Err(DbError::Backup { what, hint: "name a file that does not exist" });
        }
        let part = with_suffix(to, ".part");
        remove_if_there(&part)?;
        match self.engine() {
            Engine::Sqlite => self.vacuum_into(&part).await?,
            Engine::Postgres => self.pg_dump(&part).await?,
        }
        publish(&part, to)
    }

    async fn vacuum_into(&self, to: &Path) -> Result<(), DbError> {
        const VACUUM: &str = "VACUUM INTO $1";
        // A connection of its own: the readers' pool refuses writes, even into another file.
        let mut connection = open_one(self.url()).await?;
        let path = to.display().to_string();
        let done = sqlx::query(VACUUM).bind(path).execute(&mut connection).await;
        done.map_err(|error| DbError::sql(VACUUM, error))?;
        connection.close().await.map_err(|error| DbError::sql(VACUUM, error))
    }

    async fn pg_dump(&self, to: &Path) -> Result<(), DbError> {
        let mut command = tokio::process::Command::new("pg_dump");
        // Arguments are seen by every user of the machine: the password goes through the environment.
        let (address, password) = split_password(self.url());
        command.arg("--format=custom").arg("--no-owner").arg("--file").arg(to).arg("--dbname").arg(address);
        if let Some(password) = password {
            command.env("PGPASSWORD", password);
        }
        let output = command.kill_on_drop(true).output().await;
        let output = output.map_err(|source| DbError::File {
            verb: "run pg_dump for",
            path: to.to_owned(),
            source,
        })?;
        if output.status.success() {
            return Ok(());
        }
        let what = format!("pg_dump failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        Err(DbError::Backup {
            what,
            hint: "pg_dump must not be older than the server (package postgresql-client)",
        })
    }

    /// What `fsck` compares with files, and what the engine says of itself.
    ///
    /// # Errors
    /// A failed statement. What is wrong is a result, not an error.
    pub async fn check(&self) -> Result<Check, DbError> {
        let (contents, images) = (self.contents().await?, self.all_images().await?);
        let known: std::collections::HashSet<_> = contents.iter().map(|content| content.id).collect();
        let missing = images.iter().filter_map(|image| Some((image.id, image.content?)));
        let missing_contents = missing.filter(|(_, content)| !known.contains(content)).collect();
        let unused_contents = self.unused_contents().await?.into_iter().map(|content| content.id).collect();
        let engine = match self.engine() {
            Engine::Sqlite => integrity(&mut open_one(self.url()).await?).await?,
            // The server checks pages by itself (initdb --data-checksums); amcheck is the operator's.
            Engine::Postgres => Vec::new(),
        };
        Ok(Check { contents, images, missing_contents, unused_contents, engine })
    }
}

/// A PostgreSQL address without its password, and the password as it was meant (percent escapes undone).
fn split_password(url: &str) -> (String, Option<String>) {
    let parts = || {
        let (scheme, rest) = url.split_once("://")?;
        let (login, after) = rest.rsplit_once('@')?;
        let (user, password) = login.split_once(':')?;
        Some((format!("{scheme}://{user}@{after}"), unescaped(password)))
    };
    parts().map_or_else(|| (url.to_owned(), None), |(address, password)| (address, Some(password)))
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code =
            tail.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => (bytes.push(byte), rest = &tail[2..]).0,
            None => (bytes.push(*first), rest = tail).0,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Puts the SQLite backup `from` in place of the database file `to`, which must not exist. Returns its schema version.
///
/// # Errors
/// [`DbError::Backup`] if `to` exists or `from` is damaged or no backup; [`DbError::NewerVersion`]; [`DbError::File`].
pub async fn restore(from: &Path, to: &Path) -> Result<i64, DbError> {
    must_be_free(to)?;
    let part = with_suffix(to, ".part");
    remove_if_there(&part)?;
    let done = match std::fs::copy(from, &part) {
        Ok(_) => checked_version(&part, from).await,
        Err(source) => Err(DbError::File { verb: "copy the backup", path: from.to_owned(), source }),
    };
    let done = done.and_then(|version| publish(&part, to).map(|()| version));
    if done.is_err() {
        remove_if_there(&part)?;
    }
    done
}

/// Says so if there is a database at `to` already, or what is left of one.
///
/// # Errors
/// [`DbError::Backup`].
pub fn must_be_free(to: &Path) -> Result<(), DbError> {
    if [to.to_owned(), with_suffix(to, "-wal")].iter().any(|path| path.exists()) {
        let what = format!("{} exists", to.display());
        return Err(DbError::Backup {
            what,
            hint: "stop the controller and move its database (and -wal file) away first",
        });
    }
    Ok(())
}

/// The version of a whole backup.
async fn checked_version(copy: &Path, named: &Path) -> Result<i64, DbError> {
    const VERSION: &str = "SELECT CAST(MAX(version) AS BIGINT) AS version FROM schema_version";
    let damaged = |why: String| DbError::Backup {
        what: format!("{} is not a whole backup: {why}", named.display()),
        hint: "choose another backup",
    };
    let mut connection = open_one(&sqlite_url(copy)).await?;
    let faults = integrity(&mut connection).await.map_err(|error| damaged(error.to_string()))?;
    if let Some(fault) = faults.into_iter().next() {
        return Err(damaged(fault));
    }
    let row =
        sqlx::query(VERSION).fetch_one(&mut connection).await.map_err(|error| damaged(error.to_string()))?;
    let found: Option<i64> = row.try_get("version").map_err(|error| damaged(error.to_string()))?;
    connection.close().await.map_err(|error| damaged(error.to_string()))?;
    let found = found.ok_or_else(|| damaged("it has no schema version".to_owned()))?;
    if found > schema::newest() {
        return Err(DbError::NewerVersion { found, known: schema::newest() });
    }
    Ok(found)
}

/// What SQLite's own check finds; empty if nothing.
async fn integrity(connection: &mut sqlx::AnyConnection) -> Result<Vec<String>, DbError> {
    const CHECK: &str = "PRAGMA integrity_check";
    let rows = connection.fetch_all(CHECK).await.map_err(|error| DbError::sql(CHECK, error))?;
    let texts = rows.iter().map(|row| row.try_get(0).map_err(|error| DbError::sql(CHECK, error)));
    let texts = texts.collect::<Result<Vec<String>, _>>()?;
    Ok(texts.into_iter().filter(|text| text != "ok").collect())
}

async fn open_one(url: &str) -> Result<sqlx::AnyConnection, DbError> {
    static DRIVERS: std::sync::Once = std::sync::Once::new();
    DRIVERS.call_once(sqlx::any::install_default_drivers);
    let failed = |source| DbError::Open { place: super::store::without_secrets(url), source };
    let options: AnyConnectOptions = url.parse().map_err(failed)?;
    options.connect().await.map_err(failed)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn remove_if_there(path: &Path) -> Result<(), DbError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(DbError::File { verb: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Syncs `part` and gives it its name.
fn publish(part: &Path, to: &Path) -> Result<(), DbError> {
    let folder =
        to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let sync = |path: &Path| std::fs::File::open(path).and_then(|file| file.sync_all());
    let failed = |verb, path: &Path, source| DbError::File { verb, path: path.to_owned(), source };
    sync(part).map_err(|source| failed("sync", part, source))?;
    std::fs::rename(part, to).map_err(|source| failed("rename the finished copy to", to, source))?;
    sync(folder).map_err(|source| failed("sync", folder, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_no_argument() {
        let split = split_password("postgres://u:p%40ss%25@h/db?x=1");
        assert_eq!(split, ("postgres://u@h/db?x=1".to_owned(), Some("p@ss%".to_owned())));
        let without = "postgres://u@h/db";
        assert_eq!(split_password(without), (without.to_owned(), None));
    }
}
