//! The reconciler: makes plans of intents, and jobs of what agents report.
//!
//! **What.** One task. A pass reads what changed, ends holds, advances prewarm jobs, chooses the transfers that may run,
//! writes each location's plan, and tells the sessions whose plan is new. It runs when something changed, and every
//! [`PASS_EVERY`] in any case.
//! **Why passes and not events.** A pass looks at everything that is and everything that should be; what woke it does not
//! matter. A wake-up that is lost, doubled or late changes nothing but the time.
//! **Why a pause after each pass.** Reports come many times a second while hundreds of hosts fetch; the pause grows with
//! the length of the pass, so the reconciler never takes more than a fifth of a core.
//!
//! **Invariants.** A generation is in the database before a plan with it is sent. The data server knows a plan before its
//! agent does. A session whose location left, whose key was revoked or exchanged, is closed in the next pass.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::{Generation, LocationId};
use hearth_protocol::words::EntryStatus;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::{sleep, timeout};

use super::compose::{Model, Wants};
use super::jobs::Jobs;
use super::plans::{ENTRIES_MAX, Plan};
use super::recruit::{Recruiter, receivers};
use super::registry::Session;
use super::swarm::CampaignWish;
use super::{Shared, recruit};
use crate::clock;
use crate::db::{Change, DbError};
use crate::logic::admission::{Admitted, Candidate, Standing, admit, candidate};
use crate::logic::plan::{Publish, publish, removed};

/// Longest time between two passes: holds end, jobs start and failures are tried again within it.
const PASS_EVERY: Duration = Duration::from_secs(5);
/// Shortest pause between two passes.
const PAUSE_MIN: Duration = Duration::from_millis(30);
/// Pause after a pass that failed.
const PAUSE_FAILED: Duration = Duration::from_secs(1);
/// How long a new session may take to send its inventory before it is planned for without.
const INVENTORY_WITHIN_US: i64 = 5_000_000;
/// Key of the setting by which an operator stops all transfers; its value is then `true`.
pub const STOPPED_SETTING: &str = "transfers_stopped";

/// What has to be read again.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "one flag per table; they are set and cleared one by one")]
pub(super) struct Dirty {
    pub(super) images: bool,
    pub(super) locations: bool,
    pub(super) intents: bool,
    pub(super) jobs: bool,
    settings: bool,
}

impl Dirty {
    const ALL: Self = Self { images: true, locations: true, intents: true, jobs: true, settings: true };

