//! `guests`: what machines on two hosts notice of a prewarm.
//!
//! **What.** iperf3 from the first host to the second, alone and while all hosts get an image, in three variants: links with
//! a class of low priority for DSCP LE and CS1, links without, and links without but agents that adapt themselves.
//! **Why iperf3.** It stands for one guest that wants all it can get, the hardest neighbour.
//! **Invariants.** The measurement lies within the prewarm; where it does not, the line says so.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hearth_protocol::api::image::Image;
use hearth_tests::wait;
use serde_json::Value;

use super::Ground;
use super::bed::{Bed, Node};
use super::links::Shape;
use super::prewarm::OwnRace;
use super::race::{Contender, watch};
use super::site::{Caps, Site};
use crate::measure::median;

/// Seconds of one measurement, at most.
const SECONDS_MAX: u64 = 20;
/// Pause before it, so that the prewarm is under way.
const LEAD: Duration = Duration::from_millis(700);
/// Longest prewarm.
const LIMIT: Duration = Duration::from_secs(3600);
/// iperf3 listens by then.
const START_WAIT_MAX: Duration = Duration::from_secs(10);
/// Port of iperf3.
const PORT: u16 = 5201;

#[derive(Clone, Copy, Debug)]
enum Variant {
    Classes,
    None,
    Adaptive,
}

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            Self::Classes => "htb, two classes",
            Self::None => "none",
            Self::Adaptive => "adaptive agents",
        }
    }
}

/// Runs all rounds.
pub(crate) async fn run(ground: &Ground) -> Result<()> {
    let settings = &ground.settings;
    let (up, down) = (settings.cap_up_mbit, settings.cap_down_mbit);
    println!("agents may send {up} Mbit/s and take {down}; adaptive ones what they decide");
    println!(
        "{:>5} {:18} {:>10} {:>10} {:>6} {:>10} {:>5}",
        "round", "", "alone", "during", "share", "prewarm s", "CPU"
    );
    let variants = [Variant::Classes, Variant::None, Variant::Adaptive];
    let mut shares: [Vec<f64>; 3] = Default::default();
    for round in 1..=settings.rounds {
        for (variant, shares) in variants.into_iter().zip(&mut shares) {
            shares.extend(one(ground, round, variant).await?);
        }
    }
    for (variant, shares) in variants.into_iter().zip(&shares) {
        let share = if shares.is_empty() {
            "none: all runs are void".into()
        } else {
            format!("{:.2}", median(shares))
        };
        println!("median {:18} share {share}", variant.name());
    }
    Ok(())
}

/// One variant in one round: throughput during the prewarm over throughput alone, unless the run is void.
async fn one(ground: &Ground, round: usize, variant: Variant) -> Result<Option<f64>> {
    let settings = &ground.settings;
    let rate_mbit = settings.rate_mbit;
    let shape = match variant {
        Variant::Classes => Shape::Classes { rate_mbit },
        Variant::None | Variant::Adaptive => Shape::Plain { rate_mbit },
    };
    ground.bed.nodes().try_for_each(|node| ground.bed.shape(node, shape))?;
    let caps = match variant {
        Variant::Adaptive => Caps::Adaptive,
        Variant::Classes | Variant::None => {
            Caps::Fixed { up: settings.cap_up_mbit, down: settings.cap_down_mbit }
        }
    };
    let mut site = Site::start(ground, caps).await?;
    let (path, hash) = ground.room.random_file("image.raw", settings.image_bytes)?;
    let image: Image = site.import(&path, "image").await?;
    // Half of what the prewarm needs at the least.
    let seconds = (settings.image_bytes * 4 / 1_000_000 / u64::from(rate_mbit)).clamp(2, SECONDS_MAX);
    let alone = iperf(ground, seconds).await?;
    let mut race = OwnRace::new(&mut site, &image, 1..=settings.hosts, Some(hash));
    let both = async {
        tokio::time::sleep(LEAD).await;
        iperf(ground, seconds).await
    };
    let (outcome, during) =
        tokio::join!(watch(&ground.bed, &mut race, settings.image_bytes, None, LIMIT), both);
    let (outcome, during) = (outcome?, during?);
    ensure!(outcome.missing().is_empty(), "the prewarm took more than {} s", LIMIT.as_secs());
    race.check().await?;
    let last = outcome.sorted(|_| true).last().copied().unwrap_or(f64::NAN);
    let within = last >= seconds as f64 + LEAD.as_secs_f64();
    println!(
        "{round:>5} {:18} {alone:>10.1} {during:>10.1} {:>6.2} {last:>10.2} {:>4.0}%{}{}",
        variant.name(),
        during / alone,
        outcome.busy * 100.0,
        if outcome.is_void() { " void" } else { "" },
        if within { "" } else { " the prewarm ended first: raise MIB" }
    );
    Ok((!outcome.is_void()).then_some(during / alone))
}

/// Mbit/s from the first host to the second.
async fn iperf(ground: &Ground, seconds: u64) -> Result<f64> {
    let (from, to) = (Node::Host(1), Node::Host(2));
    let (log, out) = (ground.room.log("iperf3-server"), ground.room.log("iperf3"));
    for file in [&log, &out] {
        // Of the measurement before.
        drop(std::fs::remove_file(file));
    }
    let mut server = ground.bed.command(to, Path::new("iperf3"));
    let mut server = Bed::start(server.args(["-s", "-1", "--forceflush", "-p", &PORT.to_string()]), &log)?;
    wait::until("iperf3 listens", START_WAIT_MAX, async || {
        ensure!(server.ended()?.is_none(), "iperf3 ended at {to:?}");
        Ok(std::fs::read_to_string(&log)?.contains("listening"))
    })
    .await?;
    let mut client = ground.bed.command(from, Path::new("iperf3"));
    client.args(["-J", "-t", &seconds.to_string(), "-p", &PORT.to_string(), "-c", &to.address().to_string()]);
    let mut client = Bed::start(&mut client, &out)?;
    let limit = Duration::from_secs(seconds) + START_WAIT_MAX;
    let status = wait::for_some("iperf3 ends", limit, async || client.ended()).await?;
    let text = std::fs::read_to_string(&out)?;
    ensure!(status.success(), "iperf3 ended with {status}: {text}");
    let said: Value = serde_json::from_str(&text)?;
    let bits =
        said["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 says no throughput")?;
    Ok(bits / 1e6)
}
