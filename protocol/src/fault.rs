//! Stable numbers for what can go wrong between two parties on the wire.
//!
//! **What.** A closed, numbered set; each number has a cause and a cure. Text beside it is for people only.
//! **Why numbers.** A program decides on them (retry, another source, give up) and versions differ: an unknown number
//! decodes to [`FaultCode::Unknown`] instead of an error.
//! **Invariants.** A number is never reused for another cause.

use std::fmt;
use std::time::Duration;

use bincode::de::{BorrowDecoder, Decoder};
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{BorrowDecode, Decode, Encode};

/// What a party does after a fault.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Retry {
    /// The same request will fail again.
    Never,
    /// The same request may succeed after this long.
    After(Duration),
    /// Ask somebody else.
    OtherSource,
}

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal, $retry:expr;)*) => {
        /// What went wrong. The number is the wire form.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum FaultCode {
            $($(#[$doc])* $name,)*
            /// A number of a newer version.
            Unknown(u16),
        }

        impl FaultCode {
            /// Every fault that this version knows.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The wire number.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self { $(Self::$name => $number,)* Self::Unknown(number) => number }
            }

            /// The fault with this wire number.
            #[must_use]
            pub const fn from_number(number: u16) -> Self {
                match number { $($number => Self::$name,)* other => Self::Unknown(other) }
            }

            /// Stable word for logs, API and scripts.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* Self::Unknown(_) => "unknown" }
            }

            /// What the receiver of this fault does.
            #[must_use]
            pub const fn retry(self) -> Retry {
                match self { $(Self::$name => $retry,)* Self::Unknown(_) => Retry::After(Duration::from_secs(60)) }
            }
        }
    };
}

faults! {
    /// No version in common. Upgrade one of the two.
    Version = 1, "version", Retry::After(Duration::from_secs(300));
    /// A message that is not allowed in this state or does not decode. A defect of the sender.
    Protocol = 2, "protocol", Retry::After(Duration::from_secs(60));
    /// The certificate or token is not (or no longer) valid here. Enrol again.
    Denied = 3, "denied", Retry::After(Duration::from_secs(300));
    /// The same agent key is connected from another place. Find the copy.
    Duplicate = 4, "duplicate", Retry::After(Duration::from_secs(60));
    /// The content is not placed on the asker.
    NotPlaced = 5, "not_placed", Retry::Never;
    /// The content, page or piece does not exist.
    NotFound = 6, "not_found", Retry::OtherSource;
    /// All transfer slots are taken.
    Busy = 7, "busy", Retry::After(Duration::from_millis(500));
    /// The stored bytes are damaged; the source mends them.
    Damaged = 8, "damaged", Retry::After(Duration::from_secs(5));
    /// Budget or free-space floor do not allow the entry.
    NoSpace = 9, "no_space", Retry::After(Duration::from_secs(60));
    /// The cache file system failed to read or write.
    Disk = 10, "disk", Retry::After(Duration::from_secs(60));
    /// The source sent bytes that fail their hash.
    BadBytes = 11, "bad_bytes", Retry::OtherSource;
    /// The source cannot be reached or stalled.
    Unreachable = 12, "unreachable", Retry::After(Duration::from_secs(5));
    /// The clocks of the two differ by more than allowed.
    Clock = 13, "clock", Retry::After(Duration::from_secs(60));
    /// The entry is leased or open and was not removed.
    InUse = 14, "in_use", Retry::After(Duration::from_secs(60));
    /// The plan is older than the one that is followed.
    StalePlan = 15, "stale_plan", Retry::Never;
    /// A fault inside the party; its log says more.
    Internal = 16, "internal", Retry::After(Duration::from_secs(30));
    /// Transfers are stopped by an operator.
    Stopped = 17, "stopped", Retry::After(Duration::from_secs(15));
    /// The party is shutting down.
    Closing = 18, "closing", Retry::After(Duration::from_secs(1));
}

impl fmt::Display for FaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(number) => write!(f, "unknown fault {number}"),
            known => f.pad(known.as_str()),
        }
    }
}

impl Encode for FaultCode {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.number().encode(encoder)
    }
}

impl<C> Decode<C> for FaultCode {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        u16::decode(decoder).map(Self::from_number)
    }
}

impl<'de, C> BorrowDecode<'de, C> for FaultCode {
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        u16::decode(decoder).map(Self::from_number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_unknown_ones_survive() {
        for (i, code) in FaultCode::ALL.iter().enumerate() {
            assert_eq!(FaultCode::from_number(code.number()), *code);
            assert!(FaultCode::ALL[..i].iter().all(|other| other.number() != code.number()));
        }
        assert_eq!(FaultCode::from_number(999).number(), 999);
    }
}
