//! Enrolment: how an agent gets its certificate.
//!
//! **What.** On ALPN `hearth-enrol/1` only the server is authenticated: the asker pins the CA fingerprint that its join
//! token carries (or the CA that it already has). One request, one reply, the connection closes.
//! **Why a CSR.** The key is made on the host and never leaves it.
//! **Invariants.** Without a token the CSR's key must be an enrolled one that is not revoked, whose certificate ran out at
//! most 30 days ago. Names in the CSR are ignored; the controller writes them.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};

use super::data::FaultV1;
use crate::digest::{CaFingerprint, parse_hex};
use crate::frame::messages;
use crate::id::LocationId;
use crate::words::LocationKind;

messages! {
    /// What an agent asks.
    EnrolRequest {
        /// Asks for a certificate.
        Enrol(EnrolV1) = 0x0501,
    }
}

messages! {
    /// What the controller answers.
    EnrolReply {
        /// The certificate.
        Enrolled(EnrolledV1) = 0x0601,
        /// No.
        Fault(FaultV1) = 0x0602,
    }
}

/// Asks for a certificate.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct EnrolV1 {
    /// Secret of a join token; `None` to renew for an enrolled key.
    pub token_secret: Option<[u8; 32]>,
    /// PKCS #10 request (DER).
    pub csr_der: Vec<u8>,
    /// What the location is; ignored on renewal.
    pub facts: LocationFacts,
}

/// What an agent says about its location when it enrols. Texts are at most 512 bytes each.
#[derive(Clone, Debug, Default, PartialEq, Encode, Decode)]
pub struct LocationFacts {
    /// Unique name, for example the host name.
    pub name: String,
    /// Host or region; `None` is host.
    pub kind: Option<LocationKind>,
    /// Platform, for example `kvm` or `vmware`.
    pub platform: String,
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Rack; empty means the zone.
    pub rack: String,
    /// Account.
    pub account: String,
    /// Management address.
    pub ip: String,
    /// Serial number of the machine.
    pub serial: String,
    /// Free labels, at most 64.
    pub labels: Vec<(String, String)>,
}

/// The certificate.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct EnrolledV1 {
    /// Id of the location.
    pub location: LocationId,
    /// DER certificates, leaf first, CA last.
    pub chain: Vec<Vec<u8>>,
}

/// A join token as an operator copies it: `hj1_<secret>_<CA fingerprint>`, both 64 hex digits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct JoinToken {
    /// 256 random bits; the controller stores only their hash.
    pub secret: [u8; 32],
    /// The CA that the agent must meet.
    pub ca: CaFingerprint,
}

/// Text that is not a join token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "not a join token: expected hj1_<64 hex digits>_<64 hex digits>; make one with `hearth location token create`"
)]
pub struct JoinTokenError;

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hj1_")?;
        self.secret.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "_{}", self.ca)
    }
}

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<Self, JoinTokenError> {
        let (secret, ca) =
            text.strip_prefix("hj1_").and_then(|rest| rest.split_once('_')).ok_or(JoinTokenError)?;
        let secret = parse_hex(secret).map_err(|_| JoinTokenError)?;
        let ca = ca.parse().map_err(|_| JoinTokenError)?;
        Ok(Self { secret, ca })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_token_survives_copying() {
        let token = JoinToken { secret: [7; 32], ca: CaFingerprint::of(b"ca") };
        assert_eq!(token.to_string().parse(), Ok(token));
        assert_eq!("hj1_00_11".parse::<JoinToken>(), Err(JoinTokenError));
    }
}
