//! `hearth-load`: thousands of idle agents on one machine.
//!
//! **What.** Each agent has a key, an enrolled certificate and a real QUIC session: Hello, Welcome, HelloAck, an empty
//! inventory, pulses. It holds no cache. Sessions that end are opened again with full jitter, as agents do.
//! **Why not real agents.** 2,000 processes would measure the machine; what is in question is the controller.
//! **Invariants.** A session counts only after its Welcome was acknowledged. Each line of output is one JSON object.

#![expect(clippy::print_stdout, reason = "the figures are this program's output")]
#![expect(clippy::disallowed_methods, reason = "a load generator reads the clock and spawns tasks")]

mod fleet;
mod session;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use fleet::Tally;

struct Args {
    controller: SocketAddr,
    ca: PathBuf,
    token: String,
    agents: usize,
    seconds: u64,
}

fn args() -> Result<Args> {
    let mut given = std::env::args().skip(1);
    let mut next = |name: &str| {
        given.next().with_context(|| {
            format!("usage: hearth-load CONTROLLER CA.pem TOKEN AGENTS SECONDS: {name} is missing")
        })
    };
    Ok(Args {
        controller: next("CONTROLLER")?.parse().context("CONTROLLER is ip:port")?,
        ca: next("CA.pem")?.into(),
        token: next("TOKEN")?,
        agents: next("AGENTS")?.parse().context("AGENTS is a number")?,
        seconds: next("SECONDS")?.parse().context("SECONDS is a number")?,
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let args = args()?;
    let tally = Arc::new(Tally::default());
    let agents = fleet::enrol(&args.ca, args.controller, &args.token, args.agents).await?;
    println!("{{\"event\":\"enrolled\",\"agents\":{},\"unix_ms\":{}}}", agents.len(), unix_ms());
    for agent in agents {
        tokio::spawn(session::keep(agent, args.controller, tally.clone()));
    }
    let mut was_up = 0;
    for tick in 0..args.seconds * 10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let up = tally.up.load(Ordering::Relaxed);
        let crossed = (up == args.agents) != (was_up == args.agents);
        if crossed || tick % 100 == 99 {
            report(if up == args.agents { "all_up" } else { "some_up" }, up, &tally)?;
        }
        was_up = up;
    }
    report("end", was_up, &tally)
}

fn report(event: &str, up: usize, tally: &Tally) -> Result<()> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let cpu_ms = |time: nix::sys::time::TimeVal| time.tv_sec() * 1000 + time.tv_usec() / 1000;
    println!(
        "{{\"event\":\"{event}\",\"unix_ms\":{},\"up\":{up},\"welcomes\":{},\"last_welcome_unix_ms\":{},\"lost\":{},\"own_cpu_ms\":{}}}",
        unix_ms(),
        tally.welcomes.load(Ordering::Relaxed),
        tally.last_welcome_unix_ms.load(Ordering::Relaxed),
        tally.lost.load(Ordering::Relaxed),
        cpu_ms(usage.user_time()) + cpu_ms(usage.system_time()),
    );
    Ok(())
}

/// Milliseconds since the epoch.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
