//! One piece from one holder: asking, waiting for its turn, taking the chunks.
//!
//! **What.** [`ask()`] runs until the request is over and tells the campaign. From an agent that is an offer and its answer; the
//! controller simply begins when it is the request's turn.
//! **Why the campaign is asked in the middle.** Three holders are asked for a piece; who is ready first gets the word, and the
//! others are told nothing but the end of their stream.
//! **Invariants.** A request ends with exactly one [`Event::RequestEnded`], or with none if its offer was declined or it was
//! called off.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use hearth_protocol::fault::FaultCode;
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::message::data::{DataReply, DataRequest, FetchV1};
use hearth_protocol::message::swarm::{FetchPieceV1, GoV1, GrantV1, HavingV1, PIECES_MAX};
use quinn::{RecvStream, SendStream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::handle::Event;
use super::peers::{Peer, Unreached};
use super::relay::Relay;
use crate::logic::swarm::Ended;
use crate::store::StoreError;
use crate::transfer::ask::{self, AskError, Brought, Intake, Want};
use crate::transfer::decode::{Decoders, Unpacked};
use crate::transfer::frames::{self, WireError};
use crate::transfer::heard::Heard;
use crate::transfer::rate::RateCap;

/// Time for a stream to open and for small messages to pass.
const SMALL_TIMEOUT: Duration = Duration::from_secs(5);

/// What every request of one content works with.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub(super) shared: Arc<Shared>,
    pub(super) relay: Arc<Relay>,
    pub(super) grant: GrantV1,
    pub(super) decoders: Decoders,
    pub(super) cap: Arc<RateCap>,
    pub(super) events: mpsc::UnboundedSender<Event>,
}

/// Whom to ask.
#[derive(Clone, Debug)]
pub(super) enum Holder {
    Controller,
    Agent(Arc<Peer>),
}

/// What the campaign says to an offer.
#[derive(Debug)]
pub(super) struct Go {
    pub(super) number: u64,
    pub(super) mask: ChunkMask,
    pub(super) heard: Arc<Heard>,
    /// The transfer is given up.
    pub(super) stop: CancellationToken,
}

/// How a request ended.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) piece: u32,
    pub(super) from: u32,
    /// Of the transfer, if it had begun.
    pub(super) number: Option<u64>,
    pub(super) how: Ended,
    pub(super) moved_bytes: u64,
    pub(super) raw_bytes: u64,
    pub(super) bad: Vec<u32>,
    /// The store refuses.
    pub(super) failed: Option<StoreError>,
}

/// A piece and its place in the content.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) piece: u32,
    pub(super) from: u32,
    pub(super) chunks: Range<u32>,
    /// Longest wait for the holder's turn.
    pub(super) patience: Duration,
}

/// Asks until the request is over or `stop` says so.
pub(super) async fn ask(ground: Ground, holder: Holder, asked: Asked, stop: CancellationToken) {
    let events = ground.events.clone();
    let (piece, from) = (asked.piece, asked.from);
    let outcome = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        outcome = one(&ground, holder, asked) => outcome,
    };
    if let Some(Ending { number, how, brought }) = outcome {
        let Brought { unpacked, moved_bytes, .. } = brought;
        let Unpacked { bad, failed, raw_bytes, .. } = unpacked;
        let outcome = Outcome { piece, from, number, how, moved_bytes, raw_bytes, bad, failed };
        // Fails only if the campaign is over.
        drop(events.send(Event::RequestEnded(Box::new(outcome))));
    }
}

struct Ending {
    number: Option<u64>,
    how: Ended,
    brought: Brought,
}

fn early(how: Ended) -> Option<Ending> {
    Some(Ending { number: None, how, brought: Brought::default() })
}

/// `None`: the offer was declined.
async fn one(ground: &Ground, holder: Holder, asked: Asked) -> Option<Ending> {
    match holder {
        Holder::Controller => from_controller(ground, &asked).await,
        Holder::Agent(peer) => from_agent(ground, &peer, &asked).await,
    }
}

