//! Keys: rivals for one key, master keys that change, and who was given what.

use hearth_controller::db::image_changes::Imported;
use hearth_controller::db::images::{FixedFacts, NewImage};
use hearth_controller::db::keys::{Key, NewKey};
use hearth_controller::db::tokens::Scope;
use hearth_controller::db::{Db, DbError, PageRequest, new_id};
use hearth_controller::keys::KeyStore;
use hearth_controller::keys::master::Master;
use hearth_protocol::id::{ImageId, KeyId, LeaseId};
use hearth_protocol::message::control::{Lease, ObservedEntry, ObservedState};
use hearth_protocol::words::{ConsumerKind, DiskFormat, EntryStatus, GoneReason};

use crate::engines::Place;
use crate::fixture::{content_named, locations, new_image, observed, op, original, project_in};
use crate::on_both_engines;

on_both_engines! {
    a_key_that_encrypts_an_image_stays_whoever_is_faster
    keys_are_sealed_again_all_or_none
    who_was_given_a_passphrase_gets_it_again_while_the_copy_is_there
    a_deleted_image_opens_where_its_copy_stands
    an_encrypted_import_is_noted_until_it_is_recorded
}

fn keys(byte: u8) -> KeyStore {
    KeyStore::new(Some(Master::from_bytes([byte; 32])), None)
}

async fn make(db: &Db, store: &KeyStore, name: &str) -> Key {
    let (domain, project) = db.default_tenants().await.unwrap();
    let id: KeyId = new_id();
    let sealed = store.make(id, project).unwrap();
    let new = NewKey { id, name: name.to_owned(), domain, project, sealed };
    db.create_key(&new, &op("key.create")).await.unwrap();
    db.key(id).await.unwrap().unwrap()
}

fn image_with(key: &Key, name: &str) -> NewImage {
    let fixed = FixedFacts { key: Some(key.id), ..FixedFacts::default() };
    NewImage { fixed, ..new_image(key.domain, key.project, name) }
}

/// An active encrypted image.
async fn active(db: &Db, key: &Key, name: &str) -> ImageId {
    let new = image_with(key, name);
    db.create_image(&new, &op("image.create")).await.unwrap();
    db.start_upload(new.id).await.unwrap();
    let job = new_id();
    db.accept_upload(new.id, &original(), (job, "{}"), &op("image.upload")).await.unwrap();
    db.note_encrypted(new.id, 40 << 30, "{}").await.unwrap();
    let imported = Imported {
        content: content_named(name),
        format: DiskFormat::Qcow2,
        original_kept: false,
        variants: Vec::new(),
        scan: None,
    };
    db.finish_import(new.id, job, &imported, &op("image.import")).await.unwrap();
    new.id
}

/// IN-9: a key that encrypts an image is not deleted, and an image does not get one that is gone.
async fn a_key_that_encrypts_an_image_stays_whoever_is_faster(place: Place) {
    let db = place.open().await;
    let store = keys(1);
    for n in 0..20 {
        let key = make(&db, &store, &format!("key-{n}")).await;
        let new = image_with(&key, &format!("image-{n}"));
        let (create, delete) = (op("image.create"), op("key.delete"));
        let (made, deleted) = tokio::join!(db.create_image(&new, &create), db.delete_key(key.id, &delete));
        match (&made, &deleted) {
            (Ok(()), Err(DbError::State { .. })) => {
                let shown = db.image(new.id).await.unwrap().unwrap();
                assert_eq!((shown.fixed.key, shown.key_name), (Some(key.id), Some(key.name)));
                assert_eq!(db.key(key.id).await.unwrap().unwrap().images, 1);
            }
            (Err(DbError::NotFound { what: "key", .. }), Ok(())) => {
                assert!(db.image(new.id).await.unwrap().is_none());
            }
            other => panic!("{other:?}"),
        }
    }
    let (domain, _) = db.default_tenants().await.unwrap();
    let other = project_in(&db, domain, "other").await;
    let key = make(&db, &store, "mine").await;
    let foreign = NewImage { project: other, ..image_with(&key, "foreign") };
    assert!(matches!(db.create_image(&foreign, &op("x")).await, Err(DbError::NotFound { .. })));
    let mine = db.keys(Scope::Project(domain, other), None, &PageRequest::default()).await.unwrap();
    assert!(mine.items.is_empty());
    let first = db.keys(Scope::System, None, &PageRequest::first(1)).await.unwrap();
    assert_eq!((first.items[0].id, first.next.is_some()), (key.id, true));
    assert_eq!(db.key_named(key.project, "MINE").await.unwrap(), Some(key));
}

