//! Idempotency keys: what is made twice by a broken connection is made once.

use hearth_protocol::words::Role;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use super::harness::{Client, Place, body, fault, noise};

fn keyed(client: &Client, path: &str, key: &str, sent: &Value) -> RequestBuilder {
    client.ask(Method::POST, path).header("idempotency-key", key).json(sent)
}

async fn send(client: &Client, path: &str, key: &str, sent: &Value) -> Response {
    keyed(client, path, key, sent).send().await.unwrap()
}

fn replayed(answer: &Response) -> bool {
    answer.headers().get("idempotent-replayed").is_some_and(|value| value == "true")
}

/// API-1: the same call with the same key gets the first answer again, and nothing is made twice.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_call_gets_the_first_answer_again() {
    let place = Place::new().await;
    let client = &place.client;
    let sent = json!({ "name": "noble" });
    let first = send(client, "/images", "k1", &sent).await;
    assert_eq!((first.status().as_u16(), replayed(&first)), (201, false));
    let tag = first.headers()["etag"].clone();
    let first = body(first).await;
    let again = send(client, "/images", "k1", &sent).await;
    assert_eq!((again.status().as_u16(), replayed(&again)), (201, true));
    assert_eq!(again.headers().get("etag"), Some(&tag), "the revision for If-Match is there again");
    assert_eq!(body(again).await, first);
    // Without the key it is another call.
    fault(client.ask(Method::POST, "/images").json(&sent).send().await.unwrap(), 409).await;
    // Another body, or another path, is another call too.
    let other = fault(send(client, "/images", "k1", &json!({ "name": "jammy" })).await, 422).await;
    assert_eq!((other.code.as_str(), other.field.as_deref()), ("key_reused", Some("idempotency-key")));
    fault(send(client, "/prewarms", "k1", &sent).await, 422).await;
    assert_eq!(client.get("/images").await["items"].as_array().unwrap().len(), 1);
    // A key is its caller's own.
    let (_, project) = place.controller.db().default_tenants().await.unwrap();
    let member = client.delegate("m", Role::Member, json!({ "scope": "project", "project": project })).await;
    let mine = send(&member, "/images", "k1", &json!({ "name": "mine" })).await;
    assert_eq!((mine.status().as_u16(), replayed(&mine)), (201, false));
    place.stop().await;
}

/// API-1: a refusal changed nothing and frees its key; a wrong key is refused before anything is done.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_call_frees_its_key() {
    let place = Place::new().await;
    let client = &place.client;
    fault(send(client, "/images", "k", &json!({ "name": "" })).await, 400).await;
    assert_eq!(send(client, "/images", "k", &json!({ "name": "noble" })).await.status(), 201);
    let long = "k".repeat(129);
    for key in ["", long.as_str(), "a\tb"] {
        let error = fault(send(client, "/images", key, &json!({ "name": "x" })).await, 400).await;
        assert_eq!(error.field.as_deref(), Some("idempotency-key"), "{key:?}");
    }
    let twice = keyed(client, "/images", "a", &json!({ "name": "x" })).header("idempotency-key", "b");
    fault(twice.send().await.unwrap(), 400).await;
    assert_eq!(client.get("/images").await["items"].as_array().unwrap().len(), 1);
    place.stop().await;
}

/// API-1: of many calls at the same time one is done; the others are told to wait, or get its answer.
#[tokio::test(flavor = "multi_thread")]
async fn of_concurrent_doubles_one_wins() {
    let place = Place::new().await;
    let client = &place.client;
    let id = client.image(json!({ "name": "noble" })).await;
    client.put(id, noise(100_000)).await;
    client.ended(id).await;
    for round in 0..5 {
        let (key, sent) = (format!("round {round}"), json!({ "ttl_s": 60 }));
        let path = format!("/images/{id}/links");
        let calls = (0..8).map(|_| send(client, &path, &key, &sent));
        let answers = futures::future::join_all(calls).await;
        let mut made = 0;
        for answer in answers {
            if answer.status() == 201 {
                made += 1;
                continue;
            }
            let waits = answer.headers().contains_key("retry-after");
            let error = fault(answer, 409).await;
            assert!(waits || error.message.contains("not kept"), "{error:?}");
        }
        assert_eq!(made, 1);
    }
    assert_eq!(client.get(&format!("/images/{id}/links")).await["items"].as_array().unwrap().len(), 5);
    place.stop().await;
}

