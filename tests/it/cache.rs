//! Copies: reuse of what is there, removal, holds and pins, selection of hosts.

use std::path::Path;

use hearth_protocol::api::cache::{CacheCreate, CacheEntry, Keep, LaunchState, PerLocation, Targets};
use hearth_protocol::api::image::ImageCreate;
use hearth_protocol::api::operation::Operation;
use hearth_protocol::api::prewarm::{DryRun, PrewarmCreate};
use hearth_protocol::words::{EntryStatus, Origin};
use hearth_tests::api::refused;
use hearth_tests::cluster::{Cluster, Extra, WORK_WAIT_MAX, agent_name};
use hearth_tests::{disk, wait};
use reqwest::Method;

#[tokio::test(flavor = "multi_thread")]
async fn an_updated_image_reuses_what_is_there() {
    let cluster = Cluster::start(2).await.unwrap();
    let (v1, v2) = (cluster.dir().join("v1.raw"), cluster.dir().join("v2.raw"));
    disk::ext4(&v1, 128, 40, 11).unwrap();
    std::fs::copy(&v1, &v2).unwrap();
    disk::write_into(&v2, "update-1", &disk::file(1_000_000)).unwrap();
    disk::write_into(&v2, "update-2", &disk::file(1_000_002)).unwrap();
    let first = cluster.import(&v1, "v1").await.unwrap();
    let second = cluster.import(&v2, "v2").await.unwrap();
    // Only the first host has the old version.
    let to_first = Targets { to: vec![agent_name(0)], ..Targets::default() };
    let job = cluster.prewarm(first.id, to_first, Keep::default()).await.unwrap();
    cluster.prewarm_ended(&job).await.unwrap();
    let ended = cluster.warm_all(&second).await.unwrap();
    let moved = |index: usize| {
        let name = agent_name(index);
        ended.locations.iter().find(|host| host.location_name == name).unwrap().moved_bytes
    };
    assert!(
        moved(0) * 4 < moved(1),
        "{} of {} bytes moved to the host with the old version",
        moved(0),
        moved(1)
    );
    for index in 0..2 {
        disk::same(&cluster.cached_file(&second, index).unwrap(), &v2).unwrap();
    }
    let entries = cluster.entries(second.id).await.unwrap();
    assert!(entries[0].reused_bytes > entries[1].reused_bytes, "{entries:#?}");
}

