//! The controller: what its database keeps, what its process knows, and its data server.
//!
//! **What.** Intents, jobs, generations and reports survive a crash; sessions, plans, admissions and slots do not. Merging,
//! admission, generations, jobs, liveness, holds and slots are decided by the controller's own `logic/`, in the order of
//! `fleet::reconcile`.
//! **Why one file.** It is the order of one pass, and what the pass reads and writes; the decisions are elsewhere.
//! **Invariants.** A generation is durable before its plan is sent.

use std::collections::BTreeMap;

use hearth_controller::logic::admission::{
    Admitted, Candidate, Caps, PER_LOCATION_DEFAULT, Standing, admit, candidate,
};
use hearth_controller::logic::hold::{IntentHold, after_job};
use hearth_controller::logic::liveness::{Liveness, liveness};
use hearth_controller::logic::plan::{IntentView, Publish, Wanted, merge, publish};
use hearth_controller::logic::prewarm::{Holding, Seen, TargetState, TargetView, advance};
use hearth_controller::logic::slots::Slots;
use hearth_protocol::api::cache::Keep;
use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::{Generation, ImageId, LocationId};
use hearth_protocol::message::control::{Hold, ObservedEntry, ObservedState, PlanEntry, PlanV1, Wish};
use hearth_protocol::words::{ContentKind, EntryStatus, LocationState, PrewarmState, Priority};

use crate::agent::File;
use crate::scenario::Bug;
use crate::world::{Answer, Ask, CHUNK_BYTES, Down, Event, Up, World, location};

/// Requests served at once, as the data server's.
const SLOTS: usize = 32;
/// Least time between two passes, ms; the real one grows with the length of a pass.
const PAUSE_MS: u64 = 200;
/// A session that is not heard for this long is over.
const IDLE_MS: u64 = 60_000;
/// How long a new session may take to send its inventory, ms.
const INVENTORY_WITHIN_MS: u64 = 5_000;

/// A wish for one host.
#[derive(Clone, Debug)]
pub(crate) struct Intent {
    pub(crate) host: usize,
    pub(crate) content: ContentId,
    pub(crate) job: usize,
    pub(crate) hold: IntentHold,
    pub(crate) priority: Priority,
    pub(crate) created_us: i64,
}

/// A prewarm job.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) content: ContentId,
    pub(crate) state: PrewarmState,
    pub(crate) start_us: Option<i64>,
    pub(crate) priority: Priority,
    /// Host, state, attempts.
    pub(crate) targets: BTreeMap<usize, (TargetState, u32)>,
}

#[derive(Debug)]
struct Session {
    number: u64,
    followed: Generation,
    sent: Generation,
    settled: bool,
    since_ms: u64,
    heard_ms: u64,
}

#[derive(Clone, Debug)]
struct Given {
    generation: Generation,
    entries: Vec<PlanEntry>,
}

impl Given {
    fn holds(&self, content: ContentId) -> bool {
        let held = |entry: &PlanEntry| entry.wish == Wish::Keep && entry.hold != Hold::Released;
        self.entries.iter().any(|entry| entry.content == content && held(entry))
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) up: bool,
    pub(crate) run: u64,
    pub(crate) intents: Vec<Intent>,
    pub(crate) jobs: Vec<Job>,
    generations: BTreeMap<usize, Generation>,
    picture: BTreeMap<(usize, ContentId), (EntryStatus, FaultCode, Option<i64>)>,
    seen_us: BTreeMap<usize, i64>,
    sessions: BTreeMap<usize, Session>,
    plans: BTreeMap<usize, Given>,
    admitted: Admitted,
    counted: BTreeMap<(usize, usize), i64>,
    slots: Slots<LocationId>,
    line_free_ms: u64,
    woken: bool,
    passed_ms: u64,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            up: true,
            run: 0,
            intents: Vec::new(),
            jobs: Vec::new(),
            generations: BTreeMap::new(),
            picture: BTreeMap::new(),
            seen_us: BTreeMap::new(),
            sessions: BTreeMap::new(),
            plans: BTreeMap::new(),
            admitted: Admitted::new(),
            counted: BTreeMap::new(),
            slots: Slots::new(SLOTS),
            line_free_ms: 0,
            woken: false,
            passed_ms: 0,
        }
    }
}

