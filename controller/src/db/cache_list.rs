//! The cache list: one row per image and location, as people see it. [`super::cache_pages`] pages it.
//!
//! **What.** The union of what is wanted (intents) and what is observed (entries), with one status word; filtered by image,
//! location, status and zone.
//! **Why the status is made in SQL.** Filters and counts must agree with what is shown, and pages must be full.
//! **Why the filters stand twice.** The outer ones decide; the inner ones keep the union small, because an index serves them. What
//! an agent says decides about a row of that status alone, so the others need not be looked at.
//! **Invariants.** A wish without an observation is `queued`; a wish to remove is `deleting` (or `delete_failed`, if the
//! agent says so); a silent location makes its rows `stale`, with the last known state beside it. A copy that nobody wants
//! any more is shown as long as it is there.

use std::collections::{HashMap, HashSet};

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{DomainId, ImageId, LocationId};
use hearth_protocol::words::{EntryStatus, LocationKind};

use super::entries::{self, Entry};
use super::error::DbError;
use super::images::visible_to;
use super::intents::Intent;
use super::placements::where_placed;
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

/// `$1` is the time before which a last sign of life makes a location silent. The smallest of the wishes is `remove` if there are
/// wishes and none is `keep`; two EXISTS would say the same, and PostgreSQL would read the whole table for them.
const ROWS: &str = "SELECT shown.* FROM (SELECT pair.image_id, pair.location_id, im.name AS image_name, \
     im.name_folded AS image_folded, im.content_id AS image_content, l.name AS location_name, \
     l.name_folded AS location_folded, l.kind AS location_kind, l.platform, l.region, l.zone, l.account, l.ip, l.domain_id, \
     e.content_id, e.status, e.reason, e.fault, e.next_try_us, e.done_bytes, e.data_bytes, e.moved_bytes, \
     e.reused_bytes, e.allocated_bytes, e.leases, e.last_used_us, e.reported_us, \
     CASE WHEN l.last_seen_us IS NULL OR l.last_seen_us < $1 THEN 'stale' \
     WHEN e.status = 'delete_failed' THEN 'delete_failed' \
     WHEN (SELECT MIN(w.wish) FROM intent w WHERE w.image_id = pair.image_id AND w.location_id = pair.location_id) = 'remove' \
     THEN 'deleting' WHEN e.status IS NULL THEN 'queued' ELSE e.status END AS shown_status FROM (";

const JOINS: &str = ") AS pair CROSS JOIN image im CROSS JOIN location l \
     LEFT JOIN entry e ON e.location_id = pair.location_id AND e.content_id = im.content_id \
     WHERE im.id = pair.image_id AND l.id = pair.location_id AND im.content_id IS NOT NULL) AS shown WHERE 1 = 1";

/// Copies of an image are found from the image, all others from the entry. CROSS JOIN, here and above, tells SQLite where to
/// begin: it knows nothing of how many rows there are, and would rather read all entries of a state. To PostgreSQL it is a join
/// like any other.
const SEEN_OF_IMAGES: &str = "SELECT image.id AS image_id, entry.location_id FROM image CROSS JOIN entry \
     WHERE entry.content_id = image.content_id AND image.deleted_us IS NULL";
const SEEN: &str = "SELECT image.id AS image_id, entry.location_id FROM entry CROSS JOIN image \
     WHERE image.content_id = entry.content_id AND image.deleted_us IS NULL";

const WANTED: &str = "SELECT intent.image_id, intent.location_id FROM intent WHERE 1 = 1";

/// A wish of which nothing was seen yet.
const NOT_SEEN: &str = " AND intent.wish = 'keep' AND NOT EXISTS (SELECT seen.status FROM entry seen \
     WHERE seen.location_id = intent.location_id AND seen.content_id = intent.content_id)";

/// What the list is looked for in: pairs of image and location, with the filters where indexes serve them.
pub(super) struct Source<'a> {
    pub(super) filter: &'a CacheFilter,
    /// Of these alone.
    pub(super) images: Option<&'a [ImageId]>,
    /// Before this a last sign of life makes a location silent.
    pub(super) silent_us: i64,
}

impl<'a> Source<'a> {
    pub(super) const fn new(filter: &'a CacheFilter, images: Option<&'a [ImageId]>, now_us: i64) -> Self {
        Self { filter, images, silent_us: now_us.saturating_sub(STALE_AFTER_US) }
    }

    /// Appends everything that may be shown. `union` is ` UNION ` or, where a pair may come twice, ` UNION ALL `.
    pub(super) fn pairs(&self, stmt: Stmt, union: &'static str) -> Stmt {
        let of_images = self.images.is_some() || self.filter.image.is_some();
        let stmt = self.seen(stmt.text(if of_images { SEEN_OF_IMAGES } else { SEEN }));
        if self.has_wishes() { self.wanted(stmt.text(union).text(WANTED)) } else { stmt }
    }

    /// Whether there is a row of this status that only an intent tells of.
    pub(super) const fn has_wishes(&self) -> bool {
        use EntryStatus::{Deleting, Queued, Stale};
        matches!(self.filter.status, None | Some(Queued | Deleting | Stale))
    }