/// The controller answers when it is the request's turn: only then the transfer begins, and takes its place among others.
async fn from_controller(ground: &Ground, asked: &Asked) -> Option<Ending> {
    let Some(source) = ground.shared.controller.borrow().clone() else { return early(Ended::Broken) };
    let mask = ground.relay.wanted_in(asked.chunks.clone());
    let content = ground.relay.staging.content();
    let request = FetchV1 { content, piece: asked.piece, mask: mask.as_bytes().to_vec() };
    let begun = match ask::begin(&source, &request).await {
        Ok(begun) => begun,
        Err(error) => return early(how(&error)),
    };
    // Its uplink is shared by all: it may be silent for as long as somebody who passes on.
    let go = Go { mask, ..offered(ground, asked, false).await? };
    let want = match go.heard.ours(want(ground, asked, &go)).await {
        Ok(want) => want,
        Err(ending) => return Some(ending),
    };
    let intake = intake(ground, &go);
    let brought = tokio::select! {
        brought = begun.taken(&source, &want, &intake) => brought,
        () = go.stop.cancelled() => return None,
    };
    Some(ending(ground, asked, &go, brought))
}

async fn from_agent(ground: &Ground, peer: &Peer, asked: &Asked) -> Option<Ending> {
    let connection = match ground.shared.pool.connection(peer).await {
        Ok(connection) => connection,
        Err(Unreached::Tried) => return early(Ended::Broken),
        Err(Unreached::Known) => return early(Ended::Late),
    };
    let opened = tokio::time::timeout(asked.patience, connection.open_bi()).await;
    let Ok(Ok((mut send, mut recv))) = opened else { return early(Ended::Late) };
    let request = DataRequest::from(FetchPieceV1 { grant: ground.grant.clone(), piece: asked.piece });
    let has_all = match tokio::time::timeout(asked.patience, exchange(&mut send, &mut recv, &request)).await {
        Ok(Ok(DataReply::Ready(ready))) => ready.has_all,
        Ok(Ok(DataReply::Fault(fault))) => return early(said_no(fault.fault)),
        Ok(Ok(_)) => return early(Ended::Wrong),
        Ok(Err(how)) => return early(how),
        Err(_) => return early(Ended::Late),
    };
    let go = offered(ground, asked, has_all).await?;
    tokio::select! {
        ending = taken(ground, asked, &go, &mut send, &mut recv) => Some(ending),
        () = go.stop.cancelled() => None,
    }
}

