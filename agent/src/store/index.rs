//! The index of finished objects: a sled database that can be lost at any time.
//!
//! **What.** Per content one small row: which inode was hashed when, and the counters that are reported. A row that fits
//! the file on disk saves hashing it again after a restart.
//! **Why sled, and why distrust it.** Opening takes milliseconds at any number of rows. But sled 0.34 does not sync what
//! it flushes (measured), can refuse or panic on damage, and can lose rows without a word: so the file is synced here, any
//! open error moves the folder aside, each row carries its own checksum, and a row is believed only if inode, size and
//! modification time of the file agree.
//!
//! **Invariants.** I3: a row is written only after the object was hashed from disk and its name is durable. Losing the
//! index never loses an object.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use hearth_protocol::digest::ContentId;
use serde::{Deserialize, Serialize};

use super::config::ContentSpec;
use super::error::StoreError;
use super::journal::checksum;
use super::locked;

/// Memory that sled may use for pages: rows are small and few.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;
/// sled's own flush interval; the same thread collects its garbage, so it may not be off (dependencies: measured).
const FLUSH_EVERY_MS: u64 = 500;
/// Largest row: larger ones would go to files that sled never syncs.
const ROW_BYTES_MAX: usize = 4096;
/// Folders of broken indexes that are kept for a look; older ones are deleted.
const BROKEN_KEPT: usize = 2;

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// Inode number.
    pub(crate) inode: u64,
    /// Size in bytes.
    pub(crate) size_bytes: u64,
    /// Modification time, seconds.
    pub(crate) mtime_s: i64,
    /// Modification time, nanoseconds.
    pub(crate) mtime_ns: i64,
}

impl Stamp {
    pub(crate) fn of(meta: &fs::Metadata) -> Self {
        Self {
            inode: meta.ino(),
            size_bytes: meta.size(),
            mtime_s: meta.mtime(),
            mtime_ns: meta.mtime_nsec(),
        }
    }
}

/// One row.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// What it is about.
    #[serde(flatten)]
    pub(crate) spec: ContentSpec,
    /// The file that was hashed.
    pub(crate) stamp: Stamp,
    /// Stored bytes that came over the network.
    pub(crate) moved_bytes: u64,
    /// Raw bytes taken from other contents.
    pub(crate) reused_bytes: u64,
    /// When every chunk was last hashed from disk, milliseconds since the epoch.
    pub(crate) verified_unix_ms: u64,
    /// Last use by a consumer, milliseconds since the epoch.
    pub(crate) last_used_unix_ms: u64,
}

/// The open index.
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    db: sled::Db,
    /// sled's log file, for the sync that sled leaves out.
    log: File,
}

impl Index {
    /// Opens the index and reads its rows; what cannot be opened or read is moved aside and begun anew.
    /// The text says why, if that happened.
    ///
    /// # Errors
    /// [`StoreError::Index`] if not even an empty index can be opened.
    pub(crate) fn open(path: &Path) -> Result<(Self, Vec<Row>, Option<String>), StoreError> {
        let fresh = !path.exists();
        let (open, rows, why) = match open_and_read(path) {
            Ok((open, rows)) => (open, rows, None),
            Err(text) => {
                move_aside(path)?;
                let (open, _) =
                    open_and_read(path).map_err(|text| StoreError::Index { path: path.to_owned(), text })?;
                (open, Vec::new(), Some(text).filter(|_| !fresh))
            }
        };
        Ok((Self { path: path.to_owned(), open: Mutex::new(Some(open)) }, rows, why))
    }

    /// Writes rows and makes them durable.
    ///
    /// # Errors
    /// The text of what failed; the caller rebuilds the index then.
    pub(crate) fn put(&self, rows: &[Row]) -> Result<(), String> {
        self.with(|open| {
            for row in rows {
                let value = encode(row)?;
                open.db.insert(row.spec.content.as_bytes(), value).map_err(|error| error.to_string())?;
            }
            open.sync()
        })
    }

    /// Removes a row durably. A row that is not there is fine.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub(crate) fn remove(&self, content: ContentId) -> Result<(), String> {
        self.with(|open| {
            open.db.remove(content.as_bytes()).map_err(|error| error.to_string())?;
            open.sync()
        })
    }

    /// Every row that is whole.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub(crate) fn rows(&self) -> Result<Vec<Row>, String> {
        self.with(|open| read_rows(&open.db))
    }

    /// Begins the index anew with these rows.
    ///
    /// # Errors
    /// [`StoreError::Index`] if the new one fails as well.
    pub(crate) fn rebuild(&self, rows: &[Row], why: &str) -> Result<(), StoreError> {
        tracing::warn!(path = %self.path.display(), why, rows = rows.len(), "index is built anew");
        let failed = |text| StoreError::Index { path: self.path.clone(), text };
        // The old database must let go of its files and its lock before the folder is moved.
        let old = locked(&self.open).take();
        let closed = catch_unwind(AssertUnwindSafe(move || drop(old)));
        if closed.is_err() {
            tracing::warn!("the broken index panicked when it was closed");
        }
        move_aside(&self.path)?;
        let (open, _) = open_and_read(&self.path).map_err(failed)?;
        *locked(&self.open) = Some(open);
        self.put(rows).map_err(failed)
    }

    fn with<T>(&self, work: impl FnOnce(&Open) -> Result<T, String>) -> Result<T, String> {
        let open = locked(&self.open);
        let open = open.as_ref().ok_or_else(|| "the index is closed".to_owned())?;
        guarded(|| work(open))
    }
}