impl Controller {
    /// Nothing of the process is left.
    pub(crate) fn crash(&mut self) {
        self.up = false;
        self.run += 1;
        self.sessions.clear();
        self.plans.clear();
        self.admitted.clear();
        self.counted.clear();
        self.slots = Slots::new(SLOTS);
        self.line_free_ms = 0;
        self.woken = false;
    }

    pub(crate) fn start(&mut self) {
        self.up = true;
        // After a restart the failure that is still shown was counted already.
        for (n, job) in self.jobs.iter().enumerate() {
            for (host, _) in job.targets.iter().filter(|(_, (_, attempts))| *attempts > 0) {
                if let Some((_, _, Some(next_us))) = self.picture.get(&(*host, job.content)) {
                    self.counted.insert((n, *host), *next_us);
                }
            }
        }
    }

    pub(crate) fn knows(&self, host: usize, session: u64) -> bool {
        self.sessions.get(&host).is_some_and(|known| known.number == session)
    }

    /// What should be where at the end: every target of every job that was not cancelled.
    pub(crate) fn wanted(&self) -> Vec<(usize, ContentId)> {
        let of_job = |job: &Job| job.targets.keys().map(|host| (*host, job.content)).collect::<Vec<_>>();
        self.jobs.iter().filter(|job| job.state != PrewarmState::Cancelled).flat_map(of_job).collect()
    }

    fn wants(&self) -> BTreeMap<usize, Vec<(ContentId, Wanted)>> {
        let mut views: BTreeMap<(usize, ContentId), Vec<IntentView>> = BTreeMap::new();
        for intent in self.intents.iter().filter(|intent| self.sessions.contains_key(&intent.host)) {
            views.entry((intent.host, intent.content)).or_default().push(IntentView {
                image: ImageId::from_bytes([1; 16]),
                wish: Wish::Keep,
                priority: intent.priority,
                deadline_us: None,
                hold: intent.hold,
                rate_bytes_per_s: None,
                paused: self.jobs[intent.job].state == PrewarmState::Paused,
                created_us: intent.created_us,
            });
        }
        let mut wants: BTreeMap<usize, Vec<(ContentId, Wanted)>> =
            self.sessions.keys().map(|host| (*host, Vec::new())).collect();
        for ((host, content), views) in views {
            wants.entry(host).or_default().extend(merge(&views).map(|wanted| (content, wanted)));
        }
        wants
    }

    fn report(&mut self, host: usize, entries: &[ObservedEntry], whole: bool) {
        if whole {
            self.picture.retain(|(at, _), _| *at != host);
        }
        for entry in entries {
            let key = (host, entry.content);
            match &entry.state {
                ObservedState::Present(status) => {
                    self.picture.insert(key, (*status, FaultCode::Internal, None));
                }
                ObservedState::Failed { fault, next_try_unix_ms, .. } => {
                    let next_us = i64::try_from(*next_try_unix_ms).unwrap_or(i64::MAX).saturating_mul(1000);
                    self.picture.insert(key, (EntryStatus::CacheFail, *fault, Some(next_us)));
                }
                ObservedState::Gone(_) => {
                    self.picture.remove(&key);
                }
            }
        }
    }
}

impl World {
    fn wake_controller(&mut self) {
        if self.controller.up && !std::mem::replace(&mut self.controller.woken, true) {
            let pause = if self.hosts.len() > 500 { 5 * PAUSE_MS } else { PAUSE_MS };
            let at = self.controller.passed_ms + pause;
            self.at(at, Event::Pass { run: self.controller.run });
        }
    }

