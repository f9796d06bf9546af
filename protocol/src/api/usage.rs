//! `/api/v1/usage`: what each project has stored, and for how long.

use serde::{Deserialize, Serialize};

use crate::id::{DomainId, ProjectId};

/// What one project has and had. Public images are nobody's charge and are not counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Usage {
    /// The project.
    pub project: ProjectId,
    /// Its name.
    pub project_name: String,
    /// Its domain.
    pub domain: DomainId,
    /// Name of the domain.
    pub domain_name: String,
    /// Images now.
    pub images: u64,
    /// Bytes of their files now.
    pub bytes: u64,
    /// Bytes times days over the asked range, rounded down; images that are deleted or given away count for the time
    /// they were the project's.
    pub byte_days: u64,
}
