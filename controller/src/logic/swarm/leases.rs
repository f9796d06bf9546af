//! Leases from their birth to their end.
//!
//! **What.** Each lease is on its receiver's list, on its supplier's load and, if it crosses, on its rack's budget, and is taken
//! off all of them whichever way it ends.
//! **Why expiry looks at a part.** Ten thousand lists forty times a second would cost more than the plan; a lease that ends a few
//! calls late harms nobody.

use super::blame::Failure;
use super::choose::Choice;
use super::member::UnderWay;
use super::planner::Planner;
use super::{HostNo, Lease, SOURCE};

/// Each call looks for expired leases at this part of all hosts.
const EXPIRY_SHARE: usize = 8;

impl Planner {
    /// Gives out what was chosen for a host.
    pub(super) fn lease(&mut self, to: HostNo, choice: Choice, now_us: u64, leases: &mut Vec<Lease>) {
        let Choice { piece, from, begins_us, alternates } = choice;
        self.n_leases += 1;
        let begins_us = begins_us + self.settings.hop_us;
        self.coming.set(to, piece);
        self.add_copy(to, piece, begins_us);
        let rack = self.members[to.index()].rack;
        let crosses = from == SOURCE || self.members[from.index()].rack != rack;
        if crosses {
            self.racks.enters(rack);
        }
        if from == SOURCE {
            self.add_root(SOURCE, piece);
        }
        let load = &mut self.loads[from.index()];
        let service_us = u64::from(load.step_us) * u64::from(self.settings.slots);
        if self.done.has(from, piece) {
            load.ready += 1;
        } else {
            load.promised += 1;
            self.members[from.index()].promised.push((piece, to));
        }
        self.refresh_load(from, now_us);
        let expires_us = begins_us + service_us + self.settings.validity_us;
        let lease = UnderWay { piece, from, alternates, expires_us, crosses, is_sent: false };
        self.members[to.index()].starves_since_us = None;
        self.members[to.index()].found_nothing = false;
        self.members[to.index()].under_way.push(lease);
        self.refresh_load(to, now_us);
        leases.push(Lease { to, piece, from, alternates });
    }

    /// Withdraws what others were to get from a host; they are given other holders.
    pub(super) fn withdraw_from(&mut self, from: HostNo, now_us: u64) {
        for to in (0..self.members.len()).map(HostNo::at) {
            while let Some(at) =
                self.members[to.index()].under_way.iter().position(|lease| lease.from == from)
            {
                let lease = self.members[to.index()].under_way.swap_remove(at);
                self.withdraw(to, lease, now_us);
                self.failed.set(to, lease.piece);
                self.hungry.put(to, true);
            }
        }
    }

    /// A lease that will not be fulfilled.
    pub(super) fn withdraw(&mut self, host: HostNo, lease: UnderWay, now_us: u64) {
        self.coming.clear(host, lease.piece);
        self.drop_copy(host, lease.piece);
        self.release(host, lease, now_us);
    }

    /// Takes a lease that ended off its supplier's load and its rack's budget.
    pub(super) fn release(&mut self, host: HostNo, lease: UnderWay, now_us: u64) {
        if lease.crosses {
            self.racks.entered(self.members[host.index()].rack);
        }
        if lease.from == SOURCE {
            self.drop_root(SOURCE, lease.piece, now_us);
        }
        if lease.is_sent {
            return;
        }
        let promised = &mut self.members[lease.from.index()].promised;
        let load = &mut self.loads[lease.from.index()];
        match promised.iter().position(|promise| *promise == (lease.piece, host)) {
            Some(at) => {
                promised.swap_remove(at);
                load.promised -= 1;
            }
            None => load.ready -= 1,
        }
        self.refresh_load(lease.from, now_us);
    }

    /// Notes whether a host may be given more to send.
    pub(super) fn refresh_load(&mut self, host: HostNo, now_us: u64) {
        let (at, slots) = (host.index(), u64::from(self.settings.slots));
        let horizon_us =
            if host == SOURCE { self.settings.source_horizon_us } else { self.settings.horizon_us };
        let (load, member) = (&mut self.loads[at], &self.members[at]);
        let step_us = u64::from(load.step_us);
        let has_room = u64::from(load.ready) * step_us <= horizon_us.max(2 * slots * step_us);
        load.may_serve = !member.is_gone && !member.blame.is_out(now_us);
        load.is_free = has_room && load.may_serve;
        self.free.put(host, load.is_free && host != SOURCE);
    }

    pub(super) fn expire(&mut self, now_us: u64) {
        if self.planned_us + self.settings.silence_us / 2 < now_us {
            // It was the planner that was away: what the hosts said meanwhile is still to come.
            self.members.iter_mut().for_each(|member| member.heard_us = now_us);
        }
        for _ in 0..self.members.len() / EXPIRY_SHARE + 1 {
            self.next_expiry = (self.next_expiry + 1) % self.members.len();
            let host = HostNo::at(self.next_expiry);
            let member = &mut self.members[host.index()];
            if member.is_gone {
                continue;
            }
            if host != SOURCE && member.heard_us + self.settings.silence_us <= now_us {
                self.leave(host, now_us);
                continue;
            }
            if member.blame.came_back(now_us) {
                self.regard(host);
                self.refresh_load(host, now_us);
            }
            let leases = self.members[host.index()].under_way.iter();
            let expired: Vec<UnderWay> = leases.filter(|lease| lease.expires_us <= now_us).copied().collect();
            for lease in expired {
                self.failed(host, lease.piece, lease.from, Failure::Late, true, now_us);
            }
        }
    }
}
