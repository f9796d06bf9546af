//! Whose an image is: public or custom, featured or not, and the change of its owner.
//!
//! **Why publishing ends the shares.** Everybody has a public image, and its scope cannot be changed; made custom again it is
//! private, not shared with whom it once was.
//! **Invariants.** A public image has no shares. An image that goes to another owner is shared with nobody whom the new owner
//! could not reach, and fits the new owner's quota. A call that changes nothing leaves revision and log alone. Nothing of this
//! changes in the recycle bin.

use hearth_protocol::id::{ImageId, ProjectId};
use hearth_protocol::words::{ImageStatus, Visibility};

use super::changes::Change;
use super::error::DbError;
use super::image_edits::name_key;
use super::images::Image;
use super::operations::Draft;
use super::quotas::charged_bytes;
use super::shares::receivers_of;
use super::sql::sql;
use super::store::{Db, Tx};
use crate::logic::quota::Figures;
use crate::logic::sharing::{Receiver, beyond};

/// Receivers that a refusal names; more help nobody.
const RECEIVERS_SHOWN: usize = 5;

impl Tx<'_> {
    /// The image if it still belongs to whom the caller saw, has the revision `if_match` (if given), and is not in the recycle
    /// bin: there its name is nobody's, and an owner's change would take one.
    pub(super) async fn image_as_seen(
        &mut self,
        seen: &Image,
        if_match: Option<u64>,
    ) -> Result<Image, DbError> {
        let image = self.live_image(seen.id).await?;
        let key = image.id.to_string();
        // The right to do this was asked for another owner.
        if image.project != seen.project {
            return Err(DbError::NotFound { what: "image", key });
        }
        if let Some(expected) = if_match.filter(|expected| *expected != image.revision) {
            return Err(DbError::Revision { what: "image", key, found: image.revision, expected });
        }
        if image.status == ImageStatus::PendingDelete {
            let (key, state) = (image.facts.name, "in the recycle bin".to_owned());
            let allowed = "restore it first (hearth image restore)";
            return Err(DbError::State { what: "image", key, state, allowed });
        }
        Ok(image)
    }

    async fn set_visibility(&mut self, id: ImageId, visibility: Visibility) -> Result<(), DbError> {
        let update =
            "UPDATE image SET visibility = $1, revision = revision + 1, updated_us = $2 WHERE id = $3";
        self.run(sql("image", update).bind(visibility).bind(self.now_us()).bind(id)).await?;
        self.changed(Change::Image(id));
        Ok(())
    }
}

impl Db {
    /// Makes an image public and ends its shares; one that is public stays as it is.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::Revision`], [`DbError::State`] (in the recycle bin) or a failed statement.
    pub async fn publish_image(
        &self,
        seen: &Image,
        if_match: Option<u64>,
        op: &Draft,
    ) -> Result<Image, DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let image = tx.image_as_seen(seen, if_match).await?;
                if image.facts.visibility == Visibility::Public {
                    return Ok(image);
                }
                let ended = receivers_of(&tx.shares_of(image.id).await?);
                tx.delete_shares(image.id).await?;
                tx.set_visibility(image.id, Visibility::Public).await?;
                let mut before = serde_json::json!({ "visibility": image.facts.visibility });
                let mut after = serde_json::json!({ "visibility": Visibility::Public });
                if !ended.is_empty() {
                    (before["shares"], after["shares"]) = (ended.into(), serde_json::json!([]));
                }
                let details = serde_json::json!({ "before": before, "after": after });
                tx.record(&op.clone().with(details)).await?;
                tx.image(image.id).await
            })
        })
        .await
    }

    /// Makes a public image its project's own again: private, and charged. One that is not public stays as it is.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::Revision`], [`DbError::State`] (in the recycle bin), [`DbError::Quota`] or a failed statement.
    pub async fn unpublish_image(
        &self,
        seen: &Image,
        if_match: Option<u64>,
        op: &Draft,
    ) -> Result<Image, DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let image = tx.image_as_seen(seen, if_match).await?;
                if image.facts.visibility != Visibility::Public {
                    return Ok(image);
                }
                tx.admit(image.project, Figures::one_image(charged_bytes(&image))).await?;
                tx.set_visibility(image.id, Visibility::Private).await?;
                let details = serde_json::json!({
                    "before": { "visibility": Visibility::Public }, "after": { "visibility": Visibility::Private },
                });
                tx.record(&op.clone().with(details)).await?;
                tx.image(image.id).await
            })
        })
        .await
    }

    /// Recommends an image, or no longer.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::Revision`], [`DbError::State`] (in the recycle bin) or a failed statement.
    pub async fn set_featured(
        &self,
        seen: &Image,
        featured: bool,
        if_match: Option<u64>,
        op: &Draft,
    ) -> Result<Image, DbError> {
        let update = "UPDATE image SET featured = $1, revision = revision + 1, updated_us = $2 WHERE id = $3";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let image = tx.image_as_seen(seen, if_match).await?;
                if image.featured == featured {
                    return Ok(image);
                }
                tx.run(sql("image", update).bind(featured).bind(tx.now_us()).bind(image.id)).await?;
                tx.changed(Change::Image(image.id));
                let details = serde_json::json!({
                    "before": { "featured": image.featured }, "after": { "featured": featured },
                });
                tx.record(&op.clone().with(details)).await?;
                tx.image(image.id).await
            })
        })
        .await
    }

    /// Gives an image to another project; its own project changes nothing.
    ///
    /// # Errors
    /// [`DbError::NotFound`] (image or project); [`DbError::Revision`]; [`DbError::State`] if it is in the recycle bin, is shared
    /// beyond the new owner or the project is disabled; [`DbError::Exists`] if the project has an image of this name; [`DbError::Quota`];
    /// or a failed statement.
    pub async fn change_owner(
        &self,
        seen: &Image,
        project: ProjectId,
        if_match: Option<u64>,
        op: &Draft,
    ) -> Result<Image, DbError> {
        self.write_tx(move |tx| Box::pin(change_owner_in(tx, seen, project, if_match, op))).await
    }
}

