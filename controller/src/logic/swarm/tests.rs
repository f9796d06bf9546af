//! The promises of the planner, over histories that are drawn at random.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::member::UnderWay;
use super::*;

const MIB: u64 = 1 << 20;
const PIECES: u32 = 70;

fn joining(rack: u32) -> Joining {
    Joining { rack, upload_bytes_per_s: 100 * MIB, download_bytes_per_s: 200 * MIB }
}

fn planner(hosts: u32, settings: Settings) -> Planner {
    let mut planner = Planner::new(settings, PIECES, MIB, 100 * MIB);
    (1..=hosts).for_each(|host| assert_eq!(planner.join(joining(host / 8), [], 0), HostNo(host)));
    planner
}

fn plan(planner: &mut Planner, now_us: u64) -> Vec<Lease> {
    let mut leases = Vec::new();
    planner.plan(now_us, &mut leases);
    leases
}

/// Lets everything that is leased come, in order, until nothing more is leased. Calls `see` with each lease.
fn deliver(planner: &mut Planner, from_us: u64, mut see: impl FnMut(&Planner, &Lease)) -> u64 {
    let mut now_us = from_us;
    for _ in 0..10_000 {
        let leases = plan(planner, now_us);
        if leases.is_empty() && now_us > from_us + 1_000_000 {
            return now_us;
        }
        for lease in &leases {
            see(planner, lease);
        }
        for lease in leases {
            if lease.from == SOURCE {
                planner.sent(lease.to, lease.piece, now_us);
            }
            planner.finished(lease.to, lease.piece, Some(lease.from), now_us);
        }
        now_us += 50_000;
    }
    panic!("the planner never ends");
}

#[test]
fn the_source_sends_each_piece_once_before_any_twice() {
    let mut planner = planner(30, Settings::default());
    let mut sent = BTreeMap::new();
    deliver(&mut planner, 0, |_, lease| {
        if lease.from == SOURCE {
            *sent.entry(lease.piece).or_insert(0) += 1;
            let is_first_round = sent.len() < PIECES as usize;
            assert!(!is_first_round || sent[&lease.piece] == 1, "piece {} went out twice", lease.piece);
        }
    });
    assert_eq!(sent.len(), PIECES as usize);
    assert_eq!(planner.source_sent(), u64::from(PIECES), "hosts pass on everything");
    (1..=30).for_each(|host| assert_eq!(planner.n_done(HostNo(host)), PIECES));
}

#[test]
fn a_source_that_is_fast_beside_few_hosts_goes_on_sending() {
    let sent = |hosts: u32| {
        let mut planner = Planner::new(Settings::default(), PIECES, MIB, 100 * MIB);
        let slow = Joining { rack: 0, upload_bytes_per_s: 20 * MIB, download_bytes_per_s: 100 * MIB };
        (1..=hosts).for_each(|host| assert_eq!(planner.join(slow, [], 0), HostNo(host)));
        deliver(&mut planner, 0, |_, _| {});
        (1..=hosts).for_each(|host| assert_eq!(planner.n_done(HostNo(host)), PIECES));
        planner.source_sent()
    };
    let few = sent(4) * 10;
    assert!(few > u64::from(PIECES) * 15, "hosts together send less than it does");
    assert!(few <= u64::from(PIECES) * 22, "a copy for their rack and 1.2 more");
    assert_eq!(sent(30), u64::from(PIECES), "they send six times as much");
}

#[test]
fn what_fails_on_its_way_to_a_host_that_is_out_is_sent_again() {
    let mut planner = planner(2, Settings::default());
    (0..3).for_each(|_| accuse(&mut planner, HostNo(2), HostNo(1), Failure::Silent, 0));
    planner.leave(HostNo(2), 0);
    let first = plan(&mut planner, 1);
    assert!(first.iter().all(|lease| (lease.to, lease.from) == (HostNo(1), SOURCE)), "{first:?}");
    planner.failed(HostNo(1), first[0].piece, SOURCE, Failure::Late, true, 2);
    for lease in &first[1..] {
        planner.sent(lease.to, lease.piece, 2);
        planner.finished(lease.to, lease.piece, Some(SOURCE), 2);
    }
    deliver(&mut planner, 3, |_, _| {});
    assert_eq!(planner.n_done(HostNo(1)), PIECES);
}

#[test]
fn what_is_lost_comes_from_the_source_again() {
    let mut planner = planner(1, Settings::default());
    deliver(&mut planner, 0, |_, _| {});
    planner.leave(HostNo(1), 5_000_000);
    let late = planner.join(joining(0), [], 5_000_000);
    deliver(&mut planner, 5_000_000, |_, lease| assert_eq!(lease.from, SOURCE));
    assert_eq!(planner.n_done(late), PIECES);
}

