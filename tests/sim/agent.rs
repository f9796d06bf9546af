//! A host: its disk, and the agent that keeps the cache on it.
//!
//! **What.** The disk survives a crash: files with the chunks that were synced, the plan, the holds. The process does not.
//! What to begin, stop, evict, report and when to try again is decided by the agent's own `logic/`.
//! **Why not the agent's shells.** They wait on real files and sockets; a thousand hosts in virtual time cannot.
//! **Why one file.** A host's disk and process are one state, and each event touches most of it.
//! **Invariants.** An entry changes only through `Phase::next`, as in the agent.

use std::collections::BTreeMap;

use hearth_agent::logic::backoff;
use hearth_agent::logic::budget::{Usage, reservation_bytes, short_of};
use hearth_agent::logic::entry::{Phase, Step};
use hearth_agent::logic::evict::{Candidate, HeldBy, plan_eviction};
use hearth_agent::logic::fetch_plan::FetchPlan;
use hearth_agent::logic::plan_parts::{Plan, PlanParts};
use hearth_agent::logic::reconcile::{Action, Copy, Failure, Running, Snapshot, Stage, reconcile};
use hearth_agent::logic::report::Reported;
use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::Generation;
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::message::control::{Hold, ObservedEntry, PlanAckV1, PlanEntry, PlanV1, Wish};
use hearth_protocol::words::{GoneReason, Priority};

use crate::scenario::Bug;
use crate::world::{CHUNK_BYTES, Event, Up, World, location};

/// Fetches at once, as the agent's default.
const FETCH_LIMIT: usize = 2;

/// A file of the cache.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// It has its name in `objects/`.
    pub(crate) object: bool,
    pub(crate) written: ChunkMask,
    pub(crate) synced: ChunkMask,
    pub(crate) used_ms: u64,
}

/// What the process knows of a content.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) phase: Phase,
    pub(crate) wanted: bool,
}

/// A fetch that runs.
#[derive(Debug)]
pub(crate) struct Fetching {
    pub(crate) plan: FetchPlan,
    /// Requests that are out, with their piece.
    pub(crate) asked: BTreeMap<u64, u32>,
    pub(crate) stopping: bool,
    pub(crate) sealing: bool,
    priority: Priority,
    rate_bytes_per_s: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) budget_bytes: u64,
    pub(crate) full: bool,
    pub(crate) slow: bool,
    pub(crate) files: BTreeMap<ContentId, File>,
    pub(crate) followed: Plan,
    pub(crate) holds: BTreeMap<ContentId, Hold>,
    pub(crate) up: bool,
    pub(crate) boot: u64,
    pub(crate) session: Option<u64>,
    pub(crate) greeted: bool,
    pub(crate) since_ms: u64,
    pub(crate) deaf_since_ms: Option<u64>,
    pub(crate) pulse_ms: u64,
    pub(crate) tries: u32,
    pub(crate) parts: PlanParts,
    pub(crate) entries: BTreeMap<ContentId, Entry>,
    pub(crate) fetches: BTreeMap<ContentId, Fetching>,
    pub(crate) failures: BTreeMap<ContentId, Failure>,
    pub(crate) reported: Reported,
    gone: BTreeMap<ContentId, GoneReason>,
    woken: bool,
    batched: bool,
}

impl Host {
    pub(crate) fn new(budget_bytes: u64, slow: bool) -> Self {
        Self {
            budget_bytes,
            full: false,
            slow,
            files: BTreeMap::new(),
            followed: Plan::default(),
            holds: BTreeMap::new(),
            up: false,
            boot: 0,
            session: None,
            greeted: false,
            since_ms: 0,
            deaf_since_ms: None,
            pulse_ms: 0,
            tries: 0,
            parts: PlanParts::default(),
            entries: BTreeMap::new(),
            fetches: BTreeMap::new(),
            failures: BTreeMap::new(),
            reported: Reported::default(),
            gone: BTreeMap::new(),
            woken: false,
            batched: false,
        }
    }

    /// Nothing of the process is left; unsynced chunks are lost with it.
    pub(crate) fn lose_memory(&mut self) {
        self.up = false;
        (self.session, self.greeted) = (None, false);
        (self.woken, self.batched) = (false, false);
        self.parts = PlanParts::default();
        self.entries.clear();
        self.fetches.clear();
        self.failures.clear();
        self.gone.clear();
        for file in self.files.values_mut().filter(|file| !file.object) {
            file.written = file.synced.clone();
        }
    }

