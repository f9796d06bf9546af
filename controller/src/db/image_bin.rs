//! The catalog: how images are closed, put into the recycle bin, brought back and destroyed.
//!
//! ```text
//! active ◄──set_deactivated──► deactivated          queued, saving, importing ──cancel_image──► deleted
//! active, deactivated, killed ──bin_image──► pending_delete ──purge_image, delete_image──► deleted
//!                             ◄──restore_image──┘
//! ```
//!
//! **Why the name is free in the bin.** Who deletes an image often wants to make it anew under the same name at once; who wants
//! the old one back can give it another.
//! **Why intents stay in the bin.** A restored image is what it was: held where it was held. The fleet begins no transfer for
//! an image that is not active, so nothing new comes to be meanwhile.
//! **Invariants.** An image in the bin keeps its content and its original. A deleted image refers to no content and has no
//! intents. Whoever destroys checks the state inside the transaction, so a restore and the end of the days in the bin cannot
//! both win. Jobs end with their image or not at all.

use hearth_protocol::id::ImageId;
use hearth_protocol::words::{ImageStatus, Visibility};
use serde_json::json;

use super::changes::Change;
use super::error::DbError;
use super::host_image_changes::refuse_member;
use super::image_edits::{must_be_current, name_key};
use super::images::Image;
use super::operations::Draft;
use super::prewarms::{cancel_all, unfinished_of};
use super::sql::sql;
use super::store::{Db, Tx};

/// States that go into the recycle bin (manual S3); what is still being made is cancelled instead.
const BINNABLE: [ImageStatus; 3] = [ImageStatus::Active, ImageStatus::Deactivated, ImageStatus::Killed];
/// States of an image that is being made.
const UNFINISHED: [ImageStatus; 3] = [ImageStatus::Queued, ImageStatus::Saving, ImageStatus::Importing];

/// Images that one pass of the purge takes: bounds a pass, the next one goes on.
const PURGED_MAX: i64 = 100;

impl Db {
    /// Closes an active image to users, or opens a closed one again.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] or a failed statement.
    pub async fn set_deactivated(&self, id: ImageId, closed: bool, op: &Draft) -> Result<Image, DbError> {
        let (from, to, allowed) = if closed {
            (ImageStatus::Active, ImageStatus::Deactivated, "only an active image can be deactivated")
        } else {
            (ImageStatus::Deactivated, ImageStatus::Active, "only a deactivated image can be reactivated")
        };
        self.write_tx(move |tx| {
            Box::pin(async move {
                tx.image_in(id, &[from], allowed).await?;
                tx.set_status(id, to, None, "").await?;
                tx.revised(id).await?;
                tx.record(&op.clone().with(became(from, to))).await?;
                tx.image(id).await
            })
        })
        .await
    }

    /// Puts an image into the recycle bin: it is hidden from lists, its name is free, its files stay.
    ///
    /// # Errors
    /// [`DbError::NotFound`]; [`DbError::State`] if it is being made, in the bin, protected, public or being prewarmed;
    /// [`DbError::Revision`]; or a failed statement.
    pub async fn bin_image(&self, id: ImageId, if_match: Option<u64>, op: &Draft) -> Result<Image, DbError> {
        self.bin_image_with(id, if_match, PrewarmJobs::Keep, op).await
    }

