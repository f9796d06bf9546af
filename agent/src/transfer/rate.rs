//! The cap of one transfer, shared by its streams.
//!
//! **What.** Waits as long as the token bucket of `logic` says. The cap may change while the transfer runs.
//! **Why before reading.** What is not read fills the window, and the sender stops: no byte is thrown away.
//! **Invariants.** Without a cap nothing is awaited.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::clock;
use crate::logic::rate::TokenBucket;

/// See the module.
#[derive(Debug)]
pub struct RateCap {
    start: Instant,
    bucket: Mutex<TokenBucket>,
}

impl RateCap {
    /// A cap in bytes per second; `None` for none.
    #[must_use]
    pub fn new(bytes_per_s: Option<u64>) -> Self {
        Self { start: clock::monotonic(), bucket: Mutex::new(TokenBucket::new(bytes_per_s, 0)) }
    }

    /// Changes the cap.
    pub fn set(&self, bytes_per_s: Option<u64>) {
        let now_us = self.now_us();
        self.lock().set_rate(bytes_per_s, now_us);
    }

    /// Waits until `bytes` may move.
    pub async fn pause(&self, bytes: u64) {
        let now_us = self.now_us();
        let pause = self.lock().take(bytes, now_us);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(clock::monotonic().duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, TokenBucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
