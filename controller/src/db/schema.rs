//! Versions of the schema.
//!
//! **What.** Each file in `migrations/` brings the database one version further; a table remembers how far it is.
//! **Why our own dozen lines.** The driver's migrator writes engine-specific SQL. One hash over all statements is enough to tell
//! a database of an earlier development build, which has the same number, from one that this program can use.
//! **Why an older database is not brought further by whoever opens it.** A migration has no way back but a backup, and only
//! `serve` is run by somebody who wants the new program: [`Db::upgrade`] makes the backup, all other openings refuse.
//! **Invariants.** All missing versions are applied in one transaction or none is. A database of a newer version is never
//! touched. A published file is never changed: a change is a new file.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::error::DbError;
use super::ids::new_id;
use super::sql::{Stmt, sql};
use super::store::{Db, Engine, Tx};
use crate::clock;
use hearth_protocol::id::DomainId;

/// Every version, oldest first.
const MIGRATIONS: &[(i64, &str)] = &[
    (1, include_str!("migrations/0001_spine.sql")),
    (2, include_str!("migrations/0002_people.sql")),
    (ATTRIBUTES, include_str!("migrations/0003_attributes.sql")),
    (4, include_str!("migrations/0004_sources.sql")),
    (5, include_str!("migrations/0005_variants.sql")),
    (6, include_str!("migrations/0006_host_images.sql")),
    (7, include_str!("migrations/0007_links.sql")),
    (8, include_str!("migrations/0008_sharing.sql")),
    (9, include_str!("migrations/0009_indexes.sql")),
    (10, include_str!("migrations/0010_keys.sql")),
    (11, include_str!("migrations/0011_location_domains.sql")),
    (12, include_str!("migrations/0012_markets.sql")),
    (13, include_str!("migrations/0013_given_images.sql")),
    (14, include_str!("migrations/0014_anchor_files.sql")),
    (15, include_str!("migrations/0015_answer_tags.sql")),
    (16, include_str!("migrations/0016_placements.sql")),
    (17, include_str!("migrations/0017_reading.sql")),
];

/// The version that searches descriptions too: images of an older one are folded anew.
const ATTRIBUTES: i64 = 3;

/// Format of the folder beside the database (content objects, originals); a newer program may raise it.
const DATA_VERSION: &str = "1";

/// Where the [`fingerprint`] of the schema stands.
const SCHEMA_KEY: &str = "schema_blake3";

/// Newest version that this program knows.
pub(super) fn newest() -> i64 {
    MIGRATIONS.last().map_or(0, |(version, _)| *version)
}

/// An upgrade that was made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Upgraded {
    /// Version before.
    pub from: i64,
    /// Version now.
    pub to: i64,
    /// The database as it was before.
    pub backup: PathBuf,
}

/// Makes the schema of an empty database; refuses one of another version.
pub(super) async fn settle(db: &Db) -> Result<(), DbError> {
    db.write_tx(|tx| Box::pin(settle_in(tx))).await
}

async fn settle_in(tx: &mut Tx<'_>) -> Result<(), DbError> {
    let table = "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL PRIMARY KEY, applied_us BIGINT NOT NULL)";
    tx.run(sql("schema_version", table)).await?;
    match known_version(tx).await? {
        0 => bring_further(tx, 0).await,
        found if found < newest() => Err(DbError::OlderVersion { found, known: newest() }),
        _ => Ok(()),
    }
}

/// The version of the database, 0 for an empty one, if this program knows it.
async fn known_version(tx: &mut Tx<'_>) -> Result<i64, DbError> {
    let found = version_in(tx).await?;
    if found == 0 {
        return Ok(0);
    }
    if found > newest() {
        return Err(DbError::NewerVersion { found, known: newest() });
    }
    if meta(tx, SCHEMA_KEY).await? != Some(fingerprint(found)) {
        return Err(DbError::OtherSchema { version: found });
    }
    Ok(found)
}

/// Applies every version above `found`.
async fn bring_further(tx: &mut Tx<'_>, found: i64) -> Result<(), DbError> {
    for (version, text) in MIGRATIONS.iter().filter(|(version, _)| *version > found) {
        for statement in statements(text) {
            tx.run(statement).await?;
        }
        if *version == ATTRIBUTES {
            tx.fold_all().await?;
        }
        let insert =
            sql("schema_version", "INSERT INTO schema_version (version, applied_us) VALUES ($1, $2)");
        tx.run(insert.bind(*version).bind(tx.now_us())).await?;
    }
    if found == 0 {
        // Any UUID will do; that of a domain is as random as any.
        let instance: DomainId = new_id();
        put_meta(tx, "instance_id", &instance.to_string()).await?;
        put_meta(tx, "data_version", DATA_VERSION).await?;
    }
    put_meta(tx, SCHEMA_KEY, &fingerprint(newest())).await
}

