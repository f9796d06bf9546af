//! `s3://bucket/object`: objects of the stores that `controller.toml` names.
//!
//! **What.** Signs a URL for one object and lets [`super::http`] ask for it.
//!
//! **Why a signed URL.** The library makes the signature; time-outs, resume and limits are then the same as for every other
//! source, and no second HTTP client is at work.
//!
//! **Invariants.** The secret is read when it is needed and wiped after; it and the signature are in no log and no error.
//! Redirects are not followed. Only buckets that an administrator listed can be named.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_protocol::api::source::SourceFacts;
use object_store::aws::AmazonS3Builder;
use object_store::signer::Signer as _;
use reqwest::{Method, Url, header};
use zeroize::Zeroizing;

use super::http::{Rest, bring, facts, request, send};
use super::{FetchError, LOOK_BYTES, Sources};
use crate::ingest::intake::Intake;
use crate::logic::source::{Host, Scheme, Source};

/// How long a signature holds: one try may take as long, since it is checked when the answer begins.
const SIGNED_FOR: Duration = Duration::from_secs(3600);
/// Longest secret, bytes: a wrong path must not be read into memory.
const SECRET_BYTES_MAX: u64 = 4096;
/// Every bucket.
const ANY: &str = "*";

/// An object store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Store {
    /// Where it answers, `http://` or `https://`.
    pub endpoint: String,
    /// Its region, as signatures name it.
    pub region: String,
    /// Buckets that images may come from; `*` for all.
    pub buckets: Vec<String>,
    /// Public half of the key.
    pub access_key: String,
    /// File with the other half: absolute, or a name below `$CREDENTIALS_DIRECTORY`.
    pub secret_key_file: PathBuf,
    /// Whether the bucket stands in the host name.
    pub virtual_hosted: bool,
}

impl Store {
    /// Whether images may come from `bucket`.
    #[must_use]
    pub fn holds(&self, bucket: &str) -> bool {
        self.buckets.iter().any(|name| name == ANY || name == bucket)
    }

    /// Reads the secret half of the key.
    fn secret(&self) -> Result<Zeroizing<String>, FetchError> {
        use std::io::Read as _;
        let path = credential(&self.secret_key_file);
        let mut text = Zeroizing::new(String::new());
        let read =
            std::fs::File::open(&path).and_then(|file| file.take(SECRET_BYTES_MAX).read_to_string(&mut text));
        match read {
            Ok(_) if !text.trim().is_empty() => Ok(Zeroizing::new(text.trim().to_owned())),
            _ => Err(FetchError::Later(
                "the controller cannot read the key of this object store (secret_key_file)".to_owned(),
            )),
        }
    }

    async fn signed(&self, bucket: &str, object: &str) -> Result<Url, FetchError> {
        let this = self.clone();
        let secret = tokio::task::spawn_blocking(move || this.secret()).await;
        let secret = secret.map_err(|error| FetchError::Later(error.to_string()))??;
        let failed =
            |_| FetchError::Never("the URL of the object cannot be signed; look at [[s3]]".to_owned());
        let store = AmazonS3Builder::new()
            .with_endpoint(&self.endpoint)
            .with_region(&self.region)
            .with_bucket_name(bucket)
            .with_access_key_id(&self.access_key)
            .with_secret_access_key(secret.as_str())
            .with_virtual_hosted_style_request(self.virtual_hosted)
            .with_allow_http(true)
            .build()
            .map_err(failed)?;
        let path = object_store::path::Path::parse(object)
            .map_err(|_| FetchError::Never("the object's name holds what no URL can carry".to_owned()))?;
        store.signed_url(Method::GET, &path, SIGNED_FOR).await.map_err(failed)
    }
}

/// Where a secret lies.
#[must_use]
pub fn credential(file: &Path) -> PathBuf {
    match std::env::var_os("CREDENTIALS_DIRECTORY") {
        Some(folder) if file.is_relative() => Path::new(&folder).join(file),
        _ => file.to_owned(),
    }
}

/// A request for the object, and what the configuration says of its store.
async fn ask(sources: &Sources, source: &Source) -> Result<reqwest::RequestBuilder, FetchError> {
    let url = sources.store(source)?.signed(&source.host.to_string(), &source.path).await?;
    let scheme = if url.scheme() == "https" { Scheme::Https } else { Scheme::Http };
    let name = url.host_str().unwrap_or_default().to_owned();
    let addresses = sources.guard.trusted(&name, url.port_or_known_default().unwrap_or(443)).await?;
    request(sources, &url, &Host::Name(name), scheme, &addresses)
}

/// One try; see [`Sources::fetch`].
pub(super) async fn fetch(sources: &Sources, source: &Source, intake: &mut Intake) -> Result<(), FetchError> {
    let request = Rest::of(intake).ask_store(ask(sources, source).await?);
    bring(sources, send(sources, request).await?, intake).await
}

/// See [`Sources::check`].
pub(super) async fn check(sources: &Sources, source: &Source) -> Result<SourceFacts, FetchError> {
    let range = format!("bytes=0-{}", LOOK_BYTES - 1);
    let request = ask(sources, source).await?.header(header::RANGE, range);
    let looked = facts(send(sources, request).await?).await?;
    Ok(SourceFacts { url: source.shown(), ..looked })
}
