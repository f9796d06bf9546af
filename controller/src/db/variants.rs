//! Variants: the disk of an image in other formats, and the queue in which they are made.
//!
//! ```text
//! (none) ──queue_variants, ask_variant──► queued ──claim_variant──► saving ──finish_variant──► active
//!             ask_variant again ──────────►  ▲  ◄── a start ──────────┘ └───fail_variant──► save_fail
//!                                            └───── requeue_variant: its file is missing ─── active
//! ```
//!
//! **Why the row is the job.** A variant has one row in whatever state; a job beside it could say something else.
//!
//! **Invariants.** A variant is made by one worker at a time. It becomes `active` only from `saving` and only while its image
//! lives: one that was deleted meanwhile, or deleted and asked for again, is not brought back by a late worker. A deleted image
//! has no rows.

use hearth_protocol::id::ImageId;
use hearth_protocol::words::{DiskFormat, VariantStatus};

use super::changes::Change;
use super::error::DbError;
use super::operations::Draft;
use super::sql::{Row, sql};
use super::store::{Db, Tx};

/// One variant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Variant {
    /// Whose.
    pub image: ImageId,
    /// In which format.
    pub format: DiskFormat,
    /// State.
    pub status: VariantStatus,
    /// How often it was begun since it was last asked for.
    pub attempt: u32,
    /// Why it is `save_fail`; empty otherwise.
    pub reason: String,
    /// Size and sums of the file; present exactly while it is `active`.
    pub file: Option<VariantSums>,
    /// When it was queued, microseconds since the epoch.
    pub queued_us: i64,
    /// When it was first asked for.
    pub created_us: i64,
    /// When it last changed.
    pub updated_us: i64,
}

/// Size and checksums of a variant's file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VariantSums {
    /// Its size.
    pub bytes: u64,
    /// Lower-case hex.
    pub sha256: String,
    /// Lower-case hex.
    pub md5: String,
    /// Lower-case hex.
    pub blake3: String,
}

const COLUMNS: &str = "SELECT image_id, format, status, attempt, reason, bytes, sha256, md5, blake3, queued_us, created_us, \
     updated_us FROM variant";

fn variant(row: &Row) -> Result<Variant, DbError> {
    let status = row.parse("status")?;
    let sums = || {
        Ok::<_, DbError>(VariantSums {
            bytes: row.size("bytes")?,
            sha256: row.text("sha256")?,
            md5: row.text("md5")?,
            blake3: row.text("blake3")?,
        })
    };
    Ok(Variant {
        image: row.parse("image_id")?,
        format: row.parse("format")?,
        status,
        attempt: row.size("attempt")?,
        reason: row.text("reason")?,
        file: if status == VariantStatus::Active { Some(sums()?) } else { None },
        queued_us: row.int("queued_us")?,
        created_us: row.int("created_us")?,
        updated_us: row.int("updated_us")?,
    })
}

fn not_found(image: ImageId, format: DiskFormat) -> DbError {
    DbError::NotFound { what: "variant", key: format!("{format} of image {image}") }
}

