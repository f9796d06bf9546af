//! The end of a fetch on a real database and folder.

use hearth_protocol::words::ImageStatus;

use super::*;
use crate::ingest::sources::SourceConfig;
use crate::jobs::tests::{World, new_image};

/// Fetches that nobody runs.
fn fetches(world: &World) -> Arc<Fetches> {
    let patience = Patience::default();
    let limits = Limits { image_bytes_max: 1 << 20, upload_idle: Duration::from_secs(60), patience };
    let sources = Sources::new(SourceConfig::default());
    Fetches::new(world.db.clone(), Arc::clone(&world.ingest), sources, limits, CancellationToken::new())
}

/// An image whose file is on disk, and its fetch as a worker has it.
async fn fetched(fetches: &Fetches, name: &str) -> (Job, Image, Upload) {
    let db = &fetches.db;
    let new = new_image(db, name, None).await;
    db.create_image(&new, &Draft::system("test")).await.unwrap();
    let source = Source::parse("http://images.example/disk.raw").unwrap();
    let op = Draft::system("test");
    db.open_fetch(&new_fetch(new.id, &source, "http://images.example/disk.raw", op)).await.unwrap();
    let job = db.claim_fetch(9).await.unwrap().unwrap();
    let file = fetches.ingest.originals.path(new.id);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, b"disk").unwrap();
    let upload = db.upload_of(new.id).await.unwrap().unwrap();
    (job, db.image(new.id).await.unwrap().unwrap(), upload)
}

#[tokio::test]
async fn a_file_that_was_handed_over_stays_when_its_end_is_told_twice() {
    let world = World::new().await;
    let fetches = fetches(&world);
    let (job, image, upload) = fetched(&fetches, "twice").await;
    let file = fetches.ingest.originals.path(image.id);
    // The second time is the retry of a commit whose answer was lost.
    for _ in 0..2 {
        let taken = Taken { size_bytes: 4, sums: None };
        assert_eq!(fetches.hand_over(&job, &image, &upload, taken).await.unwrap(), None);
        assert!(file.exists(), "the import needs it");
    }
    let found = fetches.db.image(image.id).await.unwrap().unwrap();
    assert_eq!(found.status, ImageStatus::Importing);
    // What was deleted meanwhile leaves nothing.
    let (job, image, upload) = fetched(&fetches, "deleted").await;
    fetches.db.cancel_image(image.id, &Draft::system("test")).await.unwrap();
    let taken = Taken { size_bytes: 4, sums: None };
    assert_eq!(fetches.hand_over(&job, &image, &upload, taken).await.unwrap(), None);
    assert!(!fetches.ingest.originals.path(image.id).exists());
    fetches.db.close().await;
}
