//! Keys, and images that they encrypt.

use std::path::Path;

use hearth_controller::config::Config;
use hearth_controller::keys::master::{MasterPaths, Place as Master};
use hearth_protocol::id::ImageId;
use hearth_protocol::words::{ImageStatus, Role};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::harness::{self, Client, Place, body, fault, files, noise, qcow2};

/// Writes a master key of this byte beside the state folder.
fn master(config: &Config, byte: u8) -> Master {
    let path = config.state_dir.with_file_name(format!("master-{byte}"));
    std::fs::write(&path, [byte; 32]).unwrap();
    Master::Credential(path)
}

pub(super) fn with_master(config: &mut Config) {
    config.master_keys = MasterPaths { current: Some(master(config, 1)), old: None };
    config.sharing.quota.images = 0;
}

async fn place() -> Place {
    Place::with(with_master).await
}

async fn post(client: &Client, path: &str, sent: Value) -> Response {
    client.ask(Method::POST, path).json(&sent).send().await.unwrap()
}

async fn delete(client: &Client, path: &str) -> Response {
    client.ask(Method::DELETE, path).send().await.unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// A project and a client of its member and reader.
async fn project(client: &Client, name: &str) -> (String, Client, Client) {
    let project = text(&client.post("/projects", json!({ "name": name })).await["id"]);
    let scope = || json!({ "scope": "project", "project": project });
    let member = client.delegate(&format!("{name}-member"), Role::Member, scope()).await;
    let reader = client.delegate(&format!("{name}-reader"), Role::Reader, scope()).await;
    (project, member, reader)
}

/// IN-9: members make and delete keys of their project; nobody else knows of them.
#[tokio::test(flavor = "multi_thread")]
async fn keys_are_their_projects_alone() {
    let place = place().await;
    let (own, member, reader) = project(&place.client, "own").await;
    let (_, stranger, _) = project(&place.client, "other").await;
    let made = member.post("/keys", json!({ "name": "payroll" })).await;
    assert_eq!((made["project"].as_str(), made["images"].as_u64()), (Some(own.as_str()), Some(0)));
    let path = format!("/keys/{}", text(&made["id"]));
    assert_eq!(reader.get(&path).await, made);
    assert_eq!(reader.get("/keys?name=payroll").await["items"], json!([made]));
    fault(post(&reader, "/keys", json!({ "name": "more" })).await, 403).await;
    fault(delete(&reader, &path).await, 403).await;
    fault(post(&member, "/keys", json!({ "name": "PAYROLL" })).await, 409).await;
    for name in ["", "a\nb", &"x".repeat(256)] {
        let refused = fault(post(&member, "/keys", json!({ "name": name })).await, 400).await;
        assert_eq!(refused.field.as_deref(), Some("name"));
    }
    let missing = "/keys/01234567-89ab-7def-8123-456789abcdef";
    for (asked, nothing) in [
        (stranger.ask(Method::GET, &path), stranger.ask(Method::GET, missing)),
        (stranger.ask(Method::DELETE, &path), stranger.ask(Method::DELETE, missing)),
    ] {
        let (asked, nothing) = (asked.send().await.unwrap(), nothing.send().await.unwrap());
        let (asked, nothing) = (fault(asked, 404).await, fault(nothing, 404).await);
        assert_eq!((asked.code, asked.hint), (nothing.code, nothing.hint));
    }
    fault(post(&stranger, "/keys", json!({ "name": "x", "project": own })).await, 404).await;
    assert_eq!(stranger.get("/keys").await["items"], json!([]));
    for key in ["payroll", text(&made["id"]).as_str()] {
        let foreign = json!({ "name": "theirs", "encryption": { "key": key } });
        let refused = fault(post(&stranger, "/images", foreign).await, 404).await;
        assert_eq!(refused.field.as_deref(), Some("encryption.key"));
    }
    fault(post(&member, "/keys/rotate", json!({})).await, 403).await;
    assert_eq!(delete(&member, &path).await.status(), StatusCode::NO_CONTENT);
    fault(member.ask(Method::GET, &path).send().await.unwrap(), 404).await;
    let log = place.client.get("/operations?action=key.delete").await;
    assert_eq!(log["items"][0]["target_name"], "payroll");
}

/// IN-9: without a master key the answer says how to set one up, and nothing is made.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_master_key_the_way_to_one_is_told() {
    let place = Place::new().await;
    let calls = [
        ("/keys", json!({ "name": "k" })),
        ("/keys/rotate", json!({})),
        ("/images", json!({ "name": "i", "encryption": { "new_key": "k" } })),
    ];
    for (path, sent) in calls {
        let refused = fault(post(&place.client, path, sent).await, 409).await;
        let hint = refused.hint.unwrap();
        assert!(hint.contains("hearth-master-key") && hint.contains("controller.toml"), "{path}: {hint}");
    }
    assert_eq!(place.client.get("/keys").await["items"], json!([]));
    assert_eq!(place.client.get("/images").await["items"], json!([]));
}

