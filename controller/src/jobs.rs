//! Work that outlives a request: imports, ([`variants`]) other formats of what was imported, ([`remake`]) contents that were
//! damaged, and ([`sweep`]) the files of what was deleted.
//!
//! **What.** [`Jobs`] claims import jobs from the database, runs them on blocking threads, writes progress at most once
//! a second and records the result in one transaction. [`Jobs::sweep`] removes contents nobody refers to.
//!
//! **Why the database is the queue.** A job that ran when the process died is queued again at the next start; an import
//! that runs twice gives the same content, so nothing is lost and nothing is doubled.
//!
//! **Why a lock between imports and the sweep.** An import may find that its content is there already; if the sweep
//! removed the files between that look and the record, the record would name a content without bytes. Imports hold the
//! lock together, the sweep alone. The sweep never waits for it: the lock is fair, so every other import would wait behind the
//! sweep for one that takes an hour. An import that waits for room in the database lets go of it, for the sweep is what
//! makes room, and then looks whether its content is still there.
//!
//! **Why one file for an import.** Claim, run and record share the lock, the flags and the order of both; read apart they hide who
//! holds what.
//!
//! **Invariants.** A passing fault of the database strands no job. An image is `active` only after its content is durable.
//! Files go after the row that named them. What no row names is left alone at start (an older database may have been
//! restored): `fsck` shows and removes it.

pub(crate) mod encrypted;
pub mod fetch;
pub mod forget;
mod patience;
mod purge;
mod remake;
mod sweep;
#[cfg(test)]
mod tests;
mod variants;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hearth_protocol::api::image::Checksums;
use hearth_protocol::id::{ImageId, UploadId};
use hearth_protocol::words::{DiskFormat, ImageStatus, ImportStage};
use tokio::sync::{Notify, RwLock, RwLockReadGuard, watch};
use tokio_util::sync::CancellationToken;

use self::patience::{may_work_later, patiently};
use crate::content::Sums;
use crate::db::contents::Content;
use crate::db::image_changes::{Imported as Recorded, Original};
use crate::db::images::Image;
use crate::db::jobs::Job;
use crate::db::operations::Draft;
use crate::db::{Change, Db, DbError, new_id};
use crate::ingest::encrypt::Encrypted;
use crate::ingest::job::{ImportError, ImportSpec, Imported, Ingest};
use crate::keys::KeyStore;
use crate::logic::variant::check;
use crate::{clock, metrics, task};

/// Time between two looks at the queue without a wake-up.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Time between two notes of progress: each costs an fsync.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// Tries of one job that kills the controller each time: then it is the file's fault, and the image is killed.
const ATTEMPTS_MAX: u32 = 5;

/// The runner; see the module.
#[derive(Debug)]
pub struct Jobs {
    db: Db,
    ingest: Arc<Ingest>,
    keys: Arc<KeyStore>,
    keep_originals: bool,
    /// Variants that every import queues.
    variants: Vec<DiskFormat>,
    closing: CancellationToken,
    /// Uploads that run, with what ends each.
    uploads: Mutex<HashMap<ImageId, (UploadId, CancellationToken)>>,
    /// The variant that is being made.
    making: Mutex<Option<variants::Making>>,
    remaking: remake::Remaking,
    /// Imports that run, with the flag that stops each.
    running: Mutex<HashMap<ImageId, Arc<AtomicBool>>>,
    /// Held together by imports, alone by the sweep.
    files: RwLock<()>,
    swept: Notify,
}

impl Jobs {
    /// A runner that stops when `closing` is cancelled.
    #[must_use]
    pub fn new(
        db: Db,
        ingest: Arc<Ingest>,
        keep_originals: bool,
        variants: Vec<DiskFormat>,
        closing: CancellationToken,
    ) -> Arc<Self> {
        let (running, files, swept) = (Mutex::default(), RwLock::new(()), Notify::new());
        let (uploads, making) = (Mutex::default(), Mutex::default());
        let (keys, remaking) = (Arc::default(), remake::Remaking::default());
        Arc::new(Self {
            db,
            ingest,
            keys,
            keep_originals,
            variants,
            closing,
            uploads,
            making,
            remaking,
            running,
            files,
            swept,
        })
    }

    /// The same with the keys of images that are to be encrypted; without them such an import fails.
    ///
    /// # Panics
    /// After the runner was started.
    #[must_use]
    pub fn with_keys(self: Arc<Self>, keys: Arc<KeyStore>) -> Arc<Self> {
        let runner = Arc::into_inner(self).expect("nobody else has a runner that was not started");
        Arc::new(Self { keys, ..runner })
    }

