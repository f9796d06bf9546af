//! Configuration of the agent: what stands in `agent.toml`, and the checked form that the rest of the program uses.
//!
//! **What.** [`Config::parse`] turns text into a [`Config`] once, at start. Every default is a constant with its unit
//! and its reason.
//!
//! **Why two forms.** A raw form mirrors the file; the checked form can only hold values that make sense, so no code
//! further down asks again. Pieces of it are passed down; nothing is global.
//! **Why one file.** A key is its default, its two fields and its check; an operator's question is answered in one place.
//!
//! **Invariants.**
//! 1. `an_unknown_key_is_named`: a misspelt key is returned beside the configuration, never ignored in silence.
//! 2. `a_wrong_value_says_what_is_allowed`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_protocol::message::enrol::LocationFacts;
use hearth_protocol::words::LocationKind;
use hearth_udp::{DSCP_DEFAULT, DSCP_MAX};
use serde::Deserialize;

use crate::logic::nic::NIC_MBPS_MAX;

/// Where the daemon looks for its configuration.
pub const PATH_DEFAULT: &str = "/etc/hearth/agent.toml";
/// Key, certificate and the last plan: the unit's `StateDirectory=`.
pub const DATA_DIR_DEFAULT: &str = "/var/lib/hearth/agent";
/// Cached files: made by tmpfiles.d with group kvm and the setgid bit.
pub const CACHE_DIR_DEFAULT: &str = "/var/lib/hearth/cache";
/// Where consumers see `CACHE_DIR/objects`: the mount point of the shipped read-only .mount unit.
pub const CONSUMER_DIR_DEFAULT: &str = "/var/lib/hearth/images";
/// Socket of the local commands.
pub const SOCKET_DEFAULT: &str = "/run/hearth/agent.sock";
/// Group that may read cached files: QEMU runs in it on Debian.
pub const GROUP_DEFAULT: &str = "kvm";
/// Share of the file system that the cache may allocate.
pub const BUDGET_DEFAULT: Amount = Amount::Percent(80);
/// Free space that the cache never touches: the host's own logs and guests need it.
pub const FLOOR_DEFAULT: Amount = Amount::Percent(5);
/// UDP port of agents.
pub const PORT_DEFAULT: u16 = 7444;
/// UDP port of a controller, used for addresses without one.
pub const CONTROLLER_PORT_DEFAULT: u16 = 7443;
/// Every file is read and hashed once in this many days: bit rot is found before a guest finds it.
pub const SCRUB_DAYS_DEFAULT: u32 = 30;
/// Transfers at once; two keep the disk busy while one of them verifies.
pub const FETCH_PARALLEL_DEFAULT: usize = 2;
/// Most transfers at once: each needs staging buffers and an open file.
pub const FETCH_PARALLEL_MAX: usize = 16;
/// Log filter.
pub const LOG_DEFAULT: &str = "info";
/// Controller addresses that are tried in turn; more are a mistake.
const CONTROLLERS_MAX: usize = 16;
/// Labels of a location (wire contract).
const LABELS_MAX: usize = 64;

/// Why a configuration is not usable. Every text names the key, the value and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {}; give another with --config", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not TOML or a value has the wrong type.
    #[error("configuration is not readable: {message}")]
    Syntax {
        /// What the parser said, with line and column.
        message: String,
    },
    /// A value is not allowed.
    #[error("configuration key {key}: {given:?} is not allowed; {allowed}")]
    Value {
        /// Key, with its table.
        key: &'static str,
        /// What was given.
        given: String,
        /// What is allowed.
        allowed: &'static str,
    },
}

/// Bytes, or a share of the file system.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Amount {
    /// That many bytes.
    Bytes(u64),
    /// 1 to 100 per cent of the file system's size.
    Percent(u8),
}

impl Amount {
    /// Parses `"80%"`, `"200 GiB"`, `"500GB"` or a number of bytes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some(percent) = text.strip_suffix('%') {
            return percent.trim().parse().ok().filter(|p| (1..=100).contains(p)).map(Self::Percent);
        }
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(digits)?;
        let factor: u64 = match unit.trim() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            "KB" | "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(factor).map(Self::Bytes)
    }

    /// Bytes on a file system of `total_bytes`.
    #[must_use]
    pub fn of(self, total_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => total_bytes / 100 * u64::from(percent),
        }
    }
}

