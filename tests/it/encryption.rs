//! Encrypted images from the command line: imported, cached on a host, opened there against a lease, and nowhere in the plain.

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use hearth_agent::local::message::{Code, Reply, Request};
use hearth_protocol::api::image::{Image, ImageCreate};
use hearth_protocol::api::key::EncryptWith;
use hearth_protocol::api::operation::Operation;
use hearth_protocol::words::{ConsumerKind, ImageStatus};
use hearth_tests::cluster::{Cluster, Extra, WORK_WAIT_MAX};
use hearth_tests::{disk, wait};

use crate::typed::{check, text};

/// Bytes of noise that make the disk known wherever they lie; nothing packs them, so they are stored as they are.
const MARKER_BYTES: usize = 4 << 20;

/// A cluster whose controller has a master key.
async fn start(agents: usize) -> (Cluster, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("master.key");
    std::fs::write(&key, format!("{}\n", "5a".repeat(32))).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let extra = Extra { controller: format!("master_key = {key:?}\n"), ..Extra::default() };
    (Cluster::start_with(agents, extra).await.unwrap(), dir)
}

/// A disk of 64 MiB with the marker in it.
fn marked_disk(path: &Path) -> Vec<u8> {
    let mut marker = vec![0; MARKER_BYTES];
    blake3::Hasher::new().update(b"marker").finalize_xof().fill(&mut marker);
    let disk = std::fs::File::create(path).unwrap();
    disk.set_len(64 << 20).unwrap();
    disk.write_all_at(&marker, 8 << 20).unwrap();
    marker
}

/// Files below `folder` that hold a piece of the marker. Looked for at the places of blocks: so it lies, if it lies there.
fn holding(folder: &Path, marker: &[u8]) -> Vec<PathBuf> {
    let pieces: Vec<&[u8]> = (0..8).map(|n| &marker[n * (512 << 10) + 8192..][..32]).collect();
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = std::fs::read(&path)
                && pieces.iter().any(|piece| bytes.windows(32).any(|window| window == *piece))
            {
                found.push(path);
            }
        }
    }
    found
}

/// The disk in an encrypted file.
fn opened(file: &Path, key: &Path, raw: &Path) -> bool {
    let options = format!("driver=qcow2,encrypt.key-secret=k,file.filename={}", file.display());
    let secret = format!("secret,id=k,file={}", key.display());
    let mut command = Command::new("qemu-img");
    command.args(["convert", "--object", &secret, "--image-opts", &options, "-O", "raw"]).arg(raw);
    command.output().unwrap().status.success()
}

/// Makes an encrypted overlay of the encrypted file `path`, as the help says.
fn make_overlay(path: &str, secret: &Path, overlay: &Path) {
    let base = format!(r#"json:{{"driver":"qcow2","encrypt.key-secret":"k","file.filename":"{path}"}}"#);
    let object = format!("secret,id=k,file={}", secret.display());
    let mut made = None;
    for _ in 0..10 {
        // qemu-img gives up where the processor's time seems to go back; that passes.
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "--object", &object, "-b", &base]);
        let output =
            create.args(["-o", "encrypt.format=luks,encrypt.key-secret=k"]).arg(overlay).output().unwrap();
        let again = text(&output).contains("accurate CPU usage");
        made = Some(output);
        if !again {
            break;
        }
    }
    let made = made.unwrap();
    assert!(made.status.success(), "{}", text(&made));
}

/// Nothing plain anywhere, neither disk nor passphrase.
fn check_nothing_plain(cluster: &Cluster, marker: &[u8], passphrase: &[u8]) {
    for place in [cluster.state_dir(), cluster.agent_dir(0), cluster.agent_dir(1)] {
        assert_eq!(holding(&place, marker), Vec::<PathBuf>::new());
        assert_eq!(holding_text(&place, passphrase), Vec::<PathBuf>::new());
    }
    for log in ["controller.log", "host-1.log"] {
        let log = std::fs::read(cluster.dir().join(log)).unwrap();
        assert!(!log.windows(64).any(|window| window == passphrase), "a passphrase is in a log");
    }
}

