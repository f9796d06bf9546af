//! Markets: signed catalogs, the newest edition that was ever seen of each, and what was imported from where.
//!
//! **What.** The file as it was signed is stored whole: whoever imports from it checks the signature once more.
//! **Why what was imported is asked of images.** An image that was deleted, or lies in the recycle bin, is not here; no row needs
//! to be told.
//! **Invariants.** An edition never follows a newer one of its key and name, not even after its market was removed and added
//! again. An image and the note of where it comes from are made together, and of an entry there is one image at a time.

use std::collections::HashMap;

use hearth_protocol::api::Page;
use hearth_protocol::api::market::{Catalog, CatalogEntry, SignedCatalog};
use hearth_protocol::id::{ImageId, MarketId};
use hearth_protocol::words::ImageStatus;

use super::error::DbError;
use super::grams::fold;
use super::operations::Draft;
use super::page::PageRequest;
use super::sql::{Row, sql};
use super::store::{Db, Tx};
use crate::logic::market::succeeds;

/// Most markets: bounds what lists over all of them cost.
pub const MARKETS_MAX: u32 = 100;

/// A market.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Market {
    /// Its id.
    pub id: MarketId,
    /// Its name.
    pub name: String,
    /// Public key of who signs, hex.
    pub key: String,
    /// Where editions come from.
    pub url: Option<String>,
    /// Name of the catalog.
    pub catalog_name: String,
    /// Edition.
    pub serial: u64,
    /// Number of entries.
    pub entries: u32,
    /// When it was added, microseconds since the epoch.
    pub created_us: i64,
    /// When this edition came.
    pub updated_us: i64,
}

/// An import that does not exist yet.
#[derive(Clone, Debug)]
pub struct NewImport {
    /// From where.
    pub market: Market,
    /// What.
    pub entry: CatalogEntry,
    /// Its row in the log.
    pub op: Draft,
}

/// A checked edition: the file, and what it says.
#[derive(Clone, Copy, Debug)]
pub struct Edition<'a> {
    /// As it was signed.
    pub file: &'a SignedCatalog,
    /// As it was read.
    pub catalog: &'a Catalog,
}

impl Edition<'_> {
    fn entries(&self) -> u32 {
        u32::try_from(self.catalog.entries.len()).unwrap_or(u32::MAX)
    }
}

const COLUMNS: &str = "SELECT id, name, name_folded, public_key, url, catalog_name, serial, entries, created_us, updated_us \
     FROM market";

fn market(row: &Row) -> Result<Market, DbError> {
    Ok(Market {
        id: row.parse("id")?,
        name: row.text("name")?,
        key: row.text("public_key")?,
        url: Some(row.text("url")?).filter(|url| !url.is_empty()),
        catalog_name: row.text("catalog_name")?,
        serial: row.size("serial")?,
        entries: row.size("entries")?,
        created_us: row.int("created_us")?,
        updated_us: row.int("updated_us")?,
    })
}

/// Notes an edition as the newest of its key and name, if it is.
async fn admit(tx: &mut Tx<'_>, key: &str, edition: Edition<'_>) -> Result<(), DbError> {
    let Edition { file, catalog } = edition;
    let hash = blake3::hash(file.catalog.as_bytes()).to_hex().to_string();
    let select = "SELECT serial, text_hash FROM market_edition WHERE public_key = $1 AND catalog_name = $2";
    let row = tx.row(sql("market_edition", select).bind(key).bind(&catalog.name)).await?;
    let (seen, same) = match &row {
        Some(row) => (Some(row.size("serial")?), row.text("text_hash")? == hash),
        None => (None, false),
    };
    succeeds(catalog.serial, seen, same).map_err(|state| DbError::State {
        what: "edition",
        key: catalog.serial.to_string(),
        state,
        allowed: "a newer edition has a higher serial",
    })?;
    let upsert = "INSERT INTO market_edition (public_key, catalog_name, serial, text_hash, updated_us) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (public_key, catalog_name) DO UPDATE SET serial = excluded.serial, \
         text_hash = excluded.text_hash, updated_us = excluded.updated_us";
    let stmt = sql("market_edition", upsert).bind(key).bind(&catalog.name).bind(catalog.serial);
    tx.run(stmt.bind(hash).bind(tx.now_us())).await.map(drop)
}

