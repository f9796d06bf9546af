//! Intents and prewarm jobs.

use std::collections::BTreeSet;

use hearth_controller::clock;
use hearth_controller::db::image_bin::PrewarmJobs;
use hearth_controller::db::images::ImageFacts;
use hearth_controller::db::intents::{Intent, IntentHold, IntentWish};
use hearth_controller::db::operations::OperationFilter;
use hearth_controller::db::prewarm_targets::{Target, TargetState};
use hearth_controller::db::prewarms::{Prewarm, PrewarmFilter};
use hearth_controller::db::{Change, Db, DbError, PageRequest, new_id};
use hearth_protocol::api::cache::{Keep, Targets};
use hearth_protocol::id::LocationId;
use hearth_protocol::words::{EntryStatus, ImageStatus, Origin, PrewarmState, Priority, Visibility};

use crate::engines::Place;
use crate::fixture::{active_image, locations, observed, op};
use crate::on_both_engines;

on_both_engines! {
    putting_an_intent_twice_makes_one
    an_intent_for_nothing_is_refused
    holds_end
    a_forced_removal_leaves_no_other_wish
    a_forced_removal_ends_what_waits_for_the_copy
    a_job_and_its_intents_change_together
    a_job_is_cancelled_paused_and_tried_again
    targets_show_progress_and_page
    nothing_is_wanted_for_an_image_that_is_gone
    jobs_end_with_their_image_or_go_on
}

async fn putting_an_intent_twice_makes_one(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "wanted").await;
    let ids = locations(&db, 3).await;
    let wish = |id: &LocationId, hold| Intent::manual(image.id, image.content.unwrap(), *id, hold);
    let first: Vec<_> = ids.iter().map(|id| wish(id, IntentHold::Until(100))).collect();
    db.put_intents(&first, &op("cache.add")).await.unwrap();
    let before = db.intents().await.unwrap();
    assert_eq!(before.len(), 3);
    let mut again: Vec<_> = ids.iter().map(|id| wish(id, IntentHold::Until(200))).collect();
    again.extend(ids.iter().map(|id| wish(id, IntentHold::Pinned)));
    db.put_intents(&again, &op("cache.pin")).await.unwrap();
    let after = db.intents().await.unwrap();
    let ids_of = |intents: &[Intent]| intents.iter().map(|intent| intent.id).collect::<Vec<_>>();
    assert_eq!(ids_of(&after), ids_of(&before), "the rows keep their ids");
    assert!(after.iter().all(|intent| intent.hold == IntentHold::Pinned), "the last of a call counts");
    let policy = Intent { origin: Origin::Policy, ..wish(&ids[0], IntentHold::Pinned) };
    db.put_intents(&[policy], &op("cache.add")).await.unwrap();
    assert_eq!(db.intents_at(ids[0]).await.unwrap().len(), 2, "another origin is another wish");
    assert_eq!(db.delete_intents(image.id, ids[0], Origin::Manual, &op("cache.unpin")).await.unwrap(), 1);
    assert_eq!(db.delete_intents(image.id, ids[0], Origin::Manual, &op("cache.unpin")).await.unwrap(), 0);
    assert_eq!(db.intents_for(image.id, Some(&ids[..1])).await.unwrap()[0].origin, Origin::Policy);
    assert_eq!(db.drop_intents(&ids_of(&after)).await.unwrap(), 2);
}

async fn an_intent_for_nothing_is_refused(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "wanted").await;
    let nowhere = Intent::manual(image.id, image.content.unwrap(), new_id(), IntentHold::Pinned);
    assert!(matches!(db.put_intents(&[nowhere], &op("cache.add")).await, Err(DbError::Sql { .. })));
    assert_eq!(db.intents().await.unwrap(), vec![]);
}

