//! The certificate in use, and how long it still lives.
//!
//! **What.** Key, enrolment and the two times that count on the monotonic clock: renewal and end.
//! **Why shared.** The session renews it while it runs; the next connection must use the new one.
//! **Invariants.** A new certificate is on disk before it is used.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::identity::{AgentKey, Enrolment, IdentityError};
use crate::clock;
use crate::logic::renewal::{Lifetime, lifetime};

/// Key and certificate of this agent.
#[derive(Debug)]
pub struct Credentials {
    data_dir: PathBuf,
    key: AgentKey,
    state: Mutex<State>,
}

#[derive(Clone, Debug)]
struct State {
    enrolment: Arc<Enrolment>,
    loaded: Instant,
    life: Lifetime,
}

fn state(enrolment: Enrolment) -> State {
    let validity = enrolment.validity();
    let now = i64::try_from(clock::unix_ms() / 1000).unwrap_or(i64::MAX);
    let life = lifetime(validity.not_before, validity.not_after, now, rand::random());
    State { enrolment: Arc::new(enrolment), loaded: clock::monotonic(), life }
}

impl Credentials {
    /// Reads them below `data_dir`.
    ///
    /// # Errors
    /// [`IdentityError::NotEnrolled`] and others.
    pub fn load(data_dir: &Path) -> Result<Self, IdentityError> {
        let enrolment = Enrolment::load(data_dir)?;
        let key = AgentKey::load(data_dir)?;
        Ok(Self { data_dir: data_dir.to_owned(), key, state: Mutex::new(state(enrolment)) })
    }

    /// The folder of the files.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The key.
    #[must_use]
    pub const fn key(&self) -> &AgentKey {
        &self.key
    }

    /// The newest enrolment.
    #[must_use]
    pub fn enrolment(&self) -> Arc<Enrolment> {
        Arc::clone(&self.lock().enrolment)
    }

    /// Time until the certificate should be renewed; zero if it is due.
    #[must_use]
    pub fn renew_in(&self) -> Duration {
        let state = self.lock();
        state.life.renew_in.saturating_sub(clock::monotonic().duration_since(state.loaded))
    }

    /// Time until the certificate ends; zero if it has ended.
    #[must_use]
    pub fn ends_in(&self) -> Duration {
        let state = self.lock();
        state.life.ends_in.saturating_sub(clock::monotonic().duration_since(state.loaded))
    }

    /// The controller says that the certificate has ended, whatever our clock says.
    pub fn mark_ended(&self) {
        self.lock().life.ends_in = Duration::ZERO;
    }

    /// Uses an enrolment that is on disk already.
    pub fn replace(&self, enrolment: Enrolment) {
        *self.lock() = state(enrolment);
    }

    /// Checks a chain that the controller sent, writes it down and uses it from the next connection on. Blocks.
    ///
    /// # Errors
    /// [`IdentityError::Chain`] if it is not for us, [`IdentityError::File`].
    pub fn take_chain(&self, chain: &[Vec<u8>]) -> Result<(), IdentityError> {
        let old = self.enrolment();
        let chain = self.key.check_chain(chain, old.ca())?;
        let enrolment = Enrolment { chain, ..old.as_ref().clone() };
        enrolment.save(&self.data_dir)?;
        self.replace(enrolment);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
