//! `hearth-controller backup DIR`: what cannot be made again, while the controller runs.
//!
//! **What.** A consistent copy of the database, the CA and the configuration; the contents and originals that this database
//! refers to ([`super::holdings`]); and a manifest that says what belongs to it. Variants are left out ([`super::variants`]).
//!
//! **Why contents too, unless told otherwise.** Whoever restores wants images, not their names. On the file system of the
//! state folder they are hard links: no room, no time.
//!
//! **Invariants.** The manifest is written last: a folder without one is no backup. The folder has mode 0700, because the
//! CA's key is in it. Nothing is written over, and nothing of the running controller is changed.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{Read as _, Write};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::ImageId;
use serde::{Deserialize, Serialize};

use super::holdings::{self, Held};
use crate::clock;
use crate::config::Config;
use crate::content::ContentError;
use crate::db::{Db, DbError};
use crate::state::{ca_folder, refuse_foreign_root, sqlite_file, write_private};

/// Form of the folder; a newer program may raise it.
pub const FORMAT: u32 = 1;
/// Name of the manifest.
pub const MANIFEST: &str = "manifest.json";
/// Name of the database's copy.
pub const DATABASE: &str = "database";
/// Files of the CA.
pub const CA_FILES: [&str; 2] = ["ca.crt", "ca.key"];
/// Name of the configuration's copy.
pub const CONFIG: &str = "controller.toml";

/// Why a backup was not made or not restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file.
    #[error("cannot {verb} {path}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The folder is not empty.
    #[error("{path} is not empty: name a folder that does not exist yet")]
    NotEmpty {
        /// Which.
        path: PathBuf,
    },
    /// There is nothing to save.
    #[error(
        "{path} holds no controller: is state_dir right? run it as the user of the controller, with its --config"
    )]
    NothingHere {
        /// Which folder.
        path: PathBuf,
    },
    /// Not a whole backup.
    #[error("{path} is not a whole backup: {why}")]
    Damaged {
        /// Which folder.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Contents and originals.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The catalog changes faster than it is saved.
    #[error("images came and went during each of {tries} tries; make the backup when fewer imports run")]
    Restless {
        /// How often it was tried.
        tries: u32,
    },
    /// What was restored could not be looked at.
    #[error("everything is in its place, but the check failed: run hearth-controller fsck --deep")]
    Check(#[source] Box<super::fsck::FsckError>),
    /// The report.
    #[error("cannot print the report")]
    Print(#[source] std::io::Error),
    /// The target is in use.
    #[error(
        "{path} exists: restore puts nothing over a controller; move its state folder away, or set another state_dir"
    )]
    Occupied {
        /// What is there.
        path: PathBuf,
    },
    /// The state folder.
    #[error(transparent)]
    State(#[from] crate::state::StateError),
}

/// What is in a backup.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Manifest {
    /// Form of the folder.
    pub format: u32,
    /// Program that made it.
    pub build: String,
    /// When, milliseconds since the epoch.
    pub made_unix_ms: u64,
    /// `sqlite` or `postgres`.
    pub engine: String,
    /// The files of the set-up.
    pub files: Vec<Saved>,
    /// Whether contents and originals were saved; without, the two lists are empty.
    pub with_contents: bool,
    /// Contents below `content/`, each checked by its own manifest.
    pub contents: Vec<ContentId>,
    /// Originals below `originals/`; the database has their checksums.
    pub originals: Vec<ImageId>,
    /// What was missing or damaged when the backup was made, in words.
    pub missing: Vec<String>,
}

/// A file of a backup.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Saved {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3, hex.
    pub blake3: String,
}

pub(super) fn failed(verb: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::File { verb, path, source }
}

