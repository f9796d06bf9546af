//! One distribution, watched from its begin until every host has the image.
//!
//! **What.** [`watch`] starts a [`Contender`], looks when each host is done, reads counters and CPU, and strikes with
//! [`Faults`] when half of the bytes have arrived.
//! **Why the counters say when half is reached.** They mean the same for every contender, whatever it says of itself.
//! **Invariants.** All contenders are watched by this one loop. A host that is never done is told, not waited for without end.

use std::time::Duration;

use anyhow::Result;
use hearth_controller::clock::unix_us;

use super::bed::{Bed, Node};
use super::links::Traffic;

/// Names of the contenders.
pub(crate) const NAMES: [&str; 3] = ["hearth", "curl", "aria2c"];
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Above this share of busy CPU a run measured the machine, and says nothing about links.
const BUSY_MAX: f64 = 0.85;
/// From the fault to the return.
const FAULT_US: i64 = 5_000_000;

/// A way to bring an image to hosts.
pub(crate) trait Contender {
    /// Lets all hosts begin.
    async fn begin(&mut self) -> Result<()>;
    /// When each host had all of it, in microseconds since the epoch; index 0 is the first host.
    async fn done(&mut self) -> Result<Vec<Option<i64>>>;
    /// `kill -9` of what fetches at a host.
    fn kill(&mut self, host: usize) -> Result<()>;
    /// Starts it again, on what it left.
    fn restart(&mut self, host: usize) -> Result<()>;
    /// Fails unless the hosts hold the right bytes.
    async fn check(&mut self) -> Result<()>;
}

/// What happens at half of the bytes, and is undone 5 s later.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Hosts whose program is killed.
    pub(crate) kill: Vec<usize>,
    /// Hosts whose link is cut.
    pub(crate) cut: Vec<usize>,
}

impl Faults {
    /// As many as the brave may lose: three killed and two cut of 32, fewer of a few.
    pub(crate) fn among(hosts: usize) -> Self {
        // The first host has fetched an image before and is spared.
        let kill = 3.min((hosts - 1) / 2);
        let cut = 2.min((hosts - 1 - kill) / 2);
        Self { kill: (2..2 + kill).collect(), cut: (2 + kill..2 + kill + cut).collect() }
    }

    /// Whether a host is spared.
    pub(crate) fn spare(&self, host: usize) -> bool {
        !self.kill.contains(&host) && !self.cut.contains(&host)
    }
}

/// What was seen.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Seconds until each host was done; index 0 is the first host.
    pub(crate) done_s: Vec<Option<f64>>,
    /// Bytes over all links.
    pub(crate) traffic: Traffic,
    /// Bytes until the faults, and until they were undone.
    pub(crate) at_faults: Option<(Traffic, Traffic)>,
    /// Share of the whole machine's CPU that was busy, 0 to 1.
    pub(crate) busy: f64,
}

impl Outcome {
    /// Whether the machine had too little idle CPU for the run to count.
    pub(crate) fn is_void(&self) -> bool {
        self.busy > BUSY_MAX
    }

    /// Seconds of those who are done among `hosts`, in order.
    pub(crate) fn sorted(&self, hosts: impl Fn(usize) -> bool) -> Vec<f64> {
        let chosen = self.done_s.iter().enumerate().filter(|(index, _)| hosts(index + 1));
        let mut seconds: Vec<f64> = chosen.filter_map(|(_, seconds)| *seconds).collect();
        seconds.sort_by(f64::total_cmp);
        seconds
    }

    /// Hosts that were not done in time.
    pub(crate) fn missing(&self) -> Vec<usize> {
        (1..).zip(&self.done_s).filter(|(_, done)| done.is_none()).map(|(host, _)| host).collect()
    }
}

/// Runs one contender; the hosts are given up after `limit`.
pub(crate) async fn watch(
    bed: &Bed,
    contender: &mut impl Contender,
    image_bytes: u64,
    faults: Option<&Faults>,
    limit: Duration,
) -> Result<Outcome> {
    let (before, cpu, began_us) = (bed.traffic()?, Cpu::read()?, unix_us());
    contender.begin().await?;
    let mut struck: Option<(i64, Traffic)> = None;
    let mut mended = None;
    let done_us = loop {
        let done = contender.done().await?;
        let over = unix_us() - began_us > i64::try_from(limit.as_micros())?;
        let faults_over = faults.is_none() || mended.is_some();
        if over || (faults_over && done.iter().all(Option::is_some)) {
            break done;
        }
        if let (Some(faults), None) = (faults, &mended) {
            match &struck {
                None => {
                    let half = image_bytes * u64::try_from(done.len())? / 2;
                    let passed = bed.traffic()?.since(&before);
                    if passed.hosts_received() >= half {
                        strike(bed, contender, faults)?;
                        struck = Some((unix_us(), passed));
                    }
                }
                Some((since_us, _)) if unix_us() - since_us >= FAULT_US => {
                    let passed = bed.traffic()?.since(&before);
                    mend(bed, contender, faults)?;
                    mended = Some(passed);
                }
                Some(_) => {}
            }
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    };
    let busy = Cpu::read()?.busy_since(&cpu);
    if let (Some(faults), Some(_), None) = (faults, &struck, &mended) {
        mend(bed, contender, faults)?;
    }
    Ok(Outcome {
        done_s: done_us.iter().map(|done| done.map(|us| seconds(us - began_us))).collect(),
        traffic: bed.traffic()?.since(&before),
        at_faults: struck.map(|(_, traffic)| traffic).zip(mended),
        busy,
    })
}

fn strike(bed: &Bed, contender: &mut impl Contender, faults: &Faults) -> Result<()> {
    faults.kill.iter().try_for_each(|host| contender.kill(*host))?;
    faults.cut.iter().try_for_each(|host| bed.cut(Node::Host(*host)))
}

fn mend(bed: &Bed, contender: &mut impl Contender, faults: &Faults) -> Result<()> {
    faults.cut.iter().try_for_each(|host| bed.heal(Node::Host(*host)))?;
    faults.kill.iter().try_for_each(|host| contender.restart(*host))
}

fn seconds(us: i64) -> f64 {
    us as f64 / 1e6
}

/// Ticks of all processors.
#[derive(Clone, Copy, Debug)]
struct Cpu {
    idle: u64,
    all: u64,
}

impl Cpu {
    fn read() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().unwrap_or_default();
        // user nice system idle iowait irq softirq steal; what guests used is in user.
        let ticks: Vec<u64> =
            line.split_whitespace().skip(1).take(8).map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { idle: ticks.iter().skip(3).take(2).sum(), all: ticks.iter().sum() })
    }

    fn busy_since(&self, then: &Self) -> f64 {
        let (idle, all) = (self.idle - then.idle, self.all - then.all);
        1.0 - idle as f64 / all.max(1) as f64
    }
}
