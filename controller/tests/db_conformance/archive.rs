//! Segments of the operation log leave the database; what stays is proven from an anchor.

use hearth_controller::clock;
use hearth_controller::db::archive::Segment;
use hearth_controller::db::operations::Draft;
use hearth_controller::db::verify::ARCHIVE_ACTION;
use hearth_controller::db::{Db, DbError};
use hearth_controller::logic::chain::Flaw;
use serde_json::json;
use sqlx::Executor as _;

use crate::engines::Place;
use crate::fixture::op;
use crate::on_both_engines;

on_both_engines! {
    a_removed_segment_leaves_an_anchor_that_proves_the_rest
    a_segment_that_is_not_what_stands_there_is_not_removed
    an_anchor_that_nobody_told_of_is_found
    an_anchor_is_shown_and_its_proof_must_be_sealed
    every_touched_row_is_named
}

async fn sealed(place: &Place, n: usize) -> Db {
    let db = place.open().await;
    for i in 0..n {
        db.record(&op("test.write").with(json!({ "n": i, "text": "系统" }))).await.unwrap();
    }
    assert_eq!(db.seal_once().await.unwrap(), n as u64);
    db
}

fn told(segment: &Segment) -> Draft {
    let Segment { first_seq, last_seq, hash } = segment;
    op(ARCHIVE_ACTION).with(json!({ "first_seq": first_seq, "last_seq": last_seq, "hash": hash }))
}

/// The segment of rows `first` to `last` as it stands.
async fn segment(db: &Db, first_seq: u64, last_seq: u64) -> Segment {
    let rows = db.sealed_rows(last_seq - 1, last_seq, 1).await.unwrap();
    assert_eq!(rows[0].computed(), rows[0].hash, "an archived row hashes to what was sealed");
    Segment { first_seq, last_seq, hash: rows[0].hash.clone() }
}

async fn a_removed_segment_leaves_an_anchor_that_proves_the_rest(place: Place) {
    let db = sealed(&place, 9).await;
    let now_us = clock::unix_us() + 1;
    let what = db.archivable(now_us).await.unwrap().unwrap();
    assert_eq!((what.begin.seq, what.last_seq), (0, 9));
    assert_eq!(db.archivable(0).await.unwrap(), None);
    for (first, last) in [(1, 3), (4, 5)] {
        let segment = segment(&db, first, last).await;
        db.remove_segment(&segment, &told(&segment)).await.unwrap();
        let found = db.verify_operations().await.unwrap();
        assert_eq!((found.flaws, found.archived, found.unsealed), (0, last, 0), "{found:?}");
    }
    while db.seal_once().await.unwrap() > 0 {}
    let found = db.verify_operations().await.unwrap();
    assert_eq!((found.flaws, found.sealed, found.archived), (0, 6, 5));
    assert_eq!(db.anchors(1, 9, 10).await.unwrap().len(), 2);
    assert_eq!(db.archivable(clock::unix_us() + 1).await.unwrap().unwrap().begin.seq, 5);
    // To the very last row.
    let segment = segment(&db, 6, 11).await;
    db.remove_segment(&segment, &told(&segment)).await.unwrap();
    assert_eq!(db.verify_operations().await.unwrap().flaws, 0);
    db.seal_once().await.unwrap();
    let found = db.verify_operations().await.unwrap();
    assert_eq!((found.flaws, found.sealed, found.archived), (0, 1, 11));
}

async fn a_segment_that_is_not_what_stands_there_is_not_removed(place: Place) {
    let db = sealed(&place, 5).await;
    let right = segment(&db, 1, 3).await;
    let wrong = [
        Segment { hash: "0".repeat(64), ..right.clone() },
        Segment { first_seq: 2, ..right.clone() },
        Segment { last_seq: 9, ..right.clone() },
        Segment { last_seq: 4, ..right.clone() },
    ];
    for segment in wrong {
        let refused = db.remove_segment(&segment, &told(&segment)).await;
        assert!(matches!(refused, Err(DbError::State { .. })), "{segment:?}: {refused:?}");
    }
    let mut intruder = place.connect().await;
    intruder.execute("DELETE FROM operation WHERE seq = 2").await.unwrap();
    assert!(db.remove_segment(&right, &told(&right)).await.is_err(), "a row of it is missing");
    assert_eq!(db.verify_operations().await.unwrap().archived, 0);
}

