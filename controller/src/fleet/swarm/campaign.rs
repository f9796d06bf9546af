//! One campaign: the task that owns the planner.
//!
//! ```text
//!  reconciler ─ members ─┐                  ┌─ JoinCampaign, PieceLeases, EndCampaign ─▶ sessions
//!  sessions ─ reports ───┼─▶ task (planner) ┼─ leased pieces ─▶ gate of the data server
//!  data server ─ sent ───┘    every 25 ms   └─ view
//! ```
//! **What.** News come through one bounded queue; 40 times a second the planner gives out leases.
//! **Why a task of its own.** The planner needs no lock, and what it takes of a processor is taken on the main runtime, not on
//! the threads that move bytes.
//! **Why a silent host is asked again and not taken back.** The planner has withdrawn all that rested on it; what it has now,
//! only itself can say.
//!
//! **Invariants.** Whichever way the task ends, by its own decision, by the reconciler's or by a fault, every member is told and
//! the campaign is taken off the table: nobody waits for leases that do not come.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_protocol::id::LocationId;
use hearth_protocol::message::control::ToAgent;
use hearth_protocol::message::swarm::{CampaignStateV1, EndCampaignV1, JoinCampaignV1, PieceReportV1};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::super::{Shared, metrics as names};
use super::members::Members;
use super::{Handle, MemberWish};
use crate::clock;
use crate::logic::swarm::{Lease, Planner, Settings};

/// Time between two plans.
const TICK: Duration = Duration::from_millis(25);
/// News that are taken in one go before the clock is looked at again.
const NEWS_MAX: usize = 512;
/// Once in so many plans: grants, ends and the view.
const LOOK_TICKS: u64 = 40;
/// A campaign in which nobody receives and nobody has received ends after this long.
const EMPTY_US: u64 = 3_000_000;
/// How long a host may take to hash a file of which it has all pieces: a terabyte at 2 GB/s.
const UNVERIFIED_US: u64 = 600_000_000;
/// A host that was taken for gone is asked what it has at most this often.
pub(super) const ASK_AGAIN_US: u64 = 1_000_000;
/// A host says what it has at most so often: each time costs a row of the planner.
pub(super) const JOINS_MAX: u32 = 256;
/// A grant that ends this soon is renewed, ms.
const GRANT_LEFT_MS: u64 = 5 * 60 * 1000;
/// How long a lease is valid for its receiver at least, ms.
const LEASE_MS_MIN: u64 = 3000;
/// Most that is waited for slow uplinks, ms.
const LEASE_MS_MAX: u64 = 60_000;
/// Uploads that a host serves at once. With two, an uplink was idle between pieces (measured).
const SLOTS: u16 = 4;
/// What may enter a rack at once, in times of what one host can send, where there is more than one.
const RACK_BUDGET: u32 = 4;

/// What a campaign is told.
#[derive(Debug)]
pub(super) enum Said {
    /// These take part, and nobody else.
    Members(Vec<MemberWish>),
    /// A host says what it has. The number is that of its session.
    State(LocationId, u64, CampaignStateV1),
    /// A host says what it finished.
    Report(LocationId, u64, PieceReportV1),
    /// The controller has sent a piece.
    Sent(LocationId, u32),
    /// A session ended.
    Left(LocationId, u64),
    /// It is over.
    End(&'static str),
}

/// What is distributed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) n_pieces: u32,
    pub(super) piece_bytes: u64,
    pub(super) data_bytes: u64,
    /// Bytes of all chunks as they go over the wire.
    pub(super) stored_bytes: u64,
}

