//! `hearth host-image`: disk images merged into what a whole machine starts from.

use clap::{ArgGroup, Args, Subcommand};
use hearth_protocol::api::host_image::{
    BATCH_MAX, HostImage, HostImageBatch, HostImageBatchDelete, HostImageCache, HostImageCreate,
    HostImageDetails, HostImageFacts, HostImageResult, HostImageUpdate, SubImage,
};
use hearth_protocol::id::ProjectId;
use hearth_protocol::words::{DiskRole, HostImageStatus};

use crate::args::{Session, confirm};
use crate::failure::Exit;
use crate::output::{Cell, Grid};
use crate::{names, size};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum HostImageCommand {
    /// Merge disk images into a host image
    #[command(visible_alias = "merge")]
    Create(Box<Create>),
    /// List host images
    List(List),
    /// Show a host image and its disks
    Show(Show),
    /// Change name, facts or publicity of a host image
    Set(Box<Set>),
    /// Refuse deletion of host images
    Protect(Many),
    /// Allow deletion of host images again
    Unprotect(Many),
    /// Delete host images; the images of their disks stay
    #[command(visible_alias = "rm")]
    Delete(Delete),
    /// Where all disks of a host image are
    Cache(Show),
}

/// What is known about a host image; an empty text or a size of 0 takes a fact away.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Facts")]
pub(crate) struct FactArgs {
    /// For people
    #[arg(long)]
    description: Option<String>,
    /// x86_64 or aarch64
    #[arg(long)]
    architecture: Option<String>,
    /// linux, windows, macos, vmware or other
    #[arg(long)]
    os_type: Option<String>,
    /// For example Debian
    #[arg(long)]
    distribution: Option<String>,
    /// Version of the distribution
    #[arg(long, value_name = "TEXT")]
    os_version: Option<String>,
    /// Language of the system, for example zh_CN
    #[arg(long, value_name = "TEXT")]
    os_language: Option<String>,
    /// What runs on it
    #[arg(long, value_name = "TEXT")]
    app_platform: Option<String>,
    /// How disks are attached: auto, virtio, scsi, pvscsi, ide or sata
    #[arg(long, value_name = "DRIVER")]
    disk_driver: Option<String>,
    /// How networks are attached: auto, virtio, e1000 or vmxnet3
    #[arg(long, value_name = "DRIVER")]
    network_driver: Option<String>,
    /// Smallest system disk of a machine made of it
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    min_disk: Option<u64>,
    /// Smallest memory of a machine made of it
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    min_memory: Option<u64>,
}

impl FactArgs {
    fn body(self) -> HostImageFacts {
        HostImageFacts {
            description: self.description,
            architecture: self.architecture,
            os_type: self.os_type,
            distribution: self.distribution,
            version: self.os_version,
            os_language: self.os_language,
            app_platform: self.app_platform,
            disk_driver: self.disk_driver,
            network_driver: self.network_driver,
            min_disk_bytes: self.min_disk,
            min_memory_bytes: self.min_memory,
        }
    }
}

/// Merge disk images into a host image.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth host-image create erp erp-system erp-data-1 erp-data-2
  hearth host-image create erp erp-system erp-data --protected --description 'ERP with its database'

The order is that of the disks of a machine: system disk, data disk 1, data disk 2 … It takes 2 to 16 active disk images,
your own or public ones. What is not said about the system is taken from the system disk's image.")]
pub(crate) struct Create {
    /// Name of the host image
    name: String,
    /// Images (names or ids) in the order of the disks, the system disk first
    #[arg(required = true, num_args = 2.., value_name = "IMAGE")]
    images: Vec<String>,
    /// Id of the owning project (default: that of the token)
    #[arg(long, value_name = "ID")]
    project: Option<ProjectId>,
    /// Refuse deletion
    #[arg(long)]
    protected: bool,
    #[command(flatten)]
    facts: FactArgs,
}

/// List host images.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth host-image list
  hearth host-image list --search erp --status active -o csv")]
