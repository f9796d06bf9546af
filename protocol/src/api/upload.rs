//! `/api/v1/images/{id}/uploads`: uploads that go on where they stopped.
//!
//! `POST` opens one; `HEAD` or `GET` of `…/uploads/{upload}` tells the offset (header `upload-offset`); `PATCH` with that
//! header appends; with the last byte, or with `upload-complete: true`, the import begins. `DELETE` gives it up.

use serde::{Deserialize, Serialize};

use crate::id::{ImageId, UploadId};

/// Longest mark, in characters.
pub const MARK_CHARS_MAX: usize = 255;
/// Header with the number of bytes that are durable (answers) or before the first one sent (`PATCH`).
pub const UPLOAD_OFFSET: &str = "upload-offset";
/// Header of a `PATCH` whose end is the end of the file: `true`.
pub const UPLOAD_COMPLETE: &str = "upload-complete";

/// A new upload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UploadCreate {
    /// Size of the whole file. Absent: the end is told by `upload-complete: true`.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// By what the sender will know its file again (size and time, for example); at most 255 characters.
    #[serde(default)]
    pub mark: Option<String>,
}

/// An upload that is open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Upload {
    /// Its id.
    pub id: UploadId,
    /// The image whose bytes it brings.
    pub image: ImageId,
    /// Bytes that are durable: send from here on.
    pub offset_bytes: u64,
    /// Size of the whole file, if it was announced.
    pub size_bytes: Option<u64>,
    /// By what the sender knows its file again.
    pub mark: Option<String>,
    /// When it ends if nothing more comes.
    pub expires_at: String,
}
