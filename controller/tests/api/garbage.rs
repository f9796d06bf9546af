//! Bytes that are no request: each ends its own connection and nothing else.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::harness::{Place, fault, noise, tls_config};
use super::upload::Both;

/// A TLS connection of one's own.
pub(crate) async fn connect(place: &Place, alpn: &[&[u8]]) -> Box<dyn Both> {
    let mut config = tls_config(&place.config);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let tcp = TcpStream::connect(place.controller.https).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    Box::new(TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_before_and_after_the_handshake_harms_nobody() {
    let place = Place::new().await;
    let texts: [&[u8]; 6] = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\xff\xff\x01",
        b"SSH-2.0-OpenSSH_9\r\n",
        &[0; 4096],
        &noise(100_000),
    ];
    for text in texts {
        let mut tcp = TcpStream::connect(place.controller.https).await.unwrap();
        // The server may close while we still write.
        drop(tcp.write_all(text).await);
        drop(tcp.shutdown().await);
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(30), tcp.read_to_end(&mut answer)).await;
        drop(read.expect("the server closes"));
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
    for text in [b"\r\n\r\n\r\n".as_slice(), b"FETCH / \r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &noise(200_000)]
    {
        for alpn in [[b"http/1.1".as_slice()], [b"h2".as_slice()]] {
            let mut stream = connect(&place, &alpn).await;
            drop(stream.write_all(text).await);
            drop(stream.shutdown().await);
            let mut answer = Vec::new();
            let read = tokio::time::timeout(Duration::from_secs(40), stream.read_to_end(&mut answer)).await;
            drop(read.expect("the server closes"));
            assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        }
    }
    place.client.get("/whoami").await;
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_without_end_is_refused() {
    let place = Place::new().await;
    let mut stream = connect(&place, &[b"http/1.1"]).await;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: ").await.unwrap();
    let mut sent = 0;
    let filler = vec![b'a'; 16 << 10];
    // It is cut off long before a megabyte.
    while sent < 1 << 20 && stream.write_all(&filler).await.is_ok() {
        sent += filler.len();
    }
    let mut answer = Vec::new();
    drop(
        tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer))
            .await
            .expect("it closes"),
    );
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    place.client.get("/whoami").await;
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_before_the_end_of_a_body_arrives() {
    let place = Place::new().await;
    let rest = vec![b' '; 8 << 20];
    for (token, status) in [(place.client.token.as_str(), "413"), ("nobody", "401")] {
        let mut stream = connect(&place, &[b"http/1.1"]).await;
        let head = format!(
            "POST /api/v1/images HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            rest.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // Like many simple clients, this one reads nothing before it has sent everything.
        stream.write_all(&rest).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
        read.expect("the server closes").unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("request_id"), "{answer}");
        // Or the client would send its next request into a connection that is being closed.
        assert!(answer.to_lowercase().contains("\r\nconnection: close\r\n"), "{answer}");
    }
    // A client with a pool of connections is told, and takes another one.
    for n in 0..20 {
        let large =
            place.client.ask(reqwest::Method::POST, "/images").json(&json!({ "name": "x".repeat(2 << 20) }));
        fault(large.send().await.unwrap_or_else(|error| panic!("{n}: {error:?}")), 413).await;
        place.client.get("/whoami").await;
    }
    place.client.get("/whoami").await;
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_request_has_a_body_that_programs_can_read() {
    use reqwest::Method;
    let place = Place::new().await;
    let client = &place.client;
    let send = |method: Method, path: &str| client.ask(method, path);
    let cases = [
        (send(Method::GET, "/nothing"), 404, "not_found", None),
        (send(Method::GET, "/images/not-an-id"), 404, "not_found", None),
        (send(Method::PATCH, "/images"), 405, "method", None),
        (send(Method::POST, "/images").body("{}"), 415, "media_type", None),
        (
            send(Method::POST, "/images").header("content-type", "text/plain").body("{}"),
            415,
            "media_type",
            None,
        ),
        (
            send(Method::POST, "/images").header("content-type", "application/json").body("{"),
            400,
            "invalid",
            None,
        ),
        (send(Method::POST, "/images").json(&json!({})), 400, "invalid", Some("name")),
        (
            send(Method::POST, "/images").json(&json!({ "name": "a", "kind": "tape" })),
            400,
            "invalid",
            Some("kind"),
        ),
        (send(Method::POST, "/images").json(&json!({ "name": "a\u{7}" })), 400, "invalid", Some("name")),
        (send(Method::POST, "/images").json(&json!({ "name": "a", "x": 1 })), 400, "invalid", Some("x")),
        (send(Method::POST, "/images").json(&json!({ "name": "x".repeat(2 << 20) })), 413, "too_large", None),
        (send(Method::GET, "/images?limit=many"), 400, "invalid", Some("limit")),
        (send(Method::GET, "/images?colour=red"), 400, "invalid", Some("colour")),
        (send(Method::GET, "/images?cursor=zz"), 400, "invalid", Some("cursor")),
        (send(Method::GET, "/locations?select=colour%3Dred"), 400, "invalid", Some("select")),
        (send(Method::GET, "/operations?from=yesterday"), 400, "invalid", Some("from")),
        (send(Method::POST, "/join-tokens").json(&json!({ "uses": 0 })), 400, "invalid", Some("uses")),
        (
            send(Method::POST, "/tokens").json(&json!({ "name": "x", "role": "admin", "scope": "domain" })),
            400,
            "invalid",
            Some("domain"),
        ),
    ];
    for (request, status, code, field) in cases {
        let shown = format!("{request:?}");
        let error = fault(request.send().await.unwrap(), status).await;
        assert_eq!((error.code.as_str(), error.field.as_deref()), (code, field), "{shown}: {error:?}");
    }
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openapi_text_names_every_route_and_how_it_fails() {
    let place = Place::new().await;
    let text = place.client.get("/openapi.json").await;
    let paths = text["paths"].as_object().unwrap();
    let mut operations = 0;
    for row in place.controller.routes() {
        let operation = &paths[&row.path][row.method.to_lowercase()];
        assert!(operation.is_object(), "{row:?}");
        let statuses = operation["responses"].as_object().unwrap();
        assert!(statuses.keys().all(|status| !status.starts_with('5')), "{row:?} promises a failure");
        if row.action.is_some() {
            assert!(operation["responses"]["401"].is_object() && operation["security"].is_array(), "{row:?}");
        }
        operations += 1;
    }
    let listed: usize = paths.values().map(|path| path.as_object().unwrap().len()).sum();
    assert_eq!(listed, operations, "nothing is listed that is not served");
    // Every reference leads somewhere.
    let whole = text.to_string();
    for reference in whole.split("\"$ref\":\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(text["components"]["schemas"][name].is_object(), "{name} is not described");
    }
    place.stop().await;
}
