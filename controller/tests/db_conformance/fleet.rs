//! Enrolment, locations, entries, leases and the cache list.

use std::collections::HashMap;

use futures::future::join_all;
use hearth_controller::clock;
use hearth_controller::db::cache_list::{CacheFilter, STALE_AFTER_US};
use hearth_controller::db::enrolment::{EnrolError, Enrolment};
use hearth_controller::db::intents::{Intent, IntentHold};
use hearth_controller::db::join_tokens::TokenFault;
use hearth_controller::db::locations::{Figures, LocationEdit};
use hearth_controller::db::{Change, DbError, PageRequest};
use hearth_protocol::digest::{AgentId, ContentId};
use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::{Generation, LeaseId};
use hearth_protocol::message::control::{Lease, ObservedEntry, ObservedState};
use hearth_protocol::message::enrol::LocationFacts;
use hearth_protocol::words::{ConsumerKind, EntryStatus, GoneReason, LocationState};

use crate::engines::Place;
use crate::fixture::{MINUTE_US, active_image, enrol, join_token, locations, observed, op};
use crate::on_both_engines;

on_both_engines! {
    a_token_with_one_use_lets_one_of_a_hundred_in
    a_token_is_refused_for_a_reason
    a_failed_signature_spends_nothing
    a_name_belongs_to_one_key
    a_removed_location_is_revoked_and_can_enrol_anew
    generations_only_grow
    an_inventory_replaces_and_changes_update
    leases_are_replaced_as_a_whole
    the_cache_list_joins_wishes_and_observations
    cache_pages_are_stable
}

async fn a_token_with_one_use_lets_one_of_a_hundred_in(place: Place) {
    let db = place.open().await;
    let token = join_token(&db, 1, "", clock::unix_us() + MINUTE_US).await;
    let tries = (0..100).map(|n| {
        let (db, token) = (&db, &token);
        async move { enrol(db, token, &format!("host-{n}"), &format!("key-{n}")).await }
    });
    let results = join_all(tries).await;
    let inside: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
    assert_eq!(inside.len(), 1, "agents inside");
    for refused in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(matches!(refused, EnrolError::Token(TokenFault::UsedUp(_))), "{refused}");
    }
    assert_eq!(db.locations(true).await.unwrap().len(), 1);
    assert_eq!(db.join_tokens(0).await.unwrap(), vec![], "nothing is left of it");
    let location = db.location_of_agent(inside[0].agent.unwrap()).await.unwrap().unwrap();
    assert_eq!(
        (location.zone.as_str(), location.rack.as_str()),
        ("z1", "z1"),
        "the token's preset, not what was said"
    );
    assert_eq!(location.labels["gpu"], "yes");
}

