//! Hearth controller.

pub mod clock;
pub mod config;
pub mod content;
pub mod db;
pub mod fleet;
pub mod ingest;
pub mod logic;
pub mod task;
