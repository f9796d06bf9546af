//! Plans and prewarm jobs, from the intent to "done".

use hearth_protocol::api::cache::{Keep, Targets};
use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::PrewarmId;
use hearth_protocol::message::control::{Hold, Wish};
use hearth_protocol::words::{GoneReason, LocationState, Origin, PrewarmState, Priority};

use super::*;
use crate::db::intents::{Intent, IntentHold};
use crate::db::locations::LocationEdit;
use crate::db::prewarm_targets::TargetState;
use crate::db::prewarms::Prewarm;
use crate::logic::admission::Caps;

async fn prewarm(place: &Place, locations: &[LocationId], start_us: Option<i64>) -> PrewarmId {
    let job = Prewarm {
        id: new_id(),
        image: place.image,
        content: place.content,
        image_name: "image".into(),
        group: None,
        state: if start_us.is_some() { PrewarmState::Scheduled } else { PrewarmState::Running },
        targets: Targets::default(),
        priority: Priority::Bulk,
        deadline_us: None,
        start_us,
        rate_bytes_per_s: None,
        keep: Keep::default(),
        created_by: "test".into(),
        created_us: 0,
        finished_us: None,
    };
    place.db.create_prewarm(&job, locations, &Draft::system("prewarm.create")).await.unwrap();
    job.id
}

async fn state(place: &Place, job: PrewarmId) -> PrewarmState {
    place.db.prewarm(job).await.unwrap().unwrap().state
}

