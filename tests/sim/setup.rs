//! The beginning of a run: hosts, what is on their disks, jobs, and the faults that will come.
//!
//! **What.** Every host has a full cache: one copy that is held and one that is not, so that a new content needs an
//! eviction. Jobs begin at different times, at different priorities.

use std::collections::BTreeMap;

use hearth_agent::logic::budget::reservation_bytes;
use hearth_controller::logic::prewarm::TargetState;
use hearth_protocol::digest::ContentId;
use hearth_protocol::words::{PrewarmState, Priority};

use crate::agent::{File, Host};
use crate::controller::Job;
use crate::world::{Content, Event, Fault, World};

/// Pieces of the copies that are on the disks from the beginning.
const OLD_PIECES: u32 = 4;

impl World {
    pub(crate) fn set_up(&mut self) {
        let old = [ContentId::of(b"old, held"), ContentId::of(b"old, unheld")];
        for content in old {
            self.contents.insert(content, Content::new(OLD_PIECES));
        }
        let n_contents = self.scenario.contents;
        let wanted: Vec<ContentId> =
            (0..n_contents).map(|n| ContentId::of(format!("wanted {n}").as_bytes())).collect();
        for content in &wanted {
            self.contents.insert(*content, Content::new(self.scenario.pieces));
        }
        // Room for all that is wanted and for what is held, not for the other old copy as well.
        let reserved = wanted.iter().map(|content| reservation_bytes(self.contents[content].data_bytes()));
        let budget = reserved.sum::<u64>() + self.contents[&old[0]].data_bytes() + (256 << 10);
        for host in 0..self.scenario.hosts {
            let slow = self.random.chance(self.scenario.slow);
            let mut this = Host::new(budget, slow);
            for (n, content) in old.into_iter().enumerate() {
                let all = self.full_mask(content);
                // The held one was used longest ago: only its hold keeps it.
                let used_ms = u64::try_from(n).unwrap_or(0);
                this.files.insert(content, File { object: true, written: all.clone(), synced: all, used_ms });
            }
            self.hosts.push(this);
            self.after(0, Event::Fault(Fault::StartAgent(host)));
        }
        // The first job holds what is there already.
        self.job(old[0], 0, Priority::Bulk, 1000);
        for (n, content) in wanted.into_iter().enumerate() {
            let start = self.random.between(2_000, 20_000);
            let priority = if n % 2 == 0 { Priority::Bulk } else { Priority::Deadline };
            let share = if n == 0 { 1000 } else { 600 };
            self.job(content, start, priority, share);
        }
        self.faults();
        self.after(5000, Event::Regular);
    }

    fn job(&mut self, content: ContentId, start_ms: u64, priority: Priority, share: u64) {
        let mut targets = BTreeMap::new();
        for host in 0..self.hosts.len() {
            if self.random.chance(share) {
                targets.insert(host, (TargetState::Waiting, 0));
            }
        }
        let start_us = Some(self.unix_us() + i64::try_from(start_ms * 1000).unwrap_or(0));
        let state = PrewarmState::Scheduled;
        self.controller.jobs.push(Job { content, state, start_us, priority, targets });
    }

    fn faults(&mut self) {
        let until = self.scenario.faults_until_ms;
        let hosts = self.hosts.len();
        let per_fleet = |per_hundred: u64| per_hundred * u64::try_from(hosts).unwrap_or(0) / 100;
        for _ in 0..per_fleet(self.scenario.agent_crashes) {
            let (host, at) = (self.random.index(hosts), self.random.between(1000, until));
            let back = at + self.random.between(200, 20_000);
            self.at(at, Event::Fault(Fault::CrashAgent(host)));
            self.at(back.min(until), Event::Fault(Fault::StartAgent(host)));
        }
        for _ in 0..self.scenario.controller_crashes {
            let at = self.random.between(1000, until - 1000);
            let back = (at + self.random.between(500, 40_000)).min(until);
            self.at(at, Event::Fault(Fault::CrashController));
            self.at(back, Event::Fault(Fault::StartController));
        }
        for _ in 0..per_fleet(self.scenario.partitions) {
            let (host, at) = (self.random.index(hosts), self.random.between(1000, until));
            let back = at + self.random.between(500, 90_000);
            self.at(at, Event::Fault(Fault::Cut(host, back.min(until))));
        }
        for _ in 0..per_fleet(self.scenario.full_disks) {
            let (host, at) = (self.random.index(hosts), self.random.between(1000, until));
            let back = at + self.random.between(5_000, 90_000);
            self.at(at, Event::Fault(Fault::FillDisk(host)));
            self.at(back.min(until), Event::Fault(Fault::FreeDisk(host)));
        }
        for host in 0..hosts {
            self.at(until, Event::Fault(Fault::StartAgent(host)));
        }
        self.at(until, Event::Fault(Fault::StartController));
    }
}
