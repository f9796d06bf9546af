//! TLS towards the controller: who is believed, and with which ciphers.
//!
//! **What.** The TLS configurations of a home session (mutual, our CA only) and of an enrolment (the CA is known by its
//! fingerprint alone).
//! **Why a verifier of our own for enrolment.** A join token carries 32 bytes, not a certificate. The server sends its
//! chain; the certificate in it that has the fingerprint becomes the only root for the usual checks.
//! **Invariants.**
//! 1. A controller is accepted only with the name [`CONTROLLER_NAME`] in a certificate below our CA.
//! 2. `a_chain_without_the_pinned_ca_is_refused`.

use std::sync::Arc;

use hearth_protocol::digest::CaFingerprint;
use hearth_protocol::version::{ALPN, ALPN_ENROL};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::identity::{AgentKey, Enrolment};

/// Name in every controller's certificate. Addresses change, the name does not.
pub const CONTROLLER_NAME: &str = "controller.hearth.internal";

/// Why no TLS configuration could be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Certificate or key are not usable.
    #[error("certificate or key is not usable: {0}")]
    Material(#[from] rustls::Error),
    /// The CA is not usable as a root.
    #[error("the CA is not usable: {0}")]
    Root(#[from] rustls::client::VerifierBuilderError),
    /// The cipher suites lack the one QUIC needs.
    #[error("no cipher suite for QUIC")]
    NoSuite,
}

/// AES-128-GCM first: both ends have it in hardware, and the 256-bit one costs more for nothing here.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

/// The CA that enrolled us, as the only one that is believed.
pub(crate) fn our_roots(enrolment: &Enrolment) -> Result<Arc<RootCertStore>, TlsError> {
    roots(enrolment.chain.last().cloned().ok_or(rustls::Error::NoCertificatesPresented)?)
}

fn roots(ca: CertificateDer<'static>) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    Ok(Arc::new(roots))
}

/// For a home session: our certificate, our CA.
///
/// # Errors
/// [`TlsError`] if key and certificate do not fit each other.
pub fn session(key: &AgentKey, enrolment: &Enrolment) -> Result<QuicClientConfig, TlsError> {
    mutual(key, enrolment, ALPN)
}

/// Towards somebody below our CA who is shown our certificate.
///
/// # Errors
/// As [`session`].
pub(crate) fn mutual(
    key: &AgentKey,
    enrolment: &Enrolment,
    alpn: &[u8],
) -> Result<QuicClientConfig, TlsError> {
    let verifier = WebPkiServerVerifier::builder_with_provider(our_roots(enrolment)?, provider()).build()?;
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(enrolment.chain.clone(), key.private_der())?;
    config.alpn_protocols = vec![alpn.to_vec()];
    // A resumed session would skip the certificate, and with it a revocation.
    config.resumption = rustls::client::Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(|_| TlsError::NoSuite)
}

/// For an enrolment or a renewal after the end of a certificate: the CA's fingerprint is all that is known.
///
/// # Errors
/// [`TlsError`].
pub fn enrolment(ca: CaFingerprint) -> Result<QuicClientConfig, TlsError> {
    let verifier = Arc::new(PinnedCa { ca, provider: provider() });
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_ENROL.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(|_| TlsError::NoSuite)
}

/// Believes a chain that ends in the CA with this fingerprint.
#[derive(Debug)]
struct PinnedCa {
    ca: CaFingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca = others.iter().find(|der| CaFingerprint::of(der) == self.ca).ok_or_else(unknown)?;
        let roots = roots(ca.clone().into_owned()).map_err(|_| unknown())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
            .build()
            .map_err(|_| unknown())?;
        verifier.verify_server_cert(leaf, others, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    #[test]
    fn a_chain_without_the_pinned_ca_is_refused() {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap().der().clone();
        let issuer = Issuer::new(params, ca_key);
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = |name: &str| {
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.signed_by(&leaf_key, &issuer).unwrap().der().clone()
        };
        let check = |pin: CaFingerprint, leaf: &CertificateDer<'_>, chain: &[CertificateDer<'static>]| {
            let verifier = PinnedCa { ca: pin, provider: provider() };
            let name = ServerName::try_from(CONTROLLER_NAME).unwrap();
            verifier.verify_server_cert(leaf, chain, &name, &[], UnixTime::now()).is_ok()
        };
        let (pin, good) = (CaFingerprint::of(&ca), leaf(CONTROLLER_NAME));
        assert!(check(pin, &good, std::slice::from_ref(&ca)));
        assert!(!check(pin, &leaf("evil.example"), std::slice::from_ref(&ca)), "another name");
        assert!(!check(pin, &good, &[]), "no CA in the chain");
        assert!(!check(CaFingerprint::of(b"other"), &good, std::slice::from_ref(&ca)), "another CA");
        let own = CertificateParams::new(vec![CONTROLLER_NAME.to_owned()]).unwrap();
        let own = own.self_signed(&leaf_key).unwrap().der().clone();
        assert!(!check(pin, &own, &[ca]), "a stranger's certificate beside the real CA");
    }
}
