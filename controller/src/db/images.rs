//! The catalog: image records as they are read. [`super::image_changes`] changes them.
//!
//! **What.** The row of an image, and look-ups that show only what a scope may see.
//! **Why visibility is part of the query.** Filtered afterwards, pages would have holes and counts would betray what
//! somebody may not see.
//! **Invariants.** A deleted image is never found by name or in a list. What a scope may not see looks like what does not
//! exist.

use std::collections::BTreeMap;

use hearth_protocol::api::Page;
use hearth_protocol::api::image::Checksums;
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{DomainId, ImageId, ProjectId};
use hearth_protocol::words::{DiskFormat, ImageKind, ImageStatus, ImportStage, Visibility};

use super::error::DbError;
use super::grams::{fold, where_name_holds};
use super::narrow::{Set, within};
use super::page::PageRequest;
use super::sql::{Row, Stmt, sql};
use super::store::{Db, Tx};
use super::tokens::Scope;

/// What an operator says about an image; everything here can be edited.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImageFacts {
    /// Its name; unique in its project without regard to case.
    pub name: String,
    /// Who may see it.
    pub visibility: Visibility,
    /// CPU architecture; empty if unknown.
    pub architecture: String,
    /// OS type; empty if unknown.
    pub os_type: String,
    /// Distribution; empty if unknown.
    pub distribution: String,
    /// Version of the distribution; empty if unknown.
    pub version: String,
    /// For people.
    pub description: String,
    /// Smallest disk; 0 if unknown.
    pub min_disk_bytes: u64,
    /// Smallest memory; 0 if unknown.
    pub min_memory_bytes: u64,
    /// Refuses deletion.
    pub protected: bool,
    /// Free properties.
    pub properties: BTreeMap<String, String>,
}

impl ImageFacts {
    /// A private image of which nothing but the name is known.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            visibility: Visibility::Private,
            architecture: String::new(),
            os_type: String::new(),
            distribution: String::new(),
            version: String::new(),
            description: String::new(),
            min_disk_bytes: 0,
            min_memory_bytes: 0,
            protected: false,
            properties: BTreeMap::new(),
        }
    }
}

/// An image that does not exist yet.
#[derive(Clone, Debug, PartialEq)]
pub struct NewImage {
    /// Its id.
    pub id: ImageId,
    /// Disk or ISO.
    pub kind: ImageKind,
    /// Format as declared; `None`: to be found out.
    pub format: Option<DiskFormat>,
    /// Glance's container format, `bare` for all that Hearth imports.
    pub container_format: String,
    /// Owning domain.
    pub domain: DomainId,
    /// Owning project.
    pub project: ProjectId,
    /// Checksums that the file must have.
    pub expected: Checksums,
    /// What the operator says.
    pub facts: ImageFacts,
}

/// An image.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Disk or ISO.
    pub kind: ImageKind,
    /// Owning domain.
    pub domain: DomainId,
    /// Owning project.
    pub project: ProjectId,
    /// Checksums that the file must have, as its uploader said.
    pub expected: Checksums,
    /// What the operator says.
    pub facts: ImageFacts,
    /// State.
    pub status: ImageStatus,
    /// Stage of the import.
    pub stage: Option<ImportStage>,
    /// Progress of the stage, 0 to 100.
    pub percent: u8,
    /// Why it is killed.
    pub reason: String,
    /// Format of the original.
    pub format: Option<DiskFormat>,
    /// Container format.
    pub container_format: String,
    /// Size of the original.
    pub original_bytes: Option<u64>,
    /// Whether the original is stored.
    pub original_kept: bool,
    /// Checksums of the original.
    pub checksums: Checksums,
    /// Size as a guest sees it.
    pub virtual_bytes: Option<u64>,
    /// Bytes of all chunks.
    pub data_bytes: Option<u64>,
    /// Bytes of the content object.
    pub stored_bytes: Option<u64>,
    /// Identity of the bytes.
    pub content: Option<ContentId>,
    /// Counts edits; from 1.
    pub revision: u64,
    /// When it was deleted, microseconds since the epoch.
    pub deleted_us: Option<i64>,
    /// When it was made.
    pub created_us: i64,
    /// When it last changed.
    pub updated_us: i64,
}

