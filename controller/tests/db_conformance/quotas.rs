//! Quotas under rivalry, and the usage that outlives its images.

use futures::future::join_all;
use hearth_controller::db::images::ImageFacts;
use hearth_controller::db::tokens::Scope;
use hearth_controller::db::usage::{Usage, UsageFilter};
use hearth_controller::db::{Db, DbError, PageRequest, new_id};
use hearth_controller::logic::quota::{Figures, OwnLimits};
use hearth_protocol::id::{DomainId, ImageId, ProjectId};
use hearth_protocol::words::Visibility;
use sqlx::Executor as _;

use crate::engines::Place;
use crate::fixture::{image_of, new_image, op, original, project_in};

const DAY_US: i64 = 24 * 3600 * 1_000_000;

async fn project(db: &Db) -> (DomainId, ProjectId) {
    let (domain, _) = db.default_tenants().await.unwrap();
    (domain, project_in(db, domain, "limited").await)
}

async fn limit(db: &Db, project: ProjectId, own: OwnLimits) {
    db.set_quota(project, own, &op("quota.update")).await.unwrap();
}

async fn uploaded(db: &Db, id: ImageId) -> Result<(), DbError> {
    db.start_upload(id).await?;
    db.accept_upload(id, &original(), (new_id(), "{}"), &op("image.upload")).await
}

/// QU-1: of a hundred parallel creates for one free place exactly one succeeds.
async fn a_hundred_rivals_for_one_place(place: Place) {
    let db = place.open().await;
    let (domain, project) = project(&db).await;
    limit(&db, project, OwnLimits { images: Some(3), ..OwnLimits::default() }).await;
    image_of(&db, domain, project, "a").await;
    image_of(&db, domain, project, "b").await;
    let news: Vec<_> = (0..100).map(|n| new_image(domain, project, &format!("rival-{n}"))).collect();
    let ops: Vec<_> = news.iter().map(|_| op("image.create")).collect();
    let ended = join_all(news.iter().zip(&ops).map(|(new, op)| db.create_image(new, op))).await;
    let refused = ended.iter().filter(|ended| {
        matches!(ended, Err(DbError::Quota { what: "images", used: 3, wanted: 1, limit: 3, .. }))
    });
    assert_eq!(refused.count(), 99, "{ended:?}");
    assert_eq!(db.quota(project).await.unwrap().used.images, 3);
    // A public image is nobody's charge.
    let mut public = new_image(domain, project, "public");
    public.facts.visibility = Visibility::Public;
    db.create_image(&public, &op("image.create")).await.unwrap();
    let error = db.unpublish_image(&db.image(public.id).await.unwrap().unwrap(), None, &op("x")).await;
    assert!(matches!(error.unwrap_err(), DbError::Quota { .. }), "made custom it would be one too many");
}

/// QU-1: bytes and imports are limited where they come in.
async fn bytes_and_imports_are_limited_too(place: Place) {
    let db = place.open().await;
    let (domain, project) = project(&db).await;
    limit(&db, project, OwnLimits { bytes: Some(2500), imports: Some(1), images: None }).await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(image_of(&db, domain, project, name).await);
    }
    uploaded(&db, ids[0]).await.unwrap();
    let busy = db.start_upload(ids[1]).await.unwrap_err();
    assert!(busy.to_string().contains("1 imports at once of at most 1"), "{busy}");
    db.fail_image(ids[0], None, "damaged", &op("image.import")).await.unwrap();
    uploaded(&db, ids[1]).await.unwrap();
    db.fail_image(ids[1], None, "damaged", &op("image.import")).await.unwrap();
    let full = uploaded(&db, ids[2]).await.unwrap_err();
    assert!(matches!(full, DbError::Quota { what: "bytes", used: 2000, wanted: 1000, limit: 2500, .. }));
    assert!(db.refuse_over_quota(project, Figures::bytes(501)).await.is_err());
    db.refuse_over_quota(project, Figures::bytes(500)).await.unwrap();
    // Sent again, an image replaces its own bytes.
    db.abort_upload(ids[2], "").await.unwrap();
    uploaded(&db, ids[0]).await.unwrap();
    assert_eq!(db.quota(project).await.unwrap().used, Figures { images: 3, bytes: 2000, imports: 1 });
}