#[test]
fn late_joiners_are_served_by_hosts() {
    let mut planner = planner(20, Settings::default());
    let now_us = deliver(&mut planner, 0, |_, _| {});
    let late = planner.join(joining(0), [3, 4], now_us);
    deliver(&mut planner, now_us, |_, lease| assert_ne!(lease.from, SOURCE));
    assert_eq!(planner.n_done(late), PIECES);
}

#[test]
fn no_host_is_sent_a_piece_that_it_has_or_awaits() {
    let mut planner = planner(25, Settings::default());
    let mut given = BTreeSet::new();
    deliver(&mut planner, 0, |_, lease| assert!(given.insert((lease.to, lease.piece)), "{lease:?}"));
    assert_eq!(given.len(), 25 * PIECES as usize);
}

/// A host that was told to ask `from` for the first piece says how it failed.
fn accuse(planner: &mut Planner, by: HostNo, from: HostNo, how: Failure, now_us: u64) {
    let told = UnderWay {
        piece: 0,
        from,
        alternates: [None; 2],
        expires_us: u64::MAX,
        crosses: false,
        is_sent: true,
    };
    planner.members[by.index()].under_way.push(told);
    planner.failed(by, 0, from, how, false, now_us);
    planner.members[by.index()].under_way.pop();
}

#[test]
fn nothing_is_leased_from_who_is_out_or_gone() {
    let mut planner = planner(10, Settings::default());
    deliver(&mut planner, 0, |_, _| {});
    let now_us = 10_000_000;
    planner.leave(HostNo(3), now_us);
    for accuser in [5, 6, 9] {
        accuse(&mut planner, HostNo(accuser), HostNo(4), Failure::Wrong, now_us);
    }
    for _ in 0..3 {
        accuse(&mut planner, HostNo(7), HostNo(8), Failure::Silent, now_us);
    }
    accuse(&mut planner, HostNo(9), HostNo(10), Failure::Silent, now_us);
    // Who was not told to ask a host has nothing to say about it.
    (0..9).for_each(|_| planner.failed(HostNo(9), 0, HostNo(2), Failure::Silent, false, now_us));
    let late = planner.join(joining(0), [], now_us);
    let mut from = BTreeSet::new();
    deliver(&mut planner, now_us, |_, lease| {
        from.insert(lease.from);
        assert!(!lease.alternates.contains(&Some(HostNo(3))), "a host that left is an alternate");
    });
    assert!(
        !from.contains(&HostNo(3)) && !from.contains(&HostNo(4)) && !from.contains(&HostNo(8)),
        "{from:?}"
    );
    assert!(from.contains(&HostNo(10)), "one failure is none");
    assert!(from.contains(&HostNo(2)), "an accusation without a lease is none");
    // Nobody wants anything for a while; who was out is looked at in passing.
    deliver(&mut planner, now_us + 35_000_000, |_, _| {});
    planner.leave(late, now_us + 40_000_000);
    planner.join(joining(0), [], now_us + 40_000_000);
    let mut from = BTreeSet::new();
    deliver(&mut planner, now_us + 40_000_000, |_, lease| {
        from.insert(lease.from);
    });
    assert!(from.contains(&HostNo(8)) && !from.contains(&HostNo(4)), "after half a minute: {from:?}");
}

#[test]
fn one_accuser_does_not_put_a_host_out_for_good() {
    let mut planner = planner(10, Settings::default());
    deliver(&mut planner, 0, |_, _| {});
    let now_us = 10_000_000;
    (2..=10).map(HostNo).for_each(|host| accuse(&mut planner, HostNo(1), host, Failure::Wrong, now_us));
    planner.join(joining(0), [], now_us + 31_000_000);
    deliver(&mut planner, now_us + 31_000_000, |_, lease| assert_ne!(lease.from, SOURCE));
}

#[test]
fn a_rack_takes_no_more_at_once_than_its_budget() {
    let settings = Settings { rack_budget: 1, ..Settings::default() };
    let mut planner = planner(40, settings);
    let mut crossing = 0_usize;
    deliver(&mut planner, 0, |planner, lease| {
        let rack = planner.members[lease.to.index()].rack;
        // One host's slots, and what passes at a host's speed within the horizon.
        let ahead = u32::try_from(settings.horizon_us / 10_000).unwrap();
        assert!(planner.racks.entering(rack) <= settings.slots + ahead, "rack {rack}");
        crossing += usize::from(lease.from == SOURCE || planner.members[lease.from.index()].rack != rack);
    });
    (1..=40).for_each(|host| assert_eq!(planner.n_done(HostNo(host)), PIECES));
    let copies = crossing as f64 / f64::from(6 * PIECES);
    assert!(copies <= 4.0, "{copies:.2} copies entered each rack");
}

