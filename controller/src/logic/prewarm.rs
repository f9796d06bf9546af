//! How a prewarm job advances.
//!
//! ```text
//! scheduled ──start──▶ running ──every target active──▶ done      (those that were called off do not count)
//!                      │  ▲ ▲                             retry: failed targets wait again
//!                pause │  │ └──────── retry ─────────┐
//!                      ▼  │ resume                   │
//!                     paused     none waits, some failed ──▶ failed        cancel (any time before the end) ──▶ cancelled
//!                                                                          every target called off ───────────▶ cancelled
//! ```
//! **What.** [`advance`] takes a job, its targets and what their locations report, and returns the changes. It runs as
//! often as you like: the same picture gives the same answer. Pause, resume, cancel and retry are requests of operators
//! that the API writes; they are the starting states here.
//! **Why targets end for good.** What cannot succeed must not hide among what takes long: after [`ATTEMPTS_MAX`] failures,
//! or when the location leaves, the target fails, is named, and `retry` takes it up again. A host that is merely silent may
//! come back, so its target waits: until it does, or somebody removes the location or cancels the job.
//! **Invariants.** `a_job_is_done_only_when_every_target_is_active`, `a_job_fails_only_when_nobody_waits`,
//! `advancing_twice_changes_nothing`, `an_ended_job_stays_as_it_is`, `a_copy_counts_only_when_it_is_held`.

use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::{Generation, LocationId};
use hearth_protocol::words::{EntryStatus, LocationState, PrewarmState};

/// Failures after which a target counts as failed.
pub const ATTEMPTS_MAX: u32 = 5;

/// State of one target of a job.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TargetState {
    /// The copy is wanted and not there yet.
    Waiting,
    /// The location said: verified on disk.
    Active,
    /// Given up.
    Failed,
    /// The job was cancelled, or the copy removed by hand, before it was there.
    Cancelled,
}

/// What a target's location reports about the content.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Seen {
    /// Nothing, or on its way.
    Pending,
    /// Verified on disk, and not yet held against eviction.
    Unheld,
    /// Verified on disk and held.
    Active,
    /// A try failed.
    Failed {
        /// Why.
        fault: FaultCode,
        /// For people.
        text: String,
        /// Tells one failure from the next: when the agent tries again, microseconds since the epoch.
        next_try_us: i64,
    },
}

/// The plan of a location, and what its agent made of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Holding {
    /// Whether the plan holds the content against eviction.
    pub holds: bool,
    /// Generation of the plan.
    pub generation: Generation,
    /// Generation that the agent follows.
    pub followed: Generation,
}

impl Seen {
    /// What a location with `status` counts for: a copy only when its agent follows a plan that holds it, because before that
    /// it could be evicted behind a job that is done. `failure` is asked for what a failed try left.
    #[must_use]
    pub fn of(status: EntryStatus, holding: Option<Holding>, failure: impl FnOnce() -> Self) -> Self {
        let is_held = holding.is_some_and(|plan| plan.holds && plan.followed >= plan.generation);
        match status {
            EntryStatus::Active if is_held => Self::Active,
            EntryStatus::Active => Self::Unheld,
            EntryStatus::CacheFail => failure(),
            _ => Self::Pending,
        }
    }
}

/// One target.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TargetView {
    /// Where.
    pub location: LocationId,
    /// State as stored.
    pub state: TargetState,
    /// Failures so far.
    pub attempts: u32,
    /// `next_try_us` of the last failure that was counted.
    pub counted_us: Option<i64>,
    /// State of the location, `None` if it does not exist any more.
    pub location_state: Option<LocationState>,
    /// What it reports.
    pub seen: Seen,
}

/// A target changes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TargetChange {
    /// Where.
    pub location: LocationId,
    /// New state.
    pub state: TargetState,
    /// New number of failures.
    pub attempts: u32,
    /// For people; empty unless it failed.
    pub reason: String,
    /// `next_try_us` of the last failure that is counted now.
    pub counted_us: Option<i64>,
}