/// QU-1: an owner's change moves the charge, and is refused where there is no room for it.
async fn an_owners_change_moves_the_charge(place: Place) {
    let db = place.open().await;
    let (domain, old) = project(&db).await;
    let new = project_in(&db, domain, "new").await;
    let id = image_of(&db, domain, old, "a").await;
    uploaded(&db, id).await.unwrap();
    let give = async || {
        let seen = db.image(id).await.unwrap().unwrap();
        db.change_owner(&seen, new, None, &op("image.owner")).await
    };
    limit(&db, new, OwnLimits { bytes: Some(999), ..OwnLimits::default() }).await;
    let error = give().await.unwrap_err();
    assert!(matches!(error, DbError::Quota { used: 0, wanted: 1000, limit: 999, .. }), "{error}");
    limit(&db, new, OwnLimits { bytes: Some(1000), ..OwnLimits::default() }).await;
    give().await.unwrap();
    assert_eq!(db.quota(old).await.unwrap().used, Figures::NONE);
    assert_eq!(db.quota(new).await.unwrap().used, Figures { images: 1, bytes: 1000, imports: 1 });
}

/// QU-1: the default holds where nothing is set; the first project has no limit.
async fn the_first_project_has_no_limit_and_others_the_default(place: Place) {
    let db = place.open().await;
    let (domain, first) = db.default_tenants().await.unwrap();
    let other = project_in(&db, domain, "other").await;
    db.set_default_limits(Figures { images: 1, bytes: 0, imports: 0 });
    for (project, own) in [(first, OwnLimits::UNLIMITED), (other, OwnLimits::default())] {
        assert_eq!(db.quota(project).await.unwrap().own, own);
    }
    for name in ["a", "b"] {
        image_of(&db, domain, first, name).await;
    }
    image_of(&db, domain, other, "a").await;
    let error = db.create_image(&new_image(domain, other, "b"), &op("image.create")).await.unwrap_err();
    assert!(matches!(error, DbError::Quota { limit: 1, .. }), "{error}");
    let missing = db.set_quota(new_id(), OwnLimits::default(), &op("quota.update")).await.unwrap_err();
    assert!(matches!(missing, DbError::NotFound { what: "project", .. }), "{missing}");
}

async fn usage(db: &Db, project: ProjectId, days: i64) -> Usage {
    let now = hearth_controller::clock::unix_us();
    let (from_us, to_us) = (now - days * DAY_US, now + DAY_US);
    let filter = UsageFilter { scope: Scope::System, project: Some(project), from_us, to_us };
    db.usage(&filter, &PageRequest::default()).await.unwrap().items.remove(0)
}

/// QU-2: bytes and days survive the image and stay with whom they were charged to.
async fn usage_survives_deletion_and_owners(place: Place) {
    let db = place.open().await;
    let (domain, old) = project(&db).await;
    let new = project_in(&db, domain, "new").await;
    let id = image_of(&db, domain, old, "a").await;
    let mut intruder = place.connect().await;
    let mut age = async || {
        let back = "UPDATE tenure SET from_us = from_us - 864000000000, to_us = to_us - 864000000000";
        intruder.execute(back).await.unwrap();
    };
    assert_eq!(usage(&db, old, 30).await.byte_days, 0);
    uploaded(&db, id).await.unwrap();
    age().await;
    let now = usage(&db, old, 30).await;
    assert_eq!((now.images, now.bytes, now.byte_days), (1, 1000, 10_000), "ten days of 1,000 bytes");
    assert_eq!(usage(&db, old, 4).await.byte_days, 4000, "only what lies in the range");
    let seen = db.image(id).await.unwrap().unwrap();
    db.change_owner(&seen, new, None, &op("image.owner")).await.unwrap();
    age().await;
    db.delete_image(id, None, &op("image.delete")).await.unwrap();
    for (project, range, byte_days) in [(old, 60, 10_000), (old, 5, 0), (new, 60, 10_000)] {
        let line = usage(&db, project, range).await;
        assert_eq!((line.images, line.bytes, line.byte_days), (0, 0, byte_days), "{line:?}");
    }
    // The charge rests while everybody has it.
    let id = image_of(&db, domain, new, "b").await;
    uploaded(&db, id).await.unwrap();
    db.publish_image(&db.image(id).await.unwrap().unwrap(), None, &op("image.publish")).await.unwrap();
    assert_eq!((usage(&db, new, 1).await.images, usage(&db, new, 1).await.bytes), (0, 0));
    let edit = |facts: &mut ImageFacts| facts.description = "x".to_owned();
    db.update_image(id, None, edit, &op("image.update")).await.unwrap();
    let row =
        intruder.fetch_one("SELECT CAST(COUNT(*) AS BIGINT) AS n FROM tenure WHERE to_us IS NULL").await;
    assert_eq!(sqlx::Row::get::<i64, _>(&row.unwrap(), "n"), 0, "nothing is open for a public image");
}

