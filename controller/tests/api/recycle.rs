//! The recycle bin, and what may not go into it.

use std::time::Duration;

use hearth_controller::admin::fsck;
use hearth_controller::db::operations::Draft;
use hearth_controller::{clock, task};
use hearth_protocol::api::image::Image;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::{ConsumerKind, ImageStatus};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::harness::{self, Client, PROGRAM, Place, body, fault, files, noise, until};
use super::places;

async fn active(client: &Client, name: &str, bytes: u64) -> Image {
    let id = client.image(json!({ "name": name })).await;
    assert_eq!(client.put(id, noise(bytes)).await.status(), StatusCode::ACCEPTED);
    let image = client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Active, "{}", image.reason);
    image
}

async fn delete(client: &Client, id: ImageId, query: &str) -> Response {
    client.ask(Method::DELETE, &format!("/images/{id}{query}")).send().await.unwrap()
}

async fn act(client: &Client, id: ImageId, verb: &str) -> Response {
    client.ask(Method::POST, &format!("/images/{id}/{verb}")).send().await.unwrap()
}

fn names(page: &Value) -> Vec<&str> {
    page["items"].as_array().unwrap().iter().map(|image| image["name"].as_str().unwrap()).collect()
}

/// DL-2: a deleted image is hidden, keeps its files, and comes back into the state it had.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_image_comes_back_as_it_was() {
    let place = Place::new().await;
    let client = &place.client;
    let (kept, closed) = (active(client, "kept", 300_000).await, active(client, "closed", 100_000).await);
    act(client, closed.id, "deactivate").await;
    let stored = files(&place.config.state_dir.join("content"));
    for id in [kept.id, closed.id] {
        assert_eq!(delete(client, id, "").await.status(), StatusCode::NO_CONTENT);
    }
    assert_eq!(client.get("/images").await["items"], json!([]));
    assert_eq!(client.get("/images?q=kept&count=true").await["count"]["rows"], 0);
    let bin = client.get("/images?status=pending_delete&sort=name").await;
    assert_eq!(names(&bin), ["closed", "kept"]);
    let (binned, gone): (jiff::Timestamp, jiff::Timestamp) = (
        bin["items"][1]["binned_at"].as_str().unwrap().parse().unwrap(),
        bin["items"][1]["destroyed_at"].as_str().unwrap().parse().unwrap(),
    );
    assert_eq!(gone.duration_since(binned).as_hours(), 3 * 24);
    assert!(fault(delete(client, kept.id, "").await, 409).await.hint.unwrap().contains("now"));
    for (id, status) in [(kept.id, "active"), (closed.id, "deactivated")] {
        assert_eq!(body(act(client, id, "restore").await).await["status"], status);
    }
    assert_eq!(files(&place.config.state_dir.join("content")), stored);
    let back = client.ask(Method::GET, &format!("/images/{}/file", kept.id)).send().await.unwrap();
    assert_eq!(back.bytes().await.unwrap(), noise(300_000));
    fault(act(client, kept.id, "restore").await, 409).await;
    assert_eq!(client.get("/operations/verify").await["intact"], true);
    place.stop().await;
}

/// DL-2: the name of a deleted image is free; who comes back to a taken one is offered another.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_to_a_taken_name_offers_another() {
    let place = Place::new().await;
    let client = &place.client;
    let old = active(client, "noble", 1000).await;
    delete(client, old.id, "").await;
    for name in ["Noble", "noble-2"] {
        client.image(json!({ "name": name })).await;
    }
    let error = fault(act(client, old.id, "restore").await, 409).await;
    assert!(error.message.contains("noble") && error.hint.unwrap().contains("noble-3"));
    assert_eq!(client.get(&format!("/images/{}", old.id)).await["status"], "pending_delete");
    fault(act(client, old.id, "restore?name=a%00b").await, 400).await;
    let back = body(act(client, old.id, "restore?name=noble-3").await).await;
    assert_eq!((&back["name"], &back["status"]), (&json!("noble-3"), &json!("active")));
    assert_eq!(client.get("/images?name=NOBLE-3").await["items"].as_array().unwrap().len(), 1);
    place.stop().await;
}

