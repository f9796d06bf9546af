//! Tells the rest of the process that something changed.
//!
//! **What.** One [`Change`] per changed record or list, sent after the commit, for the reconciler's wake-up and for events.
//! **Why so coarse.** A change says what to read again, never what is new: a lost or doubled one does no harm, because
//! every reader is level-triggered and has a timer besides.
//! **Invariants.** A change is sent only after its transaction committed, so a reader that wakes finds it. A reader that
//! is more than [`BEHIND_MAX`] changes behind is told so (`Lagged`) and reads everything again.

use hearth_protocol::id::{HostImageId, ImageId, LocationId, PrewarmId};

/// Changes a slow reader may be behind before it loses some: bounds the memory of the queue.
pub const BEHIND_MAX: usize = 4096;

/// What to read again.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Change {
    /// An image's record.
    Image(ImageId),
    /// A host image's record.
    HostImage(HostImageId),
    /// A location's record.
    Location(LocationId),
    /// What is wanted somewhere.
    Intents,
    /// What is observed at a location, or its leases.
    Entries(LocationId),
    /// A prewarm job or its targets.
    Prewarm(PrewarmId),
    /// The queue of import jobs.
    Jobs,
    /// The operation log has rows that are not sealed.
    Operations,
    /// A setting of the whole system.
    Settings,
}
