//! The home session: one long-lived connection to a controller.
//!
//! **What.** Connects (several addresses, jittered backoff), greets, sends the whole inventory, then changes as they come;
//! takes plans; renews the certificate; lets the controller ask for chunks.
//! **Why one loop per session.** Everything that is sent goes through it in order, and a session that ends takes all of
//! its state with it: the next one begins with a whole inventory, so nothing can be half known.
//!
//! ```text
//!  connect ─▶ Hello ─▶ Welcome ─▶ HelloAck, inventory, leases ─▶ up ─┬▶ changes ≤ every 500 ms, pulse 15 s ± 20 %
//!     ▲          └▶ Refused: slow retry                             └▶ plan parts, verify, renewed, data streams
//!     └──────────── full jitter, 0‥5 s, then 0‥10 s ◀── lost ◀───────┘
//! ```
//! **Why one file.** Connecting, greeting and the end of a session share its state; what is said inside one is in [`super::talk`].
//!
//! **Invariants.** A source is published only while its session is up. After `Denied` nothing is fetched, the cache goes
//! on serving the host, and the controller is asked again every five minutes.

use std::sync::Arc;
use std::time::Duration;

use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::{BootId, LocationId};
use hearth_protocol::message::control::{
    CLOCK_SKEW_MS_MAX, GoodbyeV1, HelloAckV1, HelloLocation, HelloV1, ToAgent, ToController, WelcomeV1,
};
use hearth_protocol::version::{VERSION_MAX, VERSION_MIN};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::connect::{self, ConnectError};
use super::credentials::Credentials;
use super::holds;
use super::keys::KeyRing;
use super::plan::PlanBook;
use super::talk::{Reports, Talk};
use crate::logic::backoff;
use crate::logic::nic::{NIC_MBPS_DEFAULT, Origin};
use crate::store::{Store, StoreError};
use crate::swarm::Swarm;
use crate::transfer::endpoint::Endpoint;
use crate::transfer::frames::{self, WireError};
use crate::transfer::link::{Quic, Source, Stream};
use crate::transfer::serve::Server;
use crate::{clock, metrics as names, nic, task};

/// Time for the greeting.
const GREET_TIMEOUT: Duration = Duration::from_secs(10);
/// A session that was up this long was no failure.
const PROVEN: Duration = Duration::from_secs(30);
/// A connection without any packet from the controller for two pulses and this long is lost, although QUIC would wait for a
/// minute: the controller's side must answer each pulse, and one that is lost is sent again within a second.
const SILENCE_SLACK: Duration = Duration::from_secs(5);
/// Messages from the controller that wait for us.
const INBOX: usize = 64;

/// How the agent stands with its controller, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Link {
    /// In a word.
    pub state: LinkState,
    /// Why there is no session; empty while one is up and before the first try.
    pub why: String,
}

impl Link {
    /// In this state for no reason that people must know.
    #[must_use]
    pub const fn plain(state: LinkState) -> Self {
        Self { state, why: String::new() }
    }
}

/// Whether a controller is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LinkState {
    /// No session.
    Down,
    /// A session is up.
    Up,
    /// The controller knows us and wants nothing of us.
    Denied,
}

/// What a session works with.
#[derive(Debug)]
pub struct Home {
    /// Socket.
    pub endpoint: Endpoint,
    /// Key and certificate.
    pub credentials: Arc<Credentials>,
    /// `host:port` of controllers.
    pub controllers: Vec<String>,
    /// `ip:port` under which others reach us.
    pub advertised: Vec<String>,
    /// Speed of the network interface, Mbit/s; `None`: as the kernel says at each greeting.
    pub nic_mbps: Option<u32>,
    /// The cache.
    pub store: Store,
    /// The plan.
    pub book: Arc<PlanBook>,
    /// What opens encrypted images.
    pub ring: Arc<KeyRing>,
    /// Answers data requests.
    pub server: Server,
    /// Campaigns.
    pub swarm: Swarm,
    /// Published while a session is up.
    pub source: watch::Sender<Option<Arc<Source>>>,
    /// Published for the reconciler.
    pub link: watch::Sender<Link>,
    /// Counts turns of the loop, for the watchdog.
    pub beat: watch::Sender<u64>,
}

