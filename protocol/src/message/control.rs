//! Control session between agent and controller.
//!
//! **What.** Order: agent `HelloV1`; controller `WelcomeV1` or `RefusedV1`; agent `HelloAckV1`, then its whole
//! inventory per location (`ObservedV1` parts, the last marked), then changes as they happen; controller `PlanV1` at
//! once and after each change. Both sides may send any message at any time after that.
//! **Why whole plans.** The session is level-triggered: a plan says all that should be, an inventory all that is. A lost
//! or doubled message does no harm, and nothing is ever "sent once".
//! **Invariants.** A plan that is not newer than the one followed is refused (`StalePlan`). A receiver ignores entries of
//! locations that the certificate does not name.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use super::swarm::{CampaignStateV1, DenyV1, EndCampaignV1, JoinCampaignV1, PieceLeasesV1, PieceReportV1};
use crate::digest::ContentId;
use crate::fault::FaultCode;
use crate::frame::messages;
use crate::id::{BootId, Generation, ImageId, LeaseId, LocationId};
use crate::passphrase::Passphrase;
use crate::words::{ConsumerKind, ContentKind, EntryStatus, GoneReason, Priority};

/// Entries in one `PlanV1` or `ObservedV1` part; keeps a part below the frame limit even with the longest names.
pub const PART_ENTRIES_MAX: usize = 256;
/// Longest name, text or reason on the wire, in bytes; senders cut, receivers refuse.
pub const TEXT_BYTES_MAX: usize = 512;
/// Largest difference between the clocks of agent and controller. Holds and certificates are compared across hosts.
pub const CLOCK_SKEW_MS_MAX: u64 = 5 * 60 * 1000;

messages! {
    /// What an agent says.
    ToController {
        /// First message.
        Hello(HelloV1) = 0x0101,
        /// The Welcome arrived; only now does the session count as up.
        HelloAck(HelloAckV1) = 0x0102,
        /// Part of an inventory or a change.
        Observed(ObservedV1) = 0x0103,
        /// Sign of life with the cache's figures; every `heartbeat_ms` with jitter.
        Pulse(PulseV1) = 0x0104,
        /// A plan was taken or refused.
        PlanAck(PlanAckV1) = 0x0105,
        /// All leases of a location, or a part of them.
        Leases(LeasesV1) = 0x0106,
        /// A source sent a chunk that fails its hash.
        BadChunk(BadChunkV1) = 0x0107,
        /// Asks for a new certificate for the same key.
        Renew(RenewV1) = 0x0108,
        /// The agent goes on purpose.
        Goodbye(GoodbyeV1) = 0x0109,
        /// A consumer on this host wants an image that is not placed here; from version 2.
        Want(WantV1) = 0x010A,
        /// Asks for the passphrase of a content that is here; from version 3.
        KeyAsk(KeyAskV1) = 0x010B,
        /// What a host has when it becomes part of a campaign; from version 4.
        CampaignState(CampaignStateV1) = 0x010C,
        /// News of pieces; from version 4.
        PieceReport(PieceReportV1) = 0x010D,
    }
}

messages! {
    /// What a controller says.
    ToAgent {
        /// The session is accepted.
        Welcome(WelcomeV1) = 0x0201,
        /// The session is not accepted; the connection closes.
        Refused(RefusedV1) = 0x0202,
        /// What should be at a location.
        Plan(PlanV1) = 0x0203,
        /// The new certificate.
        Renewed(RenewedV1) = 0x0204,
        /// Hash a copy from disk again.
        Verify(VerifyV1) = 0x0205,
        /// Answer to a `Want`; from version 2.
        Wanted(WantedV1) = 0x0206,
        /// Answer to a `KeyAsk`; from version 3.
        KeyGiven(KeyGivenV1) = 0x0207,
        /// The host becomes part of a campaign; from version 4.
        JoinCampaign(JoinCampaignV1) = 0x0208,
        /// Pieces to fetch; from version 4.
        PieceLeases(PieceLeasesV1) = 0x0209,
        /// A campaign is over; from version 4.
        EndCampaign(EndCampaignV1) = 0x020A,
        /// Agents that are served nothing; from version 4.
        Deny(DenyV1) = 0x020B,
    }
}

/// First message of a session. Frozen for good: it does the negotiating.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct HelloV1 {
    /// Oldest protocol version the agent speaks.
    pub version_min: u16,
    /// Newest protocol version the agent speaks.
    pub version_max: u16,
    /// Program version, for people.
    pub build: String,
    /// One start of the process.
    pub boot: BootId,
    /// The agent's clock, milliseconds since the epoch.
    pub sent_unix_ms: u64,
    /// What the agent serves; a host has one, a region agent may have several.
    pub locations: Vec<HelloLocation>,
}

