//! The catalog: how an image gets its bytes. [`super::image_edits`] makes the record, [`super::image_bin`] ends it.
//!
//! ```text
//! create ─► queued ──start_upload──► saving ──accept_upload──► importing ──finish_import──► active
//!             ▲   ◄──abort_upload──────┘  └────fail_image────► killed ◄──fail_image──┘
//!             └──────────────start_upload (again)──────────────┘
//! ```
//!
//! **Invariants.** Each arrow checks the state it leaves, so two uploads or a job and a delete cannot both win. `revision`
//! counts edits by people, not progress: an `If-Match` does not fail because a percentage moved.

use hearth_protocol::api::image::Checksums;
use hearth_protocol::id::{ImageId, JobId};
use hearth_protocol::words::{DiskFormat, ImageStatus, ImportStage, Visibility};

use super::changes::Change;
use super::contents::Content;
use super::error::DbError;
use super::images::Image;
use super::jobs::{JobKind, JobState};
use super::operations::Draft;
use super::sql::sql;
use super::store::{Db, Tx};
use crate::logic::quota::Figures;

/// What is known of a file when its upload ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Original {
    /// Its size.
    pub bytes: u64,
    /// Its checksums; all four.
    pub checksums: Checksums,
}

/// What an import found out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Imported {
    /// The content that is now stored.
    pub content: Content,
    /// What the file really was.
    pub format: DiskFormat,
    /// Whether the original is kept.
    pub original_kept: bool,
    /// Variants to be made now; none for what is no disk.
    pub variants: Vec<DiskFormat>,
    /// What the scanner said, where one is configured.
    pub scan: Option<String>,
}

fn wrong_state(image: &Image, allowed: &'static str) -> DbError {
    DbError::State { what: "image", key: image.facts.name.clone(), state: image.status.to_string(), allowed }
}

impl Tx<'_> {
    /// The image if it is not deleted and in one of `states`.
    pub(super) async fn image_in(
        &mut self,
        id: ImageId,
        states: &[ImageStatus],
        allowed: &'static str,
    ) -> Result<Image, DbError> {
        let image = self.live_image(id).await?;
        if states.contains(&image.status) { Ok(image) } else { Err(wrong_state(&image, allowed)) }
    }

    /// Refuses work on what is made of an image's content before there is one.
    pub(super) async fn must_be_active(&mut self, id: ImageId) -> Result<(), DbError> {
        self.image_in(id, &[ImageStatus::Active], "only an active image can be made into variants")
            .await
            .map(|_| ())
    }

    /// The image if it is not deleted.
    pub(super) async fn live_image(&mut self, id: ImageId) -> Result<Image, DbError> {
        let image = self.image(id).await?;
        match image.deleted_us {
            None => Ok(image),
            Some(_) => Err(DbError::NotFound { what: "image", key: id.to_string() }),
        }
    }

    /// Notes that people changed the image.
    pub(super) async fn revised(&mut self, id: ImageId) -> Result<(), DbError> {
        let update = "UPDATE image SET revision = revision + 1 WHERE id = $1";
        self.run(sql("image", update).bind(id)).await.map(|_| ())
    }

    /// Moves an image to another state.
    pub(super) async fn set_status(
        &mut self,
        id: ImageId,
        status: ImageStatus,
        stage: Option<ImportStage>,
        reason: &str,
    ) -> Result<(), DbError> {
        let update = "UPDATE image SET status = $1, stage = $2, percent = 0, reason = $3, updated_us = $4 WHERE id = $5";
        let stmt = sql("image", update).bind(status).bind(stage).bind(reason).bind(self.now_us()).bind(id);
        self.run(stmt).await?;
        self.changed(Change::Image(id));
        Ok(())
    }
}

