//! TLS between agents: both show certificates of the authority that enrolled them.
//!
//! **What.** The settings of both sides, and the key that the other side proved.
//! **Invariants.** No session is resumed: each connection proves its key anew, so one that was revoked since cannot ride on an
//! older handshake.

use std::sync::Arc;

use hearth_protocol::digest::AgentId;
use hearth_protocol::version::ALPN_PEER;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls_pki_types::CertificateDer;

use crate::control::identity::{AgentKey, Enrolment};
use crate::control::tls::{TlsError, mutual, our_roots, provider};

/// Name in every agent's certificate; addresses change, and the key is compared besides.
pub const AGENT_NAME: &str = "agent.hearth.internal";

/// Towards another agent.
///
/// # Errors
/// [`TlsError`] if key and certificate do not fit each other.
pub fn client(key: &AgentKey, enrolment: &Enrolment) -> Result<QuicClientConfig, TlsError> {
    mutual(key, enrolment, ALPN_PEER)
}

/// For other agents.
///
/// # Errors
/// [`TlsError`].
pub fn server(key: &AgentKey, enrolment: &Enrolment) -> Result<QuicServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(our_roots(enrolment)?, provider()).build()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(enrolment.chain.clone(), key.private_der())?;
    config.alpn_protocols = vec![ALPN_PEER.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    QuicServerConfig::try_from(config).map_err(|_| TlsError::NoSuite)
}

/// The agent at the other end, by the key of its certificate.
#[must_use]
pub fn agent_of(connection: &quinn::Connection) -> Option<AgentId> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let (_, leaf) = x509_parser::parse_x509_certificate(chain.first()?).ok()?;
    Some(AgentId::of(leaf.public_key().raw))
}
