//! What controller and hosts say to each other, and how late it comes.

use hearth_agent::logic::swarm as peer;
use hearth_agent::logic::swarm::{Ended, Report};
use hearth_controller::logic::swarm::{Failure, HostNo, Joining};

use super::host::Nature;
use super::world::{Event, LOOK_US, Leases, SIGN_OF_LIFE_US, TICK_US, World};

impl World {
    /// The host becomes a part of the campaign, with what it has.
    pub(super) fn enrol(&mut self, host: u32) {
        let cap = self.scenario.cap_bytes_per_s * self.hosts[host as usize].speed / 4;
        let joining =
            Joining { rack: self.rack(host), upload_bytes_per_s: cap, download_bytes_per_s: 2 * cap };
        let this = &self.hosts[host as usize];
        let lies = this.nature == Nature::Lying;
        let done: Vec<u32> =
            (0..self.scenario.pieces).filter(|piece| this.has(*piece) || (lies && piece % 3 > 0)).collect();
        let number = self.planner.join(joining, done, self.now_us);
        self.of_number.push(host);
        self.hosts[host as usize].number = number;
        self.hosts[host as usize].heard_us = self.now_us;
    }

    pub(super) fn join(&mut self, host: u32) {
        self.enrol(host);
        let boot = self.hosts[host as usize].boot;
        let first_look = self.now_us + self.random.between(0, LOOK_US);
        self.at(first_look, Event::Look { host, boot });
    }

    /// A host that was taken for gone, or comes back, tells what it has.
    pub(super) fn join_again(&mut self, host: u32) {
        let this = &self.hosts[host as usize];
        if this.is_up
            && this.cut_until_us <= self.now_us
            && !self.is_away()
            && self.planner.is_gone(this.number)
        {
            self.enrol(host);
        }
    }

    pub(super) fn plan(&mut self) {
        for host in 0..=self.scenario.hosts {
            self.serve(host);
        }
        self.at(self.now_us + TICK_US, Event::Plan);
        if self.is_away() {
            return;
        }
        let mut leases = Vec::new();
        let begun = hearth_controller::clock::monotonic();
        self.planner.plan(self.now_us, &mut leases);
        self.cpu += begun.elapsed();
        let mut touched = Vec::new();
        for lease in leases {
            let to = self.of_number[lease.to.index()];
            let of = |number: HostNo| self.of_number[number.index()];
            let holders = [Some(of(lease.from)), lease.alternates[0].map(of), lease.alternates[1].map(of)];
            if self.mail[to as usize].is_empty() {
                touched.push(to);
            }
            self.mail[to as usize].push(peer::Lease { piece: lease.piece, holders });
        }
        for host in touched {
            let leases = std::mem::take(&mut self.mail[host as usize]);
            let at_us = self.now_us + self.delay();
            let boot = self.hosts[host as usize].boot;
            self.at(at_us, Event::Leases { host, boot, leases });
        }
    }

    pub(super) fn leased(&mut self, host: u32, boot: u32, leases: Leases) {
        let now_us = self.now_us;
        let this = &mut self.hosts[host as usize];
        if !this.is_up || this.boot != boot || this.cut_until_us > now_us {
            return;
        }
        this.heard_us = now_us;
        for lease in leases {
            self.follow(host, lease);
        }
    }

    pub(super) fn plan_report(&mut self, host: u32) {
        let this = &mut self.hosts[host as usize];
        if let Some(due_ms) = this.downloads.report_due_ms()
            && !this.report_planned
        {
            this.report_planned = true;
            let boot = this.boot;
            self.at(self.now_us.max(due_ms * 1000), Event::Report { host, boot });
        }
    }

    pub(super) fn report(&mut self, host: u32, boot: u32) {
        let now_us = self.now_us;
        let this = &mut self.hosts[host as usize];
        if this.boot != boot || !this.is_up {
            return;
        }
        this.report_planned = false;
        if this.cut_until_us > now_us || self.away.contains(&now_us) {
            this.report_planned = true;
            self.at(now_us + LOOK_US, Event::Report { host, boot });
            return;
        }
        // A millisecond may be cut off.
        let Some(report) = this.downloads.report(now_us / 1000 + 1) else { return self.plan_report(host) };
        this.spoke_us = now_us;
        let number = this.number;
        let at_us = now_us + self.delay();
        self.at(at_us, Event::Reported { number, report });
    }

    pub(super) fn reported(&mut self, number: HostNo, report: Report<u32>) {
        let host = self.of_number[number.index()];
        if self.planner.is_gone(number) {
            if self.hosts[host as usize].number == number {
                let at_us = self.now_us + self.delay() + self.delay();
                self.at(at_us, Event::Join(host));
            }
            return;
        }
        let begun = hearth_controller::clock::monotonic();
        self.planner.heard(number, self.now_us);
        for (piece, from) in report.finished {
            let from = from.map(|from| self.hosts[from as usize].number);
            self.planner.finished(number, piece, from, self.now_us);
        }
        for failed in report.failed {
            let how = match failed.how {
                Ended::Wrong => Failure::Wrong,
                Ended::Missing => Failure::Missing,
                Ended::Late | Ended::Busy => Failure::Late,
                Ended::Broken | Ended::Whole => Failure::Silent,
            };
            let from = self.hosts[failed.from as usize].number;
            self.planner.failed(number, failed.piece, from, how, failed.is_last, self.now_us);
        }
        self.cpu += begun.elapsed();
    }

    /// Says that it lives, when it has said nothing for a while.
    pub(super) fn sign_of_life(&mut self, host: u32) {
        let now_us = self.now_us;
        let away = self.is_away();
        let this = &mut self.hosts[host as usize];
        if this.spoke_us + SIGN_OF_LIFE_US > now_us || this.cut_until_us > now_us || away {
            return;
        }
        this.spoke_us = now_us;
        let number = this.number;
        let report = Report { finished: Vec::new(), failed: Vec::new() };
        let at_us = now_us + self.delay();
        self.at(at_us, Event::Reported { number, report });
    }
}
