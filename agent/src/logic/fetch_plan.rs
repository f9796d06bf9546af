//! Which chunks of a content to ask for next, and when to give up.
//!
//! **What.** Holds the need mask of one fetch, cut into pieces; hands out requests and takes back how they ended.
//! **Why pieces in order.** The sender reads its object front to back and our writes extend the file front to back;
//! with 16 requests in flight there is nothing to win by another order from one source.
//!
//! **Invariants**, each with a test of the same name:
//! 1. `every_needed_chunk_is_asked_for_and_none_twice_at_once`.
//! 2. `a_chunk_that_stays_bad_ends_the_fetch`.
//! 3. `a_source_that_gives_nothing_ends_the_fetch`.
//! 4. `a_lost_connection_costs_no_try`.
//! 5. `urgent_pieces_come_first`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hearth_protocol::fault::FaultCode;
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::piece::Pieces;

/// Times a chunk may come with wrong bytes before the fetch fails.
pub const BAD_CHUNK_TRIES: u8 = 3;
/// Times in a row that a piece may bring no chunk for another reason than load before the fetch fails.
pub const EMPTY_TRIES: u8 = 6;
/// Times in a row that a piece may be answered against the protocol: such a source does not mend itself.
pub const PROTOCOL_TRIES: u8 = 3;
/// Times in a row that a piece may be answered `Busy` and the like: about ten minutes at the usual delays.
pub const BUSY_TRIES: u16 = 600;
/// First pause of a piece that failed, ms; doubled per failure.
const PAUSE_MS: u64 = 500;
/// Longest pause of a piece, ms.
const PAUSE_MS_MAX: u64 = 10_000;

/// What to do now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Next {
    /// Ask for these chunks of this piece.
    Request {
        /// The piece.
        piece: u32,
        /// Its chunks, counted from the piece's first.
        mask: ChunkMask,
    },
    /// Nothing before this time.
    WaitUntil {
        /// Milliseconds, on the clock of `now_ms`.
        ms: u64,
    },
    /// All that is missing is being asked for.
    InFlight,
    /// Every chunk is there.
    Complete,
}

/// How a request ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ended {
    /// The answer came whole; chunks with wrong bytes are named.
    Answered {
        /// Chunks that failed their hash.
        bad: Vec<u32>,
    },
    /// The source said no.
    Fault {
        /// Why.
        fault: FaultCode,
        /// Not before, ms; 0 for the fault's own rule.
        retry_after_ms: u32,
    },
    /// The stream broke, stalled or spoke another protocol.
    Broken {
        /// What to report if it goes on like this.
        fault: FaultCode,
    },
    /// The whole connection is gone: nobody's fault.
    LinkLost,
}

/// See the module.
#[derive(Debug)]
pub struct FetchPlan {
    pieces: Pieces,
    need: ChunkMask,
    queue: VecDeque<u32>,
    paused: BTreeMap<u32, u64>,
    in_flight: BTreeSet<u32>,
    bad: BTreeMap<u32, u8>,
    empty: BTreeMap<u32, u16>,
}

impl FetchPlan {
    /// A plan for the chunks in `need`.
    #[must_use]
    pub fn new(pieces: Pieces, need: ChunkMask) -> Self {
        let queue = (0..pieces.len()).filter(|piece| needs(&pieces, &need, *piece)).collect();
        Self {
            pieces,
            need,
            queue,
            paused: BTreeMap::new(),
            in_flight: BTreeSet::new(),
            bad: BTreeMap::new(),
            empty: BTreeMap::new(),
        }
    }

    /// Chunks that are still missing.
    #[must_use]
    pub const fn need(&self) -> &ChunkMask {
        &self.need
    }

    /// The cut of the content.
    #[must_use]
    pub const fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    /// What to ask for next.
    #[must_use]
    pub fn next(&mut self, now_ms: u64) -> Next {
        let due = self.paused.iter().filter(|(_, at_ms)| **at_ms <= now_ms).map(|(piece, _)| *piece).next();
        if let Some(piece) = due {
            self.paused.remove(&piece);
            self.queue.push_front(piece);
        }
        while let Some(piece) = self.queue.pop_front() {
            let chunks = self.pieces.chunks(piece).unwrap_or_default();
            let mask = self.need.slice(chunks);
            if !mask.is_empty() {
                self.in_flight.insert(piece);
                return Next::Request { piece, mask };
            }
        }
        match self.paused.values().min() {
            Some(ms) => Next::WaitUntil { ms: *ms },
            None if !self.in_flight.is_empty() => Next::InFlight,
            None => Next::Complete,
        }
    }

