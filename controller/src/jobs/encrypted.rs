//! Imports that encrypt: between the encrypted content and the `active` image the plain original goes.
//!
//! ```text
//! marked as leaving ─► published ─► noted in the database ─► original removed ─► recorded: `active` ─► the mark goes
//! ```
//! **Why a note.** A crash after the original went would leave nothing to import; with the note the job only records. From there
//! until the record the note is all that refers to the content: `fsck` and backups count it among what is known.
//!
//! **Why a mark.** A second run makes another content. One whose import died before the note, or whose image was deleted after it, is
//! found by its mark and removed ([`super::sweep`]).
//!
//! **Invariants.** A note is forgotten only where its content is not there; one that cannot be read waits for the next start. When
//! the image is `active` nothing of it is on this disk in the plain: no original, no staging folder. What a crash left is removed at
//! the next start, before anything else runs (staging), or by the job that is taken up (original).

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{ImageId, KeyId};
use hearth_protocol::passphrase::Passphrase;
use hearth_protocol::words::{ContentKind, DiskFormat};
use serde::{Deserialize, Serialize};

use super::{Jobs, known_sums};
use crate::api::fault::chain;
use crate::content::{ContentError, Published, Sums};
use crate::db::images::Image;
use crate::db::{Db, DbError};
use crate::ingest::encrypt::Encrypted;
use crate::ingest::inspect::PartitionTable;
use crate::ingest::job::{ImportError, Imported};

/// What was made, as it is noted.
#[derive(Debug, Deserialize, Serialize)]
struct Noted {
    content: ContentId,
    format: DiskFormat,
    file_bytes: u64,
    data_bytes: u64,
    stored_bytes: u64,
    n_chunks: u32,
    scan: Option<String>,
}

impl Noted {
    fn of(imported: &Imported) -> Self {
        Self {
            content: imported.content,
            format: imported.format,
            file_bytes: imported.virtual_bytes,
            data_bytes: imported.data_bytes,
            stored_bytes: imported.stored_bytes,
            n_chunks: imported.n_chunks,
            scan: imported.scan.clone(),
        }
    }

    fn imported(self, sums: Sums) -> Imported {
        Imported {
            format: self.format,
            content: self.content,
            kind: ContentKind::File,
            virtual_bytes: self.file_bytes,
            data_bytes: self.data_bytes,
            stored_bytes: self.stored_bytes,
            n_chunks: self.n_chunks,
            sums,
            partition_table: PartitionTable::None,
            warnings: Vec::new(),
            scan: self.scan,
            published: Published::Reused,
        }
    }
}

/// Contents that nothing but a note refers to, by their images: stored, and not recorded yet.
///
/// # Errors
/// A failed statement.
pub(crate) async fn noted_contents(db: &Db) -> Result<BTreeMap<ImageId, ContentId>, DbError> {
    let notes = db.all_noted_encrypted().await?.into_iter();
    let content = |text: &str| serde_json::from_str::<Noted>(text).ok().map(|noted| noted.content);
    Ok(notes.filter_map(|(image, text)| Some((image, content(&text)?))).collect())
}

impl Jobs {
    /// What opens the image, if it is to be encrypted.
    pub(super) async fn passphrase(&self, image: &Image) -> Result<Option<Passphrase>, ImportError> {
        let Some(id) = image.fixed.key else { return Ok(None) };
        let opened = self.unsealed(image.id, id).await;
        if matches!(opened, Err(ImportError::NoKey { .. })) {
            // It came to be encrypted, which cannot be any more: rather sent again than left here in the plain.
            self.remove_original(image.id).await;
        }
        opened.map(Some)
    }

    async fn unsealed(&self, image: ImageId, id: KeyId) -> Result<Passphrase, ImportError> {
        let key = loop {
            match self.db.key(id).await {
                Err(error) if self.may_write_later(image, &error).await => {}
                found => break found.map_err(|error| ImportError::Waits { why: chain(&error) })?,
            }
        };
        let key = key.ok_or_else(|| ImportError::NoKey { why: "it was deleted".to_owned() })?;
        let passphrase = self.keys.passphrase(key.id, key.project, &key.sealed, image);
        passphrase.map_err(|error| match error.is_final() {
            true => ImportError::NoKey { why: error.to_string() },
            false => ImportError::Waits { why: error.to_string() },
        })
    }

    /// At start: marks what is noted, for a backup that was restored has no marks.
    pub(super) async fn mark_noted(&self) -> Result<(), DbError> {
        for content in noted_contents(&self.db).await?.into_values() {
            self.leaves(content).await;
        }
        Ok(())
    }

    /// What an earlier run made of the image, if that is still there; its original, should it have been left, is gone then.
    pub(super) async fn noted(
        &self,
        image: &Image,
    ) -> Result<Option<Result<Imported, ImportError>>, DbError> {
        if image.fixed.key.is_none() {
            return Ok(None);
        }
        loop {
            match self.look_at_note(image).await {
                Err(error) if self.may_write_later(image.id, &error).await => {}
                found => return found,
            }
        }
    }

    async fn look_at_note(&self, image: &Image) -> Result<Option<Result<Imported, ImportError>>, DbError> {
        let Some(text) = self.db.noted_encrypted(image.id).await? else { return Ok(None) };
        let made: Option<(Noted, Sums)> = serde_json::from_str(&text).ok().zip(known_sums(image));
        if let Some((made, sums)) = made {
            let (ingest, content) = (Arc::clone(&self.ingest), made.content);
            let opened = tokio::task::spawn_blocking(move || ingest.content.open(content).map(drop)).await;
            match opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
                Ok(()) => {
                    let removed = self.remove_plain(image.id).await;
                    return Ok(Some(removed.map(|()| made.imported(sums))));
                }
                Err(ContentError::NotFound { .. }) => {}
                // Too many open files, a disk that stumbles: what may be all that is left of the image is not given up for that.
                Err(error) => return Ok(Some(Err(ImportError::Waits { why: chain(&error) }))),
            }
        }
        self.db.forget_encrypted(image.id).await?;
        Ok(None)
    }

    /// Notes what was made and removes the original.
    pub(super) async fn leave_nothing_plain(
        &self,
        image: &Image,
        made: Encrypted,
    ) -> Result<Imported, ImportError> {
        let Encrypted { imported, disk_bytes } = made;
        // They cannot be counted again once the original is gone.
        while known_sums(image).is_none()
            && let Err(error) = self.put_sums(image, &imported.sums).await
        {
            if !self.may_write_later(image.id, &error).await {
                self.remove_content(imported.content).await;
                return Err(ImportError::NotNoted { why: error.to_string() });
            }
        }
        let text = serde_json::to_string(&Noted::of(&imported)).expect("a plain struct always serializes");
        while let Err(error) = self.db.note_encrypted(image.id, disk_bytes, &text).await {
            if !self.may_write_later(image.id, &error).await {
                // Deleted meanwhile, or the controller stops: nobody else knows this content.
                self.remove_content(imported.content).await;
                return Err(ImportError::NotNoted { why: error.to_string() });
            }
        }
        self.remove_plain(image.id).await?;
        Ok(imported)
    }

    /// Removes the original; an image whose original cannot be removed does not become `active`.
    async fn remove_plain(&self, image: ImageId) -> Result<(), ImportError> {
        let ingest = Arc::clone(&self.ingest);
        let removed = tokio::task::spawn_blocking(move || ingest.originals.remove(image)).await;
        removed.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())).map_err(Into::into)
    }
}