impl Db {
    /// Begins the one upload of an image: `queued` or `killed` becomes `saving`.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`], [`DbError::Quota`] or a failed statement.
    pub async fn start_upload(&self, id: ImageId) -> Result<Image, DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let from = [ImageStatus::Queued, ImageStatus::Killed];
                let allowed = "bytes can be sent to a queued or killed image; make a new image";
                let image = tx.image_in(id, &from, allowed).await?;
                tx.admit(image.project, Figures::one_import()).await?;
                tx.set_status(id, ImageStatus::Saving, Some(ImportStage::Uploading), "").await?;
                tx.image(id).await
            })
        })
        .await
    }

    /// Ends an upload that did not finish: `saving` becomes `queued` and may be tried again.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] or a failed statement.
    pub async fn abort_upload(&self, id: ImageId, reason: &str) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                tx.image_in(id, &[ImageStatus::Saving], "only an upload in progress can be aborted").await?;
                tx.set_status(id, ImageStatus::Queued, None, reason).await
            })
        })
        .await
    }

    /// Takes a whole, durable upload over: `saving` becomes `importing` and the import job is queued.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`], [`DbError::Quota`] or a failed statement.
    pub async fn accept_upload(
        &self,
        id: ImageId,
        original: &Original,
        job: (JobId, &str),
        op: &Draft,
    ) -> Result<(), DbError> {
        let update = "UPDATE image SET original_bytes = $1, sha256 = $2, sha512 = $3, md5 = $4, blake3 = $5 WHERE id = $6";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let image =
                    tx.image_in(id, &[ImageStatus::Saving], "the upload was aborted or is over").await?;
                if image.facts.visibility != Visibility::Public {
                    let more = original.bytes.saturating_sub(image.original_bytes.unwrap_or(0));
                    tx.admit(image.project, Figures::bytes(more)).await?;
                }
                let sums = &original.checksums;
                let stmt = sql("image", update).bind(original.bytes).bind(sums.sha256.as_deref());
                let stmt =
                    stmt.bind(sums.sha512.as_deref()).bind(sums.md5.as_deref()).bind(sums.blake3.as_deref());
                tx.run(stmt.bind(id)).await?;
                tx.set_status(id, ImageStatus::Importing, Some(ImportStage::Inspecting), "").await?;
                tx.enqueue_job(job.0, JobKind::Import, id, job.1).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// Notes how far an upload or import is. Costs an fsync: call it once a second at most.
    ///
    /// # Errors
    /// [`DbError::State`] if the image is neither `saving` nor `importing` (deleted, for example: the work should stop),
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn set_progress(&self, id: ImageId, stage: ImportStage, percent: u8) -> Result<(), DbError> {
        let update = "UPDATE image SET stage = $1, percent = $2, updated_us = $3 WHERE id = $4";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let from = [ImageStatus::Saving, ImageStatus::Importing];
                tx.image_in(id, &from, "no import is running; stop the work").await?;
                let stmt = sql("image", update).bind(stage).bind(percent.min(100)).bind(tx.now_us()).bind(id);
                tx.run(stmt).await?;
                tx.changed(Change::Image(id));
                Ok(())
            })
        })
        .await
    }

    /// Ends an import well: stores content and facts, makes the image `active` and the job `done`, all at once.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] (deleted meanwhile) or a failed statement.
    pub async fn finish_import(
        &self,
        id: ImageId,
        job: JobId,
        imported: &Imported,
        op: &Draft,
    ) -> Result<(), DbError> {
        let update = "UPDATE image SET format = $1, original_kept = $2, virtual_bytes = $3, data_bytes = $4, \
             content_id = $5, scan_verdict = $6, scanned_us = $7 WHERE id = $8";
        self.write_tx(move |tx| {
            Box::pin(async move {
                tx.image_in(id, &[ImageStatus::Importing], "no import is running; stop the work").await?;
                tx.put_content(&imported.content).await?;
                let content = &imported.content;
                let stmt = sql("image", update).bind(imported.format).bind(imported.original_kept);
                let stmt = stmt.bind(content.raw_bytes).bind(content.data_bytes).bind(content.id);
                let stmt = stmt.bind(imported.scan.as_deref());
                tx.run(stmt.bind(imported.scan.as_ref().map(|_| tx.now_us())).bind(id)).await?;
                tx.set_status(id, ImageStatus::Active, None, "").await?;
                tx.set_job(job, JobState::Done, "").await?;
                tx.queue_variants(id, &imported.variants).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// Ends an upload or import badly: the image is `killed` with a reason, the job (if there is one) `failed`.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] or a failed statement.
    pub async fn fail_image(
        &self,
        id: ImageId,
        job: Option<JobId>,
        reason: &str,
        op: &Draft,
    ) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let from = [ImageStatus::Queued, ImageStatus::Saving, ImageStatus::Importing];
                tx.image_in(id, &from, "no upload or import is running").await?;
                tx.set_status(id, ImageStatus::Killed, None, reason).await?;
                if let Some(job) = job {
                    tx.set_job(job, JobState::Failed, reason).await?;
                }
                tx.record(op).await
            })
        })
        .await
    }

    /// At start: uploads whose connection died with the process are `queued` again. Returns their ids.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn reset_uploads(&self) -> Result<Vec<ImageId>, DbError> {
        let update = "UPDATE image SET status = 'queued', stage = NULL, percent = 0, updated_us = $1, \
             reason = 'the controller stopped during the upload: send the file again' \
             WHERE status = 'saving' AND deleted_us IS NULL RETURNING id";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let rows = tx.rows(sql("image", update).bind(tx.now_us())).await?;
                rows.iter().map(|row| row.parse("id")).collect()
            })
        })
        .await
    }
}
