//! `kill -9` of either side: what was there stays, what was begun goes on.

use hearth_protocol::api::cache::Targets;
use hearth_protocol::api::image::Image;
use hearth_protocol::api::operation::LogVerification;
use hearth_protocol::api::prewarm::{Prewarm, PrewarmCreate, PrewarmDetails};
use hearth_protocol::words::{EntryStatus, ImageStatus, PrewarmState};
use hearth_tests::cluster::{Cluster, WORK_WAIT_MAX};
use hearth_tests::{disk, wait};

/// Starts a job that is slow enough to be interrupted, and waits until `percent` of one copy is there.
async fn slow_job(cluster: &Cluster, image: &Image, percent: u8) -> Prewarm {
    let body = PrewarmCreate {
        image: Some(image.id),
        host_image: None,
        targets: Targets { all: true, ..Targets::default() },
        priority: None,
        deadline: None,
        start: None,
        rate_bytes_per_s: Some(8 << 20),
        keep: hearth_protocol::api::cache::Keep::default(),
        dry_run: false,
    };
    let job: Prewarm = cluster.api.post("/prewarms", &body).await.unwrap();
    wait::until("the job is under way", WORK_WAIT_MAX, async || {
        let job: PrewarmDetails = cluster.api.get(&format!("/prewarms/{}", job.id)).await?;
        let host = &job.locations[0];
        assert_ne!(host.status, EntryStatus::Active, "the rate cap of the job does not hold");
        Ok(host.percent >= percent)
    })
    .await
    .unwrap();
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_killed_goes_on_where_it_was() {
    let mut cluster = Cluster::start(1).await.unwrap();
    let file = cluster.dir().join("a.raw");
    disk::ext4(&file, 160, 96, 51).unwrap();
    let image = cluster.import(&file, "a").await.unwrap();
    let job = slow_job(&cluster, &image, 40).await;
    cluster.kill_agent(0).unwrap();
    cluster.start_agent(0).unwrap();
    cluster.wait_online(1).await.unwrap();
    // The first word of the new process about the copy: what the old one had is there, less what was in flight.
    let resumed = wait::for_some("the copy moves again", WORK_WAIT_MAX, async || {
        let entries = cluster.entries(image.id).await?;
        let entry = entries.into_iter().find(|entry| entry.done_bytes > 0);
        Ok(entry.filter(|entry| {
            matches!(entry.status, EntryStatus::Caching | EntryStatus::Verifying | EntryStatus::Active)
        }))
    })
    .await
    .unwrap();
    assert!(resumed.percent >= 20, "begun anew: {resumed:#?}");
    let ended = cluster.prewarm_ended(&job).await.unwrap();
    assert_eq!(ended.prewarm.state, PrewarmState::Done, "{ended:#?}");
    disk::same(&cluster.cached_file(&image, 0).unwrap(), &file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_was_killed_loses_nothing() {
    let mut cluster = Cluster::start(2).await.unwrap();
    let file = cluster.dir().join("a.raw");
    disk::ext4(&file, 96, 48, 61).unwrap();
    let image = cluster.import(&file, "a").await.unwrap();
    let job = slow_job(&cluster, &image, 20).await;
    cluster.kill_controller().unwrap();
    cluster.start_controller().await.unwrap();
    let again: Image = cluster.api.get(&format!("/images/{}", image.id)).await.unwrap();
    assert_eq!((again.status, again.content), (ImageStatus::Active, image.content));
    cluster.wait_online(2).await.unwrap();
    let ended = cluster.prewarm_ended(&job).await.unwrap();
    assert_eq!(ended.prewarm.state, PrewarmState::Done, "{ended:#?}");
    for index in 0..2 {
        disk::same(&cluster.cached_file(&image, index).unwrap(), &file).unwrap();
    }
    let log = wait::for_some("the log is sealed", WORK_WAIT_MAX, async || {
        let log: LogVerification = cluster.api.get("/operations/verify").await?;
        Ok((log.unsealed == 0).then_some(log))
    })
    .await
    .unwrap();
    assert!(log.intact && log.sealed >= 3 && log.first_bad_seq.is_none(), "{log:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_keeps_its_copies_over_a_restart_of_everything() {
    let mut cluster = Cluster::start(1).await.unwrap();
    let file = cluster.dir().join("a.raw");
    disk::ext4(&file, 64, 16, 71).unwrap();
    let image = cluster.import(&file, "a").await.unwrap();
    cluster.warm_all(&image).await.unwrap();
    let before = std::fs::metadata(cluster.cached_file(&image, 0).unwrap()).unwrap().modified().unwrap();
    cluster.agent(0).stop(WORK_WAIT_MAX).await.unwrap();
    cluster.controller().stop(WORK_WAIT_MAX).await.unwrap();
    cluster.start_controller().await.unwrap();
    cluster.start_agent(0).unwrap();
    cluster.wait_online(1).await.unwrap();
    cluster.wait_entry(image.id, 0, EntryStatus::Active).await.unwrap();
    let after = std::fs::metadata(cluster.cached_file(&image, 0).unwrap()).unwrap().modified().unwrap();
    assert_eq!(before, after, "the copy was written again");
}
