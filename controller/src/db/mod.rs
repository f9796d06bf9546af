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

pub mod administrators;
pub mod archive;
pub mod archived;
pub mod backup;
pub mod cache_list;
mod cache_pages;
pub mod changes;
pub mod contents;
pub mod encrypted_imports;
pub mod enrolment;
pub mod entries;
mod error;
pub(crate) mod grams;
pub mod grants;
pub mod host_image_cache;
pub mod host_image_changes;
mod host_image_grams;
pub mod host_images;
mod ids;
pub mod image_bin;
pub mod image_changes;
pub mod image_edits;
pub mod image_list;
pub mod images;
pub mod intents;
pub mod jobs;
pub mod join_tokens;
pub mod kept_answers;
pub mod keys;
pub mod leases;
pub mod links;
pub mod locations;
pub mod markets;
mod narrow;
pub mod operations;
pub mod ownership;
mod page;
pub mod placements;
pub mod prewarm_groups;
pub mod prewarm_targets;
pub mod prewarms;
pub mod quotas;
mod schema;
pub mod sealer;
pub mod shares;
mod sql;
mod store;
pub mod tenant_changes;
pub mod tenants;
pub mod tokens;
pub mod uploads;
pub mod usage;
pub mod user_changes;
pub mod users;
pub mod variants;
pub mod verify;

pub use changes::Change;
pub use error::DbError;
pub use ids::{NewId, new_id};
pub use page::PageRequest;
pub use schema::Upgraded;
pub use store::{Db, Engine, Tx, noting_writes};
