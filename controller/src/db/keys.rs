//! Keys that encrypt images, sealed; and which location was given what opens a content.
//!
//! **What.** Records with the sealed key beside them. Images refer to their key for good.
//!
//! **Why a grant is kept.** A copy outlives the intent that brought it, and the image too, and so do the machines that run on it. Who
//! was given a passphrase when the copy was placed gets it again while the copy is there; who never was, must have it placed. The
//! grant goes with the copy's entry and the last lease: a copy that comes back by the host's own word is not the one that was
//! placed.
//!
//! **Invariants.** A key that encrypts an image, or a copy whose host was given it, is not deleted, whatever two callers do at once.
//! Keys are changed by sealing them anew, all in one transaction.

use hearth_protocol::api::Page;
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{DomainId, ImageId, KeyId, LocationId, ProjectId};

use super::error::DbError;
use super::image_edits::name_key;
use super::operations::Draft;
use super::page::PageRequest;
use super::sql::{Row, Stmt, sql};
use super::store::{Db, Tx};
use super::tokens::Scope;
use crate::keys::seal::Sealed;
use crate::keys::{KeyError, KeyStore};

/// Most keys of a project: bounds the table, and how long sealing them anew takes.
pub const KEYS_PER_PROJECT_MAX: u64 = 1000;

/// A key that does not exist yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewKey {
    /// Its id.
    pub id: KeyId,
    /// Its name; unique in its project without regard to case.
    pub name: String,
    /// Owning domain.
    pub domain: DomainId,
    /// Owning project.
    pub project: ProjectId,
    /// The key itself.
    pub sealed: Sealed,
}

/// A key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// Its name.
    pub name: String,
    /// Owning domain.
    pub domain: DomainId,
    /// Owning project.
    pub project: ProjectId,
    /// The key itself.
    pub sealed: Sealed,
    /// Images that it encrypts and that are not deleted.
    pub images: u32,
    /// When it was made.
    pub created_us: i64,
    /// When it was last sealed.
    pub sealed_us: i64,
}

/// How many keys another master key took over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Resealed {
    /// Sealed anew.
    pub sealed: u32,
    /// Sealed by it already.
    pub unchanged: u32,
}

/// Why keys were not sealed anew.
#[derive(Debug, thiserror::Error)]
pub enum ResealError {
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// One key cannot be opened.
    #[error("key {name} ({id}): {source}")]
    Key {
        /// Which.
        id: KeyId,
        /// Its name.
        name: String,
        /// Why.
        source: KeyError,
    },
}

const COLUMNS: &str = "SELECT id, name, domain_id, project_id, sealed, master, created_us, sealed_us, \
     (SELECT CAST(COUNT(*) AS BIGINT) FROM image WHERE image.key_id = image_key.id AND image.deleted_us IS NULL) AS images \
     FROM image_key WHERE 1 = 1";

fn key(row: &Row) -> Result<Key, DbError> {
    Ok(Key {
        id: row.parse("id")?,
        name: row.text("name")?,
        domain: row.parse("domain_id")?,
        project: row.parse("project_id")?,
        sealed: Sealed { text: row.text("sealed")?, master: row.text("master")? },
        images: row.size("images")?,
        created_us: row.int("created_us")?,
        sealed_us: row.int("sealed_us")?,
    })
}

/// Whether the copy that a row of `key_given` is about is still there, by the word of its location.
const COPY_STANDS: &str = " (EXISTS (SELECT entry.content_id FROM entry WHERE entry.location_id = key_given.location_id \
     AND entry.content_id = key_given.content_id) OR EXISTS (SELECT lease.lease_id FROM lease \
     WHERE lease.location_id = key_given.location_id AND lease.content_id = key_given.content_id))";

fn inside(stmt: Stmt, scope: Scope) -> Stmt {
    match scope {
        Scope::System => stmt,
        Scope::Domain(domain) => stmt.text(" AND domain_id = ").arg(domain),
        Scope::Project(_, project) => stmt.text(" AND project_id = ").arg(project),
    }
}

