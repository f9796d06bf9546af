//! Images of two owners with the same bytes: one copy serves both, and neither learns of the other.

use hearth_protocol::id::ImageId;
use hearth_protocol::words::{ConsumerKind, ImageStatus};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::harness::{Client, Place, fault, noise};
use super::places;
use super::sharing::tenants;

async fn active(client: &Client, name: &str) -> ImageId {
    let id = client.image(json!({ "name": name })).await;
    assert_eq!(client.put(id, noise(1000)).await.status(), StatusCode::ACCEPTED);
    assert_eq!(client.ended(id).await.status, ImageStatus::Active);
    id
}

async fn mark(who: &Client) -> Value {
    who.get("/images?at=host-1").await["items"][0]["cached"].clone()
}

async fn delete(who: &Client, id: ImageId) -> Response {
    who.ask(Method::DELETE, &format!("/images/{id}")).send().await.unwrap()
}

/// SH-7, LS-4, DL-3: marks and refusals come from what was done for the caller's own image.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_does_not_learn_of_a_twin() {
    let place = Place::new().await;
    let db = place.controller.db();
    let t = tenants(&place).await;
    let (mine, theirs) = (active(&t.owner, "mine").await, active(&t.stranger, "theirs").await);
    let content = db.image(mine).await.unwrap().unwrap().content.unwrap();
    assert_eq!(db.image(theirs).await.unwrap().unwrap().content, Some(content));
    let at = places::location(db, "host-1").await;
    let launch = async |who: &Client, id: ImageId| {
        who.post(&format!("/images/{id}/launch"), json!({ "location": "host-1" })).await
    };
    launch(&t.stranger, theirs).await;
    places::cached(db, at, content).await;
    places::leased(db, at, content, &[(ConsumerKind::Vm, "their-vm")]).await;
    assert_eq!((mark(&t.stranger).await, mark(&t.owner).await), (json!(true), json!(false)));

    // A machine of somebody else keeps nothing of mine, whether or not its image is still there.
    assert_eq!(delete(&t.owner, mine).await.status(), StatusCode::NO_CONTENT);
    t.owner.post(&format!("/images/{mine}/restore"), json!({})).await;

    // A machine of my own keeps it, whether or not somebody else has the same bytes.
    launch(&t.owner, mine).await;
    assert_eq!(mark(&t.owner).await, json!(true));
    let kept = fault(delete(&t.owner, mine).await, 409).await;
    fault(delete(&t.stranger, theirs).await, 409).await;
    let forced = t.stranger.ask(Method::DELETE, &format!("/images/{theirs}?force=true&now=true"));
    assert_eq!(forced.send().await.unwrap().status(), StatusCode::NO_CONTENT);
    let alone = fault(delete(&t.owner, mine).await, 409).await;
    assert_eq!((kept.message, kept.hint), (alone.message, alone.hint));

    // What the others' copy was is not told to who uploads the same later; nor to me once mine is gone.
    let late = active(&t.receiver, "late").await;
    assert_eq!(mark(&t.receiver).await, json!(false));
    places::leased(db, at, content, &[]).await;
    assert_eq!(delete(&t.owner, mine).await.status(), StatusCode::NO_CONTENT);
    launch(&t.receiver, late).await;
    assert_eq!(mark(&t.receiver).await, json!(true));
    place.stop().await;
}

/// DL-3: the image that a machine runs on is not deleted by chance because another one of the same owner has its bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_twin_of_the_same_owner_does_not_stand_in_for_a_used_image() {
    let place = Place::new().await;
    let (db, client) = (place.controller.db(), &place.client);
    let (used, spare) = (active(client, "used").await, active(client, "spare").await);
    let content = db.image(used).await.unwrap().unwrap().content.unwrap();
    assert_eq!(db.image(spare).await.unwrap().unwrap().content, Some(content));
    let at = places::location(db, "host-1").await;
    client.post(&format!("/images/{used}/launch"), json!({ "location": "host-1" })).await;
    places::cached(db, at, content).await;
    places::leased(db, at, content, &[(ConsumerKind::Vm, "vm-18")]).await;
    let refused = fault(delete(client, used).await, 409).await;
    assert!(refused.message.contains("used by vm vm-18"), "{}", refused.message);
    assert_eq!(delete(client, spare).await.status(), StatusCode::NO_CONTENT, "nobody uses this one");
    fault(delete(client, used).await, 409).await;
    place.stop().await;
}
