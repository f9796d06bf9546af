//! The fleet: sessions with agents, enrolment, the data they fetch, and the plans they follow.
//!
//! ```text
//!            UDP 7443 ── door ──┬─ hearth-enrol/1 ── enrol ────────────────┐
//!                               └─ hearth/1 ── session ─┬─ inbox ─ reports ┤ database
//!                                                       └─ data ── content │   │ change
//!  sessions ◀─┬─ plans ◀──────────── reconcile ◀── picture ◀───────────────┘ ◀─┘
//!             └─ swarm (campaigns) ◀─┘
//! ```
//! **What.** One QUIC endpoint with two doors, a table of live sessions, a data server for manifests and chunks, and a
//! reconciler that turns intents into plans. [`Fleet::start`] starts it all; [`FleetHandle`] is what the API holds.
//! **Why level-triggered.** A plan says all that should be at a location, an inventory all that is. A lost session, a
//! restarted controller or a lost wake-up costs time, never a copy.
//! **Room for several controllers.** Everything that only one of them may do is in `reconcile` and `upkeep`; they will
//! run under a lease row with a fencing token. Sessions, enrolment and data serving need no leader.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hearth_protocol::digest::{AgentId, ContentId};
use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::LocationId;
use tokio::sync::{Notify, broadcast, mpsc};
use tokio::task::JoinHandle;

use crate::config::HostsMayAsk;
use crate::content::ContentStore;
use crate::db::{Change, Db};
use crate::keys::KeyStore;
use crate::logic::admission::Caps;
use crate::logic::rate::RateLimit;
use crate::logic::slots::Slots;
use crate::{clock, task};

mod ask;
pub mod ca;
mod compose;
mod data;
mod door;
pub mod endpoint;
mod enrol;
mod frames;
mod heal;
mod inbox;
mod jobs;
mod keys;
pub mod metrics;
mod net;
mod picture;
mod plans;
mod reconcile;
mod recruit;
mod registry;
mod remake;
mod reports;
mod session;
mod swarm;
pub mod tls;
mod upkeep;
mod want;

pub use reconcile::STOPPED_SETTING;
pub use registry::{Duplicate, Figures, SessionView};
pub use swarm::{CampaignView, Failures, HostView, SwarmSettings};

/// Settings of the fleet.
#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// UDP address of the endpoint.
    pub listen: SocketAddr,
    /// Transfers admitted at once.
    pub caps: Caps,
    /// Life of an agent's certificate.
    pub agent_life: Duration,
    /// Time between two pulses of an agent.
    pub heartbeat: Duration,
    /// Which images agents may ask for.
    pub hosts_may_ask: HostsMayAsk,
    /// How hosts share what they fetch.
    pub swarm: SwarmSettings,
    /// Class (DSCP) of all packets to agents, 0 ..= [`hearth_udp::DSCP_MAX`].
    pub dscp: u8,
    /// A receiver that takes nothing for this long is cut off.
    pub stall: Duration,
}

impl FleetConfig {
    /// The defaults, listening at `listen`.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            caps: Caps::default(),
            agent_life: ca::AGENT_LIFE_DEFAULT,
            heartbeat: Duration::from_secs(crate::config::HEARTBEAT_SECONDS_DEFAULT.into()),
            hosts_may_ask: HostsMayAsk::default(),
            swarm: SwarmSettings::default(),
            dscp: hearth_udp::DSCP_DEFAULT,
            stall: data::STALL_MAX,
        }
    }
}

/// Asks the importer to make a content again from its original; returns at once.
pub type Remake = Arc<dyn Fn(ContentId) + Send + Sync>;

/// What the fleet works with.
pub struct FleetContext {
    /// The database.
    pub db: Db,
    /// Content objects.
    pub store: Arc<ContentStore>,
    /// Certificate and CA.
    pub identity: Arc<tls::ServerIdentity>,
    /// Settings.
    pub config: FleetConfig,
    /// What opens encrypted images.
    pub keys: Arc<KeyStore>,
    /// How a damaged content is made again, if it can be.
    pub remake: Option<Remake>,
}

