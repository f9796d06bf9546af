//! Attributes of images: what may be set, what may not, and two editors at once.

use hearth_protocol::id::ImageId;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::harness::{Client, Place, body, fault, noise};

async fn patch(client: &Client, id: ImageId, revision: &str, sent: &Value) -> Response {
    let request = client.ask(Method::PATCH, &format!("/images/{id}")).header("if-match", revision);
    request.json(sent).send().await.unwrap()
}

/// The image changed from its newest revision.
async fn changed(client: &Client, id: ImageId, sent: Value) -> Value {
    let revision = client.get(&format!("/images/{id}")).await["revision"].to_string();
    body(patch(client, id, &revision, &sent).await).await
}

/// What a new image may say.
fn everything() -> Value {
    json!({
        "name": "<b>ubuntu</b> 系统", "kind": "disk", "format": "qcow2", "architecture": "aarch64",
        "os_type": "linux", "distribution": "Ubuntu", "version": "24.04", "description": "one\ntwo",
        "min_disk_bytes": 20_000_000_000_u64, "min_memory_bytes": 1_u64 << 30, "virtualisation": "kvm",
        "disk_bytes": 40_u64 << 30, "disk_driver": "virtio", "network_driver": "e1000", "os_language": "zh_CN",
        "app_platform": "nginx", "password_enabled": true, "tags": ["Prod", "数据库"], "protected": true,
        "properties": { "team": "db" },
    })
}

/// IN-6, LS-3: what is said at import is shown as it was said.
#[tokio::test(flavor = "multi_thread")]
async fn all_attributes_of_a_new_image_are_shown() {
    let place = Place::new().await;
    let made = place.client.post("/images", everything()).await;
    let shown = place.client.get(&format!("/images/{}", made["id"].as_str().unwrap())).await;
    for (field, value) in everything().as_object().unwrap() {
        assert_eq!(&shown[field], value, "{field}");
    }
    place.stop().await;
}

/// AT-1: every attribute can be set, and emptied; what is absent stays.
#[tokio::test(flavor = "multi_thread")]
async fn every_attribute_can_be_set_and_emptied() {
    let place = Place::new().await;
    let client = &place.client;
    let id = client.image(json!({ "name": "plain" })).await;
    let edits = json!({
        "name": "edited", "description": "说明", "architecture": "x86_64", "os_type": "macos",
        "distribution": "Debian", "version": "12", "min_disk_bytes": 1, "min_memory_bytes": 2,
        "disk_driver": "pvscsi", "network_driver": "vmxnet3", "os_language": "en", "app_platform": "k8s",
        "password_enabled": true, "tags": ["a"], "properties": { "x": "1" },
    });
    for (field, value) in edits.as_object().unwrap() {
        let before = client.get(&format!("/images/{id}")).await;
        let mut after = changed(client, id, json!({ field: value })).await;
        assert_eq!(&after[field], value, "{field}");
        after[field].clone_from(&before[field]);
        for moving in ["revision", "updated_at"] {
            after[moving].clone_from(&before[moving]);
        }
        assert_eq!(after, before, "{field} alone changed");
    }
    for field in edits.as_object().unwrap().keys().filter(|field| *field != "name") {
        let after = changed(client, id, json!({ field: null })).await;
        let empty = match field.as_str() {
            "disk_driver" | "network_driver" => json!("auto"),
            "password_enabled" => json!(false),
            "tags" => json!([]),
            "properties" => json!({}),
            _ => Value::Null,
        };
        assert_eq!(after[field], empty, "{field}");
    }
    place.stop().await;
}

/// AT-2: what never changes is refused by name, and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_never_changes_is_refused_by_name() {
    let place = Place::new().await;
    let id = place.client.image(json!({ "name": "fixed", "virtualisation": "kvm" })).await;
    for field in ["url", "format", "domain", "virtualisation"] {
        for value in [json!("raw"), Value::Null] {
            let sent = json!({ "description": "new", field: value });
            let error = fault(patch(&place.client, id, "1", &sent).await, 400).await;
            assert_eq!(error.field.as_deref(), Some(field));
            assert!(error.message.contains("never changes"), "{error:?}");
        }
    }
    let shown = place.client.get(&format!("/images/{id}")).await;
    assert_eq!((&shown["revision"], &shown["description"]), (&json!(1), &Value::Null));
    place.stop().await;
}

