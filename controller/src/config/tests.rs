//! What a configuration may say, and what it is told when it says something else.

use super::*;

fn parsed(text: &str) -> Result<Loaded, ConfigError> {
    parse(text, Path::new("test.toml"), None)
}

#[test]
fn an_empty_file_means_the_defaults() {
    let config = parsed("").unwrap().config;
    assert_eq!(config.state_dir, Path::new(STATE_DIR_DEFAULT));
    assert_eq!(config.listen_https.port(), 7443);
    assert_eq!(config.database_url, "sqlite:///var/lib/hearth/controller/hearth.sqlite");
    assert!(config.keep_originals);
    assert_eq!(config.variants, VARIANTS_DEFAULT);
    assert_eq!(parsed("variants = []").unwrap().config.variants, []);
    assert_eq!((config.parallel_imports, config.source_transfers), (1, 64));
    assert_eq!(config.swarm, Swarm { on: true, source_mbps: 1000, dscp: 8 });
    assert_eq!(config.sandbox, SandboxMode::Required);
    assert_eq!(config.agent_certificate_life.as_secs(), 24 * 3600);
    let quota = Figures { images: 10, bytes: 0, imports: 0 };
    let sharing = Sharing { three_level: false, members_may_publish: false, receivers_max: 10, quota };
    assert_eq!(config.sharing, sharing);
}

#[test]
fn unknown_keys_are_reported_not_lost() {
    let loaded = parsed("state_dir = \"/x\"\nkeep_original = false\n[tls]\nkey = 1\n").unwrap();
    assert_eq!(loaded.unknown_keys, ["keep_original", "tls"]);
    assert!(loaded.config.keep_originals);
}

#[test]
fn what_cannot_work_is_refused_with_key_and_cure() {
    for (text, said) in [
        ("state_dir = \"var\"", "state_dir = var: must be an absolute path"),
        ("listen_https = \"localhost\"", "IP:PORT"),
        ("listen_quic = \"1.2.3.4\"", "listen_quic"),
        ("parallel_imports = 0", "1 to 64"),
        ("source_transfers = 5000", "1 to 4096"),
        ("swarm_source_mbps = 0", "1 to 400000"),
        ("swarm = \"no\"", "line 1"),
        ("dscp = 64", "0 to 63"),
        ("agent_certificate_hours = 0", "1 to 720"),
        ("heartbeat_seconds = 60", "1 to 45"),
        ("api_requests_per_second = 100001", "0 to 100000"),
        ("api_burst = 0", "1 to 100000"),
        ("master_key = \"key\"", "master_key = key: must be an absolute path"),
        ("login_hours = 721", "1 to 720"),
        ("image_bytes_max = 0", "above 0"),
        ("share_receivers_max = 0", "1 to 1000"),
        ("quota_images = -1", "line 1"),
        ("database_url = \"mysql://u:secret@h/d\"", "sqlite: or postgres:"),
        ("public_names = [\"https://x\"]", "host names"),
        ("sandbox = \"off\"", "best-effort"),
        ("log_filter = \"hearth=loud\"", "log_filter = hearth=loud"),
        ("bin_days = 4000", "0 to 3650"),
        ("[[distributions]]\nname = \"x\"", "os_type"),
        (
            "[[distributions]]\nname = \" \"\nos_type = \"linux\"\narchitecture = \"x86_64\"\nversions = []",
            "distributions.name",
        ),
        ("upload_idle_days = 0", "1 to 365"),
        ("parallel_fetches = 0", "1 to 64"),
        ("import_allow = [\"0x7f.1\"]", "import_allow = 0x7f.1"),
        ("import_ports = [0]", "import_ports = 0"),
        ("import_ca_file = \"ca.pem\"", "absolute"),
        (
            "[[s3]]\nendpoint = \"ftp://x\"\nbuckets = [\"b\"]\naccess_key = \"secret\"\nsecret_key_file = \"/x\"",
            "s3.endpoint",
        ),
        ("[[s3]]\nendpoint = \"https://x\"\naccess_key = \"secret\"\nsecret_key_file = \"/x\"", "s3.buckets"),
        ("keep_originals = \"yes\"", "line 1"),
        ("variants = [\"vdi\"]", "variants = vdi: must be some of raw"),
        ("variants = [\"iso\"]", "each once"),
        ("scan_command = [\"clamscan\"]", "scan_command = clamscan: must be absolute"),
        ("scan_command = [\"/x\"]\nscan_read = [\"y\"]", "scan_read = y"),
        ("scan_seconds = 0", "1 to 86400"),
        ("variants = [\"vhd\", \"vhd\"]", "each once"),
        ("state_dir = ", "line 1"),
    ] {
        let message = parsed(text).unwrap_err().to_string();
        assert!(message.contains(said) && !message.contains("secret"), "{text}: {message}");
    }
}
