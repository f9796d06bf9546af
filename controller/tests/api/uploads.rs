//! Uploads in many requests: what was acknowledged stays, whoever dies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use hearth_controller::task;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::{ImageStatus, OsType};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _};
use tokio::io::AsyncWriteExt as _;

use super::admin::{bring_back, save};
use super::crash::{check, serve, set_up};
use super::harness::{self, Client, Place, body, config_in, fault, files, noise, qcow2, sha256, until};
use super::sources::file_bytes;

/// A client's view of one upload.
struct Upload<'a> {
    client: &'a Client,
    path: String,
}

impl<'a> Upload<'a> {
    async fn open(client: &'a Client, image: ImageId, sent: Value) -> Self {
        let made = client.post(&format!("/images/{image}/uploads"), sent).await;
        let id = made["id"].as_str().unwrap();
        assert_eq!(made["offset_bytes"], 0);
        Self { client, path: format!("/images/{image}/uploads/{id}") }
    }

    /// What a `HEAD` says.
    async fn offset(&self) -> u64 {
        let answer = self.client.ask(Method::HEAD, &self.path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        offset_of(&answer)
    }

    async fn send(&self, offset: u64, bytes: impl Into<reqwest::Body>, complete: bool) -> Response {
        let request = self.client.ask(Method::PATCH, &self.path).header("upload-offset", offset);
        let request = if complete { request.header("upload-complete", "true") } else { request };
        request.body(bytes).send().await.unwrap()
    }
}

fn offset_of(answer: &Response) -> u64 {
    answer.headers()["upload-offset"].to_str().unwrap().parse().unwrap()
}

/// IN-1: a file comes in as many requests as it takes, and every offset is checked.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_in_pieces() {
    let place = Place::new().await;
    let client = &place.client;
    let file = std::fs::read(qcow2(place.dir.path(), 5 << 20)).unwrap();
    let all = file.len() as u64;
    let id = client.image(json!({ "name": "pieces", "expected": { "sha256": sha256(&file) } })).await;
    let upload =
        Upload::open(client, id, json!({ "size_bytes": all, "mark": "42 bytes of yesterday" })).await;
    let listed = client.get(&format!("/images/{id}/uploads")).await;
    assert_eq!(listed["items"][0]["mark"], "42 bytes of yesterday");
    let first = upload.send(0, file[..3_000_000].to_vec(), false).await;
    assert_eq!((first.status(), offset_of(&first)), (StatusCode::OK, 3_000_000));
    let image = client.get(&format!("/images/{id}")).await;
    assert_eq!((&image["status"], &image["stage"]), (&json!("saving"), &json!("uploading")));
    assert_eq!(image["percent"].as_u64().unwrap(), 3_000_000 * 100 / all);
    // At any other place it is refused, with the right one.
    for wrong in [0, 2_999_999, 3_000_001] {
        let refused = upload.send(wrong, file[..10].to_vec(), false).await;
        assert_eq!(offset_of(&refused), 3_000_000);
        fault(refused, 409).await;
    }
    assert_eq!(upload.offset().await, 3_000_000);
    // No other sender, in whichever way.
    fault(client.put(id, noise(10)).await, 409).await;
    let second = client.ask(Method::POST, &format!("/images/{id}/uploads")).json(&json!({}));
    fault(second.send().await.unwrap(), 409).await;
    // Not the end yet, and more than announced.
    fault(upload.send(3_000_000, file[3_000_000..3_000_010].to_vec(), true).await, 409).await;
    fault(upload.send(3_000_010, [&file[3_000_010..], b"x"].concat(), false).await, 413).await;
    let at = upload.offset().await;
    let last = upload.send(at, file[usize::try_from(at).unwrap()..].to_vec(), false).await;
    assert_eq!(last.status(), StatusCode::ACCEPTED);
    let image = client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Active, "{}", image.reason);
    assert_eq!(image.checksums.sha256, Some(sha256(&file)), "counted by the import");
    assert_eq!(image.original_bytes, Some(all));
    fault(client.ask(Method::GET, &upload.path).send().await.unwrap(), 404).await;
    let back = client.ask(Method::GET, &format!("/images/{id}/file")).send().await.unwrap();
    assert_eq!(back.bytes().await.unwrap(), file);
    place.stop().await;
}

