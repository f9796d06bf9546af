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
pub mod campaigns;
pub mod distributions;
pub mod domains;
pub mod download;
pub mod events;
pub mod export;
pub mod fault;
pub mod fetch;
pub mod finish;
pub mod grants;
pub mod health;
pub mod host_image_batch;
pub mod host_image_cache;
pub mod host_images;
pub mod image_batch;
pub mod image_edits;
pub mod image_ends;
pub mod image_export;
pub mod image_list;
pub mod images;
pub mod join_tokens;
pub mod keys;
pub mod launch;
pub mod limits;
pub mod linger;
pub mod links;
pub mod locations;
pub mod login;
pub mod markets;
pub mod once;
pub mod openapi;
pub mod operations;
pub mod ownership;
pub mod places;
pub mod prewarm_groups;
pub mod prewarms;
pub mod projects;
pub mod quotas;
pub mod rest;
pub mod routes;
pub mod server;
pub mod shares;
pub mod sources;
pub mod system;
pub mod tokens;
pub mod upload;
pub mod upload_form;
pub mod uploads;
pub mod usage;
pub mod users;
pub mod variants;
pub mod when;
