//! The operation log: pages, seals, and that no tampering stays unseen.

use hearth_controller::db::operations::{Draft, Operation, OperationFilter, WhoKind};
use hearth_controller::db::{Db, PageRequest};
use sqlx::Executor as _;

use crate::engines::Place;
use crate::fixture::op;
use crate::on_both_engines;

on_both_engines! {
    sealed_rows_are_intact_and_waiting_rows_are_counted
    any_changed_column_is_found
    a_removed_reordered_or_planted_row_is_found
    pages_are_stable_under_inserts
    filters_select
    the_running_sealer_seals_within_a_second
}

async fn write(db: &Db, n: usize) {
    for i in 0..n {
        let draft = Draft::new(WhoKind::Token, format!("user {}", i % 2), "test.write").on(
            "row",
            i,
            format!("name {i}"),
        );
        db.record(&draft.with(serde_json::json!({ "n": i }))).await.unwrap();
    }
}

async fn sealed(place: &Place, n: usize) -> Db {
    let db = place.open().await;
    write(&db, n).await;
    assert_eq!(db.seal_once().await.unwrap(), n as u64);
    db
}

async fn sealed_rows_are_intact_and_waiting_rows_are_counted(place: Place) {
    let db = sealed(&place, 5).await;
    write(&db, 2).await;
    let before = db.verify_operations().await.unwrap();
    assert_eq!((before.sealed, before.unsealed, before.first_bad), (5, 2, None));
    assert_eq!(db.seal_once().await.unwrap(), 2);
    assert_eq!(db.seal_once().await.unwrap(), 0);
    let after = db.verify_operations().await.unwrap();
    assert_eq!((after.sealed, after.unsealed, after.first_bad), (7, 0, None));
    assert_ne!(after.head, before.head);
}

/// Proves LG-1.
async fn any_changed_column_is_found(place: Place) {
    let db = sealed(&place, 5).await;
    let mut intruder = place.connect().await;
    // Each changes row 3 and then puts it back.
    let texts = [
        "who",
        "who_kind",
        "action",
        "target_kind",
        "target_id",
        "target_name",
        "details",
        "prev_hash",
        "hash",
    ];
    for column in texts {
        let change = match column {
            "who_kind" => "'agent'".to_owned(),
            "details" => "'{\"n\":7}'".to_owned(),
            other => format!("'x' || {other}"),
        };
        check_change(&db, &mut intruder, column, &change).await;
    }
    check_change(&db, &mut intruder, "result", "'failed'").await;
    check_change(
        &db,
        &mut intruder,
        "id",
        "SUBSTR(id, 1, 35) || CASE WHEN SUBSTR(id, 36, 1) = '0' THEN '1' ELSE '0' END",
    )
    .await;
    check_change(&db, &mut intruder, "time_us", "time_us + 1").await;
    check_change(&db, &mut intruder, "seq", "100").await;
    assert_eq!(db.verify_operations().await.unwrap().first_bad, None);
}

async fn check_change(db: &Db, intruder: &mut sqlx::AnyConnection, column: &str, change: &str) {
    let run = async |connection: &mut sqlx::AnyConnection, text: String| {
        connection.execute(sqlx::AssertSqlSafe(text)).await.unwrap();
    };
    run(intruder, "CREATE TABLE saved AS SELECT * FROM operation WHERE seq = 3".to_owned()).await;
    run(intruder, format!("UPDATE operation SET {column} = {change} WHERE seq = 3")).await;
    let found = db.verify_operations().await.unwrap();
    assert_eq!(found.first_bad, Some(3), "{column} was changed: {found:?}");
    run(intruder, "DELETE FROM operation WHERE seq = 3 OR seq = 100".to_owned()).await;
    run(intruder, "INSERT INTO operation SELECT * FROM saved".to_owned()).await;
    run(intruder, "DROP TABLE saved".to_owned()).await;
}

