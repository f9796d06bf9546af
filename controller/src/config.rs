//! The controller's configuration: `/etc/hearth/controller.toml`, checked once, at start.
//!
//! **What.** [`load`] reads the file, refuses what cannot work, and reports keys it does not know. Every default is a
//! constant with its unit and reason.
//!
//! **Why unknown keys are not simply refused.** A package upgrade must not keep a controller from starting because a
//! key went away; but a mistyped key must be seen. So: a loud warning at start, an error under `--check-config`.
//!
//! **Why one file.** A key stands in four places: default, file, checked value, check. Next to each other none is forgotten.
//!
//! **Invariants.** A `Config` that exists can be used: addresses parse, sizes are in range, paths are absolute.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_protocol::api::distribution::Distribution;
use hearth_protocol::words::DiskFormat;
use hearth_udp::{DSCP_DEFAULT, DSCP_MAX};
use serde::Deserialize;

mod conversions;
mod sources;

pub use conversions::VARIANTS_DEFAULT;

use crate::ingest::sandbox::SandboxMode;
use crate::ingest::scan::Scanner;
use crate::ingest::sources::SourceConfig;
use crate::keys::master::MasterPaths;
use crate::logic::deletion::BIN_DAYS_MAX;
use crate::logic::distributions;
use crate::logic::quota::Figures;

/// Where the configuration is when nobody says.
pub const PATH_DEFAULT: &str = "/etc/hearth/controller.toml";
/// Folder of everything the controller keeps. Matches `StateDirectory=` of the unit.
pub const STATE_DIR_DEFAULT: &str = "/var/lib/hearth/controller";
/// TCP address of the HTTP interface and UDP address of the agents' sessions: one number to open in a firewall.
pub const LISTEN_DEFAULT: &str = "0.0.0.0:7443";
/// Imports that run at once: one, because qemu-img and the chunker fill two cores and the disk by themselves.
pub const PARALLEL_IMPORTS_DEFAULT: usize = 1;
/// Most imports at once: each holds a child process, staging space and about 64 MiB.
pub const PARALLEL_IMPORTS_MAX: usize = 64;
/// Largest uploaded file, bytes (1 TiB, Glance's default): keeps one user from filling the disk.
pub const IMAGE_BYTES_MAX_DEFAULT: u64 = 1 << 40;
/// Entries that fetch from the controller at once over the whole fleet: a thousand hosts must not stampede.
pub const SOURCE_TRANSFERS_DEFAULT: u32 = 64;
/// What the controller may send in campaigns, Mbit/s: a usual network, which others use too. Hosts pass on the rest.
pub const SWARM_SOURCE_MBPS_DEFAULT: u32 = 1000;
/// Most of it: the fastest network card there is.
pub const SWARM_SOURCE_MBPS_MAX: u32 = 400_000;
/// Most source transfers at once.
pub const SOURCE_TRANSFERS_MAX: u32 = 4096;
/// Life of agents' certificates, hours. A day: the controller refuses a revoked key at once, and whoever only looks at the
/// certificate believes it for no longer.
pub const AGENT_CERTIFICATE_HOURS_DEFAULT: u32 = 24;
/// Shortest life, hours: agents renew at half of it, and clocks may differ by minutes.
pub const AGENT_CERTIFICATE_HOURS_MIN: u32 = 1;
/// Longest life, hours (a month): the enrolled key may renew for 30 days more.
pub const AGENT_CERTIFICATE_HOURS_MAX: u32 = 720;
/// Seconds between two reports of an agent. Two thousand agents cost 1.9 % of a core at 15 s (measured), and notice within
/// 18 s that the controller was started again.
pub const HEARTBEAT_SECONDS_DEFAULT: u32 = 15;
/// Most seconds between two reports: an agent that is not heard for a minute counts as lost.
pub const HEARTBEAT_SECONDS_MAX: u32 = 45;
/// Receivers of one image when nobody says, as public clouds have it: a list that people can oversee.
pub const SHARE_RECEIVERS_DEFAULT: u32 = 10;
/// Most receivers: they are shown in one answer.
pub const SHARE_RECEIVERS_MAX: u32 = 1000;
/// Images of a project that are not public, when nobody says, as public clouds have it.
pub const QUOTA_IMAGES_DEFAULT: u64 = 10;
/// Calls a second of one token in the long run: far above what a person or a well-made program does, far below what a loop
/// without a pause does to the others.
pub const API_REQUESTS_PER_SECOND_DEFAULT: u32 = 200;
/// Calls at once of one token: a program that looks at a thousand records after a pause.
pub const API_BURST_DEFAULT: u32 = 1000;
/// Most calls a second or at once that may be configured.
pub const API_RATE_MAX: u32 = 100_000;
/// Life of a token that somebody gets by logging in, hours: a long working day.
pub const LOGIN_HOURS_DEFAULT: u32 = 12;
/// Longest such life, hours (a month): what must live longer is a program's token.
pub const LOGIN_HOURS_MAX: u32 = 720;
/// Longest silence of somebody who sends a file: a broken connection without an end must not keep the image in `saving`.
pub const UPLOAD_SILENCE_MAX: Duration = Duration::from_secs(30);
/// Days in the recycle bin: a long weekend to notice what was deleted by mistake.
pub const BIN_DAYS_DEFAULT: u32 = 3;
/// What `listen_https` and `listen_quic` may be.
const LISTEN_ALLOWED: &str = "must be IP:PORT, for example 0.0.0.0:7443 or [::]:7443";
/// Largest configuration file, bytes: a wrong path must not be read into memory.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What cannot be used, and where it stands.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}; give another with --config")]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML, or a value has the wrong type.
    #[error("{path}: {message}")]
    Parse {
        /// Where.
        path: PathBuf,
        /// Line, column and reason.
        message: String,
    },
    /// A value cannot be used.
    #[error("{path}: {key} = {value}: {allowed}")]
    Value {
        /// Where.
        path: PathBuf,
        /// Which key.
        key: &'static str,
        /// What stands there.
        value: String,
        /// What may stand there.
        allowed: String,
    },
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Which images an agent may have placed on its host by asking for them, when a consumer there wants one.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum HostsMayAsk {
    /// None: only operators and launches place images.
    None,
    /// Public ones, which everybody may use anyway.
    #[default]
    Public,
    /// All. Whoever is root on any host can then have any image.
    All,
}

