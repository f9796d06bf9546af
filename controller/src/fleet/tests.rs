//! The fleet end to end over loopback QUIC, with a real database and real content objects. [`Agent`] is the smallest
//! client that speaks the protocol; what it does wrong it does on purpose.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hearth_protocol::digest::{AgentId, ChunkDigest, ContentId};
use hearth_protocol::frame::{BODY_BYTES_MAX, Message};
use hearth_protocol::id::{BootId, Generation, ImageId, LocationId};
use hearth_protocol::message::control::{
    HelloAckV1, HelloLocation, HelloV1, ObservedEntry, ObservedState, ObservedV1, PlanAckV1, PlanV1, ToAgent,
    ToController,
};
use hearth_protocol::message::enrol::{EnrolReply, EnrolRequest, EnrolV1, LocationFacts};
use hearth_protocol::version::{ALPN, ALPN_ENROL};
use hearth_protocol::words::{ContentKind, DiskFormat, EntryStatus, ImageKind};
use quinn::{Connection, Endpoint, SendStream, TransportConfig, VarInt};
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::ca::{Authority, CONTROLLER_NAME};
use super::frames::{FrameReader, send};
use super::tls::{ServerIdentity, provider};
use super::{Fleet, FleetConfig, FleetContext, FleetHandle};
use crate::clock;
use crate::content::{ContentStore, ObjectWriter, PackedChunk, Packer};
use crate::db::contents::Content;
use crate::db::image_changes::{Imported, Original};
use crate::db::images::{ImageFacts, NewImage};
use crate::db::join_tokens::JoinToken;
use crate::db::operations::{Draft, OperationFilter};
use crate::db::{Db, PageRequest, new_id};

mod certificates;
mod data;
mod enrol;
mod garbage;
mod plans;
mod session;
mod swarm;

/// Longest wait for something that must happen.
const SOON: Duration = Duration::from_secs(10);

/// A controller's fleet with one image.
struct Place {
    folder: tempfile::TempDir,
    db: Db,
    store: Arc<ContentStore>,
    authority: Arc<Authority>,
    fleet: FleetHandle,
    address: SocketAddr,
    image: ImageId,
    content: ContentId,
    n_chunks: u32,
}

impl Place {
    async fn new() -> Self {
        Self::with(|_| ()).await
    }

