//! The checksums of an uploaded file, counted while it comes.
//!
//! **What.** sha256, sha512, md5 and blake3 of the same bytes, in one pass, on three threads.
//!
//! **Why threads.** md5 and sha512 take more than a second per GiB each; one after the other they would bound every upload.
//! A thread per slow one hides them behind the network. All read the same buffers; nothing is copied for them.
//!
//! **Invariants.** Memory is bounded by [`LAG_BUFFERS`] buffers.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use hearth_protocol::api::image::Checksums;
use md5::Md5;
use sha2::{Digest as _, Sha256, Sha512};

use super::error::{ContentError, on};

/// One read while an existing file is summed.
const READ_BYTES: u64 = 1 << 20;
/// Buffers a slow checksum may lag behind.
pub(super) const LAG_BUFFERS: usize = 2;

/// Size and checksums of an original.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sums {
    /// Length in bytes.
    pub size_bytes: u64,
    /// Lower-case hex.
    pub sha256: String,
    /// Lower-case hex.
    pub sha512: String,
    /// Lower-case hex.
    pub md5: String,
    /// Lower-case hex.
    pub blake3: String,
}

impl From<Sums> for Checksums {
    fn from(sums: Sums) -> Self {
        let Sums { size_bytes: _, sha256, sha512, md5, blake3 } = sums;
        Self { sha256: Some(sha256), sha512: Some(sha512), md5: Some(md5), blake3: Some(blake3) }
    }
}

/// Counts all four checksums on three threads; they end when it is dropped.
#[derive(Debug)]
pub(super) struct Summing {
    feeds: Vec<SyncSender<Bytes>>,
    workers: Vec<JoinHandle<Vec<String>>>,
    size_bytes: u64,
}

impl Summing {
    pub(super) fn new() -> Self {
        let mut summing = Self { feeds: Vec::new(), workers: Vec::new(), size_bytes: 0 };
        summing.worker(|feed| {
            let mut hash = Sha512::new();
            feed.into_iter().for_each(|bytes| hash.update(&bytes));
            vec![hex(&hash.finalize())]
        });
        summing.worker(|feed| {
            let mut hash = Md5::new();
            feed.into_iter().for_each(|bytes| hash.update(&bytes));
            vec![hex(&hash.finalize())]
        });
        summing.worker(|feed| {
            let (mut sha256, mut blake3) = (Sha256::new(), blake3::Hasher::new());
            for bytes in feed {
                sha256.update(&bytes);
                blake3.update(&bytes);
            }
            vec![hex(&sha256.finalize()), blake3.finalize().to_hex().to_string()]
        });
        summing
    }

    fn worker(&mut self, work: fn(std::sync::mpsc::Receiver<Bytes>) -> Vec<String>) {
        let (feed, receiver) = sync_channel(LAG_BUFFERS);
        self.feeds.push(feed);
        self.workers.push(std::thread::spawn(move || work(receiver)));
    }

    /// Bytes so far.
    pub(super) const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Takes the next bytes; blocks while a checksum is [`LAG_BUFFERS`] buffers behind.
    pub(super) fn update(&mut self, bytes: &Bytes) {
        self.size_bytes += bytes.len() as u64;
        for feed in &self.feeds {
            // A worker ends only when its feed is dropped.
            feed.send(bytes.clone()).expect("the checksum thread runs as long as its feed");
        }
    }

    /// Waits for all of them.
    pub(super) fn finish(self) -> Sums {
        drop(self.feeds);
        let sums = self.workers.into_iter().flat_map(|worker| worker.join().expect("hashing does not panic"));
        let [sha512, md5, sha256, blake3] =
            sums.collect::<Vec<_>>().try_into().expect("three workers give four checksums");
        Sums { size_bytes: self.size_bytes, sha256, sha512, md5, blake3 }
    }
}

/// Reads a whole file and counts its checksums.
///
/// # Errors
/// [`ContentError::File`], [`ContentError::Cancelled`].
pub(super) fn sum_file(path: &Path, cancel: &AtomicBool) -> Result<Sums, ContentError> {
    let mut file = File::open(path).map_err(on("open", path))?;
    let mut summing = Summing::new();
    while !cancel.load(Ordering::Relaxed) {
        let mut bytes = Vec::with_capacity(usize::try_from(READ_BYTES).unwrap_or(0));
        let n = file.by_ref().take(READ_BYTES).read_to_end(&mut bytes).map_err(on("read", path))?;
        if n == 0 {
            return Ok(summing.finish());
        }
        summing.update(&bytes.into());
    }
    Err(ContentError::Cancelled)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every character");
        text
    })
}
