//! Rows of the operation log outside the database: as an archive holds them, and how they are hashed.
//!
//! **Why apart from the store.** Who reads an archive needs no database, and neither does the fuzzer of that reader.
//!
//! **Invariants.** No two rows share an encoding: every column is hashed with its length before it.

use serde::{Deserialize, Serialize};

use crate::logic::chain::Mark;

/// First bytes of what is hashed, so that no other hash of this program can stand in for a row's.
const HASH_DOMAIN: &str = "hearth operation row 1";

/// A row as an archive holds it: every column as it is stored, so that its hash can be made again.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ArchivedRow {
    /// Place in the chain.
    pub seq: u64,
    /// Id.
    pub id: String,
    /// When, microseconds since the epoch.
    pub time_us: i64,
    /// Who.
    pub who: String,
    /// Kind of actor.
    pub who_kind: String,
    /// What.
    pub action: String,
    /// Kind of the target.
    pub target_kind: String,
    /// Id of the target.
    pub target_id: String,
    /// Name of the target.
    pub target_name: String,
    /// How it ended.
    pub result: String,
    /// Details, byte for byte.
    pub details: String,
    /// Hash of the row before it, hex.
    pub prev_hash: String,
    /// Hash of this row, hex.
    pub hash: String,
}

impl ArchivedRow {
    /// The hash that these columns have after `prev_hash`.
    #[must_use]
    pub fn computed(&self) -> String {
        let texts = [
            &self.id,
            &self.time_us.to_string(),
            &self.who,
            &self.who_kind,
            &self.action,
            &self.target_kind,
            &self.target_id,
            &self.target_name,
            &self.result,
            &self.details,
        ];
        hash_of(&self.prev_hash, self.seq, texts.map(String::as_str))
    }
}

/// What may be archived.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Archivable {
    /// Id of the instance whose log it is.
    pub instance: String,
    /// What the first row follows.
    pub begin: Mark,
    /// The last row.
    pub last_seq: u64,
}

/// A part of an archive that is removed at once.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Number of its first row.
    pub first_seq: u64,
    /// Number of its last row.
    pub last_seq: u64,
    /// Hash of its last row, hex.
    pub hash: String,
}

/// The hash that stands before row 1 of this instance.
#[must_use]
pub fn genesis_hash(instance: &str) -> String {
    blake3::hash(format!("{HASH_DOMAIN} {instance}").as_bytes()).to_hex().to_string()
}

/// Every column with its length before it, so that no two rows share an encoding.
pub(super) fn hash_of(prev_hash: &str, seq: u64, columns: [&str; 10]) -> String {
    let mut hasher = blake3::Hasher::new();
    let seq = seq.to_string();
    for column in [HASH_DOMAIN, prev_hash, &seq].into_iter().chain(columns) {
        hasher.update(&(column.len() as u64).to_le_bytes());
        hasher.update(column.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}
