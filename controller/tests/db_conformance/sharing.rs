//! Shares, publishing and the change of an owner, as the store promises them.

use std::collections::BTreeSet;

use hearth_controller::db::images::Image;
use hearth_controller::db::operations::{Draft, OperationFilter};
use hearth_controller::db::shares::Reach;
use hearth_controller::db::tokens::Scope;
use hearth_controller::db::{Db, DbError, PageRequest, new_id};
use hearth_controller::logic::sharing::Receiver;
use hearth_protocol::id::{DomainId, ImageId, ProjectId};
use hearth_protocol::words::{ShareStatus, Visibility};
use serde_json::{Value, json};

use crate::engines::Place;
use crate::fixture::{image_of, op, project_in};

const SYSTEM: Reach = Reach { by_system: true, receivers_max: 10 };
const OWNER: Reach = Reach { by_system: false, receivers_max: 10 };

async fn record(db: &Db, id: ImageId) -> Image {
    db.image(id).await.unwrap().unwrap()
}

async fn share(db: &Db, id: ImageId, receivers: &[Receiver], reach: Reach) -> Result<(), DbError> {
    let receivers: BTreeSet<Receiver> = receivers.iter().copied().collect();
    db.add_shares(&record(db, id).await, &receivers, reach, &on(id, "share.create")).await
}

/// An operation on an image, as the log finds it.
fn on(id: ImageId, action: &str) -> Draft {
    op(action).on("image", id, "noble")
}

/// Details of the rows of the log about an image, oldest first, without its creation.
async fn log(db: &Db, id: ImageId) -> Vec<(String, Value)> {
    let filter = OperationFilter { target_id: Some(id.to_string()), ..OperationFilter::default() };
    let rows = db.operations(&filter, &PageRequest::default()).await.unwrap().items;
    let rows = rows.into_iter().rev().map(|row| (row.draft.action, row.draft.details));
    rows.filter(|(action, _)| action != "image.create").collect()
}

struct Tenants {
    domain: DomainId,
    own: ProjectId,
    sister: ProjectId,
    elsewhere: DomainId,
    foreign: ProjectId,
}

async fn tenants(db: &Db) -> Tenants {
    let (domain, elsewhere): (DomainId, DomainId) = (new_id(), new_id());
    db.create_domain(domain, "here", &op("domain.create")).await.unwrap();
    db.create_domain(elsewhere, "elsewhere", &op("domain.create")).await.unwrap();
    let own = project_in(db, domain, "own").await;
    let sister = project_in(db, domain, "sister").await;
    let foreign = project_in(db, elsewhere, "foreign").await;
    Tenants { domain, own, sister, elsewhere, foreign }
}

/// SH-3, SH-4: sharing twice keeps the answer; the last share makes the image private again.
async fn sharing_twice_keeps_the_answer(place: Place) {
    let db = place.open().await;
    let Tenants { domain, own, sister, .. } = tenants(&db).await;
    let id = image_of(&db, domain, own, "noble").await;
    let receiver = Receiver::Project(sister);
    share(&db, id, &[receiver], OWNER).await.unwrap();
    assert_eq!(record(&db, id).await.facts.visibility, Visibility::Shared);
    db.answer_share(id, sister, ShareStatus::Rejected, &on(id, "share.reject")).await.unwrap();
    let before = record(&db, id).await.revision;
    share(&db, id, &[receiver], OWNER).await.unwrap();
    let shares = db.shares(id).await.unwrap();
    assert_eq!((shares.len(), shares[0].status), (1, ShareStatus::Rejected));
    assert_eq!(shares[0].name, "sister");
    assert_eq!(record(&db, id).await.revision, before, "nothing changed");
    share(&db, id, &[receiver, Receiver::Domain(domain)], OWNER).await.unwrap();
    assert_eq!(db.remove_shares(&record(&db, id).await, None, &on(id, "share.remove")).await.unwrap(), 2);
    assert_eq!(record(&db, id).await.facts.visibility, Visibility::Private);
    assert_eq!(db.remove_shares(&record(&db, id).await, None, &on(id, "share.remove")).await.unwrap(), 0);
    let (sisters, domains) = (format!("project {sister}"), format!("domain {domain}"));
    let expected = [
        ("share.create", json!({ "before": { "shares": [] }, "after": { "shares": [sisters] } })),
        (
            "share.reject",
            json!({ "project": sister, "before": { "status": "pending" }, "after": { "status": "rejected" } }),
        ),
        (
            "share.create",
            json!({ "before": { "shares": [sisters] }, "after": { "shares": [domains, sisters] } }),
        ),
        ("share.remove", json!({ "before": { "shares": [domains, sisters] }, "after": { "shares": [] } })),
    ];
    assert_eq!(log(&db, id).await, expected.map(|(action, details)| (action.to_owned(), details)));
}

