//! The relay spool: chunks as they came over the wire, kept for a while to be passed on without packing them again.
//!
//! **What.** A file `staging/<content>.z` to which packed chunks are appended, and an index in memory.
//! **Why.** The file of a content holds raw bytes. Sent on raw, a Debian image would move 2.85 times its packed size over
//! every link; packing it again costs more CPU than all the rest.
//! **Why the file has no name.** It is worth nothing after a restart. A file without a name is gone with its last user,
//! however that ended.
//!
//! **Invariants.** Its bytes count as used bytes of the cache. Room for a content is more than a spool: under pressure spools
//! go first. A chunk is given out only if its bytes still have the hash that they were put in with.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use hearth_protocol::digest::ContentId;

use super::error::StoreError;
use super::layout::{STAGING_MODE, remove_if_there};
use super::locked;
use super::state::{State, Store};

/// Bytes between two looks at the free space.
const LOOK_EVERY_BYTES: u64 = 16 << 20;

#[derive(Clone, Copy, Debug)]
struct Packed {
    offset: u64,
    len: u32,
    hash: [u8; 16],
}

/// See the module.
#[derive(Debug)]
pub struct Spool {
    store: Store,
    file: File,
    bytes: AtomicU64,
    /// Nothing is put in any more: a write failed, or the room is needed.
    is_closed: AtomicBool,
    index: Mutex<HashMap<u32, Packed>>,
}

impl Store {
    /// An empty spool for a content.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn spool(&self, content: ContentId) -> Result<Arc<Spool>, StoreError> {
        let path = self.inner.layout.staging_dir().join(format!("{content}.z"));
        remove_if_there(&path)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(STAGING_MODE);
        let file = options.open(&path).map_err(StoreError::io("create", &path))?;
        remove_if_there(&path)?;
        let spool = Arc::new(Spool {
            store: self.clone(),
            file,
            bytes: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
            index: Mutex::default(),
        });
        locked(&self.inner.state).spools.push(Arc::downgrade(&spool));
        Ok(spool)
    }
}

impl Spool {
    /// Puts a packed chunk in, if there is room. Never fails: without it the chunk is sent raw.
    pub fn put(&self, chunk: u32, packed: &[u8]) {
        if self.is_closed.load(Ordering::Relaxed) {
            return;
        }
        let len = packed.len() as u64;
        let offset = self.bytes.fetch_add(len, Ordering::Relaxed);
        let is_time = offset / LOOK_EVERY_BYTES != (offset + len) / LOOK_EVERY_BYTES || offset == 0;
        if is_time && !self.store.has_room_for_spools() {
            tracing::info!("no room to keep packed chunks: they are passed on raw");
            return self.close();
        }
        if let Err(error) = self.file.write_all_at(packed, offset) {
            tracing::warn!(%error, "packed chunks cannot be kept: they are passed on raw");
            return self.close();
        }
        let packed = Packed { offset, len: u32::try_from(len).unwrap_or(u32::MAX), hash: short(packed) };
        locked(&self.index).insert(chunk, packed);
    }

    /// A packed chunk, if it is here and whole. Reads from the file.
    #[must_use]
    pub fn get(&self, chunk: u32) -> Option<Vec<u8>> {
        let Packed { offset, len, hash } = *locked(&self.index).get(&chunk)?;
        let mut bytes = vec![0; len as usize];
        let is_whole = self.file.read_exact_at(&mut bytes, offset).is_ok() && short(&bytes) == hash;
        if !is_whole {
            locked(&self.index).remove(&chunk);
        }
        is_whole.then_some(bytes)
    }

    /// Bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Gives the room back.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        locked(&self.index).clear();
        if let Err(error) = self.file.set_len(0) {
            tracing::debug!(%error, "a spool keeps its room until it is closed");
        }
        self.bytes.store(0, Ordering::Relaxed);
    }
}

fn short(bytes: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    short
}

impl State {
    /// Bytes of all spools.
    pub(super) fn spool_bytes(&self) -> u64 {
        self.spools.iter().filter_map(Weak::upgrade).map(|spool| spool.bytes()).sum()
    }

    /// Closes all spools; whether that freed anything.
    pub(super) fn close_spools(&mut self) -> bool {
        let freed = self.spool_bytes() > 0;
        self.spools.drain(..).filter_map(|spool| spool.upgrade()).for_each(|spool| spool.close());
        freed
    }
}

impl Store {
    fn has_room_for_spools(&self) -> bool {
        let mut state = locked(&self.inner.state);
        state.spools.retain(|spool| spool.strong_count() > 0);
        self.usage(&state).is_ok_and(|usage| usage.room_bytes() > LOOK_EVERY_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreConfig;

    #[test]
    fn a_spool_gives_back_what_was_put_in_until_its_room_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&StoreConfig::new(dir.path(), 1 << 30)).unwrap();
        let spool = store.spool(ContentId::of(b"c")).unwrap();
        let used = || store.stats().unwrap().used_bytes;
        let before = used();
        spool.put(7, b"seven");
        spool.put(9, b"nine");
        assert_eq!((spool.get(7).as_deref(), spool.get(8), used()), (Some(&b"seven"[..]), None, before + 9));
        assert_eq!(std::fs::read_dir(dir.path().join("staging")).unwrap().count(), 0, "it has no name");
        spool.file.write_all_at(b"S", 0).unwrap();
        assert_eq!(spool.get(7), None, "it is not what was put in");
        assert!(locked(&store.inner.state).close_spools());
        spool.put(1, b"one");
        assert_eq!((spool.get(9), spool.get(1), used()), (None, None, before));
    }
}
