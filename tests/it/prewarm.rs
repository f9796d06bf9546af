//! Every verb and option of `hearth prewarm`, with real agents: what it prints, how it exits, what becomes of the copies.

use std::time::Duration;

use hearth_protocol::api::cache::CacheEntry;
use hearth_protocol::api::image::Image;
use hearth_protocol::api::prewarm::{Prewarm, PrewarmDetails};
use hearth_protocol::words::{EntryStatus, PrewarmState, Priority};
use hearth_tests::cluster::{Cluster, Extra, WORK_WAIT_MAX};
use hearth_tests::{disk, wait};
use serde::de::DeserializeOwned;

/// Runs `hearth`; it must exit with `code`. What it printed, stdout then stderr.
#[track_caller]
fn run(cluster: &Cluster, args: &[&str], code: i32) -> String {
    let output = cluster.hearth(args).unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(code), "hearth {args:?}: {text}");
    text
}

/// The same with `-o json`, exit code 0.
#[track_caller]
fn json<T: DeserializeOwned>(cluster: &Cluster, args: &[&str]) -> T {
    let output = cluster.hearth(&[args, &["-o", "json"]].concat()).unwrap();
    assert_eq!(output.status.code(), Some(0), "hearth {args:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[track_caller]
fn is(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}

async fn image(cluster: &Cluster, name: &str, files: u32, seed: u64) -> Image {
    let file = cluster.dir().join(format!("{name}.raw"));
    disk::ext4(&file, 64, files, seed).unwrap();
    cluster.import(&file, name).await.unwrap()
}

async fn details(cluster: &Cluster, job: &Prewarm) -> PrewarmDetails {
    cluster.api.get(&format!("/prewarms/{}", job.id)).await.unwrap()
}

async fn ends_as(cluster: &Cluster, job: &Prewarm, state: PrewarmState) -> PrewarmDetails {
    let ended = cluster.prewarm_ended(job).await.unwrap();
    assert_eq!(ended.prewarm.state, state, "{ended:#?}");
    ended
}

async fn one_active(cluster: &Cluster, job: &Prewarm) {
    wait::until("one host counts as active", WORK_WAIT_MAX, async || {
        Ok(details(cluster, job).await.prewarm.active == 1)
    })
    .await
    .unwrap();
}

#[track_caller]
fn time(text: Option<&str>) -> jiff::Timestamp {
    text.expect("there is a time").parse().unwrap()
}

async fn at(cluster: &Cluster, image: &Image, host: &str) -> Option<CacheEntry> {
    cluster.entries(image.id).await.unwrap().into_iter().find(|entry| entry.location_name == host)
}

/// Proves CA-5.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_job_begins_nothing_and_a_resumed_one_ends() {
    let mut cluster = Cluster::start(2).await.unwrap();
    let (a, b) = (image(&cluster, "a", 4, 401).await, image(&cluster, "b", 4, 402).await);
    cluster.kill_agent(1).unwrap();
    let job: Prewarm = json(&cluster, &["prewarm", "create", "a", "--all"]);
    one_active(&cluster, &job).await;
    is(&run(&cluster, &["prewarm", "pause", "a"], 0), &["paused", "1 of 2"]);
    is(&run(&cluster, &["prewarm", "pause", "a"], 4), &["error:"]);
    // The second host comes back and does other work, but none of this.
    cluster.start_agent(1).unwrap();
    cluster.wait_online(2).await.unwrap();
    run(&cluster, &["prewarm", "create", "b", "--to", "host-2", "--wait"], 0);
    assert_eq!(details(&cluster, &job).await.prewarm.state, PrewarmState::Paused);
    assert!(at(&cluster, &a, "host-2").await.is_none_or(|entry| entry.status == EntryStatus::Queued));
    assert!(!cluster.cached_file(&a, 1).unwrap().exists());
    assert!(cluster.cached_file(&b, 1).unwrap().exists());
    is(&run(&cluster, &["prewarm", "list"], 0), &["paused", "1/2", "done"]);

    let resumed: Prewarm = json(&cluster, &["prewarm", "resume", "a"]);
    assert_eq!((resumed.id, resumed.state), (job.id, PrewarmState::Running));
    is(&run(&cluster, &["prewarm", "show", "a", "--watch"], 0), &["2 of 2 active", "host-1", "host-2"]);
    ends_as(&cluster, &job, PrewarmState::Done).await;
    for verb in ["pause", "resume", "cancel"] {
        is(&run(&cluster, &["prewarm", verb, "a"], 4), &["error:", "done"]);
    }
    run(&cluster, &["prewarm", "pause", "nothing"], 3);
}

/// Proves CA-5.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_stops_its_transfers_and_leaves_what_is_there_without_a_hold() {
    let mut cluster = Cluster::start(2).await.unwrap();
    let a = image(&cluster, "a", 8, 411).await;
    run(&cluster, &["prewarm", "create", "a", "--to", "host-1", "--keep", "1s", "--wait"], 0);
    let slow = ["prewarm", "create", "a", "--all", "--rate", "64KiB"];
    let job: Prewarm = json(&cluster, &slow);
    assert_eq!(job.rate_bytes_per_s, Some(64 << 10));
    cluster.wait_entry(a.id, 1, EntryStatus::Caching).await.unwrap();
    one_active(&cluster, &job).await;
    is(&run(&cluster, &["prewarm", "cancel", "a"], 0), &["cancelled", "1 of 2"]);
    wait::until("the unfinished copy is gone", WORK_WAIT_MAX, async || {
        let staged = std::fs::read_dir(cluster.agent_dir(1).join("cache/staging"))?.count();
        Ok(staged == 0 && at(&cluster, &a, "host-2").await.is_none())
    })
    .await
    .unwrap();
    wait::until("the finished one is unheld cache", WORK_WAIT_MAX, async || {
        let entry = at(&cluster, &a, "host-1").await.expect("the copy stays");
        Ok(entry.status == EntryStatus::Active && entry.origins.is_empty() && entry.held_until.is_none())
    })
    .await
    .unwrap();
    // Two jobs of this image have ended: its name means the newest.
    is(&run(&cluster, &["prewarm", "show", "a"], 0), &["cancelled", "host-2"]);
    let id = job.id.to_string();
    is(&run(&cluster, &["prewarm", "show", &id], 0), &["cancelled", "host-2"]);
    run(&cluster, &["prewarm", "resume", &id], 4);
    // Whoever waits for it is told, and so is a script.
    let ended = run(&cluster, &["prewarm", "show", &id, "--watch"], 7);
    is(&ended, &["error: the job ended cancelled"]);
    assert!(!ended.contains("hint:"), "there is nothing to mend: {ended}");
    cluster.agent(1).check_alive().unwrap();
}

