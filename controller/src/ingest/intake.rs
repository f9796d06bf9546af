//! Bytes on their way into the file of an open upload, whoever sends them.
//!
//! **What.** [`Intake`] gathers what comes into pieces, writes them, and every [`STEP_BYTES`] makes them durable and notes the
//! offset, while the next ones come. Uploads and fetches use it alike.
//!
//! **Why steps.** A sync and a row per piece would halve a fast network; none until the end would lose an hour with a
//! kill. One step is being synced while the next one is filled, so at most two of them and a piece are sent again.
//!
//! **Invariants.** The noted offset never runs ahead of the disk. Memory is bounded by two pieces. Room is set aside before
//! bytes are taken. An upload that was ended by somebody else stops at the next step.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hearth_protocol::id::ImageId;
use hearth_protocol::words::ImageStatus;
use tokio::task::{JoinError, JoinHandle};

use super::job::Ingest;
use super::space::{Reservation, SpaceError};
use crate::content::{ContentError, Opened, PartWriter, Sums};
use crate::db::uploads::Upload;
use crate::db::{Db, DbError};
use crate::task;

/// Bytes between two durable offsets.
pub const STEP_BYTES: u64 = 3 << 20;
/// Bytes handed to the disk and to the checksums at once.
const PIECE_BYTES: usize = 1 << 20;
/// Room that is set aside at a time when the size is not known.
const ROOM_STEP_BYTES: u64 = 64 << 20;

/// Why bytes cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// The disk.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The database; [`DbError::NotFound`]: the upload was ended.
    #[error(transparent)]
    Db(#[from] DbError),
    /// No room.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// More than allowed, or than announced.
    #[error("the file has more than {most_bytes} bytes, which is {what}")]
    TooLarge {
        /// The limit.
        most_bytes: u64,
        /// "the most that images may have", "what was announced".
        what: &'static str,
    },
    /// A task died.
    #[error("a task of the upload died")]
    Task(#[from] JoinError),
}

impl IntakeError {
    /// Whether the upload does not exist any more.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        matches!(self, Self::Db(DbError::NotFound { .. }))
    }
}

/// A whole file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Taken {
    /// Its size.
    pub size_bytes: u64,
    /// Its checksums, if it came in one go.
    pub sums: Option<Sums>,
}

/// See the module.
#[derive(Debug)]
pub struct Intake {
    db: Db,
    ingest: Arc<Ingest>,
    upload: Upload,
    most_bytes: u64,
    /// `None`: the file is whole and has its name.
    writer: Option<PartWriter>,
    piece: BytesMut,
    /// Bytes that were handed to the writer.
    written_bytes: u64,
    /// Up to where a step was begun.
    stepped_bytes: u64,
    step: Option<JoinHandle<Result<(), IntakeError>>>,
    room: Reservation,
    room_until_bytes: u64,
}

impl Intake {
    /// Opens the file of an upload where it stopped. An image may have `most_bytes`.
    ///
    /// # Errors
    /// [`IntakeError`].
    pub async fn open(
        db: Db,
        ingest: Arc<Ingest>,
        upload: Upload,
        most_bytes: u64,
    ) -> Result<Self, IntakeError> {
        let mut upload = upload;
        let (store, id, image) = (Arc::clone(&ingest), upload.id, upload.image);
        let offset_bytes = upload.offset_bytes;
        let open = move |offset| store.originals.open_part(image, id, offset);
        let mut opened = tokio::task::spawn_blocking({
            let open = open.clone();
            move || open(offset_bytes)
        })
        .await??;
        if matches!(opened, Opened::Lost) {
            upload = db.note_source(id, &upload.mark, upload.size_bytes, true).await?;
            opened = tokio::task::spawn_blocking(move || open(0)).await??;
        }
        let at = upload.offset_bytes;
        let left = upload.size_bytes.map_or(ROOM_STEP_BYTES, |all| all.saturating_sub(at));
        let room = reserve(&ingest, left).await?;
        let writer = match opened {
            Opened::Part(writer) => Some(writer),
            Opened::Whole | Opened::Lost => None,
        };
        Ok(Self {
            db,
            ingest,
            upload,
            most_bytes,
            writer,
            piece: BytesMut::with_capacity(PIECE_BYTES),
            written_bytes: at,
            stepped_bytes: at,
            step: None,
            room,
            room_until_bytes: at + left,
        })
    }

    /// The upload as it was when it was opened, or begun again.
    #[must_use]
    pub const fn upload(&self) -> &Upload {
        &self.upload
    }

    /// Bytes that were taken, durable or not.
    #[must_use]
    pub fn at_bytes(&self) -> u64 {
        self.written_bytes + self.piece.len() as u64
    }

