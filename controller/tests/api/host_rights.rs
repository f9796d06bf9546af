//! Who sees and changes host images, and what of their disks.

use hearth_controller::db::images::ImageFacts;
use hearth_controller::db::new_id;
use hearth_controller::db::operations::Draft;
use hearth_protocol::id::ProjectId;
use hearth_protocol::words::{Role, Visibility};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _};

use super::harness::{Client, Place, body, fault};
use super::host_images::{active, host_image, made};
use super::places;
use super::sharing::tenants;

/// Members of two projects of one domain, and the second project.
async fn two_projects(place: &Place) -> (Client, Client, ProjectId) {
    let db = place.controller.db();
    let (domain, mine) = db.default_tenants().await.unwrap();
    let other: ProjectId = new_id();
    db.create_project(other, domain, "other", &Draft::system("project.create")).await.unwrap();
    let of = |project| json!({ "scope": "project", "project": project });
    let owner = place.client.delegate("owner", Role::Member, of(mine)).await;
    let stranger = place.client.delegate("stranger", Role::Member, of(other)).await;
    (owner, stranger, other)
}

/// HI-2, SH-7: a host image of another project answers exactly like one that does not exist.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_image_of_another_project_looks_like_none() {
    let place = Place::new().await;
    let (owner, stranger, _) = two_projects(&place).await;
    let (id, disks) = host_image(&owner, "secret").await;
    let missing = "01234567-89ab-7def-8123-456789abcdef";
    let calls = [
        (Method::GET, ""),
        (Method::PATCH, ""),
        (Method::DELETE, ""),
        (Method::DELETE, "?members=true"),
        (Method::POST, "/protect"),
        (Method::POST, "/unprotect"),
    ];
    for (method, tail) in calls {
        let ask = |id: &str| {
            let request = stranger.ask(method.clone(), &format!("/host-images/{id}{tail}"));
            request.header("if-match", 1).json(&json!({})).send()
        };
        let hidden = fault(ask(&id).await.unwrap(), 404).await;
        let none = fault(ask(missing).await.unwrap(), 404).await;
        assert_eq!(hidden.message.replace(&id, missing), none.message);
        assert_eq!((hidden.code, hidden.hint, hidden.field), (none.code, none.hint, none.field));
    }
    for verb in ["protect", "unprotect", "delete"] {
        let told =
            stranger.post(&format!("/host-images/batch/{verb}"), json!({ "ids": [id, missing] })).await;
        let same = |row: &Value| row.to_string().replace(&id, missing);
        assert_eq!(same(&told[0]), same(&told[1]), "{verb}");
        assert_eq!(told[0]["status"], 404);
    }
    assert_eq!(stranger.get("/host-images").await["items"], json!([]));
    assert_eq!(stranger.get("/host-images?name=secret").await["items"], json!([]));
    // An image of another project is not found in a merge, as one that does not exist.
    let mine = active(&stranger, "mine").await;
    let merge = |id: String| {
        let sent = json!({ "name": "x", "images": [mine.to_string(), id] });
        stranger.ask(Method::POST, "/host-images").json(&sent).send()
    };
    let hidden = fault(merge(disks[0].to_string()).await.unwrap(), 404).await;
    let none = fault(merge(missing.to_owned()).await.unwrap(), 404).await;
    assert_eq!(hidden.message.replace(&disks[0].to_string(), missing), none.message);
    assert_eq!((hidden.field.as_deref(), none.field.as_deref()), (Some("images[1]"), Some("images[1]")));
    // The same name is free in another project.
    host_image(&stranger, "secret").await;
    fault(owner.ask(Method::GET, &format!("/host-images/{id}/cache")).send().await.unwrap(), 403).await;
    place.stop().await;
}

