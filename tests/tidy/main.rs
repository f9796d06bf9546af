//! The house rules that a machine can hold, as a plain test.
//!
//! **What.** Reads the text of the whole repository and reports every place that breaks a rule, with the cure. Each
//! rule is a pure function from files to findings, in a module of its own theme, and has a test that plants a
//! violation and sees it found.
//!
//! **Why not clippy or a script.** These rules speak about folders, crates, SQL in strings and Markdown, which no
//! lint sees; and as a test they run wherever the tests run, without another tool.
//!
//! **Invariants.** No rule may be switched off for a single place: a rule that must yield is wrong and is changed.

#![expect(
    clippy::string_slice,
    reason = "offsets come from searches in the same text, so they stand on characters"
)]

mod docs;
mod features;
mod layers;
mod lex;
mod rust;
mod schema;
mod source;
mod sql;

use source::{Finding, SourceFile};

/// Reads all files, reports what breaks it.
type Rule = fn(&[SourceFile]) -> Vec<Finding>;

/// All rules, by name. One test runs them all, so that one run shows everything there is to mend.
const RULES: &[(&str, Rule)] = &[
    ("file-length", rust::file_length),
    ("file-header", rust::file_header),
    ("module-name", rust::module_name),
    ("shut-off-tests", rust::shut_off_tests),
    ("bare-allow", rust::bare_allow),
    ("logic-is-pure", layers::logic_is_pure),
    ("protocol-is-pure", layers::protocol_is_pure),
    ("codec-in-protocol", layers::codec_stays_in_protocol),
    ("crate-imports", layers::crate_imports),
    ("sql-types", sql::column_types),
    ("sql-order", sql::order_names_nulls),
    ("sql-aggregates", sql::aggregates_are_cast),
    ("sql-json", sql::json_stays_closed),
    ("sql-placeholders", sql::placeholders_are_numbered),
    ("sql-begin", sql::one_door_for_transactions),
    ("links", docs::dead_links),
    ("page-length", docs::page_length),
    ("dependency-reasons", docs::dependencies_have_reasons),
    ("make-targets", docs::targets_are_explained),
    ("private-words", docs::private_words),
    ("features", features::features_are_proved),
];

#[test]
fn the_house_rules_hold() {
    let files = source::repository();
    assert!(files.len() > 30, "only {} files found: is this the repository?", files.len());
    let mut report = String::new();
    for (name, rule) in RULES {
        for finding in rule(&files) {
            report.push_str(&format!("{finding} [{name}]\n"));
        }
    }
    assert!(report.is_empty(), "house rules are broken:\n{report}");
}
