//! Search for a part of a name or description, by pieces of one and two characters.
//!
//! **What.** [`fold`] is the form in which texts are compared; [`grams_of`] are the rows a text has in `image_gram`;
//! [`where_name_holds`] and [`where_searched`] are the conditions of a search.
//! **Why two characters.** `LIKE '%…%'` reads every name. The full-text indexes of the two engines differ, split at blanks
//! (Chinese has none) and leave out short words. A row per two neighbouring characters is plain SQL, and two Chinese
//! characters are found by one look-up. Single characters have rows too, so that they are found the same way.
//! **Why one table for both texts.** A search asks both, and what only one of them holds is compared with the folded text that
//! stands in the image's row.
//! **Where the look-ups are.** A list begins with the images of the rarest piece ([`super::narrow`]); the text itself is compared
//! for those, which costs less than looking up the other pieces of each.
//!
//! **Invariants**, tested on both engines: a search finds exactly the texts that hold it, whatever the case; `%` and `_`
//! are plain characters; a search of any length costs at most [`GRAMS_MAX`] look-ups.

use std::collections::BTreeSet;

use hearth_protocol::id::ImageId;
use hearth_protocol::words::ImageStatus;

use super::error::DbError;
use super::sql::{Stmt, contains, sql};
use super::store::Tx;

/// Most look-ups of one search; the text itself is compared for what they leave. Bounds a statement.
const GRAMS_MAX: usize = 8;

/// Rows of one INSERT: a description of 4,096 different characters has 8,191.
const ROWS_PER_INSERT: usize = 4000;

/// Fewest characters of a search that a status word may begin with: fewer are a part of many names.
const STATUS_CHARS_MIN: usize = 3;

/// The form in which names are searched and compared without case. Each character is folded by itself: what is a part of a
/// name is then a part of the folded name too (`str::to_lowercase` makes the last sigma of a word another letter).
pub(crate) fn fold(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).map(|c| if c == 'ς' { 'σ' } else { c }).collect()
}

/// Every one and two neighbouring characters of a folded text.
pub(super) fn grams_of(folded: &str) -> BTreeSet<String> {
    let chars: Vec<char> = folded.chars().collect();
    let of = |n: usize| chars.windows(n).map(|window| window.iter().collect()).collect::<Vec<String>>();
    of(1).into_iter().chain(of(2)).collect()
}

impl Tx<'_> {
    /// Makes the search find an image by this name and description and by nothing else.
    ///
    /// # Errors
    /// A failed statement.
    pub(super) async fn put_grams(
        &mut self,
        id: ImageId,
        name: &str,
        description: &str,
    ) -> Result<(), DbError> {
        self.delete_grams(id).await?;
        let mut grams = grams_of(&fold(name));
        grams.extend(grams_of(&fold(description)));
        let grams: Vec<String> = grams.into_iter().collect();
        for rows in grams.chunks(ROWS_PER_INSERT) {
            let mut stmt = sql("image_gram", "INSERT INTO image_gram (gram, image_id) VALUES ");
            for (n, gram) in rows.iter().enumerate() {
                stmt = stmt.text(if n == 0 { "(" } else { ", (" }).arg(gram).text(", ").arg(id).text(")");
            }
            self.run(stmt).await?;
        }
        Ok(())
    }

    /// Folds the texts of every image anew: once, when the database comes from a version that searched names alone.
    ///
    /// # Errors
    /// A failed statement.
    pub(super) async fn fold_all(&mut self) -> Result<(), DbError> {
        let all = "SELECT id, name, description FROM image WHERE deleted_us IS NULL";
        let update = "UPDATE image SET description_folded = $1 WHERE id = $2";
        for row in self.rows(sql("image", all)).await? {
            let id: ImageId = row.parse("id")?;
            let (name, description) = (row.text("name")?, row.text("description")?);
            self.run(sql("image", update).bind(fold(&description)).bind(id)).await?;
            self.put_grams(id, &name, &description).await?;
        }
        Ok(())
    }

    /// Makes the search forget an image.
    ///
    /// # Errors
    /// A failed statement.
    pub(super) async fn delete_grams(&mut self, id: ImageId) -> Result<(), DbError> {
        self.run(sql("image_gram", "DELETE FROM image_gram WHERE image_id = $1").bind(id)).await.map(|_| ())
    }
}

/// Appends the condition that an image's name holds `text`. An empty text is in every name.
pub(super) fn where_name_holds(stmt: Stmt, text: &str) -> Stmt {
    if text.is_empty() {
        return stmt;
    }
    stmt.text(" AND image.name_folded LIKE ").arg(contains(text)).text(" ESCAPE '\\'")
}

/// Whether a search for a folded text is the look-up of one piece: who has the piece has all that is asked for.
pub(super) fn is_piece(folded: &str) -> bool {
    matches!(folded.chars().count(), 1 | 2)
}

