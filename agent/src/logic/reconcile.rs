//! Compares what should be in the cache with what is there, and says what to do about it.
//!
//! **What.** Plan, copies, running fetches and past failures in; actions out. Called on every change and on a timer.
//! **Why level-triggered.** The whole comparison is made each time, so a lost event costs a few seconds, not a copy.
//!
//! **Why one file.** It is one comparison with its words and its tests, half of the lines.
//!
//! **Invariants**, each with a test of the same name:
//! 1. `only_admitted_wishes_begin_and_never_more_than_the_limit`.
//! 2. `demand_comes_before_deadline_before_bulk_before_scrub`.
//! 3. `a_running_bulk_fetch_yields_to_demand_and_keeps_its_bytes`.
//! 4. `a_failed_entry_waits_for_its_time`.
//! 5. `stopped_begins_nothing_and_stops_what_runs`.
//! 6. `a_copy_without_a_wish_stays_and_its_hold_ends`.
//! 7. `what_is_as_it_should_be_gives_no_action`.
//! 8. `a_clock_that_was_set_back_makes_nobody_wait_for_ages`.

use std::collections::BTreeMap;

use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::message::control::{Hold, ObservedState, PlanEntry, Wish};
use hearth_protocol::words::{EntryStatus, Priority};

use super::backoff;

/// What is decided on.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// What the controller wishes.
    pub plan: &'a [PlanEntry],
    /// Transfers are stopped: by an operator, or because the controller denied us.
    pub stopped: bool,
    /// Whether this agent shuts down.
    pub draining: bool,
    /// What is on disk.
    pub copies: &'a [Copy],
    /// Fetches that run.
    pub running: &'a [Running],
    /// Entries whose last try failed.
    pub failures: &'a BTreeMap<ContentId, Failure>,
    /// Fetches at once.
    pub limit: usize,
    /// Wall clock, milliseconds since the epoch.
    pub now_unix_ms: u64,
}

/// One content on disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Copy {
    /// Which.
    pub content: ContentId,
    /// How far it is.
    pub stage: Stage,
    /// Its hold as the store knows it.
    pub hold: Hold,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// A staging file that nobody writes.
    Partial,
    /// Being hashed by the store itself (recovery, scrub); it will be active or gone by itself.
    Checking,
    /// Verified.
    Active,
    /// On its way out.
    Leaving,
}

impl Stage {
    /// How far an entry in this state is that has `allocated_bytes` on disk; `None` for one that is only wanted.
    #[must_use]
    pub const fn of(state: &ObservedState, allocated_bytes: u64) -> Option<Self> {
        match state {
            ObservedState::Present(EntryStatus::Active | EntryStatus::DeleteFailed) => Some(Self::Active),
            ObservedState::Present(EntryStatus::Verifying) => Some(Self::Checking),
            ObservedState::Present(EntryStatus::Deleting) | ObservedState::Gone(_) => Some(Self::Leaving),
            // A finished file with damage that is still in use: the store deals with it when it is let go.
            ObservedState::Failed { fault: FaultCode::Damaged, next_try_unix_ms: 0, .. } => {
                Some(Self::Checking)
            }
            ObservedState::Present(_) | ObservedState::Failed { .. } if allocated_bytes > 0 => {
                Some(Self::Partial)
            }
            ObservedState::Present(_) | ObservedState::Failed { .. } => None,
        }
    }
}

/// A fetch that runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Running {
    /// Which.
    pub content: ContentId,
    /// Its order.
    pub priority: Priority,
    /// Its cap, bytes per second.
    pub rate_bytes_per_s: Option<u64>,
    /// Whether it was already told to stop.
    pub stopping: bool,
}

/// The last failure of an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Failure {
    /// Failures in a row.
    pub failures: u32,
    /// Not before, milliseconds since the epoch.
    pub next_try_unix_ms: u64,
}

/// What to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Fetch the content of this plan entry.
    Begin {
        /// Index in the plan.
        entry: usize,
    },
    /// End the running fetch.
    Stop {
        /// Which.
        content: ContentId,
        /// Whether the staging file stays for a later try.
        keep_bytes: bool,
    },
    /// Change the cap of the running fetch.
    SetRate {
        /// Which.
        content: ContentId,
        /// Bytes per second.
        rate_bytes_per_s: Option<u64>,
    },
    /// Remove the copy or its staging file; refused by the store while in use.
    Remove {
        /// Which.
        content: ContentId,
    },
    /// Write the hold down.
    SetHold {
        /// Which.
        content: ContentId,
        /// The hold.
        hold: Hold,
    },
}