    /// Takes bytes; waits while the disk is more than a step behind.
    ///
    /// # Errors
    /// [`IntakeError`].
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), IntakeError> {
        let mut bytes = bytes;
        let after = self.at_bytes() + bytes.len() as u64;
        let announced = self.upload.size_bytes.unwrap_or(u64::MAX);
        if after > self.most_bytes || after > announced {
            let what = if announced < self.most_bytes {
                "what was announced"
            } else {
                "the most that images may have"
            };
            return Err(IntakeError::TooLarge { most_bytes: announced.min(self.most_bytes), what });
        }
        if after > self.room_until_bytes {
            self.room = reserve(&self.ingest, ROOM_STEP_BYTES).await?;
            self.room_until_bytes = after + ROOM_STEP_BYTES;
        }
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(PIECE_BYTES - self.piece.len()));
            self.piece.extend_from_slice(&part);
            if self.piece.len() == PIECE_BYTES {
                self.write_piece().await?;
            }
        }
        Ok(())
    }

    /// Notes what the source says of its file, before its first byte.
    ///
    /// # Errors
    /// [`IntakeError::TooLarge`] or another.
    pub async fn announce(&mut self, mark: &str, size_bytes: Option<u64>) -> Result<(), IntakeError> {
        if size_bytes.is_some_and(|size| size > self.most_bytes) {
            let what = "the most that images may have";
            return Err(IntakeError::TooLarge { most_bytes: self.most_bytes, what });
        }
        if let Some(size) = size_bytes {
            self.room = reserve(&self.ingest, size).await?;
            self.room_until_bytes = size;
        }
        self.upload = self.db.note_source(self.upload.id, mark, size_bytes, true).await?;
        Ok(())
    }

    async fn write_piece(&mut self) -> Result<(), IntakeError> {
        let full = std::mem::replace(&mut self.piece, BytesMut::with_capacity(PIECE_BYTES)).freeze();
        if full.is_empty() {
            return Ok(());
        }
        let Some(mut writer) = self.writer.take() else {
            // The file is whole: there is nothing behind its end.
            let most_bytes = self.written_bytes;
            return Err(IntakeError::TooLarge { most_bytes, what: "what was announced" });
        };
        let bytes = full.len() as u64;
        let written = tokio::task::spawn_blocking(move || writer.write(&full).map(|()| writer)).await?;
        self.writer = Some(written?);
        self.written_bytes += bytes;
        if self.written_bytes - self.stepped_bytes >= STEP_BYTES {
            self.begin_step().await?;
        }
        Ok(())
    }

    /// Makes durable what was written, beside what comes next.
    async fn begin_step(&mut self) -> Result<(), IntakeError> {
        self.end_step().await?;
        let Some(writer) = &self.writer else { return Ok(()) };
        let (db, id, syncing) = (self.db.clone(), self.upload.id, writer.mark()?);
        self.stepped_bytes = writer.size_bytes();
        self.step = Some(task::spawn("upload-step", async move {
            let offset = tokio::task::spawn_blocking(move || syncing.sync()).await??;
            Ok(db.note_upload(id, offset).await?)
        }));
        Ok(())
    }

    async fn end_step(&mut self) -> Result<(), IntakeError> {
        match self.step.take() {
            Some(step) => step.await?,
            None => Ok(()),
        }
    }

    /// Makes everything that was taken durable. The offset from which to go on.
    ///
    /// # Errors
    /// [`IntakeError`].
    pub async fn settle(&mut self) -> Result<u64, IntakeError> {
        self.write_piece().await?;
        if self.written_bytes > self.stepped_bytes {
            self.begin_step().await?;
        }
        self.end_step().await?;
        Ok(self.written_bytes)
    }

    /// Makes the file whole and gives it its name. Its upload is still open: [`Db::finish_upload`] ends it.
    ///
    /// # Errors
    /// [`IntakeError`].
    pub async fn finish(mut self) -> Result<Taken, IntakeError> {
        let size_bytes = self.settle().await?;
        let sums = match self.writer.take() {
            Some(writer) => tokio::task::spawn_blocking(move || writer.finish()).await??,
            None => None,
        };
        Ok(Taken { size_bytes, sums })
    }
}

/// Removes the original of an image that has no bytes: its upload was ended just when its file got its name, and nobody else
/// would remove it. An image that is `queued` has no upload, so the file can be no other one's. A file that cannot be removed
/// is logged.
///
/// # Errors
/// The database does not answer.
pub async fn remove_unclaimed(db: &Db, ingest: &Arc<Ingest>, image: ImageId) -> Result<(), DbError> {
    let Some(found) = db.image(image).await? else { return Ok(()) };
    let deleted = found.deleted_us.is_some();
    if !deleted && found.status != ImageStatus::Queued {
        return Ok(());
    }
    let store = Arc::clone(ingest);
    let remove = move || {
        store.originals.remove(image)?;
        if deleted { store.originals.remove_parts(image) } else { Ok(()) }
    };
    let removed = tokio::task::spawn_blocking(remove).await;
    if !matches!(removed, Ok(Ok(()))) {
        tracing::error!(%image, ?removed, "the file of an upload that was ended stays");
    }
    Ok(())
}

async fn reserve(ingest: &Arc<Ingest>, bytes: u64) -> Result<Reservation, IntakeError> {
    let ingest = Arc::clone(ingest);
    Ok(tokio::task::spawn_blocking(move || ingest.space.reserve(bytes)).await??)
}