/// QU-2: a report is cut to the scope and paged.
async fn a_report_is_cut_to_the_scope(place: Place) {
    let db = place.open().await;
    let (domain, first) = db.default_tenants().await.unwrap();
    let elsewhere: DomainId = new_id();
    db.create_domain(elsewhere, "elsewhere", &op("domain.create")).await.unwrap();
    let foreign = project_in(&db, elsewhere, "foreign").await;
    let report = async |scope| {
        let filter = UsageFilter { scope, project: None, from_us: 0, to_us: 1 };
        let (mut projects, mut page) = (Vec::new(), PageRequest::first(1));
        loop {
            let found = db.usage(&filter, &page).await.unwrap();
            projects.extend(found.items.iter().map(|line| line.project));
            let Some(next) = found.next else { return projects };
            page.cursor = Some(next);
        }
    };
    assert_eq!(report(Scope::System).await, [first, foreign]);
    assert_eq!(report(Scope::Domain(elsewhere)).await, [foreign]);
    assert_eq!(report(Scope::Project(domain, first)).await, [first]);
}

/// What an earlier version left: one domain, two projects, an image of each with a file, and a public one.
async fn version_1(place: &Place) {
    const SPINE: &str = include_str!("../../src/db/migrations/0001_spine.sql");
    let mut old = place.connect().await;
    let mut hasher = blake3::Hasher::new();
    let is_code = |line: &&str| !line.is_empty() && !line.starts_with("--");
    for line in SPINE.lines().map(str::trim).filter(is_code) {
        hasher.update(line.as_bytes()).update(b"\n");
    }
    let hash = hasher.finalize().to_hex();
    let rows = format!(
        "CREATE TABLE schema_version (version BIGINT NOT NULL PRIMARY KEY, applied_us BIGINT NOT NULL);
        {SPINE}
        INSERT INTO schema_version VALUES (1, 0);
        INSERT INTO meta VALUES ('schema_blake3', '{hash}');
        INSERT INTO domain VALUES ('{}', 'default', 'default', 0, 0, 0);",
        id(1)
    );
    old.execute(sqlx::AssertSqlSafe(rows)).await.unwrap();
    for (n, name) in [(2, "default"), (3, "other")] {
        let project =
            format!("INSERT INTO project VALUES ('{}', '{}', '{name}', '{name}', 0, 0, 0)", id(n), id(1));
        old.execute(sqlx::AssertSqlSafe(project)).await.unwrap();
    }
    for (n, project, visibility) in [(4, 2, "private"), (5, 3, "private"), (6, 3, "public")] {
        let image = format!(
            "INSERT INTO image (id, name, name_folded, name_key, kind, status, percent, reason, container_format, \
             visibility, domain_id, project_id, architecture, os_type, distribution, version, description, min_disk_bytes, \
             min_memory_bytes, protected, properties, expected, original_bytes, original_kept, revision, created_us, \
             updated_us) VALUES ('{}', 'i{n}', 'i{n}', 'i{n}', 'disk', 'active', 0, '', 'bare', '{visibility}', '{}', '{}', \
             '', '', '', '', '', 0, 0, 0, '{{}}', '{{}}', 1000, 1, 1, {}, 0)",
            id(n),
            id(1),
            id(project),
            hearth_controller::clock::unix_us() - 3 * DAY_US
        );
        old.execute(sqlx::AssertSqlSafe(image)).await.unwrap();
    }
}

fn id(n: u8) -> String {
    ProjectId::from_bytes([n; 16]).to_string()
}

/// QU-1, QU-2: a database of the first version is brought further; what it holds is charged from its creation on.
async fn an_older_database_is_charged_from_the_beginning(place: Place) {
    version_1(&place).await;
    Db::upgrade(&place.url, &place.folder.path().join("before")).await.unwrap().unwrap();
    let db = place.open().await;
    let (first, other) = (ProjectId::from_bytes([2; 16]), ProjectId::from_bytes([3; 16]));
    assert_eq!(db.default_tenants().await.unwrap().1, first);
    assert_eq!(db.quota(first).await.unwrap().own, OwnLimits::UNLIMITED);
    let quota = db.quota(other).await.unwrap();
    assert_eq!((quota.own, quota.used), (OwnLimits::default(), Figures::one_image(1000)));
    for project in [first, other] {
        let line = usage(&db, project, 30).await;
        assert_eq!((line.images, line.bytes, line.byte_days), (1, 1000, 3000), "{line:?}");
    }
}

crate::on_both_engines! {
    an_older_database_is_charged_from_the_beginning
    a_hundred_rivals_for_one_place
    bytes_and_imports_are_limited_too
    an_owners_change_moves_the_charge
    the_first_project_has_no_limit_and_others_the_default
    usage_survives_deletion_and_owners
    a_report_is_cut_to_the_scope
}
