//! Variants: the queue, and what a late worker may not bring back.

use hearth_controller::db::variants::{Variant, VariantSums};
use hearth_controller::db::{Db, DbError};
use hearth_protocol::id::ImageId;
use hearth_protocol::words::{DiskFormat, VariantStatus};

use crate::engines::Place;
use crate::fixture::{active_image, op, queued_image};
use crate::on_both_engines;

on_both_engines! {
    asked_for_goes_first_and_twice_is_once
    a_variant_is_claimed_once_and_ends_well_or_badly
    what_was_deleted_meanwhile_is_not_brought_back
    a_start_takes_up_what_was_being_made
    only_an_active_image_has_variants_made
}

fn sums(byte: &str) -> VariantSums {
    let digest = |n: usize| byte.repeat(n);
    VariantSums { bytes: 1000, sha256: digest(32), md5: digest(16), blake3: digest(32) }
}

async fn ask(db: &Db, image: ImageId, format: DiskFormat) -> bool {
    db.ask_variant(image, format, false, &op("variant.create")).await.unwrap().1
}

async fn claim(db: &Db) -> Option<Variant> {
    let next = db.next_variant().await.unwrap()?;
    db.claim_variant(next.image, next.format).await.unwrap()
}

async fn asked_for_goes_first_and_twice_is_once(place: Place) {
    let db = place.open().await;
    let (one, two) = (active_image(&db, "one").await.id, active_image(&db, "two").await.id);
    db.write_tx(move |tx| {
        Box::pin(async move { tx.queue_variants(one, &[DiskFormat::Vhd, DiskFormat::Vmdk]).await })
    })
    .await
    .unwrap();
    assert!(ask(&db, two, DiskFormat::Raw).await);
    assert!(!ask(&db, two, DiskFormat::Raw).await, "it waits already");
    assert!(!ask(&db, one, DiskFormat::Vmdk).await, "it waits, and goes before the others now");
    let mut order = Vec::new();
    while let Some(row) = claim(&db).await {
        order.push((row.image, row.format));
    }
    assert_eq!(order.last(), Some(&(one, DiskFormat::Vhd)));
    assert_eq!(order.len(), 3, "{order:?}");
    assert_eq!(db.variants_of(one).await.unwrap().len(), 2);
}

async fn a_variant_is_claimed_once_and_ends_well_or_badly(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "disk").await.id;
    assert!(ask(&db, image, DiskFormat::Vhd).await);
    let claimed = claim(&db).await.unwrap();
    assert_eq!((claimed.status, claimed.attempt, claimed.file.clone()), (VariantStatus::Saving, 1, None));
    assert_eq!(db.claim_variant(image, DiskFormat::Vhd).await.unwrap(), None, "somebody has it");
    assert!(!ask(&db, image, DiskFormat::Vhd).await, "it is being made");
    db.fail_variant(image, DiskFormat::Vhd, "no room", &op("variant.make")).await.unwrap();
    let failed = db.variants_of(image).await.unwrap().remove(0);
    assert_eq!((failed.status, failed.reason.as_str()), (VariantStatus::SaveFail, "no room"));
    assert_eq!(claim(&db).await, None, "it is not tried again by itself");
    assert!(ask(&db, image, DiskFormat::Vhd).await);
    assert_eq!(claim(&db).await.unwrap().attempt, 1, "who asks begins anew");
    db.finish_variant(image, DiskFormat::Vhd, &sums("ab"), &op("variant.make")).await.unwrap();
    let made = db.variants_of(image).await.unwrap().remove(0);
    assert_eq!(
        (made.status, made.reason.as_str(), made.file.clone()),
        (VariantStatus::Active, "", Some(sums("ab")))
    );
    assert!(!ask(&db, image, DiskFormat::Vhd).await);
    // A file that is lost: by name of the one that was lost, so that a new one is not thrown away.
    let other = Variant { file: Some(sums("cd")), ..made.clone() };
    assert!(!db.requeue_variant(&other).await.unwrap());
    assert!(db.requeue_variant(&made).await.unwrap());
    assert!(!db.requeue_variant(&made).await.unwrap());
    let waits = db.variants_of(image).await.unwrap().remove(0);
    assert_eq!((waits.status, waits.file, waits.created_us), (VariantStatus::Queued, None, made.created_us));
    assert_eq!(db.all_variants().await.unwrap().len(), 1);
}

async fn what_was_deleted_meanwhile_is_not_brought_back(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "disk").await.id;
    let late = async |format| {
        let finished = db.finish_variant(image, format, &sums("ab"), &op("variant.make")).await;
        assert!(matches!(finished, Err(DbError::NotFound { .. })), "{finished:?}");
        let failed = db.fail_variant(image, format, "x", &op("variant.make")).await;
        assert!(matches!(failed, Err(DbError::NotFound { .. })), "{failed:?}");
    };
    ask(&db, image, DiskFormat::Raw).await;
    claim(&db).await.unwrap();
    db.delete_variant(image, DiskFormat::Raw, &op("variant.delete")).await.unwrap();
    late(DiskFormat::Raw).await;
    // Asked for again: it waits, and the worker of before may not end it.
    assert!(ask(&db, image, DiskFormat::Raw).await);
    late(DiskFormat::Raw).await;
    claim(&db).await.unwrap();
    db.delete_image(image, None, &op("image.delete")).await.unwrap();
    late(DiskFormat::Raw).await;
    assert_eq!(db.all_variants().await.unwrap(), []);
    let gone = db.delete_variant(image, DiskFormat::Raw, &op("variant.delete")).await;
    assert!(matches!(gone, Err(DbError::NotFound { .. })));
}

async fn a_start_takes_up_what_was_being_made(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "disk").await.id;
    ask(&db, image, DiskFormat::Qcow2).await;
    claim(&db).await.unwrap();
    assert_eq!(db.requeue_saving_variants().await.unwrap(), 1);
    assert_eq!(db.requeue_saving_variants().await.unwrap(), 0);
    assert_eq!(claim(&db).await.unwrap().attempt, 2, "the try that died counts");
    db.give_back_variant(image, DiskFormat::Qcow2).await.unwrap();
    assert_eq!(claim(&db).await.unwrap().attempt, 2, "an orderly stop does not");
}

async fn only_an_active_image_has_variants_made(place: Place) {
    let db = place.open().await;
    let image = queued_image(&db, "empty").await;
    let asked = db.ask_variant(image, DiskFormat::Vhd, false, &op("variant.create")).await;
    assert!(matches!(asked, Err(DbError::State { .. })), "{asked:?}");
    db.delete_image(image, None, &op("image.delete")).await.unwrap();
    let asked = db.ask_variant(image, DiskFormat::Vhd, false, &op("variant.create")).await;
    assert!(matches!(asked, Err(DbError::NotFound { .. })), "{asked:?}");
}
