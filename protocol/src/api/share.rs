//! `/api/v1/images/{id}/shares`: who else may use an image; and the change of its owner.
//!
//! A share with a project waits until somebody of that project accepts it; a share with a domain is accepted from the
//! start.

use serde::{Deserialize, Serialize};

use crate::id::{DomainId, ProjectId};
use crate::words::{ShareKind, ShareStatus};

/// Most ids of one request: bounds a transaction.
pub const SHARE_IDS_MAX: usize = 100;

/// Shares an image with more receivers. What is shared already stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShareCreate {
    /// These projects of the image's domain; a system administrator may name those of other domains.
    #[serde(default)]
    pub projects: Vec<ProjectId>,
    /// All projects of these domains (system administrators, where three-level sharing is switched on).
    #[serde(default)]
    pub domains: Vec<DomainId>,
    /// All projects of the image's own domain, at once: none is asked. Whoever may share the image may do this.
    #[serde(default)]
    pub whole_domain: bool,
}

/// Ends shares. What is not shared is left out silently.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ShareRemove {
    /// With these projects.
    #[serde(default)]
    pub projects: Vec<ProjectId>,
    /// With these domains.
    #[serde(default)]
    pub domains: Vec<DomainId>,
    /// With the image's own domain.
    #[serde(default)]
    pub whole_domain: bool,
    /// With everybody; then nothing else may be named.
    #[serde(default)]
    pub all: bool,
}

/// One receiver of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Share {
    /// Project or domain.
    pub kind: ShareKind,
    /// Id of the project or domain.
    pub target: String,
    /// Its name; absent for those who may not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the receiver says.
    pub status: ShareStatus,
    /// When it was shared.
    pub created_at: String,
    /// When the receiver last answered.
    pub updated_at: String,
}

/// Gives an image to another project.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OwnerChange {
    /// The new owner.
    pub project: ProjectId,
}