/// A location as its agent describes it.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct HelloLocation {
    /// Id given at enrolment.
    pub location: LocationId,
    /// Addresses under which other agents reach it, `ip:port`.
    pub advertised: Vec<String>,
    /// Speed of the network interface, Mbit/s.
    pub nic_mbps: u32,
    /// Generation of the plan that the agent follows now; 0 if none.
    pub generation: Generation,
}

/// Acknowledges a Welcome.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct HelloAckV1 {
    /// Session number of the Welcome.
    pub session: u64,
}

/// Entries as they are on disk.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct ObservedV1 {
    /// Where.
    pub location: LocationId,
    /// `Some` for a part of a whole inventory (`true` on its last part), `None` for a change.
    pub inventory_last: Option<bool>,
    /// At most [`PART_ENTRIES_MAX`].
    pub entries: Vec<ObservedEntry>,
}

/// One content in a cache.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct ObservedEntry {
    /// The content.
    pub content: ContentId,
    /// State on disk, or why it is gone.
    pub state: ObservedState,
    /// Raw bytes of chunks that are there and verified.
    pub done_bytes: u64,
    /// Raw bytes of all chunks.
    pub data_bytes: u64,
    /// Stored bytes that came over the network for this entry since it was begun.
    pub moved_bytes: u64,
    /// Raw bytes taken from other contents of the same cache.
    pub reused_bytes: u64,
    /// Bytes allocated on disk.
    pub allocated_bytes: u64,
    /// Live leases.
    pub leases: u32,
    /// Last use by a consumer, milliseconds since the epoch; 0 if never.
    pub last_used_unix_ms: u64,
}

/// State of one content in a cache.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum ObservedState {
    /// There, in this state.
    Present(EntryStatus),
    /// The last try failed.
    Failed {
        /// Why.
        fault: FaultCode,
        /// For people.
        text: String,
        /// When it is tried again, milliseconds since the epoch.
        next_try_unix_ms: u64,
    },
    /// No longer there.
    Gone(GoneReason),
}

/// Sign of life.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct PulseV1 {
    /// Where.
    pub location: LocationId,
    /// The agent's clock, milliseconds since the epoch.
    pub unix_ms: u64,
    /// Generation of the plan that is followed.
    pub generation: Generation,
    /// Bytes the cache may allocate.
    pub budget_bytes: u64,
    /// Bytes the cache has allocated or reserved.
    pub used_bytes: u64,
    /// Free bytes of the file system.
    pub free_bytes: u64,
    /// Free bytes that must stay.
    pub floor_bytes: u64,
    /// Not empty: the cache is read-only for this reason.
    pub degraded: String,
}

/// Whether a plan is followed.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct PlanAckV1 {
    /// Where.
    pub location: LocationId,
    /// Generation of the plan that is answered.
    pub generation: Generation,
    /// `None` if it is followed, else why not.
    pub refused: Option<FaultCode>,
}

/// Leases of a location. Always the whole set, in parts.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct LeasesV1 {
    /// Where.
    pub location: LocationId,
    /// Whether this is the first part; it replaces what was said before.
    pub first: bool,
    /// At most [`PART_ENTRIES_MAX`].
    pub leases: Vec<Lease>,
}

/// One use of an entry.
#[derive(Clone, Debug, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub struct Lease {
    /// Its id.
    pub lease: LeaseId,
    /// What is used.
    pub content: ContentId,
    /// Kind of consumer.
    pub kind: ConsumerKind,
    /// Name of the consumer, for example the VM's name or id.
    pub consumer: String,
    /// Since when, milliseconds since the epoch.
    pub since_unix_ms: u64,
}

/// A chunk failed its hash.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct BadChunkV1 {
    /// Of which content.
    pub content: ContentId,
    /// Which chunk.
    pub chunk: u32,
    /// The agent it came from, or `None` for the controller.
    pub source: Option<LocationId>,
}

/// Asks for a certificate.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct RenewV1 {
    /// PKCS #10 request (DER) signed with the enrolled key.
    pub csr_der: Vec<u8>,
}

/// The agent goes on purpose: its entries are not stale before the usual time.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct GoodbyeV1 {
    /// For people.
    pub reason: String,
}

