//! Uploads and fetches that are not over: how far each is, and how it begins and ends.
//!
//! **What.** A row per open upload, at most one per image, which is `saving` as long as it has one.
//!
//! **Why the offset is here and not the length of the file.** What is told to a sender is what survives a power loss: the
//! offset is written after the file was synced. The file may be longer; what is behind the offset is sent again.
//!
//! **Invariants.** An upload is ended by its own id: who comes late cannot end another one. The row, the image's state and
//! the job that follows change together. A secret of a source stands in the fetch job's spec alone, until that job ends.

use hearth_protocol::id::{ImageId, JobId, UploadId};
use hearth_protocol::words::{ImageStatus, ImportStage, Visibility};

use super::changes::Change;
use super::error::DbError;
use super::ids::new_id;
use super::image_changes::Original;
use super::jobs::{JobKind, JobState};
use super::operations::Draft;
use super::sql::{Row, db_words, sql};
use super::store::{Db, Tx};
use crate::logic::quota::Figures;

db_words! {
    /// How the bytes come.
    UploadKind, "kind of upload" {
        /// In one request, and it ends with that.
        Whole = "whole",
        /// In as many requests as it takes.
        Resumable = "resumable",
        /// The controller gets them.
        Fetch = "fetch",
    }
}

/// An upload that is open.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Upload {
    /// Its id.
    pub id: UploadId,
    /// The image whose bytes it brings.
    pub image: ImageId,
    /// How they come.
    pub kind: UploadKind,
    /// Size of the whole file, if it is known.
    pub size_bytes: Option<u64>,
    /// Bytes that are durable.
    pub offset_bytes: u64,
    /// By what the sender, or the source, says that it is still the same file; empty if it does not.
    pub mark: String,
    /// When it was opened, microseconds since the epoch.
    pub created_us: i64,
    /// When it last moved.
    pub updated_us: i64,
}

impl Upload {
    /// How much of the file is there, 0 to 99; 0 if its size is not known.
    #[must_use]
    pub fn percent(&self, offset_bytes: u64) -> u8 {
        let percent =
            self.size_bytes.map_or(0, |all| u128::from(offset_bytes) * 100 / u128::from(all.max(1)));
        u8::try_from(percent).unwrap_or(99).min(99)
    }
}

/// A source as the record keeps it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SourceNote {
    /// Without user, password and query.
    pub shown: String,
    /// Whether there were any.
    pub hidden: bool,
}

/// A fetch that does not exist yet.
#[derive(Clone)]
pub struct NewFetch {
    /// The upload that it is.
    pub upload: Upload,
    /// Its source as the record keeps it.
    pub source: SourceNote,
    /// Its job.
    pub job: JobId,
    /// Where the file comes from; it may hold a password.
    pub url: String,
    /// Its row in the log.
    pub op: Draft,
}

impl std::fmt::Debug for NewFetch {
    /// Never with secrets: this may end in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewFetch")
            .field("upload", &self.upload)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

const COLUMNS: &str =
    "SELECT id, image_id, kind, size_bytes, offset_bytes, mark, created_us, updated_us FROM upload";

fn upload(row: &Row) -> Result<Upload, DbError> {
    Ok(Upload {
        id: row.parse("id")?,
        image: row.parse("image_id")?,
        kind: row.parse("kind")?,
        size_bytes: row.opt_size("size_bytes")?,
        offset_bytes: row.size("offset_bytes")?,
        mark: row.text("mark")?,
        created_us: row.int("created_us")?,
        updated_us: row.int("updated_us")?,
    })
}

fn gone(id: UploadId) -> DbError {
    DbError::NotFound { what: "upload", key: id.to_string() }
}

impl Tx<'_> {
    async fn upload(&mut self, id: UploadId) -> Result<Upload, DbError> {
        let row = self.row(sql("upload", COLUMNS).text(" WHERE id = ").arg(id)).await?;
        row.as_ref().map(upload).transpose()?.ok_or_else(|| gone(id))
    }

