//! The command line as interface: its help is frozen, every command has examples, wrong usage exits with 2.

use clap::{Command, CommandFactory as _};

use super::*;

fn leaves<'a>(command: &'a Command, path: &str, found: &mut Vec<(String, &'a Command)>) {
    let path = format!("{path} {}", command.get_name());
    let below: Vec<&Command> = command.get_subcommands().filter(|sub| sub.get_name() != "help").collect();
    if below.is_empty() {
        found.push((path.trim().to_owned(), command));
    }
    below.into_iter().for_each(|sub| leaves(sub, &path, found));
}

#[test]
fn the_tree_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_examples_that_parse() {
    let cli = Cli::command();
    let mut found = Vec::new();
    leaves(&cli, "", &mut found);
    assert!(found.len() > 30, "only {} commands", found.len());
    for (path, command) in found {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.starts_with("Examples:\n"), "{path} has no examples");
        for line in help.lines().filter(|line| line.starts_with("  ")) {
            check_example(&path, line);
        }
    }
}

/// Parses the part of an example that is ours.
fn check_example(path: &str, line: &str) {
    let Some(ours) = line.trim().split(" | ").find(|part| part.starts_with("hearth ")) else { return };
    let mut words = Vec::new();
    for (i, part) in ours.split('\'').enumerate() {
        // Every second part stands between quotes and is one word.
        if i % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    let end = words.iter().position(|word| matches!(word.as_str(), "#" | ">" | "&&"));
    words.truncate(end.unwrap_or(words.len()));
    if let Err(error) = Cli::try_parse_from(&words) {
        panic!("example of {path} does not parse: {line}\n{error}");
    }
}

/// Long help of the command at `path`, as a person with 100 columns sees it.
fn help_of(path: &[&str]) -> String {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut here = &mut command;
    for name in path {
        here = here.find_subcommand_mut(name).unwrap();
    }
    here.render_long_help().to_string()
}

#[test]
fn help_is_frozen() {
    insta::assert_snapshot!("hearth", help_of(&[]));
    for path in [
        &["image", "import"][..],
        &["image", "download"],
        &["prewarm", "create"],
        &["cache", "list"],
        &["location", "token", "create"],
        &["dev"],
        &["login"],
    ] {
        insta::assert_snapshot!(path.join("-"), help_of(path));
    }
}

#[test]
fn wrong_usage_is_told_before_anything_is_sent() {
    let wrong: &[&[&str]] = &[
        &["hearth", "prewarm", "create", "noble"],
        &["hearth", "prewarm", "create", "noble", "--all", "--to", "a"],
        &["hearth", "prewarm", "create", "noble", "--all", "--keep", "1d", "--pin"],
        &["hearth", "prewarm", "create", "noble", "--all", "--dry-run", "--wait"],
        &["hearth", "prewarm", "create", "noble", "--all", "--deadline", "soon"],
        &["hearth", "prewarm", "create", "noble", "--all", "--rate", "fast"],
        &["hearth", "prewarm", "create", "noble", "--select", "colour=red"],
        &["hearth", "prewarm", "create", "noble", "--host-image", "erp", "--all"],
        &["hearth", "cache", "add", "--all"],
        &["hearth", "host-image", "create", "erp", "one-disk"],
        &["hearth", "host-image", "set", "erp", "--public", "--private"],
        &["hearth", "image", "import", "f", "--format", "vdi"],
        &["hearth", "image", "set", "noble", "--min-disk", "20"],
        &["hearth", "image", "import", "f", "--disk-size", "20"],
        &["hearth", "cache", "list", "--status", "warm"],
        &["hearth", "login", "--user", "alice", "--token", "hrt_x"],
        &["hearth", "user", "grant", "alice", "--role", "member"],
        &["hearth", "user", "grant", "alice", "--role", "member", "--system", "--project", "web"],
        &["hearth", "nonsense"],
        &["hearth"],
    ];
    for words in wrong {
        let error = Cli::try_parse_from(*words).unwrap_err();
        assert!(error.use_stderr() || words.len() == 1, "{words:?}: {error}");
    }
    Cli::try_parse_from(["hearth", "prewarm", "create", "n", "--to", "a,b", "--rate", "50MB", "-o", "json"])
        .unwrap();
}