async fn a_token_is_refused_for_a_reason(place: Place) {
    let db = place.open().await;
    let now_us = clock::unix_us();
    let fault = async |token: &str, name: &str| match enrol(&db, token, name, name).await {
        Err(EnrolError::Token(fault)) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(fault("nonsense", "a").await, TokenFault::Unknown);
    let ended = join_token(&db, 5, "", now_us - 1).await;
    assert!(matches!(fault(&ended, "a").await, TokenFault::Expired(_)));
    let named = join_token(&db, 5, "cn-*", now_us + MINUTE_US).await;
    assert!(matches!(fault(&named, "us-1").await, TokenFault::Name(_)));
    enrol(&db, &named, "CN-1", "CN-1").await.unwrap();
    let token = db.join_tokens(now_us).await.unwrap().remove(0);
    assert_eq!(token.uses_left, 4, "a refused name spends nothing");
    db.revoke_join_token(token.id, &op("join_token.revoke")).await.unwrap();
    assert!(matches!(fault(&named, "cn-2").await, TokenFault::Revoked(_)));
}

async fn a_failed_signature_spends_nothing(place: Place) {
    let db = place.open().await;
    let token = join_token(&db, 1, "", clock::unix_us() + MINUTE_US).await;
    let facts = LocationFacts { name: "unlucky".to_owned(), ..LocationFacts::default() };
    let enrolment = Enrolment { secret_hash: token.clone(), agent: AgentId::of(b"key"), facts };
    let failed = db.enrol::<()>(&enrolment, |_| Err("the CA's disk is full".to_owned())).await;
    assert!(matches!(failed, Err(EnrolError::Sign(_))));
    assert_eq!(db.locations(true).await.unwrap(), vec![]);
    enrol(&db, &token, "unlucky", "key").await.unwrap();
}

async fn a_name_belongs_to_one_key(place: Place) {
    let db = place.open().await;
    let token = join_token(&db, 9, "", clock::unix_us() + MINUTE_US).await;
    let first = enrol(&db, &token, "Host", "key 1").await.unwrap();
    let taken = enrol(&db, &token, "host", "key 2").await.unwrap_err();
    assert!(matches!(&taken, EnrolError::NameTaken { name } if name == "host"), "{taken}");
    let again = enrol(&db, &token, "host", "key 1").await.unwrap();
    assert_eq!(again.id, first.id, "the same key enrols again");
    assert_eq!(db.location_named("HOST").await.unwrap().unwrap().id, first.id);
    assert_eq!(db.join_tokens(0).await.unwrap()[0].uses_left, 7, "a refusal gives its use back");
}

async fn a_removed_location_is_revoked_and_can_enrol_anew(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "there").await;
    let content = image.content.unwrap();
    let id = locations(&db, 1).await[0];
    let agent = db.location(id).await.unwrap().unwrap().agent.unwrap();
    db.put_intents(&[Intent::manual(image.id, content, id, IntentHold::Pinned)], &op("cache.add"))
        .await
        .unwrap();
    db.apply_inventory(id, &[observed(content, EntryStatus::Active, 1 << 20)]).await.unwrap();
    assert_eq!(db.active_counts(&[id]).await.unwrap()[&id], 1);
    db.remove_location(id, &op("location.remove")).await.unwrap();
    let removed = db.location(id).await.unwrap().unwrap();
    assert_eq!((removed.state, removed.agent), (LocationState::Removed, None));
    assert!(removed.revoked_us.is_some() && db.is_revoked(agent).await.unwrap());
    assert!(db.location_of_agent(agent).await.unwrap().is_none());
    assert!(db.intents_at(id).await.unwrap().is_empty() && db.entries_at(id).await.unwrap().is_empty());
    assert!(db.locations(false).await.unwrap().is_empty());
    let edit = LocationEdit { state: Some(LocationState::Active), ..LocationEdit::default() };
    assert!(matches!(db.edit_location(id, &edit, &op("location.edit")).await, Err(DbError::State { .. })));
    let token = join_token(&db, 2, "", clock::unix_us() + MINUTE_US).await;
    let revoked = enrol(&db, &token, "n-000", "n-000").await.unwrap_err();
    assert!(matches!(revoked, EnrolError::Revoked), "{revoked}");
    let anew = enrol(&db, &token, "n-000", "new key").await.unwrap();
    assert_eq!((anew.id, anew.state, anew.revoked_us), (id, LocationState::Active, None));
    assert!(db.is_revoked(agent).await.unwrap(), "the old key stays revoked");
    let edit = LocationEdit {
        state: Some(LocationState::Draining),
        rack: Some("r9".to_owned()),
        ..LocationEdit::default()
    };
    let edited = db.edit_location(id, &edit, &op("location.drain")).await.unwrap();
    assert_eq!((edited.state, edited.rack.as_str()), (LocationState::Draining, "r9"));
}

async fn generations_only_grow(place: Place) {
    let db = place.open().await;
    let id = locations(&db, 1).await[0];
    assert_eq!(db.bump_generation(id, Generation(0)).await.unwrap(), Generation(1));
    assert_eq!(
        db.bump_generation(id, Generation(40)).await.unwrap(),
        Generation(41),
        "after an older backup"
    );
    db.record_generations(&[(id, Generation(50))]).await.unwrap();
    db.record_generations(&[(id, Generation(45))]).await.unwrap();
    assert_eq!(db.location(id).await.unwrap().unwrap().generation, Generation(50));
    let figures = Figures {
        budget_bytes: 9,
        used_bytes: 8,
        free_bytes: 7,
        floor_bytes: 6,
        degraded: "disk".to_owned(),
    };
    db.record_figures(&[(id, 123, figures.clone())]).await.unwrap();
    let location = db.location(id).await.unwrap().unwrap();
    assert_eq!((location.figures, location.last_seen_us), (figures, Some(123)));
}

