//! `swarm`: one image to many hosts behind slow links, beside curl and BitTorrent.
//!
//! **What.** Builds a bed of network namespaces with shaped links ([`bed`]), starts a controller and agents in it ([`site`])
//! and runs one scenario: `plain`, `crash` ([`spread`]), `update` ([`update`]) or `guests` ([`guests`]).
//! **Why namespaces.** Whether hosts help each other shows only where links are narrower than the machine; every contender
//! gets the same links, and the kernel counts what passes them.
//! **Invariants.** Nothing is made in the network namespace of the caller. All that is made bears the number of this
//! process; it is removed at the end, after an error or a signal too, and what a killed run left is removed by the next.

mod bed;
mod figures;
mod guests;
mod links;
mod peers;
mod prewarm;
mod race;
mod room;
mod settings;
mod site;
mod spread;
mod tracker;
mod update;

use anyhow::{Context, Result, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

use self::bed::{Bed, Node};
use self::room::Room;
use self::settings::Settings;

/// What every scenario needs. Fields are dropped in this order: programs in the bed use the room.
struct Ground {
    bed: Bed,
    room: Room,
    settings: Settings,
}

/// What there is to say after the word `swarm`.
const HELP: &str = "\
hearth-bench swarm [plain|crash|update|guests]     (root; `make swarm-bench SWARM=...` builds and installs all it needs)

  plain     a random image to empty hosts: hearth, curl from nginx, aria2c over BitTorrent
  crash     the same; at half of the bytes some hosts are killed and some links cut, all come back 5 s later
  update    v1 of the real images (IMAGES), then each v2 to hosts that have v1 and to hosts that do not
  guests    iperf3 between two hosts, alone and during a prewarm: links with two DSCP classes, without, adaptive agents

From the environment, or as make variables:
  HOSTS=32  agents                     RATE=100  Mbit/s of every link, each way
  MIB=256   size of the random image   ROUNDS=3  rounds; every contender runs once in each
  MTU=1500  bytes of a packet; 9000 (jumbo frames) takes less CPU
  ONLY=     contenders, for example hearth,curl (plain, crash)
  CAP_UP= CAP_DOWN=   Mbit/s that an agent may send and take in `guests`; a fifth of RATE, and two fifths
  IMAGES=images   folder of the real images (update)
  PROGRAMS= folder of the programs; that of hearth-bench unless said
  HEARTH_BENCH_CONTROLLER_EXTRA=, HEARTH_BENCH_AGENT_EXTRA=   lines for controller.toml and for every agent.toml
  HEARTH_BENCH_ADAPTIVE=   lines for agent.toml in the third variant of `guests`, instead of caps";

/// Runs what the words behind `swarm` name.
pub(crate) fn run(mut words: impl Iterator<Item = String>) -> Result<()> {
    let scenario = words.next().unwrap_or_else(|| "plain".into());
    match scenario.as_str() {
        // In the namespace of the source, started by `peers`.
        "tracker" => return tracker::serve(&words.next().context("tracker ADDRESS:PORT")?),
        "help" | "--help" => {
            println!("{HELP}");
            return Ok(());
        }
        "plain" | "crash" | "update" | "guests" => {}
        other => bail!("unknown scenario {other}\n\n{HELP}"),
    }
    let settings = Settings::from_environment()?;
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root");
    room::remove_leftovers()?;
    bed::remove_leftovers()?;
    let room = Room::make(settings.fast_bytes(&scenario)?, settings.slow_bytes(&scenario)?)?;
    let bed = Bed::build(&settings)?;
    // The API is asked where the controller is: over a loopback that is neither shaped nor counted.
    bed.enter(Node::Source)?;
    let ground = Ground { bed, room, settings };
    let Settings { hosts, rate_mbit, mtu, .. } = ground.settings;
    println!("{scenario}: {hosts} hosts, {rate_mbit} Mbit/s each way, packets of {mtu} bytes");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            ended = perform(&scenario, &ground) => ended,
            _ = interrupt.recv() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    });
    if ended.is_err() {
        ground.room.show_logs();
    }
    ended
}

async fn perform(scenario: &str, ground: &Ground) -> Result<()> {
    match scenario {
        "update" => Box::pin(update::run(ground)).await,
        "guests" => Box::pin(guests::run(ground)).await,
        _ => Box::pin(spread::run(ground, scenario == "crash")).await,
    }
}
