//! Typed ids of catalog records, and the counters that order plans.
//!
//! **What.** 128-bit ids, printed as a hyphenated UUID. The controller makes them (UUID version 7, so they sort
//! by age); this crate only carries, prints and parses them.
//! **Why typed.** `cancel(prewarm, image)` with swapped arguments must not compile.
//! **Invariants.** One spelling per id: lower case, hyphens at 8-4-4-4-12.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::nibble;

/// Text that is not a lower-case hyphenated UUID.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not an id: expected 8-4-4-4-12 lower-case hex digits, got {length} characters")]
pub struct IdError {
    /// Length of the text that was given, in bytes.
    pub length: usize,
}

macro_rules! id_types {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd, Encode, Decode, utoipa::ToSchema)]
        #[schema(value_type = String, format = Uuid, example = "019ab3c4-5d6e-7f80-9123-456789abcdef")]
        pub struct $name([u8; 16]);

        impl $name {
            /// Wraps the 16 bytes of a UUID.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The 16 bytes of the UUID.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_uuid(text).map(Self)
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

id_types! {
    /// An image: one catalog record.
    ImageId;
    /// A host image: disk images in an order, a system disk and data disks.
    HostImageId;
    /// A location: a host or a public-cloud region that holds a cache.
    LocationId;
    /// An intent: the wish that an entry exist.
    IntentId;
    /// A prewarm job.
    PrewarmId;
    /// The prewarm jobs of one host image that were made together.
    PrewarmGroupId;
    /// A lease on a cache entry. Made by the agent.
    LeaseId;
    /// A background job of the controller, for example an import.
    JobId;
    /// A bearer token's record (not its secret).
    TokenId;
    /// A join token's record (not its secret).
    JoinTokenId;
    /// A download link's record (not its secret).
    LinkId;
    /// A project, the lower tenant level.
    ProjectId;
    /// A domain, the upper tenant level.
    DomainId;
    /// A row of the operation log.
    OperationId;
    /// A user: a person who logs in.
    UserId;
    /// A grant: a role that a user has in a scope.
    GrantId;
    /// One start of an agent process; tells a restart from a second agent with a copied key.
    BootId;
}

/// Orders the plans for one location; a receiver refuses a plan that is not newer than its own.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Encode, Decode, Serialize, Deserialize,
)]
pub struct Generation(pub u64);

fn write_uuid(f: &mut fmt::Formatter<'_>, bytes: &[u8; 16]) -> fmt::Result {
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            f.write_str("-")?;
        }
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

fn parse_uuid(text: &str) -> Result<[u8; 16], IdError> {
    let error = IdError { length: text.len() };
    let digits = text.as_bytes();
    if digits.len() != 36 {
        return Err(error);
    }
    let mut bytes = [0; 16];
    let mut at = 0;
    for (i, byte) in bytes.iter_mut().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            if digits[at] != b'-' {
                return Err(error);
            }
            at += 1;
        }
        *byte = match (nibble(digits[at]), nibble(digits[at + 1])) {
            (Some(high), Some(low)) => high << 4 | low,
            _ => return Err(error),
        };
        at += 2;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsing_accepts_exactly_what_display_prints() {
        let id = ImageId::from_bytes(*b"0123456789abcdef");
        assert_eq!(id.to_string(), "30313233-3435-3637-3839-616263646566");
        assert_eq!(id.to_string().parse::<ImageId>().unwrap(), id);
        for wrong in
            ["", "30313233", "303132330-435-3637-3839-616263646566", "30313233-3435-3637-3839-61626364656G"]
        {
            assert_eq!(wrong.parse::<ImageId>().unwrap_err(), IdError { length: wrong.len() });
        }
    }
}
