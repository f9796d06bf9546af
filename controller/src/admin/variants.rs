//! Variants in `fsck` and `restore`.
//!
//! **What.** [`find`] compares rows and files, [`requeue_missing`] has lost ones made again.
//!
//! **Why a backup leaves variants out.** They are made of contents, which it has, and may take several times their room. The rows are in
//! the database's copy; after a restore the files are missing, and the controller makes them again when it runs.
//!
//! **Invariants.** A row is never removed here: who asked for a variant gets it.

use std::collections::HashSet;
use std::sync::Arc;

use super::fsck::{FsckError, Problem};
use crate::content::{ContentError, VariantFile, Variants};
use crate::db::variants::Variant;
use crate::db::{Db, DbError};

/// What is not as it should be. `deep` reads every byte.
pub(super) async fn find(db: &Db, variants: &Arc<Variants>, deep: bool) -> Result<Vec<Problem>, FsckError> {
    let (rows, files) = (db.all_variants().await?, Arc::clone(variants));
    let found = tokio::task::spawn_blocking(move || compare(&rows, &files, deep)).await;
    Ok(found.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
}

fn compare(rows: &[Variant], variants: &Variants, deep: bool) -> Result<Vec<Problem>, ContentError> {
    let mut problems = Vec::new();
    let mut known: HashSet<VariantFile> = HashSet::new();
    for row in rows {
        let (Some(file), Some(sums)) = (row.stored(), &row.file) else { continue };
        match variants.size_bytes(&file)? {
            None => problems.push(Problem::NoVariant(row.clone())),
            Some(bytes) if bytes != sums.bytes => problems.push(Problem::BadVariant(row.clone())),
            Some(_) if deep && variants.sums(&file)?.blake3 != sums.blake3 => {
                problems.push(Problem::BadVariant(row.clone()));
            }
            Some(_) => {}
        }
        known.insert(file);
    }
    let leaked = variants.list()?.into_iter().filter(|file| !known.contains(file));
    problems.extend(leaked.map(Problem::LeakedVariant));
    Ok(problems)
}

/// Has every variant whose file is not there made again; returns how many.
pub(super) async fn requeue_missing(db: &Db, variants: &Variants) -> Result<u32, FsckError> {
    let mut n = 0;
    for row in db.all_variants().await? {
        let Some(file) = row.stored() else { continue };
        if variants.size_bytes(&file)?.is_none() && db.requeue_variant(&row).await? {
            n += 1;
        }
    }
    Ok(n)
}

/// A lost or damaged variant is made again when the controller runs.
pub(super) async fn make_again(db: &Db, variants: &Variants, row: &Variant) -> Result<bool, FsckError> {
    let again: Result<bool, DbError> = db.requeue_variant(row).await;
    // After the row: a crash in between leaves a file that nobody names, not a row that names a damaged file.
    if let Some(file) = row.stored() {
        variants.remove(&file)?;
    }
    Ok(again?)
}
