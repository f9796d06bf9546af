//! Connections to other agents.
//!
//! **What.** One connection per agent, made when it is first asked and lent to every request after that.
//! **Why one at a time tries.** Sixty requests to a host that is gone would be sixty handshakes; the first tries, the others
//! take its answer, and nobody tries again for a while.
//!
//! **Invariants.** A connection is lent only if the other side proved the key that the controller named. At most
//! [`CONNECTIONS_MAX`] are kept; idle ones end by themselves.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hearth_protocol::digest::AgentId;
use hearth_protocol::message::swarm::{PEER_ADDRESSES_MAX, PeerV1};

use super::tls::{self, AGENT_NAME};
use crate::clock;
use crate::control::credentials::Credentials;
use crate::transfer::endpoint::Endpoint;

/// Connections that are kept.
const CONNECTIONS_MAX: usize = 512;
/// Time for one handshake: less than any lease, so that whoever began it is still there to say how it ended.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an agent that could not be reached is not tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Why there is no connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Unreached {
    /// It was tried just now.
    Tried,
    /// It was tried a moment ago, by another request: that one says so, or one lost handshake were many failures.
    Known,
}

/// An agent that may be asked.
#[derive(Debug)]
pub(super) struct Peer {
    agent: AgentId,
    addresses: Vec<SocketAddr>,
}

impl Peer {
    pub(super) fn new(peer: &PeerV1) -> Self {
        let addresses = peer.addresses.iter().take(PEER_ADDRESSES_MAX);
        let addresses = addresses.filter_map(|text| text.parse().ok()).collect();
        Self { agent: peer.agent, addresses }
    }
}

#[derive(Debug, Default)]
struct Place {
    connection: Option<quinn::Connection>,
    failed: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pool {
    endpoint: Endpoint,
    credentials: Arc<Credentials>,
    places: Mutex<HashMap<AgentId, Arc<tokio::sync::Mutex<Place>>>>,
}

impl Pool {
    pub(super) fn new(endpoint: Endpoint, credentials: Arc<Credentials>) -> Self {
        Self { endpoint, credentials, places: Mutex::default() }
    }

    /// A connection to `peer`.
    ///
    /// # Errors
    /// [`Unreached`] if it cannot be reached or is not who it should be.
    pub(super) async fn connection(&self, peer: &Peer) -> Result<quinn::Connection, Unreached> {
        let place = self.place(peer.agent);
        let mut place = place.lock().await;
        if let Some(connection) = place.connection.as_ref().filter(|c| c.close_reason().is_none()) {
            return Ok(connection.clone());
        }
        let now = clock::monotonic();
        if place.failed.is_some_and(|at| now.duration_since(at) < AGAIN_AFTER) {
            return Err(Unreached::Known);
        }
        place.connection = self.connect(peer).await;
        place.failed = place.connection.is_none().then(clock::monotonic);
        place.connection.clone().ok_or(Unreached::Tried)
    }

    fn place(&self, agent: AgentId) -> Arc<tokio::sync::Mutex<Place>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() >= CONNECTIONS_MAX && !places.contains_key(&agent) {
            // A place that is locked is being filled.
            places.retain(|_, place| !place.try_lock().is_ok_and(|place| place.is_closed()));
            // All are open: one is lent no more, and ends with the requests that use it.
            let any = places.keys().next().copied().filter(|_| places.len() >= CONNECTIONS_MAX);
            any.map(|agent| places.remove(&agent));
        }
        Arc::clone(places.entry(agent).or_default())
    }

    async fn connect(&self, peer: &Peer) -> Option<quinn::Connection> {
        let tls = tls::client(self.credentials.key(), &self.credentials.enrolment());
        let tls = tls.map_err(|error| tracing::error!(%error, "no TLS towards other agents")).ok()?;
        let config = self.endpoint.peer_config(tls);
        for address in &peer.addresses {
            let connecting = match self.endpoint.quinn().connect_with(config.clone(), *address, AGENT_NAME) {
                Ok(connecting) => connecting,
                Err(error) => {
                    tracing::debug!(%address, %error, "another agent cannot be asked");
                    continue;
                }
            };
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
                Ok(Ok(connection)) if tls::agent_of(&connection) == Some(peer.agent) => {
                    return Some(connection);
                }
                Ok(Ok(connection)) => {
                    tracing::warn!(%address, "another agent answers there than the controller said");
                    connection.close(quinn::VarInt::from_u32(0), b"not who was asked");
                }
                Ok(Err(error)) => tracing::debug!(%address, %error, "another agent is not reached"),
                Err(_) => tracing::debug!(%address, "another agent does not answer"),
            }
        }
        None
    }
}

impl Place {
    fn is_closed(&self) -> bool {
        self.connection.as_ref().is_none_or(|connection| connection.close_reason().is_some())
    }
}
