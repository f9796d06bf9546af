//! Disk space that imports have been promised.
//!
//! **What.** [`Space::reserve`] compares what an import needs with what the file system has left after everybody else's
//! promises; the promise ends when its value is dropped.
//!
//! **Why.** Two imports that each fit alone would fill the disk together, and a full disk takes the catalog down too.
//!
//! **Invariants.** Promises never add up to more than was free when the last one was made, less the floor. What is
//! already written counts twice, so the error is on the safe side.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::statvfs::statvfs;

/// Never promised: room for the database and the log of a controller whose disk is otherwise full.
pub const FLOOR_BYTES: u64 = 256 << 20;

/// Not enough room.
#[derive(Debug, thiserror::Error)]
pub enum SpaceError {
    /// See the text.
    #[error(
        "not enough disk space: {needed_bytes} bytes are needed in {path}, {free_bytes} are free after {promised_bytes} \
         promised to other imports and {FLOOR_BYTES} kept for the catalog; delete images or enlarge the disk"
    )]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// What was asked for.
        needed_bytes: u64,
        /// What could be promised.
        free_bytes: u64,
        /// What others hold.
        promised_bytes: u64,
    },
    /// The file system did not answer.
    #[error("cannot ask for the free space of {path}")]
    Unknown {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: nix::Error,
    },
}

/// The file system of one folder.
#[derive(Clone, Debug)]
pub struct Space {
    path: PathBuf,
    promised_bytes: Arc<Mutex<u64>>,
}

/// A promise; kept until dropped.
#[derive(Debug)]
pub struct Reservation {
    bytes: u64,
    promised_bytes: Arc<Mutex<u64>>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        *self.promised_bytes.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
    }
}

impl Space {
    /// Watches the file system that holds `path`.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), promised_bytes: Arc::default() }
    }

    /// Bytes that are free now, promised or not; 0 if the file system does not answer. For error texts.
    #[must_use]
    pub fn left_bytes(&self) -> u64 {
        left_bytes(&self.path)
    }

    /// Promises `needed_bytes`.
    ///
    /// # Errors
    /// [`SpaceError::NoSpace`] with the figures.
    pub fn reserve(&self, needed_bytes: u64) -> Result<Reservation, SpaceError> {
        let mut promised = self.promised_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let available_bytes = available_bytes(&self.path)
            .map_err(|source| SpaceError::Unknown { path: self.path.clone(), source })?;
        let free_bytes = available_bytes.saturating_sub(*promised).saturating_sub(FLOOR_BYTES);
        if needed_bytes > free_bytes {
            let (path, promised_bytes) = (self.path.clone(), *promised);
            return Err(SpaceError::NoSpace { path, needed_bytes, free_bytes, promised_bytes });
        }
        *promised += needed_bytes;
        Ok(Reservation { bytes: needed_bytes, promised_bytes: Arc::clone(&self.promised_bytes) })
    }
}

/// Bytes that are free on the file system of `path`; 0 if it does not answer.
pub(super) fn left_bytes(path: &Path) -> u64 {
    available_bytes(path).unwrap_or(0)
}

fn available_bytes(path: &Path) -> Result<u64, nix::Error> {
    statvfs(path).map(|stat| stat.blocks_available().saturating_mul(stat.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_add_up_and_end() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::new(folder.path());
        let Err(SpaceError::NoSpace { free_bytes, .. }) = space.reserve(u64::MAX / 2) else {
            panic!("too generous")
        };
        let half = free_bytes / 10 * 6; // other tests write to the same disk meanwhile
        let first = space.reserve(half).unwrap();
        let second = space.reserve(half).unwrap_err().to_string();
        assert!(second.contains("not enough disk space") && second.contains(&half.to_string()), "{second}");
        drop(first);
        space.reserve(half).unwrap();
    }
}