pub(crate) struct List {
    /// Only host images whose name holds this
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Only this status: active, deactivated, importing, saving, queued, pending_delete, killed, missing
    #[arg(long)]
    status: Option<HostImageStatus>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// One host image.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth host-image show erp
  hearth host-image cache erp -o json")]
pub(crate) struct Show {
    /// Name or id
    host_image: String,
}

/// Change a host image.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("visibility").args(["public", "private"]))]
#[command(after_help = "Examples:
  hearth host-image set erp --name erp-2026 --description 'ERP, golden'
  hearth host-image set erp --disk-driver virtio --network-driver auto
  hearth host-image set erp --public

Nothing is changed if somebody else changed it meanwhile.")]
pub(crate) struct Set {
    /// Name or id
    host_image: String,
    /// New name
    #[arg(long)]
    name: Option<String>,
    /// Everybody may see it (system administrators; every disk's image must be public)
    #[arg(long)]
    public: bool,
    /// Only its project may see it (system administrators)
    #[arg(long)]
    private: bool,
    #[command(flatten)]
    facts: FactArgs,
}

/// Several host images.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth host-image protect erp
  hearth host-image unprotect erp crm")]
pub(crate) struct Many {
    /// Names or ids
    #[arg(required = true, value_name = "HOST_IMAGE")]
    host_images: Vec<String>,
}

/// Delete host images.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth host-image delete erp
  hearth host-image delete erp crm --members --yes

Without --members the images of the disks stay. With it each of them that nothing else uses is deleted too; one that is
protected, used by a machine, being prewarmed or a disk of another host image stays, and the result says so.")]
pub(crate) struct Delete {
    /// Names or ids
    #[arg(required = true, value_name = "HOST_IMAGE")]
    host_images: Vec<String>,
    /// Also the images of their disks
    #[arg(long)]
    members: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl HostImageCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        match self {
            Self::Create(command) => command.run(session).await,
            Self::List(command) => command.run(session).await,
            Self::Show(command) => command.show(session).await,
            Self::Set(command) => command.run(session).await,
            Self::Protect(command) => command.run(session, "protect").await,
            Self::Unprotect(command) => command.run(session, "unprotect").await,
            Self::Delete(command) => command.run(session).await,
            Self::Cache(command) => command.cache(session).await,
        }
    }
}

impl Create {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let mut images = Vec::with_capacity(self.images.len());
        for wanted in &self.images {
            images.push(names::image(&session.client, wanted).await?.id);
        }
        let body = HostImageCreate {
            name: self.name,
            project: self.project,
            images,
            protected: self.protected,
            facts: self.facts.body(),
        };
        let made: HostImageDetails = session.client.post(&["host-images"], &body).await?;
        tell(session, &made)?;
        Ok(Exit::Ok)
    }
}

impl List {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let query = [("q", self.search), ("status", self.status.map(|status| status.to_string()))];
        let found: Vec<HostImage> = session.client.list(&["host-images"], &query, self.limit).await?;
        const COLUMNS: &[&str] = &[
            "NAME",
            "STATUS",
            "DISKS",
            "SIZE",
            "~DATA",
            "STORED",
            "PROTECTED",
            "~CHANGED",
            "+ID",
            "+VISIBILITY",
            "+PROJECT",
            "+DOMAIN",
            "+OS TYPE",
            "+DISTRIBUTION",
            "+DESCRIPTION",
            "+CREATED",
            "+REVISION",
        ];
        let grid = Grid::of(COLUMNS, &found, |one| {
            vec![
                Cell::text(&one.name),
                Cell::status(one.status),
                Cell::Number(u64::from(one.disks)),
                Cell::Bytes(one.virtual_bytes),
                Cell::Bytes(one.data_bytes),
                Cell::Bytes(one.stored_bytes),
                Cell::flag(one.protected),
                Cell::At(Some(one.updated_at.clone())),
                Cell::text(one.id),
                Cell::text(one.visibility),
                Cell::text(one.project),
                Cell::text(one.domain),
                Cell::maybe(one.facts.os_type.as_ref()),
                Cell::maybe(one.facts.distribution.as_ref()),
                Cell::maybe(one.facts.description.as_ref()),
                Cell::At(Some(one.created_at.clone())),
                Cell::Number(one.revision),
            ]
        });
        session.out.list(&found, &grid)?;
        Ok(Exit::Ok)
    }
}

