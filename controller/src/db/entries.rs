//! Entries: what agents say is in their caches. The last observation per (location, content), nothing else.
//!
//! **What.** Inventories replace, changes update. Both come from one session per location, in order.
//! **Why only differences are written.** An agent that reconnects repeats its whole inventory; 2,000 agents after a
//! restart of the controller would rewrite every row for nothing, and wake every reader.
//! **Invariants.** A content that an inventory does not name has no row afterwards. Status words are the agent's; `stale`
//! is never stored, it is derived from the location's silence when rows are shown.

use std::collections::HashMap;

use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::LocationId;
use hearth_protocol::message::control::{ObservedEntry, ObservedState};
use hearth_protocol::words::{EntryStatus, GoneReason};

use super::changes::Change;
use super::error::DbError;
use super::placements;
use super::sql::{Row, Stmt, sql};
use super::store::{Db, Tx};

/// The last observation of a content at a location.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Where.
    pub location: LocationId,
    /// What.
    pub content: ContentId,
    /// State, in the agent's words.
    pub status: EntryStatus,
    /// Why the last try failed; empty otherwise.
    pub reason: String,
    /// Fault of the last try.
    pub fault: Option<FaultCode>,
    /// When it is tried again, microseconds since the epoch.
    pub next_try_us: Option<i64>,
    /// Raw bytes of chunks that are there and verified.
    pub done_bytes: u64,
    /// Raw bytes of all chunks.
    pub data_bytes: u64,
    /// Stored bytes that came over the network.
    pub moved_bytes: u64,
    /// Raw bytes taken from other contents of the same cache.
    pub reused_bytes: u64,
    /// Bytes allocated on disk.
    pub allocated_bytes: u64,
    /// Live leases.
    pub leases: u32,
    /// Last use by a consumer.
    pub last_used_us: Option<i64>,
    /// When the agent said so.
    pub reported_us: i64,
}

impl Entry {
    /// The row for a report; `None` if the content is gone.
    #[must_use]
    pub fn observed(location: LocationId, seen: &ObservedEntry, now_us: i64) -> Option<Self> {
        let us = |ms: u64| (ms > 0).then(|| i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1000));
        let (status, fault, reason, next_try_us) = match &seen.state {
            ObservedState::Present(status) => (*status, None, String::new(), None),
            ObservedState::Failed { fault, text, next_try_unix_ms } => {
                // With the word for programs, as on the host itself.
                let reason = format!("{fault}: {}", text.replace('\0', ""));
                (EntryStatus::CacheFail, Some(*fault), reason, us(*next_try_unix_ms))
            }
            ObservedState::Gone(_) => return None,
        };
        Some(Self {
            location,
            content: seen.content,
            status,
            reason,
            fault,
            next_try_us,
            done_bytes: seen.done_bytes,
            data_bytes: seen.data_bytes,
            moved_bytes: seen.moved_bytes,
            reused_bytes: seen.reused_bytes,
            allocated_bytes: seen.allocated_bytes,
            leases: seen.leases,
            last_used_us: us(seen.last_used_unix_ms),
            reported_us: now_us,
        })
    }

    fn says_the_same(&self, other: &Self) -> bool {
        let other = Self { reported_us: self.reported_us, ..other.clone() };
        *self == other
    }
}

/// What a report changed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EntryChanges {
    /// New or different rows, as they are now.
    pub changed: Vec<Entry>,
    /// Rows that are gone, with the agent's reason (`None`: an inventory did not name them).
    pub gone: Vec<(ContentId, Option<GoneReason>)>,
}

pub(super) const COLUMNS: &str = "SELECT location_id, content_id, status, reason, fault, next_try_us, done_bytes, data_bytes, \
     moved_bytes, reused_bytes, allocated_bytes, leases, last_used_us, reported_us FROM entry";

/// Rows of one INSERT: 16 values each stay far below the 32,766 that SQLite allows.
const ROWS_PER_INSERT: usize = 200;
/// Entries that are read at once at start: a few megabytes.
const ROWS_PER_PART: u32 = 5000;

