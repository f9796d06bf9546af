//! The program itself, killed in the middle of imports: nothing acknowledged is lost, nothing half-made is shown.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hearth_controller::clock;
use hearth_controller::config::{self, Config};
use hearth_protocol::words::ImageStatus;
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::harness::{self, Client, PROGRAM, Place, files, noise, sha256, until};

/// Kills while imports run. Every one is a start, a kill and a recovery of the real program.
const ROUNDS: u32 = 8;

/// The program, killed when dropped.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts the program and waits until it answers.
pub(crate) async fn serve(config: &Config, client: &Client) -> Running {
    let file = config.path.as_ref().unwrap();
    let mut command = Command::new(PROGRAM);
    command.arg("serve").arg("--config").arg(file).stderr(Stdio::null()).stdout(Stdio::null());
    let running = Running(command.spawn().unwrap());
    wait_until_it_answers(client).await;
    running
}

/// Waits for a program that was just started.
pub(crate) async fn wait_until_it_answers(client: &Client) {
    let begun = clock::monotonic();
    while client.ask(Method::GET, "/whoami").send().await.map(|answer| answer.status()).ok()
        != Some(StatusCode::OK)
    {
        assert!(begun.elapsed() < Duration::from_secs(60), "the controller does not answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A controller that is set up below `dir`, and who talks to it once it runs; `more` is added to its configuration.
pub(crate) async fn set_up(dir: &std::path::Path, more: &str) -> (Config, Client) {
    // A port that is free now; the program gets it by its configuration.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let file = dir.join("controller.toml");
    let text = format!(
        "state_dir = {:?}\nlisten_https = \"127.0.0.1:{port}\"\nlisten_quic = \"127.0.0.1:0\"\nsandbox = \"{}\"\n{more}",
        dir.join("state"),
        harness::sandbox().as_str()
    );
    std::fs::write(&file, text).unwrap();
    let config = config::load(Some(&file)).unwrap().config;
    let token = harness::init(&config).await;
    let client = Client::new(&config, port, &token);
    (config, client)
}

/// Reads every byte of what a stopped controller left; there must be no complaint.
pub(crate) async fn check(config: &Config, repair: bool) {
    let mut report = Vec::new();
    let options = hearth_controller::admin::fsck::Options { deep: true, repair };
    let left =
        hearth_controller::admin::fsck::fsck(config, options, PROGRAM.into(), &mut report).await.unwrap();
    assert_eq!(left, 0, "{}", String::from_utf8_lossy(&report));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_killed_runs_again() {
    let dir = tempfile::tempdir().unwrap();
    let (config, client) = set_up(dir.path(), "").await;
    let mut images = Vec::new();
    for round in 0..ROUNDS {
        let running = serve(&config, &client).await;
        let mut bytes = noise(8 << 20);
        bytes[0..4].copy_from_slice(&round.to_be_bytes());
        let id = client.image(json!({ "name": format!("round-{round}") })).await;
        assert_eq!(client.put(id, bytes.clone()).await.status(), StatusCode::ACCEPTED);
        // The answer came: from here on the bytes are acknowledged. Kill at a moment that differs each round.
        tokio::time::sleep(Duration::from_millis(u64::from(round) * 15)).await;
        drop(running);
        images.push((id, sha256(&bytes)));
    }
    let running = serve(&config, &client).await;
    for (id, sum) in &images {
        let image = client.ended(*id).await;
        assert_eq!(image.status, ImageStatus::Active, "{}", image.reason);
        let back = client.ask(Method::GET, &format!("/images/{id}/file")).send().await.unwrap();
        assert_eq!(sha256(&back.bytes().await.unwrap()), *sum);
    }
    assert_eq!(client.get("/operations/verify").await["intact"], true);
    drop(running);
    check(&config, false).await;
    assert!(files(&config.state_dir.join("staging")).is_empty());
}

/// IMG-2: a controller that dies while variants are made shows none that is half made, leaks nothing and makes them later.
#[tokio::test(flavor = "multi_thread")]
async fn variants_that_are_killed_are_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (config, client) =
        set_up(dir.path(), "variants = [\"raw\", \"qcow2\", \"vmdk\", \"vhd\", \"vhdx\"]\n").await;
    let running = serve(&config, &client).await;
    let id = client.image(json!({ "name": "disk" })).await;
    assert_eq!(client.put(id, noise(16 << 20)).await.status(), StatusCode::ACCEPTED);
    assert_eq!(client.ended(id).await.status, ImageStatus::Active);
    drop(running);
    let path = format!("/images/{id}/variants");
    for round in 0..ROUNDS {
        let running = serve(&config, &client).await;
        // Each round dies at another moment: while a file is unpacked, converted, summed, renamed or recorded.
        tokio::time::sleep(Duration::from_millis(u64::from(round) * 37)).await;
        let shown = client.get(&path).await;
        drop(running);
        for variant in
            shown["items"].as_array().unwrap().iter().filter(|variant| variant["status"] == "active")
        {
            let (sum, format) = (variant["blake3"].as_str().unwrap(), variant["format"].as_str().unwrap());
            let made = config.state_dir.join(format!("variants/{id}.{}.{format}", sum.split_at(16).0));
            assert_eq!(blake3::hash(&std::fs::read(made).unwrap()).to_hex().as_str(), sum, "half made");
        }
        if round % 3 == 2 {
            check(&config, true).await;
        }
    }
    let running = serve(&config, &client).await;
    let begun = clock::monotonic();
    loop {
        let shown = client.get(&path).await;
        let items = shown["items"].as_array().unwrap();
        assert_eq!(items.len(), 5, "{shown}");
        // What died too often is given up, says so, and is made when it is asked for again.
        for failed in items.iter().filter(|variant| variant["status"] == "save_fail") {
            assert!(
                failed["reason"].as_str().unwrap().contains("the controller stopped 5 times"),
                "{failed}"
            );
            client.post(&path, json!({ "format": failed["format"] })).await;
        }
        if items.iter().all(|variant| variant["status"] == "active") {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{shown}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(running);
    check(&config, false).await;
    assert_eq!(files(&config.state_dir.join("variants")).len(), 5);
    assert!(files(&config.state_dir.join("staging")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_whose_removal_was_interrupted_goes_at_the_next_start() {
    let place = Place::new().await;
    let id = place.client.image(json!({ "name": "gone" })).await;
    assert_eq!(place.client.put(id, noise(1 << 20)).await.status(), StatusCode::ACCEPTED);
    let content = place.client.ended(id).await.content.unwrap();
    let folder = place.config.state_dir.join("content");
    let before: Vec<_> =
        files(&folder).into_iter().map(|path| (std::fs::read(&path).unwrap(), path)).collect();
    let deleted = place.client.ask(Method::DELETE, &format!("/images/{id}?now=true")).send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    until("its content is gone", || files(&folder).is_empty()).await;
    // A kill behind the row and before the files leaves this.
    let (_dir, config, _) = place.stop().await;
    before.iter().for_each(|(bytes, path)| std::fs::write(path, bytes).unwrap());
    std::fs::write(folder.join("leaving").join(content.to_string()), "").unwrap();
    harness::start(&config).await.stop().await;
    assert_eq!(files(&folder), [] as [std::path::PathBuf; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_says_what_is_wrong_and_how_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let config = harness::config_in(dir.path());
    let file = config.path.clone().unwrap();
    let run = |args: &[&str]| {
        let done = Command::new(PROGRAM).args(args).arg("--config").arg(&file).output().unwrap();
        (
            done.status.code(),
            String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap(),
        )
    };
    assert_eq!(run(&["--check-config"]).0, Some(0));
    let (code, said) = run(&["serve"]);
    assert!(code == Some(78) && said.contains("hearth-controller init"), "{said}");
    assert_eq!(run(&["init"]).0, Some(0));
    let (code, said) = run(&["init"]);
    assert!(code == Some(2) && said.contains("set up already"), "{said}");
    assert_eq!(run(&["fsck", "--deep"]).0, Some(0));
    std::fs::write(config.state_dir.join("originals/01234567-89ab-7def-8123-456789abcdef"), "x").unwrap();
    assert_eq!(run(&["fsck"]).0, Some(1));
    assert_eq!(run(&["fsck", "--repair"]).0, Some(0));
    let mut text = std::fs::read_to_string(&file).unwrap();
    text.push_str("keep_original = true\n");
    std::fs::write(&file, text).unwrap();
    let (code, said) = run(&["--check-config"]);
    assert!(code == Some(1) && said.contains("keep_original"), "{said}");
    let (code, said) = run(&["fsck"]);
    assert!(code == Some(0) && said.contains("UNKNOWN KEY"), "{said}");
}