/// What the file may say; see the commented example configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Raw {
    state_dir: Option<PathBuf>,
    listen_https: Option<String>,
    listen_quic: Option<String>,
    public_names: Vec<String>,
    database_url: Option<String>,
    master_key: Option<PathBuf>,
    master_key_old: Option<PathBuf>,
    keep_originals: Option<bool>,
    variants: Option<Vec<String>>,
    scan_command: Vec<String>,
    scan_read: Vec<PathBuf>,
    scan_seconds: Option<u32>,
    sandbox: Option<String>,
    parallel_imports: Option<usize>,
    image_bytes_max: Option<u64>,
    source_transfers: Option<u32>,
    swarm: Option<bool>,
    swarm_source_mbps: Option<u32>,
    dscp: Option<u32>,
    agent_certificate_hours: Option<u32>,
    heartbeat_seconds: Option<u32>,
    hosts_may_ask: HostsMayAsk,
    api_requests_per_second: Option<u32>,
    api_burst: Option<u32>,
    login_hours: Option<u32>,
    metrics_public: bool,
    log_format: LogFormat,
    log_filter: Option<String>,
    bin_days: Option<u32>,
    distributions: Option<Vec<Distribution>>,
    distributions_strict: bool,
    three_level_sharing: bool,
    members_may_publish: bool,
    share_receivers_max: Option<u32>,
    quota_images: Option<u64>,
    quota_bytes: u64,
    quota_imports: u64,
    upload_idle_days: Option<u32>,
    parallel_fetches: Option<usize>,
    import_allow: Vec<String>,
    import_ports: Option<Vec<u16>>,
    import_ca_file: Option<PathBuf>,
    s3: Vec<sources::RawStore>,
}

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from, if there is one: backups hold a copy.
    pub path: Option<PathBuf>,
    /// Folder of everything that is kept.
    pub state_dir: PathBuf,
    /// HTTP interface.
    pub listen_https: SocketAddr,
    /// Sessions of agents.
    pub listen_quic: SocketAddr,
    /// Names and addresses by which agents and people reach the controller, beside this machine's own name.
    pub public_names: Vec<String>,
    /// `sqlite:…` or `postgres:…`.
    pub database_url: String,
    /// Where the master keys of encrypted images are, if there are any.
    pub master_keys: MasterPaths,
    /// Whether uploaded files are kept after their import.
    pub keep_originals: bool,
    /// Formats that every imported disk is made into; each at most once, never `iso`.
    pub variants: Vec<DiskFormat>,
    /// Program that looks at each import, if there is one.
    pub scanner: Option<Scanner>,
    /// How conversions are confined.
    pub sandbox: SandboxMode,
    /// Imports at once, 1 to 64.
    pub parallel_imports: usize,
    /// Largest uploaded file, bytes.
    pub image_bytes_max: u64,
    /// Entries that fetch from the controller at once, 1 to 4,096.
    pub source_transfers: u32,
    /// How the controller sends, and hosts share what they fetch.
    pub swarm: Swarm,
    /// Life of agents' certificates, 1 hour to 30 days.
    pub agent_certificate_life: Duration,
    /// Time between two reports of an agent, 1 to 45 seconds.
    pub heartbeat: Duration,
    /// Which images hosts may ask for.
    pub hosts_may_ask: HostsMayAsk,
    /// How often callers may ask, and for how long they are logged in.
    pub calls: Calls,
    /// Longest silence of somebody who sends a file; not in the file, shorter in tests.
    pub upload_silence: Duration,
    /// How long an upload may be idle before it ends, 1 to 365 days.
    pub upload_idle: Duration,
    /// Sources that are fetched from at once, 1 to 64.
    pub parallel_fetches: usize,
    /// Where images may be fetched from; its patience is not in the file, shorter in tests.
    pub sources: SourceConfig,
    /// Whether `/metrics` answers without a token.
    pub metrics_public: bool,
    /// Form of the log.
    pub log_format: LogFormat,
    /// What is logged, in the words of `tracing_subscriber::EnvFilter`.
    pub log_filter: String,
    /// Rules of the catalog.
    pub catalog: CatalogRules,
    /// With whom images may be shared, and what projects may have.
    pub sharing: Sharing,
}