/// Saves the controller of `config` into the new folder `to` and says on `out` what is there.
///
/// # Errors
/// [`BackupError`]; the folder is then without a manifest.
pub async fn backup(
    config: &Config,
    to: &Path,
    with_contents: bool,
    out: &mut (dyn Write + Send),
) -> Result<Manifest, BackupError> {
    refuse_foreign_root(&config.state_dir)?;
    let ca = ca_folder(&config.state_dir);
    let database = sqlite_file(&config.database_url);
    if !ca.join("ca.crt").exists() || database.as_ref().is_some_and(|file| !file.exists()) {
        return Err(BackupError::NothingHere { path: config.state_dir.clone() });
    }
    if to.exists() && fs::read_dir(to).map_err(failed("list", to))?.next().is_some() {
        return Err(BackupError::NotEmpty { path: to.to_owned() });
    }
    DirBuilder::new().recursive(true).mode(0o700).create(to).map_err(failed("make", to))?;
    // Also one that was there: the key of the CA comes into it.
    fs::set_permissions(to, Permissions::from_mode(0o700)).map_err(failed("close to others", to))?;
    let db = Db::open(&config.database_url).await?;
    let saved = database_and_files(&db, config, to, with_contents).await;
    db.close().await;
    let held = saved?;
    let mut files = vec![saved_file(to, DATABASE)?];
    for name in CA_FILES {
        copy(&ca.join(name), &to.join(name))?;
        files.push(saved_file(to, name)?);
    }
    if let Some(path) = &config.path {
        copy(path, &to.join(CONFIG))?;
        files.push(saved_file(to, CONFIG)?);
    }
    let manifest = Manifest {
        format: FORMAT,
        build: env!("CARGO_PKG_VERSION").to_owned(),
        made_unix_ms: clock::unix_ms(),
        engine: if database.is_some() { "sqlite" } else { "postgres" }.to_owned(),
        files,
        with_contents,
        contents: held.contents.iter().copied().collect(),
        originals: held.originals.keys().copied().collect(),
        missing: held.missing.clone(),
    };
    let text = serde_json::to_vec_pretty(&manifest).expect("a manifest is plain texts and numbers");
    store(&to.join(MANIFEST), &text)?;
    report(&manifest, &held, to, out).map_err(BackupError::Print)?;
    Ok(manifest)
}

/// The database's copy, and what it refers to.
async fn database_and_files(
    db: &Db,
    config: &Config,
    to: &Path,
    with_contents: bool,
) -> Result<Held, BackupError> {
    let database = to.join(DATABASE);
    if with_contents {
        return holdings::save(db, &config.state_dir, to, &database).await;
    }
    db.backup(&database).await?;
    Ok(Held::default())
}

fn report(manifest: &Manifest, held: &Held, to: &Path, out: &mut dyn Write) -> std::io::Result<()> {
    let small: u64 = manifest.files.iter().map(|file| file.bytes).sum();
    writeln!(out, "saved database, CA and configuration in {}: {small} bytes", to.display())?;
    if manifest.with_contents {
        let (contents, originals) = (manifest.contents.len(), manifest.originals.len());
        let (all, copied) = (held.carried.bytes, held.carried.copied_bytes);
        let linked = all - copied;
        writeln!(
            out,
            "saved {contents} contents and {originals} originals: {linked} bytes hard-linked, {copied} bytes copied"
        )?;
        if linked > 0 {
            writeln!(
                out,
                "Links are on the same disk as the controller: copy the folder to another machine."
            )?;
        }
    } else {
        writeln!(out, "Contents and originals are NOT in it (--no-contents).")?;
    }
    writeln!(out, "Variants are not in it: a controller that was restored makes them again.")?;
    for what in &manifest.missing {
        writeln!(out, "MISSING: {what}")?;
    }
    writeln!(out, "It holds the key of the CA: keep it where only administrators can read it.")
}

/// Copies a file with mode 0600, synced.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), BackupError> {
    store(to, &fs::read(from).map_err(failed("read", from))?)
}

fn store(path: &Path, bytes: &[u8]) -> Result<(), BackupError> {
    write_private(path, bytes).map_err(failed("write", path))
}

/// Size and hash of a file of the folder.
pub(super) fn saved_file(folder: &Path, name: &str) -> Result<Saved, BackupError> {
    let path = folder.join(name);
    let mut file = File::open(&path).map_err(failed("read", &path))?;
    let (mut hasher, mut bytes, mut buffer) = (blake3::Hasher::new(), 0, vec![0; 256 << 10]);
    loop {
        let n = file.read(&mut buffer).map_err(failed("read", &path))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        bytes += n as u64;
    }
    Ok(Saved { name: name.to_owned(), bytes, blake3: hasher.finalize().to_hex().to_string() })
}
