//! Bytes that an update moves to a host that has the version before.
//!
//! **What.** v1, then v2 rebuilt and v2 updated in place, each on an empty host (agent 1) and on one with v1 (agent 2);
//! beside it what `tests/delta/stored_bytes.py` counts as stored bytes of new chunks.
//! **Why a script in another language.** It shares no code with what it judges.
//! **Invariants.** Bytes are those the agents count on the wire, read from the cache list.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Ground;
use crate::site::{Imported, Site};

pub(crate) fn run(ground: &Ground) -> Result<()> {
    let site = Site::start(&ground.work.path().join("site"), &ground.programs, 2)?;
    let base = site.import(&ground.images.join("v1.qcow2"), "v1")?;
    site.fetch(2, &base)?;
    println!(
        "{:<14} {:>14} {:>14} {:>8} {:>14} {:>8}",
        "", "empty host", "host with v1", "share", "script", "ratio"
    );
    for (name, what) in [("v2r", "rebuilt"), ("v2i", "in place")] {
        let image = site.import(&ground.images.join(format!("{name}.qcow2")), name)?;
        let (empty, warm) = (moved(&site, 1, &image)?, moved(&site, 2, &image)?);
        let script = counted(ground, name)?;
        println!(
            "{what:<14} {empty:>14} {warm:>14} {:>7.1}% {script:>14} {:>8.3}",
            ratio(warm, empty) * 100.0,
            ratio(warm, script)
        );
        site.forget(1, &image)?;
        site.forget(2, &image)?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "byte counts are far below 2^52")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

fn moved(site: &Site, agent: u16, image: &Imported) -> Result<u64> {
    site.fetch(agent, image)?;
    crate::site::wait(|| {
        let entry = site.entry(agent, image)?.context("the copy has a row in the cache list")?;
        Ok((entry["status"] == "active").then(|| entry["moved_bytes"].as_u64()).flatten())
    })
}

fn counted(ground: &Ground, name: &str) -> Result<u64> {
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("delta/stored_bytes.py");
    let output = std::process::Command::new("/usr/bin/python3")
        .arg(script)
        .arg(ground.images.join("v1.raw"))
        .arg(ground.images.join(format!("{name}.raw")))
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let totals: Value = serde_json::from_slice(&output.stdout)?;
    totals["stored_new_bytes"].as_u64().context("stored_new_bytes")
}
