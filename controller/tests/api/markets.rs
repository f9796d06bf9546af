//! Markets: signed catalogs, from a file and from a real server, and what is imported from them.

use std::path::Path;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use hearth_protocol::api::market::signed_bytes;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::{ImageStatus, Role};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::harness::{Client, Place, body, fault, noise, sha256};
use super::servers::{free_port, nginx};
use super::sources::place;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn key(seed: u8) -> String {
    hex(pair(seed).public_key().as_ref())
}

fn sign(catalog: &Value, seed: u8) -> Value {
    let text = catalog.to_string();
    let signature = hex(pair(seed).sign(&signed_bytes(&text)).as_ref());
    json!({ "catalog": text, "signature": signature })
}

fn entry(key: &str, url: &str, file: &[u8]) -> Value {
    json!({ "key": key, "name": key, "os_type": "linux", "distribution": "Ubuntu", "version": "24.04",
        "architecture": "x86_64", "format": "raw", "url": url, "size_bytes": file.len(), "sha256": sha256(file) })
}

fn catalog(serial: u64, entries: &[Value]) -> Value {
    json!({ "name": "official", "serial": serial, "entries": entries })
}

async fn refused(
    client: &Client,
    path: &str,
    sent: Value,
    status: u16,
) -> hearth_protocol::api::error::ErrorBody {
    fault(client.ask(Method::POST, path).json(&sent).send().await.unwrap(), status).await
}

async fn states(client: &Client, market: &str) -> Vec<String> {
    let page = client.get(&format!("/markets/{market}/entries")).await;
    page["items"].as_array().unwrap().iter().map(|row| row["state"].as_str().unwrap().to_owned()).collect()
}

/// A folder that a server shows, with a file.
fn file_in(dir: &Path, name: &str, bytes: &[u8]) {
    std::fs::create_dir_all(dir.join("www")).unwrap();
    std::fs::write(dir.join("www").join(name), bytes).unwrap();
}

