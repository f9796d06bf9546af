//! Where the time of a fetch went.
//!
//! **What.** Filled by the fetch, logged once when the content is active: what an operator asks about a slow copy, and
//! what `make bench` prints.
//! **Why threads' time beside wall time.** Unpacking and writing run beside the wire on two threads; only their own time
//! says which of the three bounds a fetch.
//! **Invariants.** `manifest + prepare + wire + drain + repeat + sync + verify + publish` is the whole fetch if the first
//! closing check passed; closing checks that failed are in `total` alone. `decode` and `write` are inside `wire` and `drain`.

use std::time::{Duration, Instant};

use hearth_protocol::digest::ContentId;

use super::ask::Brought;
use crate::store::Finished;

/// See the module.
#[derive(Debug)]
pub(super) struct TimeLine {
    began: Instant,
    manifest: Duration,
    prepare: Duration,
    /// From the first request for chunks to the last byte.
    wire: Duration,
    /// From the last byte to the last write.
    drain: Duration,
    decode: Duration,
    write: Duration,
    received: Option<Instant>,
}

impl TimeLine {
    pub(super) fn new(now: Instant) -> Self {
        let zero = Duration::ZERO;
        Self {
            began: now,
            manifest: zero,
            prepare: zero,
            wire: zero,
            drain: zero,
            decode: zero,
            write: zero,
            received: None,
        }
    }

    pub(super) fn manifest_is_there(&mut self, now: Instant) {
        self.manifest = now - self.began;
    }

    pub(super) fn is_prepared(&mut self, now: Instant) {
        self.prepare = now - self.began - self.manifest;
    }

    pub(super) fn came(&mut self, brought: &Brought) {
        self.decode += brought.unpacked.decode;
        self.write += brought.unpacked.write;
        self.received = self.received.max(brought.received);
    }

    /// All chunks are written.
    pub(super) fn are_written(&mut self, began: Instant, now: Instant) {
        let received = self.received.take().unwrap_or(now).clamp(began, now);
        self.wire += received - began;
        self.drain += now - received;
    }

    pub(super) fn total(&self, now: Instant) -> Duration {
        now - self.began
    }

    pub(super) fn log(&self, content: ContentId, finished: &Finished, now: Instant) {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            %content,
            total_ms = ms(self.total(now)),
            manifest_ms = ms(self.manifest),
            prepare_ms = ms(self.prepare),
            wire_ms = ms(self.wire),
            drain_ms = ms(self.drain),
            decode_ms = ms(self.decode),
            write_ms = ms(self.write),
            repeat_ms = ms(finished.repeat),
            sync_ms = ms(finished.sync),
            behind_percent = finished.behind_percent,
            verify_ms = ms(finished.verify),
            publish_ms = ms(finished.publish),
            "content is active"
        );
    }
}
