//! Imports by URL from real servers, cut and killed on the way.

use std::path::Path;
use std::time::Duration;

use hearth_controller::config::Config;
use hearth_controller::ingest::sources::s3::Store;
use hearth_controller::logic::fetch::Patience;
use hearth_controller::logic::source::Rules;
use hearth_protocol::api::image::Image;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::{DiskFormat, ImageStatus};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::crash::{check, serve};
use super::harness::{self, Client, Place, fault, files, noise, qcow2, sha256, until};
use super::servers::{Wire, anonymous_ftp, certificate, free_port, ftp, nginx, store};

/// Size in MiB of the file that is cut twice on its way, if the environment names none in `HEARTH_SOURCE_MIB`.
const FILE_MIB: u64 = 40;
/// Bytes that may come twice per cut.
const AGAIN_BYTES_MAX: u64 = 8 << 20;

/// Size of the file that is cut twice on its way.
pub(crate) fn file_bytes() -> u64 {
    let asked = std::env::var("HEARTH_SOURCE_MIB").ok().map(|text| text.parse().unwrap());
    asked.unwrap_or(FILE_MIB) << 20
}

/// Where it is cut.
fn cuts() -> [u64; 2] {
    [file_bytes() / 3, file_bytes() * 2 / 3]
}

/// Slow enough to be cut on the way, quick enough for a test.
fn wire_bytes_per_s() -> u64 {
    file_bytes() * 3 / 4
}

/// The whole file came through `wire`, and little of it twice.
fn check_little_came_again(wire: &Wire) {
    let most = file_bytes() + 2 * AGAIN_BYTES_MAX + file_bytes() / 40;
    assert!(wire.sent() >= file_bytes() && wire.sent() <= most, "{} bytes came", wire.sent());
}

/// A controller that may fetch from 127.0.0.1 at these ports, and is not patient.
pub(crate) async fn place(ports: &[u16], change: impl FnOnce(&mut Config)) -> Place {
    let rules = Rules::new(&["127.0.0.0/8".into()], ports).unwrap();
    Place::with(|config| {
        config.sources.rules = rules;
        config.sources.patience = Patience {
            connect: Duration::from_secs(5),
            silence: Duration::from_secs(1),
            window: Duration::from_secs(2),
            pause: Duration::from_millis(20),
        };
        change(config);
    })
    .await
}

/// Makes an image whose file the controller gets.
pub(crate) async fn import(client: &Client, name: &str, url: &str, more: Value) -> ImageId {
    let mut sent = json!({ "name": name, "source": { "url": url } });
    sent.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    client.image(sent).await
}

/// The file, in the folder that a server shows.
fn file_in(root: &Path) -> Vec<u8> {
    std::fs::create_dir_all(root).unwrap();
    let bytes = noise(file_bytes());
    std::fs::write(root.join("disk.img"), &bytes).unwrap();
    bytes
}

async fn check_active(client: &Client, id: ImageId, bytes: &[u8]) -> Image {
    let image = client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Active, "{}", image.reason);
    assert_eq!(image.checksums.sha256, Some(sha256(bytes)));
    let back = client.ask(Method::GET, &format!("/images/{id}/file")).send().await.unwrap();
    assert!(back.bytes().await.unwrap() == bytes, "the original is the file of the source");
    image
}

async fn log_text(client: &Client) -> String {
    client.get("/operations?limit=1000").await.to_string()
}

/// IN-2: nginx is cut off once and killed once in the middle; the import goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn http_goes_on_after_a_cut_and_a_killed_server() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = file_in(&dir.path().join("www"));
    let server_port = free_port();
    let mut server = Some(nginx(dir.path(), server_port, ""));
    let wire = Wire::new(server_port, wire_bytes_per_s()).await;
    let place = place(&[wire.port], |_| ()).await;
    let url = format!("http://127.0.0.1:{}/disk.img", wire.port);
    let expected = json!({ "expected": { "sha256": sha256(&bytes) } });
    let id = import(&place.client, "cut", &url, expected).await;
    for (n, cut) in cuts().into_iter().enumerate() {
        until("it comes", || wire.sent() > cut).await;
        if n == 0 {
            wire.cut();
        } else {
            drop(server.take());
            server = Some(nginx(dir.path(), server_port, ""));
        }
    }
    let image = check_active(&place.client, id, &bytes).await;
    assert_eq!(image.source.as_deref(), Some(url.as_str()));
    check_little_came_again(&wire);
    place.stop().await;
    drop(server);
}