async fn holds_end(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "held").await;
    let ids = locations(&db, 3).await;
    let holds = [IntentHold::Until(100), IntentHold::Until(200), IntentHold::Pinned];
    let wishes: Vec<_> = ids
        .iter()
        .zip(holds)
        .map(|(id, hold)| Intent::manual(image.id, image.content.unwrap(), *id, hold))
        .collect();
    db.put_intents(&wishes, &op("cache.add")).await.unwrap();
    assert_eq!(db.expire_holds(99).await.unwrap(), vec![]);
    let ended = db.expire_holds(100).await.unwrap();
    assert_eq!(ended.iter().map(|intent| intent.location).collect::<Vec<_>>(), ids[..1]);
    assert_eq!(db.expire_holds(i64::MAX).await.unwrap().len(), 1);
    assert_eq!(db.intents().await.unwrap().len(), 1, "pinned is for ever");
}

async fn a_forced_removal_leaves_no_other_wish(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "unwanted").await;
    let (content, ids) = (image.content.unwrap(), locations(&db, 2).await);
    for origin in [Origin::Manual, Origin::Policy] {
        let wish =
            |id: &LocationId| Intent { origin, ..Intent::manual(image.id, content, *id, IntentHold::Pinned) };
        db.put_intents(&ids.iter().map(wish).collect::<Vec<_>>(), &op("cache.add")).await.unwrap();
    }
    db.wish_removed(image.id, content, &ids[..1], false, &op("cache.rm")).await.unwrap();
    let wishes =
        async |id| db.intents_at(id).await.unwrap().iter().map(|intent| intent.wish).collect::<Vec<_>>();
    assert_eq!(wishes(ids[0]).await, vec![IntentWish::Remove, IntentWish::Keep]);
    db.wish_removed(image.id, content, &ids[..1], true, &op("cache.rm")).await.unwrap();
    assert_eq!(wishes(ids[0]).await, vec![IntentWish::Remove]);
    assert_eq!(wishes(ids[1]).await, vec![IntentWish::Keep, IntentWish::Keep]);
}

async fn job(db: &Db, name: &str, state: PrewarmState, keep: Keep, n: u32) -> (Prewarm, Vec<LocationId>) {
    let image = active_image(db, name).await;
    let ids = locations(db, n).await;
    let job = Prewarm {
        id: new_id(),
        image: image.id,
        content: image.content.unwrap(),
        image_name: image.facts.name,
        group: None,
        state,
        targets: Targets { all: true, ..Targets::default() },
        priority: Priority::Deadline,
        deadline_us: Some(5_000_000),
        start_us: Some(1),
        rate_bytes_per_s: Some(1 << 20),
        keep,
        created_by: "test".to_owned(),
        created_us: 0,
        finished_us: None,
    };
    db.create_prewarm(&job, &ids, &op("prewarm.create")).await.unwrap();
    (job, ids)
}

fn target(location: LocationId, state: TargetState) -> Target {
    Target { location, state, reason: String::new(), attempts: 1, done_us: None }
}

async fn a_forced_removal_ends_what_waits_for_the_copy(place: Place) {
    let db = place.open().await;
    let (job, ids) = job(&db, "warm", PrewarmState::Running, Keep::default(), 3).await;
    db.update_targets(job.id, &[target(ids[0], TargetState::Active)]).await.unwrap();
    db.wish_removed(job.image, job.content, &ids[2..], false, &op("cache.rm")).await.unwrap();
    let states = async || db.targets(job.id).await.unwrap().iter().map(|t| t.state).collect::<Vec<_>>();
    assert_eq!(states().await[2], TargetState::Waiting, "without force the job goes on");
    let mut changes = db.subscribe();
    db.wish_removed(job.image, job.content, &ids[..2], true, &op("cache.rm")).await.unwrap();
    let after = vec![TargetState::Active, TargetState::Cancelled, TargetState::Waiting];
    assert_eq!(states().await, after);
    let told = std::iter::from_fn(|| changes.try_recv().ok()).any(|change| change == Change::Prewarm(job.id));
    assert!(told, "the reconciler hears of it");
    // Read by the reconciler before.
    db.update_targets(job.id, &[target(ids[1], TargetState::Waiting)]).await.unwrap();
    assert_eq!(states().await, after);
}

