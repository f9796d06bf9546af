//! `/api/v1/locations` and `/api/v1/join-tokens`: where caches are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::image_update::Edit;
use crate::digest::AgentId;
use crate::id::{DomainId, JoinTokenId, LocationId};
use crate::words::{LocationKind, LocationState};

/// A location.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Location {
    /// Its id.
    pub id: LocationId,
    /// Unique name.
    pub name: String,
    /// Host or region.
    pub kind: LocationKind,
    /// How the operator uses it.
    pub state: LocationState,
    /// Whether its agent has a session now.
    pub online: bool,
    /// Not empty: the agent's cache is read-only for this reason.
    pub degraded: String,
    /// Platform.
    pub platform: String,
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Rack.
    pub rack: String,
    /// Account.
    pub account: String,
    /// Management address.
    pub ip: String,
    /// Serial number.
    pub serial: String,
    /// The domain whose administrators manage it; absent: system administrators alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<DomainId>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Addresses for other agents.
    pub advertised: Vec<String>,
    /// Speed of the network interface, Mbit/s.
    pub nic_mbps: u32,
    /// The agent's identity.
    pub agent: Option<AgentId>,
    /// End of the agent's certificate.
    pub certificate_ends_at: Option<String>,
    /// Last sign of life.
    pub last_seen_at: Option<String>,
    /// A second place from which the agent's key was shown in the last quarter of an hour; it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate: Option<DuplicateAgent>,
    /// Bytes the cache may allocate.
    pub budget_bytes: u64,
    /// Bytes the cache has allocated or reserved.
    pub used_bytes: u64,
    /// Free bytes of the file system.
    pub free_bytes: u64,
    /// Free bytes that must stay.
    pub floor_bytes: u64,
    /// Entries that are `active`.
    pub active_entries: u32,
    /// When it enrolled.
    pub created_at: String,
}

/// Somebody else with an agent's key: a copied disk, or a stolen key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DuplicateAgent {
    /// From where it called, `ip:port`.
    pub address: String,
    /// When it last did.
    pub seen_at: String,
}

/// A change of a location; absent fields stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LocationUpdate {
    /// `active` or `draining`.
    #[serde(default)]
    pub state: Option<LocationState>,
    /// Replaces all labels.
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
    /// New rack.
    #[serde(default)]
    pub rack: Option<String>,
    /// The domain whose administrators manage it too (system administrators); `null`: no domain.
    #[serde(default, skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<DomainId>)]
    pub domain: Edit<DomainId>,
}

/// Makes a join token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinTokenCreate {
    /// How many agents may use it, 1 to 100,000; default 1.
    #[serde(default = "one")]
    pub uses: u32,
    /// Life in seconds, 60 to 604,800; default 900.
    #[serde(default = "quarter_hour")]
    pub ttl_s: u64,
    /// Pattern that the location's name must match, for example `cn-*`.
    #[serde(default)]
    pub name_match: Option<String>,
    /// Facts that override what the agent says: `zone`, `region`, `rack`, `platform`, `account`.
    #[serde(default)]
    pub presets: BTreeMap<String, String>,
}

const fn one() -> u32 {
    1
}

const fn quarter_hour() -> u64 {
    900
}

/// A join token's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JoinTokenRecord {
    /// Its id.
    pub id: JoinTokenId,
    /// The token itself; only in the answer that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Uses that are left.
    pub uses_left: u32,
    /// When it ends.
    pub expires_at: String,
    /// Pattern for names.
    pub name_match: Option<String>,
    /// Facts that override what the agent says.
    pub presets: BTreeMap<String, String>,
    /// Who made it.
    pub created_by: String,
}