/// IN-2: a server that is killed twice in the middle, behind TLS of an authority of the operator.
#[tokio::test(flavor = "multi_thread")]
async fn https_goes_on_after_a_killed_server() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = file_in(&dir.path().join("www"));
    let (ca, pem) = certificate(dir.path());
    let (plain, tls) = (free_port(), free_port());
    let pem = pem.display();
    let safe = format!("listen 127.0.0.1:{tls} ssl; ssl_certificate {pem}; ssl_certificate_key {pem};");
    let mut server = Some(nginx(dir.path(), plain, &safe));
    let wire = Wire::new(tls, wire_bytes_per_s()).await;
    let place = place(&[wire.port], |config| config.sources.ca_file = Some(ca)).await;
    let url = format!("https://127.0.0.1:{}/disk.img", wire.port);
    let id = import(&place.client, "tls", &url, json!({ "expected": { "sha256": sha256(&bytes) } })).await;
    for cut in cuts() {
        until("it comes", || wire.sent() > cut).await;
        drop(server.take());
        server = Some(nginx(dir.path(), plain, &safe));
    }
    check_active(&place.client, id, &bytes).await;
    check_little_came_again(&wire);
    place.stop().await;
    drop(server);
}

/// IN-2: the controller itself is killed twice in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn http_goes_on_after_a_killed_controller() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = file_in(&dir.path().join("www"));
    let server = nginx(dir.path(), free_port(), "");
    let wire = Wire::new(server.port, wire_bytes_per_s()).await;
    let port = free_port();
    let file = dir.path().join("controller.toml");
    let text = format!(
        "state_dir = {:?}\nlisten_https = \"127.0.0.1:{port}\"\nlisten_quic = \"127.0.0.1:0\"\nsandbox = \"{}\"\n\
         import_allow = [\"127.0.0.1\"]\nimport_ports = [{}]\n",
        dir.path().join("state"),
        harness::sandbox().as_str(),
        wire.port
    );
    std::fs::write(&file, text).unwrap();
    let config = hearth_controller::config::load(Some(&file)).unwrap().config;
    let token = harness::init(&config).await;
    let client = Client::new(&config, port, &token);
    let mut running = Some(serve(&config, &client).await);
    let url = format!("http://user:hunter2@127.0.0.1:{}/disk.img?key=hunter2", wire.port);
    let id = import(&client, "killed", &url, json!({})).await;
    for cut in cuts() {
        until("it comes", || wire.sent() > cut).await;
        drop(running.take());
        running = Some(serve(&config, &client).await);
        assert_eq!(client.get(&format!("/images/{id}")).await["status"], "saving");
    }
    let image = check_active(&client, id, &bytes).await;
    check_little_came_again(&wire);
    // Secrets are shown nowhere, and kept nowhere once the fetch is over.
    let shown = format!("http://***@127.0.0.1:{}/disk.img?***", wire.port);
    assert_eq!(image.source, Some(shown));
    assert!(!log_text(&client).await.contains("hunter2"));
    drop(running);
    let db = hearth_controller::db::Db::open(&config.database_url).await.unwrap();
    assert_eq!(db.job_of_image(id).await.unwrap().unwrap().spec, "{}");
    assert_eq!(db.unfinished_jobs().await.unwrap(), []);
    db.close().await;
    check(&config, false).await;
}