impl Open {
    /// sled writes its buffer, then we sync the file: `flush` alone does not (measured).
    fn sync(&self) -> Result<(), String> {
        self.db.flush().map_err(|error| error.to_string())?;
        self.log.sync_data().map_err(|error| error.to_string())
    }
}

/// Runs sled code; a panic in it becomes an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("sled panicked".to_owned()))
}

fn open_and_read(path: &Path) -> Result<(Open, Vec<Row>), String> {
    guarded(|| {
        let config =
            sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(Some(FLUSH_EVERY_MS));
        let db = config.open().map_err(|error| error.to_string())?;
        let log = OpenOptions::new().read(true).open(path.join("db")).map_err(|error| error.to_string())?;
        let rows = read_rows(&db)?;
        Ok((Open { db, log }, rows))
    })
}

fn read_rows(db: &sled::Db) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    for item in db.iter() {
        let (key, value) = item.map_err(|error| error.to_string())?;
        // A row that is not whole is no row: its object is hashed again.
        match decode(&value).filter(|row| row.spec.content.as_bytes()[..] == key[..]) {
            Some(row) => rows.push(row),
            None => tracing::warn!("a damaged row of the index is left out"),
        }
    }
    Ok(rows)
}

fn encode(row: &Row) -> Result<Vec<u8>, String> {
    let mut text = serde_json::to_vec(row).map_err(|error| error.to_string())?;
    let sum = checksum(&text);
    text.extend_from_slice(sum.as_bytes());
    if text.len() > ROW_BYTES_MAX { Err("row too large".to_owned()) } else { Ok(text) }
}

fn decode(value: &[u8]) -> Option<Row> {
    let (text, sum) = value.split_at_checked(value.len().checked_sub(16)?)?;
    (checksum(text).as_bytes() == sum).then(|| serde_json::from_slice(text).ok())?
}

/// Gives a broken index another name, and deletes all but the youngest of such folders.
fn move_aside(path: &Path) -> Result<(), StoreError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let mut broken: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(parent).map_err(StoreError::io("list", parent))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("db.broken-") {
            broken.push(entry.path());
        }
    }
    broken.sort();
    for old in broken.iter().take(broken.len().saturating_sub(BROKEN_KEPT - 1)) {
        fs::remove_dir_all(old).map_err(StoreError::io("delete", old))?;
    }
    if path.exists() {
        let to = parent.join(format!("db.broken-{:020}", crate::clock::unix_us()));
        fs::rename(path, &to).map_err(StoreError::io("rename", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hearth_protocol::words::ContentKind;

    use super::*;

    fn row(n: u8) -> Row {
        let content = ContentId::from_bytes([n; 32]);
        let spec = ContentSpec { content, kind: ContentKind::Disk, raw_bytes: 10, data_bytes: 5 };
        let stamp = Stamp { inode: 1, size_bytes: 10, mtime_s: 3, mtime_ns: 4 };
        Row { spec, stamp, moved_bytes: 1, reused_bytes: 2, verified_unix_ms: 3, last_used_unix_ms: 4 }
    }

    #[test]
    fn rows_survive_and_a_removed_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let (index, rows, why) = Index::open(&path).unwrap();
        assert_eq!((rows.len(), why), (0, None));
        index.put(&[row(1), row(2)]).unwrap();
        index.remove(row(1).spec.content).unwrap();
        drop(index);
        let (_, rows, why) = Index::open(&path).unwrap();
        assert_eq!((rows, why), (vec![row(2)], None));
    }

    #[test]
    fn a_damaged_database_opens_empty_or_with_true_rows_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let (index, ..) = Index::open(&path).unwrap();
        index.put(&[row(1), row(2), row(3)]).unwrap();
        drop(index);
        let log = path.join("db");
        let whole = fs::read(&log).unwrap();
        let used = whole.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        for step in 0..24 {
            let mut flipped = whole.clone();
            flipped[used * step / 24] ^= 0x55;
            fs::write(&log, &flipped).unwrap();
            let (index, rows, _) = Index::open(&path).unwrap();
            for found in rows {
                assert_eq!(found, row(found.spec.content.as_bytes()[0]), "flip at step {step}");
            }
            index.put(&[row(9)]).unwrap();
            drop(index);
            fs::remove_dir_all(&path).unwrap();
            fs::create_dir(&path).unwrap();
        }
    }

    #[test]
    fn a_rebuilt_index_has_exactly_the_given_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let (index, ..) = Index::open(&path).unwrap();
        index.put(&[row(1), row(2)]).unwrap();
        index.rebuild(&[row(2)], "test").unwrap();
        drop(index);
        assert_eq!(Index::open(&path).unwrap().1, vec![row(2)]);
    }
}