    pub(crate) const fn is_greeted(&self) -> bool {
        self.up && self.greeted
    }

    /// The truth about a content.
    pub(crate) fn has_whole(&self, content: ContentId) -> bool {
        self.files.get(&content).is_some_and(|file| file.object && file.written.count() == file.written.len())
            && (!self.up || self.entries.get(&content).is_some_and(|entry| entry.phase.is_active()))
    }

    pub(crate) fn describe(&self, content: ContentId) -> String {
        let phase = self.entries.get(&content).map_or("has no entry", |entry| entry.phase.name());
        format!("{phase}, up {}, session {:?}, follows {}", self.up, self.session, self.followed.generation.0)
    }

    pub(crate) fn held(&self, content: ContentId, unix_ms: u64) -> Option<HeldBy> {
        match self.holds.get(&content)? {
            Hold::Pinned => Some(HeldBy::Pin),
            Hold::Until(until) if *until > unix_ms => Some(HeldBy::Until(*until)),
            Hold::Until(_) | Hold::Released => None,
        }
    }

    fn allocated(&self, content: ContentId) -> u64 {
        self.files.get(&content).map_or(0, |file| u64::from(file.written.count()) * u64::from(CHUNK_BYTES))
    }

    fn usage(&self) -> Usage {
        let used: u64 = self.files.keys().map(|content| self.allocated(*content)).sum();
        let reserved = self.fetches.iter().map(|(content, fetch)| {
            let all = u64::from(fetch.plan.need().len()) * u64::from(CHUNK_BYTES);
            reservation_bytes(all).saturating_sub(self.allocated(*content))
        });
        Usage {
            budget_bytes: self.budget_bytes,
            used_bytes: used,
            reserved_bytes: reserved.sum(),
            free_bytes: if self.full { 0 } else { u64::MAX / 2 },
            floor_bytes: 1,
        }
    }

    fn shown(&self) -> impl Iterator<Item = (&ContentId, &Entry)> {
        self.entries.iter().filter(|(content, entry)| {
            entry.wanted || entry.phase.has_object() || self.fetches.contains_key(content)
        })
    }

    fn observed(&self) -> Vec<ObservedEntry> {
        let row = |(content, entry): (&ContentId, &Entry)| ObservedEntry {
            content: *content,
            state: entry.phase.observed(),
            done_bytes: self.allocated(*content),
            data_bytes: 0,
            moved_bytes: 0,
            reused_bytes: 0,
            allocated_bytes: self.allocated(*content),
            leases: 0,
            last_used_unix_ms: 0,
        };
        self.shown().map(row).collect()
    }

    fn copies(&self) -> Vec<Copy> {
        let copy = |(content, entry): (&ContentId, &Entry)| {
            let stage = Stage::of(&entry.phase.observed(), self.allocated(*content))?;
            let hold = self.holds.get(content).copied().unwrap_or(Hold::Released);
            Some(Copy { content: *content, stage, hold })
        };
        self.shown().filter_map(copy).collect()
    }

    fn running(&self) -> Vec<Running> {
        let one = |(content, fetch): (&ContentId, &Fetching)| Running {
            content: *content,
            priority: fetch.priority,
            rate_bytes_per_s: fetch.rate_bytes_per_s,
            stopping: fetch.stopping,
        };
        self.fetches.iter().map(one).collect()
    }

    pub(crate) fn step(&mut self, content: ContentId, step: Step) {
        let entry = self.entries.get_mut(&content).expect("a step is taken by an entry that is there");
        entry.phase = entry.phase.next(step).expect("the shells of the agent take steps in this order");
    }
}

impl World {
    /// Something changed: the reconciler looks soon, and a report follows.
    pub(crate) fn changed(&mut self, host: usize) {
        let boot = self.hosts[host].boot;
        if !std::mem::replace(&mut self.hosts[host].woken, true) {
            self.after(100, Event::Wake { host, boot });
        }
        if self.hosts[host].greeted && !std::mem::replace(&mut self.hosts[host].batched, true) {
            self.after(500, Event::Batch { host, boot });
        }
    }

