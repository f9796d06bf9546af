//! Shared by the fuzz targets.
//!
//! **What.** Round trip of a message: what decodes must encode to the very bytes it came from.
//! **Why.** "Does not panic" is the weakest claim; a codec with one spelling per message has no hidden states.

use hearth_protocol::frame::Message;

/// Decodes `body` as message `kind`; if that works, encoding must give the same bytes back.
pub fn round_trip<M: Message>(kind: u16, body: &[u8]) {
    if let Ok(message) = M::from_body(kind, body) {
        let frame = message.to_frame().expect("what was decoded can be encoded");
        assert_eq!(&frame[hearth_protocol::frame::HEADER_BYTES..], body);
    }
}

/// The first byte picks one of `kinds`, the rest is the body.
pub fn pick<'a>(kinds: &[u16], input: &'a [u8]) -> Option<(u16, &'a [u8])> {
    let (first, body) = input.split_first()?;
    Some((kinds[usize::from(*first) % kinds.len()], body))
}
