//! Makes the variants that wait in the database, one at a time, behind all imports.
//!
//! **What.** One worker beside those of the imports; what a start finds half done; the files of what was deleted.
//!
//! **Why it takes no part in the lock of imports and sweep.** A content is opened before its variant is made; should the sweep remove
//! it meanwhile, the open files stay readable, and the variant of a deleted image is thrown away at the end.
//!
//! **Why progress is kept in memory.** Each note in the database costs an fsync, for a number that only people who wait look at.
//!
//! **Invariants.** `active` is written after the file is whole, synced and in its place; a crash in between leaves a file without
//! an `active` row, which the next start removes. A row is deleted before its file.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, PoisonError};

use hearth_protocol::id::ImageId;
use hearth_protocol::words::{DiskFormat, VariantStatus};

use super::patience::patiently;
use super::{ATTEMPTS_MAX, Jobs, LOOK_EVERY, NOTE_EVERY, jobs_changed};
use crate::api::fault::chain;
use crate::content::{Sums, VariantFile};
use crate::db::DbError;
use crate::db::images::Image;
use crate::db::operations::Draft;
use crate::db::variants::{Variant, VariantSums};
use crate::ingest::variant::{VariantError, VariantSpec};
use crate::logic::variant::waits_for_imports;
use crate::{clock, task};

/// The variant that is being made.
#[derive(Clone, Debug)]
pub(super) struct Making {
    image: ImageId,
    format: DiskFormat,
    percent: Arc<AtomicU8>,
    cancel: Arc<AtomicBool>,
}

impl Variant {
    /// The file of an `active` variant.
    #[must_use]
    pub fn stored(&self) -> Option<VariantFile> {
        self.file.as_ref().map(|sums| VariantFile::new(self.image, self.format, &sums.blake3))
    }
}

impl Jobs {
    /// How far a variant is, if it is being made right now: 0 to 99.
    #[must_use]
    pub fn variant_percent(&self, image: ImageId, format: DiskFormat) -> Option<u8> {
        let making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let this = making.as_ref().filter(|making| (making.image, making.format) == (image, format));
        this.map(|making| making.percent.load(Ordering::Relaxed))
    }

    /// Whether the file of an `active` variant is there with its size.
    ///
    /// # Errors
    /// The file system does not answer.
    pub async fn variant_is_there(&self, variant: &Variant) -> Result<bool, crate::content::ContentError> {
        let (Some(file), Some(sums)) = (variant.stored(), variant.file.clone()) else { return Ok(false) };
        let variants = Arc::clone(&self.ingest.variants);
        let found = tokio::task::spawn_blocking(move || variants.size_bytes(&file)).await;
        let found = found.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        Ok(found == Some(sums.bytes))
    }

    /// Removes what belongs to a variant whose row was deleted.
    pub async fn clean_up_variant(&self, gone: &Variant) {
        self.stop_variants(gone.image, Some(gone.format));
        if let Some(file) = gone.stored() {
            self.remove_variant(file).await;
        }
    }

    /// Removes what belongs to the variants of a deleted image.
    pub(super) async fn clean_up_variants(&self, image: ImageId) {
        self.stop_variants(image, None);
        let variants = Arc::clone(&self.ingest.variants);
        let removed = tokio::task::spawn_blocking(move || variants.remove_all(image)).await;
        if !matches!(removed, Ok(Ok(()))) {
            tracing::error!(%image, ?removed, "variants stay until the next start");
        }
    }

    /// Stops the making of a variant of `image`, or of that in `format` alone.
    fn stop_variants(&self, image: ImageId, format: Option<DiskFormat>) {
        let making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let meant =
            |making: &&Making| making.image == image && format.is_none_or(|format| format == making.format);
        if let Some(making) = making.as_ref().filter(meant) {
            making.cancel.store(true, Ordering::Relaxed);
        }
    }

    async fn remove_variant(&self, file: VariantFile) {
        let (variants, shown) = (Arc::clone(&self.ingest.variants), file.clone());
        let removed = tokio::task::spawn_blocking(move || variants.remove(&file)).await;
        if !matches!(removed, Ok(Ok(()))) {
            tracing::error!(image = %shown.image, format = %shown.format, ?removed, "a variant stays until the next start");
        }
    }

    /// At start: what was being made waits again, what lost its file too, and files without an `active` row go. Those of an
    /// image that no record knows stay, as its original does.
    pub(super) async fn recover_variants(&self) -> Result<(), DbError> {
        self.db.requeue_saving_variants().await?;
        let variants = Arc::clone(&self.ingest.variants);
        let listed = tokio::task::spawn_blocking(move || variants.list()).await;
        let Ok(Ok(files)) = listed else {
            tracing::error!("cannot list the variants; run fsck");
            return Ok(());
        };
        let rows = self.db.all_variants().await?;
        for row in rows.iter().filter(|row| row.status == VariantStatus::Active) {
            if !matches!(self.variant_is_there(row).await, Ok(true)) {
                tracing::info!(image = %row.image, format = %row.format, "a variant has no file and is made again");
                self.db.requeue_variant(row).await?;
            }
        }
        let rows = self.db.all_variants().await?;
        let wanted: std::collections::HashSet<VariantFile> =
            rows.iter().filter_map(Variant::stored).collect();
        for file in files.into_iter().filter(|file| !wanted.contains(file)) {
            if self.db.image(file.image).await?.is_some() {
                self.remove_variant(file).await;
            } else {
                tracing::warn!(image = %file.image, "a variant of an image that no record knows; see fsck");
            }
        }
        Ok(())
    }

