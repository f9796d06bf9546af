//! `/api/v1/prewarms`: jobs that put one image on many locations, and `/api/v1/prewarm-groups`: the jobs of a host image.

use serde::{Deserialize, Serialize};

use super::cache::{Keep, Targets};
use super::campaign::Campaign;
use crate::digest::ContentId;
use crate::id::{HostImageId, ImageId, LocationId, PrewarmGroupId, PrewarmId};
use crate::words::{EntryStatus, PrewarmState, Priority};

/// A new job, or with `host_image` one job per disk; exactly one of `image` and `host_image`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PrewarmCreate {
    /// Id of the image; it must be active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageId>,
    /// Id of the host image; all its disks must be active. The answer is a [`PrewarmGroup`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_image: Option<HostImageId>,
    /// Where.
    pub targets: Targets,
    /// Order of work; default `deadline` with a deadline, else `bulk`.
    #[serde(default)]
    pub priority: Option<Priority>,
    /// When it must be done, RFC 3339.
    #[serde(default)]
    pub deadline: Option<String>,
    /// When it begins, RFC 3339; absent: now.
    #[serde(default)]
    pub start: Option<String>,
    /// Cap per location, bytes per second, at least 65,536.
    #[serde(default)]
    pub rate_bytes_per_s: Option<u64>,
    /// How long the copies are kept.
    #[serde(default)]
    pub keep: Keep,
    /// Only say what would happen; the answer is a [`DryRun`].
    #[serde(default)]
    pub dry_run: bool,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Prewarm {
    /// Its id.
    pub id: PrewarmId,
    /// The image.
    pub image: ImageId,
    /// Its name.
    pub image_name: String,
    /// Its content.
    pub content: ContentId,
    /// The group, if the image is a disk of a host image that is prewarmed as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<PrewarmGroupId>,
    /// Name of that host image when the group was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_image_name: Option<String>,
    /// State.
    pub state: PrewarmState,
    /// Where, as it was asked for.
    pub targets: Targets,
    /// Order of work.
    pub priority: Priority,
    /// When it must be done.
    pub deadline: Option<String>,
    /// When it begins or began.
    pub start: String,
    /// Cap per location.
    pub rate_bytes_per_s: Option<u64>,
    /// How long the copies are kept.
    pub keep: Keep,
    /// Targets.
    pub total: u32,
    /// Targets that say "verified on disk".
    pub active: u32,
    /// Targets that failed.
    pub failed: u32,
    /// Raw bytes verified at all targets.
    pub done_bytes: u64,
    /// Raw bytes of all targets.
    pub data_bytes: u64,
    /// Stored bytes that moved.
    pub moved_bytes: u64,
    /// Who made it.
    pub created_by: String,
    /// When it was made.
    pub created_at: String,
    /// When it ended.
    pub finished_at: Option<String>,
}

/// One location of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PrewarmTarget {
    /// The location.
    pub location: LocationId,
    /// Its name.
    pub location_name: String,
    /// Whether its agent has a session now.
    pub online: bool,
    /// State of the entry there.
    pub status: EntryStatus,
    /// Progress, 0 to 100.
    pub percent: u8,
    /// Raw bytes verified.
    pub done_bytes: u64,
    /// Raw bytes of all chunks.
    pub data_bytes: u64,
    /// Stored bytes that moved.
    pub moved_bytes: u64,
    /// Raw bytes taken from other images there.
    pub reused_bytes: u64,
    /// Why it failed or waits; empty otherwise.
    pub reason: String,
    /// Tries so far.
    pub attempts: u32,
    /// When it was verified on disk.
    pub done_at: Option<String>,
}

/// A job with its targets, failed ones first, then running ones, then the rest by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PrewarmDetails {
    /// The job.
    #[serde(flatten)]
    pub prewarm: Prewarm,
    /// Its targets.
    pub locations: Vec<PrewarmTarget>,
    /// How the hosts pass the content to each other: the last campaign since the job was made. Absent if there was none, as for
    /// a single host, or if the controller has forgotten it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub campaign: Option<Campaign>,
}

/// The jobs of one host image: one per disk, made, paused, resumed, cancelled and tried again together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PrewarmGroup {
    /// Its id.
    pub id: PrewarmGroupId,
    /// The host image.
    pub host_image: HostImageId,
    /// Its name when the group was made.
    pub host_image_name: String,
    /// The worst state of its jobs; it has not ended before all of them have.
    pub state: PrewarmState,
    /// Where, as it was asked for.
    pub targets: Targets,
    /// Order of work.
    pub priority: Priority,
    /// When it must be done.
    pub deadline: Option<String>,
    /// When it begins or began.
    pub start: String,
    /// Cap per location.
    pub rate_bytes_per_s: Option<u64>,
    /// How long the copies are kept.
    pub keep: Keep,
    /// Locations.
    pub total: u32,
    /// Locations where every disk is verified.
    pub active: u32,
    /// Locations where a disk failed.
    pub failed: u32,
    /// Raw bytes verified, over all disks and locations.
    pub done_bytes: u64,
    /// Raw bytes of all disks at all locations.
    pub data_bytes: u64,
    /// Stored bytes that moved.
    pub moved_bytes: u64,
    /// Who made it.
    pub created_by: String,
    /// When it was made.
    pub created_at: String,
    /// When the last of its jobs ended.
    pub finished_at: Option<String>,
    /// One job per disk, the system disk first.
    pub jobs: Vec<Prewarm>,
}

/// A group with its locations, failed ones first, then running ones, then the rest by name. Each shows the worst of its
/// disks and the sums over them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PrewarmGroupDetails {
    /// The group.
    #[serde(flatten)]
    pub group: PrewarmGroup,
    /// Its locations.
    pub locations: Vec<PrewarmTarget>,
}

/// What a new job answers: the job, or the group of a host image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum PrewarmMade {
    /// Of a host image.
    Group(Box<PrewarmGroup>),
    /// Of an image.
    Job(Box<Prewarm>),
}

/// What a job would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DryRun {
    /// Locations that have the image already.
    pub warm: u32,
    /// Locations that must fetch it.
    pub cold: u32,
    /// Stored bytes that move at most (locations may reuse chunks of other images).
    pub move_bytes_max: u64,
    /// Lower bound of the time in seconds, from the slowest interface among the cold ones and the source's.
    pub time_bound_s: f64,
    /// Locations that cannot take it, with the reason.
    pub unfit: Vec<Unfit>,
}

/// A location that cannot take the image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Unfit {
    /// The location.
    pub location: LocationId,
    /// Its name.
    pub location_name: String,
    /// Why.
    pub reason: String,
}
