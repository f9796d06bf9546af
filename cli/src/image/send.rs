//! Sends a file in as many requests as it takes.
//!
//! **What.** Opens an upload, sends from its offset on, and after whatever broke asks where to go on.
//!
//! **Why a mark.** After hours and a restart the file of this name may be another one; size and time of its last change,
//! which the controller keeps with the upload, tell.
//!
//! **Invariants.** Bytes are sent from the offset that the controller says, never from what was sent before. A file that
//! changed is not mixed with what is there.

use std::io::SeekFrom;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use hearth_protocol::api::Page;
use hearth_protocol::api::image::Image;
use hearth_protocol::api::upload::{Upload, UploadCreate};
use hearth_protocol::words::ImageStatus;
use tokio::io::AsyncSeekExt as _;

use super::import::{LOOK_PAUSE, counted};
use crate::client::{Client, Sent};
use crate::clock;
use crate::failure::{Exit, Failure};
use crate::progress::Steps;

/// How long a sender tries without a byte of progress: a controller that is upgraded is away for minutes.
const AWAY_MAX: Duration = Duration::from_secs(600);
/// First pause after a failure; doubles with each one.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What is sent.
#[derive(Debug)]
pub(super) struct Sending<'a> {
    pub(super) client: &'a Client,
    pub(super) file: &'a Path,
    pub(super) image: String,
}

/// Size of a regular file, and by what it is known again.
pub(super) fn mark_of(meta: &std::fs::Metadata) -> String {
    format!("{} bytes, changed {}.{:09}", meta.len(), meta.mtime(), meta.mtime_nsec())
}

impl Sending<'_> {
    /// Opens the upload of a new image.
    pub(super) async fn open(&self, meta: &std::fs::Metadata) -> anyhow::Result<Upload> {
        let create = UploadCreate { size_bytes: Some(meta.len()), mark: Some(mark_of(meta)) };
        self.client.post(&["images", &self.image, "uploads"], &create).await
    }

    /// The upload that an earlier call began, if it was of this file.
    pub(super) async fn reopen(&self, name: &str) -> anyhow::Result<Upload> {
        let page: Page<Upload> = self.client.get(&["images", &self.image, "uploads"], &[]).await?;
        let upload = page.items.into_iter().next().ok_or_else(|| {
            Failure::new(Exit::Refused, format!("no upload of {name} is open"))
                .hint("`hearth image show` says what became of it; import the file anew if it is gone")
        })?;
        self.same_file(&upload).await?;
        Ok(upload)
    }

    /// Refuses a file that is not the one whose upload began.
    async fn same_file(&self, upload: &Upload) -> anyhow::Result<()> {
        let meta = tokio::fs::metadata(self.file).await.map_err(|error| unreadable(self.file, &error))?;
        let same_size = upload.size_bytes.is_none_or(|size| size == meta.len());
        let same = upload.mark.as_ref().is_none_or(|mark| *mark == mark_of(&meta));
        if same && same_size {
            return Ok(());
        }
        let message = format!(
            "{} is not the file whose upload began ({}): it has {}",
            self.file.display(),
            upload.mark.as_deref().unwrap_or("of another size"),
            mark_of(&meta)
        );
        Err(Failure::new(Exit::Usage, message)
            .hint("delete the image and import the file anew, or name the file that was meant")
            .into())
    }

    /// Sends everything behind the offset of `upload`, whatever breaks in between.
    pub(super) async fn run(&self, upload: Upload, steps: &mut Steps) -> anyhow::Result<Image> {
        let mut upload = upload;
        let mut last_progress = clock::monotonic();
        let mut pause = PAUSE;
        loop {
            let error = match self.send_rest(&upload, steps).await {
                Ok(Sent::Whole(image)) => return Ok(*image),
                Ok(Sent::Part(next)) => {
                    upload = next;
                    continue;
                }
                Err(error) if may_pass(&error) => error,
                Err(error) => return Err(error),
            };
            if clock::monotonic().duration_since(last_progress) >= AWAY_MAX {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            match self.look(&upload).await {
                Ok(Looked::Open(next)) => {
                    if next.offset_bytes > upload.offset_bytes {
                        (last_progress, pause) = (clock::monotonic(), PAUSE);
                    }
                    upload = next;
                }
                Ok(Looked::Over(image)) => return Ok(*image),
                Err(error) if may_pass(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// One request with everything behind the offset.
    async fn send_rest(&self, upload: &Upload, steps: &mut Steps) -> anyhow::Result<Sent> {
        self.same_file(upload).await?;
        let opened = tokio::fs::File::open(self.file).await;
        let mut file = opened.map_err(|error| unreadable(self.file, &error))?;
        file.seek(SeekFrom::Start(upload.offset_bytes)).await.context("going on in the file")?;
        steps.bytes("uploading", upload.offset_bytes, upload.size_bytes);
        let body = reqwest::Body::wrap_stream(counted(Box::pin(file), steps));
        let id = upload.id.to_string();
        let path = ["images", &self.image, "uploads", &id];
        let mut sending = std::pin::pin!(self.client.patch_stream(&path, body, upload.offset_bytes));
        loop {
            // The stream counts by itself; the pause lets plain lines come on time.
            tokio::select! {
                sent = &mut sending => return sent,
                () = tokio::time::sleep(LOOK_PAUSE) => steps.moved(0),
            }
        }
    }

    /// How far the upload is now.
    async fn look(&self, upload: &Upload) -> anyhow::Result<Looked> {
        let id = upload.id.to_string();
        match self.client.get(&["images", &self.image, "uploads", &id], &[]).await {
            Ok(upload) => Ok(Looked::Open(upload)),
            Err(error) if is(&error, Exit::NotFound) => {
                // The answer to the last byte may have been lost.
                let image: Image = self.client.get(&["images", &self.image], &[]).await?;
                match image.status {
                    ImageStatus::Importing | ImageStatus::Active | ImageStatus::Killed => {
                        Ok(Looked::Over(Box::new(image)))
                    }
                    status => Err(Failure::new(
                        Exit::Failed,
                        format!("the upload was ended; the image is {status}"),
                    )
                    .hint("import the file anew")
                    .into()),
                }
            }
            Err(error) => Err(error),
        }
    }
}

enum Looked {
    Open(Upload),
    Over(Box<Image>),
}

fn is(error: &anyhow::Error, exit: Exit) -> bool {
    error.downcast_ref::<Failure>().is_some_and(|failure| failure.exit == exit)
}

/// Whether it is worth to ask again: nobody answered, the sender was too slow, or an earlier connection still counts as the
/// sender. What is wrong with the file or the image does not pass.
pub(super) fn may_pass(error: &anyhow::Error) -> bool {
    let again = |failure: &Failure| {
        failure.exit == Exit::Unreachable
            || matches!(failure.code.as_deref(), Some("in_use" | "offset" | "timeout"))
    };
    error.downcast_ref::<Failure>().is_some_and(again)
}

fn unreadable(file: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Usage, format!("cannot read {}: {error}", file.display()))
        .hint("name a file that you may read")
}
