//! How host images come to be, change and go.
//!
//! **What.** Each call is one transaction with its row in the operation log.
//! **Why a deleted one leaves no row.** It has no bytes: whoever wants it back merges the same images again, which a recycle
//! bin would not make easier. What it was stands in the operation log.
//! **Invariants.** A disk was an active disk image when it was merged, and its image is not deleted while a host image has it:
//! [`refuse_member`] stands in the transaction of every deletion. An edit that changes nothing writes nothing.

use hearth_protocol::id::{HostImageId, ProjectId};
use hearth_protocol::words::{ImageKind, ImageStatus, Visibility};

use super::changes::Change;
use super::error::DbError;
use super::grams::fold;
use super::host_images::{HostImage, HostImageFacts, NewHostImage, difference};
use super::images::Image;
use super::operations::Draft;
use super::sql::{Stmt, sql};
use super::store::{Db, Tx};

fn name_key(project: ProjectId, name: &str) -> String {
    format!("{project} {}", fold(name))
}

fn refused(facts: &HostImageFacts, state: &str, allowed: &'static str) -> DbError {
    DbError::State { what: "host image", key: facts.name.clone(), state: state.to_owned(), allowed }
}

/// Binds what people say, in the order in which both statements have it.
fn bind_facts(stmt: Stmt, project: ProjectId, facts: &HostImageFacts) -> Stmt {
    let stmt = stmt.bind(&facts.name).bind(fold(&facts.name)).bind(name_key(project, &facts.name));
    let stmt = stmt.bind(facts.visibility).bind(&facts.description).bind(&facts.architecture);
    let stmt = stmt.bind(&facts.os_type).bind(&facts.distribution).bind(&facts.version);
    let stmt = stmt.bind(&facts.os_language).bind(&facts.app_platform).bind(&facts.disk_driver);
    let stmt = stmt.bind(&facts.network_driver).bind(facts.min_disk_bytes).bind(facts.min_memory_bytes);
    stmt.bind(facts.protected)
}

/// Refuses to go on with the deletion of an image that is a disk of a host image.
///
/// # Errors
/// [`DbError::State`] or a failed statement.
pub(super) async fn refuse_member(tx: &mut Tx<'_>, image: &Image) -> Result<(), DbError> {
    let select = "SELECT host_image_id FROM host_image_member WHERE image_id = $1 LIMIT 1";
    match tx.row(sql("host_image_member", select).bind(image.id)).await? {
        None => Ok(()),
        Some(_) => Err(DbError::State {
            what: "image",
            key: image.facts.name.clone(),
            state: "a disk of a host image".to_owned(),
            allowed: "delete the host image first",
        }),
    }
}

impl Db {
    /// Merges images into a host image.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or [`DbError::State`] for an image that is gone or not an active disk image (any more);
    /// [`DbError::Exists`] if the project has a host image of this name; or a failed statement.
    pub async fn create_host_image(&self, new: &NewHostImage, op: &Draft) -> Result<HostImage, DbError> {
        let insert = "INSERT INTO host_image (id, domain_id, project_id, created_us, updated_us, name, name_folded, \
             name_key, visibility, description, architecture, os_type, distribution, version, os_language, app_platform, \
             disk_driver, network_driver, min_disk_bytes, min_memory_bytes, protected, revision) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, 1)";
        let member = "INSERT INTO host_image_member (host_image_id, position, image_id) VALUES ($1, $2, $3)";
        self.write_tx(move |tx| {
            Box::pin(async move {
                for id in &new.images {
                    let image = tx.image(*id).await?;
                    if image.kind != ImageKind::Disk || image.status != ImageStatus::Active {
                        return Err(DbError::State {
                            what: "image",
                            key: image.facts.name,
                            state: image.status.to_string(),
                            allowed: "only active disk images can be merged",
                        });
                    }
                }
                let stmt = sql("host_image", insert).bind(new.id).bind(new.domain).bind(new.project);
                let stmt = bind_facts(stmt.bind(tx.now_us()).bind(tx.now_us()), new.project, &new.facts);
                let inserted = tx.run(stmt).await;
                inserted.map_err(|error| error.or_exists("host image", &new.facts.name))?;
                for (position, image) in (0_u32..).zip(&new.images) {
                    tx.run(sql("host_image_member", member).bind(new.id).bind(position).bind(*image)).await?;
                }
                tx.put_host_grams(new.id, &new.facts.name).await?;
                tx.changed(Change::HostImage(new.id));
                tx.record(op).await?;
                tx.host_image(new.id).await
            })
        })
        .await
    }

