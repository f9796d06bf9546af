//! One fetch: from a wish to a verified file.
//!
//! **What.** Manifest (root, then missing pages), need mask, chunks by pieces over up to 16 streams, then the hash from
//! disk. Every step goes on where an earlier try stopped.
//! **Why it waits for a connection instead of failing.** A lost connection says nothing about the content; the need mask
//! is exact, so nothing is asked for twice when the controller is back.
//!
//! **Invariants.** Only bytes whose chunk was verified are written. A stop leaves what was written for the next try.

use std::future::Future;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt as _, TryStreamExt as _};
use hearth_protocol::fault::FaultCode;
use hearth_protocol::manifest::{ManifestRoot, PAGE_BYTES_MAX, ROOT_BYTES_MAX};
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::message::control::BadChunkV1;
use hearth_protocol::message::data::{DataRequest, FetchV1, PageV1, RootV1, STREAMS_USED};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::ask::{self, AskError, Brought, Intake, Want};
use super::decode::{Decoders, Sink, SinkError};
use super::link::Source;
use super::rate::RateCap;
use super::timeline::TimeLine;
use crate::logic::fetch_plan::{BAD_CHUNK_TRIES, EMPTY_TRIES, Ended, FetchPlan, Next};
use crate::store::{Staging, StoreError};
use crate::swarm::{PartEnd, PartGuard, Swarm, Taking};
use crate::{clock, metrics as names};

/// Manifest pages asked for at once; 180 KiB each.
const PAGES_AT_ONCE: usize = 8;
/// Pause between two tries for a manifest.
const MANIFEST_PAUSE: Duration = Duration::from_secs(1);
/// Tries for a part of the manifest at a busy source: about ten minutes.
const MANIFEST_BUSY_TRIES: u32 = 600;
/// Times that chunks may fail the hash from disk and be fetched again before the disk is blamed.
const FINISH_TRIES: u32 = 3;

/// Where chunks come from; `None` while there is no connection.
pub type Sources = watch::Receiver<Option<Arc<Source>>>;

/// Why a fetch ended without a verified file.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It was told to stop.
    #[error("stopped")]
    Stopped,
    /// The sources could not give it.
    #[error("{text}")]
    Source {
        /// For the backoff and the report.
        fault: FaultCode,
        /// For people.
        text: String,
    },
    /// The store could not take it.
    #[error("{}", .0.chain())]
    Store(StoreError),
}

impl From<StoreError> for FetchError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Stopped => Self::Stopped,
            error => Self::Store(error),
        }
    }
}

impl FetchError {
    /// The wire's word for it.
    #[must_use]
    pub fn fault(&self) -> FaultCode {
        match self {
            Self::Stopped => FaultCode::Stopped,
            Self::Source { fault, .. } => *fault,
            Self::Store(error) => error.fault(),
        }
    }
}

impl Sink for Staging {
    fn write_run(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        Self::write_run(self, offset, bytes)
    }

    fn mark_done(&self, chunks: &[u32]) -> Result<(), SinkError> {
        Self::mark_done(self, chunks)
    }
}

/// What one fetch works with.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// The file that is being made.
    pub staging: Arc<Staging>,
    /// Where chunks come from.
    pub sources: Sources,
    /// Unpack, check and write.
    pub decoders: Decoders,
    /// The transfer's cap.
    pub cap: Arc<RateCap>,
    /// What all transfers of this host together may take.
    pub host_cap: Arc<RateCap>,
    /// Where campaigns are found that the content is part of.
    pub swarm: Option<Swarm>,
    /// Chunks with wrong bytes are reported here; a full channel drops the report.
    pub bad_chunks: mpsc::Sender<BadChunkV1>,
    /// Ends the fetch; what is written stays.
    pub stop: CancellationToken,
}

