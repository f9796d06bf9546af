//! `/api/v1/images/{id}/variants`: an image's disk in other formats.
//!
//! `GET` lists them, `POST` has one made, `DELETE …/{format}` removes it, `GET …/{format}/file` sends its bytes with `Range` and
//! `ETag`. They are a list of their own, not a part of the image's body, so that lists of images stay quick.

use serde::{Deserialize, Serialize};

use crate::words::{DiskFormat, VariantStatus};

/// A variant that is wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VariantCreate {
    /// raw, qcow2, vmdk, vhd or vhdx.
    pub format: DiskFormat,
}

/// One variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Variant {
    /// Its format.
    pub format: DiskFormat,
    /// State.
    pub status: VariantStatus,
    /// Progress while `saving`, 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// Why it is `save_fail`; empty otherwise.
    pub reason: String,
    /// Size of the file, once it is `active`.
    pub bytes: Option<u64>,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: Option<String>,
    /// MD5 of the file.
    pub md5: Option<String>,
    /// BLAKE3 of the file.
    pub blake3: Option<String>,
    /// When it was first asked for.
    pub created_at: String,
    /// When it last changed.
    pub updated_at: String,
}

/// All variants of an image; at most one per format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VariantList {
    /// Those that there are, in whatever state.
    pub items: Vec<Variant>,
    /// Formats in which there is none yet and one can be made. Empty for ISO and encrypted images, and before the image is
    /// `active`.
    pub makeable: Vec<DiskFormat>,
}