/// The checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Folder of key, certificate and last plan.
    pub data_dir: PathBuf,
    /// Folder of the cache.
    pub cache_dir: PathBuf,
    /// Folder under which consumers see the cache's objects; equal to `cache_dir/objects` without the mount unit.
    pub consumer_dir: PathBuf,
    /// Path of the local socket.
    pub socket: PathBuf,
    /// Group that may read cached files; `None` leaves the group as it is.
    pub group: Option<String>,
    /// What the cache may allocate.
    pub budget: Amount,
    /// Free space that stays.
    pub floor: Amount,
    /// `host:port` of each controller; may be empty if enrolment wrote one down.
    pub controllers: Vec<String>,
    /// `ip:port` under which other agents reach this one.
    pub advertised: Vec<String>,
    /// Speed of the network interface, Mbit/s, 1 ..= [`NIC_MBPS_MAX`]; `None`: as the kernel says.
    pub nic_mbps: Option<u32>,
    /// What this host may send to other agents, Mbit/s, 1 ..= [`NIC_MBPS_MAX`]; `None`: a share of the interface.
    pub upload_mbps: Option<u32>,
    /// What it may take from all sources, Mbit/s, 1 ..= [`NIC_MBPS_MAX`]; `None`: no cap.
    pub download_mbps: Option<u32>,
    /// Class (DSCP) of all packets, 0 ..= [`DSCP_MAX`].
    pub dscp: u8,
    /// UDP address of the QUIC endpoint.
    pub listen: SocketAddr,
    /// Loopback address of `/metrics`; `None` switches it off.
    pub metrics_listen: Option<SocketAddr>,
    /// How often every file is hashed again.
    pub scrub_interval: Duration,
    /// Transfers at once, 1 ..= [`FETCH_PARALLEL_MAX`].
    pub fetch_parallel: usize,
    /// Log filter, as of `RUST_LOG`.
    pub log: String,
    /// Whether log lines are JSON.
    pub log_json: bool,
    /// What the location is; used by `enrol`.
    pub facts: LocationFacts,
}

