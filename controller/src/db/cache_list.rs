//! The cache list: one row per image and location, as people see it.
//!
//! **What.** The union of what is wanted (intents) and what is observed (entries), with one status word. Paged by image
//! name and location name; filtered by image, location, status and who may see it.
//! **Why the status is made in SQL.** Filters and counts must agree with what is shown, and pages must be full.
//! **Invariants.** A wish without an observation is `queued`; a wish to remove is `deleting` (or `delete_failed`, if the
//! agent says so); a silent location makes its rows `stale`, with the last known state beside it. A copy that nobody wants
//! any more is shown as long as it is there.

use std::collections::{HashMap, HashSet};

use hearth_protocol::api::Page;
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{DomainId, ImageId, LocationId};
use hearth_protocol::words::{EntryStatus, LocationKind};

use super::entries::{self, Entry};
use super::error::DbError;
use super::images::visible_to;
use super::intents::Intent;
use super::page::PageRequest;
use super::sql::{Row, Stmt, contains, sql};
use super::store::Db;
use super::tokens::Scope;

/// A location that says nothing for this long is stale (design: 15 minutes).
pub const STALE_AFTER_US: i64 = 15 * 60 * 1_000_000;

/// Which rows to list. The default lists all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CacheFilter {
    /// One image.
    pub image: Option<ImageId>,
    /// One location.
    pub location: Option<LocationId>,
    /// Status as shown.
    pub status: Option<EntryStatus>,
    /// Zone of the location.
    pub zone: Option<String>,
    /// Part of the location's name, without regard to case.
    pub location_contains: Option<String>,
    /// Only at locations of this domain, and only images that it may see.
    pub domain: Option<DomainId>,
}

/// One image at one location.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CacheRow {
    /// The image.
    pub image: ImageId,
    /// Its name.
    pub image_name: String,
    /// Its content.
    pub content: ContentId,
    /// The location.
    pub location: LocationId,
    /// Its name.
    pub location_name: String,
    /// Host or region.
    pub location_kind: LocationKind,
    /// Platform of the location.
    pub platform: String,
    /// Region of the location.
    pub region: String,
    /// Zone of the location.
    pub zone: String,
    /// Account of the location.
    pub account: String,
    /// Management address of the location.
    pub ip: String,
    /// Status as shown.
    pub status: EntryStatus,
    /// What the location says; `None`: nothing yet.
    pub entry: Option<Entry>,
    /// Who wants it; empty for unheld cache.
    pub intents: Vec<Intent>,
}

/// `$1` is the time before which a last sign of life makes a location silent.
const ROWS: &str = "SELECT shown.* FROM (SELECT pair.image_id, pair.location_id, im.name AS image_name, \
     im.name_folded AS image_folded, im.content_id AS image_content, l.name AS location_name, \
     l.name_folded AS location_folded, l.kind AS location_kind, l.platform, l.region, l.zone, l.account, l.ip, l.domain_id, \
     e.content_id, e.status, e.reason, e.fault, e.next_try_us, e.done_bytes, e.data_bytes, e.moved_bytes, \
     e.reused_bytes, e.allocated_bytes, e.leases, e.last_used_us, e.reported_us, \
     CASE WHEN l.last_seen_us IS NULL OR l.last_seen_us < $1 THEN 'stale' \
     WHEN e.status = 'delete_failed' THEN 'delete_failed' \
     WHEN pair.removes > 0 AND pair.keeps = 0 THEN 'deleting' \
     WHEN e.status IS NULL THEN 'queued' ELSE e.status END AS shown_status \
     FROM (SELECT image_id, location_id, CAST(SUM(keeps) AS BIGINT) AS keeps, CAST(SUM(removes) AS BIGINT) AS removes \
     FROM (SELECT image_id, location_id, CASE WHEN wish = 'keep' THEN 1 ELSE 0 END AS keeps, \
     CASE WHEN wish = 'remove' THEN 1 ELSE 0 END AS removes FROM intent";

const ENTRIES: &str = " UNION ALL SELECT image.id AS image_id, entry.location_id, 0 AS keeps, 0 AS removes FROM entry \
     JOIN image ON image.content_id = entry.content_id WHERE image.deleted_us IS NULL";

const JOINS: &str = ") AS wanted_or_seen GROUP BY image_id, location_id) AS pair \
     JOIN image im ON im.id = pair.image_id JOIN location l ON l.id = pair.location_id \
     LEFT JOIN entry e ON e.location_id = pair.location_id AND e.content_id = im.content_id \
     WHERE im.content_id IS NOT NULL) AS shown WHERE 1 = 1";

/// All rows that match, with the filters pushed to where indexes serve them. `images`: of these alone.
pub(super) fn shown(filter: &CacheFilter, images: Option<&[ImageId]>, now_us: i64) -> Stmt {
    let only = |stmt: Stmt, text| match images {
        Some(images) => stmt.text(text).list(images.iter().copied()),
        None => stmt,
    };
    let stmt = sql("entry", ROWS).bind(now_us.saturating_sub(STALE_AFTER_US)).text(" WHERE 1 = 1");
    let stmt = stmt.when(filter.image, " AND image_id = ").when(filter.location, " AND location_id = ");
    let stmt = only(stmt, " AND image_id IN ").text(ENTRIES).when(filter.image, " AND image.id = ");
    let stmt = only(stmt, " AND image.id IN ");
    let stmt = stmt.when(filter.location, " AND entry.location_id = ").text(JOINS);
    let stmt = stmt
        .when(filter.status, " AND shown.shown_status = ")
        .when(filter.zone.as_ref(), " AND shown.zone = ");
    let stmt = match &filter.location_contains {
        Some(part) => stmt.text(" AND shown.location_folded LIKE ").arg(contains(part)).text(" ESCAPE '\\'"),
        None => stmt,
    };
    match filter.domain {
        Some(domain) => {
            let stmt = stmt.text(" AND shown.domain_id = ").arg(domain).text(" AND shown.image_id IN ");
            visible_to(stmt, Scope::Domain(domain))
        }
        None => stmt,
    }
}

