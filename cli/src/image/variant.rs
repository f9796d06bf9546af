//! `hearth image variants` and `hearth image variant`: an image's disk in other formats.
//!
//! **What.** Lists them, has one made (and waits), removes one. [`ready`] is also how a download in a format begins.
//! **Invariants.** Whoever waits is told why a variant could not be made, with exit code [`Exit::Failed`].

use std::time::Duration;

use clap::{Args, Subcommand};
use hearth_protocol::api::image::Image;
use hearth_protocol::api::variant::{Variant, VariantCreate, VariantList};
use hearth_protocol::words::{DiskFormat, VariantStatus};

use crate::args::{Session, confirm};
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Grid};
use crate::progress::{Mode, Steps};
use crate::{names, size, system};

/// Pause between two looks at a variant that is made.
const LOOK_PAUSE: Duration = Duration::from_millis(500);

/// List the other formats that an image can be downloaded in.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image variants noble
  hearth image variants noble -o csv            # with all checksums")]
pub(crate) struct Variants {
    /// Name or id
    image: String,
}

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum VariantCommand {
    /// Have an image made into a format
    Create(Create),
    /// Remove an image's file in a format; it can be made again
    #[command(visible_alias = "rm")]
    Delete(Delete),
}

/// Have an image made into a format.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image variant create noble vhdx
  hearth image variant create noble vmdk --wait")]
pub(crate) struct Create {
    /// Name or id
    image: String,
    /// raw, qcow2, vmdk, vhd or vhdx
    format: DiskFormat,
    /// Return when it is made
    #[arg(long)]
    wait: bool,
}

/// Remove an image's file in a format.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image variant delete noble vhdx
  hearth image variant delete noble vmdk --yes")]
pub(crate) struct Delete {
    /// Name or id
    image: String,
    /// Its format
    format: DiskFormat,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Variants {
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let image = names::image(&session.client, &self.image).await?;
        let list: VariantList =
            session.client.get(&["images", &image.id.to_string(), "variants"], &[]).await?;
        session.out.list(&list.items, &grid(&list.items))?;
        if !list.makeable.is_empty() {
            let makeable: Vec<_> = list.makeable.iter().map(DiskFormat::to_string).collect();
            session.out.remark(&format!("can be made: {}", makeable.join(", ")))?;
        }
        Ok(Exit::Ok)
    }
}

fn grid(variants: &[Variant]) -> Grid {
    const COLUMNS: &[&str] =
        &["FORMAT", "STATUS", "SIZE", "SHA256", "~CHANGED", "REASON", "+MD5", "+BLAKE3", "+CREATED"];
    Grid::of(COLUMNS, variants, |variant| {
        let digest = |digest: &Option<String>| Cell::Digest(digest.clone().unwrap_or_default());
        vec![
            Cell::text(variant.format),
            Cell::Status(status_text(variant)),
            Cell::Bytes(variant.bytes),
            digest(&variant.sha256),
            Cell::At(Some(variant.updated_at.clone())),
            Cell::text(&variant.reason),
            Cell::maybe(variant.md5.as_ref()),
            Cell::maybe(variant.blake3.as_ref()),
            Cell::At(Some(variant.created_at.clone())),
        ]
    })
}

/// The status, with the percentage while it moves.
fn status_text(variant: &Variant) -> String {
    match variant.percent {
        Some(percent) => format!("{} ({percent}%)", variant.status),
        None => variant.status.to_string(),
    }
}

impl VariantCommand {
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        match self {
            Self::Create(command) => command.run(session).await,
            Self::Delete(command) => command.run(session).await,
        }
    }
}

impl Create {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let image = names::image(&session.client, &self.image).await?;
        let variant = if self.wait {
            ready(session, &image, self.format).await?
        } else {
            ask(session, &image, self.format).await?
        };
        session.out.facts(&variant, facts(&variant))?;
        Ok(Exit::Ok)
    }
}

fn facts(variant: &Variant) -> Vec<(&'static str, Cell)> {
    vec![
        ("format", Cell::text(variant.format)),
        ("status", Cell::Status(status_text(variant))),
        ("reason", Cell::text(&variant.reason)),
        ("size", Cell::Bytes(variant.bytes)),
        ("sha256", Cell::maybe(variant.sha256.as_ref())),
        ("md5", Cell::maybe(variant.md5.as_ref())),
        ("blake3", Cell::maybe(variant.blake3.as_ref())),
        ("created", Cell::At(Some(variant.created_at.clone()))),
        ("changed", Cell::At(Some(variant.updated_at.clone()))),
    ]
}

impl Delete {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let image = names::image(&session.client, &self.image).await?;
        confirm(&format!("Remove the {} file of {} ({})?", self.format, image.name, image.id), self.yes)?;
        let (id, format) = (image.id.to_string(), self.format.to_string());
        session.client.delete(&["images", &id, "variants", &format], &[]).await?;
        session.out.say(&format!("removed the {format} file of {}", image.name))?;
        Ok(Exit::Ok)
    }
}

async fn ask(session: &Session, image: &Image, format: DiskFormat) -> anyhow::Result<Variant> {
    let path = ["images", &image.id.to_string(), "variants"];
    session.client.post(&path, &VariantCreate { format }).await
}

/// The variant once it is `active`; has it made if need be.
///
/// # Errors
/// [`Exit::Failed`] with the reason when it could not be made; what the controller says otherwise.
pub(crate) async fn ready(session: &Session, image: &Image, format: DiskFormat) -> anyhow::Result<Variant> {
    let id = image.id.to_string();
    let path = ["images", &id, "variants"];
    let list: VariantList = session.client.get(&path, &[]).await?;
    let there = list.items.into_iter().find(|variant| variant.format == format);
    // Who may only read takes what is there; whoever may change the image has it made, or made again when its file is lost.
    let mut variant = match ask(session, image, format).await {
        Ok(variant) => variant,
        Err(error) => match there {
            Some(there) if is_denied(&error) && there.status != VariantStatus::SaveFail => there,
            _ => return Err(error),
        },
    };
    let mut steps = Steps::new(Mode::of_stderr(session.quiet), &format!("{} as {format}", image.name));
    loop {
        match variant.status {
            VariantStatus::Active => {
                let bytes = variant.bytes.map(size::human).unwrap_or_default();
                steps.end(&format!("made, {bytes}"));
                return Ok(variant);
            }
            VariantStatus::Queued => steps.percent("waiting", 0),
            VariantStatus::Saving => steps.percent("making", variant.percent.unwrap_or(0)),
            VariantStatus::SaveFail => {
                let message = format!("{} could not be made into {format}: {}", image.name, variant.reason);
                return Err(Failure::new(Exit::Failed, message)
                    .hint(format!("`hearth image variant create {id} {format}` tries again"))
                    .into());
            }
        }
        tokio::time::sleep(LOOK_PAUSE).await;
        let list: VariantList = system::patient(&session.client, &path).await?;
        let found = list.items.into_iter().find(|variant| variant.format == format);
        variant = found.ok_or_else(|| {
            Failure::new(Exit::NotFound, format!("the {format} file of {} was removed meanwhile", image.name))
        })?;
    }
}

fn is_denied(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Failure>().is_some_and(|failure| failure.exit == Exit::Denied)
}
