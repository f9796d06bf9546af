//! Tests of the configuration, under the numbers of its invariants.

use super::*;

#[test]
fn an_empty_file_gives_the_defaults() {
    let (config, unknown) = Config::parse("").unwrap();
    assert_eq!(unknown, Vec::<String>::new());
    assert_eq!((config.budget, config.floor), (BUDGET_DEFAULT, FLOOR_DEFAULT));
    assert_eq!(config.consumer_dir, Path::new(CONSUMER_DIR_DEFAULT));
    assert_eq!((config.listen.port(), config.nic_mbps), (PORT_DEFAULT, None));
    assert!(!config.facts.name.is_empty());
}

#[test]
fn an_unknown_key_is_named() {
    let (_, unknown) = Config::parse("budgett = 1\n[location]\nzona = 'z1'\nzone = 'z1'").unwrap();
    assert_eq!(unknown, ["budgett", "location.zona"]);
}

#[test]
fn a_wrong_value_says_what_is_allowed() {
    for (text, key, hint) in [
        ("budget = '80'\nfloor = '120%'", "floor", "80%"),
        ("controllers = ['a b']", "controllers", "host:port"),
        ("metrics_listen = '0.0.0.0:1'", "metrics_listen", "loopback"),
        ("advertised = ['0.0.0.0:7444']", "advertised", "ip:port"),
        ("fetch_parallel = 0", "fetch_parallel", "1 to 16"),
        ("nic_mbps = 0", "nic_mbps", "1600000 Mbit/s"),
        ("upload_mbps = 0", "upload_mbps", "1600000 Mbit/s"),
        ("download_mbps = 1600001", "download_mbps", "1600000 Mbit/s"),
        ("dscp = 64", "dscp", "0 to 63"),
        ("[location]\nkind = 'rack'", "location.kind", "host and region"),
        ("log_format = 'xml'", "log_format", "json"),
    ] {
        let error = Config::parse(text).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(hint), "{text}: {error}");
    }
    let syntax = Config::parse("budget =").unwrap_err().to_string();
    assert!(syntax.contains("line 1"), "{syntax}");
}

#[test]
fn amounts_are_shares_or_sizes() {
    for (text, amount) in [
        ("80%", Some(Amount::Percent(80))),
        ("0%", None),
        ("101%", None),
        ("200 GiB", Some(Amount::Bytes(200 << 30))),
        ("5GB", Some(Amount::Bytes(5_000_000_000))),
        ("4096", Some(Amount::Bytes(4096))),
        ("-1", None),
        ("99999999999 TiB", None),
        ("5 parsecs", None),
    ] {
        assert_eq!(Amount::parse(text), amount, "{text}");
    }
    assert_eq!(Amount::Percent(80).of(1000), 800);
}

#[test]
fn a_controller_address_gets_the_default_port() {
    for (text, address) in [
        ("hearth", Some("hearth:7443")),
        ("hearth.example.org:1", Some("hearth.example.org:1")),
        ("::1", Some("[::1]:7443")),
        ("10.0.0.1:7000", Some("10.0.0.1:7000")),
        ("hearth:0", None),
        ("hearth:99999", None),
        (":7443", None),
    ] {
        assert_eq!(controller_address(text).ok().as_deref(), address, "{text}");
    }
}
