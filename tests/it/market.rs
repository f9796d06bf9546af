//! A market by hand: a key, a signed catalog, and an import from a real web server.

use hearth_tests::cluster::Cluster;

use crate::typed::{check, json, text};

/// MK-1, CA-0: a catalog is signed, added and listed; a changed one, and one of an older edition, are refused. A location gets a
/// domain.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_runs_a_market_and_another_uses_it() {
    let cluster = Cluster::start(1).await.unwrap();
    let path = |name: &str| cluster.dir().join(name).to_str().unwrap().to_owned();
    let (key, public) = (path("market.key"), path("market.key.pub"));
    let printed = text(&check(&cluster, &["market", "keygen", &key], 0));
    assert_eq!(printed.trim(), std::fs::read_to_string(&public).unwrap().trim());
    check(&cluster, &["market", "keygen", &key], 2);
    let edition = |serial: u64| {
        let entry = serde_json::json!({ "key": "noble", "name": "Ubuntu 24.04", "os_type": "linux",
            "distribution": "Ubuntu", "version": "24.04", "architecture": "x86_64", "format": "qcow2",
            "url": "https://images.example.com/noble.qcow2", "size_bytes": 5, "sha256": "ab".repeat(32) });
        let catalog = serde_json::json!({ "name": "ours", "serial": serial, "entries": [entry] });
        let (plain, signed) = (path("catalog.json"), path(&format!("market-{serial}.json")));
        std::fs::write(&plain, catalog.to_string()).unwrap();
        let made = check(&cluster, &["market", "sign", &plain, "--key", &key], 0);
        std::fs::write(&signed, &made.stdout).unwrap();
        signed
    };
    let (first, second) = (edition(1), edition(2));
    check(&cluster, &["market", "sign", &first, "--key", &key], 2);
    check(&cluster, &["market", "sign", &path("catalog.json"), "--key", &path("catalog.json")], 2);
    let changed = path("changed.json");
    let forged = std::fs::read_to_string(&second).unwrap().replace("images.example.com", "evil.example.com");
    std::fs::write(&changed, forged).unwrap();
    let refused = text(&check(&cluster, &["market", "add", "ours", "--file", &changed, "--key", &public], 2));
    assert!(refused.contains("was changed"), "{refused}");
    check(&cluster, &["market", "add", "ours", "--file", &first, "--key", &public], 0);
    assert!(text(&check(&cluster, &["market", "refresh", "ours", "--file", &second], 0)).contains('2'));
    let older = text(&check(&cluster, &["market", "refresh", "ours", "--file", &first], 4));
    assert!(older.contains("older"), "{older}");
    let list = json(&check(&cluster, &["market", "list", "-o", "json"], 0));
    assert_eq!(list["items"][0]["name"], "ours");
    let entries = text(&check(&cluster, &["market", "entries"], 0));
    assert!(entries.contains("not_imported") && entries.contains("Ubuntu 24.04"), "{entries}");
    let none = text(&check(&cluster, &["market", "import", "ours/nothing"], 3));
    assert!(none.contains("hearth market entries"), "{none}");
    let image = json(&check(&cluster, &["market", "import", "noble", "--no-wait", "-o", "json"], 0));
    assert_eq!((&image["visibility"], &image["name"]), (&"public".into(), &"Ubuntu 24.04".into()));
    check(&cluster, &["market", "remove", "ours", "--yes"], 0);
    check(&cluster, &["market", "remove", "ours", "--yes"], 3);

    check(&cluster, &["domain", "create", "sales"], 0);
    let set = json(&check(&cluster, &["location", "set", "host-1", "--domain", "sales", "-o", "json"], 0));
    assert!(set["domain"].is_string(), "{set}");
    check(&cluster, &["location", "set", "host-1", "--no-domain"], 0);
    check(&cluster, &["location", "set", "host-1"], 2);
}
