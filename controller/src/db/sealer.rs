//! Seals the operation log: sequence numbers and a hash chain. [`super::verify`] checks both.
//!
//! **What.** [`Db::seal_once`] numbers the rows that wait, oldest first, and chains them. `hash = BLAKE3(domain, prev_hash, every column)`; the chain begins with the hash of the instance id.
//!
//! **Why also a head.** A chain alone does not show that its newest rows are gone. The head (last number and hash) is kept
//! in `meta`, and its hash is shown by `log verify`, so that an operator can keep it where the database's owner cannot write.
//!
//! **Invariants.** A changed, removed, inserted or reordered sealed row is found. Rows that wait for the sealer (less
//! than a second in service) are counted, never called intact.

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;

use super::archived::{genesis_hash, hash_of};
use super::changes::Change;
use super::error::DbError;
use super::operations::{COLUMNS, Operation, from_row};
use super::schema::{meta, put_meta};
use super::sql::sql;
use super::store::{Db, Tx};
use crate::logic::chain::Mark;

/// Rows sealed in one transaction: bounds how long writers wait for it.
const SEAL_ROWS_MAX: i64 = 500;
/// A sealer that missed a change looks again after this long: rows are sealed within a second.
const SEAL_EVERY: Duration = Duration::from_millis(900);

impl Db {
    /// Numbers and chains rows that wait; at most [`SEAL_ROWS_MAX`]. Returns how many.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn seal_once(&self) -> Result<u64, DbError> {
        self.write_tx(|tx| Box::pin(seal_in(tx))).await
    }

    /// As [`Db::seal_once`], but where nothing waits nobody is kept from writing.
    async fn seal_what_waits(&self) -> Result<u64, DbError> {
        let waits = sql("operation", "SELECT id FROM operation WHERE seq IS NULL ORDER BY id LIMIT 1");
        if self.row(waits).await?.is_none() {
            return Ok(0);
        }
        self.seal_once().await
    }

    /// Seals for ever: at once after a change and at least every [`SEAL_EVERY`]. To be run as a task by the leader.
    pub async fn run_sealer(&self) {
        let mut changes = self.subscribe();
        loop {
            match self.seal_what_waits().await {
                Ok(0) => {}
                Ok(_) => continue,
                Err(error) => tracing::warn!(error = %error, "the operation log is not sealed; trying again"),
            }
            // Wake on the first operation; at the latest after the period.
            let operation = async {
                loop {
                    match changes.recv().await {
                        Ok(Change::Operations) | Err(RecvError::Lagged(_)) => return,
                        Ok(_) => {}
                        Err(RecvError::Closed) => std::future::pending().await,
                    }
                }
            };
            if tokio::time::timeout(SEAL_EVERY, operation).await.is_ok() {
                // Gather a burst: one commit for many rows.
                tokio::time::sleep(SEAL_EVERY / 10).await;
            }
        }
    }
}

/// See [`Db::seal_once`].
pub(super) async fn seal_in(tx: &mut Tx<'_>) -> Result<u64, DbError> {
    let waiting = sql("operation", COLUMNS).text(" WHERE seq IS NULL ORDER BY id LIMIT ").arg(SEAL_ROWS_MAX);
    let waiting = tx.rows(waiting).await?;
    if waiting.is_empty() {
        return Ok(0);
    }
    let mut last = head(tx).await?;
    for row in &waiting {
        let row = from_row(row)?;
        let seq = last.seq + 1;
        let hash = hash(&last.hash, seq, &row);
        let update = "UPDATE operation SET seq = $1, prev_hash = $2, hash = $3 WHERE id = $4 AND seq IS NULL";
        let update = sql("operation", update).bind(seq).bind(&last.hash).bind(&hash).bind(row.draft.id);
        tx.run(update).await?;
        last = Mark { seq, hash };
    }
    put_meta(tx, "operation_head", &format!("{} {}", last.seq, last.hash)).await?;
    Ok(waiting.len() as u64)
}

/// The newest sealed row.
pub(super) async fn head(tx: &mut Tx<'_>) -> Result<Mark, DbError> {
    let Some(text) = meta(tx, "operation_head").await? else {
        return genesis(tx).await;
    };
    let parts = text.split_once(' ').and_then(|(seq, hash)| Some((seq.parse().ok()?, hash.to_owned())));
    let (seq, hash) = parts.ok_or_else(|| DbError::Value {
        table: "meta",
        column: "value",
        given: text.chars().take(64).collect(),
        expected: "operation_head as NUMBER HASH".to_owned(),
    })?;
    Ok(Mark { seq, hash })
}

/// What row 1 follows: another instance's chain does not fit here.
pub(super) async fn genesis(tx: &mut Tx<'_>) -> Result<Mark, DbError> {
    Ok(Mark { seq: 0, hash: genesis_hash(&meta(tx, "instance_id").await?.unwrap_or_default()) })
}

/// The hash of a row.
pub(super) fn hash(prev_hash: &str, seq: u64, row: &Operation) -> String {
    let (time_us, id) = (row.time_us.to_string(), row.draft.id.to_string());
    let draft = &row.draft;
    let columns = [
        &id,
        &time_us,
        &draft.who,
        draft.who_kind.as_str(),
        &draft.action,
        &draft.target_kind,
        &draft.target_id,
        &draft.target_name,
        draft.outcome.as_str(),
        &row.details_text,
    ];
    hash_of(prev_hash, seq, columns)
}
