//! What becomes of an agent's messages once its session is up.
//!
//! **What.** Inventories are collected until their last part came, then reported whole; changes, leases and pulses are
//! passed on; a renewal is answered.
//! **Why whole inventories.** An inventory replaces what was known: half of one would delete the other half.
//! **Invariants.** Locations other than the session's own are ignored. Texts are cut and stripped of control characters
//! before anybody stores or prints them. One agent's inventory is bounded by [`INVENTORY_ENTRIES_MAX`].

use std::collections::BTreeMap;
use std::sync::Arc;

use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::message::control::{
    BadChunkV1, KeyAnswer, KeyGivenV1, Lease, LeasesV1, ObservedEntry, ObservedState, ObservedV1,
    PART_ENTRIES_MAX, PlanAckV1, RenewedV1, TEXT_BYTES_MAX, ToAgent, ToController, WantResult, WantV1,
    WantedV1,
};

use super::Shared;
use super::heal::{self, HealWish};
use super::registry::Session;
use super::reports::Report;
use super::{keys, want};
use crate::clock;
use crate::logic::rate::RateLimit;

/// Most entries of one inventory: protects the controller's memory (about 200 B each).
pub(super) const INVENTORY_ENTRIES_MAX: usize = 100_000;
/// Shortest time between two renewals of one session: each costs a signature and a transaction.
const RENEW_MS_MIN: u64 = 30_000;
/// Wishes of one session at once: a host that starts a hundred machines asks for a few images.
const WANTS_BURST: u32 = 64;
/// Wishes of one session per second after that: each costs a transaction.
const WANTS_PER_S: u32 = 5;
/// Keys that one session asks for at once: one per file in its cache, ISO files too, when it begins.
const KEY_ASKS_BURST: u32 = 256;
/// Keys that one session asks for per second after that: each costs a look into the database, the first one a transaction.
const KEY_ASKS_PER_S: u32 = 16;

/// A message that breaks the session.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum InboxError {
    /// More entries than a part or an inventory may have.
    #[error(
        "an inventory passes the limit of {INVENTORY_ENTRIES_MAX} entries, or a part that of {PART_ENTRIES_MAX}"
    )]
    TooMany,
    /// A message that is not allowed now.
    #[error("a Hello or HelloAck came in a session that is up")]
    OutOfTurn,
}

/// What the session does next.
#[derive(Debug)]
pub(super) enum Next {
    /// Nothing.
    Nothing,
    /// Send this.
    Answer(Box<ToAgent>),
    /// The agent goes.
    Goodbye {
        /// Its reason.
        reason: String,
    },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Inbox {
    shared: Arc<Shared>,
    session: Arc<Session>,
    /// The inventory that is coming in.
    inventory: Option<BTreeMap<ContentId, ObservedEntry>>,
    renewed_ms: Option<u64>,
    wants: RateLimit<()>,
    key_asks: RateLimit<()>,
}

impl Inbox {
    pub(super) fn new(shared: Arc<Shared>, session: Arc<Session>) -> Self {
        let wants = RateLimit::new(WANTS_BURST, WANTS_PER_S);
        let key_asks = RateLimit::new(KEY_ASKS_BURST, KEY_ASKS_PER_S);
        Self { shared, session, inventory: None, renewed_ms: None, wants, key_asks }
    }

    /// Takes one message. Waits while the queue of reports is full: a flood slows its sender down, nobody else.
    pub(super) async fn take(&mut self, message: ToController) -> Result<Next, InboxError> {
        let now_us = clock::unix_us();
        self.session.heard(now_us);
        match message {
            ToController::Pulse(pulse) if pulse.location == self.session.location => {
                let degraded = clean(&pulse.degraded);
                self.session.pulse(hearth_protocol::message::control::PulseV1 { degraded, ..pulse }, now_us);
            }
            ToController::Observed(observed) if observed.location == self.session.location => {
                self.observed(observed).await?;
            }
            ToController::Leases(leases) if leases.location == self.session.location => {
                self.leases(leases).await?
            }
            ToController::PlanAck(ack) if ack.location == self.session.location => self.plan_ack(&ack),
            ToController::BadChunk(bad) => match bad.source {
                None => self.bad_chunk(&bad),
                Some(source) => {
                    tracing::warn!(reporter = %self.session.location, %source, content = %bad.content, chunk = bad.chunk, "an agent served a bad chunk");
                }
            },
            ToController::Want(want) if want.location == self.session.location => {
                return Ok(answer(ToAgent::Wanted(self.want(&want).await)));
            }
            ToController::KeyAsk(ask) if ask.location == self.session.location => {
                return Ok(answer(ToAgent::KeyGiven(self.key(ask.content).await)));
            }
            ToController::CampaignState(state) => self.shared.swarms.state(&self.session, state).await,
            ToController::PieceReport(report) => self.shared.swarms.report(&self.session, report).await,
            ToController::Renew(renew) => return Ok(self.renew(&renew.csr_der).await),
            ToController::Goodbye(goodbye) => return Ok(Next::Goodbye { reason: clean(&goodbye.reason) }),
            ToController::Hello(_) | ToController::HelloAck(_) => return Err(InboxError::OutOfTurn),
            ToController::Pulse(_)
            | ToController::Observed(_)
            | ToController::Leases(_)
            | ToController::PlanAck(_)
            | ToController::Want(_)
            | ToController::KeyAsk(_) => {
                tracing::debug!(location = %self.session.location, "a message about somebody else's location was ignored");
            }
        }
        Ok(Next::Nothing)
    }

