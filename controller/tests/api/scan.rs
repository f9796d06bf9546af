//! The scan hook as callers see it.

use std::time::Duration;

use hearth_controller::ingest::scan::Scanner;
use hearth_protocol::words::ImageStatus;
use serde_json::json;

use super::harness::{Place, files, noise};

/// IN-11: the verdict is shown with its time; a refusal is the reason of the image, and nothing of it is kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_is_shown_and_a_refusal_kills() {
    // Perl is essential on Debian.
    let code =
        "open(F, $ARGV[0]) or die; read(F, $b, 4); print \"begins with $b\\n\"; exit($b eq 'evil' ? 1 : 0)";
    let command = ["/usr/bin/perl", "-e", code].map(str::to_owned).to_vec();
    let scanner = Scanner { command, read: Vec::new(), time: Duration::from_secs(60) };
    let place = Place::with(|config| config.scanner = Some(scanner)).await;
    let mut bytes = noise(300_000);
    bytes[..4].copy_from_slice(b"good");
    let good = place.client.image(json!({ "name": "good" })).await;
    place.client.put(good, bytes.clone()).await;
    let image = place.client.ended(good).await;
    assert_eq!(image.status, ImageStatus::Active, "{}", image.reason);
    let scan = image.scan.unwrap();
    assert_eq!(scan.verdict, "begins with good");
    assert!(scan.scanned_at >= image.created_at && scan.scanned_at <= image.updated_at);
    bytes[..4].copy_from_slice(b"evil");
    let evil = place.client.image(json!({ "name": "evil" })).await;
    place.client.put(evil, bytes).await;
    let image = place.client.ended(evil).await;
    assert_eq!((image.status, image.scan), (ImageStatus::Killed, None));
    assert_eq!(image.reason, "the scanner refused the image: begins with evil");
    assert_eq!(files(&place.config.state_dir.join("originals")).len(), 1, "that of the good one");
    place.stop().await;
}
