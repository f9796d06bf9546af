//! `hearth-controller serve`: puts the parts together, keeps them running, takes them down in order.
//!
//! **What.** [`Controller::start`] opens database, files, fleet, jobs and the HTTPS listener; [`Controller::run`] waits for
//! a signal, feeds systemd's watchdog and stops.
//!
//! **Why a library type.** Tests start a whole controller in their own process, on free ports and a temporary folder.
//!
//! **Invariants.** `READY=1` is said only when agents and people are served. The watchdog is fed only while the database
//! answers and the runtime runs. On a stop new work ends first, then calls, then sessions, then the database.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::app::{App, Parts};
use crate::api::server::Server;
use crate::config::Config;
use crate::db::{Db, DbError};
use crate::fleet::ca::{Authority, CaError};
use crate::fleet::tls::{self, ServerIdentity, TlsError};
use crate::fleet::{Fleet, FleetConfig, FleetContext, FleetError, FleetHandle, SwarmSettings};
use crate::ingest::convert::Converter;
use crate::ingest::job::{ImportError, Ingest};
use crate::ingest::sources::Sources;
use crate::jobs::Jobs;
use crate::jobs::fetch::{Fetches, Limits};
use crate::keys::KeyStore;
use crate::keys::master::MasterError;
use crate::logic::admission::Caps;
use crate::state::{StateError, StateFolder, upgrade_folder};
use crate::{clock, task};

/// Where qemu-img is when the search path does not say.
const QEMU_IMG: &str = "/usr/bin/qemu-img";
/// Longest answer of the database that still feeds the watchdog.
const DATABASE_ANSWER_MAX: Duration = Duration::from_secs(10);

