//! Images, contents, tokens and tenants.

use hearth_controller::db::image_changes::Imported;
use hearth_controller::db::image_list::ImageFilter;
use hearth_controller::db::jobs::{JobKind, JobState};
use hearth_controller::db::tokens::{Scope, Token};
use hearth_controller::db::{DbError, PageRequest, new_id};
use hearth_protocol::words::{DiskFormat, ImageStatus, ImportStage, Role, Visibility};
use sqlx::Executor as _;

use crate::engines::Place;
use crate::fixture::{active_image, content_named, op, original, queued_image};
use crate::on_both_engines;

on_both_engines! {
    an_image_goes_through_its_states
    an_image_that_went_away_stops_its_import
    names_are_unique_among_live_images_of_a_project
    a_stale_revision_is_refused
    a_scope_sees_only_its_images
    lists_filter_and_page
    a_content_stays_while_it_is_used
    jobs_are_claimed_once_and_queued_again_after_a_crash
    a_damaged_value_names_table_and_column
    revoked_and_ended_tokens_are_not_found
}

/// Proves IMG-3.
async fn an_image_goes_through_its_states(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "spine").await;
    assert_eq!((image.status, image.stage, image.percent), (ImageStatus::Active, None, 0));
    let content = content_named("spine");
    assert_eq!((image.content, image.virtual_bytes), (Some(content.id), Some(content.raw_bytes)));
    assert_eq!(
        (image.stored_bytes, image.data_bytes),
        (Some(content.stored_bytes), Some(content.data_bytes))
    );
    assert_eq!((image.original_bytes, image.checksums), (Some(1000), original().checksums));
    assert_eq!((image.format, image.original_kept, image.revision), (Some(DiskFormat::Qcow2), true, 1));
    assert_eq!(db.job_of_image(image.id).await.unwrap().unwrap().state, JobState::Done);
    let error = db.start_upload(image.id).await.unwrap_err();
    assert!(matches!(&error, DbError::State { state, .. } if state == "active"), "{error}");
    // A second try after a failure.
    let id = queued_image(&db, "again").await;
    db.start_upload(id).await.unwrap();
    assert!(matches!(db.start_upload(id).await, Err(DbError::State { .. })), "two uploads at once");
    db.set_progress(id, ImportStage::Uploading, 40).await.unwrap();
    assert_eq!(db.image(id).await.unwrap().unwrap().percent, 40);
    db.fail_image(id, None, "bad header", &op("image.import")).await.unwrap();
    let killed = db.image(id).await.unwrap().unwrap();
    assert_eq!(
        (killed.status, killed.reason.as_str(), killed.percent),
        (ImageStatus::Killed, "bad header", 0)
    );
    db.start_upload(id).await.unwrap();
    assert_eq!(db.reset_uploads().await.unwrap(), vec![id]);
    assert_eq!(db.image(id).await.unwrap().unwrap().status, ImageStatus::Queued);
    db.set_deactivated(image.id, true, &op("image.deactivate")).await.unwrap();
    assert_eq!(db.image(image.id).await.unwrap().unwrap().status, ImageStatus::Deactivated);
}

async fn an_image_that_went_away_stops_its_import(place: Place) {
    let db = place.open().await;
    let id = queued_image(&db, "gone").await;
    db.start_upload(id).await.unwrap();
    let job = new_id();
    db.accept_upload(id, &original(), (job, "{}"), &op("image.upload")).await.unwrap();
    assert_eq!(db.claim_job().await.unwrap().unwrap().id, job);
    db.delete_image(id, None, &op("image.delete")).await.unwrap();
    assert!(matches!(db.set_progress(id, ImportStage::Chunking, 5).await, Err(DbError::NotFound { .. })));
    let imported = Imported {
        content: content_named("gone"),
        format: DiskFormat::Raw,
        original_kept: false,
        variants: Vec::new(),
        scan: None,
    };
    let finished = db.finish_import(id, job, &imported, &op("image.import")).await;
    assert!(matches!(finished, Err(DbError::NotFound { .. })));
    assert_eq!(
        db.content(content_named("gone").id).await.unwrap(),
        None,
        "half of a refused import was kept"
    );
    assert_eq!(db.job_of_image(id).await.unwrap().unwrap().state, JobState::Failed);
}

async fn names_are_unique_among_live_images_of_a_project(place: Place) {
    let db = place.open().await;
    let first = active_image(&db, "Debian").await;
    let second = queued_image(&db, "other").await;
    let rename = db
        .update_image(second, None, |facts| "DEBIAN".clone_into(&mut facts.name), &op("image.update"))
        .await;
    assert!(matches!(rename, Err(DbError::Exists { .. })));
    let named = db.images_named(Scope::System, "debian").await.unwrap();
    assert_eq!(named.iter().map(|image| image.id).collect::<Vec<_>>(), vec![first.id]);
    let deleted = db.delete_image(first.id, Some(1), &op("image.delete")).await.unwrap();
    assert_eq!(deleted.content, first.content, "the caller learns what to clean up");
    assert_eq!(db.image(first.id).await.unwrap().unwrap().status, ImageStatus::Deleted);
    assert!(db.images_named(Scope::System, "debian").await.unwrap().is_empty());
    db.update_image(second, None, |facts| "DEBIAN".clone_into(&mut facts.name), &op("image.update"))
        .await
        .unwrap();
    let protect = |facts: &mut hearth_controller::db::images::ImageFacts| facts.protected = true;
    db.update_image(second, None, protect, &op("image.update")).await.unwrap();
    let error = db.delete_image(second, None, &op("image.delete")).await.unwrap_err();
    assert!(matches!(&error, DbError::State { state, .. } if state == "protected"), "{error}");
}

