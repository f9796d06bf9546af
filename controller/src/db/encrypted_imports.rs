//! Imports whose encrypted content is stored: what is left is to remove the plain original and to record.
//!
//! **Why a note.** The original must be gone before the image is `active`, and a crash in between must not lose the image: the
//! note says what was made, so the job that is taken up needs no original.
//!
//! **Invariants.** A note exists only while its image is not `active`, not deleted, and gets no other bytes.

use hearth_protocol::id::ImageId;

use super::error::DbError;
use super::sql::sql;
use super::store::{Db, Tx};

impl Tx<'_> {
    /// Gives an image the size of the disk inside its encrypted file, and forgets the note. Nothing happens to others.
    pub(super) async fn settle_encrypted(&mut self, image: ImageId) -> Result<(), DbError> {
        let select = "SELECT disk_bytes FROM encrypted_import WHERE image_id = $1";
        let Some(row) = self.row(sql("encrypted_import", select).bind(image)).await? else { return Ok(()) };
        let disk_bytes: u64 = row.size("disk_bytes")?;
        let update = sql("image", "UPDATE image SET virtual_bytes = $1 WHERE id = $2");
        self.run(update.bind(disk_bytes).bind(image)).await?;
        self.delete_note(image).await
    }

    /// Forgets what was noted of an image: it is over, or gets other bytes.
    pub(super) async fn delete_note(&mut self, image: ImageId) -> Result<(), DbError> {
        let delete = "DELETE FROM encrypted_import WHERE image_id = $1";
        self.run(sql("encrypted_import", delete).bind(image)).await.map(drop)
    }
}

impl Db {
    /// Notes what was made of an image: `made` is the job's own text.
    ///
    /// # Errors
    /// [`DbError::NotFound`] if it was deleted meanwhile; a failed statement.
    pub async fn note_encrypted(&self, image: ImageId, disk_bytes: u64, made: &str) -> Result<(), DbError> {
        let put = "INSERT INTO encrypted_import (image_id, disk_bytes, made, created_us) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (image_id) DO UPDATE SET disk_bytes = excluded.disk_bytes, made = excluded.made, \
             created_us = excluded.created_us";
        self.write_tx(move |tx| {
            Box::pin(async move {
                tx.live_image(image).await?;
                let stmt = sql("encrypted_import", put).bind(image).bind(disk_bytes).bind(made);
                tx.run(stmt.bind(tx.now_us())).await.map(drop)
            })
        })
        .await
    }

    /// What was noted of an image.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn noted_encrypted(&self, image: ImageId) -> Result<Option<String>, DbError> {
        let select = "SELECT made FROM encrypted_import WHERE image_id = $1";
        let row = self.row(sql("encrypted_import", select).bind(image)).await?;
        row.map(|row| row.text("made")).transpose()
    }

    /// What was noted of every image.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn all_noted_encrypted(&self) -> Result<Vec<(ImageId, String)>, DbError> {
        let select = "SELECT image_id, made FROM encrypted_import ORDER BY image_id";
        let stmt = sql("encrypted_import", select);
        self.each(stmt, |row| Ok((row.parse("image_id")?, row.text("made")?))).await
    }

    /// Forgets what was noted of an image.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn forget_encrypted(&self, image: ImageId) -> Result<(), DbError> {
        self.write_tx(move |tx| Box::pin(tx.delete_note(image))).await
    }
}