/// What [`advance`] decides.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Step {
    /// State of the job now.
    pub state: PrewarmState,
    /// Targets that change.
    pub changes: Vec<TargetChange>,
}

/// Whether a job in this state wants its copies.
#[must_use]
pub const fn wants_copies(state: PrewarmState) -> bool {
    matches!(state, PrewarmState::Running | PrewarmState::Paused | PrewarmState::Done)
}

/// Whether a job in this state has ended.
#[must_use]
pub const fn ended(state: PrewarmState) -> bool {
    matches!(state, PrewarmState::Done | PrewarmState::Failed | PrewarmState::Cancelled)
}

/// One look at a job; see the module. `start_us` is `None` for a job without a start time.
#[must_use]
pub fn advance(state: PrewarmState, start_us: Option<i64>, targets: &[TargetView], now_us: i64) -> Step {
    match state {
        PrewarmState::Done | PrewarmState::Failed => Step { state, changes: Vec::new() },
        PrewarmState::Cancelled => {
            let changes = targets.iter().filter(|target| target.state == TargetState::Waiting).map(cancelled);
            Step { state, changes: changes.collect() }
        }
        PrewarmState::Scheduled if start_us.is_some_and(|start_us| start_us > now_us) => {
            Step { state, changes: Vec::new() }
        }
        PrewarmState::Scheduled => work(PrewarmState::Running, targets),
        PrewarmState::Running | PrewarmState::Paused => work(state, targets),
    }
}

fn work(state: PrewarmState, targets: &[TargetView]) -> Step {
    let changes: Vec<TargetChange> = targets.iter().filter_map(look).collect();
    let now_is = |target: &TargetView| {
        let change = changes.iter().find(|change| change.location == target.location);
        change.map_or(target.state, |change| change.state)
    };
    let (mut waiting, mut failed) = (0, 0);
    for state in targets.iter().map(now_is) {
        match state {
            TargetState::Waiting => waiting += 1,
            TargetState::Failed => failed += 1,
            TargetState::Active | TargetState::Cancelled => {}
        }
    }
    let called_off = |target: &TargetView| now_is(target) == TargetState::Cancelled;
    let state = match (waiting, failed) {
        (0, 0) if !targets.is_empty() && targets.iter().all(called_off) => PrewarmState::Cancelled,
        (0, 0) => PrewarmState::Done,
        (0, _) => PrewarmState::Failed,
        _ => state,
    };
    Step { state, changes }
}

/// What becomes of one target, or `None` if nothing.
fn look(target: &TargetView) -> Option<TargetChange> {
    let change = |state, attempts, reason: String, counted_us| {
        Some(TargetChange { location: target.location, state, attempts, reason, counted_us })
    };
    if matches!(target.state, TargetState::Active | TargetState::Cancelled) {
        return None;
    }
    if target.seen == Seen::Active
        && target.location_state.is_some_and(|state| state != LocationState::Removed)
    {
        return change(TargetState::Active, target.attempts, String::new(), target.counted_us);
    }
    if target.state == TargetState::Failed {
        return None;
    }
    match target.location_state {
        None | Some(LocationState::Removed) => {
            let reason = "the location was removed".to_owned();
            return change(TargetState::Failed, target.attempts, reason, target.counted_us);
        }
        // The copy is there: it only has to be held.
        Some(LocationState::Draining) if target.seen == Seen::Unheld => return None,
        Some(LocationState::Draining) => {
            let reason = "the location is draining: it takes no new copies".to_owned();
            return change(TargetState::Failed, target.attempts, reason, target.counted_us);
        }
        Some(LocationState::Active) => {}
    }
    let Seen::Failed { fault, text, next_try_us } = &target.seen else {
        return None;
    };
    if target.counted_us == Some(*next_try_us) {
        return None;
    }
    let attempts = target.attempts + 1;
    let state = if attempts >= ATTEMPTS_MAX { TargetState::Failed } else { TargetState::Waiting };
    change(state, attempts, format!("{fault}: {text}"), Some(*next_try_us))
}

