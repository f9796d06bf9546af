//! Answers that are given again to who repeats a call with the same idempotency key.
//!
//! **What.** A key is claimed before the call runs, and then the answer is kept beside it for a day.
//!
//! **Why the claim is a row of its own.** Two calls with one key may come at the same time, to two controllers too. Only one can
//! insert the row; the other one is told to wait.
//!
//! **Invariants.** A key is kept for the caller that used it: nobody learns of another's. A claim whose call never ended is
//! never run again: nobody knows what it did.

use super::error::DbError;
use super::sql::{db_words, sql};
use super::store::Db;

db_words! {
    /// How far the first call with a key is.
    State, "state of a kept answer" {
        /// It runs, or its process died.
        Running = "running",
        /// It is done and its answer is kept.
        Kept = "kept",
        /// It is done; its answer holds a secret or is too large to be kept.
        Withheld = "withheld",
        /// It ended without an answer that says what was done.
        Unknown = "unknown",
    }
}

/// A key as it is looked up: hashes, so that neither keys nor bodies are stored.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Key {
    /// Hash of caller and key, hex.
    pub key_hash: String,
    /// Who calls: its token's id.
    pub caller: String,
    /// Hash of method, path and body, hex.
    pub request_hash: String,
}

/// What [`Db::claim_key`] found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Claim {
    /// Nobody used the key: the caller may go on, and must end the claim.
    Fresh,
    /// The key was used, for this request or another one.
    Used {
        /// Whether it was for the same request.
        same: bool,
        /// How far that call is.
        state: State,
        /// Its status.
        status: u16,
        /// Its body.
        body: String,
        /// Its entity tag; empty: it had none.
        etag: String,
        /// When it began, microseconds since the epoch.
        since_us: i64,
    },
    /// The caller has too many keys.
    TooMany,
}

impl Db {
    /// Claims a key until `expires_us`, unless it is used or its caller has `keys_max` already.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn claim_key(&self, key: &Key, expires_us: i64, keys_max: u32) -> Result<Claim, DbError> {
        let find = "SELECT request_hash, state, status, body, etag, created_us FROM kept_answer WHERE key_hash = $1 AND expires_us > $2";
        let count =
            "SELECT CAST(COUNT(*) AS BIGINT) AS n FROM kept_answer WHERE caller = $1 AND expires_us > $2";
        let insert = "INSERT INTO kept_answer (key_hash, caller, request_hash, state, status, body, created_us, expires_us) \
             VALUES ($1, $2, $3, 'running', 0, '', $4, $5)";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let now_us = tx.now_us();
                if let Some(row) = tx.row(sql("kept_answer", find).bind(&key.key_hash).bind(now_us)).await? {
                    return Ok(Claim::Used {
                        same: row.text("request_hash")? == key.request_hash,
                        state: row.parse("state")?,
                        status: row.size("status")?,
                        body: row.text("body")?,
                        etag: row.text("etag")?,
                        since_us: row.int("created_us")?,
                    });
                }
                let n = tx.row(sql("kept_answer", count).bind(&key.caller).bind(now_us)).await?;
                let n: u32 = n.map_or(Ok(0), |row| row.size("n"))?;
                if n >= keys_max {
                    return Ok(Claim::TooMany);
                }
                // One that expired and was not purged yet.
                tx.run(sql("kept_answer", "DELETE FROM kept_answer WHERE key_hash = $1").bind(&key.key_hash))
                    .await?;
                let stmt =
                    sql("kept_answer", insert).bind(&key.key_hash).bind(&key.caller).bind(&key.request_hash);
                tx.run(stmt.bind(now_us).bind(expires_us)).await?;
                Ok(Claim::Fresh)
            })
        })
        .await
    }

    /// Ends a claim: the call was done. `etag` is the answer's entity tag, or empty.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn keep_answer(
        &self,
        key: &Key,
        state: State,
        status: u16,
        (body, etag): (&str, &str),
    ) -> Result<(), DbError> {
        let update =
            "UPDATE kept_answer SET state = $1, status = $2, body = $3, etag = $4 WHERE key_hash = $5";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let stmt = sql("kept_answer", update).bind(state).bind(u32::from(status)).bind(body);
                tx.run(stmt.bind(etag).bind(&key.key_hash)).await.map(drop)
            })
        })
        .await
    }

    /// Gives a key back: the call changed nothing.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn release_key(&self, key: &Key) -> Result<(), DbError> {
        let stmt = || sql("kept_answer", "DELETE FROM kept_answer WHERE key_hash = $1").bind(&key.key_hash);
        self.write_tx(move |tx| Box::pin(tx.run(stmt()))).await.map(drop)
    }

    /// Forgets answers that ended before `now_us`. Returns how many.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn forget_answers(&self, now_us: i64) -> Result<u64, DbError> {
        let stmt = || sql("kept_answer", "DELETE FROM kept_answer WHERE expires_us <= ").arg(now_us);
        self.write_tx(move |tx| Box::pin(tx.run(stmt()))).await
    }
}
