//! What each request on the local socket does.
//!
//! **What.** Turns a request into calls of the store and the result into an answer.
//! **Why a context trait.** Image names and the state of the session are the daemon's; everything else is the store's.
//! **Invariants.** A wait ends by its time, by the content's fate, or when the asker hangs up (the future is dropped). A
//! lease that was made for a wait that failed is given back.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hearth_protocol::digest::ContentId;
use hearth_protocol::message::control::ObservedState;
use hearth_protocol::words::ConsumerKind;

use super::message::{Answer, Code, EntryRow, Refusal, Reply, Request, Status, WAIT_S_MAX};
use crate::clock;
use crate::control::ask::AskError;
use crate::store::{EntryView, LeaseGrant, RemoveMode, Scrubbed, Store, StoreError};

/// Fewest digits of a content id that are taken for one.
const PREFIX_DIGITS_MIN: usize = 8;

/// What the daemon knows and the store does not.
pub trait Context: Send + Sync + std::fmt::Debug {
    /// Contents that an image id or image name stands for.
    fn contents_of(&self, name: &str) -> Vec<ContentId>;
    /// Names of images with these bytes.
    fn images_of(&self, content: ContentId) -> Vec<String>;
    /// Asks the controller to place the image with this id or name here.
    fn want<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ContentId, AskError>>;
    /// How the agent stands with its controller, in a few words.
    fn controller(&self) -> String;
}

/// A context that knows nothing, for tests and for an agent that has not heard from its controller.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoContext;

impl Context for NoContext {
    fn contents_of(&self, _: &str) -> Vec<ContentId> {
        Vec::new()
    }

    fn images_of(&self, _: ContentId) -> Vec<String> {
        Vec::new()
    }

    fn want<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<ContentId, AskError>> {
        Box::pin(std::future::ready(Err(AskError::Away { why: self.controller() })))
    }

    fn controller(&self) -> String {
        "not connected".to_owned()
    }
}

/// Everything an answer needs.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    pub(super) store: Store,
    pub(super) context: Arc<dyn Context>,
}

type Answered = Result<Reply, Refusal>;

impl Answers {
    /// Answers one request. Cancel safe: when the future is dropped, what was done stays done.
    pub(super) async fn answer(&self, request: Request) -> Answer {
        let answered = match request {
            Request::Status { target } => self.status(target).await,
            Request::Path { target, wait_s } => self.path(&target, wait_s).await,
            Request::Lease { target, kind, consumer, wait_s } => {
                self.lease(&target, kind, consumer, wait_s).await
            }
            Request::Release { lease } => {
                let done = move |store: &Store| store.release(lease).map(|()| "released".to_owned());
                self.blocking(done).await.map(|text| Reply::Done { text })
            }
            Request::Leases {} => Ok(Reply::Leases { leases: self.store.leases() }),
            Request::Pin { target, pinned } => self.pin(&target, pinned).await,
            Request::Evict { target } => self.evict(&target).await,
            Request::Verify { target } => self.verify(&target).await,
        };
        match answered {
            Ok(reply) => Answer::Ok(reply),
            Err(refusal) => Answer::Error(refusal),
        }
    }