    /// As [`Db::bin_image`]; `jobs` says what becomes of its prewarm jobs.
    ///
    /// # Errors
    /// As [`Db::bin_image`]; then its jobs go on.
    pub async fn bin_image_with(
        &self,
        id: ImageId,
        if_match: Option<u64>,
        jobs: PrewarmJobs,
        op: &Draft,
    ) -> Result<Image, DbError> {
        let update = "UPDATE image SET status = 'pending_delete', binned_from = $1, binned_us = $2, name_key = $3, \
             updated_us = $2, revision = revision + 1 WHERE id = $3";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let allowed = "only an active, deactivated or killed image goes into the recycle bin";
                let image = tx.image_in(id, &BINNABLE, allowed).await?;
                let_go(tx, &image, if_match, jobs, op).await?;
                let stmt = sql("image", update).bind(image.status).bind(tx.now_us()).bind(id);
                tx.run(stmt).await?;
                tx.changed(Change::Image(id));
                tx.record(&op.clone().with(became(image.status, ImageStatus::PendingDelete))).await?;
                tx.image(id).await
            })
        })
        .await
    }

    /// Takes an image out of the recycle bin, back into the state it had; under `name` if its own is taken.
    ///
    /// # Errors
    /// [`DbError::NotFound`]; [`DbError::State`] if it is not in the bin; [`DbError::Exists`] if the name is taken; or a
    /// failed statement.
    pub async fn restore_image(&self, id: ImageId, name: Option<&str>, op: &Draft) -> Result<Image, DbError> {
        let update = "UPDATE image SET status = $1, binned_from = NULL, binned_us = NULL, name = $2, name_folded = $3, \
             name_key = $4, updated_us = $5, revision = revision + 1 WHERE id = $6";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let from = [ImageStatus::PendingDelete];
                let image = tx.image_in(id, &from, "only what is in the recycle bin can be restored").await?;
                let status = image.kept_as();
                let name = name.unwrap_or(&image.facts.name);
                let stmt = sql("image", update).bind(status).bind(name).bind(super::grams::fold(name));
                let stmt = stmt.bind(name_key(image.project, name)).bind(tx.now_us()).bind(id);
                tx.run(stmt).await.map_err(|error| error.or_exists("image", name))?;
                tx.put_grams(id, name, &image.facts.description).await?;
                tx.changed(Change::Image(id));
                // Intents that waited in the bin may begin.
                tx.changed(Change::Intents);
                let mut details = became(ImageStatus::PendingDelete, status);
                if name != image.facts.name {
                    details["before"]["name"] = json!(image.facts.name);
                    details["after"]["name"] = json!(name);
                }
                tx.record(&op.clone().with(details)).await?;
                tx.image(id).await
            })
        })
        .await
    }

    /// Destroys an image in whatever state: frees its name, deletes its intents (copies stay as unheld cache) and lets go of
    /// its content. Returns the record as it was; the caller removes the original's file and calls
    /// [`Db::forget_content`](super::contents) for the content.
    ///
    /// # Errors
    /// [`DbError::NotFound`]; [`DbError::State`] if it is protected, public or a prewarm job of it is not over;
    /// [`DbError::Revision`]; or a failed statement.
    pub async fn delete_image(
        &self,
        id: ImageId,
        if_match: Option<u64>,
        op: &Draft,
    ) -> Result<Image, DbError> {
        self.delete_image_with(id, if_match, PrewarmJobs::Keep, op).await
    }

    /// As [`Db::delete_image`]; `jobs` says what becomes of its prewarm jobs.
    ///
    /// # Errors
    /// As [`Db::delete_image`]; then its jobs go on.
    pub async fn delete_image_with(
        &self,
        id: ImageId,
        if_match: Option<u64>,
        jobs: PrewarmJobs,
        op: &Draft,
    ) -> Result<Image, DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let image = tx.live_image(id).await?;
                let_go(tx, &image, if_match, jobs, op).await?;
                destroy_in(tx, &image, "the image was deleted", op).await?;
                Ok(image)
            })
        })
        .await
    }

    /// Destroys an image that is still being made: its job ends. As [`Db::delete_image`] otherwise.
    ///
    /// # Errors
    /// [`DbError::NotFound`]; [`DbError::State`] if it is not being made, or protected; or a failed statement.
    pub async fn cancel_image(&self, id: ImageId, op: &Draft) -> Result<Image, DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let allowed = "only a queued, saving or importing image can be cancelled";
                let image = tx.image_in(id, &UNFINISHED, allowed).await?;
                let_go(tx, &image, None, PrewarmJobs::Keep, op).await?;
                destroy_in(tx, &image, "the import was cancelled", op).await?;
                Ok(image)
            })
        })
        .await
    }

    /// Destroys the record of an image that was to be made together with its bytes, which did not come. Nobody used it, so
    /// nothing that was said of it keeps it.
    ///
    /// # Errors
    /// [`DbError::NotFound`]; [`DbError::State`] if it has bytes; or a failed statement.
    pub async fn take_back_image(&self, id: ImageId, op: &Draft) -> Result<Image, DbError> {
        let from = [ImageStatus::Queued, ImageStatus::Saving, ImageStatus::Killed];
        self.write_tx(move |tx| {
            Box::pin(async move {
                let image = tx.image_in(id, &from, "only an image without bytes can be taken back").await?;
                destroy_in(tx, &image, "its file did not come", op).await?;
                Ok(image)
            })
        })
        .await
    }

    /// Destroys an image that came into the recycle bin at `before_us` or earlier; `None` if it is not there any more.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn purge_image(
        &self,
        id: ImageId,
        before_us: i64,
        op: &Draft,
    ) -> Result<Option<Image>, DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let image = tx.image(id).await?;
                let due = image.binned.is_some_and(|binned| binned.since_us <= before_us);
                if image.status != ImageStatus::PendingDelete || !due {
                    return Ok(None);
                }
                destroy_in(tx, &image, "the image was deleted", op).await?;
                Ok(Some(image))
            })
        })
        .await
    }

    /// Images that came into the recycle bin at `before_us` or earlier, longest there first; some of many.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn binned_before(&self, before_us: i64) -> Result<Vec<(ImageId, String)>, DbError> {
        let stmt =
            sql("image", "SELECT id, name FROM image WHERE status = 'pending_delete' AND binned_us <= ");
        let stmt = stmt.arg(before_us).text(" ORDER BY binned_us NULLS FIRST, id LIMIT ").arg(PURGED_MAX);
        self.rows(stmt).await?.iter().map(|row| Ok((row.parse("id")?, row.text("name")?))).collect()
    }
}