/// A row of a page with its sort key.
struct Keyed(CacheRow, [String; 4]);

fn keyed(row: &Row) -> Result<Keyed, DbError> {
    let entry = if row.opt_text("content_id")?.is_some() { Some(entries::entry(row)?) } else { None };
    let (image, location): (ImageId, LocationId) = (row.parse("image_id")?, row.parse("location_id")?);
    let key =
        [row.text("image_folded")?, image.to_string(), row.text("location_folded")?, location.to_string()];
    let shown = CacheRow {
        image,
        image_name: row.text("image_name")?,
        content: row.parse("image_content")?,
        location,
        location_name: row.text("location_name")?,
        location_kind: row.parse("location_kind")?,
        platform: row.text("platform")?,
        region: row.text("region")?,
        zone: row.text("zone")?,
        account: row.text("account")?,
        ip: row.text("ip")?,
        status: row.parse("shown_status")?,
        entry,
        intents: Vec::new(),
    };
    Ok(Keyed(shown, key))
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
        let mut stmt = shown(filter, None, now_us);
        if let Some([image_name, image, location_name, location]) = page.key()? {
            stmt = stmt.text(
                " AND (shown.image_folded, shown.image_id, shown.location_folded, shown.location_id) > (",
            );
            stmt = stmt.arg(image_name).text(", ").arg(image).text(", ");
            stmt = stmt.arg(location_name).text(", ").arg(location).text(")");
        }
        stmt = stmt.text(
            " ORDER BY shown.image_folded NULLS FIRST, shown.image_id NULLS FIRST, \
             shown.location_folded NULLS FIRST, shown.location_id NULLS FIRST LIMIT ",
        );
        let rows = self.rows(stmt.arg(page.fetch())).await?;
        let rows = rows.iter().map(keyed).collect::<Result<Vec<_>, _>>()?;
        let page = page.page(rows, |Keyed(_, key)| key.clone());
        let mut items: Vec<CacheRow> = page.items.into_iter().map(|Keyed(row, _)| row).collect();
        self.add_intents(&mut items).await?;
        Ok(Page { items, next: page.next })
    }

    /// Who wants each row. A second look, so that a row with three intents is still one row.
    async fn add_intents(&self, rows: &mut [CacheRow]) -> Result<(), DbError> {
        let mut images: HashMap<ImageId, Vec<LocationId>> = HashMap::new();
        for row in rows.iter() {
            images.entry(row.image).or_default().push(row.location);
        }
        let mut wanted: HashMap<(ImageId, LocationId), Vec<Intent>> = HashMap::new();
        for (image, locations) in images {
            for intent in self.intents_for(image, Some(&locations)).await? {
                wanted.entry((image, intent.location)).or_default().push(intent);
            }
        }
        for row in rows {
            row.intents = wanted.remove(&(row.image, row.location)).unwrap_or_default();
        }
        Ok(())
    }

    /// How many rows there are of each status.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn cache_counts(
        &self,
        filter: &CacheFilter,
        now_us: i64,
    ) -> Result<HashMap<EntryStatus, u64>, DbError> {
        let count = "SELECT counted.shown_status, CAST(COUNT(*) AS BIGINT) AS n FROM (";
        let stmt = shown(filter, None, now_us).wrapped(count, ") AS counted GROUP BY counted.shown_status");
        let rows = self.rows(stmt).await?;
        rows.iter().map(|row| Ok((row.parse("shown_status")?, row.size("n")?))).collect()
    }

    /// At how many locations (of `domain`, if given) each of these images (at most a page of them) is `active` as shown. Images that are nowhere are
    /// left out.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn active_copies(
        &self,
        images: &[ImageId],
        domain: Option<DomainId>,
        now_us: i64,
    ) -> Result<HashMap<ImageId, u32>, DbError> {
        let active = CacheFilter { status: Some(EntryStatus::Active), domain, ..CacheFilter::default() };
        let count = "SELECT counted.image_id, CAST(COUNT(*) AS BIGINT) AS n FROM (";
        let stmt =
            shown(&active, Some(images), now_us).wrapped(count, ") AS counted GROUP BY counted.image_id");
        let rows = self.rows(stmt).await?;
        rows.iter().map(|row| Ok((row.parse("image_id")?, row.size("n")?))).collect()
    }

    /// Which of these images (at most a page of them) are `active` as shown at a location.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn active_at(
        &self,
        location: LocationId,
        images: &[ImageId],
        now_us: i64,
    ) -> Result<HashSet<ImageId>, DbError> {
        let status = Some(EntryStatus::Active);
        let active = CacheFilter { location: Some(location), status, ..CacheFilter::default() };
        let rows = self.rows(shown(&active, Some(images), now_us)).await?;
        rows.iter().map(|row| row.parse("image_id")).collect()
    }

    /// Contents at a location that no image has any more: the rest of what its disk holds.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn nameless_entries(&self, location: LocationId) -> Result<Vec<Entry>, DbError> {
        let stmt = sql("entry", entries::COLUMNS).text(" WHERE location_id = ").arg(location);
        let stmt =
            stmt.text(" AND NOT EXISTS (SELECT id FROM image WHERE image.content_id = entry.content_id)");
        self.rows(stmt.text(" ORDER BY content_id NULLS FIRST")).await?.iter().map(entries::entry).collect()
    }
}
