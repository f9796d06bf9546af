//! The content index: where each stored chunk lies in the object file.
//!
//! **What.** A header with its own digest, then one record per chunk. Unlike the manifest it may be rewritten: a chunk
//! that was packed again moves, its identity stays.
//!
//! ```text
//! header  "HRTHIDX1" | version u32 | n_chunks u32 | generation u32 | 0 u32 | object_bytes u64 | content id [32] | digest [32]
//! record  offset u64 | stored_len u32 | encoding u8                          all integers little endian
//! ```
//! The digest is BLAKE3 of the header's first 64 bytes followed by the BLAKE3 of all records. `generation` names the
//! object file the offsets are for.
//!
//! **Invariants.** An index is used only after its digest and every record held: each chunk lies inside the object.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;

use hearth_protocol::digest::ContentId;
use hearth_protocol::manifest::CHUNK_BYTES_MAX;
use hearth_protocol::message::data::Encoding;

const MAGIC: &[u8; 8] = b"HRTHIDX1";
const VERSION: u32 = 1;
const SIGNED_BYTES: usize = 64;
pub(super) const HEADER_BYTES: usize = 96;
pub(super) const RECORD_BYTES: usize = 13;
/// Records checked per read while an index is opened: 208 KiB.
const STEP_RECORDS: usize = 16 << 10;

/// The header without its digest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IndexHeader {
    /// Content the index belongs to.
    pub content: ContentId,
    /// Records that follow.
    pub n_chunks: u32,
    /// Which object file; 0 for the first one.
    pub generation: u32,
    /// Length of the object in bytes; the file may be longer.
    pub object_bytes: u64,
}

/// Where one chunk lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IndexRecord {
    /// First byte in the object file.
    pub offset: u64,
    /// Bytes there, 1 ..= [`CHUNK_BYTES_MAX`].
    pub stored_len: u32,
    /// How they are packed.
    pub encoding: Encoding,
}

/// An index that is none of ours, or damaged.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("content index: wrong {part}")]
pub struct IndexError {
    /// What is wrong.
    pub part: &'static str,
}

const fn wrong(part: &'static str) -> IndexError {
    IndexError { part }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.get(..N)).and_then(|b| b.try_into().ok()).unwrap_or([0; N])
}

impl IndexHeader {
    fn signed(&self) -> [u8; SIGNED_BYTES] {
        let mut out = [0; SIGNED_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.n_chunks.to_le_bytes());
        out[16..20].copy_from_slice(&self.generation.to_le_bytes());
        out[24..32].copy_from_slice(&self.object_bytes.to_le_bytes());
        out[32..].copy_from_slice(self.content.as_bytes());
        out
    }

    fn digest(&self, records: &blake3::Hash) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.signed());
        hasher.update(records.as_bytes());
        *hasher.finalize().as_bytes()
    }

    /// Reads a header; its digest can be checked only with the records.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, IndexError> {
        if !bytes.starts_with(MAGIC) {
            return Err(wrong("magic"));
        }
        if u32::from_le_bytes(array(bytes, 8)) != VERSION || bytes[20..24] != [0; 4] {
            return Err(wrong("version"));
        }
        Ok(Self {
            content: ContentId::from_bytes(array(bytes, 32)),
            n_chunks: u32::from_le_bytes(array(bytes, 12)),
            generation: u32::from_le_bytes(array(bytes, 16)),
            object_bytes: u64::from_le_bytes(array(bytes, 24)),
        })
    }
}

impl IndexRecord {
    pub(super) fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        out[..8].copy_from_slice(&self.offset.to_le_bytes());
        out[8..12].copy_from_slice(&self.stored_len.to_le_bytes());
        out[12] = self.encoding as u8;
        out
    }

    /// Reads a record of an object of `object_bytes`.
    ///
    /// # Errors
    /// [`IndexError`] unless the chunk lies inside the object.
    pub fn decode(bytes: &[u8; RECORD_BYTES], object_bytes: u64) -> Result<Self, IndexError> {
        let offset = u64::from_le_bytes(array(bytes, 0));
        let stored_len = u32::from_le_bytes(array(bytes, 8));
        let encoding = Encoding::from_number(bytes[12]).ok_or_else(|| wrong("encoding"))?;
        if stored_len == 0 || stored_len > CHUNK_BYTES_MAX {
            return Err(wrong("stored length"));
        }
        if offset.checked_add(stored_len.into()).is_none_or(|end| end > object_bytes) {
            return Err(wrong("offset"));
        }
        Ok(Self { offset, stored_len, encoding })
    }
}

/// Reads a whole index from memory: for tests and fuzzing.
///
/// # Errors
/// [`IndexError`].
pub fn decode(bytes: &[u8]) -> Result<(IndexHeader, Vec<IndexRecord>), IndexError> {
    let head: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or_else(|| wrong("length"))?;
    let header = IndexHeader::decode(head)?;
    let records = &bytes[HEADER_BYTES..];
    if records.len() as u64 != u64::from(header.n_chunks) * RECORD_BYTES as u64 {
        return Err(wrong("length"));
    }
    if header.digest(&blake3::hash(records)) != array(head, SIGNED_BYTES) {
        return Err(wrong("digest"));
    }
    let records = records.chunks_exact(RECORD_BYTES);
    let records: Result<_, _> =
        records.map(|record| IndexRecord::decode(&array(record, 0), header.object_bytes)).collect();
    Ok((header, records?))
}

/// Writes an index in one pass; the header is filled in at the end.
#[derive(Debug)]
pub(super) struct IndexWriter {
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    n_chunks: u32,
}

