//! Everything between this agent and its controller, except the payload.
//!
//! **What.** Enrolment and identity, the home session, the plan it brings and the reports it takes.
//! **Why apart from `transfer`.** The session carries small messages that must arrive soon; payload must not delay them.
//! **Invariants.** Nothing here writes into the cache; it only says what should be there.

pub mod ask;
pub mod connect;
pub mod credentials;
pub mod enrol;
mod holds;
pub mod identity;
mod names;
mod one_try;
pub mod plan;
pub mod session;
pub mod talk;
pub mod tls;
pub mod upkeep;