/// Proves CA-3.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_copy_is_gone_from_disk_and_list() {
    let cluster = Cluster::start(2).await.unwrap();
    let file = cluster.dir().join("a.raw");
    disk::ext4(&file, 64, 8, 21).unwrap();
    let image = cluster.import(&file, "a").await.unwrap();
    cluster.warm_all(&image).await.unwrap();
    let entries = cluster.entries(image.id).await.unwrap();
    let path = format!("/cache/{}/{}?force=true", image.id, entries[0].location);
    cluster.api.act(Method::DELETE, &path).await.unwrap();
    wait::until("the row is gone", WORK_WAIT_MAX, async || {
        let left = cluster.entries(image.id).await?;
        Ok(left.len() == 1 && left[0].location_name == agent_name(1))
    })
    .await
    .unwrap();
    assert!(!cluster.cached_file(&image, 0).unwrap().exists());
    assert!(cluster.cached_file(&image, 1).unwrap().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_on_one_cache_folder_is_refused_and_the_first_goes_on() {
    let mut cluster = Cluster::start(2).await.unwrap();
    let file = cluster.dir().join("a.raw");
    disk::ext4(&file, 64, 8, 25).unwrap();
    let image = cluster.import(&file, "a").await.unwrap();
    cluster.agent(1).stop(WORK_WAIT_MAX).await.unwrap();
    let config = cluster.agent_dir(1).join("agent.toml");
    let (first, second) = (cluster.agent_dir(0).join("cache"), cluster.agent_dir(1).join("cache"));
    let text = std::fs::read_to_string(&config).unwrap();
    let shared = text.replace(second.to_str().unwrap(), first.to_str().unwrap());
    assert_ne!(shared, text);
    std::fs::write(&config, shared).unwrap();
    let refused = cluster.hearth_agent(1, &["serve"]).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    let folder = first.to_str().unwrap();
    for expected in ["another agent uses the cache folder", folder, "a folder of its own"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let to_first = Targets { to: vec![agent_name(0)], ..Targets::default() };
    let job = cluster.prewarm(image.id, to_first, Keep::default()).await.unwrap();
    cluster.prewarm_ended(&job).await.unwrap();
    disk::same(&cluster.cached_file(&image, 0).unwrap(), &file).unwrap();
}

/// Proves CA-1, CA-3.
#[tokio::test(flavor = "multi_thread")]
async fn a_pin_outlasts_a_hold_and_unpin_ends_it() {
    let cluster = Cluster::start(1).await.unwrap();
    let file = cluster.dir().join("a.raw");
    disk::ext4(&file, 64, 8, 31).unwrap();
    let image = cluster.import(&file, "a").await.unwrap();
    let body = CacheCreate {
        image: Some(image.id),
        host_image: None,
        targets: Targets { to: vec![agent_name(0)], ..Targets::default() },
        keep: Keep::Seconds(3600),
        priority: None,
    };
    let results: Vec<PerLocation> = cluster.api.post("/cache", &body).await.unwrap();
    assert!(results.iter().all(|result| result.ok), "{results:?}");
    let entry = cluster.wait_entry(image.id, 0, EntryStatus::Active).await.unwrap();
    assert!(!entry.pinned && entry.held_until.is_some(), "{entry:#?}");
    assert_eq!(entry.origins, [Origin::Manual]);
    let path = format!("/cache/{}/{}", image.id, entry.location);
    let pinned: CacheEntry = cluster.api.post(&format!("{path}/pin"), &()).await.unwrap();
    assert!(pinned.pinned, "{pinned:#?}");
    let unpinned: CacheEntry = cluster.api.post(&format!("{path}/unpin"), &()).await.unwrap();
    assert!(!unpinned.pinned, "{unpinned:#?}");
}

/// Proves CA-2, CA-10.
#[tokio::test(flavor = "multi_thread")]
async fn a_selector_chooses_hosts_and_a_dry_run_only_tells() {
    let cluster = Cluster::start(3).await.unwrap();
    let file = cluster.dir().join("a.raw");
    disk::ext4(&file, 64, 8, 41).unwrap();
    let image = cluster.import(&file, "a").await.unwrap();
    // Hosts 1 and 3 are in z1, host 2 in z2.
    let in_z2 = Targets { select: Some("zone=z2,name=host-*".into()), ..Targets::default() };
    let body = PrewarmCreate {
        image: Some(image.id),
        host_image: None,
        targets: in_z2.clone(),
        priority: None,
        deadline: None,
        start: None,
        rate_bytes_per_s: None,
        keep: Keep::default(),
        dry_run: true,
    };
    let plan: DryRun = cluster.api.post("/prewarms", &body).await.unwrap();
    assert_eq!((plan.warm, plan.cold, plan.unfit.len()), (0, 1, 0));
    assert!(cluster.entries(image.id).await.unwrap().is_empty());
    let job = cluster.prewarm(image.id, in_z2, Keep::Pinned).await.unwrap();
    let ended = cluster.prewarm_ended(&job).await.unwrap();
    assert_eq!((ended.prewarm.total, ended.prewarm.active), (1, 1), "{ended:#?}");
    let entries = cluster.entries(image.id).await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!((entries[0].location_name.as_str(), entries[0].pinned), ("host-2", true));
    let nobody = Targets { select: Some("zone=z9".into()), ..Targets::default() };
    assert_eq!(refused(cluster.prewarm(image.id, nobody, Keep::default()).await).status, 400);
}

/// Proves CA-4: a lease and a launch bring the image to the host, a stranger to it learns nothing.
#[tokio::test(flavor = "multi_thread")]
async fn who_creates_a_machine_gets_its_image_cached_there() {
    let cluster = Cluster::start(2).await.unwrap();
    let (public, secret) = (cluster.dir().join("p.raw"), cluster.dir().join("s.raw"));
    disk::ext4(&public, 64, 8, 51).unwrap();
    disk::ext4(&secret, 64, 8, 52).unwrap();
    let create = ImageCreate { name: "open".to_owned(), public: true, ..ImageCreate::default() };
    let open = cluster.import_ended(&public, &create).await.unwrap();
    cluster.import(&secret, "secret").await.unwrap();
    // A script on the host: what is public comes, what is not is refused like what does not exist.
    let leased = cluster.hearth_agent(0, &["lease", "open", "vm-1", "--wait", "120"]).unwrap();
    assert!(leased.status.success(), "{leased:?}");
    let path = String::from_utf8(leased.stdout).unwrap().lines().last().unwrap().to_owned();
    disk::same(Path::new(&path), &public).unwrap();
    let entry = cluster.wait_entry(open.id, 0, EntryStatus::Active).await.unwrap();
    assert_eq!((entry.origins.as_slice(), entry.used_by.len()), (&[Origin::Launch][..], 1), "{entry:?}");
    let refused = |name: &str| {
        let output = cluster.hearth_agent(1, &["path", name, "--wait", "60"]).unwrap();
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        String::from_utf8(output.stderr).unwrap().replace(name, "NAME")
    };
    assert_eq!(refused("secret"), refused("absent"));
    // Somebody with a right to the image, through the API; asking twice is asking once.
    let launched =
        cluster.hearth(&["image", "launch", "secret", "--at", "host-2", "--wait", "-o", "json"]).unwrap();
    assert!(launched.status.success(), "{launched:?}");
    let state: LaunchState = serde_json::from_slice(&launched.stdout).unwrap();
    assert_eq!((state.status, state.percent), (EntryStatus::Active, 100));
    let here = cluster.hearth_agent(1, &["path", "secret"]).unwrap();
    assert!(here.status.success(), "{here:?}");
    let log: Vec<Operation> = cluster.api.list("/operations").await.unwrap();
    for action in ["cache.want", "image.launch"] {
        assert!(log.iter().any(|row| row.action == action), "{action}");
    }
}

/// CA-4: a path that is not there is never handed out, and the lease on it ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_consumers_do_not_see_is_not_printed() {
    let extra = Extra { agent: "consumer_dir = \"/nowhere/images\"\n".to_owned(), ..Extra::default() };
    let cluster = Cluster::start_with(1, extra).await.unwrap();
    let file = cluster.dir().join("a.raw");
    disk::ext4(&file, 64, 8, 61).unwrap();
    let image = cluster.import(&file, "a").await.unwrap();
    cluster.warm_all(&image).await.unwrap();
    for args in [["path", "a"].as_slice(), &["lease", "a", "vm-1"]] {
        let refused = cluster.hearth_agent(0, args).unwrap();
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!((refused.status.code(), refused.stdout.as_slice()), (Some(1), b"".as_slice()), "{said}");
        assert!(said.contains("/nowhere/images") && said.contains("consumer_dir"), "{said}");
    }
    let leases = cluster.hearth_agent(0, &["leases"]).unwrap();
    assert!(!String::from_utf8(leases.stdout).unwrap().contains("vm-1"));
}
