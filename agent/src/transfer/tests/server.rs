//! A source for tests: a generated content behind a real QUIC endpoint, well-behaved or not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hearth_protocol::digest::{ChunkDigest, ContentId};
use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::LocationId;
use hearth_protocol::manifest::{ChunkRecord, ManifestBuilder, ManifestRoot};
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::message::data::{
    BytesFollowV1, ChunkHeader, ChunksFollowV1, DataReply, DataRequest, Encoding, FaultV1, FetchV1,
};
use hearth_protocol::piece::Pieces;
use hearth_protocol::version::ALPN;
use hearth_protocol::words::ContentKind;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, RecvStream, SendStream};
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::CertificateDer;

use crate::control::identity::{AgentKey, Enrolment};
use crate::control::tls::{self, CONTROLLER_NAME};
use crate::task;
use crate::transfer::endpoint::{Endpoint, transport};
use crate::transfer::frames;
use crate::transfer::link::{Quic, Source};

/// After this a stalled source counts as stuck in tests.
const STALL: Duration = Duration::from_millis(400);

/// Pause between two bytes of a dripping source: no stall, and no headway.
const DRIP_PAUSE: Duration = Duration::from_millis(30);

/// What the server does with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Does {
    /// As it should.
    Serve,
    /// Ends the stream in the middle.
    Truncate,
    /// Stops in the middle and keeps the stream.
    Stall,
    /// Sends the second half of the answer byte by byte, with a pause before each.
    Drip,
    /// Flips a bit in each chunk.
    WrongBytes,
    /// Says that all slots are taken.
    Busy { retry_after_ms: u32 },
    /// Says no.
    Refuse { fault: FaultCode },
    /// Closes the connection.
    CloseConnection,
    /// Sends bytes that are no message.
    Garbage,
    /// Names a stored length above the chunk's raw length.
    OversizeChunk,
    /// Announces 4 GiB.
    OversizeAnswer,
    /// Sends a chunk that was not asked for.
    ForeignChunk,
    /// Sends a small zstd frame that unpacks to 64 MiB.
    Bomb,
}

/// One stored chunk.
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    pub(crate) record: ChunkRecord,
    pub(crate) encoding: Encoding,
    pub(crate) bytes: Vec<u8>,
}

/// A content with everything a source needs.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: ManifestRoot,
    pages: Vec<Vec<u8>>,
    chunks: Vec<Packed>,
    pieces: Pieces,
    raw: Vec<u8>,
}

impl Content {
    /// About `data_bytes` of data in chunks of 16 to 256 KiB, some of it compressible, with holes between.
    pub(crate) fn generate(seed: u64, data_bytes: usize) -> Self {
        Self::repeating(seed, data_bytes, u64::MAX)
    }

    /// The same, where chunk `n` has the bytes of chunk `n - every` if there is one.
    pub(crate) fn repeating(seed: u64, data_bytes: usize, every: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut draw = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut builder = ManifestBuilder::new(ContentKind::Disk);
        let (mut raw, mut pages, mut chunks) = (Vec::new(), Vec::new(), Vec::new());
        let mut left = data_bytes;
        while left > 0 {
            if draw() % 5 == 0 {
                raw.resize(raw.len() + 4096 * usize::try_from(draw() % 64).unwrap(), 0);
            }
            let len = 4096 * usize::try_from(4 + draw() % 61).unwrap();
            let compressible = draw() % 3 > 0;
            let before = (chunks.len() as u64).checked_sub(every).and_then(|n| usize::try_from(n).ok());
            let before = before.and_then(|n| chunks.get(n)).map(|chunk: &Packed| {
                let at = usize::try_from(chunk.record.offset).unwrap();
                raw[at..at + chunk.record.raw_len as usize].to_vec()
            });
            let mut bytes = vec![0; len];
            for word in bytes.chunks_exact_mut(8) {
                let value = if compressible { draw() % 16 } else { draw() };
                word.copy_from_slice(&value.to_le_bytes());
            }
            let bytes = before.unwrap_or(bytes);
            let len = bytes.len();
            let (offset, raw_len) = (raw.len() as u64, u32::try_from(len).unwrap());
            let digest = ChunkDigest::of(&bytes);
            pages.extend(builder.push(offset, raw_len, digest).unwrap());
            let packed = zstd::bulk::compress(&bytes, 3).unwrap();
            let (encoding, stored) = match packed.len() * 100 < len * 97 {
                true => (Encoding::Zstd, packed),
                false => (Encoding::Raw, bytes.clone()),
            };
            chunks.push(Packed { record: ChunkRecord { offset, raw_len, digest }, encoding, bytes: stored });
            raw.extend_from_slice(&bytes);
            left = left.saturating_sub(len);
        }
        raw.resize(raw.len() + 4096 * 3, 0);
        let (last, root) = builder.finish(raw.len() as u64).unwrap();
        pages.extend(last);
        let mut pieces = Pieces::new(root.data_bytes());
        chunks.iter().for_each(|chunk: &Packed| pieces.push(chunk.record.raw_len));
        let pages = pages.into_iter().map(|page| page.bytes).collect();
        Self { inner: Arc::new(Inner { root, pages, chunks, pieces, raw }) }
    }

