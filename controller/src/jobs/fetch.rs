//! Fetches: images that the controller gets by itself, and the end of uploads that nobody goes on with.
//!
//! **What.** [`Fetches`] claims fetch jobs, tries a source until its file is whole or it is given up, and hands the file to
//! the import. [`Fetches::clean`] ends idle uploads and removes files without one.
//!
//! **Why workers of their own.** An import fills the processor, a fetch waits for a network; behind slow sources no upload
//! would be imported.
//!
//! **Why one project gets half of the workers.** A source may be as slow as [`Patience`] lets it, for days. Two or three of them
//! must not keep the fetches of all others waiting.
//!
//! **Why deletion is seen, not told.** The row of the upload goes with its image. Whoever fetches looks for it when the image
//! changes, and finds it missing at the next step at the latest.
//!
//! **Invariants.** A fetch goes on at the durable offset after whatever happened. What ends it is written down with a reason.
//! Secrets of a source are in the job's spec and in memory alone.

use std::sync::Arc;
use std::time::Duration;

use hearth_protocol::api::image::Checksums;
use hearth_protocol::id::ImageId;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::patience::{may_work_later, patiently};
use super::{LOOK_EVERY, NOTE_EVERY, jobs_changed, wait_for};
use crate::api::fault::chain;
use crate::content::{ContentError, Originals};
use crate::db::image_changes::Original;
use crate::db::images::Image;
use crate::db::jobs::Job;
use crate::db::operations::Draft;
use crate::db::uploads::{NewFetch, SourceNote, Upload, UploadKind, new_upload};
use crate::db::{Change, Db, DbError, new_id};
use crate::ingest::intake::{Intake, IntakeError, Taken, remove_unclaimed};
use crate::ingest::job::Ingest;
use crate::ingest::sources::{FetchError, Sources};
use crate::logic::catalog::first_mismatch;
use crate::logic::fair::most_of_one;
use crate::logic::fetch::{Backoff, FAILURES_MAX, Patience};
use crate::logic::source::Source;
use crate::{clock, task};

/// Time between two looks for idle uploads.
const CLEAN_EVERY: Duration = Duration::from_secs(600);

/// Gets files; see the module.
#[derive(Debug)]
pub struct Fetches {
    db: Db,
    ingest: Arc<Ingest>,
    sources: Sources,
    limits: Limits,
    closing: CancellationToken,
}

/// How much and how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest file.
    pub image_bytes_max: u64,
    /// How long an upload may be idle.
    pub upload_idle: Duration,
    /// How patient fetches are.
    pub patience: Patience,
}

/// How a try ended that did not bring the file.
enum End {
    /// The image was deleted or the controller stops: nothing is to be written down.
    Stopped,
    /// Given up for this reason.
    GivenUp(String),
}

