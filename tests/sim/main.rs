//! A fleet in virtual time: one controller and up to 2,000 agents that decide with the daemons' own code.
//!
//! **What.** Messages are late, lost, doubled and reordered; agents and the controller crash; hosts are cut off, slow or
//! full. Checks look at every step: nothing held is evicted, the source's caps hold, no stale plan is followed, nothing is
//! active without all its bytes, a job is done only when its hosts are, and once the faults end everything wanted comes.
//! **Why.** A schedule that breaks a promise once in ten thousand is found here in a minute and repeated with its seed.
//!
//! ```text
//! scenario ─▶ setup ─▶ world (events by time) ─┬▶ agent, life ──▶ hearth_agent::logic
//!                         ▲      │             ├▶ controller ───▶ hearth_controller::logic
//!                         └──────┘             └▶ network, checks
//! ```
//! [`swarm`] simulates one campaign in the same way, with its own world.
//! `HEARTH_SEED=N` repeats the run of one seed; `HEARTH_SIM=full` adds the large fleets (`make sim` does).

#![expect(clippy::print_stdout, reason = "one line for each run is this program's output")]

mod agent;
mod checks;
mod controller;
mod life;
mod network;
mod queue;
mod random;
mod scenario;
mod setup;
mod swarm;
mod world;

use scenario::{Bug, NAMES, Scenario};
use world::{Outcome, World};

/// Seeds of the quick set, 50 hosts each, over all scenarios.
const SEEDS: u64 = 200;

/// Runs one scenario and prints its line.
fn run(name: &str, hosts: usize, seed: u64) -> Outcome {
    let outcome = World::new(Scenario::named(name, hosts, seed)).run();
    let result = outcome.findings.first().map_or("ok", String::as_str);
    println!(
        "scenario={name} hosts={hosts} seed={seed} virtual_s={} source_copies={} events={} trace={} result={result}",
        outcome.virtual_ms / 1000,
        outcome.source_copies,
        outcome.events,
        outcome.trace
    );
    outcome
}

fn chosen_seed() -> Option<u64> {
    std::env::var("HEARTH_SEED").ok().map(|text| text.parse().expect("HEARTH_SEED is a number"))
}

fn is_full() -> bool {
    std::env::var("HEARTH_SIM").is_ok_and(|set| set == "full")
}

#[test]
fn every_seed_keeps_every_promise() {
    let seeds = chosen_seed().map_or(0..SEEDS, |seed| seed..seed + 1);
    let names = |seed: u64| match chosen_seed() {
        Some(_) => NAMES.to_vec(),
        None => vec![NAMES[usize::try_from(seed).expect("few seeds") % NAMES.len()]],
    };
    let runs = seeds.flat_map(|seed| names(seed).into_iter().map(move |name| (name, seed)));
    let broken: Vec<String> = runs
        .flat_map(|(name, seed)| {
            let findings = run(name, 50, seed).findings;
            findings.into_iter().map(move |finding| format!("{name}, seed {seed}: {finding}"))
        })
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn large_fleets_keep_every_promise() {
    let hosts: &[usize] = if is_full() { &[500, 2000] } else { &[300] };
    for hosts in hosts {
        for name in if is_full() { &NAMES[..] } else { &NAMES[1..2] } {
            let outcome = run(name, *hosts, chosen_seed().unwrap_or(1));
            assert_eq!(outcome.findings, Vec::<String>::new(), "{name}, {hosts} hosts");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for name in NAMES {
        let one = run(name, 20, 7);
        assert_eq!(one, run(name, 20, 7), "{name}");
        assert_ne!(one.trace, run(name, 20, 8).trace, "{name}");
    }
}

/// Every check can fail: each planted bug is found, by the check that is meant for it, within a few seeds.
#[test]
fn a_planted_bug_is_found() {
    for (bug, name, finding) in [
        (Bug::EvictHeld, "calm", "which is held"),
        (Bug::FollowStale, "partitions", "stale generation"),
        (Bug::ActiveEarly, "calm", "without all its bytes"),
        (Bug::AdmitAll, "calm", "transfers are admitted"),
        (Bug::ForgetGenerations, "crashes", "generation"),
        (Bug::DoneEarly, "calm", "lack bytes"),
        (Bug::StayAway, "partitions", "never"),
        (Bug::SendOnce, "partitions", "never"),
    ] {
        let found = (0..20).find_map(|seed| {
            let outcome = World::new(Scenario::named(name, 30, seed).with(bug)).run();
            outcome.findings.into_iter().next()
        });
        let found = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        println!("bug={bug:?} found: {found}");
        assert!(found.contains(finding), "{bug:?}: {found}");
    }
}
