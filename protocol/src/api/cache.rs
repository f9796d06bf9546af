//! `/api/v1/cache`: the cache list, one row per image and location.

use serde::{Deserialize, Serialize};

use super::location::Location;
use crate::digest::ContentId;
use crate::id::{HostImageId, ImageId, LocationId};
use crate::words::{ConsumerKind, EntryStatus, LocationKind, Origin, Priority};

/// One image at one location.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CacheEntry {
    /// The image.
    pub image: ImageId,
    /// Its name.
    pub image_name: String,
    /// Its content.
    pub content: ContentId,
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
    /// Account of the location.
    pub account: String,
    /// Management address of the location.
    pub ip: String,
    /// State.
    pub status: EntryStatus,
    /// Last known state of a stale entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_status: Option<EntryStatus>,
    /// Why the last try failed; empty otherwise.
    pub reason: String,
    /// When it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try_at: Option<String>,
    /// Progress, 0 to 100.
    pub percent: u8,
    /// Raw bytes that are there and verified.
    pub done_bytes: u64,
    /// Raw bytes of all chunks.
    pub data_bytes: u64,
    /// Stored bytes that came over the network.
    pub moved_bytes: u64,
    /// Raw bytes taken from other images of the same cache.
    pub reused_bytes: u64,
    /// Bytes allocated on disk.
    pub allocated_bytes: u64,
    /// Who asked for it; empty for unheld cache.
    pub origins: Vec<Origin>,
    /// Pinned by an operator or a job.
    pub pinned: bool,
    /// End of the hold; absent if pinned or unheld.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<String>,
    /// Who uses it.
    pub used_by: Vec<Consumer>,
    /// Last change.
    pub updated_at: String,
}

/// A consumer with a lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Consumer {
    /// Kind of consumer.
    pub kind: ConsumerKind,
    /// Its name.
    pub name: String,
    /// Since when.
    pub since: String,
}

/// Where copies should be: exactly one of the three.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Targets {
    /// Ids or names of locations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
    /// Selector: comma-separated `field=pattern`, all must match. Fields: name, kind, platform, region, zone, rack,
    /// account, ip, serial, label.KEY; patterns may hold `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<String>,
    /// Every active location.
    #[serde(default, skip_serializing_if = "is_false")]
    pub all: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

/// How long copies are safe from eviction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// This many seconds after they are there (a job: after its end).
    Seconds(u64),
    /// Until they are unpinned.
    Pinned,
}

impl Default for Keep {
    /// 24 hours: a day's work of creating machines.
    fn default() -> Self {
        Self::Seconds(24 * 3600)
    }
}

/// A machine of an image is about to be created somewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// Id or name of the location.
    pub location: String,
}

/// How far the copy for a launch is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LaunchState {
    /// The image.
    pub image: ImageId,
    /// Its bytes.
    pub content: ContentId,
    /// Where.
    pub location: LocationId,
    /// Name of the location.
    pub location_name: String,
    /// `active`: the machine can be created.
    pub status: EntryStatus,
    /// Progress, 0 to 100; 100 only when `active`.
    pub percent: u8,
    /// Why it failed; empty otherwise.
    pub reason: String,
}

/// Makes entries by hand; exactly one of `image` and `host_image`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheCreate {
    /// Id of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageId>,
    /// Id of the host image: all its disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_image: Option<HostImageId>,
    /// Where.
    pub targets: Targets,
    /// How long they are kept.
    #[serde(default)]
    pub keep: Keep,
    /// Order of work; default `bulk`.
    #[serde(default)]
    pub priority: Option<Priority>,
}

/// Result for one location of a call over many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PerLocation {
    /// The location.
    pub location: LocationId,
    /// Its name.
    pub location_name: String,
    /// Whether the call did what it should here.
    pub ok: bool,
    /// What happened.
    pub message: String,
}

/// What is at a location: the same rows from the other side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LocationCache {
    /// The location.
    pub location: Location,
    /// Its entries.
    pub entries: Vec<CacheEntry>,
}
