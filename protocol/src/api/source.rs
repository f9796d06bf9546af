//! Where the controller gets a file by itself: `http`, `https`, `ftp`, `ftps` and `s3` URLs.
//!
//! `POST /images` with `source`, or `POST /images/{id}/import`, queues the fetch; `POST /sources/check` only looks.

use serde::{Deserialize, Serialize};

/// Longest URL, in bytes.
pub const URL_BYTES_MAX: usize = 2048;

/// A file that the controller gets by itself.
#[derive(Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageSource {
    /// `http://`, `https://`, `ftp://`, `ftps://` (each may hold `user:password@`) or `s3://bucket/object`; at most 2,048
    /// bytes. User, password and query are used for the fetch and shown nowhere.
    pub url: String,
}

impl std::fmt::Debug for ImageSource {
    /// The URL may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageSource").finish_non_exhaustive()
    }
}

/// What a source is, without fetching it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SourceFacts {
    /// The URL without passwords.
    pub url: String,
    /// Where redirects led, without passwords; absent if there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_url: Option<String>,
    /// Size of the file, if the source tells it.
    pub size_bytes: Option<u64>,
    /// Whether a broken transfer can go on where it stopped.
    pub resumable: bool,
    /// What the source says the file is (`Content-Type`).
    pub content_type: Option<String>,
    /// What its first bytes look like: `qcow2`, `vmdk`, `vhd`, `vhdx`, `gzip`, `xz`, `zstd`, `tar`, `html`; `unknown` for
    /// what may be a raw disk.
    pub looks_like: String,
}
