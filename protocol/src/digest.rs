//! BLAKE3 digests with a meaning: what a digest is *of* is part of its type.
//!
//! **What.** 32-byte newtypes that print and parse as 64 lower-case hex digits.
//! **Why newtypes.** A chunk's digest passed where a content id is expected would compile as `[u8; 32]`
//! and fail far away; here the compiler refuses it.
//! **Invariants.** Parsing accepts exactly what `Display` prints, so a text has one spelling and a path made
//! from a digest can contain nothing but `0-9a-f`.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Text that is not 64 lower-case hex digits.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a digest: expected 64 lower-case hex digits, got {length} characters")]
pub struct DigestError {
    /// Length of the text that was given, in bytes.
    pub length: usize,
}

macro_rules! digest_types {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd, Encode, Decode, utoipa::ToSchema)]
        #[schema(value_type = String, min_length = 64, max_length = 64, pattern = "^[0-9a-f]{64}$")]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps 32 bytes that are already known to be such a digest.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// BLAKE3 of `bytes`.
            #[must_use]
            pub fn of(bytes: &[u8]) -> Self {
                Self(*blake3::hash(bytes).as_bytes())
            }

            /// The raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = DigestError;

            fn from_str(text: &str) -> Result<Self, DigestError> {
                parse_hex(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

digest_types! {
    /// BLAKE3 of a manifest's root: the identity of a content, everywhere.
    ContentId;
    /// BLAKE3 of one chunk's raw bytes.
    ChunkDigest;
    /// BLAKE3 of one encoded manifest page.
    PageDigest;
    /// BLAKE3 of an agent's public key (DER `SubjectPublicKeyInfo`): the identity of the agent.
    AgentId;
    /// BLAKE3 of the controller's CA certificate (DER): what clients and join tokens pin.
    CaFingerprint;
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8; 32]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// 32 bytes from 64 lower-case hex digits.
///
/// # Errors
/// [`DigestError`] for any other text.
pub(crate) fn parse_hex(text: &str) -> Result<[u8; 32], DigestError> {
    let error = DigestError { length: text.len() };
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return Err(error);
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = match (nibble(pair[0]), nibble(pair[1])) {
            (Some(high), Some(low)) => high << 4 | low,
            _ => return Err(error),
        };
    }
    Ok(bytes)
}

pub(crate) const fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing_accepts_exactly_what_display_prints() {
        let id = ContentId::of(b"hearth");
        assert_eq!(id.to_string().parse::<ContentId>().unwrap(), id);
        for wrong in ["", "00", &id.to_string().to_uppercase(), &format!("{id}0"), &"é".repeat(32)] {
            assert_eq!(wrong.parse::<ContentId>().unwrap_err(), DigestError { length: wrong.len() });
        }
    }
}
