//! Pages of the cache list, by image name and location name.
//!
//! **What.** [`Db::cache_rows`]: rows of [`super::cache_list`], sorted, from a cursor on.
//! **Why two ways.** A million copies cannot be sorted for a page. Where few rows can match (one location, a rare status), they are
//! collected and sorted; where many can, the images are walked by name, through an index, until the page is full: the first
//! page costs what a page costs, and so does a page far behind. How many can match is counted first, up to [`FEW`].
//! **Invariants.** Both ways give the same rows in the same order. A page is one snapshot.

use std::collections::HashMap;

use hearth_protocol::api::Page;
use hearth_protocol::id::{ImageId, LocationId};

use super::cache_list::{CacheFilter, CacheRow, Source, cache_row, shown};
use super::error::DbError;
use super::intents::Intent;
use super::page::PageRequest;
use super::sql::{Row, Stmt, sql};
use super::store::{Db, Tx};

/// Rows that are collected and sorted for one page. Collecting takes longer the more there are, walking the fewer there are: at
/// 100,000 images both take as long with about this many.
const FEW: i64 = 2_500;
/// Most images of one step of the walk: bounds a statement.
const IMAGES_PER_STEP_MAX: u32 = 256;
/// Each step of the walk looks at so many times as many images as the one before.
const STEP_GROWTH: u32 = 4;

/// Folded image name, image, folded location name, location.
type Key = [String; 4];

/// A row with its sort key.
struct Keyed(CacheRow, Key);

fn keyed(row: &Row) -> Result<Keyed, DbError> {
    let shown = cache_row(row)?;
    let (image, location) = (shown.image.to_string(), shown.location.to_string());
    let key = [row.text("image_folded")?, image, row.text("location_folded")?, location];
    Ok(Keyed(shown, key))
}

/// Sorts `stmt` and cuts it to `limit` rows after `key`.
fn part(mut stmt: Stmt, key: Option<&Key>, limit: i64) -> Stmt {
    if let Some([image_name, image, location_name, location]) = key {
        stmt = stmt
            .text(" AND (shown.image_folded, shown.image_id, shown.location_folded, shown.location_id) > (");
        stmt = stmt.arg(image_name).text(", ").arg(image).text(", ");
        stmt = stmt.arg(location_name).text(", ").arg(location).text(")");
    }
    stmt = stmt.text(
        " ORDER BY shown.image_folded NULLS FIRST, shown.image_id NULLS FIRST, \
         shown.location_folded NULLS FIRST, shown.location_id NULLS FIRST LIMIT ",
    );
    stmt.arg(limit)
}

/// Images by name that have a row, from `(name, id)` on; `again`: that one too.
fn images_from(source: &Source<'_>, from: Option<(&str, &str)>, again: bool, limit: u32) -> Stmt {
    let mut stmt =
        sql("image", "SELECT image.id, image.name_folded FROM image WHERE image.deleted_us IS NULL");
    stmt = stmt.text(" AND image.content_id IS NOT NULL").when(source.filter.image, " AND image.id = ");
    // Also from the very begin, or SQLite would collect and sort all that have a content.
    let (name, id) = from.unwrap_or_default();
    stmt = stmt.text(" AND (image.name_folded, image.id) ").text(if again { ">= (" } else { "> (" });
    stmt = stmt.arg(name).text(", ").arg(id).text(")");
    // One EXISTS around both: PostgreSQL would make tables of two.
    stmt = stmt
        .text(" AND EXISTS (SELECT entry.location_id FROM entry WHERE entry.content_id = image.content_id");
    stmt = source.seen(stmt);
    if source.has_wishes() {
        stmt = stmt.text(" UNION ALL SELECT intent.location_id FROM intent WHERE intent.image_id = image.id");
        stmt = source.wanted(stmt);
    }
    stmt.text(") ORDER BY image.name_folded, image.id LIMIT ").arg(limit)
}

impl Tx<'_> {
    /// Whether at most [`FEW`] rows can match.
    async fn are_few(&mut self, source: &Source<'_>) -> Result<bool, DbError> {
        let stmt = source.pairs(sql("entry", "SELECT CAST(COUNT(*) AS BIGINT) AS n FROM ("), " UNION ALL ");
        let row = self.row(stmt.text(" LIMIT ").arg(FEW + 1).text(") AS counted")).await?;
        Ok(row.map_or(Ok(0), |row| row.int("n"))? <= FEW)
    }

    /// Walks the images by name until there are `limit` rows.
    async fn walk(
        &mut self,
        filter: &CacheFilter,
        key: Option<&Key>,
        limit: i64,
        now_us: i64,
    ) -> Result<Vec<Keyed>, DbError> {
        let (source, mut found) = (Source::new(filter, None, now_us), Vec::new());
        let mut from = key.map(|[name, id, ..]| (name.clone(), id.clone()));
        // One image may have thousands of rows, or one: begin with one and take more each time.
        let (mut again, mut step) = (true, 1);
        loop {
            let begin = from.as_ref().map(|(name, id)| (name.as_str(), id.as_str()));
            let images = self.rows(images_from(&source, begin, again, step)).await?;
            let ids = images.iter().map(|row| row.parse("id")).collect::<Result<Vec<ImageId>, _>>()?;
            let Some((last, id)) = images.last().zip(ids.last()) else { return Ok(found) };
            let left = limit - i64::try_from(found.len()).unwrap_or(limit);
            let rows = self.rows(part(shown(filter, Some(&ids), now_us), key, left)).await?;
            for row in &rows {
                found.push(keyed(row)?);
            }
            if found.len() as u64 >= limit.unsigned_abs() || ids.len() < step as usize {
                return Ok(found);
            }
            from = Some((last.text("name_folded")?, id.to_string()));
            (again, step) = (false, (step * STEP_GROWTH).min(IMAGES_PER_STEP_MAX));
        }
    }
}

impl Db {
    /// Rows that match, by image name and location name.
    ///
    /// # Errors
    /// [`DbError::Cursor`] or a failed statement.
    pub async fn cache_rows(
        &self,
        filter: &CacheFilter,
        page: &PageRequest,
        now_us: i64,
    ) -> Result<Page<CacheRow>, DbError> {
        let key = page.key()?;
        let mut tx = self.begin_read().await?;
        let is_narrow = *filter != CacheFilter::default();
        let rows = if is_narrow && tx.are_few(&Source::new(filter, None, now_us)).await? {
            let rows = tx.rows(part(shown(filter, None, now_us), key.as_ref(), page.fetch())).await?;
            rows.iter().map(keyed).collect::<Result<Vec<_>, _>>()?
        } else {
            tx.walk(filter, key.as_ref(), page.fetch(), now_us).await?
        };
        drop(tx);
        let page = page.page(rows, |Keyed(_, key)| key.clone());
        let mut items: Vec<CacheRow> = page.items.into_iter().map(|Keyed(row, _)| row).collect();
        self.add_intents(&mut items).await?;
        Ok(Page { items, next: page.next })
    }

    /// Who wants each row. A second look, so that a row with three intents is still one row.
    async fn add_intents(&self, rows: &mut [CacheRow]) -> Result<(), DbError> {
        let pairs: Vec<(ImageId, LocationId)> = rows.iter().map(|row| (row.image, row.location)).collect();
        let mut wanted: HashMap<(ImageId, LocationId), Vec<Intent>> = HashMap::new();
        for intent in self.intents_of(&pairs).await? {
            wanted.entry((intent.image, intent.location)).or_default().push(intent);
        }
        for row in rows {
            row.intents = wanted.remove(&(row.image, row.location)).unwrap_or_default();
        }
        Ok(())
    }
}
