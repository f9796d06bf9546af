//! Full disks, as small file systems that really are full.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt as _;
use hearth_agent::local::message::{Reply, Request};
use hearth_protocol::api::cache::{Keep, Targets};
use hearth_protocol::api::image::{Image, ImageCreate};
use hearth_protocol::api::prewarm::{Prewarm, PrewarmCreate};
use hearth_protocol::words::{EntryStatus, ImageStatus, Priority};
use hearth_tests::api::{Refusal, checked, refused};
use hearth_tests::cluster::{Cluster, Extra, WORK_WAIT_MAX, agent_name};
use hearth_tests::small_disk::where_mounts_work;
use hearth_tests::{disk, wait};
use reqwest::Method;

/// What the controller keeps free for its catalog.
const FLOOR_BYTES: u64 = 256 << 20;
/// State folder of the controller: the floor and a little more.
const STATE_BYTES: u64 = FLOOR_BYTES + (288 << 20);
/// Cache of an agent, and the images that compete for it.
const CACHE_BYTES: u64 = 64 << 20;

async fn tight_controller() -> Cluster {
    let extra = Extra { controller_disk_bytes: Some(STATE_BYTES), ..Extra::default() };
    Cluster::start_with(0, extra).await.unwrap()
}

async fn created(cluster: &Cluster, name: &str) -> Image {
    let create = ImageCreate { name: name.to_owned(), ..ImageCreate::default() };
    cluster.api.post("/images", &create).await.unwrap()
}

async fn shown(cluster: &Cluster, image: &Image) -> Image {
    cluster.api.get(&format!("/images/{}", image.id)).await.unwrap()
}

/// The text says how much is needed and how much is free, in bytes.
#[track_caller]
fn names_needed_and_free(text: &str) {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|word| word.len() > 3).count();
    let free = text.contains(" free");
    assert!(numbers >= 1 && text.contains("needed") && free, "no figures: {text}");
}

fn message(refusal: &Refusal) -> String {
    refusal.body.as_ref().map(|body| body.message.clone()).unwrap_or_default()
}

