//! `hearth-controller restore DIR`: puts a backup in place of a controller that is gone.
//!
//! **Why only over nothing.** Restoring over a running or newer controller would lose what happened since.
//!
//! **Why copies and a check of every byte.** The backup stays what it was, and may be restored again; and a backup that went
//! over tapes and networks is trusted when it has been read.
//!
//! **Invariants.** Every file of the set-up is checked against the manifest, and every place looked at, before the first byte is
//! written. The CA is written last: without it `serve` refuses to start, so half a restore is never taken for a controller.
//! What fails leaves nothing but the state folder and its lock. (A restore that is killed leaves what it had written; the next
//! one names what is in the way.)

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::backup::{BackupError, CA_FILES, DATABASE, FORMAT, MANIFEST, Manifest, copy, failed, saved_file};
use super::variants::requeue_missing;
use super::{fsck, holdings};
use crate::config::Config;
use crate::content::Variants;
use crate::db::Db;
use crate::state::{StateFolder, ca_folder, refuse_foreign_root, sqlite_file, upgrade_folder};

/// Restores the backup in `from` into the state folder of `config`, checks what is there then, and says on `out` what is
/// wrong and what to do next. Returns how many problems it found.
///
/// # Errors
/// [`BackupError`].
pub async fn restore(
    config: &Config,
    from: &Path,
    out: &mut (dyn Write + Send),
) -> Result<usize, BackupError> {
    refuse_foreign_root(&config.state_dir)?;
    let manifest = checked(from)?;
    let ca = ca_folder(&config.state_dir);
    if ca.join("ca.crt").exists() {
        return Err(BackupError::Occupied { path: ca });
    }
    let file = sqlite_file(&config.database_url);
    if file.is_some() != (manifest.engine == "sqlite") {
        let why = format!("it is of {}, and database_url names another engine", manifest.engine);
        return Err(BackupError::Damaged { path: from.to_owned(), why });
    }
    let state = StateFolder::take(&config.state_dir)?;
    if let Some(file) = &file {
        crate::db::backup::must_be_free(file)?;
    }
    if manifest.with_contents {
        holdings::must_be_free(&config.state_dir)?;
    }
    let mut placed = Vec::new();
    if let Err(error) = put_in_place(config, &manifest, from, file.as_deref(), &mut placed).await {
        take_back(config, &manifest, &placed);
        return Err(error);
    }
    drop(state);
    let print = |result: std::io::Result<()>| result.map_err(BackupError::Print);
    print(writeln!(out, "restored into {}", config.state_dir.display()))?;
    for what in &manifest.missing {
        print(writeln!(out, "was missing when the backup was made: {what}"))?;
    }
    if file.is_none() {
        let dump = from.join(DATABASE);
        print(writeln!(out, "Next: pg_restore --clean --if-exists --dbname=… {}", dump.display()))?;
        print(writeln!(out, "then: hearth-controller fsck --deep, then serve."))?;
        return Ok(0);
    }
    if !manifest.with_contents {
        print(writeln!(
            out,
            "Next: put content/ and originals/ back, then hearth-controller fsck --deep, then serve."
        ))?;
        return Ok(0);
    }
    // The backup may be of an older program.
    Db::upgrade(&config.database_url, &upgrade_folder(&config.state_dir)).await?;
    let again = make_variants_again(config).await.map_err(|error| BackupError::Check(Box::new(error)))?;
    if again > 0 {
        print(writeln!(
            out,
            "{again} variants are made again when the controller runs: no backup holds them"
        ))?;
    }
    let problems = fsck::look(config, true).await.map_err(|error| BackupError::Check(Box::new(error)))?;
    for problem in &problems {
        print(writeln!(out, "{problem}"))?;
    }
    print(writeln!(out, "every byte was read: {} problems. Next: hearth-controller serve.", problems.len()))?;
    Ok(problems.len())
}

/// Has the variants that the restored database names made again; returns how many.
async fn make_variants_again(config: &Config) -> Result<u32, fsck::FsckError> {
    let db = Db::open(&config.database_url).await?;
    let again = requeue_missing(&db, &Variants::beside(&config.state_dir)?).await;
    db.close().await;
    again
}

/// Contents, database and CA, in this order. What stands in its place is added to `placed`, except contents.
async fn put_in_place(
    config: &Config,
    manifest: &Manifest,
    from: &Path,
    file: Option<&Path>,
    placed: &mut Vec<PathBuf>,
) -> Result<(), BackupError> {
    if manifest.with_contents {
        holdings::put_back(manifest, from, &config.state_dir).await?;
    }
    if let Some(file) = file {
        crate::db::backup::restore(&from.join(DATABASE), file).await?;
        placed.push(file.to_owned());
    }
    let ca = ca_folder(&config.state_dir);
    let mut builder = fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(&ca).map_err(failed("make", &ca))?;
    // The certificate last: its presence says that all is there.
    CA_FILES.iter().rev().try_for_each(|name| {
        copy(&from.join(name), &ca.join(name))?;
        placed.push(ca.join(name));
        Ok(())
    })
}

/// Removes what [`put_in_place`] put there, and nothing that somebody else did meanwhile.
fn take_back(config: &Config, manifest: &Manifest, placed: &[PathBuf]) {
    // The newest first: the certificate is never there without the rest.
    for file in placed.iter().rev() {
        if let Err(error) = fs::remove_file(file) {
            tracing::warn!(path = %file.display(), %error, "half of a restore stays: remove it by hand");
        }
    }
    if manifest.with_contents {
        holdings::take_back(&config.state_dir);
    }
}

/// The manifest of a whole backup.
fn checked(from: &Path) -> Result<Manifest, BackupError> {
    let damaged = |why: String| BackupError::Damaged { path: from.to_owned(), why };
    let text = fs::read(from.join(MANIFEST)).map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
    if manifest.format != FORMAT {
        return Err(damaged(format!("it has format {}, this program knows {FORMAT}", manifest.format)));
    }
    for file in &manifest.files {
        if file.name.contains(['/', '\0']) || file.name.starts_with('.') {
            return Err(damaged(format!("it names the file {:?}", file.name)));
        }
        let found = saved_file(from, &file.name).map_err(|error| damaged(error.to_string()))?;
        if found.blake3 != file.blake3 {
            return Err(damaged(format!("{} was changed", file.name)));
        }
    }
    let has = |name: &str| manifest.files.iter().any(|file| file.name == name);
    if let Some(name) = CA_FILES.iter().chain([&DATABASE]).find(|name| !has(name)) {
        return Err(damaged(format!("{name} is missing")));
    }
    holdings::must_be_there(&manifest, from)?;
    Ok(manifest)
}
