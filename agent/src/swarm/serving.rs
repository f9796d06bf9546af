//! The side of a campaign that serves others.
//!
//! **What.** Requests wait in [`Uploads`](crate::logic::swarm::Uploads); whoever's turn it is gets an offer with a slot.
//! **Invariants.** An offer that cannot be delivered gives its slot back.

use hearth_protocol::digest::AgentId;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::campaign::Campaign;
use super::handle::Ticket;
use super::upload::{Offer, Verdict};
use crate::logic::swarm::{Answer, Wish};

impl Campaign {
    /// Another agent asks for a piece.
    pub(super) fn asked(&mut self, asker: AgentId, piece: u32, verdict: oneshot::Sender<Verdict>) {
        let is_piece = self.pieces.as_ref().is_some_and(|pieces| piece < pieces.len());
        if self.shelf.is_none() || !is_piece {
            return say(verdict, Verdict::Missing);
        }
        let is_here = self.has(piece) || self.part.as_ref().is_some_and(|part| part.receives(piece));
        self.last_ticket += 1;
        let ticket = Ticket { asker, number: self.last_ticket };
        match self.uploads.ask(ticket, piece, is_here, self.now_ms()) {
            Answer::Waits => {
                self.waiting.insert(ticket, verdict);
            }
            Answer::Busy => say(verdict, Verdict::Busy),
        }
    }

    /// Fills the free slots.
    pub(super) fn serve(&mut self) {
        let (Some(shelf), Some(pieces)) = (self.shelf.clone(), self.pieces.clone()) else { return };
        loop {
            let waiting = &self.waiting;
            let wish = |ticket, _| match waiting.get(&ticket) {
                Some(verdict) if !verdict.is_closed() => Wish::Now,
                _ => Wish::Never,
            };
            let next = self.uploads.next(wish, |one, other| one.asker == other.asker);
            let Some((ticket, piece)) = next else { return };
            let Some(verdict) = self.waiting.remove(&ticket) else { continue };
            let has_all = self.has(piece);
            let coming = self.part.as_ref().and_then(|part| part.coming(piece));
            let offer = Offer {
                ticket,
                has_all,
                chunks: pieces.chunks(piece).unwrap_or_default(),
                shelf: shelf.clone(),
                gone: coming.unwrap_or_else(|| {
                    let gone = CancellationToken::new();
                    gone.cancel();
                    gone
                }),
                campaign: self.handle.clone(),
                sent_bytes: 0,
            };
            say(verdict, Verdict::Offer(offer));
        }
    }

    /// Tells those who wait in vain.
    pub(super) fn look_at_uploads(&mut self) {
        self.waiting.retain(|_, verdict| !verdict.is_closed());
        let waiting = &self.waiting;
        self.uploads.retain(|ticket| waiting.contains_key(&ticket));
        let (now_ms, part) = (self.now_ms(), self.part.as_ref());
        let expects = |piece| part.is_some_and(|part| part.downloads.expects(piece));
        for (ticket, _) in self.uploads.missing(expects, now_ms) {
            if let Some(verdict) = self.waiting.remove(&ticket) {
                say(verdict, Verdict::Missing);
            }
        }
    }

    /// A piece will not come: those who wait for it are told.
    pub(super) fn piece_fails(&mut self, piece: u32) {
        for ticket in self.uploads.piece_fails(piece) {
            if let Some(verdict) = self.waiting.remove(&ticket) {
                say(verdict, Verdict::Late);
            }
        }
    }
}

fn say(verdict: oneshot::Sender<Verdict>, word: Verdict) {
    // Fails only if the asker has gone; an offer then gives its slot back by itself.
    drop(verdict.send(word));
}
