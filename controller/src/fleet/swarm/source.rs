//! The controller as the source of campaigns: how much it sends at once, and how fast.
//!
//! **What.** Requests for leased pieces wait for a place and then for their time.
//! **Why they wait and are not sent away.** The planner gave out what the source can send in the next half second; a request
//! that came back later would leave a gap on the uplink that everybody waits for.
//! **Why in the order in which they come.** The planner shares out the source; whoever were overtaken here would lose his lease.
//! **Why not the places of other requests.** A restore of one host must not wait for a campaign, nor the other way round.
//! **Invariants.** All campaigns together send no faster than configured. A place is held no longer than [`Turn::longest`], and a
//! receiver has no more than [`PLACES_EACH`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::LocationId;
use hearth_protocol::piece::PIECE_BYTES_MAX;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{sleep, timeout};

use super::{Pass, Swarms, lock};
use crate::logic::pace::Pace;

/// Leased pieces sent at once: as many as a host sends, which is what the planner counts on. More would come all later.
const PLACES: usize = 4;
/// Bytes on the wire for a hundred of chunks: headers of Ethernet, IP, UDP and QUIC, and acknowledgements. What were sent above
/// the line's speed would wait in front of it, and every piece would be late.
pub(super) const WIRE_PERCENT: u64 = 107;
/// Of these, for one receiver: who reads slowly must not keep the others waiting.
const PLACES_EACH: usize = PLACES / 2;
/// Longest wait for a place; an agent that hears nothing for so long has gone on without it.
const WAIT_MAX: Duration = Duration::from_secs(10);
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
    /// Places of each receiver that has or awaits one.
    each: Mutex<HashMap<LocationId, Arc<Semaphore>>>,
    pace: Mutex<Pace>,
    bytes_per_s: u64,
}

impl Source {
    pub(super) fn new(bytes_per_s: u64) -> Self {
        Self {
            places: Semaphore::new(PLACES),
            each: Mutex::default(),
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
    _own: OwnedSemaphorePermit,
}

impl Source {
    /// A place of its own first, so that what it waits for in vain takes nobody else's.
    async fn place(&self, location: LocationId) -> Option<(OwnedSemaphorePermit, SemaphorePermit<'_>)> {
        let own = {
            let mut each = lock(&self.each);
            each.retain(|_, own| Arc::strong_count(own) > 1);
            Arc::clone(each.entry(location).or_insert_with(|| Arc::new(Semaphore::new(PLACES_EACH))))
        };
        // Fails only if a semaphore is closed, which none is.
        let own = own.acquire_owned().await.ok()?;
        Some((own, self.places.acquire().await.ok()?))
    }
}

impl Swarms {
    /// Waits for a place to send a leased piece; `None`: it took too long, or the lease is over. `now_ms` is the clock.
    pub(crate) async fn turn(
        &self,
        (location, content, piece): (LocationId, ContentId, u32),
        now_ms: impl Fn() -> u64,
    ) -> Option<Turn<'_>> {
        let (own, place) = timeout(WAIT_MAX, self.source.place(location)).await.ok()??;
        let is_leased = self.pass(location, content, piece, now_ms()) == Pass::Leased;
        is_leased.then_some(Turn { source: &self.source, _place: place, _own: own })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a place comes at once.
    async fn has_place(source: &Source, of: u8) -> Option<(OwnedSemaphorePermit, SemaphorePermit<'_>)> {
        let place = source.place(LocationId::from_bytes([of; 16]));
        timeout(Duration::from_millis(20), place).await.ok().flatten()
    }

    #[tokio::test]
    async fn one_receiver_has_half_of_the_places_and_gives_them_back() {
        let source = Source::new(1 << 20);
        let mine = [has_place(&source, 1).await, has_place(&source, 1).await];
        assert!(mine.iter().all(Option::is_some) && has_place(&source, 1).await.is_none());
        let others = [has_place(&source, 2).await, has_place(&source, 3).await];
        assert!(others.iter().all(Option::is_some) && has_place(&source, 4).await.is_none(), "all are taken");
        drop(mine);
        assert!(has_place(&source, 1).await.is_some() && has_place(&source, 4).await.is_some());
        drop(others);
        assert!(has_place(&source, 5).await.is_some());
        assert_eq!(lock(&source.each).len(), 1, "who left is forgotten");
    }
}