pub(super) fn entry(row: &Row) -> Result<Entry, DbError> {
    Ok(Entry {
        location: row.parse("location_id")?,
        content: row.parse("content_id")?,
        status: row.parse("status")?,
        reason: row.text("reason")?,
        fault: row.opt_size::<u16>("fault")?.map(FaultCode::from_number),
        next_try_us: row.opt_int("next_try_us")?,
        done_bytes: row.size("done_bytes")?,
        data_bytes: row.size("data_bytes")?,
        moved_bytes: row.size("moved_bytes")?,
        reused_bytes: row.size("reused_bytes")?,
        allocated_bytes: row.size("allocated_bytes")?,
        leases: row.size("leases")?,
        last_used_us: row.opt_int("last_used_us")?,
        reported_us: row.int("reported_us")?,
    })
}

fn upsert(entries: &[Entry], now_us: i64) -> Stmt {
    let mut stmt = sql(
        "entry",
        "INSERT INTO entry (location_id, content_id, status, reason, fault, next_try_us, done_bytes, \
         data_bytes, moved_bytes, reused_bytes, allocated_bytes, leases, last_used_us, reported_us, created_us, updated_us) \
         VALUES ",
    );
    for (n, entry) in entries.iter().enumerate() {
        stmt = stmt.text(if n == 0 { "(" } else { ", (" });
        stmt = stmt.arg(entry.location).text(", ").arg(entry.content).text(", ").arg(entry.status).text(", ");
        stmt =
            stmt.arg(&entry.reason).text(", ").arg(entry.fault).text(", ").arg(entry.next_try_us).text(", ");
        stmt = stmt.arg(entry.done_bytes).text(", ").arg(entry.data_bytes).text(", ").arg(entry.moved_bytes);
        stmt = stmt.text(", ").arg(entry.reused_bytes).text(", ").arg(entry.allocated_bytes).text(", ");
        stmt = stmt.arg(entry.leases).text(", ").arg(entry.last_used_us).text(", ").arg(entry.reported_us);
        stmt = stmt.text(", ").arg(now_us).text(", ").arg(now_us).text(")");
    }
    stmt.text(
        " ON CONFLICT (location_id, content_id) DO UPDATE SET status = excluded.status, reason = excluded.reason, \
         fault = excluded.fault, next_try_us = excluded.next_try_us, done_bytes = excluded.done_bytes, \
         data_bytes = excluded.data_bytes, moved_bytes = excluded.moved_bytes, reused_bytes = excluded.reused_bytes, \
         allocated_bytes = excluded.allocated_bytes, leases = excluded.leases, last_used_us = excluded.last_used_us, \
         reported_us = excluded.reported_us, updated_us = excluded.updated_us",
    )
}

/// Compares a report with what is stored. `whole`: contents that it does not name are gone.
fn difference(
    location: LocationId,
    stored: Vec<Entry>,
    seen: &[ObservedEntry],
    whole: bool,
    now_us: i64,
) -> EntryChanges {
    let mut stored: HashMap<ContentId, Entry> =
        stored.into_iter().map(|entry| (entry.content, entry)).collect();
    // Of two reports on one content the later counts.
    let last: HashMap<ContentId, &ObservedEntry> = seen.iter().map(|seen| (seen.content, seen)).collect();
    let mut changes = EntryChanges::default();
    for (content, seen) in last {
        let before = stored.remove(&content);
        match Entry::observed(location, seen, now_us) {
            Some(entry) if before.as_ref().is_some_and(|before| before.says_the_same(&entry)) => {}
            Some(entry) => changes.changed.push(entry),
            None => {
                let reason = if let ObservedState::Gone(reason) = seen.state { Some(reason) } else { None };
                changes.gone.extend(before.map(|before| (before.content, reason)));
            }
        }
    }
    if whole {
        changes.gone.extend(stored.into_keys().map(|content| (content, None)));
    }
    changes.changed.sort_unstable_by_key(|entry| entry.content);
    changes.gone.sort_unstable_by_key(|(content, _)| *content);
    changes
}