impl Tx<'_> {
    /// Queues variants of an image that it does not have yet; for the end of an import.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn queue_variants(&mut self, image: ImageId, formats: &[DiskFormat]) -> Result<(), DbError> {
        for format in formats {
            self.put_queued(image, *format, false).await?;
        }
        Ok(())
    }

    /// A row that waits, whatever there was before.
    async fn put_queued(&mut self, image: ImageId, format: DiskFormat, asked: bool) -> Result<(), DbError> {
        let put = "INSERT INTO variant (image_id, format, status, asked, attempt, reason, queued_us, created_us, updated_us) \
             VALUES ($1, $2, 'queued', $3, 0, '', $4, $4, $4) ON CONFLICT (image_id, format) DO UPDATE SET \
             status = excluded.status, asked = excluded.asked, attempt = 0, reason = '', bytes = NULL, sha256 = NULL, \
             md5 = NULL, blake3 = NULL, queued_us = excluded.queued_us, updated_us = excluded.updated_us";
        let stmt = sql("variant", put).bind(image).bind(format).bind(asked).bind(self.now_us());
        self.run(stmt).await?;
        self.variants_changed(image);
        Ok(())
    }

    /// Forgets all variants of an image; for its deletion. The caller removes their files.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn delete_variants(&mut self, image: ImageId) -> Result<(), DbError> {
        self.run(sql("variant", "DELETE FROM variant WHERE image_id = $1").bind(image)).await.map(|_| ())
    }

    async fn variant(&mut self, image: ImageId, format: DiskFormat) -> Result<Option<Variant>, DbError> {
        let stmt = sql("variant", COLUMNS).text(" WHERE image_id = ").arg(image);
        self.row(stmt.text(" AND format = ").arg(format)).await?.as_ref().map(variant).transpose()
    }

    /// Wakes workers, and whoever shows the image.
    fn variants_changed(&mut self, image: ImageId) {
        self.changed(Change::Image(image));
        self.changed(Change::Jobs);
    }

    /// Refuses a variant that nobody is making, or whose image was deleted meanwhile.
    async fn must_be_saving(&mut self, image: ImageId, format: DiskFormat) -> Result<(), DbError> {
        let row = self.variant(image, format).await?;
        let saving = row.is_some_and(|row| row.status == VariantStatus::Saving);
        if saving && self.image(image).await?.deleted_us.is_none() {
            Ok(())
        } else {
            Err(not_found(image, format))
        }
    }
}