/// IN-1: a backup has a file that came in several goes, which nobody hashed yet, and names one that is not whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_has_what_came_in_pieces() {
    // Nothing imports it meanwhile.
    let place = Place::with(|config| config.parallel_imports = 0).await;
    let (id, bytes) = (place.client.image(json!({ "name": "pieces" })).await, noise(300_000));
    let upload = Upload::open(&place.client, id, json!({ "size_bytes": bytes.len() })).await;
    assert_eq!(upload.send(0, bytes[..100_000].to_vec(), false).await.status(), StatusCode::OK);
    assert_eq!(upload.send(100_000, bytes[100_000..].to_vec(), false).await.status(), StatusCode::ACCEPTED);
    let (dir, config, token) = place.stop().await;
    let saved = dir.path().join("saved");
    let said = save(&config, &saved, true).await.unwrap();
    assert!(said.contains("1 originals") && !said.contains("MISSING"), "{said}");
    let other = tempfile::tempdir().unwrap();
    let restored = config_in(other.path());
    assert_eq!(bring_back(&restored, &saved).await.unwrap().0, 0);
    let controller = harness::start(&restored).await;
    let client = Client::new(&restored, controller.https.port(), &token);
    let image = client.ended(id).await;
    assert_eq!((image.status, image.checksums.sha256), (ImageStatus::Active, Some(sha256(&bytes))));
    drop(client);
    controller.stop().await;
    let original = config.state_dir.join("originals").join(id.to_string());
    std::fs::remove_file(&original).unwrap();
    std::fs::write(&original, &bytes[..200_000]).unwrap();
    let said = save(&config, &dir.path().join("cut"), true).await.unwrap();
    assert!(said.contains("0 originals") && said.contains("other bytes than were uploaded"), "{said}");
}

/// IN-1: without a size the last request says that it is the last.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_can_be_told_by_the_last_request() {
    let place = Place::new().await;
    let client = &place.client;
    let (id, bytes) = (client.image(json!({ "name": "open-ended" })).await, noise(300_000));
    let upload = Upload::open(client, id, json!({})).await;
    fault(upload.send(0, Vec::new(), true).await, 400).await;
    assert_eq!(upload.send(0, bytes.clone(), false).await.status(), StatusCode::OK);
    assert_eq!(upload.send(300_000, Vec::new(), true).await.status(), StatusCode::ACCEPTED);
    let image = client.ended(id).await;
    assert_eq!((image.status, image.checksums.sha256), (ImageStatus::Active, Some(sha256(&bytes))));
    place.stop().await;
}

/// IN-1, IN-5: a wrong checksum kills the image and keeps nothing, whether the file came in one go or in two.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_checksum_is_found_however_the_file_came() {
    let place = Place::new().await;
    let client = &place.client;
    for (name, cut) in [("one-go", 0), ("two-goes", 50_000)] {
        let expected = json!({ "blake3": "0".repeat(64) });
        let id = client.image(json!({ "name": name, "expected": expected })).await;
        let upload = Upload::open(client, id, json!({ "size_bytes": 100_000 })).await;
        let bytes = noise(100_000);
        if cut > 0 {
            assert_eq!(upload.send(0, bytes[..cut].to_vec(), false).await.status(), StatusCode::OK);
        }
        let sent = upload.send(cut as u64, bytes[cut..].to_vec(), false).await;
        assert_eq!(sent.status(), if cut > 0 { StatusCode::ACCEPTED } else { StatusCode::CONFLICT });
        let image = client.ended(id).await;
        assert_eq!(image.status, ImageStatus::Killed);
        assert!(image.reason.contains("blake3"), "{}", image.reason);
        assert_eq!(files(&place.config.state_dir.join("originals")), [] as [std::path::PathBuf; 0]);
    }
    place.stop().await;
}

