//! What the configuration says of sources: addresses, ports and object stores.
//!
//! **Invariants.** Without an entry no private address and no bucket can be reached. A store's secret is in a file of its own.

use std::path::PathBuf;

use serde::Deserialize;

use crate::ingest::sources::SourceConfig;
use crate::ingest::sources::s3::Store;
use crate::logic::fetch::Patience;
use crate::logic::source::Rules;

/// Days after which an upload that nobody goes on with ends.
pub(super) const UPLOAD_IDLE_DAYS_DEFAULT: u32 = 7;
/// Sources that are fetched from at once: each holds a file, three threads and about 8 MiB.
pub(super) const PARALLEL_FETCHES_DEFAULT: usize = 4;
/// Ports of sources when nobody says: those of http, https, ftp and ftps.
const PORTS_DEFAULT: [u16; 4] = [80, 443, 21, 990];
/// Region of stores that have none.
const REGION_DEFAULT: &str = "us-east-1";

/// An object store, as the file says it.
#[derive(Debug, Default, Deserialize)]
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
    pub(super) allowed: &'static str,
}

pub(super) fn check(
    allow: &[String],
    ports: Option<Vec<u16>>,
    ca_file: Option<PathBuf>,
    stores: Vec<RawStore>,
) -> Result<SourceConfig, Wrong> {
    let wrong = |key, value: &dyn std::fmt::Display, allowed| Err(Wrong { key, value: value.to_string(), allowed });
    let ports = ports.unwrap_or_else(|| PORTS_DEFAULT.to_vec());
    if ports.contains(&0) {
        return wrong("import_ports", &0, "must be ports, 1 to 65535");
    }
    let rules = match Rules::new(allow, &ports) {
        Ok(rules) => rules,
        Err(entry) => {
            return wrong("import_allow", &entry, "must be addresses, blocks like 10.0.0.0/8, or DNS names");
        }
    };
    if let Some(file) = ca_file.as_ref().filter(|file| !file.is_absolute()) {
        return wrong("import_ca_file", &file.display(), "must be an absolute path");
    }
    let stores = stores.into_iter().map(store).collect::<Result<_, _>>()?;
    Ok(SourceConfig { rules, ca_file, stores, patience: Patience::default() })
}

fn store(raw: RawStore) -> Result<Store, Wrong> {
    let wrong = |key, value: &str, allowed| Err(Wrong { key, value: value.to_owned(), allowed });
    let RawStore { endpoint, region, buckets, access_key, secret_key_file, virtual_hosted } = raw;
    let place = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
    if place.is_none_or(|place| place.is_empty() || place.contains(['@', '?', '#'])) {
        return wrong("s3.endpoint", &endpoint, "must be http(s)://HOST[:PORT]");
    }
    if buckets.is_empty() || buckets.iter().any(String::is_empty) {
        return wrong("s3.buckets", "[]", "must name the buckets that images may come from, or \"*\" for all");
    }
    if access_key.is_empty() {
        return wrong("s3.access_key", "", "must be the public half of the key");
    }
    if secret_key_file.as_os_str().is_empty() {
        let allowed = "must be a file with the secret half of the key: absolute, or the name of a systemd credential";
        return wrong("s3.secret_key_file", "", allowed);
    }
    let region = region.unwrap_or_else(|| REGION_DEFAULT.to_owned());
    Ok(Store { endpoint, region, buckets, access_key, secret_key_file, virtual_hosted })
}