impl Db {
    /// Variants of an image, by format.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn variants_of(&self, image: ImageId) -> Result<Vec<Variant>, DbError> {
        let stmt = sql("variant", COLUMNS)
            .text(" WHERE image_id = ")
            .arg(image)
            .text(" ORDER BY format NULLS FIRST");
        self.rows(stmt).await?.iter().map(variant).collect()
    }

    /// Every variant; for `fsck` and for start. A few per image.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn all_variants(&self) -> Result<Vec<Variant>, DbError> {
        self.rows(sql("variant", COLUMNS).text(" ORDER BY image_id, format NULLS FIRST"))
            .await?
            .iter()
            .map(variant)
            .collect()
    }

    /// Has a variant made: one that is missing or failed is queued, one that waits goes before those nobody asked for, one
    /// that is there or being made stays. `file_is_missing` says that an `active` one has no file. Returns the row, and
    /// whether it was queued now; only then `op` is recorded.
    ///
    /// # Errors
    /// [`DbError::NotFound`] if the image is deleted, [`DbError::State`] if it is not `active`, or a failed statement.
    pub async fn ask_variant(
        &self,
        image: ImageId,
        format: DiskFormat,
        file_is_missing: bool,
        op: &Draft,
    ) -> Result<(Variant, bool), DbError> {
        let first = "UPDATE variant SET asked = 1 WHERE image_id = $1 AND format = $2";
        self.write_tx(move |tx| {
            Box::pin(async move {
                tx.must_be_active(image).await?;
                let found = tx.variant(image, format).await?;
                match found {
                    Some(row) if row.status == VariantStatus::Saving => return Ok((row, false)),
                    Some(row) if row.status == VariantStatus::Active && !file_is_missing => {
                        return Ok((row, false));
                    }
                    Some(row) if row.status == VariantStatus::Queued => {
                        tx.run(sql("variant", first).bind(image).bind(format)).await?;
                        return Ok((row, false));
                    }
                    _ => {}
                }
                tx.put_queued(image, format, true).await?;
                tx.record(op).await?;
                let row = tx.variant(image, format).await?;
                row.map(|row| (row, true)).ok_or_else(|| not_found(image, format))
            })
        })
        .await
    }

    /// The variant that is to be made next: one that somebody asked for, else the one that waits longest.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn next_variant(&self) -> Result<Option<Variant>, DbError> {
        let next =
            " WHERE status = 'queued' ORDER BY asked DESC, queued_us, image_id, format NULLS FIRST LIMIT 1";
        self.row(sql("variant", COLUMNS).text(next)).await?.as_ref().map(variant).transpose()
    }

    /// Gives a queued variant to the caller, with `attempt` counted up; `None` if it does not wait any more.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn claim_variant(
        &self,
        image: ImageId,
        format: DiskFormat,
    ) -> Result<Option<Variant>, DbError> {
        let update = "UPDATE variant SET status = 'saving', attempt = attempt + 1, updated_us = $1 \
             WHERE image_id = $2 AND format = $3 AND status = 'queued'";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let stmt = sql("variant", update).bind(tx.now_us()).bind(image).bind(format);
                if tx.run(stmt).await? == 0 {
                    return Ok(None);
                }
                tx.changed(Change::Image(image));
                tx.variant(image, format).await
            })
        })
        .await
    }

    /// Ends the making of a variant well: its file is in its place.
    ///
    /// # Errors
    /// [`DbError::NotFound`] if it or its image was deleted meanwhile: the file is nobody's then. Or a failed statement.
    pub async fn finish_variant(
        &self,
        image: ImageId,
        format: DiskFormat,
        file: &VariantSums,
        op: &Draft,
    ) -> Result<(), DbError> {
        let update = "UPDATE variant SET status = 'active', reason = '', bytes = $1, sha256 = $2, md5 = $3, blake3 = $4, \
             updated_us = $5 WHERE image_id = $6 AND format = $7";
        self.write_tx(move |tx| {
            Box::pin(async move {
                tx.must_be_saving(image, format).await?;
                let stmt = sql("variant", update).bind(file.bytes).bind(&file.sha256).bind(&file.md5);
                tx.run(stmt.bind(&file.blake3).bind(tx.now_us()).bind(image).bind(format)).await?;
                tx.variants_changed(image);
                tx.record(op).await
            })
        })
        .await
    }

    /// Ends the making of a variant badly.
    ///
    /// # Errors
    /// As [`Db::finish_variant`].
    pub async fn fail_variant(
        &self,
        image: ImageId,
        format: DiskFormat,
        reason: &str,
        op: &Draft,
    ) -> Result<(), DbError> {
        let update = "UPDATE variant SET status = 'save_fail', reason = $1, updated_us = $2 \
             WHERE image_id = $3 AND format = $4";
        self.write_tx(move |tx| {
            Box::pin(async move {
                tx.must_be_saving(image, format).await?;
                tx.run(sql("variant", update).bind(reason).bind(tx.now_us()).bind(image).bind(format))
                    .await?;
                tx.variants_changed(image);
                tx.record(op).await
            })
        })
        .await
    }

    /// Forgets a variant. Returns it as it was; the caller removes its file.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn delete_variant(
        &self,
        image: ImageId,
        format: DiskFormat,
        op: &Draft,
    ) -> Result<Variant, DbError> {
        let delete = "DELETE FROM variant WHERE image_id = $1 AND format = $2";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let row = tx.variant(image, format).await?.ok_or_else(|| not_found(image, format))?;
                tx.run(sql("variant", delete).bind(image).bind(format)).await?;
                tx.variants_changed(image);
                tx.record(op).await?;
                Ok(row)
            })
        })
        .await
    }

    /// An `active` variant whose file is missing or damaged waits to be made again; `false` if it is not `active` any more.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn requeue_variant(&self, lost: &Variant) -> Result<bool, DbError> {
        let (image, format, lost) = (lost.image, lost.format, lost.file.clone());
        self.write_tx(move |tx| {
            let lost = lost.clone();
            Box::pin(async move {
                let row = tx.variant(image, format).await?;
                if lost.is_none() || row.and_then(|row| row.file) != lost {
                    return Ok(false);
                }
                tx.put_queued(image, format, true).await?;
                Ok(true)
            })
        })
        .await
    }

    /// The making was stopped: what was being made waits again, if it is still wanted, and the try does not count.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn give_back_variant(&self, image: ImageId, format: DiskFormat) -> Result<(), DbError> {
        let update = "UPDATE variant SET status = 'queued', attempt = attempt - 1, updated_us = $1 \
             WHERE image_id = $2 AND format = $3 AND status = 'saving'";
        self.write_tx(move |tx| {
            Box::pin(async move {
                tx.run(sql("variant", update).bind(tx.now_us()).bind(image).bind(format)).await.map(|_| ())
            })
        })
        .await
    }

    /// At start, before any worker: what was being made when the process died waits again. Returns how many.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn requeue_saving_variants(&self) -> Result<u64, DbError> {
        let update = "UPDATE variant SET status = 'queued', updated_us = $1 WHERE status = 'saving'";
        self.write_tx(move |tx| {
            Box::pin(async move { tx.run(sql("variant", update).bind(tx.now_us())).await })
        })
        .await
    }
}