impl Tx<'_> {
    async fn market(&mut self, id: MarketId) -> Result<Market, DbError> {
        let row = self.row(sql("market", COLUMNS).text(" WHERE id = ").arg(id)).await?;
        let found = row.as_ref().map(market).transpose()?;
        found.ok_or_else(|| DbError::NotFound { what: "market", key: id.to_string() })
    }

    /// Notes that `image`, which this transaction makes, is made of an entry: the only one that is.
    pub(super) async fn note_import(&mut self, image: ImageId, new: &NewImport) -> Result<(), DbError> {
        let NewImport { market, entry, op } = new;
        let select = "SELECT image.id, image.status FROM market_import JOIN image ON image.id = market_import.image_id \
             WHERE market_import.public_key = $1 AND market_import.catalog_name = $2 AND market_import.entry_key = $3 \
             AND market_import.sha256 = $4 AND image.deleted_us IS NULL AND image.status <> 'pending_delete' \
             ORDER BY image.id DESC LIMIT 1";
        let stmt = sql("market_import", select).bind(&market.key).bind(&market.catalog_name).bind(&entry.key);
        if let Some(row) = self.row(stmt.bind(&entry.sha256)).await? {
            let (id, status) = (row.text("id")?, row.text("status")?);
            return Err(DbError::State {
                what: "entry",
                key: format!("{} of market {}", entry.key, market.name),
                state: format!("here already, as image {id}, which is {status}"),
                allowed: "delete that image first, or retry it: hearth image retry",
            });
        }
        let insert = "INSERT INTO market_import (image_id, public_key, catalog_name, entry_key, sha256, size_bytes, created_us) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)";
        let stmt = sql("market_import", insert).bind(image).bind(&market.key).bind(&market.catalog_name);
        let stmt = stmt.bind(&entry.key).bind(&entry.sha256).bind(entry.size_bytes).bind(self.now_us());
        self.run(stmt).await?;
        self.record(op).await
    }
}

