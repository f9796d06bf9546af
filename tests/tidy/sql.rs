//! Rules for SQL that runs on SQLite and on PostgreSQL alike.
//!
//! **Why.** One SQL text serves both engines. Each rule stands for a way in which one engine took it and the other did
//! something else: a type, the place of NULL in an order, the type of a sum, lost updates of a plain `begin()`.

use crate::schema::{Sql, closing, columns, is_db_file, never_null, split_at_commas, statements};
use crate::source::{Finding, SourceFile};

/// Column types that both engines and `sqlx::Any` carry alike.
const TYPES: &[&str] = &["TEXT", "BIGINT", "BYTEA"];
/// Words that end an `ORDER BY` list.
const AFTER_ORDER: &[&str] = &[" LIMIT", " OFFSET", " FOR UPDATE", " RETURNING", ";"];
/// Aggregates whose type differs between the engines.
const AGGREGATES: &[&str] = &["SUM(", "COUNT(", "AVG(", "TOTAL("];

fn finding(sql: &Sql<'_>, at: usize, what: String) -> Finding {
    sql.file.finding_at(sql.offset + at, what)
}

/// Columns are TEXT, BIGINT or BYTEA.
pub(crate) fn column_types(files: &[SourceFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for sql in statements(files) {
        for column in columns(&sql.text).iter().filter(|column| !TYPES.contains(&column.kind.as_str())) {
            let what = format!(
                "column {} is {}: only TEXT, BIGINT and BYTEA (flags are BIGINT 0/1)",
                column.name, column.kind
            );
            findings.push(finding(&sql, column.offset, what));
        }
    }
    findings
}

/// Every term of an ORDER BY says where NULL stands, or cannot be NULL.
pub(crate) fn order_names_nulls(files: &[SourceFile]) -> Vec<Finding> {
    let all = statements(files);
    let sure = never_null(&all);
    let mut findings = Vec::new();
    for sql in &all {
        for (at, word) in sql.text.match_indices("ORDER BY ") {
            let start = at + word.len();
            let mut end = closing(&sql.text, start);
            end = AFTER_ORDER
                .iter()
                .filter_map(|stop| sql.text[start..end].find(stop))
                .min()
                .map_or(end, |n| start + n);
            for (offset, term) in split_at_commas(&sql.text[start..end]) {
                if !term_is_sure(term, |name| sure.get(name).copied().unwrap_or(false)) {
                    let what =
                        format!("ORDER BY {}: add NULLS FIRST, or declare the column NOT NULL", term.trim());
                    findings.push(finding(sql, start + offset, what));
                }
            }
        }
    }
    findings
}

fn term_is_sure(term: &str, not_null: impl Fn(&str) -> bool) -> bool {
    if term.contains("NULLS ") || term.contains("COALESCE(") || term.contains("COUNT(") {
        return true;
    }
    let name = term.split_whitespace().next().unwrap_or_default();
    not_null(name.rsplit('.').next().unwrap_or_default())
}

/// SUM, COUNT and AVG are cast, so that both engines give a BIGINT.
pub(crate) fn aggregates_are_cast(files: &[SourceFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for sql in statements(files) {
        for aggregate in AGGREGATES {
            for (at, _) in sql.text.match_indices(aggregate) {
                if !is_part_of_name(&sql.text, at)
                    && !is_cast(&sql.text, at)
                    && !in_having_or_order(&sql.text, at)
                {
                    let what =
                        format!("write CAST({aggregate}…) AS BIGINT): the engines differ in the type of it");
                    findings.push(finding(&sql, at, what));
                }
            }
        }
    }
    findings
}

fn is_part_of_name(sql: &str, at: usize) -> bool {
    sql[..at].ends_with(|last: char| last.is_alphanumeric() || last == '_')
}

/// Whether one of the parentheses around `at` is a `CAST(… AS BIGINT)`.
fn is_cast(sql: &str, at: usize) -> bool {
    let mut opened_around = Vec::new();
    for (n, byte) in sql[..at].bytes().enumerate() {
        match byte {
            b'(' => opened_around.push(n),
            b')' => drop(opened_around.pop()),
            _ => {}
        }
    }
    opened_around.iter().any(|open| {
        sql[..*open].ends_with("CAST") && sql[..closing(sql, open + 1)].trim_end().ends_with("AS BIGINT")
    })
}

/// In HAVING and ORDER BY the engine compares by itself; no value reaches the program.
fn in_having_or_order(sql: &str, at: usize) -> bool {
    let clause = |word| sql[..at].rfind(word);
    clause("HAVING").max(clause("ORDER BY")) > clause("SELECT")
}

/// JSON is stored and given out whole.
pub(crate) fn json_stays_closed(files: &[SourceFile]) -> Vec<Finding> {
    let words = ["json_extract", "json_each", "jsonb", "->>", "->"];
    words_in_sql(files, &words, "SQL never looks into JSON: give what is searched a column of its own")
}

/// Placeholders are `$1`, `$2`, …: `?` is SQLite's alone.
pub(crate) fn placeholders_are_numbered(files: &[SourceFile]) -> Vec<Finding> {
    words_in_sql(files, &["?"], "placeholders are $1, $2, …")
}

fn words_in_sql(files: &[SourceFile], words: &[&str], cure: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for sql in statements(files) {
        let first = words.iter().find_map(|word| sql.text.find(word).map(|at| (word, at)));
        findings.extend(first.map(|(word, at)| finding(&sql, at, format!("`{word}` in SQL: {cure}"))));
    }
    findings
}

/// Transactions begin in the file that has `fn write_tx`, nowhere else in the controller.
pub(crate) fn one_door_for_transactions(files: &[SourceFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let controller = files.iter().filter(|file| file.path.starts_with("controller/src/") || is_db_file(file));
    for file in controller {
        let Some(rust) = &file.rust else { continue };
        if rust.code.contains("fn write_tx") {
            continue;
        }
        for word in [".begin()", ".begin_with("] {
            let what = format!(
                "`{word}`: use write_tx, which takes the lock first on SQLite and repeats on PostgreSQL"
            );
            findings.extend(rust.find(word).map(|at| file.finding_at(at, what.clone())));
        }
        for (offset, string) in &rust.strings {
            if string.trim_start().starts_with("BEGIN") {
                findings.push(file.finding_at(*offset, "a transaction by hand: use write_tx"));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::check;

    const MIGRATION: (&str, &str) = (
        "controller/src/db/migrations/0001.sql",
        "CREATE TABLE images (id TEXT NOT NULL, name TEXT NOT NULL, checked_us BIGINT);",
    );

    /// Checks a rule on one SQL string literal of the store.
    #[track_caller]
    fn check_sql(rule: fn(&[SourceFile]) -> Vec<Finding>, sql: &str, broken: bool) {
        let code = format!("//! Header.\nconst Q: &str = \"{sql}\";\n");
        let found: &[&str] = if broken { &["controller/src/db/images.rs:2:"] } else { &[] };
        check(rule, &[MIGRATION, ("controller/src/db/images.rs", &code)], found);
    }

    #[test]
    fn a_type_of_one_engine_is_found() {
        let planted =
            "CREATE TABLE a (\n  id TEXT NOT NULL,\n  flag BOOLEAN NOT NULL,\n  PRIMARY KEY (id)\n);";
        check(
            column_types,
            &[("controller/src/db/migrations/2.sql", planted)],
            &["controller/src/db/migrations/2.sql:3:"],
        );
        check(column_types, &[MIGRATION], &[]);
    }

    #[test]
    fn an_order_that_leaves_null_open_is_found() {
        check_sql(order_names_nulls, "SELECT id FROM images ORDER BY checked_us DESC, id", true);
        check_sql(order_names_nulls, "SELECT id FROM images ORDER BY {column} LIMIT 3", true);
        check_sql(
            order_names_nulls,
            "SELECT id FROM images ORDER BY checked_us NULLS FIRST, images.id DESC LIMIT 3",
            false,
        );
        check_sql(
            order_names_nulls,
            "SELECT * FROM (SELECT id FROM images ORDER BY name) WHERE id > $1",
            false,
        );
    }

    #[test]
    fn an_aggregate_without_cast_is_found() {
        check_sql(aggregates_are_cast, "SELECT COUNT(*) FROM images", true);
        check_sql(aggregates_are_cast, "SELECT CAST(COUNT(*) AS BIGINT), SUM(n) FROM images", true);
        check_sql(aggregates_are_cast, "SELECT CAST(COALESCE(SUM(n), 0) AS BIGINT) FROM images", false);
        check_sql(aggregates_are_cast, "SELECT id FROM images GROUP BY id HAVING COUNT(*) > 1", false);
    }

    #[test]
    fn json_and_question_marks_are_found() {
        check_sql(json_stays_closed, "SELECT json_extract(a, b) FROM images", true);
        check_sql(json_stays_closed, "SELECT a ->> b FROM images", true);
        check_sql(placeholders_are_numbered, "SELECT id FROM images WHERE id = ?", true);
        check_sql(placeholders_are_numbered, "SELECT id FROM images WHERE id = $1 AND name <> '?'", false);
    }

    #[test]
    fn a_second_door_for_transactions_is_found() {
        let planted = "//! Header.\nasync fn f(p: P) { p.begin().await; }\n";
        check(
            one_door_for_transactions,
            &[("controller/src/api/a.rs", planted)],
            &["controller/src/api/a.rs:2:"],
        );
        let by_hand = "//! Header.\nconst B: &str = \"BEGIN IMMEDIATE\";\n";
        check(
            one_door_for_transactions,
            &[("controller/src/db/a.rs", by_hand)],
            &["controller/src/db/a.rs:2:"],
        );
        let door = "//! Header.\nasync fn write_tx(p: P) { p.begin_with(\"BEGIN IMMEDIATE\").await; }\n";
        check(one_door_for_transactions, &[("controller/src/db/store.rs", door)], &[]);
    }

    #[test]
    fn sql_in_comments_is_no_sql() {
        assert!(statements(&[SourceFile::new("controller/src/db/a.rs", "// \"SELECT ?\"\n")]).is_empty());
    }
}
