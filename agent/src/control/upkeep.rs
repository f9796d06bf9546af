//! Carries out what the reconciler decides: begins and ends fetches, sets holds, removes.
//!
//! **What.** One loop: something changed, take a snapshot, decide, perform. Each fetch is a task of its own.
//! **Why the loop owns the failures.** Backoff belongs to the wish, not to one try; a new wish begins afresh.
//!
//! **Invariants.** No file is made for a content that the plan does not name. At most `limit` fetches run at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::Generation;
use hearth_protocol::message::control::{BadChunkV1, Hold, ObservedState, PlanEntry, Wish};
use hearth_protocol::words::{EntryStatus, Priority};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::holds;
use super::one_try::{FetchParts, TryError, one_try, wait_until};
use super::plan::{Plan, PlanBook};
use super::session::{Link, LinkState};
use crate::logic::backoff;
use crate::logic::reconcile::{Action, Copy, Failure, Running, Snapshot, Stage, reconcile};
use crate::store::{BeginError, ContentSpec, EntryView, RemoveMode, Store, StoreError};
use crate::swarm::Swarm;
use crate::transfer::decode::Decoders;
use crate::transfer::fetch::{FetchError, Sources};
use crate::transfer::rate::RateCap;
use crate::{clock, metrics as names, task};

/// Least time between two passes: a running fetch changes the store many times a second.
const PASS_EVERY: Duration = Duration::from_millis(100);
/// A pass at least this often: times (holds, next tries) come without an event.
const TICK: Duration = Duration::from_secs(1);
/// Time that fetches get to end by themselves when the agent stops.
const DRAIN: Duration = Duration::from_secs(3);
/// Time that they then get to put down what they hold.
const STOP: Duration = Duration::from_secs(20);
/// What the loop works with.
#[derive(Debug)]
pub struct Upkeep {
    /// The cache.
    pub store: Store,
    /// What should be in it.
    pub book: Arc<PlanBook>,
    /// Where chunks come from.
    pub sources: Sources,
    /// Shared workers.
    pub decoders: Decoders,
    /// Reports of chunks with wrong bytes.
    pub bad_chunks: mpsc::Sender<BadChunkV1>,
    /// Whether the controller denied us.
    pub link: watch::Receiver<Link>,
    /// Campaigns.
    pub swarm: Swarm,
    /// Fetches at once.
    pub limit: usize,
    /// Counts passes, for the watchdog.
    pub beat: watch::Sender<u64>,
}

struct Task {
    priority: Priority,
    rate_bytes_per_s: Option<u64>,
    cap: Arc<RateCap>,
    stop: CancellationToken,
    stopping: bool,
    handle: JoinHandle<Result<(), TryError>>,
}

struct Loop {
    parts: Upkeep,
    tasks: BTreeMap<ContentId, Task>,
    failures: BTreeMap<ContentId, Failure>,
    /// The plan at the last pass.
    seen: Arc<Plan>,
}

impl Upkeep {
    /// Runs until `stop` is cancelled and all fetches have ended.
    pub async fn run(self, stop: CancellationToken) {
        let mut plan = self.book.watch();
        let mut changes = self.store.changes();
        let mut link = self.link.clone();
        let mut this =
            Loop { parts: self, tasks: BTreeMap::new(), failures: BTreeMap::new(), seen: Arc::default() };
        while !stop.is_cancelled() {
            this.reap().await;
            this.pass(false).await;
            this.parts.beat.send_modify(|beat| *beat += 1);
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(PASS_EVERY) => {}
            }
            tokio::select! {
                () = stop.cancelled() => break,
                _ = plan.changed() => {}
                _ = changes.changed() => {}
                _ = link.changed() => {}
                () = tokio::time::sleep(TICK) => {}
            }
        }
        this.drain().await;
    }
}

impl Loop {
    /// One comparison, and what follows from it.
    async fn pass(&mut self, draining: bool) {
        let plan = self.parts.book.current();
        if plan.generation == Generation(0) {
            return; // Nobody has said yet what should be here: holds and unfinished files stay as they are.
        }
        if !Arc::ptr_eq(&plan, &self.seen) {
            self.new_plan(&plan).await;
        }
        let stopped = plan.stopped || self.parts.link.borrow().state == LinkState::Denied;
        let views = self.parts.store.entries();
        count(&views);
        let copies: Vec<Copy> = views.iter().filter_map(copy).collect();
        let running: Vec<Running> = self.tasks.iter().map(|(content, task)| task.running(*content)).collect();
        let actions = reconcile(&Snapshot {
            plan: &plan.entries,
            stopped,
            draining,
            copies: &copies,
            running: &running,
            failures: &self.failures,
            limit: self.parts.limit,
            now_unix_ms: clock::unix_ms(),
        });
        let mut holds = Vec::new();
        for action in actions {
            match action {
                Action::Begin { entry } => self.begin(&plan.entries[entry]).await,
                Action::Stop { content, .. } => self.stop(content),
                Action::SetRate { content, rate_bytes_per_s } => self.set_rate(content, rate_bytes_per_s),
                Action::Remove { content } => self.remove(content).await,
                Action::SetHold { content, hold } => holds.push((content, hold)),
            }
        }
        self.set_holds(&plan, holds).await;
        metrics::gauge!(names::FETCHES_RUNNING).set(u32::try_from(self.tasks.len()).unwrap_or(u32::MAX));
    }