/// The actions that bring the cache nearer to the plan, in the order in which to perform them.
#[must_use]
pub fn reconcile(snapshot: &Snapshot<'_>) -> Vec<Action> {
    let mut actions = Vec::new();
    let wishes: BTreeMap<ContentId, (usize, &PlanEntry)> =
        snapshot.plan.iter().enumerate().map(|(i, entry)| (entry.content, (i, entry))).collect();
    let mut slots = snapshot.limit;
    let mut staying = Vec::new();
    for running in snapshot.running {
        let wish = wishes.get(&running.content).map(|(_, entry)| *entry);
        match stop_for(running, wish, snapshot) {
            _ if running.stopping => slots = slots.saturating_sub(1),
            Some(keep_bytes) => {
                slots = slots.saturating_sub(1); // until the fetch has ended
                actions.push(Action::Stop { content: running.content, keep_bytes });
            }
            None => {
                slots = slots.saturating_sub(1);
                staying.push(running);
                let rate_bytes_per_s = wish.and_then(|entry| entry.rate_bytes_per_s);
                if rate_bytes_per_s != running.rate_bytes_per_s {
                    actions.push(Action::SetRate { content: running.content, rate_bytes_per_s });
                }
            }
        }
    }
    copies(snapshot, &wishes, &mut actions);
    let mut due = candidates(snapshot);
    due.sort_by_key(|(i, entry)| (entry.priority, entry.deadline_unix_ms.unwrap_or(u64::MAX), *i));
    let waiting = due.split_off(slots.min(due.len()));
    actions.extend(due.iter().map(|(entry, _)| Action::Begin { entry: *entry }));
    actions.extend(yield_to(&waiting, &staying, snapshot));
    actions
}

/// `Some(keep_bytes)` if this fetch must end.
fn stop_for(running: &Running, wish: Option<&PlanEntry>, snapshot: &Snapshot<'_>) -> Option<bool> {
    match wish {
        None => Some(false),
        Some(entry) if entry.wish == Wish::Remove => Some(false),
        Some(_) if snapshot.stopped || snapshot.draining => Some(true),
        Some(entry) if !entry.admitted => Some(true),
        Some(_) => None,
    }
    .filter(|_| !running.stopping)
}

/// Holds and removals of what is on disk.
fn copies(
    snapshot: &Snapshot<'_>,
    wishes: &BTreeMap<ContentId, (usize, &PlanEntry)>,
    actions: &mut Vec<Action>,
) {
    let running = |content: ContentId| snapshot.running.iter().any(|fetch| fetch.content == content);
    for copy in snapshot.copies.iter().filter(|copy| copy.stage != Stage::Leaving) {
        let content = copy.content;
        let wish = wishes.get(&content).map(|(_, entry)| *entry);
        let wants_away = match wish {
            Some(entry) => entry.wish == Wish::Remove,
            // A staging file that nobody wants is not a cache, only lost space.
            None => copy.stage == Stage::Partial,
        };
        if wants_away {
            if !running(content) && due(snapshot, content) {
                actions.push(Action::Remove { content });
            }
            continue;
        }
        let hold = wish.map_or(Hold::Released, |entry| entry.hold);
        if hold != copy.hold {
            actions.push(Action::SetHold { content, hold });
        }
    }
}

/// Whether a failed entry may be tried again. A time that lies further ahead than any delay was set by another clock.
fn due(snapshot: &Snapshot<'_>, content: ContentId) -> bool {
    let longest_ms = u64::try_from(backoff::ENTRY_MAX.as_millis()).unwrap_or(u64::MAX);
    snapshot.failures.get(&content).is_none_or(|failure| {
        failure.next_try_unix_ms <= snapshot.now_unix_ms
            || failure.next_try_unix_ms > snapshot.now_unix_ms.saturating_add(longest_ms)
    })
}

/// Wishes that may begin now.
fn candidates<'a>(snapshot: &Snapshot<'a>) -> Vec<(usize, &'a PlanEntry)> {
    if snapshot.stopped || snapshot.draining {
        return Vec::new();
    }
    let there = |content: ContentId| {
        let copy = snapshot.copies.iter().find(|copy| copy.content == content);
        copy.is_some_and(|copy| copy.stage != Stage::Partial)
            || snapshot.running.iter().any(|fetch| fetch.content == content)
    };
    let may_begin = |(_, entry): &(usize, &'a PlanEntry)| {
        entry.wish == Wish::Keep
            && entry.admitted
            && entry.hold != Hold::Released
            && !there(entry.content)
            && due(snapshot, entry.content)
    };
    snapshot.plan.iter().enumerate().filter(may_begin).collect()
}

