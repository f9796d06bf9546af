//! Host images and the prewarm jobs of their disks.

use hearth_controller::clock;
use hearth_controller::db::host_images::{HostImageFacts, HostImageFilter, NewHostImage};
use hearth_controller::db::prewarm_groups::Steer;
use hearth_controller::db::prewarm_targets::{Target, TargetState};
use hearth_controller::db::prewarms::{GroupOf, Prewarm, PrewarmFilter};
use hearth_controller::db::tokens::Scope;
use hearth_controller::db::{Db, DbError, PageRequest, new_id};
use hearth_controller::logic::host_state;
use hearth_protocol::api::cache::{Keep, Targets};
use hearth_protocol::id::{HostImageId, ImageId, LocationId, PrewarmGroupId};
use hearth_protocol::words::{EntryStatus, HostImageStatus, ImageStatus, PrewarmState, Priority, Visibility};
use sqlx::Executor as _;

use crate::engines::Place;
use crate::fixture::{active_image, locations, observed, op};
use crate::on_both_engines;

on_both_engines! {
    a_filter_by_state_finds_what_shows_that_state
    names_are_unique_and_search_follows_a_rename
    a_merge_and_a_deletion_of_its_disk_cannot_both_win
    disks_at_a_location_are_counted
    a_group_is_made_and_steered_as_one
}

fn facts(name: &str) -> HostImageFacts {
    HostImageFacts {
        name: name.to_owned(),
        visibility: Visibility::Private,
        description: String::new(),
        architecture: String::new(),
        os_type: String::new(),
        distribution: String::new(),
        version: String::new(),
        os_language: String::new(),
        app_platform: String::new(),
        disk_driver: String::new(),
        network_driver: String::new(),
        min_disk_bytes: 0,
        min_memory_bytes: 0,
        protected: false,
    }
}

async fn new(db: &Db, name: &str, images: &[ImageId]) -> NewHostImage {
    let (domain, project) = db.default_tenants().await.unwrap();
    NewHostImage { id: new_id(), domain, project, images: images.to_vec(), facts: facts(name) }
}

async fn merge(db: &Db, name: &str, images: &[ImageId]) -> Result<HostImageId, DbError> {
    let new = new(db, name, images).await;
    db.create_host_image(&new, &op("host_image.create")).await.map(|made| made.id)
}

async fn list(db: &Db, filter: &HostImageFilter) -> Vec<HostImageId> {
    let page = db.host_images(Scope::System, filter, &PageRequest::default()).await.unwrap();
    page.items.into_iter().map(|found| found.id).collect()
}

/// HI-3: what the list shows for a state is exactly what has it.
async fn a_filter_by_state_finds_what_shows_that_state(place: Place) {
    let db = place.open().await;
    let mut intruder = place.connect().await;
    let good = active_image(&db, "good").await.id;
    for status in ImageStatus::ALL {
        let disk = active_image(&db, status.as_str()).await.id;
        merge(&db, &format!("with {status}"), &[good, disk]).await.unwrap();
        let set = format!("UPDATE image SET status = '{status}' WHERE id = '{disk}'");
        intruder.execute(sqlx::AssertSqlSafe(set)).await.unwrap();
    }
    let all =
        db.host_images(Scope::System, &HostImageFilter::default(), &PageRequest::default()).await.unwrap();
    assert_eq!(all.items.len(), ImageStatus::ALL.len());
    for status in HostImageStatus::ALL {
        let shows = |disks: &[hearth_controller::db::images::Image]| {
            host_state::status(disks.iter().map(|disk| disk.status)) == *status
        };
        let expected: Vec<_> =
            all.items.iter().filter(|found| shows(&found.disks)).map(|found| found.id).collect();
        let filter = HostImageFilter { status: Some(*status), ..HostImageFilter::default() };
        assert_eq!((list(&db, &filter).await, expected.len()), (expected, 1), "{status}");
    }
}

