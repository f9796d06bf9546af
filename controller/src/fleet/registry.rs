//! The table of live sessions.
//!
//! **What.** Who is connected, since when, from where, and what its last pulse said; and the way to tell a session
//! something: a plan changed, hash a copy again, close.
//! **Why in memory.** A session is a fact of this process. Pulses come from every host every 15 s and are worth nothing
//! a minute later; the database gets them once a minute.
//! **Invariants.** At most one session per location. A session leaves the table before its task ends.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hearth_protocol::digest::{AgentId, ContentId};
use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::{BootId, Generation, LocationId};
use hearth_protocol::message::control::{PulseV1, ToAgent};
use quinn::{Connection, VarInt};
use tokio::sync::Notify;

/// Copies that may wait to be hashed again on one session's way out: protects memory; more are asked for later.
const VERIFIES_MAX: usize = 64;
/// Messages about campaigns that may wait on one session's way out: protects memory. Leases beyond it are dropped and expire.
const SWARM_MAX: usize = 1024;
/// Further ones that are no leases; a session that does not take them is closed.
const SWARM_RESERVE: usize = 64;
/// How long a second place with an agent's key is shown, microseconds: a refused agent comes again every five minutes.
const DUPLICATE_SHOWN_US: i64 = 15 * 60 * 1_000_000;

/// One live session.
#[derive(Debug)]
pub(super) struct Session {
    /// Number of the session, unique in this process.
    pub(super) number: u64,
    /// The key it proved.
    pub(super) agent: AgentId,
    /// The location it serves.
    pub(super) location: LocationId,
    /// One start of the agent's process.
    pub(super) boot: BootId,
    /// Where it connects from.
    pub(super) address: SocketAddr,
    /// The agent's program version.
    pub(super) build: String,
    /// Version of the protocol that both speak.
    pub(super) version: u16,
    /// Addresses under which other agents reach it, `ip:port`.
    pub(super) advertised: Vec<String>,
    /// Speed of its network interface, Mbit/s; 0 if it did not say.
    pub(super) nic_mbps: u32,
    /// When it came up, microseconds since the epoch.
    pub(super) since_us: i64,
    pub(super) connection: Connection,
    /// End of the certificate on the monotonic clock, milliseconds since the start of the process.
    ends_ms: AtomicU64,
    last_heard_us: AtomicI64,
    state: Mutex<State>,
    pub(super) wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    pulse: Option<Figures>,
    followed: Generation,
    /// A plan has to be looked at.
    plan_due: bool,
    /// A plan must be sent even if its generation was sent before: the agent is asked for a sign of life.
    nudge: bool,
    verify: BTreeSet<ContentId>,
    /// About campaigns, in order.
    swarm: VecDeque<ToAgent>,
}

/// A second place from which an agent's key was shown while its session lived: a copied key or disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Duplicate {
    /// Where it called from.
    pub address: SocketAddr,
    /// When it last did, microseconds since the epoch.
    pub seen_us: i64,
}

/// What the last pulse said about the cache.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Figures {
    /// Bytes the cache may allocate.
    pub budget_bytes: u64,
    /// Bytes the cache has allocated or reserved.
    pub used_bytes: u64,
    /// Free bytes of the file system.
    pub free_bytes: u64,
    /// Free bytes that must stay.
    pub floor_bytes: u64,
    /// Not empty: the cache is read-only for this reason.
    pub degraded: String,
}

/// A session as others see it.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionView {
    /// The location it serves.
    pub location: LocationId,
    /// The key it proved.
    pub agent: AgentId,
    /// Where it connects from.
    pub address: SocketAddr,
    /// When it came up, microseconds since the epoch.
    pub since_us: i64,
    /// When it was last heard, microseconds since the epoch.
    pub last_heard_us: i64,
    /// The agent's program version.
    pub build: String,
    /// What its last pulse said, if one came.
    pub figures: Option<Figures>,
    /// Round trip, microseconds.
    pub rtt_us: u64,
}

