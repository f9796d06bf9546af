//! One action on many images: names to ids, one call per hundred, one result per image.
//!
//! **Why one call also for one image.** What is done and what is refused must not depend on how many are named.
//! **Invariants.** Every name is looked up before anything is done: a typing error in the last one leaves the first alone.

use hearth_protocol::api::image::Image;
use hearth_protocol::api::image_batch::{BATCH_IMAGES_MAX, BatchResult, BatchResults, ImageBatch};
use hearth_protocol::api::share::{ShareCreate, ShareRemove};
use hearth_protocol::id::{ImageId, ProjectId};
use hearth_protocol::words::BatchAction;

use crate::args::Session;
use crate::failure::{Exit, Failure};
use crate::names;
use crate::output::{Cell, Grid};

/// An action and whom it meets.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// What is sent, but for the ids.
    sent: ImageBatch,
    images: Vec<String>,
}

impl Batch {
    /// An action without parameters.
    pub(crate) const fn new(action: BatchAction, images: Vec<String>) -> Self {
        Self { sent: ImageBatch::new(action, Vec::new()), images }
    }

    /// With these tags.
    pub(super) fn tags(mut self, tags: Vec<String>) -> Self {
        self.sent.tags = tags.into_iter().collect();
        self
    }

    /// By force.
    pub(super) const fn force(mut self, force: bool) -> Self {
        self.sent.force = force;
        self
    }

    /// With these receivers.
    pub(crate) fn share(mut self, share: ShareCreate) -> Self {
        self.sent.share = Some(share);
        self
    }

    /// With these receivers no longer.
    pub(crate) fn unshare(mut self, unshare: ShareRemove) -> Self {
        self.sent.unshare = Some(unshare);
        self
    }

    /// To or for this project.
    pub(crate) const fn project(mut self, project: Option<ProjectId>) -> Self {
        self.sent.project = project;
        self
    }

    /// Looks the names up.
    pub(crate) async fn found(&self, session: &Session) -> anyhow::Result<Vec<Image>> {
        let mut found: Vec<Image> = Vec::new();
        for wanted in &self.images {
            let looked = match self.sent.action {
                BatchAction::Restore => names::binned_image(&session.client, wanted).await,
                BatchAction::Destroy => match names::image(&session.client, wanted).await {
                    // What is destroyed may lie in the bin already.
                    Err(_) => names::binned_image(&session.client, wanted).await,
                    found => found,
                },
                _ => names::image(&session.client, wanted).await,
            };
            let image = match looked {
                Err(error) if self.images.len() > 1 => return Err(error.context("nothing was done")),
                looked => looked?,
            };
            if found.iter().all(|other| other.id != image.id) {
                found.push(image);
            }
        }
        Ok(found)
    }

    /// Looks the names up and does it.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let found = self.found(session).await?;
        self.run_on(session, &found).await
    }

    /// Does it to images that were looked up.
    pub(crate) async fn run_on(self, session: &Session, images: &[Image]) -> anyhow::Result<Exit> {
        let ids: Vec<ImageId> = images.iter().map(|image| image.id).collect();
        let mut results = Vec::with_capacity(ids.len());
        for images in ids.chunks(BATCH_IMAGES_MAX) {
            let body = ImageBatch { images: images.to_vec(), ..self.sent.clone() };
            let answer: BatchResults = session.client.post(&["images", "batch"], &body).await?;
            results.extend(answer.results);
        }
        self.told(session, &results)
    }

    fn told(&self, session: &Session, results: &[BatchResult]) -> anyhow::Result<Exit> {
        let failure = |result: &BatchResult| {
            result.error.clone().map(|body| Failure::from_answer(result.status, Some(body)))
        };
        if let [one] = results
            && let Some(failure) = failure(one)
        {
            return Err(failure.into());
        }
        let first = results.iter().find_map(failure);
        if session.out.for_people() && first.is_none() {
            for result in results {
                let name = result.name.clone().unwrap_or_else(|| result.id.to_string());
                session.out.say(&format!("{} {name}", done(self.sent.action)))?;
            }
            return Ok(Exit::Ok);
        }
        let grid = Grid::of(&["NAME", "RESULT", "MESSAGE", "+ID"], results, |result| {
            vec![
                Cell::maybe(result.name.as_ref()),
                Cell::status(if result.ok { "ok" } else { "failed" }),
                Cell::maybe(result.error.as_ref().map(|error| &error.message)),
                Cell::text(result.id),
            ]
        });
        session.out.list(results, &grid)?;
        Ok(first.map_or(Exit::Ok, |failure| failure.exit))
    }
}

const fn done(action: BatchAction) -> &'static str {
    match action {
        BatchAction::Delete => "deleted",
        BatchAction::Restore => "restored",
        BatchAction::Destroy => "destroyed",
        BatchAction::Protect => "protected",
        BatchAction::Unprotect => "no longer protected:",
        BatchAction::Deactivate => "deactivated",
        BatchAction::Reactivate => "reactivated",
        BatchAction::Tag => "tagged",
        BatchAction::Untag => "untagged",
        BatchAction::Share => "shared",
        BatchAction::Unshare => "no longer shared with them:",
        BatchAction::Accept => "accepted",
        BatchAction::Reject => "rejected",
        BatchAction::Publish => "published",
        BatchAction::Unpublish => "no longer public:",
        BatchAction::Feature => "featured",
        BatchAction::Unfeature => "no longer featured:",
        BatchAction::Owner => "given away:",
    }
}
