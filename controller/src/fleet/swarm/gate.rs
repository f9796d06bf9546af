//! Which pieces the controller itself serves while a campaign runs.
//!
//! **What.** A receiver of a campaign is served the pieces that were leased to it from the source, and no others; everybody
//! else is served as if there were no campaign.
//! **Why.** The source sends each piece about once. A receiver that fetched what it likes would take the uplink from all others.
//! **Why a receiver that does not answer is served.** An agent that cannot take part must not wait for ever: after
//! [`ANSWER_WITHIN_MS`] it is served like anybody.
//!
//! **Invariants.** A receiver is in here before its agent is given the plan, so that it fetches nothing before its first lease.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hearth_protocol::id::LocationId;

use crate::logic::swarm::{HostNo, Planner};

/// How long a receiver that was asked to take part and says nothing is kept from fetching, ms.
const ANSWER_WITHIN_MS: u64 = 30_000;

/// What becomes of a request for a piece.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Pass {
    /// It is served as if there were no campaign.
    Direct,
    /// It was leased.
    Leased,
    /// It comes from other hosts.
    Elsewhere,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Gate {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    receivers: HashMap<LocationId, Receiver>,
    /// Who was put out of the campaign.
    barred: HashSet<LocationId>,
    leased: HashMap<(LocationId, u32), HostNo>,
}

#[derive(Clone, Copy, Debug)]
struct Receiver {
    /// Number of its session.
    session: u64,
    /// When it was asked to take part; `None`: it does.
    asked_ms: Option<u64>,
}

impl Gate {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a piece is served to a location now.
    pub(super) fn pass(&self, location: LocationId, piece: u32, now_ms: u64) -> Pass {
        let inner = self.inner();
        let Some(receiver) = inner.receivers.get(&location) else { return Pass::Direct };
        if inner.leased.contains_key(&(location, piece)) {
            return Pass::Leased;
        }
        match receiver.asked_ms {
            Some(asked_ms) if now_ms.saturating_sub(asked_ms) > ANSWER_WITHIN_MS => Pass::Direct,
            _ => Pass::Elsewhere,
        }
    }

    /// The receivers are these, each with the number of its session.
    pub(super) fn set_receivers(&self, receivers: impl Iterator<Item = (LocationId, u64)>, now_ms: u64) {
        let mut inner = self.inner();
        let mut before = std::mem::take(&mut inner.receivers);
        for (location, session) in receivers {
            if inner.barred.contains(&location) {
                continue;
            }
            let known = before.remove(&location).filter(|receiver| receiver.session == session);
            let receiver = known.unwrap_or(Receiver { session, asked_ms: Some(now_ms) });
            inner.receivers.insert(location, receiver);
        }
        let Inner { receivers, leased, .. } = &mut *inner;
        leased.retain(|(location, _), _| receivers.contains_key(location));
    }

    /// A receiver is asked (`Some`: when) or has answered.
    pub(super) fn asked(&self, location: LocationId, asked_ms: Option<u64>) {
        if let Some(receiver) = self.inner().receivers.get_mut(&location) {
            receiver.asked_ms = asked_ms;
        }
    }

    /// A location takes no part any more, whatever is wished.
    pub(super) fn bar(&self, location: LocationId) {
        let mut inner = self.inner();
        inner.barred.insert(location);
        inner.receivers.remove(&location);
        inner.leased.retain(|(at, _), _| *at != location);
    }

    /// Whether a location was put out.
    pub(super) fn is_barred(&self, location: LocationId) -> bool {
        self.inner().barred.contains(&location)
    }

    /// Pieces were leased to a location.
    pub(super) fn lease(&self, location: LocationId, host: HostNo, pieces: impl Iterator<Item = u32>) {
        let mut inner = self.inner();
        inner.leased.extend(pieces.map(|piece| ((location, piece), host)));
    }

    /// Forgets leases that ended.
    pub(super) fn prune(&self, planner: &Planner) {
        self.inner().leased.retain(|(_, piece), host| planner.awaits_source(*host, *piece));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::swarm::{Joining, Settings};

    #[test]
    fn a_receiver_gets_what_is_leased_and_others_get_everything() {
        let (at, other) = (LocationId::from_bytes([1; 16]), LocationId::from_bytes([2; 16]));
        let gate = Gate::default();
        gate.set_receivers([(at, 1)].into_iter(), 1000);
        assert_eq!(gate.pass(other, 0, 1000), Pass::Direct);
        assert_eq!(gate.pass(at, 0, 1000), Pass::Elsewhere);
        assert_eq!(gate.pass(at, 0, 1000 + ANSWER_WITHIN_MS + 1), Pass::Direct, "it never answered");
        gate.asked(at, None);
        assert_eq!(gate.pass(at, 0, 1000 + ANSWER_WITHIN_MS + 1), Pass::Elsewhere);

        let mut planner = Planner::new(Settings::default(), 4, 1 << 20, 1 << 30);
        let joining = Joining { rack: 0, upload_bytes_per_s: 1 << 20, download_bytes_per_s: 1 << 20 };
        let host = planner.join(joining, [], 0);
        let mut leases = Vec::new();
        planner.plan(0, &mut leases);
        gate.lease(at, host, leases.iter().map(|lease| lease.piece));
        let piece = leases[0].piece;
        gate.prune(&planner);
        assert_eq!(gate.pass(at, piece, 2000), Pass::Leased);
        planner.sent(host, piece, 1);
        gate.prune(&planner);
        assert_eq!(gate.pass(at, piece, 2000), Pass::Elsewhere, "it was sent");

        gate.bar(at);
        gate.set_receivers([(at, 1)].into_iter(), 3000);
        assert_eq!(gate.pass(at, piece, 3000), Pass::Direct, "who was put out is served like anybody");
    }
}