pub(super) async fn import(client: &Client, sent: Value, bytes: Vec<u8>) -> ImageId {
    let id = client.image(sent).await;
    assert_eq!(client.put(id, bytes).await.status(), StatusCode::ACCEPTED);
    let image = client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Active, "{}", image.reason);
    id
}

/// Files of a folder that hold a piece of these bytes.
fn holding(folder: &Path, bytes: &[u8]) -> Vec<std::path::PathBuf> {
    let piece = &bytes[bytes.len() / 2..][..24];
    let holds = |path: &std::path::PathBuf| {
        // The database's own journal comes and goes.
        std::fs::read(path).is_ok_and(|found| found.windows(piece.len()).any(|window| window == piece))
    };
    files(folder).into_iter().filter(holds).collect()
}

/// IN-9: an import that encrypts leaves nothing plain, has neither download nor variants, and keeps its key.
#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_image_is_nowhere_in_the_plain() {
    let place = place().await;
    let (client, state) = (&place.client, &place.config.state_dir);
    let (random_bytes, dir) = (3_000_000, tempfile::tempdir().unwrap());
    let file = std::fs::read(qcow2(dir.path(), random_bytes)).unwrap();
    let marker = noise(random_bytes);
    let sent = json!({ "name": "secret", "encryption": { "new_key": "payroll" } });
    let id = import(client, sent, file.clone()).await;
    let path = format!("/images/{id}");
    let image = client.get(&path).await;
    assert_eq!(image["encryption"]["key_name"], "payroll");
    assert_eq!(
        (image["virtual_bytes"].as_u64(), image["original_kept"].as_bool()),
        (Some(64 << 20), Some(false))
    );
    assert_eq!(holding(state, &marker), Vec::<std::path::PathBuf>::new());
    for folder in ["originals", "staging", "content/leaving"] {
        assert_eq!(files(&state.join(folder)), Vec::<std::path::PathBuf>::new(), "{folder}");
    }
    let refused = fault(client.ask(Method::GET, &format!("{path}/file")).send().await.unwrap(), 409).await;
    assert!(refused.message.contains("not kept"), "{}", refused.message);
    let refused =
        fault(post(client, &format!("{path}/variants"), json!({ "format": "vmdk" })).await, 409).await;
    assert!(refused.message.contains("encrypted"), "{}", refused.message);

    let key = text(&image["encryption"]["key"]);
    let used = fault(delete(client, &format!("/keys/{key}")).await, 409).await;
    assert!(used.message.contains("used by 1 images"), "{}", used.message);
    assert_eq!(delete(client, &path).await.status(), StatusCode::NO_CONTENT);
    fault(delete(client, &format!("/keys/{key}")).await, 409).await;
    assert_eq!(delete(client, &format!("{path}?now=true")).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(delete(client, &format!("/keys/{key}")).await.status(), StatusCode::NO_CONTENT);

    // That the search finds what is there.
    import(client, json!({ "name": "plain" }), file).await;
    assert!(!holding(&state.join("content"), &marker).is_empty());
}

