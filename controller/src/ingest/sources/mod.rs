//! Files that the controller gets by itself.
//!
//! **What.** [`Sources`] reads a URL ([`crate::logic::source`]), looks at what it names, and makes one try to bring its bytes
//! into the file of an upload. [`guard`] decides about addresses, [`http`], [`ftp`] and [`s3`] speak, `jobs` tries again.
//!
//! **Why one try.** What a failure means is a decision ([`crate::logic::fetch`]); here it is only told apart.
//!
//! **Invariants.** Nothing is connected to but addresses that the [`guard`] gave, except the stores that an administrator
//! configured. No proxy of the environment is used. No text of an error holds a password or a query.

mod ftp;
pub mod guard;
mod http;
pub mod s3;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hearth_protocol::api::source::SourceFacts;

use self::guard::{Guard, Resolve, SystemResolver};
use self::s3::Store;
use super::intake::{Intake, IntakeError};
use crate::logic::fetch::Patience;
use crate::logic::source::{Rules, Scheme, Source, SourceError};

/// Longest look at a source, whatever it does.
pub const CHECK_MAX: Duration = Duration::from_secs(20);
/// Bytes that a look reads: enough for every magic number.
const LOOK_BYTES: usize = 4096;

/// What the configuration says of sources.
#[derive(Clone, Debug, Default)]
pub struct SourceConfig {
    /// What may be reached.
    pub rules: Rules,
    /// Certificates that are trusted beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// Object stores.
    pub stores: Vec<Store>,
    /// How long is waited.
    pub patience: Patience,
}

/// Why a try ended.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not a URL that may be asked for.
    #[error(transparent)]
    Refused(#[from] SourceError),
    /// Trying again is of no use.
    #[error("{0}")]
    Never(String),
    /// It may work later.
    #[error("{0}")]
    Later(String),
    /// The source has another file now, or cannot go on: everything has to come again.
    #[error("the source's file changed, or it cannot send the rest of it")]
    Changed,
    /// The bytes cannot be taken.
    #[error(transparent)]
    Intake(#[from] IntakeError),
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Sources {
    config: SourceConfig,
    guard: Guard,
}

impl Sources {
    /// With the resolver of the system.
    #[must_use]
    pub fn new(config: SourceConfig) -> Self {
        Self::with_resolver(config, Arc::new(SystemResolver))
    }

    /// With a resolver of one's own.
    #[must_use]
    pub fn with_resolver(config: SourceConfig, resolver: Arc<dyn Resolve>) -> Self {
        let guard = Guard::new(config.rules.clone(), resolver);
        Self { config, guard }
    }

    /// Reads a URL and says whether it may be asked for, as far as that shows without asking.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn read(&self, url: &str) -> Result<Source, SourceError> {
        let source = Source::parse(url)?;
        match source.scheme {
            Scheme::S3 => self.store(&source).map(|_| ())?,
            _ => self.guard.check_literal(&source)?,
        }
        Ok(source)
    }

    fn store(&self, source: &Source) -> Result<&Store, SourceError> {
        let bucket = source.host.to_string();
        let store = self.config.stores.iter().find(|store| store.holds(&bucket));
        store.ok_or(SourceError::Url("no [[s3]] of controller.toml names this bucket"))
    }

    /// Makes one try to bring the rest of a file. `Ok`: it is whole.
    ///
    /// # Errors
    /// [`FetchError`]; what came before it is in the intake.
    pub async fn fetch(&self, source: &Source, intake: &mut Intake) -> Result<(), FetchError> {
        let there = intake.at_bytes();
        if there > 0 && intake.upload().size_bytes == Some(there) {
            return Ok(());
        }
        if there > 0 && intake.upload().mark.is_empty() {
            // Nothing would say that the rest belongs to what is here.
            return Err(FetchError::Changed);
        }
        match source.scheme {
            Scheme::Http | Scheme::Https => http::fetch(self, source, intake).await,
            Scheme::Ftp | Scheme::Ftps => ftp::fetch(self, source, intake).await,
            Scheme::S3 => s3::fetch(self, source, intake).await,
        }
    }

    /// A small file as a whole: at most `most_bytes` by `http` or `https`, within [`CHECK_MAX`].
    ///
    /// # Errors
    /// [`FetchError`]; [`FetchError::Never`] if it is larger.
    pub async fn whole(&self, source: &Source, most_bytes: usize) -> Result<Vec<u8>, FetchError> {
        let got = tokio::time::timeout(CHECK_MAX, Box::pin(http::whole(self, source, most_bytes))).await;
        got.unwrap_or_else(|_| {
            Err(FetchError::Later(format!("the file did not come within {} s", CHECK_MAX.as_secs())))
        })
    }

    /// Says what a source is without fetching it; at most [`CHECK_MAX`].
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn check(&self, source: &Source) -> Result<SourceFacts, FetchError> {
        let look = async {
            match source.scheme {
                Scheme::Http | Scheme::Https => http::check(self, source).await,
                Scheme::Ftp | Scheme::Ftps => ftp::check(self, source).await,
                Scheme::S3 => s3::check(self, source).await,
            }
        };
        let looked = tokio::time::timeout(CHECK_MAX, Box::pin(look)).await;
        looked
            .unwrap_or_else(|_| Err(FetchError::Later(format!("no answer within {} s", CHECK_MAX.as_secs()))))
    }
}

/// What the first bytes of a file look like.
fn looks_like(head: &[u8]) -> &'static str {
    const STARTS: [(&[u8], &str); 8] = [
        (b"QFI\xFB", "qcow2"),
        (b"KDMV", "vmdk"),
        (b"conectix", "vhd"),
        (b"vhdxfile", "vhdx"),
        (b"\x1F\x8B", "gzip"),
        (b"\xFD7zXZ\0", "xz"),
        (b"\x28\xB5\x2F\xFD", "zstd"),
        (b"PK\x03\x04", "zip"),
    ];
    if let Some((_, name)) = STARTS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return name;
    }
    if head.get(257..262) == Some(b"ustar") {
        return "tar";
    }
    let text = head.trim_ascii_start();
    let start = text.get(..9).unwrap_or(text).to_ascii_lowercase();
    if start.starts_with(b"<!doctype") || start.starts_with(b"<html") { "html" } else { "unknown" }
}
