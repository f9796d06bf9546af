//! Fetches from a real QUIC server into a real store, with sources that misbehave in every way that costs a limit.
//!
//! **What.** Each test names a way to be a bad source and says what the agent does about it.
//! **Why a server of our own.** The controller never sends what these tests need: cut answers, wrong bytes, garbage.
//! **Why one file.** Each test is a page by itself and all begin alike; the server that they share is in `server`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_protocol::fault::FaultCode;
use hearth_protocol::message::data::{DataRequest, FetchV1};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::ask::{self, Intake, Want};
use super::decode::{Decoders, Sink, SinkError};
use super::fetch::{self, Fetch, FetchError};
use super::link::Source;
use super::rate::RateCap;
use crate::store::{ContentSpec, Store, StoreConfig};
use crate::{clock, task};

pub(crate) mod server;

use server::{Client, Content, Does, Server};

/// A store in a folder of its own.
struct Cache {
    store: Store,
    _dir: tempfile::TempDir,
}

impl Cache {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&StoreConfig::new(dir.path(), 4 << 30)).unwrap();
        Self { store, _dir: dir }
    }

    /// The cached file's bytes, if it is active.
    fn file(&self, content: &Content) -> Option<Vec<u8>> {
        let path = self.store.entry(content.id())?.path?;
        Some(std::fs::read(path).unwrap())
    }
}

/// A fetch with everything around it.
struct Run {
    fetch: Fetch,
    bad_chunks: mpsc::Receiver<hearth_protocol::message::control::BadChunkV1>,
    source: watch::Sender<Option<Arc<Source>>>,
}

impl Run {
    fn new(cache: &Cache, content: &Content, cap: Option<u64>) -> Self {
        let root = content.root();
        let spec = ContentSpec {
            content: content.id(),
            kind: root.kind(),
            raw_bytes: root.raw_bytes(),
            data_bytes: root.data_bytes(),
        };
        let source = watch::Sender::new(None);
        let (reports, bad_chunks) = mpsc::channel(64);
        let fetch = Fetch {
            staging: Arc::new(cache.store.begin(spec).unwrap()),
            sources: source.subscribe(),
            decoders: Decoders::start().unwrap(),
            cap: Arc::new(RateCap::new(cap)),
            host_cap: Arc::new(RateCap::new(None)),
            swarm: None,
            bad_chunks: reports,
            stop: CancellationToken::new(),
        };
        Self { fetch, bad_chunks, source }
    }

    /// Keeps a connection to `server` as source, also after a loss.
    fn keep_connected(&self, server: &Server) {
        let (client, source) = (Client::new(server), self.source.clone());
        task::spawn("test-connect", async move {
            loop {
                if let Some(link) = client.source().await {
                    source.send_replace(Some(Arc::clone(&link)));
                    link.closed().await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
}

/// Fetches `content` from a server that does what `does` says per request, counted from 0.
async fn fetch(
    content: &Content,
    does: impl Fn(usize, &DataRequest) -> Does + Send + Sync + 'static,
) -> (Result<(), FetchError>, Cache, Run) {
    let cache = Cache::new();
    let server = Server::start(content, does);
    let run = Run::new(&cache, content, None);
    run.keep_connected(&server);
    let result = tokio::time::timeout(Duration::from_secs(60), fetch::run(&run.fetch)).await;
    (result.expect("the fetch neither ended nor gave up"), cache, run)
}

fn is_fetch(request: &DataRequest) -> bool {
    matches!(request, DataRequest::Fetch(_))
}

/// The fetch must get over what the server does to the first `n` requests for chunks.
#[track_caller]
fn check_recovers(n: usize, what: Does) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let content = Content::generate(7, 6 << 20);
        let seen = std::sync::atomic::AtomicUsize::new(0);
        let does = move |_: usize, request: &DataRequest| {
            let nth = is_fetch(request).then(|| seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
            if nth.is_some_and(|nth| nth < n) { what } else { Does::Serve }
        };
        let (result, cache, _run) = fetch(&content, does).await;
        result.unwrap();
        assert!(cache.file(&content) == Some(content.raw()), "the file differs");
    });
}

/// The fetch must end with `fault` when every request for chunks is treated so.
#[track_caller]
fn check_fails(what: Does, fault: FaultCode) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let content = Content::generate(8, 1 << 20);
        let does = move |_: usize, request: &DataRequest| if is_fetch(request) { what } else { Does::Serve };
        let (result, cache, _run) = fetch(&content, does).await;
        let error = result.unwrap_err();
        assert_eq!(error.fault(), fault, "{error}");
        assert_eq!(cache.file(&content), None);
    });
}

