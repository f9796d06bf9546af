//! What can go wrong in the store, and what the caller does about it.
//!
//! **What.** [`StoreError`] for everything, [`BeginError`] for the start of a transfer, [`InUse`] for removals.
//! **Why fields.** The controller decides on fault codes, people read the text; both come from the same value.
//! **Invariants.** Every I/O error names what was tried and where.

use std::io;
use std::path::{Path, PathBuf};

use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::manifest::ManifestError;
use hearth_protocol::message::control::Lease;

use super::config::Holder;
use crate::logic::entry::StepError;

/// What the store could not do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried, for example `sync`.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The folder's lock is taken.
    #[error(
        "another agent uses the cache folder {dir}: give each agent a folder of its own, or stop the other one"
    )]
    FolderInUse {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder was written by a version that this one does not know.
    #[error(
        "the cache folder {dir} has format {found:?}, this agent knows {known:?}: upgrade the agent or use another folder"
    )]
    Format {
        /// The folder.
        dir: PathBuf,
        /// What stands in `FORMAT`.
        found: String,
        /// What should stand there.
        known: &'static str,
    },
    /// The group of the configuration does not exist.
    #[error("there is no group {group:?} on this host: create it or set another one as `group`")]
    NoGroup {
        /// The name.
        group: String,
    },
    /// The content is not in the cache.
    #[error("content {content} is not in this cache")]
    NotFound {
        /// The content.
        content: ContentId,
    },
    /// The content is there, but its state does not allow what was asked.
    #[error("content {content} is {state}, not {wanted}")]
    State {
        /// The content.
        content: ContentId,
        /// Its state.
        state: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// A step out of order; a defect of the caller.
    #[error(transparent)]
    Step(#[from] StepError),
    /// Bytes that should be a manifest are not.
    #[error("the manifest of content {content} is not usable")]
    Manifest {
        /// The content.
        content: ContentId,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The manifest's sizes or kind are not those that the plan announced.
    #[error("the manifest of content {content} has other sizes or another kind than announced")]
    Announced {
        /// The content.
        content: ContentId,
    },
    /// The root, or a page of the manifest, was not given yet.
    #[error("the manifest of content {content} is not complete")]
    NoManifest {
        /// The content.
        content: ContentId,
    },
    /// Chunks are missing.
    #[error("content {content} still lacks {missing} chunks")]
    Incomplete {
        /// The content.
        content: ContentId,
        /// How many.
        missing: u32,
    },
    /// Bytes on disk fail their hash.
    #[error("{chunks} chunks of content {content} on disk fail their hash, the first is chunk {first}")]
    Damaged {
        /// The content.
        content: ContentId,
        /// How many chunks.
        chunks: u32,
        /// The first of them.
        first: u32,
    },
    /// A write lies outside the content, or came after the content was sealed. A defect of the caller.
    #[error("write of {bytes} B at {offset} is outside content {content} or comes too late")]
    Write {
        /// The content.
        content: ContentId,
        /// Where.
        offset: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// The transfer failed before and its file was thrown away.
    #[error("the transfer of content {content} has failed and was thrown away: begin it again")]
    ThrownAway {
        /// The content.
        content: ContentId,
        /// Why, so that whoever hears of it second says the same.
        fault: FaultCode,
    },
    /// The entry is used by somebody.
    #[error("content {content} is in use: {by}")]
    InUse {
        /// The content.
        content: ContentId,
        /// By whom.
        by: InUse,
    },
    /// There is no such lease.
    #[error("there is no such lease here")]
    NoLease,
    /// A name is too long or has control characters.
    #[error("the consumer's name has {length} B: allowed are 1 to {max} B without control characters")]
    ConsumerName {
        /// Length that was given.
        length: usize,
        /// Longest allowed.
        max: usize,
    },
    /// The index cannot be written, not even after it was built anew.
    #[error("the index in {path} cannot be written: {text}")]
    Index {
        /// Folder of the index.
        path: PathBuf,
        /// What the index said.
        text: String,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

/// Who uses an entry.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InUse {
    /// Leases.
    #[error("{}", lease_names(.0))]
    Leased(Vec<LeaseHolder>),
    /// An intent or an operator holds it.
    #[error("{0}")]
    Held(crate::logic::evict::HeldBy),
    /// The agent reads it for a transfer or a check.
    #[error("the agent itself is reading it")]
    Agent,
    /// It has further names.
    #[error("{0} further hard links point to it")]
    HardLinks(u64),
    /// A process has it open, but no lease says which.
    #[error("open by a process without a lease")]
    Open,
}

/// A lease that keeps an entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LeaseHolder {
    /// Kind and name as people say them, for example `vm web-1`.
    pub name: String,
}

impl From<&Lease> for LeaseHolder {
    fn from(lease: &Lease) -> Self {
        Self { name: format!("{} {}", lease.kind, lease.consumer) }
    }
}

/// Names spelled out in an error; the rest is counted. Keeps the text readable on a host with a hundred VMs.
const NAMES_MAX: usize = 5;

fn lease_names(holders: &[LeaseHolder]) -> String {
    let names: Vec<&str> = holders.iter().take(NAMES_MAX).map(|holder| holder.name.as_str()).collect();
    let more = holders.len().saturating_sub(NAMES_MAX);
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("leased by {}{tail}", names.join(", "))
}

impl StoreError {
    /// Makes a closure that wraps an I/O error with what was tried and where.
    pub(crate) fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }

    /// The wire's word for it.
    #[must_use]
    pub fn fault(&self) -> FaultCode {
        match self {
            Self::Io { source, .. } if is_full(source) => FaultCode::NoSpace,
            Self::Io { .. } | Self::Index { .. } => FaultCode::Disk,
            Self::ThrownAway { fault, .. } => *fault,
            Self::NotFound { .. } | Self::NoLease | Self::NoManifest { .. } => FaultCode::NotFound,
            Self::Damaged { .. } => FaultCode::Damaged,
            Self::Manifest { .. } | Self::Announced { .. } => FaultCode::BadBytes,
            Self::InUse { .. } => FaultCode::InUse,
            Self::State { .. } => FaultCode::Busy,
            Self::Stopped => FaultCode::Stopped,
            _ => FaultCode::Internal,
        }
    }

    /// The whole chain of causes in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// Whether the error means "no space", by the disk or by a quota.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// An error and its causes in one line, for logs and for people.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Why a transfer cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// Budget or floor do not allow it, even after everything that may go has gone.
    #[error("{needed} B are needed, {free} B are free or can be freed; {}", held(.held_by))]
    NoSpace {
        /// Bytes the transfer must reserve.
        needed: u64,
        /// Bytes that it could have.
        free: u64,
        /// What keeps the rest, largest first.
        held_by: Vec<Holder>,
    },
    /// It is already in the cache.
    #[error("content {content} is already in the cache")]
    Present {
        /// The content.
        content: ContentId,
    },
    /// Another transfer of the same content is running.
    #[error("content {content} is already being fetched")]
    Running {
        /// The content.
        content: ContentId,
    },
    /// The disk failed several times; the cache takes nothing new until a write succeeds again.
    #[error("the cache is read-only: {reason}")]
    Degraded {
        /// What failed.
        reason: String,
    },
    /// The announced sizes are impossible.
    #[error("a content of {raw_bytes} B with {data_bytes} B of data is outside the limits")]
    Sizes {
        /// Virtual size.
        raw_bytes: u64,
        /// Bytes of chunks.
        data_bytes: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BeginError {
    /// The wire's word for it.
    #[must_use]
    pub fn fault(&self) -> FaultCode {
        match self {
            Self::NoSpace { .. } => FaultCode::NoSpace,
            Self::Present { .. } | Self::Running { .. } => FaultCode::Busy,
            Self::Degraded { .. } => FaultCode::Disk,
            Self::Sizes { .. } => FaultCode::BadBytes,
            Self::Store(error) => error.fault(),
        }
    }
}

/// What holds the rest, in words; the controller cuts a report's text, so the largest come first and few are named.
fn held(holders: &[Holder]) -> String {
    /// Digits of a content id, as `status` prints them.
    const DIGITS: usize = 16;
    const NAMED_MAX: usize = 4;
    let name = |holder: &Holder| {
        let content: String = holder.content.to_string().chars().take(DIGITS).collect();
        format!("{content} has {} B ({})", holder.allocated_bytes, holder.held_by)
    };
    let mut text = holders.iter().take(NAMED_MAX).map(name).collect::<Vec<_>>().join(", ");
    match holders.len() {
        0 => text.push_str("nothing in the cache could go"),
        n if n > NAMED_MAX => text.push_str(&format!(" and {} more", n - NAMED_MAX)),
        _ => {}
    }
    text
}
