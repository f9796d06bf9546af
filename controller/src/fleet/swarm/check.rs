//! What of an agent's message about a campaign can be used.
//!
//! **What.** Sizes, numbers of pieces and numbers of hosts, before the planner sees them.
//! **Why so strict.** The planner looks things up by these numbers; and what one agent says decides what others fetch.
//! **Invariants.** Whatever the bytes say, what comes out of here names pieces and hosts that exist.

use hearth_protocol::message::swarm::{CampaignStateV1, PIECES_MAX, PieceReportV1, REPORT_PIECES_MAX};

/// Slowest link that is believed, bytes per second: who says less is planned for as if it were this fast.
const RATE_MIN: u64 = 250_000;
/// Fastest link that is believed, bytes per second (400 Gbit/s).
const RATE_MAX: u64 = 50_000_000_000;

/// A rate as the planner can use it: no more than the host's network interface has, if it said what that is.
pub(super) fn rate(bytes_per_s: u64, nic_mbps: u32) -> u64 {
    let nic = if nic_mbps == 0 { RATE_MAX } else { u64::from(nic_mbps) * 125_000 };
    bytes_per_s.min(nic).clamp(RATE_MIN, RATE_MAX)
}

/// What is wrong with a state of a content with `n_pieces` pieces.
pub(super) fn state(state: &CampaignStateV1, n_pieces: u32) -> Result<(), &'static str> {
    if state.n_pieces > PIECES_MAX || state.n_pieces != n_pieces {
        return Err("it names another number of pieces than the content has");
    }
    if state.done.len() != n_pieces.div_ceil(8) as usize {
        return Err("it has not one bit per piece");
    }
    Ok(())
}

/// What is wrong with a report as a whole.
pub(super) const fn report(report: &PieceReportV1) -> Result<(), &'static str> {
    if report.finished.len() > REPORT_PIECES_MAX || report.failed.len() > REPORT_PIECES_MAX {
        return Err("it names too many pieces");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hearth_protocol::message::swarm::{Campaign, FinishedPiece};

    use super::*;

    #[test]
    fn rates_are_believed_within_bounds() {
        assert_eq!(rate(0, 1000), RATE_MIN);
        assert_eq!(rate(u64::MAX, 1000), 125_000_000);
        assert_eq!(rate(u64::MAX, 0), RATE_MAX);
        assert_eq!(rate(u64::MAX, u32::MAX), RATE_MAX);
    }

    #[test]
    fn a_state_has_one_bit_per_piece_of_the_content() {
        let campaign = Campaign { epoch: 1, number: 1 };
        let of = |n_pieces: u32, n_bytes: usize| CampaignStateV1 {
            campaign,
            n_pieces,
            done: vec![0xff; n_bytes],
            needed_bytes: u64::MAX,
            upload_bytes_per_s: 0,
            download_bytes_per_s: 0,
        };
        assert_eq!(state(&of(9, 2), 9), Ok(()));
        for wrong in [of(9, 1), of(9, 3), of(10, 2), of(0, 0), of(u32::MAX, 2)] {
            assert!(state(&wrong, 9).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_report_is_bounded() {
        let campaign = Campaign { epoch: 1, number: 1 };
        let of = |n: usize| PieceReportV1 {
            campaign,
            finished: vec![FinishedPiece { piece: 0, from: None }; n],
            failed: Vec::new(),
            from_controller_bytes: 0,
            from_agents_bytes: 0,
            sent_bytes: 0,
        };
        assert_eq!(report(&of(REPORT_PIECES_MAX)), Ok(()));
        assert!(report(&of(REPORT_PIECES_MAX + 1)).is_err());
    }
}
