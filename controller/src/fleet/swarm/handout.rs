//! Leases on their way to the hosts.
//!
//! **What.** What the planner gave out is sorted by host, cut into messages that fit a frame, and each holder that a host has
//! not heard of is described before it is named.
//! **Why a message that finds no room is dropped.** A host that does not read its control stream does not fetch either; its
//! leases expire and go to others.
//! **Invariants.** No lease names a host that its receiver was not told about. What is leased from the source is let through
//! the gate before the host hears of it.

use std::collections::HashMap;

use hearth_protocol::message::control::ToAgent;
use hearth_protocol::message::swarm::{
    Campaign as CampaignId, PEERS_MAX, PIECE_LEASES_MAX, PeerV1, PieceLease, PieceLeasesV1,
};

use super::campaign::Campaign;
use super::members::Members;
use crate::logic::swarm::{HostNo, Lease, SOURCE};

/// A message in the making.
#[derive(Debug)]
struct Letter {
    peers: HashMap<HostNo, PeerV1>,
    leases: Vec<PieceLease>,
}

impl Campaign {
    /// Sends leases to their hosts.
    pub(super) fn hand_out(&mut self, leases: &mut [Lease]) {
        // Stable: each host keeps the order of the planner.
        leases.sort_by_key(|lease| lease.to);
        for of_one in leases.chunk_by(|a, b| a.to == b.to) {
            self.hand_to(of_one[0].to, of_one);
        }
    }

    fn hand_to(&mut self, to: HostNo, leases: &[Lease]) {
        let mut rest = leases;
        while !rest.is_empty() {
            let (letter, n_taken) = letter(&self.members, to, rest);
            let taken = &rest[..n_taken];
            rest = &rest[n_taken..];
            if letter.leases.is_empty() {
                continue;
            }
            let Some(location) = self.members.row(to.number()).and_then(|row| row.location) else { return };
            let Some(member) = self.members.by_location.get_mut(&location) else { return };
            let from_source = taken.iter().filter(|lease| lease.from == SOURCE).map(|lease| lease.piece);
            self.handle.gate.lease(location, to, from_source);
            let numbers: Vec<u32> = letter.peers.keys().map(|host| host.number()).collect();
            if !member.session.swarm_say(letter.into_message(self.handle.campaign)) {
                tracing::debug!(%location, "a host does not read its leases; they expire");
                return;
            }
            numbers.into_iter().for_each(|number| member.told(number));
        }
    }
}

/// The next message for a host, and how many of the leases it took up. Leases whose holders have all left are left out.
fn letter(members: &Members, to: HostNo, leases: &[Lease]) -> (Letter, usize) {
    let mut letter = Letter { peers: HashMap::new(), leases: Vec::new() };
    let Some(receiver) = members.of(to) else { return (letter, leases.len()) };
    for (at, lease) in leases.iter().enumerate() {
        if letter.leases.len() == PIECE_LEASES_MAX {
            return (letter, at);
        }
        let named = [Some(lease.from), lease.alternates[0], lease.alternates[1]];
        let new = named.into_iter().flatten().filter(|host| {
            *host != SOURCE && !receiver.knows(host.number()) && !letter.peers.contains_key(host)
        });
        let new: Vec<(HostNo, PeerV1)> =
            new.filter_map(|host| Some((host, members.describe(host)?))).collect();
        if letter.peers.len() + new.len() > PEERS_MAX {
            return (letter, at);
        }
        letter.peers.extend(new);
        let reached = |host: &HostNo| {
            *host == SOURCE || receiver.knows(host.number()) || letter.peers.contains_key(host)
        };
        let holders: Vec<u32> = named.into_iter().flatten().filter(reached).map(HostNo::number).collect();
        if !holders.is_empty() {
            letter.leases.push(PieceLease { piece: lease.piece, holders });
        }
    }
    (letter, leases.len())
}

impl Letter {
    fn into_message(self, campaign: CampaignId) -> ToAgent {
        let mut peers: Vec<PeerV1> = self.peers.into_values().collect();
        peers.sort_unstable_by_key(|peer| peer.host);
        ToAgent::PieceLeases(PieceLeasesV1 { campaign, peers, leases: self.leases })
    }
}
