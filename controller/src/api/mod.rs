//! The HTTP interface: `/api/v1`, `/metrics`, `/healthz`, `/readyz`.
//!
//! **What.** One file per noun. A handler reads the request, asks [`crate::logic::authz`], calls the store or the fleet
//! and answers with a body of `hearth_protocol::api`. [`fault`] alone turns errors into statuses.
//!
//! **Why so many limits.** Whoever reaches the port can send bytes: number of connections, time of a handshake, size of
//! a head, size and time of a body, rate of an upload are all bounded, and each bound says whom it protects.
//!
//! **Invariants.**
//! 1. No route without a row in the rights table: [`routes::Routes`] has no other way to add one.
//! 2. Identity comes from the bearer token alone; no other header is looked at.
//! 3. Every answer carries `x-request-id`, every failed one an `ErrorBody`.
//! 4. What a caller may not see answers like what does not exist.

pub mod app;
pub mod body;
pub mod cache;
pub mod caller;
pub mod download;
pub mod events;
pub mod fault;
pub mod finish;
pub mod health;
pub mod images;
pub mod join_tokens;
pub mod linger;
pub mod locations;
pub mod openapi;
pub mod operations;
pub mod prewarms;
pub mod rest;
pub mod routes;
pub mod server;
pub mod sources;
pub mod system;
pub mod tokens;
pub mod upload;
pub mod upload_form;
pub mod uploads;
pub mod when;
