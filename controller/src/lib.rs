//! Hearth controller.

pub mod clock;
pub mod task;
