//! Names of everything in the cache folder, and the few durable steps on names.
//!
//! **What.**
//! ```text
//! FORMAT                            "hearth-cache 1\n"
//! LOCK                              held while an agent uses the folder
//! HOLDS                             what the controller and local operators hold
//! staging/<content>.raw             a content while it is written; also .manifest and .journal
//! objects/<2 hex>/<content>.raw     a disk, active or being checked;  .file for kind `file`
//! meta/<content>.manifest           root and pages;  meta/<content>.chunks  where each chunk stands, for reuse
//! leases/<lease>.json               one durable lease
//! trash/  quarantine/  db/          names taken away; bytes that failed a check; the sled index
//! ```
//! **Why names from ids.** An id prints as hex digits only, so no name from outside ever becomes part of a path.
//! **Invariants.** All folders are on one file system, so every rename is atomic; a rename counts only after `sync_dir`.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::LeaseId;
use hearth_protocol::words::ContentKind;
use nix::fcntl::RenameFlags;
use nix::unistd::{Gid, Group};

use super::config::StoreConfig;
use super::error::StoreError;

/// Content of `FORMAT`. Another number is another layout.
pub(crate) const FORMAT: &str = "hearth-cache 1\n";
/// Mode of a finished object: nobody writes it, owner and group read it.
pub(crate) const OBJECT_MODE: u32 = 0o440;
/// Mode of a file that is being written.
pub(crate) const STAGING_MODE: u32 = 0o600;
/// Folders on the way to objects: the group passes through and looks; new entries take the folder's group.
const SHARED_DIR_MODE: u32 = 0o2750;
/// The bit with which new entries take the folder's group.
const SET_GROUP_ID: u32 = 0o2000;
/// Bits that mkdir(2) takes; the kernel adds the set-group-id bit of the folder above by itself.
const CREATE_BITS: u32 = 0o777;
/// Folders that only the agent uses.
const OWN_DIR_MODE: u32 = 0o700;

/// Paths of one cache folder.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// The folder.
    pub(crate) dir: PathBuf,
    consumer_objects: PathBuf,
    gid: Option<Gid>,
}

impl Layout {
    /// Makes the folders that are missing and sets modes and group.
    ///
    /// # Errors
    /// [`StoreError::Io`] or [`StoreError::NoGroup`].
    pub(crate) fn create(config: &StoreConfig) -> Result<Self, StoreError> {
        let gid = group_id(config)?;
        let objects = config.dir.join("objects");
        let consumer_objects = config.consumer_dir.clone().unwrap_or_else(|| objects.clone());
        let layout = Self { dir: config.dir.clone(), consumer_objects, gid };
        let existed = layout.dir.is_dir();
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(SHARED_DIR_MODE & CREATE_BITS);
        builder.create(&layout.dir).map_err(StoreError::io("create", &layout.dir))?;
        if !existed && let Some(parent) = layout.dir.parent() {
            sync_dir(parent)?;
        }
        let mut group_refused = layout.shared_dir(&layout.dir)?;
        for name in ["staging", "meta", "leases", "trash", "quarantine"] {
            let path = layout.dir.join(name);
            make_dir(&path, OWN_DIR_MODE)?;
        }
        make_dir(&objects, SHARED_DIR_MODE)?;
        group_refused |= layout.shared_dir(&objects)?;
        if group_refused {
            tracing::warn!(
                dir = %layout.dir.display(),
                group = config.group.as_deref().unwrap_or_default(),
                "no right to give the cache to this group: files keep the agent's own group; put the agent's user into it"
            );
        }
        layout.check_one_file_system()?;
        sync_dir(&layout.dir)?;
        Ok(layout)
    }

    /// Gives a folder the group and the set-group-id bit. Returns whether the group was refused.
    fn shared_dir(&self, path: &Path) -> Result<bool, StoreError> {
        let refused = match self.gid {
            None => false,
            Some(gid) => {
                let has = fs::metadata(path).map_err(StoreError::io("look at", path))?.gid() == gid.as_raw();
                !has && nix::unistd::chown(path, None, Some(gid)).is_err()
            }
        };
        set_mode(path, SHARED_DIR_MODE)?;
        Ok(refused)
    }

    /// A folder mounted inside the cache would make a rename copy, or fail.
    fn check_one_file_system(&self) -> Result<(), StoreError> {
        let device =
            |path: &Path| fs::metadata(path).map(|meta| meta.dev()).map_err(StoreError::io("look at", path));
        let top = device(&self.dir)?;
        for name in ["staging", "objects", "meta", "leases", "trash", "quarantine"] {
            let path = self.dir.join(name);
            if device(&path)? != top {
                let source = io::Error::other("it is on another file system than the cache folder");
                return Err(StoreError::Io { what: "use", path, source });
            }
        }
        Ok(())
    }

