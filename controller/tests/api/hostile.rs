//! Sources that mean no good: each ends with a reason, and reaches nothing that it should not.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use hearth_controller::config::Config;
use hearth_controller::ingest::sources::guard::Resolve;
use hearth_controller::ingest::sources::{FetchError, SourceConfig, Sources};
use hearth_controller::logic::source::Rules;
use hearth_controller::task;
use hearth_protocol::words::ImageStatus;
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::harness::{fault, files};
use super::servers::{certificate, free_port, nginx};
use super::sources::{import, place};

/// Answers every connection with what `answer` writes; counts them.
async fn server<F, T>(answer: F) -> (u16, Arc<AtomicUsize>)
where
    F: Fn(tokio::net::TcpStream) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    task::spawn("hostile", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let mut head = vec![0; 4096];
            drop(stream.read(&mut head).await);
            task::spawn("hostile-answer", answer(stream));
        }
    });
    (port, count)
}

/// Imports from a hostile server; the reason with which it ends.
async fn killed(port: u16, change: impl FnOnce(&mut Config)) -> String {
    let place = place(&[port], change).await;
    let id = import(&place.client, "hostile", &format!("http://127.0.0.1:{port}/x"), json!({})).await;
    let image = place.client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Killed);
    assert!(files(&place.config.state_dir.join("originals")).is_empty());
    place.stop().await;
    image.reason
}

/// IN-2: what must not be reached is refused before anything is connected to, as an import and as a check.
#[tokio::test(flavor = "multi_thread")]
async fn closed_addresses_and_disguises_are_refused_at_once() {
    let (secret, asked) = server(async |mut stream: tokio::net::TcpStream| {
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret").await);
    })
    .await;
    // No address is allowed, only the port.
    let place = super::harness::Place::with(|config| {
        config.sources.rules = Rules::new(&[], &[secret, 80, 443]).unwrap();
        config.sources.patience.pause = Duration::from_millis(20);
    })
    .await;
    let mut urls: Vec<String> = [
        "http://169.254.169.254/latest/meta-data/",
        "http://metadata.google.internal./",
        "http://10.0.0.1/",
        "http://100.100.100.200/",
        "http://[::1]/",
        "http://[fd00:ec2::254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[::ffff:169.254.169.254]/",
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "http://0251.0376.0251.0376/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:70/_x",
        "data:text/plain,x",
        "dict://127.0.0.1/d:x",
        "http://１２７.０.０.１/",
        "http://127。0。0。1/",
        "https://example.org:22/",
    ]
    .map(str::to_owned)
    .into();
    urls.extend(
        ["127.0.0.1", "2130706433", "0x7f.1", "0177.1", "127.1", "[::ffff:7f00:1]", "x@127.0.0.1"]
            .map(|host| format!("http://{host}:{secret}/x")),
    );
    for url in &urls {
        let sent = json!({ "name": "x", "source": { "url": url } });
        let refused = place.client.ask(Method::POST, "/images").json(&sent).send().await.unwrap();
        assert_eq!(fault(refused, 400).await.field.as_deref(), Some("source.url"), "{url}");
        let refused = place.client.ask(Method::POST, "/sources/check").json(&json!({ "url": url })).send();
        assert_eq!(fault(refused.await.unwrap(), 400).await.field.as_deref(), Some("url"), "{url}");
    }
    // A name is only known when it is resolved: killed, with no word about which address it has, or whether it has one.
    let id = import(&place.client, "name", &format!("http://localhost:{secret}/x"), json!({})).await;
    let image = place.client.ended(id).await;
    assert!(
        image.status == ImageStatus::Killed
            && image.reason.contains("localhost has no address that imports may reach"),
        "{}",
        image.reason
    );
    assert!(!image.reason.contains("127.0.0.1") && !image.reason.contains("::1"));
    let looked = json!({ "url": format!("http://localhost:{secret}/x") });
    let looked = place.client.ask(Method::POST, "/sources/check").json(&looked).send().await.unwrap();
    let said = fault(looked, 409).await.message;
    assert!(image.reason.ends_with(&said) && !said.contains("public internet"), "{said}");
    assert_eq!(asked.load(Ordering::Relaxed), 0, "nobody was asked");
    assert_eq!(place.client.get("/images").await["items"].as_array().unwrap().len(), 1);
    place.stop().await;
}

