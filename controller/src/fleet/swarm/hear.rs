//! What a campaign makes of what its hosts say.
//!
//! **What.** A state makes a host a new one for the planner; a report changes the planner's picture, is counted for people,
//! and shows that the host lives.
//! **Why a state must have been asked for.** Each one costs the planner a row that stays until the end.
//! **Invariants.** The planner sees only pieces and hosts that exist ([`super::check`]); what names others is left out.

use hearth_protocol::id::LocationId;
use hearth_protocol::message::swarm::{CampaignStateV1, FailureKind, PieceFailure, PieceReportV1, pieces_in};

use super::super::metrics as names;
use super::campaign::{ASK_AGAIN_US, Campaign, JOINS_MAX};
use super::check;
use super::members::Row;
use super::view::{CampaignView, HostView, named};
use crate::logic::swarm::{Failure, HostNo, Joining, Shape, bound};

impl Campaign {
    pub(super) fn state(
        &mut self,
        location: LocationId,
        session: u64,
        state: &CampaignStateV1,
        now_us: u64,
    ) -> Result<(), &'static str> {
        let n_pieces = self.cut.n_pieces;
        let member = self.members.by_location.get_mut(&location);
        let member = member.filter(|member| member.session.number == session).ok_or("it is no member")?;
        // A host may have to begin anew by itself, but each state costs a row.
        let is_due = member.is_awaited || now_us.saturating_sub(member.asked_us) >= ASK_AGAIN_US;
        if !is_due || member.n_joins >= JOINS_MAX {
            return Err("it says what it has too often");
        }
        check::state(state, n_pieces)?;
        let tally = self.members.tallies.entry(location).or_default();
        if tally.is_expelled() {
            self.bar(location, "this host sent wrong bytes to others", now_us);
            return Err("it sent wrong bytes to others");
        }
        if let Some(older) = member.number.take() {
            self.planner.leave(older, now_us);
        }
        let nic_mbps = member.session.nic_mbps;
        let upload_bytes_per_s = check::rate(state.upload_bytes_per_s, nic_mbps);
        let download_bytes_per_s = check::rate(state.download_bytes_per_s, nic_mbps);
        let joining = Joining { rack: member.rack, upload_bytes_per_s, download_bytes_per_s };
        let host = self.planner.join(joining, pieces_in(n_pieces, &state.done), now_us);
        let rack = member.rack;
        (member.number, member.is_awaited, member.asked_us) = (Some(host), false, now_us);
        member.n_joins += 1;
        member.forget_known();
        tally.joined_us.get_or_insert(now_us);
        tally.needed_bytes = tally.needed_bytes.max(state.needed_bytes.min(self.cut.data_bytes));
        tally.upload_bytes_per_s = upload_bytes_per_s;
        tally.download_bytes_per_s = download_bytes_per_s;
        self.members.numbered(host, location, rack);
        self.handle.gate.asked(location, None);
        self.note_done(location, host, now_us);
        Ok(())
    }

    /// Notes for people how much a host has.
    fn note_done(&mut self, location: LocationId, host: HostNo, now_us: u64) {
        let n_done = self.planner.n_done(host);
        let Some(tally) = self.members.tallies.get_mut(&location) else { return };
        tally.n_done = n_done;
        if n_done == self.cut.n_pieces {
            tally.finished_us.get_or_insert(now_us);
        }
    }

    pub(super) fn report(
        &mut self,
        location: LocationId,
        session: u64,
        report: &PieceReportV1,
        now_us: u64,
    ) -> Result<(), &'static str> {
        let member = self.members.by_location.get(&location);
        let member = member.filter(|member| member.session.number == session).ok_or("it is no member")?;
        let Some(host) = member.number else {
            // What it said was lost.
            self.ask_again(location, now_us);
            return Err("it has not said what it has");
        };
        let rack = member.rack;
        check::report(report)?;
        if self.planner.is_gone(host) {
            self.ask_again(location, now_us);
            return Ok(());
        }
        self.planner.heard(host, now_us);
        if let Some(tally) = self.members.tallies.get_mut(&location) {
            tally.read(report);
        }
        let before = self.planner.n_done(host);
        for finished in report.finished.iter().filter(|finished| finished.piece < self.cut.n_pieces) {
            let from = finished.from.and_then(|from| self.members.row(from)).filter(|row| row.host != host);
            let had = self.planner.n_done(host);
            self.planner.finished(host, finished.piece, from.map(|row| row.host), now_us);
            let is_new = self.planner.n_done(host) > had;
            self.cross_rack_pieces +=
                u64::from(is_new && from.is_some_and(|row| row.location.is_some() && row.rack != rack));
        }
        let n_new = self.planner.n_done(host).saturating_sub(before);
        metrics::counter!(names::PIECES).increment(n_new.into());
        for failed in &report.failed {
            let Some(from) = self.members.row(failed.from).filter(|_| failed.piece < self.cut.n_pieces)
            else {
                tracing::debug!(%location, piece = failed.piece, from = failed.from, "a failure names nobody");
                continue;
            };
            self.failed(location, host, *failed, from, now_us);
        }
        self.note_done(location, host, now_us);
        Ok(())
    }

    fn failed(&mut self, by: LocationId, host: HostNo, failed: PieceFailure, from: Row, now_us: u64) {
        // What was only expected there may have failed on its way.
        let was_there = self.planner.has(from.host, failed.piece);
        let kind = match failed.how {
            FailureKind::Missing if !was_there => FailureKind::Late,
            kind => kind,
        };
        let (how, name) = match kind {
            FailureKind::Late => (Failure::Late, "late"),
            FailureKind::Missing => (Failure::Missing, "missing"),
            FailureKind::Silent => (Failure::Silent, "silent"),
            FailureKind::Wrong => (Failure::Wrong, "wrong"),
        };
        metrics::counter!(names::PIECE_FAILURES, "kind" => name).increment(1);
        self.planner.failed(host, failed.piece, from.host, how, failed.is_last, now_us);
        if from.host == host {
            return;
        }
        let Some(tally) = from.location.and_then(|location| self.members.tallies.get_mut(&location)) else {
            return;
        };
        let was_expelled = tally.is_expelled();
        if tally.failed(by, kind) && !was_expelled {
            tracing::warn!(location = ?from.location, content = %self.handle.content, "three hosts had wrong bytes from a host; nobody fetches from it any more");
        }
    }

    pub(super) fn view(&self) -> CampaignView {
        let here = |location: &LocationId| self.members.by_location.contains_key(location);
        let hosts: Vec<HostView> = self
            .members
            .tallies
            .iter()
            .map(|(location, tally)| tally.view(*location, here(location)))
            .collect();
        let (slowest, culprits) = named(&hosts);
        let count = |of: &dyn Fn(&HostView) -> bool| {
            u32::try_from(hosts.iter().filter(|host| of(host)).count()).unwrap_or(u32::MAX)
        };
        let receiving =
            || self.members.tallies.values().filter(|tally| tally.receives && tally.joined_us.is_some());
        let all = self.members.tallies.values().filter(|tally| tally.joined_us.is_some());
        let shape = Shape {
            n_hosts: receiving().count() as u64,
            bytes: self.cut.on_wire(receiving().map(|tally| tally.needed_bytes).max().unwrap_or(0)),
            piece_bytes: self.cut.on_wire(self.cut.piece_bytes),
            source_bytes_per_s: self.shared.swarms.source_share(),
            download_bytes_per_s_min: receiving().map(|tally| tally.download_bytes_per_s).min().unwrap_or(0),
            upload_bytes_per_s_sum: all.map(|tally| tally.upload_bytes_per_s).fold(0, u64::saturating_add),
        };
        CampaignView {
            campaign: self.handle.campaign,
            content: self.handle.content,
            since_us: self.handle.since_us,
            ended: None,
            elapsed_us: self.finished_us.unwrap_or_else(|| self.now_us()),
            n_pieces: self.cut.n_pieces,
            piece_bytes: self.cut.piece_bytes,
            data_bytes: self.cut.data_bytes,
            n_receivers: count(&|host| host.receives),
            n_done: count(&|host| host.receives && host.finished_us.is_some()),
            n_holders: count(&|host| !host.receives && host.is_here),
            bound: (shape.n_hosts > 0).then(|| bound(&shape)),
            leases: self.planner.n_leases(),
            source_pieces: self.source_pieces,
            cross_rack_pieces: self.cross_rack_pieces,
            from_controller_bytes: hosts
                .iter()
                .map(|host| host.from_controller_bytes)
                .fold(0, u64::saturating_add),
            from_agents_bytes: hosts.iter().map(|host| host.from_agents_bytes).fold(0, u64::saturating_add),
            slowest,
            culprits,
            hosts,
        }
    }
}