/// Fetches until the content is active.
///
/// # Errors
/// [`FetchError`].
pub async fn run(fetch: &Fetch) -> Result<(), FetchError> {
    let content = fetch.staging.content();
    let mut times = TimeLine::new(clock::monotonic());
    fetch.stoppable(fetch.manifest()).await?;
    times.manifest_is_there(clock::monotonic());
    let mut need = fetch.blocking(|staging, progress| staging.prepare(progress)).await?;
    times.is_prepared(clock::monotonic());
    let mut tries = 0;
    let mut guard = None;
    let finished = loop {
        let began = clock::monotonic();
        fetch.stoppable(fetch.get(need, &mut times, &mut guard)).await?;
        times.are_written(began, clock::monotonic());
        match fetch.blocking(|staging, progress| staging.finish(progress)).await {
            Ok(finished) => break finished,
            Err(FetchError::Store(error @ (StoreError::Damaged { .. } | StoreError::Incomplete { .. })))
                if tries < FINISH_TRIES =>
            {
                tracing::warn!(%content, error = error.chain(), "what was written is not whole or reads back wrong; fetching the rest");
                tries += 1;
                need = fetch.staging.need()?;
            }
            Err(error) => return Err(error),
        }
    };
    if let Some(guard) = guard {
        guard.active();
    }
    let ended = clock::monotonic();
    metrics::histogram!(names::FETCH_SECONDS).record(times.total(ended).as_secs_f64());
    times.log(content, &finished, ended);
    Ok(())
}