/// Why a session ended or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The controller said no.
    #[error("the controller refuses us: {text} ({fault})")]
    Refused {
        /// Why.
        fault: FaultCode,
        /// For people.
        text: String,
    },
    /// The clocks differ too much.
    #[error(
        "our clock and the controller's differ by {skew_ms} ms, at most {CLOCK_SKEW_MS_MAX} ms are allowed; set the clock of this host (NTP)"
    )]
    Clock {
        /// Controller's clock less ours, ms.
        skew_ms: i64,
    },
    /// The control stream broke.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The controller does not answer or does not read.
    #[error("the controller does not {what} within {} s", after.as_secs())]
    Silent {
        /// What it should do.
        what: &'static str,
        /// For how long we waited.
        after: Duration,
    },
    /// The controller broke the order of messages.
    #[error("the controller breaks the protocol: {why}")]
    Protocol {
        /// In which way.
        why: &'static str,
    },
    /// What the plan holds cannot be held; without an acknowledgement the plan comes again.
    #[error("the holds of the plan cannot be written: {}", .0.chain())]
    Holds(StoreError),
    /// We stop.
    #[error("stopped")]
    Stopped,
}

impl Home {
    /// Keeps a session up until `stop` is cancelled. `reports` are passed on while one is up.
    pub async fn run(self, mut reports: Reports, stop: CancellationToken) {
        let boot = BootId::from_bytes(rand::random());
        let mut failures = 0;
        loop {
            let began = clock::monotonic();
            let ended = tokio::select! {
                biased;
                ended = self.session(boot, &mut reports, &stop) => ended,
                () = self.beating() => SessionError::Stopped,
            };
            self.down(&ended);
            if stop.is_cancelled() {
                return;
            }
            let proven = clock::monotonic().duration_since(began) >= PROVEN;
            failures = if proven { 1 } else { failures + 1 };
            let pause = self.pause(&ended, failures);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.beating() => {}
            }
        }
    }

    /// Never ends: shows the watchdog that the loop is alive and timers run.
    async fn beating(&self) {
        loop {
            self.beat.send_modify(|beat| *beat += 1);
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    fn down(&self, ended: &SessionError) {
        self.source.send_replace(None);
        self.swarm.session(false);
        metrics::gauge!(names::SESSION_UP).set(0);
        let denied = ended.is_denied();
        let state = if denied { LinkState::Denied } else { LinkState::Down };
        self.link.send_replace(Link { state, why: ended.to_string() });
        match ended {
            SessionError::Stopped => {}
            _ if denied => tracing::error!(
                error = %ended,
                "the controller denies this agent: nothing is fetched any more, the cache stays usable; an operator must look"
            ),
            SessionError::Refused { .. } | SessionError::Clock { .. } => {
                tracing::error!(error = %ended, "no session")
            }
            _ => tracing::warn!(error = %ended, "no session with a controller"),
        }
    }

    fn pause(&self, ended: &SessionError, failures: u32) -> Duration {
        let seed = rand::random();
        match ended.fault() {
            Some(fault) => backoff::after_refusal(fault, failures, seed),
            None => backoff::reconnect(failures, seed),
        }
    }

    /// One session from connect to end. Never returns `Ok`.
    async fn session(&self, boot: BootId, reports: &mut Reports, stop: &CancellationToken) -> SessionError {
        let connected = tokio::select! {
            () = stop.cancelled() => return SessionError::Stopped,
            connected = connect::connect(&self.endpoint, &self.credentials, &self.controllers) => connected,
        };
        let shown = self.credentials.enrolment();
        let connection = match connected {
            Ok(connection) => connection,
            Err(error) => return error.into(),
        };
        let ended = match self.speak(&connection, boot, reports, stop).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        };
        // The reason of the close says more than the stream that broke by it.
        let ended = match (&ended, connection.close_reason()) {
            (SessionError::Stopped | SessionError::Refused { .. } | SessionError::Clock { .. }, _)
            | (_, None) => ended,
            (_, Some(reason)) => {
                if connect::says_expired(&reason) {
                    self.credentials.mark_ended();
                }
                connect::lost(&reason).into()
            }
        };
        // What ended is the certificate that this connection showed; the next one shows a newer one or gets it first.
        let outlived = self.credentials.ends_in().is_zero() || self.credentials.enrolment() != shown;
        let ended = match ended {
            SessionError::Connect(ConnectError::Closed { fault: FaultCode::Denied, text }) if outlived => {
                ConnectError::Lost { why: text }.into()
            }
            ended => ended,
        };
        connection.close(quinn::VarInt::from_u32(FaultCode::Closing.number().into()), b"session over");
        ended
    }

    async fn speak(
        &self,
        connection: &Connection,
        boot: BootId,
        reports: &mut Reports,
        stop: &CancellationToken,
    ) -> Result<std::convert::Infallible, SessionError> {
        let location = self.credentials.enrolment().location;
        let (mut send, mut recv) = connection.open_bi().await.map_err(|error| connect::lost(&error))?;
        let nic_mbps = self.nic_mbps(connection).await;
        self.swarm.caps().set_nic(nic_mbps);
        // The Hello names the plan as followed, and a crash may have come between writing it down and its holds.
        holds::follow_blocking(&self.store, &self.book).await.map_err(SessionError::Holds)?;
        let greeting = self.greet(&mut send, &mut recv, boot, (location, nic_mbps));
        let welcome = tokio::time::timeout(GREET_TIMEOUT, greeting)
            .await
            .map_err(|_| SessionError::Silent { what: "answer our Hello", after: GREET_TIMEOUT })??;
        self.book.begin_session();
        let mut talk = Talk::new(send, location, self, welcome.version);
        talk.say(HelloAckV1 { session: welcome.session }).await?;
        talk.inventory().await?;
        self.up(connection, &welcome);
        let (inbox, mut messages) = mpsc::channel(INBOX);
        let tasks = [
            task::spawn("session-read", read(recv, inbox)),
            task::spawn("session-serve", serve(connection.clone(), self.server.clone())),
        ];
        let heartbeat = Duration::from_millis(u64::from(welcome.heartbeat_ms).clamp(1_000, 120_000));
        let silence_max = heartbeat * 2 + SILENCE_SLACK;
        let ended = tokio::select! {
            never = self.swarm.caps().give_way(&self.endpoint, self.advertised.clone(), connection.remote_address()) => match never {},
            ended = talk.run(heartbeat, &mut messages, reports, stop) => ended,
            () = silence(connection, silence_max) => Err(SessionError::Silent { what: "send a packet", after: silence_max }),
        };
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        if matches!(ended, Err(SessionError::Stopped)) {
            talk.goodbye(GoodbyeV1 { reason: "the agent stops".into() }).await;
        }
        ended
    }

    fn up(&self, connection: &Connection, welcome: &WelcomeV1) {
        let source = Source::new(Arc::new(Quic(connection.clone())), None);
        self.source.send_replace(Some(source));
        self.link.send_replace(Link::plain(LinkState::Up));
        metrics::gauge!(names::SESSION_UP).set(1);
        metrics::counter!(names::SESSIONS).increment(1);
        tracing::info!(
            controller = %connection.remote_address(),
            session = welcome.session,
            build = welcome.build,
            "session is up"
        );
    }

    /// Speed that is reported in this session.
    async fn nic_mbps(&self, connection: &Connection) -> u32 {
        let (configured, advertised) = (self.nic_mbps, self.advertised.clone());
        let controller = connection.remote_address();
        let read = tokio::task::spawn_blocking(move || nic::speed(configured, &advertised, controller)).await;
        let (mbps, origin) = read.unwrap_or((NIC_MBPS_DEFAULT, Origin::Assumed));
        tracing::info!(mbps, ?origin, "speed of the network interface");
        mbps
    }

    async fn greet(
        &self,
        send: &mut SendStream,
        recv: &mut RecvStream,
        boot: BootId,
        (location, nic_mbps): (LocationId, u32),
    ) -> Result<WelcomeV1, SessionError> {
        let sent_unix_ms = clock::unix_ms();
        let hello = HelloV1 {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            build: env!("CARGO_PKG_VERSION").into(),
            boot,
            sent_unix_ms,
            locations: vec![HelloLocation {
                location,
                advertised: self.advertised.clone(),
                nic_mbps,
                generation: self.book.current().generation,
            }],
        };
        frames::write(send, &ToController::from(hello)).await?;
        let welcome = match frames::read(recv).await? {
            ToAgent::Welcome(welcome) => welcome,
            ToAgent::Refused(refused) => {
                return Err(SessionError::Refused { fault: refused.fault, text: refused.text });
            }
            _ => return Err(SessionError::Protocol { why: "no Welcome after our Hello" }),
        };
        if !(VERSION_MIN..=VERSION_MAX).contains(&welcome.version) {
            return Err(SessionError::Protocol { why: "it chose a version that we do not speak" });
        }
        let ours = sent_unix_ms.midpoint(clock::unix_ms());
        let skew_ms = i64::try_from(welcome.now_unix_ms).unwrap_or(i64::MAX).saturating_sub_unsigned(ours);
        metrics::gauge!(names::CLOCK_SKEW).set(skew_ms as f64 / 1000.0);
        if skew_ms.unsigned_abs() > CLOCK_SKEW_MS_MAX {
            return Err(SessionError::Clock { skew_ms });
        }
        Ok(welcome)
    }
}