    fn note(&mut self, change: Change) {
        match change {
            Change::Image(_) => self.images = true,
            Change::Location(_) => self.locations = true,
            Change::Intents => self.intents = true,
            Change::Prewarm(_) => self.jobs = true,
            Change::Settings => self.settings = true,
            Change::Entries(_) | Change::HostImage(_) | Change::Jobs | Change::Operations => {}
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Reconciler {
    shared: Arc<Shared>,
    changes: Receiver<Change>,
    model: Model,
    jobs: Jobs,
    dirty: Dirty,
    admitted: Admitted,
    generations: HashMap<LocationId, Generation>,
    recruiter: Recruiter,
}

impl Reconciler {
    /// Reads the fleet from the database.
    ///
    /// # Errors
    /// A failed statement.
    pub(super) async fn load(shared: Arc<Shared>) -> Result<Self, DbError> {
        let changes = shared.db.subscribe();
        shared.db.see_entries(|entry| shared.picture.put(entry)).await?;
        let mut this = Self {
            shared,
            changes,
            model: Model::default(),
            jobs: Jobs::default(),
            dirty: Dirty::ALL,
            admitted: Admitted::new(),
            generations: HashMap::new(),
            recruiter: Recruiter::default(),
        };
        this.reload().await?;
        Ok(this)
    }

    /// Runs until it is aborted.
    pub(super) async fn run(mut self) {
        loop {
            let begun = clock::monotonic();
            let pause = match Box::pin(self.pass()).await {
                Ok(()) => {
                    let took = clock::monotonic().duration_since(begun);
                    metrics::histogram!(super::metrics::PASS_SECONDS).record(took.as_secs_f64());
                    PAUSE_MIN.max(took * 4)
                }
                Err(error) => {
                    tracing::error!(%error, "a pass of the reconciler failed and is repeated");
                    self.dirty = Dirty::ALL;
                    PAUSE_FAILED
                }
            };
            sleep(pause).await;
            if timeout(PASS_EVERY, self.woken()).await.is_err() {
                tracing::trace!("regular pass");
            }
        }
    }

    /// Waits for a reason to look. Losing one by cancellation does no harm: the timer runs besides.
    async fn woken(&mut self) {
        loop {
            let change = tokio::select! {
                change = self.changes.recv() => change,
                () = self.shared.reconcile.notified() => return,
            };
            match change {
                Ok(Change::Operations | Change::Jobs | Change::Entries(_)) => {}
                Ok(change) => return self.dirty.note(change),
                Err(RecvError::Lagged(_)) => {
                    self.dirty = Dirty::ALL;
                    return;
                }
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    fn drain(&mut self) {
        loop {
            match self.changes.try_recv() {
                Ok(change) => self.dirty.note(change),
                Err(TryRecvError::Lagged(_)) => self.dirty = Dirty::ALL,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    async fn reload(&mut self) -> Result<(), DbError> {
        let db = &self.shared.db;
        if std::mem::take(&mut self.dirty.images) {
            self.model.contents =
                db.contents().await?.into_iter().map(|content| (content.id, content)).collect();
            self.model.names = db.active_image_names().await?.into_iter().collect();
        }
        if std::mem::take(&mut self.dirty.locations) {
            let locations = db.locations(false).await?;
            self.model.locations = locations.into_iter().map(|location| (location.id, location)).collect();
            for (id, location) in &self.model.locations {
                let known = self.generations.entry(*id).or_default();
                *known = location.generation.max(*known);
            }
            self.recruiter.places(self.model.locations.values());
            recruit::deny(&self.shared).await?;
        }
        if std::mem::take(&mut self.dirty.jobs) {
            self.jobs.load(db, &self.shared.picture).await?;
            self.model.paused = self.jobs.paused();
        }
        if std::mem::take(&mut self.dirty.intents) {
            self.model.intents.clear();
            for intent in db.intents().await? {
                self.model.intents.entry(intent.location).or_default().push(intent);
            }
        }
        if std::mem::take(&mut self.dirty.settings) {
            let stopped = db.setting(STOPPED_SETTING).await?;
            self.model.stopped = matches!(stopped.as_deref(), Some("true" | "1"));
        }
        Ok(())
    }

    async fn pass(&mut self) -> Result<(), DbError> {
        // A clock that is wrong for a while must not end the holds of the whole fleet.
        let now_us = clock::steady_unix_us();
        self.drain();
        self.reload().await?;
        if !self.shared.db.expire_holds(now_us).await?.is_empty() {
            self.dirty.intents = true;
        }
        let online = |shared: &Shared, location| shared.registry.online(location);
        self.dirty.intents |= self.jobs.advance(&self.shared, &self.model, now_us, online).await?;
        self.reload().await?;
        let sessions = self.sessions().await?;
        let wants: Vec<(Arc<Session>, Wants)> = sessions
            .into_iter()
            .map(|session| (Arc::clone(&session), self.model.wants(session.location)))
            .collect();
        self.forget_removed(&wants).await?;
        let candidates = self.candidates(&wants, now_us);
        let campaigns = self.recruiter.campaigns(&self.shared, &self.model, &wants, &candidates);
        self.choose(candidates, &campaigns);
        self.shared.swarms.open(&self.shared, &campaigns);
        self.publish(&wants).await?;
        self.shared.swarms.recruit(campaigns, self.model.stopped).await;
        Ok(())
    }

    /// The sessions to plan for; those that may not be are closed.
    async fn sessions(&mut self) -> Result<Vec<Arc<Session>>, DbError> {
        let sessions = self.shared.registry.all();
        let fits = |model: &Model, session: &Session| {
            let location = model.locations.get(&session.location);
            location.is_some_and(|at| at.agent == Some(session.agent) && at.revoked_us.is_none())
        };
        if !sessions.iter().all(|session| fits(&self.model, session)) {
            // A location that is newer than our picture, or a revoked one: read again before anybody is closed.
            self.dirty.locations = true;
            self.reload().await?;
        }
        let now_us = clock::unix_us();
        let (fit, others): (Vec<_>, Vec<_>) =
            sessions.into_iter().partition(|session| fits(&self.model, session));
        for session in others {
            tracing::warn!(location = %session.location, agent = %session.agent, "a session is closed: the location was removed or its key revoked");
            session.close(FaultCode::Denied, "this location was removed, or its agent's key was revoked");
            self.shared.plans.forget(session.location);
            self.shared.picture.forget(session.location);
        }
        let settled = |session: &Arc<Session>| {
            self.shared.picture.settled(session.location) || now_us - session.since_us > INVENTORY_WITHIN_US
        };
        Ok(fit.into_iter().filter(settled).collect())
    }

    /// Drops the wishes for removal that are fulfilled.
    async fn forget_removed(&mut self, wants: &[(Arc<Session>, Wants)]) -> Result<(), DbError> {
        let mut done = Vec::new();
        for (session, wants) in wants {
            let location = session.location;
            let plan = self.shared.plans.of(location);
            for (content, wanted) in wants {
                // The agent was told: the plan that it follows has the wish.
                let told = plan
                    .as_ref()
                    .is_some_and(|plan| session.followed() >= plan.generation && plan.removes(*content));
                let entry = self.shared.picture.entry(location, *content);
                if removed(wanted.wish, entry.is_some(), self.shared.picture.settled(location), told) {
                    let here = self.model.intents.get(&location).into_iter().flatten();
                    done.extend(here.filter(|intent| intent.content == *content).map(|intent| intent.id));
                }
            }
        }
        if !done.is_empty() {
            self.shared.db.drop_intents(&done).await?;
        }
        Ok(())
    }

    /// The transfers that could run.
    fn candidates(&self, wants: &[(Arc<Session>, Wants)], now_us: i64) -> Vec<Candidate> {
        let mut candidates: Vec<Candidate> = Vec::new();
        for (session, wants) in wants {
            let Some(location) = self.model.locations.get(&session.location) else { continue };
            for (content, wanted) in wants {
                let entry = self.shared.picture.entry(location.id, *content);
                let seen = entry.map(|entry| (entry.status, entry.next_try_us));
                let here = Standing { location: location.id, state: location.state, content: *content, seen };
                candidates.extend(candidate(here, wanted, &self.admitted, now_us));
            }
        }
        candidates
    }

    /// Chooses the transfers that may run. Receivers of a campaign may all: what comes from other hosts costs the controller
    /// little, so no cap counts it.
    fn choose(&mut self, mut candidates: Vec<Candidate>, campaigns: &[CampaignWish]) {
        let shared: Admitted = campaigns.iter().flat_map(receivers).collect();
        candidates.retain(|candidate| !shared.contains(&(candidate.location, candidate.content)));
        self.admitted = admit(self.shared.config.caps, &candidates);
        self.admitted.extend(shared);
        let admitted = u32::try_from(self.admitted.len()).unwrap_or(u32::MAX);
        metrics::gauge!(super::metrics::ADMITTED).set(f64::from(admitted));
    }

    /// Writes the plans that are new: generations first, then the table, then the sessions.
    async fn publish(&mut self, wants: &[(Arc<Session>, Wants)]) -> Result<(), DbError> {
        let mut fresh: Vec<(Arc<Session>, Plan)> = Vec::new();
        for (session, wants) in wants {
            let entries = self.entries(session.location, wants);
            let (old, followed) = (self.shared.plans.of(session.location), session.followed());
            let stopped = self.model.stopped;
            let given = old.map(|old| (old.generation, old.stopped == stopped && old.entries == entries));
            let known = self.generations.entry(session.location).or_default();
            let generation = match publish(given, entries.is_empty() && !stopped, followed, *known) {
                Publish::Keep => continue,
                // The data server must know, though.
                Publish::Silent => {
                    self.shared.plans.put(session.location, Arc::new(Plan::empty()));
                    continue;
                }
                Publish::New(generation) => {
                    *known = generation;
                    generation
                }
            };
            fresh.push((Arc::clone(session), Plan { generation, stopped, entries }));
        }
        if fresh.is_empty() {
            return Ok(());
        }
        let generations: Vec<_> =
            fresh.iter().map(|(session, plan)| (session.location, plan.generation)).collect();
        self.shared.db.record_generations(&generations).await?;
        for (session, plan) in fresh {
            tracing::debug!(location = %session.location, generation = plan.generation.0, entries = plan.entries.len(), "new plan");
            self.shared.plans.put(session.location, Arc::new(plan));
            session.plan_changed();
        }
        Ok(())
    }

    fn entries(
        &self,
        location: LocationId,
        wants: &Wants,
    ) -> Vec<hearth_protocol::message::control::PlanEntry> {
        if wants.len() > ENTRIES_MAX {
            tracing::error!(%location, wanted = wants.len(), "more contents are wanted than a plan can hold; the rest is left out");
        }
        let entry = |(content, wanted): &(hearth_protocol::digest::ContentId, _)| {
            let active = || {
                let entry = self.shared.picture.entry(location, *content);
                entry.is_some_and(|entry| entry.status == EntryStatus::Active)
            };
            let admitted = self.admitted.contains(&(location, *content)) || active();
            self.model.plan_entry(*content, wanted, admitted)
        };
        wants.iter().take(ENTRIES_MAX).filter_map(entry).collect()
    }
}
