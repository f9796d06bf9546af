//! How a call fails.

use serde::{Deserialize, Serialize};

/// Body of every answer with status 4xx or 5xx.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// Stable word for programs, for example `not_found`, `no_space`, `invalid`, `conflict`, `denied`, `in_use`.
    pub code: String,
    /// What went wrong and where.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The field of the request that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Id of the request, as in the header `x-request-id` and the log.
    pub request_id: String,
}
