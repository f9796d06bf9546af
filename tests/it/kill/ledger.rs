//! What the daemons have acknowledged so far, and so may never lose.
//!
//! **What.** The load writes down what was answered; what was asked and not answered is unsure until somebody looks.
//! **Invariants.** A promise is taken back *before* its end is asked for: a kill between question and answer must leave
//! it unsure, never broken.

use std::collections::{BTreeMap, BTreeSet};

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{ImageId, LeaseId, PrewarmId};

/// Agents under test.
pub(super) const AGENTS: usize = 2;

/// An image whose bytes were accepted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    /// Which source it was made of.
    pub(super) source: usize,
    /// Its content, once it was seen `active`.
    pub(super) content: Option<ContentId>,
}

/// A job that was answered.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) image: ImageId,
    /// Agents it is for.
    pub(super) agents: Vec<usize>,
    pub(super) pinned: bool,
    pub(super) done: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Images that must be there.
    pub(super) images: BTreeMap<ImageId, Kept>,
    /// Images whose deletion was answered.
    pub(super) deleted: BTreeSet<ImageId>,
    /// Images whose deletion was asked for.
    pub(super) unsure: BTreeSet<ImageId>,
    pub(super) jobs: BTreeMap<PrewarmId, Job>,
    /// Copies that a finished job pinned.
    pub(super) held: BTreeSet<(usize, ContentId)>,
    /// Leases per agent.
    pub(super) leases: [BTreeMap<LeaseId, ContentId>; AGENTS],
    /// Rows of the operation log: what, and of which target.
    pub(super) rows: BTreeSet<(&'static str, String)>,
    /// Source of each content that was ever seen.
    pub(super) sources: BTreeMap<ContentId, usize>,
    /// Answers that no fault of ours explains.
    pub(super) wrong: Vec<String>,
    pub(super) counts: Counts,
}

/// How much was acknowledged, for the summary.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) imports: u32,
    pub(super) jobs: u32,
    pub(super) deletes: u32,
    pub(super) evictions: u32,
    pub(super) leases: u32,
}

impl Counts {
    pub(super) const fn all(self) -> u32 {
        self.imports + self.jobs + self.deletes + self.evictions + self.leases
    }
}

impl Ledger {
    /// An image was seen `active` with `content`.
    pub(super) fn active(&mut self, image: ImageId, content: ContentId) {
        let Some(kept) = self.images.get_mut(&image) else { return };
        if kept.content.is_none() {
            self.counts.imports += 1;
        }
        let known = *self.sources.entry(content).or_insert(kept.source);
        if known != kept.source || kept.content.is_some_and(|before| before != content) {
            self.wrong.push(format!("image {image} of source {} has content {content}", kept.source));
        }
        kept.content = Some(content);
    }

    /// The deletion of `image` is about to be asked for.
    pub(super) fn deleting(&mut self, image: ImageId) {
        if let Some(kept) = self.images.remove(&image) {
            self.held.retain(|(_, content)| kept.content != Some(*content));
        }
        self.jobs.retain(|_, job| job.image != image);
        self.unsure.insert(image);
    }

    /// The pins of a copy are about to be taken away, also those of jobs that are not seen done yet.
    pub(super) fn letting_go(&mut self, agent: usize, content: ContentId) {
        self.held.remove(&(agent, content));
        for job in self.jobs.values_mut() {
            let of = self.images.get(&job.image).and_then(|kept| kept.content);
            job.pinned &= of.is_some_and(|of| of != content);
        }
    }

    /// A job was seen `done`.
    pub(super) fn done(&mut self, id: PrewarmId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if !job.done {
            self.counts.jobs += 1;
        }
        job.done = true;
        let content = self.images.get(&job.image).and_then(|kept| kept.content);
        if let Some(content) = content.filter(|_| job.pinned) {
            let copies: Vec<_> = job.agents.iter().map(|agent| (*agent, content)).collect();
            self.held.extend(copies);
        }
    }
}
