//! `hearth-controller restore DIR`: puts a backup in place of a controller that is gone.
//!
//! **Why only over nothing.** Restoring over a running or newer controller would lose what happened since. Contents and
//! originals are put back by hand before or after; `fsck` says what is missing.
//!
//! **Invariants.** Every file is checked against the manifest before the first one is written. The CA is written last:
//! without it `serve` refuses to start, so half a restore is never taken for a controller.

use std::fs;
use std::path::Path;

use super::backup::{BackupError, CA_FILES, DATABASE, FORMAT, MANIFEST, Manifest, copy, failed, saved_file};
use crate::config::Config;
use crate::state::{StateFolder, ca_folder, sqlite_file};

/// Restores the backup in `from` into the state folder of `config`.
///
/// # Errors
/// [`BackupError`].
pub async fn restore(config: &Config, from: &Path) -> Result<Manifest, BackupError> {
    let manifest = checked(from)?;
    let ca = ca_folder(&config.state_dir);
    if ca.join("ca.crt").exists() {
        return Err(BackupError::Occupied { path: ca });
    }
    let _state = StateFolder::take(&config.state_dir)?;
    match sqlite_file(&config.database_url) {
        Some(file) if manifest.engine == "sqlite" => {
            crate::db::backup::restore(&from.join(DATABASE), &file).await?;
        }
        None if manifest.engine == "postgres" => {
            tracing::warn!(
                "restore the database with: pg_restore --clean --if-exists --dbname=… {}",
                from.join(DATABASE).display()
            );
        }
        _ => {
            let why = format!("it is of {}, and database_url names another engine", manifest.engine);
            return Err(BackupError::Damaged { path: from.to_owned(), why });
        }
    }
    let mut builder = fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(&ca).map_err(failed("make", &ca))?;
    // The certificate last: its presence says that all is there.
    for name in CA_FILES.iter().rev() {
        copy(&from.join(name), &ca.join(name))?;
    }
    Ok(manifest)
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
    match CA_FILES.iter().chain([&DATABASE]).find(|name| !has(name)) {
        Some(name) => Err(damaged(format!("{name} is missing"))),
        None => Ok(manifest),
    }
}