async fn a_job_and_its_intents_change_together(place: Place) {
    let db = place.open().await;
    let (job, ids) = job(&db, "warm", PrewarmState::Scheduled, Keep::Seconds(60), 3).await;
    assert_eq!(db.intents().await.unwrap(), vec![], "a scheduled job wants nothing yet");
    db.start_prewarm(job.id, &op("prewarm.start")).await.unwrap();
    let intents = db.intents().await.unwrap();
    assert_eq!(intents.len(), 3);
    for intent in &intents {
        assert_eq!(
            (intent.prewarm, intent.origin, intent.hold),
            (Some(job.id), Origin::Job, IntentHold::Pinned)
        );
        assert_eq!((intent.priority, intent.deadline_us), (Priority::Deadline, Some(5_000_000)));
        assert_eq!(intent.rate_bytes_per_s, Some(1 << 20));
    }
    let error = db.delete_image(job.image, None, &op("image.delete")).await.unwrap_err();
    assert!(matches!(&error, DbError::State { state, .. } if state == "being prewarmed"), "{error}");
    let results = [target(ids[0], TargetState::Active), target(ids[1], TargetState::Active)];
    db.update_targets(job.id, &results).await.unwrap();
    db.update_targets(job.id, &[target(ids[2], TargetState::Failed)]).await.unwrap();
    let before_us = clock::unix_us();
    db.finish_prewarm(job.id, true, &op("prewarm.finish")).await.unwrap();
    let intents = db.intents().await.unwrap();
    assert_eq!(intents.len(), 2, "what failed is not wanted any more");
    for intent in intents {
        let IntentHold::Until(until_us) = intent.hold else { panic!("{intent:?}") };
        assert!(
            (before_us + 60_000_000..before_us + 70_000_000).contains(&until_us),
            "kept a minute after the end"
        );
    }
    let over = db.prewarm(job.id).await.unwrap().unwrap();
    assert_eq!((over.state, over.keep), (PrewarmState::Failed, Keep::Seconds(60)));
    assert!(over.finished_us.is_some() && over.targets.all);
    assert_eq!(db.unfinished_prewarms().await.unwrap(), vec![]);
}

async fn a_job_is_cancelled_paused_and_tried_again(place: Place) {
    let db = place.open().await;
    let (job, ids) = job(&db, "warm", PrewarmState::Running, Keep::Pinned, 3).await;
    db.pause_prewarm(job.id, &op("prewarm.pause")).await.unwrap();
    assert!(matches!(db.pause_prewarm(job.id, &op("prewarm.pause")).await, Err(DbError::State { .. })));
    assert_eq!(db.intents().await.unwrap().len(), 3);
    db.resume_prewarm(job.id, &op("prewarm.resume")).await.unwrap();
    db.update_targets(job.id, &[target(ids[0], TargetState::Active), target(ids[1], TargetState::Failed)])
        .await
        .unwrap();
    db.update_targets(job.id, &[target(ids[2], TargetState::Failed)]).await.unwrap();
    db.finish_prewarm(job.id, true, &op("prewarm.finish")).await.unwrap();
    assert_eq!(db.intents().await.unwrap()[0].hold, IntentHold::Pinned, "made with --pin");
    assert_eq!(db.retry_prewarm(job.id, &op("prewarm.retry")).await.unwrap(), 2);
    assert_eq!(db.prewarm(job.id).await.unwrap().unwrap().state, PrewarmState::Running);
    assert_eq!(db.intents().await.unwrap().len(), 3);
    let states =
        async || db.targets(job.id).await.unwrap().iter().map(|t| (t.state, t.attempts)).collect::<Vec<_>>();
    let waiting = (TargetState::Waiting, 0);
    assert_eq!(states().await, vec![(TargetState::Active, 1), waiting, waiting]);
    db.cancel_prewarm(job.id, &op("prewarm.cancel")).await.unwrap();
    assert_eq!(db.intents().await.unwrap(), vec![]);
    let cancelled = (TargetState::Cancelled, 0);
    assert_eq!(states().await, vec![(TargetState::Active, 1), cancelled, cancelled]);
    assert!(matches!(db.cancel_prewarm(job.id, &op("prewarm.cancel")).await, Err(DbError::State { .. })));
    let cancelled = PrewarmFilter {
        state: Some(PrewarmState::Cancelled),
        image: Some(job.image),
        group: None,
        domain: None,
    };
    assert_eq!(db.prewarms(&cancelled, &PageRequest::default()).await.unwrap().items.len(), 1);
    let running =
        PrewarmFilter { state: Some(PrewarmState::Running), image: None, group: None, domain: None };
    assert_eq!(db.prewarms(&running, &PageRequest::default()).await.unwrap().items.len(), 0);
}