async fn apply(
    tx: &mut Tx<'_>,
    location: LocationId,
    seen: &[ObservedEntry],
    whole: bool,
) -> Result<EntryChanges, DbError> {
    let mut stmt = sql("entry", COLUMNS).text(" WHERE location_id = ").arg(location);
    if !whole {
        stmt = stmt.text(" AND content_id IN ").list(seen.iter().map(|seen| seen.content));
    }
    let stored = tx.rows(stmt).await?.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    let changes = difference(location, stored, seen, whole, tx.now_us());
    for rows in changes.changed.chunks(ROWS_PER_INSERT) {
        tx.run(upsert(rows, tx.now_us())).await?;
    }
    for gone in changes.gone.chunks(ROWS_PER_INSERT) {
        let delete =
            sql("entry", "DELETE FROM entry WHERE location_id = $1 AND content_id IN ").bind(location);
        tx.run(delete.list(gone.iter().map(|(content, _)| *content))).await?;
        // With the copy goes the right to open one that comes back without being placed, but for machines that still run on it.
        let rights = "DELETE FROM key_given WHERE location_id = $1 AND NOT EXISTS (SELECT lease.lease_id FROM lease \
             WHERE lease.location_id = key_given.location_id AND lease.content_id = key_given.content_id) AND content_id IN ";
        let rights = sql("key_given", rights).bind(location);
        tx.run(rights.list(gone.iter().map(|(content, _)| *content))).await?;
        placements::gone(tx, location, gone.iter().map(|(content, _)| *content)).await?;
    }
    if changes != EntryChanges::default() {
        tx.changed(Change::Entries(location));
    }
    Ok(changes)
}

impl Db {
    /// Takes the whole inventory of a location: afterwards exactly these contents have rows.
    ///
    /// # Errors
    /// A failed statement, for example for a location that does not exist.
    pub async fn apply_inventory(
        &self,
        location: LocationId,
        inventory: &[ObservedEntry],
    ) -> Result<EntryChanges, DbError> {
        self.write_tx(move |tx| Box::pin(apply(tx, location, inventory, true))).await
    }

    /// Takes changes at a location; contents that they do not name stay as they are.
    ///
    /// # Errors
    /// A failed statement, for example for a location that does not exist.
    pub async fn apply_changes(
        &self,
        location: LocationId,
        changes: &[ObservedEntry],
    ) -> Result<EntryChanges, DbError> {
        self.write_tx(move |tx| Box::pin(apply(tx, location, changes, false))).await
    }

    /// Takes changes at many locations in one transaction: one fsync for a tick of the whole fleet.
    ///
    /// # Errors
    /// A failed statement; then none of them is taken.
    pub async fn apply_reports(
        &self,
        reports: &[(LocationId, Vec<ObservedEntry>)],
    ) -> Result<Vec<(LocationId, EntryChanges)>, DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let mut all = Vec::with_capacity(reports.len());
                for (location, seen) in reports {
                    all.push((*location, apply(tx, *location, seen, false).await?));
                }
                Ok(all)
            })
        })
        .await
    }

    /// Shows every entry to `see`, one after the other; for the reconciler at start.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn see_entries(&self, mut see: impl FnMut(Entry)) -> Result<(), DbError> {
        let (mut location, mut content) = (String::new(), String::new());
        loop {
            // In parts: a table of a million rows is not held as the driver holds rows.
            let stmt = sql("entry", COLUMNS).text(" WHERE (location_id, content_id) > (").arg(&location);
            let stmt =
                stmt.text(", ").arg(&content).text(") ORDER BY location_id, content_id NULLS FIRST LIMIT ");
            let rows = self.rows(stmt.arg(ROWS_PER_PART)).await?;
            for row in &rows {
                see(entry(row)?);
            }
            let Some(last) = rows.last() else { return Ok(()) };
            (location, content) = (last.text("location_id")?, last.text("content_id")?);
        }
    }

    /// What is at a location.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn entries_at(&self, location: LocationId) -> Result<Vec<Entry>, DbError> {
        let stmt = sql("entry", COLUMNS)
            .text(" WHERE location_id = ")
            .arg(location)
            .text(" ORDER BY content_id NULLS FIRST");
        self.rows(stmt).await?.iter().map(entry).collect()
    }

    /// Where a content is, in whatever state.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn entries_of(&self, content: ContentId) -> Result<Vec<Entry>, DbError> {
        let stmt =
            sql("entry", COLUMNS).text(" WHERE content_id = ").arg(content).text(" ORDER BY location_id");
        self.rows(stmt).await?.iter().map(entry).collect()
    }

    /// Entries that are `active` at these locations (at most a page of them); those without any are left out.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn active_counts(&self, at: &[LocationId]) -> Result<HashMap<LocationId, u32>, DbError> {
        let count = "SELECT location_id, CAST(COUNT(*) AS BIGINT) AS n FROM entry WHERE status = 'active' \
             AND location_id IN ";
        let stmt = sql("entry", count).list(at.iter().copied()).text(" GROUP BY location_id");
        let rows = self.rows(stmt).await?;
        rows.iter().map(|row| Ok((row.parse("location_id")?, row.size("n")?))).collect()
    }
}
