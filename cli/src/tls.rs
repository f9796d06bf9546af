//! Trust by fingerprint: the one CA whose certificate has the pinned BLAKE3.
//!
//! **What.** A rustls verifier. It looks for the pinned CA among the certificates that the server sends and then lets
//! webpki check the whole chain against that CA alone: signatures, validity in time, usage and the server's name.
//! **Why not the system's roots.** The controller makes its own CA at `init`; no public CA vouches for it, and none
//! should be able to. It is kept as it came, so that other programs can be given it. **Why not "any certificate with this
//! fingerprint".** A leaf lives days and is renewed; the CA stays.
//! **Invariants.** Without the pinned CA in the chain nothing is accepted, whatever else is valid. The name must be the one
//! asked for or [`CONTROLLER_NAME`], which every controller's certificate carries, so that an address without a name in
//! the certificate still works.

use std::fmt;
use std::sync::{Arc, OnceLock};

use hearth_protocol::digest::CaFingerprint;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Name in the certificate of every controller.
pub(crate) const CONTROLLER_NAME: &str = "controller.hearth.internal";

/// The chain does not hold the CA that is trusted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct WrongCa {
    /// What is trusted.
    pub(crate) pinned: CaFingerprint,
    /// What the server sent last, which is its CA if it is a controller.
    pub(crate) sent: CaFingerprint,
}

impl fmt::Display for WrongCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server's CA has the fingerprint {}, trusted is {}", self.sent, self.pinned)
    }
}

impl std::error::Error for WrongCa {}

/// The pinned CA's certificate, once a server has proved that its chain ends in it.
pub(crate) type SeenCa = Arc<OnceLock<CertificateDer<'static>>>;

/// Accepts exactly the chains that end in the pinned CA.
#[derive(Debug)]
pub(crate) struct PinnedCa {
    fingerprint: CaFingerprint,
    provider: Arc<CryptoProvider>,
    seen: SeenCa,
}

/// TLS 1.3 with the pinned CA as the only trust anchor. `seen` gets its certificate.
///
/// # Errors
/// If the provider lacks TLS 1.3, which a build with aws-lc-rs does not.
pub(crate) fn client_config(fingerprint: CaFingerprint, seen: SeenCa) -> Result<rustls::ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = PinnedCa { fingerprint, provider: Arc::clone(&provider), seen };
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    // One request at a time and large bodies: HTTP/1.1 moves them with the least work.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

impl PinnedCa {
    fn anchored(&self, ca: &CertificateDer<'_>) -> Result<Arc<WebPkiServerVerifier>, Error> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let builder =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider));
        builder.build().map_err(|e| Error::General(e.to_string()))
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned = intermediates.iter().find(|cert| CaFingerprint::of(cert) == self.fingerprint);
        let Some(ca) = pinned else {
            let sent = CaFingerprint::of(intermediates.last().unwrap_or(leaf));
            let wrong = WrongCa { pinned: self.fingerprint, sent };
            return Err(CertificateError::Other(OtherError(Arc::new(wrong))).into());
        };
        let webpki = self.anchored(ca)?;
        let asked = webpki.verify_server_cert(leaf, intermediates, server_name, ocsp_response, now);
        let controller = ServerName::try_from(CONTROLLER_NAME).expect("the constant is a DNS name");
        let verified = asked.or_else(|error| match error {
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => webpki.verify_server_cert(leaf, intermediates, &controller, ocsp_response, now),
            other => Err(other),
        })?;
        self.seen.get_or_init(|| ca.clone().into_owned());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A certificate as PEM, as `curl --cacert` takes it.
#[must_use]
pub(crate) fn pem(certificate: &[u8]) -> String {
    let line_feeds = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", certificate), line_feeds)
}

#[cfg(test)]
mod tests;
