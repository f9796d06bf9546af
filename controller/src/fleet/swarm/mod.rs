//! Campaigns: contents that many hosts need at once, which they pass on to each other.
//!
//! ```text
//!  reconciler ─ who takes part ─▶ Swarms ─▶ one task per content ─ leases ─▶ sessions
//!                                   ▲  ▲
//!            session, inbox ─ news ─┘  └─ may this be served? sent ─ data server
//! ```
//! **What.** The table of running campaigns; everything that others tell or ask of them goes through it.
//! **Why by content.** A content is distributed by one campaign at a time, whatever images, jobs and policies want it.
//! **Why the wishes are whole lists.** As with plans: a list says who takes part, not who came. What was lost is said again in
//! the next pass.
//!
//! **Invariants.** A receiver passes the gate of its campaign before its agent is given the plan; it is asked to join after
//! that. Queues are bounded: news wait for their campaign, which waits for nobody.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_protocol::digest::{AgentId, ContentId};
use hearth_protocol::id::LocationId;
use hearth_protocol::message::control::ToAgent;
use hearth_protocol::message::swarm::{
    Campaign as CampaignId, CampaignStateV1, DenyV1, PIECES_MAX, PieceReportV1,
};
use hearth_protocol::piece::piece_bytes;
use hearth_protocol::version::VERSION_SWARM;
use tokio::sync::mpsc;

use super::ca::Authority;
use super::registry::Session;
use super::{Shared, metrics as names};
use crate::content::ContentError;
use crate::{clock, task};

mod campaign;
mod check;
mod gate;
mod grants;
mod handout;
mod hear;
mod members;
mod source;
mod view;

use campaign::{Cut, Said};
use gate::Gate;
pub(super) use gate::Pass;
use grants::Signer;
pub(super) use source::Turn;
pub use view::{CampaignView, Failures, HostView};

/// News that wait for one campaign; more make their senders wait.
const NEWS_MAX: usize = 4096;
/// Views of campaigns that ended.
const ENDED_MAX: usize = 64;
/// A content whose campaign could not begin or failed is served directly for so long, ms.
const REST_MS: u64 = 60_000;
/// How long a campaign waits for late joiners when everybody has everything.
const LINGER: Duration = Duration::from_secs(10);

/// Settings of campaigns.
#[derive(Clone, Copy, Debug)]
pub struct SwarmSettings {
    /// Whether there are any.
    pub on: bool,
    /// What the controller may send in all of them, bytes per second.
    pub source_bytes_per_s: u64,
    /// How long a campaign waits for late joiners; not in the file, shorter in tests.
    pub linger: Duration,
}

impl SwarmSettings {
    /// Settings with the rate in Mbit/s, as in the file.
    #[must_use]
    pub fn new(on: bool, source_mbps: u32) -> Self {
        Self { on, source_bytes_per_s: u64::from(source_mbps) * 125_000, linger: LINGER }
    }
}

impl Default for SwarmSettings {
    fn default() -> Self {
        Self::new(true, crate::config::SWARM_SOURCE_MBPS_DEFAULT)
    }
}

/// Somebody who is to take part.
#[derive(Clone, Debug)]
pub(super) struct MemberWish {
    pub(super) session: Arc<Session>,
    /// It needs the content; else it has it.
    pub(super) receives: bool,
    /// The fleet's number of its rack.
    pub(super) rack: u32,
    /// When it should have it, microseconds since the epoch.
    pub(super) deadline_us: Option<i64>,
}

/// A campaign that should run, and with whom.
#[derive(Clone, Debug)]
pub(super) struct CampaignWish {
    pub(super) content: ContentId,
    /// Sorted by location.
    pub(super) members: Vec<MemberWish>,
}

/// Location, number of the session, whether it receives: what decides whether a list is a new one.
type Key = (LocationId, u64, bool);

impl CampaignWish {
    fn keys(&self) -> Vec<Key> {
        let key = |wish: &MemberWish| (wish.session.location, wish.session.number, wish.receives);
        self.members.iter().map(key).collect()
    }
}

/// What everybody knows of a running campaign.
#[derive(Debug)]
struct Handle {
    campaign: CampaignId,
    content: ContentId,
    /// Microseconds since the epoch.
    since_us: i64,
    gate: Gate,
    /// Whom the gate knows, and who the task was told takes part.
    gated: Mutex<Vec<Key>>,
    told: Mutex<Vec<Key>>,
    view: Mutex<Arc<CampaignView>>,
}

impl Handle {
    fn view(&self) -> Arc<CampaignView> {
        Arc::clone(&lock(&self.view))
    }

    fn show(&self, view: CampaignView) {
        *lock(&self.view) = Arc::new(view);
    }
}

