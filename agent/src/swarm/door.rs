//! Where other agents come in.
//!
//! **What.** Accepts connections on the agent's one socket, and each stream of them as one request.
//! **Why limits before anybody is known.** A handshake costs us a signature and anybody can begin one.
//! **Invariants.** Who has no certificate of our authority is nobody here. At most [`CONNECTIONS_MAX`] connections stand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hearth_protocol::fault::FaultCode;

use super::{Shared, tls, upload};
use crate::task;

/// Connections of other agents at once: each costs about 64 KiB and its windows.
const CONNECTIONS_MAX: usize = 512;
/// Handshakes above which an address must prove itself first.
const RETRY_ABOVE: usize = 64;
/// Time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Accepts until the endpoint closes. The certificate is read anew for each handshake, as it is renewed every few hours.
pub(super) async fn run(shared: Arc<Shared>) {
    let (standing, greeting) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let endpoint = shared.endpoint.quinn().clone();
    match tls::server(shared.credentials.key(), &shared.credentials.enrolment()) {
        Ok(config) => endpoint.set_server_config(Some(shared.endpoint.peer_server_config(config))),
        Err(error) => return tracing::error!(%error, "other agents are not answered"),
    }
    while let Some(incoming) = endpoint.accept().await {
        if greeting.load(Ordering::Relaxed) >= RETRY_ABOVE && !incoming.remote_address_validated() {
            // Fails only for an address that is validated already.
            drop(incoming.retry());
            continue;
        }
        if standing.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            incoming.refuse();
            continue;
        }
        let config = match tls::server(shared.credentials.key(), &shared.credentials.enrolment()) {
            Ok(config) => shared.endpoint.peer_server_config(config),
            Err(error) => {
                tracing::error!(%error, "no TLS for other agents");
                incoming.refuse();
                continue;
            }
        };
        let counted = (Counted::new(&standing), Counted::new(&greeting));
        let shared = Arc::clone(&shared);
        task::spawn("peer", async move {
            let (_standing, greeting) = counted;
            let Ok(connecting) = incoming.accept_with(Arc::new(config)) else { return };
            let Ok(Ok(connection)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await else {
                return;
            };
            drop(greeting);
            serve(&shared, connection).await;
        });
    }
}

/// One of many, as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve(shared: &Arc<Shared>, connection: quinn::Connection) {
    let Some(agent) = tls::agent_of(&connection) else { return };
    if shared.is_denied(agent) {
        tracing::warn!(%agent, address = %connection.remote_address(), "an agent that is denied came in");
        connection.close(quinn::VarInt::from_u32(FaultCode::Denied.number().into()), b"denied");
        return;
    }
    while let Ok((send, recv)) = connection.accept_bi().await {
        if shared.is_denied(agent) {
            return;
        }
        task::spawn("upload", upload::serve(Arc::clone(shared), agent, send, recv));
    }
}
