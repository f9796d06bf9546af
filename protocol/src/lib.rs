//! What crosses a boundary in Hearth: the wire between agents and controller, and the bodies of the HTTP API.
//!
//! **What.** Ids, digests, the manifest, chunk masks, pieces, frames, versioned messages, fault codes, API bodies; and how
//! far both sides believe a wall clock ([`steady`]).
//! No IO, no async, no clock, no randomness.
//!
//! # The protocol
//! Parties: *agents* (one per cache folder or cloud region) and the *controller*. Transport: QUIC with TLS 1.3 both
//! ways; the ALPN is [`version::ALPN`]. An agent keeps one *home session* to the controller: it opens the connection
//! and on it the control stream ([`message::control`]). Every further bidirectional stream carries data requests
//! ([`message::data`]), whoever opens it: agents ask the controller for manifests and chunks, and the controller asks
//! an agent for chunks when it must mend its own copy. Enrolment ([`message::enrol`]) has an ALPN of its own.
//!
//! Goals: every byte is checked by the receiver against a content id that came over the authenticated session; a lost
//! or repeated message does no harm; a receiver bounds what a sender can make it hold. Not a goal: hiding traffic
//! volumes, or serving parties without a certificate.

pub mod api;
pub mod digest;
pub mod fault;
pub mod frame;
pub mod id;
pub mod manifest;
pub mod mask;
pub mod message;
pub mod passphrase;
pub mod piece;
pub mod steady;
pub mod version;
pub mod words;