/// Stops as many less urgent fetches as there are demands without a slot.
fn yield_to(waiting: &[(usize, &PlanEntry)], staying: &[&Running], snapshot: &Snapshot<'_>) -> Vec<Action> {
    let stopping = snapshot.running.len() - staying.len();
    let demands = waiting.iter().filter(|(_, entry)| entry.priority == Priority::Demand).count();
    let mut victims: Vec<&&Running> =
        staying.iter().filter(|fetch| fetch.priority != Priority::Demand).collect();
    victims.sort_by_key(|fetch| (fetch.priority, fetch.content));
    let n = demands.saturating_sub(stopping);
    victims
        .iter()
        .rev()
        .take(n)
        .map(|fetch| Action::Stop { content: fetch.content, keep_bytes: true })
        .collect()
}

#[cfg(test)]
mod tests {
    use hearth_protocol::words::ContentKind;

    use super::*;

    fn id(n: u8) -> ContentId {
        ContentId::of(&[n])
    }

    fn wish(n: u8, priority: Priority) -> PlanEntry {
        PlanEntry {
            content: id(n),
            kind: ContentKind::Disk,
            raw_bytes: 1 << 30,
            data_bytes: 1 << 20,
            images: Vec::new(),
            wish: Wish::Keep,
            priority,
            deadline_unix_ms: None,
            hold: Hold::Pinned,
            admitted: true,
            rate_bytes_per_s: None,
        }
    }

    fn running(n: u8, priority: Priority) -> Running {
        Running { content: id(n), priority, rate_bytes_per_s: None, stopping: false }
    }

    fn copy(n: u8, stage: Stage, hold: Hold) -> Copy {
        Copy { content: id(n), stage, hold }
    }

    const NOTHING: BTreeMap<ContentId, Failure> = BTreeMap::new();