async fn an_anchor_that_nobody_told_of_is_found(place: Place) {
    let db = sealed(&place, 5).await;
    let mut intruder = place.connect().await;
    let plant = "INSERT INTO operation_anchor SELECT seq, hash, id, 0, '' FROM operation WHERE seq = 2";
    intruder.execute(plant).await.unwrap();
    intruder.execute("DELETE FROM operation WHERE seq <= 2").await.unwrap();
    let found = db.verify_operations().await.unwrap();
    assert_eq!((found.first_bad, found.findings[0].flaw), (Some(2), Flaw::Planted));
    // Nor may a sealed row stand before the anchor.
    let db_rows = "UPDATE operation_anchor SET seq = 3";
    intruder.execute(db_rows).await.unwrap();
    assert!(db.verify_operations().await.unwrap().findings.iter().any(|found| found.id.is_some()));
}

/// Whoever writes the database can plant a proof too. Until it is sealed nobody believes it; after that the anchor is shown, for
/// somebody to ask for its file.
async fn an_anchor_is_shown_and_its_proof_must_be_sealed(place: Place) {
    let db = sealed(&place, 9).await;
    let first = segment(&db, 1, 3).await;
    db.remove_segment(&first, &told(&first).on("log", "", "first.zst")).await.unwrap();
    let planted = segment(&db, 4, 6).await;
    let proof = told(&planted);
    db.record(&proof).await.unwrap();
    let mut intruder = place.connect().await;
    let Segment { last_seq, hash, .. } = &planted;
    let id = proof.id;
    let plant = format!("INSERT INTO operation_anchor VALUES ({last_seq}, '{hash}', '{id}', 0, '')");
    intruder.execute(sqlx::AssertSqlSafe(plant)).await.unwrap();
    intruder.execute("DELETE FROM operation WHERE seq <= 6").await.unwrap();
    let found = db.verify_operations().await.unwrap();
    assert_eq!((found.first_bad, found.findings[0].flaw), (Some(6), Flaw::Planted));
    db.seal_once().await.unwrap();
    let found = db.verify_operations().await.unwrap();
    let shown: Vec<_> =
        found.anchors.iter().map(|a| (a.mark.seq, a.mark.hash.as_str(), a.file.as_str())).collect();
    assert_eq!(shown, [(6, hash.as_str(), ""), (3, first.hash.as_str(), "first.zst")]);
    assert_eq!(found.anchors.iter().map(|a| a.told_seq).collect::<Vec<_>>(), [Some(11), Some(10)]);
}

async fn every_touched_row_is_named(place: Place) {
    let db = sealed(&place, 12).await;
    let mut intruder = place.connect().await;
    for text in [
        "UPDATE operation SET target_name = 'x' WHERE seq = 2",
        "DELETE FROM operation WHERE seq = 4 OR seq = 5",
        "UPDATE operation SET seq = 99 WHERE seq = 7",
        "UPDATE operation SET seq = 7 WHERE seq = 9",
        "UPDATE operation SET seq = 9 WHERE seq = 99",
        "UPDATE operation SET details = 'no json' WHERE seq = 11",
    ] {
        intruder.execute(text).await.unwrap();
    }
    let found = db.verify_operations().await.unwrap();
    let named: Vec<_> = found.findings.iter().map(|f| (f.seq, f.last_seq, f.flaw)).collect();
    let expected = [
        (2, 2, Flaw::Changed),
        (4, 5, Flaw::Missing),
        (7, 7, Flaw::OutOfOrder),
        (9, 9, Flaw::OutOfOrder),
        (11, 11, Flaw::Changed),
    ];
    assert_eq!(named, expected);
    assert_eq!((found.sealed, found.flaws), (6, 5), "the others are intact");
}
