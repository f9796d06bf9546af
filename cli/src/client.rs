//! Talks to the controller's HTTP API.
//!
//! **What.** Typed calls with the bodies of `hearth_protocol::api`, lists read page by page, streams up and down.
//! **Why no proxy.** A controller stands in the operator's own network; a proxy set for the web must not see its tokens.
//! **Invariants.** The token goes only to a server whose chain ends in the pinned CA; every failure says which of
//! "not reached", "not trusted" and "refused" it was.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::image::Image;
use hearth_protocol::api::upload::{UPLOAD_OFFSET, Upload};
use hearth_protocol::api::{PAGE_ROWS_MAX, Page};
use hearth_protocol::digest::CaFingerprint;
use reqwest::{Method, Response, StatusCode, Url, header};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::Config;
use crate::failure::{Exit, Failure};
use crate::tls::{self, SeenCa};

/// A controller that does not take a connection for so long is down.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// An answer without a file in it comes at once; longer means that something is stuck.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);
/// A file of a million rows is made in minutes.
const FILE_WAIT_MAX: Duration = Duration::from_secs(900);
/// Largest answer without a file in it: protects this process's memory.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Query parameters; those without a value are left out.
pub(crate) type Query<'a> = &'a [(&'a str, Option<String>)];

/// What came of a part of an upload.
#[derive(Debug)]
pub(crate) enum Sent {
    /// It is durable; more is to come.
    Part(Upload),
    /// It was the last one; the import runs.
    Whole(Box<Image>),
}

/// A connection pool to one controller.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
    ca: SeenCa,
}

impl Client {
    /// # Errors
    /// Only if TLS cannot be set up at all; nothing is connected yet.
    pub(crate) fn new(config: &Config) -> anyhow::Result<Self> {
        let client = Self::anonymous(config.url.clone(), config.fingerprint)?;
        Ok(Self { token: Some(config.token.clone()), ..client })
    }

    /// A client without a token, to get one with.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub(crate) fn anonymous(base: Url, fingerprint: CaFingerprint) -> anyhow::Result<Self> {
        let ca = SeenCa::default();
        let trust = tls::client_config(fingerprint, Arc::clone(&ca)).context("setting up TLS")?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(trust)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_WAIT_MAX)
            .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("setting up the HTTP client")?;
        Ok(Self { http, base, token: None, ca })
    }

    /// The token in use.
    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The certificate of the CA that is trusted, as PEM.
    ///
    /// # Errors
    /// Not reached, or not the one that is trusted.
    pub(crate) async fn ca(&self) -> anyhow::Result<String> {
        if self.ca.get().is_none() {
            // Any answer will do: the certificate came with the handshake before it.
            let request = self.request(Method::GET, &["whoami"], &[]).timeout(ANSWER_WAIT_MAX);
            request.send().await.map_err(|e| self.explain(&e))?;
        }
        let ca = self.ca.get().context("the server sent no certificate")?;
        Ok(tls::pem(ca))
    }

    /// The controller's address.
    pub(crate) const fn base(&self) -> &Url {
        &self.base
    }

    /// `GET` of one body.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: Query<'_>,
    ) -> anyhow::Result<T> {
        let answer = self.send(self.request(Method::GET, path, query)).await?;
        body(answer).await
    }

    /// All rows of a list, or the first `limit`.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: Query<'_>,
        limit: Option<usize>,
    ) -> anyhow::Result<Vec<T>> {
        let mut rows = Vec::new();
        let mut cursor = None;
        loop {
            let left = limit.map_or(usize::MAX, |limit| limit.saturating_sub(rows.len()));
            let page_rows = left.min(PAGE_ROWS_MAX as usize);
            let mut query = query.to_vec();
            query.push(("limit", Some(page_rows.to_string())));
            query.push(("cursor", cursor.take()));
            let page: Page<T> = self.get(path, &query).await?;
            let came = page.items.len();
            rows.extend(page.items);
            rows.truncate(limit.unwrap_or(usize::MAX));
            cursor = page.next;
            if cursor.is_none() || came == 0 || limit.is_some_and(|limit| rows.len() >= limit) {
                return Ok(rows);
            }
        }
    }

    /// `POST` with a body, answered by a body.
    pub(crate) async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &[&str],
        sent: &B,
    ) -> anyhow::Result<T> {
        let answer = self.send(self.request(Method::POST, path, &[]).json(sent)).await?;
        body(answer).await
    }

    /// `POST` with a body, answered by nothing.
    pub(crate) async fn post_only<B: Serialize + Sync>(&self, path: &[&str], sent: &B) -> anyhow::Result<()> {
        self.send(self.request(Method::POST, path, &[]).json(sent)).await.map(drop)
    }

    /// `PUT` with a body, answered by nothing.
    pub(crate) async fn put_only<B: Serialize + Sync>(&self, path: &[&str], sent: &B) -> anyhow::Result<()> {
        self.send(self.request(Method::PUT, path, &[]).json(sent)).await.map(drop)
    }

    /// `PATCH` of a record that knows no revisions, answered by the record.
    pub(crate) async fn amend<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &[&str],
        sent: &B,
    ) -> anyhow::Result<T> {
        body(self.send(self.request(Method::PATCH, path, &[]).json(sent)).await?).await
    }

    /// `PATCH` of a record that has this revision (where one is given), answered by the record.
    pub(crate) async fn patch<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &[&str],
        sent: &B,
        revision: impl Into<Option<u64>>,
    ) -> anyhow::Result<T> {
        let mut request = self.request(Method::PATCH, path, &[]);
        if let Some(revision) = revision.into() {
            request = request.header(header::IF_MATCH, format!("\"{revision}\""));
        }
        body(self.send(request.json(sent)).await?).await
    }

    /// `POST` without a body, whatever the answer holds.
    pub(crate) async fn act(&self, path: &[&str]) -> anyhow::Result<()> {
        self.send(self.request(Method::POST, path, &[])).await.map(drop)
    }

    /// `POST` without a body, answered by a body.
    pub(crate) async fn act_for<T: DeserializeOwned>(&self, path: &[&str]) -> anyhow::Result<T> {
        body(self.send(self.request(Method::POST, path, &[])).await?).await
    }

    /// `POST` without a body but with parameters, answered by a body.
    pub(crate) async fn act_with<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: Query<'_>,
    ) -> anyhow::Result<T> {
        body(self.send(self.request(Method::POST, path, query)).await?).await
    }

    /// `PUT` with a body, answered by a body.
    pub(crate) async fn put<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &[&str],
        sent: &B,
    ) -> anyhow::Result<T> {
        body(self.send(self.request(Method::PUT, path, &[]).json(sent)).await?).await
    }

    /// `GET` of a text.
    pub(crate) async fn get_text(&self, path: &[&str], query: Query<'_>) -> anyhow::Result<String> {
        let bytes = limited(self.send(self.request(Method::GET, path, query)).await?).await?;
        String::from_utf8(bytes).context("the answer is no text")
    }

    /// `DELETE`.
    pub(crate) async fn delete(&self, path: &[&str], query: Query<'_>) -> anyhow::Result<()> {
        self.send(self.request(Method::DELETE, path, query)).await.map(drop)
    }

    /// `PUT` of a stream. `length` is its size in bytes, if it is known.
    pub(crate) async fn put_stream<T: DeserializeOwned>(
        &self,
        path: &[&str],
        stream: reqwest::Body,
        length: Option<u64>,
    ) -> anyhow::Result<T> {
        let mut request = self.request(Method::PUT, path, &[]).body(stream);
        request = request.header(header::CONTENT_TYPE, "application/octet-stream");
        if let Some(length) = length {
            request = request.header(header::CONTENT_LENGTH, length);
        }
        // No limit in time: how long a file takes is the network's business.
        let sent = request.send().await.map_err(|e| self.explain(&e))?;
        body(checked(sent).await?).await
    }

    /// `PATCH` of an upload with what follows its first `offset` bytes.
    pub(crate) async fn patch_stream(
        &self,
        path: &[&str],
        stream: reqwest::Body,
        offset: u64,
    ) -> anyhow::Result<Sent> {
        let request = self.request(Method::PATCH, path, &[]).body(stream).header(UPLOAD_OFFSET, offset);
        let request = request.header(header::CONTENT_TYPE, "application/octet-stream");
        // No limit in time: how long a file takes is the network's business.
        let answer = checked(request.send().await.map_err(|e| self.explain(&e))?).await?;
        if answer.status() == StatusCode::ACCEPTED {
            return Ok(Sent::Whole(Box::new(body(answer).await?)));
        }
        Ok(Sent::Part(body(answer).await?))
    }

    /// `GET` of a file from byte `from` on, as long as it still has the tag `etag`.
    pub(crate) async fn get_stream(
        &self,
        path: &[&str],
        from: u64,
        etag: Option<&str>,
    ) -> anyhow::Result<Response> {
        let mut request = self.request(Method::GET, path, &[]);
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
            if let Some(etag) = etag {
                request = request.header(header::IF_RANGE, etag);
            }
        }
        let sent = tokio::time::timeout(ANSWER_WAIT_MAX, request.send());
        let answer = sent.await.map_err(|_| self.silent())?.map_err(|e| self.explain(&e))?;
        if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(answer);
        }
        checked(answer).await
    }

    /// `GET` of a file that the controller makes. The head of the answer may take as long as the making.
    pub(crate) async fn get_file(&self, path: &[&str], query: Query<'_>) -> anyhow::Result<Response> {
        let request = self.request(Method::GET, path, query);
        let sent = tokio::time::timeout(FILE_WAIT_MAX, request.send());
        checked(sent.await.map_err(|_| self.silent())?.map_err(|e| self.explain(&e))?).await
    }

    fn request(&self, method: Method, path: &[&str], query: Query<'_>) -> reqwest::RequestBuilder {
        let request = self.http.request(method, self.url(path, query));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    fn url(&self, path: &[&str], query: Query<'_>) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        if query.iter().any(|(_, value)| value.is_some()) {
            let mut pairs = url.query_pairs_mut();
            for (name, value) in query {
                if let Some(value) = value {
                    pairs.append_pair(name, value);
                }
            }
        }
        url
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Response> {
        let answer = request.timeout(ANSWER_WAIT_MAX).send().await.map_err(|e| self.explain(&e))?;
        checked(answer).await
    }

    fn silent(&self) -> Failure {
        Failure::new(
            Exit::Unreachable,
            format!("{} did not answer within {} s", self.base, ANSWER_WAIT_MAX.as_secs()),
        )
        .hint("the controller may be overloaded: look at its log and at /healthz")
    }

    /// A failure before there was an answer.
    fn explain(&self, error: &reqwest::Error) -> Failure {
        if let Some(why) = tls_error(error).map(tls_text) {
            return Failure::new(Exit::Unreachable, format!("{} is not trusted: {why}", self.base)).hint(
                "compare the fingerprint with what `hearth-controller init` printed, and the clocks of both machines; \
                 then `hearth login` again",
            );
        }
        if error.is_timeout() && !error.is_connect() {
            return self.silent();
        }
        let deepest = causes(error).last().map_or_else(|| error.to_string(), ToString::to_string);
        let message = format!("cannot reach {}: {deepest}", self.base);
        let port = self.base.port_or_known_default().unwrap_or_default();
        Failure::new(Exit::Unreachable, message).hint(format!(
            "check that hearth-controller runs there (`systemctl status hearth-controller`), that the port \
             ({port}/tcp) is open, and the address in your configuration; `hearth doctor` checks them one by one"
        ))
    }
}

