//! TLS of the controller: one certificate for QUIC and HTTPS, renewed while it is used.
//!
//! **What.** [`ServerIdentity`] holds the current certificate and hands it to every new handshake; the two `…_config`
//! functions make the rustls settings of the QUIC endpoint and of the HTTPS listener.
//! **Why client certificates are optional in TLS.** One port serves `hearth/1` (certificate required) and
//! `hearth-enrol/1` (the asker has none yet); rustls decides about certificates before it knows the ALPN. So TLS checks a
//! certificate if there is one, and the endpoint closes a `hearth/1` connection without one before it reads a byte.
//! **Invariants.** TLS 1.3 only; no session tickets, no 0-RTT: every connection proves its key anew, so a revoked one
//! cannot ride on an older handshake.

use std::sync::Arc;

use arc_swap::ArcSwap;
use hearth_protocol::version::{ALPN, ALPN_ENROL};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;

use super::ca::{Authority, CaError};

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA cannot make the server's certificate.
    #[error("cannot make the controller's certificate")]
    Certificate(#[source] CaError),
    /// The library refuses a setting.
    #[error("cannot set TLS up")]
    Library(#[source] rustls::Error),
    /// The CA certificate cannot be used to check agents.
    #[error("the CA certificate cannot be used to check agents")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    /// The cipher that QUIC starts with is missing.
    #[error("the TLS library lacks the cipher QUIC starts with")]
    NoInitialCipher(#[source] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// The cryptography used everywhere: AES-128-GCM first, which was the fastest on hosts with AES instructions.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
}

/// The controller's certificate, exchanged while connections are served.
#[derive(Debug)]
pub struct ServerIdentity {
    authority: Arc<Authority>,
    names: Vec<String>,
    current: ArcSwap<CertifiedKey>,
}

impl ServerIdentity {
    /// Makes the first certificate, for the given names and addresses besides the controller's own name.
    ///
    /// # Errors
    /// [`TlsError`] if a name cannot stand in a certificate.
    pub fn new(authority: Arc<Authority>, names: Vec<String>, now_us: i64) -> Result<Arc<Self>, TlsError> {
        let current = ArcSwap::from(certify(&authority, &names, now_us)?);
        Ok(Arc::new(Self { authority, names, current }))
    }

    /// Exchanges the certificate for a new one; connections that are open stay open.
    ///
    /// # Errors
    /// [`TlsError`]; the old certificate stays.
    pub fn renew(&self, now_us: i64) -> Result<(), TlsError> {
        self.current.store(certify(&self.authority, &self.names, now_us)?);
        Ok(())
    }

    /// The authority behind it.
    #[must_use]
    pub const fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }
}

impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn certify(authority: &Authority, names: &[String], now_us: i64) -> Result<Arc<CertifiedKey>, TlsError> {
    let made = authority.server_certificate(names, now_us).map_err(TlsError::Certificate)?;
    let key = provider().key_provider.load_private_key(made.key).map_err(TlsError::Library)?;
    Ok(Arc::new(CertifiedKey::new(made.chain, key)))
}

/// Settings of the QUIC endpoint.
///
/// # Errors
/// [`TlsError`].
pub fn quic_config(
    identity: Arc<ServerIdentity>,
) -> Result<quinn::crypto::rustls::QuicServerConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.authority.certificate().clone()).map_err(TlsError::Library)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(TlsError::Verifier)?;
    let builder = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Library)?;
    let mut config = builder.with_client_cert_verifier(verifier).with_cert_resolver(identity);
    config.alpn_protocols = vec![ALPN.to_vec(), ALPN_ENROL.to_vec()];
    forget_sessions(&mut config);
    config.try_into().map_err(TlsError::NoInitialCipher)
}

/// Settings of the HTTPS listener: the same certificate, HTTP/2 and HTTP/1.1.
///
/// # Errors
/// [`TlsError`].
pub fn https_config(identity: Arc<ServerIdentity>) -> Result<rustls::ServerConfig, TlsError> {
    let builder = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Library)?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(identity);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn forget_sessions(config: &mut rustls::ServerConfig) {
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
}
