//! Versions of the protocol, and how two parties agree on one.
//!
//! **What.** The ALPN carries the major version; `Hello` carries the range of minor versions the agent speaks.
//! **Why a range.** Agents and controller are upgraded apart; each serves its current and its previous version.
//! **Invariants.** Hello and Refused messages keep their bytes for good, because they do the negotiating.

/// ALPN of agent sessions.
pub const ALPN: &[u8] = b"hearth/1";
/// ALPN between agents: both show certificates of the same authority.
pub const ALPN_PEER: &[u8] = b"hearth-peer/1";
/// ALPN of enrolment: only the server is authenticated.
pub const ALPN_ENROL: &[u8] = b"hearth-enrol/1";

/// Version 1: first release. Control session, plans, inventory, piece transfer.
pub const VERSION_MIN: u16 = 1;
/// Version 2: an agent may ask for an image that is not placed on it (`Want`, `Wanted`).
pub const VERSION_WANTS: u16 = 2;
/// Version 3: an agent gets the passphrases of encrypted images (`KeyAsk`, `KeyGiven`).
pub const VERSION_KEYS: u16 = 3;
/// Version 4: campaigns, in which agents pass pieces to each other.
pub const VERSION_SWARM: u16 = 4;
/// Newest version that this build speaks.
pub const VERSION_MAX: u16 = VERSION_SWARM;

/// The newest version that both ranges hold, or `None`.
#[must_use]
pub fn negotiate(ours: (u16, u16), theirs: (u16, u16)) -> Option<u16> {
    let (low, high) = (ours.0.max(theirs.0), ours.1.min(theirs.1));
    (low <= high).then_some(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_wins() {
        assert_eq!(negotiate((1, 3), (2, 5)), Some(3));
        assert_eq!(negotiate((2, 2), (1, 2)), Some(2));
        assert_eq!(negotiate((1, 1), (2, 3)), None);
        assert_eq!(negotiate((1, 1), (3, 0)), None);
    }
}
