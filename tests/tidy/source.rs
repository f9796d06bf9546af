//! The text of the repository, and what a rule reports about it.
//!
//! **Why not `git ls-files`.** A file that is not yet added should be checked before it is committed, and the test
//! must work in an unpacked archive as well. So the folders are walked, without those that builds and tests fill.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::lex::{self, Lexed};

/// Folders that hold no text of ours, by name or by path from the top.
const SKIPPED: &[&str] = &[
    "target",
    ".git",
    "images",
    "dev-data",
    "tests/fuzz/corpus",
    "tests/fuzz/artifacts",
    "tests/fuzz/target",
];
/// A text file of ours is never larger; what is, is data. Protects the memory of the test.
const TEXT_BYTES_MAX: u64 = 4 << 20;

/// One text file.
#[derive(Debug)]
pub(crate) struct SourceFile {
    /// Path from the top of the repository, with `/`.
    pub(crate) path: String,
    /// The whole text.
    pub(crate) text: String,
    /// Code apart from comments and strings; `None` for what is not Rust.
    pub(crate) rust: Option<Lexed>,
}

impl SourceFile {
    /// A file from its parts; planted violations are made with it.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let rust = path.ends_with(".rs").then(|| lex::lex(text));
        Self { path: path.to_owned(), text: text.to_owned(), rust }
    }

    /// Whether one of the folders in the path has this name.
    pub(crate) fn is_below(&self, folder: &str) -> bool {
        self.path.split('/').rev().skip(1).any(|part| part == folder)
    }

    /// The file's own name.
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// A finding at a byte offset of the text.
    pub(crate) fn finding_at(&self, offset: usize, what: impl Into<String>) -> Finding {
        let before = self.text.as_bytes().get(..offset).unwrap_or_default();
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Finding { path: self.path.clone(), line, what: what.into() }
    }
}

/// A broken rule: where, and what to do.
#[derive(Debug)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// The top folder of the repository.
pub(crate) fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ stands in the repository").to_owned()
}

/// Every text file of the repository, in order of path.
pub(crate) fn repository() -> Vec<SourceFile> {
    let top = top();
    let mut files = Vec::new();
    let mut folders = vec![top.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository can be read") {
            let entry = entry.expect("a folder of the repository can be read");
            let path = entry.path();
            let relative = path.strip_prefix(&top).expect("found below top").to_string_lossy().into_owned();
            let kind = entry.file_type().expect("a file has a type");
            let skipped =
                SKIPPED.iter().any(|skip| relative == *skip || path.ends_with(skip) && !skip.contains('/'));
            if kind.is_dir() && (!skipped || relative == "tests/images") {
                folders.push(path);
            } else if kind.is_file()
                && !skipped
                && entry.metadata().is_ok_and(|meta| meta.len() <= TEXT_BYTES_MAX)
            {
                // What is not UTF-8 is data (golden bytes, test vectors), not text.
                if let Ok(text) = fs::read_to_string(&path) {
                    files.push(SourceFile::new(&relative, &text));
                }
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// Runs one rule on planted files, for the tests of the rules.
#[cfg(test)]
#[track_caller]
pub(crate) fn check(rule: fn(&[SourceFile]) -> Vec<Finding>, files: &[(&str, &str)], found: &[&str]) {
    let files: Vec<SourceFile> = files.iter().map(|(path, text)| SourceFile::new(path, text)).collect();
    let findings: Vec<String> = rule(&files).iter().map(ToString::to_string).collect();
    let fits = findings.len() == found.len()
        && findings.iter().zip(found).all(|(finding, start)| finding.starts_with(start));
    assert!(fits, "expected findings that begin with {found:?}, got {findings:#?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_the_line() {
        let file = SourceFile::new("a/b.rs", "one\ntwo\nthree");
        assert_eq!(file.finding_at(4, "odd").to_string(), "a/b.rs:2: odd");
        assert!(file.is_below("a") && !file.is_below("b.rs"));
    }

    #[test]
    fn the_repository_is_walked_without_build_folders() {
        let files = repository();
        assert!(files.iter().any(|file| file.path == "tests/tidy/source.rs"));
        assert!(files.iter().all(|file| !file.path.starts_with("target/")));
    }
}
