//! `POST /api/v1/images/batch`: one action on many images, with one result per image.
//!
//! **Why 200 although some failed.** Each image is a call of its own: the rights, the refusal and the row in the log are
//! those that it would have singly. One status cannot say that ninety went and ten did not.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::error::ErrorBody;
use crate::id::ImageId;
use crate::words::BatchAction;

/// Most images of one call: bounds its time.
pub const BATCH_IMAGES_MAX: usize = 100;

/// What to do, and to which images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageBatch {
    /// What.
    pub action: BatchAction,
    /// To which, 1 to 100, each once.
    pub images: Vec<ImageId>,
    /// `tag`, `untag`: which tags.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
    /// `delete`, `destroy`: although prewarm jobs want it (they are cancelled) or machines run on it (they go on).
    #[serde(default)]
    pub force: bool,
}

/// What became of one image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BatchResult {
    /// Its id.
    pub id: ImageId,
    /// Its name, if the caller may see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether it was done.
    pub ok: bool,
    /// Status that the single call would have answered with: 200, or that of `error`.
    pub status: u16,
    /// Why it was not: what the single call would have answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// One result per image, in the order of the request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BatchResults {
    /// The results.
    pub results: Vec<BatchResult>,
}