/// What the log says of a change of state.
fn became(from: ImageStatus, to: ImageStatus) -> serde_json::Value {
    json!({ "before": { "status": from }, "after": { "status": to } })
}

/// What becomes of the prewarm jobs of an image that is to go.
#[derive(Clone, Copy, Debug)]
pub enum PrewarmJobs {
    /// They keep it.
    Keep,
    /// They are cancelled, once nothing else keeps it.
    Cancel,
}

/// Refuses what keeps an image from going, into the bin or for good.
async fn let_go(
    tx: &mut Tx<'_>,
    image: &Image,
    if_match: Option<u64>,
    jobs: PrewarmJobs,
    op: &Draft,
) -> Result<(), DbError> {
    must_be_current(image, if_match)?;
    let refused = |state: &str, allowed| {
        Err(DbError::State { what: "image", key: image.facts.name.clone(), state: state.to_owned(), allowed })
    };
    if image.facts.protected {
        return refused("protected", "remove the protection first");
    }
    // What is still being made was used by nobody yet.
    if image.facts.visibility == Visibility::Public && !UNFINISHED.contains(&image.status) {
        return refused("public", "make it custom first");
    }
    refuse_member(tx, image).await?;
    let unfinished = unfinished_of(tx, image.id).await?;
    match jobs {
        PrewarmJobs::Keep if !unfinished.is_empty() => {
            refused("being prewarmed", "cancel its prewarm jobs first")
        }
        PrewarmJobs::Keep => Ok(()),
        PrewarmJobs::Cancel => cancel_all(tx, &unfinished, op).await,
    }
}

async fn destroy_in(tx: &mut Tx<'_>, image: &Image, why: &str, op: &Draft) -> Result<(), DbError> {
    let id = image.id;
    tx.delete_grams(id).await?;
    tx.delete_shares(id).await?;
    tx.delete_variants(id).await?;
    tx.delete_tags(id).await?;
    tx.delete_note(id).await?;
    tx.run(sql("intent", "DELETE FROM intent WHERE image_id = $1").bind(id)).await?;
    tx.run(sql("placement", "DELETE FROM placement WHERE image_id = $1").bind(id)).await?;
    tx.close_upload(id).await?;
    tx.run(sql("market_import", "DELETE FROM market_import WHERE image_id = $1").bind(id)).await?;
    // The spec of a fetch may hold a password.
    let jobs = "UPDATE job SET state = 'failed', spec = '{}', error = $1, updated_us = $2 \
         WHERE image_id = $3 AND state IN ('queued', 'running')";
    tx.run(sql("job", jobs).bind(why).bind(tx.now_us()).bind(id)).await?;
    let update = "UPDATE image SET status = 'deleted', stage = NULL, name_key = $1, content_id = NULL, \
         binned_us = NULL, binned_from = NULL, revision = revision + 1, deleted_us = $2, updated_us = $2 WHERE id = $1";
    tx.run(sql("image", update).bind(id).bind(tx.now_us())).await?;
    for change in [Change::Image(id), Change::Intents, Change::Jobs] {
        tx.changed(change);
    }
    tx.record(&op.clone().with(became(image.status, ImageStatus::Deleted))).await
}
