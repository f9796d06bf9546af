//! Moving bytes: the QUIC endpoint, fetching and serving chunks.
//!
//! **What.** `endpoint` owns the `socket` and its tuning, `frames` reads and writes messages on a stream, `heard` watches one, `link` lends
//! streams of a source, `ask` asks, `decode` unpacks and writes, `fetch` is one whole transfer, `timeline` says where its
//! time went, `serve` answers others.
//! **Why.** All limits that protect this host from what comes over the network stand in this folder.
//! **Invariants.** No byte reaches the store before its chunk's BLAKE3 was compared with the manifest.

pub mod ask;
pub mod decode;
pub mod endpoint;
pub mod fetch;
pub mod frames;
pub mod heard;
pub mod link;
pub mod rate;
pub mod serve;
#[cfg(test)]
pub(crate) mod tests;
mod timeline;
