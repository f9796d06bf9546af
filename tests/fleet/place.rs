//! A controller's fleet with one image, and agents with folders of their own, in this process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use hearth_agent::config::Config;
use hearth_agent::control::{enrol, identity};
use hearth_agent::local::client;
use hearth_agent::local::message::{EntryRow, Reply, Request};
use hearth_agent::transfer::endpoint::Endpoint;
use hearth_agent::{daemon, task};
use hearth_controller::clock;
use hearth_controller::content::{ContentStore, ObjectWriter, PackedChunk, Packer};
use hearth_controller::db::contents::Content;
use hearth_controller::db::image_changes::{Imported, Original};
use hearth_controller::db::images::{ImageFacts, NewImage};
use hearth_controller::db::operations::Draft;
use hearth_controller::db::prewarms::Prewarm;
use hearth_controller::db::{Db, join_tokens, new_id};
use hearth_controller::fleet::ca::{AGENT_LIFE_DEFAULT, Authority};
use hearth_controller::fleet::tls::ServerIdentity;
use hearth_controller::fleet::{Fleet, FleetConfig, FleetContext, FleetHandle};
use hearth_protocol::api::cache::{Keep, Targets};
use hearth_protocol::digest::{ChunkDigest, ContentId};
use hearth_protocol::id::{ImageId, LocationId, PrewarmId};
use hearth_protocol::message::enrol::JoinToken;
use hearth_protocol::words::{ContentKind, DiskFormat, ImageKind, PrewarmState, Priority};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for something that must happen.
const SOON: Duration = Duration::from_secs(60);
/// Raw length of a chunk, and the distance to the next: a hole of a block follows each.
const CHUNK: u32 = 65_536;
const STEP: u64 = 69_632;