impl std::fmt::Debug for FleetContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FleetContext").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What all parts share.
struct Shared {
    db: Db,
    store: Arc<ContentStore>,
    identity: Arc<tls::ServerIdentity>,
    config: FleetConfig,
    keys: Arc<KeyStore>,
    remake: Option<Remake>,
    registry: registry::Registry,
    plans: plans::Plans,
    picture: picture::Picture,
    swarms: swarm::Swarms,
    reports: mpsc::Sender<reports::Report>,
    heals: heal::HealQueue,
    slots: Mutex<Slots<LocationId>>,
    connects: Mutex<RateLimit<u64>>,
    enrol_attempts: Mutex<RateLimit<u64>>,
    enrol_refusals: Mutex<RateLimit<u64>>,
    /// Wakes the reconciler.
    reconcile: Notify,
    /// Sessions that came or went.
    events: broadcast::Sender<Change>,
    started: Instant,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Shared {
    /// Milliseconds since the start, by a clock that does not go back.
    fn now_ms(&self) -> u64 {
        self.now_us() / 1000
    }

    /// The same in microseconds.
    fn now_us(&self) -> u64 {
        u64::try_from(clock::monotonic().duration_since(self.started).as_micros()).unwrap_or(u64::MAX)
    }

    fn wake(&self) {
        self.reconcile.notify_one();
    }

    /// Queues a report; waits while the queue is full.
    async fn report(&self, report: reports::Report) {
        if self.reports.send(report).await.is_err() {
            tracing::debug!("a report came while the controller stops");
        }
    }

    fn heal(&self, wish: heal::HealWish) {
        self.heals.put(wish);
    }

    fn location_changed(&self, location: LocationId) {
        // An error says that nobody listens.
        drop(self.events.send(Change::Location(location)));
    }
}

/// Starts the fleet; see [`Fleet::start`].
#[derive(Debug)]
pub struct Fleet;

/// Why the fleet does not start.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The endpoint does not open.
    #[error(transparent)]
    Endpoint(#[from] endpoint::EndpointError),
    /// The database cannot be read.
    #[error("cannot read the fleet from the database")]
    Db(#[from] crate::db::DbError),
    /// The threads for packets do not start.
    #[error("cannot start the threads that wait for packets")]
    Threads(#[source] std::io::Error),
}

impl Fleet {
    /// Opens the endpoint and starts every task. Call it once, inside a tokio runtime.
    ///
    /// # Errors
    /// [`FleetError`]; nothing runs then.
    pub async fn start(context: FleetContext) -> Result<FleetHandle, FleetError> {
        let FleetContext { db, store, identity, config, keys, remake } = context;
        let (reports, report_queue) = mpsc::channel(reports::QUEUE_MAX);
        let (heals, heal_queue) = heal::HealQueue::new();
        let (events, _) = broadcast::channel(1024);
        let swarms = swarm::Swarms::new(config.swarm, identity.authority(), clock::unix_us());
        let shared = Arc::new(Shared {
            db,
            store,
            identity,
            config,
            keys,
            remake,
            registry: registry::Registry::default(),
            plans: plans::Plans::default(),
            picture: picture::Picture::default(),
            swarms,
            reports,
            heals,
            slots: Mutex::new(Slots::new(data::SLOTS)),
            connects: Mutex::new(RateLimit::new(endpoint::CONNECTS_BURST, endpoint::CONNECTS_PER_S)),
            enrol_attempts: Mutex::new(RateLimit::new(enrol::ATTEMPTS_BURST, enrol::ATTEMPTS_PER_S)),
            enrol_refusals: Mutex::new(RateLimit::new(enrol::REFUSALS_BURST, enrol::REFUSALS_PER_S)),
            reconcile: Notify::new(),
            events,
            started: clock::monotonic(),
        });
        let reconciler = reconcile::Reconciler::load(Arc::clone(&shared)).await?;
        let net = net::Net::start().map_err(FleetError::Threads)?;
        let (endpoint, door) = {
            // What is spawned here, and by it, runs on the threads for packets.
            let _entered = net.handle.enter();
            let endpoint =
                endpoint::open(shared.config.listen, shared.config.dscp, Arc::clone(&shared.identity))?;
            (endpoint.clone(), task::spawn("door", door::run(Arc::clone(&shared), endpoint)))
        };
        let tasks = vec![
            door,
            task::spawn("reports", reports::write(Arc::clone(&shared), report_queue)),
            task::spawn("heal", heal::run(Arc::clone(&shared), heal_queue)),
            task::spawn("reconcile", reconciler.run()),
            task::spawn("upkeep", upkeep::run(Arc::clone(&shared))),
        ];
        Ok(FleetHandle { inner: Arc::new(Inner { shared, endpoint, tasks, _net: net }) })
    }
}

/// The running fleet. Cheap to clone; it runs until [`FleetHandle::stop`].
#[derive(Clone, Debug)]
pub struct FleetHandle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    endpoint: quinn::Endpoint,
    tasks: Vec<JoinHandle<()>>,
    _net: net::Net,
}

impl FleetHandle {
    /// Makes the reconciler look now. Changes of the database wake it by themselves.
    pub fn wake(&self) {
        self.inner.shared.wake();
    }

    /// Everybody who is connected, in no order.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionView> {
        self.inner.shared.registry.all().iter().map(|session| session.view()).collect()
    }

    /// The session of a location, if its agent is connected.
    #[must_use]
    pub fn session(&self, location: LocationId) -> Option<SessionView> {
        self.inner.shared.registry.of(location).map(|session| session.view())
    }

    /// The second place from which a location's key was shown in the last quarter of an hour.
    #[must_use]
    pub fn duplicate(&self, location: LocationId) -> Option<Duplicate> {
        self.inner.shared.registry.duplicate(location, clock::unix_us())
    }

    /// Whether the agent of a location is connected.
    #[must_use]
    pub fn online(&self, location: LocationId) -> bool {
        self.inner.shared.registry.online(location)
    }

    /// Number of agents that are connected.
    #[must_use]
    pub fn online_count(&self) -> usize {
        self.inner.shared.registry.len()
    }

    /// Closes the live sessions of an agent whose key was revoked (in the database, by the caller) at once. Without this
    /// call the reconciler does it within seconds. Returns whether there was one.
    pub fn revoke(&self, agent: AgentId) -> bool {
        let sessions = self.inner.shared.registry.all();
        let mine: Vec<_> = sessions.into_iter().filter(|session| session.agent == agent).collect();
        mine.iter().for_each(|session| session.close(FaultCode::Denied, "this agent's key was revoked"));
        !mine.is_empty()
    }

    /// Campaigns: those that run, then the last 64 that ended, the newest first.
    #[must_use]
    pub fn campaigns(&self) -> Vec<Arc<CampaignView>> {
        self.inner.shared.swarms.views()
    }

    /// Asks an agent to hash a copy from disk again; the result comes as a change of the entry.
    ///
    /// # Errors
    /// [`VerifyError`] if the agent is not connected or has too many such wishes waiting.
    pub fn verify(&self, location: LocationId, content: ContentId) -> Result<(), VerifyError> {
        let session = self.inner.shared.registry.of(location).ok_or(VerifyError::Offline)?;
        if session.verify(content) { Ok(()) } else { Err(VerifyError::Busy) }
    }

    /// Sessions that come and go, as [`Change::Location`]. What is stored is announced by [`Db::subscribe`].
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.inner.shared.events.subscribe()
    }

    /// The endpoint's own address: with port 0 in the configuration, the port that was given.
    ///
    /// # Errors
    /// The operating system does not say.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.inner.endpoint.local_addr()
    }

    /// Says goodbye to all agents, stops every task and waits until the last packets are out (at most 3 s).
    pub async fn stop(&self) {
        self.inner
            .endpoint
            .close(quinn::VarInt::from_u32(FaultCode::Closing.number().into()), b"the controller stops");
        self.inner.tasks.iter().for_each(JoinHandle::abort);
        self.inner.shared.swarms.stop();
        if tokio::time::timeout(Duration::from_secs(3), self.inner.endpoint.wait_idle()).await.is_err() {
            tracing::debug!("some agents did not acknowledge the close");
        }
    }
}

/// Why a copy is not hashed again now.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VerifyError {
    /// The agent is not connected.
    #[error("the agent of this location is not connected: try again when it is online")]
    Offline,
    /// Too many such wishes wait.
    #[error("64 copies of this location wait to be hashed already: try again later")]
    Busy,
}

#[cfg(test)]
mod tests;
