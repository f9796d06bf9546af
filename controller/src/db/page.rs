//! Pages of a list by key, not by number.
//!
//! **What.** A request for a page, and the opaque mark (cursor) of the next one: the sort key of the last row.
//! **Why not OFFSET.** Rows inserted or deleted between two pages would be shown twice or never; and a deep page would
//! cost as much as all pages before it.
//! **Invariants.** A cursor that a list did not make is an error, not another page. Cursors hold only keys of rows that the
//! reader was shown.

use hearth_protocol::api::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX, Page};

use super::error::DbError;

/// Which page.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PageRequest {
    /// Rows; `None` is [`PAGE_ROWS_DEFAULT`]; more than [`PAGE_ROWS_MAX`] are cut to that.
    pub limit: Option<u32>,
    /// `next` of the page before; `None` for the first.
    pub cursor: Option<String>,
}

impl PageRequest {
    /// The first page with this many rows.
    #[must_use]
    pub const fn first(limit: u32) -> Self {
        Self { limit: Some(limit), cursor: None }
    }

    /// Rows of this page.
    pub(super) fn rows(&self) -> u32 {
        self.limit.unwrap_or(PAGE_ROWS_DEFAULT).clamp(1, PAGE_ROWS_MAX)
    }

    /// A page of rows that are in memory; `key` tells them apart, and they come sorted by it.
    ///
    /// # Errors
    /// [`DbError::Cursor`].
    pub fn cut<T>(&self, mut rows: Vec<T>, key: impl Fn(&T) -> &str) -> Result<Page<T>, DbError> {
        if let Some([after]) = self.key()? {
            rows.retain(|row| key(row) > after.as_str());
        }
        rows.sort_by(|a, b| key(a).cmp(key(b)));
        rows.truncate(usize::try_from(self.fetch()).unwrap_or(usize::MAX));
        Ok(self.page(rows, |row| [key(row).to_owned()]))
    }

    /// One row more than the page: its presence says that there is a next page.
    pub(super) fn fetch(&self) -> i64 {
        i64::from(self.rows()) + 1
    }

    /// The sort key after which the page begins.
    pub(super) fn key<const N: usize>(&self) -> Result<Option<[String; N]>, DbError> {
        self.cursor.as_deref().map(|cursor| decode(cursor).ok_or(DbError::Cursor)).transpose()
    }

    /// Cuts the extra row off and makes the mark of the next page from the last row that stays.
    pub(super) fn page<T, const N: usize>(
        &self,
        mut items: Vec<T>,
        key: impl Fn(&T) -> [String; N],
    ) -> Page<T> {
        let limit = self.rows() as usize;
        if items.len() <= limit {
            return Page { items, next: None };
        }
        items.truncate(limit);
        let next = items.last().map(|last| encode(&key(last)));
        Page { items, next }
    }
}

/// Each part as `length:text`, the whole in hex.
fn encode(parts: &[String]) -> String {
    let text: String = parts.iter().map(|part| format!("{}:{part}", part.len())).collect();
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn decode<const N: usize>(cursor: &str) -> Option<[String; N]> {
    let digits = cursor.as_bytes().chunks_exact(2);
    if !digits.remainder().is_empty() || !cursor.is_ascii() {
        return None;
    }
    let bytes: Option<Vec<u8>> =
        digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
    let text = String::from_utf8(bytes?).ok()?;
    let mut rest = text.as_str();
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_once(':')?;
        let (part, tail) = after.split_at_checked(length.parse().ok()?)?;
        parts.push(part.to_owned());
        rest = tail;
    }
    parts.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_any_text() {
        let parts = ["a:b".to_owned(), String::new(), "中文".to_owned()];
        assert_eq!(decode(&encode(&parts)), Some(parts));
    }

    #[test]
    fn a_cursor_of_another_list_is_an_error() {
        for cursor in ["zz", "0", "é", &encode(&["a".to_owned()])] {
            let request = PageRequest { limit: None, cursor: Some(cursor.to_owned()) };
            assert!(matches!(request.key::<2>(), Err(DbError::Cursor)), "{cursor}");
        }
    }

    #[test]
    fn the_extra_row_becomes_the_next_mark() {
        let request = PageRequest::first(2);
        let page = request.page(vec![1, 2, 3], |row| [row.to_string()]);
        let next = PageRequest { limit: Some(2), cursor: page.next };
        assert_eq!((page.items, next.key::<1>().unwrap()), (vec![1, 2], Some(["2".to_owned()])));
        assert_eq!(request.page(vec![1, 2], |row| [row.to_string()]).next, None);
    }
}
