//! `hearth cache`: which image is where, and keeping or removing single copies.

use clap::{Args, Subcommand};
use hearth_protocol::api::cache::{CacheCreate, CacheEntry, PerLocation};
use hearth_protocol::words::{EntryStatus, Priority};

use crate::args::{Session, confirm};
use crate::failure::Exit;
use crate::names;
use crate::output::{Cell, Grid};
use crate::targets::{KeepArgs, TargetArgs};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List copies: one row per image and location
    List(List),
    /// Make copies by hand (for many hosts at once, `hearth prewarm create` shows more)
    Add(Add),
    /// Remove the copy of an image at a location
    #[command(visible_alias = "delete")]
    Rm(Rm),
    /// Keep a copy until it is unpinned
    Pin(One),
    /// Let a pinned copy be evicted when room is needed
    Unpin(One),
}

/// List copies.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth cache list
  hearth cache list --image noble --status cache_fail
  hearth cache list --location cn-1 -o json")]
pub(crate) struct List {
    /// Only copies of this image (name or id)
    #[arg(long)]
    image: Option<String>,
    /// Only copies at this location (name or id)
    #[arg(long)]
    location: Option<String>,
    /// Only this status: queued, caching, verifying, active, cache_fail, deleting, delete_failed, stale
    #[arg(long)]
    status: Option<EntryStatus>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Make copies by hand.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth cache add noble --to cn-1,cn-2
  hearth cache add noble --select 'zone=z1' --keep 7d
  hearth cache add noble --all --pin
  hearth cache add --host-image erp --to cn-1")]
pub(crate) struct Add {
    /// Image (name or id)
    #[arg(required_unless_present = "host_image")]
    image: Option<String>,
    /// Host image (name or id) instead of an image: all its disks
    #[arg(long, value_name = "NAME", conflicts_with = "image")]
    host_image: Option<String>,
    #[command(flatten)]
    targets: TargetArgs,
    #[command(flatten)]
    keep: KeepArgs,
    /// Order of work: demand, deadline, bulk (default) or scrub
    #[arg(long)]
    priority: Option<Priority>,
}

/// Remove the copy of an image at a location.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth cache rm noble cn-1
  hearth cache rm noble cn-1 --force --yes")]
pub(crate) struct Rm {
    /// Image (name or id)
    image: String,
    /// Location (name or id)
    location: String,
    /// Even if it is pinned or a prewarm job wants it; never while a machine uses it
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// One copy.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth cache pin noble cn-1
  hearth cache unpin noble cn-1")]
pub(crate) struct One {
    /// Image (name or id)
    image: String,
    /// Location (name or id)
    location: String,
}

impl CacheCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        match self {
            Self::List(command) => command.run(session).await,
            Self::Add(command) => command.run(session).await,
            Self::Rm(command) => command.run(session).await,
            Self::Pin(command) => command.run(session, "pin").await,
            Self::Unpin(command) => command.run(session, "unpin").await,
        }
    }
}

impl List {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let client = &session.client;
        let image = match &self.image {
            Some(wanted) => Some(names::image(client, wanted).await?.id.to_string()),
            None => None,
        };
        let location = match &self.location {
            Some(wanted) => Some(names::location(client, wanted).await?.id.to_string()),
            None => None,
        };
        let status = self.status.map(|status| status.to_string());
        let query = [("image", image), ("location", location), ("status", status)];
        let entries: Vec<CacheEntry> = client.list(&["cache"], &query, self.limit).await?;
        session.out.list(&entries, &grid(&entries))?;
        Ok(Exit::Ok)
    }
}