impl Tx<'_> {
    /// Stores a key.
    pub(super) async fn put_key(&mut self, new: &NewKey) -> Result<(), DbError> {
        let count = "SELECT CAST(COUNT(*) AS BIGINT) AS n FROM image_key WHERE project_id = $1";
        let insert = "INSERT INTO image_key (id, name, name_key, domain_id, project_id, sealed, master, created_us, sealed_us) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)";
        let project = self.live_project(new.project).await?;
        let found = self.row(sql("image_key", count).bind(new.project)).await?;
        let used: u64 = found.map_or(Ok(0), |row| row.size("n"))?;
        if used >= KEYS_PER_PROJECT_MAX {
            let of = format!("project {}", project.name);
            let (what, limit, cure) = ("keys", KEYS_PER_PROJECT_MAX, "delete keys that encrypt nothing");
            return Err(DbError::Quota { what, of, used, wanted: 1, limit, cure });
        }
        let stmt = sql("image_key", insert).bind(new.id).bind(&new.name);
        let stmt = stmt.bind(name_key(new.project, &new.name)).bind(new.domain).bind(new.project);
        let stmt = stmt.bind(&new.sealed.text).bind(&new.sealed.master).bind(self.now_us());
        self.run(stmt).await.map_err(|error| error.or_exists("key", &new.name)).map(drop)
    }

    /// Lets `key` encrypt `image`, both of `project`.
    pub(super) async fn use_key(
        &mut self,
        image: ImageId,
        project: ProjectId,
        key: KeyId,
    ) -> Result<(), DbError> {
        // In this transaction: the key may be deleted at this moment.
        let select = "SELECT id FROM image_key WHERE id = $1 AND project_id = $2";
        if self.row(sql("image_key", select).bind(key).bind(project)).await?.is_none() {
            return Err(DbError::NotFound { what: "key", key: key.to_string() });
        }
        let update = sql("image", "UPDATE image SET key_id = $1 WHERE id = $2").bind(key).bind(image);
        self.run(update).await.map(drop)
    }
}

impl Db {
    /// Stores a key.
    ///
    /// # Errors
    /// [`DbError::Exists`] for a name that the project has; [`DbError::Quota`]; [`DbError::NotFound`] if the project is gone; a
    /// failed statement.
    pub async fn create_key(&self, new: &NewKey, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                tx.put_key(new).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// The key with this id.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn key(&self, id: KeyId) -> Result<Option<Key>, DbError> {
        self.row(sql("image_key", COLUMNS).text(" AND id = ").arg(id)).await?.as_ref().map(key).transpose()
    }

