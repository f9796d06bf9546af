//! What is said in a swarm: between controller and agent on the session, between agents on data streams.
//!
//! ```text
//!  controller ── JoinCampaign, PieceLeases, EndCampaign ──▶ agent      agent ── FetchPiece, Go ──────────▶ agent
//!             ◀── CampaignState, PieceReport ─────────────                    ◀── Ready, PieceFollows, chunks ──
//! ```
//! **What.** A campaign is the distribution of one content to many hosts, numbered by its controller; an epoch counts the
//! lives of the controller, so that news of an earlier life is not taken for news. Hosts have small numbers in it; 0 is the
//! controller. All of it is spoken from version 4 on.
//! **Why the receiver says Go.** It asks three holders and takes the first that is ready. Bytes that were sent before it
//! chose would be sent twice. And only then it knows which chunks it still lacks: another may have sent a part.
//! **Why the grant is in every request.** It has 152 bytes beside a megabyte, and streams of one connection come in any
//! order: shown once per connection, the second request could overtake it.
//! **Invariants.** A host is described (key, addresses) before or with the first lease that names it. A lease names one to
//! three holders. A chunk stream has no announced length: what a holder passes on while it receives has none yet; each chunk
//! is bounded by the manifest.

use bincode::{Decode, Encode};

use crate::digest::{AgentId, ContentId};
use crate::id::LocationId;

/// Most leases in one message.
pub const PIECE_LEASES_MAX: usize = 512;
/// Most holders in a lease.
pub const HOLDERS_MAX: usize = 3;
/// Most pieces that a report names, finished and failed each.
pub const REPORT_PIECES_MAX: usize = 4096;
/// Most hosts described in one message.
pub const PEERS_MAX: usize = 128;
/// Most addresses of one host.
pub const PEER_ADDRESSES_MAX: usize = 16;
/// Most agents that are denied at once.
pub const DENIED_MAX: usize = 4096;
/// Most pieces of a content: a terabyte of pieces of a megabyte.
pub const PIECES_MAX: u32 = 1 << 20;
/// The controller's own number in every campaign.
pub const SOURCE: u32 = 0;

/// One campaign in one life of its controller.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Encode, Decode)]
pub struct Campaign {
    /// Life of the controller.
    pub epoch: u64,
    /// Its number in that life.
    pub number: u64,
}

/// A host becomes a part of a campaign, as one that needs the content or one that has it. It answers with a
/// [`CampaignStateV1`]. Said again, it asks for another one.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct JoinCampaignV1 {
    /// Where.
    pub location: LocationId,
    /// Which.
    pub campaign: Campaign,
    /// `host:port` of the controllers that lead it; empty: the one of this session.
    pub controllers: Vec<String>,
    /// Uploads at once, at least 1.
    pub slots: u16,
    /// How long a lease is valid, ms.
    pub lease_ms: u32,
    /// What the host shows to others. Names the content.
    pub grant: GrantV1,
    /// Ed25519 key that the grants of others are checked with.
    pub grant_key: [u8; 32],
}

/// The right to fetch a content from other agents.
#[derive(Clone, Debug, Eq, Hash, PartialEq, Encode, Decode)]
pub struct GrantV1 {
    /// What.
    pub content: ContentId,
    /// Whose: the key that the holder's TLS certificate has.
    pub agent: AgentId,
    /// From when, milliseconds since the epoch.
    pub not_before_unix_ms: u64,
    /// Until when, milliseconds since the epoch.
    pub not_after_unix_ms: u64,
    /// Life of the controller that gave it.
    pub epoch: u64,
    /// Ed25519 over [`GrantV1::signed_bytes`].
    pub signature: [u8; 64],
}

impl GrantV1 {
    /// What the signature covers: a word that no other signature begins with, and every field.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = b"hearth grant 1\0".to_vec();
        bytes.extend_from_slice(self.content.as_bytes());
        bytes.extend_from_slice(self.agent.as_bytes());
        for number in [self.not_before_unix_ms, self.not_after_unix_ms, self.epoch] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes
    }
}

/// A host that leases name.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct PeerV1 {
    /// Its number in the campaign, not [`SOURCE`].
    pub host: u32,
    /// Its location, for reports and logs.
    pub location: LocationId,
    /// Its key; who shows another is not believed.
    pub agent: AgentId,
    /// `ip:port` under which it is reached, the best first; at most [`PEER_ADDRESSES_MAX`].
    pub addresses: Vec<String>,
}

/// Pieces to fetch.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct PieceLeasesV1 {
    /// In which campaign.
    pub campaign: Campaign,
    /// Hosts that were not described before, at most [`PEERS_MAX`].
    pub peers: Vec<PeerV1>,
    /// At most [`PIECE_LEASES_MAX`].
    pub leases: Vec<PieceLease>,
}

/// One piece, from one of some holders.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct PieceLease {
    /// Which piece.
    pub piece: u32,
    /// Hosts that have it or will, the best first; 1 to [`HOLDERS_MAX`].
    pub holders: Vec<u32>,
}

/// A campaign is over, or over for this host: what is still missing comes from the controller.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct EndCampaignV1 {
    /// Which.
    pub campaign: Campaign,
    /// For people.
    pub reason: String,
}

/// Agents that are served nothing, whatever they show: the whole list, which replaces what was said before.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct DenyV1 {
    /// Their keys, at most [`DENIED_MAX`].
    pub agents: Vec<AgentId>,
}

