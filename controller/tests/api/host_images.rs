//! Host images: merging, lists, edits, protection, deletion, and what is refused of each.

use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::id::ImageId;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::harness::{Client, Place, body, fault, noise};

/// An active image of the caller's project.
pub(crate) async fn active(client: &Client, name: &str) -> ImageId {
    made(client, json!({ "name": name })).await
}

/// An active image from this record.
pub(crate) async fn made(client: &Client, record: Value) -> ImageId {
    let id = client.image(record).await;
    assert_eq!(client.put(id, noise(70_000)).await.status(), StatusCode::ACCEPTED);
    let image = client.ended(id).await;
    assert_eq!(image.status.as_str(), "active", "{}", image.reason);
    id
}

/// A host image of two new disks; its id and those of the disks.
pub(crate) async fn host_image(client: &Client, name: &str) -> (String, [ImageId; 2]) {
    let disks =
        [active(client, &format!("{name}-system")).await, active(client, &format!("{name}-data")).await];
    let made = client.post("/host-images", json!({ "name": name, "images": disks })).await;
    (made["id"].as_str().unwrap().to_owned(), disks)
}

async fn refused(client: &Client, method: Method, path: &str, sent: Value, status: u16) -> ErrorBody {
    fault(client.ask(method, path).json(&sent).send().await.unwrap(), status).await
}

async fn edit(client: &Client, id: &str, revision: u64, sent: Value) -> reqwest::Response {
    let request = client.ask(Method::PATCH, &format!("/host-images/{id}")).header("if-match", revision);
    request.json(&sent).send().await.unwrap()
}

/// HI-1: disk images become a host image in the order in which they were given.
#[tokio::test(flavor = "multi_thread")]
async fn images_are_merged_in_the_order_of_the_disks() {
    let place = Place::new().await;
    let client = &place.client;
    let facts =
        json!({ "name": "system", "os_type": "linux", "distribution": "Debian", "min_disk_bytes": 5 });
    let (second, first) = (active(client, "data").await, made(client, facts).await);
    let sent = json!({ "name": "整机 一", "images": [first, second], "facts": { "distribution": "Devuan" } });
    let made = client.post("/host-images", sent).await;
    assert_eq!((made["status"].as_str(), made["disks"].as_u64()), (Some("active"), Some(2)));
    assert_eq!(made["facts"]["os_type"], "linux", "as the system disk's image says");
    assert_eq!(
        (made["facts"]["distribution"].as_str(), made["facts"]["min_disk_bytes"].as_u64()),
        (Some("Devuan"), Some(5))
    );
    let disks = made["images"].as_array().unwrap();
    for (position, (id, role)) in [(first, "system"), (second, "data")].into_iter().enumerate() {
        let disk = &disks[position];
        assert_eq!(
            (disk["image"].as_str(), disk["role"].as_str()),
            (Some(id.to_string().as_str()), Some(role))
        );
        assert_eq!((disk["position"].as_u64(), disk["kind"].as_str()), (Some(position as u64), Some("disk")));
        assert!(disk["created_at"].is_string() && disk["format"] == "raw" && disk["status"] == "active");
    }
    let log = client.get("/operations?target_kind=host_image").await;
    assert_eq!(
        (log["items"][0]["action"].as_str(), log["items"][0]["target_name"].as_str()),
        (Some("host_image.create"), Some("整机 一"))
    );
    assert_eq!(log["items"][0]["details"]["images"], json!([first, second]));
    place.stop().await;
}

/// HI-1: what cannot be merged is refused, the refusal names the disk, and nothing is made.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_merged_is_named() {
    let place = Place::new().await;
    let client = &place.client;
    let (a, b) = (active(client, "a").await, active(client, "b").await);
    let iso = client.image(json!({ "name": "iso", "kind": "iso" })).await;
    let cold = client.image(json!({ "name": "cold" })).await;
    let missing = "01234567-89ab-7def-8123-456789abcdef";
    let seventeen: Vec<String> = (10..27).map(|n| format!("01234567-89ab-7def-8123-4567890000{n}")).collect();
    for (images, status, field) in [
        (json!([]), 400, "images"),
        (json!([a]), 400, "images"),
        (json!(seventeen), 400, "images"),
        (json!([a, b, a]), 400, "images[2]"),
        (json!([a, iso]), 400, "images[1]"),
        (json!([cold, a]), 409, "images[0]"),
        (json!([a, missing]), 404, "images[1]"),
        (json!([a, "not-an-id"]), 400, "images[1]"),
        (json!({}), 400, "images"),
    ] {
        let error =
            refused(client, Method::POST, "/host-images", json!({ "name": "x", "images": images }), status)
                .await;
        assert_eq!(error.field.as_deref(), Some(field), "{images}: {error:?}");
    }
    assert_eq!(client.get("/host-images").await["items"], json!([]));
    client.post("/host-images", json!({ "name": "Erp", "images": [a, b] })).await;
    let taken = json!({ "name": "ERP", "images": [b, a] });
    assert_eq!(refused(client, Method::POST, "/host-images", taken, 409).await.code, "conflict");
    place.stop().await;
}