impl Show {
    async fn show(self, session: &Session) -> anyhow::Result<Exit> {
        let id = names::host_image(&session.client, &self.host_image).await?.id;
        let found: HostImageDetails = session.client.get(&["host-images", &id.to_string()], &[]).await?;
        tell(session, &found)?;
        Ok(Exit::Ok)
    }

    async fn cache(self, session: &Session) -> anyhow::Result<Exit> {
        let id = names::host_image(&session.client, &self.host_image).await?.id;
        let path = ["host-images", &id.to_string(), "cache"];
        let rows: Vec<HostImageCache> = session.client.list(&path, &[], None).await?;
        const COLUMNS: &[&str] = &[
            "LOCATION",
            "STATUS",
            "DISKS",
            "DONE",
            "~ZONE",
            "+LOCATION ID",
            "+KIND",
            "+PLATFORM",
            "+REGION",
            "+DONE BYTES",
            "+DATA BYTES",
        ];
        let grid = Grid::of(COLUMNS, &rows, |row| {
            vec![
                Cell::text(&row.location_name),
                Cell::status(row.status),
                Cell::text(format!("{} of {}", row.active, row.disks)),
                Cell::Percent(row.percent),
                Cell::text(&row.zone),
                Cell::text(row.location),
                Cell::text(row.location_kind),
                Cell::text(&row.platform),
                Cell::text(&row.region),
                Cell::Bytes(Some(row.done_bytes)),
                Cell::Bytes(Some(row.data_bytes)),
            ]
        });
        session.out.list(&rows, &grid)?;
        Ok(Exit::Ok)
    }
}

impl Set {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let found = names::host_image(&session.client, &self.host_image).await?;
        let body = HostImageUpdate {
            name: self.name,
            public: (self.public || self.private).then_some(self.public),
            protected: None,
            facts: self.facts.body(),
        };
        let path = ["host-images", &found.id.to_string()];
        let edited: HostImageDetails = session.client.patch(&path, &body, found.revision).await?;
        tell(session, &edited)?;
        Ok(Exit::Ok)
    }
}

impl Many {
    async fn run(self, session: &Session, verb: &str) -> anyhow::Result<Exit> {
        let found = all(session, &self.host_images).await?;
        let mut results: Vec<HostImageResult> = Vec::with_capacity(found.len());
        for part in found.chunks(BATCH_MAX) {
            let body = HostImageBatch { ids: part.iter().map(|one| one.id).collect() };
            let told: Vec<HostImageResult> =
                session.client.post(&["host-images", "batch", verb], &body).await?;
            results.extend(told);
        }
        tell_results(session, &results)
    }
}

impl Delete {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let found = all(session, &self.host_images).await?;
        let listed: Vec<String> = found.iter().map(|one| format!("{} ({})", one.name, one.id)).collect();
        let rest = if self.members {
            "The images of their disks that nothing else uses are deleted too."
        } else {
            "The images of their disks stay."
        };
        confirm(&format!("Delete {}? {rest}", listed.join(", ")), self.yes)?;
        let mut results: Vec<HostImageResult> = Vec::with_capacity(found.len());
        for part in found.chunks(BATCH_MAX) {
            let ids = part.iter().map(|one| one.id).collect();
            let body = HostImageBatchDelete { ids, members: self.members };
            let told: Vec<HostImageResult> =
                session.client.post(&["host-images", "batch", "delete"], &body).await?;
            results.extend(told);
        }
        tell_results(session, &results)
    }
}

