//! What stands in `objects/`: listing it, looking at one file, and moving aside what does not belong there.
//!
//! **What.** The view of the disk that recovery at start and the hourly comparison share.
//! **Why one place.** Two readings of the same folder would sooner or later believe different things.
//! **Invariants.** Nothing in here deletes, and nothing is believed of a file but what its manifest says.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use hearth_protocol::digest::ContentId;
use hearth_protocol::words::ContentKind;

use super::config::ContentSpec;
use super::error::StoreError;
use super::index::Stamp;
use super::layout::{Layout, OBJECT_MODE, parse_object_name, sync_dir};
use super::manifest_file::ManifestFile;
use crate::clock;

/// A path in `objects/`, and what its name says if it is one of ours in its place.
pub(super) type Named = (PathBuf, Option<(ContentId, ContentKind)>);

/// What a path holds.
#[derive(Debug)]
pub(super) enum Look {
    /// Nothing, not even a dead link.
    Missing,
    /// Not a plain file, or without a usable manifest of that kind.
    Foreign,
    /// A plain file, and what its manifest says that it should be.
    File(ContentSpec, Box<fs::Metadata>),
}

/// Every path below `objects/`, in order. `unlisted` hears of each folder in it that cannot be listed, and decides whether
/// that ends the walk.
pub(super) fn walk(
    layout: &Layout,
    mut unlisted: impl FnMut(StoreError) -> Result<(), StoreError>,
) -> Result<Vec<Named>, StoreError> {
    let mut found = Vec::new();
    for dir in list(&layout.objects_dir())? {
        if !fs::symlink_metadata(&dir).is_ok_and(|meta| meta.is_dir()) {
            found.push((dir, None));
            continue;
        }
        let paths = match list(&dir) {
            Ok(paths) => paths,
            Err(error) => {
                unlisted(error)?;
                continue;
            }
        };
        for path in paths {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(parse_object_name);
            let name = name.filter(|(content, kind)| layout.object(*content, *kind) == path);
            found.push((path, name));
        }
    }
    Ok(found)
}

/// Looks at the path of an object.
pub(super) fn look(layout: &Layout, content: ContentId, kind: ContentKind) -> Result<Look, StoreError> {
    let path = layout.object(content, kind);
    let meta = match fs::symlink_metadata(&path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Look::Missing),
        Err(source) => return Err(StoreError::Io { what: "look at", path, source }),
    };
    match ManifestFile::open(&layout.manifest(content), content) {
        Ok(manifest) if meta.is_file() && manifest.root().kind() == kind => {
            let root = manifest.root();
            let spec =
                ContentSpec { content, kind, raw_bytes: root.raw_bytes(), data_bytes: root.data_bytes() };
            Ok(Look::File(spec, Box::new(meta)))
        }
        Err(StoreError::Io { what, path, source }) if source.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Io { what, path, source })
        }
        // Without its manifest nobody can say what the bytes should be.
        _ => Ok(Look::Foreign),
    }
}

/// Whether `meta` is a plain file as a finished object is, and the very one with this stamp.
pub(super) fn unchanged(meta: &fs::Metadata, spec: &ContentSpec, stamp: Option<Stamp>) -> bool {
    meta.is_file()
        && meta.len() == spec.raw_bytes
        && meta.mode() & 0o7777 == OBJECT_MODE
        && stamp == Some(Stamp::of(meta))
}

/// Moves something that should not be there to `quarantine/`. The caller syncs with [`sync_put_away`].
pub(super) fn put_away(layout: &Layout, path: &Path) -> Result<(), StoreError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let target = layout.quarantine_dir().join(format!("{:020}.{name}", clock::unix_us()));
    fs::rename(path, &target).map_err(StoreError::io("rename", path))
}

/// Makes [`put_away`] durable.
pub(super) fn sync_put_away(layout: &Layout, path: &Path) -> Result<(), StoreError> {
    path.parent().map_or(Ok(()), sync_dir)?;
    sync_dir(&layout.quarantine_dir())
}

/// Paths in a folder, in order.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        paths.push(entry.map_err(StoreError::io("list", dir))?.path());
    }
    paths.sort();
    Ok(paths)
}
