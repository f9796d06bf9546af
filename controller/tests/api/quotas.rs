//! Quotas and usage over HTTP.

use hearth_protocol::words::Role;
use reqwest::Method;
use serde_json::json;

use super::harness::{Place, fault, noise};
use super::sharing::{member, project, tenants};

const MISSING: &str = "01234567-89ab-7def-8123-456789abcdef";

/// QU-1: the eleventh image is refused with figure and limit; receivers and the first project are not limited by it.
#[tokio::test(flavor = "multi_thread")]
async fn the_eleventh_image_is_refused() {
    let place = Place::new().await;
    let t = tenants(&place).await;
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(t.owner.image(json!({ "name": format!("i{n}") })).await);
    }
    let one_more = || t.owner.ask(Method::POST, "/images").json(&json!({ "name": "x" })).send();
    let error = fault(one_more().await.unwrap(), 409).await;
    assert_eq!(error.code, "quota");
    assert!(error.message.contains("project own: 10 images of at most 10"), "{error:?}");
    assert!(error.hint.unwrap().contains("hearth quota set"));
    // The receiver of all ten has room for ten of its own.
    for id in &ids {
        t.owner.post(&format!("/images/{id}/shares"), json!({ "projects": [t.sister] })).await;
        t.receiver.post(&format!("/images/{id}/share/accept"), json!({})).await;
    }
    let receiver = t.receiver.get(&format!("/projects/{}/quota", t.sister)).await;
    assert_eq!(receiver["images"], json!({ "used": 0, "limit": 10, "own": false }));
    place.client.post(&format!("/images/{}/publish", ids[0]), json!({})).await;
    let id = one_more().await.unwrap();
    assert_eq!(id.status(), 201, "a public image is not counted");
    let back = place.client.ask(Method::POST, &format!("/images/{}/unpublish", ids[0])).send().await.unwrap();
    assert_eq!(fault(back, 409).await.code, "quota");
    for n in 0..12 {
        place.client.image(json!({ "name": format!("operator-{n}") })).await;
    }
    place.stop().await;
}

/// QU-1: who sees and who sets a quota; wrong figures name their field.
#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_seen_inside_and_set_from_above() {
    let place = Place::new().await;
    let t = tenants(&place).await;
    let path = format!("/projects/{}/quota", t.own);
    let admin = member(&place, t.own, Role::Admin).await;
    let set = json!({ "images": 2, "bytes": 150_000 });
    fault(admin.ask(Method::PUT, &path).json(&set).send().await.unwrap(), 403).await;
    let put = |path: &str, sent: &serde_json::Value| place.client.ask(Method::PUT, path).json(sent).send();
    let done = super::harness::body(put(&path, &set).await.unwrap()).await;
    assert_eq!(done["images"], json!({ "used": 0, "limit": 2, "own": true }));
    assert_eq!(done["imports"], json!({ "used": 0, "own": false }));
    fault(put(&format!("/projects/{MISSING}/quota"), &set).await.unwrap(), 404).await;
    let hidden = fault(t.stranger.ask(Method::GET, &path).send().await.unwrap(), 404).await;
    let none = t.stranger.ask(Method::GET, &format!("/projects/{MISSING}/quota")).send().await.unwrap();
    assert_eq!(hidden.message.replace(&t.own.to_string(), MISSING), fault(none, 404).await.message);
    for (sent, field) in [
        (json!({ "bytes": u64::MAX }), "bytes"),
        (json!({ "images": -1 }), "images"),
        (json!({ "disks": 1 }), "disks"),
    ] {
        assert_eq!(
            fault(put(&path, &sent).await.unwrap(), 400).await.field.as_deref(),
            Some(field),
            "{sent}"
        );
    }
    let rows = place.client.get("/operations?action=quota.update").await;
    let expected =
        json!({ "before": { "images": null, "bytes": null }, "after": { "images": 2, "bytes": 150_000 } });
    assert_eq!(rows["items"][0]["details"], expected);

    let id = t.owner.image(json!({ "name": "a" })).await;
    assert_eq!(t.owner.put(id, noise(100_000)).await.status(), 202);
    t.owner.ended(id).await;
    let second = t.owner.image(json!({ "name": "b" })).await;
    let refused = fault(t.owner.put(second, noise(100_000)).await, 409).await;
    assert!(refused.message.contains("100000 bytes of at most 150000"), "{refused:?}");
    assert_eq!(t.owner.get(&format!("/images/{second}")).await["status"], "queued", "before a byte was read");
    // A stream that did not say how long it is is refused at its end, and nothing of it is kept.
    let pieces = futures::stream::iter([Ok::<_, std::io::Error>(noise(100_000))]);
    let ask =
        t.owner.ask(Method::PUT, &format!("/images/{second}/file")).body(reqwest::Body::wrap_stream(pieces));
    assert_eq!(fault(ask.send().await.unwrap(), 409).await.code, "quota");
    let image = t.owner.get(&format!("/images/{second}")).await;
    assert_eq!((&image["status"], &image["original_bytes"]), (&json!("killed"), &json!(null)));
    let kept = super::harness::files(&place.config.state_dir.join("originals"));
    assert_eq!(kept.len(), 1, "{kept:?}");
    place.stop().await;
}

/// QU-2: each sees the usage of its own, as JSON and as CSV.
#[tokio::test(flavor = "multi_thread")]
async fn usage_is_reported_to_whom_it_concerns() {
    let place = Place::new().await;
    let t = tenants(&place).await;
    let evil = project(&place, t.domain, "=cmd()").await;
    let id = t.owner.image(json!({ "name": "a" })).await;
    t.owner.put(id, noise(100_000)).await;
    t.owner.ended(id).await;
    let mine = t.owner.get("/usage").await;
    assert_eq!(mine["items"].as_array().unwrap().len(), 1);
    let line = &mine["items"][0];
    assert_eq!(
        (&line["project"], &line["images"], &line["bytes"]),
        (&json!(t.own), &json!(1), &json!(100_000))
    );
    assert_eq!(place.client.get("/usage").await["items"].as_array().unwrap().len(), 5);
    let one = place.client.get(&format!("/usage?project={}", t.sister)).await;
    assert_eq!(one["items"][0]["bytes"], 0);
    for hidden in [MISSING.to_owned(), t.foreign.to_string()] {
        let answer = t.owner.ask(Method::GET, &format!("/usage?project={hidden}")).send().await.unwrap();
        fault(answer, 404).await;
    }
    for (query, field) in [
        ("from=yesterday", "from"),
        ("to=2026", "to"),
        ("from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z", "from"),
        ("format=xml", "format"),
    ] {
        let answer = t.owner.ask(Method::GET, &format!("/usage?{query}")).send().await.unwrap();
        assert_eq!(fault(answer, 400).await.field.as_deref(), Some(field), "{query}");
    }
    let csv = place.client.ask(Method::GET, "/usage?format=csv").send().await.unwrap();
    assert!(csv.headers()["content-type"].to_str().unwrap().starts_with("text/csv"));
    let text = csv.text().await.unwrap();
    assert_eq!(text.lines().count(), 6, "{text}");
    assert!(text.contains(&format!("{evil},'=cmd(),0,0,0")), "{text}");
    place.stop().await;
}