/// The version of the database that `db` is connected to; 0 if it has no schema.
async fn standing(db: &Db) -> Result<i64, DbError> {
    let mut tx = db.begin_read().await?;
    let named = match db.engine() {
        Engine::Sqlite => "SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'schema_version'",
        Engine::Postgres => {
            "SELECT CAST(table_name AS TEXT) AS name FROM information_schema.tables \
             WHERE table_schema = current_schema() AND table_name = 'schema_version'"
        }
    };
    if tx.row(sql("schema_version", named)).await?.is_none() {
        return Ok(0);
    }
    known_version(&mut tx).await
}

async fn upgrade_with(db: &Db, backups: &Path) -> Result<Option<Upgraded>, DbError> {
    let from = standing(db).await?;
    if from == 0 || from == newest() {
        return Ok(None);
    }
    let failed = |source| DbError::File { verb: "make the folder", path: backups.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(backups).map_err(failed)?;
    let kind = if db.engine() == Engine::Sqlite { "sqlite" } else { "pg_dump" };
    let made_s = clock::unix_us() / 1_000_000;
    let backup = backups.join(format!("version-{from}-{made_s}.{kind}"));
    db.backup(&backup).await?;
    db.write_tx(move |tx| {
        Box::pin(async move {
            // Asked again: another process may have been as quick.
            let found = known_version(tx).await?;
            if found < newest() { bring_further(tx, found).await } else { Ok(()) }
        })
    })
    .await?;
    Ok(Some(Upgraded { from, to: newest(), backup }))
}

async fn version_in(tx: &mut Tx<'_>) -> Result<i64, DbError> {
    let newest = "SELECT CAST(MAX(version) AS BIGINT) AS version FROM schema_version";
    let row = tx.row(sql("schema_version", newest)).await?;
    Ok(row.map(|row| row.opt_int("version")).transpose()?.flatten().unwrap_or(0))
}

/// The statements of a migration: comments go, `;` at the end of a line parts them.
fn statements(text: &'static str) -> impl Iterator<Item = Stmt> {
    let is_comment = |line: &str| line.trim_start().starts_with("--") || line.trim().is_empty();
    let parts = text.split_inclusive(";\n").filter(move |part| !part.lines().all(is_comment));
    parts.map(|part| sql("schema_version", part.trim()))
}

/// BLAKE3 over the statements up to `version`: finds a database whose version was made by another text.
fn fingerprint(version: i64) -> String {
    let mut hasher = blake3::Hasher::new();
    for (_, text) in MIGRATIONS.iter().filter(|(number, _)| *number <= version) {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("--"));
        for line in lines {
            hasher.update(line.as_bytes()).update(b"\n");
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// Reads one value of the table `meta` inside a transaction.
pub(super) async fn meta(tx: &mut Tx<'_>, key: &str) -> Result<Option<String>, DbError> {
    let row = tx.row(sql("meta", "SELECT value FROM meta WHERE key = $1").bind(key)).await?;
    row.map(|row| row.text("value")).transpose()
}

/// Writes one value of the table `meta`.
pub(super) async fn put_meta(tx: &mut Tx<'_>, key: &str, value: &str) -> Result<(), DbError> {
    let put = "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    tx.run(sql("meta", put).bind(key).bind(value)).await.map(|_| ())
}

impl Db {
    /// Brings an older database at `place` to this program's version, after a backup of it in the folder `backups` (made if
    /// need be). `None`: there was nothing to do. Nobody else may have the database open.
    ///
    /// # Errors
    /// [`DbError::NewerVersion`], [`DbError::OtherSchema`], a backup or migration that failed; then the database is as before.
    pub async fn upgrade(place: &str, backups: &Path) -> Result<Option<Upgraded>, DbError> {
        let db = Self::connect_writer(place).await?;
        let done = upgrade_with(&db, backups).await;
        db.close().await;
        done
    }

    /// Version of the schema in the database.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn schema_version(&self) -> Result<i64, DbError> {
        version_in(&mut self.begin_read().await?).await
    }

    /// A value of the table `meta`: `instance_id` (made once, survives backups), `data_version`, and settings.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn setting(&self, key: &str) -> Result<Option<String>, DbError> {
        let row = self.row(sql("meta", "SELECT value FROM meta WHERE key = $1").bind(key)).await?;
        row.map(|row| row.text("value")).transpose()
    }

    /// Sets a value of the table `meta`, for example `transfers_stopped`.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn set_setting(
        &self,
        key: &str,
        value: &str,
        op: &super::operations::Draft,
    ) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                put_meta(tx, key, value).await?;
                tx.changed(super::changes::Change::Settings);
                tx.record(op).await
            })
        })
        .await
    }
}