/// HI-1, HI-2: hostile text in any field is refused with the field's name.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_text_is_refused_in_every_field() {
    let place = Place::new().await;
    let client = &place.client;
    let (id, disks) = host_image(client, "erp").await;
    let hostile = ["a\u{0}b", "\u{1b}[2J", "gpj.\u{202E}exe", "a\u{2028}b"];
    for text in hostile {
        let sent = json!({ "name": text, "images": disks });
        assert_eq!(
            refused(client, Method::POST, "/host-images", sent, 400).await.field.as_deref(),
            Some("name")
        );
        let error = fault(edit(client, &id, 1, json!({ "name": text })).await, 400).await;
        assert_eq!(error.field.as_deref(), Some("name"));
        for field in [
            "description",
            "architecture",
            "os_type",
            "distribution",
            "version",
            "os_language",
            "app_platform",
            "disk_driver",
            "network_driver",
        ] {
            let named = format!("facts.{field}");
            let facts = json!({ field: text });
            let sent = json!({ "name": "x", "images": disks, "facts": facts });
            let error = refused(client, Method::POST, "/host-images", sent, 400).await;
            assert_eq!(error.field.as_deref(), Some(named.as_str()), "{error:?}");
            let error = fault(edit(client, &id, 1, json!({ "facts": facts })).await, 400).await;
            assert_eq!(error.field.as_deref(), Some(named.as_str()), "{error:?}");
        }
    }
    let long = edit(client, &id, 1, json!({ "facts": { "description": "x".repeat(5000) } })).await;
    assert_eq!(fault(long, 400).await.field.as_deref(), Some("facts.description"));
    let odd = edit(client, &id, 1, json!({ "colour": "red" })).await;
    assert_eq!(fault(odd, 400).await.field.as_deref(), Some("colour"));
    for query in ["q=a%00b", "name=%1b", "status=melted", "sort=name", "cursor=zz", "limit=many"] {
        fault(client.ask(Method::GET, &format!("/host-images?{query}")).send().await.unwrap(), 400).await;
    }
    // Text that only looks like SQL or HTML is text.
    let odd = "'; DROP TABLE host_image; -- <script>";
    let edited = body(edit(client, &id, 1, json!({ "name": odd })).await).await;
    assert_eq!((edited["name"].as_str(), edited["revision"].as_u64()), (Some(odd), Some(2)));
    assert_eq!(client.get("/host-images?q=%27%3B%20DROP").await["items"].as_array().unwrap().len(), 1);
    place.stop().await;
}

/// HI-2, AT-3: an edit needs the revision it is based on, and two editors cannot overwrite each other.
#[tokio::test(flavor = "multi_thread")]
async fn two_editors_cannot_overwrite_each_other() {
    let place = Place::new().await;
    let client = &place.client;
    let (id, _) = host_image(client, "erp").await;
    let path = format!("/host-images/{id}");
    let blind = refused(client, Method::PATCH, &path, json!({ "name": "x" }), 428).await;
    assert_eq!((blind.code.as_str(), blind.field.as_deref()), ("revision_required", Some("if-match")));
    let both = tokio::join!(
        edit(client, &id, 1, json!({ "facts": { "description": "one" } })),
        edit(client, &id, 1, json!({ "facts": { "description": "two" } })),
    );
    let mut statuses = [both.0.status().as_u16(), both.1.status().as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412], "one wins, the other is told");
    let won = if both.0.status() == StatusCode::OK { "one" } else { "two" };
    let now = client.get(&path).await;
    assert_eq!((now["facts"]["description"].as_str(), now["revision"].as_u64()), (Some(won), Some(2)));
    let sent = json!({ "name": "ERP", "facts": { "disk_driver": "virtio", "os_type": "macos", "description": won } });
    body(edit(client, &id, 2, sent.clone()).await).await;
    assert_eq!(body(edit(client, &id, 3, sent).await).await["revision"], 3, "an edit that changes nothing");
    let log = client.get("/operations?action=host_image.update&limit=1").await;
    let details = &log["items"][0]["details"];
    assert_eq!(details["before"], json!({ "name": "erp", "disk_driver": "auto", "os_type": "" }));
    assert_eq!(details["after"], json!({ "name": "ERP", "disk_driver": "virtio", "os_type": "macos" }));
    // Gone again: an empty text takes the fact away.
    let cleared =
        body(edit(client, &id, 3, json!({ "facts": { "description": "", "os_type": "" } })).await).await;
    assert!(cleared["facts"].get("description").is_none() && cleared["facts"].get("os_type").is_none());
    place.stop().await;
}

