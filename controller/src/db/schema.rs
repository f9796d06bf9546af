//! Versions of the schema.
//!
//! **What.** Each file in `migrations/` brings the database one version further; a table remembers how far it is.
//! **Why our own dozen lines.** The driver's migrator writes engine-specific SQL. One hash over all statements is enough to tell
//! a database of an earlier development build, which has the same number, from one that this program can use.
//! **Invariants.** All missing versions are applied in one transaction or none is. A database of a newer version is never
//! touched. A published file is never changed: a change is a new file.

use super::error::DbError;
use super::ids::new_id;
use super::sql::{Stmt, sql};
use super::store::{Db, Tx};
use hearth_protocol::id::DomainId;

/// Every version, oldest first.
const MIGRATIONS: &[(i64, &str)] =
    &[(1, include_str!("migrations/0001_spine.sql")), (4, include_str!("migrations/0004_sources.sql"))];

/// Format of the folder beside the database (content objects, originals); a newer program may raise it.
const DATA_VERSION: &str = "1";

/// Where the [`fingerprint`] of the schema stands.
const SCHEMA_KEY: &str = "schema_blake3";

/// Newest version that this program knows.
pub(super) fn newest() -> i64 {
    MIGRATIONS.last().map_or(0, |(version, _)| *version)
}

/// Brings the schema to [`newest`].
pub(super) async fn migrate(db: &Db) -> Result<(), DbError> {
    db.write_tx(|tx| Box::pin(migrate_in(tx))).await
}

async fn migrate_in(tx: &mut Tx<'_>) -> Result<(), DbError> {
    let table = "CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL PRIMARY KEY, applied_us BIGINT NOT NULL)";
    tx.run(sql("schema_version", table)).await?;
    let found = version_in(tx).await?;
    if found > newest() {
        return Err(DbError::NewerVersion { found, known: newest() });
    }
    if found > 0 && meta(tx, SCHEMA_KEY).await? != Some(fingerprint(found)) {
        return Err(DbError::OtherSchema { version: found });
    }
    for (version, text) in MIGRATIONS.iter().filter(|(version, _)| *version > found) {
        for statement in statements(text) {
            tx.run(statement).await?;
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
    if found < newest() {
        put_meta(tx, SCHEMA_KEY, &fingerprint(newest())).await?;
    }
    Ok(())
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
