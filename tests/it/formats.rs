//! What is cached is what the image holds, for every format; what is downloaded is what came in.

use std::path::{Path, PathBuf};

use hearth_protocol::api::image::{Checksums, ImageCreate};
use hearth_protocol::words::{DiskFormat, ImageStatus};
use hearth_tests::cluster::Cluster;
use hearth_tests::disk;

/// A format, how qemu-img calls it, and the options that make the variant.
struct Variant {
    name: &'static str,
    format: DiskFormat,
    qemu: &'static str,
    options: &'static [&'static str],
}

const VARIANTS: &[Variant] = &[
    Variant { name: "raw", format: DiskFormat::Raw, qemu: "raw", options: &[] },
    Variant { name: "qcow2", format: DiskFormat::Qcow2, qemu: "qcow2", options: &[] },
    Variant { name: "qcow2-zlib", format: DiskFormat::Qcow2, qemu: "qcow2", options: &["-c"] },
    Variant {
        name: "qcow2-zstd",
        format: DiskFormat::Qcow2,
        qemu: "qcow2",
        options: &["-c", "-o", "compression_type=zstd"],
    },
    Variant { name: "vmdk-sparse", format: DiskFormat::Vmdk, qemu: "vmdk", options: &[] },
    Variant {
        name: "vmdk-stream",
        format: DiskFormat::Vmdk,
        qemu: "vmdk",
        options: &["-o", "subformat=streamOptimized"],
    },
    Variant { name: "vhd-dynamic", format: DiskFormat::Vhd, qemu: "vpc", options: &[] },
    Variant { name: "vhd-fixed", format: DiskFormat::Vhd, qemu: "vpc", options: &["-o", "subformat=fixed"] },
    Variant { name: "vhdx", format: DiskFormat::Vhdx, qemu: "vhdx", options: &[] },
];

fn make(dir: &Path, seed: u64, variant: &Variant) -> PathBuf {
    let raw = dir.join("source.raw");
    disk::ext4(&raw, 64, 12, seed).unwrap();
    let file = dir.join(variant.name);
    disk::convert(&raw, &file, variant.qemu, variant.options).unwrap();
    std::fs::remove_file(raw).unwrap();
    file
}

/// Proves IMG-1.
#[tokio::test(flavor = "multi_thread")]
async fn a_cached_disk_equals_what_qemu_img_makes_of_it() {
    let cluster = Cluster::start(1).await.unwrap();
    for (seed, variant) in (1..).zip(VARIANTS) {
        let file = make(cluster.dir(), seed, variant);
        // Some formats can only be told by their ending or by being declared.
        let create =
            ImageCreate { name: variant.name.into(), format: Some(variant.format), ..ImageCreate::default() };
        let image = cluster.import_ended(&file, &create).await.unwrap();
        assert_eq!(image.status, ImageStatus::Active, "{}: {}", variant.name, image.reason);
        assert_eq!(image.format, Some(variant.format));
        cluster.warm_all(&image).await.unwrap();
        let reference = cluster.dir().join("reference.raw");
        disk::reference(&file, variant.qemu, &reference).unwrap();
        disk::same(&cluster.cached_file(&image, 0).unwrap(), &reference).unwrap();
    }
}

/// Proves IMG-1.
#[tokio::test(flavor = "multi_thread")]
async fn a_cached_iso_equals_its_source() {
    let cluster = Cluster::start(1).await.unwrap();
    let file = cluster.dir().join("medium.iso");
    disk::iso(&file, &[disk::file(2), disk::file(3), vec![0; 300_000], disk::file(4)].concat()).unwrap();
    let image = cluster.import(&file, "medium").await.unwrap();
    cluster.warm_all(&image).await.unwrap();
    disk::same(&cluster.cached_file(&image, 0).unwrap(), &file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_returns_the_bytes_that_came_in() {
    let cluster = Cluster::start(0).await.unwrap();
    let file = make(cluster.dir(), 7, &VARIANTS[2]);
    let sha256 = disk::sha256(&file).unwrap();
    let expected = Checksums { sha256: Some(sha256.clone()), ..Checksums::default() };
    let create = ImageCreate { name: "noble".into(), expected, ..ImageCreate::default() };
    let image = cluster.import_ended(&file, &create).await.unwrap();
    assert_eq!(image.status, ImageStatus::Active, "{}", image.reason);
    assert_eq!(image.checksums.sha256.as_ref(), Some(&sha256));

    let bytes = std::fs::read(&file).unwrap();
    let path = format!("/images/{}/file", image.id);
    assert!(cluster.api.download(&path, 0).await.unwrap() == bytes);
    assert!(cluster.api.download(&path, 1_000_001).await.unwrap() == bytes[1_000_001..]);

    // The command line goes on with what an earlier call left.
    let target = cluster.dir().join("got.qcow2");
    let part = cluster.dir().join("got.qcow2.part");
    std::fs::write(&part, &bytes[..bytes.len() / 3]).unwrap();
    let output = cluster.hearth(&["image", "download", "noble", "--file", target.to_str().unwrap()]).unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(disk::sha256(&target).unwrap(), sha256);
    assert!(!part.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_checksum_kills_the_import_and_says_so() {
    let cluster = Cluster::start(0).await.unwrap();
    let file = make(cluster.dir(), 8, &VARIANTS[1]);
    let expected = Checksums { sha256: Some("0".repeat(64)), ..Checksums::default() };
    let create = ImageCreate { name: "wrong".into(), expected, ..ImageCreate::default() };
    let made: hearth_protocol::api::image::Image = cluster.api.post("/images", &create).await.unwrap();
    let path = format!("/images/{}", made.id);
    // Either the upload is refused at its end, or the import job is killed; the record tells why in both cases.
    drop(cluster.api.put_file::<hearth_protocol::api::image::Image>(&format!("{path}/file"), &file).await);
    let image = hearth_tests::wait::for_some("killed", hearth_tests::cluster::WORK_WAIT_MAX, async || {
        let image: hearth_protocol::api::image::Image = cluster.api.get(&path).await?;
        Ok((image.status == ImageStatus::Killed).then_some(image))
    })
    .await
    .unwrap();
    assert!(image.reason.contains("sha256"), "{}", image.reason);
}
