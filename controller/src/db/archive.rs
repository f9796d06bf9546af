//! Old rows of the operation log leave the database: what an archive reads, and the one step that removes.
//!
//! **What.** [`Db::archivable`] says up to which row a log may be archived, [`Db::sealed_rows`] reads it, and
//! [`Db::remove_segment`] removes a segment and leaves its last row's number and hash as an anchor.
//!
//! **Why segments.** One transaction that removes a million rows would keep everybody from writing for a minute. A segment is
//! gone in moments, and after each the chain in the database begins at an anchor that can be proven.
//!
//! **Invariants.** Rows go only together with the anchor and the operation that says so, and only while the segment that
//! was written elsewhere is exactly what stands here. Rows that wait for the sealer never go.

pub use super::archived::{Archivable, ArchivedRow, Segment};
use super::error::DbError;
use super::operations::{COLUMNS, Draft, Operation, from_row};
use super::schema::meta;
use super::sealer::{hash, seal_in};
use super::sql::sql;
use super::store::Db;
use super::verify::begin;
use crate::logic::chain::Mark;

impl From<Operation> for ArchivedRow {
    fn from(row: Operation) -> Self {
        let draft = row.draft;
        Self {
            seq: row.seq.unwrap_or_default(),
            id: draft.id.to_string(),
            time_us: row.time_us,
            who: draft.who,
            who_kind: draft.who_kind.to_string(),
            action: draft.action,
            target_kind: draft.target_kind,
            target_id: draft.target_id,
            target_name: draft.target_name,
            result: draft.outcome.to_string(),
            details: row.details_text,
            prev_hash: row.prev_hash.unwrap_or_default(),
            hash: row.hash.unwrap_or_default(),
        }
    }
}

impl Db {
    /// The sealed rows that are older than `before_us`, from the begin of the log without a gap; `None` if there are none.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn archivable(&self, before_us: i64) -> Result<Option<Archivable>, DbError> {
        let mut tx = self.begin_read().await?;
        let instance = meta(&mut tx, "instance_id").await?.unwrap_or_default();
        let begin = begin(&mut tx).await?;
        let newest =
            "SELECT CAST(COALESCE(MAX(seq), 0) AS BIGINT) AS seq FROM operation WHERE seq IS NOT NULL";
        let newest: u64 = tx.row(sql("operation", newest)).await?.map_or(Ok(0), |row| row.size("seq"))?;
        let young =
            "SELECT CAST(MIN(seq) AS BIGINT) AS seq FROM operation WHERE seq IS NOT NULL AND time_us >= $1";
        let young = tx.row(sql("operation", young).bind(before_us)).await?;
        let young: Option<u64> = young.map(|row| row.opt_size("seq")).transpose()?.flatten();
        let last_seq = young.map_or(newest, |seq| seq.saturating_sub(1));
        Ok((last_seq > begin.seq).then_some(Archivable { instance, begin, last_seq }))
    }

    /// Sealed rows after number `after` up to `last`, by number, at most `limit`.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn sealed_rows(&self, after: u64, last: u64, limit: u32) -> Result<Vec<ArchivedRow>, DbError> {
        let stmt = sql("operation", COLUMNS).text(" WHERE seq > ").arg(after).text(" AND seq <= ").arg(last);
        let rows = self.rows(stmt.text(" ORDER BY seq NULLS FIRST LIMIT ").arg(limit)).await?;
        rows.iter().map(|row| from_row(row).map(ArchivedRow::from)).collect()
    }

    /// Anchors with numbers in this range, at most `limit`: row numbers and hashes that archives must have.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn anchors(&self, first: u64, last: u64, limit: u32) -> Result<Vec<Mark>, DbError> {
        let stmt = sql("operation_anchor", "SELECT seq, hash FROM operation_anchor WHERE seq >= ").arg(first);
        let stmt = stmt.text(" AND seq <= ").arg(last).text(" ORDER BY seq NULLS FIRST LIMIT ").arg(limit);
        let rows = self.rows(stmt).await?;
        rows.iter().map(|row| Ok(Mark { seq: row.size("seq")?, hash: row.text("hash")? })).collect()
    }

    /// Removes the rows of `segment` and anchors the rest behind it. `op` tells of it: number and hash in its details, the file as
    /// its target. It is sealed at once: an anchor that no sealed row tells of proves nothing.
    ///
    /// # Errors
    /// [`DbError::State`] if the log does not begin with this segment any more or has other rows; a failed statement.
    pub async fn remove_segment(&self, segment: &Segment, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let other = |state: &str| DbError::State {
                    what: "segment",
                    key: format!("{} to {}", segment.first_seq, segment.last_seq),
                    state: state.to_owned(),
                    allowed: "what was archived",
                };
                if begin(tx).await?.seq + 1 != segment.first_seq {
                    return Err(other("archived already"));
                }
                let last = sql("operation", COLUMNS).text(" WHERE seq = ").arg(segment.last_seq);
                let last = tx.row(last).await?.map(|row| from_row(&row)).transpose()?;
                let stands = last.is_some_and(|last| {
                    let prev_hash = last.prev_hash.clone().unwrap_or_default();
                    hash(&prev_hash, segment.last_seq, &last) == segment.hash
                });
                if !stands {
                    return Err(other("not what stands in the database"));
                }
                let remove = sql("operation", "DELETE FROM operation WHERE seq >= ").arg(segment.first_seq);
                let gone = tx.run(remove.text(" AND seq <= ").arg(segment.last_seq)).await?;
                if gone != segment.last_seq - segment.first_seq + 1 {
                    return Err(other("not complete in the database"));
                }
                let put = "INSERT INTO operation_anchor (seq, hash, operation_id, created_us, file) VALUES ($1, $2, $3, $4, $5)";
                let put = sql("operation_anchor", put).bind(segment.last_seq).bind(&segment.hash);
                tx.run(put.bind(op.id).bind(tx.now_us()).bind(&op.target_name)).await?;
                tx.record(op).await?;
                while seal_in(tx).await? > 0 {}
                Ok(())
            })
        })
        .await
    }
}