/// IN-9: stored, moved and cached encrypted; a host where it is placed opens it against a lease, and no other does.
#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_image_opens_on_its_host_against_a_lease() {
    let (mut cluster, keys) = start(2).await;
    let source = keys.path().join("disk.raw");
    let marker = marked_disk(&source);
    let file = source.to_str().unwrap();
    check(&cluster, &["image", "import", file, "--name", "payroll", "--encrypt", "new"], 0);
    let shown = check(&cluster, &["image", "show", "payroll"], 0);
    assert!(text(&shown).contains("qcow2 with LUKS with key payroll"), "{}", text(&shown));
    let used = check(&cluster, &["key", "delete", "payroll", "--yes"], 4);
    assert!(text(&used).contains("used by 1 images"), "{}", text(&used));
    check(&cluster, &["prewarm", "create", "payroll", "--to", "host-1", "--wait", "--quiet"], 0);

    // Without a lease there is nothing, with one there is what opens it.
    let nobody = Request::Key { lease: hearth_protocol::id::LeaseId::from_bytes([9; 16]) };
    assert_eq!(cluster.ask_agent(0, &nobody).unwrap_err().code, Code::NotFound);
    let leased = cluster.hearth_agent(0, &["lease", "payroll", "vm-1"]).unwrap();
    let printed = text(&leased);
    let [lease, path] = printed.lines().collect::<Vec<_>>()[..] else { panic!("{printed}") };
    let key = cluster.hearth_agent(0, &["key", lease]).unwrap();
    assert!(key.status.success() && key.stdout.len() == 64, "{}", text(&key));
    let (secret, raw) = (keys.path().join("vm-1.key"), keys.path().join("opened.raw"));
    std::fs::write(&secret, &key.stdout).unwrap();
    assert!(opened(Path::new(path), &secret, &raw), "it does not open");
    disk::same(&raw, &source).unwrap();

    // The overlay of the help text: encrypted too, and written through.
    let overlay = keys.path().join("vm-1.qcow2");
    make_overlay(path, &secret, &overlay);
    assert!(opened(&overlay, &secret, &raw));
    disk::same(&raw, &source).unwrap();

    // Nothing plain anywhere, neither disk nor passphrase; the search finds what is there.
    let passphrase = key.stdout.clone();
    check_nothing_plain(&cluster, &marker, &passphrase);
    let given: Vec<Operation> = cluster.api.list("/operations?action=key.give").await.unwrap();
    assert_eq!(given.len(), 1, "one host was given it, once: {given:?}");

    // An agent that was started anew knows nothing until its controller answers; one that runs on needs none.
    cluster.kill_controller().unwrap();
    assert!(cluster.hearth_agent(0, &["key", lease]).unwrap().status.success());
    cluster.kill_agent(0).unwrap();
    cluster.start_agent(0).unwrap();
    wait::until("the agent answers", WORK_WAIT_MAX, async || {
        Ok(cluster.hearth_agent(0, &["status"])?.status.success())
    })
    .await
    .unwrap();
    let away = cluster.hearth_agent(0, &["key", lease]).unwrap();
    assert!(!away.status.success() && text(&away).contains("memory only"), "{}", text(&away));
    cluster.start_controller().await.unwrap();
    wait::until("the agent knows the key again", WORK_WAIT_MAX, async || {
        let again = cluster.hearth_agent(0, &["key", lease])?;
        Ok(again.status.success() && again.stdout == passphrase)
    })
    .await
    .unwrap();
    cluster.hearth_agent(0, &["release", lease]).unwrap();
    assert_eq!(cluster.hearth_agent(0, &["key", lease]).unwrap().status.code(), Some(3));

    let plain = cluster.import(&source, "plain").await.unwrap();
    cluster.warm_all(&plain).await.unwrap();
    assert!(!holding(&cluster.state_dir(), &marker).is_empty());
    assert!(!holding(&cluster.agent_dir(1), &marker).is_empty());
    let request = Request::Lease {
        target: "plain".to_owned(),
        kind: ConsumerKind::Vm,
        consumer: "vm-2".to_owned(),
        wait_s: 0,
    };
    let Ok(Reply::Lease { lease, .. }) = cluster.ask_agent(0, &request) else { panic!("no lease") };
    assert!(cluster.ask_agent(0, &Request::Key { lease: lease.lease }).is_err());
}

