//! Bytes between hosts: who asks whom, who is served, how transfers end.

use hearth_agent::logic::swarm as peer;
use hearth_agent::logic::swarm::{Ended, Uploads, Wish};

use super::host::{Nature, SOURCE};
use super::world::{Event, HANDSHAKE_US, LOOK_US, World};

impl World {
    pub(super) fn follow(&mut self, host: u32, lease: peer::Lease<u32>) {
        let now_ms = self.now_us / 1000;
        let this = &mut self.hosts[host as usize];
        if this.has(lease.piece) {
            this.downloads.has_already(lease.piece);
            return self.plan_report(host);
        }
        lease
            .holders
            .into_iter()
            .flatten()
            .filter(|peer| *peer != SOURCE)
            .for_each(|peer| this.neighbours.note(peer));
        let asked = this.downloads.take(lease, now_ms);
        for from in asked {
            self.ask(host, from, lease.piece);
        }
    }

    pub(super) fn ask(&mut self, host: u32, from: u32, piece: u32) {
        let server = &mut self.hosts[from as usize];
        if !server.is_up {
            return; // The request is never answered; it expires.
        }
        let is_here = server.has(piece) || server.whole_at(piece).is_some();
        match server.uploads.ask((host, piece), piece, is_here, self.now_us / 1000) {
            peer::Answer::Waits => self.serve(from),
            peer::Answer::Busy => self.ended(host, from, piece, Ended::Busy),
        }
    }

    /// Fills the free slots of a host.
    pub(super) fn serve(&mut self, from: u32) {
        if !self.hosts[from as usize].is_up {
            return;
        }
        loop {
            let mut uploads = std::mem::replace(&mut self.hosts[from as usize].uploads, Uploads::new(0));
            let hosts = &self.hosts;
            let wish = |(to, _): (u32, u32), piece| {
                let receiver = &hosts[to as usize];
                if receiver.is_up && !receiver.has(piece) {
                    receiver.downloads.wish(piece, from)
                } else {
                    Wish::Never
                }
            };
            let next = uploads.next(wish, |one, other| one.0 == other.0);
            self.hosts[from as usize].uploads = uploads;
            let Some(((to, _), piece)) = next else { return };
            self.begin(to, from, piece);
        }
    }

    pub(super) fn begin(&mut self, to: u32, from: u32, piece: u32) {
        let step_us = self.scenario.step_us();
        let server = &self.hosts[from as usize];
        let has_all = server.has(piece);
        let (nature, speed) = (server.nature, server.speed);
        let receiver = &mut self.hosts[to as usize];
        receiver.downloads.begins(piece, from, has_all, self.now_us / 1000);
        let incoming = receiver.receiving.len() as u64 + 1;
        let up = u64::from(self.scenario.slots) * 4 / speed;
        let down = (incoming * 4 / receiver.speed / 2).max(1);
        let jitter = self.scenario.jitter_percent * 10;
        let factor = self.random.between(1000 - jitter, 1000 + jitter);
        let takes_us = step_us * up.max(down) * factor / 1000 + HANDSHAKE_US;
        let (takes_us, is_right) = match nature {
            // It never ends: the receiver gives it up.
            Nature::Stalling => (3_600_000_000, false),
            // Noticed at the first chunks.
            Nature::Corrupt => (takes_us / 8, false),
            _ => (takes_us, true),
        };
        let whole_us = self.now_us + takes_us;
        let boots = (self.hosts[to as usize].boot, self.hosts[from as usize].boot);
        self.hosts[to as usize].receiving.push((piece, from, whole_us));
        self.at(whole_us, Event::Sent { to, from, piece, boots, is_right });
        if is_right {
            self.hosts[to as usize].uploads.piece_begins(piece);
            self.serve(to);
        }
    }

