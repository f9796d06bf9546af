//! Unpacks a file that came compressed: gzip, xz or zstd.
//!
//! **What.** Known by their first bytes; unpacked into staging, where the inspector takes over. The original stays as it came,
//! and so do its checksums.
//!
//! **Why limits on what is not zero.** An empty disk of 100 GB packs into a few KB and is no attack: its zeros become holes.
//! What fills a disk is data, and data does not shrink two hundred times.
//!
//! **Invariants**, each with a test of the same name:
//! 1. `what_was_packed_comes_out_again`
//! 2. `a_truncated_or_damaged_file_is_refused`
//! 3. `a_bomb_fills_no_disk`
//! 4. `a_file_out_of_which_nothing_comes_can_be_stopped`
//! 5. `a_large_file_has_the_time_that_it_takes`
//!
//! Memory is bounded by [`WINDOW_BYTES_MAX`]; a file packed twice is unpacked once, and the inspector refuses the rest.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;

use super::space::{Reservation, Space, SpaceError};
use crate::clock;
use crate::content::data_runs;

/// Largest window of a packer: `xz -9` and `zstd --long` fit.
pub const WINDOW_BYTES_MAX: u32 = 128 << 20;
/// Times that data may shrink.
pub const RATIO_MAX: u64 = 200;
/// Data that small files may unpack to, whatever their ratio.
pub const DATA_BYTES_FREE: u64 = 64 << 20;
/// Time that every file has: a terabyte of zeros takes less.
const TIME_FREE: Duration = Duration::from_secs(2 * 3600);
/// What a file has time for beyond it, read and unpacked together: a tenth of what xz does on one slow core.
const BYTES_PER_S_MIN: u64 = 4 << 20;
/// Room that is set aside at a time.
const ROOM_STEP_BYTES: u64 = 64 << 20;
/// Bytes that are unpacked at once.
const PIECE_BYTES: usize = 1 << 20;

/// How a file is packed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Packing {
    /// RFC 1952.
    Gzip,
    /// The .xz format.
    Xz,
    /// RFC 8878.
    Zstd,
}

impl Packing {
    /// What the first bytes of a file say.
    #[must_use]
    pub fn of(head: &[u8]) -> Option<Self> {
        let starts: [(&[u8], Self); 3] =
            [(b"\x1F\x8B\x08", Self::Gzip), (b"\xFD7zXZ\0", Self::Xz), (b"\x28\xB5\x2F\xFD", Self::Zstd)];
        starts.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, packing)| *packing)
    }

    /// How names of files that are packed so end, with the dot.
    #[must_use]
    pub const fn ending(self) -> &'static str {
        match self {
            Self::Gzip => ".gz",
            Self::Xz => ".xz",
            Self::Zstd => ".zst",
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }
}

/// Why a file cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Its bytes are not what the packer wrote.
    #[error("the {packing} file is damaged, cut short, or needs more than 128 MiB to unpack: {why}")]
    Damaged {
        /// How it is packed.
        packing: &'static str,
        /// What the unpacker says.
        why: String,
    },
    /// More comes out than may.
    #[error(
        "the packed file of {packed_bytes} bytes unpacks to more than {most_bytes} bytes; if it is no bomb, unpack it \
         and import what is inside"
    )]
    Bomb {
        /// Size of the file.
        packed_bytes: u64,
        /// The limit that was passed.
        most_bytes: u64,
    },
    /// It takes too long.
    #[error(
        "unpacking took more than {minutes} minutes; the controller may be busy: try again, or unpack it yourself"
    )]
    Time {
        /// How long it might take.
        minutes: u64,
    },
    /// No room.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// A file could not be handled.
    #[error("cannot {action} {path}")]
    File {
        /// "open", "write".
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller wanted to stop.
    #[error("stopped on request")]
    Cancelled,
}

impl UnpackError {
    /// Whether the same file would fail again.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Bomb { .. })
    }
}

/// One unpacking.
#[derive(Clone, Copy, Debug)]
pub struct Unpacking<'a> {
    /// The packed file.
    pub input: &'a Path,
    /// Where its content goes; made.
    pub output: &'a Path,
    /// Most bytes that may come out, zeros too.
    pub most_bytes: u64,
    /// Where room is set aside.
    pub space: &'a Space,
}

/// How a file is packed, if it is.
///
/// # Errors
/// [`UnpackError::File`].
pub fn packing_of(path: &Path) -> Result<Option<Packing>, UnpackError> {
    let file = File::open(path).map_err(on("open", path))?;
    let mut head = [0; 8];
    let mut n = 0;
    while n < head.len() {
        match file.read_at(&mut head[n..], n as u64).map_err(on("read", path))? {
            0 => break,
            more => n += more,
        }
    }
    Ok(Packing::of(&head[..n]))
}

