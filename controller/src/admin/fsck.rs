//! `hearth-controller fsck`: compares the database with the files, while the controller is stopped.
//!
//! **What.** Finds files that no record knows (leaks), records without their files, damaged contents and originals, and a
//! broken operation chain. `--deep` hashes every byte; `--repair` removes leaks, makes damaged contents again from
//! their originals, and has lost variants made again.
//!
//! **Why it never deletes a record.** A missing file may come back with a mounted disk or a restored folder; a record that
//! is gone does not.
//!
//! **Invariants.** Without `--repair` nothing is changed but what every start cleans up (interrupted uploads and imports).
//! What cannot be repaired is still reported after a repair.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::ImageId;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::content::{ContentError, ContentStore, Originals, VariantFile, Variants};
use crate::db::images::Image;
use crate::db::operations::Draft;
use crate::db::variants::Variant;
use crate::db::{Db, DbError};
use crate::ingest::convert::Converter;
use crate::ingest::job::{ImportError, Ingest};
use crate::jobs::Jobs;
use crate::jobs::encrypted::noted_contents;
use crate::state::{StateError, StateFolder, refuse_foreign_root};

/// What to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Hash every content and every original.
    pub deep: bool,
    /// Remove leaks and make damaged contents again.
    pub repair: bool,
}

/// Why the check could not be done.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The files.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The files.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The report.
    #[error("cannot print the report")]
    Print(#[from] std::io::Error),
}

/// Something that is not as it should be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Problem {
    /// The database's own check found a fault.
    Database(String),
    /// The operation log was changed.
    Chain(u64),
    /// An image names a content that has no record.
    NoContentRecord(ImageId, ContentId),
    /// A content without its files, or with damaged ones.
    BadContent(ContentId, String),
    /// Files of a content that no record knows.
    LeakedContent(ContentId),
    /// A kept original is missing.
    NoOriginal(ImageId),
    /// An original has other bytes than when it came in.
    BadOriginal(ImageId),
    /// An original that no record knows.
    LeakedOriginal(ImageId),
    /// An original that was to be removed.
    NeedlessOriginal(ImageId),
    /// A variant without its file.
    NoVariant(Variant),
    /// A variant with other bytes than were made.
    BadVariant(Variant),
    /// A file among the variants that no record knows.
    LeakedVariant(VariantFile),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database(text) => write!(f, "database: {text}; restore a backup"),
            Self::Chain(seq) => write!(f, "operation log: row {seq} was changed or is missing"),
            Self::NoContentRecord(image, content) => {
                write!(f, "image {image}: its content {content} has no record; import it again")
            }
            Self::BadContent(content, why) => write!(f, "content {content}: {why}"),
            Self::LeakedContent(content) => write!(f, "content {content}: files that no record knows"),
            Self::NoOriginal(image) => write!(f, "image {image}: its original is missing"),
            Self::BadOriginal(image) => {
                write!(f, "image {image}: its original has other bytes than were uploaded")
            }
            Self::LeakedOriginal(image) => write!(f, "original {image}: a file that no record knows"),
            Self::NeedlessOriginal(image) => {
                write!(f, "image {image}: its original is not to be kept; the next start removes it")
            }
            Self::NoVariant(row) => {
                write!(
                    f,
                    "image {}: its {} variant has no file; the next start makes it again",
                    row.image, row.format
                )
            }
            Self::BadVariant(row) => {
                write!(f, "image {}: its {} variant has other bytes than were made", row.image, row.format)
            }
            Self::LeakedVariant(file) => {
                write!(f, "variant {} of image {}: a file that no record knows", file.format, file.image)
            }
        }
    }
}

/// Checks, repairs if told to, and prints one line per problem. Returns how many problems are left.
///
/// # Errors
/// [`FsckError`] if the check itself cannot be done.
pub async fn fsck(
    config: &Config,
    options: Options,
    executable: PathBuf,
    out: &mut (dyn Write + Send),
) -> Result<usize, FsckError> {
    refuse_foreign_root(&config.state_dir)?;
    let state = StateFolder::take(&config.state_dir)?;
    state.must_be_set_up()?;
    let db = Db::open(&config.database_url).await?;
    let converter =
        Converter { controller: executable, qemu_img: crate::serve::qemu_img(), mode: config.sandbox };
    let ingest = Arc::new(Ingest::new(&config.state_dir, converter, 2)?);
    let mut problems = find(&db, &ingest.content, &ingest.originals, options.deep).await?;
    problems.extend(super::variants::find(&db, &ingest.variants, options.deep).await?);
    let closing = CancellationToken::new();
    let jobs = Jobs::new(db.clone(), Arc::clone(&ingest), config.keep_originals, Vec::new(), closing);
    let mut left = 0;
    for problem in &problems {
        let repaired = options.repair && repair(problem, &db, &ingest, &jobs).await?;
        left += usize::from(!repaired);
        writeln!(out, "{problem}{}", if repaired { " (repaired)" } else { "" })?;
    }
    let n = problems.len();
    let hint = if left > 0 && !options.repair { "; --repair removes leaks and mends contents" } else { "" };
    writeln!(out, "{n} problems, {left} left{hint}")?;
    db.close().await;
    Ok(left)
}

