//! What is said while a session is up.
//!
//! **What.** Sends inventory, changes, leases, pulses and renewals; takes plans, renewals and wishes to verify.
//! **Why batches.** A fetch changes its entry many times a second; the controller writes every report to its database.
//!
//! **Invariants.** At most one batch of changes per [`BATCH`]; a write that takes longer than [`WRITE_TIMEOUT`] ends the
//! session instead of stopping the loop. A plan is acknowledged only when its holds are durable and all that left the cache
//! before them has been said.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::LocationId;
use hearth_protocol::message::control::{
    BadChunkV1, GoodbyeV1, KeyAskV1, Lease, LeasesV1, ObservedEntry, ObservedV1, PART_ENTRIES_MAX, PlanAckV1,
    PlanV1, PulseV1, RenewV1, TEXT_BYTES_MAX, ToAgent, ToController,
};
use hearth_protocol::message::control::{ObservedState, RenewedV1};
use hearth_protocol::words::{ContentKind, GoneReason};
use quinn::SendStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ask::{Ask, Questions};
use super::credentials::Credentials;
use super::holds;
use super::keys::{Asking, KeyRing};
use super::plan::{PlanBook, Taken};
use super::session::{Home, SessionError};
use crate::logic::backoff::around;
use crate::logic::report::Reported;
use crate::store::{EntryView, Store};
use crate::swarm::Swarm;
use crate::transfer::frames::{self, WireError};
use crate::{clock, metrics as names};

/// Least time between two batches of changes.
const BATCH: Duration = Duration::from_millis(500);
/// Jitter of the pulse, per cent.
const PULSE_JITTER_PERCENT: u32 = 20;
/// Time for one message to leave.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for the Goodbye to arrive.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// Time to the next try when a renewal was not answered.
const RENEW_AGAIN: Duration = Duration::from_secs(10 * 60);

/// What other parts of the agent have to say, whichever session is up.
#[derive(Debug)]
pub struct Reports {
    /// Chunks that fail their hash.
    pub bad_chunks: mpsc::Receiver<BadChunkV1>,
    /// Images that consumers on this host want.
    pub asks: mpsc::Receiver<Ask>,
    /// What campaigns say.
    pub swarm: mpsc::Receiver<ToController>,
}

/// One session that is up.
#[derive(Debug)]
pub(super) struct Talk<'a> {
    send: SendStream,
    location: LocationId,
    store: &'a Store,
    book: &'a Arc<PlanBook>,
    credentials: &'a Credentials,
    reported: Reported,
    leases: Vec<Lease>,
    questions: Questions,
    ring: &'a KeyRing,
    asking: Asking,
    swarm: &'a Swarm,
    start: Instant,
}

impl<'a> Talk<'a> {
    pub(super) fn new(send: SendStream, location: LocationId, home: &'a Home, version: u16) -> Self {
        Self {
            send,
            location,
            store: &home.store,
            book: &home.book,
            credentials: &home.credentials,
            reported: Reported::default(),
            leases: Vec::new(),
            questions: Questions::new(version),
            ring: &home.ring,
            asking: Asking::new(version),
            swarm: &home.swarm,
            start: clock::monotonic(),
        }
    }

    /// Sends one message.
    pub(super) async fn say(&mut self, message: impl Into<ToController>) -> Result<(), SessionError> {
        let message = message.into();
        let sent = tokio::time::timeout(WRITE_TIMEOUT, frames::write(&mut self.send, &message)).await;
        Ok(sent.map_err(|_| SessionError::Silent { what: "read what we say", after: WRITE_TIMEOUT })??)
    }

    /// Sends the whole inventory and all leases.
    pub(super) async fn inventory(&mut self) -> Result<(), SessionError> {
        let views = self.store.entries();
        let entries = observed(&views);
        let mut parts: Vec<&[ObservedEntry]> = entries.chunks(PART_ENTRIES_MAX).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        let n_parts = parts.len();
        for (i, part) in parts.into_iter().enumerate() {
            let inventory_last = Some(i + 1 == n_parts);
            self.say(ObservedV1 { location: self.location, inventory_last, entries: part.to_vec() }).await?;
        }
        self.reported = Reported::inventory(&entries, self.now_ms());
        self.leases = self.store.leases();
        self.say_leases().await?;
        self.ask_keys(&views).await?;
        self.pulse().await
    }

    /// Asks for what opens the files that are here. Those that are not encrypted are told so once.
    async fn ask_keys(&mut self, entries: &[EntryView]) -> Result<(), SessionError> {
        let files = entries.iter().filter(|entry| entry.kind == ContentKind::File);
        let here = files.map(|entry| entry.content).collect();
        for content in self.asking.due(self.ring, &here, clock::monotonic()) {
            self.say(KeyAskV1 { location: self.location, content }).await?;
        }
        Ok(())
    }

