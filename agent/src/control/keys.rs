//! What opens the encrypted images on this host: asked for in each session, kept in memory, given out against leases.
//!
//! **What.** [`KeyRing`] holds passphrases; [`Asking`] is the session's side, which asks for those of all files in the cache.
//!
//! **Why asked for as soon as a file is there.** A machine must start while the controller is away. Only an agent that was
//! started anew meanwhile has to wait for its controller.
//!
//! **Invariants.** A passphrase is in memory and nowhere else. One whose content left the cache, or that the controller takes
//! back, is forgotten; that a content is plain takes none back. At most [`ASKS_AT_ONCE`] questions are put at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::message::control::{KeyAnswer, KeyGivenV1};
use hearth_protocol::passphrase::Passphrase;
use hearth_protocol::version::VERSION_KEYS;
use tokio::sync::watch;

/// Questions put together; the controller answers sixteen a second.
const ASKS_AT_ONCE: usize = 8;
/// Time until a question that was refused, or not answered, is put again.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// What is known of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Known {
    /// This opens it.
    Opens(Passphrase),
    /// It is not encrypted.
    Plain,
    /// The controller does not say.
    Refused(String),
}

/// Passphrases by content; see the module.
#[derive(Debug, Default)]
pub struct KeyRing {
    known: Mutex<BTreeMap<ContentId, Known>>,
    changed: watch::Sender<()>,
}

impl KeyRing {
    fn table(&self) -> MutexGuard<'_, BTreeMap<ContentId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a content.
    #[must_use]
    pub fn of(&self, content: ContentId) -> Option<Known> {
        self.table().get(&content).cloned()
    }

    /// What is known of a content, as soon as that is what opens it or that nothing does; after `longest`, what is known then.
    pub async fn wait(&self, content: ContentId, longest: Duration) -> Option<Known> {
        let mut changes = self.changed.subscribe();
        let settled = async {
            while !matches!(self.of(content), Some(Known::Opens(_) | Known::Plain)) {
                // The sender that we hold keeps the channel open.
                drop(changes.changed().await);
            }
        };
        drop(tokio::time::timeout(longest, settled).await);
        self.of(content)
    }

    /// Takes an answer. One about a content that is not here is forgotten.
    pub(super) fn answered(&self, given: KeyGivenV1) {
        let known = match given.key {
            KeyAnswer::Given(passphrase) => Known::Opens(passphrase),
            // Its image was deleted, and nobody there remembers it. Machines run on it.
            KeyAnswer::Plain if matches!(self.of(given.content), Some(Known::Opens(_))) => return,
            KeyAnswer::Plain => Known::Plain,
            // It asks to be asked later: what is held stays.
            KeyAnswer::Refused { fault: FaultCode::Busy | FaultCode::Internal, text } => {
                self.table().entry(given.content).or_insert(Known::Refused(text));
                return;
            }
            KeyAnswer::Refused { text, .. } => Known::Refused(text),
        };
        self.table().insert(given.content, known);
        self.changed.send_replace(());
    }

    /// Forgets what is not here any more.
    fn keep_only(&self, here: &BTreeSet<ContentId>) {
        self.table().retain(|content, _| here.contains(content));
    }
}

/// The questions of one session.
#[derive(Debug)]
pub(super) struct Asking {
    version: u16,
    asked: BTreeMap<ContentId, Instant>,
    settled: BTreeSet<ContentId>,
}

impl Asking {
    /// None yet, with a controller that speaks `version`.
    pub(super) const fn new(version: u16) -> Self {
        Self { version, asked: BTreeMap::new(), settled: BTreeSet::new() }
    }

    /// The contents to ask for now; `here` are all files in the cache.
    pub(super) fn due(&mut self, ring: &KeyRing, here: &BTreeSet<ContentId>, now: Instant) -> Vec<ContentId> {
        ring.keep_only(here);
        self.asked.retain(|content, _| here.contains(content));
        self.settled.retain(|content| here.contains(content));
        if self.version < VERSION_KEYS {
            return Vec::new();
        }
        let waits = |content: &ContentId| {
            self.asked.get(content).is_some_and(|at| now.duration_since(*at) < ASK_AGAIN)
        };
        let open = here.iter().filter(|content| !self.settled.contains(content) && !waits(content));
        let due: Vec<ContentId> = open.take(ASKS_AT_ONCE).copied().collect();
        self.asked.extend(due.iter().map(|content| (*content, now)));
        due
    }

