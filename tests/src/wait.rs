//! Waits on a predicate, never on a clock alone.

use std::time::{Duration, Instant};

/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// Asks until the answer is a value, at most `limit`.
///
/// # Errors
/// What was waited for, after `limit`; the first error of `ask`.
pub async fn for_some<T>(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let began = monotonic();
    loop {
        if let Some(value) = ask().await? {
            return Ok(value);
        }
        anyhow::ensure!(began.elapsed() < limit, "{what}: not within {} s", limit.as_secs());
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Asks until the answer is yes, at most `limit`.
///
/// # Errors
/// As [`for_some`].
pub async fn until(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    for_some(what, limit, async || Ok(ask().await?.then_some(()))).await
}

/// Monotonic time, for figures that a test prints.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the harness has no clock of its own to pass down")]
pub fn monotonic() -> Instant {
    Instant::now()
}
