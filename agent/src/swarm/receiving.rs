//! The side of a campaign that receives.
//!
//! **What.** [`Part`] is a fetch that takes part: its leases, the requests that follow them, the transfers that run.
//! **Why transfers have numbers.** A transfer that was given up may still end by itself; what it then says is about nothing.
//! **Invariants.** Each transfer that the decisions know of runs here, and the other way round. A part that ends leaves no
//! request behind.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_protocol::message::control::BadChunkV1;
use hearth_protocol::message::swarm::{GrantV1, HOLDERS_MAX, PieceLeasesV1, SOURCE};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::campaign::{Campaign, kind};
use super::parts::{PartEnd, Taking};
use super::peers::Peer;
use super::relay::{Relay, Shelf};
use super::request::{self, Asked, Go, Ground, Holder, Outcome};
use crate::logic::swarm::{Downloads, Ended, Lease, Neighbours, Wish, window};
use crate::transfer::heard::Heard;
use crate::{metrics as names, task};

/// Hosts that are remembered; more are a mistake of the controller.
const PEERS_KNOWN_MAX: usize = 1 << 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Part {
    number: u64,
    pub(super) downloads: Downloads<u32>,
    pub(super) neighbours: Neighbours<u32>,
    pub(super) ground: Ground,
    bad_chunks: mpsc::Sender<BadChunkV1>,
    /// Per piece that is leased: cancelled when nothing of it is expected any more.
    coming: HashMap<u32, CancellationToken>,
    transfers: HashMap<u64, Transfer>,
    /// Offers that came when the window was full.
    later: Vec<(u32, u32)>,
    pub(super) asked_neighbours: Option<Instant>,
    end: Option<oneshot::Sender<PartEnd>>,
}

#[derive(Debug)]
struct Transfer {
    piece: u32,
    from: u32,
    heard: Arc<Heard>,
    mark: u64,
    stop: CancellationToken,
}

impl Part {
    /// Whether bytes of a piece come now.
    pub(super) fn receives(&self, piece: u32) -> bool {
        self.transfers.values().any(|transfer| transfer.piece == piece)
    }

    /// Cancelled when nothing of a piece is expected any more; `None` if nothing is.
    pub(super) fn coming(&self, piece: u32) -> Option<CancellationToken> {
        self.coming.get(&piece).cloned()
    }

    /// Raw bytes that are missing, about.
    pub(super) fn rest_bytes(&self) -> u64 {
        let rest = self.ground.relay.rest();
        let spec = self.ground.relay.staging.spec();
        spec.data_bytes * u64::from(rest.count()) / u64::from(rest.len().max(1))
    }

    /// Shows this grant from now on.
    pub(super) fn show(&mut self, grant: GrantV1) {
        self.ground.grant = grant;
    }

    fn stop_all(&mut self) {
        self.transfers.drain().for_each(|(_, transfer)| transfer.stop.cancel());
        self.coming.drain().for_each(|(_, coming)| coming.cancel());
        self.later.clear();
    }
}

impl Campaign {
    /// A fetch hands its file over.
    pub(super) fn take(&mut self, number: u64, taking: Taking, end: oneshot::Sender<PartEnd>) {
        self.leave_part();
        let Taking { staging, need, decoders, cap, bad_chunks } = taking;
        let pieces = match staging.pieces() {
            Ok(pieces) => pieces,
            // Fails only if the receiver has gone.
            Err(error) => return drop(end.send(PartEnd::Failed(error))),
        };
        let n_pieces = pieces.len();
        self.done = vec![0; n_pieces.div_ceil(64) as usize];
        let is_done = |piece: u32| need.iter_in(pieces.chunks(piece).unwrap_or_default()).next().is_none();
        let mut n_left = 0;
        for piece in 0..n_pieces {
            if is_done(piece) {
                self.done[piece as usize / 64] |= 1 << (piece % 64);
            } else {
                n_left += 1;
            }
        }
        let relay = Arc::new(Relay::new(staging, self.spool.clone(), need));
        let ground = Ground {
            shared: Arc::clone(&self.shared),
            relay: Arc::clone(&relay),
            grant: self.join.grant.clone(),
            decoders,
            cap,
            events: self.handle.events(),
        };
        self.shelf = Some(Shelf::Coming(relay));
        self.pieces = Some(pieces);
        self.part = Some(Part {
            number,
            downloads: self.downloads(n_pieces, n_left),
            neighbours: Neighbours::default(),
            ground,
            bad_chunks,
            coming: HashMap::new(),
            transfers: HashMap::new(),
            later: Vec::new(),
            asked_neighbours: None,
            end: Some(end),
        });
        self.state_is_due();
        self.finish_if_whole();
    }