    /// Runs store code on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(result) => result.map_err(|error| refusal(&error)),
            Err(error) => Err(Refusal {
                code: Code::Failed,
                message: format!("the agent failed inside: {error}"),
                hint: "its log says more".to_owned(),
            }),
        }
    }

    /// The one content that a target names.
    fn resolve(&self, target: &str) -> Result<ContentId, Refusal> {
        if let Ok(content) = target.parse() {
            return Ok(content);
        }
        let mut found = self.context.contents_of(target);
        let digits = target.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if found.is_empty() && digits && target.len() >= PREFIX_DIGITS_MIN {
            let ids = self.store.entries().into_iter().map(|entry| entry.content);
            found = ids.filter(|content| content.to_string().starts_with(target)).collect();
        }
        found.sort_unstable();
        found.dedup();
        match found.as_slice() {
            [content] => Ok(*content),
            [] => Err(Refusal {
                code: Code::NotFound,
                message: format!("nothing here is called {target:?}"),
                hint: "give a content id, at least 8 of its digits, an image id or an image name; `hearth-agent status` lists them".to_owned(),
            }),
            several => Err(Refusal {
                code: Code::Usage,
                message: format!("{target:?} names {} contents", several.len()),
                hint: "give the content id".to_owned(),
            }),
        }
    }

    async fn status(&self, target: Option<String>) -> Answered {
        let only = target.map(|target| self.resolve(&target)).transpose()?;
        let stats = self.blocking(Store::stats).await?;
        let entries = match only {
            None => self.store.entries(),
            Some(content) => vec![self.entry(content)?],
        };
        let row = |view: EntryView| entry_row(view, |content| self.context.images_of(content));
        Ok(Reply::Status(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            controller: self.context.controller(),
            budget_bytes: stats.budget_bytes,
            used_bytes: stats.used_bytes,
            free_bytes: stats.free_bytes,
            floor_bytes: stats.floor_bytes,
            degraded: stats.degraded,
            entries: entries.into_iter().map(row).collect(),
        }))
    }

    fn entry(&self, content: ContentId) -> Result<EntryView, Refusal> {
        self.store.entry(content).ok_or_else(|| refusal(&StoreError::NotFound { content }))
    }

    /// The content that a target names. Who waits gets an image that is not here placed here: the controller is asked, and
    /// the plan that brings it is waited for. Returns what is left of the wait, too.
    async fn resolve_or_ask(&self, target: &str, wait_s: u64) -> Result<(ContentId, u64), Refusal> {
        let found = self.resolve(target);
        let content = match found {
            Ok(content) if wait_s == 0 || self.store.entry(content).is_some() => {
                return Ok((content, wait_s));
            }
            Err(refusal) if wait_s == 0 || refusal.code != Code::NotFound => return Err(refusal),
            // A plan names it already: its fetch begins when there is room for one.
            Ok(content) if !self.context.images_of(content).is_empty() => content,
            _ => self.context.want(target).await.map_err(|error| not_placed(target, &error))?,
        };
        let begun = clock::monotonic();
        let mut changes = self.store.changes();
        let arrives = async {
            while self.store.entry(content).is_none() {
                // The store that we hold keeps the sender alive, so this cannot fail.
                drop(changes.changed().await);
            }
        };
        let longest = Duration::from_secs(wait_s.clamp(1, WAIT_S_MAX));
        if tokio::time::timeout(longest, arrives).await.is_err() {
            return Err(Refusal {
                code: Code::NotActive,
                message: format!("{target:?} is placed on this host, but its fetch has not begun"),
                hint: "wait longer with --wait; `hearth cache list` says why it is queued".to_owned(),
            });
        }
        let waited_s = clock::monotonic().duration_since(begun).as_secs();
        Ok((content, wait_s.saturating_sub(waited_s).max(1)))
    }

    async fn path(&self, target: &str, wait_s: u64) -> Answered {
        let (content, wait_s) = self.resolve_or_ask(target, wait_s).await?;
        let path = self.wait_active(content, wait_s).await?;
        self.store.touch(content);
        Ok(Reply::Path { path })
    }

    /// Waits until a content is active, at most `wait_s` seconds.
    async fn wait_active(&self, content: ContentId, wait_s: u64) -> Result<std::path::PathBuf, Refusal> {
        let mut changes = self.store.changes();
        let wait = async {
            loop {
                changes.mark_unchanged();
                self.blocking(move |store| {
                    store.doubt(content);
                    Ok(())
                })
                .await?;
                let view = self.entry(content)?;
                if let Some(path) = view.path {
                    return Ok(path);
                }
                // The store that we hold keeps the sender alive, so this cannot fail.
                if wait_s == 0 || changes.changed().await.is_err() {
                    return Err(not_active(&view));
                }
            }
        };
        let longest = Duration::from_secs(wait_s.clamp(1, WAIT_S_MAX));
        match tokio::time::timeout(longest, wait).await {
            Ok(result) => result,
            Err(_) => Err(not_active(&self.entry(content)?)),
        }
    }

    async fn lease(&self, target: &str, kind: ConsumerKind, consumer: String, wait_s: u64) -> Answered {
        let (content, wait_s) = self.resolve_or_ask(target, wait_s).await?;
        let known = self.store.leases();
        let take = move |store: &Store| store.lease(content, kind, &consumer, wait_s > 0);
        let LeaseGrant { lease, path } = self.blocking(take).await?;
        if let Some(path) = path {
            return Ok(Reply::Lease { lease, path });
        }
        match self.wait_active(content, wait_s).await {
            Ok(path) => Ok(Reply::Lease { lease, path }),
            Err(refusal) => {
                if known.iter().all(|other| other.lease != lease.lease) {
                    self.blocking(move |store| store.release(lease.lease)).await?;
                }
                Err(refusal)
            }
        }
    }

    async fn pin(&self, target: &str, pinned: bool) -> Answered {
        let content = self.resolve(target)?;
        self.blocking(move |store| store.set_local_pin(content, pinned)).await?;
        let text = if pinned { "pinned on this host" } else { "no longer pinned on this host" };
        Ok(Reply::Done { text: text.to_owned() })
    }

    async fn evict(&self, target: &str) -> Answered {
        let content = self.resolve(target)?;
        self.blocking(move |store| store.remove(content, RemoveMode::Evict)).await?;
        Ok(Reply::Done { text: "evicted".to_owned() })
    }

    async fn verify(&self, target: &str) -> Answered {
        let content = self.resolve(target)?;
        match self.blocking(move |store| store.scrub_one(content)).await? {
            Scrubbed::Good => {
                Ok(Reply::Done { text: "every chunk was hashed from disk and is right".to_owned() })
            }
            Scrubbed::Quarantined => Err(Refusal {
                code: Code::NotActive,
                message: format!("content {content} was damaged and is no longer handed out"),
                hint: "it is fetched again if the controller or a pin holds it".to_owned(),
            }),
            Scrubbed::DamagedInUse => Err(Refusal {
                code: Code::InUse,
                message: format!("content {content} is damaged and still in use, so it stays in place"),
                hint: "stop its consumers and release their leases; then it is fetched again".to_owned(),
            }),
        }
    }
}