    /// These chunks are verified and written.
    pub fn done(&mut self, chunks: &[u32]) {
        let n_chunks = self.need.len();
        chunks.iter().filter(|chunk| **chunk < n_chunks).for_each(|chunk| self.need.remove(*chunk));
    }

    /// Somebody waits for this chunk: its piece goes first.
    pub fn urgent(&mut self, chunk: u32) {
        let Some(piece) = self.pieces.piece_of(chunk) else { return };
        if let Some(at) = self.queue.iter().position(|queued| *queued == piece) {
            self.queue.remove(at);
            self.queue.push_front(piece);
        }
    }

    /// Takes back a request. `gained` says whether any chunk of it was verified.
    ///
    /// # Errors
    /// The fault with which the fetch as a whole must end.
    pub fn settle(&mut self, piece: u32, ended: &Ended, gained: bool, now_ms: u64) -> Result<(), FaultCode> {
        self.in_flight.remove(&piece);
        if gained {
            self.empty.remove(&piece);
        }
        if !needs(&self.pieces, &self.need, piece) {
            return Ok(());
        }
        let pause_ms = match ended {
            Ended::LinkLost => 0,
            Ended::Answered { bad } if !bad.is_empty() => self.count_bad(bad)?,
            // A whole answer that leaves chunks out breaks the contract.
            Ended::Answered { .. } => self.count_empty(piece, FaultCode::Protocol, PROTOCOL_TRIES)?,
            Ended::Broken { fault: FaultCode::Protocol } => {
                self.count_empty(piece, FaultCode::Protocol, PROTOCOL_TRIES)?
            }
            Ended::Broken { fault } => self.count_empty(piece, *fault, EMPTY_TRIES)?,
            Ended::Fault { fault, retry_after_ms } => self.refused(piece, *fault, *retry_after_ms)?,
        };
        if pause_ms == 0 {
            self.queue.push_front(piece);
        } else {
            self.paused.insert(piece, now_ms.saturating_add(pause_ms));
        }
        Ok(())
    }

    fn count_bad(&mut self, chunks: &[u32]) -> Result<u64, FaultCode> {
        let mut worst = 0;
        for chunk in chunks {
            let tries = self.bad.entry(*chunk).or_insert(0);
            *tries += 1;
            worst = worst.max(*tries);
        }
        if worst >= BAD_CHUNK_TRIES { Err(FaultCode::BadBytes) } else { Ok(grown(worst.into())) }
    }

    fn count_empty(&mut self, piece: u32, fault: FaultCode, tries_max: u8) -> Result<u64, FaultCode> {
        let tries = self.empty.entry(piece).or_insert(0);
        *tries += 1;
        if *tries >= u16::from(tries_max) { Err(fault) } else { Ok(grown(*tries)) }
    }

    fn refused(&mut self, piece: u32, fault: FaultCode, retry_after_ms: u32) -> Result<u64, FaultCode> {
        let asked = u64::from(retry_after_ms).min(60_000);
        match fault {
            FaultCode::Busy | FaultCode::Closing | FaultCode::Damaged => {
                let tries = self.empty.entry(piece).or_insert(0);
                *tries += 1;
                if *tries >= BUSY_TRIES {
                    return Err(fault);
                }
                Ok(if asked > 0 {
                    asked
                } else {
                    PAUSE_MS * if fault == FaultCode::Damaged { 10 } else { 1 }
                })
            }
            FaultCode::Internal | FaultCode::Disk | FaultCode::Unknown(_) => {
                Ok(self.count_empty(piece, fault, EMPTY_TRIES)?.max(asked))
            }
            other => Err(other),
        }
    }
}

fn needs(pieces: &Pieces, need: &ChunkMask, piece: u32) -> bool {
    pieces.chunks(piece).is_some_and(|chunks| need.iter_in(chunks).next().is_some())
}