/// The file as it is written. Every key may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Raw {
    data_dir: Option<PathBuf>,
    cache_dir: Option<PathBuf>,
    consumer_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    group: Option<String>,
    budget: Option<RawAmount>,
    floor: Option<RawAmount>,
    controllers: Vec<String>,
    advertised: Vec<String>,
    nic_mbps: Option<u32>,
    upload_mbps: Option<u32>,
    download_mbps: Option<u32>,
    dscp: Option<u8>,
    listen: Option<String>,
    metrics_listen: Option<String>,
    scrub_days: Option<u32>,
    fetch_parallel: Option<usize>,
    log: Option<String>,
    log_format: Option<String>,
    location: RawLocation,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RawAmount {
    Bytes(u64),
    Text(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawLocation {
    name: Option<String>,
    kind: Option<String>,
    platform: String,
    region: String,
    zone: String,
    rack: String,
    account: String,
    ip: String,
    serial: String,
    labels: BTreeMap<String, String>,
}

impl Config {
    /// Reads and checks the file at `path`. The second value names the keys that nothing reads.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(path: &Path) -> Result<(Self, Vec<String>), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// Checks `text`. The second value names the keys that nothing reads.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] or [`ConfigError::Value`].
    pub fn parse(text: &str) -> Result<(Self, Vec<String>), ConfigError> {
        let syntax = |error: toml::de::Error| ConfigError::Syntax { message: error.to_string() };
        let mut unknown = Vec::new();
        let raw: Raw = serde_ignored::deserialize(toml::Deserializer::parse(text).map_err(syntax)?, |path| {
            unknown.push(path.to_string());
        })
        .map_err(syntax)?;
        Ok((Self::check(raw)?, unknown))
    }

    fn check(raw: Raw) -> Result<Self, ConfigError> {
        let cache_dir = raw.cache_dir.unwrap_or_else(|| CACHE_DIR_DEFAULT.into());
        // The mount of the shipped unit belongs to the default cache; elsewhere the objects folder is named itself.
        let consumer_default = || match cache_dir == Path::new(CACHE_DIR_DEFAULT) {
            true => PathBuf::from(CONSUMER_DIR_DEFAULT),
            false => cache_dir.join("objects"),
        };
        let log_json = match raw.log_format.as_deref() {
            None | Some("text") => false,
            Some("json") => true,
            Some(other) => return Err(value("log_format", other, "allowed are text and json")),
        };
        Ok(Self {
            consumer_dir: raw.consumer_dir.unwrap_or_else(consumer_default),
            data_dir: raw.data_dir.unwrap_or_else(|| DATA_DIR_DEFAULT.into()),
            cache_dir,
            socket: raw.socket.unwrap_or_else(|| SOCKET_DEFAULT.into()),
            group: Some(raw.group.unwrap_or_else(|| GROUP_DEFAULT.into())).filter(|group| !group.is_empty()),
            budget: amount("budget", raw.budget, BUDGET_DEFAULT)?,
            floor: amount("floor", raw.floor, FLOOR_DEFAULT)?,
            controllers: controllers(raw.controllers)?,
            advertised: advertised(raw.advertised)?,
            nic_mbps: raw.nic_mbps.map(|mbps| in_range("nic_mbps", mbps, 1, NIC_MBPS_MAX)).transpose()?,
            upload_mbps: raw.upload_mbps.map(|m| in_range("upload_mbps", m, 1, NIC_MBPS_MAX)).transpose()?,
            download_mbps: raw
                .download_mbps
                .map(|m| in_range("download_mbps", m, 1, NIC_MBPS_MAX))
                .transpose()?,
            dscp: in_range("dscp", raw.dscp.unwrap_or(DSCP_DEFAULT), 0, DSCP_MAX)?,
            listen: listen(raw.listen.as_deref())?,
            metrics_listen: metrics_listen(raw.metrics_listen.as_deref())?,
            scrub_interval: days(in_range(
                "scrub_days",
                raw.scrub_days.unwrap_or(SCRUB_DAYS_DEFAULT),
                1,
                3650,
            )?),
            fetch_parallel: in_range(
                "fetch_parallel",
                raw.fetch_parallel.unwrap_or(FETCH_PARALLEL_DEFAULT),
                1,
                FETCH_PARALLEL_MAX,
            )?,
            log: raw.log.unwrap_or_else(|| LOG_DEFAULT.into()),
            log_json,
            facts: facts(raw.location)?,
        })
    }
}

fn value(key: &'static str, given: impl ToString, allowed: &'static str) -> ConfigError {
    ConfigError::Value { key, given: given.to_string(), allowed }
}

fn days(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * 24 * 3600)
}

fn in_range<T: PartialOrd + ToString>(key: &'static str, given: T, min: T, max: T) -> Result<T, ConfigError> {
    if given >= min && given <= max {
        return Ok(given);
    }
    let allowed = match key {
        "scrub_days" => "allowed are 1 to 3650 days",
        "fetch_parallel" => "allowed are 1 to 16 transfers at once",
        "dscp" => "allowed are 0 to 63",
        _ => "allowed are 1 to 1600000 Mbit/s",
    };
    Err(value(key, given, allowed))
}

fn amount(key: &'static str, raw: Option<RawAmount>, default: Amount) -> Result<Amount, ConfigError> {
    match raw {
        None => Ok(default),
        Some(RawAmount::Bytes(bytes)) => Ok(Amount::Bytes(bytes)),
        Some(RawAmount::Text(text)) => Amount::parse(&text).ok_or_else(|| {
            value(key, &text, "write a share like \"80%\", a size like \"200 GiB\" or a number of bytes")
        }),
    }
}

fn controllers(raw: Vec<String>) -> Result<Vec<String>, ConfigError> {
    if raw.len() > CONTROLLERS_MAX {
        return Err(value("controllers", raw.len(), "at most 16 addresses are allowed"));
    }
    raw.iter().map(|text| controller_address(text)).collect()
}

/// `host:port` of a controller; the port may be left out.
///
/// # Errors
/// [`ConfigError::Value`] for a text that names no host.
pub fn controller_address(text: &str) -> Result<String, ConfigError> {
    let wrong = || value("controllers", text, "write host:port, for example hearth.example.org:7443");
    let text = text.trim();
    if text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, CONTROLLER_PORT_DEFAULT).to_string());
    }
    let (host, port) = text.split_once(':').unwrap_or((text, ""));
    let host_ok = !host.is_empty()
        && host.len() <= 253
        && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
    let port = if port.is_empty() { Ok(CONTROLLER_PORT_DEFAULT) } else { port.parse::<u16>() };
    match port {
        Ok(port) if host_ok && port != 0 => Ok(format!("{host}:{port}")),
        _ => Err(wrong()),
    }
}

