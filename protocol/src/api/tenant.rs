//! `/api/v1/domains` and `/api/v1/projects`: the two tenant levels below the system.

use serde::{Deserialize, Serialize};

use crate::id::{DomainId, ProjectId};

/// Makes a domain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DomainCreate {
    /// Its name, 1 to 255 characters; unique without regard to case.
    pub name: String,
}

/// A domain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Domain {
    /// Its id.
    pub id: DomainId,
    /// Its name.
    pub name: String,
    /// Closed: no token of it, its projects or its users opens anything.
    pub disabled: bool,
    /// When it was made.
    pub created_at: String,
}

/// Makes a project.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectCreate {
    /// Its name, 1 to 255 characters; unique in its domain without regard to case.
    pub name: String,
    /// Its domain; absent: the caller's, or for the system the one named `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<DomainId>,
}

/// A project.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Its name.
    pub name: String,
    /// Its domain.
    pub domain: DomainId,
    /// Closed: no token of it opens anything.
    pub disabled: bool,
    /// When it was made.
    pub created_at: String,
}

/// Changes a domain, a project or a user; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantUpdate {
    /// Another name, 1 to 255 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Close it or open it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
}