    /// Edits a host image: `edit` changes the facts it is shown. It may be called several times.
    ///
    /// # Errors
    /// [`DbError::NotFound`]; [`DbError::Revision`] unless `if_match` (if given) is the revision in the store;
    /// [`DbError::Exists`] for a name that is taken; [`DbError::State`] to make one public whose disks are not; or a failed
    /// statement.
    pub async fn update_host_image(
        &self,
        id: HostImageId,
        if_match: Option<u64>,
        edit: impl Fn(&mut HostImageFacts) + Send + Sync,
        op: &Draft,
    ) -> Result<HostImage, DbError> {
        let edit = &edit;
        let update = "UPDATE host_image SET name = $1, name_folded = $2, name_key = $3, visibility = $4, description = $5, \
             architecture = $6, os_type = $7, distribution = $8, version = $9, os_language = $10, app_platform = $11, \
             disk_driver = $12, network_driver = $13, min_disk_bytes = $14, min_memory_bytes = $15, protected = $16, \
             revision = revision + 1, updated_us = $17 WHERE id = $18";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let found = tx.host_image(id).await?;
                check_revision(&found, if_match)?;
                let mut facts = found.facts.clone();
                edit(&mut facts);
                let Some(details) = difference(&found.facts, &facts) else { return Ok(found) };
                let hidden = found.disks.iter().find(|disk| disk.facts.visibility != Visibility::Public);
                if let Some(disk) = hidden.filter(|_| facts.visibility == Visibility::Public) {
                    return Err(refused(
                        &found.facts,
                        &format!("made of {}, which is {}", disk.facts.name, disk.facts.visibility),
                        "make the images of all its disks public first",
                    ));
                }
                let stmt = bind_facts(sql("host_image", update), found.project, &facts);
                let updated = tx.run(stmt.bind(tx.now_us()).bind(id)).await;
                updated.map_err(|error| error.or_exists("host image", &facts.name))?;
                tx.put_host_grams(id, &facts.name).await?;
                tx.changed(Change::HostImage(id));
                tx.record(&op.clone().with(details)).await?;
                tx.host_image(id).await
            })
        })
        .await
    }

    /// Deletes a host image; the images of its disks stay. Returns it as it was.
    ///
    /// # Errors
    /// [`DbError::NotFound`]; [`DbError::Revision`]; [`DbError::State`] if it is protected or public; or a failed statement.
    pub async fn delete_host_image(
        &self,
        id: HostImageId,
        if_match: Option<u64>,
        op: &Draft,
    ) -> Result<HostImage, DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let found = tx.host_image(id).await?;
                check_revision(&found, if_match)?;
                if found.facts.protected {
                    return Err(refused(&found.facts, "protected", "remove the protection first"));
                }
                if found.facts.visibility == Visibility::Public {
                    return Err(refused(&found.facts, "public", "make it private first"));
                }
                tx.delete_host_grams(id).await?;
                let members = "DELETE FROM host_image_member WHERE host_image_id = $1";
                tx.run(sql("host_image_member", members).bind(id)).await?;
                tx.run(sql("host_image", "DELETE FROM host_image WHERE id = $1").bind(id)).await?;
                tx.changed(Change::HostImage(id));
                tx.record(op).await?;
                Ok(found)
            })
        })
        .await
    }
}

fn check_revision(found: &HostImage, if_match: Option<u64>) -> Result<(), DbError> {
    match if_match {
        Some(expected) if expected != found.revision => Err(DbError::Revision {
            what: "host image",
            key: found.id.to_string(),
            found: found.revision,
            expected,
        }),
        _ => Ok(()),
    }
}
