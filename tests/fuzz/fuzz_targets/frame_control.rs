//! Messages of the control stream, both directions.
#![no_main]
use hearth_fuzz::{pick, round_trip};
use hearth_protocol::message::control::{ToAgent, ToController};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some((kind, body)) = pick(&[ToController::KINDS, ToAgent::KINDS].concat(), input) {
        round_trip::<ToController>(kind, body);
        round_trip::<ToAgent>(kind, body);
    }
});
