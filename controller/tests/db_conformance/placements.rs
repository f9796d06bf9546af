//! For which images a copy is at a location.

use hearth_controller::clock;
use hearth_controller::db::intents::{Intent, IntentHold};
use hearth_controller::db::{Db, new_id};
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{ImageId, LeaseId, LocationId};
use hearth_protocol::message::control::{Lease, ObservedEntry, ObservedState};
use hearth_protocol::words::{ConsumerKind, EntryStatus, GoneReason, Origin};

use crate::engines::Place;
use crate::fixture::{active_image, locations, observed, op};
use crate::on_both_engines;

on_both_engines! {
    a_placement_outlives_its_hold_and_ends_with_its_copy
    a_deleted_image_and_a_removed_location_have_no_placement
    a_launch_is_recorded_once
}

async fn is_placed(db: &Db, image: ImageId, at: LocationId) -> bool {
    let now_us = clock::steady_unix_us();
    assert!(db.active_at(at, &[image], false, now_us).await.unwrap().contains(&image));
    db.active_at(at, &[image], true, now_us).await.unwrap().contains(&image)
}

async fn arrive(db: &Db, at: LocationId, content: ContentId) {
    db.apply_changes(at, &[observed(content, EntryStatus::Active, 1 << 20)]).await.unwrap();
}

async fn leave(db: &Db, at: LocationId, content: ContentId) {
    let state = ObservedState::Gone(GoneReason::Evicted);
    let gone = ObservedEntry { state, ..observed(content, EntryStatus::Active, 0) };
    db.apply_changes(at, &[gone]).await.unwrap();
}

async fn lease(db: &Db, at: LocationId, content: ContentId) {
    let lease = LeaseId::from_bytes(*new_id::<ImageId>().as_bytes());
    let lease =
        Lease { lease, content, kind: ConsumerKind::Vm, consumer: "vm-1".to_owned(), since_unix_ms: 1 };
    db.replace_leases(at, &[lease]).await.unwrap();
}

async fn a_placement_outlives_its_hold_and_ends_with_its_copy(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "noble").await;
    let (id, content, ids) = (image.id, image.content.unwrap(), locations(&db, 2).await);
    for at in &ids {
        arrive(&db, *at, content).await;
        lease(&db, *at, content).await;
    }
    assert!(!is_placed(&db, id, ids[0]).await, "it came for somebody else");
    assert!(db.leases_placed(id, content).await.unwrap().is_empty());
    let wish = Intent { origin: Origin::Launch, ..Intent::manual(id, content, ids[0], IntentHold::Until(1)) };
    db.put_intents(&[wish.clone(), wish.clone()], &op("image.launch")).await.unwrap();
    assert_eq!(db.expire_holds(2).await.unwrap().len(), 1);
    assert!(is_placed(&db, id, ids[0]).await && !is_placed(&db, id, ids[1]).await);
    let leases = db.leases_placed(id, content).await.unwrap();
    assert_eq!((leases.len(), leases[0].0), (1, ids[0]));
    // Gone, and back for somebody else.
    leave(&db, ids[0], content).await;
    arrive(&db, ids[0], content).await;
    assert!(!is_placed(&db, id, ids[0]).await);
    // Gone while it is wanted: it comes back for this image.
    db.put_intents(&[wish], &op("image.launch")).await.unwrap();
    leave(&db, ids[0], content).await;
    arrive(&db, ids[0], content).await;
    db.expire_holds(2).await.unwrap();
    assert!(is_placed(&db, id, ids[0]).await);
    // A wish to remove brings nothing.
    db.wish_removed(id, content, &[ids[1]], true, &op("cache.rm")).await.unwrap();
    assert!(db.leases_placed(id, content).await.unwrap().iter().all(|(at, _)| *at == ids[0]));
}

async fn a_deleted_image_and_a_removed_location_have_no_placement(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "noble").await;
    let (id, content, ids) = (image.id, image.content.unwrap(), locations(&db, 2).await);
    for at in &ids {
        db.put_intents(&[Intent::manual(id, content, *at, IntentHold::Pinned)], &op("cache.pin"))
            .await
            .unwrap();
        lease(&db, *at, content).await;
    }
    db.remove_location(ids[0], &op("location.remove")).await.unwrap();
    assert_eq!(db.leases_placed(id, content).await.unwrap().len(), 1);
    db.delete_image(id, None, &op("image.delete")).await.unwrap();
    assert!(db.leases_placed(id, content).await.unwrap().is_empty());
}

/// CA-4, LG-1: who waits asks again; the hold moves, the log stays.
async fn a_launch_is_recorded_once(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "noble").await;
    let (content, at) = (image.content.unwrap(), locations(&db, 1).await[0]);
    let count = async || {
        let rows = db.operations(&Default::default(), &Default::default()).await.unwrap().items;
        rows.iter().filter(|row| row.draft.action == "image.launch").count()
    };
    for now_us in 1..4 {
        db.put_launch(&Intent::launch(image.id, content, at, now_us), &op("image.launch")).await.unwrap();
    }
    assert_eq!(count().await, 1);
    let day_us = 24 * 3600 * 1_000_000;
    assert_eq!(db.intents().await.unwrap()[0].hold, IntentHold::Until(day_us + 3));
    db.expire_holds(day_us + 3).await.unwrap();
    db.put_launch(&Intent::launch(image.id, content, at, 9), &op("image.launch")).await.unwrap();
    assert_eq!(count().await, 2);
}
