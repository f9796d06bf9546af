//! Memory of both daemons while a 10 GiB random image moves.
//!
//! **What.** VmHWM less RssFile of controller and agent after the import and the fetch.
//! **Why random.** Nothing compresses and nothing is zero: every byte passes through every buffer.
//! **Invariants.** Stops before it writes if the disk has less than 40 GB free.

use anyhow::{Result, ensure};

use crate::Ground;
use crate::measure::{peak_mib, timed};
use crate::site::Site;

/// Bytes of the image.
const IMAGE_BYTES: u64 = 10 << 30;
/// Source, original, content object and copy, each 10 GiB.
const FREE_BYTES_MIN: u64 = 43 << 30;

pub(crate) fn run(ground: &Ground) -> Result<()> {
    let disk = nix::sys::statvfs::statvfs(ground.work.path())?;
    let free = disk.blocks_available() * disk.fragment_size();
    ensure!(free > FREE_BYTES_MIN, "{} GiB free, {} needed", free >> 30, FREE_BYTES_MIN >> 30);
    let source = ground.work.path().join("random.raw");
    let mut random = std::fs::File::open("/dev/urandom")?;
    std::io::copy(&mut std::io::Read::take(&mut random, IMAGE_BYTES), &mut std::fs::File::create(&source)?)?;
    let site = Site::start(&ground.work.path().join("site"), &ground.programs, 1)?;
    let (controller, agent) = (site.controller()?, site.agent()?);
    println!("idle: controller {} MiB, agent {} MiB", peak_mib(controller)?, peak_mib(agent)?);
    let (import_s, image) = timed(|| site.import(&source, "random"))?;
    println!("import: {import_s:.1} s, controller {} MiB", peak_mib(controller)?);
    std::fs::remove_file(&source)?;
    let (fetch_s, ()) = timed(|| site.fetch(1, &image))?;
    println!(
        "fetch: {fetch_s:.1} s, controller {} MiB, agent {} MiB",
        peak_mib(controller)?,
        peak_mib(agent)?
    );
    Ok(())
}