    pub(crate) fn controller_hears(&mut self, host: usize, session: u64, message: Up) {
        if !self.controller.up {
            return;
        }
        let now_ms = self.now_ms;
        if let Up::Hello { followed } = message {
            if self.hosts[host].session != Some(session) {
                return;
            }
            let new = Session {
                number: session,
                followed,
                sent: followed,
                settled: false,
                since_ms: now_ms,
                heard_ms: now_ms,
            };
            self.controller.sessions.insert(host, new);
            self.send_down(host, session, Down::Welcome);
            if !self.scenario.has(Bug::SendOnce) {
                self.send_plan(host);
            }
            return self.wake_controller();
        }
        let now_us = self.unix_us();
        let Some(known) = self.controller.sessions.get_mut(&host).filter(|known| known.number == session)
        else {
            return;
        };
        known.heard_ms = now_ms;
        match message {
            Up::Hello { .. } => {}
            Up::Pulse(followed) => known.followed = followed,
            Up::Ack(ack) if ack.refused.is_none() => known.followed = ack.generation,
            Up::Ack(_) => {}
            Up::Observed { inventory, entries } => {
                known.settled |= inventory;
                self.controller.report(host, &entries, inventory);
            }
        }
        self.controller.seen_us.insert(host, now_us);
        self.wake_controller();
    }

    /// Sends the plan of a host if its agent follows an older one.
    fn send_plan(&mut self, host: usize) {
        let Some(given) = self.controller.plans.get(&host).cloned() else { return };
        let Some(session) = self.controller.sessions.get_mut(&host) else { return };
        if given.generation <= session.sent {
            return;
        }
        session.sent = given.generation;
        let number = session.number;
        let Given { generation, entries } = given;
        let plan =
            PlanV1 { location: location(host), generation, part: 0, parts: 1, stopped: false, entries };
        self.send_down(host, number, Down::Plan(plan));
    }

    pub(crate) fn controller_pass(&mut self, run: u64) {
        if !self.controller.up || run != self.controller.run {
            return;
        }
        let (now_ms, now_us) = (self.now_ms, self.unix_us());
        self.controller.woken = false;
        self.controller.passed_ms = now_ms;
        self.controller.sessions.retain(|_, session| session.heard_ms + IDLE_MS > now_ms);
        self.controller.intents.retain(|intent| !intent.hold.ended(now_us));
        (0..self.controller.jobs.len()).for_each(|job| self.advance(job, now_us));
        let wants = self.controller.wants();
        self.choose(&wants, now_us);
        for (host, wants) in wants {
            self.publish(host, &wants);
        }
        if self.scenario.name == "calm" {
            let running =
                self.hosts.iter().map(|host| host.fetches.values().filter(|f| !f.sealing).count()).sum();
            self.checks.running(now_ms, running, self.scenario.cap);
        }
    }

    fn advance(&mut self, n: usize, now_us: i64) {
        let controller = &self.controller;
        let job = &controller.jobs[n];
        let view = |(host, (state, attempts)): (&usize, &(TargetState, u32))| {
            let session = controller.sessions.get(host);
            let stale =
                liveness(session.is_some(), controller.seen_us.get(host).copied(), now_us) == Liveness::Stale;
            let holding = session.zip(controller.plans.get(host)).map(|(session, given)| Holding {
                holds: given.holds(job.content),
                generation: given.generation,
                followed: session.followed,
            });
            let seen = match controller.picture.get(&(*host, job.content)) {
                Some((status, fault, next_try_us)) if !stale => Seen::of(*status, holding, || Seen::Failed {
                    fault: *fault,
                    text: String::new(),
                    next_try_us: next_try_us.unwrap_or_default(),
                }),
                _ => Seen::Pending,
            };
            TargetView {
                location: location(*host),
                state: *state,
                attempts: *attempts,
                counted_us: controller.counted.get(&(n, *host)).copied(),
                location_state: Some(LocationState::Active),
                seen,
            }
        };
        let views: Vec<TargetView> = job.targets.iter().map(view).collect();
        let hosts: Vec<usize> = job.targets.keys().copied().collect();
        let step = advance(job.state, job.start_us, &views, now_us);
        if job.state == PrewarmState::Scheduled && step.state != PrewarmState::Scheduled {
            return self.begin_job(n, now_us);
        }
        for change in step.changes {
            let Some(at) = views.iter().position(|view| view.location == change.location) else { continue };
            let host = hosts[at];
            self.controller.jobs[n].targets.insert(host, (change.state, change.attempts));
            if let Some(next_us) = change.counted_us {
                self.controller.counted.insert((n, host), next_us);
            }
            if change.state == TargetState::Failed {
                self.controller.intents.retain(|intent| (intent.job, intent.host) != (n, host));
            }
        }
        let first = self.controller.jobs[n].targets.values().any(|(state, _)| *state == TargetState::Active);
        let early = self.scenario.has(Bug::DoneEarly) && first;
        let state = if early { PrewarmState::Done } else { step.state };
        self.end_job(n, state, now_us);
    }

