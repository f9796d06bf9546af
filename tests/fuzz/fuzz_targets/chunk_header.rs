//! Headers before chunks on a data stream.
#![no_main]
use hearth_protocol::manifest::CHUNK_BYTES_MAX;
use hearth_protocol::message::data::ChunkHeader;

libfuzzer_sys::fuzz_target!(|input: [u8; 9]| {
    if let Ok(header) = ChunkHeader::parse(input) {
        assert!((1..=CHUNK_BYTES_MAX).contains(&header.stored_len));
        assert_eq!(header.encode(), input);
    }
});
