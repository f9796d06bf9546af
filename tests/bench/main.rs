//! `hearth-bench`: Hearth beside the tools that operators use today, on real images, in one run.
//!
//! **What.** `one-host` (speed of one full fetch), `memory` (a 10 GiB random image), `delta` (bytes of an update),
//! `formats` (every format through the whole main job), `catalog` (a large catalog through the API, on both engines),
//! `swarm` (one image to many hosts behind slow links).
//! **Why interleaved.** Machines are noisy: contenders take turns within a round, and medians of rounds are compared.
//! **Invariants.** Every contender ends with the same check: fdatasync, page cache dropped, data hashed from disk; `swarm`,
//! whose copies are in memory, hashes them all.
//! No figure is judged here; the output states what was seen.

#![expect(clippy::print_stdout, reason = "the figures are this program's output")]

mod catalog;
mod delta;
mod formats;
mod measure;
mod memory;
mod one_host;
mod peers;
mod site;
mod swarm;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What every bench needs.
struct Ground {
    /// Folder of the real images.
    images: PathBuf,
    /// Folder of the release programs.
    programs: PathBuf,
    /// Folder for everything that is written; removed at the end.
    work: tempfile::TempDir,
    /// Rounds.
    rounds: usize,
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let what = words.next().unwrap_or_else(|| "one-host".into());
    if what == "catalog" {
        let only = words.next().unwrap_or_default();
        let times = words.next().map_or(Ok(200), |times| times.parse()).context("ROUNDS is a number")?;
        let programs = std::env::current_exe()?;
        let programs = programs.parent().context("this program stands in a folder")?;
        return catalog::run_all(programs, &only, times);
    }
    if what == "swarm" {
        return swarm::run(words);
    }
    let images = PathBuf::from(words.next().unwrap_or_else(|| "images".into()));
    let rounds = words.next().map_or(Ok(7), |rounds| rounds.parse()).context("ROUNDS is a number")?;
    let programs = std::env::current_exe()?
        .parent()
        .map(Path::to_path_buf)
        .context("this program stands in a folder")?;
    // Beside the images: a real file system, not a tmpfs on which syncs cost nothing.
    let work = tempfile::Builder::new().prefix("bench-").tempdir_in(&images).with_context(|| {
        format!("make a folder in {}: `make images` builds the real images there", images.display())
    })?;
    let ground = Ground { images, programs, work, rounds };
    match what.as_str() {
        "one-host" => one_host::run(&ground),
        "memory" => memory::run(&ground),
        "delta" => delta::run(&ground),
        "formats" => formats::run(&ground),
        other => {
            bail!(
                "unknown bench {other}: there are one-host, memory, delta and formats (then IMAGES folder, ROUNDS), catalog and swarm"
            )
        }
    }
}