/// Proves CA-5.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_takes_up_the_failed_hosts_and_no_others() {
    let cluster = Cluster::start(2).await.unwrap();
    let a = image(&cluster, "a", 4, 421).await;
    run(&cluster, &["location", "drain", "host-2"], 0);
    let create = ["prewarm", "create", "a", "--to", "host-1,host-2", "--wait"];
    let text = run(&cluster, &create, 7);
    is(
        &text,
        &["1 of 2 active", "1 failed", "draining", "error: the job ended failed", "hearth prewarm retry"],
    );
    let job: PrewarmDetails = json(&cluster, &["prewarm", "show", "a"]);
    assert_eq!((job.prewarm.state, job.prewarm.failed), (PrewarmState::Failed, 1), "{job:#?}");
    let failed = job.locations.iter().find(|host| host.location_name == "host-2").unwrap();
    assert_eq!(failed.status, EntryStatus::CacheFail, "{failed:#?}");
    let done_at = |job: &PrewarmDetails| {
        job.locations.iter().find(|host| host.location_name == "host-1").unwrap().done_at.clone()
    };
    run(&cluster, &["location", "undrain", "host-2"], 0);
    let again: Prewarm = json(&cluster, &["prewarm", "retry", "a"]);
    assert_eq!((again.id, again.state, again.failed), (job.prewarm.id, PrewarmState::Running, 0));
    let ended = ends_as(&cluster, &again, PrewarmState::Done).await;
    assert_eq!(done_at(&ended), done_at(&job), "the first host was not touched");
    assert!(cluster.cached_file(&a, 1).unwrap().exists());
    run(&cluster, &["prewarm", "retry", "a"], 4);
}

/// Proves CA-5.
#[tokio::test(flavor = "multi_thread")]
async fn demand_comes_before_a_deadline_before_bulk() {
    let extra = Extra { controller: "source_transfers = 1\n".into(), ..Extra::default() };
    let cluster = Cluster::start_with(1, extra).await.unwrap();
    for (name, seed) in [("first", 431), ("bulk", 432), ("dated", 433), ("urgent", 434)] {
        image(&cluster, name, 4, seed).await;
    }
    // One place at the source: this one holds it while the others queue up, the least urgent first.
    let first: Prewarm = json(&cluster, &["prewarm", "create", "first", "--all", "--rate", "512KiB"]);
    let bulk: Prewarm = json(&cluster, &["prewarm", "create", "bulk", "--all"]);
    let dated: Prewarm = json(&cluster, &["prewarm", "create", "dated", "--all", "--deadline", "2h"]);
    let urgent: Prewarm = json(&cluster, &["prewarm", "create", "urgent", "--all", "--priority", "demand"]);
    assert_eq!(details(&cluster, &bulk).await.prewarm.done_bytes, 0, "it has begun already");
    let priorities = [&bulk, &dated, &urgent].map(|job| job.priority);
    assert_eq!(priorities, [Priority::Bulk, Priority::Deadline, Priority::Demand]);
    assert!(dated.deadline.is_some());
    let mut order = Vec::new();
    for job in [&urgent, &dated, &bulk] {
        order.push(time(ends_as(&cluster, job, PrewarmState::Done).await.locations[0].done_at.as_deref()));
    }
    assert!(order.is_sorted(), "urgent, dated, bulk were there at {order:?}");
    ends_as(&cluster, &first, PrewarmState::Done).await;
    is(&run(&cluster, &["prewarm", "show", "dated"], 0), &["deadline", "host-1", "active"]);
    let past = ["prewarm", "create", "bulk", "--all", "--deadline", "2020-01-01T00:00:00Z"];
    is(&run(&cluster, &past, 2), &["deadline"]);
    let undated = ["prewarm", "create", "bulk", "--all", "--priority", "deadline"];
    is(&run(&cluster, &undated, 2), &["priority deadline needs a deadline"]);
}