impl Db {
    /// Adds a market with its first edition. Number of entries, serial and times of `new` are those of the edition.
    ///
    /// # Errors
    /// [`DbError::Exists`]; [`DbError::State`] for an old edition or too many markets; or a failed statement.
    pub async fn create_market(
        &self,
        new: &Market,
        edition: Edition<'_>,
        op: &Draft,
    ) -> Result<Market, DbError> {
        let count = "SELECT CAST(COUNT(*) AS BIGINT) AS n FROM market";
        let insert = "INSERT INTO market (id, name, name_folded, public_key, url, catalog, signature, catalog_name, \
             serial, entries, created_us, updated_us) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let n: u32 = tx.row(sql("market", count)).await?.map_or(Ok(0), |row| row.size("n"))?;
                if n >= MARKETS_MAX {
                    let state = format!("one too many: {n} are there");
                    let allowed = "remove one first";
                    return Err(DbError::State { what: "market", key: new.name.clone(), state, allowed });
                }
                admit(tx, &new.key, edition).await?;
                let stmt = sql("market", insert).bind(new.id).bind(&new.name).bind(fold(&new.name));
                let stmt = stmt.bind(&new.key).bind(new.url.as_deref().unwrap_or_default());
                let stmt = stmt.bind(&edition.file.catalog).bind(&edition.file.signature);
                let stmt = stmt.bind(&edition.catalog.name).bind(edition.catalog.serial);
                let inserted = tx.run(stmt.bind(edition.entries()).bind(tx.now_us())).await;
                inserted.map_err(|error| error.or_exists("market", &new.name))?;
                tx.record(op).await?;
                tx.market(new.id).await
            })
        })
        .await
    }

    /// Replaces the edition of a market; the one that is here changes nothing.
    ///
    /// # Errors
    /// [`DbError::NotFound`]; [`DbError::State`] for an old edition or another catalog; or a failed statement.
    pub async fn refresh_market(
        &self,
        id: MarketId,
        edition: Edition<'_>,
        op: &Draft,
    ) -> Result<Market, DbError> {
        let update = "UPDATE market SET catalog = $1, signature = $2, serial = $3, entries = $4, updated_us = $5 WHERE id = $6";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let found = tx.market(id).await?;
                let (file, catalog) = (edition.file, edition.catalog);
                if found.catalog_name != catalog.name {
                    let state = format!("of catalog {}", found.catalog_name);
                    let allowed = "add another catalog as a market of its own";
                    return Err(DbError::State { what: "market", key: found.name, state, allowed });
                }
                admit(tx, &found.key, edition).await?;
                if found.serial == catalog.serial {
                    return Ok(found);
                }
                let stmt =
                    sql("market", update).bind(&file.catalog).bind(&file.signature).bind(catalog.serial);
                tx.run(stmt.bind(edition.entries()).bind(tx.now_us()).bind(id)).await?;
                let details = serde_json::json!({
                    "before": { "serial": found.serial, "entries": found.entries },
                    "after": { "serial": catalog.serial, "entries": edition.entries() },
                });
                tx.record(&op.clone().with(details)).await?;
                tx.market(id).await
            })
        })
        .await
    }

    /// Removes a market; images that were imported from it stay.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn delete_market(&self, id: MarketId, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                tx.market(id).await?;
                tx.run(sql("market", "DELETE FROM market WHERE id = $1").bind(id)).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// The market with this id.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn market(&self, id: MarketId) -> Result<Option<Market>, DbError> {
        self.row(sql("market", COLUMNS).text(" WHERE id = ").arg(id)).await?.as_ref().map(market).transpose()
    }

    /// The file of a market as it was signed.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn market_file(&self, id: MarketId) -> Result<Option<SignedCatalog>, DbError> {
        let select = "SELECT catalog, signature FROM market WHERE id = $1";
        let Some(row) = self.row(sql("market", select).bind(id)).await? else { return Ok(None) };
        Ok(Some(SignedCatalog { catalog: row.text("catalog")?, signature: row.text("signature")? }))
    }

    /// Markets by name, or the one with this name without regard to case.
    ///
    /// # Errors
    /// [`DbError::Cursor`] or a failed statement.
    pub async fn markets(&self, name: Option<&str>, page: &PageRequest) -> Result<Page<Market>, DbError> {
        let stmt = sql("market", COLUMNS).text(" WHERE 1 = 1").when(name.map(fold), " AND name_folded = ");
        let stmt = stmt.when(page.key()?.map(|[name]| name), " AND name_folded > ");
        let rows = self.rows(stmt.text(" ORDER BY name_folded LIMIT ").arg(page.fetch())).await?;
        let markets = rows.iter().map(market).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(markets, |market| [fold(&market.name)]))
    }

    /// Forgets notes from before `before_us` of images that were not made or are deleted. Returns how many.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn forget_imports(&self, before_us: i64) -> Result<u64, DbError> {
        const LEFT: &str = "DELETE FROM market_import WHERE NOT EXISTS (SELECT image.id FROM image \
             WHERE image.id = market_import.image_id AND image.deleted_us IS NULL) AND created_us < ";
        self.write_tx(move |tx| Box::pin(tx.run(sql("market_import", LEFT).arg(before_us)))).await
    }

    /// What became of the entries of a catalog: by key and SHA-256, the newest image that is neither deleted nor in a recycle bin.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn imports_of(
        &self,
        market: &Market,
    ) -> Result<HashMap<(String, String), (ImageId, ImageStatus)>, DbError> {
        let select = "SELECT market_import.entry_key, market_import.sha256, image.id, image.status FROM market_import \
             JOIN image ON image.id = market_import.image_id WHERE market_import.public_key = $1 \
             AND market_import.catalog_name = $2 AND image.deleted_us IS NULL AND image.status <> 'pending_delete' \
             ORDER BY image.id";
        let rows =
            self.rows(sql("market_import", select).bind(&market.key).bind(&market.catalog_name)).await?;
        let one = |row: &Row| {
            let key = (row.text("entry_key")?, row.text("sha256")?);
            Ok((key, (row.parse("id")?, row.parse("status")?)))
        };
        rows.iter().map(one).collect()
    }

    /// The size that the file of an image must have, if it comes from a market.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn market_size_of(&self, image: ImageId) -> Result<Option<u64>, DbError> {
        let select = "SELECT size_bytes FROM market_import WHERE image_id = $1";
        let row = self.row(sql("market_import", select).bind(image)).await?;
        row.map(|row| row.size("size_bytes")).transpose()
    }
}