    /// Ends whatever upload the image has; its file is the caller's business.
    pub(super) async fn close_upload(&mut self, image: ImageId) -> Result<(), DbError> {
        self.run(sql("upload", "DELETE FROM upload WHERE image_id = $1").bind(image)).await.map(|_| ())
    }

    async fn open_upload(&mut self, new: &Upload) -> Result<Upload, DbError> {
        let from = [ImageStatus::Queued, ImageStatus::Killed];
        let allowed = "bytes can be sent to a queued or killed image; make a new image";
        let image = self.image_in(new.image, &from, allowed).await?;
        self.admit(image.project, Figures::one_import()).await?;
        let stage =
            if new.kind == UploadKind::Fetch { ImportStage::Fetching } else { ImportStage::Uploading };
        self.set_status(new.image, ImageStatus::Saving, Some(stage), "").await?;
        // Checksums of an earlier try are not those of what comes.
        let forget = "UPDATE image SET original_bytes = NULL, sha256 = NULL, sha512 = NULL, md5 = NULL, blake3 = NULL, \
             source = '', source_hidden = 0 WHERE id = $1";
        self.run(sql("image", forget).bind(new.image)).await?;
        self.delete_note(new.image).await?;
        let insert = "INSERT INTO upload (id, image_id, kind, size_bytes, offset_bytes, mark, created_us, updated_us) \
             VALUES ($1, $2, $3, $4, 0, $5, $6, $6)";
        let stmt = sql("upload", insert).bind(new.id).bind(new.image).bind(new.kind).bind(new.size_bytes);
        self.run(stmt.bind(&new.mark).bind(self.now_us())).await?;
        self.upload(new.id).await
    }

    /// Begins a fetch, with its job.
    pub(super) async fn open_fetch(&mut self, new: &NewFetch) -> Result<Upload, DbError> {
        let note = "UPDATE image SET source = $1, source_hidden = $2 WHERE id = $3";
        let upload = self.open_upload(&new.upload).await?;
        self.run(sql("image", note).bind(&new.source.shown).bind(new.source.hidden).bind(upload.image))
            .await?;
        self.enqueue_job(new.job, JobKind::Fetch, upload.image, &new.url).await?;
        self.record(&new.op).await?;
        Ok(upload)
    }

    /// The bytes are there: the image is `importing` and its import waits.
    async fn accept(
        &mut self,
        image: ImageId,
        original: &Original,
        job: (JobId, &str),
        op: &Draft,
    ) -> Result<(), DbError> {
        let update = "UPDATE image SET original_bytes = $1, sha256 = $2, sha512 = $3, md5 = $4, blake3 = $5 WHERE id = $6";
        let record =
            self.image_in(image, &[ImageStatus::Saving], "the upload was aborted or is over").await?;
        if record.facts.visibility != Visibility::Public {
            let more = original.bytes.saturating_sub(record.original_bytes.unwrap_or(0));
            self.admit(record.project, Figures::bytes(more)).await?;
        }
        let sums = &original.checksums;
        let stmt = sql("image", update).bind(original.bytes).bind(sums.sha256.as_deref());
        let stmt = stmt.bind(sums.sha512.as_deref()).bind(sums.md5.as_deref()).bind(sums.blake3.as_deref());
        self.run(stmt.bind(image)).await?;
        self.close_upload(image).await?;
        self.set_status(image, ImageStatus::Importing, Some(ImportStage::Inspecting), "").await?;
        self.enqueue_job(job.0, JobKind::Import, image, job.1).await?;
        self.record(op).await
    }
}

/// An upload that does not exist yet.
#[must_use]
pub fn new_upload(image: ImageId, kind: UploadKind, size_bytes: Option<u64>, mark: &str) -> Upload {
    let mark = mark.to_owned();
    Upload { id: new_id(), image, kind, size_bytes, offset_bytes: 0, mark, created_us: 0, updated_us: 0 }
}

