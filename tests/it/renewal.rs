//! Certificates over time: renewed while work runs, come back after days, given up after a month.

use std::process::Command;
use std::time::Duration;

use hearth_protocol::api::cache::{Keep, Targets};
use hearth_protocol::api::image::Image;
use hearth_protocol::api::location::{JoinTokenCreate, JoinTokenRecord, Location};
use hearth_protocol::api::prewarm::{Prewarm, PrewarmCreate, PrewarmDetails};
use hearth_protocol::words::{EntryStatus, PrewarmState};
use hearth_tests::cluster::{Cluster, Extra, START_WAIT_MAX, WORK_WAIT_MAX};
use hearth_tests::wall_clock::{DAY_S, HOUR_S};
use hearth_tests::{disk, programs, wait};
use reqwest::Method;

/// What "at once" may take: waiting for a turn on two shared cores, but less than the 36 s after which the agent speaks up by
/// itself where pulses are [`RARE_PULSES_SECONDS`] apart. So it was told.
const AT_ONCE: Duration = Duration::from_secs(20);
const RARE_PULSES_SECONDS: u32 = 45;
/// What the agent's log says when it renews in its session, and when it goes to the enrolment door for it.
const IN_SESSION: &str = "a new certificate is in use from the next connection on";
const AT_THE_DOOR: &str = "asking for a new one with the enrolled key";

async fn image(cluster: &Cluster, mib: u32, seed: u64) -> Image {
    let file = cluster.dir().join("a.raw");
    disk::ext4(&file, 64, mib, seed).unwrap();
    cluster.import(&file, "a").await.unwrap()
}

/// Both daemons end, the time becomes `offset_s`, and both start again.
async fn restart_at(cluster: &mut Cluster, offset_s: i64) {
    cluster.kill_agent(0).unwrap();
    cluster.kill_controller().unwrap();
    cluster.set_clocks(offset_s).unwrap();
    cluster.start_controller().await.unwrap();
    cluster.start_agent(0).unwrap();
}

async fn location(cluster: &Cluster) -> Location {
    cluster.api.list("/locations").await.unwrap().remove(0)
}

