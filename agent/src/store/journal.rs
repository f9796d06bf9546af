//! The journal of a transfer: what is being fetched, and how far it was synced.
//!
//! **What.** A text file beside the staging file. Its first line is the content's facts, each further line a checkpoint;
//! every line ends in 16 hex digits of BLAKE3 over what stands before.
//! **Why only a hint.** After a restart every byte in the staging file is hashed against the manifest; the journal
//! restores the counters that are reported, and shows a disk that lost what it had acknowledged.
//! **Invariants.** I5: a checkpoint is appended only after the data it counts was synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::ContentSpec;
use super::error::StoreError;
use super::layout::{STAGING_MODE, sync_dir};

/// A journal is rewritten with its last checkpoint alone when it grows past this.
const JOURNAL_BYTES_MAX: u64 = 64 * 1024;
/// What is read of a journal at most: protects recovery from a file that is not ours.
const READ_BYTES_MAX: u64 = 1024 * 1024;

/// First line.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// What is fetched.
    #[serde(flatten)]
    pub(crate) spec: ContentSpec,
    /// When the transfer was begun for the first time, milliseconds since the epoch.
    pub(crate) begun_unix_ms: u64,
}

/// How far a transfer was when its data was last synced.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    /// Raw bytes of verified chunks on disk.
    pub(crate) done_bytes: u64,
    /// Stored bytes that came over the network.
    pub(crate) moved_bytes: u64,
    /// Raw bytes taken from other contents.
    pub(crate) reused_bytes: u64,
}

/// A journal that is open for appending.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    header: Header,
    bytes: u64,
}

impl Journal {
    /// Starts a journal; it is durable on return.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(crate) fn create(path: &Path, header: Header, last: Option<Checkpoint>) -> Result<Self, StoreError> {
        let mut text = line(&header);
        if let Some(last) = last {
            text.push_str(&line(&last));
        }
        let new = path.with_extension("journal-new");
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(STAGING_MODE).open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            Ok(file)
        };
        let file = write().map_err(StoreError::io("write", path))?;
        path.parent().map_or(Ok(()), sync_dir)?;
        Ok(Self { path: path.to_owned(), file, header, bytes: text.len() as u64 })
    }

    /// Appends a checkpoint. The caller has synced the data that it counts.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(crate) fn append(&mut self, checkpoint: Checkpoint) -> Result<(), StoreError> {
        if self.bytes > JOURNAL_BYTES_MAX {
            *self = Self::create(&self.path, self.header, Some(checkpoint))?;
            return Ok(());
        }
        let text = line(&checkpoint);
        let mut write = || {
            self.file.write_all(text.as_bytes())?;
            self.file.sync_data()
        };
        write().map_err(StoreError::io("write", &self.path))?;
        self.bytes += text.len() as u64;
        Ok(())
    }
}

/// The longest valid prefix of a journal, or `None` if not even its header is whole.
///
/// # Errors
/// [`StoreError::Io`] if the file exists and cannot be read.
pub(crate) fn read(path: &Path) -> Result<Option<(Header, Checkpoint)>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::Io { what: "open", path: path.to_owned(), source: error }),
    };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, READ_BYTES_MAX), &mut bytes)
        .map_err(StoreError::io("read", path))?;
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let Some(header) = lines.next().and_then(parse::<Header>) else { return Ok(None) };
    let last = lines.map_while(parse::<Checkpoint>).last().unwrap_or_default();
    Ok(Some((header, last)))
}

fn line<T: Serialize>(value: &T) -> String {
    let text = serde_json::to_string(value).expect("plain numbers and ids always have a JSON form");
    let sum = checksum(text.as_bytes());
    format!("{text}\t{sum}\n")
}

fn parse<T: for<'de> Deserialize<'de>>(line: &[u8]) -> Option<T> {
    let line = str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (text, sum) = line.rsplit_once('\t')?;
    (sum == checksum(text.as_bytes())).then(|| serde_json::from_str(text).ok())?
}

/// 16 hex digits of BLAKE3: tells a torn or flipped line from a whole one.
pub(crate) fn checksum(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use hearth_protocol::digest::ContentId;
    use hearth_protocol::words::ContentKind;

    use super::*;

    fn header() -> Header {
        let content = ContentId::of(b"x");
        let spec = ContentSpec { content, kind: ContentKind::Disk, raw_bytes: 10, data_bytes: 5 };
        Header { spec, begun_unix_ms: 7 }
    }

    fn checkpoint(done_bytes: u64) -> Checkpoint {
        Checkpoint { done_bytes, moved_bytes: 1, reused_bytes: 2 }
    }

    #[test]
    fn the_longest_valid_prefix_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        assert_eq!(read(&path).unwrap(), None);
        let mut journal = Journal::create(&path, header(), None).unwrap();
        journal.append(checkpoint(1)).unwrap();
        journal.append(checkpoint(2)).unwrap();
        let whole = fs::read(&path).unwrap();
        assert_eq!(read(&path).unwrap(), Some((header(), checkpoint(2))));
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let found = read(&path).unwrap();
            assert!(found.is_none_or(|(h, c)| h == header() && c.done_bytes <= 2), "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&path, &flipped).unwrap();
            let found = read(&path).unwrap();
            let known = [Checkpoint::default(), checkpoint(1), checkpoint(2)];
            assert!(found.is_none_or(|(h, c)| h == header() && known.contains(&c)), "flip at {at}");
        }
    }

    #[test]
    fn a_long_journal_is_rewritten_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let mut journal = Journal::create(&path, header(), None).unwrap();
        journal.bytes = JOURNAL_BYTES_MAX + 1;
        journal.append(checkpoint(9)).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < 1000);
        assert_eq!(read(&path).unwrap(), Some((header(), checkpoint(9))));
    }
}