/// IN-1: what a broken connection brought is kept; two senders at once are one too many.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_loses_next_to_nothing() {
    let place = Place::new().await;
    let client = &place.client;
    let (id, bytes) = (client.image(json!({ "name": "cut" })).await, noise(12 << 20));
    let upload = Upload::open(client, id, json!({ "size_bytes": bytes.len() })).await;
    // Ten MiB, and then the sender waits until it is told to die.
    let part = bytes::Bytes::from(bytes[..10 << 20].to_vec());
    let (die, dies) = tokio::sync::oneshot::channel::<()>();
    let stream = futures::stream::unfold((Some(part), Some(dies)), |(part, dies)| async move {
        match part {
            Some(part) => Some((Ok::<_, std::io::Error>(part), (None, dies))),
            None => {
                drop(dies.unwrap().await);
                Some((Err(std::io::Error::other("killed")), (None, None)))
            }
        }
    });
    let request = client.ask(Method::PATCH, &upload.path).header("upload-offset", 0);
    let sending = task::spawn("sender", request.body(reqwest::Body::wrap_stream(stream)).send());
    while upload.offset().await < 6 << 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(fault(upload.send(0, noise(10), false).await, 409).await.code, "in_use");
    die.send(()).unwrap();
    assert!(sending.await.unwrap().is_err());
    // Everything that arrived is settled before the next one may append.
    let at = loop {
        let at = upload.offset().await;
        let answer = upload.send(at, Vec::new(), false).await;
        if answer.status() == StatusCode::OK {
            break offset_of(&answer);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(at >= 9 << 20, "{at}");
    let rest = bytes[usize::try_from(at).unwrap()..].to_vec();
    assert_eq!(upload.send(at, rest, false).await.status(), StatusCode::ACCEPTED);
    assert_eq!(client.ended(id).await.checksums.sha256, Some(sha256(&bytes)));
    place.stop().await;
}

/// IN-1: the controller is killed twice in the middle of an upload; at most a few MiB are sent again.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_survives_the_controller() {
    let dir = tempfile::tempdir().unwrap();
    let (config, client) = set_up(dir.path(), "").await;
    let mut running = Some(serve(&config, &client).await);
    let bytes = noise(file_bytes());
    let id = client.image(json!({ "name": "survivor", "expected": { "sha256": sha256(&bytes) } })).await;
    let upload = Upload::open(&client, id, json!({ "size_bytes": bytes.len() })).await;
    for kill_at in [file_bytes() / 3, file_bytes() * 2 / 3] {
        let from = upload.offset().await;
        let until_kill = usize::try_from(kill_at).unwrap();
        let part = bytes::Bytes::from(bytes[usize::try_from(from).unwrap()..until_kill].to_vec());
        let (sent, mut all_sent) = tokio::sync::watch::channel(false);
        let stream = futures::stream::unfold(Some(part), move |part| {
            let sent = sent.clone();
            async move {
                let Some(mut part) = part else {
                    sent.send_replace(true);
                    return std::future::pending().await;
                };
                let next = part.split_to(part.len().min(1 << 20));
                (!next.is_empty() || part.is_empty())
                    .then_some((Ok::<_, std::io::Error>(next), Some(part).filter(|part| !part.is_empty())))
            }
        });
        let request = client.ask(Method::PATCH, &upload.path).header("upload-offset", from);
        let sending = task::spawn("sender", request.body(reqwest::Body::wrap_stream(stream)).send());
        all_sent.wait_for(|sent| *sent).await.unwrap();
        while upload.offset().await < kill_at - (8 << 20) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let told = upload.offset().await;
        drop(running.take());
        assert!(sending.await.unwrap().is_err());
        running = Some(serve(&config, &client).await);
        let after = upload.offset().await;
        assert!(after >= told, "what was told stays: {told}, {after}");
        assert!(kill_at - after <= 8 << 20, "{} bytes are sent again", kill_at - after);
        assert_eq!(client.get(&format!("/images/{id}")).await["status"], "saving");
    }
    let at = upload.offset().await;
    let rest = bytes[usize::try_from(at).unwrap()..].to_vec();
    assert_eq!(upload.send(at, rest, false).await.status(), StatusCode::ACCEPTED);
    let image = client.ended(id).await;
    assert_eq!((image.status, image.checksums.sha256), (ImageStatus::Active, Some(sha256(&bytes))));
    drop(running);
    check(&config, false).await;
}

/// IN-1, DL-2: an upload ends when it is given up, when its image goes, and when nobody goes on with it for too long.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_ends_leaves_nothing() {
    let place = Place::with(|config| config.upload_idle = Duration::from_secs(2)).await;
    let client = &place.client;
    let originals = place.config.state_dir.join("originals");
    let begun = async |name: &str| {
        let id = client.image(json!({ "name": name })).await;
        let upload = Upload::open(client, id, json!({ "size_bytes": 100 })).await;
        assert_eq!(upload.send(0, vec![1; 50], false).await.status(), StatusCode::OK);
        (id, upload)
    };
    let (id, upload) = begun("given-up").await;
    assert_eq!(files(&originals).len(), 1);
    body(client.ask(Method::DELETE, &upload.path).send().await.unwrap()).await;
    assert_eq!(client.get(&format!("/images/{id}")).await["status"], "queued");
    assert!(files(&originals).is_empty());
    fault(upload.send(50, vec![1; 50], false).await, 404).await;
    assert_eq!(client.put(id, noise(1000)).await.status(), StatusCode::ACCEPTED, "it can be sent anew");
    client.ended(id).await;
    let (id, _) = begun("deleted").await;
    body(client.ask(Method::DELETE, &format!("/images/{id}")).send().await.unwrap()).await;
    until("its part goes", || files(&originals).len() == 1).await;
    // Idle over a restart: the file goes and the image says why.
    let (id, _) = begun("idle").await;
    let (_dir, config, token) = place.stop().await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let again = harness::start(&config).await;
    let client = Client::new(&config, again.https.port(), &token);
    let image = client.get(&format!("/images/{id}")).await;
    assert_eq!(image["status"], "queued");
    assert!(image["reason"].as_str().unwrap().contains("nothing more of the upload came"), "{image}");
    assert_eq!(files(&originals).len(), 1);
    let log = client.get("/operations?limit=1000").await;
    assert!(log["items"].as_array().unwrap().iter().any(|row| row["action"] == "image.upload_expire"));
    again.stop().await;
}