impl Fetch {
    async fn stoppable<T>(&self, work: impl Future<Output = Result<T, FetchError>>) -> Result<T, FetchError> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(FetchError::Stopped),
            done = work => done,
        }
    }

    /// Runs a long call of the store beside the runtime; it ends soon after a stop.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(
            &Staging,
            &(dyn Fn(crate::store::Progress) -> ControlFlow<()> + Sync),
        ) -> Result<T, StoreError>
        + Send
        + 'static,
    ) -> Result<T, FetchError> {
        let (staging, stop) = (Arc::clone(&self.staging), self.stop.clone());
        let progress = move |_| match stop.is_cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let joined = tokio::task::spawn_blocking(move || work(&staging, &progress)).await;
        let lost = |_| FetchError::Source {
            fault: FaultCode::Internal,
            text: "a step of the store ended in a defect; the log says more".into(),
        };
        Ok(joined.map_err(lost)??)
    }

    /// A source whose connection stands; waits for one.
    async fn source(&self) -> Arc<Source> {
        let mut sources = self.sources.clone();
        let open = |source: &Option<Arc<Source>>| source.as_ref().is_some_and(|source| source.is_open());
        match sources.wait_for(open).await.map(|source| source.clone()) {
            Ok(Some(source)) => source,
            // Whoever gave sources is gone: the agent shuts down and stops this fetch.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    async fn manifest(&self) -> Result<(), FetchError> {
        let content = self.staging.content();
        let root = match self.staging.root() {
            Some(root) => root,
            None => {
                let request = DataRequest::from(RootV1 { content });
                let take = |staging: &Staging, bytes: &[u8]| staging.put_root(bytes);
                self.manifest_part(request, ROOT_BYTES_MAX, take).await?;
                self.staging.root().ok_or(StoreError::NoManifest { content })?
            }
        };
        let missing = self.blocking(|staging, _| staging.pages_missing()).await?;
        let pages = missing.into_iter().map(|page| self.page(&root, page));
        futures::stream::iter(pages).buffer_unordered(PAGES_AT_ONCE).try_collect::<()>().await
    }

    async fn page(&self, root: &ManifestRoot, page: u32) -> Result<(), FetchError> {
        let request = DataRequest::from(PageV1 { content: self.staging.content(), page });
        let max = root.page_bytes(page).min(PAGE_BYTES_MAX);
        self.manifest_part(request, max, move |staging, bytes| staging.put_page(page, bytes)).await
    }

    /// Asks for a part of the manifest until it is there and right.
    async fn manifest_part(
        &self,
        request: DataRequest,
        max: usize,
        take: impl Fn(&Staging, &[u8]) -> Result<(), StoreError> + Copy + Send + 'static,
    ) -> Result<(), FetchError> {
        let (mut broken, mut busy) = (0, 0);
        loop {
            let source = self.source().await;
            let failed = match ask::bytes(&source, &request, max).await {
                Ok(bytes) => match self.blocking(move |staging, _| take(staging, &bytes)).await {
                    Err(FetchError::Store(error @ StoreError::Manifest { .. })) => FetchError::Store(error),
                    done => return done,
                },
                Err(AskError::LinkLost) => continue,
                Err(AskError::Fault {
                    fault: fault @ (FaultCode::Busy | FaultCode::Closing),
                    text,
                    retry_after_ms,
                }) if busy < MANIFEST_BUSY_TRIES => {
                    busy += 1;
                    tracing::debug!(%fault, text, "the source is busy");
                    tokio::time::sleep(Duration::from_millis(u64::from(retry_after_ms).clamp(200, 60_000)))
                        .await;
                    continue;
                }
                Err(AskError::Fault { fault, text, .. }) => return Err(FetchError::Source { fault, text }),
                Err(error) => self.fault_of(&error),
            };
            broken += 1;
            if broken >= u32::from(BAD_CHUNK_TRIES) {
                return Err(failed);
            }
            tokio::time::sleep(MANIFEST_PAUSE * broken).await;
        }
    }

    fn fault_of(&self, error: &AskError) -> FetchError {
        let fault = match error.ended() {
            Ended::Broken { fault } | Ended::Fault { fault, .. } => fault,
            Ended::Answered { .. } | Ended::LinkLost => FaultCode::Unreachable,
        };
        FetchError::Source { fault, text: error.to_string() }
    }

    /// Gets all chunks in `need`: as a part of a campaign while there is one, else from the controller. The guard of a part
    /// that is whole is kept: until the file is active, others are served from it.
    async fn get(
        &self,
        mut need: ChunkMask,
        times: &mut TimeLine,
        guard: &mut Option<PartGuard>,
    ) -> Result<(), FetchError> {
        loop {
            let campaign = self.swarm.as_ref().and_then(|swarm| swarm.campaign(self.staging.content()));
            let Some(campaign) = campaign else {
                match self.chunks(need, times).await? {
                    None => return Ok(()),
                    Some(rest) => need = rest,
                }
                continue;
            };
            let taking = Taking {
                staging: Arc::clone(&self.staging),
                need: need.clone(),
                decoders: self.decoders.clone(),
                cap: Arc::clone(&self.cap),
                bad_chunks: self.bad_chunks.clone(),
            };
            let (ended, part) = campaign.take_part(taking);
            *guard = Some(part);
            match ended.await {
                Ok(PartEnd::Complete) => return Ok(()),
                Ok(PartEnd::Left(rest)) => need = rest,
                Ok(PartEnd::Failed(error)) => return Err(error.into()),
                // It ended before it heard of us.
                Err(_) => {}
            }
            *guard = None;
        }
    }

    /// Ends when the content becomes part of a campaign.
    async fn announced(&self) {
        match &self.swarm {
            Some(swarm) => swarm.announced(self.staging.content()).await,
            None => std::future::pending().await,
        }
    }

    /// Asks the controller for all chunks in `need` until they are written, or until the content is part of a campaign: then
    /// what is left comes back.
    async fn chunks(&self, need: ChunkMask, times: &mut TimeLine) -> Result<Option<ChunkMask>, FetchError> {
        let mut announced = std::pin::pin!(self.announced());
        let mut is_announced = false;
        let mut plan = FetchPlan::new(self.staging.pieces()?.as_ref().clone(), need);
        let start = clock::monotonic();
        let now_ms =
            || u64::try_from(clock::monotonic().duration_since(start).as_millis()).unwrap_or(u64::MAX);
        let mut flying = FuturesUnordered::new();
        let mut last_error = None;
        loop {
            let mut wake = None;
            if is_announced && flying.is_empty() {
                return Ok(Some(plan.need().clone()));
            }
            while flying.len() < STREAMS_USED && !is_announced {
                match plan.next(now_ms()) {
                    Next::Request { piece, mask } => {
                        let first = plan.pieces().chunks(piece).unwrap_or_default();
                        flying.push(self.piece(piece, first, mask));
                    }
                    Next::WaitUntil { ms } => {
                        wake = Some(start + Duration::from_millis(ms));
                        break;
                    }
                    Next::InFlight => break,
                    Next::Complete => return Ok(None),
                }
            }
            let ended = tokio::select! {
                Some(ended) = flying.next() => ended,
                () = sleep_until(wake) => continue,
                () = &mut announced, if !is_announced => {
                    is_announced = true;
                    continue;
                }
            };
            let (piece, mut brought) = ended?;
            if let Some(error) = brought.unpacked.failed.take() {
                return Err(error.into());
            }
            self.count(&brought);
            times.came(&brought);
            plan.done(&brought.unpacked.done);
            let ended = match &brought.error {
                Some(error) => error.ended(),
                None => Ended::Answered { bad: brought.unpacked.bad.clone() },
            };
            last_error = brought.error.map(|error| error.to_string()).or(last_error);
            plan.settle(piece, &ended, !brought.unpacked.done.is_empty(), now_ms()).map_err(|fault| {
                let text = match fault {
                    FaultCode::BadBytes => format!("chunks came with wrong bytes {BAD_CHUNK_TRIES} times"),
                    _ => last_error.clone().unwrap_or_else(|| format!("nothing came in {EMPTY_TRIES} tries")),
                };
                FetchError::Source { fault, text }
            })?;
        }
    }

    async fn piece(
        &self,
        piece: u32,
        chunks: std::ops::Range<u32>,
        mask: ChunkMask,
    ) -> Result<(u32, Brought), FetchError> {
        let source = self.source().await;
        let first = chunks.start;
        let records = self.blocking(move |staging, _| staging.records(chunks)).await?;
        let request = FetchV1 { content: self.staging.content(), piece, mask: mask.as_bytes().to_vec() };
        let sink: Arc<dyn Sink> = Arc::<Staging>::clone(&self.staging);
        let intake = Intake {
            decoders: self.decoders.clone(),
            sink,
            cap: Arc::clone(&self.cap),
            host_cap: Arc::clone(&self.host_cap),
            heard: Arc::default(),
            is_eager: false,
        };
        let brought = ask::chunks(&source, &Want { request, mask, first, records }, &intake).await;
        for chunk in &brought.unpacked.bad {
            let bad =
                BadChunkV1 { content: self.staging.content(), chunk: *chunk, source: source.location() };
            tracing::warn!(content = %bad.content, chunk, "a chunk came with wrong bytes");
            if self.bad_chunks.try_send(bad).is_err() {
                tracing::debug!("too many reports of bad chunks; this one is dropped");
            }
        }
        if let Some(error) = &brought.error {
            tracing::debug!(piece, %error, "request ended early");
        }
        Ok((piece, brought))
    }

    fn count(&self, brought: &Brought) {
        self.staging.add_moved(brought.moved_bytes);
        metrics::counter!(names::FETCH_STORED_BYTES).increment(brought.moved_bytes);
        metrics::counter!(names::FETCH_RAW_BYTES).increment(brought.unpacked.raw_bytes);
        metrics::counter!(names::FETCH_BAD_CHUNKS).increment(brought.unpacked.bad.len() as u64);
        let reason = match &brought.error {
            None => return,
            Some(AskError::Fault { fault, .. }) => fault.as_str(),
            Some(AskError::Broken(_)) => "broken",
            Some(AskError::Protocol { .. }) => "protocol",
            Some(AskError::LinkLost) => "link_lost",
        };
        metrics::counter!(names::FETCH_RETRIES, "reason" => reason).increment(1);
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
