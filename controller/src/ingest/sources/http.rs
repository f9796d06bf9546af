//! `http://` and `https://`, and the signed URLs of object stores.
//!
//! **What.** Asks for everything behind what is there, with `Range` and `If-Range`; follows redirects hop by hop, each checked
//! like the first URL.
//!
//! **Why a client per hop.** A client is bound to the addresses that were checked for its host; the library resolves nothing.
//!
//! **Invariants.** At most [`REDIRECTS_MAX`](crate::logic::source::REDIRECTS_MAX) redirects. Bytes are taken as they come:
//! no encoding is asked for. Silence and dripping end a try.

use std::net::SocketAddr;

use bytes::Bytes;
use hearth_protocol::api::source::SourceFacts;
use reqwest::header::{self, HeaderMap};
use reqwest::redirect::Policy;
use reqwest::{RequestBuilder, Response, StatusCode, Url};

use super::{FetchError, LOOK_BYTES, Sources, looks_like, tls};
use crate::clock;
use crate::ingest::intake::Intake;
use crate::logic::fetch::{Answer, Flow, RATE_BYTES_PER_S_MIN, Verdict, content_range, judge};
use crate::logic::source::{Host, Scheme, Source, SourceError};

/// Name that sources see in their logs.
const AGENT: &str = concat!("hearth/", env!("CARGO_PKG_VERSION"));

/// One try; see [`Sources::fetch`].
pub(super) async fn fetch(sources: &Sources, source: &Source, intake: &mut Intake) -> Result<(), FetchError> {
    let range = Rest::of(intake);
    let (_, response) = follow(sources, source, |request| range.ask(request)).await?;
    bring(sources, response, intake).await
}

/// What is asked for: everything behind the bytes that are there.
pub(super) struct Rest {
    from: u64,
    mark: String,
}

impl Rest {
    pub(super) fn of(intake: &Intake) -> Self {
        Self { from: intake.at_bytes(), mark: intake.upload().mark.clone() }
    }

    fn ask(&self, request: RequestBuilder) -> RequestBuilder {
        if self.from == 0 {
            return request;
        }
        request.header(header::RANGE, format!("bytes={}-", self.from)).header(header::IF_RANGE, &self.mark)
    }

    /// As [`Rest::ask`], for object stores: not all of them know `If-Range`.
    pub(super) fn ask_store(&self, request: RequestBuilder) -> RequestBuilder {
        if self.from == 0 {
            return request;
        }
        request.header(header::RANGE, format!("bytes={}-", self.from)).header(header::IF_MATCH, &self.mark)
    }
}

/// Takes the body of an answer, if it is what was asked for.
pub(super) async fn bring(
    sources: &Sources,
    mut response: Response,
    intake: &mut Intake,
) -> Result<(), FetchError> {
    let at = intake.at_bytes();
    let upload = intake.upload();
    match judge(at, &upload.mark, upload.size_bytes, &answer(&response)) {
        Verdict::Whole { size_bytes, mark } => intake.announce(&mark, size_bytes).await?,
        Verdict::Rest => {}
        Verdict::Complete => return Ok(()),
        Verdict::Changed => return Err(FetchError::Changed),
        Verdict::Later(why) => return Err(FetchError::Later(why)),
        Verdict::Never(why) => return Err(FetchError::Never(why)),
    }
    let patience = sources.config.patience;
    let mut flow = Flow::new(patience.window);
    let begun = clock::monotonic();
    loop {
        let next = tokio::time::timeout(patience.silence, response.chunk()).await;
        let next = next.map_err(|_| silent(patience.silence))?;
        let Some(bytes) = next.map_err(broken)? else { break };
        if !flow.add(bytes.len() as u64, clock::monotonic().duration_since(begun)) {
            return Err(dripping());
        }
        intake.push(bytes).await?;
    }
    match intake.upload().size_bytes {
        Some(size) if intake.at_bytes() < size => {
            Err(FetchError::Later("the source ended the file early".to_owned()))
        }
        _ => Ok(()),
    }
}

pub(super) fn silent(silence: std::time::Duration) -> FetchError {
    FetchError::Later(format!("the source sent no byte for {} s", silence.as_secs_f32()))
}

pub(super) fn dripping() -> FetchError {
    FetchError::Later(format!("the source sent fewer than {RATE_BYTES_PER_S_MIN} bytes per second"))
}

fn broken(error: reqwest::Error) -> FetchError {
    let error = error.without_url();
    FetchError::Later(format!("the connection to the source broke off: {}", crate::api::fault::chain(&error)))
}

/// Asks, and follows redirects. The answer, and where it came from.
async fn follow(
    sources: &Sources,
    source: &Source,
    ask: impl Fn(RequestBuilder) -> RequestBuilder,
) -> Result<(Source, Response), FetchError> {
    let mut here = source.clone();
    let mut seen = Vec::new();
    loop {
        let addresses = sources.guard.addresses(&here).await?;
        let url = here.web_url().ok_or(SourceError::Url("the URL cannot be read"))?;
        if seen.contains(&url) {
            return Err(SourceError::Circle.into());
        }
        seen.push(url.clone());
        let request = request(sources, &url, &here.host, here.scheme, &addresses)?;
        let request = match &here.login {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        };
        let response = send(sources, ask(request)).await?;
        let Some(location) = redirect(&response) else { return Ok((here, response)) };
        here = here.redirected(&location, seen.len())?;
    }
}