    fn snapshot<'a>(plan: &'a [PlanEntry], copies: &'a [Copy], running: &'a [Running]) -> Snapshot<'a> {
        static NONE: BTreeMap<ContentId, Failure> = NOTHING;
        Snapshot {
            plan,
            stopped: false,
            draining: false,
            copies,
            running,
            failures: &NONE,
            limit: 2,
            now_unix_ms: 1000,
        }
    }

    #[test]
    fn only_admitted_wishes_begin_and_never_more_than_the_limit() {
        let mut plan: Vec<PlanEntry> = (0..5).map(|n| wish(n, Priority::Bulk)).collect();
        plan[0].admitted = false;
        plan[1].wish = Wish::Remove;
        let actions = reconcile(&snapshot(&plan, &[], &[]));
        assert_eq!(actions, [Action::Begin { entry: 2 }, Action::Begin { entry: 3 }]);
        let busy = [running(2, Priority::Bulk)];
        assert_eq!(reconcile(&snapshot(&plan, &[], &busy)), [Action::Begin { entry: 3 }]);
    }

    #[test]
    fn demand_comes_before_deadline_before_bulk_before_scrub() {
        let mut plan =
            [Priority::Scrub, Priority::Bulk, Priority::Deadline, Priority::Deadline, Priority::Demand]
                .iter()
                .enumerate()
                .map(|(n, priority)| wish(u8::try_from(n).unwrap(), *priority))
                .collect::<Vec<_>>();
        plan[2].deadline_unix_ms = Some(9000);
        plan[3].deadline_unix_ms = Some(5000);
        let order: Vec<Action> = reconcile(&Snapshot { limit: 5, ..snapshot(&plan, &[], &[]) });
        assert_eq!(order, [4, 3, 2, 1, 0].map(|entry| Action::Begin { entry }));
    }

    #[test]
    fn a_running_bulk_fetch_yields_to_demand_and_keeps_its_bytes() {
        let plan = [wish(0, Priority::Bulk), wish(1, Priority::Deadline), wish(2, Priority::Demand)];
        let both = [running(0, Priority::Bulk), running(1, Priority::Deadline)];
        let stop = Action::Stop { content: id(0), keep_bytes: true };
        assert_eq!(reconcile(&snapshot(&plan, &[], &both)), [stop]);
        let asked = [Running { stopping: true, ..both[0] }, both[1]];
        assert_eq!(reconcile(&snapshot(&plan, &[], &asked)), [], "one is on its way out already");
    }

    #[test]
    fn a_failed_entry_waits_for_its_time() {
        let plan = [wish(0, Priority::Demand), wish(1, Priority::Bulk)];
        let failures = BTreeMap::from([(id(0), Failure { failures: 1, next_try_unix_ms: 2000 })]);
        let early = Snapshot { failures: &failures, ..snapshot(&plan, &[], &[]) };
        assert_eq!(reconcile(&early), [Action::Begin { entry: 1 }]);
        let late = Snapshot { now_unix_ms: 2000, ..early };
        assert_eq!(reconcile(&late)[0], Action::Begin { entry: 0 });
    }

    #[test]
    fn a_clock_that_was_set_back_makes_nobody_wait_for_ages() {
        let plan = [wish(0, Priority::Demand)];
        let longest_ms = u64::try_from(backoff::ENTRY_MAX.as_millis()).unwrap();
        let begins = |next_try_unix_ms| {
            let failures = BTreeMap::from([(id(0), Failure { failures: 1, next_try_unix_ms })]);
            !reconcile(&Snapshot { failures: &failures, now_unix_ms: 1000, ..snapshot(&plan, &[], &[]) })
                .is_empty()
        };
        assert!(!begins(1000 + longest_ms));
        assert!(begins(1001 + longest_ms), "set while the clock was ahead");
    }

    #[test]
    fn stopped_begins_nothing_and_stops_what_runs() {
        let plan = [wish(0, Priority::Demand), wish(1, Priority::Bulk)];
        let runs = [running(1, Priority::Bulk)];
        let stop = [Action::Stop { content: id(1), keep_bytes: true }];
        let stopped = Snapshot { stopped: true, ..snapshot(&plan, &[], &runs) };
        assert_eq!(reconcile(&stopped), stop);
        assert_eq!(reconcile(&Snapshot { draining: true, stopped: false, ..stopped }), stop);
    }

    #[test]
    fn a_copy_without_a_wish_stays_and_its_hold_ends() {
        let copies = [copy(0, Stage::Active, Hold::Pinned), copy(1, Stage::Partial, Hold::Pinned)];
        let actions = reconcile(&snapshot(&[], &copies, &[running(2, Priority::Bulk)]));
        let expected = [
            Action::Stop { content: id(2), keep_bytes: false },
            Action::SetHold { content: id(0), hold: Hold::Released },
            Action::Remove { content: id(1) },
        ];
        assert_eq!(actions, expected);
    }

    #[test]
    fn a_removal_waits_for_the_fetch_to_end_and_for_its_time() {
        let mut plan = [wish(0, Priority::Bulk)];
        plan[0].wish = Wish::Remove;
        let copies = [copy(0, Stage::Partial, Hold::Pinned)];
        let stop = Action::Stop { content: id(0), keep_bytes: false };
        assert_eq!(reconcile(&snapshot(&plan, &copies, &[running(0, Priority::Bulk)])), [stop]);
        assert_eq!(reconcile(&snapshot(&plan, &copies, &[])), [Action::Remove { content: id(0) }]);
        let failures = BTreeMap::from([(id(0), Failure { failures: 1, next_try_unix_ms: 2000 })]);
        let in_use = Snapshot { failures: &failures, ..snapshot(&plan, &copies, &[]) };
        assert_eq!(reconcile(&in_use), []);
    }

    #[test]
    fn a_changed_cap_reaches_the_running_fetch() {
        let mut plan = [wish(0, Priority::Bulk)];
        plan[0].rate_bytes_per_s = Some(1 << 20);
        let actions = reconcile(&snapshot(&plan, &[], &[running(0, Priority::Bulk)]));
        assert_eq!(actions, [Action::SetRate { content: id(0), rate_bytes_per_s: Some(1 << 20) }]);
    }

    #[test]
    fn what_is_as_it_should_be_gives_no_action() {
        let plan = [wish(0, Priority::Bulk), wish(1, Priority::Bulk), wish(2, Priority::Bulk)];
        let copies = [copy(0, Stage::Active, Hold::Pinned), copy(1, Stage::Checking, Hold::Pinned)];
        assert_eq!(reconcile(&snapshot(&plan, &copies, &[running(2, Priority::Bulk)])), []);
    }
}
