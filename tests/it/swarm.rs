//! Many hosts, one image: who passes what to whom, and what happens when some of them die, or do harm.

use std::path::Path;

use hearth_protocol::api::cache::{Keep, Targets};
use hearth_protocol::api::image::Image;
use hearth_protocol::api::location::Location;
use hearth_protocol::api::prewarm::{Prewarm, PrewarmDetails};
use hearth_protocol::words::PrewarmState;
use hearth_tests::cluster::{Cluster, Extra, WORK_WAIT_MAX};
use hearth_tests::{disk, wait};

/// Slow enough to strike in the middle, and slow enough that the controller alone could not feed everybody in time.
const SLOW: &str = "upload_mbps = 60\nnic_mbps = 1000\n";

async fn cluster(agents: usize) -> Cluster {
    let controller = "swarm_source_mbps = 60\n".to_owned();
    Cluster::start_with(agents, Extra { agent: SLOW.to_owned(), controller, ..Extra::default() })
        .await
        .unwrap()
}

async fn everywhere(cluster: &Cluster, image: &Image) -> Prewarm {
    let all = Targets { all: true, ..Targets::default() };
    cluster.prewarm(image.id, all, Keep::default()).await.unwrap()
}

async fn part_done(cluster: &Cluster, job: &Prewarm, percent: u64) {
    wait::until("the job is under way", WORK_WAIT_MAX, async || {
        let job: PrewarmDetails = cluster.api.get(&format!("/prewarms/{}", job.id)).await?;
        Ok(job.prewarm.data_bytes > 0 && job.prewarm.done_bytes * 100 >= job.prewarm.data_bytes * percent)
    })
    .await
    .unwrap();
}

