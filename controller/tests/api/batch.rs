//! One action on many images.

use hearth_protocol::id::ImageId;
use hearth_protocol::words::Role;
use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Client, Place, fault, noise};

async fn images(client: &Client, names: &[&str]) -> Vec<ImageId> {
    let mut ids = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let id = client.image(json!({ "name": name })).await;
        client.put(id, noise(1000 + n as u64)).await;
        client.ended(id).await;
        ids.push(id);
    }
    ids
}

async fn batch(client: &Client, sent: Value) -> Vec<Value> {
    client.post("/images/batch", sent).await["results"].as_array().unwrap().clone()
}

fn oks(results: &[Value]) -> Vec<bool> {
    results.iter().map(|result| result["ok"].as_bool().unwrap()).collect()
}

/// SH-8, DL-1, DL-2: each image of a batch gets what the single call would have given it, in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_its_single_calls() {
    let place = Place::new().await;
    let client = &place.client;
    let ids = images(client, &["one", "two", "three"]).await;
    let missing: ImageId = "01234567-89ab-7def-8123-456789abcdef".parse().unwrap();
    let done = batch(client, json!({ "action": "protect", "images": [ids[1]] })).await;
    assert_eq!(oks(&done), [true]);
    let all = [ids[2], missing, ids[1], ids[0]];
    let done = batch(client, json!({ "action": "delete", "images": all })).await;
    assert_eq!(oks(&done), [true, false, false, true]);
    assert_eq!(done.iter().map(|one| one["id"].clone()).collect::<Vec<_>>(), all.map(|id| json!(id)));
    for (result, id) in [(&done[1], missing), (&done[2], ids[1])] {
        let single = client.ask(Method::DELETE, &format!("/images/{id}")).send().await.unwrap();
        let status = single.status().as_u16();
        let single = fault(single, status).await;
        assert_eq!(result["status"], status);
        assert_eq!(
            (&result["error"]["message"], &result["error"]["code"]),
            (&json!(single.message), &json!(single.code))
        );
    }
    assert_eq!((&done[0]["name"], &done[2]["name"]), (&json!("three"), &json!("two")));
    for (action, status) in [
        ("restore", "active"),
        ("deactivate", "deactivated"),
        ("reactivate", "active"),
        ("unprotect", "active"),
    ] {
        let these = if action == "restore" { vec![ids[0], ids[2]] } else { ids.clone() };
        let done = batch(client, json!({ "action": action, "images": these })).await;
        assert!(oks(&done).iter().all(|ok| *ok), "{action}: {done:?}");
        assert_eq!(client.get(&format!("/images/{}", ids[0])).await["status"], status);
    }
    assert!(oks(&batch(client, json!({ "action": "destroy", "images": ids })).await).iter().all(|ok| *ok));
    assert_eq!(client.get("/images").await["items"], json!([]));
    let log = client.get("/operations?action=image.restore").await;
    assert_eq!(log["items"].as_array().unwrap().len(), 2, "one row per image");
    place.stop().await;
}

/// AT-1: tags in batch; the limit holds for each image by itself.
#[tokio::test(flavor = "multi_thread")]
async fn tags_come_and_go_in_batch() {
    let place = Place::new().await;
    let client = &place.client;
    let full: Vec<String> = (0..50).map(|n| format!("t{n}")).collect();
    let ids = [
        client.image(json!({ "name": "a" })).await,
        client.image(json!({ "name": "b", "tags": full })).await,
    ];
    let done = batch(client, json!({ "action": "tag", "images": ids, "tags": ["Prod", "T7"] })).await;
    assert_eq!(oks(&done), [true, false]);
    assert!(done[1]["error"]["message"].as_str().unwrap().contains("at most 50"), "{done:?}");
    assert_eq!(client.get("/images?tag=prod&tag=t7").await["items"][0]["name"], "a");
    let done = batch(client, json!({ "action": "untag", "images": ids, "tags": ["PROD", "t7"] })).await;
    assert_eq!(oks(&done), [true, true]);
    assert_eq!(client.get(&format!("/images/{}", ids[0])).await["tags"], json!([]));
    assert_eq!(client.get(&format!("/images/{}", ids[1])).await["tags"].as_array().unwrap().len(), 49);
    place.stop().await;
}

/// SH-8: a request that cannot be meant is refused as a whole, and nothing is done.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_batch_does_nothing() {
    let place = Place::new().await;
    let client = &place.client;
    let id = client.image(json!({ "name": "stays" })).await;
    let many: Vec<String> = (0..101).map(|n| format!("00000000-0000-7000-8000-{n:012}")).collect();
    for (sent, field) in [
        (json!({ "action": "delete", "images": many }), "images"),
        (json!({ "action": "delete", "images": [] }), "images"),
        (json!({ "action": "delete", "images": [id, id] }), "images"),
        (json!({ "action": "delete", "images": ["stays"] }), "images[0]"),
        (json!({ "action": "explode", "images": [id] }), "action"),
        (json!({ "action": "tag", "images": [id] }), "tags"),
        (json!({ "action": "delete", "images": [id], "tags": ["x"] }), "tags"),
        (json!({ "action": "tag", "images": [id], "tags": ["a\u{0}"] }), "tags"),
        (json!({ "action": "restore", "images": [id], "force": true }), "force"),
        (json!({ "action": "delete", "images": [id], "all": true }), "all"),
    ] {
        let answer = client.ask(Method::POST, "/images/batch").json(&sent).send().await.unwrap();
        let error = fault(answer, 400).await;
        assert_eq!(error.field.as_deref(), Some(field), "{sent}: {error:?}");
    }
    assert_eq!(client.get(&format!("/images/{id}")).await["revision"], 1);
    place.stop().await;
}

/// SH-7, SH-8: each image is asked for its own right; one of others looks like none.
#[tokio::test(flavor = "multi_thread")]
async fn rights_are_asked_for_each_image() {
    let place = Place::new().await;
    let db = place.controller.db();
    let (domain, mine) = db.default_tenants().await.unwrap();
    let other = hearth_controller::db::new_id();
    let op = hearth_controller::db::operations::Draft::system("project.create");
    db.create_project(other, domain, "other", &op).await.unwrap();
    let scope = json!({ "scope": "project", "project": mine });
    let member = place.client.delegate("member", Role::Member, scope.clone()).await;
    let reader = place.client.delegate("reader", Role::Reader, scope).await;
    let own = images(&member, &["own"]).await[0];
    let theirs = place.client.image(json!({ "name": "theirs", "project": other })).await;
    let public = place.client.image(json!({ "name": "public", "project": other, "public": true })).await;
    let sent = json!({ "action": "delete", "images": [theirs, public, own] });
    let done = batch(&member, sent.clone()).await;
    let statuses: Vec<&Value> = done.iter().map(|one| &one["status"]).collect();
    assert_eq!(statuses, [&json!(404), &json!(403), &json!(200)]);
    assert!(done[0].get("name").is_none(), "{done:?}");
    let closed = batch(&member, json!({ "action": "deactivate", "images": [own] })).await;
    assert_eq!(closed[0]["status"], 403, "{closed:?}");
    fault(reader.ask(Method::POST, "/images/batch").json(&sent).send().await.unwrap(), 403).await;
    place.stop().await;
}
