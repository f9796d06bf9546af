//! The built-in certificate authority: who may call itself an agent or the controller.
//!
//! **What.** A P-256 key and a self-signed certificate in `ca.key` and `ca.crt` of the state folder, made once by `init`.
//! From them come the certificate of the controller (QUIC and HTTPS) and those of the agents.
//! **Why built in.** A fleet must be able to start with two files and no other service; the fingerprint of this one
//! certificate is all that join tokens and the command line pin.
//! **Why short lives.** Agent certificates last a day (or what the configuration says, an hour to a month) and are renewed
//! by themselves, so whoever looks at nothing but the certificate believes a revoked host for no longer.
//!
//! **Invariants.** Names of a CSR are ignored: subject and SANs of an agent certificate are made from the key alone. The
//! private key never leaves `ca.key` (mode 0600). `notBefore` lies an hour back, because hosts' clocks differ.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_protocol::digest::{AgentId, CaFingerprint};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519,
    PublicKeyData as _, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::state::write_private;

/// Name that every controller's certificate carries, whatever address it has: what agents verify.
pub const CONTROLLER_NAME: &str = "controller.hearth.internal";
/// Name that every agent's certificate carries: what agents verify of each other, beside the key.
pub const AGENT_NAME: &str = "agent.hearth.internal";
/// Life of an agent's certificate when the configuration says nothing.
pub const AGENT_LIFE_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// Life of the controller's certificate; a new one is made at every start and at half its life.
pub const SERVER_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Life of the CA: longer than the machines that trust it.
const CA_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// How far back a certificate is valid: hosts' clocks may be behind.
const BACKDATE: Duration = Duration::from_secs(3600);
/// Largest CSR that is looked at; one for P-256 has about 300 bytes.
pub const CSR_BYTES_MAX: usize = 8 * 1024;

/// Why the authority cannot do what it should.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is an authority already.
    #[error("{path} exists: this controller has a CA already; every agent trusts it, so it is not replaced")]
    Exists {
        /// The certificate's file.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot {verb} {path}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is there and is not what it should be.
    #[error("{path} is not a PEM {what}; restore it from a backup (`hearth-controller restore`)")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// Key and certificate do not belong together.
    #[error("{path} is not the key of the CA certificate beside it; restore both from one backup")]
    Mismatch {
        /// The key's file.
        path: PathBuf,
    },
    /// A certificate request is not acceptable.
    #[error("the certificate request is not acceptable: {why}")]
    Csr {
        /// What is wrong.
        why: &'static str,
    },
    /// The certificate library failed.
    #[error("cannot make a certificate")]
    Library(#[source] rcgen::Error),
}

/// The authority; see the module.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    fingerprint: CaFingerprint,
}

/// A certificate for an agent.
#[derive(Clone, Debug)]
pub struct AgentCertificate {
    /// The key it is for.
    pub agent: AgentId,
    /// Serial number, hex.
    pub serial: String,
    /// End of its life, microseconds since the epoch.
    pub not_after_us: i64,
    /// DER, leaf first, CA last.
    pub chain: Vec<Vec<u8>>,
}

/// A certificate for the controller, with its key.
#[derive(Debug)]
pub struct ServerCertificate {
    /// DER, leaf first, CA last: who pins the CA finds it here.
    pub chain: Vec<CertificateDer<'static>>,
    /// Private key, in memory only.
    pub key: PrivateKeyDer<'static>,
}