fn cancelled(target: &TargetView) -> TargetChange {
    TargetChange {
        location: target.location,
        state: TargetState::Cancelled,
        attempts: target.attempts,
        reason: String::new(),
        counted_us: target.counted_us,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(n: u8, state: TargetState, seen: Seen) -> TargetView {
        TargetView {
            location: LocationId::from_bytes([n; 16]),
            state,
            attempts: 0,
            counted_us: None,
            location_state: Some(LocationState::Active),
            seen,
        }
    }

    fn failure(next_try_us: i64) -> Seen {
        Seen::Failed { fault: FaultCode::NoSpace, text: "1 GiB missing".into(), next_try_us }
    }

    #[test]
    fn a_scheduled_job_waits_for_its_start() {
        let targets = [target(0, TargetState::Waiting, Seen::Pending)];
        assert_eq!(advance(PrewarmState::Scheduled, Some(10), &targets, 9).state, PrewarmState::Scheduled);
        assert_eq!(advance(PrewarmState::Scheduled, Some(10), &targets, 10).state, PrewarmState::Running);
        assert_eq!(advance(PrewarmState::Scheduled, None, &targets, 0).state, PrewarmState::Running);
    }

    #[test]
    fn a_target_fails_after_five_different_failures() {
        let mut target = target(0, TargetState::Waiting, Seen::Pending);
        for round in 1..=5 {
            target.seen = failure(round);
            let step = advance(PrewarmState::Running, None, std::slice::from_ref(&target), 0);
            target.attempts = step.changes[0].attempts;
            target.counted_us = step.changes[0].counted_us;
            target.state = step.changes[0].state;
            assert_eq!(step.state == PrewarmState::Failed, round == 5);
            let again = advance(PrewarmState::Running, None, std::slice::from_ref(&target), 0);
            assert_eq!(again.changes, [], "the same failure counts once");
        }
        assert_eq!(target.state, TargetState::Failed);
    }

    #[test]
    fn a_location_that_leaves_fails_its_target_unless_the_copy_is_there() {
        for (location_state, seen, expected) in [
            (None, Seen::Pending, TargetState::Failed),
            (Some(LocationState::Removed), Seen::Active, TargetState::Failed),
            (Some(LocationState::Draining), Seen::Pending, TargetState::Failed),
            (Some(LocationState::Draining), Seen::Active, TargetState::Active),
        ] {
            let one = TargetView { location_state, ..target(0, TargetState::Waiting, seen) };
            assert_eq!(advance(PrewarmState::Running, None, &[one], 0).changes[0].state, expected);
        }
        let leaving = Some(LocationState::Draining);
        let there = TargetView { location_state: leaving, ..target(0, TargetState::Waiting, Seen::Unheld) };
        assert_eq!(advance(PrewarmState::Running, None, &[there], 0).changes, [], "it is about to be held");
    }

    #[test]
    fn a_copy_counts_only_when_it_is_held() {
        let plan = |holds, followed| {
            Some(Holding { holds, generation: Generation(7), followed: Generation(followed) })
        };
        let seen = |status, holding| Seen::of(status, holding, || failure(1));
        for holding in [None, plan(false, 7), plan(true, 6)] {
            assert_eq!(seen(EntryStatus::Active, holding), Seen::Unheld);
        }
        assert_eq!(seen(EntryStatus::Active, plan(true, 7)), Seen::Active);
        assert_eq!(seen(EntryStatus::Caching, plan(true, 7)), Seen::Pending);
        assert_eq!(seen(EntryStatus::CacheFail, None), failure(1));
    }

    #[test]
    fn a_job_whose_targets_were_called_off_is_cancelled_and_the_rest_decides_otherwise() {
        let off = target(0, TargetState::Cancelled, Seen::Pending);
        let other = |state| target(1, state, Seen::Pending);
        for (targets, expected) in [
            (vec![off.clone()], PrewarmState::Cancelled),
            (vec![off.clone(), other(TargetState::Active)], PrewarmState::Done),
            (vec![off.clone(), other(TargetState::Failed)], PrewarmState::Failed),
            (vec![off.clone(), other(TargetState::Waiting)], PrewarmState::Paused),
        ] {
            assert_eq!(advance(PrewarmState::Paused, None, &targets, 0).state, expected);
        }
    }

    #[test]
    fn cancelling_leaves_active_targets_alone() {
        let targets =
            [target(0, TargetState::Active, Seen::Active), target(1, TargetState::Waiting, Seen::Pending)];
        let step = advance(PrewarmState::Cancelled, None, &targets, 0);
        assert_eq!(step.state, PrewarmState::Cancelled);
        assert_eq!(
            step.changes.iter().map(|change| change.state).collect::<Vec<_>>(),
            [TargetState::Cancelled]
        );
    }

    fn targets() -> impl Strategy<Value = Vec<TargetView>> {
        let state =
            prop_oneof![Just(TargetState::Waiting), Just(TargetState::Active), Just(TargetState::Failed)];
        let seen = prop_oneof![
            Just(Seen::Pending),
            Just(Seen::Unheld),
            Just(Seen::Active),
            (0_i64..3).prop_map(failure)
        ];
        let location = proptest::option::weighted(0.9, (0_usize..3).prop_map(|i| LocationState::ALL[i]));
        proptest::collection::vec((state, seen, location, 0_u32..6, proptest::option::of(0_i64..3)), 1..6)
            .prop_map(|all| {
                let number = |(n, (state, seen, location_state, attempts, counted_us))| TargetView {
                    attempts,
                    counted_us,
                    location_state,
                    ..target(n, state, seen)
                };
                (0..).zip(all).map(number).collect()
            })
    }

    fn applied(targets: &[TargetView], step: &Step) -> Vec<TargetView> {
        let mut targets = targets.to_vec();
        for change in &step.changes {
            let target = targets.iter_mut().find(|target| target.location == change.location).unwrap();
            (target.state, target.attempts, target.counted_us) =
                (change.state, change.attempts, change.counted_us);
        }
        targets
    }

    proptest! {
        #[test]
        fn a_job_is_done_only_when_every_target_is_active(targets in targets(), paused in any::<bool>()) {
            let state = if paused { PrewarmState::Paused } else { PrewarmState::Running };
            let step = advance(state, None, &targets, 0);
            let after = applied(&targets, &step);
            let all_active = after.iter().all(|target| target.state == TargetState::Active);
            prop_assert_eq!(step.state == PrewarmState::Done, all_active);
            // a_job_fails_only_when_nobody_waits
            let nobody_waits = after.iter().all(|target| target.state != TargetState::Waiting);
            prop_assert_eq!(step.state == PrewarmState::Failed, nobody_waits && !all_active);
            // Nothing becomes active that did not say so.
            for (before, now) in targets.iter().zip(&after) {
                prop_assert!(now.state != TargetState::Active || before.state == now.state || before.seen == Seen::Active);
            }
        }

        #[test]
        fn advancing_twice_changes_nothing(targets in targets()) {
            let step = advance(PrewarmState::Running, None, &targets, 0);
            let again = advance(step.state, None, &applied(&targets, &step), 0);
            prop_assert_eq!(again.state, step.state);
            prop_assert_eq!(again.changes, vec![]);
        }

        #[test]
        fn an_ended_job_stays_as_it_is(targets in targets()) {
            for state in [PrewarmState::Done, PrewarmState::Failed] {
                prop_assert_eq!(advance(state, None, &targets, 0), Step { state, changes: vec![] });
            }
        }
    }
}
