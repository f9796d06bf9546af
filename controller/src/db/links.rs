//! Download links: who has the address may fetch one image, for a day at most.
//!
//! **What.** A record with the hash of the address's secret, when it ends, and when it was first used.
//!
//! **Why a link that ended stays for a while.** Its holder is told that it ended and what to do; without the row the address
//! would look forged.
//!
//! **Invariants.** The secret is never stored. A link is found by the hash of its secret alone: how long that takes says
//! nothing about the secret. The first use and its row in the operation log are one transaction.

use hearth_protocol::api::Page;
use hearth_protocol::id::{ImageId, LinkId};
use hearth_protocol::words::DiskFormat;

use super::changes::Change;
use super::error::DbError;
use super::operations::Draft;
use super::page::PageRequest;
use super::sql::{Row, sql};
use super::store::Db;

/// A link.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// Its id.
    pub id: LinkId,
    /// The image.
    pub image: ImageId,
    /// The variant's format; `None`: the original.
    pub format: Option<DiskFormat>,
    /// Name of the token that made it.
    pub created_by: String,
    /// When it ends, microseconds since the epoch.
    pub expires_us: i64,
    /// When it was revoked.
    pub revoked_us: Option<i64>,
    /// When bytes were first fetched with it.
    pub first_used_us: Option<i64>,
    /// When it was made.
    pub created_us: i64,
}

impl Link {
    /// Whether it opens something at `now_us`, as far as the link itself says.
    #[must_use]
    pub const fn is_open(&self, now_us: i64) -> bool {
        self.revoked_us.is_none() && self.expires_us > now_us
    }
}

const COLUMNS: &str =
    "SELECT id, image_id, format, created_by, expires_us, revoked_us, first_used_us, created_us FROM link";

fn link(row: &Row) -> Result<Link, DbError> {
    let format = row.text("format")?;
    Ok(Link {
        id: row.parse("id")?,
        image: row.parse("image_id")?,
        format: if format.is_empty() { None } else { Some(row.parse("format")?) },
        created_by: row.text("created_by")?,
        expires_us: row.int("expires_us")?,
        revoked_us: row.opt_int("revoked_us")?,
        first_used_us: row.opt_int("first_used_us")?,
        created_us: row.int("created_us")?,
    })
}

impl Db {
    /// Stores a link unless the image has `open_max` that are open already.
    ///
    /// # Errors
    /// [`DbError::State`] if it has; a failed statement.
    pub async fn create_link(
        &self,
        new: &Link,
        secret_hash: &str,
        open_max: u32,
        op: &Draft,
    ) -> Result<(), DbError> {
        let open = "SELECT CAST(COUNT(*) AS BIGINT) AS n FROM link WHERE image_id = $1 AND revoked_us IS NULL AND expires_us > $2";
        let insert = "INSERT INTO link (id, image_id, secret_hash, format, created_by, expires_us, created_us, updated_us) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7)";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let found = tx.row(sql("link", open).bind(new.image).bind(tx.now_us())).await?;
                let n: u32 = found.map_or(Ok(0), |row| row.size("n"))?;
                if n >= open_max {
                    let state = format!("used by {n} links that are open");
                    let key = new.image.to_string();
                    return Err(DbError::State { what: "image", key, state, allowed: "fewer" });
                }
                let format = new.format.map(|format| format.to_string()).unwrap_or_default();
                let stmt = sql("link", insert).bind(new.id).bind(new.image).bind(secret_hash).bind(format);
                tx.run(stmt.bind(&new.created_by).bind(new.expires_us).bind(new.created_us)).await?;
                tx.changed(Change::Image(new.image));
                tx.record(op).await
            })
        })
        .await
    }

    /// The link whose secret has this hash, open or not.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn link_by_secret_hash(&self, secret_hash: &str) -> Result<Option<Link>, DbError> {
        let row = self.row(sql("link", COLUMNS).text(" WHERE secret_hash = ").arg(secret_hash)).await?;
        row.as_ref().map(link).transpose()
    }

    /// The link of this image with this id.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn link(&self, image: ImageId, id: LinkId) -> Result<Option<Link>, DbError> {
        let stmt = sql("link", COLUMNS).text(" WHERE image_id = ").arg(image).text(" AND id = ").arg(id);
        self.row(stmt).await?.as_ref().map(link).transpose()
    }

    /// Links of an image, newest first.
    ///
    /// # Errors
    /// [`DbError::Cursor`] or a failed statement.
    pub async fn links(&self, image: ImageId, page: &PageRequest) -> Result<Page<Link>, DbError> {
        let mut stmt = sql("link", COLUMNS).text(" WHERE image_id = ").arg(image);
        if let Some([id]) = page.key()? {
            stmt = stmt.text(" AND id < ").arg(id);
        }
        let rows = self.rows(stmt.text(" ORDER BY id DESC LIMIT ").arg(page.fetch())).await?;
        let links = rows.iter().map(link).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(links, |link| [link.id.to_string()]))
    }

    /// Revokes a link at once; doing it twice keeps the first time.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn revoke_link(&self, image: ImageId, id: LinkId, op: &Draft) -> Result<(), DbError> {
        let update = "UPDATE link SET revoked_us = COALESCE(revoked_us, $1), updated_us = $1 WHERE image_id = $2 AND id = $3";
        self.write_tx(move |tx| {
            Box::pin(async move {
                if tx.run(sql("link", update).bind(tx.now_us()).bind(image).bind(id)).await? == 0 {
                    return Err(DbError::NotFound { what: "link", key: id.to_string() });
                }
                tx.record(op).await
            })
        })
        .await
    }

    /// Notes that a link is used; only the first use leaves a row in the operation log.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn use_link(&self, id: LinkId, op: &Draft) -> Result<(), DbError> {
        let update =
            "UPDATE link SET first_used_us = $1, updated_us = $1 WHERE id = $2 AND first_used_us IS NULL";
        self.write_tx(move |tx| {
            Box::pin(async move {
                if tx.run(sql("link", update).bind(tx.now_us()).bind(id)).await? == 1 {
                    tx.record(op).await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Forgets links that ended before `before_us`. Returns how many.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn forget_links(&self, before_us: i64) -> Result<u64, DbError> {
        let stmt = || sql("link", "DELETE FROM link WHERE expires_us < ").arg(before_us);
        self.write_tx(move |tx| Box::pin(tx.run(stmt()))).await
    }
}
