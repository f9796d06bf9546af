//! Takes uploaded files in: inspection, conversion, cutting, publishing.
//!
//! **What.** [`job`] runs the stages in order: [`inspect`] says whether the file is an image we take, [`convert`] makes it
//! raw (or [`encrypt`] an encrypted file) in the [`sandbox`], [`chunk`] cuts and packs it, and `content` gives it its place. [`space`] keeps the disk from
//! filling up.
//!
//! **Why every stage is a plain blocking function.** They are bound by processor and disk; the caller gives each import
//! a thread of its own, and tests need no runtime.
//!
//! **Invariants.** No byte of an upload is given to another program before [`inspect`] accepted it; nothing is published
//! before it was read back and hashed.

pub mod chunk;
pub mod convert;
pub mod encrypt;
pub mod inspect;
pub mod intake;
pub mod job;
mod publish;
pub mod sandbox;
pub mod scan;
pub mod sources;
pub mod space;
pub mod unpack;
pub mod variant;