/// HI-2: the list is searched, filtered and paged, newest first.
#[tokio::test(flavor = "multi_thread")]
async fn the_list_is_searched_and_paged() {
    let place = Place::new().await;
    let client = &place.client;
    let disks = [active(client, "a").await, active(client, "b").await];
    let mut made = Vec::new();
    for n in 0..5 {
        let sent = json!({ "name": format!("整机镜像 {n}"), "images": disks });
        made.push(client.post("/host-images", sent).await["id"].clone());
    }
    let ids = async |query: &str| {
        let page = client.get(&format!("/host-images?{query}")).await;
        page["items"].as_array().unwrap().iter().map(|one| one["id"].clone()).collect::<Vec<_>>()
    };
    made.reverse();
    assert_eq!(ids("q=%E9%95%9C%E5%83%8F").await, made, "two Chinese characters find, newest first");
    assert_eq!(ids("q=%E5%83%8F%203").await, [made[1].clone()]);
    assert!(ids("q=%25").await.is_empty() && ids("status=killed").await.is_empty());
    assert_eq!(ids("status=active&name=%E6%95%B4%E6%9C%BA%E9%95%9C%E5%83%8F%200").await, [made[4].clone()]);
    let first = client.get("/host-images?limit=3").await;
    let next = first["next"].as_str().unwrap();
    assert_eq!(
        (ids("limit=3").await, ids(&format!("limit=3&cursor={next}")).await),
        (made[..3].to_vec(), made[3..].to_vec())
    );
    place.stop().await;
}

/// HI-2, DL-1: a protected host image refuses deletion; deleting one leaves its disks; a disk of one is not deleted.
#[tokio::test(flavor = "multi_thread")]
async fn protection_and_membership_refuse_deletion() {
    let place = Place::new().await;
    let client = &place.client;
    let (id, disks) = host_image(client, "erp").await;
    let path = format!("/host-images/{id}");
    let member =
        refused(client, Method::DELETE, &format!("/images/{}?force=true", disks[0]), json!({}), 409).await;
    assert!(member.code == "in_use" && member.message.contains("erp"), "{member:?}");
    assert_eq!(client.post(&format!("{path}/protect"), json!({})).await["protected"], true);
    let kept = refused(client, Method::DELETE, &path, json!({}), 409).await;
    assert!(kept.message.contains("protected"), "{kept:?}");
    refused(client, Method::DELETE, &format!("{path}?members=true"), json!({}), 409).await;
    assert_eq!(client.post(&format!("{path}/unprotect"), json!({})).await["protected"], false);
    let stale = client.ask(Method::DELETE, &path).header("if-match", 1).send().await.unwrap();
    assert_eq!(fault(stale, 412).await.code, "revision");
    let gone = client.ask(Method::DELETE, &path).header("if-match", "\"3\"").send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    fault(client.ask(Method::GET, &path).send().await.unwrap(), 404).await;
    for disk in disks {
        assert_eq!(client.get(&format!("/images/{disk}")).await["status"], "active");
    }
    // The name is free, and a disk that no host image has goes.
    client.post("/host-images", json!({ "name": "erp", "images": [disks[1], disks[0]] })).await;
    let actions = client.get("/operations?target_kind=host_image").await;
    let actions: Vec<&str> =
        actions["items"].as_array().unwrap().iter().map(|row| row["action"].as_str().unwrap()).collect();
    let expected =
        ["create", "delete", "unprotect", "protect", "create"].map(|verb| format!("host_image.{verb}"));
    assert_eq!(actions, expected);
    place.stop().await;
}

/// HI-2: with `members` the disks go too, but for those that something else needs.
#[tokio::test(flavor = "multi_thread")]
async fn deleting_with_members_leaves_what_is_needed_elsewhere() {
    let place = Place::new().await;
    let client = &place.client;
    let (id, [system, data]) = host_image(client, "erp").await;
    let protected = made(client, json!({ "name": "kept", "protected": true })).await;
    let other = json!({ "name": "crm", "images": [data, protected] });
    let other = client.post("/host-images", other).await["id"].as_str().unwrap().to_owned();
    let answer = client.ask(Method::DELETE, &format!("/host-images/{id}?members=true")).send().await.unwrap();
    let told = body(answer).await;
    let images = told["images"].as_array().unwrap();
    assert_eq!(
        (images[0]["image"].as_str(), images[0]["ok"].as_bool()),
        (Some(system.to_string().as_str()), Some(true))
    );
    assert!(images[1]["ok"] == false && images[1]["message"].as_str().unwrap().contains("crm"), "{told}");
    assert_eq!(client.get(&format!("/images/{system}")).await["status"], "pending_delete");
    let batch = json!({ "ids": [other], "members": true });
    let told = client.post("/host-images/batch/delete", batch).await;
    let images = told[0]["images"].as_array().unwrap();
    assert_eq!((images[0]["ok"].as_bool(), images[1]["ok"].as_bool()), (Some(true), Some(false)));
    assert!(images[1]["message"].as_str().unwrap().contains("protected"), "{told}");
    assert_eq!(client.get(&format!("/images/{protected}")).await["status"], "active");
    place.stop().await;
}

