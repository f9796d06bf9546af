//! Holds: what the controller and local operators forbid to evict.
//!
//! **What.** One small file, `HOLDS`, with every hold, replaced whole at each change; a checksum tells a good one.
//! **Why a file of its own.** Holds must survive a restart without a controller, and the index may be lost. If this file is
//! damaged, everything in the cache is held for a day: by then the controller has said what it wants.
//! **Invariants.** A hold is durable when the call returns.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use hearth_protocol::digest::ContentId;
use hearth_protocol::message::control::Hold;
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use super::journal::checksum;
use super::layout::write_durably;
use super::locked;
use super::state::{State, Store};
use crate::logic::evict::HeldBy;

const FILE: &str = "HOLDS";
/// How long everything is held if the holds were lost.
pub(super) const LOST_HOLD_MS: u64 = 24 * 3600 * 1000;

/// What keeps one content.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(super) struct Held {
    /// The controller's word.
    pub(super) hold: Hold,
    /// An operator of this host pinned it.
    pub(super) local_pin: bool,
}

impl Default for Held {
    fn default() -> Self {
        Self { hold: Hold::Released, local_pin: false }
    }
}

impl Held {
    pub(super) fn held_by(&self, now_unix_ms: u64) -> Option<HeldBy> {
        match self.hold {
            _ if self.local_pin => Some(HeldBy::Pin),
            Hold::Pinned => Some(HeldBy::Pin),
            Hold::Until(unix_ms) if unix_ms > now_unix_ms => Some(HeldBy::Until(unix_ms)),
            Hold::Until(_) | Hold::Released => None,
        }
    }
}

impl Store {
    /// Sets the controller's hold on one content. Durable on return.
    ///
    /// # Errors
    /// [`StoreError::Io`]; then nothing is changed.
    pub fn set_hold(&self, content: ContentId, hold: Hold) -> Result<(), StoreError> {
        self.set_holds(&[(content, hold)])
    }

    /// Sets the controller's holds on several contents in one durable step.
    ///
    /// # Errors
    /// [`StoreError::Io`]; then nothing is changed.
    pub fn set_holds(&self, holds: &[(ContentId, Hold)]) -> Result<(), StoreError> {
        self.change_holds(|held| {
            for (content, hold) in holds {
                held.entry(*content).or_default().hold = *hold;
            }
        })
    }

    /// Pins or unpins a content for this host. Durable on return.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] if a content is pinned that is not here, or [`StoreError::Io`].
    pub fn set_local_pin(&self, content: ContentId, pinned: bool) -> Result<(), StoreError> {
        if pinned {
            locked(&self.inner.state).entry(content)?;
        }
        self.change_holds(|held| held.entry(content).or_default().local_pin = pinned)
    }

    /// Under the lock while it writes, so that two changes cannot overwrite each other on disk.
    fn change_holds(&self, change: impl FnOnce(&mut BTreeMap<ContentId, Held>)) -> Result<(), StoreError> {
        let mut state = locked(&self.inner.state);
        let mut holds = state.holds.clone();
        change(&mut holds);
        holds.retain(|_, held| *held != Held::default());
        if holds == state.holds {
            return Ok(());
        }
        write(&self.inner.config.dir, &holds)?;
        state.holds = holds;
        drop(state);
        self.bump();
        Ok(())
    }
}

fn write(dir: &Path, holds: &BTreeMap<ContentId, Held>) -> Result<(), StoreError> {
    let mut text = String::new();
    for (content, held) in holds {
        let held = serde_json::to_string(held).expect("two plain fields always have a JSON form");
        text.push_str(&format!("{content} {held}\n"));
    }
    let sum = checksum(text.as_bytes());
    text.push_str(&sum);
    write_durably(&dir.join(FILE), text.as_bytes())
}

/// Reads the holds. `None` if the file is damaged; a missing file means no holds.
///
/// # Errors
/// [`StoreError::Io`] if it exists and cannot be read.
pub(super) fn read(dir: &Path) -> Result<Option<BTreeMap<ContentId, Held>>, StoreError> {
    let path = dir.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(BTreeMap::new())),
        Err(error) => return Err(StoreError::Io { what: "read", path, source: error }),
    };
    Ok(parse(&bytes))
}

fn parse(bytes: &[u8]) -> Option<BTreeMap<ContentId, Held>> {
    let (text, sum) = bytes.split_at_checked(bytes.len().checked_sub(16)?)?;
    if checksum(text).as_bytes() != sum {
        return None;
    }
    let text = str::from_utf8(text).ok()?;
    let row = |line: &str| {
        let (content, held) = line.split_once(' ')?;
        Some((content.parse().ok()?, serde_json::from_str(held).ok()?))
    };
    text.lines().map(row).collect()
}

/// After the holds were lost: hold all there is for a day.
pub(super) fn hold_everything(state: &mut State, now_unix_ms: u64) {
    let until = Held { hold: Hold::Until(now_unix_ms.saturating_add(LOST_HOLD_MS)), local_pin: false };
    state.holds = state.entries.keys().map(|content| (*content, until)).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_byte_in_the_holds_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(BTreeMap::new()));
        let held = Held { hold: Hold::Until(7), local_pin: true };
        let holds = BTreeMap::from([(ContentId::of(b"a"), held), (ContentId::of(b"b"), Held::default())]);
        write(dir.path(), &holds).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(holds));
        let path = dir.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&path, &flipped).unwrap();
            assert_eq!(read(dir.path()).unwrap(), None, "flip at {at}");
        }
    }

    #[test]
    fn a_hold_ends_at_its_time_and_a_pin_does_not() {
        let until = Held { hold: Hold::Until(10), local_pin: false };
        assert_eq!(until.held_by(9), Some(HeldBy::Until(10)));
        assert_eq!(until.held_by(10), None);
        assert_eq!(Held { local_pin: true, ..until }.held_by(99), Some(HeldBy::Pin));
    }
}
