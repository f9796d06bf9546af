//! Every format of the real image through the whole main job.
//!
//! **What.** Each file is imported, fetched and compared: a disk's cached copy with `qemu-img convert -O raw` of the file,
//! an ISO's with the file itself; and the download with the file, by SHA-256.
//! **Why on real images.** Writers of formats differ in what they leave out; a generated disk has no boot sector.
//! **Invariants.** A difference ends the run with an error.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hearth_protocol::words::ContentKind;

use crate::Ground;
use crate::measure::{same, timed};
use crate::site::Site;

pub(crate) fn run(ground: &Ground) -> Result<()> {
    let site = Site::start(&ground.work.path().join("site"), &ground.programs, 1)?;
    println!("{:<24} {:>9} {:>9} {:>14}  same bytes as", "file", "import s", "fetch s", "stored bytes");
    for file in files(&ground.images)? {
        let name = file.file_name().and_then(|name| name.to_str()).context("a file name is text")?;
        let (import_s, image) = timed(|| site.import(&file, name))?;
        let (fetch_s, ()) = timed(|| site.fetch(1, &image))?;
        let copy = site.copy_path(1, &image);
        let expected = if image.kind == ContentKind::File { file.clone() } else { converted(ground, &file)? };
        same(&copy, &expected)?;
        let back = ground.work.path().join("download");
        site.hearth(&["image", "download", name, "--file", &back.display().to_string()])?;
        ensure!(sha256(&back)? == sha256(&file)?, "the download of {name} differs from what came in");
        std::fs::remove_file(&back)?;
        let what = if expected == file { "the file" } else { "qemu-img convert" };
        println!(
            "{name:<24} {import_s:>9.2} {fetch_s:>9.2} {:>14}  {what}; download: same sha256",
            image.stored_bytes
        );
        if expected != file {
            std::fs::remove_file(&expected)?;
        }
        site.forget(1, &image)?;
    }
    Ok(())
}

fn files(images: &Path) -> Result<Vec<PathBuf>> {
    let disks = [
        "v1.raw",
        "v1.qcow2",
        "v1.c.qcow2",
        "v1.z.qcow2",
        "v1.vmdk",
        "v1.so.vmdk",
        "v1.vhd",
        "v1.fixed.vhd",
        "v1.vhdx",
    ];
    let mut files: Vec<PathBuf> = disks.iter().map(|disk| images.join(disk)).collect();
    for iso in std::fs::read_dir(images.join("iso")).context("`make images` builds the ISOs")? {
        let iso = iso?.path();
        if iso.extension().is_some_and(|ending| ending == "iso") {
            files.push(iso);
        }
    }
    Ok(files)
}

fn converted(ground: &Ground, file: &Path) -> Result<PathBuf> {
    let out = ground.work.path().join("expected.raw");
    let format = match file.extension().and_then(|ending| ending.to_str()) {
        Some("vhd") => "vpc",
        Some(other) => other,
        None => "raw",
    };
    let status =
        Command::new("qemu-img").args(["convert", "-f", format, "-O", "raw"]).arg(file).arg(&out).status()?;
    ensure!(status.success(), "qemu-img convert of {}", file.display());
    Ok(out)
}

fn sha256(path: &Path) -> Result<String> {
    let output = Command::new("openssl").args(["dgst", "-sha256", "-r"]).arg(path).output()?;
    ensure!(output.status.success(), "openssl dgst of {}", path.display());
    let text = String::from_utf8(output.stdout)?;
    text.split_whitespace().next().map(ToOwned::to_owned).context("openssl prints a digest")
}
