//! Leases: consumers that use an entry.
//!
//! **What.** A lease is one file in `leases/`, written and synced before it is acknowledged, deleted on release.
//! **Why files and not the index.** A lease protects a running or stopped VM; it must outlive a lost index. A stopped VM
//! holds no descriptor, so nothing else on the host would show that it needs the file.
//! **Invariants.** I8: an acknowledged lease survives any crash. A lease file that cannot be read still protects: its
//! content is unknown, so nothing is removed until an operator looks.

use std::fs;
use std::path::PathBuf;

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::LeaseId;
use hearth_protocol::message::control::Lease;
use hearth_protocol::words::ConsumerKind;
use rand::RngExt as _;

use super::error::StoreError;
use super::failpoint;
use super::layout::{Layout, remove_if_there, sync_dir, write_durably};
use super::locked;
use super::state::Store;
use crate::clock;
use crate::logic::entry::Phase;

/// Longest name of a consumer, bytes: it is shown in lists and sent to the controller.
pub const CONSUMER_BYTES_MAX: usize = 256;
/// Largest lease file that is read.
const LEASE_FILE_BYTES_MAX: u64 = 4096;

/// A lease that was given.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaseGrant {
    /// The lease.
    pub lease: Lease,
    /// Path for the consumer; `None` while the content is not active yet.
    pub path: Option<PathBuf>,
}

impl Store {
    /// Takes a lease. Asking again for the same content, kind and consumer returns the lease that exists.
    ///
    /// With `wait_ok` a content that is still on its way can be leased; the path comes when it is active.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::State`] if it is not active and `wait_ok` is false (or it is being removed
    /// or damaged), [`StoreError::ConsumerName`], [`StoreError::Io`].
    pub fn lease(
        &self,
        content: ContentId,
        kind: ConsumerKind,
        consumer: &str,
        wait_ok: bool,
    ) -> Result<LeaseGrant, StoreError> {
        let length = consumer.len();
        if length == 0 || length > CONSUMER_BYTES_MAX || consumer.chars().any(char::is_control) {
            return Err(StoreError::ConsumerName { length, max: CONSUMER_BYTES_MAX });
        }
        self.doubt(content);
        let mut state = locked(&self.inner.state);
        let entry = state.entry(content)?;
        let usable = match entry.phase {
            Phase::Active => true,
            Phase::Queued | Phase::Caching | Phase::Sealing | Phase::Unverified | Phase::Failed { .. } => {
                wait_ok
            }
            // An explicit removal that was refused leaves the bytes usable by those who have them, but not for new ones.
            Phase::Damaged { .. } | Phase::Deleting | Phase::DeleteFailed { .. } => false,
        };
        if !usable {
            return Err(StoreError::State { content, state: entry.phase.name(), wanted: "active" });
        }
        let kind_of_file = entry.spec.kind;
        let is_active = entry.phase.is_active();
        let now = clock::unix_ms();
        let same =
            |lease: &&Lease| lease.content == content && lease.kind == kind && lease.consumer == consumer;
        let lease = match state.leases.values().find(same) {
            Some(lease) => lease.clone(),
            None => {
                let lease = LeaseId::from_bytes(new_id(now));
                let lease = Lease { lease, content, kind, consumer: consumer.to_owned(), since_unix_ms: now };
                // Under the lock: an eviction that runs now has either seen the lease or not begun.
                store_lease(&self.inner.layout, &lease)?;
                state.leases.insert(lease.lease, lease.clone());
                lease
            }
        };
        if let Some(entry) = state.entries.get_mut(&content) {
            entry.last_used_unix_ms = now;
            entry.wanted = true;
        }
        drop(state);
        self.bump();
        let path = is_active.then(|| self.inner.layout.consumer_path(content, kind_of_file));
        Ok(LeaseGrant { lease, path })
    }

    /// Ends a lease. Durable on return; a lease that was released before is [`StoreError::NoLease`].
    ///
    /// # Errors
    /// [`StoreError::NoLease`] or [`StoreError::Io`].
    pub fn release(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut state = locked(&self.inner.state);
        let Some(content) = state.leases.get(&lease).map(|lease| lease.content) else {
            return Err(StoreError::NoLease);
        };
        remove_if_there(&self.inner.layout.lease(lease))?;
        sync_dir(&self.inner.layout.leases_dir())?;
        state.leases.remove(&lease);
        if let Some(entry) = state.entries.get_mut(&content) {
            entry.last_used_unix_ms = clock::unix_ms();
        }
        drop(state);
        self.bump();
        Ok(())
    }

    /// All leases, in order of their ids.
    #[must_use]
    pub fn leases(&self) -> Vec<Lease> {
        locked(&self.inner.state).leases.values().cloned().collect()
    }
}

fn store_lease(layout: &Layout, lease: &Lease) -> Result<(), StoreError> {
    let path = layout.lease(lease.lease);
    failpoint::hit("lease.before-write").map_err(StoreError::io("write", &path))?;
    let text = serde_json::to_vec(lease).expect("ids, a word and a name always have a JSON form");
    write_durably(&path, &text)?;
    failpoint::hit("lease.after-write").map_err(StoreError::io("write", &path))
}

/// UUID version 7: sorts by time, 74 random bits.
fn new_id(now_unix_ms: u64) -> [u8; 16] {
    let mut bytes: [u8; 16] = rand::rng().random();
    bytes[..6].copy_from_slice(&now_unix_ms.to_be_bytes()[2..]);
    bytes[6] = bytes[6] & 0x0f | 0x70;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}

/// Reads all leases. A file that is not a lease is reported by name and left alone.
///
/// # Errors
/// [`StoreError::Io`] if the folder cannot be listed.
pub(super) fn read_all(layout: &Layout) -> Result<(Vec<Lease>, Vec<PathBuf>), StoreError> {
    let dir = layout.leases_dir();
    let (mut leases, mut unreadable) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
        let path = entry.map_err(StoreError::io("list", &dir))?.path();
        if path.extension().is_some_and(|ending| ending == "new") {
            // Written and not renamed: never acknowledged.
            remove_if_there(&path)?;
            continue;
        }
        match read_one(&path) {
            Some(lease) if layout.lease(lease.lease) == path => leases.push(lease),
            _ => unreadable.push(path),
        }
    }
    Ok((leases, unreadable))
}

fn read_one(path: &std::path::Path) -> Option<Lease> {
    let size = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?.len();
    (size <= LEASE_FILE_BYTES_MAX)
        .then(|| fs::read(path).ok())?
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
}
