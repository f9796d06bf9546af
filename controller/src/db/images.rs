//! The catalog: image records as they are read. [`super::image_list`] lists them, [`super::image_edits`],
//! [`super::image_bin`] and [`super::image_changes`] change them.
//!
//! **What.** The row of an image, and look-ups that show only what a scope may see.
//! **Why visibility is part of the query.** Filtered afterwards, pages would have holes and counts would betray what
//! somebody may not see.
//! **Invariants.** A deleted image is never found by name or in a list, one in the recycle bin by its owner alone. What a
//! scope may not see looks like what does not exist.

use std::collections::{BTreeMap, BTreeSet};

use hearth_protocol::api::image::Checksums;
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{DomainId, ImageId, KeyId, ProjectId};
use hearth_protocol::words::{
    Architecture, DiskDriver, DiskFormat, ImageKind, ImageStatus, ImportStage, NetworkDriver, OsType,
    ShareStatus, Virtualisation, Visibility,
};

use super::error::DbError;
use super::shares::{View, owned_by, shared_with};
use super::sql::{Row, Stmt, sql};
use super::store::{Db, Tx};
use super::tokens::Scope;
use crate::logic::deletion::is_original_over;

/// What an operator says about an image; everything here can be edited.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImageFacts {
    /// Its name; unique in its project without regard to case.
    pub name: String,
    /// Who may see it.
    pub visibility: Visibility,
    /// CPU architecture.
    pub architecture: Option<Architecture>,
    /// Operating system.
    pub os_type: Option<OsType>,
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
    /// How a machine of it sees its disks.
    pub disk_driver: DiskDriver,
    /// How a machine of it sees its network.
    pub network_driver: NetworkDriver,
    /// Language of the operating system; empty if unknown.
    pub os_language: String,
    /// Application platform; empty if unknown.
    pub app_platform: String,
    /// A password can be set for machines of it.
    pub password_enabled: bool,
    /// Refuses deletion.
    pub protected: bool,
    /// Tags as they were written; no two differ in case alone.
    pub tags: BTreeSet<String>,
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
            architecture: None,
            os_type: None,
            distribution: String::new(),
            version: String::new(),
            description: String::new(),
            min_disk_bytes: 0,
            min_memory_bytes: 0,
            disk_driver: DiskDriver::Auto,
            network_driver: NetworkDriver::Auto,
            os_language: String::new(),
            app_platform: String::new(),
            password_enabled: false,
            protected: false,
            tags: BTreeSet::new(),
            properties: BTreeMap::new(),
        }
    }
}

/// What is said when an image is made and never changes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FixedFacts {
    /// What it was built to run on.
    pub virtualisation: Option<Virtualisation>,
    /// Size that its disk is grown to.
    pub disk_bytes: Option<u64>,
    /// The key that encrypts it.
    pub key: Option<KeyId>,
}

/// Where an image in the recycle bin came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Binned {
    /// The state that it had, and that comes back.
    pub from: ImageStatus,
    /// Since when, microseconds since the epoch.
    pub since_us: i64,
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
    /// What never changes.
    pub fixed: FixedFacts,
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
    /// What never changes.
    pub fixed: FixedFacts,
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
    /// What the scanner said, and when, microseconds since the epoch; absent without a scanner.
    pub scan: Option<(String, i64)>,
    /// Where the file came from, without secrets; empty for an upload.
    pub source: String,
    /// Whether the source had a user, a password or a query, which are not kept.
    pub source_hidden: bool,
    /// Counts edits; from 1.
    pub revision: u64,
    /// In the recycle bin: from where and since when.
    pub binned: Option<Binned>,
    /// When it was deleted, microseconds since the epoch.
    pub deleted_us: Option<i64>,
    /// When it was made.
    pub created_us: i64,
    /// When it last changed.
    pub updated_us: i64,
    /// Recommended by an administrator.
    pub featured: bool,
    /// Name of the key that encrypts it.
    pub key_name: Option<String>,
}

impl Image {
    /// The state it has, or had before it came into the recycle bin: what its files are like.
    #[must_use]
    pub fn kept_as(&self) -> ImageStatus {
        self.binned.map_or(self.status, |binned| binned.from)
    }

