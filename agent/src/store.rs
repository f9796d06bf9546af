//! The cache on disk: one immutable, verified file per content.
//!
//! **What.** [`Store`] opens a folder, mends what a crash left, and gives out entries, leases and readers; [`Staging`] is one
//! content being written. Everything is synchronous: async callers use `spawn_blocking`.
//!
//! **Why files are the truth.** An object and its manifest prove themselves by hashing; the sled index only saves that work
//! after a clean restart. So a lost or lying index costs time and never bytes.
//!
//! ```text
//! begin ─▶ staging/<id>.raw ─▶ fsync ─▶ hash every chunk from disk ─▶ 0440 ─▶ meta/ ─▶ objects/ ─▶ folder fsync ─▶ index ─▶ active
//! ```
//! **Invariants** (each has a test of its name in `tests/`):
//! - I1 a path in `objects/` has exactly the bytes its manifest describes. I2 visible implies manifest durable before it.
//! - I3 a believed index row implies I1 for that inode. I4 no byte is written to an inode after it enters `objects/`.
//! - I5 a journal checkpoint implies that its data was synced. I6 no chunk leaves the host unhashed since read from disk.
//! - I7 reserved + used ≤ budget at every step. I8 an acknowledged lease survives any crash.
//! - I9 eviction never takes the last name of an inode with a lease. I11 recovery is idempotent. I12 a crash during
//!   recovery is just another crash. (I10, no file without a plan, is held by the caller of `begin`.)

mod begin;
mod behind;
mod compare;
mod config;
#[cfg(test)]
#[path = "store/tests/content.rs"]
pub(crate) mod content;
mod disk;
mod error;
mod evict;
mod failpoint;
mod finish;
mod hold;
mod index;
mod journal;
mod layout;
mod lease;
mod maintain;
mod manifest_file;
mod objects;
mod passing;
mod prepare;
mod reader;
mod recover;
mod repeat;
mod reuse;
mod scrub;
mod spool;
mod staging;
mod state;
mod sweep;
#[cfg(test)]
mod tests;

pub use config::{
    COMPARE_EVERY, CompareReport, ContentSpec, EntryView, GRACE_DEFAULT, GROUP_DEFAULT, Gone, Holder,
    RecoveryReport, SCRUB_EVERY, STAGING_MAX_AGE, StoreConfig, StoreStats,
};
pub use error::{BeginError, InUse, LeaseHolder, StoreError};
pub use evict::RemoveMode;
pub use finish::Finished;
pub use lease::{CONSUMER_BYTES_MAX, LeaseGrant};
pub use maintain::{MAINTAIN_EVERY, run as maintain};
pub use reader::Reader;
pub use scrub::Scrubbed;
pub use spool::Spool;
pub use staging::Staging;
pub use state::Store;
pub use sweep::{Progress, ProgressStep, no_progress};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks; a panic of another thread while it held the lock does not spread, because every change under a lock of this
/// module is complete or harmless when it is cut short.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
