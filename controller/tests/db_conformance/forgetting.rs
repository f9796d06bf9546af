//! Download links and kept answers: what is remembered, for whom, and until when.

use hearth_controller::clock;
use hearth_controller::db::jobs::JobKind;
use hearth_controller::db::kept_answers::{Claim, Key, State};
use hearth_controller::db::links::Link;
use hearth_controller::db::operations::OperationFilter;
use hearth_controller::db::{Db, DbError, PageRequest, new_id};
use hearth_controller::jobs::forget::purge;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::EntryStatus;
use sqlx::{Executor as _, Row as _};

use crate::engines::Place;
use crate::fixture::{MINUTE_US, active_image, content_named, locations, observed, op, queued_image};
use crate::on_both_engines;

on_both_engines! {
    a_link_is_found_by_its_hash_used_once_and_revoked_once
    an_image_has_so_many_open_links_and_no_more
    a_key_is_claimed_by_one_of_many
    a_key_ends_and_what_has_ended_is_forgotten
    notes_and_jobs_go_when_nothing_needs_them
}

fn link(image: ImageId, expires_us: i64) -> Link {
    let (created_by, created_us) = ("alice".to_owned(), clock::unix_us());
    let (revoked_us, first_used_us) = (None, None);
    Link { id: new_id(), image, format: None, created_by, expires_us, revoked_us, first_used_us, created_us }
}

async fn uses(db: &Db) -> usize {
    let filter = OperationFilter { action: Some("image.link_use".to_owned()), ..OperationFilter::default() };
    db.operations(&filter, &PageRequest::default()).await.unwrap().items.len()
}

