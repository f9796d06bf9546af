//! The controller as the source of campaigns: how much it sends at once, and how fast.
//!
//! **What.** Requests for leased pieces wait for a place and then for their time.
//! **Why they wait and are not sent away.** The planner gave out what the source can send in the next half second; a request
//! that came back later would leave a gap on the uplink that everybody waits for.
//! **Why in the order in which they come.** The planner shares out the source; whoever were overtaken here would lose his lease.
//! **Why not the places of other requests.** A restore of one host must not wait for a campaign, nor the other way round.
//! **Invariants.** All campaigns together send no faster than configured. A place is held no longer than [`Turn::longest`].

use std::sync::Mutex;
use std::time::Duration;

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::LocationId;
use hearth_protocol::piece::PIECE_BYTES_MAX;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{sleep, timeout};

use super::{Pass, Swarms, lock};
use crate::logic::pace::Pace;

/// Leased pieces sent at once: as many as a host sends, which is what the planner counts on. More would come all later.
const PLACES: usize = 4;
/// Bytes on the wire for a hundred of chunks: headers of Ethernet, IP, UDP and QUIC, and acknowledgements. What were sent above
/// the line's speed would wait in front of it, and every piece would be late.
pub(super) const WIRE_PERCENT: u64 = 107;
/// Longest wait for a place; what is leased that long is leased anew meanwhile.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest time for one leased piece, beside what all places need at the source's rate: a receiver that takes it drop by drop
/// must not keep the others waiting.
const TURN_MAX: Duration = Duration::from_secs(30);
/// After a pause, what passes in so long goes at once, µs.
const BURST_US: u64 = 50_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Source {
    /// First come, first served.
    places: Semaphore,
    pace: Mutex<Pace>,
    bytes_per_s: u64,
}

impl Source {
    pub(super) fn new(bytes_per_s: u64) -> Self {
        Self {
            places: Semaphore::new(PLACES),
            pace: Mutex::new(Pace::new(bytes_per_s, BURST_US)),
            bytes_per_s: bytes_per_s.max(1),
        }
    }
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    source: &'a Source,
    _place: SemaphorePermit<'a>,
}

impl Swarms {
    /// Waits for a place to send a leased piece; `None`: it took too long, or the lease is over. `now_ms` is the clock.
    pub(crate) async fn turn(
        &self,
        (location, content, piece): (LocationId, ContentId, u32),
        now_ms: impl Fn() -> u64,
    ) -> Option<Turn<'_>> {
        let place = timeout(WAIT_MAX, self.source.places.acquire()).await.ok()?.ok()?;
        let is_leased = self.pass(location, content, piece, now_ms()) == Pass::Leased;
        is_leased.then_some(Turn { source: &self.source, _place: place })
    }
}

impl Turn<'_> {
    /// How long the piece may take.
    pub(crate) fn longest(&self) -> Duration {
        let all_bytes = PLACES as u64 * PIECE_BYTES_MAX * WIRE_PERCENT / 100;
        TURN_MAX + Duration::from_millis(all_bytes.saturating_mul(1000) / self.source.bytes_per_s)
    }

    /// Waits until so many bytes may be sent; `now_us` by any clock that does not go back.
    pub(crate) async fn wait(&self, bytes: usize, now_us: u64) {
        let wire_bytes = bytes as u64 * WIRE_PERCENT / 100;
        let wait_us = lock(&self.source.pace).take(wire_bytes, now_us);
        if wait_us > 0 {
            sleep(Duration::from_micros(wait_us)).await;
        }
    }
}
