//! Bytes of images: in, checked, imported, out again; and everything that may go wrong on the way.

use std::time::Duration;

use futures::StreamExt as _;
use hearth_controller::api::app::UPLOADS_MAX;
use hearth_protocol::words::{DiskFormat, ImageStatus, Role};
use reqwest::{Method, StatusCode};
use serde_json::json;
use sqlx::{Connection as _, Executor as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::harness::{Client, Place, fault, files, noise, qcow2, sha256, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_qcow2_is_imported_and_comes_back_as_it_was() {
    let place = Place::new().await;
    let client = &place.client;
    let file = std::fs::read(qcow2(place.dir.path(), 3 << 20)).unwrap();
    let expected = json!({ "sha256": sha256(&file) });
    let id = client.image(json!({ "name": "disk", "format": "qcow2", "expected": expected })).await;
    assert_eq!(client.put(id, file.clone()).await.status(), StatusCode::ACCEPTED);
    let image = client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Active, "{}", image.reason);
    assert_eq!((image.format, image.virtual_bytes), (Some(DiskFormat::Qcow2), Some(64 << 20)));
    assert_eq!(image.data_bytes, Some(3 << 20));
    // Whole, in two parts, and not at all.
    let path = format!("/images/{id}/file");
    let whole = client.ask(Method::GET, &path).send().await.unwrap();
    assert_eq!(whole.headers()["x-checksum-sha256"], sha256(&file));
    assert!(whole.headers()["content-disposition"].to_str().unwrap().contains("disk"));
    let tag = whole.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(whole.bytes().await.unwrap(), file);
    let range = |range: &str, tag: &str| {
        client.ask(Method::GET, &path).header("range", range).header("if-range", tag).send()
    };
    let part = range("bytes=1000-", &tag).await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap(), file[1000..]);
    let other = range("bytes=1000-", "\"of another file\"").await.unwrap();
    assert_eq!(other.status(), StatusCode::OK, "a range of another file is worth nothing");
    fault(range("bytes=99999999999-", &tag).await.unwrap(), 416).await;
    let have = client.ask(Method::GET, &path).header("if-none-match", &tag).send().await.unwrap();
    assert_eq!(have.status(), StatusCode::NOT_MODIFIED);
    // What happened stands in the log, in order, and the chain holds.
    let log = client.get("/operations?limit=1000").await;
    let actions: Vec<_> =
        log["items"].as_array().unwrap().iter().rev().map(|row| row["action"].clone()).collect();
    for action in ["image.create", "image.upload", "image.import", "image.download"] {
        assert!(actions.contains(&json!(action)), "{actions:?}");
    }
    assert_eq!(client.get("/operations/verify").await["intact"], true);
    place.stop().await;
}