/// What an operator decides about images.
#[derive(Clone, Debug)]
pub struct CatalogRules {
    /// Days that a deleted image stays in the recycle bin, 0 to 3,650; 0: there is no bin.
    pub bin_days: u32,
    /// Distributions that images are offered for.
    pub distributions: Vec<Distribution>,
    /// Whether an image of another distribution is refused.
    pub distributions_strict: bool,
}

/// With whom images may be shared, and what projects may have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sharing {
    /// Whether system administrators may share images with other domains.
    pub three_level: bool,
    /// Whether members may make images of their own project public.
    pub members_may_publish: bool,
    /// Most receivers of one image, 1 to 1,000.
    pub receivers_max: u32,
    /// Limits of projects that have none of their own; 0 is none.
    pub quota: Figures,
}

/// How hosts share what they fetch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Swarm {
    /// Whether they do.
    pub on: bool,
    /// What the controller may send in all campaigns, Mbit/s, 1 to 400,000.
    pub source_mbps: u32,
    /// Class (DSCP) of all packets to agents, 0 ..= [`DSCP_MAX`].
    pub dscp: u8,
}

/// How often callers may ask, and for how long they are logged in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Calls {
    /// Calls a second of one token; 0: no bound.
    pub per_second: u32,
    /// Calls at once of one token, 1 to 100,000.
    pub burst: u32,
    /// Life of a token from a login, 1 hour to 30 days.
    pub login_life: Duration,
}

