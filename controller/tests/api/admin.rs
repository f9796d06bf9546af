//! Set-up, backup, restore and fsck.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use hearth_controller::admin::{backup, fsck, init, restore};
use hearth_controller::config::Config;
use hearth_protocol::words::ImageStatus;
use serde_json::json;

use super::harness::{self, Client, PROGRAM, Place, config_in, files, noise};

pub(super) async fn check(config: &Config, deep: bool, repair: bool) -> (usize, String) {
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

pub(super) async fn save(
    config: &Config,
    to: &Path,
    with_contents: bool,
) -> Result<String, backup::BackupError> {
    let mut out = Vec::new();
    backup::backup(config, to, with_contents, &mut out).await?;
    Ok(String::from_utf8(out).unwrap())
}

/// Restores into an empty folder; returns what was said and how many problems there are.
pub(super) async fn bring_back(config: &Config, from: &Path) -> Result<(usize, String), backup::BackupError> {
    let mut out = Vec::new();
    let problems = restore::restore(config, from, &mut out).await?;
    Ok((problems, String::from_utf8(out).unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_brings_everything_back() {
    let place = Place::new().await;
    let id = place.client.image(json!({ "name": "disk" })).await;
    place.client.put(id, noise(500_000)).await;
    place.client.ended(id).await;
    let saved = place.dir.path().join("saved");
    std::fs::create_dir(&saved).unwrap();
    std::fs::set_permissions(&saved, std::fs::Permissions::from_mode(0o755)).unwrap();
    // Online: the controller runs.
    let said = save(&place.config, &saved, true).await.unwrap();
    let mode = std::fs::metadata(&saved).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "the key of the CA is in it");
    assert!(said.contains("1 contents and 1 originals") && said.contains(" 0 bytes copied"), "{said}");
    let again = save(&place.config, &saved, true).await;
    assert!(matches!(again, Err(backup::BackupError::NotEmpty { .. })));
    let occupied = bring_back(&place.config, &saved).await;
    assert!(matches!(occupied, Err(backup::BackupError::Occupied { .. })));
    let (_dir, _, token) = place.stop().await;
    let other = tempfile::tempdir().unwrap();
    let config = config_in(other.path());
    let (problems, said) = bring_back(&config, &saved).await.unwrap();
    assert!(problems == 0 && said.contains("0 problems"), "{said}");
    assert_eq!(check(&config, true, false).await.0, 0);
    let controller = harness::start(&config).await;
    let client = Client::new(&config, controller.https.port(), &token);
    assert_eq!(client.get(&format!("/images/{id}")).await["status"], "active");
    let file = client.ask(reqwest::Method::GET, &format!("/images/{id}/file")).send().await.unwrap();
    assert_eq!(file.bytes().await.unwrap(), noise(500_000));
    client.ask(reqwest::Method::DELETE, &format!("/images/{id}")).send().await.unwrap();
    controller.stop().await;
    // What the restored controller does changes nothing in the backup.
    let third = tempfile::tempdir().unwrap();
    assert_eq!(bring_back(&config_in(third.path()), &saved).await.unwrap().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_without_contents_is_small_and_says_so() {
    let (dir, old, _, _) = with_image().await;
    let saved = dir.path().join("saved");
    let said = save(&old, &saved, false).await.unwrap();
    assert!(said.contains("NOT in it"), "{said}");
    assert!(!saved.join("content").exists() && !saved.join("originals").exists());
    let other = tempfile::tempdir().unwrap();
    let config = config_in(other.path());
    let (_, said) = bring_back(&config, &saved).await.unwrap();
    assert!(said.contains("put content/ and originals/ back"), "{said}");
    assert_eq!(check(&config, false, false).await.0, 2, "content and original");
    copy_all(&old.state_dir.join("content"), &config.state_dir.join("content"));
    copy_all(&old.state_dir.join("originals"), &config.state_dir.join("originals"));
    assert_eq!(check(&config, true, false).await.0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_is_refused_or_its_damage_named() {
    let (dir, old, _, image) = with_image().await;
    let saved = dir.path().join("saved");
    save(&old, &saved, true).await.unwrap();
    let flip = |path: &Path, at: usize| {
        // Anew, so that the link to the controller's own file ends.
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 1;
        std::fs::remove_file(path).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let content = image.content.unwrap().to_string();
    let object = files(&saved.join("content")).into_iter().find(|file| file.ends_with(&content)).unwrap();
    flip(&object, 1000);
    let place = || {
        let dir = tempfile::tempdir().unwrap();
        (config_in(dir.path()), dir)
    };
    let (config, _dir) = place();
    let (problems, said) = bring_back(&config, &saved).await.unwrap();
    assert!(problems == 1 && said.contains("1 chunks are damaged"), "{said}");
    // The rest is worth having: the original mends the content.
    assert_eq!(check(&config, true, true).await.0, 0);
    std::fs::remove_file(saved.join("originals").join(image.id.to_string())).unwrap();
    let (config, _dir) = place();
    let lost = bring_back(&config, &saved).await;
    assert!(
        matches!(&lost, Err(backup::BackupError::Damaged { why, .. }) if why.contains("original")),
        "{lost:?}"
    );
    assert!(files(&config.state_dir).is_empty(), "nothing was written");
    flip(&saved.join(backup::DATABASE), 5000);
    let changed = bring_back(&config, &saved).await;
    assert!(
        matches!(&changed, Err(backup::BackupError::Damaged { why, .. }) if why.contains("changed")),
        "{changed:?}"
    );
    assert!(files(&config.state_dir).is_empty(), "nothing was written");
    // What is lost already when the backup is made is named, and the rest is saved.
    std::fs::remove_file(old.state_dir.join("originals").join(image.id.to_string())).unwrap();
    let said = save(&old, &dir.path().join("later"), true).await.unwrap();
    assert!(said.contains("MISSING: the original of image") && said.contains("1 contents"), "{said}");
    let program = std::process::Command::new(PROGRAM)
        .args(["--config".as_ref(), old.path.as_ref().unwrap().as_os_str(), "backup".as_ref()])
        .arg(dir.path().join("by-program"))
        .output()
        .unwrap();
    assert_eq!(program.status.code(), Some(1), "a job at night notices: {program:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_that_are_in_the_way_are_not_overwritten() {
    let (dir, old, _, _) = with_image().await;
    let saved = dir.path().join("saved");
    save(&old, &saved, true).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let config = config_in(other.path());
    let mine = config.state_dir.join("originals/mine");
    std::fs::create_dir_all(mine.parent().unwrap()).unwrap();
    std::fs::write(&mine, "mine").unwrap();
    let occupied = bring_back(&config, &saved).await;
    assert!(matches!(occupied, Err(backup::BackupError::Occupied { .. })), "{occupied:?}");
    assert_eq!(std::fs::read(&mine).unwrap(), b"mine");
    assert!(!config.state_dir.join("ca").exists() && !config.state_dir.join("hearth.sqlite").exists());
    // A database, or what is left of one, is seen before anything is copied; so is what fails at the end.
    let other = tempfile::tempdir().unwrap();
    let config = config_in(other.path());
    let (log, ca) = (config.state_dir.join("hearth.sqlite-wal"), config.state_dir.join("ca"));
    std::fs::create_dir_all(&config.state_dir).unwrap();
    std::fs::write(&log, "log").unwrap();
    let occupied = bring_back(&config, &saved).await;
    assert!(matches!(occupied, Err(backup::BackupError::Db(_))), "{occupied:?}");
    assert!(!config.state_dir.join("content").exists());
    std::fs::remove_file(&log).unwrap();
    std::fs::write(&ca, "no folder").unwrap();
    assert!(bring_back(&config, &saved).await.is_err());
    let left = files(&config.state_dir);
    assert_eq!(left.len(), 3, "what was in the way, the lock and the version: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_original_that_could_be_imported_again_is_saved_and_one_that_is_gone_is_no_loss() {
    let place = Place::new().await;
    // An original of a format that it is not: killed, and kept to be tried again.
    let id = place.client.image(json!({ "name": "liar", "format": "qcow2" })).await;
    place.client.put(id, noise(300_000)).await;
    assert_eq!(place.client.ended(id).await.status, ImageStatus::Killed);
    let (dir, config, ..) = place.stop().await;
    let original = config.state_dir.join("originals").join(id.to_string());
    std::fs::write(&original, noise(300_000)).unwrap();
    let said = save(&config, &dir.path().join("with"), true).await.unwrap();
    assert!(said.contains("1 originals") && !said.contains("MISSING"), "{said}");
    std::fs::remove_file(&original).unwrap();
    let said = save(&config, &dir.path().join("without"), true).await.unwrap();
    assert!(said.contains("0 originals") && !said.contains("MISSING"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_work_ends_with_78_before_and_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_in(dir.path());
    harness::init(&config).await;
    let path = config.path.as_ref().unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    std::fs::write(path, text + "log_filter = \"hearth=loud\"\n").unwrap();
    for what in ["--check-config", "serve"] {
        let program = std::process::Command::new(PROGRAM).arg("--config").arg(path).arg(what).output();
        let (code, said) = program.map(|done| (done.status.code(), done.stderr)).unwrap();
        assert_eq!(code, Some(78), "{what}: {}", String::from_utf8_lossy(&said));
    }
}

/// Database and files of a backup belong together, whatever comes and goes while it is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_imports_and_deletions_is_consistent() {
    let place = Place::new().await;
    let (client, done) = (place.client.clone(), tokio_util::sync::CancellationToken::new());
    let stop = done.clone();
    let busy = hearth_controller::task::spawn("test-load", async move {
        let mut n = 0_u64;
        while !stop.is_cancelled() {
            n += 1;
            let id = client.image(json!({ "name": format!("disk-{n}") })).await;
            client.put(id, noise(100_000 + n * 4096)).await;
            // Every other one is deleted while its import runs, the rest as soon as it is done.
            if n.is_multiple_of(2) {
                client.ended(id).await;
            }
            if n > 3 {
                client.ask(reqwest::Method::DELETE, &format!("/images/{id}")).send().await.unwrap();
            }
        }
        n
    });
    for round in 0..6 {
        let saved = place.dir.path().join(format!("saved-{round}"));
        save(&place.config, &saved, true).await.unwrap();
        let other = tempfile::tempdir().unwrap();
        let config = config_in(other.path());
        let (problems, said) = bring_back(&config, &saved).await.unwrap();
        assert!(problems == 0 && !said.contains("missing"), "round {round}: {said}");
    }
    done.cancel();
    assert!(busy.await.unwrap() > 3, "nothing happened meanwhile");
    place.stop().await;
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

/// An import whose controller died before it had removed the file that it was not to keep.
#[tokio::test(flavor = "multi_thread")]
async fn an_original_that_is_not_kept_goes_with_the_next_start_or_repair() {
    let place = Place::with(|config| config.keep_originals = false).await;
    let id = place.client.image(json!({ "name": "disk" })).await;
    place.client.put(id, noise(100_000)).await;
    assert_eq!(place.client.ended(id).await.status, ImageStatus::Active);
    let (_dir, config, _) = place.stop().await;
    let original = config.state_dir.join("originals").join(id.to_string());
    std::fs::write(&original, noise(100_000)).unwrap();
    let (left, report) = check(&config, false, false).await;
    assert!(left == 1 && report.contains("not to be kept") && original.exists(), "{report}");
    assert_eq!(check(&config, false, true).await.0, 0);
    assert!(!original.exists());
    std::fs::write(&original, noise(100_000)).unwrap();
    harness::start(&config).await.stop().await;
    assert!(!original.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn fsck_does_not_run_beside_a_controller() {
    let place = Place::new().await;
    let busy = fsck::fsck(&place.config, fsck::Options::default(), PROGRAM.into(), &mut Vec::new()).await;
    assert!(matches!(busy, Err(fsck::FsckError::State(_))), "{busy:?}");
    place.stop().await;
}
