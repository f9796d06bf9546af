//! The controller away for a minute, and what hosts do meanwhile.
//!
//! **Why real time here.** The claim is about a minute: timers of sessions, keep-alive and reconnects must have run.

use std::time::Duration;

use hearth_agent::local::message::{Code, EntryRow, Reply, Request};
use hearth_protocol::api::cache::{CacheEntry, Keep, Targets};
use hearth_protocol::api::image::Image;
use hearth_protocol::api::location::Location;
use hearth_protocol::api::prewarm::{Prewarm, PrewarmCreate};
use hearth_protocol::words::{ConsumerKind, EntryStatus, PrewarmState};
use hearth_tests::cluster::{Cluster, WORK_WAIT_MAX, agent_name};
use hearth_tests::{disk, wait};
use nix::sys::signal::Signal;

/// For how long nobody hears of the controller.
const AWAY: Duration = Duration::from_secs(60);
/// Longest pause of the agents between two tries, and a handshake.
const BACK_MAX: Duration = Duration::from_secs(25);
/// Cap of the job that is under way: longer than the minute alone.
const SLOW_BYTES_PER_S: u64 = 256 << 10;

/// The rows of `status` on host 1.
fn rows(cluster: &Cluster) -> (String, Vec<EntryRow>) {
    match cluster.ask_agent(0, &Request::Status { target: None }).unwrap() {
        Reply::Status(status) => (status.controller, status.entries),
        other => panic!("{other:?}"),
    }
}

fn row(rows: &[EntryRow], image: &Image) -> Option<EntryRow> {
    rows.iter().find(|row| Some(row.content) == image.content).cloned()
}

fn lease(cluster: &Cluster, image: &Image, consumer: &str) -> String {
    let request = Request::Lease {
        target: image.name.clone(),
        kind: ConsumerKind::Vm,
        consumer: consumer.into(),
        wait_s: 0,
    };
    match cluster.ask_agent(0, &request).unwrap() {
        Reply::Lease { lease, .. } => lease.lease.to_string(),
        other => panic!("{other:?}"),
    }
}

async fn job(cluster: &Cluster, image: &Image, keep: Keep, rate_bytes_per_s: Option<u64>) -> Prewarm {
    let body = PrewarmCreate {
        image: Some(image.id),
        host_image: None,
        targets: Targets { all: true, ..Targets::default() },
        priority: None,
        deadline: None,
        start: None,
        rate_bytes_per_s,
        keep,
        dry_run: false,
    };
    cluster.api.post("/prewarms", &body).await.unwrap()
}

/// Held and warm, unheld and warm, under way.
async fn three_images(cluster: &Cluster) -> ([Image; 3], Prewarm) {
    let mut images = Vec::new();
    for (name, files) in [("held", 8), ("unheld", 9), ("moving", 16)] {
        let file = cluster.dir().join(format!("{name}.raw"));
        disk::ext4(&file, 64, files, 200 + u64::from(files)).unwrap();
        images.push(cluster.import(&file, name).await.unwrap());
    }
    let images: [Image; 3] = images.try_into().unwrap();
    for (image, keep) in [(&images[0], Keep::Pinned), (&images[1], Keep::Seconds(1))] {
        let warm = job(cluster, image, keep, None).await;
        assert_eq!(cluster.prewarm_ended(&warm).await.unwrap().prewarm.state, PrewarmState::Done);
    }
    wait::until("the short hold has ended on host 1", WORK_WAIT_MAX, async || {
        let held = row(&rows(cluster).1, &images[1]).map(|row| row.hold);
        Ok(held == Some(hearth_protocol::message::control::Hold::Released))
    })
    .await
    .unwrap();
    let moving = job(cluster, &images[2], Keep::default(), Some(SLOW_BYTES_PER_S)).await;
    cluster.wait_entry(images[2].id, 0, EntryStatus::Caching).await.unwrap();
    (images, moving)
}