fn advertised(raw: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let check = |text: String| match text.parse::<SocketAddr>() {
        Ok(address) if !address.ip().is_unspecified() && address.port() != 0 => Ok(text),
        _ => Err(value(
            "advertised",
            text,
            "write ip:port as other hosts reach it, for example 10.0.3.17:7444",
        )),
    };
    raw.into_iter().map(check).collect()
}

fn listen(raw: Option<&str>) -> Result<SocketAddr, ConfigError> {
    let any = SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), PORT_DEFAULT);
    raw.map_or(Ok(any), |text| {
        text.parse().map_err(|_| value("listen", text, "write ip:port, for example [::]:7444"))
    })
}

fn metrics_listen(raw: Option<&str>) -> Result<Option<SocketAddr>, ConfigError> {
    let Some(text) = raw.filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(Some(address)),
        _ => Err(value(
            "metrics_listen",
            text,
            "write a loopback address like 127.0.0.1:7445, or leave it out; metrics carry no password",
        )),
    }
}

fn facts(raw: RawLocation) -> Result<LocationFacts, ConfigError> {
    let kind = match raw.kind.as_deref() {
        None => None,
        Some(word) => Some(
            word.parse::<LocationKind>()
                .map_err(|_| value("location.kind", word, "allowed are host and region"))?,
        ),
    };
    if raw.labels.len() > LABELS_MAX {
        return Err(value("location.labels", raw.labels.len(), "at most 64 labels are allowed"));
    }
    let facts = LocationFacts {
        name: raw.name.unwrap_or_else(host_name),
        kind,
        platform: raw.platform,
        region: raw.region,
        zone: raw.zone,
        rack: raw.rack,
        account: raw.account,
        ip: raw.ip,
        serial: raw.serial,
        labels: raw.labels.into_iter().collect(),
    };
    check_facts(&facts)?;
    Ok(facts)
}

/// Checks lengths as the wire contract wants them.
///
/// # Errors
/// [`ConfigError::Value`] naming the fact that is too long or empty.
pub fn check_facts(facts: &LocationFacts) -> Result<(), ConfigError> {
    let texts = [
        ("location.name", &facts.name),
        ("location.platform", &facts.platform),
        ("location.region", &facts.region),
        ("location.zone", &facts.zone),
        ("location.rack", &facts.rack),
        ("location.account", &facts.account),
        ("location.ip", &facts.ip),
        ("location.serial", &facts.serial),
    ];
    let labels =
        facts.labels.iter().flat_map(|(key, text)| [("location.labels", key), ("location.labels", text)]);
    let max = hearth_protocol::message::control::TEXT_BYTES_MAX;
    match texts.into_iter().chain(labels).find(|(_, text)| text.len() > max) {
        Some((key, text)) => Err(value(key, text, "at most 512 bytes are allowed")),
        None if facts.name.trim().is_empty() => Err(value("location.name", "", "give the location a name")),
        None => Ok(()),
    }
}

/// The host's name, or `localhost` where it cannot be read.
#[must_use]
pub fn host_name() -> String {
    let name = nix::sys::utsname::uname().ok().and_then(|uname| uname.nodename().to_str().map(str::to_owned));
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".into())
}

#[cfg(test)]
mod tests;