/// Proves CA-5.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_begins_at_its_start_time_moves_no_faster_than_its_rate_and_holds_as_long_as_asked() {
    let cluster = Cluster::start(2).await.unwrap();
    let a = image(&cluster, "a", 6, 441).await;
    let late =
        ["prewarm", "create", "a", "--to", "host-1", "--start", "4s", "--rate", "1MiB", "--keep", "2h"];
    let job: Prewarm = json(&cluster, &late);
    assert_eq!(job.state, PrewarmState::Scheduled);
    is(&run(&cluster, &["prewarm", "list"], 0), &["scheduled", "0/1"]);
    // The job for the other host is made later and is there first.
    run(&cluster, &["prewarm", "create", "a", "--to", "host-2", "--pin", "--wait"], 0);
    let ended = ends_as(&cluster, &job, PrewarmState::Done).await;
    let (start, done) = (time(Some(&ended.prewarm.start)), time(ended.prewarm.finished_at.as_deref()));
    let took = Duration::try_from(done.duration_since(start)).unwrap();
    // The cap may be a second ahead; the controller notes the end a little late.
    let least = Duration::from_secs(ended.prewarm.moved_bytes >> 20).saturating_sub(Duration::from_secs(1));
    assert!(ended.prewarm.moved_bytes > 2 << 20, "{ended:#?}");
    assert!(took >= least, "{} bytes in {took:?}", ended.prewarm.moved_bytes);
    let held = at(&cluster, &a, "host-1").await.unwrap();
    let until = time(held.held_until.as_deref());
    let kept = until.duration_since(done).as_secs();
    assert!(!held.pinned && (7190..=7210).contains(&kept), "kept for {kept} s: {held:#?}");
    let pinned = at(&cluster, &a, "host-2").await.unwrap();
    assert!(pinned.pinned && pinned.held_until.is_none(), "{pinned:#?}");
    run(&cluster, &["prewarm", "create", "a", "--all", "--keep", "1h", "--pin"], 2);
    is(&run(&cluster, &["prewarm", "create", "a", "--all", "--rate", "1KB"], 2), &["65536"]);
}

/// Proves CA-2, CA-10.
#[tokio::test(flavor = "multi_thread")]
async fn targets_are_named_selected_or_all_and_a_dry_run_changes_nothing() {
    let cluster = Cluster::start(3).await.unwrap();
    let a = image(&cluster, "a", 4, 451).await;
    // Hosts 1 and 3 are in z1, host 2 in z2.
    let plan = run(&cluster, &["prewarm", "create", "a", "--all", "--dry-run"], 0);
    is(&plan, &["have it         0 locations", "fetch it        3 locations", "cannot          0 locations"]);
    assert!(cluster.entries(a.id).await.unwrap().is_empty());
    is(&run(&cluster, &["prewarm", "list", "-o", "json"], 0), &["\"items\": []"]);
    run(&cluster, &["prewarm", "create", "a", "--all", "--dry-run", "--wait"], 2);

    let text = run(&cluster, &["prewarm", "create", "a", "--select", "zone=z2,name=host-*", "--wait"], 0);
    is(&text, &["1 of 1 active", "host-2"]);
    let hosts = |entries: Vec<CacheEntry>| -> Vec<String> {
        entries.into_iter().map(|entry| entry.location_name).collect()
    };
    assert_eq!(hosts(cluster.entries(a.id).await.unwrap()), ["host-2"]);
    is(&run(&cluster, &["prewarm", "create", "a", "--to", "host-1", "--wait"], 0), &["1 of 1 active"]);
    assert_eq!(hosts(cluster.entries(a.id).await.unwrap()), ["host-1", "host-2"]);
    run(&cluster, &["location", "drain", "host-3"], 0);
    let plan = run(&cluster, &["prewarm", "create", "a", "--to", "host-1,host-3", "--dry-run"], 0);
    is(&plan, &["have it         1 location", "cannot          1 location", "host-3", "drain"]);
    run(&cluster, &["location", "undrain", "host-3"], 0);
    let all: Prewarm = json(&cluster, &["prewarm", "create", "a", "--all"]);
    assert_eq!(ends_as(&cluster, &all, PrewarmState::Done).await.prewarm.active, 3);
    assert_eq!(hosts(cluster.entries(a.id).await.unwrap()), ["host-1", "host-2", "host-3"]);

    let create = |more: &[&str], code| run(&cluster, &[&["prewarm", "create", "a"][..], more].concat(), code);
    is(&create(&["--to", "host-9"], 3), &["host-9"]);
    is(&create(&["--select", "zone=z9"], 2), &["no location matches"]);
    is(&create(&["--select", "colour=red"], 2), &["unknown field"]);
    create(&[], 2);
    create(&["--all", "--to", "host-1"], 2);
}
