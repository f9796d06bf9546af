//! Makes damaged contents again from the originals of their images.
//!
//! **Why one at a time.** A disk that goes bad reports thousands of chunks, of one content often, and each report asks for the whole
//! content. All runs of one image work in the same staging folder, and each is minutes of conversion; mending must not starve the rest.
//!
//! **Invariants.** No two run at once. Of one content at most one waits or runs unasked.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use hearth_protocol::digest::ContentId;

use super::Jobs;
use crate::api::fault::chain;
use crate::db::DbError;
use crate::db::operations::Draft;
use crate::task;

/// What is being made again.
#[derive(Debug, Default)]
pub(super) struct Remaking {
    /// Contents that [`Jobs::remake`] has taken on.
    waiting: Mutex<HashSet<ContentId>>,
    /// Held by the one that runs. Taken before the lock of imports, so that who waits keeps no sweep waiting.
    one: tokio::sync::Mutex<()>,
}

impl Remaking {
    /// How many contents [`Jobs::remake`] has taken on and not ended.
    #[cfg(test)]
    pub(super) fn waits(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Jobs {
    /// Makes a damaged content again from the original of an image that has it. Returns at once; nothing happens where that is
    /// waiting or running already.
    pub fn remake(self: &Arc<Self>, content: ContentId) {
        if !self.remaking.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(content) {
            return;
        }
        let this = Arc::clone(self);
        task::spawn("remake", async move {
            let made = this.remake_now(content).await;
            this.remaking.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&content);
            match made {
                Ok(true) => tracing::info!(%content, "a damaged content was made again from its original"),
                Ok(false) => tracing::error!(%content, "a content is damaged and no original can mend it"),
                Err(error) => tracing::error!(%content, error = chain(&error), "cannot mend a content"),
            }
        });
    }

    /// As [`Jobs::remake`]; says whether it is mended.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn remake_now(&self, content: ContentId) -> Result<bool, DbError> {
        let _one = self.remaking.one.lock().await;
        let together = self.files.read().await;
        let mended = self.remake_from_originals(content).await;
        drop(together);
        self.swept.notify_one();
        mended
    }

    async fn remake_from_originals(&self, content: ContentId) -> Result<bool, DbError> {
        for image in self.db.images_of_contents(&[content]).await? {
            let Some(format) = image.format.filter(|_| image.original_kept) else { continue };
            let ingest = Arc::clone(&self.ingest);
            let made = tokio::task::spawn_blocking(move || {
                let (id, disk_bytes) = (image.id, image.fixed.disk_bytes);
                ingest.heal_from_original(id, format, disk_bytes, content, &AtomicBool::new(false))
            });
            match made.await {
                Ok(Ok(_)) => {
                    let op = Draft::system("content.mend").on("content", content, image.facts.name);
                    self.db.set_content_damaged(content, false, &op).await?;
                    return Ok(true);
                }
                Ok(Err(error)) => {
                    tracing::error!(%content, error = chain(&error), "not mended")
                }
                Err(error) => tracing::error!(%content, %error, "not mended"),
            }
        }
        Ok(false)
    }
}