/// A configuration, and the keys of the file that mean nothing.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Keys nobody reads, as paths.
    pub unknown_keys: Vec<String>,
}

/// Reads the configuration at `path`. Without a path the default file is read where it exists; where it does not,
/// every value is the default.
///
/// # Errors
/// [`ConfigError`]: the file cannot be read or parsed, or a value cannot be used.
pub fn load(path: Option<&Path>) -> Result<Loaded, ConfigError> {
    let path = match path {
        Some(path) => path,
        None if Path::new(PATH_DEFAULT).exists() => Path::new(PATH_DEFAULT),
        None => return parse("", Path::new("(defaults)"), None),
    };
    let text = read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(&text, path, Some(path.to_owned()))
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn parse(text: &str, shown: &Path, path: Option<PathBuf>) -> Result<Loaded, ConfigError> {
    let failed =
        |error: toml::de::Error| ConfigError::Parse { path: shown.to_owned(), message: error.to_string() };
    let mut unknown_keys = Vec::new();
    let document = toml::Deserializer::parse(text).map_err(failed)?;
    let raw: Raw =
        serde_ignored::deserialize(document, |key| unknown_keys.push(key.to_string())).map_err(failed)?;
    Ok(Loaded { config: check(raw, shown, path)?, unknown_keys })
}

/// Imports that run at a time; else the number that was given, and what is allowed.
fn imports_at_once(given: Option<usize>) -> Result<usize, (usize, String)> {
    let n = given.unwrap_or(PARALLEL_IMPORTS_DEFAULT);
    if (1..=PARALLEL_IMPORTS_MAX).contains(&n) {
        Ok(n)
    } else {
        Err((n, format!("must be 1 to {PARALLEL_IMPORTS_MAX}")))
    }
}

fn check(mut raw: Raw, shown: &Path, path: Option<PathBuf>) -> Result<Config, ConfigError> {
    let error = |key: &'static str, value: &dyn std::fmt::Display, allowed: String| ConfigError::Value {
        path: shown.to_owned(),
        key,
        value: value.to_string(),
        allowed,
    };
    let wrong = |key, value: &dyn std::fmt::Display, allowed| Err(error(key, value, allowed));
    let ranged = |key, value: u32, least: u32, most: u32| {
        let fits = (least..=most).contains(&value);
        if fits { Ok(()) } else { Err(error(key, &value, format!("must be {least} to {most}"))) }
    };
    let sharing = sharing(&raw, shown)?;
    let master_keys = master_keys(&mut raw, shown)?;
    let calls = calls(&raw, &ranged)?;
    let (source_transfers, swarm) = source(&raw, &ranged)?;
    let catalog = catalog(&mut raw, shown)?;
    let wrong_in = |wrong: sources::Wrong| error(wrong.key, &wrong.value, wrong.allowed);
    let imports = sources::check(&raw).map_err(wrong_in)?;
    let conversions = conversions::check(&mut raw).map_err(wrong_in)?;
    let state_dir = raw.state_dir.unwrap_or_else(|| STATE_DIR_DEFAULT.into());
    if !state_dir.is_absolute() {
        return wrong("state_dir", &state_dir.display(), "must be an absolute path".into());
    }
    let address = |key, text| listen(text).map_err(|text| error(key, &text, LISTEN_ALLOWED.into()));
    // The value may hold a password: it is not shown.
    let hidden = |allowed: &'static str| error("database_url", &"(hidden)", allowed.into());
    let database_url = database(raw.database_url, &state_dir).map_err(hidden)?;
    let hours = raw.agent_certificate_hours.unwrap_or(AGENT_CERTIFICATE_HOURS_DEFAULT);
    ranged("agent_certificate_hours", hours, AGENT_CERTIFICATE_HOURS_MIN, AGENT_CERTIFICATE_HOURS_MAX)?;
    let image_bytes_max = raw.image_bytes_max.unwrap_or(IMAGE_BYTES_MAX_DEFAULT);
    let heartbeat_s = raw.heartbeat_seconds.unwrap_or(HEARTBEAT_SECONDS_DEFAULT);
    ranged("heartbeat_seconds", heartbeat_s, 1, HEARTBEAT_SECONDS_MAX)?;
    if !(1..=crate::logic::catalog::SIZE_BYTES_MAX).contains(&image_bytes_max) {
        return wrong("image_bytes_max", &image_bytes_max, "must be a number of bytes above 0".into());
    }
    if let Some(name) = raw.public_names.iter().find(|name| !is_host(name)) {
        return wrong("public_names", name, "must be host names or IP addresses without a port".into());
    }
    let log_filter = raw.log_filter.unwrap_or_else(|| "info".to_owned());
    must_be_filter(&log_filter).map_err(|allowed| error("log_filter", &log_filter, allowed))?;
    Ok(Config {
        path,
        listen_https: address("listen_https", raw.listen_https)?,
        listen_quic: address("listen_quic", raw.listen_quic)?,
        public_names: raw.public_names,
        database_url,
        master_keys,
        keep_originals: raw.keep_originals.unwrap_or(true),
        variants: conversions.variants,
        scanner: conversions.scanner,
        sandbox: conversions.sandbox,
        parallel_imports: imports_at_once(raw.parallel_imports)
            .map_err(|(n, allowed)| error("parallel_imports", &n, allowed))?,
        image_bytes_max,
        source_transfers,
        swarm,
        agent_certificate_life: Duration::from_secs(u64::from(hours) * 3600),
        heartbeat: Duration::from_secs(heartbeat_s.into()),
        hosts_may_ask: raw.hosts_may_ask,
        calls,
        upload_silence: UPLOAD_SILENCE_MAX,
        upload_idle: imports.upload_idle,
        parallel_fetches: imports.parallel_fetches,
        sources: imports.sources,
        metrics_public: raw.metrics_public,
        log_format: raw.log_format,
        log_filter,
        catalog,
        state_dir,
        sharing,
    })
}