fn same_everywhere(cluster: &Cluster, image: &Image, file: &Path, agents: impl IntoIterator<Item = usize>) {
    for index in agents {
        disk::same(&cluster.cached_file(image, index).unwrap(), file).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_pass_pieces_to_each_other_and_the_controller_sends_little_more_than_one_copy() {
    let cluster = cluster(6).await;
    let file = cluster.dir().join("a.raw");
    disk::ext4(&file, 96, 64, 71).unwrap();
    let image = cluster.import(&file, "a").await.unwrap();
    let job = everywhere(&cluster, &image).await;
    let ended = cluster.prewarm_ended(&job).await.unwrap();
    assert_eq!(ended.prewarm.state, PrewarmState::Done, "{ended:#?}");
    same_everywhere(&cluster, &image, &file, 0..6);
    let campaign = ended.campaign.clone().unwrap();
    assert_eq!((campaign.receivers, campaign.holders), (6, 0), "{campaign:#?}");
    // Six copies, of which the controller sends one, and what nobody else could give in time.
    assert!(campaign.source_copies <= 2.0, "{campaign:#?}");
    assert!(campaign.from_agents_bytes >= 3 * campaign.from_controller_bytes, "{campaign:#?}");
    let moved: u64 = ended.locations.iter().map(|host| host.moved_bytes).sum();
    assert!(ended.locations.iter().all(|host| host.moved_bytes <= moved / 6 * 11 / 10), "{ended:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_have_a_part_or_everything_take_part_with_what_they_have() {
    let mut cluster = cluster(2).await;
    let (first, second) = (cluster.dir().join("v1.raw"), cluster.dir().join("v2.raw"));
    disk::ext4(&first, 96, 48, 72).unwrap();
    std::fs::copy(&first, &second).unwrap();
    disk::write_into(&second, "new", &disk::file(720)).unwrap();
    let v1 = cluster.import(&first, "v1").await.unwrap();
    cluster.warm_all(&v1).await.unwrap();
    let v2 = cluster.import(&second, "v2").await.unwrap();
    // Host 1 has v2, host 2 has v1, hosts 3 and 4 nothing.
    let to_one = Targets { to: vec!["host-1".into()], ..Targets::default() };
    let alone = cluster.prewarm(v2.id, to_one, Keep::default()).await.unwrap();
    let alone = cluster.prewarm_ended(&alone).await.unwrap();
    assert!(alone.campaign.is_none(), "one host is served by the controller: {alone:#?}");
    cluster.enrol(2).await.unwrap();
    cluster.wait_online(4).await.unwrap();
    let job = everywhere(&cluster, &v2).await;
    let ended = cluster.prewarm_ended(&job).await.unwrap();
    assert_eq!(ended.prewarm.state, PrewarmState::Done, "{ended:#?}");
    same_everywhere(&cluster, &v2, &second, 0..4);
    let moved =
        |name: &str| ended.locations.iter().find(|host| host.location_name == name).unwrap().moved_bytes;
    assert!(moved("host-2") * 4 < moved("host-3"), "an update moves what changed: {ended:#?}");
    let campaign = ended.campaign.clone().unwrap();
    assert_eq!((campaign.receivers, campaign.holders), (3, 1), "{campaign:#?}");
    assert!(campaign.source_copies < 0.5, "host 1 has it: {campaign:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_hosts_and_a_killed_controller_cost_time_and_nothing_else() {
    let mut cluster = cluster(5).await;
    let file = cluster.dir().join("a.raw");
    disk::ext4(&file, 128, 96, 73).unwrap();
    let image = cluster.import(&file, "a").await.unwrap();
    let job = everywhere(&cluster, &image).await;
    part_done(&cluster, &job, 20).await;
    cluster.kill_agent(0).unwrap();
    cluster.kill_agent(3).unwrap();
    part_done(&cluster, &job, 30).await;
    cluster.kill_controller().unwrap();
    cluster.start_agent(0).unwrap();
    cluster.start_controller().await.unwrap();
    cluster.start_agent(3).unwrap();
    let ended = cluster.prewarm_ended(&job).await.unwrap();
    assert_eq!(ended.prewarm.state, PrewarmState::Done, "{ended:#?}");
    same_everywhere(&cluster, &image, &file, 0..5);
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_do_harm_are_named_and_harm_nobody() {
    const HARMS: [&str; 6] = ["corrupt", "truncate", "stall", "lie", "babble", "replay"];
    let honest = 5;
    let mut cluster = cluster(honest + HARMS.len()).await;
    let file = cluster.dir().join("a.raw");
    disk::ext4(&file, 128, 96, 74).unwrap();
    let image = cluster.import(&file, "a").await.unwrap();
    for (index, harm) in (honest..).zip(HARMS) {
        cluster.kill_agent(index).unwrap();
        cluster.start_rogue(index, harm).unwrap();
    }
    cluster.wait_online(honest + HARMS.len()).await.unwrap();
    let job = everywhere(&cluster, &image).await;
    let honest_are_done = wait::for_some("the honest hosts are done", WORK_WAIT_MAX, async || {
        let job: PrewarmDetails = cluster.api.get(&format!("/prewarms/{}", job.id)).await?;
        Ok((job.prewarm.active as usize >= honest).then_some(job))
    })
    .await
    .unwrap();
    same_everywhere(&cluster, &image, &file, 0..honest);
    let campaign = honest_are_done.campaign.clone().unwrap();
    let named = |harm: &str| {
        let index = HARMS.iter().position(|other| *other == harm).unwrap();
        let name = hearth_tests::cluster::agent_name(honest + index);
        campaign.culprits.iter().find(|host| host.location_name == name)
    };
    assert!(named("corrupt").is_some_and(|host| host.wrong > 0), "{campaign:#?}");
    for harm in ["truncate", "stall", "lie", "babble"] {
        assert!(named(harm).is_some(), "{harm} is not named: {campaign:#?}");
    }
    let is_honest = |name: &str| (0..honest).any(|index| hearth_tests::cluster::agent_name(index) == name);
    let wronged = campaign.culprits.iter().find(|host| host.wrong > 0 && is_honest(&host.location_name));
    assert!(wronged.is_none(), "{campaign:#?}");
    // Other rogues serve whoever asks; of the honest hosts, nobody is served who shows a grant that is not his.
    let locations: Vec<Location> = cluster.api.list("/locations").await.unwrap();
    let said = cluster.agent_log(honest + 5);
    let at_honest = |line: &&str| {
        let at = locations.iter().find(|location| line.contains(&location.id.to_string()));
        at.is_some_and(|location| is_honest(&location.name))
    };
    let tried: Vec<&str> =
        said.lines().filter(|line| line.starts_with("a grant for")).filter(at_honest).collect();
    assert!(
        tried.iter().any(|line| line.contains("a longer life") && line.ends_with("refused (denied)")),
        "{said}"
    );
    assert!(tried.iter().all(|line| line.contains("refused (")), "{tried:#?}");
}
