//! What must never happen, and what must have happened at the end.
//!
//! **What.** Agents and controller tell what they do; [`Checks`] compares it with the truth of the simulated disks.
//! **Why a list and not a panic.** A test that plants a bug looks for the finding, and a run names all of them.

use std::collections::BTreeMap;

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::Generation;
use hearth_protocol::message::control::PlanEntry;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// What was wrong, in order.
    pub(crate) findings: Vec<String>,
    followed: BTreeMap<usize, Generation>,
    published: BTreeMap<(usize, Generation), Vec<PlanEntry>>,
}

/// Findings that are kept; more say nothing new.
const FINDINGS_MAX: usize = 20;

impl Checks {
    fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.findings.len() < FINDINGS_MAX {
            self.findings.push(what());
        }
    }

    /// A copy was evicted.
    pub(crate) fn evicted(&mut self, now_ms: u64, host: usize, content: ContentId, held: bool) {
        self.expect(!held, || format!("{now_ms} ms: host {host} evicted {content}, which is held"));
    }

    /// A host follows a plan from now on.
    pub(crate) fn follows(
        &mut self,
        now_ms: u64,
        host: usize,
        generation: Generation,
        entries: &[PlanEntry],
    ) {
        let before = self.followed.insert(host, generation).unwrap_or_default();
        self.expect(generation >= before, || {
            format!(
                "{now_ms} ms: host {host} follows the stale generation {} after {}",
                generation.0, before.0
            )
        });
        let as_made = self.published.get(&(host, generation)).is_none_or(|made| made == entries);
        self.expect(as_made, || format!("{now_ms} ms: host {host} follows a plan that nobody made"));
    }

    /// The controller made a plan.
    pub(crate) fn published(
        &mut self,
        now_ms: u64,
        host: usize,
        generation: Generation,
        entries: &[PlanEntry],
    ) {
        let before = self.published.insert((host, generation), entries.to_vec());
        self.expect(before.is_none_or(|before| before == entries), || {
            format!("{now_ms} ms: two plans for host {host} have the generation {}", generation.0)
        });
    }

    /// A host calls a copy active.
    pub(crate) fn active(&mut self, now_ms: u64, host: usize, content: ContentId, whole: bool) {
        self.expect(whole, || {
            format!("{now_ms} ms: host {host} calls {content} active without all its bytes")
        });
    }

    /// The controller admitted and serves.
    pub(crate) fn admitted(
        &mut self,
        now_ms: u64,
        admitted: usize,
        allowed: usize,
        serving: usize,
        slots: usize,
    ) {
        self.expect(admitted <= allowed, || {
            format!("{now_ms} ms: {admitted} transfers are admitted, allowed are {allowed}")
        });
        self.expect(serving <= slots, || {
            format!("{now_ms} ms: {serving} requests are served at once, allowed are {slots}")
        });
    }

    /// Transfers that run over the fleet while nothing is lost or late by a fault.
    pub(crate) fn running(&mut self, now_ms: u64, running: usize, cap: usize) {
        self.expect(running <= cap, || {
            format!("{now_ms} ms: {running} transfers run at once, the cap is {cap}")
        });
    }

    /// A job ended as done.
    pub(crate) fn done(&mut self, now_ms: u64, missing: usize) {
        self.expect(missing == 0, || {
            format!("{now_ms} ms: a job is done and {missing} of its hosts lack bytes")
        });
    }

    /// The run is over.
    pub(crate) fn end(&mut self, now_ms: u64, missing: &[(usize, String)], open_jobs: usize) {
        self.expect(missing.is_empty(), || {
            format!(
                "{now_ms} ms: {} copies never came, the first: host {} {}",
                missing.len(),
                missing[0].0,
                missing[0].1
            )
        });
        self.expect(open_jobs == 0, || format!("{now_ms} ms: {open_jobs} jobs never ended as done"));
    }
}
