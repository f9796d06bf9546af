//! The program, killed while images are put into the recycle bin, restored and destroyed.

use std::time::Duration;

use hearth_protocol::id::ImageId;
use hearth_protocol::words::ImageStatus;
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::crash::{check, serve, set_up};
use super::harness::{Client, files, noise, sha256};

/// Kills in the middle of deletions, restores and destructions.
const ROUNDS: u64 = 6;

/// What an image was told to become, and what was answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Told {
    Delete,
    Restore,
    Destroy,
}

/// Tells it until the controller is gone; says whether the answer came.
async fn tell(client: &Client, id: ImageId, told: Told) -> bool {
    let (method, path) = match told {
        Told::Delete => (Method::DELETE, format!("/images/{id}")),
        Told::Restore => (Method::POST, format!("/images/{id}/restore")),
        Told::Destroy => (Method::DELETE, format!("/images/{id}?now=true")),
    };
    let answer = client.ask(method, &path).send().await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

/// DL-2: a kill leaves each image where it was or where it was told to go; its bytes are whole or gone.
#[tokio::test(flavor = "multi_thread")]
async fn the_bin_survives_kills() {
    let dir = tempfile::tempdir().unwrap();
    let (config, client) = set_up(dir.path(), "").await;
    let mut answered = 0;
    for round in 0..ROUNDS {
        let running = serve(&config, &client).await;
        let mut images = Vec::new();
        for (n, told) in [Told::Delete, Told::Restore, Told::Destroy].into_iter().enumerate() {
            let mut bytes = noise(2 << 20);
            bytes[0..16].copy_from_slice(&u128::from(round * 8 + n as u64).to_be_bytes());
            let id = client.image(json!({ "name": format!("round-{round}-{n}") })).await;
            assert_eq!(client.put(id, bytes.clone()).await.status(), StatusCode::ACCEPTED);
            assert_eq!(client.ended(id).await.status, ImageStatus::Active);
            if told == Told::Restore {
                assert!(tell(&client, id, Told::Delete).await);
            }
            images.push((id, told, sha256(&bytes)));
        }
        // All at once, and a kill at a moment that differs each round.
        let tellings = images.iter().map(|(id, told, _)| tell(&client, *id, *told));
        let killed = async {
            tokio::time::sleep(Duration::from_millis(round * 3)).await;
            drop(running);
        };
        let (done, ()) = tokio::join!(futures::future::join_all(tellings), killed);
        let running = serve(&config, &client).await;
        for ((id, told, sum), done) in images.into_iter().zip(done) {
            answered += u32::from(done);
            let shown = client.ask(Method::GET, &format!("/images/{id}")).send().await.unwrap();
            let status = match shown.status() {
                StatusCode::OK => shown.json::<serde_json::Value>().await.unwrap()["status"].clone(),
                status => {
                    assert_eq!(status, StatusCode::NOT_FOUND);
                    json!("gone")
                }
            };
            let (before, after) = match told {
                Told::Delete => ("active", "pending_delete"),
                Told::Restore => ("pending_delete", "active"),
                Told::Destroy => ("active", "gone"),
            };
            assert!(status == after || (!done && status == before), "{told:?} {done}: {status}");
            if status == "pending_delete" {
                assert!(tell(&client, id, Told::Restore).await);
            }
            if status != "gone" {
                let back = client.ask(Method::GET, &format!("/images/{id}/file")).send().await.unwrap();
                assert_eq!(sha256(&back.bytes().await.unwrap()), sum);
            }
        }
        drop(running);
    }
    assert!(answered > 0, "every kill came before every answer");
    // What was destroyed is cleaned up by the start, or had been before.
    let running = serve(&config, &client).await;
    assert_eq!(client.get("/operations/verify").await["intact"], true);
    drop(running);
    check(&config, false).await;
    assert!(files(&config.state_dir.join("staging")).is_empty());
}