    /// Takes an answer; one that is final is not asked for again in this session.
    pub(super) fn answered(&mut self, ring: &KeyRing, given: KeyGivenV1) {
        if !self.asked.contains_key(&given.content) {
            tracing::debug!(content = %given.content, "a key that nobody asked for");
            return;
        }
        if !matches!(given.key, KeyAnswer::Refused { .. }) {
            self.settled.insert(given.content);
        }
        ring.answered(given);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn content(n: u8) -> ContentId {
        ContentId::from_bytes([n; 32])
    }

    fn given(n: u8) -> KeyGivenV1 {
        KeyGivenV1 { content: content(n), key: KeyAnswer::Given(Passphrase::new("p".to_owned())) }
    }

    fn refused(n: u8, fault: FaultCode) -> KeyGivenV1 {
        KeyGivenV1 { content: content(n), key: KeyAnswer::Refused { fault, text: "no".to_owned() } }
    }

    /// IN-9: what left the cache, or was taken back, opens nothing here any more.
    #[test]
    fn a_passphrase_goes_with_its_content_and_with_the_right_to_it() {
        let (ring, mut asking, now) = (KeyRing::default(), Asking::new(VERSION_KEYS), clock::monotonic());
        let mut here = BTreeSet::from([content(1), content(2)]);
        assert_eq!(asking.due(&ring, &here, now), [content(1), content(2)]);
        asking.answered(&ring, given(1));
        asking.answered(&ring, given(2));
        asking.answered(&ring, given(9));
        assert_eq!(ring.of(content(9)), None, "nobody asked for it");
        here.remove(&content(1));
        assert!(asking.due(&ring, &here, now).is_empty());
        assert_eq!(ring.of(content(1)), None);
        let mut next_session = Asking::new(VERSION_KEYS);
        assert_eq!(next_session.due(&ring, &here, now), [content(2)], "asked again in each session");
        next_session.answered(&ring, refused(2, FaultCode::Busy));
        assert!(matches!(ring.of(content(2)), Some(Known::Opens(_))), "not now is not never");
        let plain = KeyGivenV1 { content: content(2), key: KeyAnswer::Plain };
        next_session.answered(&ring, plain);
        assert!(matches!(ring.of(content(2)), Some(Known::Opens(_))), "its image was deleted, not decrypted");
        next_session.answered(&ring, refused(2, FaultCode::NotPlaced));
        assert_eq!(ring.of(content(2)), Some(Known::Refused("no".to_owned())));
    }

    #[test]
    fn questions_are_few_at_a_time_and_put_again_when_they_were_refused() {
        let (ring, mut asking, now) = (KeyRing::default(), Asking::new(VERSION_KEYS), clock::monotonic());
        let here: BTreeSet<ContentId> = (0..20).map(content).collect();
        let first = asking.due(&ring, &here, now);
        assert_eq!(first.len(), ASKS_AT_ONCE);
        assert!(asking.due(&ring, &here, now).iter().all(|content| !first.contains(content)));
        assert_eq!(asking.due(&ring, &here, now).len(), 4);
        asking.answered(&ring, given(0));
        asking.answered(&ring, refused(1, FaultCode::NotPlaced));
        assert!(asking.due(&ring, &here, now).is_empty());
        let again = asking.due(&ring, &here, now + ASK_AGAIN);
        assert!(again.contains(&content(1)) && !again.contains(&content(0)), "{again:?}");
        assert!(Asking::new(VERSION_KEYS - 1).due(&ring, &here, now).is_empty(), "an older controller");
    }

    #[tokio::test]
    async fn who_waits_gets_what_comes() {
        let ring = std::sync::Arc::new(KeyRing::default());
        let other = std::sync::Arc::clone(&ring);
        let waiting =
            crate::task::spawn("test", async move { other.wait(content(1), Duration::from_secs(60)).await });
        tokio::task::yield_now().await;
        ring.answered(given(1));
        assert!(matches!(waiting.await.unwrap(), Some(Known::Opens(_))));
        assert_eq!(ring.wait(content(2), Duration::ZERO).await, None);
    }
}
