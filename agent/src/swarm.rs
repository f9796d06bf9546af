//! The agent in a swarm: it passes pieces on while it still gets them, and gets them from whoever the controller names.
//!
//! ```text
//!  session ── Join, Leases, End ─▶ campaign ── asks ─▶ request ── peers ─▶ other agents, or the session's controller
//!          ◀── State, Reports ────   │  ▲ asks          └─ relay ─▶ staging file, spool
//!  fetch ──── takes part ────────────┘  └── upload ◀── door ◀── other agents
//! ```
//! **What.** One `campaign` task per content decides by the pure parts of `logic::swarm`; `request` moves the bytes of one piece
//! in, `upload` those of one piece out; `relay` is the content that both work on; `peers` lends connections, `door` accepts
//! them; `grant` says who may ask; `caps` says how fast. Others speak to a campaign by its `handle`.
//! **Why a task per content.** What is asked, offered and received changes the same tables; one owner needs no lock.
//!
//! **Invariants.** Nothing is sent to who shows no grant for the content with the key of its own certificate. A chunk is sent
//! only after it was verified. Whatever other agents do, a fetch ends as it would from the controller alone, or later.

mod alone;
mod campaign;
mod caps;
mod door;
mod grant;
mod handle;
mod parts;
mod peers;
mod receiving;
mod relay;
mod request;
mod serving;
pub mod tls;
mod upload;

pub use caps::Caps;
pub use parts::{PartEnd, PartGuard, Taking};

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hearth_protocol::digest::{AgentId, ContentId};
use hearth_protocol::message::control::ToController;
use hearth_protocol::message::swarm::{
    Campaign, DENIED_MAX, DenyV1, EndCampaignV1, JoinCampaignV1, PieceLeasesV1,
};
use tokio::sync::{mpsc, watch};

use self::handle::{Event, Handle};
use crate::control::credentials::Credentials;
use crate::store::{Spool, Store};
use crate::transfer::endpoint::Endpoint;
use crate::transfer::fetch::Sources;
use crate::{clock, task};

/// Messages that wait for the session; more are dropped, as a host that does not get through joins anew.
const OUTBOX: usize = 1024;
/// Campaigns at once: each is a task and its tables.
const CAMPAIGNS_MAX: usize = 64;
/// How long packed chunks are kept after a campaign, for the next one of the same content.
const SPOOL_KEPT: Duration = Duration::from_secs(600);

/// What all parts share.
#[derive(Debug)]
struct Shared {
    store: Store,
    endpoint: Endpoint,
    credentials: Arc<Credentials>,
    /// The controller, while a session is up.
    controller: Sources,
    caps: Arc<Caps>,
    pool: peers::Pool,
    outbox: mpsc::Sender<ToController>,
    running: Mutex<HashMap<ContentId, Handle>>,
    /// Counts campaigns that began.
    begun: watch::Sender<u64>,
    denied: Mutex<Vec<AgentId>>,
    spools: Mutex<HashMap<ContentId, (Arc<Spool>, std::time::Instant)>>,
}

/// All campaigns of this agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Swarm {
    shared: Arc<Shared>,
}

impl Swarm {
    /// A part in no campaign yet. What it has to say to the controller comes out of the receiver.
    #[must_use]
    pub fn new(
        store: Store,
        endpoint: Endpoint,
        credentials: Arc<Credentials>,
        controller: Sources,
        caps: Arc<Caps>,
    ) -> (Self, mpsc::Receiver<ToController>) {
        let (outbox, says) = mpsc::channel(OUTBOX);
        let pool = peers::Pool::new(endpoint.clone(), Arc::clone(&credentials));
        let shared = Shared {
            store,
            endpoint,
            credentials,
            controller,
            caps,
            pool,
            outbox,
            running: Mutex::default(),
            begun: watch::Sender::new(0),
            denied: Mutex::default(),
            spools: Mutex::default(),
        };
        (Self { shared: Arc::new(shared) }, says)
    }