/// Looks and changes nothing but what every start cleans up.
///
/// # Errors
/// As [`fsck`].
pub(super) async fn look(config: &Config, deep: bool) -> Result<Vec<Problem>, FsckError> {
    let state = StateFolder::take(&config.state_dir)?;
    state.must_be_set_up()?;
    let contents = Arc::new(ContentStore::new(&config.state_dir.join(super::holdings::CONTENT))?);
    let originals = Arc::new(Originals::new(&config.state_dir)?);
    let db = Db::open(&config.database_url).await?;
    let variants = Arc::new(Variants::beside(&config.state_dir)?);
    let problems = match find(&db, &contents, &originals, deep).await {
        Ok(mut problems) => super::variants::find(&db, &variants, deep).await.map(|more| {
            problems.extend(more);
            problems
        }),
        error => error,
    };
    db.close().await;
    problems
}

/// Everything that is not as it should be.
async fn find(
    db: &Db,
    contents: &Arc<ContentStore>,
    originals: &Arc<Originals>,
    deep: bool,
) -> Result<Vec<Problem>, FsckError> {
    let rows = db.check().await?;
    let mut problems: Vec<Problem> = rows.engine.into_iter().map(Problem::Database).collect();
    if let Some(seq) = db.verify_operations().await?.first_bad {
        problems.push(Problem::Chain(seq));
    }
    problems.extend(
        rows.missing_contents.iter().map(|(image, content)| Problem::NoContentRecord(*image, *content)),
    );
    let mut known: HashSet<ContentId> = rows.contents.iter().map(|content| content.id).collect();
    // All that is left of an encrypted import that is not recorded yet.
    known.extend(noted_contents(db).await?.into_values());
    for content in &known {
        let (contents, content) = (Arc::clone(contents), *content);
        let fault = tokio::task::spawn_blocking(move || content_fault(&contents, content, deep)).await;
        let fault = fault.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        problems.extend(fault.map(|why| Problem::BadContent(content, why)));
    }
    let stored = contents.list()?;
    problems
        .extend(stored.into_iter().filter(|content| !known.contains(content)).map(Problem::LeakedContent));
    let images: HashMap<ImageId, Image> = rows.images.into_iter().map(|image| (image.id, image)).collect();
    let kept: HashSet<ImageId> = originals.list()?.into_iter().collect();
    for image in images.values().filter(|image| image.original_kept && !kept.contains(&image.id)) {
        problems.push(Problem::NoOriginal(image.id));
    }
    for id in kept {
        let Some(image) = images.get(&id) else {
            problems.push(Problem::LeakedOriginal(id));
            continue;
        };
        if image.is_original_over() {
            problems.push(Problem::NeedlessOriginal(id));
            continue;
        }
        let (originals, image) = (Arc::clone(originals), image.clone());
        let bad = tokio::task::spawn_blocking(move || original_is_bad(&originals, &image, deep)).await;
        if bad.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))? {
            problems.push(Problem::BadOriginal(id));
        }
    }
    Ok(problems)
}

/// What is wrong with the files of a content.
fn content_fault(contents: &ContentStore, content: ContentId, deep: bool) -> Option<String> {
    let object = match contents.open(content) {
        Ok(object) => object,
        Err(ContentError::NotFound { .. }) => return Some("its files are missing".to_owned()),
        Err(error) => return Some(crate::api::fault::chain(&error)),
    };
    if !deep {
        return None;
    }
    match object.verify_all(2, &AtomicBool::new(false), &|_| ()) {
        Ok(bad) if bad.is_empty() => None,
        Ok(bad) => Some(format!("{} chunks are damaged", bad.len())),
        Err(error) => Some(crate::api::fault::chain(&error)),
    }
}

/// Whether an original is not what was uploaded.
fn original_is_bad(originals: &Originals, image: &Image, deep: bool) -> Result<bool, ContentError> {
    let Some(original) = originals.open(image.id)? else { return Ok(false) };
    // An upload that was never accepted has no size yet.
    if image.original_bytes.is_some_and(|bytes| bytes != original.size_bytes()) {
        return Ok(true);
    }
    match &image.checksums.blake3 {
        Some(expected) if deep => Ok(original.sums()?.blake3 != *expected),
        _ => Ok(false),
    }
}

/// Whether the problem is gone now.
async fn repair(problem: &Problem, db: &Db, ingest: &Arc<Ingest>, jobs: &Jobs) -> Result<bool, FsckError> {
    match problem {
        Problem::LeakedContent(content) => {
            // A job that runs again after a crash makes its content anew.
            ingest.content.remove(*content)?;
            Ok(true)
        }
        Problem::LeakedOriginal(image) | Problem::NeedlessOriginal(image) => {
            ingest.originals.remove(*image)?;
            Ok(true)
        }
        Problem::LeakedVariant(file) => {
            ingest.variants.remove(file)?;
            Ok(true)
        }
        Problem::NoVariant(row) | Problem::BadVariant(row) => {
            super::variants::make_again(db, &ingest.variants, row).await
        }
        Problem::BadContent(content, _) => {
            if jobs.remake_now(*content).await? {
                return Ok(true);
            }
            // Agents that have it can still mend it, once the controller runs.
            let op = Draft::system("content.damaged").on("content", content, "");
            match db.set_content_damaged(*content, true, &op).await {
                // Of an import that is not recorded yet.
                Ok(()) | Err(DbError::NotFound { .. }) => Ok(false),
                Err(error) => Err(error.into()),
            }
        }
        Problem::Database(_)
        | Problem::Chain(_)
        | Problem::NoContentRecord(..)
        | Problem::NoOriginal(_)
        | Problem::BadOriginal(_) => Ok(false),
    }
}
