//! What the controller keeps on disk: content objects, originals and variants.
//!
//! **What.** [`ContentStore`] holds the packed chunks that agents fetch, [`Originals`] the files that were uploaded,
//! [`Variants`] what was made of contents for downloads.
//!
//! **Why packed once.** Serving a piece is one `pread` without any compression; a thousand hosts that fetch the same
//! image cost the controller reads from the page cache.
//!
//! **Invariants.** Paths are made from digests and ids alone, never from names that people choose. Everything that has
//! its final name is whole and synced.

mod carry;
mod error;
mod heal;
pub mod index;
mod manifest_file;
mod materialise;
mod object;
mod originals;
mod pack;
mod store;
mod sums;
#[cfg(test)]
mod tests;
mod variants;
mod write;

pub use carry::{Carried, Carrying};
pub use error::ContentError;
pub(crate) use error::on;
pub use heal::{ContentSource, restage};
pub use object::{ContentObject, StoredChunk, StoredRun};
pub(crate) use originals::is_zero;
pub use originals::{Original, OriginalWriter, Originals};
pub use pack::{Packer, Unpacker};
pub use store::{ContentStore, Published};
pub use sums::Sums;
pub use variants::{VARIANTS_FOLDER, VariantFile, Variants};
pub use write::{ObjectWriter, PackedChunk, Staged};

/// The store's folder, in the state folder and in a backup alike.
pub const CONTENT_FOLDER: &str = "content";
