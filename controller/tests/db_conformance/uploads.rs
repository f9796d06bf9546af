//! Uploads and fetches that are not over.

use hearth_controller::db::image_changes::Original;
use hearth_controller::db::image_edits::Together;
use hearth_controller::db::jobs::{JobKind, JobState};
use hearth_controller::db::uploads::{NewFetch, SourceNote, UploadKind, new_upload};
use hearth_controller::db::{DbError, new_id};
use hearth_controller::logic::quota::OwnLimits;
use hearth_protocol::api::image::Checksums;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::{ImageStatus, ImportStage};

use crate::engines::Place;
use crate::fixture::{image_of, new_image, op, original, project_in, queued_image};
use crate::on_both_engines;

on_both_engines! {
    an_image_has_one_upload_that_moves_and_ends
    a_start_ends_uploads_of_one_request_alone
    a_fetch_keeps_its_secret_until_it_ends
    a_failed_import_is_queued_again_as_it_was
    an_image_and_its_fetch_are_made_together_or_not_at_all
    fetches_of_one_project_leave_workers_to_others
}

async fn an_image_has_one_upload_that_moves_and_ends(place: Place) {
    let db = place.open().await;
    let image = queued_image(&db, "one").await;
    let new = new_upload(image, UploadKind::Resumable, Some(1000), "mark");
    let opened = db.open_upload(&new, &op("image.upload")).await.unwrap();
    assert_eq!((opened.id, opened.offset_bytes, opened.mark.as_str()), (new.id, 0, "mark"));
    let second = new_upload(image, UploadKind::Resumable, None, "");
    assert!(matches!(db.open_upload(&second, &op("image.upload")).await, Err(DbError::State { .. })));
    assert!(matches!(db.start_upload(image).await, Err(DbError::State { .. })));
    db.note_upload(new.id, 425).await.unwrap();
    let found = db.image(image).await.unwrap().unwrap();
    assert_eq!(
        (found.status, found.stage, found.percent),
        (ImageStatus::Saving, Some(ImportStage::Uploading), 42)
    );
    let moved = db.upload(new.id).await.unwrap().unwrap();
    assert_eq!((moved.offset_bytes, Some(moved)), (425, db.upload_of(image).await.unwrap()));
    assert_eq!(db.idle_uploads(i64::MAX).await.unwrap().len(), 1);
    assert_eq!(db.idle_uploads(0).await.unwrap(), []);
    // Ended by its own id, once.
    assert!(matches!(db.abort_upload(second.id, "late", None).await, Err(DbError::NotFound { .. })));
    db.abort_upload(new.id, "given up", Some(&op("image.upload"))).await.unwrap();
    assert!(matches!(db.abort_upload(new.id, "again", None).await, Err(DbError::NotFound { .. })));
    assert!(matches!(db.note_upload(new.id, 500).await, Err(DbError::NotFound { .. })));
    let found = db.image(image).await.unwrap().unwrap();
    assert_eq!((found.status, found.reason.as_str()), (ImageStatus::Queued, "given up"));
    // The next one is handed over, without checksums: the import counts them.
    db.open_upload(&second, &op("image.upload")).await.unwrap();
    let unsummed = Original { bytes: 1000, checksums: Checksums::default() };
    db.finish_upload(second.id, &unsummed, (new_id(), "{}"), None, &op("image.upload")).await.unwrap();
    assert_eq!(db.uploads().await.unwrap(), []);
    db.put_checksums(image, &original()).await.unwrap();
    let found = db.image(image).await.unwrap().unwrap();
    assert_eq!((found.status, found.checksums), (ImageStatus::Importing, original().checksums));
    db.delete_image(image, None, &op("image.delete")).await.unwrap();
}

async fn a_start_ends_uploads_of_one_request_alone(place: Place) {
    let db = place.open().await;
    let (whole, resumable) = (queued_image(&db, "whole").await, queued_image(&db, "resumable").await);
    db.start_upload(whole).await.unwrap();
    let new = new_upload(resumable, UploadKind::Resumable, None, "");
    db.open_upload(&new, &op("image.upload")).await.unwrap();
    db.note_upload(new.id, 7).await.unwrap();
    assert_eq!(db.reset_uploads().await.unwrap(), [whole]);
    let left = db.uploads().await.unwrap();
    assert_eq!((left.len(), left[0].id, left[0].offset_bytes), (1, new.id, 7));
    assert_eq!(db.image(resumable).await.unwrap().unwrap().status, ImageStatus::Saving);
    // It goes with its image.
    db.delete_image(resumable, None, &op("image.delete")).await.unwrap();
    assert_eq!(db.uploads().await.unwrap(), []);
}

fn new_fetch(image: ImageId, note: &SourceNote, url: &str) -> NewFetch {
    let upload = new_upload(image, UploadKind::Fetch, None, "");
    NewFetch { upload, source: note.clone(), job: new_id(), url: url.to_owned(), op: op("image.fetch") }
}