fn holds(plan: &PlanV1, content: ContentId, hold: impl Fn(Hold) -> bool) -> bool {
    plan.entries.iter().any(|entry| entry.content == content && entry.wish == Wish::Keep && hold(entry.hold))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prewarm_is_done_when_every_location_says_active() {
    let place = Place::new().await;
    let agents = [place.agent("cn-1").await, place.agent("cn-2").await];
    let mut lives = Vec::new();
    for agent in &agents {
        lives.push(agent.session(&place).await);
    }
    let job = prewarm(&place, &agents.each_ref().map(Agent::location), None).await;
    for live in &mut lives {
        live.plan(|plan| holds(plan, place.content, |hold| hold == Hold::Pinned) && plan.entries[0].admitted)
            .await;
        live.report(place.content, ObservedState::Present(EntryStatus::Caching)).await;
    }
    lives[0].report_active(place.content).await;
    until("one target is active", || async {
        let targets = place.db.targets(job).await.unwrap();
        targets.iter().filter(|target| target.state == TargetState::Active).count() == 1
    })
    .await;
    assert_eq!(state(&place, job).await, PrewarmState::Running, "one of two is not done");
    lives[1].report_active(place.content).await;
    until("the job is done", || async { state(&place, job).await == PrewarmState::Done }).await;
    for live in &mut lives {
        live.plan(|plan| holds(plan, place.content, |hold| matches!(hold, Hold::Until(_)))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_job_starts_by_itself() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let mut live = agent.session(&place).await;
    let job = prewarm(&place, &[agent.location()], Some(clock::unix_us() + 500_000)).await;
    live.plan(|plan| holds(plan, place.content, |_| true)).await;
    assert_eq!(state(&place, job).await, PrewarmState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_targets_fail_for_good_has_failed_and_can_be_retried() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let mut live = agent.session(&place).await;
    let job = prewarm(&place, &[agent.location()], None).await;
    live.plan(|plan| holds(plan, place.content, |_| true)).await;
    for n in 1..=5 {
        let fault = ObservedState::Failed {
            fault: FaultCode::NoSpace,
            text: "1 GiB missing".into(),
            next_try_unix_ms: n,
        };
        live.report(place.content, fault).await;
        until("the failure is counted", || async {
            u64::from(place.db.targets(job).await.unwrap()[0].attempts) == n
        })
        .await;
    }
    until("the job failed", || async { state(&place, job).await == PrewarmState::Failed }).await;
    let target = place.db.targets(job).await.unwrap().remove(0);
    assert!(target.reason.contains("1 GiB missing"), "{}", target.reason);
    live.plan(|plan| plan.entries.is_empty()).await;

    place.db.retry_prewarm(job, &Draft::system("prewarm.retry")).await.unwrap();
    live.plan(|plan| holds(plan, place.content, |_| true)).await;
    live.report_active(place.content).await;
    until("the job is done", || async { state(&place, job).await == PrewarmState::Done }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_job_admits_nothing() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let mut live = agent.session(&place).await;
    let job = prewarm(&place, &[agent.location()], None).await;
    live.plan(|plan| holds(plan, place.content, |_| true) && plan.entries[0].admitted).await;
    place.db.pause_prewarm(job, &Draft::system("prewarm.pause")).await.unwrap();
    live.plan(|plan| holds(plan, place.content, |_| true) && !plan.entries[0].admitted).await;
    place.db.resume_prewarm(job, &Draft::system("prewarm.resume")).await.unwrap();
    live.plan(|plan| holds(plan, place.content, |_| true) && plan.entries[0].admitted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_transfers_are_admitted_than_the_source_can_feed() {
    let place = Place::with(|config| config.caps = Caps { total: 1, per_location: 2 }).await;
    let agents = [place.agent("cn-1").await, place.agent("cn-2").await];
    let mut lives = [agents[0].session(&place).await, agents[1].session(&place).await];
    until("both are up", || async { place.fleet.online_count() == 2 }).await;
    prewarm(&place, &agents.each_ref().map(Agent::location), None).await;
    let mut admitted = Vec::new();
    for live in &mut lives {
        admitted.push(live.plan(|plan| !plan.entries.is_empty()).await.entries[0].admitted);
    }
    assert_eq!(admitted.iter().filter(|admitted| **admitted).count(), 1, "{admitted:?}");
    let (first, second) = if admitted[0] { (0, 1) } else { (1, 0) };
    lives[first].report_active(place.content).await;
    lives[second].plan(|plan| plan.entries[0].admitted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_ends_leaves_no_wish() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let mut live = agent.session(&place).await;
    let hold = IntentHold::Until(clock::unix_us() + 300_000);
    let intent = Intent::manual(place.image, place.content, agent.location(), hold);
    place.db.put_intents(&[intent], &Draft::system("cache.add")).await.unwrap();
    live.plan(|plan| plan.entries.is_empty()).await;
    assert_eq!(place.db.intents().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_for_removal_ends_when_the_copy_is_gone() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let mut live = agent.session(&place).await;
    let intent = Intent::manual(place.image, place.content, agent.location(), IntentHold::Pinned);
    place.db.put_intents(&[intent], &Draft::system("cache.add")).await.unwrap();
    live.plan(|plan| !plan.entries.is_empty()).await;
    live.report_active(place.content).await;
    let op = Draft::system("cache.rm");
    place.db.wish_removed(place.image, place.content, &[agent.location()], false, &op).await.unwrap();
    live.plan(|plan| plan.entries.iter().any(|entry| entry.wish == Wish::Remove)).await;
    assert_eq!(place.db.intents().await.unwrap().len(), 1, "the wish stays until the copy is gone");
    live.report(place.content, ObservedState::Gone(GoneReason::Deleted)).await;
    until("the wish is dropped", || async { place.db.intents().await.unwrap().is_empty() }).await;
    live.plan(|plan| plan.entries.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ends_when_what_it_waits_for_is_removed_by_hand() {
    let place = Place::new().await;
    let agents = [place.agent("cn-1").await, place.agent("cn-2").await];
    let mut live = agents[0].session(&place).await;
    let job = prewarm(&place, &agents.each_ref().map(Agent::location), None).await;
    live.plan(|plan| holds(plan, place.content, |_| true)).await;
    let remove = async |n: usize| {
        let op = Draft::system("cache.remove");
        let location = agents[n].location();
        place.db.wish_removed(place.image, place.content, &[location], true, &op).await.unwrap();
    };
    remove(0).await;
    live.plan(|plan| !holds(plan, place.content, |_| true)).await;
    assert_eq!(state(&place, job).await, PrewarmState::Running, "one still waits");
    remove(1).await;
    until("the job is over", || async { state(&place, job).await == PrewarmState::Cancelled }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_location_gets_no_new_copies() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let mut live = agent.session(&place).await;
    let edit = LocationEdit { state: Some(LocationState::Draining), ..LocationEdit::default() };
    place.db.edit_location(agent.location(), &edit, &Draft::system("location.drain")).await.unwrap();
    let job = prewarm(&place, &[agent.location()], None).await;
    until("the job failed", || async { state(&place, job).await == PrewarmState::Failed }).await;
    let reason = place.db.targets(job).await.unwrap().remove(0).reason;
    assert!(reason.contains("draining"), "{reason}");
    live.report(place.content, ObservedState::Present(EntryStatus::Queued)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_pass_what_an_agent_follows_already() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let intent = Intent::manual(place.image, place.content, agent.location(), IntentHold::Pinned);
    place.db.put_intents(std::slice::from_ref(&intent), &Draft::system("cache.add")).await.unwrap();
    assert_eq!(intent.origin, Origin::Manual);
    // As after an older database was restored: the agent follows a plan that the controller never made.
    let mut hello = agent.hello();
    hello.locations[0].generation = Generation(41);
    let mut live = agent.greet(&place, hello, None).await.unwrap();
    live.observe(Some(true), vec![]).await;
    let plan = live.plan(|plan| !plan.entries.is_empty()).await;
    assert_eq!(plan.generation, Generation(42));
    // The same agent comes back with that plan: it is not sent again, and nothing is raised.
    let mut hello = agent.hello();
    hello.locations[0].generation = plan.generation;
    live.connection.close(VarInt::from_u32(0), b"");
    until("the first session is over", || async { place.fleet.online_count() == 0 }).await;
    let mut live = agent.greet(&place, hello, None).await.unwrap();
    live.observe(Some(true), vec![]).await;
    live.report_active(place.content).await;
    let heard = tokio::time::timeout(Duration::from_millis(500), live.hear()).await;
    assert!(heard.is_err(), "{heard:?}");
    let stored = place.db.location(agent.location()).await.unwrap().unwrap();
    assert_eq!(stored.generation, Generation(42));
}

/// The agent's session ended before the plan reached it; nothing changes afterwards that would make a new plan.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_was_lost_with_its_session_is_sent_in_the_next_one() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let mut live = agent.session(&place).await;
    prewarm(&place, &[agent.location()], None).await;
    let wanted = |plan: &PlanV1| holds(plan, place.content, |_| true) && plan.entries[0].admitted;
    let lost = live.plan(wanted).await;
    live.connection.close(VarInt::from_u32(0), b"");
    until("the first session is over", || async { place.fleet.online_count() == 0 }).await;
    // It says Hello as one that never heard of a plan.
    let mut live = agent.session(&place).await;
    assert!(live.plan(wanted).await.generation >= lost.generation);
}