/// Why the controller does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// The certificate authority.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The files.
    #[error(transparent)]
    Ingest(#[from] ImportError),
    /// A master key.
    #[error(transparent)]
    MasterKey(#[from] MasterError),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The sessions.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The listener.
    #[error("cannot listen on {address} (listen_https); is another controller running?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The operating system.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A controller that runs.
#[derive(Debug)]
pub struct Controller {
    /// Address of the HTTP interface.
    pub https: SocketAddr,
    /// Address of the agents' sessions.
    pub quic: SocketAddr,
    db: Db,
    ingest: Arc<Ingest>,
    fleet: FleetHandle,
    server: Server,
    tasks: Vec<JoinHandle<()>>,
    closing: CancellationToken,
    _state: StateFolder,
}

impl Controller {
    /// Starts everything; nothing is left running if it fails. `executable` knows `convert-child`.
    ///
    /// # Errors
    /// [`ServeError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn start(
        config: Config,
        executable: PathBuf,
        figures: PrometheusHandle,
    ) -> Result<Self, ServeError> {
        let keys = Arc::new(KeyStore::load(&config.master_keys)?);
        let state = StateFolder::take(&config.state_dir)?;
        state.must_be_set_up()?;
        let authority = Arc::new(Authority::load(&state.ca())?);
        let db = open_database(&config).await?;
        let ingest = open_files(&config, executable)?;
        let closing = CancellationToken::new();
        let jobs = Jobs::new(
            db.clone(),
            Arc::clone(&ingest),
            config.keep_originals,
            config.variants.clone(),
            closing.clone(),
        )
        .with_keys(Arc::clone(&keys));
        warn_of_lost_keys(&db, &keys).await?;
        let identity = ServerIdentity::new(Arc::clone(&authority), names(&config), clock::unix_us())?;
        let https = Arc::new(tls::https_config(Arc::clone(&identity))?);
        let remaking = Arc::clone(&jobs);
        let context = FleetContext {
            db: db.clone(),
            store: Arc::clone(&ingest.content),
            identity,
            config: fleet_config(&config),
            keys: Arc::clone(&keys),
            remake: Some(Arc::new(move |content| remaking.remake(content))),
        };
        let fleet = Fleet::start(context).await?;
        let quic = fleet
            .local_address()
            .map_err(|source| ServeError::System { what: "ask for the UDP address", source })?;
        let mut tasks = jobs.start(config.parallel_imports).await?;
        tasks.push(task::spawn("purge", Arc::clone(&jobs).purger(config.catalog.bin_days)));
        let sources = Sources::new(config.sources.clone());
        let fetches = fetches(&config, &db, &ingest, &sources, &closing);
        tasks.extend(fetches.start(config.parallel_fetches).await?);
        let sealing = db.clone();
        tasks.push(task::spawn("sealer", async move { sealing.run_sealer().await }));
        tasks.push(task::spawn("purge", crate::jobs::forget::run(db.clone())));
        let address = config.listen_https;
        let parts = Parts {
            config,
            db: db.clone(),
            ingest: Arc::clone(&ingest),
            keys,
            jobs,
            sources,
            fleet: fleet.clone(),
            authority,
            figures,
            closing: closing.clone(),
        };
        let server = match Server::start(App::new(parts), https) {
            Ok(server) => server,
            Err(source) => {
                closing.cancel();
                fleet.stop().await;
                tasks.iter().for_each(JoinHandle::abort);
                return Err(ServeError::Listen { address, source });
            }
        };
        let https = server.address;
        tracing::info!(%https, %quic, "the controller serves");
        Ok(Self { https, quic, db, ingest, fleet, server, tasks, closing, _state: state })
    }

    /// Every route, for tests.
    #[must_use]
    pub fn routes(&self) -> &[crate::api::routes::Row] {
        &self.server.table
    }

    /// The database, for tests.
    #[must_use]
    pub const fn db(&self) -> &Db {
        &self.db
    }

    /// The files and their room, for tests.
    #[must_use]
    pub const fn ingest(&self) -> &Arc<Ingest> {
        &self.ingest
    }

    /// Serves until SIGTERM or SIGINT, then stops in order.
    ///
    /// # Errors
    /// [`ServeError::System`] if signals cannot be had or the listener ends by itself.
    pub async fn run(mut self) -> Result<(), ServeError> {
        let system = |what| move |source| ServeError::System { what, source };
        let mut terminate = signal(SignalKind::terminate()).map_err(system("wait for SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system("wait for SIGINT"))?;
        let watchdog = task::spawn("watchdog", feed_watchdog(self.db.clone()));
        notify(&[NotifyState::Ready]);
        let ended = tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            ended = self.server.failed() => ended.and_then(|()| Err(std::io::Error::other("it ended by itself"))),
        };
        notify(&[NotifyState::Stopping]);
        let result = match ended {
            Ok(()) => {
                self.stop().await;
                Ok(())
            }
            Err(source) => Err(ServeError::System { what: "serve HTTPS", source }),
        };
        watchdog.abort();
        result
    }

    /// Stops in order and waits until everything is down.
    pub async fn stop(self) {
        tracing::info!("stopping");
        self.closing.cancel();
        self.server.stop().await;
        self.fleet.stop().await;
        for task in self.tasks {
            // Imports end by themselves within moments; the sealer never does.
            if tokio::time::timeout(Duration::from_millis(500), task_end(&task)).await.is_err() {
                task.abort();
            }
        }
        if let Err(error) = self.db.seal_once().await {
            tracing::warn!(
                error = crate::api::fault::chain(&error),
                "the newest operations are sealed at the next start"
            );
        }
        self.db.close().await;
    }
}

/// Opens the database; one of an older version is saved and brought further first.
async fn open_database(config: &Config) -> Result<Db, DbError> {
    if let Some(upgraded) = Db::upgrade(&config.database_url, &upgrade_folder(&config.state_dir)).await? {
        let backup = upgraded.backup.display();
        tracing::info!(from = upgraded.from, to = upgraded.to, %backup, "the database was brought further");
    }
    let db = Db::open(&config.database_url).await?;
    db.set_default_limits(config.sharing.quota);
    Ok(db)
}

/// Waits until a task has ended, without taking its result.
async fn task_end(task: &JoinHandle<()>) {
    while !task.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Who gets what the controller fetches by itself.
fn fetches(
    config: &Config,
    db: &Db,
    ingest: &Arc<Ingest>,
    sources: &Sources,
    closing: &CancellationToken,
) -> Arc<Fetches> {
    let limits = Limits {
        image_bytes_max: config.image_bytes_max,
        upload_idle: config.upload_idle,
        patience: config.sources.patience,
    };
    Fetches::new(db.clone(), Arc::clone(ingest), sources.clone(), limits, closing.clone())
}

/// Opens contents and originals, and removes what interrupted work left.
fn open_files(config: &Config, executable: PathBuf) -> Result<Arc<Ingest>, ServeError> {
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let converter = Converter { controller: executable, qemu_img: qemu_img(), mode: config.sandbox };
    let ingest = Ingest::new(&config.state_dir, converter, threads)?;
    let ingest = ingest.with_unpacked_bytes_max(config.image_bytes_max);
    Ok(Arc::new(ingest.with_scanner(config.scanner.clone())))
}

/// Says once, at start, that encrypted images cannot be opened.
async fn warn_of_lost_keys(db: &Db, keys: &KeyStore) -> Result<(), DbError> {
    for (master, n) in db.key_masters().await? {
        if !keys.knows(&master) {
            tracing::error!(
                master,
                n,
                "keys of images are sealed by a master key that is not here ({keys} is): their images cannot be opened"
            );
        }
    }
    Ok(())
}

/// `qemu-img` of the search path.
#[must_use]
pub fn qemu_img() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|folder| folder.join("qemu-img")).find(|file| file.is_file());
    found.unwrap_or_else(|| {
        if !Path::new(QEMU_IMG).is_file() {
            tracing::warn!(
                "qemu-img is missing: only raw and ISO images can be imported (apt install qemu-utils)"
            );
        }
        QEMU_IMG.into()
    })
}

fn fleet_config(config: &Config) -> FleetConfig {
    let caps = Caps { total: config.source_transfers as usize, ..Caps::default() };
    FleetConfig {
        caps,
        agent_life: config.agent_certificate_life,
        heartbeat: config.heartbeat,
        hosts_may_ask: config.hosts_may_ask,
        swarm: SwarmSettings::new(config.swarm.on, config.swarm.source_mbps),
        dscp: config.swarm.dscp,
        ..FleetConfig::new(config.listen_quic)
    }
}

/// Names and addresses of the certificate: what the configuration says, this machine's own name, and loopback.
fn names(config: &Config) -> Vec<String> {
    let mut names = config.public_names.clone();
    let listen = [config.listen_https.ip(), config.listen_quic.ip()];
    names.extend(listen.iter().filter(|ip| !ip.is_unspecified()).map(IpAddr::to_string));
    names.extend(["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()]);
    let host = nix::sys::utsname::uname().ok().and_then(|uname| uname.nodename().to_str().map(str::to_owned));
    names.extend(host.filter(|host| crate::config::is_host(host)));
    names.sort_unstable();
    names.dedup();
    names
}

/// Feeds systemd's watchdog while the database answers: a controller that cannot do its work is started again.
async fn feed_watchdog(db: Db) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut tick = tokio::time::interval(limit / 3);
    loop {
        tick.tick().await;
        match tokio::time::timeout(DATABASE_ANSWER_MAX.min(limit / 3), db.setting("instance_id")).await {
            Ok(Ok(_)) => notify(&[NotifyState::Watchdog]),
            Ok(Err(error)) => {
                tracing::error!(error = crate::api::fault::chain(&error), "the database does not work")
            }
            Err(_) => tracing::error!("the database does not answer"),
        }
    }
}

/// Tells systemd; without systemd nothing happens.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell systemd");
    }
}
