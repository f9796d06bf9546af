//! The catalog as lists: filters, orders, pages and counts.
//!
//! **What.** [`ImageFilter`] narrows what a scope may see; [`ImageOrder`] sorts it; pages go on after the sort key of their
//! last row.
//! **Why the key and the id.** Names, sizes and states repeat: the id breaks the tie, so that a row that is written while
//! somebody pages is shown once or not at all, never twice, and none that stays is left out.
//! **Invariants.** A cursor goes on in the order that made it, in no other. The recycle bin is in no list that does not ask
//! for it. Each order has an index.

use hearth_protocol::api::Page;
use hearth_protocol::api::image::{COUNT_MAX, Count};
use hearth_protocol::id::{DomainId, ProjectId};
use hearth_protocol::words::{
    Architecture, DiskFormat, ImageKind, ImageSort, ImageStatus, OsType, SortOrder, Virtualisation,
    Visibility,
};

use super::error::DbError;
use super::grams::{fold, is_piece, where_name_holds, where_searched};
use super::images::{Image, image};
use super::narrow::{Set, within};
use super::page::PageRequest;
use super::shares::{View, viewed, viewed_as};
use super::sql::Stmt;
use super::store::Db;
use super::tokens::Scope;

/// Which images to list. The default lists all that the scope sees but the recycle bin.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ImageFilter {
    /// The whole name, without regard to case.
    pub name: Option<String>,
    /// Part of the name, without regard to case.
    pub name_contains: Option<String>,
    /// Part of name or description, or begin of the status word.
    pub search: Option<String>,
    /// All of these tags, without regard to case.
    pub tags: Vec<String>,
    /// State; the recycle bin is listed by this alone.
    pub status: Option<ImageStatus>,
    /// Kind.
    pub kind: Option<ImageKind>,
    /// Format of the original.
    pub format: Option<DiskFormat>,
    /// Operating system.
    pub os_type: Option<OsType>,
    /// CPU architecture.
    pub architecture: Option<Architecture>,
    /// What it was built to run on.
    pub virtualisation: Option<Virtualisation>,
    /// Visibility.
    pub visibility: Option<Visibility>,
    /// Owning domain.
    pub domain: Option<DomainId>,
    /// Owning project.
    pub project: Option<ProjectId>,
    /// Whether it refuses deletion.
    pub protected: Option<bool>,
    /// At least this large, as a guest sees it.
    pub bytes_min: Option<u64>,
    /// At most this large.
    pub bytes_max: Option<u64>,
    /// Made at this time or later, microseconds since the epoch.
    pub created_from_us: Option<i64>,
    /// Made before this time.
    pub created_to_us: Option<i64>,
    /// Last changed at this time or later.
    pub updated_from_us: Option<i64>,
    /// Last changed before this time.
    pub updated_to_us: Option<i64>,
    /// Part of the catalog.
    pub view: View,
}

/// How to sort a list of images; the default is newest first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ImageOrder {
    /// By what.
    pub by: ImageSort,
    /// Which end first.
    pub order: SortOrder,
}

impl Default for ImageOrder {
    fn default() -> Self {
        Self { by: ImageSort::Created, order: SortOrder::Desc }
    }
}

impl ImageOrder {
    /// The word that a cursor begins with.
    fn word(self) -> String {
        format!("{} {}", self.by, self.order)
    }

    /// The sort key of a row, as a cursor holds it.
    fn key(self, image: &Image) -> String {
        match self.by {
            ImageSort::Name => fold(&image.facts.name),
            ImageSort::Size => image.virtual_bytes.unwrap_or(0).to_string(),
            ImageSort::Created => image.created_us.to_string(),
            ImageSort::Updated => image.updated_us.to_string(),
            ImageSort::Status => image.status.to_string(),
        }
    }

    /// Whether the key is a number.
    const fn is_number(self) -> bool {
        matches!(self.by, ImageSort::Size | ImageSort::Created | ImageSort::Updated)
    }

