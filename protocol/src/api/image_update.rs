//! `PATCH /api/v1/images/{id}`: what an editor changes of an image.
//!
//! **What.** Each field is an [`Edit`]: absent keeps, `null` clears, a value sets.
//! **Why a type of its own.** `Option` cannot tell an absent field from `null`, and a form that sends only what was
//! touched must not clear the rest.
//! **Invariants.** `absent_keeps_and_null_clears`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::words::{Architecture, DiskDriver, NetworkDriver, OsType};

/// What becomes of one field.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Edit<T> {
    /// It stays.
    #[default]
    Keep,
    /// It is emptied.
    Clear,
    /// It becomes this.
    Set(T),
}

impl<T> Edit<T> {
    /// Whether the field stays.
    #[must_use]
    pub const fn is_keep(&self) -> bool {
        matches!(self, Self::Keep)
    }

    /// What is set, if something is.
    #[must_use]
    pub const fn set(&self) -> Option<&T> {
        match self {
            Self::Set(value) => Some(value),
            Self::Keep | Self::Clear => None,
        }
    }

    /// Makes the change in `field`; `empty` is what a cleared one becomes.
    pub fn apply<F: From<T>>(self, field: &mut F, empty: F) {
        match self {
            Self::Keep => {}
            Self::Clear => *field = empty,
            Self::Set(value) => *field = value.into(),
        }
    }
}

impl<T> From<Option<T>> for Edit<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Keep, Self::Set)
    }
}

impl<T: Serialize> Serialize for Edit<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.set().serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Edit<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Clear, Self::Set))
    }
}

/// Changes of an image. Absent fields stay, `null` empties a field.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImageUpdate {
    /// New name; cannot be cleared.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<String>)]
    pub name: Edit<String>,
    /// For people, at most 4,096 characters.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<String>)]
    pub description: Edit<String>,
    /// CPU architecture.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<Architecture>)]
    pub architecture: Edit<Architecture>,
    /// Operating system.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<OsType>)]
    pub os_type: Edit<OsType>,
    /// Distribution.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<String>)]
    pub distribution: Edit<String>,
    /// Version of the distribution.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<String>)]
    pub version: Edit<String>,
    /// Smallest disk that a machine of it needs.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<u64>)]
    pub min_disk_bytes: Edit<u64>,
    /// Smallest memory that a machine of it needs.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<u64>)]
    pub min_memory_bytes: Edit<u64>,
    /// How a machine of it sees its disks; `null` is `auto`.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<DiskDriver>)]
    pub disk_driver: Edit<DiskDriver>,
    /// How a machine of it sees its network; `null` is `auto`.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<NetworkDriver>)]
    pub network_driver: Edit<NetworkDriver>,
    /// Language of the operating system.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<String>)]
    pub os_language: Edit<String>,
    /// Application platform.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<String>)]
    pub app_platform: Edit<String>,
    /// A password can be set for machines of it; `null` is no.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<bool>)]
    pub password_enabled: Edit<bool>,
    /// Replaces all tags.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<BTreeSet<String>>)]
    pub tags: Edit<BTreeSet<String>>,
    /// Replaces all free properties.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub properties: Edit<BTreeMap<String, String>>,
    /// Cannot be changed: refused.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<String>)]
    pub url: Edit<serde_json::Value>,
    /// Cannot be changed: refused.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<String>)]
    pub format: Edit<serde_json::Value>,
    /// Cannot be changed: refused.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<String>)]
    pub domain: Edit<serde_json::Value>,
    /// Cannot be changed: refused.
    #[serde(skip_serializing_if = "Edit::is_keep")]
    #[schema(value_type = Option<String>)]
    pub virtualisation: Edit<serde_json::Value>,
}

impl ImageUpdate {
    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_keeps_and_null_clears() {
        let text = r#"{"description":null,"os_type":"macos","tags":["a"]}"#;
        let update: ImageUpdate = serde_json::from_str(text).unwrap();
        assert_eq!((&update.name, &update.description), (&Edit::Keep, &Edit::Clear));
        assert_eq!(update.os_type, Edit::Set(OsType::Macos));
        let sent = serde_json::to_value(&update).unwrap();
        assert_eq!(sent, serde_json::from_str::<serde_json::Value>(text).unwrap());
        assert!(ImageUpdate::default().is_empty() && !update.is_empty());
    }
}
