//! The work that goes on while daemons are killed.
//!
//! **What.** Three tasks: imports and deletions, prewarm jobs and removals, leases and evictions on the hosts. Each step is
//! one question; a daemon that is dead at that moment is no failure.
//! **Invariants.** A step runs inside the gate, so that whoever holds the gate sees a ledger that stands still.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_agent::local::message::{Reply, Request};
use hearth_agent::task;
use hearth_protocol::api::cache::{CacheEntry, Keep, Targets};
use hearth_protocol::api::image::{Image, ImageCreate};
use hearth_protocol::api::prewarm::{Prewarm, PrewarmCreate, PrewarmDetails};
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::{ConsumerKind, ImageStatus, PrewarmState};
use hearth_tests::api::{Api, Refusal};
use hearth_tests::cluster::agent_name;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::Method;
use tokio::sync::RwLock;

use super::ledger::{AGENTS, Job, Kept, Ledger};

/// Pause between two steps of a task.
const STEP_PAUSE: Duration = Duration::from_millis(15);
/// Images that are there at once; more are deleted.
const IMAGES_MAX: usize = 8;
/// Jobs that run at once.
const JOBS_MAX: usize = 4;
/// Pinned copies at once; more are removed, so that the budget is never all held.
const HELD_MAX: usize = 5;
/// Leases per agent at once.
const LEASES_MAX: usize = 3;
/// Cap of every other job: slow enough to be killed in the middle.
const SLOW_BYTES_PER_S: u64 = 4 << 20;

/// What the tasks share with the rounds.
#[derive(Clone)]
pub(super) struct Load {
    pub(super) api: Api,
    pub(super) sockets: Vec<std::path::PathBuf>,
    /// Files to import.
    pub(super) files: Arc<Vec<std::path::PathBuf>>,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    /// Held for reading by each step, for writing by whoever compares.
    pub(super) gate: Arc<RwLock<()>>,
}

impl Load {
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the tasks; they run until their handles are aborted.
    pub(super) fn start(&self, seed: u64) -> Vec<tokio::task::JoinHandle<()>> {
        let dice = |n| StdRng::seed_from_u64(seed.wrapping_add(n));
        vec![
            task::spawn("load-images", self.clone().images(dice(1))),
            task::spawn("load-jobs", self.clone().jobs(dice(2))),
            task::spawn("load-hosts", self.clone().hosts(dice(3))),
        ]
    }