#[tokio::test]
async fn a_content_arrives_byte_for_byte() {
    for (seed, data_bytes) in [(1, 0), (2, 1 << 20), (3, 40 << 20)] {
        let content = Content::generate(seed, data_bytes);
        let (result, cache, run) = fetch(&content, |_, _| Does::Serve).await;
        result.unwrap();
        assert!(cache.file(&content) == Some(content.raw()), "{data_bytes} B");
        drop(run);
        let entry = cache.store.entry(content.id()).unwrap();
        assert!(entry.is_active() && entry.done_bytes == entry.data_bytes);
        assert!(data_bytes == 0 || (entry.moved_bytes > 0 && entry.moved_bytes < entry.data_bytes));
    }
}

#[tokio::test]
async fn a_chunk_that_repeats_comes_over_the_wire_once() {
    let content = Content::repeating(4, 24 << 20, 20);
    let cache = Cache::new();
    let server = Server::start(&content, |_, _| Does::Serve);
    let run = Run::new(&cache, &content, None);
    run.keep_connected(&server);
    fetch::run(&run.fetch).await.unwrap();
    assert!(cache.file(&content) == Some(content.raw()), "the file differs");
    let once: usize = content.chunks()[..20].iter().map(|chunk| chunk.bytes.len()).sum();
    assert!(content.chunks().len() > 60);
    // Chunk headers are counted as well.
    let sent_bytes = server.sent_bytes();
    assert!((once as u64..once as u64 + 20 * 16).contains(&sent_bytes), "{sent_bytes} B of {once} B");
}

#[test]
fn a_truncated_answer_is_asked_for_again() {
    check_recovers(3, Does::Truncate);
}

#[test]
fn a_stalled_stream_is_reset_and_asked_again() {
    check_recovers(2, Does::Stall);
}

#[test]
fn a_dripping_stream_is_reset_and_asked_again() {
    check_recovers(2, Does::Drip);
}

#[test]
fn wrong_bytes_are_asked_for_again() {
    check_recovers(2, Does::WrongBytes);
}

#[test]
fn a_busy_source_is_given_time() {
    check_recovers(20, Does::Busy { retry_after_ms: 50 });
}

#[test]
fn a_lost_connection_is_no_failure() {
    check_recovers(5, Does::CloseConnection);
}

#[test]
fn garbage_on_the_stream_is_asked_again() {
    check_recovers(2, Does::Garbage);
}

#[test]
fn a_packed_chunk_that_unpacks_too_long_is_bad() {
    check_recovers(1, Does::Bomb);
    check_fails(Does::Bomb, FaultCode::BadBytes);
}

#[test]
fn bytes_that_stay_wrong_end_the_fetch() {
    check_fails(Does::WrongBytes, FaultCode::BadBytes);
}

#[test]
fn lengths_beyond_what_was_asked_end_the_fetch() {
    check_fails(Does::OversizeChunk, FaultCode::Protocol);
    check_fails(Does::OversizeAnswer, FaultCode::Protocol);
    check_fails(Does::ForeignChunk, FaultCode::Protocol);
}

#[test]
fn a_refusal_that_time_does_not_heal_ends_the_fetch() {
    check_fails(Does::Refuse { fault: FaultCode::NotPlaced }, FaultCode::NotPlaced);
}

#[tokio::test]
async fn a_wrong_manifest_is_refused() {
    let content = Content::generate(9, 1 << 20);
    let (result, cache, _run) = fetch(&content, |_, request| match request {
        DataRequest::Page(_) => Does::WrongBytes,
        _ => Does::Serve,
    })
    .await;
    assert_eq!(result.unwrap_err().fault(), FaultCode::BadBytes);
    assert_eq!(cache.file(&content), None);
    let (result, ..) = fetch(&content, |_, request| match request {
        DataRequest::Root(_) => Does::OversizeAnswer,
        _ => Does::Serve,
    })
    .await;
    assert_eq!(result.unwrap_err().fault(), FaultCode::Protocol);
}

#[tokio::test]
async fn bad_chunks_are_reported() {
    let content = Content::generate(10, 1 << 20);
    let (result, _cache, mut run) =
        fetch(&content, |n, request| if is_fetch(request) && n < 3 { Does::WrongBytes } else { Does::Serve })
            .await;
    result.unwrap();
    let report = run.bad_chunks.try_recv().unwrap();
    assert_eq!((report.content, report.source), (content.id(), None));
}

