//! A flipped byte, wherever bytes are kept: nothing wrong is handed out, and it is made good.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use hearth_protocol::api::cache::{Keep, Targets};
use hearth_protocol::api::image::Image;
use hearth_protocol::api::operation::Operation;
use hearth_protocol::words::{EntryStatus, PrewarmState};
use hearth_tests::cluster::{Cluster, Extra, WORK_WAIT_MAX, agent_name};
use hearth_tests::{disk, wait};

/// Changes one byte in place and leaves the time of the last change as it was: what a disk does.
fn flip(path: &Path, offset: u64) {
    let meta = std::fs::metadata(path).unwrap();
    let mode = meta.permissions();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
    file.set_modified(meta.modified().unwrap()).unwrap();
    file.sync_all().unwrap();
    std::fs::set_permissions(path, mode).unwrap();
}

/// A file of the image's content on the controller: `""`, `.index` or `.manifest`.
fn stored(cluster: &Cluster, image: &Image, ending: &str) -> PathBuf {
    let content = image.content.unwrap().to_string();
    let shard = content.split_at(2).0;
    cluster.state_dir().join("content/objects").join(shard).join(format!("{content}{ending}"))
}

/// A cluster with an image, and its source.
async fn imported(agents: usize, extra: Extra, seed: u64) -> (Cluster, Image, PathBuf) {
    let cluster = Cluster::start_with(agents, extra).await.unwrap();
    let file = cluster.dir().join("a.raw");
    disk::ext4(&file, 64, 12, seed).unwrap();
    let image = cluster.import(&file, "a").await.unwrap();
    (cluster, image, file)
}

/// Puts the image on one host and compares the copy with its source.
async fn warm(cluster: &Cluster, image: &Image, index: usize, file: &Path) {
    let there = Targets { to: vec![agent_name(index)], ..Targets::default() };
    let job = cluster.prewarm(image.id, there, Keep::Pinned).await.unwrap();
    let ended = cluster.prewarm_ended(&job).await.unwrap();
    assert_eq!(ended.prewarm.state, PrewarmState::Done, "{ended:#?}");
    disk::same(&cluster.cached_file(image, index).unwrap(), file).unwrap();
}