    pub(crate) fn id(&self) -> ContentId {
        self.inner.root.content_id()
    }

    pub(crate) fn root(&self) -> &ManifestRoot {
        &self.inner.root
    }

    pub(crate) fn page(&self, page: u32) -> &[u8] {
        &self.inner.pages[page as usize]
    }

    pub(crate) fn chunks(&self) -> &[Packed] {
        &self.inner.chunks
    }

    /// The mask that asks for all chunks of a piece.
    pub(crate) fn mask_of(&self, piece: u32) -> Vec<u8> {
        let range = self.inner.pieces.chunks(piece).unwrap();
        ChunkMask::full(range.end - range.start).as_bytes().to_vec()
    }

    pub(crate) fn raw(&self) -> Vec<u8> {
        self.inner.raw.clone()
    }

    pub(crate) fn stored_bytes(&self) -> u64 {
        self.inner.chunks.iter().map(|chunk| chunk.bytes.len() as u64).sum()
    }
}

type Behaviour = Arc<dyn Fn(usize, &DataRequest) -> Does + Send + Sync>;

/// A running source.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    ca: CertificateDer<'static>,
    issuer: Arc<Issuer<'static, KeyPair>>,
    sent_bytes: Arc<AtomicU64>,
    endpoint: quinn::Endpoint,
}

impl Server {
    /// Serves `content`; `does` decides per request, counted from 0.
    pub(crate) fn start(
        content: &Content,
        does: impl Fn(usize, &DataRequest) -> Does + Send + Sync + 'static,
    ) -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap().der().clone();
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![CONTROLLER_NAME.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap().der().clone();
        let mut tls = rustls::ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf, ca.clone()], key.serialize_der().try_into().unwrap())
            .unwrap();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        config.transport_config(Arc::new(transport(4 << 20)));
        let endpoint = quinn::Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let sent_bytes = Arc::new(AtomicU64::new(0));
        let answers = Answers {
            content: content.clone(),
            does: Arc::new(does),
            count: Arc::default(),
            sent_bytes: Arc::clone(&sent_bytes),
        };
        let accepting = endpoint.clone();
        task::spawn("test-server", async move {
            while let Some(incoming) = accepting.accept().await {
                let answers = answers.clone();
                task::spawn("test-connection", async move {
                    let Ok(connection) = incoming.await else { return };
                    while let Ok((send, recv)) = connection.accept_bi().await {
                        task::spawn("test-stream", answers.clone().stream(connection.clone(), send, recv));
                    }
                });
            }
        });
        let address = endpoint.local_addr().unwrap();
        Self { address, ca, issuer: Arc::new(issuer), sent_bytes, endpoint }
    }

    /// Bytes of chunks that were sent.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.endpoint.close(quinn::VarInt::from_u32(0), b"test over");
    }
}

/// The agent's side of a connection.
#[derive(Debug)]
pub(crate) struct Client {
    endpoint: Endpoint,
    config: quinn::ClientConfig,
    address: SocketAddr,
}

impl Client {
    pub(crate) fn new(server: &Server) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = AgentKey::load_or_create(dir.path()).unwrap();
        let request = CertificateSigningRequestParams::from_der(&key.request().unwrap().into()).unwrap();
        let leaf = request.signed_by(server.issuer.as_ref()).unwrap().der().clone();
        let enrolment = Enrolment {
            location: LocationId::from_bytes([1; 16]),
            controllers: Vec::new(),
            chain: vec![leaf, server.ca.clone()],
        };
        let endpoint = Endpoint::bind(SocketAddr::from(([127, 0, 0, 1], 0)), b"test").unwrap();
        let config = endpoint.client_config(tls::session(&key, &enrolment).unwrap());
        Self { endpoint, config, address: server.address }
    }

    /// A new connection as a source.
    pub(crate) async fn source(&self) -> Option<Arc<Source>> {
        let connecting =
            self.endpoint.quinn().connect_with(self.config.clone(), self.address, CONTROLLER_NAME);
        let connection = connecting.ok()?.await.ok()?;
        Some(Source::with_stall(Arc::new(Quic(connection)), None, STALL))
    }
}

