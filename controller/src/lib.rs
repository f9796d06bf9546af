//! Hearth controller: catalog, content, fleet and the HTTP interface.

pub mod admin;
pub mod api;
pub mod clock;
pub mod config;
pub mod content;
pub mod db;
pub mod fleet;
pub mod ingest;
pub mod jobs;
pub mod logic;
pub mod metrics;
pub mod passwords;
pub mod serve;
pub mod state;
pub mod sys;
pub mod task;
