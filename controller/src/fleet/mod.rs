//! The fleet: sessions with agents, enrolment, the data they fetch, and the plans they follow.
//!
//! **What.** One QUIC endpoint with two doors (`hearth-enrol/1`, `hearth/1`), a table of live sessions, a data server for
//! manifests and chunks, and a reconciler that turns intents into plans.
//! **Why level-triggered.** A plan says all that should be at a location, an inventory all that is. A lost session, a
//! restarted controller or a lost wake-up costs time, never a copy.

pub mod ca;
pub mod endpoint;
pub mod tls;