    async fn observed(&mut self, observed: ObservedV1) -> Result<(), InboxError> {
        if observed.entries.len() > PART_ENTRIES_MAX {
            return Err(InboxError::TooMany);
        }
        let location = self.session.location;
        let entries = observed
            .entries
            .into_iter()
            .map(|entry| ObservedEntry { state: clean_state(entry.state), ..entry });
        let Some(last) = observed.inventory_last else {
            match &mut self.inventory {
                // A change that overtakes the inventory's last part is newer than the part that had the entry.
                Some(inventory) => gather(inventory, entries)?,
                None => self.shared.report(Report::Changes { location, entries: entries.collect() }).await,
            }
            return Ok(());
        };
        gather(self.inventory.get_or_insert_default(), entries)?;
        if last {
            let entries = self.inventory.take().unwrap_or_default().into_values().collect();
            self.shared.report(Report::Inventory { location, entries }).await;
        }
        Ok(())
    }

    async fn leases(&self, leases: LeasesV1) -> Result<(), InboxError> {
        if leases.leases.len() > PART_ENTRIES_MAX {
            return Err(InboxError::TooMany);
        }
        let cleaned = leases
            .leases
            .into_iter()
            .map(|lease| Lease { consumer: clean(&lease.consumer), ..lease })
            .collect();
        let report = Report::Leases { location: self.session.location, first: leases.first, leases: cleaned };
        self.shared.report(report).await;
        Ok(())
    }

    /// A chunk of ours is bad, says the agent. Whoever was not sent the content has nothing to say about it.
    fn bad_chunk(&self, bad: &BadChunkV1) {
        let location = self.session.location;
        if self.shared.plans.of(location).is_some_and(|plan| plan.places(bad.content)) {
            heal::reported(location, bad.content, bad.chunk);
            self.shared.heal(HealWish { content: bad.content, chunk: Some(bad.chunk) });
        }
    }

    fn plan_ack(&self, ack: &PlanAckV1) {
        let location = self.session.location;
        match ack.refused {
            None => {
                self.session.set_followed(ack.generation);
                // A job may wait for just this: that its copies are held.
                self.shared.wake();
            }
            Some(fault) => {
                // Expected after a nudge and after an older database was restored: the reconciler compares and raises.
                tracing::debug!(%location, generation = ack.generation.0, %fault, "a plan was not taken");
                self.shared.wake();
            }
        }
    }

    async fn want(&mut self, want: &WantV1) -> WantedV1 {
        let result = if self.wants.take((), self.shared.now_ms()) {
            want::place(&self.shared, &self.session, &clean(&want.image)).await
        } else {
            let text = "this host asks too often; try again in a moment".to_owned();
            WantResult::Refused { fault: FaultCode::Busy, text }
        };
        WantedV1 { number: want.number, result }
    }

    async fn key(&mut self, content: ContentId) -> KeyGivenV1 {
        let key = if self.key_asks.take((), self.shared.now_ms()) {
            keys::answer(&self.shared, &self.session, content).await
        } else {
            let text = "this host asks for keys too often; try again in a moment".to_owned();
            KeyAnswer::Refused { fault: FaultCode::Busy, text }
        };
        KeyGivenV1 { content, key }
    }

    async fn renew(&mut self, csr_der: &[u8]) -> Next {
        let now_ms = self.shared.now_ms();
        if self.renewed_ms.is_some_and(|last_ms| now_ms < last_ms + RENEW_MS_MIN) {
            tracing::warn!(location = %self.session.location, "an agent renews too often; ignored");
            return Next::Nothing;
        }
        self.renewed_ms = Some(now_ms);
        match super::enrol::renew_in_session(&self.shared, &self.session, csr_der).await {
            Ok(chain) => answer(ToAgent::Renewed(RenewedV1 { chain })),
            Err(error) => {
                tracing::warn!(location = %self.session.location, %error, "a renewal was refused");
                Next::Nothing
            }
        }
    }
}

fn answer(message: ToAgent) -> Next {
    Next::Answer(Box::new(message))
}

/// Puts a part into the inventory; a change that came in between counts like a part.
fn gather(
    inventory: &mut BTreeMap<ContentId, ObservedEntry>,
    entries: impl Iterator<Item = ObservedEntry>,
) -> Result<(), InboxError> {
    inventory.extend(entries.map(|entry| (entry.content, entry)));
    if inventory.len() > INVENTORY_ENTRIES_MAX { Err(InboxError::TooMany) } else { Ok(()) }
}

fn clean_state(state: ObservedState) -> ObservedState {
    match state {
        ObservedState::Failed { fault, text, next_try_unix_ms } => {
            ObservedState::Failed { fault, text: clean(&text), next_try_unix_ms }
        }
        other => other,
    }
}

/// The text without control characters and not longer than a text on the wire may be.
fn clean(text: &str) -> String {
    let mut out: String = text.chars().filter(|c| !c.is_control()).take(TEXT_BYTES_MAX).collect();
    while out.len() > TEXT_BYTES_MAX {
        out.pop();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_and_printable() {
        assert_eq!(clean("a\u{1b}[31mb\n"), "a[31mb");
        assert_eq!(clean(&"é".repeat(600)).len(), 512);
    }
}
