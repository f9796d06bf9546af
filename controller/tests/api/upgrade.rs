//! The state folder of the first release under this program.

use std::process::Command;

use hearth_controller::admin;
use hearth_controller::clock;
use hearth_controller::db::DbError;
use hearth_controller::fleet::ca::Authority;
use hearth_controller::state::ca_folder;
use serde_json::json;

use super::harness::{Client, PROGRAM, config_in, sha256, start};

/// sha256 of the qcow2 file that was imported into the fixture as `debian fixture`.
const ORIGINAL_SHA256: &str = "4b4e9677571bb74bc91fb946093bcce9b9ace81d30127b3699b2f03538c6b8e9";

/// The first start makes a backup and brings everything further: images, their files, copies, holds, tokens and the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_folder_of_the_first_release_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_in(dir.path());
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/state-v1.tar.zst");
    let tar = Command::new("tar").arg("--zstd").arg("-xf").arg(fixture).arg("-C").arg(dir.path()).status();
    assert!(tar.expect("tar and zstd are installed (apt install tar zstd)").success());
    std::fs::rename(dir.path().join("state-v1"), &config.state_dir).unwrap();
    // The key of the fixture's CA stayed where it was made.
    Authority::create(&ca_folder(&config.state_dir), clock::unix_us()).unwrap();
    let early = admin::init::init(&config, true, &mut Vec::new()).await.unwrap_err();
    assert!(
        matches!(&early, admin::init::InitError::Db(DbError::OlderVersion { found: 1, .. })),
        "only serve brings a database further: {early}"
    );
    start(&config).await.stop().await;
    let saved: Vec<_> = std::fs::read_dir(config.state_dir.join("before-upgrade")).unwrap().collect();
    assert_eq!(saved.len(), 1, "{saved:?}");
    let mut out = Vec::new();
    admin::init::init(&config, true, &mut out).await.unwrap();
    let out = String::from_utf8(out).unwrap();
    let token = out.split_whitespace().find(|word| word.starts_with("hrt_")).unwrap();
    let controller = start(&config).await;
    let client = Client::new(&config, controller.https.port(), token);
    let images = client.get("/images").await["items"].clone();
    let states: Vec<_> =
        images.as_array().unwrap().iter().map(|image| (&image["name"], &image["status"])).collect();
    assert_eq!(
        json!(states),
        json!([["broken2", "killed"], ["系统镜像 raw", "active"], ["debian fixture", "active"]])
    );
    let id = images[2]["id"].as_str().unwrap();
    let file = client.ask(reqwest::Method::GET, &format!("/images/{id}/file")).send().await.unwrap();
    assert_eq!(sha256(&file.bytes().await.unwrap()), ORIGINAL_SHA256);
    let copies = client.get(&format!("/images/{id}/cache")).await["items"].clone();
    assert_eq!(
        (&copies[0]["location_name"], &copies[0]["pinned"]),
        (&json!("cn-1"), &json!(true)),
        "{copies}"
    );
    assert_eq!(client.get("/images?q=镜像").await["items"].as_array().unwrap().len(), 1);
    assert_eq!(client.get("/operations/verify").await["intact"], true);
    drop(client);
    controller.stop().await;
    assert_eq!(std::fs::read_dir(config.state_dir.join("before-upgrade")).unwrap().count(), 1);
    let checked = Command::new(PROGRAM)
        .arg("--config")
        .arg(dir.path().join("controller.toml"))
        .args(["fsck", "--deep"])
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}
