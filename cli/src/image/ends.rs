//! `hearth image delete`, `bin`, `restore`, `cancel`.

use clap::Args;
use hearth_protocol::api::image::Image;
use hearth_protocol::words::{BatchAction, ImageStatus};

use super::batch::Batch;
use super::facts;
use crate::args::{Session, confirm};
use crate::failure::Exit;
use crate::output::{Cell, Grid};
use crate::{clock, names, when};

/// Put images into the recycle bin, or destroy them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image delete noble
  hearth image delete old-1 old-2 --yes
  hearth image delete noble --now         # not into the recycle bin: gone")]
pub(crate) struct Delete {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Destroy at once instead of keeping them in the recycle bin; also what is in the bin already
    #[arg(long)]
    now: bool,
    /// Even if prewarm jobs still want it, which then end, or machines use it, which keep running
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// List the recycle bin.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image bin
  hearth image bin -o json")]
pub(crate) struct Bin {}

/// Take images out of the recycle bin.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image restore noble
  hearth image restore noble --name noble-old    # its name is taken by now
  hearth image restore old-1 old-2")]
pub(crate) struct Restore {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Another name, for one image
    #[arg(long)]
    name: Option<String>,
}

/// End the import of an image and forget it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image cancel noble --yes")]
pub(crate) struct Cancel {
    /// Name or id
    image: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Names and ids for a question.
fn listed(images: &[Image]) -> String {
    images.iter().map(|image| format!("{} ({})", image.name, image.id)).collect::<Vec<_>>().join(", ")
}

impl Delete {
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let action = if self.now { BatchAction::Destroy } else { BatchAction::Delete };
        let batch = Batch::new(action, self.images).force(self.force);
        let found = batch.found(session).await?;
        let question = if self.now {
            "Destroy {}? Nothing brings them back; copies on hosts leave the cache list and go when room is needed."
        } else {
            "Delete {}? The recycle bin keeps them for its days; what is still being imported goes at once."
        };
        confirm(&question.replace("{}", &listed(&found)), self.yes)?;
        let exit = batch.run_on(session, &found).await?;
        if exit == Exit::Ok && !self.now && session.out.for_people() {
            tell_of_bin(session, &found).await?;
        }
        Ok(exit)
    }
}

/// Says how what was deleted comes back, and until when. What was still being imported is not in the bin.
async fn tell_of_bin(session: &Session, deleted: &[Image]) -> anyhow::Result<()> {
    for image in deleted {
        // Best effort: it is deleted, whatever this says.
        let binned = session.client.get::<Image>(&["images", &image.id.to_string()], &[]).await;
        let Ok(Image { name, destroyed_at: Some(ends), .. }) = binned else { continue };
        let ends = when::relative(&ends, clock::now());
        let name = if deleted.len() == 1 { name } else { "IMAGE".to_owned() };
        return session.out.remark(&format!(
            "destroyed {ends}; until then it is in the recycle bin: hearth image restore {name}"
        ));
    }
    Ok(())
}

impl Bin {
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let status = Some(ImageStatus::PendingDelete.to_string());
        let query = [("status", status), ("sort", Some("updated".to_owned()))];
        let images: Vec<Image> = session.client.list(&["images"], &query, None).await?;
        const COLUMNS: &[&str] = &["NAME", "FORMAT", "DISK", "DELETED", "DESTROYED", "ID", "+PROJECT"];
        let grid = Grid::of(COLUMNS, &images, |image| {
            vec![
                Cell::text(&image.name),
                Cell::maybe(image.format),
                Cell::Bytes(image.virtual_bytes),
                Cell::At(image.binned_at.clone()),
                Cell::At(image.destroyed_at.clone()),
                Cell::text(image.id),
                Cell::text(image.project),
            ]
        });
        session.out.list(&images, &grid)?;
        Ok(Exit::Ok)
    }
}

impl Restore {
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let (Some(name), [wanted]) = (&self.name, self.images.as_slice()) else {
            anyhow::ensure!(
                self.name.is_none(),
                crate::failure::Failure::new(Exit::Usage, "--name is for one image")
            );
            return Batch::new(BatchAction::Restore, self.images).run(session).await;
        };
        let image = names::binned_image(&session.client, wanted).await?;
        let path = ["images", &image.id.to_string(), "restore"];
        let image: Image = session.client.act_with(&path, &[("name", Some(name.clone()))]).await?;
        session.out.facts(&image, facts(&image))?;
        Ok(Exit::Ok)
    }
}

impl Cancel {
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let image = names::image(&session.client, &self.image).await?;
        confirm(&format!("End the import of {} ({}) and forget it?", image.name, image.id), self.yes)?;
        session.client.act(&["images", &image.id.to_string(), "cancel"]).await?;
        session.out.say(&format!("cancelled {}", image.name))?;
        Ok(Exit::Ok)
    }
}
