//! Where chunks stand in finished contents, so that another content can take them from there.
//!
//! **What.** Per content a file of 16-byte entries, `digest prefix u64 | raw offset u64`, in runs of up to 65,536 sorted
//! entries. A lookup joins one sorted batch of wanted prefixes with one run at a time.
//! **Why not a database.** A 20 GiB content has 330,000 chunks; as keys of a tree they take seconds to insert and stay in
//! memory. Here building, reading and the join are sequential and hold one run (1 MiB), whatever the size.
//! **Invariants.** An entry is a hint: whoever takes a chunk hashes it. A missing or damaged file costs time, not bytes.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write as _};
use std::path::Path;

use hearth_protocol::digest::ChunkDigest;

use super::error::StoreError;
use super::manifest_file::ManifestFile;

/// Entries of a run and of a batch of wanted chunks: bounds memory to 1 MiB each.
pub(crate) const RUN_ENTRIES: usize = 65_536;
const ENTRY_BYTES: usize = 16;

/// First eight bytes of a digest, as a number that sorts like the bytes.
pub(crate) fn prefix(digest: &ChunkDigest) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_be_bytes(bytes)
}

/// Writes the file for a manifest.
///
/// # Errors
/// [`StoreError`] if the manifest cannot be read or the file cannot be written.
pub(crate) fn build(manifest: &ManifestFile, path: &Path) -> Result<(), StoreError> {
    let new = path.with_extension("chunks-new");
    let file = File::create(&new).map_err(StoreError::io("create", &new))?;
    let mut out = BufWriter::new(file);
    let mut run: Vec<(u64, u64)> = Vec::new();
    manifest.walk(|page| {
        for record in page.records() {
            run.push((prefix(&record.digest), record.offset));
            if run.len() == RUN_ENTRIES {
                write_run(&mut run, &mut out).map_err(StoreError::io("write", &new))?;
            }
        }
        Ok(())
    })?;
    write_run(&mut run, &mut out)
        .and_then(|()| out.flush())
        .and_then(|()| fs::rename(&new, path))
        .map_err(StoreError::io("write", path))
}

fn write_run(run: &mut Vec<(u64, u64)>, out: &mut impl io::Write) -> io::Result<()> {
    run.sort_unstable();
    for (prefix, offset) in run.drain(..) {
        out.write_all(&prefix.to_le_bytes())?;
        out.write_all(&offset.to_le_bytes())?;
    }
    Ok(())
}

/// A chunk that is wanted: its prefix and whatever the caller needs to find it again.
pub(crate) type Wanted = (u64, u32);

/// Calls `found(tag, offset)` for every wanted prefix that the file names. `wanted` is sorted.
///
/// # Errors
/// The I/O error of a file that is missing or unreadable; a damaged one yields fewer or wrong hints.
pub(crate) fn lookup(path: &Path, wanted: &[Wanted], mut found: impl FnMut(u32, u64)) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        let n = (&mut file).take((RUN_ENTRIES * ENTRY_BYTES) as u64).read_to_end(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        let mut next = 0;
        for entry in buffer.chunks_exact(ENTRY_BYTES) {
            let (key, offset) = (u64_at(entry, 0), u64_at(entry, 8));
            while wanted.get(next).is_some_and(|(prefix, _)| *prefix < key) {
                next += 1;
            }
            let same = wanted.get(next..).unwrap_or_default().iter().take_while(|(prefix, _)| *prefix == key);
            same.for_each(|(_, tag)| found(*tag, offset));
            if next == wanted.len() {
                break;
            }
        }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_lookup_finds_what_a_plain_search_finds(
            stored in proptest::collection::vec(0_u64..40, 0..60),
            wanted in proptest::collection::vec(0_u64..40, 0..60),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("chunks");
            let mut run: Vec<(u64, u64)> = stored.iter().zip(0..).map(|(p, offset)| (*p, offset)).collect();
            let mut out = Vec::new();
            write_run(&mut run, &mut out).unwrap();
            fs::write(&path, &out).unwrap();
            let mut wanted: Vec<Wanted> = wanted.into_iter().zip(0..).collect();
            wanted.sort_unstable();
            let mut hits = BTreeSet::new();
            lookup(&path, &wanted, |tag, offset| { hits.insert((tag, offset)); }).unwrap();
            let mut expected = BTreeSet::new();
            for (prefix, tag) in &wanted {
                for (stored, offset) in stored.iter().zip(0..) {
                    if stored == prefix { expected.insert((*tag, offset)); }
                }
            }
            prop_assert_eq!(hits, expected);
        }
    }
}