/// IN-9: who deletes an image takes nothing from the machines on it: their host opens the copy also when both daemons were started
/// anew, and the key stays as long.
#[tokio::test(flavor = "multi_thread")]
async fn machines_run_on_when_their_encrypted_image_is_deleted() {
    let (mut cluster, keys) = start(1).await;
    let source = keys.path().join("disk.raw");
    marked_disk(&source);
    let file = source.to_str().unwrap();
    check(&cluster, &["image", "import", file, "--name", "payroll", "--encrypt", "new"], 0);
    check(&cluster, &["prewarm", "create", "payroll", "--to", "host-1", "--wait", "--quiet"], 0);
    let printed = text(&cluster.hearth_agent(0, &["lease", "payroll", "vm-1"]).unwrap());
    let [lease, path] = printed.lines().collect::<Vec<_>>()[..] else { panic!("{printed}") };
    let key = cluster.hearth_agent(0, &["key", lease]).unwrap();
    assert!(key.status.success(), "{}", text(&key));
    check(&cluster, &["image", "delete", "payroll", "--now", "--force", "--yes"], 0);
    let used = check(&cluster, &["key", "delete", "payroll", "--yes"], 4);
    assert!(text(&used).contains("copies of deleted images"), "{}", text(&used));
    cluster.kill_controller().unwrap();
    cluster.kill_agent(0).unwrap();
    cluster.start_controller().await.unwrap();
    cluster.start_agent(0).unwrap();
    wait::until("the agent knows the key again", WORK_WAIT_MAX, async || {
        let again = cluster.hearth_agent(0, &["key", lease])?;
        Ok(again.status.success() && again.stdout == key.stdout)
    })
    .await
    .unwrap();
    let (secret, raw) = (keys.path().join("vm-1.key"), keys.path().join("opened.raw"));
    std::fs::write(&secret, &key.stdout).unwrap();
    assert!(opened(Path::new(path), &secret, &raw), "it does not open");
    check(&cluster, &["key", "delete", "payroll", "--yes"], 4);
}

/// Files below `folder` that hold a text.
fn holding_text(folder: &Path, text: &[u8]) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read(&path)
                .is_ok_and(|bytes| bytes.windows(text.len()).any(|part| part == text))
            {
                found.push(path);
            }
        }
    }
    found
}

/// IN-9: a controller that is killed in the middle of it finishes the import when it is started again, and leaves nothing plain.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_import_ends_encrypted_and_leaves_nothing_plain() {
    let (mut cluster, keys) = start(0).await;
    let source = keys.path().join("disk.raw");
    let marker = marked_disk(&source);
    for (n, stage) in ["inspecting", "converting", "chunking", "checksumming"].into_iter().enumerate() {
        let name = format!("killed-{n}");
        let encryption = Some(EncryptWith::NewKey(name.clone()));
        let create = ImageCreate { name, encryption, ..ImageCreate::default() };
        let made: Image = cluster.api.post("/images", &create).await.unwrap();
        let path = format!("/images/{}", made.id);
        let _: Image = cluster.api.put_file(&format!("{path}/file"), &source).await.unwrap();
        // Stages pass quickly: killed where it is when the stage is seen, or a moment later.
        for _ in 0..200 {
            let image: Image = cluster.api.get(&path).await.unwrap();
            let here = image.stage.is_some_and(|here| here.to_string() == stage);
            if here || image.status != ImageStatus::Importing {
                break;
            }
        }
        cluster.kill_controller().unwrap();
        cluster.start_controller().await.unwrap();
        let image: Image = wait::for_some("the import ends", WORK_WAIT_MAX, async || {
            let image: Image = cluster.api.get(&path).await?;
            Ok(matches!(image.status, ImageStatus::Active | ImageStatus::Killed).then_some(image))
        })
        .await
        .unwrap();
        assert_eq!(image.status, ImageStatus::Active, "{stage}: {}", image.reason);
        assert_eq!(image.virtual_bytes, Some(64 << 20));
        assert_eq!(holding(&cluster.state_dir(), &marker), Vec::<PathBuf>::new(), "{stage}");
    }
    cluster.controller().stop(WORK_WAIT_MAX).await.unwrap();
    let checked = cluster.hearth_controller(&["fsck", "--deep"]).unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}
