//! Decisions of the controller: pure functions that take `now` and a snapshot and return a plan.
//!
//! **What.** Which locations a selector names, what a location should hold, which transfers may run, how a prewarm job
//! advances, who is silent, who may enrol, who may do what, what may stand in a record. Nothing here waits, stores, logs
//! or reads a clock; `fleet` and `api` perform.
//! **Why apart.** These rules decide what a thousand hosts do; here each is compared with a slow obvious version.

pub mod admission;
pub mod attributes;
pub mod authz;
pub mod catalog;
pub mod chain;
pub mod deletion;
pub mod distributions;
pub mod downloads;
pub mod fair;
pub mod fetch;
pub mod forecast;
pub mod ftp;
pub mod glob;
pub mod guesses;
pub mod hold;
pub mod host_image;
pub mod host_state;
pub mod join;
pub mod launch;
pub mod liveness;
pub mod login;
pub mod market;
pub mod pace;
pub mod plan;
pub mod prewarm;
pub mod quota;
pub mod rate;
pub mod selector;
pub mod sharing;
pub mod slots;
pub mod source;
pub mod swarm;
pub mod variant;
