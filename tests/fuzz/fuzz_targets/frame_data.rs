//! Messages of data streams, and frame headers.
#![no_main]
use hearth_fuzz::{pick, round_trip};
use hearth_protocol::frame::{BODY_BYTES_MAX, FrameHeader};
use hearth_protocol::message::data::{DataReply, DataRequest};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some((kind, body)) = pick(&[DataRequest::KINDS, DataReply::KINDS].concat(), input) {
        round_trip::<DataRequest>(kind, body);
        round_trip::<DataReply>(kind, body);
    }
    if let Some(Ok(header)) = input.get(..6).map(|h| FrameHeader::parse(h.try_into().expect("six bytes"))) {
        assert!(header.body_bytes <= BODY_BYTES_MAX);
    }
});
