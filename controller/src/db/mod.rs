//! What the controller must not forget: the catalog, the fleet, intents, jobs and the operation log.
//!
//! **What.** [`Db`] is a store of nouns (one file each), not of keys: every method is one transaction that leaves the
//! data in a state that makes sense. SQLite embedded by default, PostgreSQL when one machine is outgrown.
//!
//! **Why one SQL text.** Two texts drift apart, and the engine that is tested less is the one that loses data. The price
//! are rules (types TEXT, BIGINT and BYTEA only, `$1` placeholders, casts on aggregates) that `tests/tidy` holds and a
//! conformance suite that runs every promise against both engines.
//!
//! **Invariants.**
//! 1. A method that returned `Ok` survives `kill -9` and power loss (`synchronous=FULL`, `synchronous_commit=on`).
//! 2. Nothing writes outside [`Db::write_tx`]: an SQLite connection of its own with `BEGIN IMMEDIATE`, or a SERIALIZABLE
//!    PostgreSQL transaction that is repeated on conflict. An update that was read is never lost.
//! 3. What an operator did and the operation row that says so are one transaction.
//! 4. SQL never looks into JSON and never makes an id.

pub mod backup;
pub mod cache_list;
mod cache_pages;
pub mod changes;
pub mod contents;
pub mod enrolment;
pub mod entries;
mod error;
pub(crate) mod grams;
mod ids;
pub mod image_changes;
pub mod images;
pub mod intents;
pub mod jobs;
pub mod join_tokens;
pub mod leases;
pub mod locations;
mod narrow;
pub mod operations;
mod page;
pub mod prewarm_targets;
pub mod prewarms;
mod schema;
pub mod sealer;
mod sql;
mod store;
pub mod tenants;
pub mod tokens;

pub use changes::Change;
pub use error::DbError;
pub use ids::{NewId, new_id};
pub use page::PageRequest;
pub use schema::Upgraded;
pub use store::{Db, Engine, Tx};