fn redirect(response: &Response) -> Option<String> {
    let moved = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = response.headers().get(header::LOCATION).filter(|_| moved)?;
    // One that is no text is refused as a URL.
    Some(String::from_utf8_lossy(location.as_bytes()).into_owned())
}

/// A request that goes to `addresses` and nowhere else.
pub(super) fn request(
    sources: &Sources,
    url: &Url,
    host: &Host,
    scheme: Scheme,
    addresses: &[SocketAddr],
) -> Result<RequestBuilder, FetchError> {
    let mut client = reqwest::Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .referer(false)
        .http1_only()
        .user_agent(AGENT)
        .connect_timeout(sources.config.patience.connect);
    if scheme == Scheme::Https {
        client = client.tls_backend_preconfigured(tls::client_config(sources.config.ca_file.as_deref())?);
    }
    if let Host::Name(name) = host {
        client = client.resolve_to_addrs(name, addresses);
    }
    let client = client.build().map_err(|error| FetchError::Later(error.without_url().to_string()))?;
    Ok(client.get(url.clone()).header(header::ACCEPT_ENCODING, "identity"))
}

pub(super) async fn send(sources: &Sources, request: RequestBuilder) -> Result<Response, FetchError> {
    let patience = sources.config.patience;
    let sent = tokio::time::timeout(patience.connect + patience.silence, request.send()).await;
    sent.map_err(|_| silent(patience.silence))?.map_err(|error| {
        let error = error.without_url();
        FetchError::Later(format!("cannot reach the source: {}", crate::api::fault::chain(&error)))
    })
}

fn answer(response: &Response) -> Answer {
    let headers = response.headers();
    Answer {
        status: response.status().as_u16(),
        length_bytes: text(headers, header::CONTENT_LENGTH).and_then(|text| text.parse().ok()),
        range: text(headers, header::CONTENT_RANGE).and_then(content_range),
        etag: text(headers, header::ETAG).map(str::to_owned),
        modified: text(headers, header::LAST_MODIFIED).map(str::to_owned),
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// See [`Sources::check`].
pub(super) async fn check(sources: &Sources, source: &Source) -> Result<SourceFacts, FetchError> {
    let range = format!("bytes=0-{}", LOOK_BYTES - 1);
    let (last, response) = follow(sources, source, |request| request.header(header::RANGE, &range)).await?;
    let mut facts = facts(response).await?;
    facts.url = source.shown();
    facts.final_url = (last != *source).then(|| last.shown());
    Ok(facts)
}

/// See [`Sources::whole`].
pub(super) async fn whole(
    sources: &Sources,
    source: &Source,
    most_bytes: usize,
) -> Result<Vec<u8>, FetchError> {
    let (_, mut response) = follow(sources, source, |request| request).await?;
    match judge(0, "", None, &answer(&response)) {
        Verdict::Whole { .. } => {}
        Verdict::Later(why) => return Err(FetchError::Later(why)),
        Verdict::Never(why) => return Err(FetchError::Never(why)),
        _ => return Err(FetchError::Never(format!("the source answered {}", response.status()))),
    }
    let mut file = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(broken)? {
        if file.len() + bytes.len() > most_bytes {
            return Err(FetchError::Never(format!("the file is larger than {most_bytes} bytes")));
        }
        file.extend_from_slice(&bytes);
    }
    Ok(file)
}

/// What an answer to a question for the first bytes tells.
pub(super) async fn facts(mut response: Response) -> Result<SourceFacts, FetchError> {
    let answer = answer(&response);
    let partial = response.status() == StatusCode::PARTIAL_CONTENT;
    if !partial {
        match judge(0, "", None, &answer) {
            Verdict::Whole { .. } => {}
            Verdict::Later(why) => return Err(FetchError::Later(why)),
            Verdict::Never(why) => return Err(FetchError::Never(why)),
            _ => return Err(FetchError::Never(format!("the source answered {}", answer.status))),
        }
    }
    let content_type = text(response.headers(), header::CONTENT_TYPE);
    let content_type = content_type.map(|text| text.chars().take(255).collect::<String>());
    let mut head = Vec::with_capacity(LOOK_BYTES);
    while head.len() < LOOK_BYTES {
        let Some(bytes): Option<Bytes> = response.chunk().await.map_err(broken)? else {
            break;
        };
        head.extend_from_slice(&bytes[..bytes.len().min(LOOK_BYTES - head.len())]);
    }
    Ok(SourceFacts {
        url: String::new(),
        final_url: None,
        size_bytes: if partial { answer.range.and_then(|(_, whole)| whole) } else { answer.length_bytes },
        resumable: partial && !answer.mark().is_empty(),
        content_type,
        looks_like: looks_like(&head).to_owned(),
    })
}
