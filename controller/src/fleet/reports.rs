//! Writes what agents report: one task, many reports per transaction.
//!
//! **What.** Sessions put reports into one bounded queue. The writer takes what is there, writes it, and tells the
//! reconciler's picture of the fleet what became of it.
//! **Why one writer.** Reports of one location must stay in order, and a transaction per report would make a tick of the
//! fleet thousands of fsyncs. Taking whatever waits makes the batches grow with the load and keeps an idle fleet prompt.
//! **Why a failed write closes the session.** Agents send changes, not states: after a lost one the picture would stay
//! wrong. The agent connects again and sends its whole inventory.
//!
//! **Invariants.** Reports of one location are applied in the order in which they came. The picture is changed only after
//! the transaction that says the same.

use std::collections::HashMap;
use std::sync::Arc;

use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::LocationId;
use hearth_protocol::message::control::{Lease, ObservedEntry, PART_ENTRIES_MAX};
use tokio::sync::mpsc;

use super::Shared;
use super::registry::Session;
use crate::clock;
use crate::db::DbError;
use crate::db::entries::EntryChanges;
use crate::db::locations::{Figures, SessionFacts};

/// Reports that may wait: at about 64 KiB for the largest, this bounds memory; a full queue slows its senders down.
pub(super) const QUEUE_MAX: usize = 512;
/// Reports of one batch: bounds the time of one transaction.
const BATCH_MAX: usize = 256;

/// What an agent said, or what is known of its session.
#[derive(Debug)]
pub(super) enum Report {
    /// A session came up.
    Begun { location: LocationId, facts: SessionFacts },
    /// All that is at a location.
    Inventory { location: LocationId, entries: Vec<ObservedEntry> },
    /// What changed at a location.
    Changes { location: LocationId, entries: Vec<ObservedEntry> },
    /// Leases of a location; the first part replaces what was said before.
    Leases { location: LocationId, first: bool, leases: Vec<Lease> },
    /// Signs of life and new figures.
    Seen(Vec<(LocationId, i64, Figures)>),
    /// Signs of life alone.
    Alive(Vec<LocationId>),
}

/// Last sign of life and figures of a session; `None` before its first pulse.
pub(super) fn seen(session: &Session) -> Option<(LocationId, i64, Figures)> {
    let super::registry::Figures { budget_bytes, used_bytes, free_bytes, floor_bytes, degraded } =
        session.figures()?;
    let figures = Figures { budget_bytes, used_bytes, free_bytes, floor_bytes, degraded };
    Some((session.location, session.last_heard_us(), figures))
}

/// Writes reports until all senders are gone.
pub(super) async fn write(shared: Arc<Shared>, mut queue: mpsc::Receiver<Report>) {
    let mut leases = HashMap::new();
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while queue.recv_many(&mut batch, BATCH_MAX).await > 0 {
        // Changes wait until something else of the batch must keep its place behind them.
        let mut changes: Vec<(LocationId, Vec<ObservedEntry>)> = Vec::new();
        for report in batch.drain(..) {
            if let Report::Changes { location, entries } = report {
                changes.push((location, entries));
                continue;
            }
            Box::pin(write_changes(&shared, std::mem::take(&mut changes))).await;
            Box::pin(write_one(&shared, report, &mut leases)).await;
        }
        Box::pin(write_changes(&shared, changes)).await;
        shared.wake();
    }
}

async fn write_changes(shared: &Shared, changes: Vec<(LocationId, Vec<ObservedEntry>)>) {
    if changes.is_empty() {
        return;
    }
    match shared.db.apply_reports(&changes).await {
        Ok(applied) => {
            for (location, changes) in applied {
                shared.picture.apply(location, changes, false);
            }
        }
        // One bad report must not cost the others: each alone.
        Err(error) if changes.len() > 1 => {
            tracing::warn!(%error, reports = changes.len(), "a batch of reports failed; writing them one by one");
            for one in changes {
                Box::pin(write_changes(shared, vec![one])).await;
            }
        }
        Err(error) => changes.iter().for_each(|(location, _)| lost(shared, *location, &error)),
    }
}

async fn write_one(shared: &Shared, report: Report, leases: &mut HashMap<LocationId, Vec<Lease>>) {
    match report {
        Report::Begun { location, facts } => {
            if let Err(error) = shared.db.begin_session(location, &facts).await {
                lost(shared, location, &error);
            }
        }
        Report::Inventory { location, entries } => {
            match shared.db.apply_inventory(location, &entries).await {
                Ok(changes) => inventory(shared, location, changes),
                Err(error) => lost(shared, location, &error),
            }
        }
        Report::Leases { location, first, leases: part } => {
            let more = part.len() == PART_ENTRIES_MAX;
            let all = leases.entry(location).or_default();
            if first {
                all.clear();
            }
            all.extend(part);
            if let Err(error) = shared.db.replace_leases(location, all).await {
                lost(shared, location, &error);
            }
            if !more {
                leases.remove(&location);
            }
        }
        Report::Seen(seen) => {
            if let Err(error) = shared.db.record_figures(&seen).await {
                // The next minute brings newer ones.
                tracing::warn!(%error, "cannot note signs of life");
            }
        }
        Report::Alive(locations) => {
            if let Err(error) = shared.db.record_seen(&locations, clock::unix_us()).await {
                tracing::warn!(%error, "cannot note signs of life");
            }
        }
        Report::Changes { location, entries } => {
            Box::pin(write_changes(shared, vec![(location, entries)])).await
        }
    }
}

fn inventory(shared: &Shared, location: LocationId, changes: EntryChanges) {
    tracing::debug!(%location, changed = changes.changed.len(), gone = changes.gone.len(), "inventory taken");
    shared.picture.apply(location, changes, true);
}

fn lost(shared: &Shared, location: LocationId, error: &DbError) {
    tracing::error!(%location, %error, "cannot write what an agent reported; its session is closed and begins anew");
    if let Some(session) = shared.registry.of(location) {
        session.close(FaultCode::Internal, "the controller could not write a report: connect again");
    }
}
