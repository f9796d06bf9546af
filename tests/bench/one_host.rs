//! One image to one host, from "on the server, caches warm" to "raw file on disk, synced, hashed from disk".
//!
//! **What.** Two races: the Debian image (Hearth; curl of zlib, zstd and plain qcow2; rsync of the raw file) and 1 GiB of
//! random bytes (Hearth; curl and b3sum).
//! **Why a closing check for peers only.** Hearth shows a copy after it synced the file, dropped its pages and hashed every
//! chunk from disk: that is its own closing check, and it is inside its time. The peers get ours on two threads.
//! **Invariants.** A round is void, and the bench fails, if a contender's file differs from the source.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::Ground;
use crate::measure::{
    children_cpu_seconds, cpu_seconds, median, peak_mib, same, spread, sync_and_rehash, timed,
};
use crate::peers::{Peers, Route};
use crate::site::{Imported, Site};

/// Bytes of the random image.
const RANDOM_BYTES: u64 = 1 << 30;

enum Contender {
    Hearth(Imported),
    Peer(Route, &'static str),
}

#[derive(Default)]
struct Figures {
    whole: Vec<f64>,
    without_reread: Vec<f64>,
    client_cpu: Vec<f64>,
    server_cpu: Vec<f64>,
    times: Vec<TimeLine>,
}

/// Figures of the agent's time line, by the names of its log.
type TimeLine = BTreeMap<String, f64>;

/// What is read from the time line. `decode` and `write` are threads' time inside `wire` and `drain`; `behind` is the share
/// that was hashed from disk while the rest still came.
const TIMES: [&str; 11] = [
    "manifest_ms",
    "prepare_ms",
    "wire_ms",
    "drain_ms",
    "decode_ms",
    "write_ms",
    "repeat_ms",
    "sync_ms",
    "behind_percent",
    "verify_ms",
    "publish_ms",
];

pub(crate) fn run(ground: &Ground) -> Result<()> {
    let random = ground.work.path().join("random.raw");
    make_random(&random)?;
    let served = ground.work.path().join("served");
    std::fs::create_dir(&served)?;
    for file in ["v1.c.qcow2", "v1.z.qcow2", "v1.qcow2", "v1.raw"] {
        link(&ground.images.join(file), &served.join(file))?;
    }
    link(&random, &served.join("random.raw"))?;
    let peers = Peers::start(&ground.work.path().join("peers"), &served)?;
    let site = Site::start(&ground.work.path().join("site"), &ground.programs, 1)?;
    let debian = site.import(&ground.images.join("v1.qcow2"), "debian")?;
    let noise = site.import(&random, "random")?;
    println!(
        "Debian image: {} stored bytes; {} rounds; medians (min-max), seconds",
        debian.stored_bytes, ground.rounds
    );
    let contenders = [
        ("hearth", Contender::Hearth(debian)),
        ("curl + convert, zlib qcow2", Contender::Peer(Route::CurlQcow2, "v1.c.qcow2")),
        ("curl + convert, zstd qcow2", Contender::Peer(Route::CurlQcow2, "v1.z.qcow2")),
        ("curl + convert, plain qcow2", Contender::Peer(Route::CurlQcow2, "v1.qcow2")),
        ("rsync, raw", Contender::Peer(Route::Rsync, "v1.raw")),
    ];
    race(ground, &site, &peers, &contenders, &ground.images.join("v1.raw"))?;
    println!("random bytes, 1 GiB");
    let contenders = [
        ("hearth", Contender::Hearth(noise)),
        ("curl + b3sum, raw", Contender::Peer(Route::CurlRaw, "random.raw")),
    ];
    race(ground, &site, &peers, &contenders, &random)?;
    println!(
        "peak memory: controller {} MiB, agent {} MiB",
        peak_mib(site.controller()?)?,
        peak_mib(site.agent()?)?
    );
    Ok(())
}

fn race(
    ground: &Ground,
    site: &Site,
    peers: &Peers,
    contenders: &[(&str, Contender)],
    source: &Path,
) -> Result<()> {
    let out = ground.work.path().join("out.raw");
    let mut figures: Vec<Figures> = contenders.iter().map(|_| Figures::default()).collect();
    // One round more than is counted: it warms the page cache of every server.
    for round in 0..=ground.rounds {
        for turn in 0..contenders.len() {
            let which = (round + turn) % contenders.len();
            nix::unistd::sync();
            let one = match &contenders[which].1 {
                Contender::Hearth(image) => hearth_once(site, image, source, round == 0)?,
                Contender::Peer(route, file) => peer_once(peers, *route, file, &out, source, round == 0)?,
            };
            if round > 0 {
                let to = &mut figures[which];
                to.whole.push(one.whole);
                to.without_reread.push(one.without_reread);
                to.client_cpu.push(one.client_cpu);
                to.server_cpu.push(one.server_cpu);
                to.times.extend(one.times);
            }
        }
    }
    let hearth = median(&figures[0].whole);
    println!(
        "{:<30} {:<26} {:>7} {:<26} {:>8} {:>8}",
        "", "whole", "ratio", "without re-read", "cpu far", "cpu near"
    );
    for ((name, _), figures) in contenders.iter().zip(&figures) {
        println!(
            "{name:<30} {:<26} {:>6.2}x {:<26} {:>8.2} {:>8.2}",
            spread(&figures.whole),
            median(&figures.whole) / hearth,
            spread(&figures.without_reread),
            median(&figures.server_cpu),
            median(&figures.client_cpu),
        );
    }
    print_time_line(&figures[0].times);
    Ok(())
}

struct Once {
    whole: f64,
    without_reread: f64,
    client_cpu: f64,
    server_cpu: f64,
    times: Option<TimeLine>,
}

fn hearth_once(site: &Site, image: &Imported, source: &Path, compare: bool) -> Result<Once> {
    let (controller, agent) = (site.controller()?, site.agent()?);
    let before = (cpu_seconds(controller)?, cpu_seconds(agent)?);
    let (whole, ()) = timed(|| site.fetch(1, image))?;
    let after = (cpu_seconds(controller)?, cpu_seconds(agent)?);
    let path = site.copy_path(1, image);
    if compare {
        same(&path, source)?;
    }
    let times = time_line(site)?;
    site.forget(1, image)?;
    Ok(Once {
        whole,
        without_reread: whole - times["verify_ms"] / 1000.0,
        client_cpu: after.1 - before.1,
        server_cpu: after.0 - before.0,
        times: Some(times),
    })
}

/// The agent's time line of its last fetch: milliseconds by name.
fn time_line(site: &Site) -> Result<TimeLine> {
    let log = site.log("dev-1")?;
    let line = log
        .lines()
        .rev()
        .find(|line| line.contains("verify_ms="))
        .context("no time line in the agent's log")?;
    let mut times = TimeLine::new();
    for word in line.split_whitespace() {
        if let Some((name, value)) = word.split_once('=')
            && let (true, Ok(value)) = (TIMES.contains(&name), value.parse())
        {
            times.insert(name.to_owned(), value);
        }
    }
    ensure!(times.len() == TIMES.len(), "the time line lacks figures: {line}");
    Ok(times)
}

/// Prints the medians of all rounds' time lines.
fn print_time_line(lines: &[TimeLine]) {
    let medians = TIMES.iter().map(|name| {
        let values: Vec<f64> = lines.iter().filter_map(|line| line.get(*name).copied()).collect();
        format!("{name}={}", median(&values))
    });
    println!("    hearth's time line, medians: {}", medians.collect::<Vec<_>>().join(" "));
}

fn peer_once(
    peers: &Peers,
    route: Route,
    file: &str,
    out: &Path,
    source: &Path,
    compare: bool,
) -> Result<Once> {
    let before = (peers.server_cpu_seconds(route)?, children_cpu_seconds()?);
    let (bring, ()) = timed(|| peers.bring(route, file, out))?;
    let after = (peers.server_cpu_seconds(route)?, children_cpu_seconds()?);
    let (check, _) = timed(|| sync_and_rehash(out))?;
    if compare {
        same(out, source)?;
    }
    for done in [out.to_path_buf(), out.with_extension("download")] {
        if done.exists() {
            std::fs::remove_file(done)?;
        }
    }
    Ok(Once {
        whole: bring + check,
        without_reread: bring,
        client_cpu: after.1 - before.1,
        server_cpu: after.0 - before.0,
        times: None,
    })
}

fn make_random(path: &Path) -> Result<()> {
    let mut random = std::fs::File::open("/dev/urandom")?;
    let mut out = std::fs::File::create(path)?;
    std::io::copy(&mut std::io::Read::take(&mut random, RANDOM_BYTES), &mut out)?;
    out.sync_all()?;
    Ok(())
}

fn link(from: &Path, to: &PathBuf) -> Result<()> {
    let from = from.canonicalize().with_context(|| format!("{}: `make images` builds it", from.display()))?;
    // A hard link: rsync passes symbolic ones over.
    std::fs::hard_link(from, to)?;
    Ok(())
}