/// LG-1: whoever takes a file out stands in the log, wherever the parts begin; and nothing goes out that cannot be told.
#[tokio::test(flavor = "multi_thread")]
async fn no_part_of_a_file_goes_out_untold() {
    let place = Place::new().await;
    let client = &place.client;
    let (id, bytes) = (client.image(json!({ "name": "taken" })).await, noise(300_000));
    assert_eq!(client.put(id, bytes.clone()).await.status(), StatusCode::ACCEPTED);
    assert_eq!(client.ended(id).await.status, ImageStatus::Active);
    let range = |client: &Client, range: &'static str| {
        client.ask(Method::GET, &format!("/images/{id}/file")).header("range", range).send()
    };
    let told = async || {
        let log = client.get("/operations?limit=1000&action=image.download").await;
        log["items"].as_array().unwrap().len()
    };
    let head = client.ask(Method::HEAD, &format!("/images/{id}/file")).send().await.unwrap();
    assert_eq!((head.status(), told().await), (StatusCode::OK, 0), "a head is no download");
    for (from, n) in [("bytes=1-", 1), ("bytes=200000-", 1), ("bytes=5-9", 1), ("bytes=0-9", 2)] {
        let answer = range(client, from).await.unwrap();
        assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(
            (from, told().await),
            (from, n),
            "all but one byte is the file; its other parts are not another"
        );
    }
    let other = client.delegate("other", Role::Member, json!({ "scope": "system" })).await;
    let url = format!("sqlite://{}", place.config.state_dir.join("hearth.sqlite").display());
    let mut intruder = sqlx::AnyConnection::connect(&url).await.unwrap();
    let full = "CREATE TRIGGER no_log BEFORE INSERT ON operation BEGIN SELECT RAISE(ABORT, 'full'); END";
    intruder.execute(full).await.unwrap();
    fault(range(&other, "bytes=7-").await.unwrap(), 503).await;
    intruder.execute("DROP TRIGGER no_log").await.unwrap();
    let answer = range(&other, "bytes=7-").await.unwrap();
    assert_eq!(answer.bytes().await.unwrap(), bytes[7..]);
    assert_eq!(told().await, 3);
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_image_leaves_nothing() {
    let place = Place::new().await;
    let client = &place.client;
    let bytes = noise(300_000);
    let (one, two) =
        (client.image(json!({ "name": "one" })).await, client.image(json!({ "name": "two" })).await);
    for id in [one, two] {
        assert_eq!(client.put(id, bytes.clone()).await.status(), StatusCode::ACCEPTED);
        assert_eq!(client.ended(id).await.status, ImageStatus::Active);
    }
    let objects = place.config.state_dir.join("content");
    let delete = |id| client.ask(Method::DELETE, &format!("/images/{id}?now=true")).send();
    assert_eq!(delete(one).await.unwrap().status(), StatusCode::NO_CONTENT);
    fault(client.ask(Method::GET, &format!("/images/{one}")).send().await.unwrap(), 404).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!files(&objects).is_empty(), "the other image has the same content");
    assert_eq!(client.get(&format!("/images/{two}")).await["status"], "active");
    assert_eq!(delete(two).await.unwrap().status(), StatusCode::NO_CONTENT);
    until("the content goes", || files(&objects).is_empty()).await;
    assert!(files(&place.config.state_dir.join("originals")).is_empty());
    client.image(json!({ "name": "one" })).await;
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_image_and_a_stale_revision_are_refused() {
    let place = Place::new().await;
    let kept = place.client.image(json!({ "name": "kept", "protected": true })).await;
    let answer = place.client.ask(Method::DELETE, &format!("/images/{kept}")).send().await.unwrap();
    assert!(fault(answer, 409).await.message.contains("protected"));
    let plain = place.client.image(json!({ "name": "plain" })).await;
    let delete = |tag: &str| {
        place.client.ask(Method::DELETE, &format!("/images/{plain}")).header("if-match", tag).send()
    };
    fault(delete("\"99\"").await.unwrap(), 412).await;
    fault(delete("soon").await.unwrap(), 400).await;
    assert_eq!(delete("\"1\"").await.unwrap().status(), StatusCode::NO_CONTENT);
    place.stop().await;
}

/// Proves IN-5.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_checksum_is_named_and_nothing_is_kept() {
    let place = Place::new().await;
    let expected = json!({ "md5": "0".repeat(32) });
    let id = place.client.image(json!({ "name": "wrong", "expected": expected })).await;
    let error = fault(place.client.put(id, noise(50_000)).await, 409).await;
    assert!(error.message.contains("md5"), "{error:?}");
    let image = place.client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Killed);
    assert!(image.reason.contains("md5"), "{}", image.reason);
    assert!(files(&place.config.state_dir.join("originals")).is_empty());
    fault(place.client.ask(Method::POST, &format!("/images/{id}/retry")).send().await.unwrap(), 409).await;
    fault(place.client.ask(Method::GET, &format!("/images/{id}/file")).send().await.unwrap(), 409).await;
    place.stop().await;
}