    /// Tells the store what is wanted now, and forgets the failures of wishes that changed.
    async fn new_plan(&mut self, plan: &Arc<Plan>) {
        let old = std::mem::replace(&mut self.seen, Arc::clone(plan));
        let before: BTreeMap<ContentId, &PlanEntry> =
            old.entries.iter().map(|entry| (entry.content, entry)).collect();
        let order = |entry: &PlanEntry| (entry.wish, entry.priority, entry.deadline_unix_ms, entry.hold);
        for entry in &plan.entries {
            if before.get(&entry.content).is_none_or(|before| order(before) != order(entry)) {
                self.failures.remove(&entry.content);
            }
        }
        let keep: BTreeMap<ContentId, ContentSpec> =
            plan.entries.iter().filter(|e| e.wish == Wish::Keep).map(|e| (e.content, spec(e))).collect();
        self.failures.retain(|content, _| plan.entries.iter().any(|entry| entry.content == *content));
        for content in before.keys().filter(|content| !keep.contains_key(content)) {
            self.parts.store.unwant(*content);
        }
        for spec in keep.values() {
            self.parts.store.want(*spec);
        }
        metrics::gauge!(names::PLAN_GENERATION).set(plan.generation.0 as f64);
        tracing::info!(
            generation = plan.generation.0,
            entries = plan.entries.len(),
            stopped = plan.stopped,
            "plan"
        );
        // Holds of contents that are not on disk yet must stand before their bytes do.
        let absent = |entry: &&PlanEntry| {
            self.parts.store.entry(entry.content).is_none_or(|view| view.hold != entry.hold)
        };
        let holds: Vec<(ContentId, Hold)> =
            plan.entries.iter().filter(absent).map(|entry| (entry.content, entry.hold)).collect();
        self.set_holds(plan, holds).await;
    }

    async fn begin(&mut self, entry: &PlanEntry) {
        let content = entry.content;
        let cap = Arc::new(RateCap::new(entry.rate_bytes_per_s));
        let stop = CancellationToken::new();
        let (store, spec) = (self.parts.store.clone(), spec(entry));
        let parts = FetchParts {
            sources: self.parts.sources.clone(),
            decoders: self.parts.decoders.clone(),
            cap: Arc::clone(&cap),
            bad_chunks: self.parts.bad_chunks.clone(),
            stop: stop.clone(),
            swarm: self.parts.swarm.clone(),
        };
        tracing::info!(%content, data_bytes = entry.data_bytes, priority = %entry.priority, "fetch begins");
        let handle = task::spawn("fetch", one_try(store, spec, parts));
        let task = Task {
            priority: entry.priority,
            rate_bytes_per_s: entry.rate_bytes_per_s,
            cap,
            stop,
            stopping: false,
            handle,
        };
        self.tasks.insert(content, task);
    }

    fn stop(&mut self, content: ContentId) {
        if let Some(task) = self.tasks.get_mut(&content) {
            tracing::info!(%content, "fetch is stopped");
            task.stop.cancel();
            task.stopping = true;
        }
    }

    fn set_rate(&mut self, content: ContentId, rate_bytes_per_s: Option<u64>) {
        if let Some(task) = self.tasks.get_mut(&content) {
            task.cap.set(rate_bytes_per_s);
            task.rate_bytes_per_s = rate_bytes_per_s;
        }
    }

    async fn remove(&mut self, content: ContentId) {
        let removed = self.blocking(move |store| store.remove(content, RemoveMode::Delete)).await;
        match removed {
            Ok(()) | Err(StoreError::NotFound { .. }) => {
                self.failures.remove(&content);
            }
            Err(error) => {
                tracing::info!(%content, error = error.chain(), "not removed; tried again");
                self.failed(content, error.fault());
            }
        }
    }

    async fn set_holds(&self, plan: &Arc<Plan>, holds: Vec<(ContentId, Hold)>) {
        if holds.is_empty() {
            return;
        }
        let (book, plan) = (Arc::clone(&self.parts.book), Arc::clone(plan));
        let set = self.blocking(move |store| holds::mend(store, &book, &plan, &holds)).await;
        if let Err(error) = set {
            tracing::error!(error = error.chain(), "holds cannot be written; tried again");
        }
    }