/// IN-1: a late end of one upload does not end the next one.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_ended_by_its_own_id() {
    let place = Place::new().await;
    let (client, db) = (&place.client, place.controller.db());
    let id = client.image(json!({ "name": "late" })).await;
    let first = db.start_upload(id).await.unwrap();
    db.abort_upload(first.id, "broken", None).await.unwrap();
    let upload = Upload::open(client, id, json!({ "size_bytes": 10 })).await;
    assert!(db.abort_upload(first.id, "broken, told late", None).await.is_err());
    assert_eq!(upload.offset().await, 0);
    assert_eq!(client.get(&format!("/images/{id}")).await["status"], "saving");
    place.stop().await;
}

/// IN-1: the upload ends between its last byte and the record of it; the file, which has its name by then, goes.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_ends_at_the_last_moment_leaves_nothing() {
    let place = Place::new().await;
    let client = &place.client;
    let id = client.image(json!({ "name": "last-moment" })).await;
    let upload = Upload::open(client, id, json!({})).await;
    assert_eq!(upload.send(0, noise(300_000), false).await.status(), StatusCode::OK);
    let file = place.config.state_dir.join("originals").join(id.to_string());
    // Nobody else can write from here on, so whoever names the file waits to record it.
    let url = format!("sqlite://{}", place.config.state_dir.join("hearth.sqlite").display());
    let mut intruder = sqlx::AnyConnection::connect(&url).await.unwrap();
    intruder.execute("BEGIN IMMEDIATE").await.unwrap();
    let end = async {
        until("the file has its name", || file.exists()).await;
        intruder.execute("DELETE FROM upload").await.unwrap();
        intruder.execute("UPDATE image SET status = 'queued', stage = NULL").await.unwrap();
        intruder.execute("COMMIT").await.unwrap();
    };
    let (sent, ()) = tokio::join!(upload.send(300_000, Vec::new(), true), end);
    fault(sent, 404).await;
    assert!(!file.exists(), "nobody else would remove it");
    assert_eq!(client.put(id, noise(1000)).await.status(), StatusCode::ACCEPTED, "it can be sent anew");
    assert_eq!(client.ended(id).await.status, ImageStatus::Active);
    place.stop().await;
}

/// IN-1: a form of a browser: fields first, the file last.
#[tokio::test(flavor = "multi_thread")]
async fn a_form_makes_an_image() {
    let place = Place::new().await;
    let client = &place.client;
    let bytes = noise(3 << 20);
    let file = |bytes: &[u8]| reqwest::multipart::Part::bytes(bytes.to_vec()).file_name("disk.img");
    let form = |name: &str| reqwest::multipart::Form::new().text("name", name.to_owned());
    let send = |form| client.ask(Method::POST, "/images/form").multipart(form).send();
    let good = form("form").text("sha256", sha256(&bytes)).text("os_type", "linux").text("description", "");
    let good = good.text("tag", "Gold").text("tag", "lts");
    let good = good.text("property", "team=db").text("protected", "on").part("file", file(&bytes));
    let answer = send(good).await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let id: ImageId = body(answer).await["id"].as_str().unwrap().parse().unwrap();
    let image = client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Active, "{}", image.reason);
    assert_eq!(image.tags.iter().map(String::as_str).collect::<Vec<_>>(), ["Gold", "lts"]);
    assert!(image.protected && image.properties["team"] == "db" && image.os_type == Some(OsType::Linux));
    // What is wrong is named, and leaves no record.
    for (form, status, field) in [
        (form("").part("file", file(&bytes)), 400, Some("name")),
        (form("a").text("os_type", "bsd").part("file", file(&bytes)), 400, Some("os_type")),
        (form("a").text("colour", "red").part("file", file(&bytes)), 400, Some("colour")),
        (form("a").text("min_disk_bytes", "many").part("file", file(&bytes)), 400, Some("min_disk_bytes")),
        (form("a").text("sha256", "0".repeat(64)).part("file", file(&bytes)), 409, None),
        // Nor does a record that refuses deletion.
        (form("a").text("protected", "on").part("file", file(&[])), 400, None),
        (form("a").part("file", file(&[])), 400, None),
        (form("a"), 400, Some("file")),
        (
            form("a").text("description", "x".repeat(20_000)).part("file", file(&bytes)),
            400,
            Some("description"),
        ),
    ] {
        let error = fault(send(form).await.unwrap(), status).await;
        assert_eq!(error.field.as_deref(), field, "{error:?}");
    }
    let no_form = client.ask(Method::POST, "/images/form").json(&json!({ "name": "x" }));
    fault(no_form.send().await.unwrap(), 415).await;
    assert_eq!(client.get("/images").await["items"].as_array().unwrap().len(), 1);
    place.stop().await;
}

