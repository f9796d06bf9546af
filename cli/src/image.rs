//! `hearth image`: the catalog.
//!
//! **What.** The verbs, and how one image and many are shown. Each verb is in a file of its theme below.

use clap::{Args, Subcommand};
use hearth_protocol::api::distribution::Distributions;
use hearth_protocol::api::image::Image;
use hearth_protocol::api::key::Encryption;
use hearth_protocol::words::{BatchAction, ImageStatus};

use crate::args::Session;
use crate::failure::Exit;
use crate::names;
use crate::output::{Cell, Grid};
use crate::sharing::SharingCommand;

mod attributes;
mod batch;
mod download;
mod edits;
mod ends;
mod fetch;
mod guide;
mod import;
mod launch;
mod link;
mod list;
mod send;
mod unfinished;
mod variant;

pub(crate) use batch::Batch;
pub(crate) use guide::SEE;
pub(crate) use import::{Upload, format_of, upload, wait_active};
pub(crate) use unfinished::Begun;

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Import a disk image or ISO file, or a URL
    Import(Box<import::Import>),
    /// List images
    List(Box<list::List>),
    /// Show one image
    Show(Show),
    /// Change what an image says of itself
    Set(Box<edits::Set>),
    /// Give images tags
    Tag(edits::Tag),
    /// Take tags away from images
    Untag(edits::Untag),
    /// Refuse deletion of images
    Protect(edits::Protect),
    /// Allow deletion of images again
    Unprotect(edits::Unprotect),
    /// Close images to users; they are kept
    Deactivate(edits::Deactivate),
    /// Open deactivated images to users again
    Reactivate(edits::Reactivate),
    /// Put images into the recycle bin, or destroy them
    #[command(visible_alias = "rm")]
    Delete(ends::Delete),
    /// List the recycle bin
    Bin(ends::Bin),
    /// Take images out of the recycle bin
    Restore(ends::Restore),
    /// End the import of an image and forget it
    Cancel(ends::Cancel),
    /// Try a failed import again
    Retry(fetch::Retry),
    /// Download the file as it was imported, or in another format
    Download(download::Download),
    /// Save the list as CSV or Excel
    Export(Box<ExportList>),
    /// Addresses from which an image can be downloaded without a token
    #[command(subcommand, visible_alias = "links")]
    Link(link::LinkCommand),
    /// List the other formats that an image can be downloaded in
    Variants(variant::Variants),
    /// Make or remove an image's file in another format
    #[command(subcommand)]
    Variant(variant::VariantCommand),
    /// Cache an image where a machine of it will run
    Launch(launch::Launch),
    /// Tell how to make and convert images
    Guide(guide::Guide),
    /// List the distributions that images are offered for
    Distributions(Table),
    /// Sharing, publishing and owners
    #[command(flatten)]
    Sharing(SharingCommand),
}

/// List distributions.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image distributions
  hearth image distributions -o csv")]
pub(crate) struct Table {}

/// Save the list.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image export images.xlsx
  hearth image export images.csv --columns name,status,virtual_bytes,created_at --status active
  hearth image export - --format csv --search debian

In CSV, a cell that a spreadsheet would run as a formula (= + - @ tab, line end) begins with '.")]
pub(crate) struct ExportList {
    #[command(flatten)]
    export: crate::export::Export,
    #[command(flatten)]
    filter: list::Filter,
}

impl ExportList {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        self.export.run(session, &["images", "export"], &self.filter.query(&session.client).await?).await
    }
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

impl ImageCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let many = |action, images| Batch::new(action, images).run(session);
        match self {
            Self::Import(command) => Box::pin(command.run(session)).await,
            Self::List(command) => Box::pin(command.run(session)).await,
            Self::Show(command) => command.run(session).await,
            Self::Set(command) => Box::pin(command.run(session)).await,
            Self::Tag(edits::Tag { images, tags }) => {
                Batch::new(BatchAction::Tag, images).tags(tags).run(session).await
            }
            Self::Untag(edits::Untag { images, tags }) => {
                Batch::new(BatchAction::Untag, images).tags(tags).run(session).await
            }
            Self::Protect(command) => many(BatchAction::Protect, command.images).await,
            Self::Unprotect(command) => many(BatchAction::Unprotect, command.images).await,
            Self::Deactivate(command) => many(BatchAction::Deactivate, command.images).await,
            Self::Reactivate(command) => many(BatchAction::Reactivate, command.images).await,
            Self::Delete(command) => command.run(session).await,
            Self::Bin(command) => command.run(session).await,
            Self::Restore(command) => command.run(session).await,
            Self::Cancel(command) => command.run(session).await,
            Self::Retry(command) => Box::pin(command.run(session)).await,
            Self::Download(command) => Box::pin(command.run(session)).await,
            Self::Export(command) => command.run(session).await,
            Self::Link(command) => command.run(session).await,
            Self::Launch(command) => Box::pin(command.run(session)).await,
            Self::Guide(command) => command.run(),
            Self::Distributions(_) => distributions(session).await,
            Self::Sharing(command) => Box::pin(command.run(session)).await,
            Self::Variants(command) => command.run(session).await,
            Self::Variant(command) => command.run(session).await,
        }
    }
}

