//! Keys that encrypt images: made here, sealed at rest, never shown.
//!
//! **What.** [`KeyStore`] makes a key, seals it under the [`master`] key for the database ([`seal`]), and derives from it what
//! opens one image.
//!
//! **Why a passphrase per image.** A host gets what opens the image that it runs. Were that the key itself, the host could open
//! every other image of the same key.
//!
//! **Why two master keys.** While a master key is changed, some keys are sealed by the old one and some by the new: with both at
//! hand every image opens at every moment, and a change that broke off is simply made again.
//!
//! **Invariants.** A key leaves this module sealed or as the passphrase of an image, in no other form. What was made for one key
//! and project opens as no other. The master keys are in no file that this program writes.

use std::fmt;

use hearth_protocol::id::{ImageId, KeyId, ProjectId};
use hearth_protocol::passphrase::Passphrase;
use zeroize::Zeroizing;

pub mod master;
pub mod seal;

use master::{Master, MasterError, MasterPaths};
use seal::{KEY_BYTES, Sealed};

/// Domain of the derivation; a change would make every encrypted image unreadable.
const PASSPHRASE_OF_IMAGE: &str = "hearth 2026-11-27 luks passphrase of an image";

/// Why a key cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    /// Nothing can be sealed or opened.
    #[error("this controller has no master key, so images cannot be encrypted here")]
    NoMaster,
    /// The master key that seals it is not here.
    #[error("the key is sealed by master key {master}, which this controller does not have")]
    OtherMaster {
        /// Its fingerprint.
        master: String,
    },
    /// What is stored is not what was sealed.
    #[error("the stored key is damaged, or is another one's: restore the database from a backup")]
    Damaged,
    /// The cryptography library refused.
    #[error("the key could not be sealed")]
    Seal,
}

impl KeyError {
    /// Whether no other start of the controller, with whatever master keys, can use the key.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Damaged)
    }

    /// What to do about it.
    #[must_use]
    pub const fn cure(&self) -> Option<&'static str> {
        match self {
            Self::NoMaster => Some(
                "an administrator sets one up: 32 random bytes as credential hearth-master-key of the unit, or in a file with \
                 mode 0600 that master_key in controller.toml names (openssl rand -hex 32); then restart the controller",
            ),
            Self::OtherMaster { .. } => Some(
                "an administrator gives it back as credential hearth-master-key, or as hearth-master-key-old beside a new one",
            ),
            Self::Damaged | Self::Seal => None,
        }
    }
}

/// See the module. Without a master key it refuses everything.
#[derive(Debug, Default)]
pub struct KeyStore {
    current: Option<Master>,
    old: Option<Master>,
}

impl KeyStore {
    /// Reads the master keys, if there are any.
    ///
    /// # Errors
    /// [`MasterError`]: one is there and cannot be used.
    pub fn load(paths: &MasterPaths) -> Result<Self, MasterError> {
        let (current, old) = (Master::read(paths.current.as_ref())?, Master::read(paths.old.as_ref())?);
        Ok(Self { current, old })
    }

    /// With these master keys.
    #[must_use]
    pub const fn new(current: Option<Master>, old: Option<Master>) -> Self {
        Self { current, old }
    }

    /// Fingerprint of the master key that seals.
    ///
    /// # Errors
    /// [`KeyError::NoMaster`].
    pub fn fingerprint(&self) -> Result<&str, KeyError> {
        self.current.as_ref().map(Master::fingerprint).ok_or(KeyError::NoMaster)
    }

    /// Whether a key that this master key seals can be opened.
    #[must_use]
    pub fn knows(&self, master: &str) -> bool {
        self.masters().any(|known| known.fingerprint() == master)
    }

    /// Makes a key.
    ///
    /// # Errors
    /// [`KeyError::NoMaster`], [`KeyError::Seal`].
    pub fn make(&self, id: KeyId, project: ProjectId) -> Result<Sealed, KeyError> {
        let master = self.current.as_ref().ok_or(KeyError::NoMaster)?;
        let key: Zeroizing<[u8; KEY_BYTES]> = Zeroizing::new(rand::random());
        seal::seal(master, id, project, &key)
    }