async fn an_inventory_replaces_and_changes_update(place: Place) {
    let db = place.open().await;
    let id = locations(&db, 1).await[0];
    let contents: Vec<ContentId> = (0_u8..5).map(|n| ContentId::of(&[n])).collect();
    let all = |status| contents.iter().map(|content| observed(*content, status, 10)).collect::<Vec<_>>();
    let first = db.apply_inventory(id, &all(EntryStatus::Caching)).await.unwrap();
    assert_eq!((first.changed.len(), first.gone.len()), (5, 0));
    let mut news = db.subscribe();
    let same = db.apply_inventory(id, &all(EntryStatus::Caching)).await.unwrap();
    assert_eq!((same.changed.len(), same.gone.len()), (0, 0), "nothing is written twice");
    let changes = [
        observed(contents[0], EntryStatus::Active, 20),
        ObservedEntry {
            state: ObservedState::Failed {
                fault: FaultCode::NoSpace,
                text: "needs 5, free 3\0".to_owned(),
                next_try_unix_ms: 7,
            },
            ..observed(contents[1], EntryStatus::CacheFail, 0)
        },
        ObservedEntry {
            state: ObservedState::Gone(GoneReason::Evicted),
            ..observed(contents[2], EntryStatus::Active, 0)
        },
    ];
    let changed = db.apply_changes(id, &changes).await.unwrap();
    assert_eq!(changed.changed.len(), 2);
    assert_eq!(changed.gone, vec![(contents[2], Some(GoneReason::Evicted))]);
    assert_eq!(
        news.recv().await.unwrap(),
        Change::Entries(id),
        "only the call that changed something is news"
    );
    let stored = db.entries_at(id).await.unwrap();
    assert_eq!(stored.len(), 4);
    let failed = stored.iter().find(|entry| entry.content == contents[1]).unwrap();
    assert_eq!((failed.status, failed.fault), (EntryStatus::CacheFail, Some(FaultCode::NoSpace)));
    assert_eq!((failed.reason.as_str(), failed.next_try_us), ("no_space: needs 5, free 3", Some(7000)));
    let shrunk = db.apply_inventory(id, &changes[..1]).await.unwrap();
    assert_eq!((shrunk.changed.len(), shrunk.gone.len()), (0, 3));
    let mut seen = Vec::new();
    db.see_entries(|entry| seen.push(entry)).await.unwrap();
    assert_eq!(db.entries_of(contents[0]).await.unwrap(), seen);
    let reports = [(id, all(EntryStatus::Active))];
    assert_eq!(db.apply_reports(&reports).await.unwrap()[0].1.changed.len(), 5);
}

async fn leases_are_replaced_as_a_whole(place: Place) {
    let db = place.open().await;
    let ids = locations(&db, 2).await;
    let content = ContentId::of(b"used");
    let lease = |n: u8, consumer: &str| Lease {
        lease: LeaseId::from_bytes([n; 16]),
        content,
        kind: ConsumerKind::Vm,
        consumer: consumer.to_owned(),
        since_unix_ms: u64::from(n),
    };
    db.replace_leases(ids[0], &[lease(1, "vm 1"), lease(2, "vm 2")]).await.unwrap();
    db.replace_leases(ids[1], &[lease(1, "vm 3")]).await.unwrap();
    assert_eq!(db.leases_of(content).await.unwrap().len(), 3);
    db.replace_leases(ids[0], &[lease(2, "vm 2"), lease(2, "vm 2"), lease(3, "vm 4")]).await.unwrap();
    assert_eq!(db.leases_at(ids[0]).await.unwrap(), vec![lease(2, "vm 2"), lease(3, "vm 4")]);
    assert_eq!(db.leases_at(ids[1]).await.unwrap(), vec![lease(1, "vm 3")]);
}

