//! Who this agent is: its key, its certificate, and where its controller stands.
//!
//! **What.** `identity/key.pem` is made on this host once and never leaves it; `identity/identity.json` holds what
//! enrolment and renewal bring and is replaced as one file.
//! **Why one JSON file.** Certificate, CA and location belong together; two files could disagree after a crash.
//! **Invariants.**
//! 1. `files_are_readable_by_their_owner_alone`.
//! 2. `a_certificate_for_another_key_or_from_another_ca_is_refused`.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use hearth_protocol::digest::{AgentId, CaFingerprint};
use hearth_protocol::id::LocationId;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

/// Largest file that is read as an identity: protects against a file that is not ours.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Most certificates of a chain.
const CHAIN_MAX: usize = 8;

/// What is wrong with an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no identity yet.
    #[error(
        "this agent is not enrolled: no {}; make a token with `hearth location token create` and run \
         `hearth-agent enrol --controller HOST:PORT --token hj1_...`",
        path.display()
    )]
    NotEnrolled {
        /// File that is missing.
        path: PathBuf,
    },
    /// A file is not what it should be.
    #[error("{} is damaged ({why}); enrol again with a new token", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A certificate chain is not for us.
    #[error("the controller sent a certificate that is not ours: {why}")]
    Chain {
        /// What is wrong.
        why: &'static str,
    },
    /// The cryptography library failed.
    #[error("cannot {what}: {source}")]
    Crypto {
        /// What was tried.
        what: &'static str,
        /// What it said.
        source: rcgen::Error,
    },
}

/// An agent's key.
#[derive(Debug)]
pub struct AgentKey {
    pair: KeyPair,
}

/// Certificate and place of an enrolled agent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Enrolment {
    /// The location that this agent serves.
    pub location: LocationId,
    /// `host:port` of controllers, as given at enrolment.
    pub controllers: Vec<String>,
    /// Certificates, leaf first, CA last.
    pub chain: Vec<CertificateDer<'static>>,
}

/// Dates of a certificate, Unix seconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Validity {
    /// Not valid before.
    pub not_before: i64,
    /// Not valid after.
    pub not_after: i64,
}

#[derive(Serialize, Deserialize)]
struct EnrolmentFile {
    location: LocationId,
    controllers: Vec<String>,
    /// Hex of the DER certificates.
    chain: Vec<String>,
}

fn file_error<'a>(what: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> IdentityError + 'a {
    move |source| IdentityError::File { what, path: path.to_owned(), source }
}

fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("identity")
}

impl AgentKey {
    /// Reads the key below `data_dir`, or makes one.
    ///
    /// # Errors
    /// [`IdentityError`] if it can be neither read nor written.
    pub fn load_or_create(data_dir: &Path) -> Result<Self, IdentityError> {
        let path = folder(data_dir).join("key.pem");
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let crypto = |source| IdentityError::Crypto { what: "make a key", source };
                let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
                write_private(&path, pair.serialize_pem().as_bytes())?;
                Ok(Self { pair })
            }
            Err(error) => Err(file_error("read", &path)(error)),
        }
    }

    /// Reads the key below `data_dir`.
    ///
    /// # Errors
    /// [`IdentityError::NotEnrolled`] if there is none.
    pub fn load(data_dir: &Path) -> Result<Self, IdentityError> {
        let path = folder(data_dir).join("key.pem");
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, &path),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(IdentityError::NotEnrolled { path })
            }
            Err(error) => Err(file_error("read", &path)(error)),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, IdentityError> {
        let damaged =
            |error: rcgen::Error| IdentityError::Damaged { path: path.to_owned(), why: error.to_string() };
        KeyPair::from_pem(text).map(|pair| Self { pair }).map_err(damaged)
    }

    /// Identity of the agent: BLAKE3 of its public key.
    #[must_use]
    pub fn agent_id(&self) -> AgentId {
        AgentId::of(&self.pair.subject_public_key_info())
    }

    /// A certificate request signed by the key. The controller writes the names.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`].
    pub fn request(&self) -> Result<Vec<u8>, IdentityError> {
        let crypto = |source| IdentityError::Crypto { what: "sign a certificate request", source };
        let request = CertificateParams::default().serialize_request(&self.pair).map_err(crypto)?;
        Ok(request.der().to_vec())
    }

    /// The private key, for the TLS library.
    #[must_use]
    pub fn private_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pair.serialize_der()))
    }

    /// Checks that `chain` (DER, leaf first, CA last) is for this key and ends in the CA `ca`.
    ///
    /// # Errors
    /// [`IdentityError::Chain`].
    pub fn check_chain(
        &self,
        chain: &[Vec<u8>],
        ca: CaFingerprint,
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let wrong = |why| IdentityError::Chain { why };
        let (leaf, last) = match chain {
            [leaf, .., last] if chain.len() <= CHAIN_MAX => (leaf, last),
            _ => return Err(wrong("a chain has a leaf and a CA, at most 8 certificates")),
        };
        if CaFingerprint::of(last) != ca {
            return Err(wrong("it is signed by another CA than the one we know"));
        }
        let (_, certificate) =
            x509_parser::parse_x509_certificate(leaf).map_err(|_| wrong("the leaf is not X.509"))?;
        if certificate.public_key().raw != self.pair.subject_public_key_info() {
            return Err(wrong("it is for another key"));
        }
        Ok(chain.iter().cloned().map(CertificateDer::from).collect())
    }
}