fn not_placed(target: &str, error: &AskError) -> Refusal {
    let hint = match error {
        AskError::Away { .. } => "try again when it is back, or name what `hearth-agent status` lists",
        AskError::Refused { .. } => {
            "an operator can place it: hearth cache create IMAGE --to HOST (or hosts_may_ask in controller.toml)"
        }
    };
    Refusal { code: Code::NotFound, message: format!("{target:?}: {error}"), hint: hint.to_owned() }
}

fn not_active(view: &EntryView) -> Refusal {
    let (status, reason) = state_words(&view.state);
    let reason = if reason.is_empty() { reason } else { format!(" ({reason})") };
    Refusal {
        code: Code::NotActive,
        message: format!(
            "content {} is {status}{reason}, {} of {} B are there",
            view.content, view.done_bytes, view.data_bytes
        ),
        hint: "wait for it with --wait, or look at `hearth-agent status`".to_owned(),
    }
}

/// Status word and reason of a state.
fn state_words(state: &ObservedState) -> (String, String) {
    match state {
        ObservedState::Present(status) => (status.to_string(), String::new()),
        ObservedState::Failed { fault, text, .. } => ("cache_fail".to_owned(), format!("{fault}: {text}")),
        ObservedState::Gone(reason) => ("gone".to_owned(), reason.to_string()),
    }
}

fn entry_row(view: EntryView, images: impl Fn(ContentId) -> Vec<String>) -> EntryRow {
    let (status, reason) = state_words(&view.state);
    EntryRow {
        content: view.content,
        images: images(view.content),
        kind: view.kind,
        status,
        reason,
        raw_bytes: view.raw_bytes,
        done_bytes: view.done_bytes,
        data_bytes: view.data_bytes,
        moved_bytes: view.moved_bytes,
        reused_bytes: view.reused_bytes,
        allocated_bytes: view.allocated_bytes,
        leases: view.leases,
        last_used_unix_ms: view.last_used_unix_ms,
        hold: view.hold,
        pinned: view.local_pin,
        path: view.path,
    }
}

/// A store error as people and scripts see it.
fn refusal(error: &StoreError) -> Refusal {
    let (code, hint) = match error {
        StoreError::NotFound { .. } => (Code::NotFound, "ask the controller to place it: `hearth cache add`"),
        StoreError::NoLease => (Code::NotFound, "`hearth-agent leases` lists them"),
        StoreError::State { .. } | StoreError::Step(_) => (Code::NotActive, "wait for it with --wait"),
        StoreError::InUse { .. } => (Code::InUse, "stop the consumer, release its lease or unpin it first"),
        StoreError::ConsumerName { .. } => (Code::Usage, ""),
        _ => (Code::Failed, "the agent's log says more"),
    };
    Refusal { code, message: error.chain(), hint: hint.to_owned() }
}