impl SessionError {
    /// The fault, if the controller or our clock named one that waiting a few seconds will not heal.
    fn fault(&self) -> Option<FaultCode> {
        match self {
            Self::Refused { fault: FaultCode::Closing | FaultCode::Busy, .. } => None,
            Self::Refused { fault, .. } => Some(*fault),
            Self::Connect(error) => error.fault(),
            Self::Clock { .. } => Some(FaultCode::Clock),
            _ => None,
        }
    }

    fn is_denied(&self) -> bool {
        self.fault() == Some(FaultCode::Denied)
    }
}

/// Ends when nothing at all was received for `silence_max`. A host that slept gets a second to hear what waits for it.
async fn silence(connection: &Connection, silence_max: Duration) {
    let look = Duration::from_secs(1);
    let (mut heard, mut silent) = (0, Duration::ZERO);
    while silent < silence_max {
        tokio::time::sleep(look).await;
        let now = connection.stats().udp_rx.datagrams;
        silent = if now == heard { silent + look } else { Duration::ZERO };
        heard = now;
    }
}

/// Passes on what the controller says; ends with the stream.
async fn read(mut recv: RecvStream, inbox: mpsc::Sender<Result<ToAgent, WireError>>) {
    loop {
        let message = frames::read(&mut recv).await;
        let over = message.is_err();
        if inbox.send(message).await.is_err() || over {
            return;
        }
    }
}

/// Answers data requests on streams that the controller opens; QUIC bounds their number.
async fn serve(connection: Connection, server: Server) {
    while let Ok((send, recv)) = connection.accept_bi().await {
        let server = server.clone();
        task::spawn("serve", async move {
            server.stream(Stream { send: Box::new(send), recv: Box::new(recv) }).await;
        });
    }
}