/// API-1: what holds a secret is not given again, and no secret and no key is in the database.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_a_secret_is_not_kept() {
    let place = Place::new().await;
    let client = &place.client;
    let id = client.image(json!({ "name": "noble" })).await;
    client.put(id, noise(100_000)).await;
    client.ended(id).await;
    let links = format!("/images/{id}/links");
    let calls = [
        ("/tokens", json!({ "name": "t", "role": "reader", "scope": "system" }), "token"),
        ("/join-tokens", json!({}), "token"),
        (links.as_str(), json!({}), "path"),
    ];
    let mut secrets = vec!["the-key-itself".to_owned()];
    for (path, sent, field) in &calls {
        let key = format!("the-key-itself {path}");
        let made = body(send(client, path, &key, sent).await).await;
        let secret = made[field].as_str().unwrap().to_owned();
        let error = fault(send(client, path, &key, sent).await, 409).await;
        assert!(error.message.contains("not kept") && error.hint.is_some(), "{error:?}");
        assert!(!format!("{error:?}").contains(&secret));
        fault(send(client, path, &key, &json!({ "x": 1 })).await, 422).await;
        // The longest run of hex digits is the secret; behind that of a join token stands the CA's fingerprint, which is no
        // secret.
        let hex = |part: &&str| part.len() == 64 && part.bytes().all(|b| b.is_ascii_hexdigit());
        let secret = secret.split(['_', '.', '/']).find(hex).unwrap().to_owned();
        secrets.push(secret);
    }
    let (dir, config, _) = place.stop().await;
    let stored: Vec<u8> = ["hearth.sqlite", "hearth.sqlite-wal"]
        .iter()
        .flat_map(|name| std::fs::read(config.state_dir.join(name)).unwrap_or_default())
        .collect();
    for secret in secrets {
        assert!(
            !stored.windows(secret.len()).any(|window| window == secret.as_bytes()),
            "{secret} is stored"
        );
    }
    drop(dir);
}

/// API-1: a client that is gone before the answer finds it when it comes again.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_client_is_gone_is_done_and_answered_later() {
    let place = Place::new().await;
    for round in 0..10 {
        let name = json!({ "name": format!("noble-{round}") });
        let text = name.to_string();
        let mut stream = super::garbage::connect(&place, &[b"http/1.1"]).await;
        let head = format!(
            "POST /api/v1/images HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\nidempotency-key: gone-{round}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
            place.client.token,
            text.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        drop(stream);
        // The second try: it comes while the first runs, after it, or (rarely) the first never arrived.
        let begun = hearth_controller::clock::monotonic();
        loop {
            let answer =
                keyed(&place.client, "/images", &format!("gone-{round}"), &name).send().await.unwrap();
            if answer.status() == 201 {
                break;
            }
            let error = fault(answer, 409).await;
            assert!(error.message.contains("still runs"), "{error:?}");
            assert!(begun.elapsed().as_secs() < 60, "it never ended");
        }
    }
    assert_eq!(place.client.get("/images").await["items"].as_array().unwrap().len(), 10);
    place.stop().await;
}

/// API-1: a call whose process died is not run again: its caller is told to look.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_nobody_ended_is_not_run_again() {
    use sqlx::{Connection as _, Executor as _};
    let place = Place::new().await;
    let client = &place.client;
    let sent = json!({ "name": "noble" });
    body(send(client, "/images", "k", &sent).await).await;
    sqlx::any::install_default_drivers();
    let url = format!("sqlite://{}", place.config.state_dir.join("hearth.sqlite").display());
    let mut other = sqlx::AnyConnection::connect(&url).await.unwrap();
    // As a process leaves it that died just now, and one that died long ago.
    other.execute("UPDATE kept_answer SET state = 'running', body = ''").await.unwrap();
    let answer = send(client, "/images", "k", &sent).await;
    assert!(answer.headers().contains_key("retry-after"));
    assert!(fault(answer, 409).await.message.contains("still runs"));
    other.execute("UPDATE kept_answer SET created_us = created_us - 600000000").await.unwrap();
    let answer = send(client, "/images", "k", &sent).await;
    assert!(!answer.headers().contains_key("retry-after"));
    let error = fault(answer, 409).await;
    assert!(error.message.contains("without an answer") && error.hint.is_some(), "{error:?}");
    place.stop().await;
}
