//! Quotas: what a project may have, checked where it gets more.
//!
//! **What.** [`Tx::admit`] counts what a project has and refuses what would be too much, inside the transaction that adds it.
//! **Why counted, not kept.** A sum beside the rows would drift from them at the first path that forgets it. An index makes
//! the count cheap, projects without limits skip it, and two rivals for the last place conflict on the rows they counted.
//! **Invariants.** Of a hundred parallel calls for one free place exactly one succeeds. Only the owner is charged, and not for
//! public images. The charge of an image is the size of its file; where none was uploaded, its non-zero bytes.

use hearth_protocol::id::ProjectId;

use super::error::DbError;
use super::images::Image;
use super::operations::Draft;
use super::sql::{Row, sql};
use super::store::{Db, Tx};
use crate::logic::quota::{Exceeded, Figures, OwnLimits, admit};

/// What a project may have, and has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Quota {
    /// What was set for it.
    pub own: OwnLimits,
    /// What holds.
    pub limits: Figures,
    /// What it has.
    pub used: Figures,
}

/// The bytes with which an image's owner is charged while it is not public.
#[must_use]
pub fn charged_bytes(image: &Image) -> u64 {
    image.original_bytes.or(image.data_bytes).unwrap_or(0)
}

fn own_limits(row: &Row) -> Result<OwnLimits, DbError> {
    Ok(OwnLimits {
        images: row.opt_size("images")?,
        bytes: row.opt_size("bytes")?,
        imports: row.opt_size("imports")?,
    })
}

impl Tx<'_> {
    async fn own_limits(&mut self, project: ProjectId) -> Result<OwnLimits, DbError> {
        let select = "SELECT images, bytes, imports FROM quota WHERE project_id = $1";
        let row = self.row(sql("quota", select).bind(project)).await?;
        Ok(row.as_ref().map(own_limits).transpose()?.unwrap_or_default())
    }

    async fn used_by(&mut self, project: ProjectId) -> Result<Figures, DbError> {
        let select = "SELECT \
             CAST(COALESCE(SUM(CASE WHEN visibility <> 'public' THEN 1 ELSE 0 END), 0) AS BIGINT) AS images, \
             CAST(COALESCE(SUM(CASE WHEN visibility <> 'public' THEN COALESCE(original_bytes, data_bytes, 0) ELSE 0 END), 0) \
             AS BIGINT) AS bytes, \
             CAST(COALESCE(SUM(CASE WHEN status IN ('saving', 'importing') THEN 1 ELSE 0 END), 0) AS BIGINT) AS imports \
             FROM image WHERE project_id = $1 AND deleted_us IS NULL";
        match self.row(sql("image", select).bind(project)).await? {
            Some(row) => Ok(Figures {
                images: row.size("images")?,
                bytes: row.size("bytes")?,
                imports: row.size("imports")?,
            }),
            None => Ok(Figures::NONE),
        }
    }

    /// Refuses what `project` may not have beside what it has.
    ///
    /// # Errors
    /// [`DbError::Quota`] with figure and limit, or a failed statement.
    pub(super) async fn admit(&mut self, project: ProjectId, more: Figures) -> Result<(), DbError> {
        if more == Figures::NONE {
            return Ok(());
        }
        let limits = self.own_limits(project).await?.over(self.default_limits());
        if limits == Figures::NONE {
            return Ok(());
        }
        let used = self.used_by(project).await?;
        let Err(Exceeded { what, used, wanted, limit }) = admit(limits, used, more) else { return Ok(()) };
        let of = format!("project {}", self.live_project(project).await?.name);
        let cure = "delete what is not needed, or ask a system administrator for more (hearth quota set)";
        Err(DbError::Quota { what, of, used, wanted, limit, cure })
    }
}

impl Db {
    /// Says beforehand what [`Tx::admit`] will say, so that nobody sends a terabyte in vain.
    ///
    /// # Errors
    /// [`DbError::Quota`] or a failed statement.
    pub async fn refuse_over_quota(&self, project: ProjectId, more: Figures) -> Result<(), DbError> {
        self.begin_read().await?.admit(project, more).await
    }

    /// What a project may have, and has.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn quota(&self, project: ProjectId) -> Result<Quota, DbError> {
        let mut tx = self.begin_read().await?;
        let own = tx.own_limits(project).await?;
        let used = tx.used_by(project).await?;
        Ok(Quota { own, limits: own.over(tx.default_limits()), used })
    }

    /// Sets the limits of a project; it keeps what it has.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn set_quota(&self, project: ProjectId, own: OwnLimits, op: &Draft) -> Result<(), DbError> {
        let put = "INSERT INTO quota (project_id, images, bytes, imports, updated_us) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (project_id) DO UPDATE SET images = excluded.images, bytes = excluded.bytes, \
             imports = excluded.imports, updated_us = excluded.updated_us";
        self.write_tx(move |tx| {
            Box::pin(async move {
                tx.live_project(project).await?;
                let before = tx.own_limits(project).await?;
                if before == own {
                    return Ok(());
                }
                let stmt = sql("quota", put).bind(project).bind(own.images).bind(own.bytes).bind(own.imports);
                tx.run(stmt.bind(tx.now_us())).await?;
                tx.record(&op.clone().with(changes(before, own))).await
            })
        })
        .await
    }
}

/// The limits that differ, before and after; `null` follows the default.
fn changes(before: OwnLimits, after: OwnLimits) -> serde_json::Value {
    let mut sides = [serde_json::Map::new(), serde_json::Map::new()];
    for (name, old, new) in [
        ("images", before.images, after.images),
        ("bytes", before.bytes, after.bytes),
        ("imports", before.imports, after.imports),
    ] {
        if old != new {
            sides[0].insert(name.to_owned(), old.into());
            sides[1].insert(name.to_owned(), new.into());
        }
    }
    let [before, after] = sides;
    serde_json::json!({ "before": before, "after": after })
}
