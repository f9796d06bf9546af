//! The end of the recycle bin: what has been there for its days is destroyed.
//!
//! **What.** A task that looks once a minute, at start too, and destroys what is due with a row in the log for each.
//! **Why no timer per image.** The record says since when it is in the bin: a restart, a changed `bin_days` or a restored
//! database needs nothing but the next look.
//! **Why the steady clock.** A wall clock that jumps ahead by days must not empty every bin before somebody sees it.
//! **Invariants.** Nothing else is ever destroyed without being asked for. A restore that came first wins: the state is checked
//! in the transaction that destroys.

use std::sync::Arc;
use std::time::Duration;

use super::Jobs;
use crate::clock;
use crate::db::DbError;
use crate::db::operations::Draft;
use crate::logic::deletion::purge_before_us;

/// Time between two looks: an image may stay a minute longer than its days.
const LOOK_EVERY: Duration = Duration::from_secs(60);

impl Jobs {
    /// Looks after the recycle bin until the controller stops.
    pub async fn purger(self: Arc<Self>, bin_days: u32) {
        while !self.closing.is_cancelled() {
            let before_us = purge_before_us(clock::steady_unix_us(), bin_days);
            match self.purge(before_us).await {
                // There may be more than one look takes.
                Ok(n) if n > 0 => {
                    tracing::info!(n, "destroyed images whose days in the recycle bin were over")
                }
                Ok(_) => tokio::select! {
                    () = self.closing.cancelled() => {}
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                },
                Err(error) => {
                    tracing::error!(
                        error = crate::api::fault::chain(&error),
                        "cannot look after the recycle bin"
                    );
                    tokio::time::sleep(super::NOTE_EVERY).await;
                }
            }
        }
    }

    /// Destroys what came into the recycle bin at `before_us` or earlier; says how many images that were.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn purge(&self, before_us: i64) -> Result<u32, DbError> {
        let mut n = 0;
        for (id, name) in self.db.binned_before(before_us).await? {
            let op = Draft::system("image.purge").on("image", id, name);
            if let Some(gone) = self.db.purge_image(id, before_us, &op).await? {
                self.clean_up(&gone).await;
                n += 1;
            }
        }
        Ok(n)
    }
}