/// What a session's task has to send.
#[derive(Debug, Default)]
pub(super) struct Due {
    pub(super) plan: bool,
    pub(super) nudge: bool,
    pub(super) verify: BTreeSet<ContentId>,
    pub(super) swarm: VecDeque<ToAgent>,
}

/// What a new session is made of.
#[derive(Debug)]
pub(super) struct NewSession {
    pub(super) agent: AgentId,
    pub(super) location: LocationId,
    pub(super) boot: BootId,
    pub(super) build: String,
    pub(super) version: u16,
    pub(super) advertised: Vec<String>,
    pub(super) nic_mbps: u32,
    pub(super) connection: Connection,
    pub(super) ends_ms: u64,
    pub(super) now_us: i64,
    pub(super) followed: Generation,
}

impl Session {
    pub(super) fn new(number: u64, new: NewSession) -> Self {
        let NewSession { agent, location, boot, build, version, advertised, .. } = new;
        let NewSession { nic_mbps, connection, ends_ms, now_us, followed, .. } = new;
        // The plan may have been lost with the session before: this one looks at it at once.
        let wake = Notify::new();
        wake.notify_one();
        Self {
            number,
            agent,
            location,
            boot,
            address: connection.remote_address(),
            build,
            version,
            advertised,
            nic_mbps,
            since_us: now_us,
            connection,
            ends_ms: AtomicU64::new(ends_ms),
            last_heard_us: AtomicI64::new(now_us),
            state: Mutex::new(State { followed, plan_due: true, ..State::default() }),
            wake,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the connection; the session's task ends and cleans up.
    pub(super) fn close(&self, why: FaultCode, text: &str) {
        self.connection.close(VarInt::from_u32(why.number().into()), text.as_bytes());
    }

    /// Says that the plan of the location may have changed.
    pub(super) fn plan_changed(&self) {
        self.state().plan_due = true;
        self.wake.notify_one();
    }

    /// Makes the agent answer: the plan is sent again, which does no harm.
    pub(super) fn nudge(&self) {
        self.state().nudge = true;
        self.wake.notify_one();
    }

    /// Asks the agent to hash a copy from disk again; `false` if too many such wishes wait.
    pub(super) fn verify(&self, content: ContentId) -> bool {
        let mut state = self.state();
        let room = state.verify.len() < VERIFIES_MAX || state.verify.contains(&content);
        if room {
            state.verify.insert(content);
            self.wake.notify_one();
        }
        room
    }

    /// Queues a message about a campaign; `false`: the agent does not read, and it was dropped. Only leases are: whoever does
    /// not take the others is cut off.
    pub(super) fn swarm_say(&self, message: ToAgent) -> bool {
        let mut state = self.state();
        let most = match message {
            ToAgent::PieceLeases(_) => SWARM_MAX,
            _ => SWARM_MAX + SWARM_RESERVE,
        };
        let has_room = state.swarm.len() < most;
        if has_room {
            state.swarm.push_back(message);
            self.wake.notify_one();
        } else if most > SWARM_MAX {
            self.close(FaultCode::Unreachable, "this agent does not read what it is told");
        }
        has_room
    }

    pub(super) fn due(&self) -> Due {
        let mut state = self.state();
        let due = Due {
            plan: state.plan_due,
            nudge: state.nudge,
            verify: std::mem::take(&mut state.verify),
            swarm: std::mem::take(&mut state.swarm),
        };
        (state.plan_due, state.nudge) = (false, false);
        due
    }

    /// Lets the session live until `ends_ms` (milliseconds since the start of the process).
    pub(super) fn extend(&self, ends_ms: u64) {
        self.ends_ms.store(ends_ms, Ordering::Relaxed);
    }

    /// Whether the certificate of the session has ended.
    pub(super) fn ended(&self, now_ms: u64) -> bool {
        self.ends_ms.load(Ordering::Relaxed) <= now_ms
    }

    pub(super) fn heard(&self, now_us: i64) {
        self.last_heard_us.store(now_us, Ordering::Relaxed);
    }

    pub(super) fn pulse(&self, pulse: PulseV1, now_us: i64) {
        let PulseV1 { generation, budget_bytes, used_bytes, free_bytes, floor_bytes, degraded, .. } = pulse;
        self.heard(now_us);
        let mut state = self.state();
        state.followed = generation;
        state.pulse = Some(Figures { budget_bytes, used_bytes, free_bytes, floor_bytes, degraded });
    }

    /// Generation of the plan that the agent says it follows.
    #[must_use]
    pub(super) fn followed(&self) -> Generation {
        self.state().followed
    }

    pub(super) fn set_followed(&self, generation: Generation) {
        self.state().followed = generation;
    }

    /// What the last pulse said, if one came.
    #[must_use]
    pub(super) fn figures(&self) -> Option<Figures> {
        self.state().pulse.clone()
    }

    /// When the agent was last heard, microseconds since the epoch.
    #[must_use]
    pub(super) fn last_heard_us(&self) -> i64 {
        self.last_heard_us.load(Ordering::Relaxed)
    }

    /// Everything others may want to know.
    #[must_use]
    pub(super) fn view(&self) -> SessionView {
        SessionView {
            location: self.location,
            agent: self.agent,
            address: self.address,
            since_us: self.since_us,
            last_heard_us: self.last_heard_us(),
            build: self.build.clone(),
            figures: self.figures(),
            rtt_us: u64::try_from(self.connection.rtt().as_micros()).unwrap_or(u64::MAX),
        }
    }
}

const fn is_recent(seen: &Duplicate, now_us: i64) -> bool {
    now_us.saturating_sub(seen.seen_us) < DUPLICATE_SHOWN_US
}

/// All live sessions; see the module.
#[derive(Debug, Default)]
pub(super) struct Registry {
    by_location: Mutex<HashMap<LocationId, Arc<Session>>>,
    last_number: AtomicU64,
    /// At most one per location, forgotten when it is old.
    duplicates: Mutex<HashMap<LocationId, Duplicate>>,
}

impl Registry {
    fn table(&self) -> MutexGuard<'_, HashMap<LocationId, Arc<Session>>> {
        self.by_location.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for a new session.
    pub(super) fn number(&self) -> u64 {
        self.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Sessions that were given a number so far.
    pub(super) fn begun(&self) -> u64 {
        self.last_number.load(Ordering::Relaxed)
    }

    /// Puts a session in; the one it replaces is given back and no longer in the table.
    pub(super) fn put(&self, session: Arc<Session>) -> Option<Arc<Session>> {
        self.table().insert(session.location, session)
    }

    /// Takes a session out, unless a newer one has its place; `true` if it was there.
    pub(super) fn remove(&self, session: &Session) -> bool {
        let mut table = self.table();
        let mine = table.get(&session.location).is_some_and(|there| there.number == session.number);
        if mine {
            table.remove(&session.location);
        }
        mine
    }

    /// The session of a location.
    #[must_use]
    pub(super) fn of(&self, location: LocationId) -> Option<Arc<Session>> {
        self.table().get(&location).cloned()
    }

    /// Notes that a location's key was shown from a second place.
    pub(super) fn note_duplicate(&self, location: LocationId, seen: Duplicate) {
        let mut duplicates = self.duplicates.lock().unwrap_or_else(PoisonError::into_inner);
        duplicates.retain(|_, other| is_recent(other, seen.seen_us));
        duplicates.insert(location, seen);
    }

    /// The second place from which a location's key was shown lately.
    #[must_use]
    pub(super) fn duplicate(&self, location: LocationId, now_us: i64) -> Option<Duplicate> {
        let duplicates = self.duplicates.lock().unwrap_or_else(PoisonError::into_inner);
        duplicates.get(&location).copied().filter(|seen| is_recent(seen, now_us))
    }

    /// Whether a location's agent is connected.
    #[must_use]
    pub(super) fn online(&self, location: LocationId) -> bool {
        self.table().contains_key(&location)
    }

    /// All sessions, in no order.
    #[must_use]
    pub(super) fn all(&self) -> Vec<Arc<Session>> {
        self.table().values().cloned().collect()
    }

    /// Number of sessions.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.table().len()
    }
}