/// The controller's copy is good again, says its own tool, and the log says that it was mended.
async fn is_mended(cluster: &mut Cluster) {
    let mended = wait::for_some("the log says that it was mended", WORK_WAIT_MAX, async || {
        let rows: Vec<Operation> = cluster.api.list("/operations").await?;
        let mended = |row: &&Operation| matches!(row.action.as_str(), "content.mend" | "content.mended");
        Ok(rows.iter().find(mended).map(|row| row.action.clone()))
    });
    mended.await.unwrap();
    cluster.controller().stop(WORK_WAIT_MAX).await.unwrap();
    let checked = cluster.hearth_controller(&["fsck", "--deep"]).unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_a_content_object_is_made_good_from_the_original() {
    let (mut cluster, image, file) = imported(1, Extra::default(), 301).await;
    let object = stored(&cluster, &image, "");
    flip(&object, std::fs::metadata(&object).unwrap().len() / 2);
    warm(&cluster, &image, 0, &file).await;
    is_mended(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_a_content_object_is_made_good_from_an_agent_without_the_original() {
    let extra = Extra { controller: "keep_originals = false\n".into(), ..Extra::default() };
    let (mut cluster, image, file) = imported(2, extra, 302).await;
    warm(&cluster, &image, 0, &file).await;
    let object = stored(&cluster, &image, "");
    flip(&object, std::fs::metadata(&object).unwrap().len() / 2);
    warm(&cluster, &image, 1, &file).await;
    is_mended(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_a_manifest_of_the_controller_is_made_good() {
    let (mut cluster, image, file) = imported(1, Extra::default(), 303).await;
    // Open files are read once; a restarted controller reads them again.
    cluster.controller().stop(WORK_WAIT_MAX).await.unwrap();
    let manifest = stored(&cluster, &image, ".manifest");
    flip(&manifest, std::fs::metadata(&manifest).unwrap().len() / 2);
    cluster.start_controller().await.unwrap();
    warm(&cluster, &image, 0, &file).await;
    is_mended(&mut cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_a_cached_file_is_found_by_verify_and_fetched_again() {
    let (cluster, image, file) = imported(1, Extra::default(), 304).await;
    warm(&cluster, &image, 0, &file).await;
    let copy = cluster.cached_file(&image, 0).unwrap();
    let good = cluster.hearth_agent(0, &["verify", "a"]).unwrap();
    assert!(good.status.success(), "{good:?}");
    // Somewhere in a planted file: the noise of one is never zero for long.
    flip(&copy, late_data(&copy));
    let bad = cluster.hearth_agent(0, &["verify", "a"]).unwrap();
    let said = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert_eq!(bad.status.code(), Some(4), "{said}");
    assert!(said.contains("damaged") && said.contains("no longer handed out"), "{said}");
    // From here on a path is given only for a right file.
    let path = cluster.hearth_agent(0, &["path", "a", "--wait", "120"]).unwrap();
    assert!(path.status.success(), "{path:?}");
    disk::same(Path::new(String::from_utf8(path.stdout).unwrap().trim_end()), &file).unwrap();
    cluster.wait_entry(image.id, 0, EntryStatus::Active).await.unwrap();
}

/// Offset of a byte in the last block without a zero byte, or else in the last one that is not all zeros: late in the file,
/// behind the file system's tables.
fn late_data(path: &Path) -> u64 {
    let bytes = std::fs::read(path).unwrap();
    let block = bytes.chunks(4096).rposition(|block| block.iter().all(|byte| *byte != 0));
    let block = block.unwrap_or_else(|| bytes.chunks(4096).rposition(|b| b.iter().any(|x| *x != 0)).unwrap());
    block as u64 * 4096 + 100
}

/// Flips a byte of a file of a killed agent, so many eighths into what is used of it, and starts the agent again.
async fn flip_while_dead(cluster: &mut Cluster, path: &Path, eighths: u64) {
    cluster.kill_agent(0).unwrap();
    let used = std::fs::read(path).unwrap().iter().rposition(|byte| *byte != 0).unwrap() as u64;
    flip(path, used * eighths / 8);
    cluster.start_agent(0).unwrap();
    wait::until("the agent answers", WORK_WAIT_MAX, async || {
        cluster.agent(0).check_alive()?;
        Ok(cluster.hearth_agent(0, &["leases"])?.status.success())
    })
    .await
    .unwrap();
}

/// The agent gives a path, within a while, and it is that of a right file.
fn path_is_right(cluster: &Cluster, file: &Path) {
    let path = cluster.hearth_agent(0, &["path", "a", "--wait", "120"]).unwrap();
    assert!(path.status.success(), "{path:?}");
    disk::same(Path::new(String::from_utf8(path.stdout).unwrap().trim_end()), file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_a_manifest_of_an_agent_gives_no_wrong_answer_and_is_made_good() {
    let (mut cluster, image, file) = imported(1, Extra::default(), 305).await;
    warm(&cluster, &image, 0, &file).await;
    let meta = cluster.agent_dir(0).join("cache/meta");
    let manifest = meta.join(format!("{}.manifest", image.content.unwrap()));
    for eighths in [0, 2, 4, 7] {
        flip_while_dead(&mut cluster, &manifest, eighths).await;
        path_is_right(&cluster, &file);
        // The file was believed by its row in the index, or fetched again; a hash needs the manifest in any case.
        let verified = cluster.hearth_agent(0, &["verify", "a"]).unwrap();
        assert!(matches!(verified.status.code(), Some(0 | 4)), "{verified:?}");
        path_is_right(&cluster, &file);
        let verified = cluster.hearth_agent(0, &["verify", "a"]).unwrap();
        assert_eq!(verified.status.code(), Some(0), "{eighths}: {verified:?}");
    }
    cluster.wait_online(1).await.unwrap();
    cluster.wait_entry(image.id, 0, EntryStatus::Active).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_sled_of_an_agent_gives_no_wrong_answer_and_loses_no_lease() {
    let (mut cluster, image, file) = imported(1, Extra::default(), 306).await;
    warm(&cluster, &image, 0, &file).await;
    let leased = cluster.hearth_agent(0, &["lease", "a", "vm-1"]).unwrap();
    let lease = String::from_utf8(leased.stdout).unwrap().lines().next().unwrap().to_owned();
    let sled = cluster.agent_dir(0).join("cache/db/db");
    for eighths in [0, 1, 3, 6] {
        flip_while_dead(&mut cluster, &sled, eighths).await;
        path_is_right(&cluster, &file);
        let leases = cluster.hearth_agent(0, &["leases"]).unwrap();
        assert!(String::from_utf8_lossy(&leases.stdout).contains(&lease), "{leases:?}");
    }
    cluster.wait_online(1).await.unwrap();
    cluster.wait_entry(image.id, 0, EntryStatus::Active).await.unwrap();
}
