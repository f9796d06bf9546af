//! Usage: which project was charged with how many bytes, from when to when.
//!
//! **What.** One row (a tenure) per image, project and size; [`Tx::settle_tenures`] ends and begins them, [`Db::usage`] adds them up.
//! **Why settled at the end of every transaction that changed an image.** Uploads, imports, deletions, publishing and new owners
//! all change what is charged, and so will paths that do not exist yet. Here none can forget it.
//! **Invariants.** An image has at most one open tenure, and one exactly while it has bytes, is not public and not deleted.
//! Closed tenures never change: the report of a past month stays as it was.

use hearth_protocol::api::Page;
use hearth_protocol::id::{DomainId, ImageId, ProjectId};

use super::error::DbError;
use super::page::PageRequest;
use super::sql::{Row, sql};
use super::store::{Db, Tx};
use super::tokens::Scope;

/// Tenures that are read at once: bounds the memory of a report over years.
const TENURES_AT_ONCE: usize = 5000;
/// Microseconds of a day.
const DAY_US: u128 = 86_400_000_000;

/// What a project has, and had in a range.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Usage {
    /// The project.
    pub project: ProjectId,
    /// Its name.
    pub project_name: String,
    /// Its domain.
    pub domain: DomainId,
    /// Name of the domain.
    pub domain_name: String,
    /// Images that are not public, now.
    pub images: u64,
    /// Bytes of their files, now.
    pub bytes: u64,
    /// Bytes times days in the range, rounded down.
    pub byte_days: u64,
}

/// Which usage.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UsageFilter {
    /// Projects inside this scope.
    pub scope: Scope,
    /// This project alone.
    pub project: Option<ProjectId>,
    /// Begin of the range, microseconds since the epoch.
    pub from_us: i64,
    /// Its end, not part of it.
    pub to_us: i64,
}

fn usage(row: &Row) -> Result<Usage, DbError> {
    Ok(Usage {
        project: row.parse("id")?,
        project_name: row.text("name")?,
        domain: row.parse("domain_id")?,
        domain_name: row.text("domain_name")?,
        images: 0,
        bytes: 0,
        byte_days: 0,
    })
}

