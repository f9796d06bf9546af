//! Download links: with the programs that people use, and with addresses that nobody was given.

use std::path::Path;
use std::process::{Command, Stdio};

use hearth_protocol::id::ImageId;
use hearth_protocol::words::Role;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::harness::{Place, body, fault, noise, sha256, until};

/// Bytes of the file: enough to be cut off, small enough for a test.
const FILE_BYTES: u64 = 6 << 20;

/// An image with a file.
async fn image(place: &Place, name: &str) -> ImageId {
    let id = place.client.image(json!({ "name": name })).await;
    place.client.put(id, noise(FILE_BYTES)).await;
    assert_eq!(place.client.ended(id).await.status.as_str(), "active");
    id
}

async fn link(place: &Place, id: ImageId, sent: Value) -> Value {
    place.client.post(&format!("/images/{id}/links"), sent).await
}

/// A request without any token.
async fn open(place: &Place, path: &str) -> Response {
    place.client.http.get(format!("{}{path}", place.client.base)).send().await.unwrap()
}

async fn log_of(place: &Place, id: ImageId, action: &str) -> Vec<Value> {
    let page = place.client.get(&format!("/images/{id}/operations?limit=1000&action={action}")).await;
    page["items"].as_array().unwrap().clone()
}

fn file_sha256(path: &Path) -> String {
    sha256(&std::fs::read(path).unwrap())
}

/// DW-1: curl and aria2 resume over a link that needs no login; the log has the first use and no range more.
#[tokio::test(flavor = "multi_thread")]
async fn curl_and_aria2_resume_over_a_link() {
    let place = Place::new().await;
    let id = image(&place, "noble").await;
    let made = link(&place, id, json!({})).await;
    let url = made["url"].as_str().unwrap().to_owned();
    assert!(url.ends_with("/noble.raw"), "{url}");
    let (whole, ca) = (sha256(&noise(FILE_BYTES)), place.config.state_dir.join("ca/ca.crt"));
    assert_eq!(made["sha256"], json!(whole));
    let dir = place.dir.path().to_owned();

    // Cut off in the middle by a kill, and gone on with.
    let cut = dir.join("cut.raw");
    let mut slow = Command::new("curl");
    slow.args(["--silent", "--limit-rate", "1M", "--cacert"]).arg(&ca).arg("-o").arg(&cut).arg(&url);
    let mut child = slow.spawn().expect("curl is installed (apt install curl)");
    until("the begin of the file", || std::fs::metadata(&cut).is_ok_and(|file| file.len() > 100_000)).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let had = std::fs::metadata(&cut).unwrap().len();
    assert!(had < FILE_BYTES, "{had}");
    let run = |program: &'static str, args: Vec<std::ffi::OsString>| {
        tokio::task::spawn_blocking(move || {
            let done = Command::new(program).args(args).stdin(Stdio::null()).output();
            let done = done.unwrap_or_else(|error| panic!("{program}: {error} (apt install curl aria2)"));
            assert!(done.status.success(), "{program}: {done:?}");
            String::from_utf8_lossy(&done.stdout).into_owned()
        })
    };
    let args: Vec<std::ffi::OsString> =
        vec!["--silent".into(), "--show-error".into(), "--fail".into(), "--cacert".into(), ca.clone().into()];
    let args = [
        args,
        vec![
            "-C".into(),
            "-".into(),
            "-w".into(),
            "%{http_code} %{size_download}".into(),
            "-o".into(),
            cut.clone().into(),
            url.clone().into(),
        ],
    ]
    .concat();
    let said = run("curl", args).await.unwrap();
    assert_eq!(said, format!("206 {}", FILE_BYTES - had));
    assert_eq!(file_sha256(&cut), whole);

    // In four parts, checked by the program itself; then from a file that is half there.
    let parts = dir.join("parts.raw");
    let aria2 = |file: &Path| -> Vec<std::ffi::OsString> {
        let mut args: Vec<std::ffi::OsString> =
            ["-q", "-c", "-x4", "-s4", "-k1M", "--no-conf", "--allow-overwrite=false"].map(Into::into).into();
        args.push(format!("--ca-certificate={}", ca.display()).into());
        args.push(format!("--checksum=sha-256={whole}").into());
        args.push(format!("--dir={}", file.parent().unwrap().display()).into());
        args.push(format!("--out={}", file.file_name().unwrap().to_str().unwrap()).into());
        args.push(url.clone().into());
        args
    };
    run("aria2c", aria2(&parts)).await.unwrap();
    assert_eq!(file_sha256(&parts), whole);
    let half = dir.join("half.raw");
    std::fs::write(&half, &noise(FILE_BYTES)[..3_000_000]).unwrap();
    run("aria2c", aria2(&half)).await.unwrap();
    assert_eq!(file_sha256(&half), whole);

    let uses = log_of(&place, id, "image.link_use").await;
    assert_eq!(uses.len(), 1, "{uses:?}");
    assert_eq!((&uses[0]["who_kind"], &uses[0]["who"]), (&json!("link"), &made["id"]));
    assert_eq!(uses[0]["details"]["from"], "127.0.0.1");
    assert_eq!(log_of(&place, id, "image.link").await.len(), 1);
    let list = place.client.get(&format!("/images/{id}/links")).await;
    assert!(list["items"][0]["first_used_at"].is_string() && list["items"][0]["state"] == "open", "{list}");
    assert!(!list.to_string().contains(url.split('.').nth(1).unwrap()), "the secret is shown once");
    place.stop().await;
}

