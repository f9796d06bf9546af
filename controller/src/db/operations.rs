//! The operation log: who did what to which record.
//!
//! **What.** Append-only rows. [`Tx::record`] writes one in the transaction it describes; [`Db::operations`] pages.
//! **Why in the same transaction.** A log written before says things that did not happen, one written after loses things
//! that did. Sequence and hash chain come within a second from one sealer ([`super::sealer`]): assigning them here would
//! make every two changes of the system conflict.
//! **Invariants.** No method changes or deletes a row, except that the sealer fills `seq`, `prev_hash` and `hash` once.

use hearth_protocol::api::Page;
use hearth_protocol::id::OperationId;

use super::changes::Change;
use super::error::DbError;
use super::ids::new_id;
use super::page::PageRequest;
use super::sql::{Row, Stmt, db_words, sql};
use super::store::{Db, Tx};

db_words! {
    /// What kind of party acted.
    WhoKind, "kind of actor" {
        /// A script with a bearer token.
        Token = "token",
        /// A person who logged in, or a token that belongs to one.
        User = "user",
        /// An agent.
        Agent = "agent",
        /// The controller itself.
        System = "system",
        /// Whoever had a download link.
        Link = "link",
    }
    /// How it ended.
    Outcome, "result" {
        /// Done.
        Ok = "ok",
        /// Refused or failed; `details` says why.
        Failed = "failed",
    }
}

/// How the actions begin that tell where copies are: tenants read none of them.
const ABOUT_COPIES: [&str; 2] = ["cache.", "image.launch"];

/// Whether an action tells where copies are.
#[must_use]
pub fn is_about_copies(action: &str) -> bool {
    ABOUT_COPIES.iter().any(|begin| action.starts_with(begin))
}

/// An operation as the caller describes it. It keeps its id when a transaction is repeated.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// Id of the row.
    pub id: OperationId,
    /// Name of the user or token, id of the agent, or `system`.
    pub who: String,
    /// Kind of actor.
    pub who_kind: WhoKind,
    /// What, as `noun.verb`, for example `image.import`.
    pub action: String,
    /// Kind of the target, for example `image`.
    pub target_kind: String,
    /// Id of the target.
    pub target_id: String,
    /// Name of the target at this time.
    pub target_name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// More; no secrets. `Null` for nothing.
    pub details: serde_json::Value,
}

impl Draft {
    /// A successful operation by `who` without details.
    #[must_use]
    pub fn new(who_kind: WhoKind, who: impl Into<String>, action: impl Into<String>) -> Self {
        Self {
            id: new_id(),
            who: who.into(),
            who_kind,
            action: action.into(),
            target_kind: String::new(),
            target_id: String::new(),
            target_name: String::new(),
            outcome: Outcome::Ok,
            details: serde_json::Value::Null,
        }
    }

    /// The controller's own doing.
    #[must_use]
    pub fn system(action: impl Into<String>) -> Self {
        Self::new(WhoKind::System, "system", action)
    }

    /// Names the record that it was done to.
    #[must_use]
    pub fn on(mut self, kind: impl Into<String>, id: impl ToString, name: impl Into<String>) -> Self {
        (self.target_kind, self.target_id, self.target_name) = (kind.into(), id.to_string(), name.into());
        self
    }

    /// Adds details.
    #[must_use]
    pub fn with(mut self, details: serde_json::Value) -> Self {
        self.details = details;
        self
    }

    /// Says that it failed, and why.
    #[must_use]
    pub fn failed(mut self, why: impl ToString) -> Self {
        self.outcome = Outcome::Failed;
        self.details = serde_json::json!({ "error": why.to_string() });
        self
    }
}

/// A row of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// What was described.
    pub draft: Draft,
    /// When its transaction began, microseconds since the epoch.
    pub time_us: i64,
    /// Place in the chain; `None` until sealed.
    pub seq: Option<u64>,
    /// Hash of the row before it, hex.
    pub prev_hash: Option<String>,
    /// Hash of this row, hex.
    pub hash: Option<String>,
    /// `details` byte for byte as stored: what the hash covers.
    pub(super) details_text: String,
}

/// Which rows to list. The default lists all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OperationFilter {
    /// Kind of the target.
    pub target_kind: Option<String>,
    /// Id of the target.
    pub target_id: Option<String>,
    /// Actor.
    pub who: Option<String>,
    /// Action.
    pub action: Option<String>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Only what a tenant may know of its image: nothing about where copies are.
    pub for_tenants: bool,
    /// Not older than this, microseconds since the epoch.
    pub from_us: Option<i64>,
    /// Older than this, microseconds since the epoch.
    pub to_us: Option<i64>,
}

