//! What the configuration says of sources: addresses, ports and object stores.
//!
//! **Invariants.** Without an entry no private address and no bucket can be reached. A store's secret is in a file of its own.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::Raw;
use crate::ingest::sources::SourceConfig;
use crate::ingest::sources::s3::Store;
use crate::logic::fetch::Patience;
use crate::logic::source::Rules;

/// Days after which an upload that nobody goes on with ends.
pub(super) const UPLOAD_IDLE_DAYS_DEFAULT: u32 = 7;
/// Sources that are fetched from at once: each holds a file, three threads and about 8 MiB.
pub(super) const PARALLEL_FETCHES_DEFAULT: usize = 4;
/// Most days: a year of somebody else's disk.
const UPLOAD_IDLE_DAYS_MAX: u32 = 365;
/// Most sources at once.
const PARALLEL_FETCHES_MAX: usize = 64;
/// Ports of sources when nobody says: those of http, https, ftp and ftps.
const PORTS_DEFAULT: [u16; 4] = [80, 443, 21, 990];
/// Region of stores that have none.
const REGION_DEFAULT: &str = "us-east-1";

/// An object store, as the file says it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawStore {
    endpoint: String,
    region: Option<String>,
    buckets: Vec<String>,
    access_key: String,
    secret_key_file: PathBuf,
    virtual_hosted: bool,
}

/// A value that cannot be used.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) key: &'static str,
    pub(super) value: String,
    pub(super) allowed: String,
}

fn wrong<T>(key: &'static str, value: impl ToString, allowed: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { key, value: value.to_string(), allowed: allowed.into() })
}

/// What the file says of uploads and fetches, checked.
#[derive(Debug)]
pub(super) struct Imports {
    pub(super) upload_idle: Duration,
    pub(super) parallel_fetches: usize,
    pub(super) sources: SourceConfig,
}

pub(super) fn check(raw: &Raw) -> Result<Imports, Wrong> {
    let idle_days = raw.upload_idle_days.unwrap_or(UPLOAD_IDLE_DAYS_DEFAULT);
    if !(1..=UPLOAD_IDLE_DAYS_MAX).contains(&idle_days) {
        return wrong("upload_idle_days", idle_days, format!("must be 1 to {UPLOAD_IDLE_DAYS_MAX}"));
    }
    let parallel_fetches = raw.parallel_fetches.unwrap_or(PARALLEL_FETCHES_DEFAULT);
    if !(1..=PARALLEL_FETCHES_MAX).contains(&parallel_fetches) {
        return wrong("parallel_fetches", parallel_fetches, format!("must be 1 to {PARALLEL_FETCHES_MAX}"));
    }
    let ports = raw.import_ports.clone().unwrap_or_else(|| PORTS_DEFAULT.to_vec());
    if ports.contains(&0) {
        return wrong("import_ports", 0, "must be ports, 1 to 65535");
    }
    let rules = match Rules::new(&raw.import_allow, &ports) {
        Ok(rules) => rules,
        Err(entry) => {
            return wrong("import_allow", entry, "must be addresses, blocks like 10.0.0.0/8, or DNS names");
        }
    };
    let ca_file = raw.import_ca_file.clone();
    if let Some(file) = ca_file.as_ref().filter(|file| !file.is_absolute()) {
        return wrong("import_ca_file", file.display(), "must be an absolute path");
    }
    let stores = raw.s3.iter().map(store).collect::<Result<_, _>>()?;
    let sources = SourceConfig { rules, ca_file, stores, patience: Patience::default() };
    let upload_idle = Duration::from_secs(u64::from(idle_days) * 86_400);
    Ok(Imports { upload_idle, parallel_fetches, sources })
}

fn store(raw: &RawStore) -> Result<Store, Wrong> {
    let RawStore { endpoint, region, buckets, access_key, secret_key_file, virtual_hosted } = raw.clone();
    let place = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
    if place.is_none_or(|place| place.is_empty() || place.contains(['@', '?', '#'])) {
        // What stands before an @ would be a password.
        let shown = endpoint.rsplit('@').next().unwrap_or_default();
        return wrong("s3.endpoint", shown, "must be http(s)://HOST[:PORT]");
    }
    if buckets.is_empty() || buckets.iter().any(String::is_empty) {
        return wrong(
            "s3.buckets",
            "[]",
            "must name the buckets that images may come from, or \"*\" for all",
        );
    }
    if access_key.is_empty() {
        return wrong("s3.access_key", "", "must be the public half of the key");
    }
    if secret_key_file.as_os_str().is_empty() {
        let allowed =
            "must be a file with the secret half of the key: absolute, or the name of a systemd credential";
        return wrong("s3.secret_key_file", "", allowed);
    }
    let region = region.unwrap_or_else(|| REGION_DEFAULT.to_owned());
    Ok(Store { endpoint, region, buckets, access_key, secret_key_file, virtual_hosted })
}
