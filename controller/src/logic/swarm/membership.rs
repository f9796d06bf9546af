//! Who takes part in the campaign of a content, and whether there is one.
//!
//! **What.** A campaign begins when two locations need the content. While it runs, whoever needs it is a receiver, and some of
//! those that have it are holders.
//! **Why not for one.** One receiver is served by the controller alone as fast as by anybody; a campaign would only add a
//! way on which news travels.
//! **Why not all holders.** A thousand hosts that had the image before would each report twice a second to serve two; a few
//! times the number of receivers can feed all of them.
//! **Invariants.** `a_campaign_needs_two_to_begin_and_none_to_go_on`, `holders_are_bounded_and_spread_over_racks`,
//! `who_is_in_it_stays_while_it_fits`.

use std::collections::{BTreeMap, BTreeSet};

use hearth_protocol::id::LocationId;

/// Locations that must need a content before a campaign begins.
const RECEIVERS_MIN: usize = 2;
/// Holders in any case.
const HOLDERS_BASE: usize = 64;
/// Further holders per receiver.
const HOLDERS_PER_RECEIVER: usize = 4;

/// How a location stands to the content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stand {
    /// It needs it and may begin now.
    Needs,
    /// It has all of it.
    Has,
}

/// A location that could take part; each at most once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Candidate {
    /// Where.
    pub location: LocationId,
    /// Number of its rack.
    pub rack: u32,
    /// How it stands.
    pub stand: Stand,
}

/// Who takes part.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Membership {
    /// Who receives, sorted.
    pub receivers: Vec<LocationId>,
    /// Who only serves, sorted.
    pub holders: Vec<LocationId>,
}

/// Who takes part; `None`: there is no campaign. `members`: who is in the one that runs, `None` if none does. The order of
/// the candidates does not matter.
#[must_use]
pub fn membership(candidates: &[Candidate], members: Option<&BTreeSet<LocationId>>) -> Option<Membership> {
    let of = |stand: Stand| candidates.iter().filter(move |candidate| candidate.stand == stand);
    let mut receivers: Vec<LocationId> = of(Stand::Needs).map(|candidate| candidate.location).collect();
    if candidates.is_empty() || (members.is_none() && receivers.len() < RECEIVERS_MIN) {
        return None;
    }
    let is_member = |candidate: &&Candidate| members.is_some_and(|all| all.contains(&candidate.location));
    let (stay, new): (Vec<&Candidate>, Vec<&Candidate>) = of(Stand::Has).partition(is_member);
    let mut holders: Vec<LocationId> = stay.iter().map(|candidate| candidate.location).collect();
    if !receivers.is_empty() {
        let most = HOLDERS_BASE + HOLDERS_PER_RECEIVER * receivers.len();
        let room = most.saturating_sub(holders.len());
        holders.extend(spread(&stay, new).into_iter().take(room));
    }
    receivers.sort_unstable();
    holders.sort_unstable();
    Some(Membership { receivers, holders })
}

/// The new ones in such an order that the racks with the fewest holders come first.
fn spread(stay: &[&Candidate], mut new: Vec<&Candidate>) -> Vec<LocationId> {
    let mut at: BTreeMap<u32, usize> = BTreeMap::new();
    stay.iter().for_each(|candidate| *at.entry(candidate.rack).or_default() += 1);
    new.sort_unstable_by_key(|candidate| candidate.location);
    let mut turns: Vec<(usize, LocationId)> = Vec::with_capacity(new.len());
    for candidate in new {
        let here = at.entry(candidate.rack).or_default();
        turns.push((*here, candidate.location));
        *here += 1;
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, location)| location).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(n: u16) -> LocationId {
        let mut bytes = [0; 16];
        bytes[14..].copy_from_slice(&n.to_be_bytes());
        LocationId::from_bytes(bytes)
    }

    fn candidate(n: u16, rack: u32, stand: Stand) -> Candidate {
        Candidate { location: location(n), rack, stand }
    }

    #[test]
    fn a_campaign_needs_two_to_begin_and_none_to_go_on() {
        let one = [candidate(1, 0, Stand::Needs), candidate(2, 0, Stand::Has)];
        assert_eq!(membership(&one, None), None);
        let two = [candidate(1, 0, Stand::Needs), candidate(2, 0, Stand::Needs)];
        let begun = membership(&two, None).unwrap();
        assert_eq!(begun.receivers, [location(1), location(2)]);
        let members: BTreeSet<LocationId> = begun.receivers.into_iter().collect();
        let done = two.map(|candidate| Candidate { stand: Stand::Has, ..candidate });
        let goes_on = membership(&done, Some(&members)).unwrap();
        assert_eq!((goes_on.receivers.len(), goes_on.holders.len()), (0, 2));
        assert_eq!(membership(&[], Some(&members)), None, "nobody has it or wants it");
    }

    #[test]
    fn holders_are_bounded_and_spread_over_racks() {
        // 500 in one rack, 10 in another: all of the small one are taken.
        let mut all: Vec<Candidate> = (0..500).map(|n| candidate(n, 0, Stand::Has)).collect();
        all.extend((500..510).map(|n| candidate(n, 1, Stand::Has)));
        all.extend((510..512).map(|n| candidate(n, 2, Stand::Needs)));
        let chosen = membership(&all, None).unwrap();
        assert_eq!(chosen.holders.len(), 64 + 4 * 2);
        assert!((500..510).all(|n| chosen.holders.contains(&location(n))));
        all.reverse();
        assert_eq!(membership(&all, None).unwrap(), chosen, "the order does not matter");
    }

    #[test]
    fn who_is_in_it_stays_while_it_fits() {
        let members: BTreeSet<LocationId> = (100..300).map(location).collect();
        let all: Vec<Candidate> = (0..300).map(|n| candidate(n, u32::from(n % 3), Stand::Has)).collect();
        let chosen = membership(&all, Some(&members)).unwrap();
        assert_eq!(
            chosen.holders.len(),
            200,
            "those that received stay, and nobody new comes to serve nobody"
        );
        let left = &all[..200];
        assert_eq!(membership(left, Some(&members)).unwrap().holders.len(), 100, "who left is out");
    }
}
