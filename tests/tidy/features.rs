//! Each line of what the product promises is proved by a test, and `docs/features.md` says by which.
//!
//! **What.** The rows of the table begin with an id (`CA-3`). A test says in its doc comment which ids it proves
//! (`/// Proves CA-3.`); the row names such tests. A row that begins its last cell with `later:` promises nothing yet.
//!
//! **Why both ways.** A table alone goes stale when a test is renamed; ids in tests alone do not show what is missing.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Finding, SourceFile};

/// The table.
const PAGE: &str = "docs/features.md";
/// Groups of ids: what stands before the number.
const GROUPS: &[&str] =
    &["IMG", "IN", "AT", "SH", "HI", "DL", "LS", "CA", "VM", "DW", "QU", "LG", "MK", "PE", "GD", "API"];

/// Every row has a test that says so, every test named in it exists, and every id in a test has a row.
pub(crate) fn features_are_proved(files: &[SourceFile]) -> Vec<Finding> {
    let Some(page) = files.iter().find(|file| file.path == PAGE) else { return Vec::new() };
    let (proofs, mut findings) = (proofs(files), Vec::new());
    let tests = tests(files);
    let mut listed = BTreeSet::new();
    for row in rows(&page.text) {
        listed.insert(row.id);
        let say = |what: String| page.finding_at(row.offset, format!("{}: {what}", row.id));
        if row.last.starts_with("later:") {
            continue;
        }
        if !proofs.contains_key(row.id) {
            findings.push(say("no doc comment of a test names it (`/// Proves …`)".to_owned()));
        }
        let named: Vec<&str> = row.last.split('`').skip(1).step_by(2).collect();
        if named.is_empty() {
            findings.push(say("the last cell names no test".to_owned()));
        }
        for test in named.into_iter().filter(|test| !tests.contains(*test)) {
            findings.push(say(format!("there is no test {test}")));
        }
    }
    for (id, (file, offset)) in &proofs {
        if !listed.contains(id.as_str()) {
            findings.push(file.finding_at(*offset, format!("{id} has no row in {PAGE}")));
        }
    }
    findings
}

/// A row of the table.
struct Row<'a> {
    id: &'a str,
    last: &'a str,
    offset: usize,
}

fn rows(text: &str) -> impl Iterator<Item = Row<'_>> {
    let mut offset = 0;
    text.split_inclusive('\n').filter_map(move |line| {
        let at = offset;
        offset += line.len();
        let mut cells = line.trim().strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim);
        let id = cells.next().filter(|cell| is_id(cell))?;
        Some(Row { id, last: cells.next_back()?, offset: at })
    })
}

fn is_id(word: &str) -> bool {
    word.split_once('-').is_some_and(|(group, number)| {
        GROUPS.contains(&group) && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Whether the file holds tests.
fn has_tests(file: &SourceFile) -> bool {
    ["#[test]", "#[tokio::test", "on_both_engines!", "proptest!"].iter().any(|mark| file.text.contains(mark))
}

/// The ids that doc comments of tests name, each with one place.
fn proofs(files: &[SourceFile]) -> BTreeMap<String, (&SourceFile, usize)> {
    let mut found = BTreeMap::new();
    for file in files.iter().filter(|file| file.rust.is_some() && has_tests(file)) {
        let mut offset = 0;
        for line in file.text.split_inclusive('\n') {
            if line.trim_start().starts_with("///") {
                let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
                for id in words.filter(|word| is_id(word)) {
                    found.entry(id.to_owned()).or_insert((file, offset));
                }
            }
            offset += line.len();
        }
    }
    found
}

/// Names of functions in files with tests, and of scripts that are tests.
fn tests(files: &[SourceFile]) -> BTreeSet<&str> {
    let with_tests = files.iter().filter(|file| has_tests(file) || file.path.starts_with("tests/"));
    with_tests
        .flat_map(|file| file.text.split("fn ").skip(1))
        .map(|rest| rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap_or_default())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(page: &str, test: &str, expected: &[&str]) {
        let files = [SourceFile::new(PAGE, page), SourceFile::new("tests/it/a.rs", test)];
        let found: Vec<String> = features_are_proved(&files).iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn a_row_needs_a_test_that_says_so() {
        let proved = "/// Proves CA-3.\n#[test]\nfn it_holds() {}\n";
        check("| CA-3 | copies | `it_holds` |\n", proved, &[]);
        check("| CA-3 | copies | `it_is_renamed` |\n", proved, &["CA-3: there is no test it_is_renamed"]);
        check("| CA-3 | copies | |\n", proved, &["CA-3: the last cell names no test"]);
        check("| CA-3 | copies | `it_holds` |\n", "#[test]\nfn it_holds() {}\n", &["no doc comment"]);
        check("| CA-3 | copies | later: needs a sensor |\n", "", &[]);
        check("| id | what |\n|---|---|\n", proved, &["CA-3 has no row"]);
    }
}
