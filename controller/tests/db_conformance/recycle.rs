//! The recycle bin: names, states, and who wins.

use std::collections::BTreeSet;

use hearth_controller::db::image_list::ImageFilter;
use hearth_controller::db::images::ImageFacts;
use hearth_controller::db::intents::{Intent, IntentHold};
use hearth_controller::db::shares::{Reach, View};
use hearth_controller::db::tokens::Scope;
use hearth_controller::db::{DbError, PageRequest, new_id};
use hearth_controller::logic::sharing::Receiver;
use hearth_protocol::words::{ImageStatus, Visibility};
use sqlx::Executor as _;

use crate::engines::Place;
use crate::fixture::{active_image, image_of, locations, op, project_in, queued_image};
use crate::on_both_engines;

on_both_engines! {
    an_image_in_the_bin_keeps_everything_but_its_name
    a_restore_and_the_end_of_the_days_cannot_both_win
    what_may_not_go_is_refused
    an_image_that_is_made_is_cancelled
    a_bin_is_its_owners_alone
    in_the_bin_an_image_keeps_owner_and_visibility
    a_public_image_in_the_bin_is_its_owners_alone
}

async fn an_image_in_the_bin_keeps_everything_but_its_name(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "noble").await;
    let (content, at) = (image.content.unwrap(), locations(&db, 1).await[0]);
    let held = Intent::manual(image.id, content, at, IntentHold::Pinned);
    db.put_intents(&[held], &op("cache.create")).await.unwrap();
    let binned = db.bin_image(image.id, Some(1), &op("image.delete")).await.unwrap();
    assert_eq!(
        (binned.status, binned.kept_as(), binned.revision),
        (ImageStatus::PendingDelete, ImageStatus::Active, 2)
    );
    assert_eq!((binned.content, db.unused_contents().await.unwrap()), (Some(content), vec![]));
    assert_eq!(db.intents_for(image.id, None).await.unwrap().len(), 1, "holds end at its destruction");
    assert!(db.images_named(Scope::System, "noble").await.unwrap().is_empty());
    let again = active_image(&db, "NOBLE").await;
    let error = db.restore_image(image.id, None, &op("image.restore")).await.unwrap_err();
    assert!(matches!(&error, DbError::Exists { key, .. } if key == "noble"), "{error}");
    let back = db.restore_image(image.id, Some("noble-2"), &op("image.restore")).await.unwrap();
    assert_eq!((back.status, back.binned, back.facts.name.as_str()), (ImageStatus::Active, None, "noble-2"));
    assert_eq!(db.images_named(Scope::System, "Noble-2").await.unwrap()[0].id, image.id);
    db.delete_image(again.id, None, &op("image.destroy")).await.unwrap();
    db.bin_image(image.id, None, &op("image.delete")).await.unwrap();
    db.delete_image(image.id, None, &op("image.destroy")).await.unwrap();
    assert!(db.intents_for(image.id, None).await.unwrap().is_empty());
    assert_eq!(db.unused_contents().await.unwrap().len(), 2);
}

async fn a_restore_and_the_end_of_the_days_cannot_both_win(place: Place) {
    let db = place.open().await;
    for n in 0..5 {
        let image = active_image(&db, &format!("image {n}")).await;
        db.bin_image(image.id, None, &op("image.delete")).await.unwrap();
        let (back, end) = (op("image.restore"), op("image.purge"));
        let (restored, purged) =
            tokio::join!(db.restore_image(image.id, None, &back), db.purge_image(image.id, i64::MAX, &end));
        let purged = purged.unwrap().is_some();
        assert_ne!(restored.is_ok(), purged);
        let left = db.image(image.id).await.unwrap().unwrap();
        assert_eq!(left.status == ImageStatus::Deleted, purged);
        assert_eq!(left.content.is_none(), purged);
    }
    let image = active_image(&db, "days").await;
    let binned = db.bin_image(image.id, None, &op("image.delete")).await.unwrap().binned.unwrap();
    assert!(db.binned_before(binned.since_us - 1).await.unwrap().is_empty());
    assert!(db.purge_image(image.id, binned.since_us - 1, &op("image.purge")).await.unwrap().is_none());
    assert_eq!(db.binned_before(binned.since_us).await.unwrap(), [(image.id, "days".to_owned())]);
}

async fn what_may_not_go_is_refused(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "stays").await;
    for (state, set) in [
        ("protected", (|facts: &mut ImageFacts| facts.protected = true) as fn(&mut ImageFacts)),
        ("public", |facts| (facts.protected, facts.visibility) = (false, Visibility::Public)),
    ] {
        db.update_image(image.id, None, set, &op("image.update")).await.unwrap();
        let binned = db.bin_image(image.id, None, &op("image.delete")).await.unwrap_err();
        let gone = db.delete_image(image.id, None, &op("image.destroy")).await.unwrap_err();
        for error in [binned, gone] {
            assert!(matches!(&error, DbError::State { state: found, .. } if found == state), "{error}");
        }
    }
    let private = |facts: &mut ImageFacts| facts.visibility = Visibility::Private;
    let revision = db.update_image(image.id, None, private, &op("image.update")).await.unwrap().revision;
    let stale = db.bin_image(image.id, Some(revision - 1), &op("image.delete")).await.unwrap_err();
    assert!(matches!(stale, DbError::Revision { .. }), "{stale}");
    let queued = queued_image(&db, "queued").await;
    for id in [queued, new_id()] {
        assert!(db.bin_image(id, None, &op("image.delete")).await.is_err());
        assert!(db.restore_image(id, None, &op("image.restore")).await.is_err());
    }
}