async fn distributions(session: &Session) -> anyhow::Result<Exit> {
    let table: Distributions = session.client.get(&["distributions"], &[]).await?;
    let grid = Grid::of(&["NAME", "OS", "ARCHITECTURE", "VERSIONS"], &table.distributions, |row| {
        vec![
            Cell::text(&row.name),
            Cell::text(row.os_type),
            Cell::text(row.architecture),
            Cell::text(row.versions.join(" ")),
        ]
    });
    session.out.list(&table.distributions, &grid)?;
    if table.strict {
        session.out.remark("\nAn image of another distribution or version is refused.")?;
    }
    Ok(Exit::Ok)
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
        "+OS",
        "+ARCHITECTURE",
        "+DISTRIBUTION",
        "+VERSION",
        "+TAGS",
        "+PROTECTED",
        "+CREATED",
        "+VISIBILITY",
        "+PROJECT",
        "+CONTENT",
        "+SHA256",
        "+REASON",
        "+FEATURED",
        "+KEY",
    ];
    Grid::of(COLUMNS, images, |image| {
        vec![
            Cell::text(&image.name),
            Cell::Status(status_text(image)),
            Cell::maybe(image.format),
            Cell::Bytes(image.virtual_bytes),
            Cell::Bytes(image.data_bytes),
            Cell::Bytes(image.stored_bytes),
            cached(image),
            Cell::At(Some(image.updated_at.clone())),
            Cell::text(image.id),
            Cell::text(image.kind),
            Cell::maybe(image.os_type),
            Cell::maybe(image.architecture),
            Cell::maybe(image.distribution.as_ref()),
            Cell::maybe(image.version.as_ref()),
            Cell::text(tags(image)),
            Cell::flag(image.protected),
            Cell::At(Some(image.created_at.clone())),
            Cell::text(image.visibility),
            Cell::text(image.project),
            Cell::maybe(image.content),
            Cell::maybe(image.checksums.sha256.as_ref()),
            Cell::text(&image.reason),
            Cell::flag(image.featured),
            Cell::maybe(image.encryption.as_ref().and_then(|how| how.key_name.as_ref())),
        ]
    })
}

/// Whether it is cached at the location that was asked for, else at how many it is.
fn cached(image: &Image) -> Cell {
    image.cached.map_or_else(|| Cell::maybe(image.cached_at), Cell::flag)
}

/// How it is encrypted, as far as one may know.
fn encrypted(how: &Encryption) -> String {
    let key = how.key_name.as_ref().map_or_else(String::new, |name| format!(" with key {name}"));
    format!("qcow2 with LUKS{key}")
}

fn tags(image: &Image) -> String {
    image.tags.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Whether the file can be downloaded.
const fn download(image: &Image) -> &'static str {
    match image.status {
        _ if image.original_kept => "yes",
        ImageStatus::Queued | ImageStatus::Saving | ImageStatus::Importing => "not yet",
        _ => "no: the file was not kept",
    }
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
        ("download", Cell::text(download(image))),
        ("encrypted", Cell::maybe(image.encryption.as_ref().map(encrypted))),
        ("content", Cell::maybe(image.content)),
        ("sha256", Cell::maybe(image.checksums.sha256.as_ref())),
        ("md5", Cell::maybe(image.checksums.md5.as_ref())),
        ("blake3", Cell::maybe(image.checksums.blake3.as_ref())),
        ("source", Cell::maybe(image.source.as_ref())),
        ("visibility", Cell::text(image.visibility)),
        ("domain", Cell::text(image.domain)),
        ("featured", Cell::text(if image.featured { "yes" } else { "" })),
        ("shared with you", Cell::maybe(image.share_status)),
        ("project", Cell::text(image.project)),
        ("architecture", Cell::maybe(image.architecture)),
        ("os", Cell::maybe(image.os_type)),
        ("distribution", Cell::maybe(image.distribution.as_ref())),
        ("version", Cell::maybe(image.version.as_ref())),
        ("description", Cell::maybe(image.description.as_ref())),
        ("minimum disk", Cell::Bytes(image.min_disk_bytes)),
        ("minimum memory", Cell::Bytes(image.min_memory_bytes)),
        ("virtualisation", Cell::maybe(image.virtualisation)),
        ("grown to", Cell::Bytes(image.disk_bytes)),
        ("disk driver", Cell::text(image.disk_driver)),
        ("network driver", Cell::text(image.network_driver)),
        ("OS language", Cell::maybe(image.os_language.as_ref())),
        ("app platform", Cell::maybe(image.app_platform.as_ref())),
        ("password", Cell::flag(image.password_enabled)),
        ("tags", Cell::text(tags(image))),
        ("protected", Cell::flag(image.protected)),
        ("deleted", Cell::At(image.binned_at.clone())),
        ("destroyed", Cell::At(image.destroyed_at.clone())),
        ("scan", Cell::maybe(image.scan.as_ref().map(|scan| &scan.verdict))),
        ("cached", Cell::maybe(image.cached_at.map(|n| format!("at {n} locations")))),
        ("created", Cell::At(Some(image.created_at.clone()))),
        ("changed", Cell::At(Some(image.updated_at.clone()))),
        ("revision", Cell::Number(image.revision)),
    ];
    for (name, value) in &image.properties {
        facts.push(("property", Cell::text(format!("{name}={value}"))));
    }
    facts
}