/// Appends the condition that an image's name or description holds `text`, or that its status begins with it.
pub(super) fn where_searched(stmt: Stmt, text: &str) -> Stmt {
    let folded = fold(text);
    let mut stmt = stmt.text(" AND ((1 = 1");
    if folded.is_empty() || is_piece(&folded) {
        // One or two characters are a gram of the one or the other: nothing is left to compare.
        stmt = where_grams(stmt, &folded);
    } else {
        stmt = stmt.text(" AND (image.name_folded LIKE ").arg(contains(text)).text(" ESCAPE '\\'");
        stmt = stmt.text(" OR image.description_folded LIKE ").arg(contains(text)).text(" ESCAPE '\\')");
    }
    stmt = stmt.text(")");
    let meant = meant_statuses(&folded);
    if !meant.is_empty() {
        stmt = stmt.text(" OR image.status IN ").list(meant);
    }
    stmt.text(")")
}

/// The states whose word begins with a folded text.
pub(super) fn meant_statuses(folded: &str) -> Vec<ImageStatus> {
    let is_long = folded.chars().count() >= STATUS_CHARS_MIN;
    let begins = |status: &&ImageStatus| is_long && status.as_str().starts_with(folded);
    ImageStatus::ALL.iter().filter(begins).copied().collect()
}

/// Appends the condition that name and description together have the piece that a short folded text is.
fn where_grams(mut stmt: Stmt, folded: &str) -> Stmt {
    let n_chars = folded.chars().count();
    let wanted = grams_of(folded).into_iter().filter(|gram| n_chars < 2 || gram.chars().count() == 2);
    for gram in spread(wanted.collect()) {
        stmt = stmt
            .text(" AND EXISTS (SELECT image_gram.gram FROM image_gram WHERE image_gram.image_id = image.id");
        stmt = stmt.text(" AND image_gram.gram = ").arg(gram).text(")");
    }
    stmt
}

/// The grams that a search for a folded text looks up.
pub(super) fn look_ups(folded: &str) -> Vec<String> {
    let n_chars = folded.chars().count();
    let wanted = grams_of(folded).into_iter().filter(|gram| n_chars < 2 || gram.chars().count() == 2);
    spread(wanted.collect())
}

/// At most [`GRAMS_MAX`] of them, from all over the list.
pub(super) fn spread(grams: Vec<String>) -> Vec<String> {
    let step = grams.len().div_ceil(GRAMS_MAX).max(1);
    grams.into_iter().step_by(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn n_look_ups(text: &str) -> usize {
        look_ups(&fold(text)).len()
    }

    #[test]
    fn a_name_has_a_row_for_each_one_and_two_characters() {
        let grams: Vec<String> = grams_of("镜像a镜像").into_iter().collect();
        assert_eq!(grams, ["a", "a镜", "像", "像a", "镜", "镜像"]);
        assert!(grams_of("").is_empty());
        assert_eq!(grams_of("x").into_iter().collect::<Vec<_>>(), ["x"]);
    }

    #[test]
    fn a_search_looks_up_few_grams_however_long_it_is() {
        assert_eq!(
            (n_look_ups(""), n_look_ups("镜"), n_look_ups("镜像"), n_look_ups("debian")),
            (0, 1, 1, 5)
        );
        let long: String = (0..2000).map(|n| char::from_u32(0x4E00 + n).unwrap()).collect();
        assert!((2..=GRAMS_MAX).contains(&n_look_ups(&long)), "{}", n_look_ups(&long));
    }

    #[test]
    fn two_characters_are_not_compared_once_more() {
        let text =
            |text| where_searched(sql("image", "SELECT id FROM image WHERE 1 = 1"), text).as_str().to_owned();
        assert!(!text("系统").contains("LIKE") && text("系统镜").contains("LIKE"));
    }

    #[test]
    fn a_status_word_is_found_by_its_begin() {
        let asks_status = |text| {
            where_searched(sql("image", "SELECT id FROM image WHERE 1 = 1"), text).as_str().contains("status")
        };
        assert!(asks_status("act") && asks_status("PENDING"));
        assert!(!asks_status("ac") && !asks_status("tive"), "a part of many names");
    }

    proptest::proptest! {
        #[test]
        fn a_part_of_a_name_is_a_part_of_its_folded_form(name in "[A-Za-zΑ-Ωα-ως中文İ%_ ]{0,20}", from in 0_usize..20, n in 0_usize..20) {
            let part: String = name.chars().skip(from).take(n).collect();
            proptest::prop_assert!(fold(&name).contains(&fold(&part)));
            proptest::prop_assert!(grams_of(&fold(&part)).is_subset(&grams_of(&fold(&name))));
        }
    }
}