    /// Appends the conditions on entries.
    pub(super) fn seen(&self, stmt: Stmt) -> Stmt {
        let stmt = stmt.when(self.filter.image, " AND image.id = ");
        let stmt = match self.images {
            Some(images) => stmt.text(" AND image.id IN ").list(images.iter().copied()),
            None => stmt,
        };
        // Only a wish to remove makes a row `deleting` of which an agent says something else: that row comes from the wish.
        let said = self.filter.status.filter(|status| *status != EntryStatus::Stale);
        let stmt =
            stmt.when(said, " AND entry.status = ").when(self.filter.location, " AND entry.location_id = ");
        self.places(stmt, " AND entry.location_id IN (")
    }

    /// Appends the conditions on intents.
    pub(super) fn wanted(&self, stmt: Stmt) -> Stmt {
        let stmt = stmt.when(self.filter.image, " AND intent.image_id = ");
        let stmt = match self.images {
            Some(images) => stmt.text(" AND intent.image_id IN ").list(images.iter().copied()),
            None => stmt,
        };
        let stmt = stmt.when(self.filter.location, " AND intent.location_id = ");
        let stmt = self.places(stmt, " AND intent.location_id IN (");
        match self.filter.status {
            Some(EntryStatus::Deleting) => stmt.text(" AND intent.wish = 'remove'"),
            Some(EntryStatus::Queued) => stmt.text(NOT_SEEN),
            _ => stmt,
        }
    }

    /// Appends which locations, if a fact of theirs is asked for.
    fn places(&self, stmt: Stmt, text: &'static str) -> Stmt {
        let silent = self.filter.status == Some(EntryStatus::Stale);
        let CacheFilter { zone, location_contains, domain, .. } = self.filter;
        if !silent && zone.is_none() && location_contains.is_none() && domain.is_none() {
            return stmt;
        }
        let mut stmt = stmt.text(text).text("SELECT location.id FROM location WHERE 1 = 1");
        if silent {
            stmt = stmt.text(" AND (location.last_seen_us IS NULL OR location.last_seen_us < ");
            stmt = stmt.arg(self.silent_us).text(")");
        }
        stmt = stmt.when(*domain, " AND location.domain_id = ");
        stmt = stmt.when(zone.as_ref(), " AND location.zone = ");
        if let Some(part) = location_contains {
            stmt = stmt.text(" AND location.name_folded LIKE ").arg(contains(part)).text(" ESCAPE '\\'");
        }
        stmt.text(")")
    }
}

/// All rows that match. `images`: of these alone.
pub(super) fn shown(filter: &CacheFilter, images: Option<&[ImageId]>, now_us: i64) -> Stmt {
    let source = Source::new(filter, images, now_us);
    let stmt = source.pairs(sql("entry", ROWS).bind(source.silent_us), " UNION ").text(JOINS);
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

/// A row; its intents are read apart.
pub(super) fn cache_row(row: &Row) -> Result<CacheRow, DbError> {
    let entry = if row.opt_text("content_id")?.is_some() { Some(entries::entry(row)?) } else { None };
    Ok(CacheRow {
        image: row.parse("image_id")?,
        image_name: row.text("image_name")?,
        content: row.parse("image_content")?,
        location: row.parse("location_id")?,
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
    })
}

/// Copies of an image that are `active` as shown. Counted for each image by itself: joined, PostgreSQL would read all entries.
const ACTIVE: &str = "SELECT image.id AS image_id, (SELECT CAST(COUNT(*) AS BIGINT) FROM entry \
     WHERE entry.content_id = image.content_id AND entry.status = 'active' AND COALESCE((SELECT MIN(w.wish) FROM intent w \
     WHERE w.image_id = image.id AND w.location_id = entry.location_id), 'keep') = 'keep' AND entry.location_id NOT IN \
     (SELECT location.id FROM location WHERE location.last_seen_us IS NULL OR location.last_seen_us < ";

impl Db {
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

    /// At how many locations (of `domain`, if given) each of these images (at most a page of them) is `active` as shown. Images
    /// that are nowhere are left out.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn active_copies(
        &self,
        images: &[ImageId],
        domain: Option<DomainId>,
        now_us: i64,
    ) -> Result<HashMap<ImageId, u32>, DbError> {
        let mut stmt = sql("entry", ACTIVE).arg(now_us.saturating_sub(STALE_AFTER_US)).text(")");
        if let Some(domain) = domain {
            let inside =
                " AND entry.location_id IN (SELECT location.id FROM location WHERE location.domain_id = ";
            stmt = stmt.text(inside).arg(domain).text(")");
        }
        let stmt = stmt.text(") AS n FROM image WHERE image.deleted_us IS NULL AND image.id IN ");
        let stmt = stmt.list(images.iter().copied());
        let mut copies = HashMap::new();
        for row in self.rows(stmt).await? {
            let n: u32 = row.size("n")?;
            if n > 0 {
                copies.insert(row.parse("image_id")?, n);
            }
        }
        Ok(copies)
    }

    /// Which of these images (at most a page of them) are `active` as shown at a location. `placed`: only those for which the
    /// copy is there, not also those that happen to have the same bytes ([`super::placements`]).
    ///
    /// # Errors
    /// A failed statement.
    pub async fn active_at(
        &self,
        location: LocationId,
        images: &[ImageId],
        placed: bool,
        now_us: i64,
    ) -> Result<HashSet<ImageId>, DbError> {
        let status = Some(EntryStatus::Active);
        let active = CacheFilter { location: Some(location), status, ..CacheFilter::default() };
        let stmt = shown(&active, Some(images), now_us);
        let rows = self.rows(if placed { where_placed(stmt) } else { stmt }).await?;
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
