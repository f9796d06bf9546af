//! Rules for pages: links lead somewhere, pages stay short, nothing of a private machine is told.

use std::collections::BTreeSet;

use crate::source::{Finding, SourceFile, top};

/// The map must be read in one sitting.
const ARCHITECTURE_LINES_MAX: usize = 200;

fn pages(files: &[SourceFile]) -> impl Iterator<Item = &SourceFile> {
    files.iter().filter(|file| file.name().ends_with(".md"))
}

/// ARCHITECTURE.md has at most 200 lines.
pub(crate) fn page_length(files: &[SourceFile]) -> Vec<Finding> {
    let too_long = |file: &&SourceFile| {
        file.path == "ARCHITECTURE.md" && file.text.lines().count() > ARCHITECTURE_LINES_MAX
    };
    pages(files)
        .filter(too_long)
        .map(|file| file.finding_at(0, "more than 200 lines: move detail to modules"))
        .collect()
}

/// Relative links of pages lead to a file of the repository, and to a heading that it has.
pub(crate) fn dead_links(files: &[SourceFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for page in pages(files) {
        for (at, target) in links(&page.text) {
            let elsewhere =
                ["http://", "https://", "mailto:"].iter().any(|scheme| target.starts_with(scheme));
            if !elsewhere && !leads_somewhere(files, page, target) {
                findings.push(page.finding_at(at, format!("dead link: {target}")));
            }
        }
    }
    findings
}

/// The targets of `[text](target)` outside code, with offsets.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let (mut offset, mut in_code) = (0, false);
    for line in text.split_inclusive('\n') {
        in_code ^= line.trim_start().starts_with("```");
        for (at, mark) in line.match_indices("](").filter(|_| !in_code) {
            let start = at + mark.len();
            let quoted = line[..at].matches('`').count() % 2 == 1;
            if let Some(len) = line[start..].find(')').filter(|_| !quoted) {
                found.push((offset + start, line[start..start + len].split(' ').next().unwrap_or_default()));
            }
        }
        offset += line.len();
    }
    found
}

fn leads_somewhere(files: &[SourceFile], page: &SourceFile, target: &str) -> bool {
    let (path, heading) =
        target.split_once('#').map_or((target, None), |(path, heading)| (path, Some(heading)));
    let path = if path.is_empty() { page.path.clone() } else { resolve(&page.path, path) };
    let file = files.iter().find(|file| file.path == path);
    match (file, heading) {
        (Some(file), Some(heading)) if file.name().ends_with(".md") => headings(&file.text).contains(heading),
        (Some(_), _) => true,
        // A folder, or a file that is not text.
        (None, _) => {
            files.iter().any(|file| file.path.starts_with(&format!("{path}/"))) || top().join(&path).is_file()
        }
    }
}

