//! The tables that the migrations declare, as far as the SQL rules need them.
//!
//! **What.** Finds SQL in migration files and in string literals of the controller, and reads `CREATE TABLE` and
//! `ALTER TABLE … ADD COLUMN` into columns.
//!
//! **Why no SQL parser.** Two statements of one style are read; what is not understood is reported by the type rule.

use std::collections::BTreeMap;

use crate::source::SourceFile;

/// Where the controller's SQL lives.
const DB_FOLDER: &str = "controller/src/db";
/// Words with which SQL text begins.
const OPENINGS: &[&str] =
    &["SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP", "WITH", "ORDER BY"];
/// Words that begin a table constraint, not a column.
const CONSTRAINTS: &[&str] = &["PRIMARY", "UNIQUE", "FOREIGN", "CHECK", "CONSTRAINT"];

/// A piece of SQL and where it stands.
#[derive(Debug)]
pub(crate) struct Sql<'a> {
    pub(crate) file: &'a SourceFile,
    /// Offset of the text in the file.
    pub(crate) offset: usize,
    /// The SQL with comments blanked out.
    pub(crate) text: String,
}

/// One column of one table.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// The declared type, in upper case.
    pub(crate) kind: String,
    pub(crate) not_null: bool,
    /// Offset in the SQL text.
    pub(crate) offset: usize,
}

/// Whether the file holds SQL of the controller.
pub(crate) fn is_db_file(file: &SourceFile) -> bool {
    file.path.starts_with(DB_FOLDER)
}

/// All SQL: the text of `.sql` files, and the string literals that read like SQL.
pub(crate) fn statements(files: &[SourceFile]) -> Vec<Sql<'_>> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| is_db_file(file)) {
        if file.name().ends_with(".sql") {
            found.push(Sql { file, offset: 0, text: without_comments(&file.text) });
        }
        let Some(rust) = &file.rust else { continue };
        for (offset, string) in &rust.strings {
            let reads_like_sql = OPENINGS.iter().any(|word| string.trim_start().starts_with(word));
            let joined = string.contains(" ORDER BY ") || string.contains(" WHERE ");
            if reads_like_sql || joined {
                found.push(Sql { file, offset: *offset, text: without_comments(string) });
            }
        }
    }
    found
}

/// Blanks out `-- …` and the insides of `'…'`, so that words in them are not taken for SQL.
fn without_comments(sql: &str) -> String {
    let mut out = Vec::with_capacity(sql.len());
    let (mut in_comment, mut in_text) = (false, false);
    let bytes = sql.as_bytes();
    for (at, byte) in bytes.iter().copied().enumerate() {
        match byte {
            b'\n' => in_comment = false,
            b'-' if !in_text && bytes.get(at + 1) == Some(&b'-') => in_comment = true,
            b'\'' if !in_comment => in_text = !in_text,
            _ => {}
        }
        out.push(if (in_comment || in_text) && byte != b'\n' { b' ' } else { byte });
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The columns that a piece of SQL declares.
pub(crate) fn columns(sql: &str) -> Vec<Column> {
    let mut found = Vec::new();
    for (at, _) in sql.match_indices("CREATE TABLE") {
        let Some(open) = sql[at..].find('(').map(|n| at + n + 1) else { continue };
        let close = closing(sql, open);
        let items = split_at_commas(&sql[open..close]);
        found.extend(items.into_iter().filter_map(|(start, item)| column(item, open + start)));
    }
    for (at, word) in sql.match_indices("ADD COLUMN") {
        let start = at + word.len();
        let end = sql[start..].find(';').map_or(sql.len(), |n| start + n);
        found.extend(column(&sql[start..end], start));
    }
    found
}

/// Reads `name TYPE …`; `None` for a table constraint.
fn column(item: &str, offset: usize) -> Option<Column> {
    let offset = offset + (item.len() - item.trim_start().len());
    let mut words = item.split_whitespace();
    let name = words.next()?.trim_matches('"');
    if CONSTRAINTS.contains(&name) {
        return None;
    }
    let kind = words.next().unwrap_or_default().to_ascii_uppercase();
    Some(Column { name: name.to_owned(), kind, not_null: item.contains("NOT NULL"), offset })
}

/// For each column name: whether every table that has it declares it NOT NULL.
pub(crate) fn never_null(all: &[Sql<'_>]) -> BTreeMap<String, bool> {
    let mut names = BTreeMap::new();
    for column in all.iter().flat_map(|sql| columns(&sql.text)) {
        let sure = names.entry(column.name).or_insert(true);
        *sure = *sure && column.not_null;
    }
    names
}

/// The offset of the parenthesis that closes what was opened just before `open`, or the end.
pub(crate) fn closing(sql: &str, open: usize) -> usize {
    let mut depth = 1_usize;
    for (at, byte) in sql.bytes().enumerate().skip(open) {
        match byte {
            b'(' => depth += 1,
            b')' if depth == 1 => return at,
            b')' => depth -= 1,
            _ => {}
        }
    }
    sql.len()
}

/// Splits at commas that stand in no parentheses; each part with its offset.
pub(crate) fn split_at_commas(text: &str) -> Vec<(usize, &str)> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_usize);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push((start, &text[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push((start, &text[start..]));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_read() {
        let sql = "CREATE TABLE t (\n  id TEXT NOT NULL,\n  n BIGINT CHECK (n IN (0, 1)),\n  PRIMARY KEY (id, n)\n);";
        let read: Vec<_> = columns(sql).into_iter().map(|c| (c.name, c.kind, c.not_null)).collect();
        assert_eq!(read, [("id".into(), "TEXT".into(), true), ("n".to_owned(), "BIGINT".to_owned(), false)]);
        let added = columns("ALTER TABLE t ADD COLUMN x BLOB NOT NULL;");
        assert_eq!((added[0].name.as_str(), added[0].kind.as_str()), ("x", "BLOB"));
    }

    #[test]
    fn a_name_is_sure_only_if_every_table_says_not_null() {
        let file = SourceFile::new(
            "controller/src/db/migrations/1.sql",
            "CREATE TABLE a (id TEXT NOT NULL, n BIGINT NOT NULL); CREATE TABLE b (n BIGINT, id TEXT NOT NULL);",
        );
        let files = [file];
        let names = never_null(&statements(&files));
        assert_eq!((names["id"], names["n"]), (true, false));
    }

    #[test]
    fn comments_and_texts_are_not_sql() {
        assert_eq!(without_comments("a -- b\nc 'd?' e"), "a     \nc    ' e");
    }
}
