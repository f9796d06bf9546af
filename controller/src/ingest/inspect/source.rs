//! Reads an untrusted image file in small, counted bites.
//!
//! **What.** [`ReadAt`] is what an inspector may do with a file: ask its length and read at an offset.
//! [`Source`] wraps it with a budget and turns every short read into a named error.
//!
//! **Why not a stream.** Formats keep facts at both ends of the file (VHD footer, VMDK footer) and in tables
//! anywhere in between; a stream would have to keep all of it. With a budget, random access is just as bounded.
//!
//! **Invariants.** 1. No read past the end of the file is ever answered with made-up bytes. 2. The sum of all reads
//! never passes the budget. 3. Offsets are checked for overflow before any read.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::error::{Found, InspectError};

/// Bytes one inspection may read in all. A qcow2 of 4 TiB content needs 512 MiB of mapping tables, the most of
/// all formats; the double protects the controller's time and disk from files whose tables never end.
pub const READ_BUDGET_BYTES: u64 = 1 << 30;

/// Random access to an image file, as the inspectors need it.
pub trait ReadAt {
    /// Length in bytes.
    fn len_bytes(&self) -> u64;

    /// Reads up to `buf.len()` bytes at `offset`; 0 at or past the end.
    ///
    /// # Errors
    /// What the operating system answered.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
}

/// An open file whose length was taken once, so that it cannot change under an inspection.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    len_bytes: u64,
}

impl ImageFile {
    /// Wraps an open file.
    ///
    /// # Errors
    /// When the length cannot be read.
    pub fn new(file: File) -> io::Result<Self> {
        let len_bytes = file.metadata()?.len();
        Ok(Self { file, len_bytes })
    }
}

impl ReadAt for ImageFile {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }
}

impl ReadAt for &[u8] {
    fn len_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(rest) = usize::try_from(offset).ok().and_then(|start| self.get(start..)) else {
            return Ok(0);
        };
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

/// A file under inspection, with its read budget.
#[derive(Debug)]
pub(super) struct Source<'a, R: ReadAt + ?Sized> {
    reader: &'a R,
    len_bytes: u64,
    budget_bytes: u64,
    read_bytes: Cell<u64>,
}

impl<'a, R: ReadAt + ?Sized> Source<'a, R> {
    /// Starts an inspection with a full budget.
    pub(super) fn new(reader: &'a R, budget_bytes: u64) -> Self {
        Self { reader, len_bytes: reader.len_bytes(), budget_bytes, read_bytes: Cell::new(0) }
    }

    /// Length of the file in bytes.
    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Bytes read so far.
    pub(super) fn read_bytes(&self) -> u64 {
        self.read_bytes.get()
    }

    /// Reads exactly `N` bytes at `offset`.
    ///
    /// # Errors
    /// [`InspectError::Truncated`] past the end, [`InspectError::Budget`], [`InspectError::Read`].
    pub(super) fn array<const N: usize>(&self, of: Part, offset: u64) -> Result<[u8; N], InspectError> {
        let mut buf = [0u8; N];
        self.fill(of, offset, &mut buf)?;
        Ok(buf)
    }

    /// Reads exactly `buf.len()` bytes at `offset`. Errors as [`Self::array`].
    ///
    /// # Errors
    /// [`InspectError::Truncated`] past the end, [`InspectError::Budget`], [`InspectError::Read`].
    pub(super) fn fill(&self, of: Part, offset: u64, buf: &mut [u8]) -> Result<(), InspectError> {
        let needed_bytes = buf.len() as u64;
        let truncated = InspectError::Truncated {
            format: of.format,
            part: of.name,
            offset,
            needed_bytes,
            file_bytes: self.len_bytes,
        };
        if offset.checked_add(needed_bytes).is_none_or(|end| end > self.len_bytes) {
            return Err(truncated);
        }
        let read_bytes = self.read_bytes.get().saturating_add(needed_bytes);
        if read_bytes > self.budget_bytes {
            return Err(InspectError::Budget { format: of.format, max_bytes: self.budget_bytes });
        }
        self.read_bytes.set(read_bytes);
        let mut done = 0;
        while done < buf.len() {
            match self.reader.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => return Err(truncated),
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(InspectError::Read { offset, source }),
            }
        }
        Ok(())
    }

    /// Reads up to `N` bytes at `offset`, zero-filled where the file ends. For magic numbers only.
    ///
    /// # Errors
    /// [`InspectError::Budget`], [`InspectError::Read`].
    pub(super) fn peek<const N: usize>(&self, offset: u64) -> Result<[u8; N], InspectError> {
        let mut buf = [0u8; N];
        let here = usize::try_from(self.len_bytes.saturating_sub(offset)).unwrap_or(usize::MAX).min(N);
        if here > 0 {
            let of = Part { format: Found::Raw, name: "start of a structure" };
            self.fill(of, offset, &mut buf[..here])?;
        }
        Ok(buf)
    }
}

/// Names what is being read, for the error if it is not there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// The format whose structure it is.
    pub format: Found,
    /// For people: "header", "L1 table".
    pub name: &'static str,
}

/// Little-endian and big-endian fields at fixed places of a buffer whose length the caller has chosen.
pub(super) mod field {
    fn take<const N: usize>(buf: &[u8], at: usize) -> [u8; N] {
        let mut out = [0u8; N];
        if let Some(bytes) = buf.get(at..).and_then(|rest| rest.get(..N)) {
            out.copy_from_slice(bytes);
        }
        out
    }

    pub(in super::super) fn le16(buf: &[u8], at: usize) -> u16 {
        u16::from_le_bytes(take(buf, at))
    }
    pub(in super::super) fn le32(buf: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(take(buf, at))
    }
    pub(in super::super) fn le64(buf: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(take(buf, at))
    }
    pub(in super::super) fn be16(buf: &[u8], at: usize) -> u16 {
        u16::from_be_bytes(take(buf, at))
    }
    pub(in super::super) fn be32(buf: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(take(buf, at))
    }
    pub(in super::super) fn be64(buf: &[u8], at: usize) -> u64 {
        u64::from_be_bytes(take(buf, at))
    }
}
