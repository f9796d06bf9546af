//! Tests of the manifest's invariants.

use proptest::prelude::*;

use super::*;

/// A disk of `n` chunks of `blocks` blocks, each after a gap of `gap` blocks.
fn disk(n: u32, blocks: u32, gap: u64) -> (ManifestRoot, Vec<Vec<u8>>) {
    let mut builder = ManifestBuilder::new(ContentKind::Disk);
    let (mut pages, mut offset) = (Vec::new(), 0);
    for chunk in 0..n {
        offset += gap * BLOCK_BYTES;
        let len = blocks * 4096;
        pages.extend(
            builder.push(offset, len, ChunkDigest::of(&chunk.to_le_bytes())).unwrap().map(|page| page.bytes),
        );
        offset += u64::from(len);
    }
    let (last, root) = builder.finish(offset + BLOCK_BYTES).unwrap();
    pages.extend(last.map(|page| page.bytes));
    (root, pages)
}

fn walk(root: &ManifestRoot, pages: &[Vec<u8>]) -> Result<Vec<ChunkRecord>, ManifestError> {
    let mut walk = ManifestWalk::new(root);
    let mut records = Vec::new();
    for page in pages {
        records.extend_from_slice(walk.step(page)?.records());
    }
    walk.finish()?;
    Ok(records)
}

#[test]
fn what_is_built_is_what_is_read() {
    for n in [0, 1, 4095, 4096, 4097, 9000] {
        let (root, pages) = disk(n, 4, 1);
        let decoded = ManifestRoot::decode_as(&root.encode(), root.content_id()).unwrap();
        assert_eq!(decoded, root);
        let records = walk(&decoded, &pages).unwrap();
        assert_eq!(records.len(), n as usize);
        assert_eq!(records.first().map(|record| record.offset), (n > 0).then_some(4096));
    }
}

#[test]
fn a_page_is_accepted_only_if_its_digest_and_every_record_hold() {
    let (root, pages) = disk(5000, 4, 0);
    let mut flipped = pages[0].clone();
    flipped[100] ^= 1;
    assert_eq!(root.decode_page(0, &flipped).unwrap_err(), ManifestError::Page { page: 0 });
    assert_eq!(root.decode_page(1, &pages[0]).unwrap_err(), ManifestError::Page { page: 1 });
    assert_eq!(root.decode_page(2, &pages[0]).unwrap_err(), ManifestError::Page { page: 2 });
    assert_eq!(root.decode_page(0, &pages[0][1..]).unwrap_err(), ManifestError::Page { page: 0 });
}

#[test]
fn records_that_overlap_or_pass_the_end_are_refused_even_when_the_digest_fits() {
    let (root, pages) = disk(2, 4, 1);
    let check = |at: usize, value: &[u8], chunk: u32| {
        let mut page = pages[0].clone();
        page[at..at + value.len()].copy_from_slice(value);
        let root = ManifestRoot { pages: vec![PageDigest::of(&page)], ..root.clone() };
        assert_eq!(root.decode_page(0, &page).unwrap_err(), ManifestError::Record { chunk });
    };
    check(16, &u64::MAX.to_le_bytes(), 0);
    check(16, &(1_u64 << 40).to_le_bytes(), 0);
    check(16, &1_u64.to_le_bytes(), 0);
    check(24, &0_u32.to_le_bytes(), 0);
    check(24, &(CHUNK_BYTES_MAX + 4096).to_le_bytes(), 0);
    check(16 + 44 + 8, &4095_u32.to_le_bytes(), 1);
}

#[test]
fn a_walk_accepts_only_the_whole_manifest() {
    let (root, pages) = disk(5000, 4, 0);
    assert_eq!(walk(&root, &pages[..1]).unwrap_err(), ManifestError::Sums);
    let more = ManifestRoot { data_bytes: root.data_bytes + 1, ..root.clone() };
    assert_eq!(walk(&more, &pages).unwrap_err(), ManifestError::Sums);
    let mut moved = pages[1].clone();
    moved[8] ^= 0x10;
    let digests = vec![root.pages[0], PageDigest::of(&moved)];
    let root = ManifestRoot { pages: digests, raw_bytes: root.raw_bytes + (1 << 20), ..root };
    assert!(walk(&root, &[pages[0].clone(), moved]).is_err());
}

#[test]
fn chunks_of_kind_file_are_64_kib_each() {
    let mut builder = ManifestBuilder::new(ContentKind::File);
    builder.push(0, FILE_CHUNK_BYTES, ChunkDigest::of(b"a")).unwrap();
    builder.push(u64::from(FILE_CHUNK_BYTES), 7, ChunkDigest::of(b"b")).unwrap();
    let (page, root) = builder.finish(u64::from(FILE_CHUNK_BYTES) + 7).unwrap();
    assert_eq!(root.decode_page(0, &page.unwrap().bytes).unwrap().records().len(), 2);
}

#[test]
fn limits_are_kept_while_building() {
    let mut builder = ManifestBuilder::new(ContentKind::Disk);
    assert!(builder.push(RAW_BYTES_MAX + 4096, 4096, ChunkDigest::of(b"")).is_err());
    assert!(builder.push(0, 0, ChunkDigest::of(b"")).is_err());
    assert!(ManifestBuilder::new(ContentKind::Disk).finish(0).is_err());
    assert!(ManifestBuilder::new(ContentKind::Disk).finish(RAW_BYTES_MAX + 1).is_err());
}

proptest! {
    #[test]
    fn no_root_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut framed = MAGIC.to_vec();
        framed.extend_from_slice(&bytes);
        for input in [&bytes, &framed] {
            if let Ok(root) = ManifestRoot::decode(input) {
                prop_assert_eq!(&root.encode(), input);
                let _page = root.decode_page(0, &bytes);
            }
        }
    }
}