type Cause<'a> = &'a (dyn std::error::Error + 'static);

/// What stands behind an error, nearest first.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = Cause<'_>> {
    fn behind<'a>(cause: &Cause<'a>) -> Option<Cause<'a>> {
        let cause: Cause<'a> = *cause;
        // `source` of an IO error leaves out the error that it wraps.
        match cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => cause.source(),
        }
    }
    std::iter::successors(error.source(), behind)
}

fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>())
}

/// The library prints what our own verifier says as a debug text; this prints it as it is.
fn tls_text(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(ours)) => ours.0.to_string(),
        other => other.to_string(),
    }
}

/// The answer, or the failure that its body tells.
async fn checked(answer: Response) -> anyhow::Result<Response> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let bytes = limited(answer).await.unwrap_or_default();
    Err(Failure::from_answer(status.as_u16(), serde_json::from_slice::<ErrorBody>(&bytes).ok()).into())
}

async fn body<T: DeserializeOwned>(answer: Response) -> anyhow::Result<T> {
    let bytes = limited(answer).await?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Failure::new(Exit::Failed, format!("the controller's answer is not understood: {e}"))
            .hint("controller and command line may be of different versions: compare `hearth system` and `hearth --version`")
            .into()
    })
}

async fn limited(mut answer: Response) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(part) = answer.chunk().await.context("reading the answer")? {
        anyhow::ensure!(bytes.len() + part.len() <= ANSWER_BYTES_MAX, "the answer is longer than 64 MiB");
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(base: &str) -> Client {
        let config = Config {
            url: base.parse().unwrap(),
            token: "hrt_x".into(),
            fingerprint: CaFingerprint::of(b"ca"),
        };
        Client::new(&config).unwrap()
    }

    #[test]
    fn names_are_encoded_into_the_path_and_the_query() {
        let url = client("https://c:7443")
            .url(&["images", "镜像/1 a"], &[("name", Some("a&b".into())), ("q", None)]);
        let expected = "https://c:7443/api/v1/images/%E9%95%9C%E5%83%8F%2F1%20a?name=a%26b";
        assert_eq!(url.as_str(), expected);
        assert_eq!(
            client("https://c/hearth/").url(&["system"], &[]).as_str(),
            "https://c/hearth/api/v1/system"
        );
    }

    #[tokio::test]
    async fn a_closed_port_says_what_to_check() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = client(&format!("https://{free}")).act(&["system"]).await.unwrap_err();
        let failure = error.downcast_ref::<Failure>().unwrap();
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.message.contains("cannot reach"), "{}", failure.message);
        assert!(failure.hint.as_ref().unwrap().contains("systemctl status"));
    }
}