impl Enrolment {
    /// Reads what enrolment wrote below `data_dir`.
    ///
    /// # Errors
    /// [`IdentityError::NotEnrolled`] or [`IdentityError::Damaged`].
    pub fn load(data_dir: &Path) -> Result<Self, IdentityError> {
        let path = folder(data_dir).join("identity.json");
        let damaged = |why: String| IdentityError::Damaged { path: path.clone(), why };
        let size = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(IdentityError::NotEnrolled { path });
            }
            Err(error) => return Err(file_error("read", &path)(error)),
        };
        if size > FILE_BYTES_MAX {
            return Err(damaged(format!("{size} B is too long")));
        }
        let text = fs::read(&path).map_err(file_error("read", &path))?;
        let file: EnrolmentFile =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        let chain: Option<Vec<_>> =
            file.chain.iter().map(|hex| from_hex(hex).map(CertificateDer::from)).collect();
        let chain =
            chain.filter(|chain| chain.len() >= 2).ok_or_else(|| damaged("no certificates".into()))?;
        Ok(Self { location: file.location, controllers: file.controllers, chain })
    }

    /// Writes it below `data_dir`, durably and as one file.
    ///
    /// # Errors
    /// [`IdentityError::File`].
    pub fn save(&self, data_dir: &Path) -> Result<(), IdentityError> {
        let file = EnrolmentFile {
            location: self.location,
            controllers: self.controllers.clone(),
            chain: self.chain.iter().map(|certificate| to_hex(certificate)).collect(),
        };
        let text = serde_json::to_vec_pretty(&file).expect("strings and ids always serialize");
        write_private(&folder(data_dir).join("identity.json"), &text)
    }

    /// Fingerprint of the CA at the end of the chain.
    #[must_use]
    pub fn ca(&self) -> CaFingerprint {
        CaFingerprint::of(self.chain.last().map_or(&[], |certificate| certificate.as_ref()))
    }

    /// Dates of the leaf; both 0 if it cannot be read, so that it counts as ended.
    #[must_use]
    pub fn validity(&self) -> Validity {
        let leaf = self.chain.first().and_then(|leaf| x509_parser::parse_x509_certificate(leaf).ok());
        leaf.map_or(Validity { not_before: 0, not_after: 0 }, |(_, leaf)| Validity {
            not_before: leaf.validity().not_before.timestamp(),
            not_after: leaf.validity().not_after.timestamp(),
        })
    }
}

/// Writes `bytes` to `path` with mode 0600: new file, fsync, rename, fsync of the folder.
///
/// # Errors
/// [`IdentityError::File`].
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(file_error("create folder", folder))?;
    let new = path.with_extension("new");
    if fs::remove_file(&new).is_ok() {
        tracing::debug!(path = %new.display(), "removed a half-written file that a crash left");
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(file_error("create", &new))?;
    file.write_all(bytes).map_err(file_error("write", &new))?;
    file.sync_all().map_err(file_error("sync", &new))?;
    fs::rename(&new, path).map_err(file_error("rename to", path))?;
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(file_error("sync folder", folder))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pair = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(pair[1])?);
    text.len().is_multiple_of(2).then(|| text.as_bytes().chunks_exact(2).map(pair).collect())?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rcgen::{BasicConstraints, CertificateSigningRequestParams, IsCa, Issuer};

    use super::*;

    /// A CA, and a chain that it signed for `key`.
    fn signed(key: &AgentKey) -> Vec<Vec<u8>> {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let request = key.request().unwrap();
        let request = CertificateSigningRequestParams::from_der(&request.into()).unwrap();
        vec![request.signed_by(&issuer).unwrap().der().to_vec(), ca.der().to_vec()]
    }

    #[test]
    fn files_are_readable_by_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let key = AgentKey::load_or_create(dir.path()).unwrap();
        assert_eq!(AgentKey::load_or_create(dir.path()).unwrap().agent_id(), key.agent_id());
        let chain = signed(&key).into_iter().map(CertificateDer::from).collect();
        let location = LocationId::from_bytes([7; 16]);
        let enrolment = Enrolment { location, controllers: vec!["a:1".into()], chain };
        enrolment.save(dir.path()).unwrap();
        assert_eq!(Enrolment::load(dir.path()).unwrap(), enrolment);
        for name in ["key.pem", "identity.json"] {
            let mode = fs::metadata(dir.path().join("identity").join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(fs::metadata(dir.path().join("identity")).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_certificate_for_another_key_or_from_another_ca_is_refused() {
        let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = AgentKey::load_or_create(dir.path()).unwrap();
        let other = AgentKey::load_or_create(other_dir.path()).unwrap();
        let chain = signed(&key);
        let ca = CaFingerprint::of(&chain[1]);
        assert_eq!(key.check_chain(&chain, ca).unwrap().len(), 2);
        assert!(other.check_chain(&chain, ca).is_err());
        assert!(key.check_chain(&chain, CaFingerprint::of(b"another")).is_err());
        assert!(key.check_chain(&chain[..1], ca).is_err());
        assert!(key.check_chain(&[], ca).is_err());
        assert!(key.check_chain(&[vec![1, 2, 3], chain[1].clone()], ca).is_err());
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Enrolment::load(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::NotEnrolled { .. }), "{error}");
        write_private(&folder(dir.path()).join("identity.json"), b"{").unwrap();
        write_private(&folder(dir.path()).join("key.pem"), b"no key").unwrap();
        assert!(matches!(Enrolment::load(dir.path()), Err(IdentityError::Damaged { .. })));
        assert!(matches!(AgentKey::load(dir.path()), Err(IdentityError::Damaged { .. })));
        assert_eq!(from_hex("00ff7f"), Some(vec![0, 255, 127]));
        assert_eq!((from_hex("0"), from_hex("0g"), from_hex("é")), (None, None, None));
    }
}