/// What a host has when it becomes part of a campaign.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct CampaignStateV1 {
    /// In which campaign.
    pub campaign: Campaign,
    /// Pieces of the content, at most [`PIECES_MAX`].
    pub n_pieces: u32,
    /// A bit per piece of which nothing is missing, lowest piece in the lowest bit.
    pub done: Vec<u8>,
    /// Raw bytes that are missing in all.
    pub needed_bytes: u64,
    /// What the host may send for campaigns, bytes per second, at least 1.
    pub upload_bytes_per_s: u64,
    /// What it may receive, bytes per second, at least 1.
    pub download_bytes_per_s: u64,
}

/// News of pieces, and a sign of life at least twice a second.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct PieceReportV1 {
    /// In which campaign.
    pub campaign: Campaign,
    /// Pieces that are verified on disk now; at most [`REPORT_PIECES_MAX`].
    pub finished: Vec<FinishedPiece>,
    /// What failed; at most [`REPORT_PIECES_MAX`].
    pub failed: Vec<PieceFailure>,
    /// Stored bytes that came from the controller since the host joined.
    pub from_controller_bytes: u64,
    /// Stored bytes that came from agents.
    pub from_agents_bytes: u64,
    /// Bytes that were sent to agents.
    pub sent_bytes: u64,
}

/// A piece that is verified on disk.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode)]
pub struct FinishedPiece {
    /// Which piece.
    pub piece: u32,
    /// Who sent it; `None`: it was here already.
    pub from: Option<u32>,
}

/// A holder that did not give a piece.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode)]
pub struct PieceFailure {
    /// Which piece.
    pub piece: u32,
    /// Which host.
    pub from: u32,
    /// Why.
    pub how: FailureKind,
    /// No holder of the lease is left.
    pub is_last: bool,
}

/// Why a holder did not give a piece.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Encode, Decode)]
pub enum FailureKind {
    /// It was full, or its own supplier failed it, or the lease expired before its turn.
    Late,
    /// It does not have the piece.
    Missing,
    /// It could not be reached, broke off or stalled.
    Silent,
    /// It sent bytes that fail their hash, or broke the protocol.
    Wrong,
}

/// Asks an agent for a piece: it answers `Ready` when a slot is free and the piece is there or begins to be.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct FetchPieceV1 {
    /// The right to ask. Names the content.
    pub grant: GrantV1,
    /// Which piece.
    pub piece: u32,
}

/// The offer is taken. Who is served elsewhere resets the stream instead.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct GoV1 {
    /// Which chunks of the piece, as in [`super::data::FetchV1`].
    pub mask: Vec<u8>,
}

/// Asks an agent which pieces it has.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct HavingV1 {
    /// The right to ask. Names the content.
    pub grant: GrantV1,
}

/// A slot is free and the piece is here or begins to be: it is kept for a moment.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode)]
pub struct ReadyV1 {
    /// All of the piece is here; else it is passed on as it comes.
    pub has_all: bool,
}

/// Chunks follow, each behind its header; they come as they are verified.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode)]
pub struct PieceFollowsV1 {
    /// How many.
    pub chunks: u32,
}

/// Pieces that an agent has.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct PiecesHereV1 {
    /// Pieces of the content, at most [`PIECES_MAX`].
    pub n_pieces: u32,
    /// A bit per piece that is whole, lowest piece in the lowest bit.
    pub done: Vec<u8>,
}

/// Packs pieces into the bits of a message.
#[must_use]
pub fn piece_bits(n_pieces: u32, has: impl Fn(u32) -> bool) -> Vec<u8> {
    let mut bits = vec![0; n_pieces.div_ceil(8) as usize];
    for piece in (0..n_pieces).filter(|piece| has(*piece)) {
        bits[piece as usize / 8] |= 1 << (piece % 8);
    }
    bits
}

/// The pieces that the bits of a message name; bits past `n_pieces` are ignored.
pub fn pieces_in(n_pieces: u32, bits: &[u8]) -> impl Iterator<Item = u32> + '_ {
    (0..n_pieces)
        .filter(|piece| bits.get(*piece as usize / 8).is_some_and(|byte| byte >> (piece % 8) & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_survive_their_bits() {
        let has = |piece: u32| piece.is_multiple_of(3);
        let bits = piece_bits(19, has);
        assert_eq!(bits.len(), 3);
        assert_eq!(pieces_in(19, &bits).collect::<Vec<_>>(), (0..19).filter(|p| has(*p)).collect::<Vec<_>>());
        assert_eq!(pieces_in(64, &bits).max(), Some(18), "bytes that are missing are no pieces");
    }

    #[test]
    fn a_signature_covers_every_field() {
        let grant = GrantV1 {
            content: ContentId::of(b"c"),
            agent: AgentId::of(b"a"),
            not_before_unix_ms: 1,
            not_after_unix_ms: 2,
            epoch: 3,
            signature: [0; 64],
        };
        let others = [
            GrantV1 { content: ContentId::of(b"d"), ..grant.clone() },
            GrantV1 { agent: AgentId::of(b"b"), ..grant.clone() },
            GrantV1 { not_before_unix_ms: 9, ..grant.clone() },
            GrantV1 { not_after_unix_ms: 9, ..grant.clone() },
            GrantV1 { epoch: 9, ..grant.clone() },
        ];
        assert!(others.iter().all(|other| other.signed_bytes() != grant.signed_bytes()));
    }
}
