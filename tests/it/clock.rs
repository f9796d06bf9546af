//! Wall clocks that jump under running daemons: sessions, holds and leases do not notice, and people are told.

use hearth_agent::local::message::{Reply, Request};
use hearth_protocol::api::cache::{Keep, Targets};
use hearth_protocol::api::image::Image;
use hearth_protocol::words::{ConsumerKind, EntryStatus};
use hearth_tests::cluster::{Cluster, Extra, START_WAIT_MAX, WORK_WAIT_MAX, agent_name};
use hearth_tests::wall_clock::{DAY_S, HOUR_S, WallClock, YEAR_S};
use hearth_tests::{disk, wait};
use reqwest::Method;

const JUMPS_S: [i64; 6] = [HOUR_S, -HOUR_S, DAY_S, -DAY_S, YEAR_S, -YEAR_S];

async fn image(cluster: &Cluster, name: &str, files: u32, seed: u64) -> Image {
    let file = cluster.dir().join(format!("{name}.raw"));
    disk::ext4(&file, 64, files, seed).unwrap();
    cluster.import(&file, name).await.unwrap()
}

fn here() -> Targets {
    Targets { to: vec![agent_name(0)], ..Targets::default() }
}

/// A cluster whose clocks can be set, with one agent whose cache has room for one large image and a small one.
async fn cluster() -> Cluster {
    let extra = Extra { agent: "budget = \"36 MiB\"\n".into(), ..Extra::default() };
    let mut cluster = Cluster::start_with(0, extra).await.unwrap();
    cluster.movable_clocks();
    cluster.kill_controller().unwrap();
    cluster.start_controller().await.unwrap();
    cluster.enrol(1).await.unwrap();
    cluster
}

/// An image that has no room unless a held one makes way: a try, and its end.
async fn press(cluster: &Cluster, large: &Image) {
    let job = cluster.prewarm(large.id, here(), Keep::default()).await.unwrap();
    let entry = cluster.wait_entry(large.id, 0, EntryStatus::CacheFail).await.unwrap();
    assert!(entry.reason.starts_with("no_space: "), "{entry:#?}");
    cluster.api.act(Method::POST, &format!("/prewarms/{}/cancel", job.id)).await.unwrap();
    wait::until("the wish is gone", WORK_WAIT_MAX, async || Ok(cluster.entries(large.id).await?.is_empty()))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_jump_end_no_session_no_hold_and_no_lease() {
    let cluster = cluster().await;
    let (held, leased) = (image(&cluster, "held", 20, 501).await, image(&cluster, "leased", 2, 502).await);
    let large = image(&cluster, "large", 20, 503).await;
    for (image, keep) in [(&held, Keep::Seconds(1800)), (&leased, Keep::Seconds(1))] {
        let job = cluster.prewarm(image.id, here(), keep).await.unwrap();
        cluster.prewarm_ended(&job).await.unwrap();
    }
    let lease = Request::Lease {
        target: leased.content.unwrap().to_string(),
        kind: ConsumerKind::Vm,
        consumer: "vm-1".into(),
        wait_s: 30,
    };
    assert!(matches!(cluster.agent_ask(0, &lease).unwrap(), Reply::Lease { .. }));
    press(&cluster, &large).await;

    let clocks = [cluster.agent_clock(0).unwrap(), cluster.controller_clock().unwrap()];
    for (whose, clock) in ["agent", "controller"].iter().zip(&clocks) {
        for jump_s in JUMPS_S {
            clock.set(jump_s).unwrap();
            // Both daemons work with that time: the agent plans evictions, the controller looks for holds that ended.
            press(&cluster, &large).await;
            for image in [&held, &leased] {
                let path = cluster.cached_file(image, 0).unwrap();
                assert!(path.exists(), "{} was evicted: the {whose}'s clock is {jump_s} s off", image.name);
            }
            let entry = cluster.entries(held.id).await.unwrap().remove(0);
            assert_eq!(entry.status, EntryStatus::Active, "{entry:#?}");
            assert!(entry.held_until.is_some(), "no hold: the {whose}'s clock is {jump_s} s off: {entry:#?}");
            let Reply::Leases { leases } = cluster.agent_ask(0, &Request::Leases {}).unwrap() else {
                panic!("no list of leases");
            };
            assert_eq!(leases.len(), 1, "the {whose}'s clock is {jump_s} s off");
            clock.set(0).unwrap();
        }
    }
    let log = cluster.agent_log(0);
    assert_eq!(log.matches("session is up").count(), 1, "the session lived through all of it: {log}");
    assert!(!log.contains("our certificate has ended"), "{log}");
    for log in [log, cluster.controller_log()] {
        assert!(log.contains("the wall clock was set ahead"), "nobody is told: {log}");
        assert!(log.contains("the wall clock was set back"), "nobody is told: {log}");
    }
}

/// Starts the agent with a clock that is off, and waits until its log and its status say so.
async fn told(cluster: &mut Cluster, clock: &WallClock, offset_s: i64, expected: &str) {
    clock.set(offset_s).unwrap();
    cluster.kill_agent(0).unwrap();
    let begun = cluster.agent_log(0).len();
    cluster.start_agent(0).unwrap();
    wait::until(&format!("the agent at {offset_s} s says {expected:?}"), START_WAIT_MAX, async || {
        let log = cluster.agent_log_from(0, begun);
        Ok(log.contains(expected) && cluster.agent_status(0).await?.controller.contains(expected))
    })
    .await
    .unwrap_or_else(|error| panic!("{error}: {}", cluster.agent_log_from(0, begun)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_wrong_clock_gets_no_session_and_says_that_the_clock_is_wrong() {
    let mut cluster = cluster().await;
    let clock = cluster.agent_clock(0).unwrap();
    told(&mut cluster, &clock, HOUR_S / 2, "allowed are 300 s: set both by NTP").await;
    told(&mut cluster, &clock, -HOUR_S / 2, "allowed are 300 s: set both by NTP").await;
    for offset_s in [-DAY_S, -YEAR_S, YEAR_S] {
        told(&mut cluster, &clock, offset_s, "compare the clocks of both (NTP)").await;
    }
    clock.set(0).unwrap();
    cluster.kill_agent(0).unwrap();
    cluster.start_agent(0).unwrap();
    cluster.wait_online(1).await.unwrap();
}