    /// What ends the upload that begins now, when its image is cancelled or deleted.
    #[must_use]
    pub fn upload_begins(&self, image: ImageId, upload: UploadId) -> CancellationToken {
        let stop = CancellationToken::new();
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).insert(image, (upload, stop.clone()));
        stop
    }

    /// Forgets an upload that ended; another one that the image has by now is left alone.
    pub fn upload_ended(&self, image: ImageId, upload: UploadId) {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        if uploads.get(&image).is_some_and(|(running, _)| *running == upload) {
            uploads.remove(&image);
        }
    }

    /// Takes up what an earlier process left, then starts `workers` import workers, one for variants and
    /// the sweeper.
    ///
    /// # Errors
    /// The database does not answer.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn start(
        self: &Arc<Self>,
        workers: usize,
    ) -> Result<Vec<tokio::task::JoinHandle<()>>, DbError> {
        let jobs = self.db.requeue_running_jobs().await?;
        let uploads = self.db.reset_uploads().await?;
        if jobs > 0 || !uploads.is_empty() {
            tracing::info!(jobs, uploads = uploads.len(), "taking up what the last run left");
        }
        self.finish_deletions().await?;
        self.mark_noted().await?;
        self.finish_removals().await?;
        self.recover_variants().await?;
        let mut tasks = vec![task::spawn("sweep", Arc::clone(self).sweeper())];
        tasks.push(task::spawn("variant", Arc::clone(self).variant_worker()));
        tasks.extend((0..workers).map(|_| task::spawn("import", Arc::clone(self).worker())));
        Ok(tasks)
    }

    /// Stops the upload or import of an image that was deleted.
    pub fn stop(&self, image: ImageId) {
        if let Some((_, stop)) = self.uploads.lock().unwrap_or_else(PoisonError::into_inner).get(&image) {
            stop.cancel();
        }
        if let Some(cancel) = self.running.lock().unwrap_or_else(PoisonError::into_inner).get(&image) {
            cancel.store(true, Ordering::Relaxed);
        }
    }

    async fn worker(self: Arc<Self>) {
        let mut changes = self.db.subscribe();
        while !self.closing.is_cancelled() {
            match self.db.claim_job().await {
                Ok(Some(job)) => {
                    self.run(job).await;
                    // Here, not in the sweeper alone: with one worker nothing imports now, whatever waits in the queue.
                    self.sweep_and_log().await;
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(error = crate::api::fault::chain(&error), "cannot claim a job");
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

    /// Runs one import to its end.
    async fn run(&self, job: Job) {
        let begun = clock::monotonic();
        metrics::gauge_add(metrics::IMPORTS_RUNNING, 1.0);
        let ended = self.import(&job).await;
        metrics::gauge_add(metrics::IMPORTS_RUNNING, -1.0);
        match ended {
            Ok(Some(ok)) => metrics::import(ok, clock::monotonic().duration_since(begun)),
            Ok(None) => {}
            // The job stays `running` and is taken up at the next start; its image shows that it still runs.
            Err(error) => {
                let error = crate::api::fault::chain(&error);
                tracing::error!(job = %job.id, image = %job.image, error, "cannot record an import");
            }
        }
    }

    /// Whether it succeeded; `None`: it was stopped.
    async fn import(&self, job: &Job) -> Result<Option<bool>, DbError> {
        let image = patiently(&self.closing, job.image, || self.db.image(job.image)).await?;
        let Some(image) = image.filter(|image| image.deleted_us.is_none()) else { return Ok(None) };
        if job.attempt > ATTEMPTS_MAX {
            let reason = format!(
                "the controller stopped {} times during this import; its log says why",
                job.attempt - 1
            );
            self.failed(job, &image, &reason).await?;
            return Ok(Some(false));
        }
        loop {
            let together = self.files.read().await;
            let running = self.begins(image.id);
            let ended = match self.noted(&image).await? {
                Some(noted) => noted,
                None => self.run_import(&image, &running.cancel).await,
            };
            drop(running);
            let error = match ended {
                Ok(imported) => match self.record(job, &image, &imported, together).await? {
                    None => continue,
                    ended => return Ok(ended),
                },
                Err(error) => error,
            };
            if self.closing.is_cancelled() || error.is_cancelled() {
                return Ok(None);
            }
            if matches!(error, ImportError::Waits { .. }) {
                tracing::error!(image = %image.id, %error, "an import is put off");
                return self.db.put_job_off(job.id).await.map(|()| None);
            }
            tracing::warn!(image = %image.id, error = crate::api::fault::chain(&error), "an import failed");
            // Deletions may be what makes the room that this waits for.
            drop(together);
            self.failed(job, &image, &error.to_string()).await?;
            return Ok(Some(false));
        }
    }

    /// Notes that an import of `image` runs, until what this returns is dropped.
    fn begins(&self, image: ImageId) -> Running<'_> {
        let cancel = Arc::new(AtomicBool::new(false));
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(image, Arc::clone(&cancel));
        Running { jobs: self, image, cancel }
    }

    /// Stores checksums that were counted during the import: nobody counted them while the file came.
    async fn put_sums(&self, image: &Image, sums: &Sums) -> Result<(), DbError> {
        let original = Original { bytes: sums.size_bytes, checksums: Checksums::from(sums.clone()) };
        self.db.put_checksums(image.id, &original).await
    }

    /// Writes down what was imported. While the database has no room the sweep may run; `None`: it took the content along,
    /// which nobody referred to yet, so the import has to run again.
    async fn record(
        &self,
        job: &Job,
        image: &Image,
        imported: &Imported,
        together: RwLockReadGuard<'_, ()>,
    ) -> Result<Option<bool>, DbError> {
        let mut together = together;
        loop {
            let error = match self.imported(job, image, imported).await {
                Err(error) => error,
                ended => return ended.map(Some),
            };
            drop(together);
            self.swept.notify_one();
            if !self.may_write_later(image.id, &error).await {
                return Err(error);
            }
            together = self.files.read().await;
            let (ingest, content) = (Arc::clone(&self.ingest), imported.content);
            let there = tokio::task::spawn_blocking(move || ingest.content.open(content).is_ok()).await;
            if !matches!(there, Ok(true)) {
                return Ok(None);
            }
        }
    }

    /// See [`may_work_later`]. Until it is written the image shows that its import still runs.
    async fn may_write_later(&self, image: ImageId, error: &DbError) -> bool {
        may_work_later(&self.closing, image, error).await
    }

    async fn run_import(&self, image: &Image, cancel: &Arc<AtomicBool>) -> Result<Imported, ImportError> {
        let spec = ImportSpec {
            image: image.id,
            declared: image.format.or_else(|| {
                (image.kind == hearth_protocol::words::ImageKind::Iso).then_some(DiskFormat::Iso)
            }),
            expected: image.expected.clone(),
            disk_bytes: image.fixed.disk_bytes,
            sums: known_sums(image),
        };
        let passphrase = self.passphrase(image).await?;
        let (ingest, stop) = (Arc::clone(&self.ingest), Arc::clone(cancel));
        let (note, notes) = watch::channel((ImportStage::Inspecting, 0));
        let noting = task::spawn("import-progress", self.note(image.id, notes, Arc::clone(cancel)));
        let done = tokio::task::spawn_blocking(move || {
            let mut last = None;
            let mut shown = |stage, percent| {
                if last.replace(stage) != Some(stage) {
                    tracing::debug!(image = %spec.image, %stage, "an import goes on");
                }
                note.send_replace((stage, percent));
            };
            Ok::<_, ImportError>(match passphrase {
                None => Made::Plain(ingest.run_import(&spec, &stop, &mut shown)?),
                Some(passphrase) => {
                    Made::Encrypted(ingest.run_encrypted_import(&spec, &passphrase, &stop, &mut shown)?)
                }
            })
        });
        // A stop of the controller ends the import within moments; it is taken up at the next start.
        let stop_with_us = async {
            self.closing.cancelled().await;
            cancel.store(true, Ordering::Relaxed);
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! {
            ended = done => ended,
            () = stop_with_us => unreachable!("it never ends"),
        };
        noting.abort();
        match ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))? {
            Made::Plain(imported) => Ok(imported),
            Made::Encrypted(made) => self.leave_nothing_plain(image, made).await,
        }
    }

    /// Writes stage and percentage, once a second at most, as long as the import runs.
    fn note(
        &self,
        image: ImageId,
        mut notes: watch::Receiver<(ImportStage, u8)>,
        cancel: Arc<AtomicBool>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let db = self.db.clone();
        async move {
            while notes.changed().await.is_ok() {
                let (stage, percent) = *notes.borrow_and_update();
                match db.set_progress(image, stage, percent).await {
                    Ok(()) => {}
                    // Deleted meanwhile: the work is for nothing.
                    Err(DbError::State { .. } | DbError::NotFound { .. }) => {
                        cancel.store(true, Ordering::Relaxed)
                    }
                    Err(error) => {
                        tracing::warn!(%image, error = crate::api::fault::chain(&error), "cannot note progress")
                    }
                }
                tokio::time::sleep(NOTE_EVERY).await;
            }
        }
    }

    async fn imported(&self, job: &Job, image: &Image, imported: &Imported) -> Result<bool, DbError> {
        for warning in &imported.warnings {
            tracing::warn!(image = %image.id, %warning, "odd image");
        }
        let content = Content {
            id: imported.content,
            kind: imported.kind,
            raw_bytes: imported.virtual_bytes,
            data_bytes: imported.data_bytes,
            stored_bytes: imported.stored_bytes,
            n_chunks: u64::from(imported.n_chunks),
            damaged: false,
        };
        let wanted = self.variants.iter().copied();
        let can = |format: &DiskFormat| check(imported.kind, imported.virtual_bytes, *format).is_ok();
        let variants = wanted.filter(can).collect();
        let scan = imported.scan.clone();
        // Of an encrypted image the plain file is gone already.
        let original_kept = self.keep_originals && image.fixed.key.is_none();
        let recorded = Recorded { content, format: imported.format, original_kept, variants, scan };
        let details = serde_json::json!({ "content": imported.content, "format": imported.format });
        let op = Draft::system("image.import").on("image", image.id, image.facts.name.clone()).with(details);
        if known_sums(image).is_none() {
            self.put_sums(image, &imported.sums).await?;
        }
        match self.db.finish_import(image.id, job.id, &recorded, &op).await {
            Ok(()) => {}
            Err(DbError::State { .. } | DbError::NotFound { .. }) => {
                // Deleted at the last moment: the content has no row. Not removed here, beside imports that run: one of the same
                // bytes may have found it and be about to record it.
                self.leaves(imported.content).await;
                self.swept.notify_one();
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        if image.fixed.key.is_some() {
            self.decided(imported.content).await;
        }
        if !self.keep_originals {
            self.remove_original(image.id).await;
        }
        Ok(true)
    }

    /// The image is `killed`, as soon as that can be written. One that was to be encrypted leaves no plain file.
    async fn failed(&self, job: &Job, image: &Image, reason: &str) -> Result<(), DbError> {
        if image.fixed.key.is_some() {
            self.remove_original(image.id).await;
        }
        let op = Draft::system("image.import").on("image", image.id, image.facts.name.clone()).failed(reason);
        loop {
            match self.db.fail_image(image.id, Some(job.id), reason, &op).await {
                // Deleted meanwhile.
                Err(DbError::State { .. } | DbError::NotFound { .. }) => return Ok(()),
                Err(error) if self.may_write_later(image.id, &error).await => {}
                ended => return ended,
            }
        }
    }
}

/// An import that runs.
struct Running<'a> {
    jobs: &'a Jobs,
    image: ImageId,
    /// Stops it.
    cancel: Arc<AtomicBool>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.jobs.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.image);
    }
}