/// A running campaign as the table has it; the task ends when the last sender is gone.
#[derive(Clone, Debug)]
struct Running {
    handle: Arc<Handle>,
    said: mpsc::Sender<Said>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Swarms {
    settings: SwarmSettings,
    epoch: u64,
    last_number: AtomicU64,
    signer: Signer,
    running: Mutex<HashMap<ContentId, Running>>,
    /// Contents that get no campaign for now, until when (ms since the start).
    resting: Mutex<HashMap<ContentId, u64>>,
    ended: Mutex<VecDeque<Arc<CampaignView>>>,
    denied: Mutex<Arc<Vec<AgentId>>>,
    source: source::Source,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Swarms {
    /// No campaign yet, in the life of the controller that began at `now_us`.
    pub(super) fn new(settings: SwarmSettings, authority: &Authority, now_us: i64) -> Self {
        let epoch = u64::try_from(now_us).unwrap_or(0);
        Self {
            settings,
            epoch,
            last_number: AtomicU64::new(0),
            signer: Signer::new(authority, epoch),
            running: Mutex::default(),
            resting: Mutex::default(),
            ended: Mutex::default(),
            denied: Mutex::default(),
            source: source::Source::new(settings.source_bytes_per_s),
        }
    }

    /// Whether there are campaigns at all.
    pub(super) const fn is_on(&self) -> bool {
        self.settings.on
    }

    /// Whether a session can take part.
    pub(super) const fn speaks(session: &Session) -> bool {
        session.version >= VERSION_SWARM
    }

    /// Contents that are being distributed.
    pub(super) fn contents(&self) -> BTreeSet<ContentId> {
        lock(&self.running).keys().copied().collect()
    }

    /// Who takes part in the campaign of a content; `None`: there is none.
    pub(super) fn members(&self, content: ContentId) -> Option<BTreeSet<LocationId>> {
        let running = self.of(content)?;
        let told = lock(&running.handle.told);
        Some(told.iter().map(|(location, ..)| *location).collect())
    }

    /// Whether a content is served directly for a while, because its campaign failed.
    pub(super) fn rests(&self, content: ContentId, now_ms: u64) -> bool {
        let mut resting = lock(&self.resting);
        resting.retain(|_, until_ms| *until_ms > now_ms);
        resting.contains_key(&content)
    }

    fn of(&self, content: ContentId) -> Option<Running> {
        lock(&self.running).get(&content).cloned()
    }

    fn numbered(&self, campaign: CampaignId) -> Option<Running> {
        lock(&self.running).values().find(|running| running.handle.campaign == campaign).cloned()
    }

    /// Begins campaigns that are new and lets their receivers through no more than is leased to them. Comes before the plans.
    pub(super) fn open(&self, shared: &Arc<Shared>, wishes: &[CampaignWish]) {
        for wish in wishes {
            let running = self.of(wish.content).unwrap_or_else(|| self.begin(shared, wish.content));
            let keys = wish.keys();
            let mut gated = lock(&running.handle.gated);
            if *gated != keys {
                let receivers = keys.iter().filter(|(.., receives)| *receives);
                let receivers = receivers.map(|(location, session, _)| (*location, *session));
                running.handle.gate.set_receivers(receivers, shared.now_ms());
                *gated = keys;
            }
        }
    }

    /// Tells campaigns who takes part, and ends those that nobody wishes. Comes after the plans.
    pub(super) async fn recruit(&self, wishes: Vec<CampaignWish>, stopped: bool) {
        let mut others = self.contents();
        for wish in wishes {
            others.remove(&wish.content);
            let Some(running) = self.of(wish.content) else { continue };
            let keys = wish.keys();
            if *lock(&running.handle.told) == keys {
                continue;
            }
            // Fails only if the campaign has just ended; the next pass sees that.
            if running.said.send(Said::Members(wish.members)).await.is_ok() {
                *lock(&running.handle.told) = keys;
            }
        }
        let reason = if stopped { "an operator stopped all transfers" } else { "nobody needs it any more" };
        for content in others {
            if let Some(running) = self.of(content) {
                drop(running.said.send(Said::End(reason)).await);
            }
        }
    }

    fn begin(&self, shared: &Arc<Shared>, content: ContentId) -> Running {
        let number = self.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        let campaign = CampaignId { epoch: self.epoch, number };
        let since_us = clock::unix_us();
        let handle = Arc::new(Handle {
            campaign,
            content,
            since_us,
            gate: Gate::default(),
            gated: Mutex::default(),
            told: Mutex::default(),
            view: Mutex::new(Arc::new(CampaignView::begun(campaign, content, since_us))),
        });
        let (said, news) = mpsc::channel(NEWS_MAX);
        let running = Running { handle: Arc::clone(&handle), said };
        let n_running = {
            let mut table = lock(&self.running);
            table.insert(content, running.clone());
            table.len()
        };
        note_running(n_running);
        tracing::info!(%content, number, "a campaign begins");
        task::spawn("campaign", start(Arc::clone(shared), handle, news));
        running
    }

    /// A campaign is over.
    fn over(&self, handle: &Handle, view: &CampaignView, reason: &str, has_failed: bool, now_ms: u64) {
        let (content, number) = (handle.content, handle.campaign.number);
        let n_running = {
            let mut table = lock(&self.running);
            if table.get(&content).is_some_and(|running| running.handle.campaign == handle.campaign) {
                table.remove(&content);
            }
            table.len()
        };
        note_running(n_running);
        if has_failed {
            lock(&self.resting).insert(content, now_ms + REST_MS);
        }
        tracing::info!(%content, number, reason, receivers = view.n_receivers, done = view.n_done, seconds = view.elapsed_us / 1_000_000, "a campaign is over");
        let mut ended = lock(&self.ended);
        ended.push_front(Arc::new(view.clone().ended(clock::unix_us(), reason.to_owned())));
        ended.truncate(ENDED_MAX);
    }

    /// Ends all campaigns without a word: the connections are closing.
    pub(super) fn stop(&self) {
        lock(&self.running).clear();
    }

    /// A host says what it has.
    pub(super) async fn state(&self, session: &Session, state: CampaignStateV1) {
        let Some(running) = self.numbered(state.campaign).filter(|_| state.n_pieces <= PIECES_MAX) else {
            tracing::debug!(location = %session.location, "a state of a campaign that does not run was ignored");
            return;
        };
        drop(running.said.send(Said::State(session.location, session.number, state)).await);
    }

    /// A host says what it finished.
    pub(super) async fn report(&self, session: &Session, report: PieceReportV1) {
        // Reports of a campaign that has just ended are nothing to speak of.
        if let Some(running) = self.numbered(report.campaign) {
            drop(running.said.send(Said::Report(session.location, session.number, report)).await);
        }
    }

    /// A session ended.
    pub(super) async fn left(&self, session: &Session) {
        if Self::speaks(session) {
            let all: Vec<Running> = lock(&self.running).values().cloned().collect();
            for running in all {
                drop(running.said.send(Said::Left(session.location, session.number)).await);
            }
        }
    }

    /// What becomes of a location's request for a piece.
    pub(super) fn pass(&self, location: LocationId, content: ContentId, piece: u32, now_ms: u64) -> Pass {
        let table = lock(&self.running);
        table.get(&content).map_or(Pass::Direct, |running| running.handle.gate.pass(location, piece, now_ms))
    }

    /// The controller has sent a leased piece.
    pub(super) async fn sent(&self, location: LocationId, content: ContentId, piece: u32) {
        if let Some(running) = self.of(content) {
            drop(running.said.send(Said::Sent(location, piece)).await);
        }
    }

    /// What one campaign may send now, bytes per second.
    fn source_share(&self) -> u64 {
        let n_running = lock(&self.running).len().max(1);
        (self.settings.source_bytes_per_s * 100 / source::WIRE_PERCENT / n_running as u64).max(1)
    }

    /// The list of agents that are served nothing, if it is another one than before.
    pub(super) fn deny(&self, agents: Vec<AgentId>) -> Option<ToAgent> {
        let mut denied = lock(&self.denied);
        if **denied == agents {
            return None;
        }
        *denied = Arc::new(agents.clone());
        Some(ToAgent::Deny(DenyV1 { agents }))
    }

    /// What a new session is told of denied agents.
    pub(super) fn denied(&self) -> Option<ToAgent> {
        let denied = Arc::clone(&lock(&self.denied));
        (!denied.is_empty()).then(|| ToAgent::Deny(DenyV1 { agents: denied.to_vec() }))
    }

    /// All campaigns: those that run, then those that ended, the newest first.
    pub(super) fn views(&self) -> Vec<Arc<CampaignView>> {
        let mut all: Vec<_> = lock(&self.running).values().map(|running| running.handle.view()).collect();
        all.sort_unstable_by_key(|view| std::cmp::Reverse(view.campaign));
        all.extend(lock(&self.ended).iter().cloned());
        all
    }
}

fn note_running(n: usize) {
    metrics::gauge!(names::CAMPAIGNS).set(f64::from(u32::try_from(n).unwrap_or(u32::MAX)));
}

/// Reads how a content is cut and runs its campaign.
async fn start(shared: Arc<Shared>, handle: Arc<Handle>, news: mpsc::Receiver<Said>) {
    let (store, content) = (Arc::clone(&shared.store), handle.content);
    let read = move || -> Result<Cut, ContentError> {
        let object = store.open(content)?;
        let data_bytes = object.root().data_bytes();
        let n_pieces = object.pieces()?.len();
        Ok(Cut {
            n_pieces,
            piece_bytes: piece_bytes(data_bytes),
            data_bytes,
            stored_bytes: object.stored_bytes(),
        })
    };
    let reason = match tokio::task::spawn_blocking(read).await {
        Ok(Ok(cut)) if (1..=PIECES_MAX).contains(&cut.n_pieces) => {
            return campaign::run(shared, handle, cut, news).await;
        }
        Ok(Ok(_)) => "it has no pieces, or too many".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "reading it panicked".to_owned(),
    };
    tracing::warn!(%content, reason, "a content cannot be distributed by its hosts and is served directly");
    shared.swarms.over(&handle, &handle.view(), &reason, true, shared.now_ms());
    shared.wake();
}