    /// Gives a new object file its group, as far as there are rights; the folder warned once already. A file that
    /// inherited the group needs nothing: the shipped unit has no right to give files away.
    pub(crate) fn give_group(&self, file: &File) {
        if let Some(gid) = self.gid
            && file.metadata().map_or(true, |meta| meta.gid() != gid.as_raw())
            && let Err(error) = nix::unistd::fchown(file, None, Some(gid))
        {
            tracing::debug!(%error, "object keeps the agent's own group");
        }
    }

    pub(crate) fn db(&self) -> PathBuf {
        self.dir.join("db")
    }

    pub(crate) fn staging_dir(&self) -> PathBuf {
        self.dir.join("staging")
    }

    pub(crate) fn staging(&self, content: ContentId) -> PathBuf {
        self.staging_dir().join(format!("{content}.raw"))
    }

    pub(crate) fn staging_manifest(&self, content: ContentId) -> PathBuf {
        self.staging_dir().join(format!("{content}.manifest"))
    }

    pub(crate) fn journal(&self, content: ContentId) -> PathBuf {
        self.staging_dir().join(format!("{content}.journal"))
    }

    pub(crate) fn objects_dir(&self) -> PathBuf {
        self.dir.join("objects")
    }

    /// Folder of one object.
    pub(crate) fn object_dir(&self, content: ContentId) -> PathBuf {
        self.objects_dir().join(format!("{:02x}", content.as_bytes()[0]))
    }

    pub(crate) fn object(&self, content: ContentId, kind: ContentKind) -> PathBuf {
        self.object_dir(content).join(object_name(content, kind))
    }

    /// The object as consumers see it.
    pub(crate) fn consumer_path(&self, content: ContentId, kind: ContentKind) -> PathBuf {
        let folder = format!("{:02x}", content.as_bytes()[0]);
        self.consumer_objects.join(folder).join(object_name(content, kind))
    }

    /// Makes the folder of an object.
    pub(crate) fn make_object_dir(&self, content: ContentId) -> Result<PathBuf, StoreError> {
        let path = self.object_dir(content);
        if !path.is_dir() {
            make_dir(&path, SHARED_DIR_MODE)?;
            self.shared_dir(&path)?;
            sync_dir(&self.objects_dir())?;
        }
        Ok(path)
    }

    pub(crate) fn meta_dir(&self) -> PathBuf {
        self.dir.join("meta")
    }

    pub(crate) fn manifest(&self, content: ContentId) -> PathBuf {
        self.meta_dir().join(format!("{content}.manifest"))
    }

    pub(crate) fn chunks(&self, content: ContentId) -> PathBuf {
        self.meta_dir().join(format!("{content}.chunks"))
    }

    pub(crate) fn leases_dir(&self) -> PathBuf {
        self.dir.join("leases")
    }

    pub(crate) fn lease(&self, lease: LeaseId) -> PathBuf {
        self.leases_dir().join(format!("{lease}.json"))
    }

    pub(crate) fn trash_dir(&self) -> PathBuf {
        self.dir.join("trash")
    }

    /// A damaged object, kept because most of its chunks are still good.
    pub(crate) fn quarantined(&self, content: ContentId) -> PathBuf {
        self.quarantine_dir().join(format!("{content}.raw"))
    }

    pub(crate) fn quarantine_dir(&self) -> PathBuf {
        self.dir.join("quarantine")
    }
}

fn object_name(content: ContentId, kind: ContentKind) -> String {
    match kind {
        ContentKind::Disk => format!("{content}.raw"),
        ContentKind::File => format!("{content}.file"),
    }
}

/// The content and kind that a file name in `objects/` stands for.
pub(crate) fn parse_object_name(name: &str) -> Option<(ContentId, ContentKind)> {
    let (id, ending) = name.split_once('.')?;
    let kind = match ending {
        "raw" => ContentKind::Disk,
        "file" => ContentKind::File,
        _ => return None,
    };
    Some((id.parse().ok()?, kind))
}

/// The content and ending of a file name in `staging/` or `meta/`.
pub(crate) fn parse_content_name(name: &str) -> Option<(ContentId, &str)> {
    let (id, ending) = name.split_once('.')?;
    Some((id.parse().ok()?, ending))
}