/// What a run of an import made.
enum Made {
    Plain(Imported),
    Encrypted(Encrypted),
}

/// Checksums that the upload counted; they were stored after the file was synced, so they hold after a restart too.
fn known_sums(image: &Image) -> Option<Sums> {
    let sums = &image.checksums;
    Some(Sums {
        size_bytes: image.original_bytes?,
        sha256: sums.sha256.clone()?,
        sha512: sums.sha512.clone()?,
        md5: sums.md5.clone()?,
        blake3: sums.blake3.clone()?,
    })
}

async fn jobs_changed(changes: &mut tokio::sync::broadcast::Receiver<Change>) {
    wait_for(changes, |change| change == Change::Jobs).await;
}

async fn wait_for(changes: &mut tokio::sync::broadcast::Receiver<Change>, wanted: impl Fn(Change) -> bool) {
    loop {
        match changes.recv().await {
            Ok(change) if !wanted(change) => {}
            // A match, or changes were missed: look.
            _ => return,
        }
    }
}

/// Imports a killed image once more from its kept original.
///
/// # Errors
/// [`DbError::State`] if it is not killed; a failed statement.
pub async fn retry(db: &Db, image: &Image, op: &Draft) -> Result<(), DbError> {
    debug_assert_eq!(image.status, ImageStatus::Killed);
    db.retry_import(image.id, (new_id(), "{}"), op).await
}