    fn downloads(&self, n_pieces: u32, n_left: u32) -> Downloads<u32> {
        let caps = &self.shared.caps;
        let slots = usize::from(self.join.slots.max(1));
        let window = window(slots, caps.upload_bytes_per_s(), caps.download_bytes_per_s());
        Downloads::new(window, self.join.lease_ms.clamp(500, 120_000).into(), n_pieces, n_left)
    }

    /// The fetch ended.
    pub(super) fn part_over(&mut self, number: u64, is_active: bool) {
        if self.part.as_ref().is_none_or(|part| part.number != number) {
            return;
        }
        if is_active {
            // The file's descriptor is good until the finished content is opened in its place.
            self.part = None;
            self.open_finished();
        } else {
            self.leave_part();
        }
    }

    /// Gives the file back, if there is one.
    pub(super) fn leave_part(&mut self) {
        let Some(mut part) = self.part.take() else { return };
        part.stop_all();
        part.ground.relay.close();
        if let Some(end) = part.end.take() {
            // Fails only if the fetch was dropped.
            drop(end.send(PartEnd::Left(part.ground.relay.rest())));
        }
        self.shelf = None;
        self.done.clear();
        self.state_is_due();
    }

    /// Another controller leads, with other numbers: what is leased by the old ones is forgotten.
    pub(super) fn forget_leases(&mut self) {
        let n_pieces = self.pieces.as_ref().map_or(0, |pieces| pieces.len());
        let n_left = (0..n_pieces).filter(|piece| !self.has(*piece)).count();
        let downloads = self.downloads(n_pieces, u32::try_from(n_left).unwrap_or(u32::MAX));
        if let Some(part) = &mut self.part {
            part.stop_all();
            part.downloads = downloads;
            part.neighbours = Neighbours::default();
        }
    }

    pub(super) fn leases(&mut self, leases: PieceLeasesV1) {
        for peer in &leases.peers {
            if peer.host != SOURCE && self.peers.len() < PEERS_KNOWN_MAX {
                self.peers.insert(peer.host, Arc::new(Peer::new(peer)));
            }
        }
        let n_pieces = self.pieces.as_ref().map_or(0, |pieces| pieces.len());
        for lease in leases.leases.iter().filter(|lease| lease.piece < n_pieces) {
            let mut holders = [None; HOLDERS_MAX];
            let known = lease.holders.iter().filter(|host| **host == SOURCE || self.peers.contains_key(host));
            holders.iter_mut().zip(known).for_each(|(place, host)| *place = Some(*host));
            self.follow(Lease { piece: lease.piece, holders });
        }
    }

    pub(super) fn follow(&mut self, lease: Lease<u32>) {
        let (now_ms, is_here) = (self.now_ms(), self.has(lease.piece));
        let Some(part) = &mut self.part else {
            // The controller does not know what is here.
            return self.state_is_due();
        };
        if is_here {
            return part.downloads.has_already(lease.piece);
        }
        lease
            .holders
            .iter()
            .flatten()
            .filter(|host| **host != SOURCE)
            .for_each(|host| part.neighbours.note(*host));
        tracing::trace!(piece = lease.piece, holders = ?lease.holders, now_ms, "a lease");
        let asked = part.downloads.take(lease, now_ms);
        asked.into_iter().for_each(|from| self.ask(lease.piece, from));
    }

