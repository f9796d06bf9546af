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
    /// `token`, `agent`, `link` or `system`.
    #[serde(default)]
    pub who_kind: String,
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
    /// Hash of this row in the sealed chain, hex.
    #[serde(default)]
    pub hash: Option<String>,
    /// More, as JSON; a change as `{"before": {…}, "after": {…}}`.
    #[schema(value_type = Option<Object>)]
    pub details: serde_json::Value,
}

/// Result of checking the chain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogVerification {
    /// Whether every sealed row is as it was written.
    pub intact: bool,
    /// Sealed rows that were found intact.
    pub sealed: u64,
    /// Rows that wait for the sealer.
    pub unsealed: u64,
    /// First row that is changed, missing or out of order.
    pub first_bad_seq: Option<u64>,
    /// Hash of the newest sealed row, to be kept elsewhere.
    pub head: String,
    /// Number of the newest row that was archived out of the database; 0 if none was.
    #[serde(default)]
    pub archived_seq: u64,
    /// What is wrong, by number, at most 100.
    #[serde(default)]
    pub findings: Vec<LogFinding>,
    /// How many findings there are.
    #[serde(default)]
    pub flaws: u64,
    /// Number of the row that has the head which was asked for; `intact` is false if there is none.
    #[serde(default)]
    pub known_head_seq: Option<u64>,
    /// Where archived rows ended, the newest first, at most 1,000. Who can write the database can plant one: only the archive
    /// (`hearth-controller log-verify FILE`), or a head that was kept elsewhere, proves it.
    #[serde(default)]
    pub anchors: Vec<LogAnchor>,
}

/// What stands for rows that were archived out of the database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogAnchor {
    /// Number of the last of them.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
    /// Name of the file that has them, if it is known.
    pub file: Option<String>,
    /// Number of the sealed row that tells of it, unless that was archived too.
    pub told_seq: Option<u64>,
}

/// A row of the log that is not as it was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogFinding {
    /// Its number.
    pub seq: u64,
    /// Number of the last row of a gap; `seq` for all else.
    pub last_seq: u64,
    /// Its id, if there is a row.
    pub id: Option<String>,
    /// `missing`, `changed`, `out_of_order` or `planted`.
    pub flaw: String,
}
