//! `hearth image import` over everything that breaks: a killed controller, a killed client, and URLs.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use hearth_protocol::api::Page;
use hearth_protocol::api::image::Image;
use hearth_protocol::api::upload::Upload;
use hearth_protocol::words::ImageStatus;
use hearth_tests::cluster::{Cluster, Extra, WORK_WAIT_MAX};
use hearth_tests::{disk, programs, wait};

/// Large enough to be killed in the middle.
const FILE_BYTES: usize = 160 << 20;

#[track_caller]
fn check(cluster: &Cluster, args: &[&str], code: i32) -> String {
    let output = cluster.hearth(args).unwrap();
    assert_eq!(output.status.code(), Some(code), "hearth {args:?}: {}", text(&output));
    text(&output)
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The command line on its own; killed with the test.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn import(cluster: &Cluster, file: &Path) -> Client {
    let mut command = Command::new(&programs::get().hearth);
    command.arg("--config").arg(cluster.dir().join("hearth.toml"));
    command.args(["image", "import", "--name", "big"]).arg(file).stdout(Stdio::null()).stderr(Stdio::piped());
    Client(command.spawn().unwrap())
}

async fn image(cluster: &Cluster) -> Option<Image> {
    let page: Page<Image> = cluster.api.get("/images?name=big").await.ok()?;
    page.items.into_iter().next()
}

async fn offset(cluster: &Cluster) -> u64 {
    let Some(image) = image(cluster).await else { return 0 };
    let page = cluster.api.get::<Page<Upload>>(&format!("/images/{}/uploads", image.id)).await;
    page.ok().and_then(|page| page.items.first().map(|upload| upload.offset_bytes)).unwrap_or(0)
}

/// IN-1: the command line goes on after the controller was killed, and after it was killed itself.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_survives_both_of_its_ends() {
    let mut cluster = Cluster::start(0).await.unwrap();
    let file = cluster.dir().join("big.img");
    let mut bytes = vec![0; FILE_BYTES];
    blake3::Hasher::new().update(b"big").finalize_xof().fill(&mut bytes);
    std::fs::write(&file, &bytes).unwrap();
    let client = import(&cluster, &file);
    wait::until("it is on its way", WORK_WAIT_MAX, async || Ok(offset(&cluster).await > 8 << 20))
        .await
        .unwrap();
    let before = offset(&cluster).await;
    cluster.kill_controller().unwrap();
    cluster.start_controller().await.unwrap();
    assert!(offset(&cluster).await >= before, "what was durable is there");
    wait::until(
        "the client goes on",
        WORK_WAIT_MAX,
        async || Ok(offset(&cluster).await > before + (4 << 20)),
    )
    .await
    .unwrap();
    drop(client);
    let path = file.to_str().unwrap();
    let other = cluster.dir().join("other.img");
    std::fs::write(&other, &bytes[1..]).unwrap();
    let refused = check(&cluster, &["image", "import", "--resume", "big", other.to_str().unwrap()], 2);
    assert!(refused.contains("is not the file whose upload began"), "{refused}");
    let done = check(&cluster, &["image", "import", "--resume", "big", path], 0);
    assert!(done.contains("active"), "{done}");
    let image = image(&cluster).await.unwrap();
    assert_eq!(image.status, ImageStatus::Active, "{}", image.reason);
    assert_eq!(image.checksums.sha256, Some(disk::sha256(&file).unwrap()));
    let over = check(&cluster, &["image", "import", "--resume", "big", path], 4);
    assert!(over.contains("no upload of big is open"), "{over}");
}

