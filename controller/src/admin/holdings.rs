//! The contents and originals of a backup: exactly those that its copy of the database refers to.
//!
//! **What.** [`save`] carries them out of a controller that runs, [`put_back`] into one that does not run yet.
//!
//! **Why a loop instead of a lock.** Imports and deletions go on during a backup, which may copy for an hour. What the
//! database refers to is read, carried, and read again; only when nothing came or went since, and nothing comes or goes while
//! the database is copied, the copy and the files belong together. Each further round carries only what is new.
//!
//! **Invariants.** What an image that is not `active` refers to is hashed, because another upload may take its place; of a file
//! that came in several goes, which nobody hashed yet, the length is compared, and the import hashes it. What is
//! missing or damaged is named, never silently left out. No plain file of an image that is to be encrypted is carried: the import
//! removes it here, and could not there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::ImageStatus;

use super::backup::{BackupError, Manifest};
use crate::content::{
    CONTENT_FOLDER, Carried, Carrying, ContentError, ContentStore, Originals, VARIANTS_FOLDER,
};
use crate::db::Db;
use crate::db::images::Image;
use crate::jobs::encrypted::noted_contents;

/// Folder of contents, in the state folder and in a backup alike.
pub(super) const CONTENT: &str = CONTENT_FOLDER;
/// Folder of originals, alike.
pub(super) const ORIGINALS: &str = "originals";
/// Rounds until the catalog stands still for the moment that copying the database takes.
const TRIES_MAX: u32 = 100;

/// What a database refers to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Referred {
    contents: BTreeSet<ContentId>,
    originals: BTreeMap<ImageId, Wanted>,
    /// Images that are to be encrypted, and of which nothing but the plain file is there yet.
    plain: BTreeSet<ImageId>,
}

/// An original that a database refers to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Wanted {
    /// Where the file may be replaced by another upload.
    compared: Option<Compared>,
    /// Whether its absence is a loss: that of a `killed` image may have been removed.
    is_promised: bool,
}

/// By what a file is known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Compared {
    Blake3(String),
    Bytes(u64),
}

/// What a backup has.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    pub(super) contents: BTreeSet<ContentId>,
    /// With what was compared, if it was.
    pub(super) originals: BTreeMap<ImageId, Option<Compared>>,
    pub(super) missing: Vec<String>,
    pub(super) carried: Carried,
}

async fn referred(db: &Db) -> Result<Referred, BackupError> {
    let mut contents: BTreeSet<ContentId> =
        db.contents().await?.into_iter().map(|content| content.id).collect();
    // The plain original of such an import is gone, or is not to be saved: this is the image.
    let noted = noted_contents(db).await?;
    contents.extend(noted.values());
    let (encrypted, others): (Vec<_>, Vec<_>) =
        db.all_images().await?.into_iter().partition(|image| image.fixed.key.is_some());
    let waits = |image: &Image| image.status == ImageStatus::Importing && !noted.contains_key(&image.id);
    let plain = encrypted.into_iter().filter(waits).map(|image| image.id).collect();
    let originals = others.into_iter().filter_map(|image| {
        let sum = image.checksums.blake3.clone().map(Compared::Blake3);
        let compared = sum.or_else(|| image.original_bytes.map(Compared::Bytes));
        let wanted = match image.kept_as() {
            ImageStatus::Importing => Wanted { compared, is_promised: true },
            // Its import can be tried again.
            ImageStatus::Killed if image.original_bytes.is_some() => Wanted { compared, is_promised: false },
            _ if image.original_kept => Wanted { compared: None, is_promised: true },
            _ => return None,
        };
        Some((image.id, wanted))
    });
    Ok(Referred { contents, originals: originals.collect(), plain })
}

/// Carries contents and originals from `state` into the backup `to`, and copies the database that refers to them to
/// `database`.
///
/// # Errors
/// [`BackupError::Restless`], [`BackupError::Content`], [`BackupError::Db`].
pub(super) async fn save(db: &Db, state: &Path, to: &Path, database: &Path) -> Result<Held, BackupError> {
    let mut held = Held::default();
    for _ in 0..TRIES_MAX {
        let wanted = referred(db).await?;
        held = in_thread(state, to, {
            let wanted = wanted.clone();
            move |from, to| carry_missing(&from, &to, &wanted, held)
        })
        .await?;
        if referred(db).await? != wanted {
            continue;
        }
        db.backup(database).await?;
        if referred(db).await? == wanted {
            return in_thread(state, to, move |_, to| prune(&to, &wanted, held)).await;
        }
        std::fs::remove_file(database).map_err(super::backup::failed("remove", database))?;
    }
    Err(BackupError::Restless { tries: TRIES_MAX })
}

/// Both stores of a folder.
struct Stores {
    contents: ContentStore,
    originals: Originals,
}

impl Stores {
    fn beside(folder: &Path) -> Result<Self, ContentError> {
        let contents = ContentStore::beside(&folder.join(CONTENT))?;
        Ok(Self { contents, originals: Originals::beside(folder)? })
    }
}

