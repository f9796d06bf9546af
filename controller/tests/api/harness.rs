//! A controller for one test, and a client that trusts its CA and nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hearth_controller::config::{self, Config};
use hearth_controller::ingest::sandbox::{SandboxMode, landlock_available};
use hearth_controller::serve::Controller;
use hearth_controller::{admin, clock, metrics};
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::image::Image;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::{ImageStatus, Role};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The real program: imports start it as their sandboxed child.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_hearth-controller");

/// Longest wait for something that takes well under a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A configuration in `dir`, on free ports.
pub(crate) fn config_in(dir: &Path) -> Config {
    let file = dir.join("controller.toml");
    let text = format!(
        "state_dir = {:?}\nlisten_https = \"127.0.0.1:0\"\nlisten_quic = \"127.0.0.1:0\"\nsandbox = \"{}\"\napi_requests_per_second = 0\n\
         variants = []\n",
        dir.join("state"),
        sandbox().as_str()
    );
    std::fs::write(&file, text).unwrap();
    config::load(Some(&file)).unwrap().config
}

/// How imports are confined: as in production, wherever the kernel can.
pub(crate) fn sandbox() -> SandboxMode {
    if landlock_available() { SandboxMode::Required } else { SandboxMode::BestEffort }
}

/// Sets a controller up and returns the administrator's token.
pub(crate) async fn init(config: &Config) -> String {
    let mut out = Vec::new();
    admin::init::init(config, false, &mut out).await.unwrap();
    let text = String::from_utf8(out).unwrap();
    text.split_whitespace().find(|word| word.starts_with("hrt_")).unwrap().to_owned()
}

/// A controller that runs in this process.
pub(crate) struct Place {
    pub(crate) dir: TempDir,
    pub(crate) config: Config,
    pub(crate) controller: Controller,
    pub(crate) client: Client,
}

impl Place {
    pub(crate) async fn new() -> Self {
        Self::with(|_| ()).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config_in(dir.path());
        change(&mut config);
        let token = init(&config).await;
        let controller = start(&config).await;
        let client = Client::new(&config, controller.https.port(), &token);
        Self { dir, config, controller, client }
    }

    /// Stops it and returns its folder.
    pub(crate) async fn stop(self) -> (TempDir, Config, String) {
        let token = self.client.token.clone();
        drop(self.client);
        self.controller.stop().await;
        (self.dir, self.config, token)
    }
}

pub(crate) async fn start(config: &Config) -> Controller {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    Box::pin(Controller::start(config.clone(), PROGRAM.into(), metrics::detached())).await.unwrap()
}

/// A caller with a token.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) http: reqwest::Client,
    pub(crate) base: String,
    pub(crate) token: String,
}

impl Client {
    pub(crate) fn new(config: &Config, port: u16, token: &str) -> Self {
        let tls = tls_config(config);
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap();
        Self { http, base: format!("https://localhost:{port}"), token: token.to_owned() }
    }

    /// The same connection with another token.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// The same caller on a connection of its own, on which few bytes come that nobody reads.
    pub(crate) fn narrow(&self, config: &Config) -> Self {
        const WINDOW_BYTES: u32 = 65_535;
        let mut tls = tls_config(config);
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy();
        let http = http.http2_initial_stream_window_size(WINDOW_BYTES);
        let http = http.http2_initial_connection_window_size(WINDOW_BYTES).build().unwrap();
        Self { http, ..self.clone() }
    }

    /// A request with the token; `path` stands behind `/api/v1`.
    pub(crate) fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/api/v1{path}", self.base)).bearer_auth(&self.token)
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        body(self.ask(Method::GET, path).send().await.unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, sent: Value) -> Value {
        body(self.ask(Method::POST, path).json(&sent).send().await.unwrap()).await
    }

    /// Makes a token and returns a client with it.
    pub(crate) async fn delegate(&self, name: &str, role: Role, scope: Value) -> Self {
        let mut sent = json!({ "name": name, "role": role });
        sent.as_object_mut().unwrap().extend(scope.as_object().unwrap().clone());
        let made = self.post("/tokens", sent).await;
        self.with_token(made["token"].as_str().unwrap())
    }

    /// Makes a record.
    pub(crate) async fn image(&self, sent: Value) -> ImageId {
        self.post("/images", sent).await["id"].as_str().unwrap().parse().unwrap()
    }

    /// Sends a file.
    pub(crate) async fn put(&self, id: ImageId, bytes: Vec<u8>) -> Response {
        self.ask(Method::PUT, &format!("/images/{id}/file")).body(bytes).send().await.unwrap()
    }

    /// Waits until the import ends.
    pub(crate) async fn ended(&self, id: ImageId) -> Image {
        let begun = clock::monotonic();
        loop {
            let image: Image = serde_json::from_value(self.get(&format!("/images/{id}")).await).unwrap();
            if !matches!(image.status, ImageStatus::Saving | ImageStatus::Importing) {
                return image;
            }
            assert!(begun.elapsed() < PATIENCE, "{image:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The body of an answer that must be good.
pub(crate) async fn body(answer: Response) -> Value {
    let (status, url) = (answer.status(), answer.url().clone());
    let text = answer.text().await.unwrap();
    assert!(status.is_success(), "{url}: {status} {text}");
    if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() }
}

/// The error of an answer that must have this status; every error has a body and the id of its header.
pub(crate) async fn fault(answer: Response, status: u16) -> ErrorBody {
    let url = answer.url().clone();
    let header = answer.headers().get("x-request-id").map(|id| id.to_str().unwrap().to_owned());
    assert_eq!(answer.headers()["content-type"], "application/json", "{url}");
    let found = answer.status();
    let text = answer.text().await.unwrap();
    assert_eq!(found, StatusCode::from_u16(status).unwrap(), "{url}: {text}");
    let error: ErrorBody = serde_json::from_str(&text).unwrap();
    assert_eq!(header.as_deref(), Some(error.request_id.as_str()), "{url}");
    assert!(!error.message.is_empty());
    error
}

/// TLS 1.3 that trusts this controller's CA.
pub(crate) fn tls_config(config: &Config) -> rustls::ClientConfig {
    let pem = std::fs::read(config.state_dir.join("ca/ca.crt")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// A disk with a file system and some bytes in it, as qcow2.
pub(crate) fn qcow2(dir: &Path, random_bytes: u64) -> PathBuf {
    let (raw, made) = (dir.join("disk.raw"), dir.join("disk.qcow2"));
    let disk = std::fs::File::create(&raw).unwrap();
    disk.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, &noise(random_bytes), 1 << 20).unwrap();
    let done =
        Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&made).status();
    assert!(done.expect("qemu-img is installed (apt install qemu-utils)").success());
    made
}

/// Bytes that nothing packs.
pub(crate) fn noise(n: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(n).unwrap()];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
    bytes
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names of files in a folder of the state, recursively.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Waits until `done`.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = clock::monotonic();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
