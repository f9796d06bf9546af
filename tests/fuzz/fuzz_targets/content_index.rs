//! The content index, as it came and with its digest made right, so that the records are reached.
#![no_main]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "a file of the controller is built here without the controller"
)]

// By path, because with the whole controller a build of the targets would take as long as the controller's.
#[path = "../../../controller/src/content/index.rs"]
mod index;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    assert!(index::decode(input).is_err() || input.starts_with(b"HRTHIDX1"));
    let Some((header, records)) = input.split_at_checked(64) else { return };
    let mut bytes = header.to_vec();
    bytes[..12].copy_from_slice(b"HRTHIDX1\x01\0\0\0");
    let n = u32::try_from(records.len() / 13).unwrap_or(0);
    bytes[12..16].copy_from_slice(&n.to_le_bytes());
    bytes[20..24].fill(0);
    let records = &records[..n as usize * 13];
    let digest = blake3::Hasher::new().update(&bytes).update(blake3::hash(records).as_bytes()).finalize();
    bytes.extend_from_slice(digest.as_bytes());
    bytes.extend_from_slice(records);
    if let Ok((header, records)) = index::decode(&bytes) {
        assert_eq!(records.len(), header.n_chunks as usize);
        for record in records {
            assert!(
                record.stored_len > 0 && record.offset + u64::from(record.stored_len) <= header.object_bytes
            );
        }
    }
});
