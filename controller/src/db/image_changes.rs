//! The catalog: how image records come to be, change and go.
//!
//! ```text
//! create ─► queued ──open_upload───► saving ──finish_upload──► importing ──finish_import──► active
//!             ▲   ◄──abort_upload──────┘  └────fail_image────► killed ◄──fail_image──┘
//!             └──────────────open_upload (again)───────────────┘          any ──delete_image──► deleted
//! ```
//! The arrows of uploads stand in [`super::uploads`].
//!
//! **Invariants.** Each arrow checks the state it leaves, so two uploads or a job and a delete cannot both win. `revision`
//! counts edits by people, not progress: an `If-Match` does not fail because a percentage moved. A deleted image refers to
//! no content and has no intents.

use hearth_protocol::api::image::Checksums;
use hearth_protocol::id::{ImageId, JobId, ProjectId};
use hearth_protocol::words::{DiskFormat, ImageStatus, ImportStage};

use super::changes::Change;
use super::contents::Content;
use super::error::DbError;
use super::grams::fold;
use super::images::{Image, ImageFacts, NewImage};
use super::jobs::JobState;
use super::operations::Draft;
use super::sql::{sql, to_json};
use super::store::{Db, Tx};

/// What is known of a file when its upload ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Original {
    /// Its size.
    pub bytes: u64,
    /// Its checksums; all four.
    pub checksums: Checksums,
}

/// What an import found out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Imported {
    /// The content that is now stored.
    pub content: Content,
    /// What the file really was.
    pub format: DiskFormat,
    /// Whether the original is kept.
    pub original_kept: bool,
}

/// One live image per project and folded name; the id frees the name of a deleted one.
fn name_key(project: ProjectId, name: &str) -> String {
    format!("{project} {}", fold(name))
}

fn wrong_state(image: &Image, allowed: &'static str) -> DbError {
    DbError::State { what: "image", key: image.facts.name.clone(), state: image.status.to_string(), allowed }
}

impl Tx<'_> {
    /// The image if it is not deleted and in one of `states`.
    pub(super) async fn image_in(
        &mut self,
        id: ImageId,
        states: &[ImageStatus],
        allowed: &'static str,
    ) -> Result<Image, DbError> {
        let image = self.live_image(id).await?;
        if states.contains(&image.status) { Ok(image) } else { Err(wrong_state(&image, allowed)) }
    }

    async fn live_image(&mut self, id: ImageId) -> Result<Image, DbError> {
        let image = self.image(id).await?;
        match image.deleted_us {
            None => Ok(image),
            Some(_) => Err(DbError::NotFound { what: "image", key: id.to_string() }),
        }
    }

    pub(super) async fn set_status(
        &mut self,
        id: ImageId,
        status: ImageStatus,
        stage: Option<ImportStage>,
        reason: &str,
    ) -> Result<(), DbError> {
        let update = "UPDATE image SET status = $1, stage = $2, percent = 0, reason = $3, updated_us = $4 WHERE id = $5";
        let stmt = sql("image", update).bind(status).bind(stage).bind(reason).bind(self.now_us()).bind(id);
        self.run(stmt).await?;
        self.changed(Change::Image(id));
        Ok(())
    }
}

