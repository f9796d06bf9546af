//! Where the disks of a host image are: one row per location.
//!
//! **What.** The cache list of the disks' images, summed up by location; the state is made of the counts by
//! [`crate::logic::host_state`].
//! **Why not a page of the cache list.** A page could end between two disks of one location.
//! **Invariants.** States are those that the cache list shows, `stale` included.

use hearth_protocol::api::Page;
use hearth_protocol::id::{ImageId, LocationId};
use hearth_protocol::words::{EntryStatus, LocationKind};

use super::cache_list::{CacheFilter, shown};
use super::error::DbError;
use super::page::PageRequest;
use super::sql::Row;
use super::store::Db;

/// A location where some of the images are wanted or seen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostCacheRow {
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
    /// One state per image that is wanted or seen there, in the order of the words.
    pub entries: Vec<EntryStatus>,
    /// Raw bytes that are verified there.
    pub done_bytes: u64,
}

const PLACES: &str = "SELECT placed.location_id, placed.location_name, placed.location_folded, placed.location_kind, placed.platform, \
     placed.region, placed.zone FROM (";
const BY_PLACE: &str = ") AS placed GROUP BY placed.location_id, placed.location_name, placed.location_folded, placed.location_kind, \
     placed.platform, placed.region, placed.zone";
const COUNTS: &str = "SELECT placed.location_id, placed.shown_status, CAST(COUNT(*) AS BIGINT) AS n, \
     CAST(SUM(COALESCE(placed.done_bytes, 0)) AS BIGINT) AS done_bytes FROM (";

fn place(row: &Row) -> Result<(HostCacheRow, String), DbError> {
    let found = HostCacheRow {
        location: row.parse("location_id")?,
        location_name: row.text("location_name")?,
        location_kind: row.parse("location_kind")?,
        platform: row.text("platform")?,
        region: row.text("region")?,
        zone: row.text("zone")?,
        entries: Vec::new(),
        done_bytes: 0,
    };
    Ok((found, row.text("location_folded")?))
}

impl Db {
    /// Locations where at least one of these images is wanted or seen, by name, with the states there.
    ///
    /// # Errors
    /// [`DbError::Cursor`] or a failed statement.
    pub async fn host_cache_rows(
        &self,
        images: &[ImageId],
        page: &PageRequest,
        now_us: i64,
    ) -> Result<Page<HostCacheRow>, DbError> {
        let mut stmt = shown(&CacheFilter::default(), Some(images), now_us);
        if let Some([name, id]) = page.key()? {
            stmt = stmt.text(" AND (shown.location_folded, shown.location_id) > (").arg(name);
            stmt = stmt.text(", ").arg(id).text(")");
        }
        let stmt = stmt.wrapped(PLACES, BY_PLACE);
        let stmt =
            stmt.text(" ORDER BY placed.location_folded NULLS FIRST, placed.location_id NULLS FIRST LIMIT ");
        let rows = self.rows(stmt.arg(page.fetch())).await?;
        let places = rows.iter().map(place).collect::<Result<Vec<_>, _>>()?;
        let places = page.page(places, |(row, folded)| [folded.clone(), row.location.to_string()]);
        let mut items: Vec<HostCacheRow> = places.items.into_iter().map(|(row, _)| row).collect();
        self.add_entries(images, &mut items, now_us).await?;
        Ok(Page { items, next: places.next })
    }

    /// What is at each of these locations.
    async fn add_entries(
        &self,
        images: &[ImageId],
        places: &mut [HostCacheRow],
        now_us: i64,
    ) -> Result<(), DbError> {
        if places.is_empty() {
            return Ok(());
        }
        let stmt = shown(&CacheFilter::default(), Some(images), now_us).text(" AND shown.location_id IN ");
        let stmt = stmt.list(places.iter().map(|place| place.location));
        let rows = self
            .rows(stmt.wrapped(COUNTS, ") AS placed GROUP BY placed.location_id, placed.shown_status"))
            .await?;
        for row in &rows {
            let location: LocationId = row.parse("location_id")?;
            let Some(place) = places.iter_mut().find(|place| place.location == location) else { continue };
            let (status, n): (EntryStatus, usize) = (row.parse("shown_status")?, row.size("n")?);
            place.entries.extend(std::iter::repeat_n(status, n));
            place.entries.sort_unstable();
            place.done_bytes += row.size::<u64>("done_bytes")?;
        }
        Ok(())
    }
}