/// SH-2: who is out of reach is refused like who does not exist, and then nobody gets the image.
async fn who_is_out_of_reach_does_not_exist(place: Place) {
    let db = place.open().await;
    let Tenants { domain, own, sister, elsewhere, foreign } = tenants(&db).await;
    let id = image_of(&db, domain, own, "noble").await;
    for stranger in [
        Receiver::Project(foreign),
        Receiver::Project(new_id()),
        Receiver::Domain(elsewhere),
        Receiver::Domain(new_id()),
    ] {
        let error = share(&db, id, &[Receiver::Project(sister), stranger], OWNER).await.unwrap_err();
        assert_eq!(error.to_string(), format!("no {stranger}"));
    }
    assert!(db.shares(id).await.unwrap().is_empty());
    share(&db, id, &[Receiver::Project(foreign), Receiver::Domain(elsewhere)], SYSTEM).await.unwrap();
    let statuses: Vec<_> = db.shares(id).await.unwrap().iter().map(|share| share.status).collect();
    assert_eq!(statuses, [ShareStatus::Accepted, ShareStatus::Pending], "a domain has it at once");
}

/// SH-3: the receiver too many is refused with figure and limit, and none of its request is kept.
async fn receivers_are_limited(place: Place) {
    let db = place.open().await;
    let Tenants { domain, own, .. } = tenants(&db).await;
    let id = image_of(&db, domain, own, "noble").await;
    let mut receivers = Vec::new();
    for n in 0..12 {
        receivers.push(Receiver::Project(project_in(&db, domain, &format!("p{n}")).await));
    }
    share(&db, id, &receivers[..9], OWNER).await.unwrap();
    let error = share(&db, id, &receivers[9..11], OWNER).await.unwrap_err();
    assert!(matches!(error, DbError::Quota { used: 9, wanted: 2, limit: 10, .. }), "{error}");
    assert_eq!(db.shares(id).await.unwrap().len(), 9);
    share(&db, id, &receivers[9..10], OWNER).await.unwrap();
    let error = share(&db, id, &receivers[10..], OWNER).await.unwrap_err();
    assert!(error.to_string().contains("10 receivers of at most 10"), "{error}");
    // The limit is on new ones: who is there may be named again.
    share(&db, id, &receivers[..10], Reach { receivers_max: 1, ..OWNER }).await.unwrap();
}

/// SH-4: deleting the image removes it at every receiver.
async fn a_deleted_image_leaves_its_receivers(place: Place) {
    let db = place.open().await;
    let Tenants { domain, own, sister, .. } = tenants(&db).await;
    let id = image_of(&db, domain, own, "noble").await;
    share(&db, id, &[Receiver::Project(sister)], OWNER).await.unwrap();
    db.answer_share(id, sister, ShareStatus::Accepted, &on(id, "share.accept")).await.unwrap();
    let receiver = Scope::Project(domain, sister);
    assert!(db.image_seen_by(receiver, id).await.unwrap().is_some());
    db.delete_image(id, None, &on(id, "image.delete")).await.unwrap();
    assert!(db.image_seen_by(receiver, id).await.unwrap().is_none());
    assert!(db.image_known_to(receiver, id).await.unwrap().is_none());
    assert!(db.shares(id).await.unwrap().is_empty());
    let late = db.answer_share(id, sister, ShareStatus::Accepted, &on(id, "share.accept")).await.unwrap_err();
    assert!(matches!(late, DbError::NotFound { what: "image", .. }), "{late}");
}

