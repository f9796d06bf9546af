//! Grants: the right of one agent to fetch one content from others.
//!
//! **What.** An Ed25519 key made from the authority's secret signs {content, agent, from, until, life of the controller}.
//! **Why a key of its own.** Agents check a grant for each request without asking anybody; and whoever got hold of this key
//! could read contents from agents, but make no certificate.
//! **Invariants.** A grant ends: at the deadline of the intent, or after six hours. It begins five minutes back, because the
//! hosts' clocks may differ by so much.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use hearth_protocol::digest::{AgentId, ContentId};
use hearth_protocol::message::control::CLOCK_SKEW_MS_MAX;
use hearth_protocol::message::swarm::GrantV1;

use super::super::ca::Authority;

/// What the key is derived for. Another text is another key: grants in use would be worthless.
const PURPOSE: &str = "hearth 2026 swarm grants";
/// Life of a grant without a deadline, ms.
const LIFE_MS: u64 = 6 * 3600 * 1000;
/// A deadline that is nearer than this does not shorten a grant: the transfer is still wanted after it, ms.
const DEADLINE_MS_MIN: u64 = 15 * 60 * 1000;
/// Longest life, ms: what a certificate lives, too.
const LIFE_MS_MAX: u64 = 24 * 3600 * 1000;

/// Signs grants; see the module.
#[derive(Debug)]
pub(super) struct Signer {
    pair: Ed25519KeyPair,
    public: [u8; 32],
    epoch: u64,
}

impl Signer {
    /// The signer of an authority, in this life of the controller.
    ///
    /// # Panics
    /// Never: 32 bytes are a seed.
    pub(super) fn new(authority: &Authority, epoch: u64) -> Self {
        let seed = zeroize::Zeroizing::new(authority.secret_for(PURPOSE));
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).expect("32 bytes are a seed");
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Self { pair, public, epoch }
    }

    /// What grants are checked with.
    pub(super) const fn public(&self) -> [u8; 32] {
        self.public
    }

    /// A grant from now until the deadline, both in ms since the epoch.
    pub(super) fn grant(
        &self,
        content: ContentId,
        agent: AgentId,
        now_ms: u64,
        deadline_ms: Option<u64>,
    ) -> GrantV1 {
        let not_after_unix_ms = match deadline_ms {
            Some(at_ms) if at_ms > now_ms + DEADLINE_MS_MIN => at_ms.min(now_ms + LIFE_MS_MAX),
            _ => now_ms + LIFE_MS,
        };
        let not_before_unix_ms = now_ms.saturating_sub(CLOCK_SKEW_MS_MAX);
        let mut grant = GrantV1 {
            content,
            agent,
            not_before_unix_ms,
            not_after_unix_ms,
            epoch: self.epoch,
            signature: [0; 64],
        };
        let signature = self.pair.sign(&grant.signed_bytes());
        grant.signature.copy_from_slice(signature.as_ref());
        grant
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    fn holds(signer: &Signer, grant: &GrantV1) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, signer.public());
        key.verify(&grant.signed_bytes(), &grant.signature).is_ok()
    }

    #[test]
    fn a_grant_is_checked_with_the_public_key_and_nothing_of_it_can_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), crate::clock::unix_us()).unwrap();
        let signer = Signer::new(&authority, 7);
        let now_ms = 1_800_000_000_000;
        let grant = signer.grant(ContentId::of(b"c"), AgentId::of(b"a"), now_ms, None);
        assert!(holds(&signer, &grant));
        assert_eq!(grant.not_before_unix_ms, now_ms - 300_000);
        assert_eq!(grant.not_after_unix_ms, now_ms + 6 * 3_600_000);
        let mut signature = grant.signature;
        signature[5] ^= 1;
        for changed in [
            GrantV1 { content: ContentId::of(b"d"), ..grant.clone() },
            GrantV1 { agent: AgentId::of(b"b"), ..grant.clone() },
            GrantV1 { not_before_unix_ms: 0, ..grant.clone() },
            GrantV1 { not_after_unix_ms: u64::MAX, ..grant.clone() },
            GrantV1 { epoch: 8, ..grant.clone() },
            GrantV1 { signature, ..grant.clone() },
        ] {
            assert!(!holds(&signer, &changed), "{changed:?}");
        }
        let again = Signer::new(&Authority::load(dir.path()).unwrap(), 8);
        assert_eq!(again.public(), signer.public(), "the next life of the controller has the same key");
    }

    #[test]
    fn a_grant_ends_with_the_deadline_unless_that_is_near_or_far() {
        let dir = tempfile::tempdir().unwrap();
        let signer = Signer::new(&Authority::create(dir.path(), crate::clock::unix_us()).unwrap(), 1);
        let now_ms = 1_800_000_000_000;
        let hours = |n: u64| n * 3_600_000;
        let life = |deadline_ms: u64| {
            let grant = signer.grant(ContentId::of(b"c"), AgentId::of(b"a"), now_ms, Some(deadline_ms));
            grant.not_after_unix_ms - now_ms
        };
        assert_eq!(life(now_ms + hours(1)), hours(1));
        assert_eq!(life(now_ms - hours(1)), hours(6), "what is late is still wanted");
        assert_eq!(life(now_ms + hours(1000)), hours(24));
        assert_eq!(life(u64::MAX), hours(24));
    }
}