/// Which images to list. The default lists all that the scope sees.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ImageFilter {
    /// Part of the name, without regard to case.
    pub name_contains: Option<String>,
    /// State.
    pub status: Option<ImageStatus>,
    /// Kind.
    pub kind: Option<ImageKind>,
    /// Visibility.
    pub visibility: Option<Visibility>,
    /// Owning project.
    pub project: Option<ProjectId>,
}

const COLUMNS: &str = "SELECT image.*, content.stored_bytes FROM image \
     LEFT JOIN content ON content.content_id = image.content_id";

fn image(row: &Row) -> Result<Image, DbError> {
    let facts = ImageFacts {
        name: row.text("name")?,
        visibility: row.parse("visibility")?,
        architecture: row.text("architecture")?,
        os_type: row.text("os_type")?,
        distribution: row.text("distribution")?,
        version: row.text("version")?,
        description: row.text("description")?,
        min_disk_bytes: row.size("min_disk_bytes")?,
        min_memory_bytes: row.size("min_memory_bytes")?,
        protected: row.flag("protected")?,
        properties: row.json("properties")?,
    };
    let checksums = Checksums {
        sha256: row.opt_text("sha256")?,
        sha512: row.opt_text("sha512")?,
        md5: row.opt_text("md5")?,
        blake3: row.opt_text("blake3")?,
    };
    Ok(Image {
        id: row.parse("id")?,
        kind: row.parse("kind")?,
        domain: row.parse("domain_id")?,
        project: row.parse("project_id")?,
        expected: row.json("expected")?,
        facts,
        status: row.parse("status")?,
        stage: row.opt_parse("stage")?,
        percent: row.size("percent")?,
        reason: row.text("reason")?,
        format: row.opt_parse("format")?,
        container_format: row.text("container_format")?,
        original_bytes: row.opt_size("original_bytes")?,
        original_kept: row.flag("original_kept")?,
        checksums,
        virtual_bytes: row.opt_size("virtual_bytes")?,
        data_bytes: row.opt_size("data_bytes")?,
        stored_bytes: row.opt_size("stored_bytes")?,
        content: row.opt_parse("content_id")?,
        revision: row.size("revision")?,
        deleted_us: row.opt_int("deleted_us")?,
        created_us: row.int("created_us")?,
        updated_us: row.int("updated_us")?,
    })
}

/// Images that `scope` may see: its own, public ones, and those whose share it accepted.
fn seen_by(scope: Scope) -> Stmt {
    let stmt = sql("image", COLUMNS);
    let (stmt, kind, target) = match scope {
        Scope::System => return stmt.text(" WHERE 1 = 1"),
        Scope::Domain(id) => (stmt.text(" WHERE (image.domain_id = ").arg(id), "domain", id.to_string()),
        Scope::Project(_, id) => {
            (stmt.text(" WHERE (image.project_id = ").arg(id), "project", id.to_string())
        }
    };
    let stmt = stmt.text(" OR image.visibility = 'public' OR (image.visibility = 'shared' AND EXISTS (");
    let stmt =
        stmt.text("SELECT image_id FROM share WHERE share.image_id = image.id AND share.status = 'accepted'");
    stmt.text(" AND share.kind = ").arg(kind).text(" AND share.target = ").arg(target).text(")))")
}

impl Tx<'_> {
    /// The image with this id, deleted or not.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn image(&mut self, id: ImageId) -> Result<Image, DbError> {
        let row = self.row(sql("image", COLUMNS).text(" WHERE image.id = ").arg(id)).await?;
        row.as_ref()
            .map(image)
            .transpose()?
            .ok_or_else(|| DbError::NotFound { what: "image", key: id.to_string() })
    }
}

