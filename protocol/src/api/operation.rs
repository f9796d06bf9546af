//! `/api/v1/operations`: the operation log.

use serde::{Deserialize, Serialize};

/// One thing that somebody did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Operation {
    /// Its id.
    pub id: String,
    /// Place in the sealed chain; absent for at most a second.
    pub seq: Option<u64>,
    /// When.
    pub at: String,
    /// Who: name of the token, agent or `system`.
    pub who: String,
    /// What, as `noun.verb`, for example `image.import`.
    pub action: String,
    /// Kind of the target, for example `image`.
    pub target_kind: String,
    /// Id of the target.
    pub target_id: String,
    /// Name of the target at that time.
    pub target_name: String,
    /// `ok` or `failed`.
    pub result: String,
    /// More, as JSON.
    #[schema(value_type = Option<Object>)]
    pub details: serde_json::Value,
}

/// Result of checking the chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogVerification {
    /// Whether every sealed row is as it was written.
    pub intact: bool,
    /// Sealed rows that were checked.
    pub sealed: u64,
    /// Rows that wait for the sealer.
    pub unsealed: u64,
    /// First row that is changed, missing or out of order.
    pub first_bad_seq: Option<u64>,
    /// Hash of the newest sealed row, to be kept elsewhere.
    pub head: String,
}
