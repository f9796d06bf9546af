//! Host images as they are read. [`super::host_image_changes`] changes them.
//!
//! **What.** The row of a host image with its disks in order, and look-ups that show only what a scope may see.
//! **Why the disks come along.** State and sizes are the disks', looked at when they are read; nothing of them is stored twice.
//! **Invariants.** What a scope may not see looks like what does not exist. A filter by state asks
//! [`crate::logic::host_state`] for its words, so that a list holds exactly the rows that show that state.

use std::collections::{BTreeMap, HashMap, HashSet};

use hearth_protocol::api::Page;
use hearth_protocol::id::{DomainId, HostImageId, ImageId, ProjectId};
use hearth_protocol::words::{HostImageStatus, Visibility};
use serde::Serialize;

use super::error::DbError;
use super::grams::fold;
use super::host_image_grams::where_host_name_holds;
use super::images::{self, Image};
use super::page::PageRequest;
use super::sql::{Row, Stmt, sql};
use super::store::{Db, Tx};
use super::tokens::Scope;
use crate::logic::host_state;

/// What people say about a host image; everything here can be edited. Empty and 0 mean unknown.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct HostImageFacts {
    /// Its name; unique among the host images of its project without regard to case.
    pub name: String,
    /// Who may see it.
    pub visibility: Visibility,
    /// For people.
    pub description: String,
    /// CPU architecture.
    pub architecture: String,
    /// OS type.
    pub os_type: String,
    /// Distribution.
    pub distribution: String,
    /// Version of the distribution.
    pub version: String,
    /// Language of the system.
    pub os_language: String,
    /// What runs on it.
    pub app_platform: String,
    /// How disks are attached.
    pub disk_driver: String,
    /// How networks are attached.
    pub network_driver: String,
    /// Smallest system disk.
    pub min_disk_bytes: u64,
    /// Smallest memory.
    pub min_memory_bytes: u64,
    /// Refuses deletion.
    pub protected: bool,
}

/// A host image that does not exist yet.
#[derive(Clone, Debug, PartialEq)]
pub struct NewHostImage {
    /// Its id.
    pub id: HostImageId,
    /// Owning domain.
    pub domain: DomainId,
    /// Owning project.
    pub project: ProjectId,
    /// System disk, data disk 1 … n.
    pub images: Vec<ImageId>,
    /// What people say.
    pub facts: HostImageFacts,
}

/// A host image.
#[derive(Clone, Debug, PartialEq)]
pub struct HostImage {
    /// Its id.
    pub id: HostImageId,
    /// Owning domain.
    pub domain: DomainId,
    /// Owning project.
    pub project: ProjectId,
    /// What people say.
    pub facts: HostImageFacts,
    /// Counts edits; from 1.
    pub revision: u64,
    /// When it was made, microseconds since the epoch.
    pub created_us: i64,
    /// When it last changed.
    pub updated_us: i64,
    /// System disk, data disk 1 … n.
    pub disks: Vec<Image>,
}

/// Which host images to list. The default lists all that the scope sees.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HostImageFilter {
    /// Exactly this name, without regard to case.
    pub name: Option<String>,
    /// Part of the name, without regard to case.
    pub name_contains: Option<String>,
    /// State.
    pub status: Option<HostImageStatus>,
    /// Visibility.
    pub visibility: Option<Visibility>,
}

/// The name of a host image that holds an image, and whether the asker may know it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Holders {
    /// Names of those that the scope sees, by name; at most [`HOLDERS_MAX`].
    pub seen: Vec<String>,
    /// How many there are.
    pub total: u64,
}

/// Names of host images that a refusal lists.
pub const HOLDERS_MAX: u32 = 5;

const COLUMNS: &str = "SELECT host_image.* FROM host_image";
const DISKS: &str = "SELECT image.*, content.stored_bytes, host_image_member.host_image_id, \
     (SELECT image_key.name FROM image_key WHERE image_key.id = image.key_id) AS key_name FROM host_image_member \
     JOIN image ON image.id = host_image_member.image_id \
     LEFT JOIN content ON content.content_id = image.content_id WHERE host_image_member.host_image_id IN ";
