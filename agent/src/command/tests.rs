//! Tests of the command line: what it takes, and how it exits.

use std::net::Ipv4Addr;

use clap::CommandFactory as _;

use super::*;

#[test]
fn the_definition_of_the_command_line_holds() {
    CommandLine::command().debug_assert();
}

#[test]
fn facts_of_the_command_line_come_before_those_of_the_file() {
    let token = JoinToken { secret: [7; 32], ca: hearth_protocol::digest::CaFingerprint::of(b"ca") };
    let words = ["hearth-agent", "enrol", "--controller", "c:1", "--zone", "z2", "--label", "a=b", "--token"];
    let line = CommandLine::try_parse_from(words.into_iter().map(str::to_owned).chain([token.to_string()]));
    let Some(Command::Enrol(enrol)) = line.unwrap().command else { panic!("no enrol") };
    let config = "[location]\nname = 'n'\nzone = 'z1'\nrack = 'r'\n[location.labels]\na = 'x'";
    let facts = enrol.facts(&Config::parse(config).unwrap().0).unwrap();
    assert_eq!((facts.name.as_str(), facts.zone.as_str(), facts.rack.as_str()), ("n", "z2", "r"));
    assert_eq!(facts.labels, [("a".to_owned(), "b".to_owned())]);
    assert_eq!(enrol.token, token);
}

#[test]
fn a_start_that_cannot_succeed_has_the_exit_code_that_units_do_not_start_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    let serve = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let words = ["hearth-agent", "serve", "--config"].map(Into::into);
        let line = CommandLine::try_parse_from(words.iter().chain([&path.clone().into_os_string()])).unwrap();
        line.run().unwrap_err().exit_code()
    };
    assert_eq!(serve(&format!("data_dir = '{}'", dir.path().display())), EXIT_CONFIGURATION, "not enrolled");
    assert_eq!(serve("budget = 'much'"), EXIT_CONFIGURATION, "wrong value");
}

#[test]
fn the_own_address_is_that_towards_the_first_controller_with_one() {
    let towards = |names: &[&str]| own_address(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(towards(&["no such name:1", "127.0.0.1:7443"]), Some(Ipv4Addr::LOCALHOST.into()));
    assert_eq!(towards(&[]), None);
}

#[test]
fn check_config_finds_unknown_keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, "budget = '50%'\nbugdet = 1").unwrap();
    let error = check(&path).unwrap_err().to_string();
    assert!(error.contains("bugdet"), "{error}");
    std::fs::write(&path, "log = 'info,=x=y'").unwrap();
    assert!(check(&path).is_err());
    std::fs::write(&path, "budget = '50%'").unwrap();
    check(&path).unwrap();
    assert!(matches!(check(&dir.path().join("none")), Err(CommandError::Config(ConfigError::Read { .. }))));
}