/// The part of the agent's log behind `from`.
fn log(cluster: &Cluster, from: usize) -> String {
    cluster.agent_log_from(0, from)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_past_half_of_its_life_is_renewed_in_the_session_and_work_goes_on() {
    let mut cluster = Cluster::start(1).await.unwrap();
    cluster.movable_clocks();
    let image = image(&cluster, 10, 301).await;
    let slow = PrewarmCreate {
        image: Some(image.id),
        host_image: None,
        targets: Targets { all: true, ..Targets::default() },
        priority: None,
        deadline: None,
        start: None,
        rate_bytes_per_s: Some(384 << 10),
        keep: Keep::Seconds(7 * 24 * 3600),
        dry_run: false,
    };
    let job: Prewarm = cluster.api.post("/prewarms", &slow).await.unwrap();
    let before = location(&cluster).await.certificate_ends_at.unwrap();
    let first = cluster.identity(0).unwrap();

    // Half of 24 h, and the whole of its jitter.
    restart_at(&mut cluster, 13 * HOUR_S + HOUR_S / 2).await;
    let begun = cluster.agent_log(0).len();
    wait::until("a new certificate is written down", START_WAIT_MAX, async || {
        Ok(location(&cluster).await.certificate_ends_at.is_some_and(|ends| ends > before))
    })
    .await
    .unwrap();
    let now: PrewarmDetails = cluster.api.get(&format!("/prewarms/{}", job.id)).await.unwrap();
    assert_eq!(now.prewarm.state, PrewarmState::Running, "the work was under way: {now:#?}");
    let ended = cluster.prewarm_ended(&job).await.unwrap();
    assert_eq!(ended.prewarm.state, PrewarmState::Done, "{ended:#?}");
    let said = log(&cluster, begun);
    assert_eq!(said.matches("session is up").count(), 1, "one session from begin to end: {said}");
    assert!(said.contains(IN_SESSION) && !said.contains(AT_THE_DOOR), "{said}");
    assert_ne!(cluster.identity(0).unwrap(), first, "the new certificate is on disk");

    // An hour after the first one's end the new one opens the door, and no other is needed.
    let begun = cluster.agent_log(0).len();
    restart_at(&mut cluster, 25 * HOUR_S).await;
    cluster.wait_online(1).await.unwrap();
    let said = log(&cluster, begun);
    assert!(!said.contains(AT_THE_DOOR), "{said}");
    // With the first one again, the agent knows that it has ended.
    cluster.kill_agent(0).unwrap();
    cluster.set_identity(0, &first).unwrap();
    let begun = cluster.agent_log(0).len();
    cluster.start_agent(0).unwrap();
    wait::until("the first certificate is not used", START_WAIT_MAX, async || {
        let said = log(&cluster, begun);
        Ok(said.contains(AT_THE_DOOR) && said.contains("session is up"))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_back_after_two_days_needs_no_token_and_after_a_month_it_does() {
    let mut cluster = Cluster::start(1).await.unwrap();
    cluster.movable_clocks();
    let image = image(&cluster, 4, 302).await;
    let everywhere = Targets { all: true, ..Targets::default() };
    let job = cluster.prewarm(image.id, everywhere, Keep::Pinned).await.unwrap();
    cluster.prewarm_ended(&job).await.unwrap();
    let id = location(&cluster).await.id;

    let begun = cluster.agent_log(0).len();
    restart_at(&mut cluster, 2 * DAY_S).await;
    cluster.wait_online(1).await.unwrap();
    assert!(log(&cluster, begun).contains(AT_THE_DOOR), "{}", log(&cluster, begun));
    let entry = cluster.wait_entry(image.id, 0, EntryStatus::Active).await.unwrap();
    assert!(entry.pinned && cluster.cached_file(&image, 0).unwrap().exists(), "{entry:#?}");

    // That certificate ended on the third day; 31 days after it the key alone is worth nothing.
    let begun = cluster.agent_log(0).len();
    restart_at(&mut cluster, 3 * DAY_S + 31 * DAY_S + HOUR_S).await;
    let refused = "ended more than 30 days ago: enrol with a join token (`hearth location token create`)";
    wait::until("the agent is refused", START_WAIT_MAX, async || Ok(log(&cluster, begun).contains(refused)))
        .await
        .unwrap();
    wait::until("its status says why", START_WAIT_MAX, async || {
        let said = cluster.agent_status(0).await?.controller;
        Ok(said.starts_with("DENIED") && said.contains(refused))
    })
    .await
    .unwrap();
    assert!(!location(&cluster).await.online);
    assert!(cluster.cached_file(&image, 0).unwrap().exists(), "the cache goes on serving the host");

    // With a token the same key is the same location, and its copies are its own.
    let body = JoinTokenCreate { uses: 1, ttl_s: 900, name_match: None, presets: [].into() };
    let made: JoinTokenRecord = cluster.api.post("/join-tokens", &body).await.unwrap();
    cluster.kill_agent(0).unwrap();
    let mut enrol = Command::new(&programs::get().agent);
    enrol.args(["enrol", "--again", "--token", &made.token.unwrap(), "--config"]);
    enrol.arg(cluster.agent_dir(0).join("agent.toml")).envs(cluster.agent_clock(0).unwrap().environment());
    let enrolled = enrol.output().unwrap();
    assert!(enrolled.status.success(), "{enrolled:?}");
    cluster.start_agent(0).unwrap();
    cluster.wait_online(1).await.unwrap();
    assert_eq!(location(&cluster).await.id, id);
    cluster.wait_entry(image.id, 0, EntryStatus::Active).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_is_told_at_once_and_gets_no_certificate_later() {
    let rare = Extra { heartbeat_seconds: Some(RARE_PULSES_SECONDS), ..Extra::default() };
    let mut cluster = Cluster::start_with(1, rare).await.unwrap();
    cluster.movable_clocks();
    let image = image(&cluster, 4, 303).await;
    cluster.warm_all(&image).await.unwrap();
    let id = location(&cluster).await.id;
    let begun = wait::monotonic();
    cluster.api.act(Method::DELETE, &format!("/locations/{id}")).await.unwrap();
    wait::until("the agent knows", WORK_WAIT_MAX, async || {
        let said = cluster.agent_status(0).await?.controller;
        Ok(said.starts_with("DENIED") && said.contains("revoked"))
    })
    .await
    .unwrap();
    assert!(begun.elapsed() < AT_ONCE, "the live session ended after {:?}", begun.elapsed());
    assert!(cluster.cached_file(&image, 0).unwrap().exists(), "running machines keep their base");

    // Not with a valid certificate, nor two days later with the enrolled key.
    for offset_s in [0, 2 * DAY_S] {
        let begun = cluster.agent_log(0).len();
        restart_at(&mut cluster, offset_s).await;
        wait::until("it is refused", START_WAIT_MAX, async || {
            let said = log(&cluster, begun);
            Ok(said.contains("not enrolled here, or was revoked") && said.contains("an operator must look"))
        })
        .await
        .unwrap();
        assert!(!log(&cluster, begun).contains("session is up"));
    }
}
