//! Forgets what has ended long enough ago: kept answers, and download links.
//!
//! **Why in one place.** Rows that only time removes pile up unseen; whoever adds such a table adds it here.
//!
//! **Invariants.** Nothing is forgotten before it has ended. A database that does not answer is asked again.

use std::time::Duration;

use crate::clock;
use crate::db::Db;

/// Time between two purges.
const PURGE_EVERY: Duration = Duration::from_secs(3600);
/// How long a link that ended still says that it ended, microseconds: 30 days.
const ENDED_LINKS_US: i64 = 30 * 24 * 3600 * 1_000_000;

/// Purges for ever: at once and then every hour. To be run as a task.
pub async fn run(db: Db) {
    loop {
        purge(&db, clock::unix_us()).await;
        tokio::time::sleep(PURGE_EVERY).await;
    }
}

/// One purge at `now_us`.
pub async fn purge(db: &Db, now_us: i64) {
    let (answers, links) = (db.forget_answers(now_us).await, db.forget_links(now_us - ENDED_LINKS_US).await);
    for (what, result) in [("answers", answers), ("links", links)] {
        match result {
            Ok(0) => {}
            Ok(n) => tracing::info!(what, n, "forgot what had ended"),
            Err(error) => {
                tracing::warn!(what, error = crate::api::fault::chain(&error), "cannot forget what has ended")
            }
        }
    }
}
