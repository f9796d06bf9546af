//! Chooses which cached contents to evict when budget or floor are short.
//!
//! **What.** A pure planner: the bytes that must go and a snapshot in, victims in order out. It deletes nothing;
//! `store::evict` carries the plan out and checks every hold again at the moment it deletes.
//!
//! **Why no watermarks.** A pass starts when a transfer needs room or a limit is passed, and knows how many bytes; freeing
//! more than that throws away copies that the next VM may want.
//!
//! **Invariants**, each with a test of the same name:
//! 1. `held_contents_are_never_victims`.
//! 2. `a_pass_frees_no_more_than_it_must`: without its last victim a plan falls short.
//! 3. `plan_ignores_input_order`: equal ages are ordered by content id.
//! 4. `the_plan_equals_the_slow_obvious_one`.

use hearth_protocol::digest::ContentId;

/// One content in the cache, as the planner sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Candidate {
    /// The content.
    pub content: ContentId,
    /// Bytes that deleting it gives back.
    pub allocated_bytes: u64,
    /// Last use, milliseconds since the epoch; 0 for leftovers that nobody ever used.
    pub last_used_unix_ms: u64,
    /// Why it must stay, or `None`.
    pub held: Option<HeldBy>,
}

/// What keeps a content in the cache.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HeldBy {
    /// An operator or an intent pinned it.
    Pin,
    /// An intent holds it until this time, milliseconds since the epoch.
    Until(u64),
    /// This many leases.
    Leases(u32),
    /// The agent itself is reading, writing or checking it.
    Work,
    /// A process has it open without a lease.
    Open,
}

impl std::fmt::Display for HeldBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pin => f.write_str("pinned"),
            Self::Until(unix_ms) => match i64::try_from(*unix_ms).map(jiff::Timestamp::from_millisecond) {
                Ok(Ok(until)) => write!(f, "held until {until:.0} by a job or an operator"),
                Ok(Err(_)) | Err(_) => f.write_str("held for ages by a job or an operator"),
            },
            Self::Leases(n) => write!(f, "leased {n} times"),
            Self::Work => f.write_str("in use by the agent"),
            Self::Open => f.write_str("open by a process without a lease"),
        }
    }
}

/// What to evict, and how far that goes. The default plan evicts nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EvictionPlan {
    /// First to go first.
    pub victims: Vec<ContentId>,
    /// Bytes the victims give back.
    pub freed_bytes: u64,
    /// Bytes that holds keep from being freed; not 0 means that the wish cannot be met.
    pub shortfall_bytes: u64,
}

/// Plans to free `target_bytes`: least recently used first, held contents never.
///
/// Cannot fail: what holds keep from being freed is returned as `shortfall_bytes`.
#[must_use]
pub fn plan_eviction(target_bytes: u64, candidates: &[Candidate]) -> EvictionPlan {
    let mut plan = EvictionPlan::default();
    let mut free: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.held.is_none()).collect();
    free.sort_unstable_by_key(|candidate| (candidate.last_used_unix_ms, candidate.content));
    for candidate in free {
        if plan.freed_bytes >= target_bytes {
            break;
        }
        if candidate.allocated_bytes > 0 {
            plan.victims.push(candidate.content);
            plan.freed_bytes = plan.freed_bytes.saturating_add(candidate.allocated_bytes);
        }
    }
    plan.shortfall_bytes = target_bytes.saturating_sub(plan.freed_bytes);
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_hold_is_named_with_a_date_that_people_read() {
        let held = |unix_ms| HeldBy::Until(unix_ms).to_string();
        assert_eq!(held(1_795_410_753_083), "held until 2026-11-23T05:12:33Z by a job or an operator");
        assert_eq!(held(u64::MAX), "held for ages by a job or an operator");
    }

    fn id(n: u8) -> ContentId {
        ContentId::from_bytes([n; 32])
    }

    /// A candidate is (id, bytes, last used, held).
    fn candidates(rows: &[(u8, u64, u64, bool)]) -> Vec<Candidate> {
        let to_candidate =
            |&(n, allocated_bytes, last_used_unix_ms, held): &(u8, u64, u64, bool)| Candidate {
                content: id(n),
                allocated_bytes,
                last_used_unix_ms,
                held: held.then_some(HeldBy::Pin),
            };
        rows.iter().map(to_candidate).collect()
    }

    #[track_caller]
    fn check(target: u64, rows: &[(u8, u64, u64, bool)], victims: &[u8], shortfall: u64) {
        let plan = plan_eviction(target, &candidates(rows));
        let expected: Vec<ContentId> = victims.iter().map(|n| id(*n)).collect();
        assert_eq!((plan.victims, plan.shortfall_bytes), (expected, shortfall));
    }

    #[test]
    fn held_contents_are_never_victims() {
        check(30, &[(1, 10, 1, true), (2, 10, 2, true), (3, 10, 3, false)], &[3], 20);
    }

    #[test]
    fn a_pass_frees_no_more_than_it_must() {
        check(0, &[(1, 10, 1, false)], &[], 0);
        check(11, &[(1, 10, 1, false), (2, 10, 2, false), (3, 10, 3, false)], &[1, 2], 0);
    }

    #[test]
    fn plan_ignores_input_order() {
        let (a, b, oldest) = ((1, 10, 7, false), (2, 10, 7, false), (3, 10, 1, false));
        check(20, &[a, b, oldest], &[3, 1], 0);
        check(20, &[b, oldest, a], &[3, 1], 0);
    }

    /// Takes the oldest evictable content again and again, from scratch each time.
    fn slow_obvious(target: u64, candidates: &[Candidate]) -> EvictionPlan {
        let mut plan = EvictionPlan::default();
        while plan.freed_bytes < target {
            let mut oldest: Option<&Candidate> = None;
            for candidate in candidates {
                let taken = plan.victims.contains(&candidate.content);
                if taken || candidate.held.is_some() || candidate.allocated_bytes == 0 {
                    continue;
                }
                let key = |c: &Candidate| (c.last_used_unix_ms, c.content);
                if oldest.is_none_or(|o| key(candidate) < key(o)) {
                    oldest = Some(candidate);
                }
            }
            let Some(victim) = oldest else { break };
            plan.victims.push(victim.content);
            plan.freed_bytes += victim.allocated_bytes;
        }
        plan.shortfall_bytes = target.saturating_sub(plan.freed_bytes);
        plan
    }

    proptest! {
        #[test]
        fn the_plan_equals_the_slow_obvious_one(
            rows in proptest::collection::vec((0_u64..50, 0_u64..8, any::<bool>()), 0..40),
            target in 0_u64..800,
        ) {
            let rows: Vec<_> = (0_u8..).zip(rows).map(|(n, (bytes, used, held))| (n, bytes, used, held)).collect();
            let snapshot = candidates(&rows);
            prop_assert_eq!(plan_eviction(target, &snapshot), slow_obvious(target, &snapshot));
        }
    }
}