    /// A refusal that says that the controller itself failed is a finding; a dead controller is not.
    fn judge<T>(&self, what: &str, result: anyhow::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                if let Some(refusal) = error.downcast_ref::<Refusal>()
                    && matches!(refusal.status, 400 | 401 | 403 | 500)
                {
                    self.ledger().wrong.push(format!("{what}: {refusal}"));
                }
                None
            }
        }
    }

    async fn images(self, mut dice: StdRng) {
        loop {
            let inside = self.gate.read().await;
            let there = self.ledger().images.len();
            if there < IMAGES_MAX && dice.random_range(0..3) > 0 {
                self.import(dice.random_range(0..self.files.len()), &format!("i{:x}", dice.random::<u64>()))
                    .await;
            } else if there > IMAGES_MAX / 2 {
                let active = self.active();
                self.delete(active.get(dice.random_range(0..active.len().max(1))).map(|(image, _)| *image))
                    .await;
            }
            self.look_at_images().await;
            drop(inside);
            tokio::time::sleep(STEP_PAUSE).await;
        }
    }

    async fn import(&self, source: usize, name: &str) {
        let create = ImageCreate { name: name.to_owned(), ..ImageCreate::default() };
        let made = self.judge("image.create", self.api.post::<Image>("/images", &create).await);
        let Some(made) = made else { return };
        self.ledger().rows.insert(("image.create", made.id.to_string()));
        let sent =
            self.api.put_file::<Image>(&format!("/images/{}/file", made.id), &self.files[source]).await;
        if self.judge("image.upload", sent).is_some() {
            let mut ledger = self.ledger();
            ledger.rows.insert(("image.upload", made.id.to_string()));
            ledger.images.insert(made.id, Kept { source, content: None });
        }
    }

    async fn delete(&self, image: Option<ImageId>) {
        let Some(image) = image else { return };
        self.ledger().deleting(image);
        let gone = self.api.act(Method::DELETE, &format!("/images/{image}?force=true")).await;
        let refused = gone.as_ref().is_err_and(|error| error.is::<Refusal>());
        let done = self.judge("image.delete", gone).is_some();
        let mut ledger = self.ledger();
        if done {
            ledger.rows.insert(("image.delete", image.to_string()));
            ledger.unsure.remove(&image);
            ledger.deleted.insert(image);
            ledger.counts.deletes += 1;
        } else if refused {
            // In use. It is looked at and written down again like one that is new.
            ledger.unsure.remove(&image);
        }
    }

    /// What the catalog shows is acknowledged from now on.
    pub(super) async fn look_at_images(&self) {
        let Ok(shown) = self.api.list::<Image>("/images").await else { return };
        let mut ledger = self.ledger();
        for image in shown.iter().filter(|image| image.status == ImageStatus::Active) {
            let Some(content) = image.content else { continue };
            if let (false, Some(source)) = (ledger.unsure.contains(&image.id), ledger.sources.get(&content)) {
                let kept = Kept { source: *source, content: Some(content) };
                ledger.images.entry(image.id).or_insert(kept);
            }
            ledger.active(image.id, content);
        }
    }

    /// Images that were seen active, with their contents.
    fn active(&self) -> Vec<(ImageId, ContentId)> {
        let ledger = self.ledger();
        ledger.images.iter().filter_map(|(image, kept)| Some((*image, kept.content?))).collect()
    }

    async fn jobs(self, mut dice: StdRng) {
        loop {
            let inside = self.gate.read().await;
            let active = self.active();
            let running = self.ledger().jobs.values().filter(|job| !job.done).count();
            if running < JOBS_MAX && !active.is_empty() {
                let (image, _) = active[dice.random_range(0..active.len())];
                self.prewarm(image, &mut dice).await;
            }
            self.look_at_jobs().await;
            if self.ledger().held.len() > HELD_MAX {
                self.remove(&active, dice.random_range(0..HELD_MAX)).await;
            }
            drop(inside);
            tokio::time::sleep(STEP_PAUSE).await;
        }
    }

    async fn prewarm(&self, image: ImageId, dice: &mut StdRng) {
        let first = dice.random_range(0..AGENTS);
        let agents = if dice.random() { vec![first] } else { (0..AGENTS).collect() };
        let pinned = dice.random();
        let body = PrewarmCreate {
            image: Some(image),
            host_image: None,
            targets: Targets { to: agents.iter().copied().map(agent_name).collect(), ..Targets::default() },
            priority: None,
            deadline: None,
            start: None,
            rate_bytes_per_s: dice.random::<bool>().then_some(SLOW_BYTES_PER_S),
            keep: if pinned { Keep::Pinned } else { Keep::Seconds(1) },
            dry_run: false,
        };
        if let Some(job) = self.judge("prewarm.create", self.api.post::<Prewarm>("/prewarms", &body).await) {
            let mut ledger = self.ledger();
            ledger.rows.insert(("prewarm.create", job.id.to_string()));
            ledger.jobs.insert(job.id, Job { image, agents, pinned, done: false });
        }
    }

    async fn look_at_jobs(&self) {
        let running: Vec<_> =
            self.ledger().jobs.iter().filter(|(_, job)| !job.done).map(|(id, _)| *id).collect();
        for id in running {
            let Ok(job) = self.api.get::<PrewarmDetails>(&format!("/prewarms/{id}")).await else { continue };
            match job.prewarm.state {
                PrewarmState::Done => self.ledger().done(id),
                // No room, or cancelled with its image.
                PrewarmState::Failed | PrewarmState::Cancelled => drop(self.ledger().jobs.remove(&id)),
                _ => {}
            }
        }
    }

    /// Removes one held copy, under the names of all images that have its content.
    async fn remove(&self, active: &[(ImageId, ContentId)], nth: usize) {
        let Some((agent, content)) = self.ledger().held.iter().nth(nth).copied() else { return };
        self.ledger().letting_go(agent, content);
        for (image, _) in active.iter().filter(|(_, of)| *of == content) {
            let Ok(rows) = self.api.list::<CacheEntry>(&format!("/cache?image={image}")).await else {
                continue;
            };
            for row in rows.iter().filter(|row| row.location_name == agent_name(agent)) {
                let path = format!("/cache/{image}/{}?force=true", row.location);
                self.judge("cache.remove", self.api.act(Method::DELETE, &path).await);
            }
        }
    }

    async fn hosts(self, mut dice: StdRng) {
        loop {
            let inside = self.gate.read().await;
            let agent = dice.random_range(0..AGENTS);
            let known: Vec<ContentId> = self.ledger().sources.keys().copied().collect();
            if let Some(content) = known.get(dice.random_range(0..known.len().max(1))) {
                let leases = self.ledger().leases[agent].len();
                match dice.random_range(0..4) {
                    0 => self.evict(agent, *content).await,
                    1 if leases > 0 => self.release(agent).await,
                    _ if leases < LEASES_MAX => self.lease(agent, *content, dice.random()).await,
                    _ => self.release(agent).await,
                }
            }
            drop(inside);
            tokio::time::sleep(STEP_PAUSE).await;
        }
    }

    async fn ask(&self, agent: usize, request: Request) -> Option<Reply> {
        let socket = self.sockets[agent].clone();
        let asked = tokio::task::spawn_blocking(move || hearth_agent::local::client::ask(&socket, &request));
        asked.await.expect("asking does not panic").ok()
    }

    async fn lease(&self, agent: usize, content: ContentId, consumer: u32) {
        let request = Request::Lease {
            target: content.to_string(),
            kind: ConsumerKind::Vm,
            consumer: format!("vm-{consumer}"),
            wait_s: 0,
        };
        if let Some(Reply::Lease { lease, .. }) = self.ask(agent, request).await {
            let mut ledger = self.ledger();
            ledger.leases[agent].insert(lease.lease, content);
            ledger.counts.leases += 1;
        }
    }

    async fn release(&self, agent: usize) {
        let Some((lease, _)) = self.ledger().leases[agent].pop_first() else { return };
        self.ask(agent, Request::Release { lease }).await;
    }

    async fn evict(&self, agent: usize, content: ContentId) {
        let request = Request::Evict { target: content.to_string() };
        let Some(Reply::Done { .. }) = self.ask(agent, request).await else { return };
        let mut ledger = self.ledger();
        ledger.counts.evictions += 1;
        let leased = ledger.leases[agent].values().any(|of| *of == content);
        if leased || ledger.held.contains(&(agent, content)) {
            ledger.wrong.push(format!("agent {agent} evicted {content}, which is held or leased"));
        }
    }
}
