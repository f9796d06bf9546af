//! Tests of cutting and staging whole contents.

use std::fs::OpenOptions;
use std::io::{Seek as _, SeekFrom, Write as _};

use proptest::prelude::*;

use super::*;
use crate::content::{ContentStore, Published, Unpacker};

/// A folder with a source file and a store.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn source(&self, bytes: &[u8]) -> File {
        let path = self.folder.path().join("source");
        std::fs::write(&path, bytes).unwrap();
        File::open(path).unwrap()
    }

    fn stage(&self, source: &File, kind: ContentKind, threads: usize) -> Staged {
        let chunking = Chunking {
            source,
            path: "source".as_ref(),
            kind,
            staging: &self.folder.path().join(format!("staging{threads}")),
            threads,
            grown_bytes: None,
        };
        let mut last = 0;
        let staged = stage(&chunking, &AtomicBool::new(false), &mut |at| last = at).unwrap();
        assert_eq!(last, source.metadata().unwrap().len());
        staged
    }

    /// Stages, publishes, reads everything back through the store.
    fn round_trip(&self, source: &File, kind: ContentKind) -> (Vec<u8>, Vec<u32>) {
        let staged = self.stage(source, kind, 2);
        let content = staged.root().content_id();
        let store = ContentStore::new(self.folder.path()).unwrap();
        assert_eq!(store.publish(staged, &AtomicBool::new(false)).unwrap(), Published::New);
        let object = store.open(content).unwrap();
        let mut raw = vec![0; usize::try_from(object.root().raw_bytes()).unwrap()];
        let mut lengths = Vec::new();
        let mut unpacker = Unpacker::new().unwrap();
        for chunk in 0..object.root().n_chunks() {
            let record = object.chunk_range(chunk, 1).unwrap()[0];
            let run = object.read_stored(chunk, 1).unwrap();
            let mut out = Vec::new();
            assert!(unpacker.unpack(run.chunks[0].encoding, &run.bytes, record.raw_len, &mut out));
            let at = usize::try_from(record.offset).unwrap();
            raw[at..at + out.len()].copy_from_slice(&out);
            lengths.push(record.raw_len);
        }
        (raw, lengths)
    }
}

/// Bytes with structure: `n` blocks, some text, some noise, some zero, by a fixed rule.
fn pattern(n_blocks: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for n in 0..n_blocks {
        let hash = blake3::hash(&(n / 3).to_le_bytes());
        match hash.as_bytes()[0] % 5 {
            0 => bytes.extend([0; BLOCK]),
            1 | 2 => bytes.extend(hash.as_bytes().repeat(BLOCK / 32)),
            _ => (0..BLOCK / 32).for_each(|i| {
                bytes.extend(
                    blake3::hash(&[n.to_le_bytes(), u32::try_from(i).unwrap().to_le_bytes()].concat())
                        .as_bytes(),
                );
            }),
        }
    }
    bytes
}

#[test]
fn the_content_id_of_a_pattern_is_frozen() {
    let place = Place::new();
    let source = place.source(&pattern(3000));
    // If this fails, the cut, the manifest or the hash has changed: every cached image would be fetched again.
    let disk = place.stage(&source, ContentKind::Disk, 1);
    assert_eq!(
        disk.root().content_id().to_string(),
        "1b35f6899d289bdd859e6b2e5e5320bfbf07323b75f584f0d22fa470fbbbfd1a"
    );
    drop(disk);
    let file = place.stage(&source, ContentKind::File, 1);
    assert_eq!(
        file.root().content_id().to_string(),
        "befd9abb03cce094fc177851198f2e04a20955c0790aaa40cdb1c6c0618a5399"
    );
}

#[test]
fn the_content_id_depends_neither_on_threads_nor_on_holes() {
    let place = Place::new();
    let mut bytes = pattern(2000);
    bytes[100 * BLOCK..900 * BLOCK].fill(0);
    bytes.truncate(1999 * BLOCK + 77);
    let source = place.source(&bytes);
    let ids: Vec<_> = [1, 2, 5]
        .map(|threads| place.stage(&source, ContentKind::Disk, threads).root().content_id())
        .to_vec();
    let sparse = place.folder.path().join("sparse");
    let mut file = OpenOptions::new().write(true).create_new(true).open(&sparse).unwrap();
    for (i, block) in bytes.chunks(BLOCK).enumerate() {
        if block.iter().any(|&byte| byte != 0) {
            file.seek(SeekFrom::Start((i * BLOCK) as u64)).unwrap();
            file.write_all(block).unwrap();
        }
    }
    file.set_len(bytes.len() as u64).unwrap();
    let holes = place.stage(&File::open(sparse).unwrap(), ContentKind::Disk, 2);
    assert!(ids.iter().all(|id| *id == holes.root().content_id()), "{ids:?}");
}