/// SH-1: publishing ends the shares; made custom again, the image is private.
async fn a_public_image_has_no_shares(place: Place) {
    let db = place.open().await;
    let Tenants { domain, own, sister, .. } = tenants(&db).await;
    let id = image_of(&db, domain, own, "noble").await;
    share(&db, id, &[Receiver::Project(sister)], OWNER).await.unwrap();
    let public = db.publish_image(&record(&db, id).await, None, &on(id, "image.publish")).await.unwrap();
    assert_eq!(public.facts.visibility, Visibility::Public);
    assert!(db.shares(id).await.unwrap().is_empty());
    let error = share(&db, id, &[Receiver::Project(sister)], OWNER).await.unwrap_err();
    assert!(matches!(error, DbError::State { .. }), "{error}");
    let stale =
        db.unpublish_image(&public, Some(public.revision - 1), &on(id, "image.unpublish")).await.unwrap_err();
    assert!(matches!(stale, DbError::Revision { .. }), "{stale}");
    let custom = db.unpublish_image(&public, None, &on(id, "image.unpublish")).await.unwrap();
    assert_eq!(custom.facts.visibility, Visibility::Private);
    let again = db.unpublish_image(&custom, None, &on(id, "image.unpublish")).await.unwrap();
    assert_eq!(again.revision, custom.revision, "nothing changed");
    let rows = log(&db, id).await;
    let sisters = format!("project {sister}");
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert_eq!(rows[1].1["before"], json!({ "visibility": "shared", "shares": [sisters] }));
    assert_eq!(rows[2].1["after"], json!({ "visibility": "private" }));
}

/// SH-5: the owner changes unless the image is shared beyond the new one, or its name is taken there.
async fn an_owner_changes_within_its_reach(place: Place) {
    let db = place.open().await;
    let Tenants { domain, own, sister, elsewhere, foreign } = tenants(&db).await;
    let id = image_of(&db, domain, own, "noble").await;
    let give = async |project: ProjectId| {
        db.change_owner(&record(&db, id).await, project, None, &on(id, "image.owner")).await
    };
    share(&db, id, &[Receiver::Project(sister)], OWNER).await.unwrap();
    let error = give(foreign).await.unwrap_err();
    assert!(error.to_string().contains(&format!("project {sister}")), "{error}");
    assert!(matches!(give(new_id()).await.unwrap_err(), DbError::NotFound { what: "project", .. }));
    image_of(&db, domain, sister, "Noble").await;
    assert!(matches!(give(sister).await.unwrap_err(), DbError::Exists { .. }));
    let third = project_in(&db, domain, "third").await;
    let given = give(third).await.unwrap();
    assert_eq!((given.project, given.facts.visibility), (third, Visibility::Shared));
    db.remove_shares(&given, None, &on(id, "share.remove")).await.unwrap();
    // To its receiver: that one needs no share of its own image.
    share(&db, id, &[Receiver::Project(own)], OWNER).await.unwrap();
    let back = give(own).await.unwrap();
    assert_eq!((back.project, back.facts.visibility), (own, Visibility::Private));
    assert!(db.shares(id).await.unwrap().is_empty());
    let gone = give(foreign).await.unwrap();
    assert_eq!((gone.domain, gone.project), (elsewhere, foreign));
    let last = log(&db, id).await.pop().unwrap();
    let (before, after) =
        (json!({ "project": own, "domain": domain }), json!({ "project": foreign, "domain": elsewhere }));
    assert_eq!(last, ("image.owner".to_owned(), json!({ "before": before, "after": after })));
    // Whoever still holds the record of before has no say any more.
    let late = db.publish_image(&back, None, &on(id, "image.publish")).await.unwrap_err();
    assert!(matches!(late, DbError::NotFound { .. }), "{late}");
}

crate::on_both_engines! {
    sharing_twice_keeps_the_answer
    who_is_out_of_reach_does_not_exist
    receivers_are_limited
    a_deleted_image_leaves_its_receivers
    a_public_image_has_no_shares
    an_owner_changes_within_its_reach
}
