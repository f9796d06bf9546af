//! One campaign at this host: the task that owns its tables.
//!
//! ```text
//!  events ─▶ hear ─▶ receiving (leases, requests)     tick ─▶ stalls, expiry, hedges, what to do alone
//!                 └▶ serving (who asks us)                 └▶ report, sign of life
//! ```
//! **What.** Here are its life, what it holds, and what it says to the controller; [`super::receiving`] and [`super::serving`] are
//! its two sides, [`super::alone`] is what it does without a controller.
//!
//! **Invariants.** A campaign that is over is never found again. Nothing is reported before the controller was told what is
//! here.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_protocol::digest::ContentId;
use hearth_protocol::message::swarm::{
    CampaignStateV1, FailureKind, FinishedPiece, JoinCampaignV1, PieceFailure, PieceReportV1, PiecesHereV1,
    REPORT_PIECES_MAX, piece_bits,
};
use hearth_protocol::piece::Pieces;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::Shared;
use super::handle::{Event, Handle, Ticket};
use super::peers::Peer;
use super::receiving::Part;
use super::relay::Shelf;
use super::upload::Verdict;
use crate::clock;
use crate::logic::swarm::{Ended, Failed, Report, Uploads};
use crate::store::Spool;

/// Time between two looks at what stalls and expires.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A host that says nothing for longer than a second is taken for gone.
const SIGN_OF_LIFE: Duration = Duration::from_millis(400);
/// A new session's controller leads the campaign within this time, or nobody does.
const LED_WITHIN: Duration = Duration::from_secs(5);
/// How long a host that needs nothing serves others without a controller: what is served is not evicted meanwhile.
const ALONE_MAX: Duration = Duration::from_secs(600);
/// How often a finished content is looked for that was announced before it is here.
const SHELF_EVERY: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub(super) struct Campaign {
    pub(super) shared: Arc<Shared>,
    pub(super) handle: Handle,
    events: mpsc::UnboundedReceiver<Event>,
    pub(super) join: JoinCampaignV1,
    pub(super) content: ContentId,
    start: Instant,
    /// Hosts by their number.
    pub(super) peers: HashMap<u32, Arc<Peer>>,
    pub(super) spool: Option<Arc<Spool>>,
    pub(super) shelf: Option<Shelf>,
    is_opening: bool,
    looked_for_shelf: Option<Instant>,
    /// The content is here; the shelf is still the file that it was written to.
    is_finished: bool,
    pub(super) pieces: Option<Arc<Pieces>>,
    /// A bit per piece of which nothing is missing.
    pub(super) done: Vec<u64>,
    pub(super) part: Option<Part>,
    pub(super) uploads: Uploads<Ticket>,
    /// Who is to be told when it is his turn.
    pub(super) waiting: HashMap<Ticket, oneshot::Sender<Verdict>>,
    pub(super) last_ticket: u64,
    pub(super) last_transfer: u64,
    /// The controller waits to be told what is here.
    is_state_due: bool,
    is_session_up: bool,
    /// When the session that is up began, or when the last one ended.
    session_changed: Instant,
    is_led: bool,
    spoke: Instant,
    pub(super) from_controller_bytes: u64,
    pub(super) from_agents_bytes: u64,
    pub(super) sent_bytes: u64,
}

impl Campaign {
    /// A campaign that runs once the future is awaited.
    pub(super) fn begin(
        shared: Arc<Shared>,
        join: JoinCampaignV1,
    ) -> (Handle, impl Future<Output = ()> + Send + 'static) {
        let (handle, events) = Handle::new(&join);
        let content = join.grant.content;
        let now = clock::monotonic();
        let campaign = Self {
            spool: shared.spool(content),
            shared,
            handle: handle.clone(),
            events,
            content,
            start: now,
            peers: HashMap::new(),
            shelf: None,
            is_opening: false,
            looked_for_shelf: None,
            is_finished: false,
            pieces: None,
            done: Vec::new(),
            part: None,
            uploads: Uploads::new(usize::from(join.slots.max(1))),
            waiting: HashMap::new(),
            last_ticket: 0,
            last_transfer: 0,
            is_state_due: true,
            is_session_up: true,
            session_changed: now,
            is_led: true,
            spoke: now,
            from_controller_bytes: 0,
            from_agents_bytes: 0,
            sent_bytes: 0,
            join,
        };
        (handle, campaign.run())
    }

