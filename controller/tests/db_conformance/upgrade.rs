//! A database of the first release, brought to this program's version.
//!
//! **What.** `fixtures/state-v1.tar.zst` is the state folder that the first release left behind: two images of one content, a failed import, a
//! deleted image, a location with a pinned copy, tokens, eighteen sealed operations. The rows of its SQLite file go into a
//! fresh database of either engine, made by the published text of version 1.

use std::process::Command;

use hearth_controller::db::image_list::ImageFilter;
use hearth_controller::db::tokens::Scope;
use hearth_controller::db::{Db, DbError, PageRequest};
use sqlx::{
    AnyConnection, AssertSqlSafe, Column as _, Executor as _, Row as _, TypeInfo as _, ValueRef as _,
};

use crate::engines::Place;
use crate::on_both_engines;

on_both_engines! {
    an_older_database_is_saved_and_brought_further
    an_older_database_is_refused_by_all_but_the_upgrade
    an_upgrade_without_a_backup_changes_nothing
}

/// The published text of version 1.
const VERSION_1: &str = include_str!("../../src/db/migrations/0001_spine.sql");
/// Its tables, those first that others refer to.
const TABLES: [&str; 18] = [
    "schema_version",
    "meta",
    "domain",
    "project",
    "token",
    "content",
    "image",
    "image_gram",
    "share",
    "job",
    "join_token",
    "location",
    "revoked_agent",
    "intent",
    "entry",
    "lease",
    "prewarm",
    "prewarm_target",
];

/// Fills `place` as the first release did.
async fn first_release(place: &Place) {
    let unpacked = tempfile::tempdir().unwrap();
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/state-v1.tar.zst");
    let tar =
        Command::new("tar").arg("--zstd").arg("-xf").arg(fixture).arg("-C").arg(unpacked.path()).status();
    assert!(tar.expect("tar and zstd are installed (apt install tar zstd)").success());
    let old = unpacked.path().join("state-v1/hearth.sqlite").display().to_string();
    if place.is_sqlite() {
        std::fs::copy(&old, &place.url).unwrap();
        return;
    }
    sqlx::any::install_default_drivers();
    let mut from: AnyConnection =
        <AnyConnection as sqlx::Connection>::connect(&format!("sqlite://{old}")).await.unwrap();
    let mut to = place.connect().await;
    let made =
        "CREATE TABLE schema_version (version BIGINT NOT NULL PRIMARY KEY, applied_us BIGINT NOT NULL)";
    to.execute(made).await.unwrap();
    let lines = VERSION_1.lines().filter(|line| !line.trim_start().starts_with("--"));
    to.execute(AssertSqlSafe(lines.collect::<Vec<_>>().join("\n"))).await.unwrap();
    for table in TABLES.iter().chain(&["operation"]) {
        for row in from.fetch_all(AssertSqlSafe(format!("SELECT * FROM {table}"))).await.unwrap() {
            let places: Vec<String> = (1..=row.len()).map(|n| format!("${n}")).collect();
            let names: Vec<&str> = row.columns().iter().map(sqlx::Column::name).collect();
            let insert = format!("INSERT INTO {table} ({}) VALUES ({})", names.join(", "), places.join(", "));
            let mut query = sqlx::query(AssertSqlSafe(insert));
            for column in row.columns() {
                let at = column.ordinal();
                let value = row.try_get_raw(at).unwrap();
                // A NULL does not say its type; that of the column does.
                let is_number = column.type_info().name() == "BIGINT" || value.type_info().name() == "BIGINT";
                query = if is_number {
                    query.bind(row.try_get::<Option<i64>, _>(at).unwrap())
                } else {
                    query.bind(row.try_get::<Option<String>, _>(at).unwrap())
                };
            }
            query.execute(&mut to).await.unwrap();
        }
    }
}

async fn an_older_database_is_saved_and_brought_further(place: Place) {
    first_release(&place).await;
    let backups = place.folder.path().join("before");
    let upgraded = Db::upgrade(&place.url, &backups).await.unwrap().unwrap();
    assert_eq!(upgraded.from, 1);
    assert!(upgraded.backup.starts_with(&backups) && upgraded.backup.metadata().unwrap().len() > 0);
    let db = place.open().await;
    assert_eq!(db.schema_version().await.unwrap(), upgraded.to);
    let images =
        db.images(Scope::System, &ImageFilter::default(), &PageRequest::default()).await.unwrap().items;
    let mut names: Vec<_> = images.iter().map(|image| image.facts.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["broken2", "debian fixture", "系统镜像 raw"]);
    let log = db.verify_operations().await.unwrap();
    assert!(log.first_bad.is_none() && log.sealed >= 18, "{log:?}");
    assert_eq!(Db::upgrade(&place.url, &backups).await.unwrap(), None, "there is nothing more to do");
    if place.is_sqlite() {
        let saved = Db::open(&upgraded.backup.display().to_string()).await.unwrap_err();
        assert!(matches!(saved, DbError::OlderVersion { found: 1, .. }), "the backup is as it was: {saved}");
    }
}

async fn an_older_database_is_refused_by_all_but_the_upgrade(place: Place) {
    first_release(&place).await;
    let refused = Db::open(&place.url).await.unwrap_err();
    assert!(matches!(refused, DbError::OlderVersion { found: 1, .. }), "{refused}");
    let mut intruder = place.connect().await;
    intruder.execute("UPDATE meta SET value = 'x' WHERE key = 'schema_blake3'").await.unwrap();
    let backups = place.folder.path().join("before");
    let refused = Db::upgrade(&place.url, &backups).await.unwrap_err();
    assert!(matches!(refused, DbError::OtherSchema { version: 1 }), "{refused}");
    assert!(!backups.exists(), "nothing was begun");
}

async fn an_upgrade_without_a_backup_changes_nothing(place: Place) {
    first_release(&place).await;
    let taken = place.folder.path().join("before");
    std::fs::write(&taken, "a file where the folder should be").unwrap();
    let failed = Db::upgrade(&place.url, &taken).await.unwrap_err();
    assert!(matches!(failed, DbError::File { .. }), "{failed}");
    let refused = Db::open(&place.url).await.unwrap_err();
    assert!(matches!(refused, DbError::OlderVersion { found: 1, .. }), "{refused}");
}