    /// One comparison of the reconciler, carried out.
    pub(crate) fn pass(&mut self, host: usize) {
        let unix_ms = self.unix_ms();
        let this = &mut self.hosts[host];
        this.woken = false;
        if this.followed.generation == Generation(0) {
            return;
        }
        let (copies, running) = (this.copies(), this.running());
        let actions = reconcile(&Snapshot {
            plan: &this.followed.entries,
            stopped: this.followed.stopped,
            draining: false,
            copies: &copies,
            running: &running,
            failures: &this.failures,
            limit: FETCH_LIMIT,
            now_unix_ms: unix_ms,
        });
        for action in actions {
            match action {
                Action::Begin { entry } => {
                    let entry = self.hosts[host].followed.entries[entry].clone();
                    self.begin(host, &entry);
                }
                Action::Stop { content, .. } => {
                    let boot = self.hosts[host].boot;
                    if let Some(fetch) = self.hosts[host].fetches.get_mut(&content) {
                        fetch.stopping = true;
                        self.after(100, Event::Stopped { host, boot, content });
                    }
                }
                Action::SetRate { content, rate_bytes_per_s } => {
                    if let Some(fetch) = self.hosts[host].fetches.get_mut(&content) {
                        fetch.rate_bytes_per_s = rate_bytes_per_s;
                    }
                }
                Action::Remove { content } => self.remove(host, content, GoneReason::Deleted),
                Action::SetHold { content, hold } => {
                    self.hosts[host].holds.insert(content, hold);
                }
            }
        }
    }

    /// Makes room, reserves and begins, as `Store::begin` does.
    fn begin(&mut self, host: usize, wish: &PlanEntry) {
        let content = wish.content;
        let needed = reservation_bytes(wish.data_bytes).saturating_sub(self.hosts[host].allocated(content));
        let short = short_of(self.hosts[host].usage(), needed);
        if short > 0 {
            let plan = plan_eviction(short, &self.candidates(host, content));
            // Evicting frees the budget; a disk that others filled stays full.
            if plan.shortfall_bytes > 0 || self.hosts[host].full {
                return self.failed(host, content, FaultCode::NoSpace);
            }
            for victim in plan.victims {
                let held = self.hosts[host].held(victim, self.unix_ms()).is_some();
                self.checks.evicted(self.now_ms, host, victim, held);
                self.remove(host, victim, GoneReason::Evicted);
            }
        }
        let cut = self.contents[&content].clone();
        let used_ms = self.now_ms;
        let this = &mut self.hosts[host];
        let empty = || ChunkMask::empty(cut.n_chunks);
        let fresh = || File { object: false, written: empty(), synced: empty(), used_ms };
        let file = this.files.entry(content).or_insert_with(fresh);
        let mut need = ChunkMask::full(cut.n_chunks);
        file.written.iter().for_each(|chunk| need.remove(chunk));
        let fetch = Fetching {
            plan: FetchPlan::new(cut.pieces, need),
            asked: BTreeMap::new(),
            stopping: false,
            sealing: false,
            priority: wish.priority,
            rate_bytes_per_s: wish.rate_bytes_per_s,
        };
        this.entries.entry(content).or_insert(Entry { phase: Phase::Queued, wanted: true }).wanted = true;
        this.step(content, Step::Begin);
        this.gone.remove(&content);
        this.fetches.insert(content, fetch);
        self.changed(host);
        self.pump(host, content);
    }

    fn candidates(&self, host: usize, but: ContentId) -> Vec<Candidate> {
        let this = &self.hosts[host];
        let work = |content: &ContentId| this.fetches.contains_key(content).then_some(HeldBy::Work);
        let candidate = |(content, file): (&ContentId, &File)| Candidate {
            content: *content,
            allocated_bytes: this.allocated(*content),
            last_used_unix_ms: file.used_ms,
            held: this
                .held(*content, self.unix_ms())
                .or_else(|| work(content))
                .filter(|_| !self.scenario.has(Bug::EvictHeld)),
        };
        this.files.iter().filter(|(content, _)| **content != but).map(candidate).collect()
    }

    fn remove(&mut self, host: usize, content: ContentId, reason: GoneReason) {
        let this = &mut self.hosts[host];
        let Some(entry) = this.entries.get(&content) else { return };
        if this.fetches.contains_key(&content) || entry.phase.next(Step::Remove).is_err() {
            return;
        }
        this.entries.remove(&content);
        this.files.remove(&content);
        this.failures.remove(&content);
        this.gone.insert(content, reason);
        self.changed(host);
    }