/// DW-1: ranges and entity tags, so that no program mixes two files.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_and_tags_are_honoured() {
    let place = Place::new().await;
    let id = image(&place, "noble").await;
    let made = link(&place, id, json!({ "format": "original", "ttl_s": 60 })).await;
    let path = made["path"].as_str().unwrap();
    let get = || place.client.http.get(format!("{}{path}", place.client.base));
    let whole = get().send().await.unwrap();
    let tag = whole.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(tag, format!("\"{}\"", made["sha256"].as_str().unwrap()));
    assert_eq!(whole.headers()["accept-ranges"], "bytes");
    assert_eq!(whole.headers()["cache-control"], "private, no-store");
    assert_eq!(whole.headers()["x-content-type-options"], "nosniff");
    for (range, if_range, status, bytes) in [
        ("bytes=10-19", None, 206, 10),
        ("bytes=10-19", Some(tag.as_str()), 206, 10),
        ("bytes=10-19", Some("\"other\""), 200, FILE_BYTES),
        ("bytes=-5", None, 206, 5),
    ] {
        let mut request = get().header("range", range);
        if let Some(if_range) = if_range {
            request = request.header("if-range", if_range);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{range} {if_range:?}");
        assert_eq!(answer.bytes().await.unwrap().len() as u64, bytes, "{range} {if_range:?}");
    }
    let past = get().header("range", format!("bytes={FILE_BYTES}-")).send().await.unwrap();
    assert_eq!(fault(past, 416).await.code, "range");
    let same = get().header("if-none-match", &tag).send().await.unwrap();
    assert_eq!(same.status(), StatusCode::NOT_MODIFIED);
    place.stop().await;
}

