//! Campaigns of up to ten thousand hosts in virtual time: the controller's planner and the agents' own decisions.
//!
//! **What.** Each scenario prints one line and is held to its figures: time of the last host against the bound, copies that
//! the source sent, copies that entered a rack, CPU of the planner. With `HEARTH_SIM=full` (`make sim`) at full size.
//! **Why beside the other simulation.** That one is about plans, holds and crashes of the whole product with a few pieces;
//! this one is about millions of transfers, and knows nothing but the swarm.

mod control;
mod host;
mod life;
mod links;
mod scenario;
mod world;

use hearth_controller::logic::swarm::{Shape, bound};

use crate::{chosen_seed, is_full};
use scenario::Scenario;
use world::{Outcome, World};

/// The bound of a scenario, µs.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time of some seconds")]
fn bound_us(scenario: &Scenario) -> u64 {
    let cap = scenario.cap_bytes_per_s;
    let hosts = u64::from(scenario.hosts);
    let n_slow = hosts * scenario.slow / 1000;
    let shape = Shape {
        n_hosts: hosts,
        bytes: u64::from(scenario.pieces) * scenario.piece_bytes,
        piece_bytes: scenario.piece_bytes,
        source_bytes_per_s: cap,
        download_bytes_per_s_min: if n_slow > 0 { cap / 2 } else { 2 * cap },
        upload_bytes_per_s_sum: (hosts - n_slow) * cap + n_slow * cap / 4,
    };
    (bound(&shape).seconds * 1e6) as u64
}

fn run(name: &str, hosts: u32, pieces: u32, seed: u64) -> Outcome {
    let outcome = World::new(Scenario::named(name, hosts, pieces, seed)).run();
    let seconds = outcome.last_us as f64 / 1e6;
    println!(
        "scenario={name} hosts={hosts} pieces={pieces} seed={seed} ratio={:.3} median={:.3} source_copies={:.3} rack_copies={:.2} \
         planner_share={:.3} leases={} unfinished={} virtual_s={seconds:.1} trace={:016x}",
        outcome.ratio(),
        outcome.median_us as f64 / outcome.bound_us as f64,
        outcome.source_copies,
        outcome.rack_copies,
        outcome.planner.as_secs_f64() / seconds,
        outcome.n_leases,
        outcome.unfinished,
        outcome.trace,
    );
    assert_eq!(outcome.unfinished, 0, "{name}, seed {seed}: hosts lack pieces");
    outcome
}

/// Hosts and pieces that `make test` has the time for, and those of the design.
const QUICK: (u32, u32) = (400, 512);
const FULL: (u32, u32) = (10_000, 1024);

fn size() -> (u32, u32) {
    if is_full() { FULL } else { QUICK }
}

/// A bound with so few pieces has a larger part that is start-up: what is allowed above 1 grows with it.
fn allowed(ratio_full: f64) -> f64 {
    if is_full() { ratio_full } else { 1.0 + (ratio_full - 1.0) * 2.5 }
}

fn seeds(n: u64) -> std::ops::Range<u64> {
    let n = if is_full() { n } else { 2 };
    chosen_seed().map_or(1..n + 1, |seed| seed..seed + 1)
}

/// The last host is no later than `ratio` times the bound, and the source sent hardly more than one copy.
fn check(outcome: &Outcome, seed: u64, ratio: f64) {
    assert!(outcome.ratio() <= allowed(ratio), "seed {seed}: {:.3} times the bound", outcome.ratio());
    assert!(outcome.source_copies <= 1.1, "seed {seed}: the source sent {:.3} copies", outcome.source_copies);
}

#[test]
fn the_last_host_is_hardly_later_than_the_bound() {
    let (hosts, pieces) = size();
    for seed in seeds(5) {
        let outcome = run("calm", hosts, pieces, seed);
        check(&outcome, seed, 1.05);
        if is_full() {
            let share = outcome.planner.as_secs_f64() * 1e6 / outcome.last_us as f64;
            assert!(share <= 1.0, "seed {seed}: planning takes {share:.2} of the time");
        }
    }
}

#[test]
fn few_copies_enter_a_rack() {
    let (hosts, pieces) = size();
    for seed in seeds(5) {
        let outcome = run("racks", hosts, pieces, seed);
        check(&outcome, seed, 1.12);
        assert!(outcome.rack_copies <= 4.0, "seed {seed}: {:.2} copies entered a rack", outcome.rack_copies);
    }
}

#[test]
fn slow_hosts_are_bound_by_their_own_links() {
    let (hosts, pieces) = size();
    for seed in seeds(1) {
        let outcome = run("slow-hosts", hosts, pieces, seed);
        assert!(outcome.ratio() <= 1.15, "seed {seed}: {:.3} times their bound", outcome.ratio());
    }
}

/// A third of the hosts send wrong bytes, nothing, lies or accusations. Twice the time of an honest swarm is allowed.
#[test]
fn hostile_hosts_keep_nobody_from_finishing() {
    let (hosts, pieces) = size();
    for seed in seeds(1) {
        let outcome = run("hostile", hosts, pieces, seed);
        let honest = run("honest", hosts, pieces, seed);
        let ratio = outcome.ratio() / honest.ratio();
        assert!(
            ratio <= if is_full() { 2.0 } else { 3.0 },
            "seed {seed}: {ratio:.2} times as long as without them"
        );
    }
}

/// The controller cannot be heard for ten seconds in the middle; what it serves can be fetched.
#[test]
fn an_absent_controller_costs_little() {
    let (hosts, pieces) = size();
    for seed in seeds(1) {
        let outcome = run("controller-away", hosts, pieces, seed);
        assert!(outcome.ratio() <= allowed(1.25), "seed {seed}: {:.3} times the bound", outcome.ratio());
    }
}

/// Crashes, returns, partitions, slow and hostile hosts, racks, an absent controller, all drawn from the seed.
#[test]
fn every_host_that_lives_ends_with_every_byte() {
    let n = if is_full() { 1000 } else { 60 };
    let seeds = chosen_seed().map_or(0..n, |seed| seed..seed + 1);
    for seed in seeds {
        run("faults", 200, 128, seed);
    }
}

#[test]
fn the_same_seed_gives_the_same_swarm() {
    let one = run("faults", 60, 64, 5);
    let two = run("faults", 60, 64, 5);
    assert_eq!((one.trace, one.last_us, one.n_leases), (two.trace, two.last_us, two.n_leases));
    assert_ne!(one.trace, run("faults", 60, 64, 6).trace);
}