#[test]
fn what_is_stored_is_what_was_read() {
    for kind in [ContentKind::Disk, ContentKind::File] {
        for len in [1, 4095, 4096, 4097, 65536, 65537, 300_000, 9 << 20] {
            let bytes = &pattern(2304)[..len];
            let place = Place::new();
            let (raw, lengths) = place.round_trip(&place.source(bytes), kind);
            assert!(raw == bytes, "{kind} of {len} bytes");
            let total: u32 = lengths.iter().sum();
            assert!(kind == ContentKind::Disk || total as usize == len, "{kind} of {len} bytes: {total}");
        }
    }
}

#[test]
fn a_disk_of_zeros_has_no_chunks_and_a_file_of_zeros_has_all() {
    let place = Place::new();
    let source = place.source(&vec![0; 200_000]);
    assert_eq!(place.round_trip(&source, ContentKind::Disk), (vec![0; 200_000], vec![]));
    let place = Place::new();
    assert_eq!(place.round_trip(&source, ContentKind::File).1, [65536, 65536, 65536, 3392]);
}

#[test]
fn single_blocks_between_zeros_are_chunks_of_their_own() {
    let place = Place::new();
    let mut bytes = vec![0; 4000 * BLOCK];
    bytes.chunks_mut(2 * BLOCK).enumerate().for_each(|(i, pair)| pair[i % BLOCK] = 1);
    let (raw, lengths) = place.round_trip(&place.source(&bytes), ContentKind::Disk);
    assert!(raw == bytes && lengths == [4096; 2000]);
}

#[test]
fn a_cancel_and_an_error_leave_nothing_behind() {
    let place = Place::new();
    let source = place.source(&pattern(4000));
    let staging = place.folder.path().join("staging");
    let mut chunking = Chunking {
        source: &source,
        path: "source".as_ref(),
        kind: ContentKind::Disk,
        staging: &staging,
        threads: 2,
        grown_bytes: None,
    };
    let cancel = AtomicBool::new(false);
    let mut stop = |at| cancel.store(at > 1 << 20, Ordering::Relaxed);
    assert!(matches!(stage(&chunking, &cancel, &mut stop), Err(ContentError::Cancelled)));
    assert!(!staging.exists());
    // A source that may not be read.
    let unreadable = OpenOptions::new().write(true).open(place.folder.path().join("source")).unwrap();
    chunking.source = &unreadable;
    let result = stage(&chunking, &AtomicBool::new(false), &mut |_| ());
    assert!(matches!(result, Err(ContentError::File { action: "read", .. })), "{result:?}");
    assert!(!staging.exists());
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing_behind() {
    let place = Place::new();
    let source = place.source(&pattern(3000));
    let small = place.folder.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let mounted =
        nix::mount::mount(Some("none"), &small, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=2m"));
    let Ok(()) = mounted else {
        // Without the right to mount the answer of a full disk is taken from the device that always gives it.
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = (&full).write_all(b"x").map_err(on("write", &small)).unwrap_err();
        assert!(matches!(error, ContentError::NoSpace { .. }), "{error:?}");
        return;
    };
    let staging = small.join("staging");
    let chunking = Chunking {
        source: &source,
        path: "source".as_ref(),
        kind: ContentKind::Disk,
        staging: &staging,
        threads: 2,
        grown_bytes: None,
    };
    let result = stage(&chunking, &AtomicBool::new(false), &mut |_| ());
    let left = staging.exists();
    nix::mount::umount(&small).unwrap();
    assert!(matches!(result, Err(ContentError::NoSpace { .. })), "{result:?}");
    assert!(!left);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Compares with the slow, obvious reading of the rule over the whole content.
    #[test]
    fn the_cut_is_the_rule(seeds in proptest::collection::vec(0u8..40, 1..600), tail in 0usize..BLOCK) {
        let mut bytes: Vec<u8> = seeds.iter().flat_map(|&seed| vec![seed; BLOCK]).collect();
        bytes.extend(vec![seeds[0]; tail]);
        let place = Place::new();
        let (raw, lengths) = place.round_trip(&place.source(&bytes), ContentKind::Disk);
        prop_assert!(raw == bytes);
        let (mut expected, mut open) = (Vec::new(), 0u32);
        for block in bytes.chunks(BLOCK) {
            let zero = block.iter().all(|&byte| byte == 0);
            let marked = (xxhash_rust::xxh3::xxh3_64(block) & 0xFFFF_FFFF) * 13 < 1 << 32;
            if !zero {
                open += u32::try_from(block.len()).unwrap();
            }
            if open > 0 && (zero || open >= 64 * 4096 || (open > 3 * 4096 && marked)) {
                expected.push(std::mem::take(&mut open));
            }
        }
        expected.extend((open > 0).then_some(open));
        prop_assert_eq!(lengths, expected);
    }
}
