//! End to end: real daemons on loopback, real images, the HTTP API and the command line.
//!
//! **What.** One binary, one file per theme. Every test has its own cluster in its own folder.
//! **Invariants.** A test waits on a predicate, never on time; what it names as bytes is compared byte for byte.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod away;
mod backup;
mod cache;
mod clock;
mod command_line;
mod damage;
mod encryption;
mod formats;
mod full_disk;

mod host_image;
mod identity;
mod kill;
mod market;
mod memory;
mod openapi;
mod people;
mod prewarm;
mod renewal;
mod restart;
mod sharing;
mod sources;
mod swarm;
mod trust;
mod typed;
mod walk_through;
