//! The socket itself: who may connect, and how much one client can take.
//!
//! **What.** Binds the socket, sets its group and mode, and serves a bounded number of connections.
//! **Why rights by the file.** Unix checks them for us before a byte is read; the peer's ids go to the log.
//! **Invariants.** A line is at most `REQUEST_BYTES_MAX`; an idle connection is closed; a socket that another live agent
//! serves is never taken over.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::codec::{Framed, LinesCodec};
use tokio_util::sync::CancellationToken;

use super::answer::{Answers, Context};
use super::message::{Answer, Code, REQUEST_BYTES_MAX, Refusal, Request};
use crate::store::Store;
use crate::task;

/// Connections at once: each waits in memory only, but descriptors are finite.
const CONNECTIONS_MAX: usize = 256;
/// A connection without a request is closed after this long.
const IDLE: Duration = Duration::from_secs(30);
/// Mode of the socket: owner and group.
const SOCKET_MODE: u32 = 0o660;

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Another process answers on it.
    #[error("another agent serves {path}: give this one a socket of its own (`socket`)")]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Binds the socket and serves it until `stop` is cancelled. Returns once it is bound, with the future that serves.
///
/// # Errors
/// [`LocalError`].
pub fn serve(
    path: &Path,
    group: Option<&str>,
    store: Store,
    context: Arc<dyn Context>,
    stop: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>, LocalError> {
    let listener = bind(path, group)?;
    let path = path.to_owned();
    let answers = Answers { store, context };
    Ok(async move {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => connection(stream, &slots, &answers, &stop),
                Err(error) => {
                    // Out of descriptors, most likely: give others time to close some.
                    tracing::warn!(%error, "local connection not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        if let Err(error) = fs::remove_file(&path) {
            tracing::debug!(%error, "local socket stays behind");
        }
    })
}

fn bind(path: &Path, group: Option<&str>) -> Result<UnixListener, LocalError> {
    let io = |what| move |source| LocalError::Io { what, path: path.to_owned(), source };
    if path.exists() {
        // A socket that a dead agent left refuses; one that answers is alive.
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(LocalError::Taken { path: path.to_owned() });
        }
        fs::remove_file(path).map_err(io("delete the old socket"))?;
    }
    let listener = UnixListener::bind(path).map_err(io("bind"))?;
    if let Some(name) = group {
        let given = nix::unistd::Group::from_name(name).ok().flatten().map(|group| group.gid);
        let changed = given.map(|gid| nix::unistd::chown(path, None, Some(gid)));
        if !matches!(changed, Some(Ok(()))) {
            tracing::warn!(group = name, path = %path.display(), "no right to give the local socket to this group");
        }
    }
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE)).map_err(io("set the mode of"))?;
    Ok(listener)
}

fn connection(stream: UnixStream, slots: &Arc<Semaphore>, answers: &Answers, stop: &CancellationToken) {
    let slot = Arc::clone(slots).try_acquire_owned();
    let (answers, stop) = (answers.clone(), stop.clone());
    task::spawn("local connection", async move {
        let Ok(_slot) = slot else {
            refuse(stream).await;
            return;
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = talk(stream, &answers) => {}
        }
    });
}

async fn refuse(stream: UnixStream) {
    let refusal = Refusal {
        code: Code::Busy,
        message: format!("the agent serves {CONNECTIONS_MAX} local connections already"),
        hint: "try again later".to_owned(),
    };
    send(&mut Framed::new(stream, LinesCodec::new()), &Answer::Error(refusal)).await;
}

async fn talk(stream: UnixStream, answers: &Answers) {
    let peer = stream.peer_cred().ok();
    let (uid, pid) = (peer.map(|peer| peer.uid()), peer.and_then(|peer| peer.pid()));
    let mut lines = Framed::new(stream, LinesCodec::new_with_max_length(REQUEST_BYTES_MAX));
    loop {
        let line = match tokio::time::timeout(IDLE, lines.next()).await {
            Ok(Some(Ok(line))) => line,
            Ok(Some(Err(error))) => {
                let refusal = Refusal {
                    code: Code::Usage,
                    message: format!("not a request: {error}"),
                    hint: format!("one JSON object per line, at most {REQUEST_BYTES_MAX} B"),
                };
                send(&mut lines, &Answer::Error(refusal)).await;
                return;
            }
            Ok(None) | Err(_) => return,
        };
        let answer = match serde_json::from_str::<Request>(&line) {
            Ok(request) => {
                tracing::info!(uid, pid, ?request, "local request");
                // While a request waits, the only thing its asker can do is hang up.
                tokio::select! {
                    answer = answers.answer(request) => answer,
                    _ = lines.next() => return,
                }
            }
            Err(error) => Answer::Error(Refusal {
                code: Code::Usage,
                message: format!("not a request: {error}"),
                hint: "the operations are status, path, lease, release, key, leases, pin, evict, verify"
                    .to_owned(),
            }),
        };
        if !send(&mut lines, &answer).await {
            return;
        }
    }
}

/// Sends an answer; `false` if the peer is gone.
async fn send(lines: &mut Framed<UnixStream, LinesCodec>, answer: &Answer) -> bool {
    // Only a path that is not UTF-8 has no JSON form.
    let text = serde_json::to_string(answer).unwrap_or_else(|error| {
        format!(r#"{{"error":{{"code":"failed","message":"no JSON form: {error}","hint":""}}}}"#)
    });
    lines.send(text).await.is_ok()
}
