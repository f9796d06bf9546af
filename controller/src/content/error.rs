//! Why a content cannot be stored, read or mended.
//!
//! **What.** One enum for the whole folder store: the callers tell "not there", "damaged" and "the disk said no" apart.
//! **Invariants.** A damaged file is an expected event, never a panic; each I/O error names what was tried on which path.

use std::io;
use std::path::{Path, PathBuf};

use hearth_protocol::digest::ContentId;
use hearth_protocol::manifest::ManifestError;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// No such content here.
    #[error("content {content} is not in the store")]
    NotFound {
        /// Which.
        content: ContentId,
    },
    /// A file of the content does not hold what it should; it can be made again from the original or an agent.
    #[error(
        "content {content}: {part} is damaged; mend it from the original or an agent (hearth-controller fsck)"
    )]
    Damaged {
        /// Which.
        content: ContentId,
        /// "index", "manifest", "chunk".
        part: &'static str,
    },
    /// Chunks beyond the content, or too many at once.
    #[error(
        "content {content}: chunks {first} to {end} were asked for; it has {n_chunks}, at most {max} at once"
    )]
    Range {
        /// Which.
        content: ContentId,
        /// First chunk.
        first: u32,
        /// Chunk after the last.
        end: u64,
        /// Chunks there are.
        n_chunks: u32,
        /// Chunks per read.
        max: u32,
    },
    /// Bytes given to mend a chunk are not that chunk's.
    #[error("content {content}: the bytes given for chunk {chunk} are not its bytes")]
    WrongBytes {
        /// Which content.
        content: ContentId,
        /// Which chunk.
        chunk: u32,
    },
    /// The manifest cannot be built: too large.
    #[error("cannot make a manifest")]
    Manifest(#[from] ManifestError),
    /// The file system is full.
    #[error("no space left on {path}; free some or give the controller's state folder a larger disk")]
    NoSpace {
        /// File that could not be written.
        path: PathBuf,
    },
    /// The operating system said no.
    #[error("cannot {action} {path}")]
    File {
        /// "open", "read", "write", "sync", "rename".
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// zstd failed on our own bytes.
    #[error("cannot pack a chunk")]
    Pack {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller wanted to stop.
    #[error("stopped on request")]
    Cancelled,
}

/// Makes the closure that wraps an I/O error of `action` on `path`.
pub(crate) fn on<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ContentError + 'a {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ContentError::NoSpace { path: path.to_owned() }
        }
        _ => ContentError::File { action, path: path.to_owned(), source },
    }
}

/// Makes a folder and what is missing above it, each synced into the one above it.
pub(crate) fn make_folder(path: &Path) -> Result<(), ContentError> {
    if path.is_dir() {
        return Ok(());
    }
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    let above = above.unwrap_or_else(|| Path::new("."));
    make_folder(above)?;
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(on("create", path))?,
    }
    sync_folder(above)
}

/// Syncs a folder, so that the names in it last.
pub(crate) fn sync_folder(path: &Path) -> Result<(), ContentError> {
    let folder = std::fs::File::open(path).map_err(on("open", path))?;
    folder.sync_all().map_err(on("sync", path))
}