    /// The key of a project with this name.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn key_named(&self, project: ProjectId, name: &str) -> Result<Option<Key>, DbError> {
        let stmt = sql("image_key", COLUMNS).text(" AND name_key = ").arg(name_key(project, name));
        self.row(stmt).await?.as_ref().map(key).transpose()
    }

    /// Keys inside `scope`, newest first; with `name`, only those called so.
    ///
    /// # Errors
    /// [`DbError::Cursor`] or a failed statement.
    pub async fn keys(
        &self,
        scope: Scope,
        name: Option<&str>,
        page: &PageRequest,
    ) -> Result<Page<Key>, DbError> {
        let mut stmt = inside(sql("image_key", COLUMNS), scope).when(name, " AND name = ");
        if let Some([id]) = page.key()? {
            stmt = stmt.text(" AND id < ").arg(id);
        }
        let rows = self.rows(stmt.text(" ORDER BY id DESC LIMIT ").arg(page.fetch())).await?;
        let keys = rows.iter().map(key).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(keys, |key| [key.id.to_string()]))
    }

    /// Deletes a key for good.
    ///
    /// # Errors
    /// [`DbError::State`] while it encrypts an image, or a copy that somebody was given the means to open; [`DbError::NotFound`]; a
    /// failed statement.
    pub async fn delete_key(&self, id: KeyId, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let row = tx.row(sql("image_key", COLUMNS).text(" AND id = ").arg(id)).await?;
                let missing = || DbError::NotFound { what: "key", key: id.to_string() };
                let found = row.as_ref().map(key).transpose()?.ok_or_else(missing)?;
                if found.images > 0 {
                    let state = format!("used by {} images", found.images);
                    let allowed =
                        "delete them first, also from the recycle bin: without the key nothing opens them";
                    return Err(DbError::State { what: "key", key: found.name, state, allowed });
                }
                let copies = "SELECT key_given.given_us FROM key_given JOIN image ON image.id = key_given.image_id WHERE image.key_id = $1 AND";
                let copies = sql("key_given", copies).bind(id).text(COPY_STANDS).text(" LIMIT 1");
                if tx.row(copies).await?.is_some() {
                    let state = "needed for copies of deleted images".to_owned();
                    let allowed = "machines may run on them: wait until no host has such a copy";
                    return Err(DbError::State { what: "key", key: found.name, state, allowed });
                }
                tx.run(sql("image_key", "DELETE FROM image_key WHERE id = $1").bind(id)).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// Seals every key by the current master key, all or none.
    ///
    /// # Errors
    /// [`ResealError`]; then nothing changed.
    pub async fn seal_keys_again(&self, keys: &KeyStore, op: &Draft) -> Result<Resealed, ResealError> {
        let update = "UPDATE image_key SET sealed = $1, master = $2, sealed_us = $3 WHERE id = $4";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let rows = tx.rows(sql("image_key", COLUMNS).text(" ORDER BY id")).await?;
                let mut done = Resealed { sealed: 0, unchanged: 0 };
                for row in &rows {
                    let Key { id, name, project, sealed, .. } = key(row)?;
                    let anew = keys.seal_again(id, project, &sealed);
                    let Some(anew) = anew.map_err(|source| ResealError::Key { id, name, source })? else {
                        done.unchanged += 1;
                        continue;
                    };
                    let stmt = sql("image_key", update).bind(&anew.text).bind(&anew.master);
                    tx.run(stmt.bind(tx.now_us()).bind(id)).await?;
                    done.sealed += 1;
                }
                let details = serde_json::json!({ "sealed": done.sealed, "unchanged": done.unchanged });
                tx.record(&op.clone().with(details)).await?;
                Ok(done)
            })
        })
        .await
    }

    /// Fingerprints of the master keys that seal keys, with the number of keys of each.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn key_masters(&self) -> Result<Vec<(String, u32)>, DbError> {
        let select =
            "SELECT master, CAST(COUNT(*) AS BIGINT) AS n FROM image_key GROUP BY master ORDER BY master";
        let rows = self.rows(sql("image_key", select)).await?;
        rows.iter().map(|row| Ok((row.text("master")?, row.size("n")?))).collect()
    }

    /// The image whose encrypted bytes are `content`, with its key; also one that is deleted, if a location was given the key. An
    /// encrypted content is one image's.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn encrypted_image(
        &self,
        content: ContentId,
    ) -> Result<Option<(ImageId, String, Key)>, DbError> {
        let select = "SELECT id, name, key_id FROM image WHERE key_id IS NOT NULL AND (content_id = $1 \
             OR id IN (SELECT image_id FROM key_given WHERE content_id = $1)) ORDER BY id LIMIT 1";
        let Some(row) = self.row(sql("image", select).bind(content)).await? else { return Ok(None) };
        let found = self.key(row.parse("key_id")?).await?;
        let (image, name) = (row.parse("id")?, row.text("name")?);
        Ok(found.map(|key| (image, name, key)))
    }

    /// Whether a location was given what opens `content`, and still holds or leases a copy of it by its own word.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn key_was_given(&self, location: LocationId, content: ContentId) -> Result<bool, DbError> {
        let select = "SELECT key_given.given_us FROM key_given WHERE key_given.location_id = $1 AND key_given.content_id = $2 AND";
        let stmt = sql("key_given", select).bind(location).bind(content).text(COPY_STANDS);
        Ok(self.row(stmt).await?.is_some())
    }

    /// Forgets grants from before `before_us` of copies that are not there: they never came, or a lease outlived them. Returns how many.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn forget_keys_given(&self, before_us: i64) -> Result<u64, DbError> {
        self.write_tx(move |tx| {
            let stmt = sql("key_given", "DELETE FROM key_given WHERE given_us < $1 AND NOT").bind(before_us);
            Box::pin(tx.run(stmt.text(COPY_STANDS)))
        })
        .await
    }

    /// Notes that a location is given what opens `content`, the bytes of `image`; only the first time leaves a row in the operation
    /// log.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn note_key_given(
        &self,
        location: LocationId,
        (content, image): (ContentId, ImageId),
        op: &Draft,
    ) -> Result<(), DbError> {
        let insert = "INSERT INTO key_given (location_id, content_id, image_id, given_us) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (location_id, content_id) DO NOTHING";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let stmt = sql("key_given", insert).bind(location).bind(content).bind(image);
                if tx.run(stmt.bind(tx.now_us())).await? == 1 { tx.record(op).await } else { Ok(()) }
            })
        })
        .await
    }
}