/// The host images that are named, each once.
async fn all(session: &Session, wanted: &[String]) -> anyhow::Result<Vec<HostImage>> {
    let mut found: Vec<HostImage> = Vec::with_capacity(wanted.len());
    for name in wanted {
        let one = names::host_image(&session.client, name).await?;
        if found.iter().all(|other| other.id != one.id) {
            found.push(one);
        }
    }
    Ok(found)
}

/// One row per host image, and below it one per image of its disks.
fn tell_results(session: &Session, results: &[HostImageResult]) -> anyhow::Result<Exit> {
    let word = |ok| Cell::status(if ok { "ok" } else { "failed" });
    let mut grid = Grid::new(&["NAME", "RESULT", "MESSAGE", "+ID"]);
    for result in results {
        let name = result.name.clone().unwrap_or_else(|| result.id.to_string());
        grid.push(vec![
            Cell::text(name),
            word(result.ok),
            Cell::text(&result.message),
            Cell::text(result.id),
        ]);
        for image in &result.images {
            let name = image.name.clone().unwrap_or_else(|| image.image.to_string());
            grid.push(vec![
                Cell::text(format!("  image {name}")),
                word(image.ok),
                Cell::text(&image.message),
                Cell::text(image.image),
            ]);
        }
    }
    session.out.list(results, &grid)?;
    // An image that stays because something else uses it is what was asked for.
    Ok(if results.iter().all(|result| result.ok) { Exit::Ok } else { Exit::Incomplete })
}

/// A host image with its disks.
fn tell(session: &Session, found: &HostImageDetails) -> anyhow::Result<()> {
    session.out.facts(found, facts(&found.host_image))?;
    let grid =
        Grid::of(&["DISK", "IMAGE", "STATUS", "KIND", "FORMAT", "SIZE", "CREATED"], &found.images, |disk| {
            vec![
                Cell::text(disk_name(disk)),
                Cell::maybe(disk.name.as_ref()),
                Cell::status(disk.status),
                Cell::maybe(disk.kind),
                Cell::maybe(disk.format),
                Cell::Bytes(disk.virtual_bytes),
                Cell::At(disk.created_at.clone()),
            ]
        });
    session.out.below(&grid)
}

/// `system`, `data 1`, …
fn disk_name(disk: &SubImage) -> String {
    match disk.role {
        DiskRole::System => disk.role.to_string(),
        DiskRole::Data => format!("{} {}", disk.role, disk.position),
    }
}

fn facts(found: &HostImage) -> Vec<(&'static str, Cell)> {
    let said = &found.facts;
    vec![
        ("id", Cell::text(found.id)),
        ("name", Cell::text(&found.name)),
        ("status", Cell::status(found.status)),
        ("disks", Cell::Number(u64::from(found.disks))),
        ("size", Cell::Bytes(found.virtual_bytes)),
        ("data", Cell::Bytes(found.data_bytes)),
        ("stored", Cell::Bytes(found.stored_bytes)),
        ("visibility", Cell::text(found.visibility)),
        ("domain", Cell::text(found.domain)),
        ("project", Cell::text(found.project)),
        ("architecture", Cell::maybe(said.architecture.as_ref())),
        ("os", Cell::maybe(said.os_type.as_ref())),
        ("distribution", Cell::maybe(said.distribution.as_ref())),
        ("version", Cell::maybe(said.version.as_ref())),
        ("language", Cell::maybe(said.os_language.as_ref())),
        ("platform", Cell::maybe(said.app_platform.as_ref())),
        ("disk driver", Cell::maybe(said.disk_driver.as_ref())),
        ("network driver", Cell::maybe(said.network_driver.as_ref())),
        ("min disk", Cell::Bytes(said.min_disk_bytes)),
        ("min memory", Cell::Bytes(said.min_memory_bytes)),
        ("description", Cell::maybe(said.description.as_ref())),
        ("protected", Cell::flag(found.protected)),
        ("created", Cell::At(Some(found.created_at.clone()))),
        ("changed", Cell::At(Some(found.updated_at.clone()))),
    ]
}