    /// How fast this host sends and takes.
    #[must_use]
    pub fn caps(&self) -> &Caps {
        &self.shared.caps
    }

    /// Answers other agents until the endpoint closes.
    pub async fn answer(self) {
        let keeping = async {
            loop {
                tokio::time::sleep(SPOOL_KEPT / 10).await;
                self.shared.drop_old_spools();
            }
        };
        tokio::select! {
            () = door::run(Arc::clone(&self.shared)) => {}
            () = keeping => {}
        }
    }

    /// The controller gives out pieces.
    pub fn lease(&self, leases: PieceLeasesV1) {
        self.tell(leases.campaign, Event::Leases(leases));
    }

    /// The controller ends a campaign.
    pub fn end(&self, EndCampaignV1 { campaign, reason }: EndCampaignV1) {
        self.tell(campaign, Event::Ended(reason));
    }

    /// The controller says who is served nothing.
    pub fn deny(&self, DenyV1 { mut agents }: DenyV1) {
        agents.truncate(DENIED_MAX);
        *self.shared.denied.lock().unwrap_or_else(PoisonError::into_inner) = agents;
    }

    /// A session began or ended.
    pub fn session(&self, is_up: bool) {
        self.shared.running().values().for_each(|handle| handle.tell(Event::Session(is_up)));
    }

    /// The campaign of a content, if it is part of one.
    #[must_use]
    pub(crate) fn campaign(&self, content: ContentId) -> Option<Handle> {
        self.shared.running().get(&content).filter(|handle| !handle.is_over()).cloned()
    }

    /// Ends when the content is part of a campaign.
    pub(crate) async fn announced(&self, content: ContentId) {
        let mut begun = self.shared.begun.subscribe();
        while self.campaign(content).is_none() {
            if begun.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn tell(&self, campaign: Campaign, event: Event) {
        let running = self.shared.running();
        if let Some(handle) = running.values().find(|handle| handle.campaign() == campaign) {
            handle.tell(event);
        }
    }

    /// The controller asks this host to take part.
    pub fn join(&self, join: JoinCampaignV1) {
        let content = join.grant.content;
        let mut running = self.shared.running();
        running.retain(|_, handle| !handle.is_over());
        if let Some(handle) = running.get(&content) {
            handle.tell(Event::Joined(Box::new(join)));
            return;
        }
        if running.len() >= CAMPAIGNS_MAX {
            tracing::warn!(%content, "too many campaigns at once: this one is left out");
            return;
        }
        tracing::info!(%content, campaign = join.campaign.number, "part of a campaign");
        let (handle, run) = campaign::Campaign::begin(Arc::clone(&self.shared), join);
        running.insert(content, handle);
        drop(running);
        task::spawn("campaign", run);
        self.shared.begun.send_modify(|n| *n += 1);
    }
}

impl Shared {
    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<ContentId, Handle>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_denied(&self, agent: AgentId) -> bool {
        self.denied.lock().unwrap_or_else(PoisonError::into_inner).contains(&agent)
    }

    /// The spool of a content, kept from an earlier campaign or new.
    fn spool(&self, content: ContentId) -> Option<Arc<Spool>> {
        self.drop_old_spools();
        let spools = self.spools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((spool, _)) = spools.get(&content) {
            return Some(Arc::clone(spool));
        }
        let made = self.store.spool(content);
        made.map_err(|error| tracing::warn!(error = error.chain(), "packed chunks are not kept")).ok()
    }

    fn drop_old_spools(&self) {
        let now = clock::monotonic();
        let mut spools = self.spools.lock().unwrap_or_else(PoisonError::into_inner);
        spools.retain(|_, (_, since)| now.duration_since(*since) < SPOOL_KEPT);
    }

    /// Keeps a spool for a while.
    fn keep_spool(&self, content: ContentId, spool: Arc<Spool>) {
        let mut spools = self.spools.lock().unwrap_or_else(PoisonError::into_inner);
        spools.insert(content, (spool, clock::monotonic()));
    }
}