/// DW-1: a link that ended, or whose image is gone, says 410 and how to go on; the log is not told of it as a use.
#[tokio::test(flavor = "multi_thread")]
async fn an_ended_link_says_so_and_a_forged_one_is_none() {
    let place = Place::new().await;
    let id = image(&place, "noble").await;
    let path = |made: &Value| made["path"].as_str().unwrap().to_owned();
    let short = path(&link(&place, id, json!({ "ttl_s": 1 })).await);
    let revoked = link(&place, id, json!({})).await;
    let kept = path(&link(&place, id, json!({})).await);
    let revoke = format!("/images/{id}/links/{}", revoked["id"].as_str().unwrap());
    let answer = place.client.ask(Method::DELETE, &revoke).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    fault(place.client.ask(Method::DELETE, &format!("/images/{id}/links/{id}")).send().await.unwrap(), 404)
        .await;
    let gone = fault(open(&place, &path(&revoked)).await, 410).await;
    assert!(gone.message.contains("revoked") && gone.hint.unwrap().contains("hearth image link create"));
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let gone = fault(open(&place, &short).await, 410).await;
    assert!(gone.message.contains("expired") && !gone.message.contains("noble"), "{gone:?}");
    let states = place.client.get(&format!("/images/{id}/links")).await;
    let states: Vec<&str> =
        states["items"].as_array().unwrap().iter().map(|l| l["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["open", "revoked", "expired"]);

    // Each forged one answers like the next: id right and secret wrong, secret right and id wrong, no form at all.
    let (id_part, secret) = kept.trim_start_matches("/d/").split_once('.').unwrap();
    let (secret, _) = secret.split_once('/').unwrap();
    let other = "01234567-89ab-7def-8123-456789abcdef";
    let forged = [
        format!("/d/{id_part}.{}/noble.raw", "0".repeat(64)),
        format!("/d/{other}.{secret}/noble.raw"),
        format!("/d/{secret}/noble.raw"),
        "/d/%00/x".to_owned(),
        format!("/d/{}/x", "a".repeat(5000)),
        format!("/d/{id_part}.{}/x", secret.to_uppercase()),
    ];
    let mut messages = Vec::new();
    for path in &forged {
        messages.push(fault(open(&place, path).await, 404).await.message);
    }
    messages.dedup();
    assert_eq!(messages.len(), 1, "{messages:?}");
    // The name at the end is not looked at, and names no other file.
    let renamed = format!("/d/{id_part}.{secret}/..%2F..%2Fetc%2Fpasswd");
    let answer = open(&place, &renamed).await;
    assert!(answer.headers()["content-disposition"].to_str().unwrap().contains("\"noble.raw\""));
    assert_eq!(answer.bytes().await.unwrap().len() as u64, FILE_BYTES);

    let deleted = place.client.ask(Method::DELETE, &format!("/images/{id}")).send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    let gone = fault(open(&place, &kept).await, 410).await;
    assert!(gone.message.contains("not available"), "{gone:?}");
    place.stop().await;
}

/// DW-1: whoever tries addresses is slowed down; who has a right one elsewhere is not.
#[tokio::test(flavor = "multi_thread")]
async fn guesses_are_bounded() {
    let place = Place::new().await;
    let mut statuses = Vec::new();
    for n in 0..32 {
        statuses.push(open(&place, &format!("/d/{n}/x")).await.status().as_u16());
    }
    assert_eq!(statuses.iter().filter(|status| **status == 404).count(), 30, "{statuses:?}");
    let refused = open(&place, "/d/x/x").await;
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(fault(refused, 429).await.code, "too_many");
    place.client.get("/whoami").await;
    place.stop().await;
}

/// DW-1: names of images cannot leave their header or their path.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_name_stays_in_its_header() {
    let place = Place::new().await;
    for name in
        ["<img src=x onerror=alert(1)>", "a\"; filename=\"b.exe", "../../etc/passwd", "系统 镜像", "..."]
    {
        let id = image(&place, name).await;
        let made = link(&place, id, json!({})).await;
        let path = made["path"].as_str().unwrap();
        assert!(path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/.-_%".contains(&b)), "{path}");
        assert_eq!(path.matches('/').count(), 3, "{path}");
        let answer = open(&place, path).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let header = answer.headers()["content-disposition"].to_str().unwrap().to_owned();
        assert!(header.bytes().all(|b| b.is_ascii_alphanumeric() || b" ;=\"'*-_.%".contains(&b)), "{header}");
        assert_eq!(header.matches('"').count(), 2, "{header}");
        assert_eq!(answer.headers()["content-type"], "application/octet-stream");
    }
    place.stop().await;
}

/// DW-1: who may make a link, of what, for how long, and how many.
#[tokio::test(flavor = "multi_thread")]
async fn links_are_made_by_owners_of_active_images() {
    let place = Place::new().await;
    let (domain, project) = place.controller.db().default_tenants().await.unwrap();
    let other = hearth_controller::db::new_id();
    let op = hearth_controller::db::operations::Draft::system("project.create");
    place.controller.db().create_project(other, domain, "other", &op).await.unwrap();
    let reader =
        place.client.delegate("r", Role::Reader, json!({ "scope": "project", "project": project })).await;
    let stranger =
        place.client.delegate("s", Role::Admin, json!({ "scope": "project", "project": other })).await;
    let id = image(&place, "noble").await;
    let path = format!("/images/{id}/links");
    let send =
        |client: &super::harness::Client, sent: Value| client.ask(Method::POST, &path).json(&sent).send();
    fault(send(&reader, json!({})).await.unwrap(), 403).await;
    fault(send(&stranger, json!({})).await.unwrap(), 404).await;
    for (sent, field) in [
        (json!({ "ttl_s": 0 }), "ttl_s"),
        (json!({ "ttl_s": 86_401 }), "ttl_s"),
        (json!({ "format": "vmdk" }), "format"),
        (json!({ "format": "\u{1b}[2J" }), "format"),
        (json!({ "colour": "red" }), "colour"),
    ] {
        let error = fault(send(&place.client, sent.clone()).await.unwrap(), 400).await;
        assert_eq!(error.field.as_deref(), Some(field), "{sent}: {error:?}");
        assert!(!error.message.contains('\u{1b}'), "{error:?}");
    }
    let empty = place.client.image(json!({ "name": "empty" })).await;
    let queued = place.client.ask(Method::POST, &format!("/images/{empty}/links")).json(&json!({})).send();
    assert!(fault(queued.await.unwrap(), 409).await.message.contains("queued"));
    for _ in 0..100 {
        body(send(&place.client, json!({ "ttl_s": 60 })).await.unwrap()).await;
    }
    assert!(fault(send(&place.client, json!({})).await.unwrap(), 409).await.message.contains("100"));
    let page = place.client.get(&format!("{path}?limit=60")).await;
    let next = page["next"].as_str().unwrap();
    let rest = place.client.get(&format!("{path}?limit=60&cursor={next}")).await;
    assert_eq!(rest["items"].as_array().unwrap().len(), 40);
    place.stop().await;
}
