//! Hearth agent.

pub mod clock;
pub mod task;