/// AT-2: name and remark can be changed in any state, other attributes in any but the recycle bin.
#[tokio::test(flavor = "multi_thread")]
async fn name_and_remark_change_in_any_state() {
    let place = Place::new().await;
    let client = &place.client;
    let edit = |name: &str| json!({ "name": name, "description": format!("{name} now") });
    let id = client.image(json!({ "name": "queued" })).await;
    changed(client, id, edit("one")).await;
    client.put(id, noise(50_000)).await;
    client.ended(id).await;
    for (verb, state) in [("deactivate", "deactivated"), ("reactivate", "active")] {
        client.post(&format!("/images/{id}/{verb}"), json!({})).await;
        assert_eq!(changed(client, id, edit(state)).await["status"], state);
    }
    let killed = client.image(json!({ "name": "killed", "expected": { "md5": "0".repeat(32) } })).await;
    client.put(killed, noise(1000)).await;
    assert_eq!(changed(client, killed, edit("two")).await["status"], "killed");
    body(client.ask(Method::DELETE, &format!("/images/{id}")).send().await.unwrap()).await;
    let binned = changed(client, id, edit("three")).await;
    assert_eq!((&binned["status"], &binned["name"]), (&json!("pending_delete"), &json!("three")));
    let revision = binned["revision"].to_string();
    let error = fault(patch(client, id, &revision, &json!({ "os_type": "linux" })).await, 409).await;
    assert!(error.message.contains("recycle bin"), "{error:?}");
    place.stop().await;
}

/// AT-3: two editors cannot overwrite each other, and nobody can forget to say what he read.
#[tokio::test(flavor = "multi_thread")]
async fn two_editors_cannot_overwrite_each_other() {
    let place = Place::new().await;
    let client = &place.client;
    let id = client.image(json!({ "name": "both" })).await;
    let read = client.ask(Method::GET, &format!("/images/{id}")).send().await.unwrap();
    let tag = read.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(tag, "\"1\"");
    let (sent_a, sent_b) = (json!({ "description": "a" }), json!({ "description": "b" }));
    let both = tokio::join!(patch(client, id, &tag, &sent_a), patch(client, id, &tag, &sent_b));
    let (won, lost) = if both.0.status().is_success() { both } else { (both.1, both.0) };
    assert_eq!(won.headers()["etag"], "\"2\"");
    let won = body(won).await;
    let lost = fault(lost, 412).await;
    assert!(lost.code == "revision" && lost.message.contains("revision 2, not 1"), "{lost:?}");
    assert_eq!(client.get(&format!("/images/{id}")).await["description"], won["description"]);
    let request = client.ask(Method::PATCH, &format!("/images/{id}")).json(&sent_a);
    let missing = fault(request.send().await.unwrap(), 428).await;
    assert!(missing.hint.unwrap().contains("If-Match"));
    for wrong in ["*", "soon", "-1", "\"two\""] {
        let error = fault(patch(client, id, wrong, &sent_a).await, 400).await;
        assert_eq!(error.field.as_deref(), Some("if-match"));
    }
    place.stop().await;
}

/// AT-1: the log shows the fields that changed, and an edit that changes nothing is none.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_shows_what_became_what() {
    let place = Place::new().await;
    let client = &place.client;
    let id = client.image(json!({ "name": "logged", "os_type": "linux" })).await;
    let sent = json!({ "os_type": "windows", "tags": ["x"] });
    assert_eq!(changed(client, id, sent.clone()).await["revision"], 2);
    assert_eq!(changed(client, id, sent).await["revision"], 2, "nothing changed");
    let log = client.get(&format!("/operations?target_kind=image&target={id}&action=image.update")).await;
    let rows = log["items"].as_array().unwrap();
    let details: Vec<&Value> = rows.iter().map(|row| &row["details"]).collect();
    let expected = json!({
        "before": { "os_type": "linux", "tags": [] },
        "after": { "os_type": "windows", "tags": ["x"] },
    });
    assert_eq!(details, [&expected]);
    place.stop().await;
}

