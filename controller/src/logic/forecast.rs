//! What a prewarm job would do: the answer to a dry run.
//!
//! **What.** Counts locations that have the image, must fetch it or cannot take it, and gives a lower bound of the time.
//!
//! **Why a bound and no estimate.** Load of other work is not known; a bound that cannot be beaten tells an operator
//! whether a deadline is hopeless, and promises nothing else.
//!
//! **Invariants.** The bound is the slowest of: the slowest cold interface (or the cap), and the source's interface for
//! all cold locations together.

use hearth_protocol::words::LocationState;

/// A location as the forecast sees it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// How the operator uses it.
    pub state: LocationState,
    /// Whether its agent is connected.
    pub online: bool,
    /// Whether it has everything.
    pub warm: bool,
    /// Stored bytes that it lacks: one content, or those disks of a host image that it has not.
    pub missing_bytes: u64,
    /// Speed of its interface, Mbit/s; 0 if unknown.
    pub nic_mbps: u32,
    /// Bytes its cache may allocate; 0 if unknown.
    pub budget_bytes: u64,
    /// Not empty: its cache is read-only for this reason.
    pub degraded: String,
}

/// The forecast.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Forecast {
    /// Locations that have it.
    pub warm: u32,
    /// Locations that must fetch it.
    pub cold: u32,
    /// Stored bytes that move at most.
    pub move_bytes_max: u64,
    /// Lower bound of the time, seconds.
    pub time_bound_s: f64,
    /// Indexes of locations that cannot take it, with the reason.
    pub unfit: Vec<(usize, String)>,
}

/// Interface speed that is assumed where none is known, Mbit/s (design: 1 Gbit/s).
const NIC_MBPS_UNKNOWN: u32 = 1000;

/// Bytes per second of an interface.
fn bytes_per_s(mbps: u32) -> f64 {
    f64::from(if mbps == 0 { NIC_MBPS_UNKNOWN } else { mbps }) * 125_000.0
}

/// A size as a number with a fraction; above 2^53 bytes the last digits do not matter here.
#[expect(
    clippy::cast_precision_loss,
    reason = "sizes above 8 PiB lose their last digits, which no bound needs"
)]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

/// Forecasts a job over `candidates` for contents that take `data_bytes` on disk.
#[must_use]
pub fn forecast(
    candidates: &[Candidate],
    data_bytes: u64,
    source_mbps: u32,
    rate_bytes_per_s: Option<u64>,
) -> Forecast {
    let mut forecast = Forecast::default();
    let mut slowest_s = 0.0_f64;
    for (i, candidate) in candidates.iter().enumerate() {
        if candidate.warm {
            forecast.warm += 1;
        } else if let Some(reason) = unfit(candidate, data_bytes) {
            forecast.unfit.push((i, reason));
        } else {
            forecast.cold += 1;
            let capped = rate_bytes_per_s.map_or(f64::INFINITY, float);
            let fastest = bytes_per_s(candidate.nic_mbps).min(capped);
            slowest_s = slowest_s.max(float(candidate.missing_bytes) / fastest);
            forecast.move_bytes_max = forecast.move_bytes_max.saturating_add(candidate.missing_bytes);
        }
    }
    let by_source_s = float(forecast.move_bytes_max) / bytes_per_s(source_mbps);
    forecast.time_bound_s = by_source_s.max(slowest_s);
    forecast
}

fn unfit(candidate: &Candidate, data_bytes: u64) -> Option<String> {
    if candidate.state != LocationState::Active {
        return Some(format!("the location is {}", candidate.state));
    }
    if !candidate.degraded.is_empty() {
        return Some(format!("its cache is read-only: {}", candidate.degraded));
    }
    if !candidate.online {
        return Some("its agent is offline; it would begin when it is back".to_owned());
    }
    if candidate.budget_bytes > 0 && candidate.budget_bytes < data_bytes {
        return Some(format!(
            "its cache may hold {} bytes, the image has {data_bytes}",
            candidate.budget_bytes
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 125 MB are missing: one second at 1 Gbit/s.
    fn host(nic_mbps: u32) -> Candidate {
        Candidate {
            state: LocationState::Active,
            online: true,
            warm: false,
            missing_bytes: 125_000_000,
            nic_mbps,
            budget_bytes: 0,
            degraded: String::new(),
        }
    }

    #[test]
    fn the_slowest_part_bounds_the_time() {
        let few = forecast(&[host(1000), host(10_000)], 1, 10_000, None);
        assert_eq!((few.cold, few.move_bytes_max, few.time_bound_s), (2, 250_000_000, 1.0));
        let many = forecast(&vec![host(10_000); 100], 1, 10_000, None);
        assert_eq!(many.time_bound_s, 10.0, "the source sends a hundred copies");
        let capped = forecast(&[host(1000)], 1, 10_000, Some(12_500_000));
        assert_eq!(capped.time_bound_s, 10.0);
        let half = Candidate { missing_bytes: 62_500_000, ..host(1000) };
        let partly = forecast(&[half], 1, 10_000, None);
        assert_eq!((partly.cold, partly.move_bytes_max, partly.time_bound_s), (1, 62_500_000, 0.5));
    }

    #[test]
    fn who_cannot_take_it_is_named_with_the_reason() {
        let unfit = [
            Candidate { state: LocationState::Draining, ..host(0) },
            Candidate { degraded: "disk".into(), ..host(0) },
            Candidate { online: false, ..host(0) },
            Candidate { budget_bytes: 5, ..host(0) },
            Candidate { warm: true, budget_bytes: 5, ..host(0) },
        ];
        let found = forecast(&unfit, 10, 1000, None);
        assert_eq!((found.warm, found.cold, found.time_bound_s), (1, 0, 0.0));
        let places: Vec<usize> = found.unfit.iter().map(|(i, _)| *i).collect();
        assert_eq!(places, [0, 1, 2, 3]);
    }
}
