//! What writes promise: none is lost, none is half done, none that was acknowledged goes away.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use futures::future::join_all;
use hearth_controller::db::operations::{Draft, OperationFilter, WhoKind};
use hearth_controller::db::{Change, Db, DbError, PageRequest, backup};
use sqlx::{Executor as _, Row as _};

use crate::engines::Place;
use crate::fixture::{active_image, locations, op, queued_image};
use crate::on_both_engines;

const WRITERS: usize = 8;
const INCREMENTS: usize = 50;

on_both_engines! {
    eight_writers_lose_no_increment
    a_plain_transaction_would_lose_increments
    a_database_of_a_newer_version_is_refused
    opening_twice_changes_nothing
    a_failed_closure_leaves_nothing
    changes_are_announced_after_the_commit
    acknowledged_rows_survive_kill_9
    a_backup_is_whole_and_never_overwrites
}

async fn eight_writers_lose_no_increment(place: Place) {
    let db = place.open().await;
    let image = queued_image(&db, "counter").await;
    let location = locations(&db, 1).await[0];
    let writer = async |_: usize| {
        for _ in 0..INCREMENTS {
            let count = |facts: &mut hearth_controller::db::images::ImageFacts| {
                facts.description = (facts.description.parse::<u32>().unwrap() + 1).to_string();
            };
            db.update_image(image, None, count, &op("image.update")).await.unwrap();
            db.bump_generation(location, hearth_protocol::id::Generation(0)).await.unwrap();
        }
    };
    join_all((0..WRITERS).map(writer)).await;
    let image = db.image(image).await.unwrap().unwrap();
    assert_eq!(image.facts.description, (WRITERS * INCREMENTS).to_string());
    assert_eq!(image.revision, (WRITERS * INCREMENTS) as u64 + 1);
    let location = db.location(location).await.unwrap().unwrap();
    assert_eq!(location.generation.0, (WRITERS * INCREMENTS) as u64);
}

/// Proves that the test above can fail: the same work in plain transactions loses increments or fails.
async fn a_plain_transaction_would_lose_increments(place: Place) {
    let mut first = place.connect().await;
    first.execute("CREATE TABLE trap (n BIGINT NOT NULL)").await.unwrap();
    first.execute("INSERT INTO trap (n) VALUES (0)").await.unwrap();
    let writer = async |_: usize| {
        let mut connection = place.connect().await;
        let mut acknowledged = 0;
        for _ in 0..INCREMENTS {
            connection.execute("BEGIN").await.unwrap();
            let row = connection.fetch_one("SELECT n FROM trap").await.unwrap();
            let n: i64 = row.try_get("n").unwrap();
            tokio::task::yield_now().await;
            let update = sqlx::query("UPDATE trap SET n = $1").bind(n + 1);
            let done =
                update.execute(&mut connection).await.is_ok() && connection.execute("COMMIT").await.is_ok();
            if done {
                acknowledged += 1;
            } else {
                connection.execute("ROLLBACK").await.unwrap();
            }
        }
        acknowledged
    };
    let acknowledged: i64 = join_all((0..WRITERS).map(writer)).await.into_iter().sum();
    let n: i64 = first.fetch_one("SELECT n FROM trap").await.unwrap().try_get("n").unwrap();
    let all = i64::try_from(WRITERS * INCREMENTS).unwrap();
    assert!(acknowledged < all || n < acknowledged, "{acknowledged} of {all} acknowledged, {n} counted");
}

async fn a_database_of_a_newer_version_is_refused(place: Place) {
    let db = place.open().await;
    db.close().await;
    let mut intruder = place.connect().await;
    intruder.execute("INSERT INTO schema_version (version, applied_us) VALUES (999, 0)").await.unwrap();
    let error = Db::open(&place.url).await.unwrap_err();
    assert!(matches!(error, DbError::NewerVersion { found: 999, .. }), "{error}");
}

async fn opening_twice_changes_nothing(place: Place) {
    let db = place.open().await;
    let instance = db.setting("instance_id").await.unwrap().unwrap();
    let id = queued_image(&db, "stays").await;
    let version = db.schema_version().await.unwrap();
    db.close().await;
    let db = place.open().await;
    assert_eq!(db.setting("instance_id").await.unwrap().unwrap(), instance);
    assert_eq!(db.setting("data_version").await.unwrap().unwrap(), "1");
    assert_eq!(db.schema_version().await.unwrap(), version);
    assert_eq!(db.image(id).await.unwrap().unwrap().facts.name, "stays");
}

async fn a_failed_closure_leaves_nothing(place: Place) {
    let db = place.open().await;
    let note = op("test.half");
    let note = &note;
    let failed: Result<(), DbError> = db
        .write_tx(move |tx| {
            Box::pin(async move {
                tx.record(note).await?;
                Err(DbError::Cursor)
            })
        })
        .await;
    assert!(matches!(failed, Err(DbError::Cursor)));
    let all = db.operations(&OperationFilter::default(), &PageRequest::default()).await.unwrap();
    assert_eq!(all.items, vec![]);
}

