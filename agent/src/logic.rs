//! Decisions of the agent: pure functions from a snapshot to a plan.
//!
//! **What.** One file per decision; nothing here waits, logs, reads a clock or touches a file. Shells elsewhere perform
//! what is decided here.
//! **Why.** A decision without input or output is tested by the thousand in a second, and read without the rest.
//! **Invariants.** `now` is always an argument; the same snapshot gives the same plan.

pub mod backoff;
pub mod budget;
pub mod compare;
pub mod entry;
pub mod evict;
pub mod fetch_plan;
pub mod guests;
pub mod nic;
pub mod plan_parts;
pub mod rate;
pub mod reconcile;
pub mod renewal;
pub mod repeat;
pub mod report;
pub mod swarm;
