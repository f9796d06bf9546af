//! What encrypted imports leave behind when something is missing. A plain content stands for the encrypted one: nothing here looks
//! into it.

use hearth_protocol::words::ImageStatus;

use super::super::tests::{World, noise, op};
use super::super::{ATTEMPTS_MAX, Jobs};
use super::*;
use crate::db::jobs::Job;
use crate::db::new_id;
use crate::ingest::encrypt::Encrypted;
use crate::keys::KeyStore;
use crate::keys::master::Master;

fn keys() -> KeyStore {
    KeyStore::new(Some(Master::from_bytes([1; 32])), None)
}

/// An image that is to be encrypted and whose file is here.
async fn uploaded(world: &World, bytes: usize) -> (Image, Job) {
    let id = new_id();
    let key = world.key(&keys(), id, id).await;
    world.uploaded(&id.to_string(), &noise(bytes), Some(key)).await
}

/// Marks, publishes and notes, as an import does that dies then.
async fn noted(world: &World, image: &Image) -> ContentId {
    let imported = world.publish(image);
    world.ingest.content.leaving(imported.content).unwrap();
    let text = serde_json::to_string(&Noted::of(&imported)).unwrap();
    world.db.note_encrypted(image.id, 1 << 30, &text).await.unwrap();
    imported.content
}

/// IN-9: what may be all that is left of an image is given up for its absence alone, not for a file that cannot be read just now.
#[tokio::test(flavor = "multi_thread")]
async fn a_note_is_forgotten_only_where_its_content_is_gone() {
    let world = World::new().await;
    let (image, job) = uploaded(&world, 100_000).await;
    let content = noted(&world, &image).await;
    let id = content.to_string();
    let index = format!("content/objects/{}/{id}.index", id.split_at(2).0);
    let index = world.folder.path().join(index);
    let moved = world.folder.path().join("moved");
    std::fs::rename(&index, &moved).unwrap();
    // Opens, and cannot be read.
    std::fs::create_dir(&index).unwrap();
    assert_eq!(world.jobs.import(&job).await.unwrap(), None, "it waits");
    assert!(world.db.noted_encrypted(image.id).await.unwrap().is_some());
    assert_eq!(world.image(image.id).await.status, ImageStatus::Importing);
    assert_eq!(world.db.unfinished_jobs().await.unwrap()[0].attempt, 0, "no try of its file");
    std::fs::remove_dir(&index).unwrap();
    std::fs::rename(&moved, &index).unwrap();
    assert_eq!(world.jobs.import(&job).await.unwrap(), Some(true));
    assert_eq!(world.image(image.id).await.content, Some(content));
    assert_eq!(world.ingest.content.undecided().unwrap(), [], "it is recorded");
    let (lost, _) = uploaded(&world, 200_000).await;
    let content = noted(&world, &lost).await;
    world.ingest.content.remove(content).unwrap();
    assert!(world.jobs.noted(&lost).await.unwrap().is_none());
    assert_eq!(world.db.noted_encrypted(lost.id).await.unwrap(), None);
    world.db.close().await;
}

/// IN-9: an upload is deleted where nothing can encrypt it any more, and not for what passes.
#[tokio::test(flavor = "multi_thread")]
async fn only_a_key_that_is_lost_for_good_costs_the_upload() {
    let world = World::new().await;
    let (image, job) = uploaded(&world, 100_000).await;
    assert_eq!(world.jobs.import(&job).await.unwrap(), None, "no master key");
    assert!(world.has_original(&image));
    let other = KeyStore::new(Some(Master::from_bytes([9; 32])), None);
    let jobs = |keys| {
        let (db, ingest) = (world.db.clone(), Arc::clone(&world.ingest));
        Jobs::new(db, ingest, true, Vec::new(), world.closing.clone()).with_keys(Arc::new(keys))
    };
    assert_eq!(jobs(other).import(&job).await.unwrap(), None, "another one");
    assert!(world.has_original(&image));
    // Sealed for another key: damaged.
    let key = world.key(&keys(), new_id(), new_id()).await;
    let (lost, lost_job) = world.uploaded("lost", &noise(100_000), Some(key)).await;
    assert_eq!(jobs(keys()).import(&lost_job).await.unwrap(), Some(false));
    assert_eq!(world.image(lost.id).await.status, ImageStatus::Killed);
    assert!(!world.has_original(&lost));
    // A database that is away while the controller stops.
    world.closing.cancel();
    world.db.close().await;
    assert!(matches!(jobs(keys()).passphrase(&image).await, Err(ImportError::Waits { .. })));
    assert!(world.has_original(&image));
}

/// IN-9: whatever ends an import for good, nothing plain is left of an image that was to be encrypted.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_gives_up_leaves_nothing_plain() {
    let world = World::new().await;
    let (image, job) = uploaded(&world, 100_000).await;
    let job = Job { attempt: ATTEMPTS_MAX + 1, ..job };
    assert_eq!(world.jobs.import(&job).await.unwrap(), Some(false));
    assert_eq!(world.image(image.id).await.status, ImageStatus::Killed);
    assert!(!world.has_original(&image));
    world.db.close().await;
}

/// IN-9: an encrypted content that no record came to know goes; one that a note knows stays.
#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_content_that_nobody_knows_goes() {
    let world = World::new().await;
    let content = &world.ingest.content;
    // Died before the note.
    let (image, _) = uploaded(&world, 100_000).await;
    let unknown = world.publish(&image).content;
    content.leaving(unknown).unwrap();
    let (image, job) = uploaded(&world, 200_000).await;
    let known = noted(&world, &image).await;
    // A backup that was restored has no marks.
    content.decided(known).unwrap();
    world.jobs.mark_noted().await.unwrap();
    assert_eq!(world.jobs.finish_removals().await.unwrap(), 1);
    assert!(!content.contains(unknown) && content.contains(known));
    assert_eq!(world.jobs.sweep().await.unwrap(), 0);
    // Deleted between note and record, by whoever comes first.
    world.db.cancel_image(image.id, &op()).await.unwrap();
    assert_eq!(world.jobs.sweep().await.unwrap(), 1);
    assert!(!content.contains(known));
    assert_eq!(content.undecided().unwrap(), []);
    assert_eq!(world.jobs.import(&job).await.unwrap(), None);
    world.db.close().await;
}

/// IN-9: what cannot be noted is not kept, neither in the plain nor encrypted.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_before_the_note_goes() {
    let world = World::new().await;
    let (image, _) = uploaded(&world, 100_000).await;
    let imported = world.publish(&image);
    world.ingest.content.leaving(imported.content).unwrap();
    world.db.cancel_image(image.id, &op()).await.unwrap();
    let made = Encrypted { imported, disk_bytes: 1 << 30 };
    let refused = world.jobs.leave_nothing_plain(&image, made.clone()).await;
    assert!(matches!(refused, Err(ImportError::NotNoted { .. })));
    assert!(!world.ingest.content.contains(made.imported.content));
    assert_eq!(world.ingest.content.undecided().unwrap(), []);
    world.db.close().await;
}
