//! One agent's session, from its first byte to its end.
//!
//! ```text
//! connected ─ Hello within 10 s ─▶ checked ─ Welcome ─▶ HelloAck within 10 s ─▶ up ─▶ over
//!                                    └─ Refused: version, clock, denied, duplicate ─▶ closed
//! ```
//! **What.** One task per session reads the control stream, sends what is due, and starts a task for each data stream.
//! **Why one task and no timers.** Two thousand idle agents must cost next to nothing: a session sleeps until a message
//! comes or somebody wakes it; silence is noticed by QUIC, ends of certificates by one sweep over all sessions.
//! **Why a living rival is asked first.** The same key from a second process is either an agent that was restarted (its old
//! connection lingers for a minute) or a copied key. The old connection is made to answer: if it does, the newcomer is
//! refused and shown; if not, the newcomer takes its place.
//!
//! **Invariants.** Nothing of a session is believed before its certificate named the location, which the database must
//! confirm. A location that the certificate does not name is ignored in every message.

use std::sync::Arc;
use std::time::Duration;

use hearth_protocol::digest::AgentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::frame::BODY_BYTES_MAX;
use hearth_protocol::message::control::{
    CLOCK_SKEW_MS_MAX, HelloLocation, HelloV1, RefusedV1, TEXT_BYTES_MAX, ToAgent, ToController, VerifyV1,
    WelcomeV1,
};
use hearth_protocol::version::{VERSION_MAX, VERSION_MIN, negotiate};
use hearth_protocol::words::LocationState;
use quinn::{Connection, SendStream, VarInt};
use tokio::time::{sleep, timeout};

use super::frames::{FrameReader, StreamError, send};
use super::inbox::{Inbox, Next};
use super::registry::{Due, Duplicate, NewSession, Session};
use super::reports::Report;
use super::swarm::Swarms;
use super::{Shared, ca, data};
use crate::db::locations::SessionFacts;
use crate::db::operations::Draft;
use crate::{clock, task};

/// Time for the first stream, the Hello and the HelloAck each: protects the table of half-open sessions.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// Time in which the rival of a newcomer must give a sign of life. A lost packet is sent again within a second.
const RIVAL_ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// Most addresses that an agent may advertise.
const ADVERTISED_MAX: usize = 16;

/// Why a session does not come up.
#[derive(Debug)]
struct Refusal {
    fault: FaultCode,
    text: String,
}

fn refuse<T>(fault: FaultCode, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { fault, text: text.into() })
}

/// An agent whose certificate was looked at.
#[derive(Clone, Copy, Debug)]
struct Proven {
    agent: AgentId,
    not_after_us: i64,
}

/// Serves a `hearth/1` connection until it ends.
pub(super) async fn serve(shared: Arc<Shared>, connection: Connection) {
    let address = connection.remote_address();
    let Some(proven) = proven(&connection) else {
        close(&connection, FaultCode::Denied, "an agent certificate is required: enrol first");
        tracing::info!(%address, "refused a connection without an agent certificate");
        return;
    };
    match Box::pin(greet(&shared, &connection, proven)).await {
        Ok((session, reader, writer)) => {
            let why = Box::pin(run(&shared, &session, reader, writer)).await;
            Box::pin(end(&shared, &session, &why)).await;
        }
        Err(GreetError::Refused(Refusal { fault, text })) => {
            tracing::warn!(%address, agent = %proven.agent, %fault, text, "refused a session");
            metrics::counter!(super::metrics::SESSIONS_REFUSED, "fault" => fault.as_str()).increment(1);
            // The refusal is on its way; the agent closes when it has read it.
            if timeout(GREETING_MAX, connection.closed()).await.is_err() {
                close(&connection, fault, &text);
            }
        }
        Err(GreetError::Stream(error)) => {
            tracing::info!(%address, agent = %proven.agent, %error, "a session ended before it was up");
            close(&connection, FaultCode::Protocol, &error.to_string());
        }
    }
}

/// The certificate's key and end; TLS has checked its signature and dates.
fn proven(connection: &Connection) -> Option<Proven> {
    let chain =
        connection.peer_identity()?.downcast::<Vec<rustls_pki_types::CertificateDer<'static>>>().ok()?;
    let (agent, not_after_us) = ca::agent_of(chain.first()?)?;
    Some(Proven { agent, not_after_us })
}

fn close(connection: &Connection, fault: FaultCode, text: &str) {
    connection.close(VarInt::from_u32(fault.number().into()), text.as_bytes());
}

