//! Who may ask for a content.
//!
//! **What.** [`check`] compares a grant with the asker's certificate, the clock and the controller's signature.
//! **Invariants**, each tested in `a_grant_is_good_for_one_key_one_content_and_a_while`: a grant of another agent, another
//! time or another signer opens nothing.

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use hearth_protocol::digest::AgentId;
use hearth_protocol::message::swarm::GrantV1;

/// Why a grant opens nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum GrantError {
    /// The asker's certificate has another key.
    #[error("the grant is for another agent")]
    Stranger,
    /// It is not valid yet or any more.
    #[error("the grant is not valid now")]
    Time,
    /// The controller did not sign it.
    #[error("the grant is not signed by the controller")]
    Signature,
}

/// Checks the grant of `asker`.
///
/// # Errors
/// [`GrantError`].
pub(super) fn check(
    grant: &GrantV1,
    asker: AgentId,
    key: &[u8; 32],
    now_unix_ms: u64,
) -> Result<(), GrantError> {
    if grant.agent != asker {
        return Err(GrantError::Stranger);
    }
    if now_unix_ms < grant.not_before_unix_ms || now_unix_ms >= grant.not_after_unix_ms {
        return Err(GrantError::Time);
    }
    let key = UnparsedPublicKey::new(&ED25519, key);
    key.verify(&grant.signed_bytes(), &grant.signature).map_err(|_| GrantError::Signature)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    use hearth_protocol::digest::ContentId;

    use super::*;

    #[test]
    fn a_grant_is_good_for_one_key_one_content_and_a_while() {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let public: [u8; 32] = pair.public_key().as_ref().try_into().unwrap();
        let (mine, other) = (AgentId::of(b"mine"), AgentId::of(b"other"));
        let mut grant = GrantV1 {
            content: ContentId::of(b"c"),
            agent: mine,
            not_before_unix_ms: 10,
            not_after_unix_ms: 20,
            epoch: 1,
            signature: [0; 64],
        };
        let signature = pair.sign(&grant.signed_bytes());
        grant.signature.copy_from_slice(signature.as_ref());
        assert_eq!(check(&grant, mine, &public, 10), Ok(()));
        assert_eq!(check(&grant, other, &public, 10), Err(GrantError::Stranger));
        assert_eq!(check(&grant, mine, &public, 9), Err(GrantError::Time));
        assert_eq!(check(&grant, mine, &public, 20), Err(GrantError::Time));
        assert_eq!(check(&grant, mine, &[9; 32], 10), Err(GrantError::Signature));
        let forged = GrantV1 { content: ContentId::of(b"d"), ..grant };
        assert_eq!(check(&forged, mine, &public, 10), Err(GrantError::Signature));
    }
}