/// A path as written on a page, from the top of the repository.
fn resolve(page: &str, path: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in path.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// Anchors of the headings, made as the usual viewers make them.
fn headings(text: &str) -> BTreeSet<String> {
    let anchor = |line: &str| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    text.lines().filter(|line| line.starts_with('#')).map(anchor).collect()
}

/// Every dependency of the workspace has its line in CONTRIBUTING.md that says why it is there.
pub(crate) fn dependencies_have_reasons(files: &[SourceFile]) -> Vec<Finding> {
    let named = |path: &str| files.iter().find(|file| file.path == path);
    let (Some(manifest), Some(page)) = (named("Cargo.toml"), named("CONTRIBUTING.md")) else {
        return Vec::new();
    };
    let rows: BTreeSet<&str> = page
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
        .flat_map(|cell| cell.split(", "))
        .collect();
    let mut findings = Vec::new();
    let (mut offset, mut in_table) = (0, false);
    for line in manifest.text.split_inclusive('\n') {
        if line.starts_with('[') {
            in_table = line.trim() == "[workspace.dependencies]";
        }
        let name = line.split([' ', '=', '.']).next().unwrap_or_default();
        let is_dependency = in_table && line.contains('=') && !line.starts_with(['[', '#']);
        if is_dependency && !name.starts_with("hearth") && !rows.contains(name) {
            findings
                .push(manifest.finding_at(offset, format!("say in CONTRIBUTING.md why {name} is needed")));
        }
        offset += line.len();
    }
    findings
}

/// Every make target that `make help` lists stands in CONTRIBUTING.md.
pub(crate) fn targets_are_explained(files: &[SourceFile]) -> Vec<Finding> {
    let named = |path: &str| files.iter().find(|file| file.path == path);
    let (Some(makefile), Some(page)) = (named("Makefile"), named("CONTRIBUTING.md")) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    let mut offset = 0;
    for line in makefile.text.split_inclusive('\n') {
        let target =
            line.split_once(':').filter(|(_, rest)| rest.contains("## ")).map_or("", |(target, _)| target);
        if !target.is_empty()
            && !line.starts_with('\t')
            && target != "help"
            && !page.text.contains(&format!("| `make {target}` |"))
        {
            findings.push(makefile.finding_at(offset, format!("explain `make {target}` in CONTRIBUTING.md")));
        }
        offset += line.len();
    }
    findings
}

/// Nothing names the machine on which somebody happened to work, or a private mirror of a registry.
pub(crate) fn private_words(files: &[SourceFile]) -> Vec<Finding> {
    // Put together here, so that this file does not break its own rule.
    let words = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/."),
        concat!("artif", "actory"),
        concat!("10.255.", "255."),
    ];
    let mut findings = Vec::new();
    for file in files {
        for word in words {
            for (at, _) in file.text.match_indices(word) {
                let in_longer_path = word.starts_with('/')
                    && file.text[..at]
                        .ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '}' | ')' | '-'));
                if !in_longer_path {
                    findings.push(file.finding_at(at, format!("`{word}`: true on one machine only")));
                }
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::check;

    #[test]
    fn a_dead_link_is_found() {
        let page = "# A b\n[x](agent/a.rs) [y](gone.md)\n[z](#a-b) [w](#none) [v](https://example.org/)\n";
        let files = [("README.md", page), ("agent/a.rs", "")];
        check(dead_links, &files, &["README.md:2: dead link: gone.md", "README.md:3: dead link: #none"]);
    }

    #[test]
    fn links_lead_up_and_into_folders_and_code_is_no_link() {
        let page = "[x](../README.md#top) [y](../agent/)\n```\n[z](gone.md)\n```\n`[a](gone.md)`\n";
        check(dead_links, &[("README.md", "# Top\n"), ("agent/a.rs", ""), ("docs/a.md", page)], &[]);
    }

    #[test]
    fn a_long_map_is_found() {
        check(page_length, &[("ARCHITECTURE.md", &"x\n".repeat(201))], &["ARCHITECTURE.md:1:"]);
        check(
            page_length,
            &[("ARCHITECTURE.md", &"x\n".repeat(200)), ("README.md", &"x\n".repeat(201))],
            &[],
        );
    }

    #[test]
    fn a_dependency_without_a_reason_is_found() {
        let manifest = "[workspace.dependencies]\nhearth-agent = { path = \"agent\" }\nblake3 = \"1\"\nsha2 = \"1\"\n# a = b\n[x]\ny = 1\n";
        let page = "| crate | why |\n|---|---|\n| md-5, blake3 | hashes |\n";
        let files = [("Cargo.toml", manifest), ("CONTRIBUTING.md", page)];
        check(dependencies_have_reasons, &files, &["Cargo.toml:4:"]);
    }

    #[test]
    fn a_target_that_nobody_explains_is_found() {
        let makefile = "help: ## list\nA ?= b:\ndev: x ## starts it\nnew: ## does it\n";
        let files = [("Makefile", makefile), ("CONTRIBUTING.md", "| `make dev` | starts it |\n")];
        check(targets_are_explained, &files, &["Makefile:4:"]);
    }

    #[test]
    fn a_private_path_is_found() {
        let planted = format!("see {}main\n", concat!("/wo", "rk/"));
        check(private_words, &[("Makefile", &planted)], &["Makefile:1:"]);
        let fine = format!("dir.join(\"x{}y\")\n", concat!("/wo", "rk/"));
        check(private_words, &[("a.rs", &fine)], &[]);
    }
}
