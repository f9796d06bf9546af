//! What an agent does besides deciding: it lives, dies, keeps a session and moves chunks.
//!
//! **What.** Starting and crashing, connecting with the agent's own back-off, asking for pieces as its `FetchPlan` says,
//! hashing at the end.
//! **Invariants.** A request that was never answered ends by its deadline. What is called active was hashed whole.

use hearth_agent::logic::backoff;
use hearth_agent::logic::entry::{Phase, Step};
use hearth_agent::logic::fetch_plan::{Ended, Next};
use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::message::data::STREAMS_USED;

use crate::agent::Entry;
use crate::scenario::Bug;
use crate::world::{Answer, Ask, Down, Event, Up, World};

/// A silent controller is lost after this, as in the agent's session.
const SILENCE_MS: u64 = 15_000;
/// Time for the greeting.
const GREET_MS: u64 = 10_000;
/// Between two looks at the session and two regular passes.
const LOOK_MS: u64 = 2_000;
/// Heartbeat.
const PULSE_MS: u64 = 15_000;
/// A request without an answer is given up after this.
const ANSWER_MS: u64 = 10_000;

impl World {
    pub(crate) fn start(&mut self, host: usize) {
        if self.hosts[host].up {
            return;
        }
        let boot = self.number();
        let contents: Vec<ContentId> = self.hosts[host].files.keys().copied().collect();
        let this = &mut self.hosts[host];
        (this.up, this.boot, this.tries) = (true, boot, 0);
        for content in contents {
            let believed = self.random.chance(700);
            let this = &mut self.hosts[host];
            let phase = match this.files[&content].object {
                true if believed => Phase::Active,
                true => Phase::Unverified,
                false => Phase::Queued,
            };
            let rehash = phase == Phase::Unverified;
            let wanted = this.holds.contains_key(&content);
            this.entries.insert(content, Entry { phase, wanted });
            if rehash {
                let later = self.random.between(500, 5000);
                self.after(later, Event::Hashed { host, boot, content });
            }
        }
        let later = self.random.between(10, 1000);
        self.after(later, Event::Connect { host, boot });
        self.after(later, Event::Look { host, boot });
        self.changed(host);
    }

    pub(crate) fn crash(&mut self, host: usize) {
        self.hosts[host].lose_memory();
    }

    /// One try to get a session.
    pub(crate) fn connect(&mut self, host: usize) {
        if self.hosts[host].session.is_some() {
            return;
        }
        if !self.controller.up || self.network.is_cut(host, self.now_ms) {
            return self.retry(host);
        }
        let session = self.number();
        let now_ms = self.now_ms;
        let this = &mut self.hosts[host];
        (this.session, this.greeted, this.since_ms) = (Some(session), false, now_ms);
        (this.deaf_since_ms, this.pulse_ms) = (None, now_ms);
        this.parts.forget();
        let followed = this.followed.generation;
        self.send_up(host, session, Up::Hello { followed });
    }

    fn retry(&mut self, host: usize) {
        let seed = self.random.draw();
        let this = &mut self.hosts[host];
        this.tries += 1;
        let pause = backoff::reconnect(this.tries, seed);
        let boot = this.boot;
        if !self.scenario.has(Bug::StayAway) {
            self.after(u64::try_from(pause.as_millis()).unwrap_or(0), Event::Connect { host, boot });
        }
    }

    fn lose_session(&mut self, host: usize) {
        let now_ms = self.now_ms;
        let this = &mut self.hosts[host];
        (this.session, this.greeted) = (None, false);
        let mut ended = Vec::new();
        for (content, fetch) in &mut this.fetches {
            for (_, piece) in std::mem::take(&mut fetch.asked) {
                if let Err(fault) = fetch.plan.settle(piece, &Ended::LinkLost, false, now_ms) {
                    ended.push((*content, fault));
                }
            }
        }
        ended.into_iter().for_each(|(content, fault)| self.failed(host, content, fault));
        self.retry(host);
    }

    /// Looks at the session, and lets the reconciler look at the cache.
    pub(crate) fn look(&mut self, host: usize) {
        let (now_ms, boot) = (self.now_ms, self.hosts[host].boot);
        self.after(LOOK_MS, Event::Look { host, boot });
        self.pass(host);
        let this = &self.hosts[host];
        let Some(session) = this.session else { return };
        let known = self.controller.knows(host, session) || !this.greeted;
        let cut = self.network.is_cut(host, now_ms) || !self.controller.up;
        // A controller that is back says at once that it does not know the connection.
        let refused = !cut && !known;
        let this = &mut self.hosts[host];
        this.deaf_since_ms = cut.then(|| this.deaf_since_ms.unwrap_or(now_ms));
        let silent = this.deaf_since_ms.is_some_and(|since| now_ms >= since + SILENCE_MS);
        let ungreeted = !this.greeted && now_ms >= this.since_ms + GREET_MS;
        if refused || silent || ungreeted {
            return self.lose_session(host);
        }
        if this.greeted && now_ms >= this.pulse_ms + PULSE_MS {
            this.pulse_ms = now_ms;
            let followed = this.followed.generation;
            self.send_up(host, session, Up::Pulse(followed));
        }
    }

