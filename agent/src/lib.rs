//! Hearth agent: keeps verified copies of images on one host.
//!
//! **What.** [`daemon`] runs everything; [`control`] talks to the controller, [`transfer`] moves bytes, `logic` decides.
//! **Why a library.** Tests reach what `main.rs` only starts.

pub mod clock;
pub mod config;
pub mod control;
pub mod logic;
pub mod metrics;
pub mod task;
pub mod transfer;