async fn in_thread<T: Send + 'static>(
    from: &Path,
    to: &Path,
    work: impl FnOnce(Stores, Stores) -> Result<T, ContentError> + Send + 'static,
) -> Result<T, BackupError> {
    let (from, to) = (from.to_owned(), to.to_owned());
    let done = tokio::task::spawn_blocking(move || work(Stores::beside(&from)?, Stores::beside(&to)?)).await;
    Ok(done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
}

/// Carries what is wanted and not held yet.
fn carry_missing(from: &Stores, to: &Stores, wanted: &Referred, held: Held) -> Result<Held, ContentError> {
    let plain = wanted.plain.iter().map(|image| {
        format!("the original of image {image}: it is to be encrypted and not saved in the plain; make a backup after its import")
    });
    let mut held = Held { missing: plain.collect(), ..held };
    for content in &wanted.contents {
        if held.contents.contains(content) {
            continue;
        }
        match from.contents.carry(*content, &to.contents, Carrying::Link) {
            Ok(Some(carried)) => {
                held.carried.add(carried);
                held.contents.insert(*content);
            }
            Ok(None) => held.missing.push(format!("content {content}: its files are not there")),
            Err(error @ ContentError::Damaged { .. }) => {
                held.missing.push(format!("content {content}: {error}"));
            }
            Err(error) => return Err(error),
        }
    }
    for (image, Wanted { compared, is_promised }) in &wanted.originals {
        // What is held cannot change any more: another upload makes another file.
        if held.originals.get(image).is_some_and(|held| compared.is_none() || held == compared) {
            continue;
        }
        held.originals.remove(image);
        let carried = from.originals.carry(*image, &to.originals, Carrying::Link)?;
        match (carried, compared) {
            (None, _) if !is_promised => {}
            (None, _) => held.missing.push(format!("the original of image {image}: its file is not there")),
            (Some(_), Some(compared)) if !is_it(&to.originals, *image, compared)? => {
                to.originals.remove(*image)?;
                held.missing
                    .push(format!("the original of image {image}: it has other bytes than were uploaded"));
            }
            (Some(carried), _) => {
                held.carried.add(carried);
                held.originals.insert(*image, compared.clone());
            }
        }
    }
    Ok(held)
}

fn is_it(originals: &Originals, image: ImageId, compared: &Compared) -> Result<bool, ContentError> {
    let Some(original) = originals.open(image)? else { return Ok(false) };
    Ok(match compared {
        Compared::Blake3(sum) => original.sums()?.blake3 == *sum,
        Compared::Bytes(bytes) => original.size_bytes() == *bytes,
    })
}

/// Takes away what was carried and went away meanwhile.
fn prune(to: &Stores, wanted: &Referred, mut held: Held) -> Result<Held, ContentError> {
    for content in held.contents.difference(&wanted.contents) {
        to.contents.remove(*content)?;
    }
    held.contents.retain(|content| wanted.contents.contains(content));
    for image in held.originals.keys().filter(|image| !wanted.originals.contains_key(image)) {
        to.originals.remove(*image)?;
    }
    held.originals.retain(|image, _| wanted.originals.contains_key(image));
    Ok(held)
}

/// Says so if a part of what `manifest` names is not in the backup `from`.
///
/// # Errors
/// [`BackupError::Damaged`].
pub(super) fn must_be_there(manifest: &Manifest, from: &Path) -> Result<(), BackupError> {
    let damaged = |why: String| BackupError::Damaged { path: from.to_owned(), why };
    if !manifest.with_contents {
        return Ok(());
    }
    let stores = Stores::beside(from)?;
    for content in &manifest.contents {
        stores.contents.open(*content).map_err(|error| damaged(error.to_string()))?;
    }
    let lost = manifest.originals.iter().find(|image| !stores.originals.path(**image).is_file());
    lost.map_or(Ok(()), |image| Err(damaged(format!("the original of image {image} is missing"))))
}

/// Says so if there are contents, originals or variants in the state folder `state`.
///
/// # Errors
/// [`BackupError::Occupied`].
pub(super) fn must_be_free(state: &Path) -> Result<(), BackupError> {
    let folders = [state.join(CONTENT), state.join(ORIGINALS), state.join(VARIANTS_FOLDER)];
    let occupied = folders.into_iter().find(|folder| holds_files(folder));
    occupied.map_or(Ok(()), |path| Err(BackupError::Occupied { path }))
}

/// Copies contents and originals of the backup `from` into the state folder `state`, which has none ([`must_be_free`]). After
/// an error the caller takes them back.
///
/// # Errors
/// [`BackupError::Content`].
pub(super) async fn put_back(manifest: &Manifest, from: &Path, state: &Path) -> Result<(), BackupError> {
    let (contents, originals) = (manifest.contents.clone(), manifest.originals.clone());
    in_thread(from, state, move |from, to| {
        for content in contents {
            let carried = from.contents.carry(content, &to.contents, Carrying::Copy)?;
            carried.ok_or(ContentError::NotFound { content })?;
        }
        for image in originals {
            // Was there a moment ago ([`must_be_there`]).
            from.originals.carry(image, &to.originals, Carrying::Copy)?;
        }
        Ok(())
    })
    .await
}

/// Removes what [`put_back`] wrote.
pub(super) fn take_back(state: &Path) {
    for folder in [state.join(CONTENT), state.join(ORIGINALS)].into_iter().filter(|folder| folder.exists()) {
        if let Err(error) = std::fs::remove_dir_all(&folder) {
            tracing::warn!(path = %folder.display(), %error, "half of a restore stays: remove it by hand");
        }
    }
}

/// Whether there is a file below `folder`.
fn holds_files(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| {
        let path = entry.path();
        if path.is_dir() { holds_files(&path) } else { true }
    })
}