impl Db {
    /// Makes the record of an image, `queued` and without bytes.
    ///
    /// # Errors
    /// [`DbError::Exists`] if the project has an image of this name, or a failed statement.
    pub async fn create_image(&self, new: &NewImage, op: &Draft) -> Result<(), DbError> {
        let insert = "INSERT INTO image (id, name, name_folded, name_key, kind, status, percent, reason, format, \
             container_format, visibility, domain_id, project_id, architecture, os_type, distribution, version, \
             description, min_disk_bytes, min_memory_bytes, protected, properties, expected, original_kept, revision, \
             created_us, updated_us) VALUES ($1, $2, $3, $4, $5, 'queued', 0, '', $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, \
             $17, $18, $19, $20, 0, 1, $21, $21)";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let facts = &new.facts;
                let stmt = sql("image", insert).bind(new.id).bind(&facts.name).bind(fold(&facts.name));
                let stmt = stmt.bind(name_key(new.project, &facts.name)).bind(new.kind).bind(new.format);
                let stmt = stmt
                    .bind(&new.container_format)
                    .bind(facts.visibility)
                    .bind(new.domain)
                    .bind(new.project);
                let stmt = stmt.bind(&facts.architecture).bind(&facts.os_type).bind(&facts.distribution);
                let stmt = stmt.bind(&facts.version).bind(&facts.description).bind(facts.min_disk_bytes);
                let stmt =
                    stmt.bind(facts.min_memory_bytes).bind(facts.protected).bind(to_json(&facts.properties));
                let stmt = stmt.bind(to_json(&new.expected));
                let inserted = tx.run(stmt.bind(tx.now_us())).await;
                inserted.map_err(|error| error.or_exists("image", &facts.name))?;
                tx.put_grams(new.id, &facts.name).await?;
                tx.changed(Change::Image(new.id));
                tx.record(op).await
            })
        })
        .await
    }

    /// Edits an image: `edit` changes the facts it is shown. It may be called several times.
    ///
    /// # Errors
    /// [`DbError::NotFound`]; [`DbError::Revision`] unless `if_match` (if given) is the revision in the store;
    /// [`DbError::Exists`] for a name that is taken; or a failed statement.
    pub async fn update_image(
        &self,
        id: ImageId,
        if_match: Option<u64>,
        edit: impl Fn(&mut ImageFacts) + Send + Sync,
        op: &Draft,
    ) -> Result<Image, DbError> {
        let edit = &edit;
        let update = "UPDATE image SET name = $1, name_folded = $2, name_key = $3, visibility = $4, architecture = $5, \
             os_type = $6, distribution = $7, version = $8, description = $9, min_disk_bytes = $10, \
             min_memory_bytes = $11, protected = $12, properties = $13, revision = revision + 1, updated_us = $14 \
             WHERE id = $15";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let mut image = tx.live_image(id).await?;
                if let Some(expected) = if_match.filter(|expected| *expected != image.revision) {
                    let key = id.to_string();
                    return Err(DbError::Revision { what: "image", key, found: image.revision, expected });
                }
                edit(&mut image.facts);
                let facts = &image.facts;
                let stmt = sql("image", update).bind(&facts.name).bind(fold(&facts.name));
                let stmt = stmt.bind(name_key(image.project, &facts.name)).bind(facts.visibility);
                let stmt = stmt.bind(&facts.architecture).bind(&facts.os_type).bind(&facts.distribution);
                let stmt = stmt.bind(&facts.version).bind(&facts.description).bind(facts.min_disk_bytes);
                let stmt =
                    stmt.bind(facts.min_memory_bytes).bind(facts.protected).bind(to_json(&facts.properties));
                let updated = tx.run(stmt.bind(tx.now_us()).bind(id)).await;
                updated.map_err(|error| error.or_exists("image", &facts.name))?;
                tx.put_grams(id, &facts.name).await?;
                tx.changed(Change::Image(id));
                tx.record(op).await?;
                tx.image(id).await
            })
        })
        .await
    }

    /// Notes how far an upload or import is. Costs an fsync: call it once a second at most.
    ///
    /// # Errors
    /// [`DbError::State`] if the image is neither `saving` nor `importing` (deleted, for example: the work should stop),
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn set_progress(&self, id: ImageId, stage: ImportStage, percent: u8) -> Result<(), DbError> {
        let update = "UPDATE image SET stage = $1, percent = $2, updated_us = $3 WHERE id = $4";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let from = [ImageStatus::Saving, ImageStatus::Importing];
                tx.image_in(id, &from, "no import is running; stop the work").await?;
                let stmt = sql("image", update).bind(stage).bind(percent.min(100)).bind(tx.now_us()).bind(id);
                tx.run(stmt).await?;
                tx.changed(Change::Image(id));
                Ok(())
            })
        })
        .await
    }

    /// Ends an import well: stores content and facts, makes the image `active` and the job `done`, all at once.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] (deleted meanwhile) or a failed statement.
    pub async fn finish_import(
        &self,
        id: ImageId,
        job: JobId,
        imported: &Imported,
        op: &Draft,
    ) -> Result<(), DbError> {
        let update = "UPDATE image SET format = $1, original_kept = $2, virtual_bytes = $3, data_bytes = $4, \
             content_id = $5 WHERE id = $6";
        self.write_tx(move |tx| {
            Box::pin(async move {
                tx.image_in(id, &[ImageStatus::Importing], "no import is running; stop the work").await?;
                tx.put_content(&imported.content).await?;
                let content = &imported.content;
                let stmt = sql("image", update).bind(imported.format).bind(imported.original_kept);
                let stmt = stmt.bind(content.raw_bytes).bind(content.data_bytes).bind(content.id).bind(id);
                tx.run(stmt).await?;
                tx.set_status(id, ImageStatus::Active, None, "").await?;
                tx.set_job(job, JobState::Done, "").await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// Ends an upload or import badly: the image is `killed` with a reason, the job (if there is one) `failed`.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] or a failed statement.
    pub async fn fail_image(
        &self,
        id: ImageId,
        job: Option<JobId>,
        reason: &str,
        op: &Draft,
    ) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let from = [ImageStatus::Queued, ImageStatus::Saving, ImageStatus::Importing];
                tx.image_in(id, &from, "no upload or import is running").await?;
                tx.set_status(id, ImageStatus::Killed, None, reason).await?;
                tx.close_upload(id).await?;
                if let Some(job) = job {
                    tx.set_job(job, JobState::Failed, reason).await?;
                }
                tx.record(op).await
            })
        })
        .await
    }

    /// Closes an active image to users, or opens it again.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] or a failed statement.
    pub async fn set_deactivated(&self, id: ImageId, closed: bool, op: &Draft) -> Result<(), DbError> {
        let status = if closed { ImageStatus::Deactivated } else { ImageStatus::Active };
        self.write_tx(move |tx| {
            Box::pin(async move {
                let from = [ImageStatus::Active, ImageStatus::Deactivated];
                tx.image_in(id, &from, "only an active image can be closed, only a closed one opened")
                    .await?;
                tx.set_status(id, status, None, "").await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// Deletes an image: frees its name, deletes its intents (copies stay as unheld cache) and lets go of its content.
    /// Returns the record as it was; the caller removes the original's file and calls
    /// [`Db::forget_content`](super::contents) for the content.
    ///
    /// # Errors
    /// [`DbError::NotFound`]; [`DbError::State`] if it is protected or a prewarm job of it is not over;
    /// [`DbError::Revision`]; or a failed statement.
    pub async fn delete_image(
        &self,
        id: ImageId,
        if_match: Option<u64>,
        op: &Draft,
    ) -> Result<Image, DbError> {
        self.write_tx(move |tx| Box::pin(delete_in(tx, id, if_match, op))).await
    }
}

async fn delete_in(
    tx: &mut Tx<'_>,
    id: ImageId,
    if_match: Option<u64>,
    op: &Draft,
) -> Result<Image, DbError> {
    let image = tx.live_image(id).await?;
    if let Some(expected) = if_match.filter(|expected| *expected != image.revision) {
        return Err(DbError::Revision {
            what: "image",
            key: id.to_string(),
            found: image.revision,
            expected,
        });
    }
    let refused = |state: &str, allowed| {
        Err(DbError::State { what: "image", key: image.facts.name.clone(), state: state.to_owned(), allowed })
    };
    if image.facts.protected {
        return refused("protected", "remove the protection first");
    }
    let busy =
        "SELECT id FROM prewarm WHERE image_id = $1 AND state IN ('scheduled', 'running', 'paused') LIMIT 1";
    if tx.row(sql("prewarm", busy).bind(id)).await?.is_some() {
        return refused("being prewarmed", "cancel its prewarm jobs first");
    }
    tx.delete_grams(id).await?;
    tx.run(sql("intent", "DELETE FROM intent WHERE image_id = $1").bind(id)).await?;
    tx.close_upload(id).await?;
    let jobs = "UPDATE job SET state = 'failed', spec = '{}', error = 'the image was deleted', updated_us = $1 \
         WHERE image_id = $2 AND state IN ('queued', 'running')";
    tx.run(sql("job", jobs).bind(tx.now_us()).bind(id)).await?;
    let update = "UPDATE image SET status = 'deleted', stage = NULL, name_key = $1, content_id = NULL, \
         revision = revision + 1, deleted_us = $2, updated_us = $2 WHERE id = $1";
    tx.run(sql("image", update).bind(id).bind(tx.now_us())).await?;
    for change in [Change::Image(id), Change::Intents, Change::Jobs] {
        tx.changed(change);
    }
    tx.record(op).await?;
    Ok(image)
}
