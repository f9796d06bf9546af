//! Join tokens: what lets a new agent in.
//!
//! **What.** A record per token; only the BLAKE3 hash of the secret is stored. [`spend`] takes one use inside the
//! transaction that makes the location.
//! **Why one UPDATE.** `uses_left` is counted down by a statement that also checks it: of 100 agents that show a one-use
//! token at the same instant exactly one gets in. Read, check and write would let two through.
//! **Invariants.** A use that was spent is never given back by a failed enrolment that committed, nor lost by one that
//! rolled back.

use std::collections::BTreeMap;

use hearth_protocol::id::JoinTokenId;

use super::error::DbError;
use super::operations::Draft;
use super::sql::{Row, sql, to_json};
use super::store::{Db, Tx};
use crate::logic::glob;

/// A join token's record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JoinToken {
    /// Its id.
    pub id: JoinTokenId,
    /// Uses that are left.
    pub uses_left: u32,
    /// When it ends, microseconds since the epoch.
    pub expires_us: i64,
    /// Pattern that the location's name must match; empty matches all.
    pub name_glob: String,
    /// Facts that override what the agent says.
    pub presets: BTreeMap<String, String>,
    /// When it was revoked.
    pub revoked_us: Option<i64>,
    /// Who made it.
    pub created_by: String,
    /// When it was made.
    pub created_us: i64,
}

/// Why a token lets nobody in. The agent is told "denied"; this is for the operation log.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TokenFault {
    /// No token has this secret.
    #[error("unknown join token")]
    Unknown,
    /// It ended.
    #[error("join token {0} has expired")]
    Expired(JoinTokenId),
    /// It was revoked.
    #[error("join token {0} is revoked")]
    Revoked(JoinTokenId),
    /// All its uses are spent: a copy may be in wrong hands.
    #[error("join token {0} is used up: somebody showed it once more")]
    UsedUp(JoinTokenId),
    /// The name is not one that it is for.
    #[error("join token {0} is for other names")]
    Name(JoinTokenId),
}

const COLUMNS: &str = "SELECT id, uses_left, expires_us, name_glob, preset, revoked_us, created_by, created_us \
     FROM join_token";

fn join_token(row: &Row) -> Result<JoinToken, DbError> {
    Ok(JoinToken {
        id: row.parse("id")?,
        uses_left: row.size("uses_left")?,
        expires_us: row.int("expires_us")?,
        name_glob: row.text("name_glob")?,
        presets: row.json("preset")?,
        revoked_us: row.opt_int("revoked_us")?,
        created_by: row.text("created_by")?,
        created_us: row.int("created_us")?,
    })
}

/// Takes one use of the token with this secret for a location named `name`.
pub(super) async fn spend(
    tx: &mut Tx<'_>,
    secret_hash: &str,
    name: &str,
) -> Result<Result<JoinToken, TokenFault>, DbError> {
    let now_us = tx.now_us();
    let Some(row) = tx.row(sql("join_token", COLUMNS).text(" WHERE secret_hash = ").arg(secret_hash)).await?
    else {
        return Ok(Err(TokenFault::Unknown));
    };
    let token = join_token(&row)?;
    if token.revoked_us.is_some() {
        return Ok(Err(TokenFault::Revoked(token.id)));
    }
    if token.expires_us <= now_us {
        return Ok(Err(TokenFault::Expired(token.id)));
    }
    if !token.name_glob.is_empty() && !glob::matches(&token.name_glob, name) {
        return Ok(Err(TokenFault::Name(token.id)));
    }
    let take =
        "UPDATE join_token SET uses_left = uses_left - 1, updated_us = $1 WHERE id = $2 AND uses_left > 0";
    let taken = tx.run(sql("join_token", take).bind(now_us).bind(token.id)).await?;
    Ok(if taken == 1 {
        Ok(JoinToken { uses_left: token.uses_left - 1, ..token })
    } else {
        Err(TokenFault::UsedUp(token.id))
    })
}

impl Db {
    /// Stores a join token; `created_us` and `revoked_us` of `token` are ignored.
    ///
    /// # Errors
    /// [`DbError::Exists`] if the secret is known already, or a failed statement.
    pub async fn create_join_token(
        &self,
        token: &JoinToken,
        secret_hash: &str,
        op: &Draft,
    ) -> Result<(), DbError> {
        let insert = "INSERT INTO join_token (id, secret_hash, uses_left, expires_us, name_glob, preset, created_by, \
             created_us, updated_us) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let stmt = sql("join_token", insert).bind(token.id).bind(secret_hash).bind(token.uses_left);
                let stmt = stmt.bind(token.expires_us).bind(&token.name_glob).bind(to_json(&token.presets));
                let inserted = tx.run(stmt.bind(&token.created_by).bind(tx.now_us())).await;
                inserted.map_err(|error| error.or_exists("join token", &token.id.to_string()))?;
                tx.record(op).await
            })
        })
        .await
    }

    /// Tokens that can still be used at `now_us`, newest first.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn join_tokens(&self, now_us: i64) -> Result<Vec<JoinToken>, DbError> {
        let stmt =
            sql("join_token", COLUMNS).text(" WHERE revoked_us IS NULL AND uses_left > 0 AND expires_us > ");
        self.rows(stmt.arg(now_us).text(" ORDER BY id DESC")).await?.iter().map(join_token).collect()
    }

    /// Revokes a token at once; doing it twice keeps the first time.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn revoke_join_token(&self, id: JoinTokenId, op: &Draft) -> Result<(), DbError> {
        let update =
            "UPDATE join_token SET revoked_us = COALESCE(revoked_us, $1), updated_us = $1 WHERE id = $2";
        self.write_tx(move |tx| {
            Box::pin(async move {
                if tx.run(sql("join_token", update).bind(tx.now_us()).bind(id)).await? == 0 {
                    return Err(DbError::NotFound { what: "join token", key: id.to_string() });
                }
                tx.record(op).await
            })
        })
        .await
    }
}
