//! Asking the controller for an image that is not placed on this host.
//!
//! **What.** [`Asker::want`] hands a question to the session and waits for its answer; [`Questions`] is the session's side.
//! **Why through the session.** Everything that is said to the controller goes through its one loop, in order; and the plan
//! that follows a good answer comes over the same stream.
//!
//! **Invariants.** A question is answered once: by the controller, or by the end of the session. At most [`OPEN_MAX`] wait.

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::LocationId;
use hearth_protocol::message::control::{TEXT_BYTES_MAX, WantResult, WantV1, WantedV1};
use hearth_protocol::version::VERSION_WANTS;
use tokio::sync::{mpsc, oneshot, watch};

use super::session::{Link, LinkState};

/// Questions that wait for the session's loop; protects the agent from a script that asks in a loop.
const QUEUE: usize = 16;
/// Questions that wait for the controller at once.
const OPEN_MAX: usize = 64;
/// Longest wait for an answer: one transaction of the controller.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// Why nothing was placed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AskError {
    /// No session.
    #[error("it is not on this host, and no controller can be asked: {why}")]
    Away {
        /// Why.
        why: String,
    },
    /// The controller said no.
    #[error("it is not on this host, and the controller does not place it here: {text}")]
    Refused {
        /// Why.
        fault: FaultCode,
        /// For people.
        text: String,
    },
}

/// A question on its way.
#[derive(Debug)]
pub struct Ask {
    image: String,
    answer: oneshot::Sender<WantResult>,
}

/// Where questions come in.
#[derive(Debug)]
pub struct Asker {
    queue: mpsc::Sender<Ask>,
    link: watch::Receiver<Link>,
}

impl Asker {
    /// A way to ask, and the end that the session reads.
    #[must_use]
    pub fn new(link: watch::Receiver<Link>) -> (Self, mpsc::Receiver<Ask>) {
        let (queue, asks) = mpsc::channel(QUEUE);
        (Self { queue, link }, asks)
    }

    /// Has the image with this id or name placed here.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn want(&self, image: &str) -> Result<ContentId, AskError> {
        let away = |why: &str| AskError::Away { why: why.to_owned() };
        let Link { state, why } = self.link.borrow().clone();
        if state != LinkState::Up {
            return Err(away(if why.is_empty() { "not connected" } else { &why }));
        }
        if image.len() > TEXT_BYTES_MAX {
            let text = format!("a name has at most {TEXT_BYTES_MAX} bytes");
            return Err(AskError::Refused { fault: FaultCode::NotFound, text });
        }
        let (answer, answered) = oneshot::channel();
        let ask = Ask { image: image.to_owned(), answer };
        if self.queue.try_send(ask).is_err() {
            return Err(away("too many questions wait for it"));
        }
        match tokio::time::timeout(ANSWER_MAX, answered).await {
            Ok(Ok(WantResult::Placed { content })) => Ok(content),
            Ok(Ok(WantResult::Refused { fault, text })) => Err(AskError::Refused { fault, text }),
            Ok(Err(_)) => Err(away("the session ended before the answer")),
            Err(_) => Err(away("it did not answer in time")),
        }
    }
}

/// The questions of one session. Dropped with it, which answers them all.
#[derive(Debug)]
pub(super) struct Questions {
    version: u16,
    next: u64,
    open: BTreeMap<u64, oneshot::Sender<WantResult>>,
}

impl Questions {
    /// None yet, with a controller that speaks `version`.
    pub(super) const fn new(version: u16) -> Self {
        Self { version, next: 0, open: BTreeMap::new() }
    }

    /// The message that asks, unless it is answered here.
    pub(super) fn put(&mut self, location: LocationId, ask: Ask) -> Option<WantV1> {
        self.open.retain(|_, answer| !answer.is_closed());
        let refusal = if self.version < VERSION_WANTS {
            Some((FaultCode::Version, "it is older than this agent and takes no wishes: upgrade it"))
        } else if self.open.len() >= OPEN_MAX {
            Some((FaultCode::Busy, "too many questions wait for it"))
        } else {
            None
        };
        if let Some((fault, text)) = refusal {
            // Nobody waits any more: then nothing is lost.
            drop(ask.answer.send(WantResult::Refused { fault, text: text.to_owned() }));
            return None;
        }
        self.next += 1;
        self.open.insert(self.next, ask.answer);
        Some(WantV1 { location, number: self.next, image: ask.image })
    }

    /// Takes an answer. One that nobody waits for is forgotten.
    pub(super) fn answered(&mut self, wanted: WantedV1) {
        if let Some(answer) = self.open.remove(&wanted.number) {
            drop(answer.send(wanted.result));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: LocationId = LocationId::from_bytes([1; 16]);

    fn ask() -> (Ask, oneshot::Receiver<WantResult>) {
        let (answer, answered) = oneshot::channel();
        (Ask { image: "noble".into(), answer }, answered)
    }

    #[test]
    fn an_answer_finds_its_question() {
        let mut questions = Questions::new(VERSION_WANTS);
        let ((first, mut first_answer), (second, mut second_answer)) = (ask(), ask());
        let first = questions.put(HERE, first).unwrap();
        let second = questions.put(HERE, second).unwrap();
        assert_ne!(first.number, second.number);
        let placed = |byte| WantResult::Placed { content: ContentId::from_bytes([byte; 32]) };
        questions.answered(WantedV1 { number: second.number, result: placed(2) });
        questions.answered(WantedV1 { number: first.number, result: placed(1) });
        questions.answered(WantedV1 { number: 99, result: placed(9) });
        assert_eq!(first_answer.try_recv().unwrap(), placed(1));
        assert_eq!(second_answer.try_recv().unwrap(), placed(2));
    }

    #[test]
    fn an_older_controller_is_not_asked() {
        let mut questions = Questions::new(1);
        let (question, mut answer) = ask();
        assert_eq!(questions.put(HERE, question), None);
        assert!(matches!(answer.try_recv().unwrap(), WantResult::Refused { fault: FaultCode::Version, .. }));
    }

    #[test]
    fn questions_are_bounded_and_those_nobody_waits_for_make_room() {
        let mut questions = Questions::new(VERSION_WANTS);
        let mut waiting: Vec<_> = (0..OPEN_MAX)
            .map(|_| {
                let (question, answer) = ask();
                questions.put(HERE, question).unwrap();
                answer
            })
            .collect();
        let (question, mut answer) = ask();
        assert_eq!(questions.put(HERE, question), None);
        assert!(matches!(answer.try_recv().unwrap(), WantResult::Refused { fault: FaultCode::Busy, .. }));
        waiting.pop();
        assert!(questions.put(HERE, ask().0).is_some());
    }
}