/// The cache list as a grid.
pub(crate) fn grid(entries: &[CacheEntry]) -> Grid {
    const COLUMNS: &[&str] = &[
        "IMAGE",
        "LOCATION",
        "STATUS",
        "DONE",
        "ON DISK",
        "~MOVED",
        "~REUSED",
        "HELD",
        "~CHANGED",
        "WHY",
        "+IMAGE ID",
        "+LOCATION ID",
        "+CONTENT",
        "+ZONE",
        "+IP",
        "+DATA",
        "+ORIGINS",
        "+USED BY",
        "+NEXT TRY",
    ];
    Grid::of(COLUMNS, entries, |entry| {
        let origins: Vec<String> = entry.origins.iter().map(ToString::to_string).collect();
        let users: Vec<String> =
            entry.used_by.iter().map(|user| format!("{} {}", user.kind, user.name)).collect();
        vec![
            Cell::text(&entry.image_name),
            Cell::text(&entry.location_name),
            Cell::status(status_text(entry)),
            Cell::Percent(entry.percent),
            Cell::Bytes(Some(entry.allocated_bytes)),
            Cell::Bytes(Some(entry.moved_bytes)),
            Cell::Bytes(Some(entry.reused_bytes)),
            held(entry, &users),
            Cell::At(Some(entry.updated_at.clone())),
            Cell::text(&entry.reason),
            Cell::text(entry.image),
            Cell::text(entry.location),
            Cell::text(entry.content),
            Cell::text(&entry.zone),
            Cell::text(&entry.ip),
            Cell::Bytes(Some(entry.data_bytes)),
            Cell::text(origins.join(" ")),
            Cell::text(users.join(", ")),
            Cell::At(entry.next_try_at.clone()),
        ]
    })
}

fn status_text(entry: &CacheEntry) -> String {
    match entry.last_status {
        Some(last) if entry.status == EntryStatus::Stale => format!("stale (was {last})"),
        _ => entry.status.to_string(),
    }
}

/// What keeps the copy from being evicted.
fn held(entry: &CacheEntry, users: &[String]) -> Cell {
    if !users.is_empty() {
        Cell::text("in use")
    } else if entry.pinned {
        Cell::text("pinned")
    } else {
        Cell::At(entry.held_until.clone())
    }
}

impl Add {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let (image, host_image) =
            names::subject(&session.client, self.image.as_deref(), self.host_image.as_deref()).await?;
        let body = CacheCreate {
            image,
            host_image,
            targets: self.targets.body(),
            keep: self.keep.body(),
            priority: self.priority,
        };
        let results: Vec<PerLocation> = session.client.post(&["cache"], &body).await?;
        let grid = Grid::of(&["LOCATION", "RESULT", "MESSAGE", "+LOCATION ID"], &results, |result| {
            vec![
                Cell::text(&result.location_name),
                Cell::status(if result.ok { "ok" } else { "failed" }),
                Cell::text(&result.message),
                Cell::text(result.location),
            ]
        });
        session.out.list(&results, &grid)?;
        Ok(if results.iter().all(|result| result.ok) { Exit::Ok } else { Exit::Incomplete })
    }
}

impl Rm {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let image = names::image(&session.client, &self.image).await?;
        let location = names::location(&session.client, &self.location).await?;
        confirm(&format!("Remove the copy of {} at {}?", image.name, location.name), self.yes)?;
        let query = [("force", self.force.then(|| "true".to_owned()))];
        session.client.delete(&["cache", &image.id.to_string(), &location.id.to_string()], &query).await?;
        session.out.say(&format!("{} is being removed at {}", image.name, location.name))?;
        Ok(Exit::Ok)
    }
}

impl One {
    async fn run(self, session: &Session, verb: &str) -> anyhow::Result<Exit> {
        let image = names::image(&session.client, &self.image).await?;
        let location = names::location(&session.client, &self.location).await?;
        let path = ["cache", &image.id.to_string(), &location.id.to_string(), verb];
        let entry: CacheEntry = session.client.act_for(&path).await?;
        session.out.list(std::slice::from_ref(&entry), &grid(std::slice::from_ref(&entry)))?;
        Ok(Exit::Ok)
    }
}