/// HI-2: names are unique in a project, and a search finds the name that is.
async fn names_are_unique_and_search_follows_a_rename(place: Place) {
    let db = place.open().await;
    let disks = [active_image(&db, "a").await.id, active_image(&db, "b").await.id];
    let id = merge(&db, "系统 Erp", &disks).await.unwrap();
    assert!(matches!(merge(&db, "系统 ERP", &disks).await, Err(DbError::Exists { .. })));
    let holds =
        |text: &str| HostImageFilter { name_contains: Some(text.to_owned()), ..HostImageFilter::default() };
    for text in ["系统", "erp", "统 E", ""] {
        assert_eq!(list(&db, &holds(text)).await, vec![id], "{text}");
    }
    let rename = |facts: &mut HostImageFacts| "财务 100%".clone_into(&mut facts.name);
    let edited = db.update_host_image(id, Some(1), rename, &op("host_image.update")).await.unwrap();
    assert_eq!(edited.revision, 2);
    assert_eq!(edited.disks.iter().map(|disk| disk.id).collect::<Vec<_>>(), disks);
    assert_eq!((list(&db, &holds("财务")).await, list(&db, &holds("系统")).await), (vec![id], vec![]));
    assert_eq!((list(&db, &holds("0%")).await, list(&db, &holds("0_")).await), (vec![id], vec![]));
    let stale = db.update_host_image(id, Some(1), rename, &op("host_image.update")).await;
    assert!(matches!(stale, Err(DbError::Revision { found: 2, expected: 1, .. })));
    db.delete_host_image(id, None, &op("host_image.delete")).await.unwrap();
    assert!(list(&db, &holds("")).await.is_empty());
    merge(&db, "财务 100%", &disks).await.unwrap();
}

/// DL-1: whoever comes first, no host image lacks a disk.
async fn a_merge_and_a_deletion_of_its_disk_cannot_both_win(place: Place) {
    let db = place.open().await;
    let good = active_image(&db, "good").await.id;
    for round in 0..10 {
        let disk = active_image(&db, &format!("disk {round}")).await.id;
        let new = new(&db, &format!("host {round}"), &[good, disk]).await;
        let (delete, create) = (op("image.delete"), op("host_image.create"));
        let (merged, deleted) =
            tokio::join!(db.create_host_image(&new, &create), db.delete_image(disk, None, &delete));
        assert!(merged.is_ok() != deleted.is_ok(), "{merged:?} {deleted:?}");
        if let Err(error) = deleted {
            assert!(
                matches!(&error, DbError::State { state, .. } if state.contains("host image")),
                "{error}"
            );
        }
    }
    let last = active_image(&db, "last").await.id;
    merge(&db, "last", &[good, last]).await.unwrap();
    assert!(db.delete_image(good, None, &op("image.delete")).await.is_err());
}

/// HI-3: a location shows every disk that is wanted or there, on pages that hold each location once.
async fn disks_at_a_location_are_counted(place: Place) {
    let db = place.open().await;
    let (system, data) = (active_image(&db, "system").await, active_image(&db, "data").await);
    let places = locations(&db, 3).await;
    let images = [system.id, data.id];
    let there = |content, status, bytes| observed(content, status, bytes);
    let (system, data) = (system.content.unwrap(), data.content.unwrap());
    let whole = [there(system, EntryStatus::Active, 100), there(data, EntryStatus::Caching, 50)];
    db.apply_inventory(places[0], &whole).await.unwrap();
    db.apply_inventory(places[1], &[there(system, EntryStatus::Active, 100)]).await.unwrap();
    let now_us = clock::steady_unix_us();
    let rows = db.host_cache_rows(&images, &PageRequest::default(), now_us).await.unwrap();
    let shown: Vec<_> =
        rows.items.iter().map(|row| (row.location, row.entries.clone(), row.done_bytes)).collect();
    let expected = [
        (places[0], vec![EntryStatus::Caching, EntryStatus::Active], 150),
        (places[1], vec![EntryStatus::Active], 100),
    ];
    assert_eq!(shown, expected);
    let first = db.host_cache_rows(&images, &PageRequest::first(1), now_us).await.unwrap();
    let rest = PageRequest { limit: Some(1), cursor: first.next };
    let second = db.host_cache_rows(&images, &rest, now_us).await.unwrap();
    assert_eq!((first.items[0].location, second.items[0].location), (places[0], places[1]));
    assert!(second.next.is_none());
}

