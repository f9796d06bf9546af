//! `/api/v1/markets`: signed catalogs of images that can be imported, and the file that holds one.
//!
//! **What.** A [`Catalog`] lists images with their URLs and sums. A [`SignedCatalog`] is the file that is passed on: the catalog's
//! own text, and an Ed25519 signature over [`signed_bytes`] of that text.
//! **Why the text and not what it means.** One reading of JSON differs from the next; bytes do not. What was signed is what is
//! read.
//! **Invariants.** A serial only grows: who replaces the file by an older one is found out.

use serde::{Deserialize, Serialize};

use crate::id::{ImageId, MarketId, ProjectId};
use crate::words::{Architecture, Compression, DiskFormat, MarketState, OsType};

/// Largest signed file: with it, a request stays below the limit of all requests.
pub const FILE_BYTES_MAX: usize = 768 << 10;
/// Most entries of a catalog: bounds an answer.
pub const ENTRIES_MAX: usize = 1000;
/// Longest key of an entry.
pub const ENTRY_KEY_CHARS_MAX: usize = 64;
/// Hex digits of a public key, and of the seed that is a private one.
pub const KEY_DIGITS: usize = 64;
/// Hex digits of a signature.
pub const SIGNATURE_DIGITS: usize = 128;

/// What a signature covers: nothing that is signed for another purpose can be taken for a catalog.
#[must_use]
pub fn signed_bytes(catalog: &str) -> Vec<u8> {
    [b"hearth market catalog 1\n", catalog.as_bytes()].concat()
}

/// The file that is passed on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignedCatalog {
    /// The [`Catalog`] as the text that was signed.
    pub catalog: String,
    /// Ed25519 signature, 128 hex digits.
    pub signature: String,
}

/// Images that somebody offers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// Its name: the serials of one name and key belong together.
    pub name: String,
    /// Grows with each edition.
    pub serial: u64,
    /// The images.
    pub entries: Vec<CatalogEntry>,
}

/// An image that can be imported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CatalogEntry {
    /// Unique in the catalog; 1 to 64 of `a-z 0-9 . _ -`.
    pub key: String,
    /// Name that the image gets.
    pub name: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Operating system.
    pub os_type: OsType,
    /// Distribution.
    pub distribution: String,
    /// Its version.
    pub version: String,
    /// CPU architecture.
    pub architecture: Architecture,
    /// Format of the file, unpacked.
    pub format: DiskFormat,
    /// How the file is packed; absent: not at all.
    #[serde(default = "not_packed")]
    pub compression: Compression,
    /// Where the file is: `http`, `https`, `ftp`, `ftps` or `s3`, without user and password.
    pub url: String,
    /// Size of the file as it comes.
    pub size_bytes: u64,
    /// SHA-256 of the file as it comes, lower-case hex.
    pub sha256: String,
}

const fn not_packed() -> Compression {
    Compression::None
}

/// Adds a market; exactly one of `file` and `url`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MarketCreate {
    /// Name here.
    pub name: String,
    /// Public key of who signs the catalog, 64 hex digits.
    pub key: String,
    /// The signed file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<SignedCatalog>,
    /// Where the controller gets it, by `http` or `https`; also later, see `POST /markets/{id}/refresh`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// Takes a newer edition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MarketRefresh {
    /// The signed file; absent: the controller gets it from the market's URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<SignedCatalog>,
}

/// A market.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Market {
    /// Its id.
    pub id: MarketId,
    /// Its name here.
    pub name: String,
    /// What the catalog calls itself.
    pub catalog: String,
    /// Public key of who signs it.
    pub key: String,
    /// Where new editions come from; absent: they are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Edition.
    pub serial: u64,
    /// Number of entries.
    pub entries: u32,
    /// When it was added.
    pub created_at: String,
    /// When this edition came.
    pub updated_at: String,
}

/// An entry, and whether it was imported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MarketEntry {
    /// The market.
    pub market: MarketId,
    /// Its name.
    pub market_name: String,
    /// What the catalog says.
    #[serde(flatten)]
    pub entry: CatalogEntry,
    /// Whether it is here.
    pub state: MarketState,
    /// The image that it became.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageId>,
}

/// Imports an entry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MarketImport {
    /// Name of the image; absent: that of the entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Project that owns it; absent: the caller's, else the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectId>,
}