/// IN-9: after a change of the master key that could not open one key, all are as before.
async fn keys_are_sealed_again_all_or_none(place: Place) {
    let db = place.open().await;
    make(&db, &keys(1), "one").await;
    let lost = make(&db, &keys(7), "lost").await;
    let both = |a, b| KeyStore::new(Some(Master::from_bytes([a; 32])), Some(Master::from_bytes([b; 32])));
    let refused = db.seal_keys_again(&both(2, 1), &op("key.rotate")).await.unwrap_err();
    assert!(refused.to_string().contains("lost"), "{refused}");
    let masters = db.key_masters().await.unwrap();
    assert!(masters.iter().all(|(master, n)| *n == 1 && !keys(2).knows(master)), "{masters:?}");
    db.delete_key(lost.id, &op("key.delete")).await.unwrap();
    let done = db.seal_keys_again(&both(2, 1), &op("key.rotate")).await.unwrap();
    assert_eq!((done.sealed, done.unchanged), (1, 0));
    assert!(db.key_masters().await.unwrap().iter().all(|(master, _)| keys(2).knows(master)));
}

/// IN-9: a host's own word that it holds a copy opens nothing; having been given it once, and holding it still, does.
async fn who_was_given_a_passphrase_gets_it_again_while_the_copy_is_there(place: Place) {
    let db = place.open().await;
    let key = make(&db, &keys(1), "k").await;
    let image = active(&db, &key, "secret").await;
    let content = content_named("secret").id;
    let (found, name, with) = db.encrypted_image(content).await.unwrap().unwrap();
    assert_eq!((found, name.as_str(), with.id), (image, "secret", key.id));
    let here = locations(&db, 1).await[0];
    let entry = observed(content, EntryStatus::Active, 1);
    db.apply_inventory(here, std::slice::from_ref(&entry)).await.unwrap();
    assert!(!db.key_was_given(here, content).await.unwrap());
    for _ in 0..2 {
        db.note_key_given(here, (content, image), &op("key.give")).await.unwrap();
    }
    assert!(db.key_was_given(here, content).await.unwrap());
    db.apply_inventory(here, &[]).await.unwrap();
    assert!(!db.key_was_given(here, content).await.unwrap(), "the copy is gone");
    // It comes back by the host's own word: nobody placed it.
    db.apply_inventory(here, std::slice::from_ref(&entry)).await.unwrap();
    assert!(!db.key_was_given(here, content).await.unwrap(), "and the grant with it");
    db.note_key_given(here, (content, image), &op("key.give")).await.unwrap();
    let change = ObservedEntry { state: ObservedState::Gone(GoneReason::Evicted), ..entry.clone() };
    db.apply_changes(here, &[change]).await.unwrap();
    db.apply_changes(here, std::slice::from_ref(&entry)).await.unwrap();
    assert!(!db.key_was_given(here, content).await.unwrap(), "nor after a change");
    // Nor after the location was away for good.
    db.note_key_given(here, (content, image), &op("key.give")).await.unwrap();
    db.remove_location(here, &op("location.remove")).await.unwrap();
    db.apply_inventory(here, std::slice::from_ref(&entry)).await.unwrap();
    assert!(!db.key_was_given(here, content).await.unwrap());
    db.note_key_given(here, (content, image), &op("key.give")).await.unwrap();
    assert!(db.key_was_given(here, content).await.unwrap());
    db.apply_inventory(here, &[]).await.unwrap();
    db.delete_image(image, None, &op("image.delete")).await.unwrap();
    db.delete_key(key.id, &op("key.delete")).await.unwrap();
    assert!(db.encrypted_image(content).await.unwrap().is_none());
}