async fn group(db: &Db, state: PrewarmState) -> (PrewarmGroupId, Vec<Prewarm>, Vec<LocationId>) {
    let images = [active_image(db, "system").await, active_image(db, "data").await];
    let ids = locations(db, 2).await;
    let of = GroupOf { id: new_id(), host_image: new_id(), host_image_name: "erp".to_owned() };
    let job = |image: &hearth_controller::db::images::Image| Prewarm {
        id: new_id(),
        image: image.id,
        content: image.content.unwrap(),
        image_name: image.facts.name.clone(),
        group: Some(of.clone()),
        state,
        targets: Targets { all: true, ..Targets::default() },
        priority: Priority::Bulk,
        deadline_us: None,
        start_us: Some(1),
        rate_bytes_per_s: None,
        keep: Keep::default(),
        created_by: "test".to_owned(),
        created_us: 0,
        finished_us: None,
    };
    let jobs: Vec<Prewarm> = images.iter().map(job).collect();
    db.create_prewarm_group(&jobs, &ids, &op("prewarm.create")).await.unwrap();
    (of.id, jobs, ids)
}

/// HI-3: the jobs of all disks are made, paused, resumed, tried again and cancelled together.
async fn a_group_is_made_and_steered_as_one(place: Place) {
    let db = place.open().await;
    let (id, jobs, ids) = group(&db, PrewarmState::Running).await;
    let states = async || {
        let jobs = db.prewarm_group(id).await.unwrap();
        jobs.iter().map(|job| job.state).collect::<Vec<_>>()
    };
    let steer = async |steer| db.steer_prewarm_group(id, steer, &op("prewarm.steer")).await;
    let stored = db.prewarm_group(id).await.unwrap();
    assert_eq!(stored.iter().map(|job| job.id).collect::<Vec<_>>(), [jobs[0].id, jobs[1].id]);
    assert_eq!(stored[0].group, jobs[0].group);
    let filter = PrewarmFilter { group: Some(id), ..PrewarmFilter::default() };
    assert_eq!(db.prewarms(&filter, &PageRequest::default()).await.unwrap().items.len(), 2);
    assert_eq!(db.intents().await.unwrap().len(), 4, "each disk is wanted at each location");
    steer(Steer::Pause).await.unwrap();
    assert_eq!(states().await, [PrewarmState::Paused; 2]);
    let again = steer(Steer::Pause).await.unwrap_err();
    assert!(matches!(&again, DbError::State { state, .. } if state == "paused"), "{again}");
    steer(Steer::Resume).await.unwrap();
    // One disk is done, the other fails at a location: only that one is tried again.
    let target =
        |location, state| Target { location, state, reason: String::new(), attempts: 5, done_us: None };
    let done: Vec<_> = ids.iter().map(|at| target(*at, TargetState::Active)).collect();
    db.update_targets(jobs[0].id, &done).await.unwrap();
    db.finish_prewarm(jobs[0].id, false, &op("prewarm.done")).await.unwrap();
    let failed = [target(ids[0], TargetState::Active), target(ids[1], TargetState::Failed)];
    db.update_targets(jobs[1].id, &failed).await.unwrap();
    db.finish_prewarm(jobs[1].id, true, &op("prewarm.fail")).await.unwrap();
    steer(Steer::Retry).await.unwrap();
    assert_eq!(states().await, [PrewarmState::Done, PrewarmState::Running]);
    steer(Steer::Cancel).await.unwrap();
    assert_eq!(states().await, [PrewarmState::Done, PrewarmState::Cancelled]);
    assert!(matches!(steer(Steer::Cancel).await, Err(DbError::State { .. })));
    let nothing = db.steer_prewarm_group(new_id(), Steer::Pause, &op("prewarm.pause")).await;
    assert!(matches!(nothing, Err(DbError::NotFound { .. })));
}