impl IndexWriter {
    /// Starts an index in an empty file.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let mut file = BufWriter::with_capacity(64 << 10, file);
        file.write_all(&[0; HEADER_BYTES])?;
        Ok(Self { file, hasher: blake3::Hasher::new(), n_chunks: 0 })
    }

    pub(super) fn push(&mut self, record: IndexRecord) -> io::Result<()> {
        let bytes = record.encode();
        self.hasher.update(&bytes);
        self.n_chunks += 1;
        self.file.write_all(&bytes)
    }

    /// Writes the header and syncs.
    pub(super) fn finish(self, content: ContentId, generation: u32, object_bytes: u64) -> io::Result<()> {
        let header = IndexHeader { content, n_chunks: self.n_chunks, generation, object_bytes };
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        let mut bytes = header.signed().to_vec();
        bytes.extend_from_slice(&header.digest(&self.hasher.finalize()));
        file.write_all_at(&bytes, 0)?;
        file.sync_all()
    }
}

/// An index file whose digest was checked.
#[derive(Debug)]
pub(super) struct IndexFile {
    file: File,
    pub(super) header: IndexHeader,
}

impl IndexFile {
    /// Checks the whole file: 4 MiB for 40 GiB of disk.
    pub(super) fn open(file: File) -> io::Result<Result<Self, IndexError>> {
        let len = file.metadata()?.len();
        let mut head = [0; HEADER_BYTES];
        if len < HEADER_BYTES as u64 {
            return Ok(Err(wrong("length")));
        }
        file.read_exact_at(&mut head, 0)?;
        let header = match IndexHeader::decode(&head) {
            Ok(header) => header,
            Err(error) => return Ok(Err(error)),
        };
        if len != HEADER_BYTES as u64 + u64::from(header.n_chunks) * RECORD_BYTES as u64 {
            return Ok(Err(wrong("length")));
        }
        let index = Self { file, header };
        let mut hasher = blake3::Hasher::new();
        let mut buf = vec![0; STEP_RECORDS * RECORD_BYTES];
        let mut first = 0;
        while first < header.n_chunks {
            let n = (header.n_chunks - first).min(u32::try_from(STEP_RECORDS).unwrap_or(u32::MAX));
            let bytes = &mut buf[..n as usize * RECORD_BYTES];
            index.file.read_exact_at(bytes, Self::at(first))?;
            hasher.update(bytes);
            for record in bytes.chunks_exact(RECORD_BYTES) {
                if let Err(error) = IndexRecord::decode(&array(record, 0), header.object_bytes) {
                    return Ok(Err(error));
                }
            }
            first += n;
        }
        if header.digest(&hasher.finalize()) != array(&head, SIGNED_BYTES) {
            return Ok(Err(wrong("digest")));
        }
        Ok(Ok(index))
    }

    fn at(chunk: u32) -> u64 {
        HEADER_BYTES as u64 + u64::from(chunk) * RECORD_BYTES as u64
    }

    /// Reads `n` records from `first` on; the caller has checked the range.
    pub(super) fn records(&self, first: u32, n: u32) -> io::Result<Result<Vec<IndexRecord>, IndexError>> {
        let mut bytes = vec![0; n as usize * RECORD_BYTES];
        self.file.read_exact_at(&mut bytes, Self::at(first))?;
        let records = bytes.chunks_exact(RECORD_BYTES);
        Ok(records.map(|record| IndexRecord::decode(&array(record, 0), self.header.object_bytes)).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index(records: &[IndexRecord]) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = IndexWriter::new(file.reopen().unwrap()).unwrap();
        records.iter().for_each(|record| writer.push(*record).unwrap());
        writer.finish(ContentId::of(b"x"), 3, 1000).unwrap();
        std::fs::read(file.path()).unwrap()
    }

    const RECORDS: [IndexRecord; 2] = [
        IndexRecord { offset: 0, stored_len: 10, encoding: Encoding::Zstd },
        IndexRecord { offset: 10, stored_len: 990, encoding: Encoding::Raw },
    ];

    #[test]
    fn what_is_written_is_what_is_read() {
        let (header, records) = decode(&index(&RECORDS)).unwrap();
        let expected =
            IndexHeader { content: ContentId::of(b"x"), n_chunks: 2, generation: 3, object_bytes: 1000 };
        assert_eq!((header, records.as_slice()), (expected, &RECORDS[..]));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let whole = index(&RECORDS);
        let file = tempfile::NamedTempFile::new().unwrap();
        for i in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[i] ^= 1;
            assert!(decode(&bytes).is_err(), "byte {i}");
            assert!(decode(&whole[..i]).is_err(), "cut to {i}");
            std::fs::write(file.path(), bytes).unwrap();
            assert!(IndexFile::open(file.reopen().unwrap()).unwrap().is_err(), "byte {i}");
        }
        std::fs::write(file.path(), &whole).unwrap();
        let opened = IndexFile::open(file.reopen().unwrap()).unwrap().unwrap();
        assert_eq!(opened.records(1, 1).unwrap().unwrap(), RECORDS[1..]);
    }

    #[test]
    fn a_chunk_outside_the_object_is_refused_even_when_the_digest_fits() {
        let outside = IndexRecord { offset: 11, stored_len: 990, encoding: Encoding::Raw };
        assert_eq!(decode(&index(&[outside])), Err(wrong("offset")));
        let empty = IndexRecord { offset: 11, stored_len: 0, encoding: Encoding::Raw };
        assert_eq!(decode(&index(&[empty])), Err(wrong("stored length")));
    }

    proptest! {
        #[test]
        fn no_index_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let framed = [MAGIC.as_slice(), &bytes].concat();
            prop_assert!(decode(&bytes).is_err() && decode(&framed).is_err());
        }
    }
}