impl Db {
    /// The image with this id, whoever asks; for the controller's own work. Also a deleted one.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn image(&self, id: ImageId) -> Result<Option<Image>, DbError> {
        let row = self.row(sql("image", COLUMNS).text(" WHERE image.id = ").arg(id)).await?;
        row.as_ref().map(image).transpose()
    }

    /// The image with this id if `scope` may see it and it is not deleted.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn image_seen_by(&self, scope: Scope, id: ImageId) -> Result<Option<Image>, DbError> {
        let stmt = seen_by(scope).text(" AND image.deleted_us IS NULL AND image.id = ").arg(id);
        self.row(stmt).await?.as_ref().map(image).transpose()
    }

    /// Images with exactly this name that `scope` may see, oldest first, at most 10: more than one means that the caller
    /// must say which.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn images_named(&self, scope: Scope, name: &str) -> Result<Vec<Image>, DbError> {
        let stmt =
            seen_by(scope).text(" AND image.deleted_us IS NULL AND image.name_folded = ").arg(fold(name));
        self.rows(stmt.text(" ORDER BY image.id LIMIT 10")).await?.iter().map(image).collect()
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
        let narrow = self.narrowest(Set::of(scope, filter)).await?;
        let mut stmt = within(filtered(seen_by(scope), filter), narrow.as_ref());
        if let Some([id]) = page.key()? {
            stmt = stmt.text(" AND image.id < ").arg(id);
        }
        let rows = self.rows(stmt.text(" ORDER BY image.id DESC LIMIT ").arg(page.fetch())).await?;
        let images = rows.iter().map(image).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(images, |image| [image.id.to_string()]))
    }

    /// Images of these contents that are not deleted: whose names a plan shows beside a content.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn images_of_contents(&self, contents: &[ContentId]) -> Result<Vec<Image>, DbError> {
        let stmt = sql("image", COLUMNS).text(" WHERE image.deleted_us IS NULL AND image.content_id IN ");
        let stmt = stmt.list(contents.iter().copied()).text(" ORDER BY image.id");
        self.rows(stmt).await?.iter().map(image).collect()
    }

    /// Every image that is not deleted; for `fsck` and backups.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn all_images(&self) -> Result<Vec<Image>, DbError> {
        let stmt = sql("image", COLUMNS).text(" WHERE image.deleted_us IS NULL ORDER BY image.id");
        self.each(stmt, image).await
    }

    /// The name of every image that is not deleted; for the plans of the fleet.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn image_names(&self) -> Result<Vec<(ImageId, String)>, DbError> {
        let names = "SELECT id, name FROM image WHERE deleted_us IS NULL";
        self.each(sql("image", names), |row| Ok((row.parse("id")?, row.text("name")?))).await
    }

    /// How many images are `active`, and the bytes of all originals that are stored.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn image_totals(&self) -> Result<(u32, u64), DbError> {
        let totals = "SELECT CAST(COALESCE(SUM(CASE WHEN status = 'active' THEN 1 ELSE 0 END), 0) AS BIGINT) AS active, \
             CAST(COALESCE(SUM(CASE WHEN original_kept = 1 THEN original_bytes ELSE 0 END), 0) AS BIGINT) AS kept_bytes \
             FROM image WHERE deleted_us IS NULL";
        let row = self.row(sql("image", totals)).await?;
        row.map_or(Ok((0, 0)), |row| Ok((row.size("active")?, row.size("kept_bytes")?)))
    }
}

fn filtered(stmt: Stmt, filter: &ImageFilter) -> Stmt {
    let mut stmt = stmt.text(" AND image.deleted_us IS NULL");
    if let Some(part) = &filter.name_contains {
        stmt = where_name_holds(stmt, part);
    }
    stmt = stmt.when(filter.status, " AND image.status = ").when(filter.kind, " AND image.kind = ");
    stmt = stmt.when(filter.visibility, " AND image.visibility = ");
    stmt.when(filter.project, " AND image.project_id = ")
}