async fn an_image_that_is_made_is_cancelled(place: Place) {
    let db = place.open().await;
    let id = queued_image(&db, "half").await;
    let upload = db.start_upload(id).await.unwrap();
    db.cancel_image(id, &op("image.cancel")).await.unwrap();
    assert!(matches!(db.abort_upload(upload.id, "late", None).await, Err(DbError::NotFound { .. })));
    queued_image(&db, "half").await;
    let active = active_image(&db, "whole").await;
    let error = db.cancel_image(active.id, &op("image.cancel")).await.unwrap_err();
    assert!(matches!(&error, DbError::State { state, .. } if state == "active"), "{error}");
}

async fn a_bin_is_its_owners_alone(place: Place) {
    let db = place.open().await;
    let (domain, project) = db.default_tenants().await.unwrap();
    let receiver = new_id();
    db.create_project(receiver, domain, "receiver", &op("project.create")).await.unwrap();
    let image = active_image(&db, "shared").await;
    let shared = |facts: &mut ImageFacts| facts.visibility = Visibility::Shared;
    db.update_image(image.id, None, shared, &op("image.update")).await.unwrap();
    let share =
        format!("INSERT INTO share VALUES ('{}', 'project', '{receiver}', 'accepted', 0, 0)", image.id);
    place.connect().await.execute(sqlx::AssertSqlSafe(share)).await.unwrap();
    let theirs = Scope::Project(domain, receiver);
    assert!(db.image_seen_by(theirs, image.id).await.unwrap().is_some());
    db.bin_image(image.id, None, &op("image.delete")).await.unwrap();
    let bin = ImageFilter { status: Some(ImageStatus::PendingDelete), ..ImageFilter::default() };
    for (scope, sees) in [(theirs, false), (Scope::Project(domain, project), true), (Scope::System, true)] {
        assert_eq!(db.image_seen_by(scope, image.id).await.unwrap().is_some(), sees, "{scope:?}");
        let listed = db.images(scope, &bin, &PageRequest::default()).await.unwrap();
        assert_eq!(listed.items.len() == 1, sees, "{scope:?}");
    }
}

/// Hidden there, it would take a name in another project, or be public to nobody.
async fn in_the_bin_an_image_keeps_owner_and_visibility(place: Place) {
    let db = place.open().await;
    let (domain, _) = db.default_tenants().await.unwrap();
    let other = project_in(&db, domain, "other").await;
    let image = active_image(&db, "noble").await;
    let binned = db.bin_image(image.id, None, &op("image.delete")).await.unwrap();
    let receivers = BTreeSet::from([Receiver::Project(other)]);
    let reach = Reach { by_system: true, receivers_max: 10 };
    let done = [
        db.change_owner(&binned, other, None, &op("image.change_owner")).await.map(drop),
        db.publish_image(&binned, None, &op("image.publish")).await.map(drop),
        db.set_featured(&binned, true, None, &op("image.feature")).await.map(drop),
        db.add_shares(&binned, &receivers, reach, &op("image.share")).await,
    ];
    for refused in done {
        let error = refused.unwrap_err();
        assert!(matches!(&error, DbError::State { state, .. } if state == "in the recycle bin"), "{error}");
    }
    assert_eq!(db.image(image.id).await.unwrap().unwrap(), binned);
    image_of(&db, domain, other, "noble").await;
}

/// DL-2, SH-7: no call makes such a row; should there be one, nobody else finds it.
async fn a_public_image_in_the_bin_is_its_owners_alone(place: Place) {
    let db = place.open().await;
    let (domain, project) = db.default_tenants().await.unwrap();
    let stranger = new_id();
    db.create_project(stranger, domain, "stranger", &op("project.create")).await.unwrap();
    let image = active_image(&db, "noble").await;
    db.bin_image(image.id, None, &op("image.delete")).await.unwrap();
    let row = format!("UPDATE image SET visibility = 'public', featured = 1 WHERE id = '{}'", image.id);
    place.connect().await.execute(sqlx::AssertSqlSafe(row)).await.unwrap();
    let bin = |view| ImageFilter { view, status: Some(ImageStatus::PendingDelete), ..ImageFilter::default() };
    let scopes = [
        (Scope::Project(domain, stranger), false),
        (Scope::Project(domain, project), true),
        (Scope::Domain(domain), true),
        (Scope::Domain(new_id()), false),
        (Scope::System, true),
    ];
    for (scope, sees) in scopes {
        assert_eq!(db.image_known_to(scope, image.id).await.unwrap().is_some(), sees, "{scope:?}");
        for view in [View::All, View::Public, View::Featured] {
            let listed = db.images(scope, &bin(view), &PageRequest::default()).await.unwrap();
            assert_eq!(listed.items.len() == 1, sees, "{scope:?} {view:?}");
            let counted = db.count_images(scope, &bin(view)).await.unwrap();
            assert_eq!(counted.rows == 1, sees, "{scope:?} {view:?}");
        }
    }
    let private = format!("UPDATE image SET visibility = 'private' WHERE id = '{}'", image.id);
    place.connect().await.execute(sqlx::AssertSqlSafe(private)).await.unwrap();
    let (seen, reach) =
        (db.image(image.id).await.unwrap().unwrap(), Reach { by_system: true, receivers_max: 9 });
    let to = BTreeSet::from([Receiver::Project(stranger)]);
    let error = db.add_shares(&seen, &to, reach, &op("share.create")).await.unwrap_err();
    assert!(matches!(&error, DbError::State { state, .. } if state == "in the recycle bin"), "{error}");
}
