//! Harness of the end-to-end tests: real daemons on loopback, in folders that go away.
//!
//! **What.** [`cluster::Cluster`] starts a controller and agents as processes, enrols the agents through the API and can kill
//! and restart each; [`api::Api`] calls the HTTP API; [`disk`] makes small disks with a file system; [`small_disk`] mounts
//! a file system that can be full; [`wall_clock`] sets the time of a daemon; [`wait`] waits for a predicate.
//! **Why processes.** What is killed with `kill -9` must be a process, and what is tested must be what is installed.
//! **Invariants.** No test waits for a fixed time; no daemon outlives its cluster; nothing leaves loopback.

pub mod api;
pub mod cluster;
pub mod daemon;
pub mod disk;
pub mod programs;
pub mod small_disk;
pub mod wait;
pub mod wall_clock;