impl Authority {
    /// Makes a new authority in `folder` (made with mode 0700 if missing).
    ///
    /// # Errors
    /// [`CaError::Exists`] if there is one; [`CaError::File`] if it cannot be stored.
    pub fn create(folder: &Path, now_us: i64) -> Result<Self, CaError> {
        let (crt, key_file) = (folder.join("ca.crt"), folder.join("ca.key"));
        if crt.exists() {
            return Err(CaError::Exists { path: crt });
        }
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| CaError::File { verb: "make", path: folder.to_owned(), source })?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Library)?;
        let mut params = params(now_us, CA_LIFE, "Hearth CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(CaError::Library)?;
        // The certificate last: its presence says that both files are whole.
        store(&key_file, Zeroizing::new(key.serialize_pem()).as_bytes())?;
        store(&crt, certificate.pem().as_bytes())?;
        Self::load(folder)
    }

    /// Loads the authority of `folder`.
    ///
    /// # Errors
    /// [`CaError`] if a file is missing, damaged, or the two do not belong together.
    pub fn load(folder: &Path) -> Result<Self, CaError> {
        let (crt, key_file) = (folder.join("ca.crt"), folder.join("ca.key"));
        let read = |path: &Path| {
            fs::read(path).map_err(|source| CaError::File { verb: "read", path: path.to_owned(), source })
        };
        let key_pem = Zeroizing::new(read(&key_file)?);
        let certificate = CertificateDer::from_pem_slice(&read(&crt)?)
            .map_err(|_| CaError::Unreadable { path: crt.clone(), what: "certificate" })?;
        let bad_key = || CaError::Unreadable { path: key_file.clone(), what: "private key" };
        let key = std::str::from_utf8(&key_pem)
            .ok()
            .and_then(|pem| KeyPair::from_pem(pem).ok())
            .ok_or_else(bad_key)?;
        if spki_of(&certificate).as_deref() != Some(key.subject_public_key_info().as_slice()) {
            return Err(CaError::Mismatch { path: key_file });
        }
        let fingerprint = CaFingerprint::of(&certificate);
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|_| CaError::Unreadable { path: crt, what: "CA certificate" })?;
        Ok(Self { issuer, certificate, fingerprint })
    }

    /// What join tokens and the command line pin: BLAKE3 of the CA certificate (DER).
    #[must_use]
    pub const fn fingerprint(&self) -> CaFingerprint {
        self.fingerprint
    }

    /// The CA certificate (DER).
    #[must_use]
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A secret for another purpose, always the same for this authority and `purpose`.
    #[must_use]
    pub fn secret_for(&self, purpose: &str) -> [u8; 32] {
        blake3::derive_key(purpose, Zeroizing::new(self.issuer.key().serialize_der()).as_slice())
    }

    /// The key that a certificate request is for, after its signature was checked.
    ///
    /// # Errors
    /// [`CaError::Csr`].
    pub fn csr_agent(&self, csr_der: &[u8]) -> Result<AgentId, CaError> {
        parse_csr(csr_der).map(|csr| AgentId::of(&csr.public_key.subject_public_key_info()))
    }

    /// Signs a certificate for the key of `csr_der`, valid for `life` from `now_us`.
    ///
    /// # Errors
    /// [`CaError::Csr`] for a request that is too large, damaged, not signed by its key, or for another kind of key than
    /// P-256 and Ed25519.
    pub fn agent_certificate(
        &self,
        csr_der: &[u8],
        now_us: i64,
        life: Duration,
    ) -> Result<AgentCertificate, CaError> {
        let mut csr = parse_csr(csr_der)?;
        let agent = AgentId::of(&csr.public_key.subject_public_key_info());
        csr.params = params(now_us, life, &format!("hearth agent {agent}"));
        csr.params.subject_alt_names = vec![uri(agent)?, dns(AGENT_NAME)?];
        csr.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let (serial, number) = random_serial();
        csr.params.serial_number = Some(number);
        let leaf = csr.signed_by(&self.issuer).map_err(CaError::Library)?;
        let life_us = i64::try_from(life.as_micros()).unwrap_or(i64::MAX);
        // Certificates count whole seconds.
        let not_after_us = (now_us / 1_000_000) * 1_000_000 + life_us;
        Ok(AgentCertificate {
            agent,
            serial,
            not_after_us,
            chain: vec![leaf.der().to_vec(), self.certificate.to_vec()],
        })
    }

    /// Makes a key and a certificate for the controller, for [`CONTROLLER_NAME`] and the given names and addresses.
    ///
    /// # Errors
    /// [`CaError::Library`] if a name is not one that a certificate can hold.
    pub fn server_certificate(&self, names: &[String], now_us: i64) -> Result<ServerCertificate, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Library)?;
        let mut params = params(now_us, SERVER_LIFE, "hearth controller");
        params.subject_alt_names = vec![dns(CONTROLLER_NAME)?];
        for name in names.iter().filter(|name| *name != CONTROLLER_NAME) {
            params.subject_alt_names.push(match name.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => dns(name)?,
            });
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.serial_number = Some(random_serial().1);
        let leaf = params.signed_by(&key, &self.issuer).map_err(CaError::Library)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(ServerCertificate { chain: vec![leaf.der().clone(), self.certificate.clone()], key })
    }
}

/// The agent that a certificate names, if its name and its key agree, and the end of its life (microseconds).
#[must_use]
pub fn agent_of(certificate: &CertificateDer<'_>) -> Option<(AgentId, i64)> {
    use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let agent = AgentId::of(parsed.public_key().raw);
    let expected = agent_uri(agent);
    let names = parsed.subject_alternative_name().ok()??;
    let named = names
        .value
        .general_names
        .iter()
        .any(|name| matches!(name, GeneralName::URI(uri) if *uri == expected));
    let not_after_us = parsed.validity().not_after.timestamp().saturating_mul(1_000_000);
    named.then_some((agent, not_after_us))
}