/// The session is accepted.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct WelcomeV1 {
    /// Version that both speak.
    pub version: u16,
    /// Number of this session.
    pub session: u64,
    /// The controller's clock, milliseconds since the epoch.
    pub now_unix_ms: u64,
    /// Time between two pulses, before jitter of ±20 %.
    pub heartbeat_ms: u32,
    /// Program version, for people.
    pub build: String,
}

/// The session is not accepted. Frozen for good.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct RefusedV1 {
    /// Why.
    pub fault: FaultCode,
    /// For people.
    pub text: String,
}

/// Part of the plan for one location. The plan takes effect when all its parts have come.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct PlanV1 {
    /// Where.
    pub location: LocationId,
    /// Higher than that of every earlier plan for this location.
    pub generation: Generation,
    /// Number of this part, from 0.
    pub part: u16,
    /// Number of parts.
    pub parts: u16,
    /// An operator stopped all transfers.
    pub stopped: bool,
    /// At most [`PART_ENTRIES_MAX`]. A content without an entry is not wanted by anybody; it stays as unheld cache.
    pub entries: Vec<PlanEntry>,
}

/// One wish.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct PlanEntry {
    /// What.
    pub content: ContentId,
    /// Kind of content: decides the name of the file.
    pub kind: ContentKind,
    /// Size as a guest sees it, bytes.
    pub raw_bytes: u64,
    /// Bytes of all chunks: what must be allocated at most.
    pub data_bytes: u64,
    /// Images with these bytes.
    pub images: Vec<ImageName>,
    /// Keep or remove.
    pub wish: Wish,
    /// Order of work.
    pub priority: Priority,
    /// When it should be done, milliseconds since the epoch.
    pub deadline_unix_ms: Option<u64>,
    /// How long it must not be evicted.
    pub hold: Hold,
    /// Whether the transfer may begin now; the controller admits as many as its source can feed.
    pub admitted: bool,
    /// Cap on this transfer, bytes per second.
    pub rate_bytes_per_s: Option<u64>,
}

/// An image whose bytes are a content.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct ImageName {
    /// Its id.
    pub image: ImageId,
    /// Its name, cut to [`TEXT_BYTES_MAX`].
    pub name: String,
}

/// What should become of a copy.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Encode, Decode)]
pub enum Wish {
    /// It should be there.
    Keep,
    /// It should go as soon as nobody uses it.
    Remove,
}

/// How long an entry is safe from eviction.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Encode, Decode, Serialize, Deserialize)]
pub enum Hold {
    /// It is not: the entry may be evicted.
    Released,
    /// Until this time, milliseconds since the epoch.
    Until(u64),
    /// Until it is unpinned.
    Pinned,
}

/// The new certificate.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct RenewedV1 {
    /// DER certificates, leaf first, CA last.
    pub chain: Vec<Vec<u8>>,
}

/// Asks for a fresh hash of a copy.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct VerifyV1 {
    /// Where.
    pub location: LocationId,
    /// What.
    pub content: ContentId,
}

/// A consumer on the agent's host wants an image that is not placed there.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct WantV1 {
    /// Where.
    pub location: LocationId,
    /// The agent's number for this question; comes back with the answer.
    pub number: u64,
    /// Id or name of the image, at most [`TEXT_BYTES_MAX`].
    pub image: String,
}

/// Answer to a [`WantV1`].
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct WantedV1 {
    /// The number of the question.
    pub number: u64,
    /// What came of it.
    pub result: WantResult,
}

/// What came of a wish.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum WantResult {
    /// It is placed: a plan with it follows, if it did not come before.
    Placed {
        /// Its bytes.
        content: ContentId,
    },
    /// It is not.
    Refused {
        /// Why.
        fault: FaultCode,
        /// For people.
        text: String,
    },
}

/// An agent has a file that may be an encrypted image, and asks what opens it. Asked anew in each session, so that a right
/// that was taken away ends with the session.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct KeyAskV1 {
    /// Where.
    pub location: LocationId,
    /// What.
    pub content: ContentId,
}

/// Answer to a [`KeyAskV1`].
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct KeyGivenV1 {
    /// What.
    pub content: ContentId,
    /// What opens it.
    pub key: KeyAnswer,
}

/// What opens a content.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum KeyAnswer {
    /// This. Kept in memory only.
    Given(Passphrase),
    /// Nothing: no image with these bytes is encrypted, or none is left.
    Plain,
    /// Not said to this agent, or not now.
    Refused {
        /// Why.
        fault: FaultCode,
        /// For people.
        text: String,
    },
}