    pub(super) async fn variant_worker(self: Arc<Self>) {
        let mut changes = self.db.subscribe();
        while !self.closing.is_cancelled() {
            match self.claim_next_variant().await {
                Ok(Some(row)) => {
                    if let Err(error) = self.make_variant(&row).await {
                        // The row stays `saving` and is taken up at the next start.
                        let error = chain(&error);
                        tracing::error!(image = %row.image, format = %row.format, error, "cannot record a variant");
                    }
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(error = chain(&error), "cannot claim a variant");
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

    /// The next variant, unless imports go first.
    async fn claim_next_variant(&self) -> Result<Option<Variant>, DbError> {
        let Some(next) = self.db.next_variant().await? else { return Ok(None) };
        let imports = !self.db.unfinished_jobs().await?.is_empty();
        if waits_for_imports(clock::unix_us(), next.queued_us, imports) {
            return Ok(None);
        }
        self.db.claim_variant(next.image, next.format).await
    }

    async fn make_variant(&self, row: &Variant) -> Result<(), DbError> {
        let image = patiently(&self.closing, row.image, || self.db.image(row.image)).await?;
        let Some(image) = image.filter(|image| image.deleted_us.is_none()) else { return Ok(()) };
        let Some(content) = image.content else { return Ok(()) };
        if row.attempt > ATTEMPTS_MAX {
            let n = row.attempt - 1;
            let reason = format!("the controller stopped {n} times while it was made; its log says why");
            return self.variant_failed(row, &image, &reason).await;
        }
        let spec = VariantSpec { image: row.image, content, format: row.format };
        match self.run_variant(spec).await {
            Ok(sums) => self.variant_made(row, &image, sums).await,
            // The controller stops; or its row was deleted, and there is nothing to give back unless the one that is made now
            // was asked for after that, and the stop of the deletion came late.
            Err(VariantError::Cancelled) => {
                let give_back = || self.db.give_back_variant(row.image, row.format);
                patiently(&self.closing, row.image, give_back).await
            }
            Err(error) => {
                tracing::warn!(image = %row.image, format = %row.format, error = chain(&error), "no variant was made");
                self.variant_failed(row, &image, &error.to_string()).await?;
                if let Some(content) = error.damaged() {
                    self.remake_now(content).await?;
                }
                Ok(())
            }
        }
    }

    async fn run_variant(&self, spec: VariantSpec) -> Result<Sums, VariantError> {
        let (percent, cancel) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicBool::new(false)));
        let making = Making {
            image: spec.image,
            format: spec.format,
            percent: Arc::clone(&percent),
            cancel: Arc::clone(&cancel),
        };
        *self.making.lock().unwrap_or_else(PoisonError::into_inner) = Some(making);
        let stopping = {
            let (closing, cancel) = (self.closing.clone(), Arc::clone(&cancel));
            task::spawn("variant-stop", async move {
                closing.cancelled().await;
                cancel.store(true, Ordering::Relaxed);
            })
        };
        let ingest = Arc::clone(&self.ingest);
        let made = tokio::task::spawn_blocking(move || {
            ingest.make_variant(&spec, &cancel, &mut |now| percent.store(now, Ordering::Relaxed))
        });
        let made = made.await;
        stopping.abort();
        *self.making.lock().unwrap_or_else(PoisonError::into_inner) = None;
        made.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    async fn variant_made(&self, row: &Variant, image: &Image, sums: Sums) -> Result<(), DbError> {
        let file =
            VariantSums { bytes: sums.size_bytes, sha256: sums.sha256, md5: sums.md5, blake3: sums.blake3 };
        let details = serde_json::json!({ "format": row.format, "bytes": file.bytes, "sha256": file.sha256 });
        let op = variant_op(image).with(details);
        loop {
            match self.db.finish_variant(row.image, row.format, &file, &op).await {
                Err(DbError::NotFound { .. }) => {
                    // Deleted at the last moment: the file is nobody's.
                    self.remove_variant(VariantFile::new(row.image, row.format, &file.blake3)).await;
                    return Ok(());
                }
                Err(error) if self.may_write_later(row.image, &error).await => {}
                ended => return ended,
            }
        }
    }

    async fn variant_failed(&self, row: &Variant, image: &Image, reason: &str) -> Result<(), DbError> {
        let op = variant_op(image)
            .failed(reason)
            .with(serde_json::json!({ "format": row.format, "error": reason }));
        loop {
            match self.db.fail_variant(row.image, row.format, reason, &op).await {
                Err(DbError::NotFound { .. }) => return Ok(()),
                Err(error) if self.may_write_later(row.image, &error).await => {}
                ended => return ended,
            }
        }
    }
}

fn variant_op(image: &Image) -> Draft {
    Draft::system("variant.make").on("image", image.id, image.facts.name.clone())
}