/// Proves IMG-1, IMG-5.
#[tokio::test(flavor = "multi_thread")]
async fn a_mislabelled_file_is_killed_with_the_reason() {
    let place = Place::new().await;
    let id = place.client.image(json!({ "name": "liar", "format": "raw" })).await;
    let file = std::fs::read(qcow2(place.dir.path(), 4096)).unwrap();
    assert_eq!(place.client.put(id, file).await.status(), StatusCode::ACCEPTED);
    let image = place.client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Killed);
    assert!(image.reason.contains("qcow2"), "{}", image.reason);
    assert!(files(&place.config.state_dir.join("originals")).is_empty());
    assert!(files(&place.config.state_dir.join("content")).is_empty());
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_before_and_while_it_comes() {
    let place = Place::with(|config| config.image_bytes_max = 100_000).await;
    let id = place.client.image(json!({ "name": "large" })).await;
    assert!(fault(place.client.put(id, noise(100_001)).await, 413).await.message.contains("100000"));
    let chunks = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(noise(10_000))).take(20);
    let request = place.client.ask(Method::PUT, &format!("/images/{id}/file"));
    fault(request.body(reqwest::Body::wrap_stream(chunks)).send().await.unwrap(), 413).await;
    let image = place.client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Queued, "it can be sent again: {}", image.reason);
    assert!(files(&place.config.state_dir.join("originals")).is_empty());
    fault(place.client.put(id, Vec::new()).await, 400).await;
    assert_eq!(place.client.put(id, noise(100_000)).await.status(), StatusCode::ACCEPTED);
    fault(place.client.put(id, noise(10)).await, 409).await;
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_disk_holds_is_refused_before_the_first_byte() {
    let place = Place::with(|config| config.image_bytes_max = u64::MAX / 4).await;
    let id = place.client.image(json!({ "name": "huge" })).await;
    let mut stream = raw(&place, id, 1 << 60).await;
    let answer = read_head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 507 "), "{answer}");
    assert_eq!(place.client.ended(id).await.status, ImageStatus::Queued);
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_upload_can_be_sent_again() {
    let place = Place::new().await;
    let id = place.client.image(json!({ "name": "cut" })).await;
    let mut stream = raw(&place, id, 1_000_000).await;
    stream.write_all(&noise(200_000)).await.unwrap();
    stream.flush().await.unwrap();
    until_saving(&place.client, id).await;
    // A second sender meanwhile is refused.
    fault(place.client.put(id, noise(10)).await, 409).await;
    drop(stream);
    let image = place.client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Queued);
    assert!(image.reason.contains("ended before"), "{}", image.reason);
    assert!(files(&place.config.state_dir.join("originals")).is_empty());
    assert_eq!(place.client.put(id, noise(200_000)).await.status(), StatusCode::ACCEPTED);
    assert_eq!(place.client.ended(id).await.status, ImageStatus::Active);
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_cannot_be_recorded_can_be_sent_again() {
    let place = Place::new().await;
    let id = place.client.image(json!({ "name": "unlucky" })).await;
    let url = place.config.database_url.clone();
    let by_hand = async |statement: &'static str| {
        use sqlx::{Connection as _, Executor as _};
        let mut database = sqlx::SqliteConnection::connect(&url).await.unwrap();
        database.execute(statement).await.unwrap();
    };
    by_hand(
        "CREATE TRIGGER no_jobs BEFORE INSERT ON job BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END",
    )
    .await;
    fault(place.client.put(id, noise(50_000)).await, 500).await;
    let image = place.client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Queued);
    assert!(image.reason.contains("the upload failed"), "{}", image.reason);
    by_hand("DROP TRIGGER no_jobs").await;
    assert_eq!(place.client.put(id, noise(50_000)).await.status(), StatusCode::ACCEPTED);
    assert_eq!(place.client.ended(id).await.status, ImageStatus::Active);
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_sender_is_cut_off() {
    let place = Place::with(|config| config.upload_silence = Duration::from_millis(500)).await;
    let id = place.client.image(json!({ "name": "slow" })).await;
    let mut stream = raw(&place, id, 1_000_000).await;
    stream.write_all(&noise(1000)).await.unwrap();
    let answer = read_head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let image = place.client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Queued);
    assert!(image.reason.contains("no byte came"), "{}", image.reason);
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_originals_the_content_serves_and_the_download_is_refused() {
    let place = Place::with(|config| config.keep_originals = false).await;
    let id = place.client.image(json!({ "name": "lean" })).await;
    assert_eq!(place.client.put(id, noise(100_000)).await.status(), StatusCode::ACCEPTED);
    let image = place.client.ended(id).await;
    assert_eq!((image.status, image.original_kept), (ImageStatus::Active, false));
    let originals = place.config.state_dir.join("originals");
    until("the original goes", || files(&originals).is_empty()).await;
    let answer = place.client.ask(Method::GET, &format!("/images/{id}/file")).send().await.unwrap();
    assert!(fault(answer, 409).await.message.contains("not kept"));
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_name_what_changed() {
    let place = Place::new().await;
    let answer = place.client.ask(Method::GET, "/events").send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut stream = answer.bytes_stream();
    let id = place.client.image(json!({ "name": "seen" })).await;
    let mut text = String::new();
    while !text.contains(&id.to_string()) {
        let next = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
        text.push_str(&String::from_utf8_lossy(&next.unwrap().unwrap().unwrap()));
    }
    assert!(text.contains("\"kind\":\"image\""), "{text}");
    place.stop().await;
}

/// IN-1: slow senders of one project hold half of the places, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn slow_senders_of_one_project_leave_places_to_others() {
    let place = Place::new().await;
    let client = &place.client;
    let domain = client.get("/domains").await["items"][0]["id"].clone();
    let project = async |name: &str| {
        let made = client.post("/projects", json!({ "name": name, "domain": domain })).await;
        client.delegate(name, Role::Member, json!({ "scope": "project", "project": made["id"] })).await
    };
    let (slow, other) = (project("slow").await, project("other").await);
    let mut streams = Vec::new();
    for n in 0..UPLOADS_MAX / 2 {
        let id = slow.image(json!({ "name": format!("slow-{n}") })).await;
        streams.push(raw_as(&place, &slow.token, id, 1_000_000).await);
        until_saving(client, id).await;
    }
    let one_more = slow.image(json!({ "name": "one-more" })).await;
    let refused = slow.put(one_more, noise(1000)).await;
    assert!(refused.headers().contains_key("retry-after"));
    assert!(fault(refused, 503).await.message.contains("of your project"));
    for client in [&other, client] {
        let id = client.image(json!({ "name": "quick" })).await;
        assert_eq!(client.put(id, noise(1000)).await.status(), StatusCode::ACCEPTED);
    }
    drop(streams);
    let begun = hearth_controller::clock::monotonic();
    while slow.put(one_more, noise(1000)).await.status() != StatusCode::ACCEPTED {
        assert!(begun.elapsed() < Duration::from_secs(60), "its places do not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    place.stop().await;
}

async fn until_saving(client: &Client, id: hearth_protocol::id::ImageId) {
    while client.get(&format!("/images/{id}")).await["status"] != "saving" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An upload as a sender of its own, with the head already sent.
async fn raw(place: &Place, id: hearth_protocol::id::ImageId, length: u64) -> Box<dyn Both> {
    raw_as(place, &place.client.token, id, length).await
}

/// As [`raw`], with a token.
async fn raw_as(place: &Place, token: &str, id: hearth_protocol::id::ImageId, length: u64) -> Box<dyn Both> {
    let mut stream = super::garbage::connect(place, &[b"http/1.1"]).await;
    let head = format!(
        "PUT /api/v1/images/{id}/file HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    stream
}

/// What a TLS stream is.
pub(crate) trait Both: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Both for T {}

async fn read_head(stream: &mut Box<dyn Both>) -> String {
    let mut bytes = vec![0; 4096];
    let n = tokio::time::timeout(Duration::from_secs(30), stream.read(&mut bytes)).await.unwrap().unwrap();
    String::from_utf8_lossy(&bytes[..n]).into_owned()
}
