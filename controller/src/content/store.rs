//! The folder in which content objects live.
//!
//! **What.** `objects/<2 hex>/<content id>` (stored chunks), `.index`, `.manifest`; publishing, opening, mending,
//! removing, and cleaning up after a crash.
//!
//! **Why three files.** The object and the manifest never change; the index does when a chunk is packed again. It is
//! renamed last and first removed, so *a content is there exactly if its index is*.
//!
//! **Invariants**, each tested: nothing appears under an id before all of it is synced; a crash at any moment leaves the
//! old content or the new one; two imports of equal bytes end in one object; damaged files are named, not served.
//!
//! A mended content gets a new object file `<content id>.g<generation>`; the index says which one counts.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use hearth_protocol::digest::ContentId;

use super::error::{ContentError, make_folder, on, sync_folder};
use super::index::IndexFile;
use super::manifest_file::ManifestFile;
use super::object::ContentObject;
use super::write::{INDEX, MANIFEST, OBJECT, Staged};

/// Contents kept open at once, three descriptors each; protects the daemon's file limit.
const OPEN_MAX: usize = 128;
/// Threads that check an existing object when equal bytes are imported again.
const VERIFY_THREADS: usize = 2;

/// See the module.
#[derive(Debug)]
pub struct ContentStore {
    objects: PathBuf,
    /// An empty file per content that may have to go; see [`ContentStore::leaving`].
    leaving: PathBuf,
    open: Mutex<HashMap<ContentId, Arc<ContentObject>>>,
    /// Publishing, mending and removing happen one at a time.
    change: Mutex<()>,
}

/// What became of a staged content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Published {
    /// It is new.
    New,
    /// The same content was there, and all of it is good; the staged files are gone.
    Reused,
    /// The same content was there, damaged; the staged files took its place.
    Replaced,
}

/// The files of one content.
pub(super) struct Names {
    pub(super) folder: PathBuf,
    id: String,
}

impl Names {
    pub(super) fn object(&self, generation: u32) -> PathBuf {
        match generation {
            0 => self.folder.join(&self.id),
            n => self.folder.join(format!("{}.g{n}", self.id)),
        }
    }
    pub(super) fn index(&self) -> PathBuf {
        self.folder.join(format!("{}.index", self.id))
    }
    pub(super) fn manifest(&self) -> PathBuf {
        self.folder.join(format!("{}.manifest", self.id))
    }
}

