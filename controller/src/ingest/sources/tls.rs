//! Whom sources are believed: the certificate authorities of the system, and those of `import_ca_file`.
//!
//! **Invariants.** There is no way to turn the check off.

use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::FetchError;

/// TLS for one transfer; sessions of its connections are resumed, which FTP servers ask for.
///
/// # Errors
/// [`FetchError::Later`]: the file of authorities cannot be read.
pub(super) fn client_config(ca_file: Option<&Path>) -> Result<ClientConfig, FetchError> {
    let unusable = |error: &dyn std::fmt::Display| FetchError::Later(format!("cannot set up TLS: {error}"));
    let extra = match ca_file {
        Some(path) => CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| unusable(&format_args!("import_ca_file: {error}")))?,
        None => Vec::new(),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = rustls_platform_verifier::Verifier::new_with_extra_roots(extra, Arc::clone(&provider));
    let verifier = Arc::new(verifier.map_err(|error| unusable(&error))?);
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(config)
}
