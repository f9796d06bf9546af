//! `hearth image`: the catalog.

use clap::{Args, Subcommand};
use hearth_protocol::api::image::Image;
use hearth_protocol::words::{ImageKind, ImageStatus};

use crate::args::{Session, confirm};
use crate::failure::Exit;
use crate::names;
use crate::output::{Cell, Grid};

mod download;
mod fetch;
mod import;
mod send;

pub(crate) use import::{format_of, upload, wait_active};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Import a disk image or ISO file, or a URL
    Import(Box<import::Import>),
    /// List images
    List(List),
    /// Show one image
    Show(Show),
    /// Delete images and their copies
    #[command(visible_alias = "rm")]
    Delete(Delete),
    /// Try a failed import again
    Retry(fetch::Retry),
    /// Download the file as it was imported
    Download(download::Download),
}

/// List images.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image list
  hearth image list --status killed
  hearth image list --search debian -o csv")]
pub(crate) struct List {
    /// Only images whose name holds this
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only this status: queued, saving, importing, active, deactivated, killed, pending_delete
    #[arg(long)]
    status: Option<ImageStatus>,
    /// Only this kind: disk or iso
    #[arg(long)]
    kind: Option<ImageKind>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Show one image.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image show noble
  hearth image show 0199c0de-0000-7000-8000-000000000001 -o json")]
pub(crate) struct Show {
    /// Name or id
    image: String,
}

/// Delete images and their copies.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image delete noble
  hearth image delete old-1 old-2 --yes")]
pub(crate) struct Delete {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Even if prewarm jobs still want it; never while a machine uses a copy
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl ImageCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        match self {
            Self::Import(command) => Box::pin(command.run(session)).await,
            Self::List(command) => command.run(session).await,
            Self::Show(command) => command.run(session).await,
            Self::Delete(command) => command.run(session).await,
            Self::Retry(command) => Box::pin(command.run(session)).await,
            Self::Download(command) => Box::pin(command.run(session)).await,
        }
    }
}

impl List {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let query = [
            ("q", self.search),
            ("status", self.status.map(|status| status.to_string())),
            ("kind", self.kind.map(|kind| kind.to_string())),
        ];
        let images: Vec<Image> = session.client.list(&["images"], &query, self.limit).await?;
        session.out.list(&images, &grid(&images))?;
        Ok(Exit::Ok)
    }
}

pub(crate) fn grid(images: &[Image]) -> Grid {
    const COLUMNS: &[&str] = &[
        "NAME",
        "STATUS",
        "FORMAT",
        "DISK",
        "~DATA",
        "STORED",
        "CACHED",
        "~CHANGED",
        "+ID",
        "+KIND",
        "+VISIBILITY",
        "+PROJECT",
        "+CONTENT",
        "+SHA256",
        "+REASON",
    ];
    Grid::of(COLUMNS, images, |image| {
        vec![
            Cell::text(&image.name),
            Cell::Status(status_text(image)),
            Cell::maybe(image.format),
            Cell::Bytes(image.virtual_bytes),
            Cell::Bytes(image.data_bytes),
            Cell::Bytes(image.stored_bytes),
            Cell::maybe(image.cached_at),
            Cell::At(Some(image.updated_at.clone())),
            Cell::text(image.id),
            Cell::text(image.kind),
            Cell::text(image.visibility),
            Cell::text(image.project),
            Cell::maybe(image.content),
            Cell::maybe(image.checksums.sha256.as_ref()),
            Cell::text(&image.reason),
        ]
    })
}

/// The status, with stage and percentage while it moves.
fn status_text(image: &Image) -> String {
    match image.stage {
        Some(stage) if matches!(image.status, ImageStatus::Saving | ImageStatus::Importing) => {
            format!("{} ({stage} {}%)", image.status, image.percent)
        }
        _ => image.status.to_string(),
    }
}

impl Show {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let image = names::image(&session.client, &self.image).await?;
        session.out.facts(&image, facts(&image))?;
        Ok(Exit::Ok)
    }
}

/// What `show` tells, in the order of interest.
pub(crate) fn facts(image: &Image) -> Vec<(&'static str, Cell)> {
    let mut facts = vec![
        ("id", Cell::text(image.id)),
        ("name", Cell::text(&image.name)),
        ("kind", Cell::text(image.kind)),
        ("status", Cell::Status(status_text(image))),
        ("reason", Cell::text(&image.reason)),
        ("format", Cell::maybe(image.format)),
        ("disk", Cell::Bytes(image.virtual_bytes)),
        ("data", Cell::Bytes(image.data_bytes)),
        ("stored", Cell::Bytes(image.stored_bytes)),
        ("file", Cell::Bytes(image.original_bytes)),
        ("download", Cell::text(if image.original_kept { "yes" } else { "no: the file was not kept" })),
        ("content", Cell::maybe(image.content)),
        ("sha256", Cell::maybe(image.checksums.sha256.as_ref())),
        ("md5", Cell::maybe(image.checksums.md5.as_ref())),
        ("blake3", Cell::maybe(image.checksums.blake3.as_ref())),
        ("source", Cell::maybe(image.source.as_ref())),
        ("visibility", Cell::text(image.visibility)),
        ("project", Cell::text(image.project)),
        ("architecture", Cell::maybe(image.architecture.as_ref())),
        ("os", Cell::maybe(image.os_type.as_ref())),
        ("distribution", Cell::maybe(image.distribution.as_ref())),
        ("version", Cell::maybe(image.version.as_ref())),
        ("description", Cell::maybe(image.description.as_ref())),
        ("protected", Cell::flag(image.protected)),
        ("cached", Cell::maybe(image.cached_at.map(|n| format!("at {n} locations")))),
        ("created", Cell::At(Some(image.created_at.clone()))),
        ("changed", Cell::At(Some(image.updated_at.clone()))),
    ];
    for (name, value) in &image.properties {
        facts.push(("property", Cell::text(format!("{name}={value}"))));
    }
    facts
}

impl Delete {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let mut found = Vec::new();
        for wanted in &self.images {
            found.push(names::image(&session.client, wanted).await?);
        }
        let listed: Vec<String> =
            found.iter().map(|image| format!("{} ({})", image.name, image.id)).collect();
        confirm(
            &format!(
                "Delete {}? Copies on hosts leave the cache list and go when room is needed.",
                listed.join(", ")
            ),
            self.yes,
        )?;
        for image in found {
            let query = [("force", self.force.then(|| "true".to_owned()))];
            session.client.delete(&["images", &image.id.to_string()], &query).await?;
            session.out.say(&format!("deleted {}", image.name))?;
        }
        Ok(Exit::Ok)
    }
}