/// Files in a folder of the state. Its folders may be removed meanwhile: that is what the callers wait for.
fn files(cluster: &Cluster, folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![cluster.state_dir().join(folder)];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.unwrap(),
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_disk_that_is_full_or_fills_during_an_upload_refuses_with_figures_and_works_again() {
    if !where_mounts_work(
        "full_disk::a_controller_disk_that_is_full_or_fills_during_an_upload_refuses_with_figures_and_works_again",
    ) {
        return;
    }
    let cluster = tight_controller().await;
    let file = cluster.dir().join("a.raw");
    disk::ext4(&file, 64, 16, 401).unwrap();
    // Known beforehand: not one byte is taken.
    cluster.disk().fill(FLOOR_BYTES + (16 << 20)).unwrap();
    let image = created(&cluster, "a").await;
    let path = format!("/images/{}/file", image.id);
    let refusal = refused(cluster.api.put_file::<Image>(&path, &file).await);
    assert_eq!(refusal.status, 507, "{refusal}");
    names_needed_and_free(&message(&refusal));
    assert_eq!(shown(&cluster, &image).await.status, ImageStatus::Queued);
    // Found out in the middle: somebody else takes all there is while the bytes come.
    cluster.disk().relieve().unwrap();
    let (more, body) = tokio::sync::mpsc::channel::<std::io::Result<Vec<u8>>>(1);
    let body = futures::stream::unfold(body, |mut body| async { Some((body.recv().await?, body)) });
    let request = cluster.api.request(Method::PUT, &path).body(reqwest::Body::wrap_stream(body.boxed()));
    let sending = hearth_agent::task::spawn("upload", request.send());
    more.send(Ok(vec![7; 1 << 20])).await.unwrap();
    wait::until("the first bytes are on disk", WORK_WAIT_MAX, async || {
        Ok(files(&cluster, "originals").iter().any(|file| file.metadata().is_ok_and(|meta| meta.len() > 0)))
    })
    .await
    .unwrap();
    cluster.disk().fill(0).unwrap();
    while more.send(Ok(vec![7; 1 << 20])).await.is_ok() {}
    let answer = checked(sending.await.unwrap().unwrap()).await;
    let refusal = answer.unwrap_err().downcast::<Refusal>().unwrap();
    assert_eq!(refusal.status, 507, "{refusal}");
    names_needed_and_free(&message(&refusal));
    assert_eq!(files(&cluster, "originals"), [] as [PathBuf; 0], "the half that came is kept");
    // It goes on, and takes the same image once there is room.
    cluster.disk().relieve().unwrap();
    wait::until("the image can be sent again", WORK_WAIT_MAX, async || {
        Ok(shown(&cluster, &image).await.status == ImageStatus::Queued)
    })
    .await
    .unwrap();
    let _: Image = cluster.api.put_file(&path, &file).await.unwrap();
    wait::until("the image is active", WORK_WAIT_MAX, async || {
        Ok(shown(&cluster, &image).await.status == ImageStatus::Active)
    })
    .await
    .unwrap();
}

/// A qcow2 file whose raw disk has 96 MiB of data that pack well.
fn packed(dir: &Path) -> PathBuf {
    let (raw, file) = (dir.join("big.raw"), dir.join("big.qcow2"));
    let text = disk::file(1);
    std::fs::write(&raw, text.repeat(96)).unwrap();
    disk::convert(&raw, &file, "qcow2", &["-c"]).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_disk_that_fills_during_a_conversion_kills_the_import_with_figures_and_works_again() {
    if !where_mounts_work(
        "full_disk::a_controller_disk_that_fills_during_a_conversion_kills_the_import_with_figures_and_works_again",
    ) {
        return;
    }
    let cluster = tight_controller().await;
    let file = packed(cluster.dir());
    let image = created(&cluster, "big").await;
    let _: Image = cluster.api.put_file(&format!("/images/{}/file", image.id), &file).await.unwrap();
    wait::until("the conversion has begun to write", WORK_WAIT_MAX, async || {
        use std::os::unix::fs::MetadataExt as _;
        let staged = files(&cluster, "staging");
        Ok(staged
            .iter()
            .any(|file| file.ends_with("disk.raw") && file.metadata().is_ok_and(|m| m.blocks() > 0)))
    })
    .await
    .unwrap();
    // What is taken is taken for good, until the test gives it back.
    let filling = async {
        loop {
            cluster.disk().fill(0).unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let killed = wait::for_some("the conversion fails", WORK_WAIT_MAX, async || {
        // The database is on the same disk: the reason may come later.
        Ok(files(&cluster, "staging").is_empty().then_some(()))
    });
    tokio::select! {
        killed = killed => killed.unwrap(),
        () = filling => {}
    }
    let health = cluster.api.outside("/healthz").send().await.unwrap();
    assert!(health.status().is_success(), "{health:?}");
    cluster.disk().relieve().unwrap();
    let killed = wait::for_some("the image is killed", WORK_WAIT_MAX, async || {
        let image = shown(&cluster, &image).await;
        Ok((image.status == ImageStatus::Killed).then_some(image))
    })
    .await
    .unwrap();
    names_needed_and_free(&killed.reason);
    assert_eq!(files(&cluster, "staging"), [] as [PathBuf; 0]);
    assert_eq!(files(&cluster, "content/objects"), [] as [PathBuf; 0]);
    // Nothing was wrong with the file: it need not be sent again.
    cluster.api.act(Method::POST, &format!("/images/{}/retry", image.id)).await.unwrap();
    wait::until("the image is active", WORK_WAIT_MAX, async || {
        let image = shown(&cluster, &image).await;
        assert_ne!(image.status, ImageStatus::Killed, "{}", image.reason);
        Ok(image.status == ImageStatus::Active)
    })
    .await
    .unwrap();
}

fn pinned(image: &Image, rate_bytes_per_s: Option<u64>) -> PrewarmCreate {
    PrewarmCreate {
        image: Some(image.id),
        host_image: None,
        targets: Targets { all: true, ..Targets::default() },
        priority: None,
        deadline: None,
        start: None,
        rate_bytes_per_s,
        keep: Keep::Pinned,
        dry_run: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cache_says_what_is_needed_what_is_free_and_what_holds_the_rest() {
    if !where_mounts_work("full_disk::a_full_cache_says_what_is_needed_what_is_free_and_what_holds_the_rest")
    {
        return;
    }
    let agent = "budget = \"100%\"\nfloor = \"1 MiB\"\n".to_owned();
    let cluster =
        Cluster::start_with(1, Extra { agent, agent_disk_bytes: Some(CACHE_BYTES), ..Extra::default() });
    let cluster = cluster.await.unwrap();
    let mut images = Vec::new();
    for (name, seed) in [("first", 411), ("second", 412)] {
        let file = cluster.dir().join(format!("{name}.raw"));
        disk::ext4(&file, 64, 36, seed).unwrap();
        images.push(cluster.import(&file, name).await.unwrap());
    }
    let here = || Targets { to: vec![agent_name(0)], ..Targets::default() };
    let job = cluster.prewarm(images[0].id, here(), Keep::Pinned).await.unwrap();
    cluster.prewarm_ended(&job).await.unwrap();
    cluster.prewarm(images[1].id, here(), Keep::Pinned).await.unwrap();
    let full = cluster.wait_entry(images[1].id, 0, EntryStatus::CacheFail).await.unwrap();
    names_needed_and_free(&full.reason);
    let holder: String = images[0].content.unwrap().to_string().chars().take(16).collect();
    for expected in ["no_space", &holder, "pinned"] {
        assert!(full.reason.contains(expected), "{expected}: {}", full.reason);
    }
    assert!(full.next_try_at.is_some(), "{full:#?}");
    let Ok(Reply::Status(status)) = cluster.ask_agent(0, &Request::Status { target: None }) else {
        panic!("the agent does not answer");
    };
    assert_eq!(status.degraded, "", "a full disk is no broken one");
    let kept = cluster.wait_entry(images[0].id, 0, EntryStatus::Active).await.unwrap();
    assert!(kept.pinned, "{kept:#?}");
    // Room is made by the operator; a more urgent wish does not wait for the next try.
    let path = |image: &Image| format!("/cache/{}/{}", image.id, kept.location);
    cluster.api.act(Method::DELETE, &format!("{}?force=true", path(&images[0]))).await.unwrap();
    wait::until("the first copy is gone", WORK_WAIT_MAX, async || {
        Ok(cluster.entries(images[0].id).await?.is_empty())
    })
    .await
    .unwrap();
    let job = PrewarmCreate { priority: Some(Priority::Demand), ..pinned(&images[1], None) };
    let job: Prewarm = cluster.api.post("/prewarms", &job).await.unwrap();
    cluster.prewarm_ended(&job).await.unwrap();
    cluster.wait_entry(images[1].id, 0, EntryStatus::Active).await.unwrap();
    let file = cluster.dir().join("second.raw");
    disk::same(&cluster.cached_file(&images[1], 0).unwrap(), &file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_others_fill_during_a_fetch_fails_and_goes_on_when_there_is_room() {
    if !where_mounts_work(
        "full_disk::a_cache_that_others_fill_during_a_fetch_fails_and_goes_on_when_there_is_room",
    ) {
        return;
    }
    let agent = "budget = \"100%\"\nfloor = \"1 MiB\"\n".to_owned();
    let extra = Extra { agent, agent_disk_bytes: Some(CACHE_BYTES), ..Extra::default() };
    let cluster = Cluster::start_with(1, extra).await.unwrap();
    let file = cluster.dir().join("a.raw");
    disk::ext4(&file, 64, 40, 421).unwrap();
    let image = cluster.import(&file, "a").await.unwrap();
    let job: Prewarm = cluster.api.post("/prewarms", &pinned(&image, Some(4 << 20))).await.unwrap();
    wait::until("some of it is there", WORK_WAIT_MAX, async || {
        let entries = cluster.entries(image.id).await?;
        Ok(entries.iter().any(|entry| entry.status == EntryStatus::Caching && entry.percent >= 10))
    })
    .await
    .unwrap();
    cluster.disk().fill(0).unwrap();
    let full = cluster.wait_entry(image.id, 0, EntryStatus::CacheFail).await.unwrap();
    assert!(full.reason.contains("no_space") && full.next_try_at.is_some(), "{full:#?}");
    assert_eq!(cluster.objects(0).unwrap(), []);
    cluster.disk().relieve().unwrap();
    // By itself, at the next try: a minute later.
    cluster.prewarm_ended(&job).await.unwrap();
    cluster.wait_entry(image.id, 0, EntryStatus::Active).await.unwrap();
    disk::same(&cluster.cached_file(&image, 0).unwrap(), &file).unwrap();
}
