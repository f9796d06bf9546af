//! Forgets what has ended long enough ago: kept answers, download links, jobs, and notes about what never came to be.
//!
//! **Why in one place.** Rows that only time removes pile up unseen; whoever adds such a table adds it here.
//!
//! **Invariants.** Nothing is forgotten before it has ended. A database that does not answer is asked again.

use std::time::Duration;

use crate::clock;
use crate::db::Db;

/// Time between two purges.
const PURGE_EVERY: Duration = Duration::from_secs(3600);
/// A day in microseconds.
const DAY_US: i64 = 24 * 3600 * 1_000_000;
/// How long a link that ended still says that it ended, microseconds.
const ENDED_LINKS_US: i64 = 30 * DAY_US;
/// How long a job that ended can still be looked at, microseconds.
const ENDED_JOBS_US: i64 = 30 * DAY_US;
/// How long an image may take to follow the note about its import, and a copy its passphrase, microseconds.
const UNUSED_NOTES_US: i64 = DAY_US;

/// Purges for ever: at once and then every hour. To be run as a task.
pub async fn run(db: Db) {
    loop {
        purge(&db, clock::unix_us()).await;
        tokio::time::sleep(PURGE_EVERY).await;
    }
}

/// One purge at `now_us`.
pub async fn purge(db: &Db, now_us: i64) {
    let done = [
        ("answers", db.forget_answers(now_us).await),
        ("links", db.forget_links(now_us - ENDED_LINKS_US).await),
        ("jobs", db.forget_jobs(now_us - ENDED_JOBS_US).await),
        ("imports from markets", db.forget_imports(now_us - UNUSED_NOTES_US).await),
        ("passphrases given", db.forget_keys_given(now_us - UNUSED_NOTES_US).await),
    ];
    for (what, result) in done {
        match result {
            Ok(0) => {}
            Ok(n) => tracing::info!(what, n, "forgot what had ended"),
            Err(error) => {
                tracing::warn!(what, error = crate::api::fault::chain(&error), "cannot forget what has ended")
            }
        }
    }
}
