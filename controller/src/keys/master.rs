//! The master key: read once, at start, from a place that only the controller can read.
//!
//! **What.** A credential of the unit (systemd hands it over in memory), else a file that the configuration names; 32 bytes, or
//! their 64 hex digits.
//!
//! **Why a fingerprint.** Each sealed key says by which master key; so a change can be made step by step, and a controller that
//! got the wrong one says which one is missing.
//!
//! **Invariants.** A file that others may read is refused. The bytes are in no log and leave memory with the process's last use.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::seal::{KEY_BYTES, from_hex};

/// Name of the credential.
pub const CREDENTIAL: &str = "hearth-master-key";
/// Name of the credential that holds the master key before, while it is changed.
pub const CREDENTIAL_OLD: &str = "hearth-master-key-old";
/// Domain of the fingerprint.
const FINGERPRINT: &str = "hearth 2026-11-27 fingerprint of a master key";
/// Hex digits of a fingerprint that are kept: enough to tell a few keys apart.
const FINGERPRINT_DIGITS: usize = 16;
/// Largest file that is read: a wrong path must not be read into memory.
const FILE_BYTES_MAX: u64 = 1024;

/// Why a master key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    /// It cannot be read.
    #[error("cannot read the master key {path}")]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others may read it.
    #[error(
        "the master key {path} has mode {mode:04o}: others may read it; chmod 0600, and make a new one if they did"
    )]
    Mode {
        /// Where.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is no key.
    #[error(
        "the master key {path} must be {KEY_BYTES} bytes or 64 hex digits: openssl rand -hex 32 makes one"
    )]
    Form {
        /// Where.
        path: PathBuf,
    },
}

/// Where a master key is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// A credential of the unit. Its mode says nothing: the folder is this unit's alone.
    Credential(PathBuf),
    /// A file.
    File(PathBuf),
}

/// Where the master keys are, if there are any.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MasterPaths {
    /// The one that seals.
    pub current: Option<Place>,
    /// The one before.
    pub old: Option<Place>,
}

impl MasterPaths {
    /// The files that the configuration names, and before them the credentials in `folder`.
    #[must_use]
    pub fn of(folder: Option<&Path>, file: Option<PathBuf>, old_file: Option<PathBuf>) -> Self {
        let place = |name, file: Option<PathBuf>| {
            let given = folder.map(|folder| folder.join(name)).filter(|path| path.exists());
            given.map(Place::Credential).or_else(|| file.map(Place::File))
        };
        Self { current: place(CREDENTIAL, file), old: place(CREDENTIAL_OLD, old_file) }
    }
}

/// A master key.
pub struct Master {
    bytes: Zeroizing<[u8; KEY_BYTES]>,
    fingerprint: String,
}

impl std::fmt::Debug for Master {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Master").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl Master {
    /// Takes the bytes over.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        let bytes = Zeroizing::new(bytes);
        let hash = blake3::Hash::from_bytes(blake3::derive_key(FINGERPRINT, &*bytes));
        let fingerprint = hash.to_hex().chars().take(FINGERPRINT_DIGITS).collect();
        Self { bytes, fingerprint }
    }

    /// Reads it, if there is one.
    pub(super) fn read(place: Option<&Place>) -> Result<Option<Self>, MasterError> {
        let (path, is_file) = match place {
            None => return Ok(None),
            Some(Place::Credential(path)) => (path, false),
            Some(Place::File(path)) => (path, true),
        };
        let failed = |source| MasterError::Read { path: path.clone(), source };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
        if is_file && mode & 0o077 != 0 {
            return Err(MasterError::Mode { path: path.clone(), mode });
        }
        let mut text = Zeroizing::new(Vec::with_capacity(KEY_BYTES * 4));
        file.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(failed)?;
        let bytes = parse(&text).ok_or_else(|| MasterError::Form { path: path.clone() })?;
        Ok(Some(Self::from_bytes(*bytes)))
    }

    /// Tells it from others; says nothing about it.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub(super) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.bytes
    }
}

/// The key in a file: its bytes, or their hex digits with blanks around.
fn parse(text: &[u8]) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    if let Ok(bytes) = text.try_into() {
        return Some(Zeroizing::new(bytes));
    }
    let bytes = from_hex(text.trim_ascii())?;
    bytes.as_slice().try_into().ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path, text: &[u8], mode: u32) -> Place {
        let path = dir.join("key");
        drop(std::fs::remove_file(&path));
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        Place::File(path)
    }

    /// IN-9: the master key is bytes or hex digits, in a file of its own that nobody else reads.
    #[test]
    fn a_master_key_is_32_bytes_or_their_digits_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &[u8], mode| Master::read(Some(&file(dir.path(), text, mode)));
        let raw = read(&[0xab; 32], 0o600).unwrap().unwrap();
        let hex = read(format!("{}\n", "aB".repeat(32)).as_bytes(), 0o400).unwrap().unwrap();
        assert_eq!(raw.fingerprint(), hex.fingerprint());
        assert_ne!(raw.fingerprint(), Master::from_bytes([1; 32]).fingerprint());
        assert!(!format!("{raw:?}").contains("171"), "{raw:?}");
        for wrong in [&b""[..], &[1; 31], &[1; 33], "xy".repeat(32).as_bytes(), &[b'a'; 2000]] {
            assert!(matches!(read(wrong, 0o600), Err(MasterError::Form { .. })), "{wrong:?}");
        }
        assert!(matches!(read(&[1; 32], 0o640), Err(MasterError::Mode { mode: 0o640, .. })));
        let gone = Place::File(dir.path().join("gone"));
        assert!(matches!(Master::read(Some(&gone)), Err(MasterError::Read { .. })));
        assert!(Master::read(None).unwrap().is_none());
    }

    #[test]
    fn a_credential_goes_before_a_file_and_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let named = Some(PathBuf::from("/etc/hearth/master.key"));
        let paths = MasterPaths::of(Some(dir.path()), named.clone(), None);
        assert_eq!(paths.current, Some(Place::File("/etc/hearth/master.key".into())));
        let credential = dir.path().join(CREDENTIAL);
        std::fs::write(&credential, [1; 32]).unwrap();
        let paths = MasterPaths::of(Some(dir.path()), named, None);
        assert_eq!(paths, MasterPaths { current: Some(Place::Credential(credential)), old: None });
        assert_eq!(MasterPaths::of(None, None, None), MasterPaths::default());
    }
}