/// AT-1, IN-6: bad input is refused with its field and changes nothing, in a new image and in an edit alike.
#[tokio::test(flavor = "multi_thread")]
async fn bad_input_names_its_field_and_changes_nothing() {
    let place = Place::new().await;
    let client = &place.client;
    let id = client.image(json!({ "name": "good" })).await;
    let mut cases = Vec::new();
    for field in ["name", "description", "distribution", "version", "os_language", "app_platform"] {
        for text in ["a\u{0}b", "\u{1b}[2J", "gpj.\u{202E}exe", "\u{200F}x", "a\u{2028}b", "\u{7f}"] {
            cases.push((field.to_owned(), json!({ field: text })));
        }
        cases.push((field.to_owned(), json!({ field: "x".repeat(4097) })));
        cases.push((field.to_owned(), json!({ field: 7 })));
    }
    for (field, value) in [
        ("architecture", json!("amd64")),
        ("os_type", json!("Linux")),
        ("disk_driver", json!("nvme")),
        ("network_driver", json!("")),
        ("min_disk_bytes", json!("20GB")),
        ("min_disk_bytes", json!(-1)),
        ("min_memory_bytes", json!(1.5)),
        ("password_enabled", json!("yes")),
        ("tags", json!(["", "b"])),
        ("tags", json!(["a", "A"])),
        ("tags", json!(["x".repeat(65)])),
        ("tags", json!((0..51).map(|n| n.to_string()).collect::<Vec<_>>())),
        ("properties", json!([])),
        ("nonsense", json!(1)),
    ] {
        cases.push((field.to_owned(), json!({ field: value })));
    }
    for (field, sent) in &cases {
        let error = fault(patch(client, id, "1", sent).await, 400).await;
        assert_eq!(error.field.as_deref(), Some(field.as_str()), "{sent}: {error:?}");
        let mut sent = sent.clone();
        let new = sent.as_object_mut().unwrap();
        new.entry("name").or_insert(json!("new"));
        let answer = client.ask(Method::POST, "/images").json(&new).send().await.unwrap();
        assert_eq!(fault(answer, 400).await.field.as_deref(), Some(field.as_str()), "{new:?}");
    }
    for (field, value) in [
        ("disk_bytes", json!(1_u64 << 30)),
        ("disk_bytes", json!(501_u64 << 30)),
        ("disk_bytes", json!(20_000_000_001_u64)),
        ("disk_bytes", json!("40 GB")),
        ("virtualisation", json!("qemu")),
    ] {
        let answer = client.ask(Method::POST, "/images").json(&json!({ "name": "new", field: value }));
        let error = fault(answer.send().await.unwrap(), 400).await;
        assert_eq!(error.field.as_deref(), Some(field), "{value}: {error:?}");
    }
    let text = client.ask(Method::PATCH, &format!("/images/{id}")).header("if-match", "1");
    let text = text.header("content-type", "application/json").body(&b"{\"name\":\"\xff\xfe\"}"[..]);
    fault(text.send().await.unwrap(), 400).await;
    assert_eq!(client.get("/images").await["items"].as_array().unwrap().len(), 1);
    assert_eq!(client.get(&format!("/images/{id}")).await["revision"], 1);
    place.stop().await;
}

/// AT-1: what looks like a path or a page is a name like any other, and comes back as it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_a_text_and_nothing_else() {
    let place = Place::new().await;
    for name in ["../../etc/passwd", "<script>alert(1)</script>", "'; DROP TABLE image; --", "%00", "C:\\x"] {
        let id = place.client.image(json!({ "name": name, "tags": [name], "description": name })).await;
        let answer = place.client.ask(Method::GET, &format!("/images/{id}")).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/json");
        assert_eq!(body(answer).await["name"], name);
    }
    let outside = place.dir.path().join("etc");
    assert!(!outside.exists() && place.client.get("/images").await["items"].as_array().unwrap().len() == 5);
    place.stop().await;
}

/// IN-6: the table of distributions is configuration, and refuses only where it is strict.
#[tokio::test(flavor = "multi_thread")]
async fn a_strict_table_of_distributions_refuses_others() {
    let free = Place::new().await;
    let table = free.client.get("/distributions").await;
    assert_eq!(table["strict"], false);
    assert!(table["distributions"].as_array().unwrap().len() > 10);
    free.client.image(json!({ "name": "odd", "distribution": "Plan 9", "version": "4" })).await;
    free.stop().await;
    let place = Place::with(|config| config.catalog.distributions_strict = true).await;
    let client = &place.client;
    let new = |distribution: &str, version: &str| json!({ "name": "x", "distribution": distribution, "version": version, "architecture": "aarch64" });
    for (sent, field) in [(new("Plan 9", "4"), "distribution"), (new("CentOS", "6.5"), "version")] {
        let error = fault(client.ask(Method::POST, "/images").json(&sent).send().await.unwrap(), 400).await;
        assert_eq!(error.field.as_deref(), Some(field));
        assert!(error.message.contains("Ubuntu") || error.message.contains("7.9"), "{error:?}");
    }
    let id = client.image(new("centos", "7.9")).await;
    let error = fault(patch(client, id, "1", &json!({ "version": "6.5" })).await, 400).await;
    assert_eq!(error.field.as_deref(), Some("version"));
    assert_eq!(changed(client, id, json!({ "description": "free" })).await["description"], "free");
    place.stop().await;
}