async fn change_owner_in(
    tx: &mut Tx<'_>,
    seen: &Image,
    project: ProjectId,
    if_match: Option<u64>,
    op: &Draft,
) -> Result<Image, DbError> {
    let image = tx.image_as_seen(seen, if_match).await?;
    if image.project == project {
        return Ok(image);
    }
    let new = tx.live_project(project).await?;
    if new.disabled {
        let (key, state) = (new.name, "disabled".to_owned());
        return Err(DbError::State { what: "project", key, state, allowed: "enable it first" });
    }
    let shares = tx.shares_of(image.id).await?;
    let reached: Vec<_> = shares.iter().map(|share| (share.receiver, share.domain)).collect();
    refuse_beyond(&image, &beyond(&reached, new.domain))?;
    let is_public = image.facts.visibility == Visibility::Public;
    let runs = matches!(image.status, ImageStatus::Saving | ImageStatus::Importing);
    let charge = if is_public { Figures::NONE } else { Figures::one_image(charged_bytes(&image)) };
    tx.admit(project, Figures { imports: u64::from(runs), ..charge }).await?;
    // Who owns it needs no share of it.
    let was_receiver = tx.delete_share(image.id, Receiver::Project(project)).await?;
    let visibility = match image.facts.visibility {
        Visibility::Shared if was_receiver && shares.len() == 1 => Visibility::Private,
        other => other,
    };
    let update = "UPDATE image SET project_id = $1, domain_id = $2, name_key = $3, visibility = $4, \
         revision = revision + 1, updated_us = $5 WHERE id = $6";
    let stmt = sql("image", update).bind(project).bind(new.domain).bind(name_key(project, &image.facts.name));
    let updated = tx.run(stmt.bind(visibility).bind(tx.now_us()).bind(image.id)).await;
    updated.map_err(|error| error.or_exists("image", &image.facts.name))?;
    tx.changed(Change::Image(image.id));
    let mut before = serde_json::json!({ "project": image.project });
    let mut after = serde_json::json!({ "project": project });
    if image.domain != new.domain {
        (before["domain"], after["domain"]) =
            (image.domain.to_string().into(), new.domain.to_string().into());
    }
    tx.record(&op.clone().with(serde_json::json!({ "before": before, "after": after }))).await?;
    tx.image(image.id).await
}

fn refuse_beyond(image: &Image, beyond: &[Receiver]) -> Result<(), DbError> {
    if beyond.is_empty() {
        return Ok(());
    }
    let mut named: Vec<String> = beyond.iter().take(RECEIVERS_SHOWN).map(ToString::to_string).collect();
    if beyond.len() > RECEIVERS_SHOWN {
        named.push(format!("{} more", beyond.len() - RECEIVERS_SHOWN));
    }
    let state = format!("shared beyond the new owner's domain (with {})", named.join(", "));
    let allowed = "end these shares first (hearth image unshare)";
    Err(DbError::State { what: "image", key: image.facts.name.clone(), state, allowed })
}