async fn targets_show_progress_and_page(place: Place) {
    let db = place.open().await;
    let (job, ids) = job(&db, "warm", PrewarmState::Running, Keep::default(), 6).await;
    db.apply_changes(ids[1], &[observed(job.content, EntryStatus::Caching, 1000)]).await.unwrap();
    db.apply_changes(ids[5], &[observed(job.content, EntryStatus::Active, 1 << 20)]).await.unwrap();
    let results = [target(ids[5], TargetState::Active), target(ids[4], TargetState::Failed)];
    db.update_targets(job.id, &results).await.unwrap();
    let (mut page, mut seen) = (PageRequest::first(4), Vec::new());
    loop {
        let rows = db.target_rows(job.id, None, &page).await.unwrap();
        seen.extend(rows.items);
        let Some(next) = rows.next else { break };
        page.cursor = Some(next);
    }
    let order: Vec<_> = seen.iter().map(|row| row.location_name.as_str()).collect();
    assert_eq!(order, ["n-004", "n-000", "n-001", "n-002", "n-003", "n-005"], "failed, running, the rest");
    assert_eq!(seen[2].entry.as_ref().unwrap().done_bytes, 1000);
    assert!(seen[0].entry.is_none() && seen[0].last_seen_us.is_some());
    let failed = db.target_rows(job.id, Some(TargetState::Failed), &PageRequest::default()).await.unwrap();
    assert_eq!(failed.items.len(), 1);
    let progress = db.prewarm_progress(&[job.id, new_id()]).await.unwrap()[&job.id];
    assert_eq!((progress.total, progress.active, progress.failed, progress.cancelled), (6, 1, 1, 0));
    assert_eq!((progress.done_bytes, progress.data_bytes), ((1 << 20) + 1000, 6 << 20));
    assert_eq!(progress.moved_bytes, (1 << 19) + 500);
}

