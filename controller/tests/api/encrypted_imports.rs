//! Encrypted imports between their steps: what a check, a backup or a start without the master key finds there.

use hearth_controller::config::Config;
use hearth_controller::db::Db;
use hearth_controller::db::operations::Draft;
use hearth_controller::keys::master::MasterPaths;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::ImageStatus;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::admin::{bring_back, check, save};
use super::harness::{self, Client, Place, config_in, files, noise};
use super::keys::{import, with_master};

/// A controller that took the file of an image that is to be encrypted, and stopped before its import.
async fn before_its_import(place: Place) -> (TempDir, Config, String, ImageId) {
    let (dir, mut config, token) = place.stop().await;
    config.parallel_imports = 0;
    let controller = harness::start(&config).await;
    let client = Client::new(&config, controller.https.port(), &token);
    let id = client.image(json!({ "name": "secret", "encryption": { "new_key": "payroll" } })).await;
    assert_eq!(client.put(id, noise(200_000 / 512 * 512)).await.status(), StatusCode::ACCEPTED);
    drop(client);
    controller.stop().await;
    config.parallel_imports = 1;
    (dir, config, token, id)
}

/// Leaves of the plain image nothing but its stored content, noted as what `encrypted` became, whose plain file is gone.
async fn note(config: &Config, plain: ImageId, encrypted: ImageId) -> String {
    let db = Db::open(&config.database_url).await.unwrap();
    let content = db.image(plain).await.unwrap().unwrap().content.unwrap();
    let row = db.content(content).await.unwrap().unwrap();
    db.delete_image(plain, None, &Draft::system("test")).await.unwrap();
    assert!(db.forget_content(content).await.unwrap());
    let made = json!({ "content": content, "format": "raw", "file_bytes": row.raw_bytes, "data_bytes": row.data_bytes,
        "stored_bytes": row.stored_bytes, "n_chunks": row.n_chunks, "scan": null });
    db.note_encrypted(encrypted, 1 << 30, &made.to_string()).await.unwrap();
    db.close().await;
    std::fs::remove_file(config.state_dir.join("originals").join(encrypted.to_string())).unwrap();
    content.to_string()
}

/// IN-9: between the end of the plain file and the record, neither a repair nor a backup loses the only copy of the image.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_and_not_recorded_yet_is_kept_by_checks_and_backups() {
    let place = Place::with(|config| {
        with_master(config);
        // The plain image leaves nothing but its content.
        config.keep_originals = false;
    })
    .await;
    let plain = import(&place.client, json!({ "name": "plain" }), noise(300_000)).await;
    let (dir, config, token, id) = before_its_import(place).await;
    let content = note(&config, plain, id).await;
    for repair in [false, true] {
        let (left, said) = check(&config, true, repair).await;
        assert!(left == 0 && said.contains("0 problems"), "{said}");
    }
    let saved = dir.path().join("saved");
    let said = save(&config, &saved, true).await.unwrap();
    assert!(said.contains("1 contents and 0 originals") && !said.contains("MISSING"), "{said}");
    let other = tempfile::tempdir().unwrap();
    let mut restored = config_in(other.path());
    with_master(&mut restored);
    assert_eq!(bring_back(&restored, &saved).await.unwrap().0, 0);
    for config in [config, restored] {
        let controller = harness::start(&config).await;
        let client = Client::new(&config, controller.https.port(), &token);
        let image = client.ended(id).await;
        assert_eq!(image.status, ImageStatus::Active, "{}", image.reason);
        assert_eq!(image.content.unwrap().to_string(), content);
        drop(client);
        controller.stop().await;
        assert_eq!(files(&config.state_dir.join("content/leaving")), Vec::<std::path::PathBuf>::new());
        assert_eq!(check(&config, true, false).await.0, 0);
    }
}

/// IN-9: a backup has no plain file of an image that is to be encrypted, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_has_nothing_in_the_plain() {
    let (dir, config, _, id) = before_its_import(Place::with(with_master).await).await;
    let original = config.state_dir.join("originals").join(id.to_string());
    assert!(original.exists());
    let saved = dir.path().join("saved");
    let said = save(&config, &saved, true).await.unwrap();
    assert!(
        said.contains("0 originals") && said.contains(&format!("MISSING: the original of image {id}")),
        "{said}"
    );
    assert_eq!(files(&saved.join("originals")), Vec::<std::path::PathBuf>::new());
    // That of a failed import is no loss: it would be removed.
    let db = Db::open(&config.database_url).await.unwrap();
    db.fail_image(id, None, "test", &Draft::system("test")).await.unwrap();
    db.close().await;
    let later = dir.path().join("later");
    let said = save(&config, &later, true).await.unwrap();
    assert!(said.contains("0 originals") && !said.contains("MISSING"), "{said}");
    assert_eq!(files(&later.join("originals")), Vec::<std::path::PathBuf>::new());
}

/// IN-9: a start without the master key, however often, costs no upload: the import goes on with the first start that has it.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_waits_for_its_master_key() {
    let (_dir, mut config, token, id) = before_its_import(Place::with(with_master).await).await;
    let original = config.state_dir.join("originals").join(id.to_string());
    let with = std::mem::replace(&mut config.master_keys, MasterPaths { current: None, old: None });
    for round in 0..7 {
        let controller = harness::start(&config).await;
        let client = Client::new(&config, controller.https.port(), &token);
        // The one worker took the older job before this one.
        import(&client, json!({ "name": format!("plain-{round}") }), noise(51_200)).await;
        let image: Value = client.get(&format!("/images/{id}")).await;
        assert_eq!(image["status"], "importing", "round {round}: {}", image["reason"]);
        assert!(original.exists(), "round {round}");
        drop(client);
        controller.stop().await;
    }
    config.master_keys = with;
    let controller = harness::start(&config).await;
    let client = Client::new(&config, controller.https.port(), &token);
    let image = client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Active, "{}", image.reason);
    assert!(!original.exists());
    drop(client);
    controller.stop().await;
}