    /// Takes in fetches that have ended.
    async fn reap(&mut self) {
        let ended: Vec<ContentId> = self
            .tasks
            .iter()
            .filter(|(_, task)| task.handle.is_finished())
            .map(|(content, _)| *content)
            .collect();
        for content in ended {
            let Some(task) = self.tasks.remove(&content) else { continue };
            let result = task.handle.await.unwrap_or(Err(TryError::Defect));
            let was_stopped = matches!(result, Err(TryError::Fetch(FetchError::Stopped)));
            self.ended(content, result);
            // The store does not show what nobody wants and nobody writes: a cancelled fetch's file must go now.
            let plan = self.parts.book.current();
            let wanted =
                plan.entries.iter().any(|entry| entry.content == content && entry.wish == Wish::Keep);
            if was_stopped && !wanted {
                self.remove(content).await;
            }
        }
    }

    fn ended(&mut self, content: ContentId, result: Result<(), TryError>) {
        let result_word = match result {
            Ok(()) => {
                self.failures.remove(&content);
                "active"
            }
            Err(TryError::Fetch(FetchError::Stopped)) => "stopped",
            // The last writer of the try before has not let go yet, or it is there already: look again.
            Err(TryError::Begin(BeginError::Running { .. } | BeginError::Present { .. })) => "stopped",
            Err(error) => {
                let fault = match &error {
                    TryError::Begin(error) => error.fault(),
                    TryError::Fetch(error) => error.fault(),
                    TryError::Defect => FaultCode::Internal,
                };
                let next_try_unix_ms = self.failed(content, fault);
                tracing::warn!(%content, %fault, %error, next_try_unix_ms, "fetch failed");
                let noted =
                    self.parts.store.note_failure(content, fault, cut(error.to_string()), next_try_unix_ms);
                if let Err(error) = noted {
                    tracing::debug!(%content, error = error.chain(), "failure not noted");
                }
                "failed"
            }
        };
        metrics::counter!(names::FETCHES, "result" => result_word).increment(1);
    }

    /// Counts a failure; returns when the next try is due.
    fn failed(&mut self, content: ContentId, fault: FaultCode) -> u64 {
        let failures = self.failures.get(&content).map_or(0, |failure| failure.failures) + 1;
        let delay_ms = u64::try_from(backoff::entry(fault, failures).as_millis()).unwrap_or(u64::MAX);
        let next_try_unix_ms = clock::unix_ms().saturating_add(delay_ms);
        self.failures.insert(content, Failure { failures, next_try_unix_ms });
        next_try_unix_ms
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.parts.store.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "a step of the store ended in a defect");
                Err(StoreError::Stopped)
            }
        }
    }

    /// Lets quick fetches finish, then stops the rest.
    async fn drain(&mut self) {
        let all_ended =
            |tasks: &BTreeMap<ContentId, Task>| tasks.values().all(|task| task.handle.is_finished());
        wait_until(DRAIN, || all_ended(&self.tasks)).await;
        self.reap().await;
        self.pass(true).await;
        wait_until(STOP, || all_ended(&self.tasks)).await;
        self.reap().await;
        if !self.tasks.is_empty() {
            tracing::warn!(
                fetches = self.tasks.len(),
                "fetches did not end in time; their files are mended at the next start"
            );
        }
    }
}

impl Task {
    fn running(&self, content: ContentId) -> Running {
        Running {
            content,
            priority: self.priority,
            rate_bytes_per_s: self.rate_bytes_per_s,
            stopping: self.stopping,
        }
    }
}

fn spec(entry: &PlanEntry) -> ContentSpec {
    ContentSpec {
        content: entry.content,
        kind: entry.kind,
        raw_bytes: entry.raw_bytes,
        data_bytes: entry.data_bytes,
    }
}

/// The entry as the reconciler sees it; `None` for one that is only wanted.
fn copy(view: &EntryView) -> Option<Copy> {
    let stage = Stage::of(&view.state, view.allocated_bytes)?;
    Some(Copy { content: view.content, stage, hold: view.hold })
}

fn count(views: &[EntryView]) {
    for status in EntryStatus::ALL {
        let is = |view: &&EntryView| match &view.state {
            ObservedState::Present(present) => present == status,
            ObservedState::Failed { .. } => *status == EntryStatus::CacheFail,
            ObservedState::Gone(_) => false,
        };
        let n = u32::try_from(views.iter().filter(is).count()).unwrap_or(u32::MAX);
        metrics::gauge!(names::ENTRIES, "status" => status.as_str()).set(n);
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(hearth_protocol::message::control::TEXT_BYTES_MAX));
    text
}
