//! What is shown of a campaign.
//!
//! **What.** One [`CampaignView`] per campaign, made anew once a second while it runs and kept for a while afterwards.
//! **Why the bound is beside the time.** "Forty seconds" says nothing; "1.1 times what no plan can beat, which the slowest
//! host sets" says what would have to be faster.

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::LocationId;
use hearth_protocol::message::swarm::{Campaign, FailureKind};

use crate::logic::swarm::Bound;

/// Hosts named as the slowest, and as those that failed others.
const NAMED_MAX: usize = 8;
/// Hosts that are kept of a campaign that ended, the slowest: bounds memory.
const ENDED_HOSTS_MAX: usize = 1000;

/// A campaign.
#[derive(Clone, Debug, PartialEq)]
pub struct CampaignView {
    /// Its number and the life of the controller in which it ran.
    pub campaign: Campaign,
    /// What is distributed.
    pub content: ContentId,
    /// When it began, microseconds since the epoch.
    pub since_us: i64,
    /// When it ended, microseconds since the epoch, and why; `None`: it runs.
    pub ended: Option<(i64, String)>,
    /// How long it took until every receiver had all, or takes already, microseconds.
    pub elapsed_us: u64,
    /// Pieces of the content.
    pub n_pieces: u32,
    /// Bytes of a piece.
    pub piece_bytes: u64,
    /// Bytes of the content that are not zero.
    pub data_bytes: u64,
    /// Hosts that receive or received.
    pub n_receivers: u32,
    /// Of those, the ones that have everything.
    pub n_done: u32,
    /// Hosts that only serve.
    pub n_holders: u32,
    /// The time that no plan can beat, and what sets it; `None` while nobody has said what he needs.
    pub bound: Option<Bound>,
    /// Leases that were given.
    pub leases: u64,
    /// Pieces that the controller has sent.
    pub source_pieces: u64,
    /// Pieces that hosts had from a host in another rack.
    pub cross_rack_pieces: u64,
    /// Stored bytes that hosts had from the controller.
    pub from_controller_bytes: u64,
    /// Stored bytes that hosts had from others.
    pub from_agents_bytes: u64,
    /// Who takes longest, at most 8: first those that lack most, then those that finished last.
    pub slowest: Vec<HostView>,
    /// Who failed others most, at most 8.
    pub culprits: Vec<HostView>,
    /// Everybody; of a campaign that ended at most the 1,000 slowest.
    pub hosts: Vec<HostView>,
}

/// One host of a campaign.
#[derive(Clone, Debug, PartialEq)]
pub struct HostView {
    /// Which.
    pub location: LocationId,
    /// It receives; else it only serves.
    pub receives: bool,
    /// It is in the campaign now.
    pub is_here: bool,
    /// Pieces that it has.
    pub n_done: u32,
    /// When it joined first, microseconds since the campaign began; `None`: it was asked and has not answered.
    pub joined_us: Option<u64>,
    /// When it had everything, microseconds since the campaign began.
    pub finished_us: Option<u64>,
    /// Stored bytes that it had from the controller.
    pub from_controller_bytes: u64,
    /// Stored bytes that it had from others.
    pub from_agents_bytes: u64,
    /// Bytes that it sent to others.
    pub sent_bytes: u64,
    /// How often others said that it failed them.
    pub failures: Failures,
    /// Different hosts that had wrong bytes from it.
    pub accusers: u32,
    /// So many had that nobody fetches from it any more.
    pub is_expelled: bool,
}

/// Failures that others report of a host, by kind.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Failures {
    /// It was full or too late; this happens to everybody.
    pub late: u32,
    /// It did not have the piece.
    pub missing: u32,
    /// It could not be reached, broke off or stalled.
    pub silent: u32,
    /// It sent wrong bytes.
    pub wrong: u32,
}

impl Failures {
    pub(super) const fn count(&mut self, how: FailureKind) {
        let counter = match how {
            FailureKind::Late => &mut self.late,
            FailureKind::Missing => &mut self.missing,
            FailureKind::Silent => &mut self.silent,
            FailureKind::Wrong => &mut self.wrong,
        };
        *counter = counter.saturating_add(1);
    }

    /// The greatest is the worst; being late is nobody's fault.
    const fn weight(self) -> (u32, u32) {
        (self.wrong, self.missing.saturating_add(self.silent))
    }
}

/// The slowest and the culprits among all hosts.
pub(super) fn named(hosts: &[HostView]) -> (Vec<HostView>, Vec<HostView>) {
    let mut slowest: Vec<&HostView> = hosts.iter().filter(|host| host.receives).collect();
    slowest.sort_unstable_by_key(|host| slowness(host));
    let mut culprits: Vec<&HostView> = hosts.iter().filter(|host| host.failures.weight() > (0, 0)).collect();
    culprits.sort_unstable_by_key(|host| (std::cmp::Reverse(host.failures.weight()), host.location));
    let first = |hosts: Vec<&HostView>| hosts.into_iter().take(NAMED_MAX).cloned().collect();
    (first(slowest), first(culprits))
}

/// The least is the slowest: who has not everything, the fewest pieces first; then who had it last.
fn slowness(host: &HostView) -> (bool, u32, std::cmp::Reverse<Option<u64>>, LocationId) {
    let is_done = host.finished_us.is_some();
    (is_done, if is_done { 0 } else { host.n_done }, std::cmp::Reverse(host.finished_us), host.location)
}

impl CampaignView {
    /// The view of a campaign of which nothing is known yet.
    pub(super) const fn begun(campaign: Campaign, content: ContentId, since_us: i64) -> Self {
        Self {
            campaign,
            content,
            since_us,
            ended: None,
            elapsed_us: 0,
            n_pieces: 0,
            piece_bytes: 0,
            data_bytes: 0,
            n_receivers: 0,
            n_done: 0,
            n_holders: 0,
            bound: None,
            leases: 0,
            source_pieces: 0,
            cross_rack_pieces: 0,
            from_controller_bytes: 0,
            from_agents_bytes: 0,
            slowest: Vec::new(),
            culprits: Vec::new(),
            hosts: Vec::new(),
        }
    }

    /// The view as it is kept after the end.
    pub(super) fn ended(mut self, now_us: i64, reason: String) -> Self {
        self.ended = Some((now_us, reason));
        self.hosts.sort_unstable_by_key(slowness);
        self.hosts.truncate(ENDED_HOSTS_MAX);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u8, finished_us: Option<u64>, n_done: u32, wrong: u32, late: u32) -> HostView {
        HostView {
            location: LocationId::from_bytes([n; 16]),
            receives: true,
            is_here: true,
            n_done,
            joined_us: Some(0),
            finished_us,
            from_controller_bytes: 0,
            from_agents_bytes: 0,
            sent_bytes: 0,
            failures: Failures { wrong, late, ..Failures::default() },
            accusers: wrong,
            is_expelled: false,
        }
    }

    #[test]
    fn who_lacks_most_is_slowest_and_who_is_only_late_is_no_culprit() {
        let hosts = [
            host(1, Some(5), 9, 0, 9),
            host(2, None, 3, 1, 0),
            host(3, Some(7), 9, 3, 0),
            host(4, None, 2, 0, 0),
        ];
        let (slowest, culprits) = named(&hosts);
        let names = |hosts: &[HostView]| -> Vec<u8> {
            hosts.iter().map(|host| host.location.as_bytes()[0]).collect()
        };
        assert_eq!(names(&slowest), [4, 2, 3, 1]);
        assert_eq!(names(&culprits), [3, 2]);
    }
}
