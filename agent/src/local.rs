//! The local socket: what scripts on the host ask the agent.
//!
//! **What.** `message` is the protocol (one JSON line per request and per answer), `server` the socket, `answer` what each
//! request does, `client` the subcommands of `hearth-agent` with their exit codes.
//! **Why a socket and JSON lines.** A hypervisor's hook must get a path and a lease in milliseconds without a controller,
//! and any language can write a line of JSON. Rights are those of the socket file: its group may use it.
//! **Invariants.** Every line, wait and number of connections is bounded; each request is logged with the peer's ids.

mod answer;
pub mod client;
pub mod message;
mod server;
#[cfg(test)]
mod tests;

pub use answer::{Context, NoContext};
pub use server::{LocalError, serve};

/// Where the socket is unless the configuration says otherwise.
pub const SOCKET_DEFAULT: &str = "/run/hearth/agent.sock";