    pub(crate) fn host_hears(&mut self, host: usize, message: Down) {
        match message {
            Down::Welcome => {
                let this = &mut self.hosts[host];
                (this.greeted, this.tries) = (true, 0);
                let fetching: Vec<ContentId> = this.fetches.keys().copied().collect();
                self.inventory(host);
                fetching.into_iter().for_each(|content| self.pump(host, content));
            }
            Down::Plan(plan) => self.take_plan(host, plan),
        }
    }

    /// Asks for what the plan of the fetch says.
    pub(crate) fn pump(&mut self, host: usize, content: ContentId) {
        loop {
            let (now_ms, boot, greeted) = (self.now_ms, self.hosts[host].boot, self.hosts[host].greeted);
            let early = self.scenario.has(Bug::ActiveEarly);
            let Some(fetch) = self.hosts[host].fetches.get_mut(&content) else { return };
            if fetch.stopping || fetch.sealing || fetch.asked.len() >= STREAMS_USED {
                return;
            }
            let complete = fetch.plan.need().is_empty() || early && fetch.plan.need().count() <= 4;
            if !greeted && !complete {
                return;
            }
            match fetch.plan.next(now_ms) {
                _ if complete => {
                    fetch.sealing = true;
                    self.hosts[host].step(content, Step::Seal);
                    let hashing = self.random.between(100, if self.hosts[host].slow { 8000 } else { 800 });
                    self.after(hashing, Event::Hashed { host, boot, content });
                    return self.changed(host);
                }
                Next::Request { piece, mask } => {
                    let first = fetch.plan.pieces().chunks(piece).unwrap_or_default().start;
                    let chunks: Vec<u32> = mask.iter().map(|chunk| first + chunk).collect();
                    self.ask(host, content, piece, chunks);
                }
                Next::WaitUntil { ms } => return self.at(ms, Event::Pump { host, boot, content }),
                Next::InFlight | Next::Complete => return,
            }
        }
    }

    fn ask(&mut self, host: usize, content: ContentId, piece: u32, chunks: Vec<u32>) {
        let number = self.number();
        let boot = self.hosts[host].boot;
        if let Some(fetch) = self.hosts[host].fetches.get_mut(&content) {
            fetch.asked.insert(number, piece);
        }
        let ask = Ask { host, boot, number, content, chunks };
        let lost = if self.is_faulty() { self.scenario.lost } else { 0 };
        if let Some(at) = self.network.datagram(host, self.now_ms, lost, &mut self.random) {
            self.at(at, Event::Ask(ask.clone()));
        }
        self.after(ANSWER_MS, Event::Answer { ask, answer: Answer::Nothing });
    }

    pub(crate) fn host_answered(&mut self, ask: &Ask, answer: Answer) {
        let (host, content, now_ms) = (ask.host, ask.content, self.now_ms);
        let checkpoint = self.random.chance(300);
        let this = &mut self.hosts[host];
        if !this.up || this.boot != ask.boot {
            return;
        }
        let Some(fetch) = this.fetches.get_mut(&content) else { return };
        let Some(piece) = fetch.asked.remove(&ask.number) else { return };
        let mut gained = false;
        let ended = match answer {
            Answer::Chunks { good, bad } => {
                gained = !good.is_empty();
                fetch.plan.done(&good);
                if let Some(file) = this.files.get_mut(&content) {
                    good.iter().for_each(|chunk| file.written.insert(*chunk));
                    if checkpoint {
                        file.synced = file.written.clone();
                    }
                }
                Ended::Answered { bad }
            }
            Answer::Busy(retry_after_ms) => Ended::Fault { fault: FaultCode::Busy, retry_after_ms },
            Answer::NotPlaced => Ended::Fault { fault: FaultCode::NotPlaced, retry_after_ms: 0 },
            Answer::Nothing => Ended::Broken { fault: FaultCode::Unreachable },
        };
        match fetch.plan.settle(piece, &ended, gained, now_ms) {
            Ok(()) => self.pump(host, content),
            Err(fault) => self.failed(host, content, fault),
        }
        self.changed(host);
    }

    /// A fetch that was told to stop has let go.
    pub(crate) fn stopped(&mut self, host: usize, content: ContentId) {
        let this = &mut self.hosts[host];
        if this.fetches.get(&content).is_some_and(|fetch| fetch.stopping) {
            this.fetches.remove(&content);
            this.step(content, Step::Stop);
            self.changed(host);
        }
    }

    /// Every chunk was hashed from disk.
    pub(crate) fn hashed(&mut self, host: usize, content: ContentId) {
        let early = self.scenario.has(Bug::ActiveEarly);
        let now_ms = self.now_ms;
        let this = &mut self.hosts[host];
        let Some(phase) = this.entries.get(&content).map(|entry| entry.phase.clone()) else { return };
        match phase {
            Phase::Unverified => this.step(content, Step::Verified),
            Phase::Sealing => {
                if this.fetches.get(&content).is_none_or(|fetch| fetch.stopping) {
                    return;
                }
                let Some(file) = this.files.get_mut(&content) else { return };
                assert!(early || file.written.count() == file.written.len(), "sealed with a chunk missing");
                (file.object, file.used_ms) = (true, now_ms);
                file.synced = file.written.clone();
                this.fetches.remove(&content);
                this.failures.remove(&content);
                this.step(content, Step::Published);
            }
            _ => return,
        }
        self.changed(host);
    }
}
