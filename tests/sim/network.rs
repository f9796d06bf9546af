//! The network: who hears what, and when.
//!
//! **What.** Control messages of a session travel as on a QUIC stream: 50 to 250 ms late, in order, later still when a
//! packet was lost, not at all once the session is gone. Data requests and answers travel each for itself: lost and
//! reordered. Plans are besides heard again much later, in whatever session there is then.
//! **Why a partition keeps stream messages back.** A stream that survives a short break loses nothing; one that does not
//! loses all that was under way. Both happen here.
//! **Invariants.** No message of a session overtakes another of the same direction.

use std::collections::BTreeMap;

use crate::random::Random;

/// Shortest and longest time on the way, ms.
const DELAY_MS: (u64, u64) = (50, 250);
/// Per mille of stream messages with a lost packet, and what its repetition costs, ms.
const REPEATED: u64 = 20;
const REPEAT_MS: (u64, u64) = (300, 1500);

/// Direction of a stream: from the controller, or to it.
pub(crate) type Way = (usize, bool);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Network {
    last_ms: BTreeMap<Way, u64>,
    /// Until when a host is cut off.
    cut: BTreeMap<usize, u64>,
}

impl Network {
    /// When a stream message sent now arrives.
    pub(crate) fn stream(&mut self, way: Way, now_ms: u64, random: &mut Random) -> u64 {
        let mut at = now_ms + random.between(DELAY_MS.0, DELAY_MS.1);
        if random.chance(REPEATED) {
            at += random.between(REPEAT_MS.0, REPEAT_MS.1);
        }
        self.in_order(way, at)
    }

    fn in_order(&mut self, way: Way, at_ms: u64) -> u64 {
        let last = self.last_ms.entry(way).or_default();
        *last = at_ms.max(*last + 1);
        *last
    }

    /// When a message that is for itself arrives; `None`: never.
    pub(crate) fn datagram(&self, host: usize, now_ms: u64, lost: u64, random: &mut Random) -> Option<u64> {
        let at = now_ms + random.between(DELAY_MS.0, DELAY_MS.1);
        (!random.chance(lost) && !self.is_cut(host, now_ms)).then_some(at)
    }

    /// Cuts a host off.
    pub(crate) fn cut(&mut self, host: usize, until_ms: u64) {
        let until = self.cut.entry(host).or_default();
        *until = until_ms.max(*until);
    }

    pub(crate) fn is_cut(&self, host: usize, now_ms: u64) -> bool {
        self.cut.get(&host).is_some_and(|until| *until > now_ms)
    }

    /// A stream message arrives at a host that is cut off: when it comes instead, still in order.
    pub(crate) fn held_back(&mut self, way: Way, now_ms: u64) -> Option<u64> {
        let until = *self.cut.get(&way.0).filter(|until| **until > now_ms)?;
        Some(self.in_order(way, until + DELAY_MS.0))
    }
}
