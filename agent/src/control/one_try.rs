//! One try to fetch a content, from the reservation to the closed file.
//!
//! **What.** Makes room, fetches, and lets go of the staging file.
//! **Why apart.** The loop that begins and ends tries must never wait for a disk; a try does hardly anything else.
//! **Invariants.** It waits for its last writer before it returns, [`LET_GO`] at most, so that the next try does not meet it.

use std::sync::Arc;
use std::time::Duration;

use hearth_protocol::message::control::BadChunkV1;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::store::{BeginError, ContentSpec, Staging, Store};
use crate::swarm::Swarm;
use crate::transfer::decode::Decoders;
use crate::transfer::fetch::{self, Fetch, FetchError, Sources};
use crate::transfer::rate::RateCap;

/// Time for the last writer of a stopped fetch to let go.
const LET_GO: Duration = Duration::from_secs(5);

/// Why a try did not end with an active entry.
#[derive(Debug, thiserror::Error)]
pub(super) enum TryError {
    #[error(transparent)]
    Begin(#[from] BeginError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("a step of the fetch ended in a defect")]
    Defect,
}

/// What a try works with.
pub(super) struct FetchParts {
    pub(super) sources: Sources,
    pub(super) decoders: Decoders,
    pub(super) cap: Arc<RateCap>,
    pub(super) bad_chunks: mpsc::Sender<BadChunkV1>,
    pub(super) stop: CancellationToken,
    pub(super) swarm: Swarm,
}

/// Makes room, fetches, and lets go of the staging file before it returns.
pub(super) async fn one_try(store: Store, spec: ContentSpec, parts: FetchParts) -> Result<(), TryError> {
    let begun = tokio::task::spawn_blocking(move || store.begin(spec)).await;
    let staging = Arc::new(begun.map_err(|_| TryError::Defect)??);
    let FetchParts { sources, decoders, cap, bad_chunks, stop, swarm } = parts;
    let (host_cap, swarm) = (Arc::clone(&swarm.caps().download), Some(swarm));
    let fetch = Fetch { staging, sources, decoders, cap, host_cap, swarm, bad_chunks, stop };
    let result = fetch::run(&fetch).await;
    let Fetch { staging, .. } = fetch;
    // Others may still be served from a file that is whole; it is nobody's to write to.
    if result.is_err() {
        let_go(staging).await;
    }
    Ok(result?)
}

/// Waits until the workers have let go of the file, so that the next try does not meet this one.
async fn let_go(staging: Arc<Staging>) {
    wait_until(LET_GO, || Arc::strong_count(&staging) == 1).await;
    if tokio::task::spawn_blocking(move || drop(staging)).await.is_err() {
        tracing::error!("closing a staging file ended in a defect");
    }
}

/// Waits until `done`, at most `limit`.
pub(super) async fn wait_until(limit: Duration, done: impl Fn() -> bool) {
    let until = clock::monotonic() + limit;
    while !done() && clock::monotonic() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
