//! Leases: who uses which copy, as agents report it.
//!
//! **Invariants.** The leases of a location are replaced as a whole; an agent's own lease file is the truth, these rows are
//! what the controller shows and what makes it refuse to remove a copy in use.

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::LocationId;
use hearth_protocol::message::control::Lease;

use super::changes::Change;
use super::error::DbError;
use super::sql::{Row, sql};
use super::store::Db;

pub(super) const COLUMNS: &str =
    "SELECT location_id, lease_id, content_id, kind, consumer, since_us FROM lease";

/// Rows of one INSERT: 6 values each stay far below the 32,766 that SQLite allows.
const ROWS_PER_INSERT: usize = 500;

pub(super) fn lease(row: &Row) -> Result<(LocationId, Lease), DbError> {
    let lease = Lease {
        lease: row.parse("lease_id")?,
        content: row.parse("content_id")?,
        kind: row.parse("kind")?,
        consumer: row.text("consumer")?,
        since_unix_ms: row.size::<u64>("since_us")? / 1000,
    };
    Ok((row.parse("location_id")?, lease))
}

impl Db {
    /// Replaces all leases of a location.
    ///
    /// # Errors
    /// A failed statement, for example for a location that does not exist.
    pub async fn replace_leases(&self, location: LocationId, leases: &[Lease]) -> Result<(), DbError> {
        let insert =
            "INSERT INTO lease (location_id, lease_id, content_id, kind, consumer, since_us) VALUES ";
        let mut seen = std::collections::HashSet::new();
        let once: Vec<&Lease> = leases.iter().filter(|lease| seen.insert(lease.lease)).collect();
        let once = &once;
        self.write_tx(move |tx| {
            Box::pin(async move {
                tx.run(sql("lease", "DELETE FROM lease WHERE location_id = $1").bind(location)).await?;
                for rows in once.chunks(ROWS_PER_INSERT) {
                    let mut stmt = sql("lease", insert);
                    for (n, row) in rows.iter().enumerate() {
                        stmt = stmt
                            .text(if n == 0 { "(" } else { ", (" })
                            .arg(location)
                            .text(", ")
                            .arg(row.lease);
                        stmt = stmt.text(", ").arg(row.content).text(", ").arg(row.kind).text(", ");
                        stmt = stmt.arg(row.consumer.replace('\0', "")).text(", ");
                        stmt = stmt.arg(row.since_unix_ms.saturating_mul(1000)).text(")");
                    }
                    tx.run(stmt).await?;
                }
                tx.changed(Change::Entries(location));
                Ok(())
            })
        })
        .await
    }

    /// The leases at a location, oldest first.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn leases_at(&self, location: LocationId) -> Result<Vec<Lease>, DbError> {
        let stmt = sql("lease", COLUMNS).text(" WHERE location_id = ").arg(location);
        let rows = self.rows(stmt.text(" ORDER BY since_us, lease_id")).await?;
        rows.iter().map(|row| lease(row).map(|(_, lease)| lease)).collect()
    }

    /// The leases of these contents, each at its location: of a page of the cache list.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn leases_on(
        &self,
        pairs: &[(ContentId, LocationId)],
    ) -> Result<Vec<(LocationId, Lease)>, DbError> {
        if pairs.is_empty() {
            return Ok(Vec::new());
        }
        let stmt = sql("lease", COLUMNS).text(" WHERE (content_id, location_id) IN ").pairs(pairs);
        self.rows(stmt.text(" ORDER BY location_id, since_us, lease_id")).await?.iter().map(lease).collect()
    }

    /// The leases of a content, everywhere.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn leases_of(&self, content: ContentId) -> Result<Vec<(LocationId, Lease)>, DbError> {
        let stmt = sql("lease", COLUMNS).text(" WHERE content_id = ").arg(content);
        self.rows(stmt.text(" ORDER BY location_id, since_us, lease_id")).await?.iter().map(lease).collect()
    }
}