    pub(super) fn sent(&mut self, to: u32, from: u32, piece: u32, boots: (u32, u32), is_right: bool) {
        let (receiver, server) = (&self.hosts[to as usize], &self.hosts[from as usize]);
        if receiver.boot != boots.0 || !receiver.is_up {
            if server.boot == boots.1 {
                self.free_slot(from, to, piece);
            }
            return;
        }
        if !receiver.receiving.iter().any(|(coming, whom, _)| (*coming, *whom) == (piece, from)) {
            return; // It was given up before.
        }
        let is_alive = server.is_up && server.boot == boots.1;
        if is_alive && is_right && !server.has(piece) {
            // It passes on: nothing ends before it has everything. Its own supplier may fail and another go on.
            if server.downloads.expects(piece) {
                let whole_us =
                    server.whole_at(piece).unwrap_or(u64::MAX).clamp(self.now_us, self.now_us + LOOK_US);
                let at_us = whole_us + self.scenario.step_us() / 4;
                self.at(at_us, Event::Sent { to, from, piece, boots, is_right });
                return;
            }
        }
        let how = match (is_alive, is_right && server.has(piece)) {
            (true, true) => Ended::Whole,
            (true, false) if server.nature == Nature::Corrupt => Ended::Wrong,
            (true, false) if is_right => Ended::Late,
            _ => Ended::Broken,
        };
        if how == Ended::Broken && !is_alive {
            return; // No byte comes any more; the receiver notices by itself.
        }
        let accuses = receiver.nature == Nature::Accusing && from != SOURCE;
        self.end(to, from, piece, if accuses { Ended::Wrong } else { how });
        self.free_slot(from, to, piece);
    }

    /// A transfer is over at the receiver.
    pub(super) fn end(&mut self, to: u32, from: u32, piece: u32, how: Ended) {
        let rack = self.rack(to) as usize;
        let crosses = from == SOURCE || self.rack(from) as usize != rack;
        let receiver = &mut self.hosts[to as usize];
        receiver.receiving.retain(|(coming, whom, _)| (*coming, *whom) != (piece, from));
        if how == Ended::Whole {
            receiver.put(piece);
            self.entered[rack] += u64::from(crosses);
            self.hosts[from as usize].sent_pieces += 1;
            if from == SOURCE {
                let number = self.hosts[to as usize].number;
                let begun = hearth_controller::clock::monotonic();
                self.planner.sent(number, piece, self.now_us);
                self.cpu += begun.elapsed();
            }
            let receiver = &mut self.hosts[to as usize];
            if receiver.n_done == self.scenario.pieces && receiver.finished_us.is_none() {
                receiver.finished_us = Some(self.now_us);
                self.n_left -= u32::from(receiver.is_honest());
            }
            // A second transfer of the same piece is called off.
            let others: Vec<u32> = receiver.receiving.iter().filter(|r| r.0 == piece).map(|r| r.1).collect();
            receiver.receiving.retain(|(coming, ..)| *coming != piece);
            self.ended(to, from, piece, how);
            others.into_iter().for_each(|other| self.free_slot(other, to, piece));
        } else {
            self.ended(to, from, piece, how);
        }
    }

    /// Tells the receiver's decisions how a request ended, and asks whom they name.
    pub(super) fn ended(&mut self, to: u32, from: u32, piece: u32, how: Ended) {
        let now_ms = self.now_us / 1000;
        let receiver = &mut self.hosts[to as usize];
        let again = receiver.downloads.ended(piece, from, how, now_ms);
        if matches!(how, Ended::Wrong | Ended::Broken) {
            receiver.neighbours.forget(from);
        }
        if !receiver.downloads.expects(piece) && !receiver.has(piece) {
            let waiting = receiver.uploads.piece_fails(piece);
            for (other, _) in waiting {
                self.ended(other, to, piece, Ended::Late);
            }
        }
        self.plan_report(to);
        for other in again {
            self.ask(to, other, piece);
        }
    }

    pub(super) fn free_slot(&mut self, from: u32, to: u32, piece: u32) {
        self.hosts[from as usize].uploads.ended((to, piece));
        self.serve(from);
    }

    /// Whether bytes of a piece come from a host: the model has no single bytes.
    pub(super) fn flows(&self, from: u32, piece: u32) -> bool {
        let mut at = from;
        for _ in 0..self.hosts.len() {
            let server = &self.hosts[at as usize];
            if !server.is_up || server.nature == Nature::Stalling {
                return false;
            }
            if server.has(piece) {
                return true;
            }
            let Some((_, upstream, _)) = server.receiving.iter().find(|(coming, ..)| *coming == piece) else {
                return false;
            };
            at = *upstream;
        }
        false
    }
}
