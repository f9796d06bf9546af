//! States of one cache entry and the steps between them.
//!
//! **What.** [`Phase`] is what the agent knows about one content; [`Phase::next`] says which step leads where.
//!
//! ```text
//!            begin            finish           published
//!   Queued ─────────▶ Caching ───────▶ Sealing ─────────▶ Active ◀──────────┐
//!     ▲  ▲              │ stop/fail      │ fail            │ ▲ verified     │ refused
//!     │  └──────────────┘◀───────────────┘         recheck │ │              │
//!     │                                     found ─▶ Unverified             │
//!     │  damaged (held)                                │ remove      Deleting ─▶ (row gone)
//!     └────────────────────────────────────────────────┴───────────────▶ │
//! ```
//! **Why a table.** Only `Published` and `Verified` lead to `Active`, and both are sent by code that has hashed every chunk
//! from disk: no other path can show an entry as active.
//!
//! **Invariants**, each tested: `only_a_hash_from_disk_makes_an_entry_active`, `a_removal_starts_only_from_a_settled_phase`.

use hearth_protocol::fault::FaultCode;
use hearth_protocol::message::control::ObservedState;
use hearth_protocol::words::EntryStatus;

/// What the agent knows about one content.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Phase {
    /// Wanted or left over, nothing is moving; part of the bytes may be in `staging/`.
    Queued,
    /// A transfer is writing.
    Caching,
    /// All bytes are written and are being hashed from disk.
    Sealing,
    /// Hashed from disk, durable, indexed.
    Active,
    /// In `objects/`, but since the last crash or doubt not yet hashed.
    Unverified,
    /// The last try failed.
    Failed {
        /// Why.
        fault: FaultCode,
        /// For people.
        text: String,
        /// When it is tried again, milliseconds since the epoch.
        next_try_unix_ms: u64,
    },
    /// In `objects/` with bytes that fail their hash, and still leased or open: not handed out, not moved.
    Damaged {
        /// For people.
        text: String,
    },
    /// Being removed.
    Deleting,
    /// A removal was asked for and did not go through.
    DeleteFailed {
        /// For people; names the holder where it is known.
        text: String,
    },
}

/// What happens to an entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// A transfer begins.
    Begin,
    /// The transfer stops without an error; what it wrote stays for the next one.
    Stop,
    /// The transfer failed.
    Fail {
        /// Why.
        fault: FaultCode,
        /// For people.
        text: String,
        /// When it is tried again, milliseconds since the epoch.
        next_try_unix_ms: u64,
    },
    /// All chunks are written; the hash from disk begins.
    Seal,
    /// Some chunks failed the hash from disk and are fetched again.
    Reopen,
    /// Every chunk was hashed from disk, the file is in `objects/` and indexed.
    Published,
    /// Doubt about an object: hash it before it is handed out again.
    Recheck,
    /// Every chunk of the object was hashed from disk again.
    Verified,
    /// The object failed a hash and cannot be moved away yet.
    Damage {
        /// For people.
        text: String,
    },
    /// A removal begins.
    Remove,
    /// The removal was refused or failed; `was_active` says what it was before.
    RemoveRefused {
        /// For people; empty if the removal was the agent's own idea.
        text: String,
        /// Whether the entry was active before the removal.
        was_active: bool,
    },
}

/// A step that the phase does not allow.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an entry that is {from} does not take the step {step}")]
pub struct StepError {
    /// Name of the phase.
    pub from: &'static str,
    /// Name of the step.
    pub step: &'static str,
}

impl Phase {
    /// The phase after `step`.
    ///
    /// # Errors
    /// [`StepError`] if the phase does not allow the step.
    pub fn next(&self, step: Step) -> Result<Self, StepError> {
        let error = StepError { from: self.name(), step: step.name() };
        let next = match (self, step) {
            (Self::Queued | Self::Failed { .. }, Step::Begin) | (Self::Sealing, Step::Reopen) => {
                Self::Caching
            }
            (Self::Caching | Self::Sealing | Self::Queued | Self::Failed { .. }, Step::Stop) => Self::Queued,
            (
                Self::Caching | Self::Sealing | Self::Queued | Self::Failed { .. },
                Step::Fail { fault, text, next_try_unix_ms },
            ) => Self::Failed { fault, text, next_try_unix_ms },
            (Self::Caching, Step::Seal) => Self::Sealing,
            (Self::Sealing, Step::Published)
            | (Self::Unverified | Self::Active | Self::Damaged { .. }, Step::Verified) => Self::Active,
            (Self::Active | Self::Unverified | Self::DeleteFailed { .. }, Step::Recheck) => Self::Unverified,
            (
                Self::Active | Self::Unverified | Self::Damaged { .. } | Self::DeleteFailed { .. },
                Step::Damage { text },
            ) => Self::Damaged { text },
            (
                Self::Active
                | Self::Unverified
                | Self::Damaged { .. }
                | Self::DeleteFailed { .. }
                | Self::Queued
                | Self::Failed { .. },
                Step::Remove,
            ) => Self::Deleting,
            (Self::Deleting, Step::RemoveRefused { text, was_active }) => match (was_active, text.is_empty())
            {
                (true, true) => Self::Active,
                (false, true) => Self::Unverified,
                (_, false) => Self::DeleteFailed { text },
            },
            _ => return Err(error),
        };
        Ok(next)
    }

