//! Search for a part of a host image's name, by pieces of one and two characters.
//!
//! **What.** The rows of `host_image_gram` and the condition of a search; [`super::grams`] says why pieces, and how texts are
//! folded and cut.
//! **Invariants.** A search finds exactly the names that hold the text, whatever the case; `%` and `_` are plain characters.

use hearth_protocol::id::HostImageId;

use super::error::DbError;
use super::grams::{fold, grams_of, spread};
use super::sql::{Stmt, contains, sql};
use super::store::Tx;

impl Tx<'_> {
    /// Makes the search find a host image by this name and by no other.
    ///
    /// # Errors
    /// A failed statement.
    pub(super) async fn put_host_grams(&mut self, id: HostImageId, name: &str) -> Result<(), DbError> {
        self.delete_host_grams(id).await?;
        // A name is not empty and has at most 255 characters: one statement of about a thousand values at most.
        let mut stmt = sql("host_image_gram", "INSERT INTO host_image_gram (gram, host_image_id) VALUES ");
        for (n, gram) in grams_of(&fold(name)).into_iter().enumerate() {
            stmt = stmt.text(if n == 0 { "(" } else { ", (" }).arg(gram).text(", ").arg(id).text(")");
        }
        self.run(stmt).await.map(|_| ())
    }

    /// Makes the search forget a host image.
    ///
    /// # Errors
    /// A failed statement.
    pub(super) async fn delete_host_grams(&mut self, id: HostImageId) -> Result<(), DbError> {
        let delete = "DELETE FROM host_image_gram WHERE host_image_id = $1";
        self.run(sql("host_image_gram", delete).bind(id)).await.map(|_| ())
    }
}

/// Appends the condition that a host image's name holds `text`. An empty text is in every name.
pub(super) fn where_host_name_holds(mut stmt: Stmt, text: &str) -> Stmt {
    const HOLDS: &str = " AND host_image.id IN (SELECT host_image_gram.host_image_id FROM host_image_gram \
         WHERE host_image_gram.gram = ";
    let folded = fold(text);
    let n_chars = folded.chars().count();
    let wanted = grams_of(&folded).into_iter().filter(|gram| n_chars < 2 || gram.chars().count() == 2);
    for gram in spread(wanted.collect()) {
        stmt = stmt.text(HOLDS).arg(gram).text(")");
    }
    // One or two characters are a gram: nothing is left to compare.
    if n_chars <= 2 {
        return stmt;
    }
    stmt.text(" AND host_image.name_folded LIKE ").arg(contains(text)).text(" ESCAPE '\\'")
}
