//! A small client of the HTTP API.
//!
//! **Why not the command line's.** Crates of ours do not depend on `hearth`; and two clients find what one of them hides.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use hearth_protocol::api::Page;
use hearth_protocol::api::error::ErrorBody;
use reqwest::{Method, Response};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One controller, one token.
#[derive(Clone, Debug)]
pub struct Api {
    http: reqwest::Client,
    base: String,
    token: String,
    clock_offset_s: Arc<AtomicI64>,
}

/// A refusal of the controller.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// What it says.
    pub body: Option<ErrorBody>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {}: {:?}", self.status, self.body)
    }
}

impl std::error::Error for Refusal {}

impl Api {
    /// Trusts the CA in `ca_pem` alone.
    ///
    /// # Errors
    /// If the certificate does not parse.
    pub fn new(base: &str, token: &str, ca_pem: &[u8]) -> anyhow::Result<Self> {
        // The second call of a process finds the provider installed, which is fine.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_pem).context("reading the CA's certificate")?)?;
        let clock_offset_s = Arc::new(AtomicI64::new(0));
        let verifier = AtTime {
            inner: WebPkiServerVerifier::builder(Arc::new(roots)).build()?,
            offset_s: Arc::clone(&clock_offset_s),
        };
        let mut tls = rustls::ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build()?;
        Ok(Self { http, base: base.to_owned(), token: token.to_owned(), clock_offset_s })
    }

    /// Looks at certificates as if it were `offset_s` seconds later than it is; for all clones.
    pub fn set_clock(&self, offset_s: i64) {
        self.clock_offset_s.store(offset_s, Ordering::Relaxed);
    }

    /// The token of this client.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The same controller with another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// A request under `/api/v1`; `path` begins with `/` and may hold a query.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}/api/v1{path}", self.base)).bearer_auth(&self.token)
    }

    /// A request of anything, for example `/metrics`.
    pub fn outside(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    /// `GET` of one body.
    ///
    /// # Errors
    /// [`Refusal`], or what the network says.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        body(self.request(Method::GET, path).send().await?).await
    }

    /// All rows of a list.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn list<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Vec<T>> {
        let mut rows = Vec::new();
        let mut cursor = String::new();
        loop {
            let glue = if path.contains('?') { '&' } else { '?' };
            let page: Page<T> = self.get(&format!("{path}{glue}{cursor}")).await?;
            rows.extend(page.items);
            match page.next {
                Some(next) => cursor = format!("cursor={next}"),
                None => return Ok(rows),
            }
        }
    }

    /// `POST` of a body, answered by a body.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        sent: &(impl Serialize + Sync),
    ) -> anyhow::Result<T> {
        body(self.request(Method::POST, path).json(sent).send().await?).await
    }

    /// A call whose answer does not matter as long as it is no refusal.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn act(&self, method: Method, path: &str) -> anyhow::Result<()> {
        checked(self.request(method, path).send().await?).await.map(drop)
    }

    /// `PUT` of a file.
    ///
    /// # Errors
    /// As [`Api::get`], or what the file system says.
    pub async fn put_file<T: DeserializeOwned>(
        &self,
        path: &str,
        file: &std::path::Path,
    ) -> anyhow::Result<T> {
        let bytes =
            tokio::fs::File::open(file).await.with_context(|| format!("opening {}", file.display()))?;
        body(self.request(Method::PUT, path).body(bytes).send().await?).await
    }

    /// `GET` of a stream from byte `from` on, all of it.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub async fn download(&self, path: &str, from: u64) -> anyhow::Result<Vec<u8>> {
        let mut request = self.request(Method::GET, path);
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        let mut stream = checked(request.send().await?).await?.bytes_stream();
        let mut bytes = Vec::new();
        while let Some(part) = stream.next().await {
            bytes.extend_from_slice(&part?);
        }
        Ok(bytes)
    }
}

/// The usual checks of a certificate, at the time of the controller under test.
#[derive(Debug)]
struct AtTime {
    inner: Arc<WebPkiServerVerifier>,
    offset_s: Arc<AtomicI64>,
}

impl ServerCertVerifier for AtTime {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let now_s = now.as_secs().saturating_add_signed(self.offset_s.load(Ordering::Relaxed));
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now_s));
        self.inner.verify_server_cert(leaf, others, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The answer, or the refusal in it.
///
/// # Errors
/// [`Refusal`].
pub async fn checked(answer: Response) -> anyhow::Result<Response> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let bytes = answer.bytes().await.unwrap_or_default();
    Err(Refusal { status: status.as_u16(), body: serde_json::from_slice(&bytes).ok() }.into())
}

async fn body<T: DeserializeOwned>(answer: Response) -> anyhow::Result<T> {
    let bytes = checked(answer).await?.bytes().await?;
    serde_json::from_slice(&bytes)
        .with_context(|| format!("an answer reads {:?}", String::from_utf8_lossy(&bytes)))
}

/// The status with which the controller refused.
///
/// # Panics
/// If the call went well, or failed otherwise.
#[must_use]
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: anyhow::Result<T>) -> Refusal {
    let error = result.expect_err("the call should have been refused");
    error.downcast::<Refusal>().expect("a refusal, not a broken connection")
}
