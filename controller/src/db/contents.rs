//! Contents: the bytes that are distributed, and their content objects.
//!
//! **Invariants.** A content row stands as long as an image or an intent refers to it (foreign keys hold that). Two images
//! with the same bytes share one row.

use hearth_protocol::digest::ContentId;
use hearth_protocol::words::ContentKind;

use super::error::DbError;
use super::operations::Draft;
use super::sql::{Row, sql};
use super::store::{Db, Tx};

/// One content.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Content {
    /// Its identity.
    pub id: ContentId,
    /// What its bytes are.
    pub kind: ContentKind,
    /// Size as a guest sees it.
    pub raw_bytes: u64,
    /// Bytes of all chunks.
    pub data_bytes: u64,
    /// Bytes of the content object.
    pub stored_bytes: u64,
    /// Number of chunks.
    pub n_chunks: u64,
    /// A chunk of the content object failed its hash and waits to be mended.
    pub damaged: bool,
}

const COLUMNS: &str =
    "SELECT content_id, kind, raw_bytes, data_bytes, stored_bytes, n_chunks, damaged FROM content";

fn content(row: &Row) -> Result<Content, DbError> {
    Ok(Content {
        id: row.parse("content_id")?,
        kind: row.parse("kind")?,
        raw_bytes: row.size("raw_bytes")?,
        data_bytes: row.size("data_bytes")?,
        stored_bytes: row.size("stored_bytes")?,
        n_chunks: row.size("n_chunks")?,
        damaged: row.flag("damaged")?,
    })
}

impl Tx<'_> {
    /// Stores a content; one that is known gets the sizes of its new content object and is no longer damaged.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn put_content(&mut self, content: &Content) -> Result<(), DbError> {
        let put = "INSERT INTO content (content_id, kind, raw_bytes, data_bytes, stored_bytes, n_chunks, damaged, \
             created_us, updated_us) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8) ON CONFLICT (content_id) DO UPDATE SET \
             stored_bytes = excluded.stored_bytes, damaged = excluded.damaged, updated_us = excluded.updated_us";
        let stmt = sql("content", put).bind(content.id).bind(content.kind).bind(content.raw_bytes);
        let stmt = stmt.bind(content.data_bytes).bind(content.stored_bytes).bind(content.n_chunks);
        self.run(stmt.bind(content.damaged).bind(self.now_us())).await.map(|_| ())
    }
}

impl Db {
    /// One content.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn content(&self, id: ContentId) -> Result<Option<Content>, DbError> {
        let row = self.row(sql("content", COLUMNS).text(" WHERE content_id = ").arg(id)).await?;
        row.as_ref().map(content).transpose()
    }

    /// Stored bytes of all contents.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn stored_bytes(&self) -> Result<u64, DbError> {
        let sum = "SELECT CAST(COALESCE(SUM(stored_bytes), 0) AS BIGINT) AS n FROM content";
        self.row(sql("content", sum)).await?.map_or(Ok(0), |row| row.size("n"))
    }

    /// All contents: one row per distinct image content.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn contents(&self) -> Result<Vec<Content>, DbError> {
        self.each(sql("content", COLUMNS).text(" ORDER BY content_id NULLS FIRST"), content).await
    }

    /// Marks a content object damaged or mended.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn set_content_damaged(&self, id: ContentId, damaged: bool, op: &Draft) -> Result<(), DbError> {
        let update = "UPDATE content SET damaged = $1, updated_us = $2 WHERE content_id = $3";
        self.write_tx(move |tx| {
            Box::pin(async move {
                if tx.run(sql("content", update).bind(damaged).bind(tx.now_us()).bind(id)).await? == 0 {
                    return Err(DbError::NotFound { what: "content", key: id.to_string() });
                }
                tx.record(op).await
            })
        })
        .await
    }

    /// Contents that no image and no intent refers to: their files may go.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn unused_contents(&self) -> Result<Vec<Content>, DbError> {
        let unused = " WHERE NOT EXISTS (SELECT id FROM image WHERE image.content_id = content.content_id) \
             AND NOT EXISTS (SELECT id FROM intent WHERE intent.content_id = content.content_id) ORDER BY content_id NULLS FIRST";
        self.rows(sql("content", COLUMNS).text(unused)).await?.iter().map(content).collect()
    }

    /// Forgets a content if nothing refers to it any more; `false` if something does or it is unknown. The caller notes
    /// it as leaving before, and deletes its files afterwards: a crash in between leaves files, never a row without them.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn forget_content(&self, id: ContentId) -> Result<bool, DbError> {
        let delete = "DELETE FROM content WHERE content_id = $1 \
             AND NOT EXISTS (SELECT id FROM image WHERE image.content_id = content.content_id) \
             AND NOT EXISTS (SELECT id FROM intent WHERE intent.content_id = content.content_id)";
        self.write_tx(move |tx| {
            Box::pin(async move { Ok(tx.run(sql("content", delete).bind(id)).await? == 1) })
        })
        .await
    }
}