/// DL-2: what was destroyed is gone: its files, and for every call.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_destroyed_is_gone() {
    let place = Place::new().await;
    let client = &place.client;
    let (at_once, later) = (active(client, "at once", 1000).await, active(client, "later", 2000).await);
    assert_eq!(delete(client, at_once.id, "?now=true").await.status(), StatusCode::NO_CONTENT);
    delete(client, later.id, "").await;
    assert_eq!(delete(client, later.id, "?now=true").await.status(), StatusCode::NO_CONTENT);
    let folder = place.config.state_dir.clone();
    until("the files go", || {
        files(&folder.join("content")).is_empty() && files(&folder.join("originals")).is_empty()
    })
    .await;
    let missing = "01234567-89ab-7def-8123-456789abcdef";
    for (method, tail) in [(Method::POST, "/restore"), (Method::DELETE, "?now=true"), (Method::GET, "")] {
        let ask = |id: &str| client.ask(method.clone(), &format!("/images/{id}{tail}")).send();
        let gone = fault(ask(&later.id.to_string()).await.unwrap(), 404).await;
        let never = fault(ask(missing).await.unwrap(), 404).await;
        assert_eq!(gone.message.replace(&later.id.to_string(), missing), never.message);
    }
    assert_eq!(client.get("/images?status=pending_delete").await["items"], json!([]));
    let log = client.get("/operations?action=image.destroy").await;
    assert_eq!(log["items"].as_array().unwrap().len(), 2);
    place.stop().await;
}

/// DL-2: the days in the bin end, across a restart, and nothing else goes by itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_days_in_the_bin_end_also_after_a_restart() {
    let place = Place::new().await;
    let (old, new) = (active(&place.client, "old", 1000).await, active(&place.client, "new", 2000).await);
    let live = active(&place.client, "live", 3000).await;
    for id in [old.id, new.id] {
        delete(&place.client, id, "").await;
    }
    let (_dir, config, token) = place.stop().await;
    // As if it had been deleted four days ago.
    let past_us = clock::unix_us() - 4 * 24 * 3600 * 1_000_000;
    let url = format!("sqlite://{}", config.state_dir.join("hearth.sqlite").display());
    {
        use sqlx::Connection as _;
        sqlx::any::install_default_drivers();
        let mut database = sqlx::AnyConnection::connect(&url).await.unwrap();
        let update = sqlx::query("UPDATE image SET binned_us = $1 WHERE id = $2");
        update.bind(past_us).bind(old.id.to_string()).execute(&mut database).await.unwrap();
        database.close().await.unwrap();
    }
    let controller = harness::start(&config).await;
    let client = Client::new(&config, controller.https.port(), &token);
    let folder = config.state_dir.join("originals");
    until("the old one goes", || files(&folder).len() == 2).await;
    fault(act(&client, old.id, "restore").await, 404).await;
    assert_eq!(body(act(&client, new.id, "restore").await).await["status"], "active");
    assert_eq!(client.get(&format!("/images/{}", live.id)).await["status"], "active");
    let log = client.get("/operations?action=image.purge").await;
    assert_eq!(log["items"][0]["target_name"], "old");
    assert_eq!(log["items"][0]["details"]["after"]["status"], "deleted");
    controller.stop().await;
}

/// DL-2: without a bin a deletion is for good.
#[tokio::test(flavor = "multi_thread")]
async fn zero_days_mean_no_bin() {
    let place = Place::with(|config| config.catalog.bin_days = 0).await;
    let image = active(&place.client, "gone", 1000).await;
    delete(&place.client, image.id, "").await;
    fault(act(&place.client, image.id, "restore").await, 404).await;
    place.stop().await;
}

/// DL-2: what lies in the bin is neither downloaded nor prewarmed nor cached.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_new_is_made_of_what_lies_in_the_bin() {
    let place = Place::new().await;
    let client = &place.client;
    let image = active(client, "binned", 1000).await;
    let location = places::location(place.controller.db(), "host-1").await;
    delete(client, image.id, "").await;
    let file = client.ask(Method::GET, &format!("/images/{}/file", image.id)).send().await.unwrap();
    assert!(fault(file, 409).await.message.contains("recycle bin"));
    let job = json!({ "image": image.id, "targets": { "to": [location] } });
    for path in ["/prewarms", "/cache"] {
        let error = fault(client.ask(Method::POST, path).json(&job).send().await.unwrap(), 409).await;
        assert!(error.message.contains("pending_delete"), "{error:?}");
    }
    for verb in ["protect", "deactivate", "retry", "cancel"] {
        fault(act(client, image.id, verb).await, 409).await;
    }
    place.stop().await;
}