    /// Runs until the session ends; never returns `Ok`.
    pub(super) async fn run(
        &mut self,
        heartbeat: Duration,
        messages: &mut mpsc::Receiver<Result<ToAgent, WireError>>,
        Reports { bad_chunks, asks, swarm }: &mut Reports,
        stop: &CancellationToken,
    ) -> Result<std::convert::Infallible, SessionError> {
        let mut changes = self.store.changes();
        let mut batch = tokio::time::interval(BATCH);
        batch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut next_pulse = clock::monotonic() + around(heartbeat, PULSE_JITTER_PERCENT, rand::random());
        let mut next_renewal = clock::monotonic() + self.credentials.renew_in();
        changes.mark_changed();
        // What was said to the session before is about campaigns that have to be joined anew.
        while swarm.try_recv().is_ok() {}
        self.swarm.session(true);
        loop {
            let wake = next_pulse.min(next_renewal);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(SessionError::Stopped),
                message = messages.recv() => match message {
                    Some(message) => self.hear(message?, &mut next_renewal).await?,
                    None => return Err(WireError::Ended.into()),
                },
                Some(said) = swarm.recv() => self.say(said).await?,
                Some(bad) = bad_chunks.recv() => self.say(bad).await?,
                Some(ask) = asks.recv() => {
                    if let Some(want) = self.questions.put(self.location, ask) {
                        self.say(want).await?;
                    }
                }
                _ = batch.tick() => {
                    // Progress is held back by time, so an unchanged store may still have something to say.
                    if changes.has_changed().unwrap_or(false) || self.holds_progress_back() {
                        changes.mark_unchanged();
                        self.changes().await?;
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => {
                    let now = clock::monotonic();
                    if now >= next_pulse {
                        next_pulse = now + around(heartbeat, PULSE_JITTER_PERCENT, rand::random());
                        self.pulse().await?;
                    }
                    if now >= next_renewal {
                        next_renewal = now + RENEW_AGAIN;
                        self.renew().await?;
                    }
                }
            }
        }
    }

    /// Says goodbye and gives it a moment to arrive.
    pub(super) async fn goodbye(&mut self, goodbye: GoodbyeV1) {
        if self.say(goodbye).await.is_ok() && self.send.finish().is_ok() {
            let arrived = tokio::time::timeout(GOODBYE_TIMEOUT, self.send.stopped()).await;
            tracing::debug!(?arrived, "said goodbye");
        }
    }

    async fn hear(&mut self, message: ToAgent, next_renewal: &mut Instant) -> Result<(), SessionError> {
        match message {
            ToAgent::Plan(part) => self.plan(part).await,
            ToAgent::Verify(verify) => {
                let (store, content) = (self.store.clone(), verify.content);
                let checked = tokio::task::spawn_blocking(move || store.recheck(content)).await;
                match checked {
                    Ok(Ok(())) => tracing::info!(%content, "the controller asks to verify a copy"),
                    Ok(Err(error)) => tracing::info!(%content, error = error.chain(), "no copy to verify"),
                    Err(error) => tracing::error!(%error, "a check ended in a defect"),
                }
                Ok(())
            }
            ToAgent::Renewed(renewed) => {
                if self.renewed(&renewed) {
                    *next_renewal = clock::monotonic() + self.credentials.renew_in();
                }
                Ok(())
            }
            ToAgent::Refused(refused) => {
                Err(SessionError::Refused { fault: refused.fault, text: refused.text })
            }
            ToAgent::Wanted(wanted) => {
                self.questions.answered(wanted);
                Ok(())
            }
            ToAgent::KeyGiven(given) => {
                self.asking.answered(self.ring, given);
                Ok(())
            }
            ToAgent::JoinCampaign(join) => {
                self.swarm.join(join);
                Ok(())
            }
            ToAgent::PieceLeases(leases) => {
                self.swarm.lease(leases);
                Ok(())
            }
            ToAgent::EndCampaign(end) => {
                self.swarm.end(end);
                Ok(())
            }
            ToAgent::Deny(deny) => {
                self.swarm.deny(deny);
                Ok(())
            }
            ToAgent::Welcome(_) => Err(SessionError::Protocol { why: "a second Welcome" }),
        }
    }

    async fn plan(&mut self, part: PlanV1) -> Result<(), SessionError> {
        let generation = part.generation;
        // A plan has at most a few hundred kilobytes and comes seldom: written where it is heard, in order.
        let taken = self.book.take(part).unwrap_or_else(|error| {
            tracing::error!(%error, "the plan is followed, but a restart will not know it");
            Taken::Followed
        });
        let refused = match taken {
            Taken::Waiting => return Ok(()),
            Taken::Followed => {
                // A job counts on what is held from here on. What left just before is said first, not with the next
                // batch: the controller would take a copy that is gone for one that is held.
                holds::follow_blocking(self.store, self.book).await.map_err(SessionError::Holds)?;
                self.changes().await?;
                None
            }
            Taken::Refused(fault) => {
                tracing::warn!(generation = generation.0, %fault, "a plan is refused");
                Some(fault)
            }
        };
        // A stale plan is answered with what is followed, so that the controller can count on from there.
        self.say(PlanAckV1 { location: self.location, generation, refused }).await
    }

    async fn changes(&mut self) -> Result<(), SessionError> {
        let views = self.store.entries();
        self.ask_keys(&views).await?;
        let entries = observed(&views);
        let gone = self.store.gone();
        let reason = |content: ContentId| {
            let gone = gone.iter().rev().find(|gone| gone.content == content);
            gone.map_or(GoneReason::Deleted, |gone| gone.reason)
        };
        let now_ms = self.now_ms();
        let changed = self.reported.changes(&entries, now_ms, reason);
        for part in changed.chunks(PART_ENTRIES_MAX) {
            self.say(ObservedV1 { location: self.location, inventory_last: None, entries: part.to_vec() })
                .await?;
        }
        let leases = self.store.leases();
        if leases != self.leases {
            self.leases = leases;
            self.say_leases().await?;
        }
        Ok(())
    }

    fn holds_progress_back(&self) -> bool {
        self.reported.holds_back()
    }

    async fn say_leases(&mut self) -> Result<(), SessionError> {
        let leases = self.leases.clone();
        let mut parts: Vec<&[Lease]> = leases.chunks(PART_ENTRIES_MAX).collect();
        if parts.is_empty() {
            parts.push(&[]);
        }
        for (i, part) in parts.into_iter().enumerate() {
            self.say(LeasesV1 { location: self.location, first: i == 0, leases: part.to_vec() }).await?;
        }
        Ok(())
    }

    async fn pulse(&mut self) -> Result<(), SessionError> {
        // Some may have been refused for now.
        self.ask_keys(&self.store.entries()).await?;
        let store = self.store.clone();
        let stats = tokio::task::spawn_blocking(move || store.stats()).await;
        let stats = match stats {
            Ok(Ok(stats)) => Some(stats),
            Ok(Err(error)) => {
                tracing::warn!(error = error.chain(), "no figures of the cache");
                None
            }
            Err(_) => None,
        };
        let (budget_bytes, used_bytes, free_bytes, floor_bytes, degraded) = match stats {
            Some(s) => (s.budget_bytes, s.used_bytes, s.free_bytes, s.floor_bytes, s.degraded),
            None => (0, 0, 0, 0, "the file system of the cache does not answer".into()),
        };
        metrics::gauge!(names::CACHE_BUDGET).set(budget_bytes as f64);
        metrics::gauge!(names::CACHE_USED).set(used_bytes as f64);
        metrics::gauge!(names::CACHE_FREE).set(free_bytes as f64);
        metrics::gauge!(names::CACHE_DEGRADED).set(if degraded.is_empty() { 0.0 } else { 1.0 });
        metrics::gauge!(names::CERTIFICATE_SECONDS).set(self.credentials.ends_in().as_secs_f64());
        let mut degraded = degraded;
        degraded.truncate(degraded.floor_char_boundary(TEXT_BYTES_MAX));
        self.say(PulseV1 {
            location: self.location,
            unix_ms: clock::unix_ms(),
            generation: self.book.current().generation,
            budget_bytes,
            used_bytes,
            free_bytes,
            floor_bytes,
            degraded,
        })
        .await
    }

    async fn renew(&mut self) -> Result<(), SessionError> {
        match self.credentials.key().request() {
            Ok(csr_der) => {
                tracing::info!("asking for a new certificate");
                self.say(RenewV1 { csr_der }).await
            }
            Err(error) => {
                tracing::error!(%error, "no request for a new certificate; tried again");
                Ok(())
            }
        }
    }

    /// Takes a new certificate; says whether it is in use now.
    fn renewed(&self, renewed: &RenewedV1) -> bool {
        match self.credentials.take_chain(&renewed.chain) {
            Ok(()) => {
                let hours = self.credentials.ends_in().as_secs() / 3600;
                tracing::info!(hours, "a new certificate is in use from the next connection on");
                true
            }
            Err(error) => {
                tracing::error!(%error, "the new certificate is not taken; tried again");
                false
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(clock::monotonic().duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Entries as they are reported, with reasons that are not too long.
fn observed(views: &[EntryView]) -> Vec<ObservedEntry> {
    let cut = |mut entry: ObservedEntry| {
        if let ObservedState::Failed { text, .. } = &mut entry.state {
            text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        }
        entry
    };
    views.iter().map(|view| cut(view.observed())).collect()
}
