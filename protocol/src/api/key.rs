//! `/api/v1/keys`: keys that encrypt images.
//!
//! The keys themselves are in no body: the controller keeps them sealed, and gives agents what opens single images.

use serde::{Deserialize, Serialize};

use crate::id::{DomainId, KeyId, ProjectId};

/// A new key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyCreate {
    /// 1 to 255 characters, no control characters; unique among the project's keys.
    pub name: String,
    /// Owner; absent: the caller's project.
    #[serde(default)]
    pub project: Option<ProjectId>,
}

/// A key's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeyRecord {
    /// Its id.
    pub id: KeyId,
    /// Its name.
    pub name: String,
    /// Owning domain.
    pub domain: DomainId,
    /// Owning project, whose images it encrypts.
    pub project: ProjectId,
    /// Images that it encrypts, also those in the recycle bin; it can be deleted when there are none.
    pub images: u32,
    /// Fingerprint of the master key that seals it.
    pub master: String,
    /// When it was made.
    pub created_at: String,
    /// When it was last sealed: at first, or when the master key was changed.
    pub sealed_at: String,
}

/// What became of a change of the master key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct KeysRotated {
    /// Fingerprint of the master key that seals all keys now.
    pub master: String,
    /// Keys that were sealed anew.
    pub sealed: u32,
    /// Keys that it sealed already.
    pub unchanged: u32,
}

/// With which key a new image is encrypted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EncryptWith {
    /// One that the image's project has, by name or id.
    Key(String),
    /// One that is made with the image, of this name.
    NewKey(String),
}

/// How an image is encrypted: as a qcow2 file with LUKS inside. Whoever sees the image of another project is not told the key's
/// name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Encryption {
    /// The key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_name: Option<String>,
}