/// IN-2, IN-8: redirects are followed, types are found out, packed files are unpacked; `check` says so before.
#[tokio::test(flavor = "multi_thread")]
async fn http_follows_redirects_and_unpacks() {
    let dir = tempfile::tempdir().unwrap();
    let disk = qcow2(dir.path(), 3 << 20);
    let www = dir.path().join("www");
    std::fs::create_dir_all(&www).unwrap();
    for (program, ending) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")] {
        let out = std::fs::File::create(www.join(format!("disk.{ending}"))).unwrap();
        let status = std::process::Command::new(program).arg("-c").arg(&disk).stdout(out).status();
        assert!(status.unwrap().success(), "{program}");
    }
    let tar = std::process::Command::new("tar").arg("-czf").arg(www.join("disk.tgz")).arg(&disk).status();
    assert!(tar.unwrap().success());
    let server = nginx(
        dir.path(),
        free_port(),
        "location /a/ { rewrite ^/a/(.*)$ /b/$1 redirect; } location /b/ { rewrite ^/b/(.*)$ /$1 permanent; }",
    );
    let place = place(&[server.port], |_| ()).await;
    let client = &place.client;
    let base = format!("http://127.0.0.1:{}", server.port);
    let checked = client.post("/sources/check", json!({ "url": format!("{base}/a/disk.gz") })).await;
    let size = std::fs::metadata(www.join("disk.gz")).unwrap().len();
    assert_eq!((&checked["looks_like"], &checked["size_bytes"]), (&json!("gzip"), &json!(size)));
    assert_eq!(
        (&checked["resumable"], &checked["final_url"]),
        (&json!(true), &json!(format!("{base}/disk.gz")))
    );
    for ending in ["gz", "xz", "zst"] {
        let packed = std::fs::read(www.join(format!("disk.{ending}"))).unwrap();
        let expected = json!({ "expected": { "sha256": sha256(&packed) }, "format": "qcow2" });
        let id = import(client, ending, &format!("{base}/a/disk.{ending}"), expected).await;
        let image = check_active(client, id, &packed).await;
        assert_eq!((image.format, image.virtual_bytes), (Some(DiskFormat::Qcow2), Some(64 << 20)));
        assert_eq!(image.data_bytes, Some(3 << 20));
        // It goes out as it came in, and its name says so, on both ways.
        let name = format!("{ending}.qcow2.{ending}");
        let out = client.ask(Method::GET, &format!("/images/{id}/file")).send().await.unwrap();
        let disposition = out.headers()["content-disposition"].to_str().unwrap().to_owned();
        assert!(disposition.contains(&format!("filename=\"{name}\"")), "{disposition}");
        let link = client.post(&format!("/images/{id}/links"), json!({})).await;
        assert!(link["path"].as_str().unwrap().ends_with(&format!("/{name}")), "{link}");
    }
    let id = import(client, "tgz", &format!("{base}/disk.tgz"), json!({})).await;
    let image = client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Killed);
    assert!(image.reason.contains("tar"), "{}", image.reason);
    assert!(files(&place.config.state_dir.join("staging")).is_empty());
    place.stop().await;
}

/// IN-5: a wrong checksum kills a fetched image and keeps nothing; a retry fetches again.
#[tokio::test(flavor = "multi_thread")]
async fn a_fetched_file_with_a_wrong_checksum_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let server = nginx(dir.path(), free_port(), "");
    let file = dir.path().join("www/disk.img");
    std::fs::write(&file, noise(200_000)).unwrap();
    let place = place(&[server.port], |_| ()).await;
    let client = &place.client;
    let good = noise(300_000);
    let url = format!("http://127.0.0.1:{}/disk.img", server.port);
    for sum in ["sha256", "md5", "sha512", "blake3"] {
        let digits = match sum {
            "md5" => 32,
            "sha512" => 128,
            _ => 64,
        };
        let wrong = json!({ "expected": { sum: "0".repeat(digits) } });
        let image = client.ended(import(client, sum, &url, wrong).await).await;
        assert_eq!(image.status, ImageStatus::Killed);
        assert!(image.reason.contains(sum), "{}", image.reason);
        assert!(files(&place.config.state_dir.join("originals")).is_empty());
    }
    let expected = json!({ "expected": { "sha256": sha256(&good) } });
    let id = import(client, "later", &url, expected).await;
    assert_eq!(client.ended(id).await.status, ImageStatus::Killed);
    std::fs::write(&file, &good).unwrap();
    let again = client.ask(Method::POST, &format!("/images/{id}/retry")).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::ACCEPTED);
    check_active(client, id, &good).await;
    // With a secret in it the URL is not there any more: it has to be given.
    let secret = format!("http://127.0.0.1:{}/none.img?key=1", server.port);
    let id = import(client, "secret", &secret, json!({})).await;
    assert!(client.ended(id).await.reason.contains("404"));
    let refused = client.ask(Method::POST, &format!("/images/{id}/retry")).send().await.unwrap();
    assert!(fault(refused, 409).await.message.contains("password or a query"));
    client.post(&format!("/images/{id}/import"), json!({ "url": url })).await;
    check_active(client, id, &good).await;
    place.stop().await;
}