async fn an_image_and_its_fetch_are_made_together_or_not_at_all(place: Place) {
    let db = place.open().await;
    let (domain, project) = db.default_tenants().await.unwrap();
    let note = SourceNote { shown: "http://x/y".into(), hidden: false };
    let make = async |name: &str| {
        let new = new_image(domain, project, name);
        let fetch = Some(new_fetch(new.id, &note, "http://x/y"));
        let together = Together { fetch, ..Together::default() };
        (new.id, db.create_image_with(&new, &together, &op("image.create")).await)
    };
    let (first, made) = make("first").await;
    made.unwrap();
    let found = db.image(first).await.unwrap().unwrap();
    assert_eq!((found.status, found.source.as_str()), (ImageStatus::Saving, "http://x/y"));
    assert_eq!(db.unfinished_jobs().await.unwrap().len(), 1);
    // A fetch that the quota refuses takes its image along.
    let one = OwnLimits { imports: Some(1), ..OwnLimits::default() };
    db.set_quota(project, one, &op("quota.set")).await.unwrap();
    let (second, refused) = make("second").await;
    assert!(matches!(refused, Err(DbError::Quota { .. })), "{refused:?}");
    assert!(db.image(second).await.unwrap().is_none());
    assert_eq!(db.unfinished_jobs().await.unwrap().len(), 1);
}

async fn a_fetch_keeps_its_secret_until_it_ends(place: Place) {
    let db = place.open().await;
    let note = SourceNote { shown: "http://***@x/y".into(), hidden: true };
    for ending in ["done", "failed", "deleted"] {
        let image = queued_image(&db, ending).await;
        let fetch = new_fetch(image, &note, "http://u:secret@x/y");
        assert!(!format!("{fetch:?}").contains("secret"));
        let (new, job) = (fetch.upload.clone(), fetch.job);
        db.open_fetch(&fetch).await.unwrap();
        assert_eq!(db.claim_job().await.unwrap(), None, "no import worker takes it");
        let claimed = db.claim_job_of(JobKind::Fetch).await.unwrap().unwrap();
        assert_eq!((claimed.id, claimed.spec.as_str()), (job, "http://u:secret@x/y"));
        let found = db.image(image).await.unwrap().unwrap();
        assert_eq!((found.source.as_str(), found.source_hidden), ("http://***@x/y", true));
        assert_eq!(found.stage, Some(ImportStage::Fetching));
        let noted = db.note_source(new.id, "\"v1\"", Some(10), false).await.unwrap();
        assert_eq!((noted.mark.as_str(), noted.size_bytes), ("\"v1\"", Some(10)));
        db.note_upload(new.id, 5).await.unwrap();
        assert_eq!(db.note_source(new.id, "\"v2\"", None, true).await.unwrap().offset_bytes, 0);
        match ending {
            "done" => db
                .finish_upload(new.id, &original(), (new_id(), "{}"), Some(job), &op("image.fetch"))
                .await
                .unwrap(),
            "failed" => db.fail_image(image, Some(job), "no", &op("image.fetch")).await.unwrap(),
            _ => drop(db.delete_image(image, None, &op("image.delete")).await.unwrap()),
        }
        let import = db.claim_job().await.unwrap();
        assert_eq!(import.is_some(), ending == "done");
        if let Some(import) = import {
            db.set_job(import.id, JobState::Done, "").await.unwrap();
        }
        assert_eq!(db.uploads().await.unwrap(), []);
    }
    assert_eq!(db.unfinished_jobs().await.unwrap(), []);
    let mut intruder = place.connect().await;
    let specs = sqlx::query("SELECT spec FROM job WHERE spec <> '{}'");
    assert_eq!(specs.fetch_all(&mut intruder).await.unwrap().len(), 0, "no secret is left");
}

async fn a_failed_import_is_queued_again_as_it_was(place: Place) {
    let db = place.open().await;
    let image = queued_image(&db, "again").await;
    let upload = db.start_upload(image).await.unwrap();
    assert!(matches!(
        db.retry_import(image, (new_id(), "{}"), &op("image.retry")).await,
        Err(DbError::State { .. })
    ));
    let job = new_id();
    db.finish_upload(upload.id, &original(), (job, "{}"), None, &op("image.upload")).await.unwrap();
    db.fail_image(image, Some(job), "disk full", &op("image.import")).await.unwrap();
    db.retry_import(image, (new_id(), "{}"), &op("image.retry")).await.unwrap();
    let found = db.image(image).await.unwrap().unwrap();
    assert_eq!((found.status, found.checksums), (ImageStatus::Importing, original().checksums));
}

async fn fetches_of_one_project_leave_workers_to_others(place: Place) {
    let db = place.open().await;
    let (domain, busy) = db.default_tenants().await.unwrap();
    let other = project_in(&db, domain, "other").await;
    let mut images = Vec::new();
    for (name, project) in [("1", busy), ("2", busy), ("3", busy), ("4", other), ("5", busy)] {
        let image = image_of(&db, domain, project, name).await;
        let note = SourceNote { shown: "http://x/y".into(), hidden: false };
        db.open_fetch(&new_fetch(image, &note, "http://x/y")).await.unwrap();
        images.push(image);
    }
    let claimed = async || db.claim_fetch(2).await.unwrap().map(|job| job.image);
    assert_eq!((claimed().await, claimed().await), (Some(images[0]), Some(images[1])));
    assert_eq!(claimed().await, Some(images[3]), "the other project does not wait behind the first");
    assert_eq!(claimed().await, None, "a worker stays for others");
    let first = db.job_of_image(images[0]).await.unwrap().unwrap();
    db.set_job(first.id, JobState::Done, "").await.unwrap();
    assert_eq!((claimed().await, claimed().await), (Some(images[2]), None));
    // Its other jobs are not held up, and a larger share lets more run.
    assert_eq!(db.claim_fetch(3).await.unwrap().map(|job| job.image), Some(images[4]));
}
