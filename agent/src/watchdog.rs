//! Feeding the service manager's watchdog with proof of work.
//!
//! **What.** Every third of the watchdog's time: have the loops turned since, and does the disk of the cache take a small
//! synced write? Only then is it fed.
//! **Why proof.** A timer task that feeds by itself goes on when everything else hangs; then nobody restarts the agent.
//! **Invariants.** `a_loop_that_stands_still_is_not_covered_up`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::daemon;

/// Rounds that a loop may stand still: one slow write to a loaded disk must not kill the agent.
const STILL_ROUNDS_MAX: u32 = 2;
/// Time for the probe of the disk.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// See the module.
#[derive(Debug)]
pub(crate) struct Watchdog {
    probe: PathBuf,
    loops: Vec<Pulse>,
}

#[derive(Debug)]
struct Pulse {
    name: &'static str,
    beat: watch::Receiver<u64>,
    still: u32,
}

impl Watchdog {
    /// Watches these loops and the disk of `cache_dir`.
    #[must_use]
    pub(crate) fn new(cache_dir: &Path, loops: &[(&'static str, &watch::Sender<u64>)]) -> Self {
        let pulse = |(name, beat): &(&'static str, &watch::Sender<u64>)| Pulse {
            name,
            beat: beat.subscribe(),
            still: 0,
        };
        Self { probe: cache_dir.join("trash").join("watchdog"), loops: loops.iter().map(pulse).collect() }
    }

    /// Feeds until `stop`; does nothing without a watchdog.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let Some(limit) = sd_notify::watchdog_enabled() else { return };
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(limit / 3) => {}
            }
            let stuck = self.stuck();
            let disk = self.disk_works().await;
            if stuck.is_empty() && disk {
                daemon::say(&[sd_notify::NotifyState::Watchdog]);
            } else {
                tracing::error!(?stuck, disk, "no progress; the watchdog is not fed");
            }
        }
    }

    /// Loops that have not turned for too many rounds.
    fn stuck(&mut self) -> Vec<&'static str> {
        for pulse in &mut self.loops {
            let turned = pulse.beat.has_changed().unwrap_or(false);
            pulse.beat.mark_unchanged();
            pulse.still = if turned { 0 } else { pulse.still + 1 };
        }
        self.loops.iter().filter(|pulse| pulse.still > STILL_ROUNDS_MAX).map(|pulse| pulse.name).collect()
    }

    /// Whether a synced write ends in time. A disk that answers with an error still answers: the store reports it as
    /// degraded, and a restart would not mend it.
    async fn disk_works(&self) -> bool {
        let path = self.probe.clone();
        let write = move || {
            let file = std::fs::File::create(&path)?;
            std::os::unix::fs::FileExt::write_all_at(&file, b"alive", 0)?;
            file.sync_data()?;
            std::fs::remove_file(&path)
        };
        match tokio::time::timeout(PROBE_TIMEOUT, tokio::task::spawn_blocking(write)).await {
            Ok(Ok(Ok(()))) => true,
            Ok(Ok(Err(error))) => {
                tracing::warn!(%error, path = %self.probe.display(), "the cache's disk does not take a write");
                true
            }
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_loop_that_stands_still_is_not_covered_up() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("trash")).unwrap();
        let (good, hung) = (watch::Sender::new(0_u64), watch::Sender::new(0_u64));
        let mut watchdog = Watchdog::new(dir.path(), &[("good", &good), ("hung", &hung)]);
        let mut rounds = Vec::new();
        for _ in 0..=STILL_ROUNDS_MAX {
            good.send_modify(|beat| *beat += 1);
            rounds.push(watchdog.stuck());
        }
        assert_eq!(rounds.last().unwrap(), &["hung"]);
        assert!(rounds[..rounds.len() - 1].iter().all(Vec::is_empty), "{rounds:?}");
        assert!(watchdog.disk_works().await);
    }
}