/// Proves CA-1, CA-8.
async fn the_cache_list_joins_wishes_and_observations(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "listed").await;
    let content = image.content.unwrap();
    let ids = locations(&db, 5).await;
    let wish = |n: usize| Intent::manual(image.id, content, ids[n], IntentHold::Pinned);
    // 0: wanted only. 1: wanted and moving. 2: there, unheld. 3: to be removed. 4: nothing.
    db.put_intents(&[wish(0), wish(1), wish(3)], &op("cache.add")).await.unwrap();
    db.apply_changes(ids[1], &[observed(content, EntryStatus::Caching, 1000)]).await.unwrap();
    db.apply_changes(ids[2], &[observed(content, EntryStatus::Active, 1 << 20)]).await.unwrap();
    db.apply_changes(ids[3], &[observed(content, EntryStatus::Active, 1 << 20)]).await.unwrap();
    db.wish_removed(image.id, content, &ids[3..4], false, &op("cache.rm")).await.unwrap();
    let now_us = clock::unix_us();
    let list = async |filter: CacheFilter, now_us: i64| {
        db.cache_rows(&filter, &PageRequest::default(), now_us).await.unwrap().items
    };
    let of_image = CacheFilter { image: Some(image.id), ..CacheFilter::default() };
    let rows = list(of_image.clone(), now_us).await;
    let words: Vec<_> =
        rows.iter().map(|row| (row.location_name.as_str(), row.status, row.intents.len())).collect();
    let expected = vec![
        ("n-000", EntryStatus::Queued, 1),
        ("n-001", EntryStatus::Caching, 1),
        ("n-002", EntryStatus::Active, 0),
        ("n-003", EntryStatus::Deleting, 1),
    ];
    assert_eq!(words, expected);
    assert_eq!(rows[1].entry.as_ref().unwrap().done_bytes, 1000);
    assert_eq!(
        (rows[0].entry.as_ref(), rows[0].zone.as_str(), rows[0].image_name.as_str()),
        (None, "z1", "listed")
    );
    assert_eq!(list(CacheFilter::default(), now_us).await, rows, "without filters the same");
    let active = CacheFilter { status: Some(EntryStatus::Active), ..of_image.clone() };
    assert_eq!(list(active, now_us).await, rows[2..3]);
    let at = CacheFilter { location: Some(ids[1]), ..CacheFilter::default() };
    assert_eq!(list(at, now_us).await, rows[1..2]);
    let named = CacheFilter { location_contains: Some("N-003".to_owned()), ..of_image.clone() };
    assert_eq!(list(named, now_us).await, rows[3..4]);
    let counts = db.cache_counts(&of_image, now_us).await.unwrap();
    assert_eq!((counts.len(), counts[&EntryStatus::Active]), (4, 1));
    let elsewhere = active_image(&db, "elsewhere").await;
    let copies = db.active_copies(&[image.id, elsewhere.id], None, now_us).await.unwrap();
    assert_eq!(copies, HashMap::from([(image.id, 1)]), "only what is shown as active");
    assert!(db.active_copies(&[elsewhere.id], None, now_us).await.unwrap().is_empty());
    assert!(db.active_copies(&[], None, now_us).await.unwrap().is_empty());
    let later_us = now_us + STALE_AFTER_US + MINUTE_US;
    assert!(
        db.active_copies(&[image.id], None, later_us).await.unwrap().is_empty(),
        "a silent location counts"
    );
    let silent = list(of_image, now_us + STALE_AFTER_US + MINUTE_US).await;
    assert!(silent.iter().all(|row| row.status == EntryStatus::Stale));
    assert_eq!(
        silent[2].entry.as_ref().unwrap().status,
        EntryStatus::Active,
        "the last known state stays beside it"
    );
    db.apply_changes(ids[4], &[observed(ContentId::of(b"nameless"), EntryStatus::Active, 5)]).await.unwrap();
    assert_eq!(db.nameless_entries(ids[4]).await.unwrap().len(), 1);
    assert_eq!(db.nameless_entries(ids[2]).await.unwrap().len(), 0);
}

async fn cache_pages_are_stable(place: Place) {
    let db = place.open().await;
    let ids = locations(&db, 12).await;
    let mut expected = Vec::new();
    for name in ["b", "A"] {
        let image = active_image(&db, name).await;
        let wish = |id: &_| Intent::manual(image.id, image.content.unwrap(), *id, IntentHold::Pinned);
        db.put_intents(&ids.iter().map(wish).collect::<Vec<_>>(), &op("cache.add")).await.unwrap();
        expected.splice(0..0, (0..12).map(|n| (name.to_owned(), format!("n-{n:03}"))));
    }
    let (mut page, mut seen) = (PageRequest::first(5), Vec::new());
    loop {
        let rows = db.cache_rows(&CacheFilter::default(), &page, clock::unix_us()).await.unwrap();
        seen.extend(rows.items.into_iter().map(|row| (row.image_name, row.location_name)));
        // A copy at the place that was read last: its row must not push another over the edge.
        db.apply_changes(ids[0], &[observed(ContentId::of(b"b"), EntryStatus::Active, 1)]).await.unwrap();
        let Some(next) = rows.next else { break };
        page.cursor = Some(next);
    }
    assert_eq!(seen, expected, "by image name and location name, each row once");
}
