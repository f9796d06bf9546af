//! `/metrics` on loopback, in Prometheus' text form.
//!
//! **What.** A recorder for the process and a page that shows it: one request per connection, then it closes.
//! **Why by hand.** One fixed answer to one fixed path needs no HTTP framework in the agent.
//! **Invariants.** Listens on loopback alone (the configuration checks it); a client costs at most [`HEAD_BYTES_MAX`] and
//! [`CLIENT_TIMEOUT`], and at most [`CLIENTS_MAX`] are served at once.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{metrics as names, task};

/// Longest request head that is read.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Time for one client.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Clients at once.
const CLIENTS_MAX: usize = 8;
/// Time between two rounds of housekeeping of the recorder.
const UPKEEP: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct MetricsPage {
    listener: Option<TcpListener>,
    handle: Option<PrometheusHandle>,
}

impl MetricsPage {
    /// Installs the recorder of the process and listens; without an address nothing is recorded.
    ///
    /// # Errors
    /// What the system says if the address is taken.
    pub async fn bind(address: Option<SocketAddr>) -> io::Result<Self> {
        let Some(address) = address else { return Ok(Self { listener: None, handle: None }) };
        let listener = TcpListener::bind(address).await?;
        let handle = match PrometheusBuilder::new().install_recorder() {
            Ok(handle) => Some(handle),
            Err(error) => {
                tracing::warn!(%error, "a second recorder in one process; its page stays empty");
                None
            }
        };
        names::describe();
        Ok(Self { listener: Some(listener), handle })
    }

    /// Serves until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let Some(listener) = self.listener else { return };
        let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
        let mut upkeep = tokio::time::interval(UPKEEP);
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                _ = upkeep.tick() => {
                    self.handle.iter().for_each(PrometheusHandle::run_upkeep);
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "no client for /metrics");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&clients).try_acquire_owned() else { continue };
            let handle = self.handle.clone();
            task::spawn("metrics-client", async move {
                let served = tokio::time::timeout(CLIENT_TIMEOUT, answer(stream, handle)).await;
                tracing::trace!(?served, "client of /metrics");
                drop(permit);
            });
        }
    }
}

async fn answer(mut stream: TcpStream, handle: Option<PrometheusHandle>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut buffer = [0; 1024];
        let n = stream.read(&mut buffer).await?;
        if n == 0 || head.len() + n > HEAD_BYTES_MAX {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..n]);
    }
    let (status, body) = match head.starts_with(b"GET /metrics ") {
        true => ("200 OK", handle.map(|handle| handle.render()).unwrap_or_default()),
        false => ("404 Not Found", "only GET /metrics is answered here\n".to_owned()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn the_page_shows_metrics_and_nothing_else() {
        let page = MetricsPage::bind(Some(SocketAddr::from(([127, 0, 0, 1], 0)))).await.unwrap();
        let address = page.listener.as_ref().unwrap().local_addr().unwrap();
        let stop = CancellationToken::new();
        let running = task::spawn("page", page.run(stop.clone()));
        metrics::gauge!(names::SESSION_UP).set(1);
        let text = ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("hearth_agent_session_up 1"), "{text}");
        let text = ask(address, b"GET /etc/passwd HTTP/1.1\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 404"), "{text}");
        assert_eq!(ask(address, &[b'x'; HEAD_BYTES_MAX + 1024]).await, "");
        stop.cancel();
        running.await.unwrap();
    }
}
