//! The time that no plan can beat.

/// A campaign in numbers. Rates in bytes per second.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Hosts that receive.
    pub n_hosts: u64,
    /// Bytes that each needs.
    pub bytes: u64,
    /// Bytes of one piece.
    pub piece_bytes: u64,
    /// What the source may send.
    pub source_bytes_per_s: u64,
    /// What the slowest host can take.
    pub download_bytes_per_s_min: u64,
    /// What all hosts together may send.
    pub upload_bytes_per_s_sum: u64,
}

/// The least time, and what sets it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// Seconds.
    pub seconds: f64,
    /// What would have to be faster.
    pub set_by: Limit,
}

/// What sets a bound.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Limit {
    /// The source must send everything once.
    Source,
    /// The slowest host must take everything.
    SlowestHost,
    /// All uplinks together must send everything to everybody.
    Uplinks,
    /// A piece must be had whole before it is sent on.
    Pieces,
}

/// The largest of four bounds: those of Kumar and Ross for a fluid, and that of Mundinger, Weber and Weiss for pieces, which
/// holds where no host sends faster than the larger of their mean and the source's rate. A swarm that passes parts of pieces on can come
/// below the last one.
#[must_use]
pub fn bound(shape: &Shape) -> Bound {
    let Shape { n_hosts, bytes, piece_bytes, .. } = *shape;
    let seconds = |bytes: f64, rate: u64| if rate == 0 { f64::INFINITY } else { bytes / rate as f64 };
    let all_bytes = n_hosts as f64 * bytes as f64;
    let uplinks = shape.source_bytes_per_s.saturating_add(shape.upload_bytes_per_s_sum);
    let rounds = bytes.div_ceil(piece_bytes.max(1)) + u64::from(n_hosts.max(1).ilog2());
    let host_rate = (shape.upload_bytes_per_s_sum / n_hosts.max(1)).max(shape.source_bytes_per_s);
    let limits = [
        (seconds(bytes as f64, shape.source_bytes_per_s), Limit::Source),
        (seconds(bytes as f64, shape.download_bytes_per_s_min), Limit::SlowestHost),
        (seconds(all_bytes, uplinks), Limit::Uplinks),
        (seconds(rounds as f64 * piece_bytes as f64, host_rate), Limit::Pieces),
    ];
    let largest = limits
        .into_iter()
        .fold((0.0, Limit::Source), |most, limit| if limit.0 > most.0 { limit } else { most });
    Bound { seconds: largest.0, set_by: largest.1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GBIT: u64 = 125_000_000;

    fn shape() -> Shape {
        Shape {
            n_hosts: 10_000,
            bytes: 4 << 30,
            piece_bytes: 4 << 20,
            source_bytes_per_s: GBIT,
            download_bytes_per_s_min: 2 * GBIT,
            upload_bytes_per_s_sum: 10_000 * GBIT,
        }
    }

    /// The table of cases that the design was made with: 34.8 s at 1 Gbit/s.
    #[test]
    fn ten_thousand_hosts_with_a_gigabit_take_34_8_s() {
        let bound = bound(&shape());
        assert!((bound.seconds - 34.8).abs() < 0.1, "{bound:?}");
        assert_eq!(bound.set_by, Limit::Pieces);
    }

    #[test]
    fn whatever_is_slowest_sets_the_bound() {
        let slow_source = Shape { source_bytes_per_s: GBIT / 10, ..shape() };
        let slow_host = Shape { download_bytes_per_s_min: GBIT / 10, ..shape() };
        let no_uplinks = Shape { upload_bytes_per_s_sum: 10_000, n_hosts: 10_000, ..shape() };
        assert_eq!(bound(&slow_source).set_by, Limit::Source);
        assert_eq!(bound(&slow_host).set_by, Limit::SlowestHost);
        assert!(bound(&no_uplinks).seconds > bound(&slow_source).seconds);
        assert_eq!(bound(&Shape { n_hosts: 0, ..shape() }).set_by, Limit::Source);
    }

    /// Four hosts that send a fifth of a gigabit, beside a source that sends a whole one.
    #[test]
    fn a_fast_source_shortens_the_time() {
        let few = Shape { n_hosts: 4, upload_bytes_per_s_sum: 4 * GBIT / 5, ..shape() };
        let bound = bound(&few);
        assert_eq!(bound.set_by, Limit::Uplinks);
        assert!(
            (bound.seconds - 4.0 * f64::from(1 << 30) * 4.0 / (1.8 * GBIT as f64)).abs() < 0.1,
            "{bound:?}"
        );
    }
}