impl Cut {
    /// What so many raw bytes are on the wire, at least 1.
    pub(super) fn on_wire(&self, raw_bytes: u64) -> u64 {
        let wire = u128::from(raw_bytes) * u128::from(self.stored_bytes) / u128::from(self.data_bytes.max(1));
        u64::try_from(wire).unwrap_or(raw_bytes).max(1)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Campaign {
    pub(super) shared: Arc<Shared>,
    pub(super) handle: Arc<Handle>,
    pub(super) cut: Cut,
    pub(super) planner: Planner,
    pub(super) members: Members,
    pub(super) begun: Instant,
    pub(super) leases: Vec<Lease>,
    pub(super) cross_rack_pieces: u64,
    pub(super) source_pieces: u64,
    /// Since when no receiver lacks anything, µs.
    quiet_since_us: Option<u64>,
    /// When the last receiver had everything, µs.
    pub(super) finished_us: Option<u64>,
    reason: &'static str,
}

/// Runs a campaign to its end.
pub(super) async fn run(shared: Arc<Shared>, handle: Arc<Handle>, cut: Cut, mut said: mpsc::Receiver<Said>) {
    let mut campaign = Campaign::new(shared, handle, cut);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut n_ticks = 0_u64;
    loop {
        tokio::select! {
            news = said.recv() => {
                let Some(news) = news else { break };
                let mut next = Some(news);
                let mut n_taken = 0;
                while let Some(news) = next {
                    if let Said::End(reason) = news {
                        campaign.reason = reason;
                        return;
                    }
                    campaign.hear(news);
                    n_taken += 1;
                    next = if n_taken < NEWS_MAX { said.try_recv().ok() } else { None };
                }
            }
            _ = tick.tick() => {
                campaign.plan();
                n_ticks += 1;
                if n_ticks.is_multiple_of(LOOK_TICKS) && campaign.look() {
                    return;
                }
            }
        }
    }
}

impl Campaign {
    fn new(shared: Arc<Shared>, handle: Arc<Handle>, cut: Cut) -> Self {
        let settings = Settings { slots: SLOTS.into(), seed: rand::random(), ..Settings::default() };
        let planner =
            Planner::new(settings, cut.n_pieces, cut.on_wire(cut.piece_bytes), shared.swarms.source_share());
        let campaign = Self {
            shared,
            handle,
            cut,
            planner,
            members: Members::new(),
            begun: clock::monotonic(),
            leases: Vec::new(),
            cross_rack_pieces: 0,
            source_pieces: 0,
            quiet_since_us: None,
            finished_us: None,
            reason: "the controller ended it",
        };
        campaign.show();
        campaign
    }

    /// Time since the campaign began, µs.
    pub(super) fn now_us(&self) -> u64 {
        let passed = clock::monotonic().saturating_duration_since(self.begun);
        u64::try_from(passed.as_micros()).unwrap_or(u64::MAX)
    }

    fn hear(&mut self, news: Said) {
        let now_us = self.now_us();
        match news {
            Said::Members(wishes) => self.wish(wishes, now_us),
            Said::State(location, session, state) => {
                if let Err(why) = self.state(location, session, &state, now_us) {
                    tracing::debug!(%location, why, "a campaign state was ignored");
                }
            }
            Said::Report(location, session, report) => {
                if let Err(why) = self.report(location, session, &report, now_us) {
                    tracing::debug!(%location, why, "a piece report was ignored");
                }
            }
            Said::Sent(location, piece) => self.sent(location, piece, now_us),
            Said::Left(location, session) => {
                let is_member = self.members.by_location.get(&location);
                if is_member.is_some_and(|member| member.session.number == session) {
                    self.drop_member(location, now_us);
                }
            }
            Said::End(reason) => self.reason = reason,
        }
    }

    /// Takes in who is new, lets go who is no longer wished.
    fn wish(&mut self, wishes: Vec<MemberWish>, now_us: u64) {
        let mut left: HashMap<LocationId, u64> = self
            .members
            .by_location
            .iter()
            .map(|(location, member)| (*location, member.session.number))
            .collect();
        for MemberWish { session, receives, rack, deadline_us } in wishes {
            let location = session.location;
            let deadline_ms = deadline_us.and_then(|us| u64::try_from(us / 1000).ok());
            let is_known = left.remove(&location) == Some(session.number);
            if self.handle.gate.is_barred(location) {
                continue;
            }
            if let Some(member) = self.members.by_location.get_mut(&location).filter(|_| is_known) {
                // A holder that lost its copy has other pieces than it said.
                let begins_anew = receives && !member.receives;
                (member.receives, member.deadline_ms) = (receives, deadline_ms);
                if begins_anew {
                    self.members.tallies.entry(location).or_default().receives = true;
                    self.ask(location, now_us);
                }
                continue;
            }
            self.drop_member(location, now_us);
            self.members.put(session, rack, receives, deadline_ms);
            self.ask(location, now_us);
        }
        for location in left.into_keys() {
            self.let_go(location, "this host takes no part any more", now_us);
        }
        self.planner.set_rack_budget(if self.members.n_racks() > 1 { RACK_BUDGET } else { 0 });
    }

    /// Asks a member what it has; it is a new host from its answer on.
    pub(super) fn ask(&mut self, location: LocationId, now_us: u64) {
        let Some(member) = self.members.by_location.get(&location) else { return };
        let lease_ms = self.lease_ms(&member.session);
        let Some(member) = self.members.by_location.get_mut(&location) else { return };
        let (content, session) = (self.handle.content, &member.session);
        let signer = &self.shared.swarms.signer;
        let grant = signer.grant(content, session.agent, clock::unix_ms(), member.deadline_ms);
        member.grant_ends_ms = grant.not_after_unix_ms;
        let join = JoinCampaignV1 {
            location,
            campaign: self.handle.campaign,
            controllers: Vec::new(),
            slots: SLOTS,
            lease_ms,
            grant,
            grant_key: signer.public(),
        };
        session.swarm_say(ToAgent::JoinCampaign(join));
        (member.is_awaited, member.asked_us) = (true, now_us);
        self.handle.gate.asked(location, Some(self.shared.now_ms()));
    }

    /// How long a lease is valid: what the slowest uplink, the source's too, needs for the pieces that may be leased from it at once, and two
    /// seconds. Who has not said how fast it is counts with a fifth of its interface.
    fn lease_ms(&self, newcomer: &super::super::registry::Session) -> u32 {
        let known =
            self.members.tallies.values().map(|tally| tally.upload_bytes_per_s).filter(|rate| *rate > 0);
        let assumed = u64::from(newcomer.nic_mbps.max(1)) * 125_000 / 5;
        let slowest = known.min().unwrap_or(assumed).min(self.shared.swarms.source_share()).max(1);
        let step_ms = self.cut.on_wire(self.cut.piece_bytes) * 1000 / slowest;
        let ms = 2000 + 3 * u64::from(SLOTS) * step_ms;
        u32::try_from(ms.clamp(LEASE_MS_MIN, LEASE_MS_MAX)).unwrap_or(u32::MAX)
    }

    /// A host was taken for gone and lives: it is asked again, unless it was asked just now.
    pub(super) fn ask_again(&mut self, location: LocationId, now_us: u64) {
        let Some(member) = self.members.by_location.get(&location) else { return };
        if member.n_joins >= JOINS_MAX {
            self.bar(location, "this host fell silent too often", now_us);
        } else if now_us.saturating_sub(member.asked_us) >= ASK_AGAIN_US {
            self.ask(location, now_us);
        }
    }

    /// Puts a host out for good.
    pub(super) fn bar(&mut self, location: LocationId, reason: &'static str, now_us: u64) {
        tracing::warn!(%location, content = %self.handle.content, reason, "a host is put out of a campaign");
        self.handle.gate.bar(location);
        self.let_go(location, reason, now_us);
    }

    fn let_go(&mut self, location: LocationId, reason: &str, now_us: u64) {
        if let Some(member) = self.members.by_location.get(&location) {
            let end = EndCampaignV1 { campaign: self.handle.campaign, reason: reason.to_owned() };
            member.session.swarm_say(ToAgent::EndCampaign(end));
        }
        self.drop_member(location, now_us);
    }

    fn drop_member(&mut self, location: LocationId, now_us: u64) {
        if let Some(number) = self.members.by_location.remove(&location).and_then(|member| member.number) {
            self.planner.leave(number, now_us);
        }
    }

    fn sent(&mut self, location: LocationId, piece: u32, now_us: u64) {
        let number = self.members.by_location.get(&location).and_then(|member| member.number);
        if let Some(number) = number.filter(|_| piece < self.cut.n_pieces) {
            self.planner.sent(number, piece, now_us);
            self.source_pieces += 1;
            metrics::counter!(names::SOURCE_PIECES).increment(1);
        }
    }

    fn plan(&mut self) {
        let now_us = self.now_us();
        self.planner.set_source_rate(self.shared.swarms.source_share(), now_us);
        let mut leases = std::mem::take(&mut self.leases);
        self.planner.plan(now_us, &mut leases);
        metrics::counter!(names::LEASES).increment(leases.len() as u64);
        self.hand_out(&mut leases);
        leases.clear();
        self.leases = leases;
        self.handle.gate.prune(&self.planner);
    }

    /// Renews grants, shows how things stand, and says whether the campaign is over.
    fn look(&mut self) -> bool {
        let (now_us, now_ms) = (self.now_us(), clock::unix_ms());
        let ending = |member: &super::members::Member| {
            !member.is_awaited && member.grant_ends_ms < now_ms.saturating_add(GRANT_LEFT_MS)
        };
        let all = self.members.by_location.iter();
        let renewed: Vec<LocationId> =
            all.filter(|(_, member)| ending(member)).map(|(location, _)| *location).collect();
        renewed.into_iter().for_each(|location| self.ask(location, now_us));
        let is_over = self.is_over(now_us);
        self.show();
        is_over
    }

    fn is_over(&mut self, now_us: u64) -> bool {
        let all = || self.members.by_location.values();
        let lacks = |member: &super::members::Member| {
            let n_done = member.number.map(|number| self.planner.n_done(number));
            member.receives && n_done != Some(self.cut.n_pieces)
        };
        if all().any(lacks) {
            (self.quiet_since_us, self.finished_us) = (None, None);
            return false;
        }
        let has_receivers = all().any(|member| {
            member.receives || self.members.tallies.get(&member.session.location).is_some_and(|t| t.receives)
        });
        if has_receivers && self.finished_us.is_none() {
            self.finished_us = self.members.tallies.values().filter_map(|tally| tally.finished_us).max();
        }
        let linger_us = u64::try_from(self.shared.config.swarm.linger.as_micros()).unwrap_or(u64::MAX);
        let most_us = match has_receivers {
            // It has all pieces and hashes its file: a campaign that ended now would begin again at once.
            true if all().any(|member| member.receives) => UNVERIFIED_US,
            true => linger_us,
            false => EMPTY_US.min(linger_us),
        };
        let since_us = *self.quiet_since_us.get_or_insert(now_us);
        let is_over = now_us.saturating_sub(since_us) >= most_us;
        if is_over {
            self.reason = if has_receivers { "everybody has it" } else { "nobody receives any more" };
        }
        is_over
    }

    /// How things stand, for people.
    fn show(&self) {
        self.handle.show(self.view());
    }
}

impl Drop for Campaign {
    fn drop(&mut self) {
        let has_failed = std::thread::panicking();
        let reason = if has_failed { "the controller failed; its log says more" } else { self.reason };
        let end = EndCampaignV1 { campaign: self.handle.campaign, reason: reason.to_owned() };
        for member in self.members.by_location.values() {
            member.session.swarm_say(ToAgent::EndCampaign(end.clone()));
        }
        let view = if has_failed { self.handle.view() } else { Arc::new(self.view()) };
        self.shared.swarms.over(&self.handle, &view, reason, has_failed, self.shared.now_ms());
        self.shared.wake();
    }
}
