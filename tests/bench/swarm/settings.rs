//! What a run is told by its environment, and the room it needs.
//!
//! **What.** [`Settings`] with defaults, each checked before anything is made.
//! **Why the environment.** A make variable given on the command line reaches the program as it is.
//! **Invariants.** Every figure is in range: a bed of 200 hosts is the largest whose addresses are distinct.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

/// Hosts of one bed at most.
const HOSTS_MAX: usize = 200;
/// Blocks of a file system, the agents' own state and their logs, for each host.
const HOST_OVERHEAD_BYTES: u64 = 12 << 20;
/// A real image has less data than this: room for one copy.
const REAL_IMAGE_BYTES: u64 = 420 << 20;

/// One run.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Agents.
    pub(crate) hosts: usize,
    /// Mbit/s of every link, each way.
    pub(crate) rate_mbit: u32,
    /// Largest packet of every link, bytes.
    pub(crate) mtu: u32,
    /// Size of the random image.
    pub(crate) image_bytes: u64,
    /// Rounds.
    pub(crate) rounds: usize,
    /// Mbit/s that an agent may send while guests talk.
    pub(crate) cap_up_mbit: u32,
    /// The same for what it takes.
    pub(crate) cap_down_mbit: u32,
    /// Contenders; empty: all.
    pub(crate) only: Vec<String>,
    /// Folder of the real images.
    pub(crate) images: PathBuf,
    /// Folder of the programs.
    pub(crate) programs: PathBuf,
    /// Lines for `controller.toml`.
    pub(crate) controller_extra: String,
    /// Lines for every `agent.toml`.
    pub(crate) agent_extra: String,
    /// Lines for `agent.toml` instead of caps, in the adaptive variant of `guests`.
    pub(crate) adaptive: String,
}

impl Settings {
    /// Reads the environment.
    pub(crate) fn from_environment() -> Result<Self> {
        let rate_mbit: u32 = number("RATE", 100)?;
        let mib: u64 = number("MIB", 256)?;
        let programs = match std::env::var_os("PROGRAMS") {
            Some(folder) if !folder.is_empty() => PathBuf::from(folder),
            _ => std::env::current_exe()?.parent().context("this program stands in a folder")?.to_owned(),
        };
        let this = Self {
            hosts: number("HOSTS", 32)?,
            rate_mbit,
            mtu: number("MTU", 1500)?,
            image_bytes: mib << 20,
            rounds: number("ROUNDS", 3)?,
            cap_up_mbit: number("CAP_UP", (rate_mbit / 5).max(1))?,
            cap_down_mbit: number("CAP_DOWN", (rate_mbit * 2 / 5).max(1))?,
            only: text("ONLY").split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect(),
            images: PathBuf::from(match text("IMAGES").as_str() {
                "" => "images",
                folder => folder,
            }),
            programs: programs.canonicalize().with_context(|| format!("PROGRAMS={}", programs.display()))?,
            controller_extra: text("HEARTH_BENCH_CONTROLLER_EXTRA"),
            agent_extra: text("HEARTH_BENCH_AGENT_EXTRA"),
            adaptive: text("HEARTH_BENCH_ADAPTIVE"),
        };
        ensure!((2..=HOSTS_MAX).contains(&this.hosts), "HOSTS is 2 to {HOSTS_MAX}");
        ensure!((1..=10_000).contains(&this.rate_mbit), "RATE is 1 to 10000");
        for cap in [this.cap_up_mbit, this.cap_down_mbit] {
            ensure!((1..=this.rate_mbit).contains(&cap), "CAP_UP and CAP_DOWN are 1 to RATE");
        }
        ensure!((1280..=9000).contains(&this.mtu), "MTU is 1280 to 9000");
        ensure!((1..=65_536).contains(&mib), "MIB is 1 to 65536");
        ensure!((1..=100).contains(&this.rounds), "ROUNDS is 1 to 100");
        for name in ["hearth-controller", "hearth-agent"] {
            let file = this.programs.join(name);
            ensure!(file.is_file(), "{} is not there: `make swarm-bench` builds it", file.display());
        }
        for name in &this.only {
            ensure!(
                super::race::NAMES.contains(&name.as_str()),
                "ONLY={name}: there are {:?}",
                super::race::NAMES
            );
        }
        Ok(this)
    }

    /// Whether a contender takes part.
    pub(crate) fn takes_part(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    /// Bytes in memory: the copies of all hosts.
    pub(crate) fn fast_bytes(&self, scenario: &str) -> Result<u64> {
        let hosts = u64::try_from(self.hosts)?;
        let copies = match scenario {
            // Both versions at every host.
            "update" => 2 * hosts * REAL_IMAGE_BYTES,
            // One host has the image, too, by which one link was measured.
            _ => (hosts + 1) * self.image_bytes,
        };
        Ok(copies + copies / 25 + hosts * HOST_OVERHEAD_BYTES + (256 << 20))
    }

    /// Bytes on disk: the image, another one that measures one link, and what the controller keeps of both.
    pub(crate) fn slow_bytes(&self, scenario: &str) -> Result<u64> {
        Ok(if scenario == "update" { 8 << 30 } else { 6 * self.image_bytes + (1 << 30) })
    }
}

fn text(name: &str) -> String {
    std::env::var(name).unwrap_or_default()
}

fn number<T: FromStr>(name: &str, default: T) -> Result<T> {
    let text = text(name);
    if text.is_empty() {
        return Ok(default);
    }
    text.parse().ok().with_context(|| format!("{name}={text} is not a number that can be"))
}
