//! The daemon: what runs, in which order it starts, and how it stops.
//!
//! **What.** Opens and mends the cache, then binds the socket, then says READY, then starts the loops; on SIGTERM it
//! drains and says what it leaves.
//! **Why READY so early.** Scripts on this host need the local socket, not the controller: an agent whose controller is
//! away is ready.
//!
//! **Invariants.** READY comes after recovery, never before. The watchdog is fed only while the loops turn and the disk of
//! the cache takes a synced write.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hearth_protocol::digest::ContentId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::control::ask::{AskError, Asker};
use crate::control::credentials::Credentials;
use crate::control::identity::IdentityError;
use crate::control::keys::{KeyRing, Known};
use crate::control::plan::PlanBook;
use crate::control::session::{Home, Link, LinkState};
use crate::control::talk::Reports;
use crate::control::upkeep::Upkeep;
use crate::local::LocalError;
use crate::metrics_page::MetricsPage;
use crate::store::{Store, StoreConfig, StoreError};
use crate::swarm::{Caps, Swarm};
use crate::transfer::decode::Decoders;
use crate::transfer::endpoint::{Endpoint, EndpointError};
use crate::transfer::serve::Server;
use crate::watchdog::Watchdog;
use crate::{local, store, task};

/// Reports of bad chunks that wait for a session; more say nothing new.
const BAD_CHUNKS_QUEUE: usize = 64;
/// Longest wait of a script for what opens an image, while a session is up.
const KEY_WAIT: Duration = Duration::from_secs(10);
/// Time that all loops together get to stop; below the unit's `TimeoutStopSec=`.
const STOP_MAX: Duration = Duration::from_secs(45);

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The cache cannot be opened.
    #[error("{}", .0.chain())]
    Store(#[from] StoreError),
    /// There is no usable identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The QUIC socket.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// No controller is known.
    #[error(
        "no controller is known: set `controllers` in the configuration or enrol again with --controller"
    )]
    NoController,
    /// The system gave no thread, signal handler or socket.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The local socket.
    #[error("no local socket: {0}")]
    Socket(#[from] LocalError),
    /// The file system of the cache cannot be looked at.
    #[error("cannot look at the file system of {}: {source}; make the folder or set `cache_dir`", path.display())]
    FileSystem {
        /// The cache folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Settings of the store on the file system of its folder. Makes the folder if it is missing.
///
/// # Errors
/// [`DaemonError::FileSystem`].
pub fn store_config(config: &Config) -> Result<StoreConfig, DaemonError> {
    let failed = |source| DaemonError::FileSystem { path: config.cache_dir.clone(), source };
    std::fs::create_dir_all(&config.cache_dir).map_err(failed)?;
    let vfs = nix::sys::statvfs::statvfs(&config.cache_dir).map_err(|error| failed(error.into()))?;
    let total_bytes = vfs.blocks() * vfs.fragment_size();
    let mut store = StoreConfig::new(&config.cache_dir, config.budget.of(total_bytes));
    store.floor_bytes = config.floor.of(total_bytes);
    store.consumer_dir = Some(config.consumer_dir.clone());
    store.group.clone_from(&config.group);
    store.scrub_every = config.scrub_interval;
    Ok(store)
}

/// What the local socket may ask about the controller's side.
#[derive(Debug)]
struct Facts {
    book: Arc<PlanBook>,
    link: watch::Receiver<Link>,
    asker: Asker,
    ring: Arc<KeyRing>,
}

impl local::Context for Facts {
    fn contents_of(&self, name: &str) -> Vec<ContentId> {
        self.book.contents_of(name)
    }

    fn images_of(&self, content: ContentId) -> Vec<String> {
        self.book.images_of(content)
    }

    fn want<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ContentId, AskError>> {
        Box::pin(self.asker.want(name))
    }

    fn key<'a>(&'a self, content: ContentId) -> BoxFuture<'a, Option<Known>> {
        let is_up = self.link.borrow().state == LinkState::Up;
        // A question is on its way, or soon will be; without a session nothing comes.
        Box::pin(self.ring.wait(content, if is_up { KEY_WAIT } else { Duration::ZERO }))
    }

    fn controller(&self) -> String {
        let Link { state, why } = self.link.borrow().clone();
        let state = match state {
            LinkState::Up => "connected",
            LinkState::Down => "not connected",
            LinkState::Denied => "DENIED: the controller refuses this agent, nothing is fetched",
        };
        if why.is_empty() { state.to_owned() } else { format!("{state}: {why}") }
    }
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// [`DaemonError`] if it cannot start.
pub async fn serve(config: Config) -> Result<(), DaemonError> {
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    run(config, stop).await
}

/// Runs the daemon until `stop` is cancelled.
///
/// # Errors
/// [`DaemonError`] if it cannot start.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), DaemonError> {
    let running = start(&config, &stop).await?;
    say(&[sd_notify::NotifyState::Ready]);
    tracing::info!(listen = %config.listen, cache = %config.cache_dir.display(), "ready");
    stop.cancelled().await;
    say(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping");
    if tokio::time::timeout(STOP_MAX, running.ended()).await.is_err() {
        tracing::warn!("not everything stopped in time; the next start mends what is left");
    }
    Ok(())
}

/// The loops of a daemon that is up.
#[derive(Debug)]
struct Running {
    upkeep: JoinHandle<()>,
    home: JoinHandle<()>,
    side: [JoinHandle<()>; 5],
    home_stop: CancellationToken,
    side_stop: CancellationToken,
    endpoint: Endpoint,
}

impl Running {
    /// Stops the loops in order. The session stops after the fetches, so that the controller hears how far they came.
    async fn ended(self) {
        joined("upkeep", self.upkeep.await);
        self.home_stop.cancel();
        joined("home", self.home.await);
        self.side_stop.cancel();
        for task in self.side {
            joined("side", task.await);
        }
        self.endpoint.quinn().close(quinn::VarInt::from_u32(0), b"the agent stops");
        self.endpoint.quinn().wait_idle().await;
    }
}

async fn start(config: &Config, stop: &CancellationToken) -> Result<Running, DaemonError> {
    let credentials = Arc::new(Credentials::load(&config.data_dir)?);
    let enrolment = credentials.enrolment();
    let controllers = match config.controllers.is_empty() {
        true => enrolment.controllers.clone(),
        false => config.controllers.clone(),
    };
    if controllers.is_empty() {
        return Err(DaemonError::NoController);
    }
    let store = open_store(config).await?;
    let book = Arc::new(PlanBook::load(&config.data_dir, enrolment.location));
    let endpoint =
        Endpoint::bind_marked(config.listen, credentials.key().private_der().secret_der(), config.dscp)?;
    let system = |what| move |source| DaemonError::System { what, source };
    let decoders = Decoders::start().map_err(system("start threads"))?;
    let page = MetricsPage::bind(config.metrics_listen).await.map_err(system("listen for /metrics"))?;

    let (source, link) = (watch::Sender::new(None), watch::Sender::new(Link::plain(LinkState::Down)));
    let (session_beat, upkeep_beat) = (watch::Sender::new(0), watch::Sender::new(0));
    let (bad_chunks, bad_chunk_reports) = mpsc::channel(BAD_CHUNKS_QUEUE);
    let (home_stop, side_stop) = (CancellationToken::new(), CancellationToken::new());
    let caps = Arc::new(Caps::new(config.upload_mbps, config.download_mbps));
    let (swarm, swarm_says) =
        Swarm::new(store.clone(), endpoint.clone(), Arc::clone(&credentials), source.subscribe(), caps);
    let (asker, asks) = Asker::new(link.subscribe());
    let ring = Arc::new(KeyRing::default());
    let known =
        Arc::new(Facts { book: Arc::clone(&book), link: link.subscribe(), asker, ring: Arc::clone(&ring) });
    // Not the cache's group: QEMU runs in that one, and a guest that breaks out must not evict or pin. Scripts of the
    // hypervisor run as root, or in the agent's own group.
    let local = local::serve(&config.socket, None, store.clone(), known, side_stop.clone())?;
    let watchdog = Watchdog::new(store.dir(), &[("session", &session_beat), ("upkeep", &upkeep_beat)]);
    let side = [
        task::spawn("local", local),
        task::spawn("maintain", store::maintain(store.clone(), side_stop.clone())),
        task::spawn("metrics", page.run(side_stop.clone())),
        task::spawn("watchdog", watchdog.run(side_stop.clone())),
        task::spawn("answer", answer(swarm.clone(), side_stop.clone())),
    ];
    let upkeep = Upkeep {
        store: store.clone(),
        book: Arc::clone(&book),
        sources: source.subscribe(),
        decoders,
        bad_chunks,
        link: link.subscribe(),
        swarm: swarm.clone(),
        limit: config.fetch_parallel,
        beat: upkeep_beat,
    };
    let home = Home {
        endpoint: endpoint.clone(),
        credentials,
        controllers,
        advertised: config.advertised.clone(),
        nic_mbps: config.nic_mbps,
        server: Server::new(store.clone()),
        swarm,
        store,
        book,
        ring,
        source,
        link,
        beat: session_beat,
    };
    let home = task::spawn(
        "home",
        home.run(Reports { bad_chunks: bad_chunk_reports, asks, swarm: swarm_says }, home_stop.clone()),
    );
    let upkeep = task::spawn("upkeep", upkeep.run(stop.clone()));
    Ok(Running { upkeep, home, side, home_stop, side_stop, endpoint })
}

/// Answers other agents until `stop` is cancelled.
async fn answer(swarm: Swarm, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = swarm.answer() => {}
    }
}

async fn open_store(config: &Config) -> Result<Store, DaemonError> {
    let settings = store_config(config)?;
    let opened = tokio::task::spawn_blocking(move || Store::open(&settings)).await;
    let panicked = |error: tokio::task::JoinError| DaemonError::System {
        what: "open the cache",
        source: std::io::Error::other(error),
    };
    let (store, report) = opened.map_err(panicked)??;
    tracing::info!(?report, "cache is open");
    Ok(store)
}

fn stop_on_signals(stop: &CancellationToken) -> Result<(), DaemonError> {
    let listen =
        |kind| signal(kind).map_err(|source| DaemonError::System { what: "listen for signals", source });
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let stop = stop.clone();
    task::spawn("signals", async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}

fn joined<T>(name: &'static str, result: Result<T, tokio::task::JoinError>) {
    if let Err(error) = result {
        tracing::error!(task = name, %error, "ended in a defect");
    }
}

/// Tells the service manager; without one nothing happens.
pub(crate) fn say(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager does not hear us");
    }
}
