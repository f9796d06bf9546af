//! Hearth controller.

pub mod clock;
pub mod ingest;
pub mod logic;
pub mod task;