async fn changes_are_announced_after_the_commit(place: Place) {
    let db = place.open().await;
    let mut changes = db.subscribe();
    let id = queued_image(&db, "news").await;
    assert_eq!(changes.recv().await.unwrap(), Change::Image(id));
    assert!(db.image(id).await.unwrap().is_some());
    assert_eq!(changes.recv().await.unwrap(), Change::Operations);
    let exists = db.create_domain(hearth_controller::db::new_id(), "DEFAULT", &op("domain.create")).await;
    assert!(matches!(exists, Err(DbError::Exists { .. })));
    assert!(changes.try_recv().is_err(), "a transaction that was rolled back announces nothing");
}

/// Name under which the writer of [`acknowledged_rows_survive_kill_9`] finds its database.
const WRITER_URL: &str = "HEARTH_TEST_WRITER_URL";
/// Acknowledged rows after which a writer is killed.
const KILL_AFTER: [usize; 3] = [1, 17, 60];

async fn acknowledged_rows_survive_kill_9(place: Place) {
    place.open().await.close().await;
    let mut acknowledged: Vec<String> = Vec::new();
    for kill_after in KILL_AFTER {
        let mut writer = Command::new(std::env::current_exe().unwrap());
        writer.args(["--exact", "safety::writer_process", "--nocapture"]).env(WRITER_URL, &place.url);
        let mut writer = writer.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let mut ids = lines.by_ref().filter_map(|line| Some(line.unwrap().split_once("ack ")?.1.to_owned()));
        acknowledged.extend(ids.by_ref().take(kill_after));
        writer.kill().unwrap();
        writer.wait().unwrap();
        // Lines that were written before the kill are promises, too.
        acknowledged.extend(ids);
    }
    assert!(acknowledged.len() >= KILL_AFTER.iter().sum(), "{acknowledged:?}");
    let db = place.open().await;
    let mut stored = std::collections::HashSet::new();
    let mut page = PageRequest::first(1000);
    loop {
        let rows = db.operations(&OperationFilter::default(), &page).await.unwrap();
        stored.extend(rows.items.into_iter().map(|row| row.draft.target_id));
        let Some(next) = rows.next else { break };
        page.cursor = Some(next);
    }
    let lost: Vec<_> = acknowledged.iter().filter(|id| !stored.contains(*id)).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged rows are lost: {lost:?}", lost.len(), acknowledged.len());
    assert_eq!(db.check().await.unwrap().engine, Vec::<String>::new());
    while db.seal_once().await.unwrap() > 0 {}
    assert_eq!(db.verify_operations().await.unwrap().first_bad, None);
}

/// The process that is killed: writes rows and says so, for ever. Run by itself it writes a few and checks them.
#[tokio::test]
async fn writer_process() {
    let place = Place::sqlite();
    let killed_later = std::env::var(WRITER_URL).ok();
    let (url, for_ever) = (killed_later.as_ref().unwrap_or(&place.url), killed_later.is_some());
    let db = Db::open(url).await.unwrap();
    for n in 0.. {
        let id = format!("{}-{n}", std::process::id());
        let draft = Draft::new(WhoKind::System, "writer", "test.write").on("row", &id, "");
        db.record(&draft).await.unwrap();
        println!("ack {id}");
        if !for_ever && n == 3 {
            break;
        }
    }
    let rows = db.operations(&OperationFilter::default(), &PageRequest::default()).await.unwrap();
    assert_eq!(rows.items.len(), 4);
}

async fn a_backup_is_whole_and_never_overwrites(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "kept").await;
    let to = place.folder.path().join("copy.backup");
    db.backup(&to).await.unwrap();
    assert!(matches!(db.backup(&to).await, Err(DbError::Backup { .. })), "a backup overwrote a file");
    if !place.is_sqlite() {
        let list = Command::new("pg_restore").arg("--list").arg(&to).output().unwrap();
        assert!(String::from_utf8_lossy(&list.stdout).contains("TABLE DATA public operation"), "{list:?}");
        return;
    }
    let put_back = place.folder.path().join("new.db");
    assert_eq!(backup::restore(&to, &put_back).await.unwrap(), db.schema_version().await.unwrap());
    let error = backup::restore(&to, &put_back).await.unwrap_err();
    assert!(matches!(error, DbError::Backup { .. }), "{error}");
    let copy = Db::open(&put_back.display().to_string()).await.unwrap();
    assert_eq!(copy.image(image.id).await.unwrap().unwrap(), image);
    assert_eq!(copy.setting("instance_id").await.unwrap(), db.setting("instance_id").await.unwrap());
    // A damaged backup is found before it is put in place.
    let mut bytes = std::fs::read(&to).unwrap();
    let half = bytes.len() / 2;
    bytes[half..half + 4096].fill(0xA5);
    let damaged = place.folder.path().join("damaged.backup");
    std::fs::write(&damaged, bytes).unwrap();
    let target = place.folder.path().join("other.db");
    assert!(backup::restore(&damaged, &target).await.is_err());
    assert!(!target.exists());
}
