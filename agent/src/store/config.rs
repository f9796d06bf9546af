//! What a store must be told, and what it tells back: settings, content facts, entry views.
//!
//! **What.** Plain values that cross the store's border.
//! **Why apart.** The transfer and reporting code needs them and nothing of the store's inside.
//! **Invariants.** Sizes are bytes, times are milliseconds since the epoch, as the field names say.

use std::path::PathBuf;
use std::time::Duration;

use hearth_protocol::digest::ContentId;
use hearth_protocol::message::control::{Hold, ObservedEntry, ObservedState};
use hearth_protocol::words::{ContentKind, EntryStatus, GoneReason};
use serde::{Deserialize, Serialize};

use crate::logic::evict::HeldBy;

/// Group that hypervisors run under on most systems; files are readable for it.
pub const GROUP_DEFAULT: &str = "kvm";
/// Time between taking a file's name away and freeing its bytes: an operator can still put it back.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(60);
/// A half-fetched content that nobody asked for again is dropped after this long: its bytes are worth less than the space.
pub const STAGING_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A copy is read and hashed again this often; disks lose bytes silently.
pub const SCRUB_EVERY: Duration = Duration::from_secs(30 * 24 * 3600);

/// Index and memory are compared with `objects/` this often: what changes files below a running agent is rare, and the
/// comparison reads names and sizes only.
pub const COMPARE_EVERY: Duration = Duration::from_secs(3600);

/// Settings of a store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Folder of the cache; everything in it belongs to the store.
    pub dir: PathBuf,
    /// Folder under which consumers see `objects/` (the read-only bind mount); `None`: the folder itself.
    pub consumer_dir: Option<PathBuf>,
    /// Bytes that the cache may allocate.
    pub budget_bytes: u64,
    /// Bytes that must stay free on the file system.
    pub floor_bytes: u64,
    /// Group that may read the files; `None`: the process's own.
    pub group: Option<String>,
    /// See [`GRACE_DEFAULT`].
    pub grace: Duration,
    /// See [`STAGING_MAX_AGE`].
    pub staging_max_age: Duration,
    /// See [`SCRUB_EVERY`].
    pub scrub_every: Duration,
    /// See [`COMPARE_EVERY`].
    pub compare_every: Duration,
}

impl StoreConfig {
    /// A store in `dir` with the defaults, no floor and the process's own group.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, budget_bytes: u64) -> Self {
        Self {
            dir: dir.into(),
            consumer_dir: None,
            budget_bytes,
            floor_bytes: 0,
            group: None,
            grace: GRACE_DEFAULT,
            staging_max_age: STAGING_MAX_AGE,
            scrub_every: SCRUB_EVERY,
            compare_every: COMPARE_EVERY,
        }
    }
}

/// Facts of a content that are known before its manifest.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ContentSpec {
    /// The content.
    pub content: ContentId,
    /// What its bytes are.
    pub kind: ContentKind,
    /// Size as a guest sees it, bytes.
    pub raw_bytes: u64,
    /// Bytes of all chunks.
    pub data_bytes: u64,
}

/// One content as the store sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryView {
    /// The content.
    pub content: ContentId,
    /// What its bytes are.
    pub kind: ContentKind,
    /// Size as a guest sees it, bytes.
    pub raw_bytes: u64,
    /// State as it is reported.
    pub state: ObservedState,
    /// Raw bytes of chunks that are there and verified.
    pub done_bytes: u64,
    /// Raw bytes of all chunks.
    pub data_bytes: u64,
    /// Stored bytes that came over the network since the entry was begun.
    pub moved_bytes: u64,
    /// Raw bytes taken from other contents of this cache.
    pub reused_bytes: u64,
    /// Bytes allocated on disk.
    pub allocated_bytes: u64,
    /// Live leases.
    pub leases: u32,
    /// Last use by a consumer, milliseconds since the epoch; 0 if never.
    pub last_used_unix_ms: u64,
    /// How long it is safe from eviction by the controller's word.
    pub hold: Hold,
    /// Whether an operator of this host pinned it.
    pub local_pin: bool,
    /// Path for consumers; `Some` only while the entry is active.
    pub path: Option<PathBuf>,
}

impl EntryView {
    /// The entry as it goes over the wire.
    #[must_use]
    pub fn observed(&self) -> ObservedEntry {
        ObservedEntry {
            content: self.content,
            state: self.state.clone(),
            done_bytes: self.done_bytes,
            data_bytes: self.data_bytes,
            moved_bytes: self.moved_bytes,
            reused_bytes: self.reused_bytes,
            allocated_bytes: self.allocated_bytes,
            leases: self.leases,
            last_used_unix_ms: self.last_used_unix_ms,
        }
    }

    /// Whether consumers may use it.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state == ObservedState::Present(EntryStatus::Active)
    }
}

/// An entry that left the cache.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Gone {
    /// The content.
    pub content: ContentId,
    /// Why it went.
    pub reason: GoneReason,
    /// When, milliseconds since the epoch.
    pub unix_ms: u64,
}

/// What keeps space from being freed: one row of a `no_space` answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    /// The content.
    pub content: ContentId,
    /// Bytes it takes.
    pub allocated_bytes: u64,
    /// Why it stays.
    pub held_by: HeldBy,
}

/// Figures of the cache, for the pulse and for people.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoreStats {
    /// Bytes the cache may allocate.
    pub budget_bytes: u64,
    /// Bytes it has allocated or reserved.
    pub used_bytes: u64,
    /// Free bytes of the file system.
    pub free_bytes: u64,
    /// Bytes that must stay free.
    pub floor_bytes: u64,
    /// Not empty: the cache takes no new content for this reason.
    pub degraded: String,
}

/// What was found when the store was opened.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RecoveryReport {
    /// Objects that are active at once.
    pub active: u32,
    /// Objects that are hashed from disk before they are active again.
    pub unverified: u32,
    /// Half-fetched contents that can go on.
    pub resumable: u32,
    /// Files that were moved to `quarantine/`.
    pub quarantined: u32,
    /// Contents that the index knew and `objects/` does not have.
    pub lost: Vec<ContentId>,
    /// Files whose deletion was finished.
    pub deleted: u32,
    /// Leases that are still there.
    pub leases: u32,
    /// Why the index was built anew, if it was.
    pub index_rebuilt: Option<String>,
    /// Whether the holds were unreadable, so that everything is held for a day.
    pub holds_lost: bool,
}

/// What one comparison with `objects/` found otherwise than the agent left it. All empty: nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CompareReport {
    /// Files that appeared with a manifest; they are hashed before anybody gets them.
    pub adopted: u32,
    /// Files that changed; they are hashed before anybody gets them again.
    pub rechecked: u32,
    /// Things that were moved to `quarantine/`.
    pub quarantined: u32,
    /// Things that do not belong there and that a process has open.
    pub in_use: u32,
    /// Contents whose file is gone.
    pub lost: Vec<ContentId>,
    /// Index rows that were written or removed.
    pub rows_mended: u32,
}
