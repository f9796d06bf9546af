//! `GET /api/v1/distributions`: the distributions that images are offered for.

use serde::{Deserialize, Serialize};

use crate::words::{Architecture, OsType};

/// One distribution on one architecture.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Distribution {
    /// Its name, for example `Ubuntu`.
    pub name: String,
    /// Its operating system.
    pub os_type: OsType,
    /// The architecture.
    pub architecture: Architecture,
    /// Its versions, oldest first.
    pub versions: Vec<String>,
}

/// The table.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Distributions {
    /// Whether an image with another distribution or version is refused.
    pub strict: bool,
    /// The rows.
    pub distributions: Vec<Distribution>,
}