/// DL-2, SH-7: what lies in the bin is its owner's, whatever it was to others: the row is made beside the controller, which
/// makes none.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_never_sees_the_bin() {
    use sqlx::{Connection as _, Executor as _};
    let place = Place::new().await;
    let t = super::sharing::tenants(&place).await;
    let image = active(&t.owner, "noble", 1000).await;
    delete(&t.owner, image.id, "").await;
    let shares = format!("/images/{}/shares", image.id);
    let share = t.owner.ask(Method::POST, &shares).json(&json!({ "projects": [t.sister] }));
    let refused = fault(share.send().await.unwrap(), 409).await;
    assert!(refused.message.contains("restore it first"), "{refused:?}");
    sqlx::any::install_default_drivers();
    let file = format!("sqlite://{}", place.config.state_dir.join("hearth.sqlite").display());
    let mut beside = sqlx::AnyConnection::connect(&file).await.unwrap();
    let public = format!("UPDATE image SET visibility = 'public', featured = 1 WHERE id = '{}'", image.id);
    beside.execute(sqlx::AssertSqlSafe(public)).await.unwrap();
    for view in ["all", "public", "featured"] {
        let query = format!("/images?view={view}&status=pending_delete");
        assert_eq!(t.stranger.get(&query).await["items"], json!([]), "{view}");
        assert_eq!(names(&t.owner.get(&query).await), ["noble"], "{view}");
    }
    let path = format!("/images/{}", image.id);
    for tail in ["", "/file", "/shares"] {
        fault(t.stranger.ask(Method::GET, &format!("{path}{tail}")).send().await.unwrap(), 404).await;
    }
    assert_eq!(t.owner.get(&path).await["status"], "pending_delete");
    place.stop().await;
}

/// DL-1: a protected image and a public one refuse deletion with the reason.
#[tokio::test(flavor = "multi_thread")]
async fn protected_and_public_images_stay() {
    let place = Place::new().await;
    let client = &place.client;
    let image = active(client, "safe", 1000).await;
    assert_eq!(body(act(client, image.id, "protect").await).await["protected"], true);
    for query in ["", "?now=true", "?force=true&now=true"] {
        assert!(fault(delete(client, image.id, query).await, 409).await.message.contains("protected"));
    }
    body(act(client, image.id, "unprotect").await).await;
    delete(client, image.id, "").await;
    let public = client.image(json!({ "name": "public", "public": true })).await;
    client.put(public, noise(2000)).await;
    client.ended(public).await;
    for query in ["", "?now=true", "?force=true"] {
        let error = fault(delete(client, public, query).await, 409).await;
        assert!(error.message.contains("make it custom first"), "{error:?}");
    }
    place.stop().await;
}

/// DL-3: machines that run on an image are named, and only force deletes it; other leases do not matter.
#[tokio::test(flavor = "multi_thread")]
async fn machines_that_run_on_an_image_are_named() {
    let place = Place::new().await;
    let (client, db) = (&place.client, place.controller.db());
    let image = active(client, "used", 1000).await;
    let content = image.content.unwrap();
    let at = places::location(db, "host-1").await;
    places::cached(db, at, content).await;
    places::leased(db, at, content, &[(ConsumerKind::Vm, "vm-7"), (ConsumerKind::Operator, "bob")]).await;
    for query in ["", "?now=true"] {
        let error = fault(delete(client, image.id, query).await, 409).await;
        assert_eq!(error.code, "in_use");
        assert!(error.message.contains("vm-7") && !error.message.contains("bob"), "{error:?}");
    }
    let (_, project) = db.default_tenants().await.unwrap();
    let scope = json!({ "scope": "project", "project": project });
    let tenant = client.delegate("tenant", hearth_protocol::words::Role::Member, scope).await;
    places::wanted(db, at, image.id, content).await;
    let error = fault(delete(&tenant, image.id, "").await, 409).await;
    assert!(!error.message.contains("vm-7"), "hosts and machines are the operators' business: {error:?}");
    assert_eq!(delete(client, image.id, "?force=true").await.status(), StatusCode::NO_CONTENT);
    assert_eq!(db.leases_of(content).await.unwrap().len(), 2, "machines run on");
    body(act(client, image.id, "restore").await).await;
    places::leased(db, at, content, &[(ConsumerKind::Operator, "bob")]).await;
    assert_eq!(delete(client, image.id, "").await.status(), StatusCode::NO_CONTENT);
    place.stop().await;
}

/// DL-3: force takes the prewarm jobs along, and touches none where the deletion is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_force_cancels_no_job() {
    let place = Place::new().await;
    let client = &place.client;
    let image = active(client, "warm", 1000).await;
    let at = places::location(place.controller.db(), "host-1").await;
    let job = client.post("/prewarms", json!({ "image": image.id, "targets": { "to": [at] } })).await;
    let job = format!("/prewarms/{}", job["id"].as_str().unwrap());
    let forced = format!("/images/{}?force=true", image.id);
    let stale = client.ask(Method::DELETE, &forced).header("if-match", image.revision + 1);
    assert_eq!(fault(stale.send().await.unwrap(), 412).await.code, "revision");
    assert_eq!(client.get(&job).await["state"], "running");
    let gone = client.ask(Method::DELETE, &forced).header("if-match", image.revision).send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert_eq!(client.get(&job).await["state"], "cancelled");
    place.stop().await;
}

