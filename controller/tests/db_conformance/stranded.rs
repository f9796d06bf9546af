//! A database that goes away for a moment strands no job.
//!
//! **Why PostgreSQL alone.** Its administrator can end one connection while a statement waits, as a failover does; a read of a local
//! SQLite file has nobody to end it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hearth_controller::clock;
use hearth_controller::db::uploads::{NewFetch, SourceNote, UploadKind, new_upload};
use hearth_controller::db::{Db, new_id};
use hearth_controller::ingest::convert::Converter;
use hearth_controller::ingest::job::Ingest;
use hearth_controller::ingest::sandbox::SandboxMode;
use hearth_controller::ingest::sources::{SourceConfig, Sources};
use hearth_controller::jobs::fetch::{Fetches, Limits};
use hearth_controller::logic::fetch::Patience;
use hearth_protocol::words::ImageStatus;
use sqlx::{AnyConnection, Executor as _, Row as _};
use tokio_util::sync::CancellationToken;

use crate::engines::Place;
use crate::fixture::{op, queued_image};

/// Longest wait for what takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends the connections of this database that wait for a lock, as soon as there is one.
async fn cut_who_waits(administrator: &mut AnyConnection) {
    let cut = "SELECT CAST(COUNT(*) AS BIGINT) AS n FROM (SELECT pg_terminate_backend(pid) AS done FROM pg_stat_activity \
         WHERE datname = current_database() AND wait_event_type = 'Lock') AS cut WHERE done";
    let begun = clock::monotonic();
    while administrator.fetch_one(cut).await.unwrap().try_get::<i64, _>("n").unwrap() == 0 {
        assert!(begun.elapsed() < PATIENCE, "nobody waits");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn fetches(db: &Db, state: &Path, closing: &CancellationToken) -> Arc<Fetches> {
    let converter = Converter {
        controller: "/bin/false".into(),
        qemu_img: "/bin/false".into(),
        mode: SandboxMode::BestEffort,
    };
    let ingest = Arc::new(Ingest::new(state, converter, 1).unwrap());
    let limits = Limits { image_bytes_max: 1, upload_idle: PATIENCE, patience: Patience::default() };
    Fetches::new(db.clone(), ingest, Sources::new(SourceConfig::default()), limits, closing.clone())
}

/// IN-2: one read that fails ends no fetch: its image would be `saving`, and its source's password kept, until a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_goes_on_when_the_database_answers_again() {
    let place = Place::postgres().await;
    let db = place.open().await;
    let image = queued_image(&db, "fetched").await;
    let job = new_id();
    // Refused as soon as it is asked for: what is looked at is whether it ends.
    let fetch = NewFetch {
        upload: new_upload(image, UploadKind::Fetch, None, ""),
        source: SourceNote { shown: "http://127.0.0.1/x".to_owned(), hidden: true },
        job,
        url: "http://user:secret@127.0.0.1/x".to_owned(),
        op: op("image.fetch"),
    };
    db.open_fetch(&fetch).await.unwrap();
    let (mut locker, mut administrator) = (place.connect().await, place.connect().await);
    locker.execute("BEGIN").await.unwrap();
    locker.execute("LOCK TABLE image IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let closing = CancellationToken::new();
    let tasks = fetches(&db, place.folder.path(), &closing).start(1).await.unwrap();
    cut_who_waits(&mut administrator).await;
    locker.execute("ROLLBACK").await.unwrap();
    let begun = clock::monotonic();
    while db.image(image).await.unwrap().unwrap().status != ImageStatus::Killed {
        assert!(begun.elapsed() < PATIENCE, "the fetch is stranded");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(db.job_of_image(image).await.unwrap().unwrap().spec, "{}");
    closing.cancel();
    for task in tasks {
        task.await.unwrap();
    }
}