    fn ask(&mut self, piece: u32, from: u32) {
        let peer = self.peers.get(&from).cloned();
        let chunks = self.pieces.as_ref().and_then(|pieces| pieces.chunks(piece)).unwrap_or_default();
        let Some(part) = &mut self.part else { return };
        let holder = match peer {
            _ if from == SOURCE => Holder::Controller,
            Some(peer) => Holder::Agent(peer),
            None => return,
        };
        let coming = part.coming.entry(piece).or_default().child_token();
        let patience = Duration::from_millis(self.join.lease_ms.clamp(500, 120_000).into());
        let asked = Asked { piece, from, chunks, patience };
        task::spawn("request", request::ask(part.ground.clone(), holder, asked, coming));
    }

    /// A holder is ready: it is told to go on if nobody else was first.
    pub(super) fn offered(&mut self, piece: u32, from: u32, has_all: bool, answer: oneshot::Sender<Go>) {
        let now_ms = self.now_ms();
        let chunks = self.pieces.as_ref().and_then(|pieces| pieces.chunks(piece)).unwrap_or_default();
        let Some(part) = &mut self.part else { return };
        match part.downloads.wish(piece, from) {
            Wish::Never => return,
            Wish::Later if from != SOURCE => return part.later.push((piece, from)),
            // The controller's bytes are on their way, and everybody waits for them.
            Wish::Later | Wish::Now => {}
        }
        tracing::trace!(piece, from, has_all, now_ms, "an offer is taken");
        part.downloads.begins(piece, from, has_all, now_ms);
        self.last_transfer += 1;
        let (number, heard, stop) = (self.last_transfer, Arc::<Heard>::default(), CancellationToken::new());
        let go = Go { number, mask: part.ground.relay.wanted_in(chunks), heard: Arc::clone(&heard), stop };
        let transfer = Transfer { piece, from, heard, mark: 0, stop: go.stop.clone() };
        part.transfers.insert(number, transfer);
        if go.mask.is_empty() {
            // All of it came before the last transfer broke.
            return self.transfer_ended(number, piece, from, Ended::Whole);
        }
        if answer.send(go).is_err() {
            return self.transfer_ended(number, piece, from, Ended::Broken);
        }
        self.uploads.piece_begins(piece);
    }

    pub(super) fn request_ended(&mut self, outcome: Outcome) {
        let Outcome { piece, from, number, how, moved_bytes, raw_bytes, bad, failed } = outcome;
        let content = self.content;
        let Some(part) = &mut self.part else { return };
        part.ground.relay.staging.add_moved(moved_bytes);
        metrics::counter!(names::FETCH_STORED_BYTES).increment(moved_bytes);
        metrics::counter!(names::FETCH_RAW_BYTES).increment(raw_bytes);
        metrics::counter!(names::FETCH_BAD_CHUNKS).increment(bad.len() as u64);
        for chunk in bad {
            tracing::warn!(%content, chunk, from, "a chunk came with wrong bytes");
            let report = BadChunkV1 { content, chunk, source: None };
            if from == SOURCE && part.bad_chunks.try_send(report).is_err() {
                tracing::debug!("too many reports of bad chunks; this one is dropped");
            }
        }
        if let Some(error) = failed {
            part.stop_all();
            if let Some(end) = part.end.take() {
                // Fails only if the fetch was dropped.
                drop(end.send(PartEnd::Failed(error)));
            }
            return;
        }
        if from == SOURCE {
            self.from_controller_bytes += moved_bytes;
        } else {
            metrics::counter!(names::PEER_BYTES).increment(moved_bytes);
            self.from_agents_bytes += moved_bytes;
        }
        match number {
            Some(number) => self.transfer_ended(number, piece, from, how),
            None => self.holder_ended(piece, from, how),
        }
    }

    fn transfer_ended(&mut self, number: u64, piece: u32, from: u32, how: Ended) {
        let Some(part) = &mut self.part else { return };
        // One that was given up before ends here for nothing.
        if part.transfers.remove(&number).is_some() {
            self.holder_ended(piece, from, how);
        }
    }