    /// Makes the intents of a job.
    fn begin_job(&mut self, n: usize, created_us: i64) {
        let Job { content, priority, .. } = self.controller.jobs[n];
        self.controller.jobs[n].state = PrewarmState::Running;
        let hosts: Vec<usize> = self.controller.jobs[n].targets.keys().copied().collect();
        let hold = IntentHold::Open;
        let intent = |host| Intent { host, content, job: n, hold, priority, created_us };
        self.controller.intents.extend(hosts.into_iter().map(intent));
        self.wake_controller();
    }

    fn end_job(&mut self, n: usize, state: PrewarmState, now_us: i64) {
        let job = &mut self.controller.jobs[n];
        if job.state == state {
            // An operator takes failed jobs up again once the faults are over.
            if state == PrewarmState::Failed && self.now_ms >= self.scenario.faults_until_ms {
                self.retry_job(n, now_us);
            }
            return;
        }
        job.state = state;
        if !matches!(state, PrewarmState::Done | PrewarmState::Failed) {
            return;
        }
        let keep = after_job(&Keep::Seconds(24 * 3600), now_us);
        self.controller.intents.iter_mut().filter(|i| i.job == n).for_each(|intent| intent.hold = keep);
        if state == PrewarmState::Done {
            let Job { content, targets, .. } = &self.controller.jobs[n];
            let active = |host: &&usize| {
                let host = &self.hosts[**host];
                let whole = |f: &File| f.object && f.written.count() == f.written.len();
                let held = host.holds.get(content).is_some_and(|hold| *hold != Hold::Released);
                held && host.files.get(content).is_some_and(whole)
            };
            let missing = targets.len() - targets.keys().filter(active).count();
            self.checks.done(self.now_ms, missing);
        }
    }

    fn retry_job(&mut self, n: usize, created_us: i64) {
        let job = &mut self.controller.jobs[n];
        job.state = PrewarmState::Running;
        let Job { content, priority, .. } = *job;
        let failed: Vec<usize> = job
            .targets
            .iter()
            .filter(|(_, (state, _))| *state == TargetState::Failed)
            .map(|(h, _)| *h)
            .collect();
        for host in failed {
            job.targets.insert(host, (TargetState::Waiting, 0));
            let hold = IntentHold::Open;
            self.controller.intents.push(Intent { host, content, job: n, hold, priority, created_us });
        }
        self.controller
            .intents
            .iter_mut()
            .filter(|i| i.job == n)
            .for_each(|intent| intent.hold = IntentHold::Open);
        self.wake_controller();
    }

    pub(crate) fn open_jobs(&self) -> usize {
        let open = |job: &&Job| !matches!(job.state, PrewarmState::Done | PrewarmState::Cancelled);
        self.controller.jobs.iter().filter(open).count()
    }

    fn is_settled(&self, host: usize) -> bool {
        let session = &self.controller.sessions[&host];
        session.settled || self.now_ms > session.since_ms + INVENTORY_WITHIN_MS
    }

    fn choose(&mut self, wants: &BTreeMap<usize, Vec<(ContentId, Wanted)>>, now_us: i64) {
        let controller = &self.controller;
        let mut candidates: Vec<Candidate> = Vec::new();
        for (host, wants) in wants.iter().filter(|(host, _)| self.is_settled(**host)) {
            for (content, wanted) in wants {
                let seen =
                    controller.picture.get(&(*host, *content)).map(|(status, _, next)| (*status, *next));
                let here = Standing {
                    location: location(*host),
                    state: LocationState::Active,
                    content: *content,
                    seen,
                };
                candidates.extend(candidate(here, wanted, &controller.admitted, now_us));
            }
        }
        let cap = self.scenario.cap;
        let total = if self.scenario.has(Bug::AdmitAll) { usize::MAX } else { cap };
        let running = candidates.iter().filter(|candidate| candidate.running).count();
        let admitted = admit(Caps { total, per_location: PER_LOCATION_DEFAULT }, &candidates);
        let serving = controller.slots.in_use();
        self.checks.admitted(self.now_ms, admitted.len(), cap.max(running), serving, SLOTS);
        self.controller.admitted = admitted;
    }

