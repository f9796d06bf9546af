//! Moving bytes: the QUIC endpoint, fetching and serving chunks.
//!
//! **What.** `endpoint` owns the socket and its tuning, `frames` reads and writes messages on a stream.
//! **Why.** All limits that protect this host from what comes over the network stand in this folder.
//! **Invariants.** No byte reaches the store before its chunk's BLAKE3 was compared with the manifest.

pub mod endpoint;
pub mod frames;