/// The caller read the image before it went, or its job is older than that; the content lives on in another image.
async fn nothing_is_wanted_for_an_image_that_is_gone(place: Place) {
    let db = place.open().await;
    let (job, ids) = job(&db, "gone", PrewarmState::Running, Keep::Seconds(60), 1).await;
    let failed = Target { reason: "no".to_owned(), ..target(ids[0], TargetState::Failed) };
    db.update_targets(job.id, &[failed]).await.unwrap();
    db.finish_prewarm(job.id, true, &op("prewarm.finish")).await.unwrap();
    let wish = Intent::manual(job.image, job.content, ids[0], IntentHold::Pinned);
    db.bin_image(job.image, None, &op("image.delete")).await.unwrap();
    let in_bin = db.put_intents(std::slice::from_ref(&wish), &op("cache.add")).await.unwrap_err();
    assert!(matches!(&in_bin, DbError::State { state, .. } if state == "pending_delete"), "{in_bin}");
    db.delete_image(job.image, None, &op("image.delete")).await.unwrap();
    let gone = |error: DbError| assert!(matches!(error, DbError::NotFound { what: "image", .. }), "{error}");
    gone(db.put_intents(&[wish], &op("cache.add")).await.unwrap_err());
    gone(db.retry_prewarm(job.id, &op("prewarm.retry")).await.unwrap_err());
    gone(db.wish_removed(job.image, job.content, &ids, true, &op("cache.rm")).await.unwrap_err());
    for state in [PrewarmState::Running, PrewarmState::Scheduled] {
        let late = Prewarm { id: new_id(), state, ..job.clone() };
        gone(db.create_prewarm(&late, &ids, &op("prewarm.create")).await.unwrap_err());
    }
    assert_eq!(db.intents().await.unwrap(), vec![]);
    let found = db.prewarm(job.id).await.unwrap().unwrap();
    assert_eq!(found.state, PrewarmState::Failed, "it can end");
    let other = active_image(&db, "other").await;
    let foreign = Intent::manual(other.id, job.content, ids[0], IntentHold::Pinned);
    let refused = db.put_intents(&[foreign], &op("cache.add")).await.unwrap_err();
    assert!(matches!(refused, DbError::State { .. }), "{refused}");
}

/// DL-3: what is refused cancels nothing; what goes takes all its jobs along, each with its row in the log.
async fn jobs_end_with_their_image_or_go_on(place: Place) {
    let db = place.open().await;
    let (first, ids) = job(&db, "warm", PrewarmState::Running, Keep::Pinned, 2).await;
    let again = Prewarm { id: new_id(), state: PrewarmState::Scheduled, ..first.clone() };
    db.create_prewarm(&again, &ids, &op("prewarm.create")).await.unwrap();
    let (image, go) = (first.image, op("image.delete"));
    let revision = db.image(image).await.unwrap().unwrap().revision;
    for stale in [
        db.bin_image_with(image, Some(revision + 1), PrewarmJobs::Cancel, &go).await.unwrap_err(),
        db.delete_image_with(image, Some(revision + 1), PrewarmJobs::Cancel, &go).await.unwrap_err(),
    ] {
        assert!(matches!(stale, DbError::Revision { .. }), "{stale}");
    }
    let public = |facts: &mut ImageFacts| facts.visibility = Visibility::Public;
    db.update_image(image, None, public, &op("image.update")).await.unwrap();
    let refused = db.bin_image_with(image, None, PrewarmJobs::Cancel, &go).await.unwrap_err();
    assert!(matches!(&refused, DbError::State { state, .. } if state == "public"), "{refused}");
    assert_eq!(db.unfinished_prewarms().await.unwrap().len(), 2);
    assert_eq!(db.intents().await.unwrap().len(), 2);
    let private = |facts: &mut ImageFacts| facts.visibility = Visibility::Private;
    db.update_image(image, None, private, &op("image.update")).await.unwrap();
    let kept = db.bin_image(image, None, &go).await.unwrap_err();
    assert!(matches!(&kept, DbError::State { state, .. } if state == "being prewarmed"), "{kept}");
    let binned = db.bin_image_with(image, None, PrewarmJobs::Cancel, &go).await.unwrap();
    assert_eq!(binned.status, ImageStatus::PendingDelete);
    assert_eq!(db.unfinished_prewarms().await.unwrap(), vec![]);
    assert_eq!(db.intents().await.unwrap(), vec![]);
    let cancelled =
        OperationFilter { action: Some("prewarm.cancel".to_owned()), ..OperationFilter::default() };
    let rows = db.operations(&cancelled, &PageRequest::default()).await.unwrap().items;
    let named: BTreeSet<_> = rows.iter().map(|row| row.draft.target_id.clone()).collect();
    assert_eq!(named, BTreeSet::from([first.id.to_string(), again.id.to_string()]));
}