/// Takes the offer of another agent, and then its chunks.
async fn taken(
    ground: &Ground,
    asked: &Asked,
    go: &Go,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Ending {
    let ended = |how| Ending { number: Some(go.number), how, brought: Brought::default() };
    let word = DataRequest::from(GoV1 { mask: go.mask.as_bytes().to_vec() });
    // It keeps the slot for a moment only: it is told before the disk is asked for records.
    let n_chunks = match tokio::time::timeout(SMALL_TIMEOUT, exchange(send, recv, &word)).await {
        Ok(Ok(DataReply::PieceFollows(follow))) => follow.chunks,
        Ok(Ok(_)) => return ended(Ended::Wrong),
        Ok(Err(how)) => return ended(how),
        Err(_) => return ended(Ended::Broken),
    };
    let want = match go.heard.ours(want(ground, asked, go)).await {
        Ok(want) => want,
        Err(ending) => return ending,
    };
    let brought = ask::passed_on(recv, n_chunks, &want, &intake(ground, go)).await;
    ending(ground, asked, go, brought)
}

/// One message and its answer. What is no message is worse than silence.
async fn exchange(
    send: &mut SendStream,
    recv: &mut RecvStream,
    request: &DataRequest,
) -> Result<DataReply, Ended> {
    frames::write(send, request).await.map_err(|_| Ended::Broken)?;
    frames::read(recv).await.map_err(|error| match error {
        WireError::Frame(_) => Ended::Wrong,
        WireError::Ended | WireError::Stream(_) => Ended::Broken,
    })
}

const fn said_no(fault: FaultCode) -> Ended {
    match fault {
        FaultCode::Busy => Ended::Busy,
        FaultCode::NotFound => Ended::Missing,
        _ => Ended::Late,
    }
}

/// Tells the campaign that the holder is ready; `None` if it is not wanted any more.
async fn offered(ground: &Ground, asked: &Asked, has_all: bool) -> Option<Go> {
    let (answer, says) = oneshot::channel();
    let (piece, from) = (asked.piece, asked.from);
    ground.events.send(Event::Offered { piece, from, has_all, answer }).ok()?;
    says.await.ok()
}

async fn want(ground: &Ground, asked: &Asked, go: &Go) -> Result<Want, Ending> {
    let (staging, chunks) = (Arc::clone(&ground.relay.staging), asked.chunks.clone());
    let (content, first) = (staging.content(), chunks.start);
    let records = tokio::task::spawn_blocking(move || staging.records(chunks)).await;
    let failed = |error: StoreError| {
        let mut brought = Brought::default();
        brought.unpacked.failed = Some(error);
        Ending { number: Some(go.number), how: Ended::Broken, brought }
    };
    let records = records.map_err(|_| failed(StoreError::Stopped))?.map_err(failed)?;
    let request = FetchV1 { content, piece: asked.piece, mask: go.mask.as_bytes().to_vec() };
    Ok(Want { request, mask: go.mask.clone(), first, records })
}

fn intake(ground: &Ground, go: &Go) -> Intake {
    let sink: Arc<dyn crate::transfer::decode::Sink> = Arc::<Relay>::clone(&ground.relay);
    Intake {
        decoders: ground.decoders.clone(),
        sink,
        cap: Arc::clone(&ground.cap),
        host_cap: Arc::clone(&ground.shared.caps.download),
        heard: Arc::clone(&go.heard),
        is_eager: true,
    }
}

fn ending(ground: &Ground, asked: &Asked, go: &Go, brought: Brought) -> Ending {
    let how = if ground.relay.wanted_in(asked.chunks.clone()).is_empty() {
        Ended::Whole
    } else if !brought.unpacked.bad.is_empty() {
        Ended::Wrong
    } else {
        // A whole answer that leaves chunks out breaks the contract.
        brought.error.as_ref().map_or(Ended::Wrong, how)
    };
    Ending { number: Some(go.number), how, brought }
}

/// What an error says of the holder.
fn how(error: &AskError) -> Ended {
    match error {
        AskError::Protocol { .. } => Ended::Wrong,
        AskError::Fault { fault, .. } => said_no(*fault),
        AskError::Broken(error) if gave_up(error) => Ended::Late,
        AskError::Broken(_) | AskError::LinkLost => Ended::Broken,
    }
}

/// Whether the holder reset the stream because its own supplier failed it.
fn gave_up(error: &io::Error) -> bool {
    let reason = error.get_ref().and_then(|reason| reason.downcast_ref::<quinn::ReadError>());
    matches!(reason, Some(quinn::ReadError::Reset(code))
        if u64::from(*code) == u64::from(FaultCode::NotFound.number()))
}

/// Asks another agent which pieces it has.
pub(super) async fn having(ground: Ground, from: u32, peer: Arc<Peer>, n_pieces: u32) {
    let asking = async {
        let connection = ground.shared.pool.connection(&peer).await.ok()?;
        let (mut send, mut recv) = connection.open_bi().await.ok()?;
        let request = DataRequest::from(HavingV1 { grant: ground.grant.clone() });
        frames::write(&mut send, &request).await.ok()?;
        match frames::read::<DataReply>(&mut recv).await.ok()? {
            DataReply::PiecesHere(here) if here.n_pieces == n_pieces && n_pieces <= PIECES_MAX => {
                Some(here.done)
            }
            _ => None,
        }
    };
    let done = tokio::time::timeout(SMALL_TIMEOUT, asking).await.ok().flatten();
    drop(ground.events.send(Event::Having { from, done }));
}
