//! The real agent against the real fleet: enrolment, plan, fetch, report, restart, revocation.
//!
//! **What.** Controller's fleet and agent's daemon run in this process over loopback QUIC, each with its own folders; only
//! the HTTP API is left out.
//! **Why beside the harness of processes.** These tests look at both sides' state directly and cut in at exact moments.

#![expect(clippy::unwrap_used, reason = "a test fails where it fails")]

mod place;

use std::time::Duration;

use hearth_controller::clock;
use hearth_protocol::words::PrewarmState;
use place::{Place, until};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_reaches_three_agents_byte_for_byte() {
    let mut place = Place::new(2000).await;
    let mut agents = Vec::new();
    for name in ["cn-1", "cn-2", "cn-3"] {
        agents.push(place.agent(name).await);
    }
    let job = place.prewarm(&agents).await;
    until("the job is done", async || place.state(job).await == PrewarmState::Done).await;
    for agent in &agents {
        assert!(agent.file(place.content).unwrap() == place.raw(), "{} differs", agent.name);
    }
    place.stop().await;
    for agent in agents {
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_goes_on_after_a_restart_of_the_controller() {
    let mut place = Place::new(3000).await;
    let agent = place.agent("cn-1").await;
    let job = place.prewarm_capped(&[&agent], Some(2 << 20)).await;
    until("some bytes are there", async || agent.done_bytes(place.content) > 1 << 20).await;
    place.stop().await;
    let before = agent.done_bytes(place.content);
    place.start().await;
    until("the job is done", async || place.state(job).await == PrewarmState::Done).await;
    assert!(agent.file(place.content).unwrap() == place.raw());
    let entry = agent.view(place.content).unwrap();
    assert!(entry.done_bytes > before);
    let stored = place.stored_bytes();
    assert!(entry.moved_bytes < stored + stored / 3, "moved {} B of {stored} B", entry.moved_bytes);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_knows_its_plan_and_goes_on() {
    let mut place = Place::new(3000).await;
    let agent = place.agent("cn-1").await;
    let job = place.prewarm_capped(&[&agent], Some(2 << 20)).await;
    until("some bytes are there", async || agent.done_bytes(place.content) > 1 << 20).await;
    let agent = agent.restart().await;
    until("the job is done", async || place.state(job).await == PrewarmState::Done).await;
    assert!(agent.file(place.content).unwrap() == place.raw());
    place.stop().await;
    let agent = agent.restart().await;
    assert!(agent.file(place.content).unwrap() == place.raw(), "active without a controller");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_agent_stops_and_keeps_its_cache() {
    let place = Place::new(500).await;
    let agent = place.agent("cn-1").await;
    let job = place.prewarm(std::slice::from_ref(&agent)).await;
    until("the job is done", async || place.state(job).await == PrewarmState::Done).await;
    place.revoke(&agent).await;
    until("the session is gone", async || !place.online(&agent)).await;
    until("the agent says so", async || agent.status().is_some_and(|said| said.contains("DENIED"))).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!place.online(&agent), "it came back");
    assert!(agent.file(place.content).unwrap() == place.raw());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_at_half_of_their_life_inside_one_session_while_it_fetches() {
    let life = Duration::from_secs(8);
    let place = Place::with_agent_life(300, life).await;
    let agent = place.agent("cn-1").await;
    until("the session is up", async || place.online(&agent)).await;
    let (since, first) = (place.since_us(&agent), place.certificate_ends_us(&agent).await);
    let job = place.prewarm_capped(&[&agent], Some(1 << 20)).await;
    until("it fetches", async || agent.done_bytes(place.content) > 0).await;
    until("a second certificate is given", async || place.certificate_ends_us(&agent).await > first).await;
    let second = place.certificate_ends_us(&agent).await;
    // Half of the life, but for the whole seconds that certificates count; later on a busy machine, never earlier.
    let after_us = second - first;
    assert!(after_us >= 3_000_000, "renewed after {after_us} us of a life of {life:?}");
    until("it is on disk", async || agent.certificate_on_disk_ends_us() >= second).await;
    until("the first one has ended", async || clock::unix_us() > first + 1_000_000).await;
    until("the job is done", async || place.state(job).await == PrewarmState::Done).await;
    assert_eq!(place.since_us(&agent), since, "one session from begin to end");
    assert!(agent.file(place.content).unwrap() == place.raw());
    agent.stop().await;
}
