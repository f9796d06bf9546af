//! `update`: what a new version of a real image moves, from empty hosts, to hosts that have the one before, and to a mix.
//!
//! **What.** For each v2 a fresh site: v1 to all empty hosts, then v2 to all. Then another: v1 to half, then v2 to all.
//! **Why the mix.** Hosts with v1 and empty hosts help each other only if pieces are named by what is in them.
//! **Invariants.** Bytes are those of the links; beside them what the controller says that moved. What leaves hosts is
//! compared with what a perfect swarm must send: all copies but the source's one.

use std::time::Duration;

use anyhow::{Context, Result};
use hearth_protocol::api::image::Image;

use super::Ground;
use super::prewarm::warm;
use super::race::Outcome;
use super::site::{Caps, Site};
use crate::measure::median;

/// Longest distribution.
const LIMIT: Duration = Duration::from_secs(3600);
/// The next versions: file and what was done to v1.
const NEXT: [(&str, &str); 2] = [("v2r", "v2 rebuilt"), ("v2i", "v2 in place")];

/// Runs all rounds.
pub(crate) async fn run(ground: &Ground) -> Result<()> {
    println!(
        "{:>5} {:26} {:>5} {:>8} {:>10} {:>24} {:>10} {:>10} {:>8}",
        "round", "", "hosts", "last s", "stored MiB", "MiB into a host", "moved MiB", "source MiB", "peers"
    );
    for round in 1..=ground.settings.rounds {
        for (file, what) in NEXT {
            let mut site = Site::start(ground, Caps::of_links(&ground.settings)).await?;
            let hosts = ground.settings.hosts;
            let v1 = import(ground, &site, "v1").await?;
            let v2 = import(ground, &site, file).await?;
            let seen = warm(ground, &mut site, &v1, 1..=hosts, LIMIT).await?;
            print(round, "v1 to empty hosts", &v1, &seen, &(1..=hosts).collect::<Vec<_>>());
            let seen = warm(ground, &mut site, &v2, 1..=hosts, LIMIT).await?;
            print(round, &format!("{what}, all have v1"), &v2, &seen, &(1..=hosts).collect::<Vec<_>>());
            drop(site);
            half(ground, round, file, what).await?;
        }
    }
    Ok(())
}

/// Half of the hosts have v1, the others nothing; v2 to all of them at once.
async fn half(ground: &Ground, round: usize, file: &str, what: &str) -> Result<()> {
    let mut site = Site::start(ground, Caps::of_links(&ground.settings)).await?;
    let hosts = ground.settings.hosts;
    let (v1, v2) = (import(ground, &site, "v1").await?, import(ground, &site, file).await?);
    let (with, without): (Vec<usize>, Vec<usize>) = (1..=hosts).partition(|host| host % 2 == 1);
    warm(ground, &mut site, &v1, with.iter().copied(), LIMIT).await?;
    let seen = warm(ground, &mut site, &v2, 1..=hosts, LIMIT).await?;
    print(round, &format!("{what}, half: with v1"), &v2, &seen, &with);
    print(round, &format!("{what}, half: empty"), &v2, &seen, &without);
    Ok(())
}

async fn import(ground: &Ground, site: &Site<'_>, name: &str) -> Result<Image> {
    let file = ground.settings.images.join(format!("{name}.qcow2"));
    site.import(&file, name).await.with_context(|| format!("{}: `make images` builds it", file.display()))
}

/// A line about some of the hosts of a distribution; times and bytes of source and peers are of all.
fn print(round: usize, what: &str, image: &Image, (seen, moved): &(Outcome, Vec<u64>), hosts: &[usize]) {
    let stored = mib(image.stored_bytes.unwrap_or(0));
    let mut into: Vec<f64> = hosts.iter().map(|host| mib(seen.traffic.received[*host])).collect();
    into.sort_by(f64::total_cmp);
    let moved: Vec<f64> = hosts.iter().map(|host| mib(moved[host - 1])).collect();
    let all = seen.done_s.len();
    let others = (all - 1) as f64;
    println!(
        "{round:>5} {what:26} {:>5} {:>8.2} {stored:>10.1} {:>24} {:>10.1} {:>10.1} {:>8.2}{}",
        hosts.len(),
        seen.sorted(|host| hosts.contains(&host)).last().copied().unwrap_or(f64::NAN),
        format!("{:.1} ({:.1} to {:.1})", median(&into), into[0], into[into.len() - 1]),
        median(&moved),
        mib(seen.traffic.sent[0]),
        mib(seen.traffic.hosts_sent()) / (others * stored),
        if seen.is_void() { " void" } else { "" }
    );
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