#[tokio::test]
async fn a_stopped_fetch_goes_on_where_it_was() {
    let content = Content::generate(11, 24 << 20);
    let cache = Cache::new();
    let server = Server::start(&content, |_, _| Does::Serve);
    let run = Run::new(&cache, &content, Some(8 << 20));
    run.keep_connected(&server);
    let (stop, staging) = (run.fetch.stop.clone(), Arc::clone(&run.fetch.staging));
    task::spawn("test-stop", async move {
        let half = |need: hearth_protocol::mask::ChunkMask| need.count() <= need.len() / 2;
        while !staging.need().is_ok_and(half) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(staging);
        stop.cancel();
    });
    assert!(matches!(fetch::run(&run.fetch).await, Err(FetchError::Stopped)));
    let_go(run).await;
    let moved = server.sent_bytes();
    let again = Run::new(&cache, &content, None);
    again.keep_connected(&server);
    fetch::run(&again.fetch).await.unwrap();
    assert!(cache.file(&content) == Some(content.raw()));
    let second = server.sent_bytes() - moved;
    assert!(
        second < content.stored_bytes() * 3 / 4,
        "second try moved {second} of {}",
        content.stored_bytes()
    );
}

/// Ends a run and waits until nobody holds its staging file.
async fn let_go(run: Run) {
    let Run { fetch: Fetch { staging, .. }, .. } = run;
    while Arc::strong_count(&staging) > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_cap_holds() {
    let content = Content::generate(12, 6 << 20);
    let cache = Cache::new();
    let server = Server::start(&content, |_, _| Does::Serve);
    let cap = content.stored_bytes();
    let run = Run::new(&cache, &content, Some(cap));
    run.keep_connected(&server);
    let began: Instant = clock::monotonic();
    fetch::run(&run.fetch).await.unwrap();
    let took = began.elapsed();
    assert!(took > Duration::from_millis(700), "a second's worth of bytes took {took:?}");
}

#[tokio::test]
async fn a_single_chunk_can_be_asked_for() {
    let content = Content::generate(13, 4 << 20);
    let cache = Cache::new();
    let server = Server::start(&content, |_, _| Does::Serve);
    let run = Run::new(&cache, &content, None);
    let source = Client::new(&server).source().await.unwrap();
    let staging = Arc::clone(&run.fetch.staging);
    staging.put_root(&content.root().encode()).unwrap();
    for page in 0..content.root().n_pages() {
        staging.put_page(page, content.page(page)).unwrap();
    }
    let need = staging.prepare(&crate::store::no_progress).unwrap();
    let pieces = staging.pieces().unwrap();
    let range = pieces.chunks(1).unwrap();
    let mut mask = hearth_protocol::mask::ChunkMask::empty(range.end - range.start);
    mask.insert(2);
    let request = FetchV1 { content: content.id(), piece: 1, mask: mask.as_bytes().to_vec() };
    let want = Want { request, mask, first: range.start, records: staging.records(range.clone()).unwrap() };
    let sink: Arc<dyn Sink> = Arc::<crate::store::Staging>::clone(&staging);
    let intake = Intake {
        decoders: run.fetch.decoders.clone(),
        sink,
        cap: Arc::clone(&run.fetch.cap),
        host_cap: Arc::clone(&run.fetch.host_cap),
        heard: Arc::default(),
        is_eager: false,
    };
    let brought = ask::chunks(&source, &want, &intake).await;
    assert!(brought.error.is_none(), "{brought:?}");
    assert_eq!(brought.unpacked.done, [range.start + 2]);
    assert_eq!(staging.need().unwrap().count(), need.count() - 1);
}

/// Streams to a server of this process: another transport than QUIC, and an agent as the source.
#[derive(Debug)]
struct Pipes(super::serve::Server);

impl super::link::Transport for Pipes {
    fn open(&self) -> super::link::BoxFuture<'_, std::io::Result<super::link::Stream>> {
        let server = self.0.clone();
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(256 << 10);
            let stream =
                |(recv, send): (_, _)| super::link::Stream { send: Box::new(send), recv: Box::new(recv) };
            let far = stream(tokio::io::split(far));
            task::spawn("test-serve", async move { server.stream(far).await });
            Ok(stream(tokio::io::split(near)))
        })
    }

    fn is_open(&self) -> bool {
        true
    }

    fn closed(&self) -> super::link::BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn an_agent_serves_what_it_holds_and_nothing_else() {
    let content = Content::generate(15, 20 << 20);
    let (result, full, _run) = fetch(&content, |_, _| Does::Serve).await;
    result.unwrap();
    let agent = Source::new(Arc::new(Pipes(super::serve::Server::new(full.store.clone()))), None);
    let cache = Cache::new();
    let run = Run::new(&cache, &content, None);
    run.source.send_replace(Some(Arc::clone(&agent)));
    fetch::run(&run.fetch).await.unwrap();
    assert!(cache.file(&content) == Some(content.raw()));

    let absent = Content::generate(16, 1 << 20);
    let asks: [(DataRequest, FaultCode); 4] = [
        (hearth_protocol::message::data::RootV1 { content: absent.id() }.into(), FaultCode::NotFound),
        (
            hearth_protocol::message::data::PageV1 { content: content.id(), page: 999 }.into(),
            FaultCode::NotFound,
        ),
        (FetchV1 { content: content.id(), piece: 999, mask: vec![1] }.into(), FaultCode::NotFound),
        (FetchV1 { content: content.id(), piece: 0, mask: vec![] }.into(), FaultCode::Protocol),
    ];
    for (request, expected) in asks {
        let error = ask::bytes(&agent, &request, 1 << 20).await.unwrap_err();
        assert!(
            matches!(error, ask::AskError::Fault { fault, .. } if fault == expected),
            "{request:?}: {error}"
        );
    }
}

