//! A host's own clock, its crashes, and what it does while nobody leads.

use hearth_agent::logic::swarm::{Downloads, Ended, Neighbours, Uploads, WINDOW_MAX};

use super::host::SOURCE;
use super::world::{ALONE_US, Event, LOOK_US, VALIDITY_MS, World, window};

impl World {
    pub(super) fn look(&mut self, host: u32, boot: u32) {
        let now_us = self.now_us;
        let this = &self.hosts[host as usize];
        if this.boot != boot || !this.is_up {
            return;
        }
        self.at(now_us + LOOK_US, Event::Look { host, boot });
        let stalled = self.hosts[host as usize].downloads.stalled(now_us / 1000);
        for (piece, from, how) in stalled {
            if self.flows(from, piece) {
                self.hosts[host as usize].downloads.came(piece, from, now_us / 1000);
                continue;
            }
            self.end(host, from, piece, how);
            self.free_slot(from, host, piece);
        }
        let expired = self.hosts[host as usize].downloads.expire(now_us / 1000);
        for (piece, _) in expired {
            let waiting = self.hosts[host as usize].uploads.piece_fails(piece);
            for (other, _) in waiting {
                self.ended(other, host, piece, Ended::Late);
            }
        }
        let this = &mut self.hosts[host as usize];
        let downloads = &this.downloads;
        let missing = this.uploads.missing(|piece| downloads.expects(piece), now_us / 1000);
        for ((other, _), piece) in missing {
            self.ended(other, host, piece, Ended::Missing);
        }
        let hedged = self.hosts[host as usize].downloads.hedge(now_us / 1000);
        for (piece, from) in hedged {
            self.ask(host, from, piece);
        }
        self.plan_report(host);
        self.sign_of_life(host);
        self.alone(host);
    }

    /// Helps itself when nobody leads.
    pub(super) fn alone(&mut self, host: u32) {
        let this = &self.hosts[host as usize];
        let is_cut = this.cut_until_us > self.now_us || self.is_away();
        let wishes = WINDOW_MAX * 2;
        if !is_cut || this.heard_us + ALONE_US > self.now_us || this.downloads.n_under_way() >= wishes {
            return;
        }
        let peers: Vec<u32> = this.neighbours.all().collect();
        for peer in peers {
            let done = if self.hosts[peer as usize].is_up {
                self.hosts[peer as usize].done.clone()
            } else {
                Vec::new()
            };
            self.hosts[host as usize].neighbours.has(peer, &done);
        }
        let seed = self.random.draw();
        let this = &self.hosts[host as usize];
        let lacks = |piece: u32| !this.has(piece) && !this.downloads.expects(piece);
        let n = wishes - this.downloads.n_under_way();
        let mut leases = this.neighbours.choose(lacks, self.scenario.pieces, n, seed);
        // Who only cannot hear the controller may still fetch from it, one piece at a time.
        let asks_source = this.receiving.iter().any(|(_, from, _)| *from == SOURCE);
        if !asks_source {
            leases.extend(this.neighbours.from_source(SOURCE, lacks, self.scenario.pieces, seed));
        }
        for lease in leases {
            self.follow(host, lease);
        }
    }

    pub(super) fn crash(&mut self, host: u32) {
        let this = &mut self.hosts[host as usize];
        if !this.is_up || this.finished_us.is_some() {
            return;
        }
        this.is_up = false;
        this.boot += 1;
        this.uploads = Uploads::new(self.scenario.slots as usize);
        this.receiving.clear();
        let is_honest = this.is_honest();
        match self.scenario.return_after_us {
            Some(after_us) => self.at(self.now_us + after_us, Event::Return(host)),
            None => self.n_left -= u32::from(is_honest),
        }
    }

    pub(super) fn come_back(&mut self, host: u32) {
        let left = self.scenario.pieces - self.hosts[host as usize].n_done;
        let this = &mut self.hosts[host as usize];
        this.is_up = true;
        this.report_planned = false;
        this.downloads = Downloads::new(window(&self.scenario), VALIDITY_MS, self.scenario.pieces, left);
        this.neighbours = Neighbours::default();
        let old = this.number;
        self.planner.leave(old, self.now_us);
        self.join(host);
    }
}
