//! Lists, pages, jobs on locations, and the controller's own facts.

use reqwest::Method;
use serde_json::json;

use super::harness::{Place, fault, noise};

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_every_image_once() {
    let place = Place::new().await;
    for i in 0..7 {
        place.client.image(json!({ "name": format!("image-{i}") })).await;
    }
    let (mut names, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = place.client.get(&format!("/images?limit=3{cursor}")).await;
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 3);
        names.extend(items.iter().map(|image| image["name"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    names.sort();
    assert_eq!(names, (0..7).map(|i| format!("image-{i}")).collect::<Vec<_>>());
    assert_eq!(place.client.get("/images?name=IMAGE-3").await["items"].as_array().unwrap().len(), 1);
    assert_eq!(place.client.get("/images?q=age-4").await["items"].as_array().unwrap().len(), 1);
    for nothing in ["age%25", "image_4", "镜像"] {
        assert_eq!(place.client.get(&format!("/images?q={nothing}")).await["items"], json!([]), "{nothing}");
    }
    for refused in ["x".repeat(256), "a%00b".to_owned()] {
        let answer = place.client.ask(Method::GET, &format!("/images?q={refused}")).send().await.unwrap();
        assert_eq!(fault(answer, 400).await.field.as_deref(), Some("q"));
    }
    assert_eq!(place.client.get("/images?status=active").await["items"], json!([]));
    let taken =
        place.client.ask(Method::POST, "/images").json(&json!({ "name": "Image-1" })).send().await.unwrap();
    assert_eq!(fault(taken, 409).await.code, "conflict");
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_need_an_active_image_and_locations() {
    let place = Place::new().await;
    let client = &place.client;
    let id = client.image(json!({ "name": "cold" })).await;
    let job = |image, targets| json!({ "image": image, "targets": targets });
    let send =
        |path: &'static str, body: serde_json::Value| client.ask(Method::POST, path).json(&body).send();
    let not_yet = fault(send("/prewarms", job(id, json!({ "all": true }))).await.unwrap(), 409).await;
    assert!(not_yet.message.contains("queued"), "{not_yet:?}");
    client.put(id, noise(100_000)).await;
    client.ended(id).await;
    for (targets, field) in [
        (json!({ "all": true }), "targets"),
        (json!({}), "targets"),
        (json!({ "all": true, "select": "zone=z1" }), "targets"),
        (json!({ "select": "" }), "targets.select"),
        (json!({ "select": "zone=nowhere" }), "targets.select"),
    ] {
        let error = fault(send("/prewarms", job(id, targets.clone())).await.unwrap(), 400).await;
        assert_eq!(error.field.as_deref(), Some(field), "{targets}: {error:?}");
    }
    let nobody = fault(send("/cache", job(id, json!({ "to": ["cn-1"] }))).await.unwrap(), 404).await;
    assert!(nobody.message.contains("cn-1"));
    assert_eq!(client.get("/cache").await["items"], json!([]));
    assert_eq!(client.get("/prewarms").await["items"], json!([]));
    assert_eq!(client.get(&format!("/images/{id}/cache")).await["items"], json!([]));
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_is_shown_once() {
    let place = Place::new().await;
    let made = place.client.post("/join-tokens", json!({ "uses": 3, "presets": { "zone": "z1" } })).await;
    let secret = made["token"].as_str().unwrap();
    let parsed: hearth_protocol::message::enrol::JoinToken = secret.parse().unwrap();
    let system = place.client.get("/system").await;
    assert_eq!(parsed.ca.to_string(), system["ca_fingerprint"].as_str().unwrap());
    let list = place.client.get("/join-tokens?limit=10").await;
    assert_eq!(list["items"][0]["uses_left"], 3);
    assert!(list["items"][0].get("token").is_none());
    let id = made["id"].as_str().unwrap();
    let gone = place.client.ask(Method::DELETE, &format!("/join-tokens/{id}")).send().await.unwrap();
    assert_eq!(gone.status(), 204);
    assert_eq!(place.client.get("/join-tokens").await["items"], json!([]));
    place.stop().await;
}

/// Proves CA-10.
#[tokio::test(flavor = "multi_thread")]
async fn transfers_stop_and_start() {
    let place = Place::new().await;
    for (verb, stopped) in [("stop", true), ("start", false)] {
        place.client.post(&format!("/transfers/{verb}"), json!({})).await;
        assert_eq!(place.client.get("/system").await["transfers_stopped"], stopped);
    }
    place.stop().await;
}