impl ContentStore {
    /// Opens the store in `folder`, making it if need be, and removes what a crash left behind.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn new(folder: &Path) -> Result<Self, ContentError> {
        let store = Self::beside(folder)?;
        sync_folder(folder)?;
        store.recover()?;
        Ok(store)
    }

    /// The store in `folder` as it is, which another process may work with: nothing is cleaned up. Made if need be.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn beside(folder: &Path) -> Result<Self, ContentError> {
        let objects = folder.join("objects");
        make_folder(&objects)?;
        let leaving = folder.join("leaving");
        make_folder(&leaving)?;
        Ok(Self { objects, leaving, open: Mutex::default(), change: Mutex::default() })
    }

    /// Opens a content; the second time it is only looked up.
    ///
    /// # Errors
    /// [`ContentError::NotFound`], [`ContentError::Damaged`], [`ContentError::File`].
    pub fn open(&self, content: ContentId) -> Result<Arc<ContentObject>, ContentError> {
        if let Some(object) = lock(&self.open).get(&content) {
            return Ok(Arc::clone(object));
        }
        let object = Arc::new(self.open_files(content)?);
        let mut open = lock(&self.open);
        if open.len() >= OPEN_MAX {
            // Whatever is in use keeps its own reference; the rest is cheap to open again.
            open.retain(|_, object| Arc::strong_count(object) > 1);
            if open.len() >= OPEN_MAX {
                open.clear();
            }
        }
        open.insert(content, Arc::clone(&object));
        Ok(object)
    }

    pub(super) fn open_files(&self, content: ContentId) -> Result<ContentObject, ContentError> {
        let names = self.names(content);
        open_files(content, &names.index(), &names.manifest(), |generation| names.object(generation))
    }

    /// Folder in which `content` may be staged while it is mended: on the same file system, emptied by the importer at
    /// start. One at a time per content; what an earlier try left there is removed.
    #[must_use]
    pub fn staging(&self, content: ContentId) -> PathBuf {
        let folder = self.objects.with_file_name("staging").join(format!("{content}.mend"));
        if let Err(error) = fs::remove_dir_all(&folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %folder.display(), %error, "cannot remove what an earlier try left");
        }
        folder
    }

    /// Whether a content is there; says nothing of its health.
    #[must_use]
    pub fn contains(&self, content: ContentId) -> bool {
        self.names(content).index().exists()
    }

    /// All contents, in the order of the folder.
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn list(&self) -> Result<Vec<ContentId>, ContentError> {
        let mut contents = Vec::new();
        self.for_each_file(|_, name| {
            contents.extend(name.strip_suffix(".index").and_then(|id| id.parse::<ContentId>().ok()));
            Ok(())
        })?;
        Ok(contents)
    }

    /// Gives a staged content its place. Where the same content is already, that one is verified first and kept if all
    /// of it is good.
    ///
    /// # Errors
    /// [`ContentError::File`], [`ContentError::NoSpace`], [`ContentError::Cancelled`]; the staged files are gone then.
    pub fn publish(&self, staged: Staged, cancel: &AtomicBool) -> Result<Published, ContentError> {
        let _change = lock(&self.change);
        let content = staged.root.content_id();
        let there = self.contains(content);
        if there && self.is_good(content, cancel)? {
            return Ok(Published::Reused);
        }
        self.replace(staged)?;
        Ok(if there { Published::Replaced } else { Published::New })
    }

    fn is_good(&self, content: ContentId, cancel: &AtomicBool) -> Result<bool, ContentError> {
        let checked =
            self.open_files(content).and_then(|object| object.verify_all(VERIFY_THREADS, cancel, &|_| ()));
        match checked {
            Ok(bad) => Ok(bad.is_empty()),
            Err(ContentError::Cancelled) => Err(ContentError::Cancelled),
            Err(error) => {
                tracing::warn!(%content, %error, "stored content is damaged and is replaced");
                Ok(false)
            }
        }
    }

    /// Moves the staged files into place under the next free generation; the index is renamed last.
    fn replace(&self, staged: Staged) -> Result<(), ContentError> {
        let content = staged.root.content_id();
        let names = self.names(content);
        fs::create_dir_all(&names.folder).map_err(on("create", &names.folder))?;
        sync_folder(&self.objects)?;
        let generation = (0..u32::MAX).find(|&n| !names.object(n).exists()).unwrap_or(u32::MAX);
        let staged_index = staged.folder.0.join(INDEX);
        if generation > 0 {
            super::heal::renumber(&staged_index, generation, staged.object_bytes)?;
        }
        rename(&staged.folder.0.join(OBJECT), &names.object(generation))?;
        rename(&staged.folder.0.join(MANIFEST), &names.manifest())?;
        sync_folder(&names.folder)?;
        rename(&staged_index, &names.index())?;
        sync_folder(&names.folder)?;
        self.forget(content);
        remove_other_generations(&names, generation)
    }

    /// Removes a content. Readers that have it open can go on; nobody finds it again.
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn remove(&self, content: ContentId) -> Result<(), ContentError> {
        let _change = lock(&self.change);
        let names = self.names(content);
        self.forget(content);
        remove_file(&names.index())?;
        if names.folder.exists() {
            sync_folder(&names.folder)?;
            remove_file(&names.manifest())?;
            remove_other_generations(&names, u32::MAX)?;
            remove_file(&names.object(0))?;
        }
        Ok(())
    }

    /// Marks a content that is about to be forgotten: whoever deletes its row calls this before and [`Self::decided`]
    /// after the files are gone, or when the row stays. The same for one that is published and may never get a row. Of what is
    /// marked at start, the rows say which of the two it is.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn leaving(&self, content: ContentId) -> Result<(), ContentError> {
        let path = self.leaving.join(content.to_string());
        File::create(&path).map_err(on("create", &path))?;
        sync_folder(&self.leaving)
    }

    /// See [`Self::leaving`].
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn decided(&self, content: ContentId) -> Result<(), ContentError> {
        remove_file(&self.leaving.join(content.to_string()))
    }

    /// Contents that are marked.
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn undecided(&self) -> Result<Vec<ContentId>, ContentError> {
        let files = fs::read_dir(&self.leaving).map_err(on("list", &self.leaving))?;
        let names = files.map(|file| file.map(|file| file.file_name()).map_err(on("list", &self.leaving)));
        let names = names.collect::<Result<Vec<_>, _>>()?;
        Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    /// Removes files of contents without an index, half-written indexes, and objects no index names.
    fn recover(&self) -> Result<(), ContentError> {
        self.for_each_file(|path, name| {
            let (id, rest) = name.split_at_checked(64).unwrap_or((name, ""));
            let Ok(content) = id.parse::<ContentId>() else { return Ok(()) };
            let names = self.names(content);
            let left = match rest {
                ".index" => false,
                ".index.new" => true,
                _ if !names.index().exists() => true,
                ".manifest" => false,
                // An index that cannot be read says nothing about the object: keep all for mending.
                _ => match self.open_files(content) {
                    Ok(object) => object.object_path != *path,
                    Err(_) => false,
                },
            };
            if left {
                tracing::info!(path = %path.display(), "removing what an interrupted import left");
                remove_file(path)?;
            }
            Ok(())
        })
    }

    fn for_each_file(
        &self,
        mut each: impl FnMut(&Path, &str) -> Result<(), ContentError>,
    ) -> Result<(), ContentError> {
        for shard in fs::read_dir(&self.objects).map_err(on("list", &self.objects))? {
            let shard = shard.map_err(on("list", &self.objects))?.path();
            if !shard.is_dir() {
                continue;
            }
            for file in fs::read_dir(&shard).map_err(on("list", &shard))? {
                let path = file.map_err(on("list", &shard))?.path();
                if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
                    each(&path, name)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn names(&self, content: ContentId) -> Names {
        let id = content.to_string();
        let shard: String = id.chars().take(2).collect();
        Names { folder: self.objects.join(shard), id }
    }

    /// Drops the open files of a content, so that the next reader sees the new ones.
    pub(super) fn forget(&self, content: ContentId) {
        lock(&self.open).remove(&content);
    }

    /// Drops all open files, as a restart does.
    #[cfg(test)]
    pub(crate) fn close_files(&self) {
        lock(&self.open).clear();
    }

    pub(super) fn changing(&self) -> MutexGuard<'_, ()> {
        lock(&self.change)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens and checks the three files of a content; `object_path` names the object of a generation.
pub(super) fn open_files(
    content: ContentId,
    index_path: &Path,
    manifest_path: &Path,
    object_path: impl Fn(u32) -> PathBuf,
) -> Result<ContentObject, ContentError> {
    let damaged = |part| ContentError::Damaged { content, part };
    let index = open_part(index_path, || ContentError::NotFound { content })?;
    let index = IndexFile::open(index).map_err(on("read", index_path))?.map_err(|_| damaged("index"))?;
    let manifest = open_part(manifest_path, || damaged("manifest"))?;
    let manifest = ManifestFile::open(manifest, content).map_err(on("read", manifest_path))?;
    let manifest = manifest.map_err(|_| damaged("manifest"))?;
    if index.header.content != content || index.header.n_chunks != manifest.root.n_chunks() {
        return Err(damaged("index"));
    }
    let object_path = object_path(index.header.generation);
    let object = open_part(&object_path, || damaged("object"))?;
    if object.metadata().map_err(on("open", &object_path))?.len() < index.header.object_bytes {
        return Err(damaged("object"));
    }
    Ok(ContentObject { content, manifest, index, object, object_path, pieces: OnceLock::new() })
}

fn open_part(path: &Path, missing: impl Fn() -> ContentError) -> Result<File, ContentError> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing()),
        file => file.map_err(on("open", path)),
    }
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), ContentError> {
    fs::rename(from, to).map_err(on("rename", from))
}

fn remove_file(path: &Path) -> Result<(), ContentError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(on("remove", path)),
    }
}

/// Removes the object files of a content but for that of `generation`.
fn remove_other_generations(names: &Names, generation: u32) -> Result<(), ContentError> {
    let keep = names.object(generation);
    let prefix = format!("{}.g", names.id);
    for file in fs::read_dir(&names.folder).map_err(on("list", &names.folder))? {
        let path = file.map_err(on("list", &names.folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if (name == names.id || name.starts_with(&prefix)) && path != keep {
            remove_file(&path)?;
        }
    }
    Ok(())
}
