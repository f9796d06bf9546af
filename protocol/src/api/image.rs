//! `/api/v1/images`: the catalog.
//!
//! `POST /images` makes a record, `PUT /images/{id}/file` streams the bytes, the import job does the rest;
//! `GET /images/{id}/file` returns the original bytes with `Range` and `ETag`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::source::ImageSource;
use crate::digest::ContentId;
use crate::id::{DomainId, ImageId, ProjectId};
use crate::words::{DiskFormat, ImageKind, ImageStatus, ImportStage, Visibility};

/// Longest name, in characters.
pub const NAME_CHARS_MAX: usize = 255;

/// A new image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageCreate {
    /// 1 to 255 characters, no control characters; unique among the project's images that are not deleted.
    pub name: String,
    /// Disk (default) or ISO.
    #[serde(default)]
    pub kind: Option<ImageKind>,
    /// Format of the file; must be what the bytes are. Absent: found out.
    #[serde(default)]
    pub format: Option<DiskFormat>,
    /// Owner; absent: the caller's project.
    #[serde(default)]
    pub project: Option<ProjectId>,
    /// Public at once (system administrators).
    #[serde(default)]
    pub public: bool,
    /// Expected checksums of the file; a mismatch fails the import and keeps nothing.
    #[serde(default)]
    pub expected: Checksums,
    /// CPU architecture, `x86_64` or `aarch64`.
    #[serde(default)]
    pub architecture: Option<String>,
    /// `linux`, `windows` or `other`.
    #[serde(default)]
    pub os_type: Option<String>,
    /// Distribution, for example `Debian`.
    #[serde(default)]
    pub distribution: Option<String>,
    /// Version of the distribution.
    #[serde(default)]
    pub version: Option<String>,
    /// For people, at most 4,096 characters.
    #[serde(default)]
    pub description: Option<String>,
    /// Smallest disk that a machine of it needs.
    #[serde(default)]
    pub min_disk_bytes: Option<u64>,
    /// Smallest memory that a machine of it needs.
    #[serde(default)]
    pub min_memory_bytes: Option<u64>,
    /// Refuse deletion.
    #[serde(default)]
    pub protected: bool,
    /// Where the controller gets the file by itself; absent: it is uploaded.
    #[serde(default)]
    pub source: Option<ImageSource>,
    /// Free properties; at most 64, names 1 to 64 of `a-z0-9_.-`, values at most 1,024 characters.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

/// Checksums of a file, lower-case hex.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Checksums {
    /// SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// SHA-512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha512: Option<String>,
    /// MD5, for sources that publish nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<String>,
    /// BLAKE3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
}

/// An image as the catalog holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Its name.
    pub name: String,
    /// Disk or ISO.
    pub kind: ImageKind,
    /// State.
    pub status: ImageStatus,
    /// Stage of the import while `saving` or `importing`.
    pub stage: Option<ImportStage>,
    /// Progress of the stage, 0 to 100.
    pub percent: u8,
    /// Why it is `killed`; empty otherwise.
    pub reason: String,
    /// Format of the original.
    pub format: Option<DiskFormat>,
    /// Who may see it.
    pub visibility: Visibility,
    /// Owning domain.
    pub domain: DomainId,
    /// Owning project.
    pub project: ProjectId,
    /// Identity of the bytes that are cached; absent until the import ends.
    pub content: Option<ContentId>,
    /// Size of the original file.
    pub original_bytes: Option<u64>,
    /// Whether the original can be downloaded.
    pub original_kept: bool,
    /// Checksums of the original.
    pub checksums: Checksums,
    /// Size of the disk as a guest sees it.
    pub virtual_bytes: Option<u64>,
    /// Non-zero bytes of the disk.
    pub data_bytes: Option<u64>,
    /// Stored bytes of the content: what an empty host receives.
    pub stored_bytes: Option<u64>,
    /// CPU architecture.
    pub architecture: Option<String>,
    /// OS type.
    pub os_type: Option<String>,
    /// Distribution.
    pub distribution: Option<String>,
    /// Version of the distribution.
    pub version: Option<String>,
    /// For people.
    pub description: Option<String>,
    /// Smallest disk.
    pub min_disk_bytes: Option<u64>,
    /// Smallest memory.
    pub min_memory_bytes: Option<u64>,
    /// Refuses deletion.
    pub protected: bool,
    /// Free properties.
    pub properties: BTreeMap<String, String>,
    /// Where the file came from, without passwords; absent for an upload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Grows with each change; sent back as `If-Match`.
    pub revision: u64,
    /// When it was made.
    pub created_at: String,
    /// When it last changed.
    pub updated_at: String,
    /// Locations where it is `active`; only for those who may see cache entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_at: Option<u32>,
}