    /// A place whose settings `adjust` changes.
    async fn with(adjust: impl FnOnce(&mut FleetConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(folder.path().join("hearth.db").to_str().unwrap()).await.unwrap();
        let store = Arc::new(ContentStore::new(folder.path()).unwrap());
        let authority = Arc::new(Authority::create(&folder.path().join("ca"), clock::unix_us()).unwrap());
        let (content, n_chunks) = (stored(folder.path(), &store, 300), 300);
        let image = imported(&db, &store, content).await;
        let identity = ServerIdentity::new(Arc::clone(&authority), vec![], clock::unix_us()).unwrap();
        let mut config = FleetConfig::new("127.0.0.1:0".parse().unwrap());
        adjust(&mut config);
        let context = FleetContext {
            db: db.clone(),
            store: Arc::clone(&store),
            identity,
            config,
            keys: Arc::default(),
            remake: None,
        };
        let fleet = Fleet::start(context).await.unwrap();
        let address = fleet.local_address().unwrap();
        Self { folder, db, store, authority, fleet, address, image, content, n_chunks }
    }

    /// Makes a join token; the secret.
    async fn token(&self, uses_left: u32, ttl_s: i64, name_glob: &str) -> [u8; 32] {
        let secret = rand::random::<[u8; 32]>();
        let token = JoinToken {
            id: new_id(),
            uses_left,
            expires_us: clock::unix_us() + ttl_s * 1_000_000,
            name_glob: name_glob.to_owned(),
            presets: BTreeMap::from([("zone".to_owned(), "z1".to_owned())]),
            revoked_us: None,
            created_by: "test".to_owned(),
            created_us: 0,
        };
        let hash = blake3::hash(&secret).to_hex().to_string();
        self.db.create_join_token(&token, &hash, &Draft::system("join_token.create")).await.unwrap();
        secret
    }

    /// An enrolled agent.
    async fn agent(&self, name: &str) -> Agent {
        let mut agent = Agent::new(name);
        let secret = self.token(1, 900, "").await;
        agent.enrol(self, Some(secret)).await.unwrap();
        agent
    }

    async fn actions(&self) -> Vec<String> {
        let all = self.db.operations(&OperationFilter::default(), &PageRequest::default()).await.unwrap();
        all.items.into_iter().map(|operation| operation.draft.action).collect()
    }
}

/// A content of `n` chunks of 8 KiB, half of which pack well.
fn stored(folder: &Path, store: &ContentStore, n: u32) -> ContentId {
    let mut writer = ObjectWriter::create(&folder.join("staging"), ContentKind::Disk).unwrap();
    let mut packer = Packer::new().unwrap();
    for chunk in 0..n {
        let (raw, mut stored) = (raw(chunk), Vec::new());
        let encoding = packer.pack(&raw, &mut stored).unwrap();
        let packed = PackedChunk {
            offset: u64::from(chunk) * 12288,
            raw_len: 8192,
            digest: ChunkDigest::of(&raw),
            stored_len: u32::try_from(stored.len()).unwrap(),
            encoding,
        };
        writer.push(&[packed], &stored).unwrap();
    }
    let staged = writer.finish(u64::from(n) * 12288).unwrap();
    let content = staged.root().content_id();
    store.publish(staged, &AtomicBool::new(false)).unwrap();
    content
}

/// Raw bytes of chunk `n`.
fn raw(n: u32) -> Vec<u8> {
    let mut out = vec![0; 8192];
    if n.is_multiple_of(2) {
        return n.to_le_bytes().repeat(2048);
    }
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Takes an image through the catalog, with the content as what was imported.
async fn imported(db: &Db, store: &ContentStore, content: ContentId) -> ImageId {
    let (domain, project) = db.default_tenants().await.unwrap();
    let (id, job, op) = (new_id(), new_id(), Draft::system("image.import"));
    let facts = ImageFacts::named(format!("image {id}"));
    let new = NewImage {
        id,
        kind: ImageKind::Disk,
        format: Some(DiskFormat::Raw),
        container_format: "bare".to_owned(),
        domain,
        project,
        expected: Default::default(),
        fixed: Default::default(),
        facts,
    };
    db.create_image(&new, &op).await.unwrap();
    db.start_upload(id).await.unwrap();
    let original = Original { bytes: 1, checksums: Default::default() };
    db.accept_upload(id, &original, (job, "{}"), &Draft::system("image.upload")).await.unwrap();
    let object = store.open(content).unwrap();
    let record = Content {
        id: content,
        kind: ContentKind::Disk,
        raw_bytes: object.root().raw_bytes(),
        data_bytes: object.root().data_bytes(),
        stored_bytes: object.stored_bytes(),
        n_chunks: object.root().n_chunks().into(),
        damaged: false,
    };
    let imported = Imported {
        content: record,
        format: DiskFormat::Raw,
        original_kept: false,
        variants: Vec::new(),
        scan: None,
    };
    db.finish_import(id, job, &imported, &Draft::system("image.active")).await.unwrap();
    id
}

/// A host's agent: a key, and what it was given.
struct Agent {
    name: String,
    key: KeyPair,
    chain: Vec<CertificateDer<'static>>,
    location: Option<LocationId>,
    endpoint: Endpoint,
}

impl Agent {
    fn new(name: &str) -> Self {
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let (key, name) = (KeyPair::generate().unwrap(), name.to_owned());
        Self { name, key, chain: vec![], location: None, endpoint }
    }

    fn id(&self) -> AgentId {
        AgentId::of(&self.key.subject_public_key_info())
    }

    fn location(&self) -> LocationId {
        self.location.unwrap()
    }

    fn csr(&self) -> Vec<u8> {
        let params = CertificateParams::new(vec!["controller.hearth.internal".to_owned()]).unwrap();
        params.serialize_request(&self.key).unwrap().der().to_vec()
    }

    /// Connects with what the agent has; `window` bounds what it takes without reading.
    async fn connect(&self, place: &Place, alpn: &[u8], window: Option<u32>) -> Result<Connection, String> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(place.authority.certificate().clone()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut tls = if self.chain.is_empty() {
            builder.with_no_client_auth()
        } else {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
            builder.with_client_auth_cert(self.chain.clone(), key).unwrap()
        };
        tls.alpn_protocols = vec![alpn.to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        if let Some(window) = window {
            let mut transport = TransportConfig::default();
            transport.receive_window(VarInt::from_u32(window));
            config.transport_config(Arc::new(transport));
        }
        let connecting = self.endpoint.connect_with(config, place.address, CONTROLLER_NAME).unwrap();
        connecting.await.map_err(|error| error.to_string())
    }

    /// Asks for a certificate; the text of the refusal if there is one.
    async fn enrol(&mut self, place: &Place, token_secret: Option<[u8; 32]>) -> Result<LocationId, String> {
        let bare = Self { chain: vec![], ..Self::new("") };
        let connection = bare.connect(place, ALPN_ENROL, None).await?;
        let (mut writer, recv) = connection.open_bi().await.unwrap();
        let facts =
            LocationFacts { name: self.name.clone(), ip: "10.0.0.1".into(), ..LocationFacts::default() };
        let request = EnrolRequest::Enrol(EnrolV1 { token_secret, csr_der: self.csr(), facts });
        send(&mut writer, &request).await.map_err(|error| error.to_string())?;
        let reply = FrameReader::new(recv, BODY_BYTES_MAX).expect::<EnrolReply>(SOON).await;
        connection.close(VarInt::from_u32(0), b"");
        match reply.map_err(|error| error.to_string())? {
            EnrolReply::Enrolled(enrolled) => {
                self.chain = enrolled.chain.into_iter().map(CertificateDer::from).collect();
                self.location = Some(enrolled.location);
                Ok(enrolled.location)
            }
            EnrolReply::Fault(fault) => Err(fault.text),
        }
    }

    fn hello(&self) -> HelloV1 {
        HelloV1 {
            version_min: 1,
            version_max: 1,
            build: "test".to_owned(),
            boot: BootId::from_bytes(rand::random()),
            sent_unix_ms: clock::unix_ms(),
            locations: vec![HelloLocation {
                location: self.location(),
                advertised: vec!["127.0.0.1:7444".to_owned()],
                nic_mbps: 1000,
                generation: Generation(0),
            }],
        }
    }

    /// A session that is up, with an empty inventory reported.
    async fn session(&self, place: &Place) -> Live {
        let mut live = self.greet(place, self.hello(), None).await.unwrap();
        live.observe(Some(true), vec![]).await;
        live
    }

    /// Connects and says Hello; the refusal or whatever else went wrong as text.
    async fn greet(&self, place: &Place, hello: HelloV1, window: Option<u32>) -> Result<Live, String> {
        let connection = self.connect(place, ALPN, window).await?;
        let text = |error: super::frames::StreamError| format!("{error}: {:?}", connection.close_reason());
        let (mut writer, recv) = connection.open_bi().await.map_err(|error| error.to_string())?;
        send(&mut writer, &ToController::Hello(hello)).await.map_err(text)?;
        let mut reader = FrameReader::new(recv, BODY_BYTES_MAX);
        match reader.expect::<ToAgent>(SOON).await.map_err(text)? {
            ToAgent::Welcome(welcome) => {
                let ack = HelloAckV1 { session: welcome.session };
                send(&mut writer, &ToController::HelloAck(ack)).await.map_err(text)?;
            }
            ToAgent::Refused(refused) => return Err(format!("{}: {}", refused.fault, refused.text)),
            other => return Err(format!("unexpected {other:?}")),
        }
        Ok(Live { location: self.location(), connection, writer, reader })
    }
}

/// A session from the agent's side.
struct Live {
    location: LocationId,
    connection: Connection,
    writer: SendStream,
    reader: FrameReader,
}

impl Live {
    async fn say(&mut self, message: impl Into<ToController>) {
        send(&mut self.writer, &message.into()).await.unwrap();
    }

    async fn hear(&mut self) -> ToAgent {
        self.reader.expect(SOON).await.unwrap()
    }

    /// Waits for a plan that fits, following each.
    async fn plan(&mut self, fits: impl Fn(&PlanV1) -> bool) -> PlanV1 {
        loop {
            if let ToAgent::Plan(plan) = self.hear().await {
                let ack = PlanAckV1 { location: self.location, generation: plan.generation, refused: None };
                self.say(ack).await;
                if fits(&plan) {
                    return plan;
                }
            }
        }
    }

    async fn observe(&mut self, inventory_last: Option<bool>, entries: Vec<ObservedEntry>) {
        self.say(ObservedV1 { location: self.location, inventory_last, entries }).await;
    }

    async fn report(&mut self, content: ContentId, state: ObservedState) {
        self.observe(None, vec![observed(content, state)]).await;
    }

    async fn report_active(&mut self, content: ContentId) {
        self.report(content, ObservedState::Present(EntryStatus::Active)).await;
    }
}

/// What an agent says of a copy of one byte.
fn observed(content: ContentId, state: ObservedState) -> ObservedEntry {
    ObservedEntry {
        content,
        state,
        done_bytes: 1,
        data_bytes: 1,
        moved_bytes: 0,
        reused_bytes: 0,
        allocated_bytes: 0,
        leases: 0,
        last_used_unix_ms: 0,
    }
}

/// Waits until `holds` is true.
async fn until<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let deadline = clock::monotonic() + SOON;
    while !holds().await {
        assert!(clock::monotonic() < deadline, "waited too long: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A message as it goes over a stream.
fn frame(message: &impl Message) -> Vec<u8> {
    message.to_frame().unwrap()
}