fn agent_uri(agent: AgentId) -> String {
    format!("hearth://agent/{agent}")
}

fn spki_of(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.public_key().raw.to_vec())
}

fn parse_csr(csr_der: &[u8]) -> Result<CertificateSigningRequestParams, CaError> {
    if csr_der.len() > CSR_BYTES_MAX {
        return Err(CaError::Csr { why: "it is longer than 8 KiB" });
    }
    let wrong = |_| CaError::Csr { why: "it does not decode, or its signature is not of its key" };
    let csr = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
        .map_err(wrong)?;
    if *csr.public_key.algorithm() != PKCS_ECDSA_P256_SHA256 && *csr.public_key.algorithm() != PKCS_ED25519 {
        return Err(CaError::Csr { why: "its key is neither P-256 nor Ed25519" });
    }
    Ok(csr)
}

fn params(now_us: i64, life: Duration, common_name: &str) -> CertificateParams {
    let now = Duration::from_secs(u64::try_from(now_us / 1_000_000).unwrap_or(0));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + now + life;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

fn dns(name: &str) -> Result<SanType, CaError> {
    Ok(SanType::DnsName(name.try_into().map_err(CaError::Library)?))
}

fn uri(agent: AgentId) -> Result<SanType, CaError> {
    Ok(SanType::URI(agent_uri(agent).try_into().map_err(CaError::Library)?))
}

/// 127 random bits, as hex and as a serial number.
fn random_serial() -> (String, SerialNumber) {
    let number = rand::random::<u128>() >> 1;
    (format!("{number:032x}"), SerialNumber::from_slice(&number.to_be_bytes()))
}

fn store(path: &Path, bytes: &[u8]) -> Result<(), CaError> {
    let stored = write_private(path, bytes);
    stored.map_err(|source| CaError::File { verb: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::clock;

    fn csr(key: &KeyPair, name: &str) -> Vec<u8> {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn the_authority_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("ca");
        let made = Authority::create(&folder, clock::unix_us()).unwrap();
        assert_eq!(Authority::load(&folder).unwrap().fingerprint(), made.fingerprint());
        assert!(matches!(Authority::create(&folder, 0), Err(CaError::Exists { .. })));
        let mode = fs::metadata(folder.join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_foreign_key_or_a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Authority::create(dir.path(), clock::unix_us()).unwrap();
        let other = KeyPair::generate().unwrap();
        fs::write(dir.path().join("ca.key"), other.serialize_pem()).unwrap();
        assert!(matches!(Authority::load(dir.path()), Err(CaError::Mismatch { .. })));
        fs::write(dir.path().join("ca.crt"), "nothing").unwrap();
        assert!(matches!(Authority::load(dir.path()), Err(CaError::Unreadable { .. })));
    }

    #[test]
    fn names_of_a_request_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), clock::unix_us()).unwrap();
        let key = KeyPair::generate().unwrap();
        let request = csr(&key, "controller.hearth.internal");
        let made = authority.agent_certificate(&request, clock::unix_us(), AGENT_LIFE_DEFAULT).unwrap();
        let leaf = CertificateDer::from(made.chain[0].clone());
        assert_eq!(agent_of(&leaf), Some((made.agent, made.not_after_us)));
        assert_eq!(made.agent, AgentId::of(&key.subject_public_key_info()));
        use x509_parser::prelude::{FromDer as _, X509Certificate};
        let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
        let names = parsed.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
        let texts: Vec<String> = names.iter().map(ToString::to_string).collect();
        assert!(!texts.concat().contains("controller"), "{texts:?}");
        assert!(!parsed.is_ca());
        assert!(parsed.validity().not_before.timestamp() * 1_000_000 < clock::unix_us() - 3_500_000_000);
    }

    #[test]
    fn a_request_not_signed_by_its_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), clock::unix_us()).unwrap();
        let mut request = csr(&KeyPair::generate().unwrap(), "x");
        let last = request.len() - 1;
        request[last] ^= 1;
        for request in [request, vec![0; CSR_BYTES_MAX + 1]] {
            let made = authority.agent_certificate(&request, 0, AGENT_LIFE_DEFAULT);
            assert!(matches!(made, Err(CaError::Csr { .. })));
        }
    }

    #[test]
    fn a_server_certificate_names_the_controller_and_its_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), clock::unix_us()).unwrap();
        let made = authority
            .server_certificate(&["10.0.0.1".into(), "hearth.example".into()], clock::unix_us())
            .unwrap();
        assert_eq!(made.chain.len(), 2);
        assert_eq!(CaFingerprint::of(&made.chain[1]), authority.fingerprint());
        assert_eq!(agent_of(&made.chain[0]), None, "the controller is not an agent");
    }
}
