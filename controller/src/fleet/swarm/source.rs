//! The controller as the source of campaigns: how much it sends at once, and how fast.
//!
//! **What.** Requests for leased pieces wait for a place and then for their time.
//! **Why they wait and are not sent away.** The planner gave out what the source can send in the next half second; a request
//! that came back later would leave a gap on the uplink that everybody waits for.
//! **Why not the places of other requests.** A restore of one host must not wait for a campaign, nor the other way round.
//! **Invariants.** All campaigns together send no faster than configured. A receiver holds no more than a fair part of the places.

use std::sync::Mutex;
use std::time::Duration;

use hearth_protocol::id::LocationId;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::{Swarms, lock};
use crate::logic::pace::Pace;
use crate::logic::slots::Slots;

/// Leased pieces sent at once: as many as a host sends, which is what the planner counts on. More would come all later.
const PLACES: usize = 4;
/// Bytes on the wire for a hundred of chunks: headers of Ethernet, IP, UDP and QUIC, and acknowledgements. What were sent above
/// the line's speed would wait in front of it, and every piece would be late.
pub(super) const WIRE_PERCENT: u64 = 107;
/// A lease is worth nothing after this.
const WAIT_MAX_MS: u64 = 2500;
/// How long a request sleeps at most before it looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// After a pause, what passes in so long goes at once, µs.
const BURST_US: u64 = 50_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Source {
    places: Mutex<Slots<LocationId>>,
    freed: Notify,
    pace: Mutex<Pace>,
}

impl Source {
    pub(super) fn new(bytes_per_s: u64) -> Self {
        Self {
            places: Mutex::new(Slots::new(PLACES)),
            freed: Notify::new(),
            pace: Mutex::new(Pace::new(bytes_per_s, BURST_US)),
        }
    }
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    source: &'a Source,
    location: LocationId,
}

impl Swarms {
    /// Waits for a place to send a leased piece; `None`: it took too long. `now_ms` is the clock.
    pub(crate) async fn turn(&self, location: LocationId, now_ms: impl Fn() -> u64) -> Option<Turn<'_>> {
        let give_up_ms = now_ms() + WAIT_MAX_MS;
        loop {
            let freed = self.source.freed.notified();
            if lock(&self.source.places).take(location, now_ms()).is_ok() {
                return Some(Turn { source: &self.source, location });
            }
            if now_ms() >= give_up_ms {
                return None;
            }
            // Whoever is woken may find that the place is kept for somebody else.
            drop(timeout(LOOK_AGAIN, freed).await);
        }
    }
}

impl Turn<'_> {
    /// Waits until so many bytes may be sent; `now_us` by any clock that does not go back.
    pub(crate) async fn wait(&self, bytes: usize, now_us: u64) {
        let wire_bytes = bytes as u64 * WIRE_PERCENT / 100;
        let wait_us = lock(&self.source.pace).take(wire_bytes, now_us);
        if wait_us > 0 {
            sleep(Duration::from_micros(wait_us)).await;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.source.places).give_back(self.location);
        self.source.freed.notify_one();
    }
}