/// One thing that happens to a campaign.
#[derive(Clone, Copy, Debug)]
enum Step {
    Join { rack: u32, piece: u32 },
    Leave(usize),
    Finish(usize),
    Fail(usize, u8),
    Unasked(usize, u32),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0_u32..4, 0..PIECES).prop_map(|(rack, piece)| Step::Join { rack, piece }),
        1 => (0_usize..100).prop_map(Step::Leave),
        12 => (0_usize..1000).prop_map(Step::Finish),
        3 => (0_usize..1000, 0_u8..3).prop_map(|(at, how)| Step::Fail(at, how)),
        2 => (0_usize..100, 0..PIECES).prop_map(|(host, piece)| Step::Unasked(host, piece)),
        3 => (0_u64..5_000_000).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..120)
}

/// Counts what the planner counts, the slow way.
fn check_counts(planner: &Planner) {
    let n = planner.members.len();
    let hosts = || (1..n).map(HostNo::at);
    for piece in 0..PIECES {
        let has = |host: &HostNo| planner.done.has(*host, piece) || planner.coming.has(*host, piece);
        let is_here = |host: &HostNo| {
            let member = &planner.members[host.index()];
            !member.is_gone && !member.is_disregarded
        };
        let copies = hosts().filter(has).filter(is_here).count();
        assert_eq!(planner.copies[piece as usize] as usize, copies, "copies of {piece}");
        assert_eq!(planner.somewhere.has(SOURCE, piece), copies > 0, "piece {piece} is somewhere");
        let done = hosts().filter(|host| planner.done.has(*host, piece)).filter(is_here).count();
        let leases = planner.members.iter().flat_map(|member| &member.under_way);
        let sent = leases.filter(|lease| lease.from == SOURCE && lease.piece == piece).count();
        assert_eq!(planner.roots[piece as usize] as usize, done + sent, "roots of {piece}");
        assert!(copies == 0 || done + sent > 0, "copies of {piece} rest on nothing");
    }
    let mut ready = vec![0_u16; n];
    let mut promised = vec![0_u16; n];
    for (host, member) in planner.members.iter().enumerate() {
        let to = HostNo::at(host);
        for lease in member.under_way.iter().filter(|lease| !lease.is_sent) {
            let is_promise = planner.members[lease.from.index()].promised.contains(&(lease.piece, to));
            let counts = if is_promise { &mut promised } else { &mut ready };
            counts[lease.from.index()] += 1;
        }
        let coming: BTreeSet<u32> = planner.coming.iter(to).collect();
        assert_eq!(coming, member.under_way.iter().map(|lease| lease.piece).collect(), "coming to {to:?}");
        assert!(planner.done.iter(to).all(|piece| !coming.contains(&piece)), "done and coming at {to:?}");
    }
    for host in 0..n {
        assert_eq!((planner.loads[host].ready, planner.loads[host].promised), (ready[host], promised[host]));
    }
}

proptest! {
    #[test]
    fn counts_agree_with_the_bitmaps_after_any_history(steps in steps(), seed in any::<u64>(), racks in any::<bool>()) {
        let settings = Settings { seed, rack_budget: if racks { 2 } else { 0 }, ..Settings::default() };
        let mut planner = planner(6, settings);
        let (mut now_us, mut under_way) = (0, Vec::new());
        for step in steps {
            under_way.append(&mut plan(&mut planner, now_us));
            let n_hosts = planner.members.len() - 1;
            match step {
                Step::Join { rack, piece } => drop(planner.join(joining(rack), [piece], now_us)),
                Step::Leave(at) => planner.leave(HostNo::at(1 + at % n_hosts), now_us),
                Step::Finish(at) if !under_way.is_empty() => {
                    let lease: Lease = under_way.swap_remove(at % under_way.len());
                    if lease.from == SOURCE {
                        planner.sent(lease.to, lease.piece, now_us);
                    }
                    planner.finished(lease.to, lease.piece, Some(lease.from), now_us);
                }
                Step::Fail(at, how) if !under_way.is_empty() => {
                    let lease: Lease = under_way.swap_remove(at % under_way.len());
                    let how = [Failure::Silent, Failure::Missing, Failure::Wrong][usize::from(how)];
                    planner.failed(lease.to, lease.piece, lease.from, how, at % 2 == 0, now_us);
                }
                Step::Unasked(at, piece) => {
                    planner.finished(HostNo::at(1 + at % n_hosts), piece, None, now_us);
                }
                Step::Wait(us) => now_us += us,
                Step::Finish(_) | Step::Fail(..) => {}
            }
            check_counts(&planner);
        }
        // Whatever happened, everybody who is still here gets everything.
        let end_us = deliver(&mut planner, now_us + 60_000_000, |_, _| {});
        prop_assert!(end_us > 0);
        for host in (1..planner.members.len()).map(HostNo::at) {
            prop_assert!(planner.members[host.index()].is_gone || planner.n_done(host) == PIECES);
        }
    }

    #[test]
    fn the_same_reports_give_the_same_plan(seed in any::<u64>()) {
        let run = || {
            let mut planner = planner(12, Settings { seed, ..Settings::default() });
            let mut all = Vec::new();
            deliver(&mut planner, 0, |_, lease| all.push(*lease));
            all
        };
        prop_assert_eq!(run(), run());
    }
}
