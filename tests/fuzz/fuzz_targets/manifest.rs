//! Manifest roots and pages. The page's digest is written into the root, so that records are reached at all.
#![no_main]
use hearth_protocol::digest::PageDigest;
use hearth_protocol::manifest::{ManifestRoot, ManifestWalk};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Ok(root) = ManifestRoot::decode(input) {
        assert_eq!(root.encode(), input);
    }
    // A root of one page: 40 header bytes from the input, then the digest of the rest.
    let Some((header, page)) = input.split_at_checked(40) else { return };
    let mut bytes = header.to_vec();
    bytes[..8].copy_from_slice(b"HRTHMAN1");
    bytes[9] = if bytes[8] & 1 == 0 { 2 } else { 1 };
    bytes[8] &= 1;
    bytes[10..12].fill(0);
    let records = u32::try_from(page.len().saturating_sub(16) / 44).unwrap_or(0);
    bytes[12..16].copy_from_slice(&records.to_le_bytes());
    bytes[32..36].copy_from_slice(&1_u32.to_le_bytes());
    bytes[36..40].fill(0);
    let mut page = page.to_vec();
    if page.len() >= 8 {
        page[..4].fill(0);
        page[4..8].copy_from_slice(&records.to_le_bytes());
    }
    bytes.extend_from_slice(PageDigest::of(&page).as_bytes());
    let Ok(root) = ManifestRoot::decode(&bytes) else { return };
    let mut walk = ManifestWalk::new(&root);
    if let Ok(page) = walk.step(&page) {
        let mut end = 0;
        for record in page.records() {
            assert!(record.offset >= end && record.end() <= root.raw_bytes());
            end = record.end();
        }
        if walk.finish().is_ok() {
            assert_eq!(page.records().iter().map(|r| u64::from(r.raw_len)).sum::<u64>(), root.data_bytes());
        }
    }
});
