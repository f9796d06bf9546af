//! The printed figures of a distribution.
//!
//! **What.** A line per contender and round ([`print_line`]), what faults cost ([`print_faults`]), medians at the end
//! ([`print_medians`]).
//! **Why in images.** Bytes over a link, divided by those of the image, say at once how many copies went over it; headers
//! and what was sent twice are in it.
//! **Invariants.** A run on a machine without idle CPU measured the machine: it is marked `void`, and is in no median.

use super::race::{Faults, Outcome};
use crate::measure::median;

/// One contender in one round.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) round: usize,
    pub(crate) name: &'static str,
    pub(crate) outcome: Outcome,
    /// Bytes of the image.
    pub(crate) image_bytes: u64,
    /// Seconds that one link needs for the image.
    pub(crate) bound_s: f64,
}

impl Line {
    /// So many bytes are so many images.
    pub(crate) fn images(&self, bytes: u64) -> f64 {
        bytes as f64 / self.image_bytes as f64
    }

    fn last_s(&self, hosts: impl Fn(usize) -> bool) -> f64 {
        let all = (1..=self.outcome.done_s.len()).filter(|host| hosts(*host)).count();
        let sorted = self.outcome.sorted(hosts);
        // Who is not done in time has no last.
        if sorted.len() == all { sorted.last().copied().unwrap_or(f64::NAN) } else { f64::INFINITY }
    }
}

/// Prints the names of the columns.
pub(crate) fn print_head() {
    println!(
        "{:>5} {:8} {:>8} {:>8} {:>8} {:>8} {:>7} {:>10} {:>11} {:>15} {:>5}",
        "round",
        "",
        "first s",
        "median s",
        "last s",
        "bound s",
        "ratio",
        "src copies",
        "into hosts",
        "per host",
        "CPU"
    );
}

/// Prints one contender of one round.
pub(crate) fn print_line(line: &Line) {
    let sorted = line.outcome.sorted(|_| true);
    let (first, last) = (sorted.first().copied().unwrap_or(f64::NAN), line.last_s(|_| true));
    let into: Vec<u64> = line.outcome.traffic.received.iter().skip(1).copied().collect();
    let (least, most) = (into.iter().min().copied().unwrap_or(0), into.iter().max().copied().unwrap_or(0));
    println!(
        "{:>5} {:8} {first:>8.2} {:>8.2} {last:>8.2} {:>8.2} {:>7.2} {:>10.2} {:>11.2} {:>15} {:>4.0}%{}",
        line.round,
        line.name,
        median(&sorted),
        line.bound_s,
        last / line.bound_s,
        line.images(line.outcome.traffic.sent.first().copied().unwrap_or(0)),
        line.images(line.outcome.traffic.hosts_received()),
        format!("{:.2} to {:.2}", line.images(least), line.images(most)),
        line.outcome.busy * 100.0,
        if line.outcome.is_void() { " void" } else { "" }
    );
    let missing = line.outcome.missing();
    if !missing.is_empty() {
        println!("{:>5} {:8} not done in time: hosts {missing:?}", "", "");
    }
}

/// Prints what faults did to those who were spared, and what the others had to fetch again.
pub(crate) fn print_faults(line: &Line, faults: &Faults) {
    let Some((at_strike, at_return)) = &line.outcome.at_faults else {
        println!("{:14} done before half of the bytes were seen: no fault came", "");
        return;
    };
    let rest = line.last_s(|host| faults.spare(host));
    println!("{:14} rest: last {rest:.2} s, {:.2} of the bound", "", rest / line.bound_s);
    let received = &line.outcome.traffic.received;
    let spared: Vec<f64> = (1..received.len())
        .filter(|host| faults.spare(*host))
        .map(|host| line.images(received[host]))
        .collect();
    let usual = median(&spared);
    let done = |host: usize| line.outcome.done_s[host - 1].unwrap_or(f64::INFINITY);
    for host in faults.kill.iter().copied() {
        let (before, down) = (line.images(at_strike.received[host]), line.images(at_return.received[host]));
        let all = line.images(received[host]);
        println!(
            "{:14} killed host {host}: done {:.2} s; images received: {before:.2} before, {:.2} after its restart, \
             {:.2} ({:.1} MiB) more than the median of the rest",
            "",
            done(host),
            all - down,
            all - usual,
            (all - usual) * line.image_bytes as f64 / f64::from(1 << 20),
        );
    }
    for host in faults.cut.iter().copied() {
        let all = line.images(received[host]);
        println!("{:14} cut host {host}: done {:.2} s; {all:.2} images received", "", done(host));
    }
}

/// Prints the median over the rounds, for each contender.
pub(crate) fn print_medians(lines: &[Line], faults: &Faults) {
    for name in super::race::NAMES {
        let of_name: Vec<&Line> = lines.iter().filter(|line| line.name == name).collect();
        let good: Vec<&Line> = of_name.iter().copied().filter(|line| !line.outcome.is_void()).collect();
        if good.is_empty() {
            if !of_name.is_empty() {
                println!("median {name:8} none: all {} runs are void", of_name.len());
            }
            continue;
        }
        let middle =
            |figure: &dyn Fn(&Line) -> f64| median(&good.iter().map(|line| figure(line)).collect::<Vec<_>>());
        let rest = |line: &Line| line.last_s(|host| faults.spare(host)) / line.bound_s;
        println!(
            "median {name:8} last {:.2} s, ratio {:.2}{}, source copies {:.2}, into hosts {:.2}; {} of {} runs count",
            middle(&|line| line.last_s(|_| true)),
            middle(&|line| line.last_s(|_| true) / line.bound_s),
            if faults.kill.is_empty() { String::new() } else { format!(" (rest {:.2})", middle(&rest)) },
            middle(&|line| line.images(line.outcome.traffic.sent[0])),
            middle(&|line| line.images(line.outcome.traffic.hosts_received())),
            good.len(),
            of_name.len()
        );
    }
}
