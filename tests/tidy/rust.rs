//! Rules for every Rust file: its length, its header, its name, and what may not stand in it.

use crate::source::{Finding, SourceFile};

/// Past this a file has more than one purpose, and nobody reads it to the end.
const FILE_LINES_MAX: usize = 600;
/// `main.rs` reads the command line and calls the library; the library is what tests reach.
const MAIN_LINES_MAX: usize = 100;
/// A header says what the file is for; fewer characters say nothing.
const HEADER_CHARS_MIN: usize = 12;
/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "types", "misc"];

fn rust_files(files: &[SourceFile]) -> impl Iterator<Item = &SourceFile> {
    files.iter().filter(|file| file.rust.is_some())
}

/// No Rust file is longer than 600 lines, no `main.rs` longer than 100.
pub(crate) fn file_length(files: &[SourceFile]) -> Vec<Finding> {
    let too_long = |file: &SourceFile| {
        let lines = file.text.lines().count();
        let max = if file.path.ends_with("src/main.rs") { MAIN_LINES_MAX } else { FILE_LINES_MAX };
        (lines > max)
            .then(|| file.finding_at(0, format!("{lines} lines, at most {max}: split it by purpose")))
    };
    rust_files(files).filter_map(too_long).collect()
}

/// Every Rust file opens with a `//!` header.
pub(crate) fn file_header(files: &[SourceFile]) -> Vec<Finding> {
    let headless = |file: &&SourceFile| {
        let header: usize =
            file.text.lines().take_while(|line| line.starts_with("//!")).map(|line| line.len() - 3).sum();
        header < HEADER_CHARS_MIN
    };
    let message = "no `//!` header: say what the file does, why so, and what always holds";
    rust_files(files).filter(headless).map(|file| file.finding_at(0, message)).collect()
}

/// No file is named `utils` or the like.
pub(crate) fn module_name(files: &[SourceFile]) -> Vec<Finding> {
    let empty = |file: &&SourceFile| {
        file.path.trim_end_matches(".rs").split('/').any(|part| EMPTY_NAMES.contains(&part))
    };
    let message = "the name says nothing: name the module after the one thing it owns";
    rust_files(files).filter(empty).map(|file| file.finding_at(0, message)).collect()
}

/// No test is switched off, expects any panic, or stands for one that is still to be written.
pub(crate) fn shut_off_tests(files: &[SourceFile]) -> Vec<Finding> {
    let words = [
        ("#[ignore", "a test that does not run proves nothing: mend it or delete it"),
        ("#[should_panic", "it passes on any panic: catch the one that is meant, or test the error"),
        ("todo!", "finish it: what is merged is complete"),
        ("unimplemented!", "finish it: what is merged is complete"),
    ];
    let mut findings = Vec::new();
    for file in rust_files(files) {
        let Some(rust) = &file.rust else { continue };
        for (word, cure) in words {
            findings.extend(rust.find(word).map(|at| file.finding_at(at, format!("`{word}`: {cure}"))));
        }
    }
    findings
}

/// A lint is silenced with a reason, and best with `expect`, which tells when it is no longer needed.
pub(crate) fn bare_allow(files: &[SourceFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in rust_files(files) {
        let Some(rust) = &file.rust else { continue };
        for word in ["allow(", "expect("] {
            for at in rust.find(word) {
                let before = rust.code[..at].trim_end();
                let attribute = before.ends_with("#[") || before.ends_with("#![") || in_cfg_attr(before);
                let until = rust.code[at..].find(")]").map_or(rust.code.len(), |n| at + n);
                if attribute && !rust.code[at..until].contains("reason") {
                    findings.push(file.finding_at(at, "write #[expect(lint, reason = \"why here\")]"));
                }
            }
        }
    }
    findings
}

/// Whether the code ends inside an open `cfg_attr(`.
fn in_cfg_attr(before: &str) -> bool {
    before.rfind("cfg_attr(").is_some_and(|at| !before[at..].contains(']'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::check;

    const HEADER: &str = "//! Stores chunks of images.\n";

    #[test]
    fn a_long_file_is_found() {
        let long = "x\n".repeat(FILE_LINES_MAX + 1);
        check(file_length, &[("a/src/b.rs", &long)], &["a/src/b.rs:1: 601 lines"]);
        check(file_length, &[("a/src/b.rs", &"x\n".repeat(FILE_LINES_MAX)), ("a/README.md", &long)], &[]);
        let main = "x\n".repeat(MAIN_LINES_MAX + 1);
        check(file_length, &[("a/src/main.rs", &main)], &["a/src/main.rs:1: 101 lines"]);
    }

    #[test]
    fn a_file_without_header_is_found() {
        check(
            file_header,
            &[("a/b.rs", "use std::io;\n"), ("a/c.rs", "//! x\n")],
            &["a/b.rs:1:", "a/c.rs:1:"],
        );
        check(file_header, &[("a/b.rs", HEADER)], &[]);
    }

    #[test]
    fn an_empty_name_is_found() {
        check(
            module_name,
            &[("a/src/utils.rs", ""), ("a/common/x.rs", "")],
            &["a/src/utils.rs", "a/common/x.rs"],
        );
        check(module_name, &[("a/src/evict.rs", "")], &[]);
    }

    #[test]
    fn a_test_that_is_switched_off_is_found() {
        let planted = "#[test]\n#[ignore]\nfn a() {}\n#[should_panic]\nfn b() { todo!() }\n";
        check(shut_off_tests, &[("a.rs", planted)], &["a.rs:2:", "a.rs:4:", "a.rs:5:"]);
        check(shut_off_tests, &[("a.rs", "// no #[ignore] and no todo!\nlet x = \"todo!\";")], &[]);
    }

    #[test]
    fn a_bare_allow_is_found() {
        let planted = "#[allow(dead_code)]\n#![expect(clippy::x)]\n#[cfg_attr(test, allow(unused))]\n";
        check(bare_allow, &[("a.rs", planted)], &["a.rs:1:", "a.rs:3:", "a.rs:2:"]);
        let fine = "#[expect(clippy::x, reason = \"y\")]\nx.expect(\"held\");\n";
        check(bare_allow, &[("a.rs", fine)], &[]);
    }
}
