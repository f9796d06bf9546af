//! Search for a part of a name, by pieces of one and two characters.
//!
//! **What.** [`fold`] is the form in which names are compared; [`grams_of`] are the rows a name has in `image_gram`;
//! [`where_name_holds`] is the condition of a search.
//! **Why two characters.** `LIKE '%…%'` reads every name. The full-text indexes of the two engines differ, split at blanks
//! (Chinese has none) and leave out short words. A row per two neighbouring characters is plain SQL, and two Chinese
//! characters are found by one look-up. Single characters have rows too, so that they are found the same way.
//! **Invariants**, tested on both engines: a search finds exactly the names that hold the text, whatever the case; `%` and `_`
//! are plain characters; a search of any length costs at most [`GRAMS_MAX`] look-ups.

use std::collections::BTreeSet;

use hearth_protocol::id::ImageId;

use super::error::DbError;
use super::sql::{Stmt, contains, sql};
use super::store::Tx;

/// Most look-ups of one search; the text itself is compared for what they leave. Bounds a statement.
const GRAMS_MAX: usize = 8;

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
    /// Makes the search find an image by this name and by no other.
    ///
    /// # Errors
    /// A failed statement.
    pub(super) async fn put_grams(&mut self, id: ImageId, name: &str) -> Result<(), DbError> {
        self.delete_grams(id).await?;
        // A name has at most 255 characters, so that this is one statement of about a thousand values at most.
        let insert = "INSERT INTO image_gram (gram, image_id) VALUES ";
        let mut stmt = sql("image_gram", insert);
        for (n, gram) in grams_of(&fold(name)).into_iter().enumerate() {
            stmt = stmt.text(if n == 0 { "(" } else { ", (" }).arg(gram).text(", ").arg(id).text(")");
        }
        // An empty name has nothing to search for.
        if stmt.as_str() == insert { Ok(()) } else { self.run(stmt).await.map(|_| ()) }
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
pub(super) fn where_name_holds(mut stmt: Stmt, text: &str) -> Stmt {
    let n_chars = fold(text).chars().count();
    for gram in look_ups(text) {
        stmt = stmt
            .text(" AND EXISTS (SELECT image_gram.gram FROM image_gram WHERE image_gram.image_id = image.id");
        stmt = stmt.text(" AND image_gram.gram = ").arg(gram).text(")");
    }
    // One or two characters are a gram: nothing is left to compare.
    if n_chars <= 2 {
        return stmt;
    }
    stmt.text(" AND image.name_folded LIKE ").arg(contains(text)).text(" ESCAPE '\\'")
}

/// The grams that a search for `text` looks up.
pub(super) fn look_ups(text: &str) -> Vec<String> {
    let folded = fold(text);
    let n_chars = folded.chars().count();
    let wanted = grams_of(&folded).into_iter().filter(|gram| n_chars < 2 || gram.chars().count() == 2);
    spread(wanted.collect())
}

/// At most [`GRAMS_MAX`] of them, from all over the list.
fn spread(grams: Vec<String>) -> Vec<String> {
    let step = grams.len().div_ceil(GRAMS_MAX).max(1);
    grams.into_iter().step_by(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn n_look_ups(text: &str) -> usize {
        where_name_holds(sql("image", "SELECT id FROM image WHERE 1 = 1"), text)
            .as_str()
            .matches(" EXISTS (")
            .count()
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
        let text = |text| {
            where_name_holds(sql("image", "SELECT id FROM image WHERE 1 = 1"), text).as_str().to_owned()
        };
        assert!(!text("系统").contains("LIKE") && text("系统镜").contains("LIKE"));
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
