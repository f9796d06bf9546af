//! Placements: for which images a copy is at a location.
//!
//! **What.** A row for each image that was wanted where its copy is, or will be.
//! **Why not the content.** Images of several owners may have the same bytes, and one copy serves them all. Asked by content, a copy
//! would tell the owner of one image of the other.
//! **Why not the intents.** Their holds end, those of launches after a day; copies, and the machines on them, stay.
//! **Invariants.** An image that is wanted at a location has a row there. A copy that is gone leaves rows only of images that are
//! wanted there still; a deleted image and a removed location have none.

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{ImageId, LocationId};
use hearth_protocol::message::control::Lease;

use super::error::DbError;
use super::images::seen_as;
use super::intents::{Intent, IntentWish};
use super::leases::{self, lease};
use super::sql::{Stmt, sql};
use super::store::{Db, Tx};
use super::tokens::Scope;

/// Appends the condition that the image and the location of `shown`, a row of the cache list, are placed.
pub(super) fn where_placed(stmt: Stmt) -> Stmt {
    stmt.text(
        " AND EXISTS (SELECT placement.image_id FROM placement \
         WHERE placement.image_id = shown.image_id AND placement.location_id = shown.location_id)",
    )
}

/// Notes what these intents (at most those of one INSERT) want to keep.
pub(super) async fn place(tx: &mut Tx<'_>, intents: &[Intent]) -> Result<(), DbError> {
    let mut pairs: Vec<(ImageId, LocationId)> = intents
        .iter()
        .filter(|intent| intent.wish == IntentWish::Keep)
        .map(|intent| (intent.image, intent.location))
        .collect();
    pairs.sort_unstable();
    pairs.dedup();
    if pairs.is_empty() {
        return Ok(());
    }
    let mut stmt = sql("placement", "INSERT INTO placement (image_id, location_id) VALUES ");
    for (n, (image, location)) in pairs.into_iter().enumerate() {
        stmt = stmt.text(if n == 0 { "(" } else { ", (" }).arg(image).text(", ").arg(location).text(")");
    }
    tx.run(stmt.text(" ON CONFLICT (image_id, location_id) DO NOTHING")).await.map(drop)
}

/// Copies of these contents (at most those of one statement) are gone from a location.
pub(super) async fn gone(
    tx: &mut Tx<'_>,
    location: LocationId,
    contents: impl IntoIterator<Item = ContentId>,
) -> Result<(), DbError> {
    let delete = "DELETE FROM placement WHERE location_id = $1 AND NOT EXISTS (SELECT intent.id FROM intent \
         WHERE intent.image_id = placement.image_id AND intent.location_id = placement.location_id \
         AND intent.wish = 'keep') AND image_id IN (SELECT image.id FROM image WHERE image.content_id IN ";
    let stmt = sql("placement", delete).bind(location).list(contents);
    tx.run(stmt.text(")")).await.map(drop)
}

impl Db {
    /// The leases of a content where its copy is there for this image.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn leases_placed(
        &self,
        image: ImageId,
        content: ContentId,
    ) -> Result<Vec<(LocationId, Lease)>, DbError> {
        let placed =
            " AND location_id IN (SELECT placement.location_id FROM placement WHERE placement.image_id = ";
        let stmt = sql("lease", leases::COLUMNS).text(" WHERE content_id = ").arg(content);
        let stmt = stmt.text(placed).arg(image).text(") ORDER BY location_id, since_us, lease_id");
        self.rows(stmt).await?.iter().map(lease).collect()
    }

    /// Whether `scope` may see another image with this content, in no recycle bin.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn has_twin(&self, scope: Scope, image: ImageId, content: ContentId) -> Result<bool, DbError> {
        let stmt = seen_as("SELECT image.id FROM image", scope).text(" AND image.deleted_us IS NULL");
        let stmt = stmt.text(" AND image.status <> 'pending_delete' AND image.content_id = ").arg(content);
        Ok(self.row(stmt.text(" AND image.id <> ").arg(image).text(" LIMIT 1")).await?.is_some())
    }
}