/// HI-1: images of several projects are merged by who owns them all; who does not see a disk learns its state alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_may_not_be_seen_shows_its_state_alone() {
    let place = Place::new().await;
    let (owner, stranger, other) = two_projects(&place).await;
    let (domain, _) = place.controller.db().default_tenants().await.unwrap();
    let manager =
        place.client.delegate("manager", Role::Member, json!({ "scope": "domain", "domain": domain })).await;
    let (system, data) = (active(&stranger, "system").await, active(&owner, "data").await);
    let nobody =
        manager.ask(Method::POST, "/host-images").json(&json!({ "name": "erp", "images": [system, data] }));
    assert_eq!(fault(nobody.send().await.unwrap(), 400).await.field.as_deref(), Some("project"));
    let sent = json!({ "name": "erp", "images": [system, data], "project": other });
    let id = manager.post("/host-images", sent).await["id"].as_str().unwrap().to_owned();
    let seen = stranger.get(&format!("/host-images/{id}")).await;
    assert_eq!(seen["images"][0]["name"], "system");
    assert_eq!(seen["images"][1], json!({ "position": 1, "role": "data", "status": "active" }));
    // The owner of the disk may not delete it, and is not told what for.
    let kept = owner.ask(Method::DELETE, &format!("/images/{data}")).send().await.unwrap();
    let kept = fault(kept, 409).await;
    assert!(kept.message.contains("that you may not see") && !kept.message.contains("erp"), "{kept:?}");
    let kept = manager.ask(Method::DELETE, &format!("/images/{data}")).send().await.unwrap();
    assert!(fault(kept, 409).await.message.contains("erp"));
    // What goes with the host image is what the caller may delete.
    let told =
        body(stranger.ask(Method::DELETE, &format!("/host-images/{id}?members=true")).send().await.unwrap())
            .await;
    assert_eq!(
        (told["images"][0]["ok"].as_bool(), told["images"][1]["ok"].as_bool()),
        (Some(true), Some(false))
    );
    assert_eq!(told["images"][1]["message"], format!("no image {data}"));
    assert_eq!(owner.get(&format!("/images/{data}")).await["status"], "active");
    place.stop().await;
}

/// HI-3, CA-0: who manages the host image's domain places no disk that is not the domain's to see, and makes no job of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_may_not_be_seen_is_not_placed() {
    let place = Place::new().await;
    let t = tenants(&place).await;
    let scope = json!({ "scope": "domain", "domain": t.domain });
    let manager = place.client.delegate("manager", Role::Admin, scope).await;
    let (system, data) = (active(&t.owner, "system").await, active(&t.stranger, "data").await);
    let sent = json!({ "name": "erp", "images": [system, data], "project": t.own });
    let id = place.client.post("/host-images", sent).await["id"].clone();
    let db = place.controller.db();
    let at = places::location(db, "ours-1").await;
    let ours = place.client.ask(Method::PATCH, &format!("/locations/{at}"));
    body(ours.json(&json!({ "domain": t.domain })).send().await.unwrap()).await;
    let targets = json!({ "to": [at] });
    for (path, dry) in [("/cache", false), ("/prewarms", false), ("/prewarms", true)] {
        let mut sent = json!({ "host_image": id, "targets": targets });
        if dry {
            sent["dry_run"] = json!(true);
        }
        let refused = fault(manager.ask(Method::POST, path).json(&sent).send().await.unwrap(), 409).await;
        assert_eq!(refused.field.as_deref(), Some("host_image"), "{path}");
        assert!(refused.message.contains("data disk 1 is an image that you may not see"), "{refused:?}");
    }
    assert!(db.intents().await.unwrap().is_empty() && db.unfinished_prewarms().await.unwrap().is_empty());
    // Who sees all of it places it, and reads what was made.
    let made = place.client.post("/prewarms", json!({ "host_image": id, "targets": targets })).await;
    assert_eq!((made["jobs"].as_array().unwrap().len(), &made["total"]), (2, &json!(1)), "{made}");
    let shown = place.client.get(&format!("/prewarm-groups/{}", made["id"].as_str().unwrap())).await;
    assert_eq!((&shown["id"], &shown["jobs"]), (&made["id"], &made["jobs"]));
    place.stop().await;
}

