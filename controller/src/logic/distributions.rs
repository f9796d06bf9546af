//! The table of distributions: what images are offered for, per architecture.
//!
//! **What.** A built-in table, replaced by `[[distributions]]` in the configuration, and the check of a name against it.
//! **Why not a closed enum.** Distributions come and go faster than programs are released; an operator adds one with a line.
//! Unless the table is strict, it only fills menus.
//! **Invariants.** `a_name_outside_names_the_allowed_ones`; names are compared without regard to case.

use hearth_protocol::api::distribution::Distribution;
use hearth_protocol::words::{Architecture, OsType};

use super::catalog::{FieldError, check_name, check_short, wrong};

/// Most rows of a table: bounds an answer.
pub const DISTRIBUTIONS_MAX: usize = 256;
/// Most versions of a row.
pub const VERSIONS_MAX: usize = 128;

/// The built-in table: the versions of the manuals (S3, S4) and what came after.
const BUILT_IN: &[(&str, OsType, Architecture, &[&str])] = {
    use Architecture::{Aarch64, X8664};
    use OsType::{Linux, Windows};
    &[
        (
            "CentOS",
            Linux,
            X8664,
            &[
                "6.5", "6.6", "6.7", "6.8", "6.9", "6.10", "7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6",
                "7.7", "7.8", "7.9", "8.0", "8.1", "8.2", "9",
            ],
        ),
        ("CentOS", Linux, Aarch64, &["7.6", "7.7", "7.8", "7.9", "9"]),
        ("Ubuntu", Linux, X8664, &["14.04", "16.04", "18.04", "20.04", "22.04", "24.04", "26.04"]),
        ("Ubuntu", Linux, Aarch64, &["16.04", "18.04", "20.04", "22.04", "24.04", "26.04"]),
        ("Debian", Linux, X8664, &["10", "11", "12", "13"]),
        ("Debian", Linux, Aarch64, &["10", "11", "12", "13"]),
        ("Rocky", Linux, X8664, &["8", "9", "10"]),
        ("Rocky", Linux, Aarch64, &["8", "9", "10"]),
        ("openEuler", Linux, X8664, &["20.03", "22.03", "24.03"]),
        ("openEuler", Linux, Aarch64, &["20.03", "22.03", "24.03"]),
        ("Kylin", Linux, X8664, &["V10", "V11"]),
        ("Kylin", Linux, Aarch64, &["V10", "V11"]),
        (
            "Windows",
            Windows,
            X8664,
            &["2008", "2008R2", "2012", "2012R2", "2016", "2019", "2022", "2025", "10", "11"],
        ),
    ]
};

/// The built-in table.
#[must_use]
pub fn built_in() -> Vec<Distribution> {
    let row =
        |(name, os_type, architecture, versions): &(&str, OsType, Architecture, &[&str])| Distribution {
            name: (*name).to_owned(),
            os_type: *os_type,
            architecture: *architecture,
            versions: versions.iter().map(|version| (*version).to_owned()).collect(),
        };
    BUILT_IN.iter().map(row).collect()
}

/// Checks a table that an operator wrote.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_table(table: &[Distribution]) -> Result<(), FieldError> {
    if table.len() > DISTRIBUTIONS_MAX {
        return wrong("distributions", format!("{} rows: at most {DISTRIBUTIONS_MAX}", table.len()));
    }
    for row in table {
        check_name("distributions.name", &row.name)?;
        if row.versions.len() > VERSIONS_MAX {
            let problem = format!("{} has {} versions: at most {VERSIONS_MAX}", row.name, row.versions.len());
            return wrong("distributions.versions", problem);
        }
        for version in &row.versions {
            check_short("distributions.versions", Some(version))?;
        }
    }
    Ok(())
}

/// Checks an image's distribution and version against the table. Empty texts and an absent architecture say nothing.
///
/// # Errors
/// What the table does not have, with what it has.
pub fn check_listed(
    table: &[Distribution],
    architecture: Option<Architecture>,
    distribution: &str,
    version: &str,
) -> Result<(), FieldError> {
    let here = |row: &&Distribution| architecture.is_none_or(|wanted| wanted == row.architecture);
    if distribution.is_empty() {
        return if version.is_empty() {
            Ok(())
        } else {
            wrong("version", "of which distribution? Name it too")
        };
    }
    let named: Vec<&Distribution> = table
        .iter()
        .filter(here)
        .filter(|row| row.name.to_lowercase() == distribution.to_lowercase())
        .collect();
    if named.is_empty() {
        let mut names: Vec<&str> = table.iter().filter(here).map(|row| row.name.as_str()).collect();
        names.dedup();
        let on = architecture.map(|word| format!(" on {word}")).unwrap_or_default();
        return wrong("distribution", format!("{distribution} is not listed{on}: {}", names.join(", ")));
    }
    let mut versions = named.iter().flat_map(|row| row.versions.iter().map(String::as_str));
    if version.is_empty() || versions.clone().any(|known| known.eq_ignore_ascii_case(version)) {
        return Ok(());
    }
    let first = versions.next().unwrap_or("none");
    let known = versions.fold(first.to_owned(), |known, version| format!("{known}, {version}"));
    wrong("version", format!("{version} of {distribution} is not listed: {known}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(architecture: Option<Architecture>, distribution: &str, version: &str, field: Option<&str>) {
        let checked = check_listed(&built_in(), architecture, distribution, version);
        assert_eq!(checked.as_ref().err().map(|error| error.field.as_str()), field, "{checked:?}");
    }

    #[test]
    fn a_name_outside_names_the_allowed_ones() {
        check(None, "", "", None);
        check(None, "ubuntu", "24.04", None);
        check(Some(Architecture::X8664), "Windows", "2012r2", None);
        check(Some(Architecture::Aarch64), "Windows", "2016", Some("distribution"));
        check(Some(Architecture::Aarch64), "Ubuntu", "14.04", Some("version"));
        check(None, "Plan 9", "", Some("distribution"));
        check(None, "", "9", Some("version"));
        let error = check_listed(&built_in(), None, "CentOS", "5").unwrap_err();
        assert!(error.problem.contains("6.5") && error.problem.contains("7.9"), "{error}");
    }

    #[test]
    fn the_built_in_table_passes_its_own_check() {
        check_table(&built_in()).unwrap();
        let bad = Distribution { name: "a\n".to_owned(), ..built_in()[0].clone() };
        assert_eq!(check_table(&[bad]).unwrap_err().field, "distributions.name");
    }
}
