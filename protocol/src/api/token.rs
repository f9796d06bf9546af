//! `/api/v1/tokens` and `/api/v1/whoami`: who may do what.

use serde::{Deserialize, Serialize};

use crate::id::{DomainId, ProjectId, TokenId, UserId};
use crate::words::{Role, ScopeKind};

/// Makes a bearer token. Nobody can make one that may do more than its maker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenCreate {
    /// Name of who will use it, 1 to 255 characters.
    pub name: String,
    /// Role.
    pub role: Role,
    /// Level.
    pub scope: ScopeKind,
    /// The domain, for scopes domain and project.
    #[serde(default)]
    pub domain: Option<DomainId>,
    /// The project, for scope project.
    #[serde(default)]
    pub project: Option<ProjectId>,
    /// Life in seconds; absent: 90 days.
    #[serde(default)]
    pub ttl_s: Option<u64>,
    /// The user to whom it belongs: it ends with the user, and the user must hold this role in this scope. Absent: it
    /// belongs to a program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
}

/// A bearer token's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenRecord {
    /// Its id.
    pub id: TokenId,
    /// The token itself, `hrt_<64 hex digits>`; only in the answer that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Who uses it.
    pub name: String,
    /// Role.
    pub role: Role,
    /// Level.
    pub scope: ScopeKind,
    /// The domain.
    pub domain: Option<DomainId>,
    /// The project.
    pub project: Option<ProjectId>,
    /// When it ends.
    pub expires_at: Option<String>,
    /// When it was revoked.
    pub revoked_at: Option<String>,
    /// When it was last used.
    pub last_used_at: Option<String>,
    /// The user to whom it belongs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// Whether it opens anything now: not ended, and neither is its user, grant, domain or project.
    #[serde(default)]
    pub usable: bool,
}