/// HI-1: a public image may be a disk, one that is merely shared may not: its owner could not delete it any more.
#[tokio::test(flavor = "multi_thread")]
async fn public_images_can_be_merged_and_shared_ones_not() {
    let place = Place::new().await;
    let (owner, stranger, other) = two_projects(&place).await;
    let public = made(&place.client, json!({ "name": "public", "public": true })).await;
    let mine = active(&stranger, "mine").await;
    stranger.post("/host-images", json!({ "name": "erp", "images": [public, mine] })).await;
    let shared = active(&owner, "shared").await;
    let share = |facts: &mut ImageFacts| facts.visibility = Visibility::Shared;
    let db = place.controller.db();
    db.update_image(shared, None, share, &Draft::system("image.share")).await.unwrap();
    let sent = json!({ "name": "crm", "images": [mine, shared] });
    let merge = || stranger.ask(Method::POST, "/host-images").json(&sent).send();
    fault(merge().await.unwrap(), 404).await;
    // Nobody asked for it yet; now the stranger's project accepted it.
    sqlx::any::install_default_drivers();
    let file = format!("sqlite://{}", place.config.state_dir.join("hearth.sqlite").display());
    let mut beside = sqlx::AnyConnection::connect(&file).await.unwrap();
    let accept = format!("INSERT INTO share VALUES ('{shared}', 'project', '{other}', 'accepted', 0, 0)");
    beside.execute(sqlx::AssertSqlSafe(accept)).await.unwrap();
    assert_eq!(stranger.get(&format!("/images/{shared}")).await["name"], "shared");
    let refused = fault(merge().await.unwrap(), 400).await;
    assert!(
        refused.field.as_deref() == Some("images[1]") && refused.message.contains("shared with you"),
        "{refused:?}"
    );
    place.stop().await;
}

/// HI-2, SH-1: system administrators make a host image public, when its disks are; a public one is not deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_public_host_image_has_public_disks_and_stays() {
    let place = Place::new().await;
    let (owner, stranger, _) = two_projects(&place).await;
    let (private, _) = host_image(&place.client, "private").await;
    let publish = |client: &Client, id: &str, revision: u64, public: bool| {
        let request = client.ask(Method::PATCH, &format!("/host-images/{id}")).header("if-match", revision);
        request.json(&json!({ "public": public })).send()
    };
    assert_eq!(fault(publish(&owner, &private, 1, true).await.unwrap(), 403).await.code, "denied");
    let hidden = fault(publish(&place.client, &private, 1, true).await.unwrap(), 409).await;
    assert!(hidden.message.contains("private-system"), "{hidden:?}");
    let mut disks = Vec::new();
    for name in ["system", "data"] {
        disks.push(made(&place.client, json!({ "name": name, "public": true })).await);
    }
    let id = place.client.post("/host-images", json!({ "name": "golden", "images": disks })).await;
    let id = id["id"].as_str().unwrap().to_owned();
    fault(stranger.ask(Method::GET, &format!("/host-images/{id}")).send().await.unwrap(), 404).await;
    body(publish(&place.client, &id, 1, true).await.unwrap()).await;
    let seen = stranger.get(&format!("/host-images/{id}")).await;
    assert_eq!(
        (seen["visibility"].as_str(), seen["images"][1]["name"].as_str()),
        (Some("public"), Some("data"))
    );
    for method in [Method::DELETE, Method::PATCH] {
        let request = stranger.ask(method, &format!("/host-images/{id}")).header("if-match", 2);
        assert_eq!(fault(request.json(&json!({})).send().await.unwrap(), 403).await.code, "denied");
    }
    let stays = place.client.ask(Method::DELETE, &format!("/host-images/{id}")).send().await.unwrap();
    assert!(fault(stays, 409).await.message.contains("public"));
    body(publish(&place.client, &id, 2, false).await.unwrap()).await;
    let gone = place.client.ask(Method::DELETE, &format!("/host-images/{id}")).send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    place.stop().await;
}
