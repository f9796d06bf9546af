//! The door: accepts connections, bounds their number, and leads each to its protocol.
//!
//! **What.** A loop over incoming handshakes. Addresses prove themselves by a Retry when many handshakes are under way or
//! their source comes too often; past the hard limits they are refused.
//! **Why Retry first.** Source addresses of UDP can be forged; a proven address can be counted without letting an
//! attacker use up the count of somebody else.
//! **Invariants.** At most [`HANDSHAKES_MAX`] handshakes and [`CONNECTIONS_MAX`] connections; a handshake that takes longer
//! than [`HANDSHAKE_MAX`] is dropped.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};

use hearth_protocol::fault::FaultCode;
use hearth_protocol::version::{ALPN, ALPN_ENROL};
use quinn::crypto::rustls::HandshakeData;
use quinn::{Connection, Endpoint, Incoming, VarInt};
use tokio::time::timeout;

use super::endpoint::{CONNECTIONS_MAX, HANDSHAKE_MAX, HANDSHAKES_MAX, RETRY_ABOVE, source_of};
use super::{Shared, enrol, session};
use crate::task;

/// What happens to a newcomer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    Accept,
    Retry,
    Refuse,
}

/// Pure: what the counts say. `proven`: the address answered a Retry. `often`: its source comes too often.
const fn judge(handshakes: usize, connections: usize, proven: bool, often: bool) -> Verdict {
    if connections >= CONNECTIONS_MAX || handshakes >= HANDSHAKES_MAX || (often && proven) {
        return Verdict::Refuse;
    }
    if (often || handshakes >= RETRY_ABOVE) && !proven { Verdict::Retry } else { Verdict::Accept }
}

/// Accepts until the endpoint closes.
pub(super) async fn run(shared: Arc<Shared>, endpoint: Endpoint) {
    let handshakes = Arc::new(AtomicUsize::new(0));
    while let Some(incoming) = endpoint.accept().await {
        let address = incoming.remote_address();
        let proven = incoming.remote_address_validated();
        let now_ms = shared.now_ms();
        let often =
            !shared.connects.lock().unwrap_or_else(PoisonError::into_inner).take(source_of(address), now_ms);
        match judge(handshakes.load(Ordering::Relaxed), endpoint.open_connections(), proven, often) {
            Verdict::Accept => {
                let counted = Counted::new(Arc::clone(&handshakes));
                task::spawn("connection", connection(Arc::clone(&shared), incoming, counted));
            }
            Verdict::Retry => {
                metrics::counter!(super::metrics::CONNECTIONS_TURNED_AWAY, "how" => "retry").increment(1);
                if let Err(error) = incoming.retry() {
                    error.into_incoming().refuse();
                }
            }
            Verdict::Refuse => {
                metrics::counter!(super::metrics::CONNECTIONS_TURNED_AWAY, "how" => "refused").increment(1);
                tracing::debug!(%address, often, "refused a connection");
                incoming.refuse();
            }
        }
    }
}

/// A handshake under way.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connection(shared: Arc<Shared>, incoming: Incoming, counted: Counted) {
    let address = incoming.remote_address();
    let shaken = Box::pin(handshake(incoming)).await;
    drop(counted);
    let (connection, protocol) = match shaken {
        Ok(shaken) => shaken,
        Err(error) => {
            tracing::debug!(%address, error, "a handshake failed");
            return;
        }
    };
    if protocol == ALPN {
        Box::pin(session::serve(shared, connection)).await;
    } else if protocol == ALPN_ENROL {
        Box::pin(enrol::serve(shared, connection)).await;
    } else {
        connection.close(VarInt::from_u32(FaultCode::Version.number().into()), b"unknown protocol");
    }
}

async fn handshake(incoming: Incoming) -> Result<(Connection, Vec<u8>), String> {
    let connecting = incoming.accept().map_err(|error| error.to_string())?;
    let connected = timeout(HANDSHAKE_MAX, connecting).await.map_err(|_| "too slow".to_owned())?;
    let connection = connected.map_err(|error| error.to_string())?;
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let protocol = data.and_then(|data| data.protocol).unwrap_or_default();
    Ok((connection, protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_proves_its_addresses_and_then_hits_the_limits() {
        assert_eq!(judge(0, 0, false, false), Verdict::Accept);
        assert_eq!(judge(RETRY_ABOVE, 0, false, false), Verdict::Retry);
        assert_eq!(judge(RETRY_ABOVE, 0, true, false), Verdict::Accept);
        assert_eq!(judge(0, 0, false, true), Verdict::Retry);
        assert_eq!(judge(0, 0, true, true), Verdict::Refuse);
        assert_eq!(judge(HANDSHAKES_MAX, 0, true, false), Verdict::Refuse);
        assert_eq!(judge(0, CONNECTIONS_MAX, true, false), Verdict::Refuse);
    }
}