/// Unpacks; `progress` is told how many bytes of the input were read. Returns the room that the output may take, which is
/// held as long as it is there.
///
/// # Errors
/// [`UnpackError`]; what was written stays for the caller to remove.
pub fn unpack(
    unpacking: &Unpacking<'_>,
    packing: Packing,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<Reservation>, UnpackError> {
    let input = File::open(unpacking.input).map_err(on("open", unpacking.input))?;
    let packed_bytes = input.metadata().map_err(on("open", unpacking.input))?.len();
    let watch = Watch { cancel, begun: clock::monotonic(), read: Cell::new(0), written: Cell::new(0) };
    let counted = BufReader::with_capacity(PIECE_BYTES, Counted { inner: input, watch: &watch });
    let mut reader = reader(counted, packing)?;
    let output = File::create(unpacking.output).map_err(on("write", unpacking.output))?;
    let mut out = Output::new(unpacking, &output, packed_bytes);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        watch.may_go_on()?;
        // Who stopped it inside a decoder is asked again here: decoders put errors of their input into words of their own.
        let n = fill(&mut *reader, &mut piece).map_err(|error| match watch.may_go_on() {
            Err(stopped) => stopped,
            Ok(()) => UnpackError::Damaged { packing: packing.as_str(), why: error.to_string() },
        })?;
        if n == 0 {
            break;
        }
        out.take(&piece[..n])?;
        watch.written.set(out.at);
        progress(watch.read.get(), packed_bytes);
    }
    output.set_len(out.at).map_err(on("write", unpacking.output))?;
    Ok(out.rooms)
}

fn reader<'a>(input: impl BufRead + 'a, packing: Packing) -> Result<Box<dyn Read + 'a>, UnpackError> {
    let damaged =
        |error: io::Error| UnpackError::Damaged { packing: packing.as_str(), why: error.to_string() };
    Ok(match packing {
        Packing::Gzip => Box::new(MultiGzDecoder::new(input)),
        Packing::Xz => Box::new(XzReader::new_mem_limit(input, true, WINDOW_BYTES_MAX >> 10)),
        Packing::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(damaged)?;
            decoder.window_log_max(WINDOW_BYTES_MAX.ilog2()).map_err(damaged)?;
            Box::new(decoder)
        }
    })
}

/// Reads until `piece` is full or the end.
fn fill(reader: &mut dyn Read, piece: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < piece.len() {
        match reader.read(&mut piece[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(n)
}

/// What may stop it.
struct Watch<'a> {
    cancel: &'a AtomicBool,
    begun: Instant,
    /// Bytes of the file.
    read: Cell<u64>,
    /// Bytes that came out of it.
    written: Cell<u64>,
}

impl Watch<'_> {
    fn may_go_on(&self) -> Result<(), UnpackError> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(UnpackError::Cancelled);
        }
        let most = time_max(self.read.get().saturating_add(self.written.get()));
        if clock::monotonic().duration_since(self.begun) > most {
            return Err(UnpackError::Time { minutes: most.as_secs() / 60 });
        }
        Ok(())
    }
}

/// How long it may have taken once so many bytes were read and unpacked.
const fn time_max(moved_bytes: u64) -> Duration {
    TIME_FREE.saturating_add(Duration::from_secs(moved_bytes / BYTES_PER_S_MIN))
}

/// The file. It asks whether to go on: empty members can follow each other for a terabyte, and a decoder reads them all before it
/// gives anything back.
struct Counted<'a> {
    inner: File,
    watch: &'a Watch<'a>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.watch.may_go_on().map_err(io::Error::other)?;
        let n = self.inner.read(buf)?;
        self.watch.read.set(self.watch.read.get() + n as u64);
        Ok(n)
    }
}

/// Where the bytes go, and all limits on them.
struct Output<'a> {
    file: &'a File,
    unpacking: &'a Unpacking<'a>,
    packed_bytes: u64,
    data_bytes_max: u64,
    at: u64,
    data_bytes: u64,
    rooms: Vec<Reservation>,
}

impl<'a> Output<'a> {
    fn new(unpacking: &'a Unpacking<'a>, file: &'a File, packed_bytes: u64) -> Self {
        let data_bytes_max = packed_bytes.saturating_mul(RATIO_MAX).max(DATA_BYTES_FREE);
        Self { file, unpacking, packed_bytes, data_bytes_max, at: 0, data_bytes: 0, rooms: Vec::new() }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        let bomb = |most_bytes| UnpackError::Bomb { packed_bytes: self.packed_bytes, most_bytes };
        if self.at + bytes.len() as u64 > self.unpacking.most_bytes {
            return Err(bomb(self.unpacking.most_bytes));
        }
        for (start, run) in data_runs(bytes, self.at) {
            self.data_bytes += run.len() as u64;
            if self.data_bytes > self.data_bytes_max {
                return Err(bomb(self.data_bytes_max));
            }
            if self.data_bytes > self.rooms.len() as u64 * ROOM_STEP_BYTES {
                self.rooms.push(self.unpacking.space.reserve(ROOM_STEP_BYTES)?);
            }
            let written = self.file.write_all_at(run, self.at + start as u64);
            written.map_err(on("write", self.unpacking.output))?;
        }
        self.at += bytes.len() as u64;
        Ok(())
    }
}

fn on<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> UnpackError + 'a {
    move |source| UnpackError::File { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
