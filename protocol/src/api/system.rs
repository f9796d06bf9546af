//! `/api/v1/system` and `/api/v1/events`: the controller itself.

use serde::{Deserialize, Serialize};

use crate::digest::CaFingerprint;
use crate::id::{HostImageId, ImageId, LocationId, PrewarmId};

/// Facts of the controller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SystemInfo {
    /// Program version.
    pub build: String,
    /// Newest wire version.
    pub protocol: u16,
    /// What agents and clients pin.
    pub ca_fingerprint: CaFingerprint,
    /// The controller's clock.
    pub now: String,
    /// Agents with a session.
    pub agents_online: u32,
    /// Locations that are not removed.
    pub locations: u32,
    /// Images that are active.
    pub images_active: u32,
    /// Prewarm jobs that run.
    pub prewarms_running: u32,
    /// Stored bytes of all contents and originals.
    pub stored_bytes: u64,
    /// Free bytes where they are stored.
    pub free_bytes: u64,
    /// Whether transfers are stopped.
    pub transfers_stopped: bool,
}

/// An event on `/api/v1/events`; says what to read again, not what changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// An image changed.
    Image {
        /// Which.
        id: ImageId,
    },
    /// A host image changed.
    HostImage {
        /// Which.
        id: HostImageId,
    },
    /// A location changed.
    Location {
        /// Which.
        id: LocationId,
    },
    /// Entries at a location changed.
    Entries {
        /// Which location.
        location: LocationId,
    },
    /// A prewarm job changed.
    Prewarm {
        /// Which.
        id: PrewarmId,
    },
    /// The reader was too slow and missed events: read everything again.
    Lost,
}