/// IN-1: a form in which no file ever begins is refused before it fills the memory, whatever it consists of.
#[tokio::test(flavor = "multi_thread")]
async fn a_form_without_a_file_ends_before_it_fills_the_memory() {
    let place = Place::new().await;
    let head = "--x\r\ncontent-disposition: form-data; name=\"";
    let parts = format!("{head}description\"\r\n\r\n").into_bytes();
    // No boundary ever; a part's head that never ends.
    for (begin, more) in [(Vec::new(), vec![b'-'; 1 << 16]), (head.into(), vec![b'a'; 1 << 16])] {
        let sent = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&sent);
        let endless = futures::stream::repeat(more).take(16_384).map(move |more| {
            count.fetch_add(more.len() as u64, Ordering::Relaxed);
            Ok::<_, std::io::Error>(more)
        });
        let stream = futures::stream::iter([Ok(begin)]).chain(endless);
        let form = place.client.ask(Method::POST, "/images/form");
        let form = form.header("content-type", "multipart/form-data; boundary=x");
        let error = fault(form.body(reqwest::Body::wrap_stream(stream)).send().await.unwrap(), 413).await;
        assert!(error.message.contains("before its file"), "{error:?}");
        // What it took, and what windows and buffers on the way hold.
        assert!(sent.load(Ordering::Relaxed) < 256 << 20, "{sent:?} bytes of 1 GiB were taken");
    }
    // A form of the usual kind in tiny pieces is none of these, however large its file.
    let text = [parts, b"a disk\r\n".to_vec(), format!("{head}name\"\r\n\r\ntiny\r\n").into_bytes()].concat();
    let file = format!("{head}file\"; filename=\"d\"\r\n\r\n").into_bytes();
    let whole = [text, file, noise(9 << 20), b"\r\n--x--\r\n".to_vec()].concat();
    let pieces: Vec<_> = whole.chunks(7000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    let form = place.client.ask(Method::POST, "/images/form");
    let form = form.header("content-type", "multipart/form-data; boundary=x");
    let form = form.body(reqwest::Body::wrap_stream(futures::stream::iter(pieces)));
    let image = body(form.send().await.unwrap()).await;
    assert_eq!((&image["name"], &image["original_bytes"]), (&json!("tiny"), &json!(9 << 20)));
    place.stop().await;
}

/// IN-1: a form whose connection breaks in the middle of its file leaves neither record nor file, and its name is free.
#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_breaks_off_leaves_nothing() {
    let place = Place::new().await;
    let client = &place.client;
    for _ in 0..5 {
        let part = |name: &str| format!("--x\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n");
        let head = format!(
            "POST /api/v1/images/form HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
             content-type: multipart/form-data; boundary=x\r\ncontent-length: 9000000\r\n\r\n{}cut\r\n{}",
            client.token,
            part("name"),
            part("file")
        );
        let mut stream = super::garbage::connect(&place, &[b"http/1.1"]).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&noise(200_000)).await.unwrap();
        stream.flush().await.unwrap();
        while client.get("/images").await["items"][0]["status"] != "saving" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(stream);
        let begun = hearth_controller::clock::monotonic();
        let make = || client.ask(Method::POST, "/images").json(&json!({ "name": "cut" })).send();
        let made = loop {
            let answer = make().await.unwrap();
            if answer.status() == StatusCode::CREATED {
                break body(answer).await;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "the record stays: {}",
                client.get("/images").await
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let path = format!("/images/{}?now=true", made["id"].as_str().unwrap());
        body(client.ask(Method::DELETE, &path).send().await.unwrap()).await;
        until("no file is left", || files(&place.config.state_dir.join("originals")).is_empty()).await;
    }
    place.stop().await;
}