/// IN-9: the same file twice is two contents, and another project cannot be given the image with its key.
#[tokio::test(flavor = "multi_thread")]
async fn encrypted_images_share_nothing_and_stay_with_their_key() {
    let place = place().await;
    let client = &place.client;
    client.post("/keys", json!({ "name": "one" })).await;
    let mut contents = Vec::new();
    for name in ["a", "b"] {
        let sent = json!({ "name": name, "encryption": { "key": "one" } });
        let id = import(client, sent, noise(300_000 / 512 * 512)).await;
        let image = client.get(&format!("/images/{id}")).await;
        contents.push(text(&image["content"]));
        let (other, ..) = project(client, &format!("for-{name}")).await;
        let moved = post(client, &format!("/images/{id}/owner"), json!({ "project": other })).await;
        assert!(fault(moved, 409).await.message.contains("key of its project"));
    }
    assert_ne!(contents[0], contents[1]);
    assert_eq!(client.get("/keys").await["items"][0]["images"], 2);
}

/// IN-9: a new image and its new key come together or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_made_leaves_no_key() {
    let place = place().await;
    let client = &place.client;
    client.image(json!({ "name": "taken" })).await;
    let twice = json!({ "name": "taken", "encryption": { "new_key": "fresh" } });
    fault(post(client, "/images", twice).await, 409).await;
    assert_eq!(client.get("/keys").await["items"], json!([]));
    let both = json!({ "name": "x", "encryption": { "new_key": "k", "key": "k" } });
    fault(post(client, "/images", both).await, 400).await;
}

/// IN-9: rotation: the new master key takes over, and afterwards the old one is needed no more.
#[tokio::test(flavor = "multi_thread")]
async fn another_master_key_takes_over() {
    let place = place().await;
    place.client.post("/keys", json!({ "name": "k" })).await;
    let before = text(&place.client.get("/keys").await["items"][0]["master"]);
    let (dir, mut config, token) = place.stop().await;
    let at = async |config: &Config| {
        let controller = harness::start(config).await;
        let client = Client::new(config, controller.https.port(), &token);
        (controller, client)
    };
    let image = |name: &str| json!({ "name": name, "encryption": { "key": "k" } });
    config.master_keys.current = Some(master(&config, 2));
    let (controller, client) = at(&config).await;
    for call in [post(&client, "/keys/rotate", json!({})).await, post(&client, "/images", image("a")).await] {
        let refused = fault(call, 409).await;
        assert!(refused.message.contains(&before), "which one is missing: {}", refused.message);
        assert!(refused.hint.unwrap().contains("hearth-master-key-old"));
    }
    controller.stop().await;
    config.master_keys.old = Some(master(&config, 1));
    let (controller, client) = at(&config).await;
    body(post(&client, "/images", image("a")).await).await;
    let done = client.post("/keys/rotate", json!({})).await;
    assert_eq!((done["sealed"].as_u64(), done["unchanged"].as_u64()), (Some(1), Some(0)));
    let done = client.post("/keys/rotate", json!({})).await;
    assert_eq!((done["sealed"].as_u64(), done["unchanged"].as_u64()), (Some(0), Some(1)));
    controller.stop().await;
    config.master_keys.old = None;
    let (controller, client) = at(&config).await;
    import(&client, image("b"), noise(512 * 512)).await;
    assert_ne!(text(&client.get("/keys").await["items"][0]["master"]), before);
    controller.stop().await;
    drop(dir);
}

/// IN-9: a file that is no image leaves nothing plain either; the import can be repeated with another file.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_import_keeps_nothing() {
    let place = place().await;
    let client = &place.client;
    let sent = json!({ "name": "x", "format": "qcow2", "encryption": { "new_key": "k" } });
    let id = client.image(sent).await;
    let marker = noise(200_000);
    client.put(id, marker.clone()).await;
    assert_eq!(client.ended(id).await.status, ImageStatus::Killed);
    assert_eq!(holding(&place.config.state_dir, &marker), Vec::<std::path::PathBuf>::new());
    let dir = tempfile::tempdir().unwrap();
    client.put(id, std::fs::read(qcow2(dir.path(), 100_000)).unwrap()).await;
    assert_eq!(client.ended(id).await.status, ImageStatus::Active);
}