    /// "After the last row" and the order itself.
    const fn texts(self) -> (&'static str, &'static str) {
        use ImageSort::{Created, Name, Size, Status, Updated};
        use SortOrder::{Asc, Desc};
        match (self.by, self.order) {
            (Name, Asc) => {
                (" AND (image.name_folded, image.id) > (", " ORDER BY image.name_folded, image.id LIMIT ")
            }
            (Name, Desc) => (
                " AND (image.name_folded, image.id) < (",
                " ORDER BY image.name_folded DESC, image.id DESC LIMIT ",
            ),
            (Size, Asc) => (
                " AND (COALESCE(image.virtual_bytes, 0), image.id) > (",
                " ORDER BY COALESCE(image.virtual_bytes, 0), image.id LIMIT ",
            ),
            (Size, Desc) => (
                " AND (COALESCE(image.virtual_bytes, 0), image.id) < (",
                " ORDER BY COALESCE(image.virtual_bytes, 0) DESC, image.id DESC LIMIT ",
            ),
            (Created, Asc) => {
                (" AND (image.created_us, image.id) > (", " ORDER BY image.created_us, image.id LIMIT ")
            }
            (Created, Desc) => (
                " AND (image.created_us, image.id) < (",
                " ORDER BY image.created_us DESC, image.id DESC LIMIT ",
            ),
            (Updated, Asc) => {
                (" AND (image.updated_us, image.id) > (", " ORDER BY image.updated_us, image.id LIMIT ")
            }
            (Updated, Desc) => (
                " AND (image.updated_us, image.id) < (",
                " ORDER BY image.updated_us DESC, image.id DESC LIMIT ",
            ),
            (Status, Asc) => (
                " AND (COALESCE(image.status, ''), image.id) > (",
                " ORDER BY COALESCE(image.status, ''), image.id LIMIT ",
            ),
            (Status, Desc) => (
                " AND (COALESCE(image.status, ''), image.id) < (",
                " ORDER BY COALESCE(image.status, '') DESC, image.id DESC LIMIT ",
            ),
        }
    }
}

const IDS: &str = "SELECT image.id FROM image";

/// Images that are collected and sorted for a page in another order than that of the index that has the facts.
const FEW: usize = 2_000;

impl ImageFilter {
    /// Whether it asks for something, and only for what the index of the usual order has.
    fn is_by_facts(&self, scope: Scope) -> bool {
        let usual = Self { status: Some(ImageStatus::Active), ..Self::default() };
        let has_texts = self.name.is_some() || self.name_contains.is_some() || self.search.is_some();
        let is_common = *self == Self::default() || *self == usual;
        !has_texts && self.tags.is_empty() && (!is_common || scope != Scope::System)
    }
}

impl Db {
    /// All images of a list, if they are at most [`FEW`].
    async fn few(&self, scope: Scope, filter: &ImageFilter) -> Result<Option<Vec<String>>, DbError> {
        let stmt = filtered(viewed_as(IDS, scope, filter.view), filter, ImageSort::Created, None);
        let stmt = stmt.text(" ORDER BY image.created_us DESC, image.id DESC LIMIT ").arg(FEW as u64 + 1);
        let ids = self.each(stmt, |row| row.text("id")).await?;
        Ok((ids.len() <= FEW).then_some(ids))
    }

    /// Images that `scope` may see, newest first.
    ///
    /// # Errors
    /// [`DbError::Cursor`] or a failed statement.
    pub async fn images(
        &self,
        scope: Scope,
        filter: &ImageFilter,
        page: &PageRequest,
    ) -> Result<Page<Image>, DbError> {
        self.images_by(scope, filter, ImageOrder::default(), page).await
    }