/// MK-1, DL-4: an entry becomes a public image with what the catalog says; once the image is deleted it is not imported again.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_is_imported_and_shows_what_became_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(300_000);
    file_in(dir.path(), "noble.raw", &bytes);
    let server = nginx(dir.path(), free_port(), "");
    let place = place(&[server.port], |_| ()).await;
    let client = &place.client;
    let url = format!("http://127.0.0.1:{}/noble.raw", server.port);
    let file = sign(&catalog(1, &[entry("noble", &url, &bytes)]), 1);
    let made = client.post("/markets", json!({ "name": "official", "key": key(1), "file": file })).await;
    assert_eq!(
        (&made["serial"], &made["entries"], &made["catalog"]),
        (&json!(1), &json!(1), &json!("official"))
    );
    let market = made["id"].as_str().unwrap();
    assert_eq!(client.get("/markets?name=OFFICIAL").await["items"][0]["id"], market);
    assert_eq!(states(client, market).await, ["not_imported"]);

    let import = format!("/markets/{market}/entries/noble/import");
    let image = client.post(&import, json!({})).await;
    let id: ImageId = image["id"].as_str().unwrap().parse().unwrap();
    assert_eq!((&image["visibility"], &image["name"]), (&json!("public"), &json!("noble")));
    let image = client.ended(id).await;
    assert_eq!(
        (image.status, image.checksums.sha256),
        (ImageStatus::Active, Some(sha256(&bytes))),
        "{}",
        image.reason
    );
    assert_eq!((image.distribution.as_deref(), image.version.as_deref()), (Some("Ubuntu"), Some("24.04")));
    let page = client.get(&format!("/markets/{market}/entries")).await;
    assert_eq!((&page["items"][0]["state"], &page["items"][0]["image"]), (&json!("imported"), &json!(id)));
    assert!(refused(client, &import, json!({ "name": "twice" }), 409).await.message.contains("here already"));

    client.post(&format!("/images/{id}/unpublish"), json!({})).await;
    let gone = client.ask(Method::DELETE, &format!("/images/{id}")).send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert_eq!(states(client, market).await, ["not_imported"], "what lies in the bin is not here");
    client.post(&format!("/images/{id}/restore"), json!({})).await;
    assert_eq!(states(client, market).await, ["imported"]);
    let gone = client.ask(Method::DELETE, &format!("/images/{id}?now=true")).send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert_eq!(states(client, market).await, ["not_imported"]);
    let again: ImageId = client.post(&import, json!({})).await["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(client.ended(again).await.status, ImageStatus::Active);

    // The market goes, its image stays.
    let gone = client.ask(Method::DELETE, &format!("/markets/{market}")).send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert_eq!(client.get(&format!("/images/{again}")).await["status"], "active");
    let log = client.get("/operations?target_kind=market").await;
    let actions: Vec<&str> =
        log["items"].as_array().unwrap().iter().map(|row| row["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["market.remove", "market.import", "market.import", "market.create"]);
    place.stop().await;
}

/// MK-1: a file that has not the size or the sum that was signed fails, keeps nothing and says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_what_was_signed_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(300_000);
    file_in(dir.path(), "disk.raw", &bytes);
    let server = nginx(dir.path(), free_port(), "");
    let place = place(&[server.port], |_| ()).await;
    let client = &place.client;
    let url = format!("http://127.0.0.1:{}/disk.raw", server.port);
    let changed = |key: &str, field: &str, value: Value| {
        let mut entry = entry(key, &url, &bytes);
        entry[field] = value;
        entry
    };
    let entries = [
        changed("larger", "size_bytes", json!(299_999)),
        changed("other", "sha256", json!("ab".repeat(32))),
        changed("smaller", "size_bytes", json!(300_001)),
    ];
    let file = sign(&catalog(1, &entries), 1);
    let made = client.post("/markets", json!({ "name": "m", "key": key(1), "file": file })).await;
    let market = made["id"].as_str().unwrap();
    for (key, says) in
        [("larger", "market signed"), ("other", "sha256"), ("smaller", "its market signed 300001")]
    {
        let image = client.post(&format!("/markets/{market}/entries/{key}/import"), json!({})).await;
        let image = client.ended(image["id"].as_str().unwrap().parse().unwrap()).await;
        assert_eq!(image.status, ImageStatus::Killed, "{key}");
        assert!(image.reason.contains(says), "{key}: {}", image.reason);
    }
    assert_eq!(states(client, market).await, ["failed", "failed", "failed"]);
    // A name that is taken makes no half of an import.
    let import = format!("/markets/{market}/entries/other/import");
    assert!(refused(client, &import, json!({}), 409).await.message.contains("here already"));
    refused(client, &format!("/markets/{market}/entries/nothing/import"), json!({}), 404).await;
    place.stop().await;
}

/// MK-1: of many imports of one entry at the same time one is done, whatever names they give it.
#[tokio::test(flavor = "multi_thread")]
async fn an_entry_is_imported_once_however_many_ask() {
    let port = free_port();
    let place = place(&[port], |_| ()).await;
    let client = &place.client;
    let url = format!("http://127.0.0.1:{port}/disk.raw");
    let entries: Vec<Value> = (0..5).map(|n| entry(&format!("k{n}"), &url, b"x")).collect();
    let file = sign(&catalog(1, &entries), 1);
    let made = client.post("/markets", json!({ "name": "m", "key": key(1), "file": file })).await;
    let market = made["id"].as_str().unwrap();
    for round in 0..5 {
        let import = format!("/markets/{market}/entries/k{round}/import");
        let ask = |n: usize| {
            client.ask(Method::POST, &import).json(&json!({ "name": format!("{round}-{n}") })).send()
        };
        let answers = futures::future::join_all((0..8).map(ask)).await;
        let mut made = 0;
        for answer in answers {
            if answer.as_ref().unwrap().status() == StatusCode::ACCEPTED {
                made += 1;
                continue;
            }
            let error = fault(answer.unwrap(), 409).await;
            assert!(error.message.contains("here already"), "{error:?}");
        }
        assert_eq!(made, 1);
    }
    assert_eq!(client.get("/images").await["items"].as_array().unwrap().len(), 5);
    // A name that is taken makes no half of an import.
    let file = sign(&catalog(2, &[entry("new", &url, b"y")]), 1);
    client.post(&format!("/markets/{market}/refresh"), json!({ "file": file })).await;
    let import = format!("/markets/{market}/entries/new/import");
    let taken =
        refused(client, &import, json!({ "name": client.get("/images").await["items"][0]["name"] }), 409)
            .await;
    assert!(taken.message.contains("exists"), "{taken:?}");
    assert_eq!(states(client, market).await, ["not_imported"]);
    let log = client.get("/operations?action=market.import").await;
    assert_eq!(log["items"].as_array().unwrap().len(), 5, "nor a row in the log");
    place.stop().await;
}

/// MK-1: what was changed, signed by another key, replayed, too large or badly made is refused and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_cannot_be_trusted_is_refused() {
    let place = Place::new().await;
    let client = &place.client;
    let good = |serial| catalog(serial, &[entry("noble", "https://images.example/x", b"x")]);
    let add = |name: &str, key: String, file: Value| json!({ "name": name, "key": key, "file": file });
    let mut changed = sign(&good(1), 1);
    changed["catalog"] =
        changed["catalog"].as_str().unwrap().replace("images.example", "evil.example").into();
    let mut bad = good(1);
    bad["entries"][0]["url"] = "file:///etc/passwd".into();
    let mut large = good(1);
    large["entries"] = (0..1500).map(|n| entry(&format!("k{n}"), "https://images.example/x", b"x")).collect();
    for (sent, status, field) in [
        (add("m", key(1), changed), 400, Some("file.signature")),
        (add("m", key(2), sign(&good(1), 1)), 400, Some("file.signature")),
        (add("m", "abc".into(), sign(&good(1), 1)), 400, Some("key")),
        (add("m", key(1), json!({ "catalog": good(1).to_string() })), 400, None),
        (add("m", key(1), sign(&bad, 1)), 400, Some("file.catalog.entries[0].url")),
        (add("m", key(1), sign(&large, 1)), 400, Some("file.catalog.entries")),
        (add("a\u{0}", key(1), sign(&good(1), 1)), 400, Some("name")),
        (json!({ "name": "m", "key": key(1) }), 400, Some("file")),
        (add("m", key(1), json!({ "catalog": "x".repeat(1 << 20), "signature": "" })), 413, None),
    ] {
        let error = refused(client, "/markets", sent, status).await;
        assert!(field.is_none() || error.field.as_deref() == field, "{error:?}");
    }
    assert_eq!(client.get("/markets").await["items"], json!([]));

    let made = client.post("/markets", add("m", key(1), sign(&good(5), 1))).await;
    let market = made["id"].as_str().unwrap().to_owned();
    let refresh = format!("/markets/{market}/refresh");
    let file = |file: Value| json!({ "file": file });
    assert!(refused(client, &refresh, file(sign(&good(4), 1)), 409).await.message.contains("older"));
    let mut twin = good(5);
    twin["entries"] = json!([]);
    assert!(refused(client, &refresh, file(sign(&twin, 1)), 409).await.message.contains("not the one"));
    assert_eq!(
        refused(client, &refresh, file(sign(&good(6), 2)), 400).await.field.as_deref(),
        Some("file.signature")
    );
    let mut other = good(6);
    other["name"] = "another".into();
    refused(client, &refresh, file(sign(&other, 1)), 409).await;
    refused(client, &refresh, json!({}), 400).await;
    assert_eq!(
        client.post(&refresh, file(sign(&good(5), 1))).await["serial"],
        5,
        "the same again is no change"
    );
    assert_eq!(client.post(&refresh, file(sign(&good(6), 1))).await["serial"], 6);
    // Nor does removing the market make an old edition new.
    let gone = client.ask(Method::DELETE, &format!("/markets/{market}")).send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert!(
        refused(client, "/markets", add("m", key(1), sign(&good(5), 1)), 409).await.message.contains("older")
    );
    client.post("/markets", add("m", key(1), sign(&good(6), 1))).await;
    assert_eq!(refused(client, "/markets", add("M", key(2), sign(&good(1), 2)), 409).await.code, "conflict");
    place.stop().await;
}