async fn a_stale_revision_is_refused(place: Place) {
    let db = place.open().await;
    let id = queued_image(&db, "edited").await;
    let edit = |text: &'static str| {
        move |facts: &mut hearth_controller::db::images::ImageFacts| {
            text.clone_into(&mut facts.description);
        }
    };
    assert_eq!(db.update_image(id, Some(1), edit("a"), &op("image.update")).await.unwrap().revision, 2);
    let error = db.update_image(id, Some(1), edit("b"), &op("image.update")).await.unwrap_err();
    assert!(matches!(error, DbError::Revision { found: 2, expected: 1, .. }), "{error}");
    assert_eq!(db.image(id).await.unwrap().unwrap().facts.description, "a");
}

/// Proves SH-7.
async fn a_scope_sees_only_its_images(place: Place) {
    let db = place.open().await;
    let (domain, project) = db.default_tenants().await.unwrap();
    assert_eq!(db.default_tenants().await.unwrap(), (domain, project), "made once");
    let (other_domain, other_project, sister) = (new_id(), new_id(), new_id());
    db.create_domain(other_domain, "other", &op("domain.create")).await.unwrap();
    db.create_project(other_project, other_domain, "theirs", &op("project.create")).await.unwrap();
    db.create_project(sister, domain, "sister", &op("project.create")).await.unwrap();
    let image = queued_image(&db, "mine").await;
    let sees = async |scope: Scope| db.image_seen_by(scope, image).await.unwrap().is_some();
    let (own, stranger) = (Scope::Project(domain, project), Scope::Project(other_domain, other_project));
    assert!(sees(Scope::System).await && sees(Scope::Domain(domain)).await && sees(own).await);
    assert!(!sees(Scope::Domain(other_domain)).await && !sees(stranger).await);
    assert!(!sees(Scope::Project(domain, sister)).await);
    let mut intruder = place.connect().await;
    let share =
        format!("INSERT INTO share VALUES ('{image}', 'project', '{other_project}', 'pending', 0, 0)");
    intruder.execute(sqlx::AssertSqlSafe(share)).await.unwrap();
    let visible = |visibility| {
        move |facts: &mut hearth_controller::db::images::ImageFacts| facts.visibility = visibility
    };
    db.update_image(image, None, visible(Visibility::Shared), &op("image.update")).await.unwrap();
    assert!(!sees(stranger).await, "a share that nobody accepted");
    intruder.execute("UPDATE share SET status = 'accepted'").await.unwrap();
    // A domain's token sees what those of its projects see, and no other domain's does.
    assert!(sees(stranger).await && sees(Scope::Domain(other_domain)).await);
    assert!(!sees(Scope::Project(domain, sister)).await);
    db.update_image(image, None, visible(Visibility::Public), &op("image.update")).await.unwrap();
    assert!(sees(Scope::Project(domain, sister)).await && sees(Scope::Domain(other_domain)).await);
    let listed = db.images(stranger, &ImageFilter::default(), &PageRequest::default()).await.unwrap();
    assert_eq!(listed.items.len(), 1);
}

async fn lists_filter_and_page(place: Place) {
    let db = place.open().await;
    let mut ids = Vec::new();
    for n in 0..7 {
        ids.push(queued_image(&db, &format!("系统镜像 100%_{n}")).await);
    }
    let active = active_image(&db, "Ubuntu").await;
    let list = async |filter: ImageFilter| {
        let page = db.images(Scope::System, &filter, &PageRequest::default()).await.unwrap();
        page.items.into_iter().map(|image| image.id).collect::<Vec<_>>()
    };
    let containing =
        |text: &str| ImageFilter { name_contains: Some(text.to_owned()), ..ImageFilter::default() };
    assert_eq!(list(containing("镜像")).await.len(), 7, "two Chinese characters find");
    assert_eq!(list(containing("BUNT")).await, vec![active.id]);
    assert_eq!(list(containing("0%_3")).await, vec![ids[3]]);
    assert_eq!(list(containing("0_")).await, vec![], "a wildcard is plain text");
    let queued = ImageFilter { status: Some(ImageStatus::Active), ..ImageFilter::default() };
    assert_eq!(list(queued).await, vec![active.id]);
    let (mut page, mut seen) = (PageRequest::first(3), Vec::new());
    loop {
        let rows = db.images(Scope::System, &containing("系统"), &page).await.unwrap();
        seen.extend(rows.items.into_iter().map(|image| image.id));
        queued_image(&db, &format!("系统 new {}", seen.len())).await;
        let Some(next) = rows.next else { break };
        page.cursor = Some(next);
    }
    ids.reverse();
    assert_eq!(seen, ids, "newest first, each once, whatever is made meanwhile");
    page.cursor = Some("nonsense".to_owned());
    assert!(matches!(db.images(Scope::System, &containing(""), &page).await, Err(DbError::Cursor)));
}

