//! What every handler works with.

use std::sync::{Arc, Mutex};

use hearth_protocol::id::TokenId;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Semaphore;

use super::limits::Limits;
use super::places::Places;
use crate::config::Config;
use crate::db::Db;
use crate::db::tokens::Scope;
use crate::fleet::FleetHandle;
use crate::fleet::ca::Authority;
use crate::ingest::job::Ingest;
use crate::ingest::sources::Sources;
use crate::jobs::Jobs;
use crate::keys::KeyStore;
use crate::logic::downloads::Downloads;
use crate::logic::fair::most_of_one;
use crate::logic::guesses::Guesses;
use crate::passwords::Passwords;

/// Uploads at once: each holds a file, four threads and at most 8 MiB. Of these one project gets half.
pub const UPLOADS_MAX: usize = 16;
/// Downloads at once: each holds a file and a buffer.
pub const DOWNLOADS_MAX: usize = 64;
/// Exports at once, one per token: each holds a page of rows, and an Excel file a thread and its rows on disk.
pub const EXPORTS_MAX: usize = 4;
/// Looks at sources at once: each holds a connection to a stranger for up to 20 s.
pub const SOURCE_CHECKS_MAX: usize = 8;
/// Event streams at once: each holds a place in the change feed.
pub const EVENT_STREAMS_MAX: usize = 64;

/// The parts of the controller that handlers use. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct App(Arc<Inner>);

/// See [`App`].
#[derive(Debug)]
pub struct Inner {
    /// The configuration.
    pub config: Config,
    /// What must not be forgotten.
    pub db: Db,
    /// Contents, uploaded files and their room.
    pub ingest: Arc<Ingest>,
    /// Keys that encrypt images.
    pub keys: Arc<KeyStore>,
    /// Imports and clean-up.
    pub jobs: Arc<Jobs>,
    /// Sessions and placement.
    pub fleet: FleetHandle,
    /// Whose certificates are trusted.
    pub authority: Arc<Authority>,
    /// Figures.
    pub figures: PrometheusHandle,
    /// Places for uploads.
    pub uploads: Places<Scope>,
    /// Who appends to which upload.
    pub writers: super::uploads::Writers,
    /// Where images may be fetched from.
    pub sources: Sources,
    /// Places for looks at sources.
    pub source_checks: Arc<Semaphore>,
    /// Places for downloads.
    pub downloads: Arc<Semaphore>,
    /// Downloads of which the log tells.
    pub told_downloads: Mutex<Downloads>,
    /// Places for exports.
    pub exports: Places<TokenId>,
    /// Who tried addresses of download links that do not exist.
    pub guesses: Mutex<Guesses>,
    /// Places for event streams.
    pub event_streams: Arc<Semaphore>,
    /// Hashes and compares passwords.
    pub passwords: Passwords,
    /// How often callers may ask.
    pub limits: Limits,
    /// Ends streams that would keep the server from stopping.
    pub closing: tokio_util::sync::CancellationToken,
}

impl std::ops::Deref for App {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// The parts that come from elsewhere.
#[derive(Debug)]
pub struct Parts {
    /// The configuration.
    pub config: Config,
    /// The database.
    pub db: Db,
    /// Contents, uploaded files and their room.
    pub ingest: Arc<Ingest>,
    /// Keys that encrypt images.
    pub keys: Arc<KeyStore>,
    /// Imports and clean-up.
    pub jobs: Arc<Jobs>,
    /// Where images may be fetched from.
    pub sources: Sources,
    /// Sessions and placement.
    pub fleet: FleetHandle,
    /// The certificate authority.
    pub authority: Arc<Authority>,
    /// Figures.
    pub figures: PrometheusHandle,
    /// Cancelled when the controller stops.
    pub closing: tokio_util::sync::CancellationToken,
}

impl App {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { config, db, ingest, keys, jobs, sources, fleet, authority, figures, closing } = parts;
        Self(Arc::new(Inner {
            limits: Limits::new(&config),
            passwords: Passwords::default(),
            config,
            db,
            ingest,
            keys,
            jobs,
            fleet,
            authority,
            figures,
            closing,
            uploads: Places::new(UPLOADS_MAX, most_of_one(UPLOADS_MAX)),
            writers: super::uploads::Writers::default(),
            sources,
            source_checks: Arc::new(Semaphore::new(SOURCE_CHECKS_MAX)),
            downloads: Arc::new(Semaphore::new(DOWNLOADS_MAX)),
            told_downloads: Mutex::default(),
            exports: Places::new(EXPORTS_MAX, 1),
            guesses: Mutex::default(),
            event_streams: Arc::new(Semaphore::new(EVENT_STREAMS_MAX)),
        }))
    }
}