    /// Whether consumers may be given the path.
    #[must_use]
    pub const fn is_active(&self) -> bool {
        matches!(self, Self::Active)
    }

    /// Whether the bytes stand in `objects/`.
    #[must_use]
    pub const fn has_object(&self) -> bool {
        matches!(
            self,
            Self::Active
                | Self::Unverified
                | Self::Damaged { .. }
                | Self::Deleting
                | Self::DeleteFailed { .. }
        )
    }

    /// What is reported to the controller and shown on the local socket.
    #[must_use]
    pub fn observed(&self) -> ObservedState {
        let present = ObservedState::Present;
        match self {
            Self::Queued => present(EntryStatus::Queued),
            Self::Caching => present(EntryStatus::Caching),
            Self::Sealing | Self::Unverified => present(EntryStatus::Verifying),
            Self::Active => present(EntryStatus::Active),
            Self::Deleting => present(EntryStatus::Deleting),
            Self::DeleteFailed { .. } => present(EntryStatus::DeleteFailed),
            Self::Failed { fault, text, next_try_unix_ms } => ObservedState::Failed {
                fault: *fault,
                text: text.clone(),
                next_try_unix_ms: *next_try_unix_ms,
            },
            Self::Damaged { text } => {
                ObservedState::Failed { fault: FaultCode::Damaged, text: text.clone(), next_try_unix_ms: 0 }
            }
        }
    }

    /// Name for messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Caching => "caching",
            Self::Sealing | Self::Unverified => "verifying",
            Self::Active => "active",
            Self::Failed { .. } => "cache_fail",
            Self::Damaged { .. } => "damaged",
            Self::Deleting => "deleting",
            Self::DeleteFailed { .. } => "delete_failed",
        }
    }
}

impl Step {
    const fn name(&self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Stop => "stop",
            Self::Fail { .. } => "fail",
            Self::Seal => "seal",
            Self::Reopen => "reopen",
            Self::Published => "published",
            Self::Recheck => "recheck",
            Self::Verified => "verified",
            Self::Damage { .. } => "damage",
            Self::Remove => "remove",
            Self::RemoveRefused { .. } => "remove refused",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases() -> Vec<Phase> {
        let text = || "why".to_owned();
        vec![
            Phase::Queued,
            Phase::Caching,
            Phase::Sealing,
            Phase::Active,
            Phase::Unverified,
            Phase::Failed { fault: FaultCode::Disk, text: text(), next_try_unix_ms: 1 },
            Phase::Damaged { text: text() },
            Phase::Deleting,
            Phase::DeleteFailed { text: text() },
        ]
    }

    fn steps() -> Vec<Step> {
        let text = || "why".to_owned();
        vec![
            Step::Begin,
            Step::Stop,
            Step::Fail { fault: FaultCode::Disk, text: text(), next_try_unix_ms: 1 },
            Step::Seal,
            Step::Reopen,
            Step::Published,
            Step::Recheck,
            Step::Verified,
            Step::Damage { text: text() },
            Step::Remove,
            Step::RemoveRefused { text: text(), was_active: true },
            Step::RemoveRefused { text: text(), was_active: false },
        ]
    }

    #[test]
    fn only_a_hash_from_disk_makes_an_entry_active() {
        for phase in phases() {
            for step in steps() {
                let hashed = matches!(step, Step::Published | Step::Verified);
                if phase.next(step.clone()) == Ok(Phase::Active) {
                    assert!(hashed, "{phase:?} {step:?}");
                }
            }
        }
        // What was active before a removal that was refused silently is active again; nothing else is.
        let refused = |was_active| Step::RemoveRefused { text: String::new(), was_active };
        assert_eq!(Phase::Deleting.next(refused(true)), Ok(Phase::Active));
        assert_eq!(Phase::Deleting.next(refused(false)), Ok(Phase::Unverified));
        assert!(Phase::Caching.next(Step::Published).is_err());
        assert!(Phase::Queued.next(Step::Verified).is_err());
    }

    #[test]
    fn a_removal_starts_only_from_a_settled_phase() {
        for phase in phases() {
            let moving = matches!(phase, Phase::Caching | Phase::Sealing | Phase::Deleting);
            assert_eq!(phase.next(Step::Remove).is_err(), moving, "{phase:?}");
        }
    }

    #[test]
    fn damaged_entries_are_reported_with_their_reason() {
        let observed = Phase::Damaged { text: "chunk 7".to_owned() }.observed();
        let expected = ObservedState::Failed {
            fault: FaultCode::Damaged,
            text: "chunk 7".to_owned(),
            next_try_unix_ms: 0,
        };
        assert_eq!(observed, expected);
    }
}