/// IN-2: a record that is to have a source is made with its fetch, or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_fetch_cannot_be_queued_is_not_made() {
    use sqlx::{Connection as _, Executor as _};
    let port = free_port();
    let place = place(&[port], |_| ()).await;
    let client = &place.client;
    let mut database = sqlx::SqliteConnection::connect(&place.config.database_url).await.unwrap();
    let full = "CREATE TRIGGER no_jobs BEFORE INSERT ON job BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END";
    database.execute(full).await.unwrap();
    let sent = json!({ "name": "one", "source": { "url": format!("http://127.0.0.1:{port}/x") } });
    let make = || client.ask(Method::POST, "/images").json(&sent).send();
    fault(make().await.unwrap(), 500).await;
    assert_eq!(client.get("/images").await["items"], json!([]));
    let log = log_text(client).await;
    assert!(!log.contains("image.create") && !log.contains("image.delete"), "{log}");
    database.execute("DROP TRIGGER no_jobs").await.unwrap();
    assert_eq!(make().await.unwrap().status(), StatusCode::CREATED, "the name is free");
    place.stop().await;
}

/// IN-2: deleting the image ends its fetch at once and leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_image_ends_its_fetch() {
    let dir = tempfile::tempdir().unwrap();
    file_in(&dir.path().join("www"));
    let server = nginx(dir.path(), free_port(), "limit_rate 2m;");
    let place = place(&[server.port], |_| ()).await;
    let url = format!("http://127.0.0.1:{}/disk.img", server.port);
    let id = import(&place.client, "gone", &url, json!({})).await;
    let originals = place.config.state_dir.join("originals");
    until("it comes", || !files(&originals).is_empty()).await;
    let deleted = place.client.ask(Method::DELETE, &format!("/images/{id}")).send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    until("nothing is left", || files(&originals).is_empty()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(files(&originals).is_empty(), "nobody writes on");
    assert_eq!(place.controller.db().unfinished_jobs().await.unwrap(), []);
    place.stop().await;
}

/// IN-3: FTP with user and password, killed twice in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn ftp_goes_on_after_a_killed_server() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("ftp");
    let bytes = file_in(&root);
    let port = free_port();
    // It sends as much at the begin of each second.
    let rate = u32::try_from(file_bytes() / 5).unwrap();
    let mut server = Some(ftp(&root, port, None, rate));
    let place = place(&[port], |config| config.sources.patience.silence = Duration::from_secs(5)).await;
    let client = &place.client;
    let url = format!("ftp://me:p%40ss@127.0.0.1:{port}/disk.img");
    let checked = client.post("/sources/check", json!({ "url": url })).await;
    assert_eq!((&checked["size_bytes"], &checked["resumable"]), (&json!(file_bytes()), &json!(true)));
    let id = import(client, "ftp", &url, json!({})).await;
    let db = place.controller.db();
    for cut in cuts() {
        while db.upload_of(id).await.unwrap().unwrap().offset_bytes < cut {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(server.take());
        server = Some(ftp(&root, port, None, rate));
    }
    let image = check_active(client, id, &bytes).await;
    assert_eq!(image.source.unwrap(), format!("ftp://***@127.0.0.1:{port}/disk.img"));
    // Where it went on: behind what was durable, both times.
    let log = std::fs::read_to_string(dir.path().join("ftp.log")).unwrap();
    let from: Vec<u64> = log
        .lines()
        .filter_map(|line| line.split("REST ").nth(1)?.trim().parse().ok())
        .filter(|n| *n > 0)
        .collect();
    assert!(from.len() >= 2 && from[0] >= cuts()[0] && from[from.len() - 1] >= cuts()[1], "{from:?}");
    assert!(!log_text(client).await.contains("p@ss"));
    let wrong = format!("ftp://me:wrong@127.0.0.1:{port}/disk.img");
    let image = client.ended(import(client, "login", &wrong, json!({})).await).await;
    assert!(image.status == ImageStatus::Killed && image.reason.contains("530"), "{}", image.reason);
    assert!(!image.reason.contains("wrong"), "{}", image.reason);
    let missing = client.ended(import(client, "none", &url.replace("disk", "none"), json!({})).await).await;
    assert!(missing.reason.contains("no such file"), "{}", missing.reason);
    place.stop().await;
}

