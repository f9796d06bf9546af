//! Jobs where it matters who comes first.

use hearth_protocol::words::{DiskFormat, VariantStatus};

use super::super::fetch::{Fetches, Limits};
use super::super::*;
use super::{World, new_image, noise, op};
use crate::db::uploads::{NewFetch, SourceNote, UploadKind, new_upload};
use crate::ingest::sources::{SourceConfig, Sources};
use crate::logic::fetch::Patience;

/// Longest wait for what takes moments.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until the answer is yes.
async fn until(what: &str, done: impl AsyncFn() -> bool) {
    let begun = clock::monotonic();
    while !done().await {
        assert!(begun.elapsed() < PATIENCE, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn queued(db: &Db, name: &str) -> ImageId {
    let new = new_image(db, name, None).await;
    db.create_image(&new, &op()).await.unwrap();
    new.id
}

/// Who ends an upload may be late: its image may have the next one by then, whose file is another.
#[tokio::test(flavor = "multi_thread")]
async fn what_ends_an_upload_leaves_the_file_of_the_next_one() {
    let World { folder: _folder, db, ingest, .. } = World::new().await;
    let limits =
        Limits { image_bytes_max: 1 << 30, upload_idle: Duration::ZERO, patience: Patience::default() };
    let closing = CancellationToken::new();
    let sources = Sources::new(SourceConfig::default());
    let fetches = Fetches::new(db.clone(), Arc::clone(&ingest), sources, limits, closing.clone());
    let tasks = fetches.start(1).await.unwrap();
    let (idle, fetched) = (queued(&db, "idle").await, queued(&db, "fetched").await);
    let next = [(idle, new_id()), (fetched, new_id())];
    for (image, upload) in next {
        ingest.originals.open_part(image, upload, 0).unwrap();
    }
    let upload = db.open_upload(&new_upload(idle, UploadKind::Resumable, None, ""), &op()).await.unwrap();
    ingest.originals.open_part(idle, upload.id, 0).unwrap();
    until("its end", async || fetches.clean().await.unwrap() == 1).await;
    // Of a source that may not be asked.
    let fetch = NewFetch {
        upload: new_upload(fetched, UploadKind::Fetch, None, ""),
        source: SourceNote { shown: "http://127.0.0.1/x".to_owned(), hidden: false },
        job: new_id(),
        url: "http://127.0.0.1/x".to_owned(),
        op: op(),
    };
    db.open_fetch(&fetch).await.unwrap();
    let status = async || db.image(fetched).await.unwrap().unwrap().status;
    until("the fetch failed", async || status().await == ImageStatus::Killed).await;
    closing.cancel();
    for task in tasks {
        task.await.unwrap();
    }
    let mut left = ingest.originals.parts().unwrap();
    left.sort_unstable();
    assert_eq!(left, next, "nothing but the files of the next ones is left");
    db.close().await;
}

/// A variant is deleted and asked for again; the stop of the deletion comes when the next one is being made.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_comes_late_only_delays_the_next_variant() {
    let world = World::new().await;
    let (image, job) = world.uploaded("disk", &noise(96 << 20), None).await;
    let World { folder: _folder, db, closing, jobs, .. } = &world;
    assert!(jobs.imported(&job, &image, &world.publish(&image)).await.unwrap());
    let (image, tasks) = (image.id, jobs.start(0).await.unwrap());
    let ask = Draft::system("variant.create");
    let (gone, _) = db.ask_variant(image, DiskFormat::Raw, false, &ask).await.unwrap();
    while jobs.variant_percent(image, DiskFormat::Raw).is_none() {
        tokio::task::yield_now().await;
    }
    jobs.clean_up_variant(&gone).await;
    until("the variant", async || db.variants_of(image).await.unwrap()[0].status == VariantStatus::Active)
        .await;
    closing.cancel();
    for task in tasks {
        task.await.unwrap();
    }
    db.close().await;
}