impl Fetches {
    /// Gets files until `closing` is cancelled.
    #[must_use]
    pub fn new(
        db: Db,
        ingest: Arc<Ingest>,
        sources: Sources,
        limits: Limits,
        closing: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self { db, ingest, sources, limits, closing })
    }

    /// Cleans up, then starts `workers` and the look for idle uploads. Jobs of an earlier process must be queued again by
    /// now.
    ///
    /// # Errors
    /// The database does not answer.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn start(self: &Arc<Self>, workers: usize) -> Result<Vec<JoinHandle<()>>, DbError> {
        self.clean().await?;
        self.remove_strays().await?;
        let mut tasks = vec![task::spawn("uploads-clean", Arc::clone(self).cleaner())];
        let most = u32::try_from(most_of_one(workers)).unwrap_or(u32::MAX);
        tasks.extend((0..workers).map(|_| task::spawn("fetch", Arc::clone(self).worker(most))));
        Ok(tasks)
    }

    /// Runs one fetch after the other, of projects of which fewer than `most` run.
    async fn worker(self: Arc<Self>, most: u32) {
        let mut changes = self.db.subscribe();
        while !self.closing.is_cancelled() {
            match self.db.claim_fetch(most).await {
                Ok(Some(job)) => {
                    if let Err(error) = self.run(&job).await {
                        // It stays `running` and is taken up at the next start.
                        tracing::error!(image = %job.image, error = chain(&error), "cannot record a fetch");
                    }
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(error = chain(&error), "cannot claim a fetch");
                    tokio::time::sleep(NOTE_EVERY).await;
                }
            }
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = jobs_changed(&mut changes) => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Runs one fetch to its end.
    async fn run(&self, job: &Job) -> Result<(), DbError> {
        let image = patiently(&self.closing, job.image, || self.db.image(job.image)).await?;
        let Some(image) = image.filter(|image| image.deleted_us.is_none()) else { return Ok(()) };
        let ended = match Source::parse(&job.spec) {
            Ok(source) => Box::pin(self.bring(&image, &source)).await,
            Err(error) => Err(End::GivenUp(error.to_string())),
        };
        let reason = match ended {
            Ok((upload, taken)) => match self.hand_over(job, &image, &upload, taken).await? {
                None => return Ok(()),
                Some(reason) => reason,
            },
            Err(End::Stopped) => {
                if self.closing.is_cancelled() {
                    return Ok(());
                }
                // Its deletion may have been over before the last try made a file.
                let unclaimed = || remove_unclaimed(&self.db, &self.ingest, image.id);
                return patiently(&self.closing, image.id, unclaimed).await;
            }
            Err(End::GivenUp(reason)) => reason,
        };
        tracing::warn!(image = %image.id, source = image.source, reason, "a fetch failed");
        self.failed(job, &image, &reason).await
    }

    /// Tries until the file is whole.
    async fn bring(&self, image: &Image, source: &Source) -> Result<(Upload, Taken), End> {
        let mut backoff = Backoff::new(self.limits.patience.pause);
        loop {
            let Some(upload) = self.open_upload(image.id).await.map_err(|error| given_up(&error))? else {
                return Err(End::Stopped);
            };
            let before = upload.offset_bytes;
            let tried = tokio::select! {
                tried = Box::pin(self.try_once(source, upload.clone())) => tried,
                () = self.gone(image.id) => return Err(End::Stopped),
                () = self.closing.cancelled() => return Err(End::Stopped),
            };
            let (error, after) = match tried {
                Ok(taken) => return Ok((upload, taken)),
                Err(failed) => failed,
            };
            let pause = match &error {
                FetchError::Changed => match self.db.note_source(upload.id, "", None, true).await {
                    Err(DbError::NotFound { .. }) => return Err(End::Stopped),
                    // It will be found changed again.
                    Err(error) if error.is_passing() => Some(LOOK_EVERY),
                    Err(error) => return Err(given_up(&error)),
                    Ok(_) => backoff.restart(),
                },
                FetchError::Later(_) => backoff.after(after.saturating_sub(before)),
                FetchError::Intake(error) if error.is_gone() => return Err(End::Stopped),
                FetchError::Intake(IntakeError::Db(error)) if error.is_passing() => Some(LOOK_EVERY),
                FetchError::Refused(_) | FetchError::Never(_) | FetchError::Intake(_) => None,
            };
            let Some(pause) = pause else { return Err(End::GivenUp(reason_of(&error))) };
            tracing::info!(image = %image.id, at = after, %error, pause_ms = pause.as_millis(), "a fetch goes on in a moment");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.gone(image.id) => return Err(End::Stopped),
                () = self.closing.cancelled() => return Err(End::Stopped),
            }
        }
    }

    /// The upload into which the image is fetched, as long as it is open.
    async fn open_upload(&self, image: ImageId) -> Result<Option<Upload>, DbError> {
        let upload = patiently(&self.closing, image, || self.db.upload_of(image)).await?;
        Ok(upload.filter(|upload| upload.kind == UploadKind::Fetch))
    }

    /// One try. After a failure: why, and the offset that is durable.
    async fn try_once(&self, source: &Source, upload: Upload) -> Result<Taken, (FetchError, u64)> {
        let offset = upload.offset_bytes;
        let signed = self.db.market_size_of(upload.image).await;
        let signed = signed.map_err(|error| (IntakeError::from(error).into(), offset))?;
        let most = signed.map_or(self.limits.image_bytes_max, |size| size.min(self.limits.image_bytes_max));
        let open = Intake::open(self.db.clone(), Arc::clone(&self.ingest), upload, most);
        let mut intake = open.await.map_err(|error| (error.into(), offset))?;
        let fetched = match self.sources.fetch(source, &mut intake).await {
            Err(FetchError::Intake(IntakeError::TooLarge { most_bytes, .. }))
                if signed == Some(most_bytes) =>
            {
                Err(FetchError::Never(format!(
                    "the file is larger than the {most_bytes} bytes that its market signed"
                )))
            }
            fetched => fetched,
        };
        // What came before a failure is kept.
        let settled = intake.settle().await.map_err(|error| (error.into(), offset))?;
        match fetched {
            Ok(()) if settled == 0 => Err((FetchError::Never("the source's file is empty".to_owned()), 0)),
            Ok(()) => intake.finish().await.map_err(|error| (error.into(), settled)),
            Err(error) => Err((error, settled)),
        }
    }

    /// Waits until the image has no upload any more.
    async fn gone(&self, image: ImageId) {
        let mut changes = self.db.subscribe();
        loop {
            wait_for(&mut changes, |change| change == Change::Image(image)).await;
            if let Ok(None) = self.db.upload_of(image).await {
                return;
            }
        }
    }

    /// Hands a whole file to the import. The reason if it is not the file that was expected.
    async fn hand_over(
        &self,
        job: &Job,
        image: &Image,
        upload: &Upload,
        taken: Taken,
    ) -> Result<Option<String>, DbError> {
        let checksums = taken.sums.map(Checksums::from).unwrap_or_default();
        let mismatch = first_mismatch(&image.expected, &checksums).filter(|_| checksums.sha256.is_some());
        if let Some((name, expected, got)) = mismatch {
            let reason = format!("the file's {name} is {got}, expected {expected}; nothing of it was kept");
            return Ok(Some(reason));
        }
        let signed = patiently(&self.closing, image.id, || self.db.market_size_of(image.id)).await?;
        if let Some(size) = signed.filter(|size| *size != taken.size_bytes) {
            let got = taken.size_bytes;
            return Ok(Some(format!(
                "the file has {got} bytes, its market signed {size}; nothing of it was kept"
            )));
        }
        let original = Original { bytes: taken.size_bytes, checksums };
        let details = serde_json::json!({ "bytes": original.bytes, "sha256": original.checksums.sha256, "source": image.source });
        let op = Draft::system("image.fetch").on("image", image.id, image.facts.name.clone()).with(details);
        loop {
            match self.db.finish_upload(upload.id, &original, (new_id(), "{}"), Some(job.id), &op).await {
                Err(DbError::NotFound { .. } | DbError::State { .. }) => {
                    // Deleted at the last moment, perhaps before the file had its name. Or handed over by a try whose answer
                    // was lost: then the import needs it.
                    let unclaimed = || remove_unclaimed(&self.db, &self.ingest, image.id);
                    return patiently(&self.closing, image.id, unclaimed).await.map(|()| None);
                }
                Err(error @ DbError::Quota { .. }) => return Ok(Some(error.to_string())),
                Err(error) if may_work_later(&self.closing, image.id, &error).await => {}
                ended => return ended.map(|()| None),
            }
        }
    }

    /// Nothing of its file is kept, and the image is `killed`. In this order: once it is, the next upload may begin, and what is
    /// removed by the image's id would be its.
    async fn failed(&self, job: &Job, image: &Image, reason: &str) -> Result<(), DbError> {
        let op = Draft::system("image.fetch").on("image", image.id, image.facts.name.clone());
        let op = op.with(serde_json::json!({ "source": image.source })).failed(reason);
        if let Some(upload) = self.open_upload(image.id).await? {
            let (of, upload) = (image.id, upload.id);
            self.remove(of, move |originals| {
                originals.remove(of).and_then(|()| originals.remove_part(of, upload))
            })
            .await;
        }
        let fail = || self.db.fail_image(image.id, Some(job.id), reason, &op);
        match patiently(&self.closing, image.id, fail).await {
            // Deleted meanwhile.
            Err(DbError::State { .. } | DbError::NotFound { .. }) => Ok(()),
            ended => ended,
        }
    }

    async fn remove(
        &self,
        image: ImageId,
        files: impl FnOnce(&Originals) -> Result<(), ContentError> + Send + 'static,
    ) {
        let originals = Arc::clone(&self.ingest.originals);
        match tokio::task::spawn_blocking(move || files(&originals)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%image, %error, "a file stays until the next start"),
            Err(error) => tracing::error!(%image, %error, "removing a file failed"),
        }
    }

    async fn cleaner(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = tokio::time::sleep(CLEAN_EVERY) => {}
            }
            if let Err(error) = self.clean().await {
                tracing::error!(error = chain(&error), "cannot end idle uploads");
            }
        }
    }

    /// Ends uploads that were idle for too long: their files go, their images are `queued` again. Returns how many.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn clean(&self) -> Result<usize, DbError> {
        let idle_us = i64::try_from(self.limits.upload_idle.as_micros()).unwrap_or(i64::MAX);
        let idle = self.db.idle_uploads(clock::steady_unix_us().saturating_sub(idle_us)).await?;
        for upload in &idle {
            let days = self.limits.upload_idle.as_secs() / 86_400;
            let reason = format!("nothing more of the upload came for {days} days: send the file again");
            let name = self.db.image(upload.image).await?.map(|image| image.facts.name).unwrap_or_default();
            let details = serde_json::json!({ "upload": upload.id, "bytes": upload.offset_bytes });
            let op = Draft::system("image.upload_expire").on("image", upload.image, name).with(details);
            match self.db.abort_upload(upload.id, &reason, Some(&op)).await {
                Ok(()) => {
                    // The next upload of the image may have begun by now: only what is this one's.
                    let (image, id) = (upload.image, upload.id);
                    self.remove(image, move |originals| originals.remove_part(image, id)).await;
                    remove_unclaimed(&self.db, &self.ingest, image).await?;
                }
                Err(DbError::NotFound { .. } | DbError::State { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(idle.len())
    }

    /// At start: files of uploads that are over.
    async fn remove_strays(&self) -> Result<(), DbError> {
        let originals = Arc::clone(&self.ingest.originals);
        let Ok(Ok(parts)) = tokio::task::spawn_blocking(move || originals.parts()).await else {
            tracing::error!("cannot list the files of uploads");
            return Ok(());
        };
        for (image, upload) in parts {
            if self.db.upload(upload).await?.is_none() {
                let originals = Arc::clone(&self.ingest.originals);
                let removed = tokio::task::spawn_blocking(move || originals.remove_part(image, upload)).await;
                tracing::info!(%image, %upload, ok = matches!(removed, Ok(Ok(()))), "removing what an ended upload left");
            }
        }
        Ok(())
    }
}

/// The fetch of an image's file from `source`, which was read from `url`.
#[must_use]
pub fn new_fetch(image: ImageId, source: &Source, url: &str, op: Draft) -> NewFetch {
    NewFetch {
        upload: new_upload(image, UploadKind::Fetch, None, ""),
        source: SourceNote { shown: source.shown(), hidden: source.hides() },
        job: new_id(),
        url: url.to_owned(),
        op,
    }
}

fn given_up(error: &DbError) -> End {
    End::GivenUp(format!("the fetch could not be noted: {error}"))
}

/// What is shown when a fetch is given up.
fn reason_of(error: &FetchError) -> String {
    match error {
        FetchError::Later(why) => format!("the source could not be fetched in {FAILURES_MAX} tries: {why}"),
        FetchError::Changed => {
            "the source's file changes again and again, or it cannot go on where a transfer broke off"
                .to_owned()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