/// What a host can do without a controller.
fn use_host(cluster: &Cluster, [held, _, moving]: &[Image; 3], vm: u32) {
    let (_, rows) = rows(cluster);
    let copy = row(&rows, held).unwrap();
    assert_eq!(copy.status, "active");
    let path = cluster.hearth_agent(0, &["path", "held"]).unwrap();
    assert!(path.status.success(), "{path:?}");
    let path = String::from_utf8(path.stdout).unwrap();
    assert!(std::path::Path::new(path.trim_end()).is_file(), "{path}");
    let lease = lease(cluster, held, &format!("vm-{vm}"));
    let released = cluster.hearth_agent(0, &["release", &lease]).unwrap();
    assert!(released.status.success(), "{released:?}");
    let kept = cluster.ask_agent(0, &Request::Evict { target: held.name.clone() }).unwrap_err();
    assert_eq!(kept.code, Code::InUse, "{kept:?}");
    let copy = row(&rows, moving).unwrap();
    assert!(copy.status == "caching" && copy.path.is_none(), "{copy:?}");
}

/// Proves CA-7, CA-8.
#[tokio::test(flavor = "multi_thread")]
async fn hosts_work_on_without_a_controller_and_are_shown_rightly_when_it_is_back() {
    let mut cluster = Cluster::start(2).await.unwrap();
    let (images, moving) = three_images(&cluster).await;
    let [held, unheld, _] = &images;
    // Stopped, not killed: its sockets stay open and nobody is told.
    cluster.controller().signal(Signal::SIGSTOP).unwrap();
    let began = wait::monotonic();
    let kept = lease(&cluster, held, "vm-kept");
    // By its content: names come with the plan, and nobody plans this one any more.
    let evicted = cluster.ask_agent(0, &Request::Evict { target: unheld.content.unwrap().to_string() });
    evicted.unwrap_or_else(|refusal| panic!("an unheld copy can go: {refusal:?}"));
    for vm in 0.. {
        use_host(&cluster, &images, vm);
        if began.elapsed() >= AWAY {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let link = rows(&cluster).0;
    assert!(link.starts_with("not connected: "), "{link}");
    cluster.controller().signal(Signal::SIGCONT).unwrap();
    let back = wait::monotonic();
    wait::until("both hosts are back, and shown as they are", BACK_MAX, async || {
        let locations: Vec<Location> = cluster.api.list("/locations").await?;
        let shown = cluster.entries(unheld.id).await?;
        let wrong =
            |entry: &CacheEntry| entry.location_name == agent_name(0) && entry.status == EntryStatus::Active;
        Ok(locations.iter().all(|location| location.online && location.last_seen_at.is_some())
            && rows(&cluster).0 == "connected"
            && !shown.iter().any(wrong))
    })
    .await
    .unwrap();
    println!("back after {:.1} s", back.elapsed().as_secs_f64());
    let entries = cluster.entries(held.id).await.unwrap();
    assert!(entries.len() == 2 && entries.iter().all(|e| e.status == EntryStatus::Active), "{entries:#?}");
    wait::until("the lease of the minute is shown", BACK_MAX, async || {
        let entries = cluster.entries(held.id).await?;
        Ok(entries[0].used_by.iter().map(|user| user.name.as_str()).eq(["vm-kept"]))
    })
    .await
    .unwrap();
    assert!(cluster.hearth_agent(0, &["release", &kept]).unwrap().status.success());
    let ended = cluster.prewarm_ended(&moving).await.unwrap();
    assert_eq!(ended.prewarm.state, PrewarmState::Done, "{ended:#?}");
    for (image, name) in [(held, "held"), (&images[2], "moving")] {
        for index in 0..2 {
            let source = cluster.dir().join(format!("{name}.raw"));
            disk::same(&cluster.cached_file(image, index).unwrap(), &source).unwrap();
        }
    }
}
