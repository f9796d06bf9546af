//! The files of what was deleted: originals at once, contents when no import runs. What lies in the recycle bin is not
//! deleted: its record refers to its files.
//!
//! **What.** The sweeper, and what a start finds half done. Why there is a lock, says the module above.
//!
//! **Why marks.** A content that is being forgotten, or whose import ended without a record, has an empty file in `leaving/`. Whoever
//! holds the lock alone, as the sweep and a start do, reads in the database which of them really go.
//!
//! **Invariants.** A sweep never waits for an import; whoever lets go of the lock makes the sweeper look again.

use std::collections::BTreeSet;
use std::sync::Arc;

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::ImageId;

use super::encrypted::noted_contents;
use super::{Jobs, LOOK_EVERY, wait_for};
use crate::db::images::Image;
use crate::db::{Change, DbError};

impl Jobs {
    /// Originals of images that were deleted, or recorded as not kept, just before the process died.
    pub(super) async fn finish_deletions(&self) -> Result<(), DbError> {
        let ingest = Arc::clone(&self.ingest);
        let listed = tokio::task::spawn_blocking(move || ingest.originals.list()).await;
        let Ok(Ok(images)) = listed else {
            tracing::error!("cannot list the originals; run fsck");
            return Ok(());
        };
        let mut unknown = 0_u32;
        for id in images {
            match self.db.image(id).await? {
                Some(image) if image.is_original_over() => self.remove_original(id).await,
                Some(_) => {}
                None => unknown += 1,
            }
        }
        if unknown > 0 {
            tracing::warn!(unknown, "originals that no record knows; look with `hearth-controller fsck`");
        }
        Ok(())
    }

    /// Contents that are marked as leaving: without a row or a note their files go. For who holds the lock alone. Returns how many
    /// went.
    pub(super) async fn finish_removals(&self) -> Result<u32, DbError> {
        let (undecided, mut n) = (self.undecided().await, 0);
        let noted: BTreeSet<ContentId> = noted_contents(&self.db).await?.into_values().collect();
        for id in undecided.into_iter().filter(|id| !noted.contains(id)) {
            if self.db.content(id).await?.is_none() {
                self.remove_content(id).await;
                n += 1;
            } else {
                self.decided(id).await;
            }
        }
        Ok(n)
    }

    async fn undecided(&self) -> Vec<ContentId> {
        let ingest = Arc::clone(&self.ingest);
        let listed = tokio::task::spawn_blocking(move || ingest.content.undecided()).await;
        let Ok(Ok(contents)) = listed else {
            tracing::error!(?listed, "cannot list the contents that are leaving; run fsck");
            return Vec::new();
        };
        contents
    }

    /// Removes the files of a deleted image: original and variants now, the content as soon as no import runs.
    pub async fn clean_up(&self, gone: &Image) {
        self.stop(gone.id);
        self.remove_original(gone.id).await;
        self.clean_up_variants(gone.id).await;
        self.swept.notify_one();
    }

    pub(super) async fn remove_original(&self, id: ImageId) {
        let ingest = Arc::clone(&self.ingest);
        let remove = move || ingest.originals.remove(id).and_then(|()| ingest.originals.remove_parts(id));
        let removed = tokio::task::spawn_blocking(remove).await;
        match removed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(image = %id, %error, "an original stays until the next start"),
            Err(error) => tracing::error!(image = %id, %error, "removing an original failed"),
        }
    }

    pub(super) async fn sweeper(self: Arc<Self>) {
        let mut changes = self.db.subscribe();
        loop {
            self.sweep_and_log().await;
            // Intents that end may be the last that referred to a content: look now and then too.
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = self.swept.notified() => {}
                () = intents_changed(&mut changes) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    pub(super) async fn sweep_and_log(&self) {
        if let Err(error) = self.sweep().await {
            tracing::error!(error = crate::api::fault::chain(&error), "cannot look for unused contents");
        }
    }

    /// Removes contents that no image and no intent refers to, and those that are marked as leaving; none while an import runs,
    /// whose end is reason to look again.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn sweep(&self) -> Result<u32, DbError> {
        if self.undecided().await.is_empty() && self.db.unused_contents().await?.is_empty() {
            return Ok(0);
        }
        let Ok(_alone) = self.files.try_write() else { return Ok(0) };
        let mut n = 0;
        for content in self.db.unused_contents().await? {
            let id = content.id;
            // Before the row goes: a crash in between must not leave files that nobody knows.
            self.leaves(id).await;
            if self.db.forget_content(id).await? {
                self.remove_content(id).await;
                n += 1;
            } else {
                self.decided(id).await;
            }
        }
        Ok(n + self.finish_removals().await?)
    }

    /// Marks a content as leaving; see the module.
    pub(super) async fn leaves(&self, id: ContentId) {
        let ingest = Arc::clone(&self.ingest);
        let marked = tokio::task::spawn_blocking(move || ingest.content.leaving(id)).await;
        if !matches!(marked, Ok(Ok(()))) {
            // On a full disk there may be no room for the mark, and what leaves makes room.
            tracing::warn!(content = %id, ?marked, "if this removal breaks off, files are left to fsck");
        }
    }

    pub(super) async fn remove_content(&self, id: ContentId) {
        let ingest = Arc::clone(&self.ingest);
        let remove = move || ingest.content.remove(id).and_then(|()| ingest.content.decided(id));
        match tokio::task::spawn_blocking(remove).await {
            Ok(Ok(())) => tracing::info!(content = %id, "removed a content that nobody refers to"),
            Ok(Err(error)) => tracing::error!(content = %id, %error, "files stay; run fsck --repair"),
            Err(error) => tracing::error!(content = %id, %error, "removing a content failed"),
        }
    }

    /// The content stays: it is no longer marked as leaving.
    pub(super) async fn decided(&self, id: ContentId) {
        let ingest = Arc::clone(&self.ingest);
        if !matches!(tokio::task::spawn_blocking(move || ingest.content.decided(id)).await, Ok(Ok(()))) {
            tracing::warn!(content = %id, "its note stays until the next start, which reads it again");
        }
    }
}

async fn intents_changed(changes: &mut tokio::sync::broadcast::Receiver<Change>) {
    wait_for(changes, |change| change == Change::Intents).await;
}