pub(super) const COLUMNS: &str = "SELECT id, seq, time_us, who, who_kind, action, target_kind, target_id, target_name, \
     result, details, prev_hash, hash FROM operation";

pub(super) fn from_row(row: &Row) -> Result<Operation, DbError> {
    let draft = Draft {
        id: row.parse("id")?,
        who: row.text("who")?,
        who_kind: row.parse("who_kind")?,
        action: row.text("action")?,
        target_kind: row.text("target_kind")?,
        target_id: row.text("target_id")?,
        target_name: row.text("target_name")?,
        outcome: row.parse("result")?,
        details: row.json("details")?,
    };
    Ok(Operation {
        draft,
        time_us: row.int("time_us")?,
        seq: row.opt_size("seq")?,
        prev_hash: row.opt_text("prev_hash")?,
        hash: row.opt_text("hash")?,
        details_text: row.text("details")?,
    })
}

impl Tx<'_> {
    /// Writes the row that describes this transaction.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn record(&mut self, op: &Draft) -> Result<(), DbError> {
        let insert = "INSERT INTO operation (id, time_us, who, who_kind, action, target_kind, target_id, target_name, \
             result, details) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
        let stmt = sql("operation", insert).bind(op.id).bind(self.now_us()).bind(&op.who).bind(op.who_kind);
        let stmt = stmt.bind(&op.action).bind(&op.target_kind).bind(&op.target_id).bind(&op.target_name);
        self.run(stmt.bind(op.outcome).bind(op.details.to_string())).await?;
        self.changed(Change::Operations);
        Ok(())
    }
}

impl Db {
    /// Writes a row for something that changed no other record: a refused call, a download, a login.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn record(&self, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| Box::pin(tx.record(op))).await
    }

    /// The row with this id.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn operation(&self, id: OperationId) -> Result<Option<Operation>, DbError> {
        let row = self.row(sql("operation", COLUMNS).text(" WHERE id = ").arg(id)).await?;
        row.as_ref().map(from_row).transpose()
    }

    /// Whether more than `n` rows match.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn has_more_operations_than(&self, n: u32, filter: &OperationFilter) -> Result<bool, DbError> {
        let stmt = matching(sql("operation", "SELECT id FROM operation"), filter);
        let stmt = stmt.text(" ORDER BY time_us DESC, id DESC LIMIT 1 OFFSET ").arg(n);
        Ok(self.row(stmt).await?.is_some())
    }

    /// Rows that match, newest first.
    ///
    /// # Errors
    /// [`DbError::Cursor`] or a failed statement.
    pub async fn operations(
        &self,
        filter: &OperationFilter,
        page: &PageRequest,
    ) -> Result<Page<Operation>, DbError> {
        let mut stmt = matching(sql("operation", COLUMNS), filter);
        if let Some([time_us, id]) = page.key()? {
            let time_us: i64 = time_us.parse().map_err(|_| DbError::Cursor)?;
            stmt = stmt.text(" AND (time_us, id) < (").arg(time_us).text(", ").arg(id).text(")");
        }
        stmt = stmt.text(" ORDER BY time_us DESC, id DESC LIMIT ").arg(page.fetch());
        let rows = self.rows(stmt).await?;
        let rows = rows.iter().map(from_row).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(rows, |row| [row.time_us.to_string(), row.draft.id.to_string()]))
    }
}

/// Adds the conditions of `filter`.
fn matching(stmt: Stmt, filter: &OperationFilter) -> Stmt {
    let stmt = stmt.text(" WHERE 1 = 1");
    let stmt = stmt.when(filter.target_kind.as_ref(), " AND target_kind = ");
    let stmt = stmt.when(filter.target_id.as_ref(), " AND target_id = ");
    let stmt = stmt.when(filter.who.as_ref(), " AND who = ").when(filter.action.as_ref(), " AND action = ");
    let stmt = stmt.when(filter.outcome, " AND result = ");
    let stmt = stmt.when(filter.from_us, " AND time_us >= ").when(filter.to_us, " AND time_us < ");
    let hidden = ABOUT_COPIES.iter().filter(|_| filter.for_tenants);
    hidden.fold(stmt, |stmt, begin| stmt.text(" AND action NOT LIKE ").arg(format!("{begin}%")))
}
