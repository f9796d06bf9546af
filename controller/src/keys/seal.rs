//! Sealing: a key as it lies in the database.
//!
//! **What.** AES-256-GCM under the master key, with a random nonce before the text, all in hex. What the key is of (its id and
//! project) is authenticated beside it.
//!
//! **Why that is bound.** Whoever can write the database could otherwise give a project the key of another one.
//!
//! **Invariants.** One flipped bit, a byte less or more, another master key, id or project: it does not open.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use hearth_protocol::id::{KeyId, ProjectId};
use zeroize::Zeroizing;

use super::KeyError;
use super::master::Master;

/// Bytes of a key, and of a master key.
pub const KEY_BYTES: usize = 32;
/// What is authenticated begins with this; another form of sealing gets another word.
const FORM: &[u8] = b"hearth key 1";

/// A sealed key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sealed {
    /// Nonce, key and tag, in hex.
    pub text: String,
    /// Fingerprint of the master key.
    pub master: String,
}

fn bound(id: KeyId, project: ProjectId) -> Aad<Vec<u8>> {
    Aad::from([FORM, id.as_bytes(), project.as_bytes()].concat())
}

fn cipher(master: &Master) -> Result<RandomizedNonceKey, KeyError> {
    RandomizedNonceKey::new(&AES_256_GCM, master.bytes()).map_err(|_| KeyError::Seal)
}

/// Seals a key.
pub(super) fn seal(
    master: &Master,
    id: KeyId,
    project: ProjectId,
    key: &[u8; KEY_BYTES],
) -> Result<Sealed, KeyError> {
    // Encrypted in place: what held the key holds only what may be seen.
    let mut text = key.to_vec();
    let nonce = cipher(master)?
        .seal_in_place_append_tag(bound(id, project), &mut text)
        .map_err(|_| KeyError::Seal)?;
    let all = nonce.as_ref().iter().chain(&text);
    let text = all.map(|byte| format!("{byte:02x}")).collect();
    Ok(Sealed { text, master: master.fingerprint().to_owned() })
}

/// Opens what [`seal`] made.
pub(super) fn open(
    master: &Master,
    id: KeyId,
    project: ProjectId,
    sealed: &Sealed,
) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyError> {
    let bytes = from_hex(sealed.text.as_bytes()).ok_or(KeyError::Damaged)?;
    let (nonce, text) = bytes.split_first_chunk::<NONCE_LEN>().ok_or(KeyError::Damaged)?;
    let mut text = Zeroizing::new(text.to_vec());
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let opened = cipher(master)?.open_in_place(nonce, bound(id, project), &mut text);
    let opened: &[u8] = opened.map_err(|_| KeyError::Damaged)?;
    opened.try_into().map(Zeroizing::new).map_err(|_| KeyError::Damaged)
}

/// The bytes of hex digits in lower or upper case; `None`: something else is among them.
pub(super) fn from_hex(digits: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let value = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let pairs = digits.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(digits.len() / 2));
    for pair in pairs {
        bytes.push(value(pair[0])? << 4 | value(pair[1])?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: KeyId = KeyId::from_bytes([1; 16]);
    const PROJECT: ProjectId = ProjectId::from_bytes([2; 16]);
    const KEY: [u8; KEY_BYTES] = [7; KEY_BYTES];

    fn sealed() -> (Master, Sealed) {
        let master = Master::from_bytes([9; KEY_BYTES]);
        let sealed = seal(&master, ID, PROJECT, &KEY).unwrap();
        (master, sealed)
    }

    #[test]
    fn what_was_sealed_opens_and_does_not_show_the_key() {
        let (master, sealed) = sealed();
        assert_eq!(*open(&master, ID, PROJECT, &sealed).unwrap(), KEY);
        assert_eq!(sealed.text.len(), 2 * (NONCE_LEN + KEY_BYTES + 16));
        assert!(!sealed.text.contains("0707"), "{sealed:?}");
        assert_ne!(seal(&master, ID, PROJECT, &KEY).unwrap(), sealed, "a nonce is used once");
    }

    /// IN-9: a stored key that was tampered with, cut or moved to another key or project does not open.
    #[test]
    fn whatever_was_changed_does_not_open() {
        let (master, sealed) = sealed();
        let refused =
            |sealed: &Sealed| assert_eq!(open(&master, ID, PROJECT, sealed), Err(KeyError::Damaged));
        for at in 0..sealed.text.len() {
            let mut digits = sealed.text.clone().into_bytes();
            digits[at] = if digits[at] == b'0' { b'1' } else { b'0' };
            refused(&Sealed { text: String::from_utf8(digits).unwrap(), ..sealed.clone() });
        }
        for len in 0..sealed.text.len() {
            refused(&Sealed { text: sealed.text.chars().take(len).collect(), ..sealed.clone() });
        }
        refused(&Sealed { text: format!("{}00", sealed.text), ..sealed.clone() });
        refused(&Sealed { text: "é".repeat(60), ..sealed.clone() });
        let other = Master::from_bytes([8; KEY_BYTES]);
        assert_eq!(open(&other, ID, PROJECT, &sealed), Err(KeyError::Damaged));
        assert!(open(&master, KeyId::from_bytes([3; 16]), PROJECT, &sealed).is_err());
        assert!(open(&master, ID, ProjectId::from_bytes([3; 16]), &sealed).is_err());
    }
}
