//! The HTTP interface over real TLS, with a real database and real files in temporary folders.
//!
//! **What.** [`harness`] starts a whole controller in this process on free ports; `crash` starts the program itself and
//! kills it. Nothing is replaced by a double.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin;
mod archive;
mod attributes;
mod batch;
mod catalog;
mod crash;
mod crash_bin;
mod encrypted_imports;
mod export;
mod fleet_rights;
mod garbage;
mod harness;
mod host_images;
mod host_rights;
mod hostile;
mod keys;
mod launch;
mod links;
mod lists;
mod markets;
mod matrix;
mod once;
mod oplog;
mod people;
mod places;
mod quotas;
mod recycle;
mod rights;
mod scan;
mod servers;
mod sharing;
mod sources;
mod traced;
mod twins;
mod upgrade;
mod upload;
mod uploads;
mod variants;