/// DL-2, IMG-3: what is being made is cancelled: its upload ends, its files go, its name is free.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_cancelled_ends() {
    let place = Place::new().await;
    let client = &place.client;
    let id = client.image(json!({ "name": "half" })).await;
    let (feed, chunks) = futures::channel::mpsc::channel::<std::io::Result<Vec<u8>>>(1);
    let sending = client.ask(Method::PUT, &format!("/images/{id}/file"));
    let sending = task::spawn("sending", sending.body(reqwest::Body::wrap_stream(chunks)).send());
    let mut feed = feed;
    futures::SinkExt::send(&mut feed, Ok(noise(3 << 20))).await.unwrap();
    let folder = place.config.state_dir.join("originals");
    until("bytes are on disk", || !files(&folder).is_empty()).await;
    assert_eq!(act(client, id, "cancel").await.status(), StatusCode::NO_CONTENT);
    let ended = tokio::time::timeout(Duration::from_secs(20), sending).await.expect("it ends at once");
    // The connection may be closed before the answer is read: the sender still sends.
    if let Ok(answer) = ended.unwrap() {
        assert!(answer.status().is_client_error(), "{answer:?}");
    }
    drop(feed);
    until("the bytes go", || files(&folder).is_empty()).await;
    fault(client.ask(Method::GET, &format!("/images/{id}")).send().await.unwrap(), 404).await;
    client.image(json!({ "name": "half" })).await;
    let done = active(client, "done", 1000).await;
    fault(act(client, done.id, "cancel").await, 409).await;
    place.stop().await;
}

/// DL-2: fsck and a backup know what lies in the bin.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_holds_the_recycle_bin() {
    let place = Place::new().await;
    let image = active(&place.client, "binned", 200_000).await;
    delete(&place.client, image.id, "").await;
    let (dir, config, token) = place.stop().await;
    let options = fsck::Options { deep: true, repair: false };
    let mut report = Vec::new();
    assert_eq!(fsck::fsck(&config, options, PROGRAM.into(), &mut report).await.unwrap(), 0);
    let saved = dir.path().join("saved");
    hearth_controller::admin::backup::backup(&config, &saved, true, &mut Vec::new()).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    let restored = harness::config_in(other.path());
    let problems =
        hearth_controller::admin::restore::restore(&restored, &saved, &mut Vec::new()).await.unwrap();
    assert_eq!(problems, 0);
    let controller = harness::start(&restored).await;
    let client = Client::new(&restored, controller.https.port(), &token);
    assert_eq!(body(act(&client, image.id, "restore").await).await["status"], "active");
    let back = client.ask(Method::GET, &format!("/images/{}/file", image.id)).send().await.unwrap();
    assert_eq!(back.bytes().await.unwrap(), noise(200_000));
    controller.stop().await;
}

/// IMG-3: a deactivated image is kept, and closed to all but administrators.
#[tokio::test(flavor = "multi_thread")]
async fn a_deactivated_image_is_closed() {
    let place = Place::new().await;
    let client = &place.client;
    let image = active(client, "closed", 1000).await;
    let (_, project) = place.controller.db().default_tenants().await.unwrap();
    let scope = json!({ "scope": "project", "project": project });
    let member = client.delegate("member", hearth_protocol::words::Role::Member, scope).await;
    fault(act(&member, image.id, "deactivate").await, 403).await;
    assert_eq!(body(act(client, image.id, "deactivate").await).await["status"], "deactivated");
    fault(act(client, image.id, "deactivate").await, 409).await;
    let path = format!("/images/{}/file", image.id);
    fault(member.ask(Method::GET, &path).send().await.unwrap(), 409).await;
    assert!(client.ask(Method::GET, &path).send().await.unwrap().status().is_success());
    let job = json!({ "image": image.id, "targets": { "all": true } });
    fault(client.ask(Method::POST, "/prewarms").json(&job).send().await.unwrap(), 409).await;
    assert_eq!(body(act(client, image.id, "reactivate").await).await["status"], "active");
    assert!(member.ask(Method::GET, &path).send().await.unwrap().status().is_success());
    place.stop().await;
}

/// IMG-5: a failed import stays visible with its reason, can be deleted and restored, and tried again.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_import_keeps_its_reason_through_the_bin() {
    let place = Place::new().await;
    let client = &place.client;
    let id = client.image(json!({ "name": "bad", "expected": { "md5": "0".repeat(32) } })).await;
    client.put(id, noise(1000)).await;
    delete(client, id, "").await;
    let back = body(act(client, id, "restore").await).await;
    assert!(back["status"] == "killed" && back["reason"].as_str().unwrap().contains("md5"), "{back}");
    let op = Draft::system("test");
    assert!(place.controller.db().set_deactivated(id, true, &op).await.is_err());
    place.stop().await;
}