    /// The key sealed by the current master key; `None` if it is already.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn seal_again(
        &self,
        id: KeyId,
        project: ProjectId,
        sealed: &Sealed,
    ) -> Result<Option<Sealed>, KeyError> {
        let master = self.current.as_ref().ok_or(KeyError::NoMaster)?;
        if sealed.master == master.fingerprint() {
            return Ok(None);
        }
        let key = self.open(id, project, sealed)?;
        seal::seal(master, id, project, &key).map(Some)
    }

    /// What opens `image`, which this key encrypts.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn passphrase(
        &self,
        id: KeyId,
        project: ProjectId,
        sealed: &Sealed,
        image: ImageId,
    ) -> Result<Passphrase, KeyError> {
        let key = self.open(id, project, sealed)?;
        let material = Zeroizing::new([&key[..], image.as_bytes()].concat());
        let derived = Zeroizing::new(blake3::derive_key(PASSPHRASE_OF_IMAGE, &material));
        Ok(Passphrase::new(blake3::Hash::from_bytes(*derived).to_hex().to_string()))
    }

    fn masters(&self) -> impl Iterator<Item = &Master> {
        self.current.iter().chain(&self.old)
    }

    fn open(
        &self,
        id: KeyId,
        project: ProjectId,
        sealed: &Sealed,
    ) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyError> {
        if self.current.is_none() {
            return Err(KeyError::NoMaster);
        }
        let master = self.masters().find(|master| master.fingerprint() == sealed.master);
        let other = || KeyError::OtherMaster { master: sealed.master.clone() };
        seal::open(master.ok_or_else(other)?, id, project, sealed)
    }
}

impl fmt::Display for KeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.current {
            Some(master) => write!(f, "master key {}", master.fingerprint()),
            None => f.write_str("no master key"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: KeyId = KeyId::from_bytes([1; 16]);
    const PROJECT: ProjectId = ProjectId::from_bytes([2; 16]);

    fn master(byte: u8) -> Option<Master> {
        Some(Master::from_bytes([byte; KEY_BYTES]))
    }

    /// IN-9: a change of the master key seals every key anew and changes none.
    #[test]
    fn another_master_key_takes_over_and_images_open_as_before() {
        let image = ImageId::from_bytes([3; 16]);
        let (before, both, after) = (
            KeyStore::new(master(1), None),
            KeyStore::new(master(2), master(1)),
            KeyStore::new(master(2), None),
        );
        let sealed = before.make(ID, PROJECT).unwrap();
        assert_eq!(before.seal_again(ID, PROJECT, &sealed).unwrap(), None);
        let passphrase = before.passphrase(ID, PROJECT, &sealed, image).unwrap();
        assert_eq!(both.passphrase(ID, PROJECT, &sealed, image).unwrap(), passphrase);
        let anew = both.seal_again(ID, PROJECT, &sealed).unwrap().unwrap();
        assert_eq!(after.passphrase(ID, PROJECT, &anew, image).unwrap(), passphrase);
        let refused = after.passphrase(ID, PROJECT, &sealed, image).unwrap_err();
        assert_eq!(refused, KeyError::OtherMaster { master: sealed.master.clone() });
        assert!(before.passphrase(ID, PROJECT, &anew, image).is_err());
    }

    /// IN-9: the host of one image cannot open another image of the same key.
    #[test]
    fn each_image_has_a_passphrase_of_its_own() {
        let keys = KeyStore::new(master(1), None);
        let sealed = keys.make(ID, PROJECT).unwrap();
        let of = |byte| keys.passphrase(ID, PROJECT, &sealed, ImageId::from_bytes([byte; 16])).unwrap();
        assert_ne!(of(1), of(2));
        assert_eq!(of(1), of(1));
        assert_eq!(of(1).reveal().len(), 64);
        assert_ne!(keys.make(ID, PROJECT).unwrap(), sealed, "another key each time");
    }

    #[test]
    fn without_a_master_key_everything_is_refused_with_the_cure() {
        let (none, one) = (KeyStore::default(), KeyStore::new(master(1), None));
        let sealed = one.make(ID, PROJECT).unwrap();
        let image = ImageId::from_bytes([3; 16]);
        let refusals =
            [none.make(ID, PROJECT).map(drop), none.passphrase(ID, PROJECT, &sealed, image).map(drop)];
        for refused in refusals {
            assert_eq!(refused, Err(KeyError::NoMaster));
        }
        assert!(KeyError::NoMaster.cure().unwrap().contains("hearth-master-key"));
    }
}
