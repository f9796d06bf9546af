//! What opens an encrypted image.
//!
//! **What.** A text that QEMU takes as the secret of a LUKS qcow2 file; it belongs to one image, so whoever has it can open
//! that image and no other.
//! **Why a type of its own.** Messages and answers are written to logs as they are; this one shows nothing of itself.
//! **Invariants.** `Debug` does not show it, and it leaves memory when dropped.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

/// See the module.
#[derive(Clone, Encode, Decode, Eq, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Passphrase(String);

impl Passphrase {
    /// Takes a text over.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for QEMU.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase(hidden)")
    }
}

impl Drop for Passphrase {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IN-9: a passphrase in a message does not get into a log.
    #[test]
    fn nothing_of_it_is_shown() {
        let shown = format!("{:?}", Some(Passphrase::new("correct horse".to_owned())));
        assert_eq!(shown, "Some(Passphrase(hidden))");
    }
}