/// Opens streams until every slot is taken, asks on each and reads `each` bytes at a time, or none; then somebody else
/// must be served.
async fn slots_come_free(each: Option<usize>) {
    use tokio::io::AsyncReadExt as _;
    let content = Content::generate(17, 20 << 20);
    let (result, full, _run) = fetch(&content, |_, _| Does::Serve).await;
    result.unwrap();
    let idle = Duration::from_secs(2);
    let pipes = Arc::new(Pipes(super::serve::Server::with_idle(full.store.clone(), idle)));
    let (mut streams, mut readers) = (Vec::new(), Vec::new());
    for _ in 0..super::serve::SLOTS {
        let mut stream = super::link::Transport::open(pipes.as_ref()).await.unwrap();
        let mask = content.mask_of(0);
        let request = DataRequest::from(FetchV1 { content: content.id(), piece: 0, mask });
        super::frames::write(&mut stream.send, &request).await.unwrap();
        // The answer has begun: its slot is taken.
        stream.recv.read_u8().await.unwrap();
        let super::link::Stream { send, mut recv } = stream;
        streams.push(send);
        readers.push(task::spawn("test-slow", async move {
            let Some(each) = each else { return std::future::pending().await };
            let mut few = vec![0; each];
            while recv.read(&mut few).await.is_ok_and(|n| n > 0) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }));
    }
    let source = Source::new(pipes, None);
    let root = DataRequest::from(hearth_protocol::message::data::RootV1 { content: content.id() });
    let busy = ask::bytes(&source, &root, 1 << 20).await.unwrap_err();
    assert!(matches!(busy, ask::AskError::Fault { fault: FaultCode::Busy, .. }), "{busy}");
    let begun = clock::monotonic();
    while let Err(error) = ask::bytes(&source, &root, 1 << 20).await {
        assert!(begun.elapsed() < Duration::from_secs(20), "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    readers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn an_asker_that_does_not_read_gives_its_slot_back() {
    slots_come_free(None).await;
}

#[tokio::test]
async fn an_asker_that_reads_a_few_bytes_at_a_time_gives_its_slot_back() {
    slots_come_free(Some(8)).await;
}

/// Remembers what it was told; refuses nothing.
#[derive(Default)]
struct Ledger {
    runs: std::sync::Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Sink for Ledger {
    fn write_run(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.runs.lock().unwrap().push((offset, bytes.to_vec()));
        Ok(())
    }

    fn mark_done(&self, _: &[u32]) -> Result<(), SinkError> {
        Ok(())
    }
}

#[tokio::test]
async fn no_byte_is_written_before_its_chunk_was_verified() {
    let content = Content::generate(14, 2 << 20);
    let decoders = Decoders::start().unwrap();
    let ledger = Arc::new(Ledger::default());
    let mut segment = decoders.segment().await;
    let mut expected_bad = Vec::new();
    for (chunk, packed) in (0..).zip(content.chunks()).take(12) {
        let mut bytes = packed.bytes.clone();
        if chunk % 3 == 1 {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            expected_bad.push(chunk);
        }
        let stored_len = u32::try_from(bytes.len()).unwrap();
        segment.room_for(chunk, packed.encoding, stored_len, packed.record).copy_from_slice(&bytes);
    }
    let sink: Arc<dyn Sink> = Arc::<Ledger>::clone(&ledger);
    let unpacked = decoders.submit(segment, sink).await.await.unwrap();
    assert_eq!(unpacked.bad, expected_bad);
    assert_eq!(unpacked.done.len() + unpacked.bad.len(), 12);
    let raw = content.raw();
    for (offset, bytes) in ledger.runs.lock().unwrap().iter() {
        let at = usize::try_from(*offset).unwrap();
        assert!(raw[at..at + bytes.len()] == bytes[..], "wrong bytes were written at {offset}");
    }
    for chunk in expected_bad {
        let record = content.chunks()[chunk as usize].record;
        let covered = |(offset, bytes): &(u64, Vec<u8>)| {
            *offset < record.end() && record.offset < offset + bytes.len() as u64
        };
        assert!(!ledger.runs.lock().unwrap().iter().any(covered), "a bad chunk was written");
    }
}