#[derive(Clone)]
struct Answers {
    content: Content,
    does: Behaviour,
    count: Arc<AtomicUsize>,
    sent_bytes: Arc<AtomicU64>,
}

impl Answers {
    async fn stream(self, connection: Connection, mut send: SendStream, mut recv: RecvStream) {
        while let Ok(request) = frames::read::<DataRequest>(&mut recv).await {
            let nth = self.count.fetch_add(1, Ordering::Relaxed);
            let does = (self.does)(nth, &request);
            let fault = match does {
                Does::CloseConnection => return connection.close(quinn::VarInt::from_u32(0), b"bye"),
                Does::Busy { retry_after_ms } => Some((FaultCode::Busy, retry_after_ms)),
                Does::Refuse { fault } => Some((fault, 0)),
                Does::Garbage => {
                    let garbage: Vec<u8> =
                        (0..200_000_u32).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
                    if send.write_all(&garbage).await.is_err() || send.finish().is_err() {
                        tracing::trace!("the asker left");
                    }
                    return;
                }
                _ => None,
            };
            let answered = match (fault, request) {
                (Some((fault, retry_after_ms)), _) => {
                    let reply = FaultV1 { fault, text: "as told".into(), retry_after_ms };
                    frames::write(&mut send, &DataReply::from(reply)).await.is_ok()
                }
                (None, DataRequest::Root(_)) => bytes(&mut send, does, self.content.root().encode()).await,
                (None, DataRequest::Page(page)) => {
                    bytes(&mut send, does, self.content.page(page.page).to_vec()).await
                }
                (None, DataRequest::Fetch(fetch)) => self.chunks(&mut send, does, &fetch).await,
                (None, _) => return,
            };
            if !answered {
                return;
            }
        }
    }

    /// Sends chunks; `false` ends the stream.
    async fn chunks(&self, send: &mut SendStream, does: Does, fetch: &FetchV1) -> bool {
        let content = &self.content.inner;
        let range = content.pieces.chunks(fetch.piece).unwrap();
        let mask = ChunkMask::from_bytes(&fetch.mask, range.end - range.start).unwrap();
        let mut body = Vec::new();
        let mut n_chunks = 0;
        for index in mask.iter() {
            let mut chunk = range.start + index;
            let Packed { mut encoding, mut bytes, record } = content.chunks[chunk as usize].clone();
            let mut stored_len = u32::try_from(bytes.len()).unwrap();
            match does {
                Does::WrongBytes => {
                    let last = bytes.len() - 1;
                    bytes[last] ^= 0x40;
                }
                Does::OversizeChunk => (encoding, stored_len) = (Encoding::Zstd, record.raw_len + 1),
                Does::ForeignChunk => chunk = if range.start == 0 { range.end } else { 0 },
                Does::Bomb => {
                    encoding = Encoding::Zstd;
                    bytes = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
                    stored_len = u32::try_from(bytes.len()).unwrap();
                }
                _ => {}
            }
            body.extend(ChunkHeader { chunk, encoding, stored_len }.encode());
            body.extend(bytes);
            n_chunks += 1;
        }
        let bytes =
            if matches!(does, Does::OversizeAnswer) { 16 } else { u32::try_from(body.len()).unwrap() };
        let reply = ChunksFollowV1 { chunks: n_chunks, bytes };
        if frames::write(send, &DataReply::from(reply)).await.is_err() {
            return false;
        }
        let cut = match does {
            Does::Truncate | Does::Stall | Does::Drip => body.len() / 2,
            _ => body.len(),
        };
        let sent = send.write_all(&body[..cut]).await.is_ok();
        self.sent_bytes.fetch_add(cut as u64, Ordering::Relaxed);
        match does {
            Does::Stall => std::future::pending().await,
            Does::Drip => {
                for byte in &body[cut..] {
                    tokio::time::sleep(DRIP_PAUSE).await;
                    if send.write_all(std::slice::from_ref(byte)).await.is_err() {
                        return false;
                    }
                }
                true
            }
            Does::Truncate => send.finish().is_err(),
            _ => sent,
        }
    }
}

async fn bytes(send: &mut SendStream, does: Does, mut bytes: Vec<u8>) -> bool {
    let mut announced = u32::try_from(bytes.len()).unwrap();
    match does {
        Does::WrongBytes => bytes[3] ^= 1,
        Does::OversizeAnswer => announced = u32::MAX,
        _ => {}
    }
    frames::write(send, &DataReply::from(BytesFollowV1 { bytes: announced })).await.is_ok()
        && send.write_all(&bytes).await.is_ok()
}