impl Db {
    /// Begins the one upload of an image: `queued` or `killed` becomes `saving`.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] (another upload is open, for example), [`DbError::Quota`] or a failed
    /// statement.
    pub async fn open_upload(&self, new: &Upload, op: &Draft) -> Result<Upload, DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let upload = tx.open_upload(new).await?;
                tx.record(op).await?;
                Ok(upload)
            })
        })
        .await
    }

    /// As [`Db::open_upload`], for one request that ends with its connection: what comes of it is what is logged.
    ///
    /// # Errors
    /// As [`Db::open_upload`].
    pub async fn start_upload(&self, id: ImageId) -> Result<Upload, DbError> {
        let new = &new_upload(id, UploadKind::Whole, None, "");
        self.write_tx(move |tx| Box::pin(tx.open_upload(new))).await
    }

    /// Begins a fetch: the image is `saving`, its source is noted, and a job waits.
    ///
    /// # Errors
    /// As [`Db::open_upload`].
    pub async fn open_fetch(&self, new: &NewFetch) -> Result<Upload, DbError> {
        self.write_tx(move |tx| Box::pin(tx.open_fetch(new))).await
    }

    /// The upload with this id, if it is open.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn upload(&self, id: UploadId) -> Result<Option<Upload>, DbError> {
        let row = self.row(sql("upload", COLUMNS).text(" WHERE id = ").arg(id)).await?;
        row.as_ref().map(upload).transpose()
    }

    /// The open upload of an image, if it has one.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn upload_of(&self, image: ImageId) -> Result<Option<Upload>, DbError> {
        let row = self.row(sql("upload", COLUMNS).text(" WHERE image_id = ").arg(image)).await?;
        row.as_ref().map(upload).transpose()
    }

    /// Every open upload: one per image that is `saving`.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn uploads(&self) -> Result<Vec<Upload>, DbError> {
        self.rows(sql("upload", COLUMNS).text(" ORDER BY id")).await?.iter().map(upload).collect()
    }

    /// Notes that the first `offset_bytes` are durable. Two syncs of a disk: once per some MiB.
    ///
    /// # Errors
    /// [`DbError::NotFound`] if the upload is over: the work should stop. Or a failed statement.
    pub async fn note_upload(&self, id: UploadId, offset_bytes: u64) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let upload = tx.upload(id).await?;
                let update = "UPDATE upload SET offset_bytes = $1, updated_us = $2 WHERE id = $3";
                tx.run(sql("upload", update).bind(offset_bytes).bind(tx.now_us()).bind(id)).await?;
                let percent = upload.percent(offset_bytes);
                if percent != upload.percent(upload.offset_bytes) {
                    let update = "UPDATE image SET percent = $1, updated_us = $2 WHERE id = $3";
                    tx.run(sql("image", update).bind(percent).bind(tx.now_us()).bind(upload.image)).await?;
                    tx.changed(Change::Image(upload.image));
                }
                Ok(())
            })
        })
        .await
    }

    /// Notes what the source says of its file. With `from_start` nothing of what came before counts any more.
    ///
    /// # Errors
    /// As [`Db::note_upload`].
    pub async fn note_source(
        &self,
        id: UploadId,
        mark: &str,
        size_bytes: Option<u64>,
        from_start: bool,
    ) -> Result<Upload, DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let old = tx.upload(id).await?;
                let update = "UPDATE upload SET mark = $1, size_bytes = $2, offset_bytes = $3, updated_us = $4 WHERE id = $5";
                let offset = if from_start { 0 } else { old.offset_bytes };
                let stmt = sql("upload", update).bind(mark).bind(size_bytes).bind(offset).bind(tx.now_us());
                tx.run(stmt.bind(id)).await?;
                tx.upload(id).await
            })
        })
        .await
    }

    /// Ends an upload that did not finish: its image is `queued` again and bytes may be sent again.
    ///
    /// # Errors
    /// [`DbError::NotFound`] if it is over, [`DbError::State`] or a failed statement.
    pub async fn abort_upload(&self, id: UploadId, reason: &str, op: Option<&Draft>) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let image = tx.upload(id).await?.image;
                tx.image_in(image, &[ImageStatus::Saving], "only an upload in progress can be aborted")
                    .await?;
                tx.close_upload(image).await?;
                tx.set_status(image, ImageStatus::Queued, None, reason).await?;
                match op {
                    Some(op) => tx.record(op).await,
                    None => Ok(()),
                }
            })
        })
        .await
    }

    /// Ends an upload whose file cannot be taken: its image is `killed`.
    ///
    /// # Errors
    /// [`DbError::NotFound`] if it is over, [`DbError::State`] or a failed statement.
    pub async fn fail_upload(&self, id: UploadId, reason: &str, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let image = tx.upload(id).await?.image;
                tx.image_in(image, &[ImageStatus::Saving], "only an upload in progress can fail").await?;
                tx.close_upload(image).await?;
                tx.set_status(image, ImageStatus::Killed, None, reason).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// Takes a whole, durable upload over: `saving` becomes `importing` and the import job is queued. `fetched` is the
    /// fetch job that ends with it.
    ///
    /// # Errors
    /// [`DbError::NotFound`] if it is over, [`DbError::State`], [`DbError::Quota`] or a failed statement.
    pub async fn finish_upload(
        &self,
        id: UploadId,
        original: &Original,
        job: (JobId, &str),
        fetched: Option<JobId>,
        op: &Draft,
    ) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let image = tx.upload(id).await?.image;
                if let Some(fetched) = fetched {
                    tx.set_job(fetched, JobState::Done, "").await?;
                }
                tx.accept(image, original, job, op).await
            })
        })
        .await
    }

    /// As [`Db::finish_upload`], for the one upload that the image has: one request, which ends its upload itself.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] or a failed statement.
    pub async fn accept_upload(
        &self,
        id: ImageId,
        original: &Original,
        job: (JobId, &str),
        op: &Draft,
    ) -> Result<(), DbError> {
        self.write_tx(move |tx| Box::pin(tx.accept(id, original, job, op))).await
    }

    /// Queues the import of a killed image once more, from the file that is kept.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`], [`DbError::Quota`] or a failed statement.
    pub async fn retry_import(&self, id: ImageId, job: (JobId, &str), op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let image = tx
                    .image_in(id, &[ImageStatus::Killed], "only a failed import can be tried again")
                    .await?;
                tx.admit(image.project, Figures::one_import()).await?;
                tx.set_status(id, ImageStatus::Importing, Some(ImportStage::Inspecting), "").await?;
                tx.enqueue_job(job.0, JobKind::Import, id, job.1).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// Stores the checksums that the import counted, if the upload could not.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn put_checksums(&self, image: ImageId, original: &Original) -> Result<(), DbError> {
        let update = "UPDATE image SET original_bytes = $1, sha256 = $2, sha512 = $3, md5 = $4, blake3 = $5 WHERE id = $6";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let sums = &original.checksums;
                let stmt = sql("image", update).bind(original.bytes).bind(sums.sha256.as_deref());
                let stmt = stmt.bind(sums.sha512.as_deref()).bind(sums.md5.as_deref());
                tx.run(stmt.bind(sums.blake3.as_deref()).bind(image)).await.map(|_| ())
            })
        })
        .await
    }

    /// Resumable uploads that have not moved since `before_us`.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn idle_uploads(&self, before_us: i64) -> Result<Vec<Upload>, DbError> {
        let stmt = sql("upload", COLUMNS).text(" WHERE kind = 'resumable' AND updated_us < ").arg(before_us);
        self.rows(stmt.text(" ORDER BY id")).await?.iter().map(upload).collect()
    }

    /// At start: uploads whose connection died with the process and that cannot go on are `queued` again. Returns their
    /// images.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn reset_uploads(&self) -> Result<Vec<ImageId>, DbError> {
        let update = "UPDATE image SET status = 'queued', stage = NULL, percent = 0, updated_us = $1, \
             reason = 'the controller stopped during the upload: send the file again' \
             WHERE status = 'saving' AND deleted_us IS NULL AND NOT EXISTS \
             (SELECT id FROM upload WHERE upload.image_id = image.id) RETURNING id";
        self.write_tx(move |tx| {
            Box::pin(async move {
                tx.run(sql("upload", "DELETE FROM upload WHERE kind = 'whole'")).await?;
                let rows = tx.rows(sql("image", update).bind(tx.now_us())).await?;
                rows.iter().map(|row| row.parse("id")).collect()
            })
        })
        .await
    }
}