/// SH-8: calls over many have one result each, and a refused one keeps no other from being done.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_over_many_has_a_result_for_each() {
    let place = Place::new().await;
    let client = &place.client;
    let disks = [active(client, "a").await, active(client, "b").await];
    let mut ids = Vec::new();
    for n in 0..3 {
        let made = client.post("/host-images", json!({ "name": format!("h{n}"), "images": disks })).await;
        ids.push(made["id"].as_str().unwrap().to_owned());
    }
    let missing = "01234567-89ab-7def-8123-456789abcdef";
    let told = client.post("/host-images/batch/protect", json!({ "ids": [ids[0], missing, ids[1]] })).await;
    let seen = |told: &Value| {
        let rows = told.as_array().unwrap().iter();
        rows.map(|row| (row["ok"].as_bool().unwrap(), row["status"].as_u64().unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(seen(&told), [(true, 200), (false, 404), (true, 200)]);
    assert_eq!(told[1]["message"], format!("no host image {missing}"));
    let told = client.post("/host-images/batch/delete", json!({ "ids": ids })).await;
    assert_eq!(seen(&told), [(false, 409), (false, 409), (true, 204)]);
    assert_eq!(told[0]["name"], "h0");
    client.post("/host-images/batch/unprotect", json!({ "ids": ids[..1] })).await;
    let told = client.post("/host-images/batch/delete", json!({ "ids": ids })).await;
    assert_eq!(seen(&told), [(true, 204), (false, 409), (false, 404)]);
    let many: Vec<String> = (100..201).map(|n| format!("01234567-89ab-7def-8123-456789000{n}")).collect();
    for (ids, field) in [(json!([]), "ids"), (json!(many), "ids"), (json!([missing, missing]), "ids[1]")] {
        for verb in ["protect", "unprotect", "delete"] {
            let path = format!("/host-images/batch/{verb}");
            let error = refused(client, Method::POST, &path, json!({ "ids": ids }), 400).await;
            assert_eq!(error.field.as_deref(), Some(field), "{verb}");
        }
    }
    place.stop().await;
}

/// HI-3: a cache or prewarm call names one image or one host image, whose disks must all be active.
#[tokio::test(flavor = "multi_thread")]
async fn caching_needs_every_disk() {
    let place = Place::new().await;
    let client = &place.client;
    let (id, [system, data]) = host_image(client, "erp").await;
    let all = json!({ "all": true });
    for path in ["/prewarms", "/cache"] {
        for (sent, field) in [
            (json!({ "targets": all }), "image"),
            (json!({ "image": system, "host_image": id, "targets": all }), "host_image"),
            (json!({ "host_image": id }), "targets"),
        ] {
            assert_eq!(
                refused(client, Method::POST, path, sent.clone(), 400).await.field.as_deref(),
                Some(field),
                "{sent}"
            );
        }
        let missing = json!({ "host_image": "01234567-89ab-7def-8123-456789abcdef", "targets": all });
        refused(client, Method::POST, path, missing, 404).await;
    }
    let nowhere =
        refused(client, Method::POST, "/prewarms", json!({ "host_image": id, "targets": all }), 400).await;
    assert_eq!(nowhere.field.as_deref(), Some("targets"), "there is no location yet: {nowhere:?}");
    let op = hearth_controller::db::operations::Draft::system("image.deactivate");
    place.controller.db().set_deactivated(data, true, &op).await.unwrap();
    assert_eq!(
        client.get(&format!("/host-images/{id}")).await["status"],
        "deactivated",
        "the worst disk decides"
    );
    assert_eq!(client.get("/host-images?status=deactivated").await["items"].as_array().unwrap().len(), 1);
    for path in ["/prewarms", "/cache"] {
        let closed =
            refused(client, Method::POST, path, json!({ "host_image": id, "targets": all }), 409).await;
        assert!(closed.message.contains("data disk 1 is deactivated"), "{closed:?}");
    }
    assert_eq!(client.get(&format!("/host-images/{id}/cache")).await["items"], json!([]));
    let nothing = "/prewarm-groups/01234567-89ab-7def-8123-456789abcdef";
    fault(client.ask(Method::GET, nothing).send().await.unwrap(), 404).await;
    for verb in ["pause", "resume", "cancel", "retry"] {
        fault(client.ask(Method::POST, &format!("{nothing}/{verb}")).send().await.unwrap(), 404).await;
    }
    place.stop().await;
}