/// Host images of one look for disks: bounds a statement.
const IDS_PER_LOOK: usize = 1000;

fn host_image(row: &Row) -> Result<HostImage, DbError> {
    let facts = HostImageFacts {
        name: row.text("name")?,
        visibility: row.parse("visibility")?,
        description: row.text("description")?,
        architecture: row.text("architecture")?,
        os_type: row.text("os_type")?,
        distribution: row.text("distribution")?,
        version: row.text("version")?,
        os_language: row.text("os_language")?,
        app_platform: row.text("app_platform")?,
        disk_driver: row.text("disk_driver")?,
        network_driver: row.text("network_driver")?,
        min_disk_bytes: row.size("min_disk_bytes")?,
        min_memory_bytes: row.size("min_memory_bytes")?,
        protected: row.flag("protected")?,
    };
    Ok(HostImage {
        id: row.parse("id")?,
        domain: row.parse("domain_id")?,
        project: row.parse("project_id")?,
        facts,
        revision: row.size("revision")?,
        created_us: row.int("created_us")?,
        updated_us: row.int("updated_us")?,
        disks: Vec::new(),
    })
}

/// Adds to `stmt` that `scope` may see the host image: its own and public ones. Sharing, when it comes, adds a line here as
/// `images::seen_by` has it; nothing else asks who may see what.
fn seen_by(stmt: Stmt, scope: Scope) -> Stmt {
    let stmt = match scope {
        Scope::System => return stmt,
        Scope::Domain(id) => stmt.text(" AND (host_image.domain_id = ").arg(id),
        Scope::Project(_, id) => stmt.text(" AND (host_image.project_id = ").arg(id),
    };
    stmt.text(" OR host_image.visibility = 'public')")
}

fn disks_of(ids: &[HostImageId]) -> Stmt {
    let stmt = sql("image", DISKS).list(ids.iter().copied());
    stmt.text(" ORDER BY host_image_member.position")
}

/// Gives each host image its disks, from rows in order of position.
fn add_disks(found: &mut [HostImage], rows: &[Row]) -> Result<(), DbError> {
    let mut disks: HashMap<HostImageId, Vec<Image>> = HashMap::new();
    for row in rows {
        disks.entry(row.parse("host_image_id")?).or_default().push(images::image(row)?);
    }
    for host_image in found {
        host_image.disks = disks.remove(&host_image.id).unwrap_or_default();
    }
    Ok(())
}

/// Adds that the worst disk has this state.
fn with_status(stmt: Stmt, status: HostImageStatus) -> Stmt {
    const ANY: &str = " AND host_image.id IN (SELECT host_image_member.host_image_id FROM host_image_member \
         JOIN image ON image.id = host_image_member.image_id WHERE image.status IN ";
    const NONE: &str = ") AND host_image.id NOT IN (SELECT host_image_member.host_image_id FROM host_image_member \
         JOIN image ON image.id = host_image_member.image_id WHERE image.status IN ";
    let (same, worse) = host_state::worse_than(status);
    stmt.text(ANY).list(same).text(NONE).list(worse).text(")")
}

impl Tx<'_> {
    /// The host image with this id, with its disks.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn host_image(&mut self, id: HostImageId) -> Result<HostImage, DbError> {
        let row = self.row(sql("host_image", COLUMNS).text(" WHERE host_image.id = ").arg(id)).await?;
        let found = row.as_ref().map(host_image).transpose()?;
        let mut found = found.ok_or_else(|| DbError::NotFound { what: "host image", key: id.to_string() })?;
        let rows = self.rows(disks_of(&[id])).await?;
        add_disks(std::slice::from_mut(&mut found), &rows)?;
        Ok(found)
    }
}