    fn publish(&mut self, host: usize, wants: &[(ContentId, Wanted)]) {
        if !self.is_settled(host) {
            return;
        }
        let entries: Vec<PlanEntry> =
            wants.iter().map(|(content, wanted)| self.plan_entry(host, *content, wanted)).collect();
        let followed = self.controller.sessions[&host].followed;
        let given =
            self.controller.plans.get(&host).map(|given| (given.generation, given.entries == entries));
        let known = match self.scenario.has(Bug::ForgetGenerations) {
            true => given.map_or(Generation(0), |given| given.0),
            false => self.controller.generations.get(&host).copied().unwrap_or_default(),
        };
        let followed_or_none =
            if self.scenario.has(Bug::ForgetGenerations) { Generation(0) } else { followed };
        match publish(given, entries.is_empty(), followed_or_none, known) {
            Publish::Keep => {}
            Publish::Silent => {
                self.controller.plans.insert(host, Given { generation: Generation(0), entries });
            }
            Publish::New(generation) => {
                self.controller.generations.insert(host, generation);
                self.checks.published(self.now_ms, host, generation, &entries);
                self.controller.plans.insert(host, Given { generation, entries });
                self.send_plan(host);
            }
        }
    }

    fn plan_entry(&self, host: usize, content: ContentId, wanted: &Wanted) -> PlanEntry {
        let facts = &self.contents[&content];
        let seen = self.controller.picture.get(&(host, content));
        let active = seen.is_some_and(|(status, ..)| *status == EntryStatus::Active);
        PlanEntry {
            content,
            kind: ContentKind::Disk,
            raw_bytes: facts.data_bytes(),
            data_bytes: facts.data_bytes(),
            images: Vec::new(),
            wish: wanted.wish,
            priority: wanted.priority,
            deadline_unix_ms: None,
            hold: wanted.hold.map_or(Hold::Released, IntentHold::on_wire),
            admitted: active || self.controller.admitted.contains(&(location(host), content)),
            rate_bytes_per_s: wanted.rate_bytes_per_s,
        }
    }

    /// The data server takes a request.
    pub(crate) fn controller_asked(&mut self, ask: Ask) {
        if !self.controller.up || !self.controller.sessions.contains_key(&ask.host) {
            return;
        }
        let Some(given) = self.controller.plans.get(&ask.host) else {
            return self.answer(ask, Answer::Busy(500));
        };
        if !given.entries.iter().any(|entry| entry.content == ask.content) {
            return self.answer(ask, Answer::NotPlaced);
        }
        if let Err(retry_ms) = self.controller.slots.take(location(ask.host), self.now_ms) {
            return self.answer(ask, Answer::Busy(retry_ms));
        }
        let serving = self.controller.slots.in_use();
        self.checks.admitted(self.now_ms, 0, 0, serving, SLOTS);
        let chunks = u64::try_from(ask.chunks.len()).unwrap_or(0);
        let bytes = chunks * u64::from(CHUNK_BYTES);
        self.sent_chunks += chunks;
        let line = self.controller.line_free_ms.max(self.now_ms) + bytes / self.scenario.source_bytes_per_ms;
        self.controller.line_free_ms = line;
        let slow = if self.hosts[ask.host].slow { 20 * bytes / self.scenario.source_bytes_per_ms } else { 0 };
        self.at(line + slow, Event::Served { run: self.controller.run, ask });
    }

    pub(crate) fn controller_served(&mut self, run: u64, ask: Ask) {
        if run != self.controller.run {
            return;
        }
        self.controller.slots.give_back(location(ask.host));
        let wrong = if self.is_faulty() { self.scenario.wrong } else { 0 };
        let (bad, good) = ask.chunks.iter().copied().partition(|_| self.random.chance(wrong));
        self.answer(ask, Answer::Chunks { good, bad });
    }

    fn answer(&mut self, ask: Ask, answer: Answer) {
        let lost = if self.is_faulty() { self.scenario.lost } else { 0 };
        if let Some(at) = self.network.datagram(ask.host, self.now_ms, lost, &mut self.random) {
            self.at(at, Event::Answer { ask, answer });
        }
    }
}