fn sharing(raw: &Raw, shown: &Path) -> Result<Sharing, ConfigError> {
    let receivers_max = raw.share_receivers_max.unwrap_or(SHARE_RECEIVERS_DEFAULT);
    if !(1..=SHARE_RECEIVERS_MAX).contains(&receivers_max) {
        let allowed = format!("must be 1 to {SHARE_RECEIVERS_MAX}");
        let (key, value) = ("share_receivers_max", receivers_max.to_string());
        return Err(ConfigError::Value { path: shown.to_owned(), key, value, allowed });
    }
    Ok(Sharing {
        three_level: raw.three_level_sharing,
        members_may_publish: raw.members_may_publish,
        receivers_max,
        quota: Figures {
            images: raw.quota_images.unwrap_or(QUOTA_IMAGES_DEFAULT),
            bytes: raw.quota_bytes,
            imports: raw.quota_imports,
        },
    })
}

/// Where the master keys are: in the credentials of the unit, else in files.
fn master_keys(raw: &mut Raw, shown: &Path) -> Result<MasterPaths, ConfigError> {
    let (file, old_file) = (raw.master_key.take(), raw.master_key_old.take());
    for (key, path) in [("master_key", &file), ("master_key_old", &old_file)] {
        if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
            let (value, allowed) = (path.display().to_string(), "must be an absolute path".to_owned());
            return Err(ConfigError::Value { path: shown.to_owned(), key, value, allowed });
        }
    }
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    Ok(MasterPaths::of(folder.as_deref(), file, old_file))
}

