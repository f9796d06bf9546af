//! A location as its agent would have reported it: copies that are active, and who uses them.

use hearth_controller::clock;
use hearth_controller::db::enrolment::{Certificate, Enrolment};
use hearth_controller::db::intents::{Intent, IntentHold};
use hearth_controller::db::join_tokens::JoinToken;
use hearth_controller::db::locations::{Location, SessionFacts};
use hearth_controller::db::operations::Draft;
use hearth_controller::db::{Db, new_id};
use hearth_protocol::digest::{AgentId, ContentId};
use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::{BootId, ImageId, LeaseId, LocationId};
use hearth_protocol::message::control::{Lease, ObservedEntry, ObservedState};
use hearth_protocol::message::enrol::LocationFacts;
use hearth_protocol::words::{ConsumerKind, EntryStatus};

/// A location that has just been seen.
pub(crate) async fn location(db: &Db, name: &str) -> LocationId {
    let token = JoinToken {
        id: new_id(),
        uses_left: 1,
        expires_us: clock::unix_us() + 60_000_000,
        name_glob: String::new(),
        presets: Default::default(),
        revoked_us: None,
        created_by: "test".to_owned(),
        created_us: 0,
    };
    let secret_hash = format!("hash of {name}");
    db.create_join_token(&token, &secret_hash, &Draft::system("join_token.create")).await.unwrap();
    let facts = LocationFacts { name: name.to_owned(), ..LocationFacts::default() };
    let enrolment = Enrolment { secret_hash, agent: AgentId::of(name.as_bytes()), facts };
    let sign = |location: &Location| -> Result<_, String> {
        Ok((Certificate { serial: location.name.clone(), not_after_us: i64::MAX }, ()))
    };
    let (location, ()) = db.enrol(&enrolment, sign).await.unwrap();
    let boot = BootId::from_bytes([7; 16]);
    let session = SessionFacts { boot, advertised: Vec::new(), nic_mbps: 1000 };
    db.begin_session(location.id, &session).await.unwrap();
    location.id
}

/// The copy is there, verified.
pub(crate) async fn cached(db: &Db, location: LocationId, content: ContentId) {
    report(db, location, content, ObservedState::Present(EntryStatus::Active)).await;
}

async fn report(db: &Db, location: LocationId, content: ContentId, state: ObservedState) {
    let entry = ObservedEntry {
        content,
        state,
        done_bytes: 1,
        data_bytes: 1,
        moved_bytes: 1,
        reused_bytes: 0,
        allocated_bytes: 1,
        leases: 0,
        last_used_unix_ms: 0,
    };
    db.apply_changes(location, &[entry]).await.unwrap();
}

/// The copy is there for this image.
pub(crate) async fn wanted(db: &Db, at: LocationId, image: ImageId, content: ContentId) {
    let wish = Intent::manual(image, content, at, IntentHold::Pinned);
    db.put_intents(&[wish], &Draft::system("cache.create")).await.unwrap();
}

/// The last try to bring the copy failed.
pub(crate) async fn failed(db: &Db, at: LocationId, content: ContentId, fault: FaultCode, text: &str) {
    let state = ObservedState::Failed { fault, text: text.to_owned(), next_try_unix_ms: 0 };
    report(db, at, content, state).await;
}

/// These use the copy.
pub(crate) async fn leased(db: &Db, at: LocationId, content: ContentId, users: &[(ConsumerKind, &str)]) {
    let lease = |(kind, consumer): &(ConsumerKind, &str)| Lease {
        lease: LeaseId::from_bytes(*new_id::<ImageId>().as_bytes()),
        content,
        kind: *kind,
        consumer: (*consumer).to_owned(),
        since_unix_ms: 1,
    };
    db.replace_leases(at, &users.iter().map(lease).collect::<Vec<_>>()).await.unwrap();
}