#[derive(Debug, thiserror::Error)]
enum GreetError {
    #[error("refused")]
    Refused(Refusal),
    #[error(transparent)]
    Stream(#[from] StreamError),
}

async fn greet(
    shared: &Arc<Shared>,
    connection: &Connection,
    proven: Proven,
) -> Result<(Arc<Session>, FrameReader, SendStream), GreetError> {
    let accepted = timeout(GREETING_MAX, connection.accept_bi()).await.map_err(|_| StreamError::TooSlow)?;
    let (mut writer, recv) = accepted.map_err(|error| StreamError::Read(error.into()))?;
    let mut reader = FrameReader::new(recv, BODY_BYTES_MAX);
    let ToController::Hello(hello) = reader.expect(GREETING_MAX).await? else {
        return Err(StreamError::OutOfTurn.into());
    };
    let admitted = Box::pin(admit(shared, connection, proven, &hello)).await;
    let (version, facts) = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => {
            let refused = RefusedV1 { fault: refusal.fault, text: refusal.text.clone() };
            send(&mut writer, &ToAgent::Refused(refused)).await?;
            return Err(GreetError::Refused(refusal));
        }
    };
    let number = shared.registry.number();
    let welcome = WelcomeV1 {
        version,
        session: number,
        now_unix_ms: clock::unix_ms(),
        heartbeat_ms: u32::try_from(shared.config.heartbeat.as_millis()).unwrap_or(u32::MAX),
        build: env!("CARGO_PKG_VERSION").to_owned(),
    };
    send(&mut writer, &ToAgent::Welcome(welcome)).await?;
    match reader.expect(GREETING_MAX).await? {
        ToController::HelloAck(ack) if ack.session == number => {}
        _ => return Err(StreamError::OutOfTurn.into()),
    }
    let now_us = clock::unix_us();
    let left_us = proven.not_after_us.saturating_sub(now_us).max(0);
    let new = NewSession {
        agent: proven.agent,
        location: facts.location,
        boot: hello.boot,
        build: cut(&hello.build),
        version,
        advertised: facts.advertised.clone(),
        nic_mbps: facts.nic_mbps,
        connection: connection.clone(),
        ends_ms: shared.now_ms() + u64::try_from(left_us / 1000).unwrap_or(0),
        now_us,
        followed: facts.generation,
    };
    let session = Arc::new(Session::new(number, new));
    let facts = SessionFacts { boot: hello.boot, advertised: facts.advertised, nic_mbps: facts.nic_mbps };
    shared.report(Report::Begun { location: session.location, facts }).await;
    if let Some(older) = shared.registry.put(Arc::clone(&session)) {
        older.close(FaultCode::Duplicate, "a newer session of this agent took its place");
    }
    if let Some(denied) = shared.swarms.denied().filter(|_| Swarms::speaks(&session)) {
        session.swarm_say(denied);
    }
    tracing::info!(location = %session.location, address = %session.address, build = session.build, "session up");
    shared.location_changed(session.location);
    shared.wake();
    Ok((session, reader, writer))
}

/// Whether the agent may have a session, and for which of its locations.
async fn admit(
    shared: &Arc<Shared>,
    connection: &Connection,
    proven: Proven,
    hello: &HelloV1,
) -> Result<(u16, HelloLocation), Refusal> {
    let theirs = (hello.version_min, hello.version_max);
    let Some(version) = negotiate((VERSION_MIN, VERSION_MAX), theirs) else {
        let text = format!(
            "no version in common: this controller speaks {VERSION_MIN} to {VERSION_MAX}, the agent {} to {}; upgrade the older one",
            theirs.0, theirs.1
        );
        return refuse(FaultCode::Version, text);
    };
    let skew_ms = clock::unix_ms().abs_diff(hello.sent_unix_ms);
    if skew_ms > CLOCK_SKEW_MS_MAX {
        let text = format!("the clocks differ by {} s, allowed are 300 s: set both by NTP", skew_ms / 1000);
        return refuse(FaultCode::Clock, text);
    }
    let known = match shared.db.location_of_agent(proven.agent).await {
        Ok(known) => known,
        Err(error) => {
            tracing::error!(%error, "cannot look an agent up");
            return refuse(FaultCode::Internal, "the controller cannot look the agent up; its log says more");
        }
    };
    let Some(location) = known.filter(|at| at.state != LocationState::Removed && at.revoked_us.is_none())
    else {
        return refuse(
            FaultCode::Denied,
            "this agent's key is not enrolled here, or was revoked: enrol with a new token",
        );
    };
    let Some(described) = hello.locations.iter().find(|described| described.location == location.id) else {
        return refuse(
            FaultCode::Denied,
            format!("the certificate is for location {}, which the Hello lacks", location.id),
        );
    };
    if let Some(rival) = shared.registry.of(location.id).filter(|rival| rival.boot != hello.boot)
        && alive(&rival).await
    {
        Box::pin(show_duplicate(shared, connection, &rival, &location.name)).await;
        let text = format!(
            "the same key is connected from {}: stop that agent, or give one of the two a key of its own",
            rival.address
        );
        return refuse(FaultCode::Duplicate, text);
    }
    Ok((version, checked(described)))
}

