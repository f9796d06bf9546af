//! How often callers may ask: 429 before anything is done for them.
//!
//! **What.** A bucket per token for all calls; a bucket per address and one per user for logins.
//!
//! **Why per user and per address.** One bucket per user stops who guesses the password of one; one per address stops who tries one
//! password on many.
//!
//! **Invariants.** Each table is bounded ([`crate::logic::rate`]). A name that does not exist is counted like one that does.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use hearth_protocol::id::TokenId;

use super::app::App;
use super::fault::Fault;
use crate::clock;
use crate::config::Config;
use crate::logic::rate::RateLimit;

/// Guesses of one user's password at once, and a minute after that: whoever types wrong has enough, a guesser has not.
const USER_BURST: u32 = 10;
/// See [`USER_BURST`].
const USER_PER_MINUTE: u32 = 6;
/// Logins from one address at once, and a minute after that: an office behind one address has enough.
const ADDRESS_BURST: u32 = 60;
/// See [`ADDRESS_BURST`].
const ADDRESS_PER_MINUTE: u32 = 30;

/// The buckets.
#[derive(Debug)]
pub struct Limits {
    tokens: Option<Mutex<RateLimit<TokenId>>>,
    users: Mutex<RateLimit<blake3::Hash>>,
    addresses: Mutex<RateLimit<IpAddr>>,
    begun: std::time::Instant,
}

impl Limits {
    /// Full buckets.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let per_s = config.calls.per_second;
        Self {
            tokens: (per_s > 0).then(|| Mutex::new(RateLimit::new(config.calls.burst, per_s))),
            users: Mutex::new(RateLimit::per_minute(USER_BURST, USER_PER_MINUTE)),
            addresses: Mutex::new(RateLimit::per_minute(ADDRESS_BURST, ADDRESS_PER_MINUTE)),
            begun: clock::monotonic(),
        }
    }

    /// Counts a call of a token.
    ///
    /// # Errors
    /// 429.
    pub fn token(&self, id: TokenId) -> Result<(), Fault> {
        let Some(tokens) = &self.tokens else { return Ok(()) };
        self.admit(tokens, id).map_err(|wait_ms| {
            Fault::too_many("this token asks too often", wait_ms)
                .hint("wait as long as the header `retry-after` says; lists with `limit` need fewer calls")
        })
    }

    /// Counts a guess of a password; `user` is its id, or what was given where there is none.
    ///
    /// # Errors
    /// 429.
    pub fn user(&self, user: &str) -> Result<(), Fault> {
        // A hash, so that long names do not fill the table.
        self.admit(&self.users, blake3::hash(user.as_bytes())).map_err(too_many_logins)
    }

    fn admit<S: Eq + std::hash::Hash>(&self, table: &Mutex<RateLimit<S>>, source: S) -> Result<(), u64> {
        let now = clock::monotonic().duration_since(self.begun).as_millis();
        let now_ms = u64::try_from(now).unwrap_or(u64::MAX);
        table.lock().unwrap_or_else(PoisonError::into_inner).admit(source, now_ms)
    }
}

fn too_many_logins(wait_ms: u64) -> Fault {
    Fault::too_many("too many logins", wait_ms).hint("wait as long as the header `retry-after` says")
}

/// Counts a login from the caller's address, before its body is read.
#[derive(Clone, Copy, Debug)]
pub struct Knock(pub IpAddr);

impl FromRequestParts<App> for Knock {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Fault> {
        let ConnectInfo(peer) = ConnectInfo::<SocketAddr>::from_request_parts(parts, app)
            .await
            .map_err(|error| Fault::internal(&error))?;
        let source = network(peer.ip());
        app.limits.admit(&app.limits.addresses, source).map_err(too_many_logins)?;
        Ok(Self(peer.ip()))
    }
}

/// An address, or the network of an IPv6 address: one customer has all of a /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_counts_as_one_address() {
        let ip = |text: &str| network(text.parse().unwrap());
        assert_eq!(ip("2001:db8::1"), ip("2001:db8::ffff:2"));
        assert_ne!(ip("2001:db8::1"), ip("2001:db8:0:1::1"));
        assert_eq!(ip("::ffff:192.0.2.1"), ip("192.0.2.1"));
        assert_ne!(ip("192.0.2.1"), ip("192.0.2.2"));
    }
}
