//! `/api/v1/projects/{id}/quota`: how much a project may have.
//!
//! Only the owner of an image is charged, and only for images that are not public.

use serde::{Deserialize, Serialize};

use crate::id::ProjectId;

/// What a project may have, and what it has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Quota {
    /// The project.
    pub project: ProjectId,
    /// Images that are not public.
    pub images: QuotaLine,
    /// Bytes of their files.
    pub bytes: QuotaLine,
    /// Uploads and imports that run now.
    pub imports: QuotaLine,
}

/// One figure of a quota.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct QuotaLine {
    /// What the project has.
    pub used: u64,
    /// What it may have; absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Whether the limit was set for this project; otherwise it is the configured default.
    pub own: bool,
}

/// A project's own limits. What is absent or `null` follows the configured default; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuotaUpdate {
    /// Images that are not public.
    #[serde(default)]
    pub images: Option<u64>,
    /// Bytes of their files.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// Uploads and imports at once.
    #[serde(default)]
    pub imports: Option<u64>,
}
