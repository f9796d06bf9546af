//! `/api/v1/images`: the catalog.
//!
//! `POST /images` makes a record, `PUT /images/{id}/file` streams the bytes, the import job does the rest;
//! `GET /images/{id}/file` returns the original bytes with `Range` and `ETag`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::key::{EncryptWith, Encryption};
use super::source::ImageSource;
use crate::digest::ContentId;
use crate::id::{DomainId, ImageId, ProjectId};
use crate::words::{
    Architecture, DiskDriver, DiskFormat, ImageKind, ImageStatus, ImportStage, NetworkDriver, OsType,
    ShareStatus, Virtualisation, Visibility,
};

/// Longest name, in characters.
pub const NAME_CHARS_MAX: usize = 255;
/// Most tags of an image.
pub const TAGS_MAX: usize = 50;
/// Longest tag, in characters.
pub const TAG_CHARS_MAX: usize = 64;
/// Smallest target size of a system disk: 20 GB.
pub const DISK_BYTES_MIN: u64 = 20_000_000_000;
/// Largest target size of a system disk: 500 GB, read as GiB by those who mean that.
pub const DISK_BYTES_MAX: u64 = 500 << 30;
/// Rows that are counted; more are told as "10,000+".
pub const COUNT_MAX: u32 = 10_000;

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
    /// CPU architecture.
    #[serde(default)]
    pub architecture: Option<Architecture>,
    /// Operating system.
    #[serde(default)]
    pub os_type: Option<OsType>,
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
    /// What it was built to run on; cannot be changed later.
    #[serde(default)]
    pub virtualisation: Option<Virtualisation>,
    /// Size that the disk gets, 20 GB to 500 GiB in whole sectors of 512 bytes: a smaller source is grown to it, a
    /// larger one refused. Cannot be changed later.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// How a machine of it sees its disks; default `auto`.
    #[serde(default)]
    pub disk_driver: Option<DiskDriver>,
    /// How a machine of it sees its network; default `auto`.
    #[serde(default)]
    pub network_driver: Option<NetworkDriver>,
    /// Language of the operating system, for example `zh_CN`; at most 255 characters.
    #[serde(default)]
    pub os_language: Option<String>,
    /// Application platform that is installed, for example `nginx`; at most 255 characters.
    #[serde(default)]
    pub app_platform: Option<String>,
    /// A password can be set for machines of it.
    #[serde(default)]
    pub password_enabled: bool,
    /// At most 50 of 1 to 64 characters; two that differ in case alone are one.
    #[serde(default)]
    pub tags: BTreeSet<String>,
    /// Refuse deletion.
    #[serde(default)]
    pub protected: bool,
    /// Where the controller gets the file by itself; absent: it is uploaded.
    #[serde(default)]
    pub source: Option<ImageSource>,
    /// Free properties; at most 64, names 1 to 64 of `a-z0-9_.-`, values at most 1,024 characters.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
    /// Encrypt it with a key of its project, one that there is or a new one. Cannot be changed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<EncryptWith>,
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
    /// Size that the disk was asked to get at import.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// CPU architecture.
    pub architecture: Option<Architecture>,
    /// Operating system.
    pub os_type: Option<OsType>,
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
    /// What it was built to run on.
    #[serde(default)]
    pub virtualisation: Option<Virtualisation>,
    /// How a machine of it sees its disks.
    pub disk_driver: DiskDriver,
    /// How a machine of it sees its network.
    pub network_driver: NetworkDriver,
    /// Language of the operating system.
    #[serde(default)]
    pub os_language: Option<String>,
    /// Application platform.
    #[serde(default)]
    pub app_platform: Option<String>,
    /// A password can be set for machines of it.
    #[serde(default)]
    pub password_enabled: bool,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeSet<String>,
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
    /// Since when it is in the recycle bin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binned_at: Option<String>,
    /// When the recycle bin destroys it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroyed_at: Option<String>,
    /// What the scanner of the controller said, where one is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scan: Option<Scan>,
    /// Locations where it is `active`; only for those who may see cache entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_at: Option<u32>,
    /// Whether it is `active` at the location that a list asked for with `at`; for those who may not see cache entries, whether
    /// it was brought there and still is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<bool>,
    /// Recommended by an administrator.
    #[serde(default)]
    pub featured: bool,
    /// What the caller's project said to the share through which it sees the image; absent where that is not how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_status: Option<ShareStatus>,
    /// How it is encrypted; absent: it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
}

/// One page of images. Ask for the next one with `?cursor=<next>`; there is none when `next` is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ImagePage {
    /// The rows.
    pub items: Vec<Image>,
    /// Opaque mark of the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// How many images match, if it was asked for with `count=true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<Count>,
}

/// A number of rows that is exact up to [`COUNT_MAX`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Count {
    /// Rows; at most 10,000.
    pub rows: u32,
    /// There are more.
    pub more: bool,
}

impl std::fmt::Display for Count {
    /// `9999`, or `10,000+`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.more { f.write_str("10,000+") } else { write!(f, "{}", self.rows) }
    }
}

/// Verdict of the scan hook on an image that it let pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Scan {
    /// First line that the scanner printed.
    pub verdict: String,
    /// When the image was taken.
    pub scanned_at: String,
}