    /// A request ended, before or after its transfer began.
    fn holder_ended(&mut self, piece: u32, from: u32, how: Ended) {
        let now_ms = self.now_ms();
        let Some(part) = &mut self.part else { return };
        if how != Ended::Whole {
            metrics::counter!(names::HOLDER_FAILURES, "how" => word(how)).increment(1);
            tracing::debug!(content = %self.content, piece, from, how = word(how), "a holder did not give a piece");
        }
        let again = part.downloads.ended(piece, from, how, now_ms);
        if matches!(how, Ended::Wrong | Ended::Broken) {
            part.neighbours.forget(from);
        }
        if how == Ended::Whole {
            let hedges = part.transfers.extract_if(|_, transfer| transfer.piece == piece);
            hedges.for_each(|(_, transfer)| transfer.stop.cancel());
        }
        if !part.downloads.expects(piece)
            && let Some(coming) = part.coming.remove(&piece)
        {
            coming.cancel();
        }
        if how == Ended::Whole {
            self.done[piece as usize / 64] |= 1 << (piece % 64);
            tracing::trace!(piece, from, now_ms, "a piece is whole");
            self.uploads.piece_begins(piece);
            self.finish_if_whole();
        } else if self.part.as_ref().is_some_and(|part| !part.downloads.expects(piece)) {
            self.piece_fails(piece);
        }
        again.into_iter().for_each(|other| self.ask(piece, other));
        self.ask_later_ones();
    }

    fn ask_later_ones(&mut self) {
        let Some(part) = &mut self.part else { return };
        let mut now = Vec::new();
        let downloads = &part.downloads;
        part.later.retain(|(piece, from)| match downloads.wish(*piece, *from) {
            Wish::Now => {
                now.push((*piece, *from));
                false
            }
            Wish::Later => true,
            Wish::Never => false,
        });
        now.into_iter().for_each(|(piece, from)| self.ask(piece, from));
    }

    fn finish_if_whole(&mut self) {
        if self.part.as_ref().is_none_or(|part| part.downloads.n_left() > 0) {
            return;
        }
        // The last news would else wait for its turn, and end with the part.
        self.report_now();
        let Some(part) = &mut self.part else { return };
        part.stop_all();
        let rest = part.ground.relay.rest();
        let end = if rest.is_empty() { PartEnd::Complete } else { PartEnd::Left(rest) };
        if let Some(sender) = part.end.take() {
            // Fails only if the fetch was dropped.
            drop(sender.send(end));
        }
    }

    /// Stalls, leases that expire, hedges.
    pub(super) fn look_at_part(&mut self) {
        let now_ms = self.now_ms();
        let Some(part) = &mut self.part else { return };
        for transfer in part.transfers.values_mut() {
            let mark = transfer.heard.mark();
            if std::mem::replace(&mut transfer.mark, mark) != mark {
                part.downloads.came(transfer.piece, transfer.from, now_ms);
            }
        }
        for (piece, from, how) in part.downloads.stalled(now_ms) {
            let Some(part) = &mut self.part else { return };
            let is_it = |_: &u64, transfer: &mut Transfer| transfer.piece == piece && transfer.from == from;
            part.transfers.extract_if(is_it).for_each(|(_, transfer)| transfer.stop.cancel());
            self.holder_ended(piece, from, how);
        }
        let Some(part) = &mut self.part else { return };
        let expired = part.downloads.expire(now_ms);
        for (piece, _) in expired {
            if let Some(coming) = self.part.as_mut().and_then(|part| part.coming.remove(&piece)) {
                coming.cancel();
                self.piece_fails(piece);
            }
        }
        let hedged = self.part.as_mut().map(|part| part.downloads.hedge(now_ms)).unwrap_or_default();
        hedged.into_iter().for_each(|(piece, from)| self.ask(piece, from));
    }
}

const fn word(how: Ended) -> &'static str {
    use hearth_protocol::message::swarm::FailureKind;
    match kind(how) {
        FailureKind::Late => "late",
        FailureKind::Missing => "missing",
        FailureKind::Silent => "silent",
        FailureKind::Wrong => "wrong",
    }
}