/// IN-9: machines run on after their image was deleted; as long as a copy stands, or a lease on it, its host is answered and the key
/// stays.
async fn a_deleted_image_opens_where_its_copy_stands(place: Place) {
    let db = place.open().await;
    let key = make(&db, &keys(1), "k").await;
    let (image, content) = (active(&db, &key, "secret").await, content_named("secret").id);
    let [here, there] = locations(&db, 2).await[..] else { unreachable!("two were asked for") };
    let entry = observed(content, EntryStatus::Active, 1);
    for location in [here, there] {
        db.apply_inventory(location, std::slice::from_ref(&entry)).await.unwrap();
    }
    db.note_key_given(here, (content, image), &op("key.give")).await.unwrap();
    db.delete_image(image, None, &op("image.delete")).await.unwrap();
    let (found, name, with) = db.encrypted_image(content).await.unwrap().expect("it is remembered");
    assert_eq!((found, name.as_str(), with.id, with.images), (image, "secret", key.id, 0));
    assert!(
        db.key_was_given(here, content).await.unwrap() && !db.key_was_given(there, content).await.unwrap()
    );
    let stands = db.delete_key(key.id, &op("key.delete")).await.unwrap_err();
    assert!(stands.to_string().contains("copies of deleted images"), "{stands}");
    let lease = Lease {
        lease: LeaseId::from_bytes([9; 16]),
        content,
        kind: ConsumerKind::Vm,
        consumer: "vm-1".to_owned(),
        since_unix_ms: 1,
    };
    db.replace_leases(here, &[lease]).await.unwrap();
    db.apply_inventory(here, &[]).await.unwrap();
    assert!(db.key_was_given(here, content).await.unwrap(), "leased");
    assert!(db.delete_key(key.id, &op("key.delete")).await.is_err());
    db.replace_leases(here, &[]).await.unwrap();
    db.delete_key(key.id, &op("key.delete")).await.unwrap();
    assert!(db.encrypted_image(content).await.unwrap().is_none());
}

/// IN-9: what is noted of an encrypted import gives the image the size of its disk, and is forgotten.
async fn an_encrypted_import_is_noted_until_it_is_recorded(place: Place) {
    let db = place.open().await;
    let key = make(&db, &keys(1), "k").await;
    let image = active(&db, &key, "secret").await;
    assert_eq!(db.noted_encrypted(image).await.unwrap(), None);
    assert_eq!(db.image(image).await.unwrap().unwrap().virtual_bytes, Some(40 << 30));
    let new = image_with(&key, "later");
    db.create_image(&new, &op("image.create")).await.unwrap();
    for text in ["{}", "{\"a\":1}"] {
        db.note_encrypted(new.id, 1, text).await.unwrap();
        assert_eq!(db.noted_encrypted(new.id).await.unwrap().as_deref(), Some(text));
    }
    assert_eq!(db.all_noted_encrypted().await.unwrap(), [(new.id, "{\"a\":1}".to_owned())]);
    db.forget_encrypted(new.id).await.unwrap();
    assert_eq!(db.noted_encrypted(new.id).await.unwrap(), None);
    // Other bytes are another import, and a deleted image has none.
    db.note_encrypted(new.id, 1, "{}").await.unwrap();
    db.start_upload(new.id).await.unwrap();
    assert_eq!(db.noted_encrypted(new.id).await.unwrap(), None);
    db.note_encrypted(new.id, 1, "{}").await.unwrap();
    db.cancel_image(new.id, &op("image.delete")).await.unwrap();
    assert_eq!(db.noted_encrypted(new.id).await.unwrap(), None);
    assert!(matches!(db.note_encrypted(new_id(), 1, "{}").await, Err(DbError::NotFound { .. })));
}
