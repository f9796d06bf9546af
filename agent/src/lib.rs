//! Hearth agent: keeps verified copies of images on one host.
//!
//! **What.** [`daemon`] runs everything; [`control`] talks to the controller, [`transfer`] moves bytes, [`store`] keeps the
//! files, `logic` decides.
//! **Why a library.** Tests, the kill harness and the daemon use the same code, and reach what `main.rs` only starts.
//! **Invariants.** `unsafe` stands in `sys` alone; clocks are read in `clock` alone.

pub mod clock;
pub mod command;
pub mod config;
pub mod control;
pub mod daemon;
pub mod local;
pub mod logic;
pub mod metrics;
pub mod metrics_page;
mod nic;
pub mod store;
pub mod swarm;
mod sys;
pub mod task;
pub mod transfer;
mod watchdog;