impl Tx<'_> {
    /// Brings the tenures of all images that this transaction changed up to date.
    pub(super) async fn settle_tenures(&mut self) -> Result<(), DbError> {
        for id in self.changed_images() {
            self.settle_tenure(id).await?;
        }
        Ok(())
    }

    async fn settle_tenure(&mut self, id: ImageId) -> Result<(), DbError> {
        let select = "SELECT image.project_id, image.visibility, image.deleted_us, \
             COALESCE(image.original_bytes, image.data_bytes, 0) AS bytes, tenure.project_id AS held_by, \
             tenure.bytes AS held_bytes, tenure.n FROM image \
             LEFT JOIN tenure ON tenure.image_id = image.id AND tenure.to_us IS NULL WHERE image.id = $1";
        let Some(row) = self.row(sql("image", select).bind(id)).await? else { return Ok(()) };
        let (project, bytes): (ProjectId, u64) = (row.parse("project_id")?, row.size("bytes")?);
        let charged =
            bytes > 0 && row.opt_int("deleted_us")?.is_none() && row.text("visibility")? != "public";
        let wanted = charged.then_some((project, bytes));
        let open = row.opt_int("n")?;
        let held = match open {
            Some(_) => Some((row.parse("held_by")?, row.size("held_bytes")?)),
            None => None,
        };
        if wanted == held {
            return Ok(());
        }
        if let Some(n) = open {
            // A clock that was set back must not make a tenure end before it began.
            let close = "UPDATE tenure SET to_us = CASE WHEN from_us > $1 THEN from_us ELSE $1 END \
                 WHERE image_id = $2 AND n = $3";
            self.run(sql("tenure", close).bind(self.now_us()).bind(id).bind(n)).await?;
        }
        let Some((project, bytes)) = wanted else { return Ok(()) };
        let insert = "INSERT INTO tenure (image_id, n, project_id, bytes, from_us) \
             SELECT $1, COALESCE(MAX(n), 0) + 1, $2, $3, $4 FROM tenure WHERE image_id = $1";
        let stmt = sql("tenure", insert).bind(id).bind(project).bind(bytes).bind(self.now_us());
        self.run(stmt).await.map(|_| ())
    }

    async fn count_now(&mut self, lines: &mut [Usage]) -> Result<(), DbError> {
        let select = "SELECT project_id, CAST(COUNT(*) AS BIGINT) AS images, \
             CAST(SUM(COALESCE(original_bytes, data_bytes, 0)) AS BIGINT) AS bytes FROM image \
             WHERE deleted_us IS NULL AND visibility <> 'public' AND project_id IN ";
        let stmt = sql("image", select).list(lines.iter().map(|line| line.project));
        for row in self.rows(stmt.text(" GROUP BY project_id")).await? {
            let project: ProjectId = row.parse("project_id")?;
            if let Some(line) = lines.iter_mut().find(|line| line.project == project) {
                (line.images, line.bytes) = (row.size("images")?, row.size("bytes")?);
            }
        }
        Ok(())
    }

    /// Bytes times microseconds of a project in `from_us..to_us`.
    async fn byte_us(&mut self, project: ProjectId, from_us: i64, to_us: i64) -> Result<u128, DbError> {
        let select = "SELECT image_id, n, bytes, from_us, to_us FROM tenure WHERE project_id = $1 AND from_us < $2 \
             AND (to_us IS NULL OR to_us > $3)";
        let (mut sum, mut after) = (0_u128, None::<(String, i64)>);
        loop {
            let mut stmt = sql("tenure", select).bind(project).bind(to_us).bind(from_us);
            if let Some((image, n)) = after {
                stmt = stmt.text(" AND (image_id > ").arg(&image).text(" OR (image_id = ").arg(&image);
                stmt = stmt.text(" AND n > ").arg(n).text("))");
            }
            let stmt = stmt.text(" ORDER BY image_id, n LIMIT ").arg(TENURES_AT_ONCE as u64);
            let rows = self.rows(stmt).await?;
            for row in &rows {
                let begun = row.int("from_us")?.max(from_us);
                let ended = row.opt_int("to_us")?.unwrap_or(to_us).min(to_us);
                let us = u128::from(ended.saturating_sub(begun).max(0).unsigned_abs());
                sum = sum.saturating_add(us.saturating_mul(row.size::<u64>("bytes")?.into()));
            }
            let Some(last) = rows.last().filter(|_| rows.len() == TENURES_AT_ONCE) else { return Ok(sum) };
            after = Some((last.text("image_id")?, last.int("n")?));
        }
    }
}

impl Db {
    /// What the projects inside a scope have and had, by id. What lies in the future counts as nothing.
    ///
    /// # Errors
    /// [`DbError::Cursor`] or a failed statement.
    pub async fn usage(&self, filter: &UsageFilter, page: &PageRequest) -> Result<Page<Usage>, DbError> {
        let mut tx = self.begin_read().await?;
        let select = "SELECT project.id, project.name, project.domain_id, domain.name AS domain_name FROM project \
             JOIN domain ON domain.id = project.domain_id WHERE 1 = 1";
        let mut stmt = sql("project", select).when(filter.project, " AND project.id = ");
        stmt = match filter.scope {
            Scope::System => stmt,
            Scope::Domain(domain) => stmt.text(" AND project.domain_id = ").arg(domain),
            Scope::Project(_, project) => stmt.text(" AND project.id = ").arg(project),
        };
        if let Some([id]) = page.key()? {
            stmt = stmt.text(" AND project.id > ").arg(id);
        }
        let rows = tx.rows(stmt.text(" ORDER BY project.id LIMIT ").arg(page.fetch())).await?;
        let lines = rows.iter().map(usage).collect::<Result<Vec<_>, _>>()?;
        let mut page = page.page(lines, |line| [line.project.to_string()]);
        tx.count_now(&mut page.items).await?;
        let to_us = filter.to_us.min(tx.now_us());
        for line in &mut page.items {
            let byte_us = tx.byte_us(line.project, filter.from_us, to_us).await?;
            line.byte_days = u64::try_from(byte_us / DAY_US).unwrap_or(u64::MAX);
        }
        Ok(page)
    }
}
