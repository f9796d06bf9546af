//! Bodies of the HTTP API under `/api/v1`, shared by controller and command line.
//!
//! **What.** One file per noun. Requests refuse unknown fields; answers may gain fields. Times are RFC 3339 texts made
//! from microseconds (`…_at`), sizes are bytes (`…_bytes`), words are those of [`crate::words`].
//! **Why here.** The command line depends on this crate alone; one text serves both ends and the OpenAPI page.
//! **Invariants.** Every failed call answers an [`error::ErrorBody`].

pub mod cache;
pub mod campaign;
pub mod distribution;
pub mod error;
pub mod host_image;
pub mod image;
pub mod image_batch;
pub mod image_update;
pub mod key;
pub mod link;
pub mod location;
pub mod market;
pub mod operation;
pub mod prewarm;
pub mod quota;
pub mod share;
pub mod source;
pub mod system;
pub mod tenant;
pub mod token;
pub mod upload;
pub mod usage;
pub mod user;
pub mod variant;

use serde::{Deserialize, Serialize};

/// One page of a list. Ask for the next one with `?cursor=<next>`; there is none when `next` is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Opaque mark of the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Rows of a page when the caller does not say.
pub const PAGE_ROWS_DEFAULT: u32 = 100;
/// Most rows of a page: bounds one answer.
pub const PAGE_ROWS_MAX: u32 = 1000;
