//! What has to be done from time to time: ends of certificates, figures for the database, our own certificate.
//!
//! **Why one task.** A timer per session would be two thousand timers; one look a second over all of them is cheaper and
//! closes a session whose certificate ended within a second of its grace.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::LocationId;
use tokio::time::{MissedTickBehavior, interval};

use super::Shared;
use super::ca::SERVER_LIFE;
use super::registry::Session;
use super::reports::{Report, seen};
use crate::db::locations::Figures;
use crate::{clock, sys};

/// How often sessions are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often signs of life and figures are stored.
const NOTE_EVERY_MS: u64 = 60_000;
/// After this many new sessions, and at most this often, the memory of their handshakes is given back.
const TIDY_SESSIONS: u64 = 100;
const TIDY_EVERY_MS: u64 = 10_000;
/// How long a session outlives its certificate: an agent whose renewal is under way is not thrown out.
pub(super) const CERTIFICATE_GRACE_MS: u64 = 5 * 60 * 1000;
/// When a renewal of our own certificate that failed is tried again.
const RENEW_AGAIN_MS: u64 = 60_000;

/// Runs until it is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let half_life_ms = u64::try_from(SERVER_LIFE.as_millis() / 2).unwrap_or(u64::MAX);
    let mut noted = HashMap::new();
    let (mut note_ms, mut renew_ms) = (NOTE_EVERY_MS, half_life_ms);
    let (mut tidy_ms, mut tidied) = (TIDY_EVERY_MS, 0);
    loop {
        tick.tick().await;
        let now_ms = shared.now_ms();
        let sessions = shared.registry.all();
        for session in
            sessions.iter().filter(|session| session.ended(now_ms.saturating_sub(CERTIFICATE_GRACE_MS)))
        {
            tracing::warn!(location = %session.location, "a session is closed: its certificate ended and was not renewed");
            session.close(FaultCode::Denied, "the certificate ended: renew it");
        }
        if now_ms >= note_ms {
            note_ms = now_ms + NOTE_EVERY_MS;
            metrics::gauge!(super::metrics::SESSIONS)
                .set(f64::from(u32::try_from(sessions.len()).unwrap_or(u32::MAX)));
            note(&shared, &sessions, &mut noted).await;
        }
        if now_ms >= tidy_ms && shared.registry.begun() >= tidied + TIDY_SESSIONS {
            (tidy_ms, tidied) = (now_ms + TIDY_EVERY_MS, shared.registry.begun());
            drop(tokio::task::spawn_blocking(sys::give_back));
        }
        if now_ms >= renew_ms {
            renew_ms = match shared.identity.renew(clock::unix_us()) {
                Ok(()) => now_ms + half_life_ms,
                Err(error) => {
                    tracing::error!(%error, "cannot renew the controller's own certificate");
                    now_ms + RENEW_AGAIN_MS
                }
            };
        }
    }
}

/// Stores figures that changed, and of the others that they live. An idle fleet costs one statement a minute.
async fn note(shared: &Shared, sessions: &[Arc<Session>], noted: &mut HashMap<LocationId, Figures>) {
    let (mut new, mut alive) = (Vec::new(), Vec::new());
    for (location, seen_us, figures) in sessions.iter().filter_map(|session| seen(session)) {
        if noted.get(&location) == Some(&figures) {
            alive.push(location);
        } else {
            noted.insert(location, figures.clone());
            new.push((location, seen_us, figures));
        }
    }
    noted.retain(|location, _| shared.registry.online(*location));
    if !new.is_empty() {
        shared.report(Report::Seen(new)).await;
    }
    if !alive.is_empty() {
        shared.report(Report::Alive(alive)).await;
    }
}
