//! The UDP socket under QUIC of both daemons.
//!
//! **What.** [`MarkedSocket`] is quinn's socket on tokio with three differences: every packet carries a DSCP class beside the ECN
//! bits, bytes on the wire are counted, and it is woken up by packets and by nothing else.
//! **Why every packet.** Networks reorder between classes, and a connection in two of them takes that for loss.
//! **Why it counts.** How much of an interface others use is known only from what of it is ours, to the packet.

mod mark;
mod socket;
mod watch;

pub use socket::MarkedSocket;

/// Class of packets if none is configured: CS1, which networks that know classes put behind all others.
pub const DSCP_DEFAULT: u8 = 8;
/// Largest class.
pub const DSCP_MAX: u8 = 63;
/// Bytes of a packet on the wire beside its contents: Ethernet, IPv4, UDP.
const HEADER_BYTES: u64 = 14 + 20 + 8;

/// Bytes that something has received and sent since it began.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Moved {
    /// Received.
    pub received: u64,
    /// Sent.
    pub sent: u64,
}

impl Moved {
    /// What moved since `before`.
    #[must_use]
    pub const fn since(self, before: Self) -> Self {
        Self {
            received: self.received.saturating_sub(before.received),
            sent: self.sent.saturating_sub(before.sent),
        }
    }
}

/// What so many bytes of contents are on the wire, in packets of `packet` bytes.
fn on_wire(bytes: usize, packet: usize) -> u64 {
    bytes as u64 + HEADER_BYTES * bytes.div_ceil(packet.max(1)) as u64
}