/// IN-1: who stops an upload is told how to go on, and so is who gives the same command again.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_import_says_how_to_go_on() {
    let cluster = Cluster::start(0).await.unwrap();
    let file = cluster.dir().join("big.img");
    let mut bytes = vec![0; FILE_BYTES];
    blake3::Hasher::new().update(b"stopped").finalize_xof().fill(&mut bytes);
    std::fs::write(&file, &bytes).unwrap();
    let mut client = import(&cluster, &file);
    wait::until("it is on its way", WORK_WAIT_MAX, async || Ok(offset(&cluster).await > 8 << 20))
        .await
        .unwrap();
    assert!(Command::new("kill").args(["-INT", &client.0.id().to_string()]).status().unwrap().success());
    let mut said = String::new();
    client.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(client.0.wait().unwrap().code(), Some(130), "{said}");
    let path = file.to_str().unwrap();
    let line = format!("hearth image import --resume big {path}");
    assert!(said.contains("stopped at ") && said.contains(&line), "{said}");
    let again = check(&cluster, &["image", "import", path], 4);
    assert!(again.contains(&line), "{again}");
    let shown = check(&cluster, &["image", "show", "big"], 0);
    assert!(shown.contains("saving") && shown.contains("not yet"), "{shown}");
    check(&cluster, &["image", "import", "--resume", "big", path], 0);
}

/// IN-1: the record of a file with the wrong checksum stays and says so, as with a URL.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_the_wrong_checksum_leaves_a_record_that_says_so() {
    let cluster = Cluster::start(0).await.unwrap();
    let file = cluster.dir().join("small.img");
    std::fs::write(&file, vec![7; 300_000]).unwrap();
    let path = file.to_str().unwrap();
    let refused = check(&cluster, &["image", "import", path, "--md5", &"0".repeat(32)], 4);
    assert!(refused.contains("the file's md5 is") && refused.contains("image delete"), "{refused}");
    let shown = check(&cluster, &["image", "show", "small"], 0);
    assert!(shown.contains("killed") && shown.contains("the file's md5 is"), "{shown}");
    let again = check(&cluster, &["image", "import", path], 4);
    assert!(again.contains("hearth image delete small"), "{again}");
    check(&cluster, &["image", "delete", "small", "--yes"], 0);
    check(&cluster, &["image", "import", path, "--format", "raw"], 0);
}

/// Serves one file to everybody, until the process ends.
fn serve(bytes: Vec<u8>) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            drop(stream.set_read_timeout(Some(Duration::from_secs(5))));
            let mut head = [0; 4096];
            let n = stream.read(&mut head).unwrap_or(0);
            let found = String::from_utf8_lossy(&head[..n]).starts_with("GET /small.img");
            let (status, body) =
                if found { ("200 OK", bytes.as_slice()) } else { ("404 Not Found", b"".as_slice()) };
            let head =
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)));
        }
    });
    port
}

/// IN-2: a URL is looked at, imported, and tried again by hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_url_is_checked_imported_and_retried() {
    let mut bytes = vec![0; 300_000];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    let port = serve(bytes.clone());
    let extra = Extra {
        controller: format!("import_allow = [\"127.0.0.1\"]\nimport_ports = [{port}]\n"),
        ..Extra::default()
    };
    let cluster = Cluster::start_with(0, extra).await.unwrap();
    let (good, bad) =
        (format!("http://127.0.0.1:{port}/small.img"), format!("http://127.0.0.1:{port}/none.img"));
    let looked = check(&cluster, &["image", "import", &good, "--check"], 0);
    assert!(looked.contains("293 KiB") && looked.contains("begins again"), "{looked}");
    check(&cluster, &["image", "import", &bad, "--check"], 4);
    let closed = check(&cluster, &["image", "import", "http://10.0.0.1/x", "--check"], 2);
    assert!(closed.contains("import_ports") || closed.contains("import_allow"), "{closed}");
    check(&cluster, &["image", "import", "/etc/hostname", "--check"], 2);
    let sum = {
        let file = cluster.dir().join("small.img");
        std::fs::write(&file, &bytes).unwrap();
        disk::sha256(&file).unwrap()
    };
    let shown = check(&cluster, &["image", "import", &good, "--expect-sha256", &sum], 0);
    assert!(shown.contains("small") && shown.contains(&good), "{shown}");
    let failed = check(&cluster, &["image", "import", &bad, "--name", "none"], 1);
    assert!(failed.contains("404"), "{failed}");
    check(&cluster, &["image", "retry", "none"], 1);
    check(&cluster, &["image", "retry", "none", "--url", &good], 0);
    check(&cluster, &["image", "retry", "none"], 4);
}