    /// Whether its uploaded file may go.
    #[must_use]
    pub fn is_original_over(&self) -> bool {
        is_original_over(self.kept_as(), self.original_kept, self.fixed.key.is_some())
    }
}

pub(super) const COLUMNS: &str = "SELECT image.*, content.stored_bytes, \
     (SELECT image_key.name FROM image_key WHERE image_key.id = image.key_id) AS key_name FROM image \
     LEFT JOIN content ON content.content_id = image.content_id";

/// What an operator said, from a row.
fn facts(row: &Row) -> Result<ImageFacts, DbError> {
    Ok(ImageFacts {
        name: row.text("name")?,
        visibility: row.parse("visibility")?,
        architecture: row.parse_or_empty("architecture")?,
        os_type: row.parse_or_empty("os_type")?,
        distribution: row.text("distribution")?,
        version: row.text("version")?,
        description: row.text("description")?,
        min_disk_bytes: row.size("min_disk_bytes")?,
        min_memory_bytes: row.size("min_memory_bytes")?,
        disk_driver: row.parse("disk_driver")?,
        network_driver: row.parse("network_driver")?,
        os_language: row.text("os_language")?,
        app_platform: row.text("app_platform")?,
        password_enabled: row.flag("password_enabled")?,
        protected: row.flag("protected")?,
        tags: row.json("tags")?,
        properties: row.json("properties")?,
    })
}

/// An image, from a row of [`COLUMNS`].
pub(super) fn image(row: &Row) -> Result<Image, DbError> {
    let binned = match (row.opt_parse("binned_from")?, row.opt_int("binned_us")?) {
        (Some(from), Some(since_us)) => Some(Binned { from, since_us }),
        _ => None,
    };
    let fixed = FixedFacts {
        virtualisation: row.parse_or_empty("virtualisation")?,
        disk_bytes: row.opt_size("disk_bytes")?,
        key: row.opt_parse("key_id")?,
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
        fixed,
        facts: facts(row)?,
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
        scan: row.opt_text("scan_verdict")?.zip(row.opt_int("scanned_us")?),
        source: row.text("source")?,
        source_hidden: row.flag("source_hidden")?,
        revision: row.size("revision")?,
        binned,
        deleted_us: row.opt_int("deleted_us")?,
        created_us: row.int("created_us")?,
        updated_us: row.int("updated_us")?,
        featured: row.flag("featured")?,
        key_name: row.opt_text("key_name")?,
    })
}

/// Images that `scope` may use: its own, public ones, and those of which a share that reaches it is accepted. What is only
/// offered is not among them. What lies in a recycle bin is its owner's alone.
pub(super) fn seen_by(scope: Scope) -> Stmt {
    seen_as(COLUMNS, scope)
}

/// The same, with other columns.
pub(super) fn seen_as(columns: &'static str, scope: Scope) -> Stmt {
    let stmt = sql("image", columns);
    if scope == Scope::System {
        return stmt.text(" WHERE 1 = 1");
    }
    let stmt = owned_by(stmt.text(" WHERE ("), scope);
    let stmt = stmt.text(" OR (image.visibility = 'public' AND image.status <> 'pending_delete') OR ");
    shared_with(stmt, scope, ShareStatus::Accepted).text(")")
}

/// Appends the set of ids of images that `scope` may use, also deleted ones; see [`seen_by`].
pub(super) fn visible_to(stmt: Stmt, scope: Scope) -> Stmt {
    let stmt = owned_by(stmt.text("(SELECT image.id FROM image WHERE "), scope);
    let stmt = stmt.text(" OR (image.visibility = 'public' AND image.status <> 'pending_delete') OR ");
    shared_with(stmt, scope, ShareStatus::Accepted).text(")")
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

    /// Images with exactly this name that `scope` may see and that are in no recycle bin, oldest first, at most 10: more than
    /// one means that the caller must say which.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn images_named(&self, scope: Scope, name: &str) -> Result<Vec<Image>, DbError> {
        self.images_named_in(scope, View::All, name).await
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

    /// The name of every active image; for the plans of the fleet.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn active_image_names(&self) -> Result<Vec<(ImageId, String)>, DbError> {
        let names = "SELECT id, name FROM image WHERE deleted_us IS NULL AND status = 'active'";
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
