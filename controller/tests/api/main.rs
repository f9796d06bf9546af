//! The HTTP interface over real TLS, with a real database and real files in temporary folders.
//!
//! **What.** [`harness`] starts a whole controller in this process on free ports; `crash` starts the program itself and
//! kills it. Nothing is replaced by a double.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin;
mod catalog;
mod crash;
mod garbage;
mod harness;
mod hostile;
mod rights;
mod servers;
mod sources;
mod upload;
mod uploads;
