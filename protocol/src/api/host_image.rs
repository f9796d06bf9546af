//! `/api/v1/host-images`: ordered sets of disk images, from which a machine gets all its disks.
//!
//! The first image is the system disk, the second data disk 1, and so on. A host image has no bytes of its own: its state
//! and sizes are those of its disks, looked at when it is read.

use serde::{Deserialize, Serialize};

use crate::id::{DomainId, HostImageId, ImageId, LocationId, ProjectId};
use crate::words::{
    DiskFormat, DiskRole, HostEntryStatus, HostImageStatus, ImageKind, ImageStatus, LocationKind, Visibility,
};

/// Fewest disks: one alone is an image.
pub const DISKS_MIN: usize = 2;
/// Most disks: bounds what one prewarm makes, and is more than machines have.
pub const DISKS_MAX: usize = 16;
/// Most host images of one call over many: bounds the time of a call.
pub const BATCH_MAX: usize = 100;

/// A new host image. What is left out about the system is taken from the system disk's image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostImageCreate {
    /// 1 to 255 characters, no control characters; unique among the project's host images.
    pub name: String,
    /// Owner; absent: the caller's project.
    #[serde(default)]
    pub project: Option<ProjectId>,
    /// Ids of 2 to 16 different disk images that are active: system disk, data disk 1 … n. Each must be the caller's own or
    /// public.
    pub images: Vec<ImageId>,
    /// Refuse deletion.
    #[serde(default)]
    pub protected: bool,
    /// What is known about it.
    #[serde(default)]
    pub facts: HostImageFacts,
}

/// What people say about a host image. Absent: as it is (in a new one: as the system disk's image says). An empty text or
/// a size of 0 takes the fact away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostImageFacts {
    /// For people, at most 4,096 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// CPU architecture, `x86_64` or `aarch64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// `linux`, `windows`, `macos`, `vmware` or `other`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_type: Option<String>,
    /// Distribution, for example `Debian`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution: Option<String>,
    /// Version of the distribution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Language of the system, for example `zh_CN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_language: Option<String>,
    /// What runs on it, for example `SAP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_platform: Option<String>,
    /// How disks are attached: `auto`, `virtio`, `scsi`, `pvscsi`, `ide` or `sata`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_driver: Option<String>,
    /// How networks are attached: `auto`, `virtio`, `e1000` or `vmxnet3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_driver: Option<String>,
    /// Smallest system disk that a machine of it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_disk_bytes: Option<u64>,
    /// Smallest memory that a machine of it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_memory_bytes: Option<u64>,
}

/// An edit; needs `If-Match` with the revision it is based on. What is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostImageUpdate {
    /// New name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Public or private (system administrators); public needs that every disk's image is public.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<bool>,
    /// Refuse deletion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected: Option<bool>,
    /// What is known about it.
    #[serde(default)]
    pub facts: HostImageFacts,
}

/// A host image as the catalog holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostImage {
    /// Its id.
    pub id: HostImageId,
    /// Its name.
    pub name: String,
    /// The worst state of its disks.
    pub status: HostImageStatus,
    /// Who may see it.
    pub visibility: Visibility,
    /// Owning domain.
    pub domain: DomainId,
    /// Owning project.
    pub project: ProjectId,
    /// Number of disks.
    pub disks: u32,
    /// Size of all disks as a guest sees them; absent while one is not imported.
    pub virtual_bytes: Option<u64>,
    /// Non-zero bytes of all disks.
    pub data_bytes: Option<u64>,
    /// Stored bytes of all disks: what an empty host receives.
    pub stored_bytes: Option<u64>,
    /// Refuses deletion.
    pub protected: bool,
    /// What is known about it.
    pub facts: HostImageFacts,
    /// Grows with each change; sent back as `If-Match`.
    pub revision: u64,
    /// When it was made.
    pub created_at: String,
    /// When it last changed.
    pub updated_at: String,
}

/// A disk of a host image. Of an image that the caller may not see only place and state are told; the sizes of the host
/// image count it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SubImage {
    /// 0 is the system disk, n is data disk n.
    pub position: u32,
    /// What the disk is.
    pub role: DiskRole,
    /// Its state.
    pub status: ImageStatus,
    /// The image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageId>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ImageKind>,
    /// Format of its original.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Size of the disk as a guest sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_bytes: Option<u64>,
    /// Non-zero bytes of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_bytes: Option<u64>,
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
}

/// A host image with its disks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostImageDetails {
    /// The host image.
    #[serde(flatten)]
    pub host_image: HostImage,
    /// Its disks in order.
    pub images: Vec<SubImage>,
}

/// A host image at one location.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostImageCache {
    /// The location.
    pub location: LocationId,
    /// Its name.
    pub location_name: String,
    /// Host or region.
    pub location_kind: LocationKind,
    /// Platform of the location.
    pub platform: String,
    /// Region of the location.
    pub region: String,
    /// Zone of the location.
    pub zone: String,
    /// The worst state of the disks there.
    pub status: HostEntryStatus,
    /// Disks that are active there.
    pub active: u32,
    /// Disks of the host image.
    pub disks: u32,
    /// Progress over all disks, 0 to 100.
    pub percent: u8,
    /// Raw bytes that are there and verified.
    pub done_bytes: u64,
    /// Raw bytes of all disks.
    pub data_bytes: u64,
}

/// Which host images a call over many is about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostImageBatch {
    /// 1 to 100 different ids.
    pub ids: Vec<HostImageId>,
}

/// Which host images are deleted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HostImageBatchDelete {
    /// 1 to 100 different ids.
    pub ids: Vec<HostImageId>,
    /// Also the images of their disks that nothing else uses.
    #[serde(default)]
    pub members: bool,
}

/// What became of one record of a call over many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostImageResult {
    /// The host image.
    pub id: HostImageId,
    /// Its name, if the caller may see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether the call did what it should.
    pub ok: bool,
    /// HTTP status that a call for it alone would have had.
    pub status: u16,
    /// What happened.
    pub message: String,
    /// What became of the images of its disks; empty unless they were to be deleted too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<MemberResult>,
}

/// What became of the image of a disk when its host image was deleted with its disks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MemberResult {
    /// The image.
    pub image: ImageId,
    /// Its name, if the caller may see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether it was deleted.
    pub ok: bool,
    /// What happened; why it stays.
    pub message: String,
}
