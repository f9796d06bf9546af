//! Set-up, backup, restore and fsck.

use std::path::Path;

use hearth_controller::admin::{backup, fsck, init, restore};
use hearth_controller::config::Config;
use hearth_protocol::words::ImageStatus;
use serde_json::json;

use super::harness::{self, Client, PROGRAM, Place, config_in, files, noise};

async fn check(config: &Config, deep: bool, repair: bool) -> (usize, String) {
    let mut out = Vec::new();
    let left = fsck::fsck(config, fsck::Options { deep, repair }, PROGRAM.into(), &mut out).await.unwrap();
    (left, String::from_utf8(out).unwrap())
}

/// A controller with one image, stopped again.
async fn with_image() -> (tempfile::TempDir, Config, String, hearth_protocol::api::image::Image) {
    let place = Place::new().await;
    let id = place.client.image(json!({ "name": "disk" })).await;
    place.client.put(id, noise(500_000)).await;
    let image = place.client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Active, "{}", image.reason);
    let (dir, config, token) = place.stop().await;
    (dir, config, token, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_up_is_done_once_and_goes_on_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_in(dir.path());
    let mut nowhere = Full;
    assert!(init::init(&config, false, &mut nowhere).await.is_err(), "a token that nobody saw is not stored");
    let ca = std::fs::read(config.state_dir.join("ca/ca.crt")).unwrap();
    let first = harness::init(&config).await;
    assert_eq!(std::fs::read(config.state_dir.join("ca/ca.crt")).unwrap(), ca, "the CA stays");
    let again = init::init(&config, false, &mut Vec::new()).await;
    assert!(matches!(again, Err(init::InitError::Done)));
    let mut out = Vec::new();
    init::init(&config, true, &mut out).await.unwrap();
    let text = String::from_utf8(out).unwrap();
    let second = text.split_whitespace().find(|word| word.starts_with("hrt_")).unwrap();
    let controller = harness::start(&config).await;
    for token in [&*first, second] {
        let client = Client::new(&config, controller.https.port(), token);
        assert_eq!(client.get("/whoami").await["role"], "admin");
    }
    controller.stop().await;
}

/// A terminal that went away.
struct Full;

impl std::io::Write for Full {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_brings_everything_back_but_files() {
    let place = Place::new().await;
    let id = place.client.image(json!({ "name": "disk" })).await;
    place.client.put(id, noise(500_000)).await;
    place.client.ended(id).await;
    let saved = place.dir.path().join("saved");
    // Online: the controller runs.
    backup::backup(&place.config, &saved).await.unwrap();
    assert!(matches!(backup::backup(&place.config, &saved).await, Err(backup::BackupError::NotEmpty { .. })));
    let occupied = restore::restore(&place.config, &saved).await;
    assert!(matches!(occupied, Err(backup::BackupError::Occupied { .. })));
    let other = tempfile::tempdir().unwrap();
    let config = config_in(other.path());
    restore::restore(&config, &saved).await.unwrap();
    let (_dir, old, token) = place.stop().await;
    let (left, report) = check(&config, false, false).await;
    assert_eq!(left, 2, "content and original are not in a backup: {report}");
    copy_all(&old.state_dir.join("content"), &config.state_dir.join("content"));
    copy_all(&old.state_dir.join("originals"), &config.state_dir.join("originals"));
    assert_eq!(check(&config, true, false).await.0, 0);
    let controller = harness::start(&config).await;
    let client = Client::new(&config, controller.https.port(), &token);
    assert_eq!(client.get(&format!("/images/{id}")).await["status"], "active");
    controller.stop().await;
    // A changed byte is no backup.
    let database = saved.join(backup::DATABASE);
    let mut bytes = std::fs::read(&database).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&database, bytes).unwrap();
    let third = tempfile::tempdir().unwrap();
    let config = config_in(third.path());
    let damaged = restore::restore(&config, &saved).await;
    assert!(matches!(damaged, Err(backup::BackupError::Damaged { .. })), "{damaged:?}");
    assert!(files(&config.state_dir).is_empty(), "nothing was written");
}

fn copy_all(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(&file, target).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fsck_finds_a_flipped_byte_and_mends_it_from_the_original() {
    let (_dir, config, _, image) = with_image().await;
    assert_eq!(check(&config, true, false).await, (0, "0 problems, 0 left\n".to_owned()));
    let content = image.content.unwrap().to_string();
    let object =
        files(&config.state_dir.join("content")).into_iter().find(|file| file.ends_with(&content)).unwrap();
    let mut bytes = std::fs::read(&object).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&object, bytes).unwrap();
    assert_eq!(check(&config, false, false).await.0, 0, "only a deep check reads every byte");
    let (left, report) = check(&config, true, false).await;
    assert_eq!(left, 1, "{report}");
    let (left, report) = check(&config, true, true).await;
    assert!(left == 0 && report.contains("repaired"), "{report}");
    assert_eq!(check(&config, true, false).await.0, 0);
    // All of it gone, and the original too: reported, not hidden.
    std::fs::remove_file(config.state_dir.join("originals").join(image.id.to_string())).unwrap();
    for file in files(&config.state_dir.join("content")) {
        std::fs::remove_file(file).unwrap();
    }
    assert_eq!(check(&config, false, true).await.0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn fsck_finds_leaks_and_removes_them_only_when_told() {
    let (_dir, config, _, image) = with_image().await;
    let originals = config.state_dir.join("originals");
    let leaked = originals.join("01234567-89ab-7def-8123-456789abcdef");
    std::fs::copy(originals.join(image.id.to_string()), &leaked).unwrap();
    let (left, report) = check(&config, false, false).await;
    assert!(left == 1 && report.contains("01234567") && leaked.exists(), "{report}");
    assert_eq!(check(&config, false, true).await.0, 0);
    assert!(!leaked.exists());
    let changed = originals.join(image.id.to_string());
    std::fs::write(&changed, noise(10)).unwrap();
    let (left, report) = check(&config, false, true).await;
    assert!(left == 1 && changed.exists(), "a changed original is reported and left: {report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fsck_does_not_run_beside_a_controller() {
    let place = Place::new().await;
    let busy = fsck::fsck(&place.config, fsck::Options::default(), PROGRAM.into(), &mut Vec::new()).await;
    assert!(matches!(busy, Err(fsck::FsckError::State(_))), "{busy:?}");
    place.stop().await;
}