/// Waits until `done`.
pub(crate) async fn until(what: &str, done: impl AsyncFn() -> bool) {
    let end = clock::monotonic() + SOON;
    while !done().await {
        assert!(clock::monotonic() < end, "waited {SOON:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// See the module.
pub(crate) struct Place {
    folder: tempfile::TempDir,
    db: Db,
    store: Arc<ContentStore>,
    authority: Arc<Authority>,
    fleet: Option<FleetHandle>,
    address: SocketAddr,
    image: ImageId,
    pub(crate) content: ContentId,
    n_chunks: u32,
    agent_life: Duration,
}

impl Place {
    pub(crate) async fn new(n_chunks: u32) -> Self {
        Self::with_agent_life(n_chunks, AGENT_LIFE_DEFAULT).await
    }

    /// A place whose agents' certificates live for `agent_life`.
    pub(crate) async fn with_agent_life(n_chunks: u32, agent_life: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(folder.path().join("hearth.db").to_str().unwrap()).await.unwrap();
        let store = Arc::new(ContentStore::new(folder.path()).unwrap());
        let authority = Arc::new(Authority::create(&folder.path().join("ca"), clock::unix_us()).unwrap());
        let content = stored(folder.path(), &store, n_chunks);
        let image = imported(&db, &store, content).await;
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut place =
            Self { folder, db, store, authority, fleet: None, address, image, content, n_chunks, agent_life };
        place.start().await;
        place
    }

    /// Starts the fleet, on the same port as before.
    pub(crate) async fn start(&mut self) {
        let identity = ServerIdentity::new(Arc::clone(&self.authority), vec![], clock::unix_us()).unwrap();
        let config = FleetConfig { agent_life: self.agent_life, ..FleetConfig::new(self.address) };
        let context = FleetContext {
            db: self.db.clone(),
            store: Arc::clone(&self.store),
            identity,
            config,
            remake: None,
        };
        let fleet = Fleet::start(context).await.unwrap();
        self.address = fleet.local_address().unwrap();
        self.fleet = Some(fleet);
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(fleet) = self.fleet.take() {
            fleet.stop().await;
        }
    }

    /// An enrolled agent that runs.
    pub(crate) async fn agent(&self, name: &str) -> Agent {
        let dir = self.folder.path().join(name);
        let text = format!(
            "data_dir = '{d}/state'\ncache_dir = '{d}/cache'\nsocket = '{d}/sock'\nbudget = '4 GiB'\nfloor = 0\n\
             group = ''\nlisten = '127.0.0.1:0'\ncontrollers = ['{}']\n[location]\nname = '{name}'\n",
            self.address,
            d = dir.display(),
        );
        let (config, unknown) = Config::parse(&text).unwrap();
        assert_eq!(unknown, Vec::<String>::new());
        let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), b"enrol").unwrap();
        let token = self.token().await;
        let enrolled = enrol::join(&endpoint, &config.data_dir, &config.controllers, &token, &config.facts)
            .await
            .unwrap();
        Agent::start(name.to_owned(), config, enrolled.location)
    }

    async fn token(&self) -> JoinToken {
        let secret = rand::random::<[u8; 32]>();
        let token = join_tokens::JoinToken {
            id: new_id(),
            uses_left: 1,
            expires_us: clock::unix_us() + 900_000_000,
            name_glob: String::new(),
            presets: BTreeMap::new(),
            revoked_us: None,
            created_by: "test".to_owned(),
            created_us: 0,
        };
        let hash = blake3::hash(&secret).to_hex().to_string();
        self.db.create_join_token(&token, &hash, &Draft::system("join_token.create")).await.unwrap();
        JoinToken { secret, ca: self.authority.fingerprint() }
    }

    pub(crate) async fn prewarm(&self, agents: &[Agent]) -> PrewarmId {
        self.prewarm_capped(&agents.iter().collect::<Vec<_>>(), None).await
    }

    pub(crate) async fn prewarm_capped(&self, agents: &[&Agent], cap: Option<u64>) -> PrewarmId {
        let job = Prewarm {
            id: new_id(),
            image: self.image,
            content: self.content,
            image_name: "image".into(),
            group: None,
            state: PrewarmState::Running,
            targets: Targets::default(),
            priority: Priority::Bulk,
            deadline_us: None,
            start_us: None,
            rate_bytes_per_s: cap,
            keep: Keep::default(),
            created_by: "test".into(),
            created_us: 0,
            finished_us: None,
        };
        let locations: Vec<LocationId> = agents.iter().map(|agent| agent.location).collect();
        self.db.create_prewarm(&job, &locations, &Draft::system("prewarm.create")).await.unwrap();
        self.fleet.as_ref().unwrap().wake();
        job.id
    }

    pub(crate) async fn state(&self, job: PrewarmId) -> PrewarmState {
        self.db.prewarm(job).await.unwrap().unwrap().state
    }

    /// When the agent's session came up, microseconds since the epoch; `None` if there is none.
    pub(crate) fn since_us(&self, agent: &Agent) -> Option<i64> {
        self.fleet.as_ref()?.session(agent.location).map(|session| session.since_us)
    }

    /// End of the newest certificate that the agent was given, microseconds since the epoch.
    pub(crate) async fn certificate_ends_us(&self, agent: &Agent) -> i64 {
        self.db.location(agent.location).await.unwrap().unwrap().cert_not_after_us.unwrap()
    }

    pub(crate) fn online(&self, agent: &Agent) -> bool {
        self.fleet.as_ref().is_some_and(|fleet| fleet.online(agent.location))
    }

    /// Revokes the agent's key.
    pub(crate) async fn revoke(&self, agent: &Agent) {
        let key = identity::AgentKey::load(&agent.config.data_dir).unwrap();
        self.db.revoke_location(agent.location, &Draft::system("location.revoke")).await.unwrap();
        // False if the fleet has seen the change by itself.
        self.fleet.as_ref().unwrap().revoke(key.agent_id());
    }

    /// The image's bytes.
    pub(crate) fn raw(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for chunk in 0..self.n_chunks {
            all.extend(raw(chunk));
            all.resize(usize::try_from(u64::from(chunk + 1) * STEP).unwrap(), 0);
        }
        all
    }

    pub(crate) fn stored_bytes(&self) -> u64 {
        self.store.open(self.content).unwrap().stored_bytes()
    }
}

/// An agent's daemon in this process.
pub(crate) struct Agent {
    pub(crate) name: String,
    config: Config,
    location: LocationId,
    stop: CancellationToken,
    running: JoinHandle<Result<(), daemon::DaemonError>>,
}

impl Agent {
    fn start(name: String, config: Config, location: LocationId) -> Self {
        let stop = CancellationToken::new();
        let running = task::spawn("agent", daemon::run(config.clone(), stop.clone()));
        Self { name, config, location, stop, running }
    }

    pub(crate) async fn stop(self) -> (String, Config, LocationId) {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
        (self.name, self.config, self.location)
    }

    /// Stops it as SIGTERM does and starts it again.
    pub(crate) async fn restart(self) -> Self {
        let (name, config, location) = self.stop().await;
        let agent = Self::start(name, config, location);
        let begun: Instant = clock::monotonic();
        while agent.status().is_none() {
            assert!(begun.elapsed() < SOON, "the agent does not come back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        agent
    }

    /// End of the certificate on disk, microseconds since the epoch.
    pub(crate) fn certificate_on_disk_ends_us(&self) -> i64 {
        identity::Enrolment::load(&self.config.data_dir).unwrap().validity().not_after * 1_000_000
    }

    /// The entry as the local socket shows it.
    pub(crate) fn view(&self, content: ContentId) -> Option<EntryRow> {
        let request = Request::Status { target: None };
        match client::ask(&self.config.socket, &request).ok()? {
            Reply::Status(status) => status.entries.into_iter().find(|entry| entry.content == content),
            _ => None,
        }
    }

    /// How it stands with its controller; `None` while it does not answer.
    pub(crate) fn status(&self) -> Option<String> {
        match client::ask(&self.config.socket, &Request::Status { target: None }).ok()? {
            Reply::Status(status) => Some(status.controller),
            _ => None,
        }
    }

    pub(crate) fn done_bytes(&self, content: ContentId) -> u64 {
        self.view(content).map_or(0, |entry| entry.done_bytes)
    }

    /// The cached file, found as a hypervisor finds it.
    pub(crate) fn file(&self, content: ContentId) -> Option<Vec<u8>> {
        let request = Request::Path { target: content.to_string(), wait_s: 30 };
        match client::ask(&self.config.socket, &request) {
            Ok(Reply::Path { path }) => Some(std::fs::read(path).unwrap()),
            Ok(_) => None,
            Err(refusal) => panic!("no path: {refusal:?}"),
        }
    }
}

/// A content of `n` chunks of 64 KiB, half of which pack well.
fn stored(folder: &Path, store: &ContentStore, n: u32) -> ContentId {
    let mut writer = ObjectWriter::create(&folder.join("staging"), ContentKind::Disk).unwrap();
    let mut packer = Packer::new().unwrap();
    for chunk in 0..n {
        let (raw, mut stored) = (raw(chunk), Vec::new());
        let encoding = packer.pack(&raw, &mut stored).unwrap();
        let packed = PackedChunk {
            offset: u64::from(chunk) * STEP,
            raw_len: CHUNK,
            digest: ChunkDigest::of(&raw),
            stored_len: u32::try_from(stored.len()).unwrap(),
            encoding,
        };
        writer.push(&[packed], &stored).unwrap();
    }
    let staged = writer.finish(u64::from(n) * STEP).unwrap();
    let content = staged.root().content_id();
    store.publish(staged, &AtomicBool::new(false)).unwrap();
    content
}

/// Raw bytes of chunk `n`.
fn raw(n: u32) -> Vec<u8> {
    let mut out = vec![0; CHUNK as usize];
    if n.is_multiple_of(2) {
        return (n + 1).to_le_bytes().repeat(CHUNK as usize / 4);
    }
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Takes an image through the catalog, with the content as what was imported.
async fn imported(db: &Db, store: &ContentStore, content: ContentId) -> ImageId {
    let (domain, project) = db.default_tenants().await.unwrap();
    let (id, job, op) = (new_id(), new_id(), Draft::system("image.import"));
    let facts = ImageFacts::named("image");
    let new = NewImage {
        id,
        kind: ImageKind::Disk,
        format: Some(DiskFormat::Raw),
        container_format: "bare".to_owned(),
        expected: Default::default(),
        fixed: Default::default(),
        domain,
        project,
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