/// Proves LG-1.
async fn a_removed_reordered_or_planted_row_is_found(place: Place) {
    let db = sealed(&place, 5).await;
    let mut intruder = place.connect().await;
    for (what, text, first_bad) in [
        ("the newest row is removed", "DELETE FROM operation WHERE seq = 5", 5),
        ("a row in the middle is removed", "DELETE FROM operation WHERE seq = 3", 3),
        ("the first row is removed", "DELETE FROM operation WHERE seq = 1", 1),
    ] {
        intruder.execute("CREATE TABLE saved AS SELECT * FROM operation").await.unwrap();
        intruder.execute(text).await.unwrap();
        assert_eq!(db.verify_operations().await.unwrap().first_bad, Some(first_bad), "{what}");
        intruder.execute("DELETE FROM operation").await.unwrap();
        intruder.execute("INSERT INTO operation SELECT * FROM saved").await.unwrap();
        intruder.execute("DROP TABLE saved").await.unwrap();
    }
    for text in ["UPDATE operation SET seq = 99 WHERE seq = 2", "UPDATE operation SET seq = 2 WHERE seq = 4"]
    {
        intruder.execute(text).await.unwrap();
    }
    intruder.execute("UPDATE operation SET seq = 4 WHERE seq = 99").await.unwrap();
    assert_eq!(db.verify_operations().await.unwrap().first_bad, Some(2), "two rows changed places");
    let swap = "UPDATE operation SET seq = CASE WHEN seq = 2 THEN 102 ELSE 104 END WHERE seq = 2 OR seq = 4";
    intruder.execute(swap).await.unwrap();
    intruder.execute("UPDATE operation SET seq = 106 - seq WHERE seq > 100").await.unwrap();
    assert_eq!(db.verify_operations().await.unwrap().first_bad, None, "put back");
    write(&db, 1).await;
    intruder
        .execute("UPDATE operation SET seq = 6, prev_hash = 'a', hash = 'b' WHERE seq IS NULL")
        .await
        .unwrap();
    assert_eq!(db.verify_operations().await.unwrap().first_bad, Some(6), "a row was planted");
    intruder.execute("DELETE FROM operation").await.unwrap();
    assert_eq!(db.verify_operations().await.unwrap().first_bad, Some(1), "all rows are removed");
}

async fn pages_are_stable_under_inserts(place: Place) {
    let db = place.open().await;
    write(&db, 25).await;
    let (mut page, mut seen) = (PageRequest::first(10), Vec::new());
    loop {
        let rows = db.operations(&OperationFilter::default(), &page).await.unwrap();
        seen.extend(rows.items.into_iter().map(|row: Operation| row.draft.target_id));
        write(&db, 3).await;
        let Some(next) = rows.next else { break };
        page.cursor = Some(next);
    }
    let expected: Vec<String> = (0..25).rev().map(|n| n.to_string()).collect();
    assert_eq!(seen, expected, "each old row once, newest first, whatever is written meanwhile");
}

async fn filters_select(place: Place) {
    let db = place.open().await;
    write(&db, 4).await;
    db.record(&op("other.thing").failed("no")).await.unwrap();
    let count = async |filter: OperationFilter| {
        db.operations(&filter, &PageRequest::default()).await.unwrap().items.len()
    };
    assert_eq!(
        count(OperationFilter { who: Some("user 0".to_owned()), ..OperationFilter::default() }).await,
        2
    );
    assert_eq!(
        count(OperationFilter { action: Some("other.thing".to_owned()), ..OperationFilter::default() }).await,
        1
    );
    let row = OperationFilter { target_kind: Some("row".to_owned()), ..OperationFilter::default() };
    assert_eq!(count(row.clone()).await, 4);
    assert_eq!(count(OperationFilter { target_id: Some("3".to_owned()), ..row }).await, 1);
    let now_us = hearth_controller::clock::unix_us();
    assert_eq!(count(OperationFilter { from_us: Some(now_us + 1), ..OperationFilter::default() }).await, 0);
    assert_eq!(count(OperationFilter { to_us: Some(now_us + 1), ..OperationFilter::default() }).await, 5);
}

async fn the_running_sealer_seals_within_a_second(place: Place) {
    let db = place.open().await;
    let sealing = db.clone();
    let sealer = hearth_controller::task::spawn("sealer", async move { sealing.run_sealer().await });
    write(&db, 3).await;
    let written = hearth_controller::clock::monotonic();
    while db.verify_operations().await.unwrap().sealed < 3 {
        assert!(
            written.elapsed().as_millis() < 2000,
            "not sealed after 2 s (a loaded machine gets one second more)"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    sealer.abort();
}
