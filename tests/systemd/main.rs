//! The shipped configuration and units say what the programs mean.
//!
//! **What.** Parses both example configurations with the daemons' own parsers: as shipped, and with every commented key
//! switched on. Compares the paths that units, tmpfiles.d and the configuration name.
//!
//! **Why.** An example that is wrong is worse than none, and nobody notices: the daemons read their own file in tests.

use std::fs;
use std::path::{Path, PathBuf};

use hearth_agent::config as agent;
use hearth_controller::config as controller;

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd").join(path)
}

fn text_of(path: &str) -> String {
    fs::read_to_string(shipped(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The text with every `#key = value` switched on. Where a key is shown twice, the first counts.
fn switched_on(text: &str) -> String {
    let mut seen = Vec::new();
    let mut out = String::new();
    for line in text.lines() {
        let setting =
            line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()));
        let line = match setting.and_then(|setting| setting.split_once(" = ").map(|(key, _)| (key, setting)))
        {
            Some((key, _)) if seen.contains(&key) => continue,
            Some((key, setting)) => {
                seen.push(key);
                setting
            }
            None => line,
        };
        out.push_str(line);
        out.push('\n');
    }
    assert!(seen.len() > 8, "the example shows only {seen:?}");
    out
}

#[test]
fn the_agents_example_parses_as_shipped_and_switched_on() {
    let text = text_of("config/agent.toml");
    let (plain, unknown) = agent::Config::parse(&text).unwrap();
    assert_eq!(unknown, Vec::<String>::new());
    let (full, unknown) = agent::Config::parse(&switched_on(&text)).unwrap();
    assert_eq!(unknown, Vec::<String>::new());
    // What the example shows as the default is the default.
    assert_eq!((full.budget, full.floor, &full.group), (plain.budget, plain.floor, &plain.group));
    assert_eq!((&full.cache_dir, &full.consumer_dir), (&plain.cache_dir, &plain.consumer_dir));
    assert_eq!((&full.data_dir, &full.socket, full.listen), (&plain.data_dir, &plain.socket, plain.listen));
    assert_eq!((full.scrub_interval, full.fetch_parallel), (plain.scrub_interval, plain.fetch_parallel));
    assert_eq!((full.log, full.log_json), (plain.log, plain.log_json));
    // The kernel knows the speed of most interfaces; a figure in the example as shipped would hide it.
    assert_eq!((full.nic_mbps, plain.nic_mbps), (Some(25_000), None));
}

#[test]
fn the_controllers_example_parses_as_shipped_and_switched_on() {
    let plain = controller::load(Some(&shipped("config/controller.toml"))).unwrap();
    assert_eq!(plain.unknown_keys, Vec::<String>::new());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("controller.toml");
    fs::write(&path, switched_on(&text_of("config/controller.toml"))).unwrap();
    let full = controller::load(Some(&path)).unwrap();
    assert_eq!(full.unknown_keys, Vec::<String>::new());
    let (plain, full) = (plain.config, full.config);
    assert_eq!((plain.listen_https, plain.listen_quic), (full.listen_https, full.listen_quic));
    assert_eq!((plain.state_dir, plain.database_url), (full.state_dir, full.database_url));
    assert_eq!((plain.keep_originals, plain.sandbox), (full.keep_originals, full.sandbox));
    assert_eq!(
        (plain.parallel_imports, plain.source_transfers),
        (full.parallel_imports, full.source_transfers)
    );
    assert_eq!((plain.image_bytes_max, plain.metrics_public), (full.image_bytes_max, full.metrics_public));
    assert_eq!((plain.log_filter, plain.log_format), (full.log_filter, full.log_format));
    assert_eq!(plain.catalog.bin_days, full.catalog.bin_days);
    assert_eq!((plain.catalog.distributions_strict, full.catalog.distributions_strict), (false, false));
    assert_eq!(full.catalog.distributions.len(), 1);
}

#[test]
fn units_and_programs_name_the_same_paths() {
    let under_var_lib = |path: &str| path.strip_prefix("/var/lib/").unwrap().to_owned();
    let unit = text_of("hearth-agent.service");
    assert!(unit.contains(&format!("StateDirectory={}\n", under_var_lib(agent::DATA_DIR_DEFAULT))));
    assert!(unit.contains(&format!("ReadWritePaths={}\n", agent::CACHE_DIR_DEFAULT)));
    assert!(unit.contains(&format!("--config {}\n", agent::PATH_DEFAULT)));
    let not_again = format!("RestartPreventExitStatus={}\n", hearth_agent::command::EXIT_CONFIGURATION);
    for unit in ["hearth-agent.service", "hearth-agent@.service", "hearth-controller.service"] {
        assert!(text_of(unit).contains(&not_again), "{unit}");
    }
    let mount = text_of("var-lib-hearth-images.mount");
    assert!(mount.contains(&format!("What={}/objects\n", agent::CACHE_DIR_DEFAULT)));
    assert!(mount.contains(&format!("Where={}\n", agent::CONSUMER_DIR_DEFAULT)));
    let folders = text_of("tmpfiles.d/hearth-agent.conf");
    for folder in [agent::DATA_DIR_DEFAULT, agent::CACHE_DIR_DEFAULT, agent::CONSUMER_DIR_DEFAULT] {
        assert!(folders.contains(&format!("d {folder} ")), "{folder}");
    }
    let unit = text_of("hearth-controller.service");
    assert!(unit.contains(&format!("StateDirectory={}\n", under_var_lib(controller::STATE_DIR_DEFAULT))));
    assert!(unit.contains(&format!("--config {}\n", controller::PATH_DEFAULT)));
}