impl Db {
    /// The host image with this id if `scope` may see it.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn host_image_seen_by(
        &self,
        scope: Scope,
        id: HostImageId,
    ) -> Result<Option<HostImage>, DbError> {
        let stmt = sql("host_image", COLUMNS).text(" WHERE host_image.id = ").arg(id);
        let row = self.row(seen_by(stmt, scope)).await?;
        let Some(mut found) = row.as_ref().map(host_image).transpose()? else { return Ok(None) };
        add_disks(std::slice::from_mut(&mut found), &self.rows(disks_of(&[id])).await?)?;
        Ok(Some(found))
    }

    /// Host images that `scope` may see, newest first.
    ///
    /// # Errors
    /// [`DbError::Cursor`] or a failed statement.
    pub async fn host_images(
        &self,
        scope: Scope,
        filter: &HostImageFilter,
        page: &PageRequest,
    ) -> Result<Page<HostImage>, DbError> {
        let mut stmt = seen_by(sql("host_image", COLUMNS).text(" WHERE 1 = 1"), scope);
        stmt = stmt.when(filter.name.as_deref().map(fold), " AND host_image.name_folded = ");
        if let Some(part) = &filter.name_contains {
            stmt = where_host_name_holds(stmt, part);
        }
        stmt = stmt.when(filter.visibility, " AND host_image.visibility = ");
        if let Some(status) = filter.status {
            stmt = with_status(stmt, status);
        }
        if let Some([id]) = page.key()? {
            stmt = stmt.text(" AND host_image.id < ").arg(id);
        }
        let rows = self.rows(stmt.text(" ORDER BY host_image.id DESC LIMIT ").arg(page.fetch())).await?;
        let found = rows.iter().map(host_image).collect::<Result<Vec<_>, _>>()?;
        let mut found = page.page(found, |host_image| [host_image.id.to_string()]);
        for part in found.items.chunks_mut(IDS_PER_LOOK) {
            let ids: Vec<HostImageId> = part.iter().map(|host_image| host_image.id).collect();
            add_disks(part, &self.rows(disks_of(&ids)).await?)?;
        }
        Ok(found)
    }

    /// Which of these images (at most those of one host image) `scope` may see.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn images_seen_by(&self, scope: Scope, ids: &[ImageId]) -> Result<HashSet<ImageId>, DbError> {
        let stmt = images::seen_by(scope).text(" AND image.id IN ").list(ids.iter().copied());
        self.rows(stmt).await?.iter().map(|row| row.parse("id")).collect()
    }

    /// The host images of which an image is a disk.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn holders_of(&self, scope: Scope, image: ImageId) -> Result<Holders, DbError> {
        const OF: &str = " WHERE host_image.id IN (SELECT host_image_member.host_image_id FROM host_image_member \
             WHERE host_image_member.image_id = ";
        let count = sql("host_image", "SELECT CAST(COUNT(*) AS BIGINT) AS n FROM host_image");
        let row = self.row(count.text(OF).arg(image).text(")")).await?;
        let total = row.map(|row| row.size("n")).transpose()?.unwrap_or(0);
        if total == 0 {
            return Ok(Holders::default());
        }
        let stmt = seen_by(sql("host_image", COLUMNS).text(OF).arg(image).text(")"), scope);
        let stmt = stmt.text(" ORDER BY host_image.name_folded, host_image.id LIMIT ").arg(HOLDERS_MAX);
        let seen = self.rows(stmt).await?.iter().map(|row| row.text("name")).collect::<Result<_, _>>()?;
        Ok(Holders { seen, total })
    }
}

/// The fields that differ between two records, as the operation log shows them; `None` if there are none.
pub(super) fn difference(before: &HostImageFacts, after: &HostImageFacts) -> Option<serde_json::Value> {
    let fields = |facts: &HostImageFacts| -> BTreeMap<String, serde_json::Value> {
        let value = serde_json::to_value(facts).expect("a plain struct always serializes");
        value.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    let (mut old, mut new) = (fields(before), fields(after));
    old.retain(|name, value| new.get(name) != Some(value));
    new.retain(|name, _| old.contains_key(name));
    (!new.is_empty()).then(|| serde_json::json!({ "before": old, "after": new }))
}