async fn a_content_stays_while_it_is_used(place: Place) {
    let db = place.open().await;
    let image = active_image(&db, "only").await;
    let content = image.content.unwrap();
    assert!(!db.forget_content(content).await.unwrap());
    assert_eq!(db.check().await.unwrap().unused_contents, vec![]);
    db.set_content_damaged(content, true, &op("content.damaged")).await.unwrap();
    assert!(db.content(content).await.unwrap().unwrap().damaged);
    db.delete_image(image.id, None, &op("image.delete")).await.unwrap();
    assert_eq!(db.check().await.unwrap().unused_contents, vec![content]);
    assert!(db.forget_content(content).await.unwrap());
    assert_eq!(db.content(content).await.unwrap(), None);
}

async fn jobs_are_claimed_once_and_queued_again_after_a_crash(place: Place) {
    let db = place.open().await;
    let image = queued_image(&db, "job").await;
    let mut queued = Vec::new();
    for _ in 0..6 {
        let id = new_id();
        db.enqueue_job(id, JobKind::Import, image, "{\"format\":\"raw\"}").await.unwrap();
        queued.push(id);
    }
    let claims = futures::future::join_all((0..10).map(|_| db.claim_job())).await;
    let mut claimed: Vec<_> = claims.into_iter().filter_map(|claim| claim.unwrap()).collect();
    claimed.sort_by_key(|job| job.id);
    assert_eq!(claimed.iter().map(|job| job.id).collect::<Vec<_>>(), queued, "each job once");
    assert!(claimed.iter().all(|job| job.attempt == 1 && job.state == JobState::Running));
    db.set_job(queued[0], JobState::Done, "").await.unwrap();
    assert_eq!(db.requeue_running_jobs().await.unwrap(), 5);
    assert_eq!(db.unfinished_jobs().await.unwrap().len(), 5);
    let again = db.claim_job().await.unwrap().unwrap();
    assert_eq!((again.id, again.attempt), (queued[1], 2), "oldest first");
}

async fn a_damaged_value_names_table_and_column(place: Place) {
    let db = place.open().await;
    let id = queued_image(&db, "damaged").await;
    let mut intruder = place.connect().await;
    intruder.execute("UPDATE image SET status = 'melted'").await.unwrap();
    let error = db.image(id).await.unwrap_err();
    assert!(
        matches!(&error, DbError::Value { table: "image", column: "status", given, .. } if given == "melted")
    );
    assert!(error.to_string().contains("image.status"), "{error}");
}

async fn revoked_and_ended_tokens_are_not_found(place: Place) {
    let db = place.open().await;
    let (domain, project) = db.default_tenants().await.unwrap();
    let mut tokens = Vec::new();
    for (scope, expires_us) in [
        (Scope::System, None),
        (Scope::Domain(domain), Some(100)),
        (Scope::Project(domain, project), Some(200)),
    ] {
        let name = "ops".to_owned();
        let (revoked_us, last_used_us) = (None, None);
        let token = Token {
            id: new_id(),
            name,
            role: Role::Member,
            scope,
            holder: None,
            usable: true,
            expires_us,
            revoked_us,
            last_used_us,
            created_us: 0,
        };
        db.create_token(&token, &format!("hash {}", token.id), &op("token.create")).await.unwrap();
        tokens.push(token);
    }
    let find = async |n: usize, now_us: i64| {
        let hash = format!("hash {}", tokens[n].id);
        db.token_by_secret_hash(&hash, now_us).await.unwrap()
    };
    for (n, token) in tokens.iter().enumerate() {
        let found = find(n, 99).await.unwrap();
        assert_eq!((found.id, found.scope, found.role), (token.id, token.scope, token.role));
    }
    assert!(find(1, 100).await.is_none() && find(2, 100).await.is_some());
    db.touch_token(&tokens[0], 1_000_000).await.unwrap();
    let touched = find(0, 99).await.unwrap();
    assert_eq!(touched.last_used_us, Some(1_000_000));
    db.touch_token(&touched, 2_000_000).await.unwrap();
    assert_eq!(find(0, 99).await.unwrap().last_used_us, Some(1_000_000), "once a minute");
    db.revoke_token(tokens[0].id, &op("token.revoke")).await.unwrap();
    assert!(find(0, 99).await.is_none());
    assert!(db.token_by_secret_hash("unknown", 0).await.unwrap().is_none());
    let all = db.tokens(Scope::System, None, &PageRequest::first(2), 99).await.unwrap();
    assert_eq!((all.items.len(), all.next.is_some()), (2, true));
}