/// The address that a text names, or the text that names none.
fn listen(text: Option<String>) -> Result<SocketAddr, String> {
    let text = text.unwrap_or_else(|| LISTEN_DEFAULT.to_owned());
    text.parse().map_err(|_| text)
}

/// The database of this value, or what it must be.
fn database(given: Option<String>, state_dir: &Path) -> Result<String, &'static str> {
    let url = given.unwrap_or_else(|| format!("sqlite://{}", state_dir.join("hearth.sqlite").display()));
    let known = ["sqlite:", "postgres:", "postgresql:"].iter().any(|scheme| url.starts_with(scheme));
    known.then_some(url).ok_or("must begin with sqlite: or postgres:")
}

/// Checks a number: key, value, least, most.
type Ranged<'a> = &'a dyn Fn(&'static str, u32, u32, u32) -> Result<(), ConfigError>;

fn calls(raw: &Raw, ranged: Ranged<'_>) -> Result<Calls, ConfigError> {
    let per_second = raw.api_requests_per_second.unwrap_or(API_REQUESTS_PER_SECOND_DEFAULT);
    ranged("api_requests_per_second", per_second, 0, API_RATE_MAX)?;
    let burst = raw.api_burst.unwrap_or(API_BURST_DEFAULT);
    ranged("api_burst", burst, 1, API_RATE_MAX)?;
    let hours = raw.login_hours.unwrap_or(LOGIN_HOURS_DEFAULT);
    ranged("login_hours", hours, 1, LOGIN_HOURS_MAX)?;
    Ok(Calls { per_second, burst, login_life: Duration::from_secs(u64::from(hours) * 3600) })
}

/// What the controller sends itself: transfers at once, what it gives to hosts that share, and the class of its packets.
fn source(raw: &Raw, ranged: Ranged<'_>) -> Result<(u32, Swarm), ConfigError> {
    let source_transfers = raw.source_transfers.unwrap_or(SOURCE_TRANSFERS_DEFAULT);
    ranged("source_transfers", source_transfers, 1, SOURCE_TRANSFERS_MAX)?;
    let source_mbps = raw.swarm_source_mbps.unwrap_or(SWARM_SOURCE_MBPS_DEFAULT);
    ranged("swarm_source_mbps", source_mbps, 1, SWARM_SOURCE_MBPS_MAX)?;
    let dscp = raw.dscp.unwrap_or_else(|| DSCP_DEFAULT.into());
    ranged("dscp", dscp, 0, DSCP_MAX.into())?;
    let dscp = u8::try_from(dscp).unwrap_or(DSCP_MAX);
    Ok((source_transfers, Swarm { on: raw.swarm.unwrap_or(true), source_mbps, dscp }))
}

/// Checks the rules of the catalog and takes them out of `raw`.
fn catalog(raw: &mut Raw, shown: &Path) -> Result<CatalogRules, ConfigError> {
    let wrong =
        |key, value: String, allowed| ConfigError::Value { path: shown.to_owned(), key, value, allowed };
    let bin_days = raw.bin_days.unwrap_or(BIN_DAYS_DEFAULT);
    if bin_days > BIN_DAYS_MAX {
        return Err(wrong("bin_days", bin_days.to_string(), format!("must be 0 to {BIN_DAYS_MAX}")));
    }
    let distributions = raw.distributions.take().unwrap_or_else(distributions::built_in);
    distributions::check_table(&distributions)
        .map_err(|error| wrong("distributions", error.field, error.problem))?;
    Ok(CatalogRules { bin_days, distributions, distributions_strict: raw.distributions_strict })
}

/// What a filter of the log may be, if `text` is none.
fn must_be_filter(text: &str) -> Result<(), String> {
    let parsed = tracing_subscriber::EnvFilter::try_new(text);
    parsed.map(drop).map_err(|reason| format!("must be like info or info,hearth_controller=debug ({reason})"))
}

/// Whether `name` is an IP address or a DNS name.
pub(crate) fn is_host(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.parse::<std::net::IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(label))
}

#[cfg(test)]
mod tests;