    async fn run(mut self) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let flow = tokio::select! {
                biased;
                event = self.events.recv() => match event {
                    Some(event) => self.hear(event),
                    None => ControlFlow::Break("nobody speaks to it".to_owned()),
                },
                _ = tick.tick() => self.look(),
            };
            if let ControlFlow::Break(why) = flow {
                return self.end(&why);
            }
            self.serve();
            self.speak();
        }
    }

    fn hear(&mut self, event: Event) -> ControlFlow<String> {
        match event {
            Event::Joined(join) => self.joined(*join),
            Event::Leases(leases) => self.leases(leases),
            Event::Ended(why) => return ControlFlow::Break(why),
            Event::Session(is_up) => {
                self.is_session_up = is_up;
                self.is_led = false;
                self.session_changed = clock::monotonic();
            }
            Event::Part(number, taking, end) => self.take(number, taking, end),
            Event::PartOver { number, is_active } => self.part_over(number, is_active),
            Event::Here(pieces) => self.opened(pieces),
            Event::Gone => self.gone(),
            Event::Offered { piece, from, has_all, answer } => self.offered(piece, from, has_all, answer),
            Event::RequestEnded(outcome) => self.request_ended(*outcome),
            Event::Having { from, done } => self.neighbour_has(from, done),
            Event::Asked { asker, piece, verdict } => self.asked(asker, piece, verdict),
            Event::UploadEnded { ticket, bytes } => {
                self.uploads.ended(ticket);
                self.sent_bytes += bytes;
            }
            Event::HavingAsked(answer) => {
                if let Some(n_pieces) = self.pieces.as_ref().map(|pieces| pieces.len()) {
                    // Fails only if the asker has gone.
                    drop(answer.send(PiecesHereV1 { n_pieces, done: self.bits(n_pieces) }));
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn joined(&mut self, join: JoinCampaignV1) {
        if join.campaign != self.join.campaign {
            // Hosts have other numbers there.
            self.peers.clear();
            self.forget_leases();
            (self.from_controller_bytes, self.from_agents_bytes, self.sent_bytes) = (0, 0, 0);
        }
        self.handle.is_now(&join);
        if let Some(part) = &mut self.part {
            part.show(join.grant.clone());
        }
        self.join = join;
        (self.is_led, self.is_state_due) = (true, true);
    }

    /// What time brings.
    fn look(&mut self) -> ControlFlow<String> {
        let now = clock::monotonic();
        if self.is_session_up && !self.is_led && now.duration_since(self.session_changed) > LED_WITHIN {
            return ControlFlow::Break("the controller does not lead it any more".to_owned());
        }
        if !self.is_session_up && self.part.is_none() && now.duration_since(self.session_changed) > ALONE_MAX
        {
            return ControlFlow::Break("no controller is there".to_owned());
        }
        self.open_shelf(now);
        self.look_at_uploads();
        self.look_at_part();
        if !self.is_session_up {
            self.alone(now.duration_since(self.session_changed));
        }
        ControlFlow::Continue(())
    }

    /// Opens the finished content, unless a fetch has a file of it.
    fn open_shelf(&mut self, now: Instant) {
        let is_early = self.looked_for_shelf.is_some_and(|at| now.duration_since(at) < SHELF_EVERY);
        let is_needed = self.is_finished || self.shelf.is_none();
        if !is_needed || self.is_opening || is_early {
            return;
        }
        (self.is_opening, self.looked_for_shelf) = (true, Some(now));
        let (store, content, handle) = (self.shared.store.clone(), self.content, self.handle.clone());
        let opening = move || {
            let pieces = store.reader(content).and_then(|reader| reader.pieces());
            handle.tell(Event::Here(pieces.ok().map(Arc::new)));
        };
        drop(tokio::task::spawn_blocking(opening));
    }

    /// What is here was removed: the host has nothing, and says so when it has something again.
    fn gone(&mut self) {
        if matches!(self.shelf, Some(Shelf::Here(..))) {
            self.shelf = None;
            self.done.clear();
            self.is_state_due = true;
        }
    }

    fn opened(&mut self, opened: Option<Arc<Pieces>>) {
        self.is_opening = false;
        let Some(pieces) = opened.filter(|_| self.part.is_none()) else { return };
        self.is_finished = false;
        self.done = (0..pieces.len().div_ceil(64)).map(|_| u64::MAX).collect();
        self.pieces = Some(pieces);
        self.shelf = Some(Shelf::Here(self.shared.store.clone(), self.content, self.spool.clone()));
    }

    /// Says to the controller what is due.
    fn speak(&mut self) {
        if !self.is_session_up || !self.is_led {
            return;
        }
        let Some(pieces) = self.pieces.clone().filter(|_| self.shelf.is_some()) else { return };
        let campaign = self.join.campaign;
        if std::mem::take(&mut self.is_state_due) {
            let rest = self.part.as_ref().map_or(0, Part::rest_bytes);
            self.say(CampaignStateV1 {
                campaign,
                n_pieces: pieces.len(),
                done: self.bits(pieces.len()),
                needed_bytes: rest,
                upload_bytes_per_s: self.shared.caps.payload_bytes_per_s(),
                download_bytes_per_s: self.shared.caps.download_bytes_per_s(),
            });
        }
        let now_ms = self.now_ms();
        let report = self.part.as_mut().and_then(|part| part.downloads.report(now_ms));
        let is_quiet = clock::monotonic().duration_since(self.spoke) >= SIGN_OF_LIFE;
        if report.is_some() || is_quiet {
            self.say_report(report);
        }
    }

    /// Says what there is to say, whether its time has come or not.
    pub(super) fn report_now(&mut self) {
        if self.is_session_up && self.is_led && !self.is_state_due {
            let report = self.part.as_mut().and_then(|part| part.downloads.report(u64::MAX));
            self.say_report(report);
        }
    }

    fn say_report(&mut self, report: Option<Report<u32>>) {
        let (finished, failed) =
            report.map_or_else(Default::default, |report| (report.finished, report.failed));
        let finished = finished.into_iter().map(|(piece, from)| FinishedPiece { piece, from });
        self.say(PieceReportV1 {
            campaign: self.join.campaign,
            finished: finished.take(REPORT_PIECES_MAX).collect(),
            failed: failed.into_iter().map(failure).take(REPORT_PIECES_MAX).collect(),
            from_controller_bytes: self.from_controller_bytes,
            from_agents_bytes: self.from_agents_bytes,
            sent_bytes: self.sent_bytes,
        });
    }

    fn say(&mut self, message: impl Into<hearth_protocol::message::control::ToController>) {
        self.spoke = clock::monotonic();
        if self.shared.outbox.try_send(message.into()).is_err() {
            // What it missed, the state says.
            self.is_state_due = true;
            tracing::debug!(content = %self.content, "a report does not get through");
        }
    }

    fn end(self, why: &str) {
        tracing::info!(content = %self.content, campaign = self.join.campaign.number, why, "no part of the campaign any more");
    }

    pub(super) const fn state_is_due(&mut self) {
        self.is_state_due = true;
    }

    /// The fetch is done: the finished content takes the place of its file.
    pub(super) fn open_finished(&mut self) {
        self.looked_for_shelf = None;
        self.is_finished = true;
    }

    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(clock::monotonic().duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn has(&self, piece: u32) -> bool {
        self.done.get(piece as usize / 64).is_some_and(|word| word >> (piece % 64) & 1 == 1)
    }

    fn bits(&self, n_pieces: u32) -> Vec<u8> {
        piece_bits(n_pieces, |piece| self.has(piece))
    }
}

fn failure(failed: Failed<u32>) -> PieceFailure {
    let Failed { piece, from, how, is_last } = failed;
    PieceFailure { piece, from, how: kind(how), is_last }
}

/// The wire's word for the end of a request.
pub(super) const fn kind(how: Ended) -> FailureKind {
    match how {
        Ended::Late | Ended::Busy => FailureKind::Late,
        Ended::Missing => FailureKind::Missing,
        Ended::Broken | Ended::Whole => FailureKind::Silent,
        Ended::Wrong => FailureKind::Wrong,
    }
}

impl Drop for Campaign {
    /// Also after a defect: a fetch that waited for a campaign that is no more would wait for ever.
    fn drop(&mut self) {
        self.handle.end();
        self.leave_part();
        if let Some(spool) = self.spool.take() {
            self.shared.keep_spool(self.content, spool);
        }
        let mut running = self.shared.running();
        if running.get(&self.content).is_some_and(Handle::is_over) {
            running.remove(&self.content);
        }
    }
}
