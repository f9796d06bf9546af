//! What a fetch and its campaign say to each other.
//!
//! **What.** A fetch hands its staging file over by [`Handle::take_part`](super::handle::Handle::take_part) and waits for a
//! [`PartEnd`]; the [`PartGuard`] that it keeps says when the file is active, or given up.
//! **Invariants.** A fetch that is dropped is heard of: the campaign lets go of the file.

use std::sync::Arc;

use hearth_protocol::mask::ChunkMask;
use hearth_protocol::message::control::BadChunkV1;
use tokio::sync::mpsc;

use super::handle::{Event, Handle};
use crate::store::{Staging, StoreError};
use crate::transfer::decode::Decoders;
use crate::transfer::rate::RateCap;

/// What a fetch brings along.
#[derive(Debug)]
pub struct Taking {
    /// The file that is being made.
    pub staging: Arc<Staging>,
    /// What is to be fetched.
    pub need: ChunkMask,
    /// Unpack, check and write.
    pub decoders: Decoders,
    /// The transfer's cap.
    pub cap: Arc<RateCap>,
    /// Chunks of the controller with wrong bytes are reported here.
    pub bad_chunks: mpsc::Sender<BadChunkV1>,
}

/// How a part ended.
#[derive(Debug)]
pub enum PartEnd {
    /// Every chunk is written.
    Complete,
    /// Nobody leads any more; this is still to be fetched.
    Left(ChunkMask),
    /// The store refuses.
    Failed(StoreError),
}

/// Kept by the fetch until its file is active.
#[derive(Debug)]
pub struct PartGuard {
    pub(super) number: u64,
    pub(super) campaign: Handle,
    pub(super) is_active: bool,
}

impl PartGuard {
    /// The file is active: it is served from there.
    pub fn active(mut self) {
        self.is_active = true;
    }
}

impl Drop for PartGuard {
    fn drop(&mut self) {
        self.campaign.tell(Event::PartOver { number: self.number, is_active: self.is_active });
    }
}