/// The description with what an agent may not say taken out.
fn checked(described: &HelloLocation) -> HelloLocation {
    let usable =
        |text: &&String| text.len() <= TEXT_BYTES_MAX && text.parse::<std::net::SocketAddr>().is_ok();
    let advertised = described.advertised.iter().filter(usable).take(ADVERTISED_MAX).cloned().collect();
    HelloLocation { advertised, ..described.clone() }
}

fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

/// Whether a session's agent answers within [`RIVAL_ANSWERS_WITHIN`].
async fn alive(rival: &Session) -> bool {
    let heard = || rival.connection.stats().udp_rx.datagrams;
    let before = heard();
    rival.nudge();
    let deadline = clock::monotonic() + RIVAL_ANSWERS_WITHIN;
    while clock::monotonic() < deadline {
        if rival.connection.close_reason().is_some() {
            return false;
        }
        sleep(Duration::from_millis(20)).await;
        if heard() > before {
            return true;
        }
    }
    false
}

async fn show_duplicate(shared: &Shared, connection: &Connection, rival: &Session, name: &str) {
    let address = connection.remote_address();
    tracing::warn!(location = name, %address, rival = %rival.address, "the same agent key is used in two places");
    shared.registry.note_duplicate(rival.location, Duplicate { address, seen_us: clock::unix_us() });
    shared.location_changed(rival.location);
    let op = Draft::system("agent.duplicate").on("location", rival.location, name);
    let details =
        format!("the agent's key was shown from {address} while it is connected from {}", rival.address);
    if let Err(error) = shared.db.record(&op.failed(details)).await {
        tracing::error!(%error, "cannot record a duplicate agent");
    }
}

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
enum Over {
    #[error("the agent said goodbye: {reason}")]
    Goodbye { reason: String },
    #[error("the agent closed its control stream")]
    Ended,
    #[error(transparent)]
    Lost(#[from] quinn::ConnectionError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Content(#[from] super::inbox::InboxError),
}

/// The session while it is up.
async fn run(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    mut reader: FrameReader,
    mut writer: SendStream,
) -> Over {
    let mut inbox = Inbox::new(Arc::clone(shared), Arc::clone(session));
    let mut sent = None;
    loop {
        let step = tokio::select! {
            message = reader.next::<ToController>() => match message {
                Ok(Some(message)) => Box::pin(take(&mut inbox, message, &mut writer)).await,
                Ok(None) => Err(Over::Ended),
                Err(error) => Err(error.into()),
            },
            () = session.wake.notified() => {
                Box::pin(send_due(shared, session, session.due(), &mut sent, &mut writer)).await
            }
            stream = session.connection.accept_bi() => match stream {
                Ok((send, recv)) => {
                    task::spawn("data stream", data::serve(Arc::clone(shared), session.location, send, recv));
                    Ok(())
                }
                Err(error) => Err(error.into()),
            },
        };
        if let Err(over) = step {
            return over;
        }
    }
}

async fn take(inbox: &mut Inbox, message: ToController, writer: &mut SendStream) -> Result<(), Over> {
    match inbox.take(message).await? {
        Next::Nothing => Ok(()),
        Next::Answer(answer) => Ok(send(writer, &*answer).await?),
        Next::Goodbye { reason } => Err(Over::Goodbye { reason }),
    }
}

/// Sends what others left for the agent. A plan goes out once per generation, unless a sign of life is wanted.
async fn send_due(
    shared: &Shared,
    session: &Session,
    due: Due,
    sent: &mut Option<Arc<super::plans::Plan>>,
    writer: &mut SendStream,
) -> Result<(), Over> {
    if due.plan || due.nudge {
        let plan = shared.plans.of(session.location);
        // The agent may follow this very plan already: the connection was lost, not the agent.
        let new = plan.as_ref().is_some_and(|plan| {
            let known = sent.as_ref().map_or_else(|| session.followed(), |sent| sent.generation);
            plan.generation > known
        });
        if let Some(plan) = plan.filter(|_| new || due.nudge) {
            for message in plan.messages(session.location) {
                send(writer, &message).await?;
            }
            *sent = Some(plan);
        } else if due.nudge {
            let empty = super::plans::Plan::empty();
            send(writer, &empty.messages(session.location)[0]).await?;
        }
    }
    for content in due.verify {
        send(writer, &ToAgent::Verify(VerifyV1 { location: session.location, content })).await?;
    }
    for message in due.swarm {
        send(writer, &message).await?;
    }
    Ok(())
}

async fn end(shared: &Arc<Shared>, session: &Arc<Session>, why: &Over) {
    let was_current = shared.registry.remove(session);
    shared.swarms.left(session).await;
    close(&session.connection, FaultCode::Closing, "the session is over");
    tracing::info!(location = %session.location, address = %session.address, %why, "session over");
    if was_current {
        shared.picture.unsettle(session.location);
        if let Some(seen) = super::reports::seen(session) {
            shared.report(Report::Seen(vec![seen])).await;
        }
        shared.location_changed(session.location);
        shared.wake();
    }
}