/// MK-1: the controller gets editions from the market's URL, and no farther than any source may lead.
#[tokio::test(flavor = "multi_thread")]
async fn editions_come_from_a_url() {
    let dir = tempfile::tempdir().unwrap();
    let edition = |serial| sign(&catalog(serial, &[]), 1).to_string();
    file_in(dir.path(), "market.json", edition(1).as_bytes());
    file_in(dir.path(), "large.json", &vec![b' '; 1 << 20]);
    file_in(dir.path(), "page.json", b"<html>");
    let server = nginx(dir.path(), free_port(), "");
    let place = place(&[server.port], |_| ()).await;
    let client = &place.client;
    let url = |name: &str| format!("http://127.0.0.1:{}/{name}", server.port);
    let add = |url: String| json!({ "name": "m", "key": key(1), "url": url });
    for (url, status, says) in [
        (url("large.json"), 409, "larger than"),
        (url("page.json"), 400, "no signed catalog"),
        (url("nothing.json"), 409, "404"),
        (url("market.json?key=secret"), 400, "without user"),
        ("http://169.254.169.254/market.json".to_owned(), 400, "port"),
        ("ftp://images.example/market.json".to_owned(), 400, ""),
    ] {
        let error = refused(client, "/markets", add(url.clone()), status).await;
        assert!(error.message.contains(says) || says == "port", "{url}: {error:?}");
        assert!(!error.message.contains("secret"));
    }
    let market = client.post("/markets", add(url("market.json"))).await;
    let refresh = format!("/markets/{}/refresh", market["id"].as_str().unwrap());
    file_in(dir.path(), "market.json", edition(2).as_bytes());
    assert_eq!(client.post(&refresh, json!({})).await["serial"], 2);
    file_in(dir.path(), "market.json", edition(1).as_bytes());
    assert!(refused(client, &refresh, json!({}), 409).await.message.contains("older"), "a replayed edition");
    place.stop().await;
}

