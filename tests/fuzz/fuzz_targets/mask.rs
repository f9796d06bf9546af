//! Chunk masks from requests.
#![no_main]
use hearth_protocol::mask::ChunkMask;

libfuzzer_sys::fuzz_target!(|input: (u16, Vec<u8>)| {
    let (len, bytes) = (u32::from(input.0), input.1);
    if let Ok(mask) = ChunkMask::from_bytes(&bytes, len) {
        assert_eq!(mask.as_bytes(), bytes);
        assert_eq!(mask.iter().count() as u32, mask.count());
        assert!(mask.iter().all(|chunk| chunk < len));
    }
});