fn group_id(config: &StoreConfig) -> Result<Option<Gid>, StoreError> {
    let Some(name) = &config.group else { return Ok(None) };
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(Some(group.gid)),
        _ => Err(StoreError::NoGroup { group: name.clone() }),
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), StoreError> {
    if !path.is_dir() {
        DirBuilder::new().mode(mode & CREATE_BITS).create(path).map_err(StoreError::io("create", path))?;
        set_mode(path, mode)?; // the umask may have taken bits away
    }
    Ok(())
}

/// Sets the mode of a folder, unless it has it. A set-group-id bit that the folder inherited stays, so that what is
/// made below takes the group of the cache; under the shipped unit no program may set that bit itself.
fn set_mode(path: &Path, mode: u32) -> Result<(), StoreError> {
    let is = fs::metadata(path).map_err(StoreError::io("look at", path))?.mode() & 0o7777;
    let wanted = mode | (is & SET_GROUP_ID);
    if is == wanted {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(wanted)).map_err(StoreError::io("set the mode of", path))
}

/// Makes renames, creations and deletions in a folder durable.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    let shown = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(shown).and_then(|dir| dir.sync_all()).map_err(StoreError::io("sync the folder", path))
}

/// Whether a rename found its target taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Renamed {
    /// The file has its new name.
    Done,
    /// The target exists; nothing was changed.
    TargetExists,
}

/// Renames without ever replacing a file. The caller syncs the folders.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<Renamed, StoreError> {
    let here = nix::fcntl::AT_FDCWD;
    match nix::fcntl::renameat2(here, from, here, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => Ok(Renamed::Done),
        Err(nix::Error::EEXIST) => Ok(Renamed::TargetExists),
        // Some file systems cannot; the folder's lock makes this look-then-rename safe among agents.
        Err(nix::Error::EINVAL) if to.exists() => Ok(Renamed::TargetExists),
        Err(nix::Error::EINVAL) => {
            fs::rename(from, to).map_err(StoreError::io("rename", from)).map(|()| Renamed::Done)
        }
        Err(error) => Err(StoreError::Io { what: "rename", path: from.to_owned(), source: error.into() }),
    }
}

/// Deletes a file that may already be gone. Returns whether it was there.
pub(crate) fn remove_if_there(path: &Path) -> Result<bool, StoreError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::Io { what: "delete", path: path.to_owned(), source: error }),
    }
}

/// Deletes whatever stands there, a folder with all that is in it.
pub(crate) fn remove_tree(path: &Path) -> Result<(), StoreError> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).map_err(StoreError::io("delete", path)),
        _ => remove_if_there(path).map(|_| ()),
    }
}

/// Writes a small file so that after a crash it is there whole, in the old or in the new form.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let new = path.with_extension("new");
    let write = || {
        let mut file = File::create(&new)?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(StoreError::io("write", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_parsed() {
        let id = ContentId::of(b"x");
        assert_eq!(parse_object_name(&format!("{id}.raw")), Some((id, ContentKind::Disk)));
        assert_eq!(parse_object_name(&format!("{id}.file")), Some((id, ContentKind::File)));
        for wrong in ["", "x.raw", &format!("{id}"), &format!("{id}.raw.bak"), &format!("../{id}.raw")] {
            assert_eq!(parse_object_name(wrong), None, "{wrong}");
        }
        assert_eq!(parse_content_name(&format!("{id}.chunks")), Some((id, "chunks")));
    }

    #[test]
    fn folders_in_a_set_group_id_cache_inherit_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        fs::create_dir(&cache).unwrap();
        fs::set_permissions(&cache, Permissions::from_mode(SHARED_DIR_MODE)).unwrap();
        let layout = Layout::create(&StoreConfig::new(&cache, 1 << 20)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&cache), mode(&layout.objects_dir())), (0o2750, 0o2750));
        assert_eq!(mode(&layout.staging_dir()), 0o2700);
        let object_dir = layout.make_object_dir(ContentId::of(b"x")).unwrap();
        assert_eq!(mode(&object_dir), 0o2750);
        assert_eq!(fs::metadata(&object_dir).unwrap().gid(), fs::metadata(&cache).unwrap().gid());
    }

    #[test]
    fn a_rename_never_replaces_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "a").unwrap();
        fs::write(&b, "b").unwrap();
        assert_eq!(rename_new(&a, &b).unwrap(), Renamed::TargetExists);
        assert_eq!(fs::read(&b).unwrap(), b"b");
        fs::remove_file(&b).unwrap();
        assert_eq!(rename_new(&a, &b).unwrap(), Renamed::Done);
        assert_eq!(fs::read(&b).unwrap(), b"a");
    }
}