/// MK-1, SH-7: markets are the system's; entries come in pages.
#[tokio::test(flavor = "multi_thread")]
async fn markets_are_administrators_business() {
    let place = Place::new().await;
    let (domain, _) = place.controller.db().default_tenants().await.unwrap();
    let manager =
        place.client.delegate("manager", Role::Admin, json!({ "scope": "domain", "domain": domain })).await;
    let entries: Vec<Value> =
        (0..5).map(|n| entry(&format!("k{n}"), "https://images.example/x", b"x")).collect();
    let file = sign(&catalog(1, &entries), 1);
    let sent = json!({ "name": "m", "key": key(1), "file": file });
    let market = place.client.post("/markets", sent.clone()).await["id"].as_str().unwrap().to_owned();
    for (method, path) in [
        (Method::GET, "/markets".to_owned()),
        (Method::POST, "/markets".to_owned()),
        (Method::GET, format!("/markets/{market}/entries")),
        (Method::POST, format!("/markets/{market}/entries/k1/import")),
        (Method::DELETE, format!("/markets/{market}")),
    ] {
        fault(manager.ask(method, &path).json(&sent).send().await.unwrap(), 403).await;
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = place.client.get(&format!("/markets/{market}/entries?limit=2{cursor}")).await;
        seen.extend(
            page["items"].as_array().unwrap().iter().map(|row| row["key"].as_str().unwrap().to_owned()),
        );
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen, ["k0", "k1", "k2", "k3", "k4"]);
    drop(body(place.client.ask(Method::GET, &format!("/markets/{market}")).send().await.unwrap()).await);
    place.stop().await;
}