/// IN-3: FTP over TLS, and another server that knows nobody by name.
#[tokio::test(flavor = "multi_thread")]
async fn ftps_and_an_anonymous_server() {
    let dir = tempfile::tempdir().unwrap();
    let (root, public) = (dir.path().join("ftp"), dir.path().join("pub"));
    let bytes = file_in(&root);
    file_in(&public);
    let (ca, pem) = certificate(dir.path());
    let server = ftp(&root, free_port(), Some(&pem), 0);
    let other = anonymous_ftp(dir.path(), &public, free_port());
    let place = place(&[server.port, other.port], |config| config.sources.ca_file = Some(ca)).await;
    let url = format!("ftps://me:p%40ss@127.0.0.1:{}/disk.img", server.port);
    let id = import(&place.client, "ftps", &url, json!({})).await;
    check_active(&place.client, id, &bytes).await;
    let url = format!("ftp://127.0.0.1:{}/disk.img", other.port);
    let id = import(&place.client, "vsftpd", &url, json!({})).await;
    check_active(&place.client, id, &bytes).await;
    // Who did not sign its certificate is not believed.
    let stranger = super::sources::place(&[server.port], |_| ()).await;
    let url = format!("ftps://me:p%40ss@127.0.0.1:{}/disk.img", server.port);
    let image = stranger.client.ended(import(&stranger.client, "x", &url, json!({})).await).await;
    assert!(image.status == ImageStatus::Killed && image.reason.contains("TLS"), "{}", image.reason);
    stranger.stop().await;
    place.stop().await;
}

/// IN-4: an object of a configured store, cut off once and its server killed once in the middle; its secret is shown nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn s3_goes_on_after_cuts() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = file_in(&dir.path().join("s3/images/debian"));
    let port = free_port();
    let mut server = Some(store(&dir.path().join("s3"), port));
    let wire = Wire::new(port, wire_bytes_per_s()).await;
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "secret-of-the-store\n").unwrap();
    let configured = Store {
        endpoint: format!("http://127.0.0.1:{}", wire.port),
        region: "us-east-1".into(),
        buckets: vec!["images".into()],
        access_key: "AKHEARTH".into(),
        secret_key_file: secret.clone(),
        virtual_hosted: false,
    };
    // The store is configured, so no address has to be allowed for it.
    let place = Place::with(|config| {
        config.sources.stores = vec![configured];
        config.sources.patience.pause = Duration::from_millis(20);
    })
    .await;
    let client = &place.client;
    let url = "s3://images/debian/disk.img";
    // The server hashes an object before it answers: a large one would take longer than a check waits.
    std::fs::write(dir.path().join("s3/images/debian/small.img"), &bytes[..1 << 20]).unwrap();
    let checked = client.post("/sources/check", json!({ "url": "s3://images/debian/small.img" })).await;
    assert_eq!((&checked["size_bytes"], &checked["resumable"]), (&json!(1 << 20), &json!(true)), "{checked}");
    let id = import(client, "s3", url, json!({})).await;
    for (n, cut) in cuts().into_iter().enumerate() {
        until("it comes", || wire.sent() > cut).await;
        if n == 0 {
            wire.cut();
        } else {
            drop(server.take());
            server = Some(store(&dir.path().join("s3"), port));
        }
    }
    let image = check_active(client, id, &bytes).await;
    assert_eq!(image.source.as_deref(), Some(url));
    check_little_came_again(&wire);
    let refused = client
        .ask(Method::POST, "/images")
        .json(&json!({ "name": "b", "source": { "url": "s3://other/x" } }));
    assert_eq!(fault(refused.send().await.unwrap(), 400).await.field.as_deref(), Some("source.url"));
    std::fs::write(&secret, "another-secret").unwrap();
    let image = client.ended(import(client, "denied", url, json!({})).await).await;
    assert!(image.status == ImageStatus::Killed && image.reason.contains("403"), "{}", image.reason);
    let told = format!("{}{}", image.reason, log_text(client).await);
    assert!(!told.contains("secret") && !told.contains("X-Amz"), "{told}");
    place.stop().await;
    drop(server);
}
