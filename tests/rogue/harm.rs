//! What a rogue does to those who ask it.
//!
//! **Invariants.** Whatever it does, it is what a real agent's neighbours could meet: bytes on a stream after a handshake that was
//! in order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use hearth_agent::control::credentials::Credentials;
use hearth_agent::swarm::tls;
use hearth_agent::transfer::endpoint::Endpoint;
use hearth_agent::transfer::frames;
use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::message::data::{ChunkHeader, DataReply, DataRequest, Encoding, FaultV1};
use hearth_protocol::message::swarm::{FetchPieceV1, GrantV1, PieceFollowsV1, ReadyV1};
use quinn::{RecvStream, SendStream};

/// What it does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Harm {
    /// Sends chunks of the right length with wrong bytes.
    Corrupt,
    /// Ends the stream in the middle of the first chunk.
    Truncate,
    /// Takes the request, says that chunks follow, and sends none.
    Stall,
    /// Has nothing of what it claims.
    Lie,
    /// Answers with bytes that are no messages.
    Babble,
    /// Shows the grants of others, and its own for other contents, to whoever the controller names.
    Replay,
}

impl Harm {
    pub(crate) fn of(word: &str) -> Option<Self> {
        Some(match word {
            "corrupt" => Self::Corrupt,
            "truncate" => Self::Truncate,
            "stall" => Self::Stall,
            "lie" => Self::Lie,
            "babble" => Self::Babble,
            "replay" => Self::Replay,
            _ => return None,
        })
    }
}

/// What would be right.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// Its first chunk.
    pub(crate) first: u32,
    /// Raw lengths of its chunks.
    pub(crate) lens: Vec<u32>,
}

/// What it learned.
#[derive(Debug, Default)]
pub(crate) struct Loot {
    /// By content and number.
    pub(crate) pieces: Mutex<HashMap<(ContentId, u32), Piece>>,
    /// Grants that others showed to it.
    pub(crate) grants: Mutex<Vec<GrantV1>>,
}

/// Answers other agents from now on.
pub(crate) fn listen(
    endpoint: &Endpoint,
    credentials: &Credentials,
    harm: Harm,
    loot: Arc<Loot>,
) -> Result<()> {
    let server = tls::server(credentials.key(), &credentials.enrolment())?;
    let quinn = endpoint.quinn().clone();
    quinn.set_server_config(Some(endpoint.peer_server_config(server)));
    hearth_agent::task::spawn("listen", async move {
        while let Some(incoming) = quinn.accept().await {
            let loot = Arc::clone(&loot);
            hearth_agent::task::spawn("peer", async move {
                let Ok(connection) = incoming.await else { return };
                while let Ok((send, recv)) = connection.accept_bi().await {
                    let loot = Arc::clone(&loot);
                    hearth_agent::task::spawn("stream", async move {
                        // Whoever is harmed hangs up.
                        drop(answer(harm, &loot, send, recv).await);
                    });
                }
            });
        }
    });
    Ok(())
}

async fn answer(harm: Harm, loot: &Loot, mut send: SendStream, mut recv: RecvStream) -> Result<()> {
    let DataRequest::FetchPiece(FetchPieceV1 { grant, piece }) = frames::read(&mut recv).await? else {
        return Ok(());
    };
    let content = grant.content;
    loot.grants.lock().unwrap_or_else(PoisonError::into_inner).push(grant);
    println!("asked for piece {piece}: {harm:?}");
    match harm {
        Harm::Lie | Harm::Replay => {
            let (fault, text) = (FaultCode::NotFound, "not here".to_owned());
            frames::write(&mut send, &DataReply::from(FaultV1 { fault, text, retry_after_ms: 0 })).await?;
            send.finish()?;
            return Ok(());
        }
        Harm::Babble => {
            send.write_all(&[0xa5; 4096]).await?;
            send.finish()?;
            return Ok(());
        }
        Harm::Corrupt | Harm::Truncate | Harm::Stall => {}
    }
    frames::write(&mut send, &DataReply::from(ReadyV1 { has_all: true })).await?;
    let DataRequest::Go(go) = frames::read(&mut recv).await? else { return Ok(()) };
    let known = loot.pieces.lock().unwrap_or_else(PoisonError::into_inner).get(&(content, piece)).cloned();
    let Some(Piece { first, lens }) = known else { return Ok(()) };
    let mask = ChunkMask::from_bytes(&go.mask, u32::try_from(lens.len())?)?;
    frames::write(&mut send, &DataReply::from(PieceFollowsV1 { chunks: mask.count() })).await?;
    if harm == Harm::Stall {
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    for chunk in mask.iter() {
        let len = lens[chunk as usize];
        let header = ChunkHeader { chunk: first + chunk, encoding: Encoding::Raw, stored_len: len };
        send.write_all(&header.encode()).await?;
        let bytes = vec![0x5a; len as usize];
        if harm == Harm::Truncate {
            send.write_all(&bytes[..bytes.len() / 2]).await?;
            break;
        }
        send.write_all(&bytes).await?;
    }
    send.finish()?;
    Ok(())
}