fn grown(tries: u16) -> u64 {
    (PAUSE_MS << tries.saturating_sub(1).min(10)).min(PAUSE_MS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 40 chunks of 256 KiB: pieces of 1 MiB with 4 chunks each.
    fn plan() -> FetchPlan {
        let mut pieces = Pieces::new(40 << 18);
        (0..40).for_each(|_| pieces.push(1 << 18));
        assert_eq!(pieces.len(), 10);
        FetchPlan::new(pieces, ChunkMask::full(40))
    }

    fn request(plan: &mut FetchPlan, now_ms: u64) -> (u32, ChunkMask) {
        match plan.next(now_ms) {
            Next::Request { piece, mask } => (piece, mask),
            other => panic!("expected a request, got {other:?}"),
        }
    }

    #[test]
    fn every_needed_chunk_is_asked_for_and_none_twice_at_once() {
        let mut plan = plan();
        plan.done(&[0, 1, 2, 3, 5]);
        let mut asked = Vec::new();
        while let Next::Request { piece, mask } = plan.next(0) {
            let first = plan.pieces().chunks(piece).unwrap().start;
            asked.extend(mask.iter().map(|chunk| first + chunk));
        }
        let expected: Vec<u32> = (4..40).filter(|chunk| *chunk != 5).collect();
        assert_eq!(asked, expected);
        assert_eq!(plan.next(0), Next::InFlight);
        plan.done(&expected);
        for piece in 1..10 {
            plan.settle(piece, &Ended::Answered { bad: vec![] }, true, 0).unwrap();
        }
        assert_eq!(plan.next(0), Next::Complete);
    }

    #[test]
    fn a_chunk_that_stays_bad_ends_the_fetch() {
        let mut plan = plan();
        let mut now_ms = 0;
        for _ in 1..BAD_CHUNK_TRIES {
            let (piece, _) = request(&mut plan, now_ms);
            assert_eq!(piece, 0);
            plan.done(&[0, 1, 3]);
            plan.settle(0, &Ended::Answered { bad: vec![2] }, true, now_ms).unwrap();
            now_ms += 60_000;
        }
        let (piece, mask) = request(&mut plan, now_ms);
        assert_eq!((piece, mask.count(), mask.contains(2)), (0, 1, true));
        let ended = plan.settle(0, &Ended::Answered { bad: vec![2] }, false, now_ms);
        assert_eq!(ended, Err(FaultCode::BadBytes));
    }

    #[test]
    fn a_source_that_gives_nothing_ends_the_fetch() {
        let mut plan = plan();
        let broken = Ended::Broken { fault: FaultCode::Unreachable };
        let mut now_ms = 0;
        let ended = loop {
            let (piece, _) = request(&mut plan, now_ms);
            match plan.settle(piece, &broken, false, now_ms) {
                Ok(()) => now_ms += 60_000,
                Err(fault) => break fault,
            }
            assert!(now_ms < 3_600_000, "never gives up");
        };
        assert_eq!(ended, FaultCode::Unreachable);
        let mut plan = self::plan();
        let (piece, _) = request(&mut plan, 0);
        let not_placed = Ended::Fault { fault: FaultCode::NotPlaced, retry_after_ms: 0 };
        assert_eq!(plan.settle(piece, &not_placed, false, 0), Err(FaultCode::NotPlaced));
    }

    #[test]
    fn busy_waits_as_long_as_it_was_told() {
        let mut plan = plan();
        (0..10).for_each(|_| {
            request(&mut plan, 0);
        });
        let busy = Ended::Fault { fault: FaultCode::Busy, retry_after_ms: 700 };
        plan.settle(3, &busy, false, 1000).unwrap();
        (0..10).filter(|piece| *piece != 3).for_each(|piece| {
            plan.settle(piece, &Ended::LinkLost, false, 1000).unwrap();
        });
        (0..9).for_each(|_| assert_ne!(request(&mut plan, 1699).0, 3));
        assert_eq!(plan.next(1699), Next::WaitUntil { ms: 1700 });
        assert_eq!(request(&mut plan, 1700).0, 3);
    }

    #[test]
    fn a_lost_connection_costs_no_try() {
        let mut plan = plan();
        for _ in 0..1000 {
            let (piece, mask) = request(&mut plan, 0);
            assert_eq!((piece, mask.count()), (0, 4));
            plan.settle(piece, &Ended::LinkLost, false, 0).unwrap();
        }
    }

    #[test]
    fn urgent_pieces_come_first() {
        let mut plan = plan();
        plan.urgent(30);
        assert_eq!(request(&mut plan, 0).0, 7);
        assert_eq!(request(&mut plan, 0).0, 0);
    }
}