async fn a_link_is_found_by_its_hash_used_once_and_revoked_once(place: Place) {
    let db = place.open().await;
    let image = queued_image(&db, "noble").await;
    let new = link(image, clock::unix_us() + MINUTE_US);
    db.create_link(&new, "hash", 10, &op("image.link")).await.unwrap();
    assert_eq!(db.link_by_secret_hash("hash").await.unwrap(), Some(new.clone()));
    assert_eq!(db.link_by_secret_hash("other").await.unwrap(), None);
    let used = op("image.link_use");
    let calls = (0..8).map(|_| db.use_link(new.id, &used));
    assert!(futures::future::join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!(uses(&db).await, 1, "the first use alone is told");
    let revoke = op("image.link_revoke");
    db.revoke_link(image, new.id, &revoke).await.unwrap();
    let first = db.link(image, new.id).await.unwrap().unwrap();
    assert!(first.first_used_us.is_some() && !first.is_open(clock::unix_us()));
    db.revoke_link(image, new.id, &op("image.link_revoke")).await.unwrap();
    assert_eq!(db.link(image, new.id).await.unwrap().unwrap().revoked_us, first.revoked_us);
    let elsewhere = db.revoke_link(new_id(), new.id, &op("image.link_revoke")).await;
    assert!(matches!(elsewhere, Err(DbError::NotFound { .. })), "a link is its image's own");
}

async fn an_image_has_so_many_open_links_and_no_more(place: Place) {
    let db = place.open().await;
    let image = queued_image(&db, "noble").await;
    let until = clock::unix_us() + MINUTE_US;
    let links: Vec<Link> = (0..8).map(|_| link(image, until)).collect();
    let op = op("image.link");
    let made = links.iter().map(async |link| {
        let own = hearth_controller::db::operations::Draft { id: new_id(), ..op.clone() };
        db.create_link(link, &link.id.to_string(), 3, &own).await
    });
    let made = futures::future::join_all(made).await;
    assert_eq!(made.iter().filter(|result| result.is_ok()).count(), 3, "{made:?}");
    // One that has ended makes room.
    let page = db.links(image, &PageRequest::first(2)).await.unwrap();
    assert!(page.items.len() == 2 && page.next.is_some());
    db.revoke_link(image, page.items[0].id, &crate::fixture::op("image.link_revoke")).await.unwrap();
    db.create_link(&link(image, until), "more", 3, &crate::fixture::op("image.link")).await.unwrap();
}

fn key(n: &str, request: &str) -> Key {
    Key { key_hash: n.to_owned(), caller: "alice".to_owned(), request_hash: request.to_owned() }
}

async fn a_key_is_claimed_by_one_of_many(place: Place) {
    let db = place.open().await;
    let until = clock::unix_us() + MINUTE_US;
    let one = key("k", "r");
    let claims = futures::future::join_all((0..8).map(|_| db.claim_key(&one, until, 10))).await;
    let claims: Vec<Claim> = claims.into_iter().map(Result::unwrap).collect();
    assert_eq!(claims.iter().filter(|claim| **claim == Claim::Fresh).count(), 1, "{claims:?}");
    db.keep_answer(&one, State::Kept, 201, ("{\"name\":\"系统\"}", "\"1\"")).await.unwrap();
    let Claim::Used { same, state, status, body, etag, .. } = db.claim_key(&one, until, 10).await.unwrap()
    else {
        panic!("it is used");
    };
    assert_eq!(etag, "\"1\"");
    assert_eq!((same, state, status, body.as_str()), (true, State::Kept, 201, "{\"name\":\"系统\"}"));
    let other = db.claim_key(&key("k", "another"), until, 10).await.unwrap();
    assert!(matches!(other, Claim::Used { same: false, .. }));
    assert_eq!(db.claim_key(&key("k2", "r"), until, 1).await.unwrap(), Claim::TooMany);
    db.release_key(&one).await.unwrap();
    assert_eq!(db.claim_key(&one, until, 1).await.unwrap(), Claim::Fresh);
}

async fn a_key_ends_and_what_has_ended_is_forgotten(place: Place) {
    let db = place.open().await;
    let now_us = clock::unix_us();
    assert_eq!(db.claim_key(&key("old", "r"), now_us - 1, 10).await.unwrap(), Claim::Fresh);
    assert_eq!(db.claim_key(&key("old", "r2"), now_us - 1, 10).await.unwrap(), Claim::Fresh, "it has ended");
    db.claim_key(&key("new", "r"), now_us + MINUTE_US, 10).await.unwrap();
    let image = queued_image(&db, "noble").await;
    let month_us = 31 * 24 * 60 * MINUTE_US;
    for (hash, expires_us) in [("long ago", now_us - month_us), ("yesterday", now_us - 24 * 60 * MINUTE_US)] {
        db.create_link(&link(image, expires_us), hash, 10, &op("image.link")).await.unwrap();
    }
    purge(&db, now_us).await;
    assert_eq!(db.forget_answers(now_us).await.unwrap(), 0, "purged already");
    assert!(matches!(db.claim_key(&key("new", "r"), now_us, 10).await.unwrap(), Claim::Used { .. }));
    assert_eq!(db.link_by_secret_hash("long ago").await.unwrap(), None);
    assert!(
        db.link_by_secret_hash("yesterday").await.unwrap().is_some(),
        "who has it is still told that it ended"
    );
}

async fn count(place: &Place, table: &str) -> i64 {
    let select = format!("SELECT CAST(COUNT(*) AS BIGINT) AS n FROM {table}");
    place.connect().await.fetch_one(sqlx::AssertSqlSafe(select)).await.unwrap().try_get("n").unwrap()
}

async fn notes_and_jobs_go_when_nothing_needs_them(place: Place) {
    let db = place.open().await;
    let now_us = clock::unix_us();
    let (day_us, month_us) = (25 * 60 * MINUTE_US, 31 * 24 * 60 * MINUTE_US);
    let (kept, deleted) = (active_image(&db, "kept").await.id, active_image(&db, "deleted").await.id);
    // The last is of an earlier version, which wrote it before the image.
    for image in [kept, deleted, new_id()] {
        let row = format!(
            "INSERT INTO market_import (image_id, public_key, catalog_name, entry_key, sha256, size_bytes, created_us) \
             VALUES ('{image}', 'key', 'c', 'k', '{image}', 1, {now_us})"
        );
        place.connect().await.execute(sqlx::AssertSqlSafe(row)).await.unwrap();
    }
    db.delete_image(deleted, None, &op("image.delete")).await.unwrap();
    assert_eq!(count(&place, "market_import").await, 2, "an image's note goes with it");
    let at = locations(&db, 2).await;
    let content = content_named("kept").id;
    db.apply_inventory(at[0], &[observed(content, EntryStatus::Active, 1)]).await.unwrap();
    for location in &at {
        db.note_key_given(*location, (content, kept), &op("key.give")).await.unwrap();
    }
    let waiting = queued_image(&db, "waiting").await;
    db.enqueue_job(new_id(), JobKind::Import, waiting, "{}").await.unwrap();
    let left = async || {
        (count(&place, "market_import").await, count(&place, "key_given").await, count(&place, "job").await)
    };
    purge(&db, now_us).await;
    assert_eq!(left().await, (2, 2, 3), "an image, or a copy, may be on its way");
    purge(&db, now_us + day_us).await;
    assert_eq!(left().await, (1, 1, 3));
    purge(&db, now_us + month_us).await;
    assert_eq!(left().await, (1, 1, 1), "what is not over stays");
    assert!(db.key_was_given(at[0], content).await.unwrap());
}
