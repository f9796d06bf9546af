//! How others speak to a campaign.
//!
//! **What.** [`Event`] is all that can happen to one; a [`Handle`] delivers it, and knows what must be known without asking.
//! **Why the queue of events has no bound.** Each comes from a task that waits for its answer or ends with it; those are
//! bounded, and an event that were dropped would lose a slot for good.
//! **Invariants.** What is told to a campaign that is over is lost, and nobody waits for its answer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hearth_protocol::digest::AgentId;
use hearth_protocol::message::swarm::{Campaign as CampaignId, JoinCampaignV1, PieceLeasesV1, PiecesHereV1};
use hearth_protocol::piece::Pieces;
use tokio::sync::{mpsc, oneshot};

use super::parts::{PartEnd, PartGuard, Taking};
use super::request::{Go, Outcome};
use super::upload::Verdict;

/// What happens to a campaign.
#[derive(Debug)]
pub(super) enum Event {
    /// The controller asks for the state, maybe as another campaign.
    Joined(Box<JoinCampaignV1>),
    Leases(PieceLeasesV1),
    /// The controller ended it, for this reason.
    Ended(String),
    /// The session came up or went down.
    Session(bool),
    /// A fetch hands its file over.
    Part(u64, Taking, oneshot::Sender<PartEnd>),
    /// A fetch ended.
    PartOver {
        number: u64,
        is_active: bool,
    },
    /// The finished content was looked at.
    Here(Option<Arc<Pieces>>),
    /// The finished content was evicted or removed.
    Gone,
    /// A holder is ready.
    Offered {
        piece: u32,
        from: u32,
        has_all: bool,
        answer: oneshot::Sender<Go>,
    },
    RequestEnded(Box<Outcome>),
    /// What a neighbour has; `None`: it does not answer.
    Having {
        from: u32,
        done: Option<Vec<u8>>,
    },
    /// Another agent asks for a piece.
    Asked {
        asker: AgentId,
        piece: u32,
        verdict: oneshot::Sender<Verdict>,
    },
    UploadEnded {
        ticket: Ticket,
        bytes: u64,
    },
    /// Another agent asks what is here.
    HavingAsked(oneshot::Sender<PiecesHereV1>),
}

/// One request of another agent.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Ticket {
    pub(super) asker: AgentId,
    /// In the order of the requests.
    pub(super) number: u64,
}

#[derive(Debug)]
struct Known {
    campaign: CampaignId,
    grant_key: [u8; 32],
}

/// How others speak to a campaign.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    events: mpsc::UnboundedSender<Event>,
    known: Arc<Mutex<Known>>,
    is_over: Arc<AtomicBool>,
    /// Parts that were handed over.
    parts: Arc<AtomicU64>,
}

impl Handle {
    /// A way to speak to the campaign that `join` names, and what is said.
    pub(super) fn new(join: &JoinCampaignV1) -> (Self, mpsc::UnboundedReceiver<Event>) {
        #[expect(clippy::disallowed_methods, reason = "see the module: its senders are bounded")]
        let (events, heard) = mpsc::unbounded_channel();
        let known = Known { campaign: join.campaign, grant_key: join.grant_key };
        let handle = Self {
            events,
            known: Arc::new(Mutex::new(known)),
            is_over: Arc::default(),
            parts: Arc::default(),
        };
        (handle, heard)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It goes on as this campaign.
    pub(super) fn is_now(&self, join: &JoinCampaignV1) {
        *self.known() = Known { campaign: join.campaign, grant_key: join.grant_key };
    }

    /// It is over.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub(super) fn tell(&self, event: Event) {
        // Fails only if the campaign is over.
        drop(self.events.send(event));
    }

    pub(super) fn events(&self) -> mpsc::UnboundedSender<Event> {
        self.events.clone()
    }

    pub(super) fn campaign(&self) -> CampaignId {
        self.known().campaign
    }

    pub(super) fn grant_key(&self) -> [u8; 32] {
        self.known().grant_key
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Which pieces are here; `None` if that is not known.
    pub(super) async fn having(&self) -> Option<PiecesHereV1> {
        let (answer, says) = oneshot::channel();
        self.tell(Event::HavingAsked(answer));
        says.await.ok()
    }

    /// Hands a file over. The receiver says how the part ended, or nothing if the campaign is over already.
    pub(crate) fn take_part(&self, taking: Taking) -> (oneshot::Receiver<PartEnd>, PartGuard) {
        let number = self.parts.fetch_add(1, Ordering::Relaxed) + 1;
        let (end, ended) = oneshot::channel();
        self.tell(Event::Part(number, taking, end));
        (ended, PartGuard { number, campaign: self.clone(), is_active: false })
    }
}