    /// A try failed: backs off as the agent does.
    pub(crate) fn failed(&mut self, host: usize, content: ContentId, fault: FaultCode) {
        let now = self.unix_ms();
        let this = &mut self.hosts[host];
        this.fetches.remove(&content);
        let failures = this.failures.get(&content).map_or(0, |failure| failure.failures) + 1;
        let delay_ms = u64::try_from(backoff::entry(fault, failures).as_millis()).unwrap_or(u64::MAX);
        let next_try_unix_ms = now + delay_ms;
        this.failures.insert(content, Failure { failures, next_try_unix_ms });
        this.entries.entry(content).or_insert(Entry { phase: Phase::Queued, wanted: true });
        this.step(content, Step::Fail { fault, text: String::new(), next_try_unix_ms });
        self.changed(host);
    }

    /// A part of a plan came.
    pub(crate) fn take_plan(&mut self, host: usize, part: PlanV1) {
        let generation = part.generation;
        let this = &mut self.hosts[host];
        let taken = match self.scenario.bug {
            Some(Bug::FollowStale) => {
                Ok(Some(Plan { generation, stopped: part.stopped, entries: part.entries }))
            }
            _ => this.parts.take(this.followed.generation, part),
        };
        let refused = match taken {
            Ok(None) => return,
            Ok(Some(plan)) => {
                self.checks.follows(self.now_ms, host, generation, &plan.entries);
                self.new_plan(host, plan);
                None
            }
            Err(fault) => Some(fault),
        };
        if let Some(session) = self.hosts[host].session {
            let ack = PlanAckV1 { location: location(host), generation, refused };
            self.send_up(host, session, Up::Ack(ack));
        }
    }

    fn new_plan(&mut self, host: usize, plan: Plan) {
        let this = &mut self.hosts[host];
        let old = std::mem::replace(&mut this.followed, plan);
        let order = |entry: &PlanEntry| (entry.wish, entry.priority, entry.deadline_unix_ms, entry.hold);
        let find = |plan: &Plan, content| plan.entries.iter().find(|e| e.content == content).map(order);
        for entry in this.followed.entries.clone() {
            if find(&old, entry.content) != Some(order(&entry)) {
                this.failures.remove(&entry.content);
            }
            if entry.wish == Wish::Keep {
                let fresh = Entry { phase: Phase::Queued, wanted: true };
                this.entries.entry(entry.content).or_insert(fresh).wanted = true;
            }
            this.holds.insert(entry.content, entry.hold);
        }
        for content in old.entries.iter().map(|entry| entry.content) {
            if find(&this.followed, content).is_none_or(|(wish, ..)| wish != Wish::Keep)
                && let Some(entry) = this.entries.get_mut(&content)
            {
                entry.wanted = false;
                if !entry.phase.has_object() && !this.files.contains_key(&content) {
                    this.entries.remove(&content);
                }
            }
        }
        let followed = &this.followed;
        this.failures.retain(|content, _| followed.entries.iter().any(|entry| entry.content == *content));
        self.changed(host);
    }

    /// What changed since the last report, at most every 500 ms.
    pub(crate) fn report(&mut self, host: usize) {
        self.hosts[host].batched = false;
        if !self.hosts[host].greeted {
            return;
        }
        self.check_active(host);
        let now_ms = self.now_ms;
        let this = &mut self.hosts[host];
        let entries = this.observed();
        let gone = &this.gone;
        let reason = |content| gone.get(&content).copied().unwrap_or(GoneReason::Deleted);
        let changes = this.reported.changes(&entries, now_ms, reason);
        let (again, session, boot) = (this.reported.holds_back(), this.session, this.boot);
        if again && !std::mem::replace(&mut this.batched, true) {
            self.after(500, Event::Batch { host, boot });
        }
        if let Some(session) = session.filter(|_| !changes.is_empty()) {
            self.send_up(host, session, Up::Observed { inventory: false, entries: changes });
        }
    }

    /// The whole inventory: the first thing in a session.
    pub(crate) fn inventory(&mut self, host: usize) {
        self.check_active(host);
        let now_ms = self.now_ms;
        let this = &mut self.hosts[host];
        let entries = this.observed();
        this.reported = Reported::inventory(&entries, now_ms);
        if let Some(session) = this.session {
            self.send_up(host, session, Up::Observed { inventory: true, entries });
        }
    }

    fn check_active(&mut self, host: usize) {
        let active = self.hosts[host].entries.iter().filter(|(_, entry)| entry.phase.is_active());
        let active: Vec<ContentId> = active.map(|(content, _)| *content).collect();
        for content in active {
            let whole = self.hosts[host].has_whole(content);
            self.checks.active(self.now_ms, host, content, whole);
        }
    }
}
