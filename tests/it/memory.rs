//! Memory is bounded whatever the size of an image.

use hearth_protocol::api::image::{Image, ImageCreate};
use hearth_protocol::words::ImageStatus;
use hearth_tests::cluster::{Cluster, WORK_WAIT_MAX};
use hearth_tests::{api, disk, wait};
use reqwest::Method;

/// Pieces of 1 MiB that are sent: twice and more what the controller may take for them.
const PIECES: u32 = 256;
/// An upload holds at most 8 MiB, an import about 40; the rest is for the allocator and the runtime.
const GROWTH_BYTES_MAX: u64 = 96 << 20;

/// The most memory that a process has had, in bytes.
fn peak_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_takes_little_memory_however_large_the_file() {
    let mut cluster = Cluster::start(0).await.unwrap();
    let pid = cluster.controller().pid();
    let before = peak_bytes(pid);
    let record = ImageCreate { name: "large".into(), ..ImageCreate::default() };
    let made: Image = cluster.api.post("/images", &record).await.unwrap();
    let piece = disk::file(2);
    let pieces = futures::stream::iter((0..PIECES).map(move |_| Ok::<_, std::io::Error>(piece.clone())));
    let request = cluster.api.request(Method::PUT, &format!("/images/{}/file", made.id));
    api::checked(request.body(reqwest::Body::wrap_stream(pieces)).send().await.unwrap()).await.unwrap();
    let image = wait::for_some("the import ends", WORK_WAIT_MAX, async || {
        let image: Image = cluster.api.get(&format!("/images/{}", made.id)).await?;
        Ok((image.status == ImageStatus::Active).then_some(image))
    })
    .await
    .unwrap();
    assert_eq!(image.original_bytes, Some(u64::from(PIECES) << 20));
    let grown = peak_bytes(pid) - before;
    assert!(grown < GROWTH_BYTES_MAX, "the controller took {} MiB for {PIECES} MiB", grown >> 20);
}
