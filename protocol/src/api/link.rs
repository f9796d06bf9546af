//! `/api/v1/images/{id}/links`: addresses from which an image can be downloaded without a token.

use serde::{Deserialize, Serialize};

use crate::id::{ImageId, LinkId};

/// Longest life of a link, and the one it gets when nobody says: 24 hours, in seconds.
pub const LINK_TTL_S_MAX: u64 = 24 * 3600;
/// The word for the file as it was imported.
pub const FORMAT_ORIGINAL: &str = "original";

/// Makes a link.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkCreate {
    /// What to download: `original` (the default), or the format of a variant.
    #[serde(default)]
    pub format: Option<String>,
    /// Life in seconds, 1 to 86,400; absent: 24 hours.
    #[serde(default)]
    pub ttl_s: Option<u64>,
}

/// A link's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LinkRecord {
    /// Its id.
    pub id: LinkId,
    /// The image.
    pub image: ImageId,
    /// `original`, or the format of a variant.
    pub format: String,
    /// `open`, `expired` or `revoked`.
    pub state: String,
    /// The address, with the controller as the caller names it; only in the answer that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The path of the address; only in the answer that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// SHA-256 of the file; only in the answer that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Who made it.
    pub created_by: String,
    /// When it was made.
    pub created_at: String,
    /// When it ends.
    pub expires_at: String,
    /// When it was revoked.
    pub revoked_at: Option<String>,
    /// When bytes were first fetched with it.
    pub first_used_at: Option<String>,
}