/// IN-2: each hop of a redirect is checked like the first; circles and descents end.
#[tokio::test(flavor = "multi_thread")]
async fn redirects_lead_nowhere_they_should_not() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, pem) = certificate(dir.path());
    let (port, tls) = (free_port(), free_port());
    let pem = pem.display();
    let locations = format!(
        "listen 127.0.0.1:{tls} ssl; ssl_certificate {pem}; ssl_certificate_key {pem};
         location = /metadata {{ return 302 http://169.254.169.254/latest; }}
         location = /hex {{ return 302 http://0x7f.1:{port}/x; }}
         location = /file {{ return 302 file:///etc/passwd; }}
         location = /loop {{ return 302 /loop; }}
         location = /pong {{ return 302 /ping; }} location = /ping {{ return 302 /pong; }}
         location ~ ^/n(.*)$ {{ return 302 /n$1x; }}
         location = /down {{ return 302 http://127.0.0.1:{port}/x; }}
         location = /port {{ return 302 http://127.0.0.1:22/x; }}"
    );
    let server = nginx(dir.path(), port, &locations);
    std::fs::write(dir.path().join("www/x"), "x").unwrap();
    let place = place(&[port, tls, 80], |config| config.sources.ca_file = Some(ca)).await;
    let (plain, safe) = (format!("http://127.0.0.1:{port}"), format!("https://localhost:{tls}"));
    for (n, (url, said)) in [
        (format!("{plain}/metadata"), "may not reach"),
        (format!("{plain}/hex"), "disguise"),
        (format!("{plain}/file"), "not a scheme"),
        (format!("{plain}/loop"), "circle"),
        (format!("{plain}/ping"), "circle"),
        (format!("{plain}/n"), "more than 5 times"),
        (format!("{plain}/port"), "port 22"),
        (format!("{safe}/down"), "from https to http"),
    ]
    .into_iter()
    .enumerate()
    {
        let id = import(&place.client, &format!("r{n}"), &url, json!({})).await;
        let image = place.client.ended(id).await;
        assert!(
            image.status == ImageStatus::Killed && image.reason.contains(said),
            "{url}: {}",
            image.reason
        );
    }
    let fine = place.client.post("/sources/check", json!({ "url": format!("{safe}/x") })).await;
    assert_eq!(fine["size_bytes"], 1);
    place.stop().await;
    drop(server);
}

/// Public first, this machine ever after.
#[derive(Debug)]
struct Rebinding(AtomicUsize);

impl Resolve for Rebinding {
    fn resolve(&self, _: String) -> BoxFuture<'static, std::io::Result<Vec<IpAddr>>> {
        let first = self.0.fetch_add(1, Ordering::Relaxed) == 0;
        // TEST-NET would be refused; this block of the public internet answers nobody here.
        let ip = if first { "198.20.0.1" } else { "127.0.0.1" };
        Box::pin(async move { Ok(vec![ip.parse().unwrap()]) })
    }
}

/// IN-2: an answer of a name server that changes after the check changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_changes_its_address_is_connected_to_where_it_was_checked() {
    let (port, asked) = server(async |_| ()).await;
    let mut config = SourceConfig { rules: Rules::new(&[], &[port]).unwrap(), ..SourceConfig::default() };
    config.patience.connect = Duration::from_millis(300);
    let resolver = Arc::new(Rebinding(AtomicUsize::new(0)));
    let sources = Sources::with_resolver(config, Arc::clone(&resolver) as Arc<dyn Resolve>);
    let source = sources.read(&format!("http://rebind.example:{port}/x")).unwrap();
    let first = sources.check(&source).await;
    assert!(matches!(first, Err(FetchError::Later(_))), "the public address does not answer: {first:?}");
    assert_eq!(resolver.0.load(Ordering::Relaxed), 1, "resolved once for one connection");
    let second = sources.check(&source).await;
    let closed =
        matches!(&second, Err(FetchError::Later(why)) if why.contains("no address that imports may reach"));
    assert!(closed, "{second:?}");
    assert_eq!(asked.load(Ordering::Relaxed), 0, "this machine was never asked");
}

/// IN-2: a length that is a lie in either direction.
#[tokio::test(flavor = "multi_thread")]
async fn a_lying_content_length_ends_the_fetch() {
    let huge = async |mut stream: tokio::net::TcpStream| {
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999\r\n\r\nx").await);
    };
    let reason = killed(server(huge).await.0, |_| ()).await;
    assert!(reason.contains("the most that images may have"), "{reason}");
    let short = async |mut stream: tokio::net::TcpStream| {
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nonly this").await);
    };
    let (port, asked) = server(short).await;
    let reason = killed(port, |_| ()).await;
    assert!(reason.contains("5 tries"), "{reason}");
    assert_eq!(asked.load(Ordering::Relaxed), 5);
}

/// IN-2: a body that never ends is cut off at the size that images may have.
#[tokio::test(flavor = "multi_thread")]
async fn an_endless_body_ends_at_the_limit() {
    let endless = async |mut stream: tokio::net::TcpStream| {
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await);
        while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
    };
    let reason = killed(server(endless).await.0, |config| config.image_bytes_max = 5 << 20).await;
    assert!(reason.contains("5242880"), "{reason}");
}

/// IN-2: silence and dripping are found; five tries in vain end the fetch.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_and_a_dripping_source_are_given_up() {
    let silent = async |mut stream: tokio::net::TcpStream| {
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nx").await);
        tokio::time::sleep(Duration::from_secs(60)).await;
    };
    let reason = killed(server(silent).await.0, |_| ()).await;
    assert!(reason.contains("no byte for 1 s"), "{reason}");
    let dripping = async |mut stream: tokio::net::TcpStream| {
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n").await);
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let reason = killed(server(dripping).await.0, |_| ()).await;
    assert!(reason.contains("bytes per second"), "{reason}");
}

/// IN-2: a file that is another one at every try is given up; one that changed once is fetched whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_changes_is_never_mixed() {
    let count = Arc::new(AtomicUsize::new(0));
    let fickle = move |mut stream: tokio::net::TcpStream| {
        let n = count.fetch_add(1, Ordering::Relaxed);
        async move {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: 8000000\r\netag: \"{n}\"\r\n\r\n");
            drop(stream.write_all(head.as_bytes()).await);
            drop(stream.write_all(&vec![b'a'; 4_000_000]).await);
        }
    };
    let reason = killed(server(fickle).await.0, |_| ()).await;
    assert!(reason.contains("changes again and again"), "{reason}");
}
