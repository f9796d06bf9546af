//! Messages of enrolment.
#![no_main]
use hearth_fuzz::{pick, round_trip};
use hearth_protocol::message::enrol::{EnrolReply, EnrolRequest};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some((kind, body)) = pick(&[EnrolRequest::KINDS, EnrolReply::KINDS].concat(), input) {
        round_trip::<EnrolRequest>(kind, body);
        round_trip::<EnrolReply>(kind, body);
    }
});