    /// Images that `scope` may see, sorted.
    ///
    /// # Errors
    /// [`DbError::Cursor`] or a failed statement.
    pub async fn images_by(
        &self,
        scope: Scope,
        filter: &ImageFilter,
        order: ImageOrder,
        page: &PageRequest,
    ) -> Result<Page<Image>, DbError> {
        let narrow = self.narrowest(Set::of(scope, filter)).await?;
        let mut stmt = filtered(viewed(scope, filter.view), filter, order.by, narrow.as_ref());
        let few = match &narrow {
            None if order.by != ImageSort::Created && filter.is_by_facts(scope) => {
                self.few(scope, filter).await?
            }
            _ => None,
        };
        stmt = match few {
            Some(few) => stmt.text(" AND image.id IN ").list(few),
            None => within(stmt, narrow.as_ref()),
        };
        let (after, ordered) = order.texts();
        if let Some([word, key, id]) = page.key()? {
            if word != order.word() {
                return Err(DbError::Cursor);
            }
            stmt = stmt.text(after);
            stmt = if order.is_number() {
                stmt.arg(key.parse::<i64>().map_err(|_| DbError::Cursor)?)
            } else {
                stmt.arg(key)
            };
            stmt = stmt.text(", ").arg(id).text(")");
        }
        let rows = self.rows(stmt.text(ordered).arg(page.fetch())).await?;
        let images = rows.iter().map(image).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(images, |image| [order.word(), order.key(image), image.id.to_string()]))
    }

    /// How many images that `scope` may see match; exact up to [`COUNT_MAX`], because counting reads every row.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn count_images(&self, scope: Scope, filter: &ImageFilter) -> Result<Count, DbError> {
        let narrow = self.narrowest_to_count(Set::of(scope, filter)).await?;
        let ids = narrow.as_ref().map_or(IDS, Set::ids_to_join);
        let stmt = filtered(viewed_as(ids, scope, filter.view), filter, ImageSort::Created, narrow.as_ref());
        // In an order, or SQLite would read the rows in that of an index that does not have the facts.
        let stmt = match &narrow {
            Some(set) => set.joined(stmt),
            None => stmt.text(" ORDER BY image.created_us DESC, image.id DESC"),
        };
        let stmt = stmt.text(" LIMIT ").arg(COUNT_MAX + 1);
        let stmt = stmt.wrapped("SELECT CAST(COUNT(*) AS BIGINT) AS n FROM (", ") AS counted");
        let found: u32 = self.row(stmt).await?.map_or(Ok(0), |row| row.size("n"))?;
        Ok(Count { rows: found.min(COUNT_MAX), more: found > COUNT_MAX })
    }
}

/// Adds the conditions of `filter` for a list in the order of `by`, but for what all images of `given` have anyway.
///
/// What many images may have in common is compared as an expression, which no index serves: SQLite would collect and sort all of
/// them for each page. [`super::narrow`] begins with them where they are few.
fn filtered(stmt: Stmt, filter: &ImageFilter, by: ImageSort, given: Option<&Set>) -> Stmt {
    let mut stmt = stmt.text(" AND image.deleted_us IS NULL");
    stmt = match filter.status {
        Some(status) => stmt.text(" AND image.status = ").arg(status),
        None => stmt.text(" AND image.status <> 'pending_delete'"),
    };
    stmt = stmt.when(filter.name.as_deref().map(fold), " AND image.name_folded = ");
    if let Some(part) = &filter.name_contains {
        stmt = where_name_holds(stmt, part);
    }
    let text = filter.search.as_deref().map(fold);
    if let Some(text) = text.filter(|text| !is_piece(text) || given != Some(&Set::Gram(text.clone()))) {
        stmt = where_searched(stmt, &text);
    }
    for tag in filter.tags.iter().filter(|tag| given != Some(&Set::Tag(fold(tag)))) {
        stmt = stmt.text(
            " AND EXISTS (SELECT image_tag.tag_folded FROM image_tag WHERE image_tag.image_id = image.id",
        );
        stmt = stmt.text(" AND image_tag.tag_folded = ").arg(fold(tag)).text(")");
    }
    stmt = stmt.when(filter.kind, " AND image.kind = ").when(filter.format, " AND image.format = ");
    stmt = stmt.when(filter.os_type, " AND image.os_type = ");
    stmt = stmt.when(filter.architecture, " AND image.architecture = ");
    stmt = stmt.when(filter.virtualisation, " AND image.virtualisation = ");
    stmt = stmt.when(filter.visibility, " AND image.visibility = ");
    stmt = stmt.when(filter.domain, " AND COALESCE(image.domain_id, '') = ");
    stmt = stmt.when(filter.project, " AND COALESCE(image.project_id, '') = ");
    stmt = stmt.when(filter.protected, " AND image.protected = ");
    stmt = stmt.when(filter.bytes_min, " AND COALESCE(image.virtual_bytes, 0) + 0 >= ");
    stmt = stmt.when(filter.bytes_max, " AND COALESCE(image.virtual_bytes, 0) + 0 <= ");
    let (from, to) = match by {
        ImageSort::Created => (" AND image.created_us >= ", " AND image.created_us < "),
        _ => (" AND image.created_us + 0 >= ", " AND image.created_us + 0 < "),
    };
    stmt = stmt.when(filter.created_from_us, from).when(filter.created_to_us, to);
    let (from, to) = match by {
        ImageSort::Updated => (" AND image.updated_us >= ", " AND image.updated_us < "),
        _ => (" AND image.updated_us + 0 >= ", " AND image.updated_us + 0 < "),
    };
    stmt.when(filter.updated_from_us, from).when(filter.updated_to_us, to)
}
