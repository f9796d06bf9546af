//! `hearth image share`, `unshare`, `shares`, `accept`, `reject`, `publish`, `unpublish`, `owner`, `feature`, `unfeature`: who
//! else uses an image, and whose it is.
//!
//! **What.** Each verb takes several images and says for each what came of it; see [`Batch`].
//! **Why an id is not looked up.** Who shares with a project need not be able to see it.
//! **Invariants.** Nothing is done before every image, project and domain was found.

use clap::{Args, Subcommand};
use hearth_protocol::api::Page;
use hearth_protocol::api::image::Image;
use hearth_protocol::api::share::{Share as ShareBody, ShareCreate, ShareRemove};
use hearth_protocol::id::{DomainId, ProjectId};
use hearth_protocol::words::{BatchAction, ShareStatus, Visibility};

use crate::args::{Session, confirm};
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::image::Batch;
use crate::names;
use crate::output::{Cell, Grid};

/// Verbs under `hearth image`.
#[derive(Debug, Subcommand)]
pub(crate) enum SharingCommand {
    /// Share images with projects, domains or the whole domain
    Share(Share),
    /// End shares of images
    Unshare(Unshare),
    /// With whom an image is shared
    Shares(Shares),
    /// Take images that others share into your project's lists
    Accept(Answer),
    /// Keep images that others share out of your project's lists
    Reject(Answer),
    /// Make images public: everybody uses them
    Publish(Publish),
    /// Make public images custom again: private to their project
    Unpublish(Images),
    /// Give images to another project
    Owner(Owner),
    /// Recommend images: they are found under --view featured
    Feature(Images),
    /// Recommend images no longer
    Unfeature(Images),
}

/// With whom.
#[derive(Clone, Debug, Args)]
pub(crate) struct Receivers {
    /// These projects, by name or id; each must accept
    #[arg(
        long = "project",
        visible_alias = "with",
        value_name = "PROJECT,PROJECT",
        value_delimiter = ',',
        help_heading = "With whom"
    )]
    projects: Vec<String>,
    /// All projects of these domains, by name or id (system administrators)
    #[arg(long = "domain", value_name = "DOMAIN,DOMAIN", value_delimiter = ',', help_heading = "With whom")]
    domains: Vec<String>,
    /// All projects of the image's domain
    #[arg(long, help_heading = "With whom")]
    whole_domain: bool,
}

/// Share images.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image share noble --with web
  hearth image share noble jammy --with web,0199c0de-0000-7000-8000-000000000001
  hearth image share noble jammy --whole-domain
  hearth image share noble --domain research

A project that you may not see is named by its id.")]
pub(crate) struct Share {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    with: Receivers,
}

/// End shares of images. Copies that exist stay.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image unshare noble --project web
  hearth image unshare noble jammy --all")]
pub(crate) struct Unshare {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    #[command(flatten)]
    with: Receivers,
    /// Everybody
    #[arg(long, conflicts_with_all = ["projects", "domains", "whole_domain"], help_heading = "With whom")]
    all: bool,
}

/// With whom an image is shared.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image shares noble
  hearth image shares noble -o json")]
pub(crate) struct Shares {
    /// Name or id
    image: String,
}

/// Answer for a project with which images are shared.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image list --view shared --share-status pending
  hearth image accept noble
  hearth image reject noble jammy")]
pub(crate) struct Answer {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Answer for this project, by name or id (default: your own)
    #[arg(long)]
    project: Option<String>,
}

/// Make images public. Their shares end.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image publish noble
  hearth image publish noble jammy --yes")]
pub(crate) struct Publish {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// One verb on several images.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image unpublish noble
  hearth image feature noble jammy
  hearth image unfeature jammy")]
pub(crate) struct Images {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

/// Give images to another project.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image owner noble --project web
  hearth image owner noble jammy --project web")]
pub(crate) struct Owner {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// The new owner, by name or id
    #[arg(long)]
    project: String,
}

impl SharingCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let many = |action, Images { images }| Batch::new(action, images).run(session);
        match self {
            Self::Share(command) => command.run(session).await,
            Self::Unshare(command) => command.run(session).await,
            Self::Shares(command) => command.run(session).await,
            Self::Accept(command) => command.run(session, BatchAction::Accept).await,
            Self::Reject(command) => command.run(session, BatchAction::Reject).await,
            Self::Publish(command) => command.run(session).await,
            Self::Owner(command) => command.run(session).await,
            Self::Unpublish(images) => many(BatchAction::Unpublish, images).await,
            Self::Feature(images) => many(BatchAction::Feature, images).await,
            Self::Unfeature(images) => many(BatchAction::Unfeature, images).await,
        }
    }
}

impl Receivers {
    /// The projects and domains that are meant.
    async fn found(&self, client: &Client) -> anyhow::Result<(Vec<ProjectId>, Vec<DomainId>)> {
        let (mut projects, mut domains) = (Vec::new(), Vec::new());
        for wanted in &self.projects {
            projects.push(names::project_id(client, wanted).await?);
        }
        for wanted in &self.domains {
            domains.push(names::domain_id(client, wanted).await?);
        }
        Ok((projects, domains))
    }
}

impl Share {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let (projects, domains) = self.with.found(&session.client).await?;
        let share = ShareCreate { projects, domains, whole_domain: self.with.whole_domain };
        if share == ShareCreate::default() {
            return Err(nobody("--with PROJECT, --domain DOMAIN or --whole-domain").into());
        }
        let asked = !share.projects.is_empty();
        let exit = Batch::new(BatchAction::Share, self.images).share(share).run(session).await?;
        if exit == Exit::Ok && asked {
            session.out.remark("each project must accept: hearth image accept")?;
        }
        Ok(exit)
    }
}

fn nobody(options: &str) -> Failure {
    Failure::new(Exit::Usage, format!("say with whom: {options}"))
}

impl Unshare {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let (projects, domains) = self.with.found(&session.client).await?;
        let unshare = ShareRemove { projects, domains, whole_domain: self.with.whole_domain, all: self.all };
        if unshare == ShareRemove::default() {
            return Err(nobody("--project PROJECT, --domain DOMAIN, --whole-domain or --all").into());
        }
        Batch::new(BatchAction::Unshare, self.images).unshare(unshare).run(session).await
    }
}

impl Shares {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let image = names::image(&session.client, &self.image).await?;
        let page: Page<ShareBody> =
            session.client.get(&["images", &image.id.to_string(), "shares"], &[]).await?;
        const COLUMNS: &[&str] = &["KIND", "NAME", "STATUS", "~SHARED", "~ANSWERED", "ID"];
        let grid = Grid::of(COLUMNS, &page.items, |share| {
            vec![
                Cell::text(share.kind),
                Cell::maybe(share.name.as_ref()),
                Cell::status(share.status),
                Cell::At(Some(share.created_at.clone())),
                Cell::At((share.updated_at != share.created_at).then(|| share.updated_at.clone())),
                Cell::text(&share.target),
            ]
        });
        session.out.list(&page.items, &grid)?;
        Ok(Exit::Ok)
    }
}

impl Answer {
    async fn run(self, session: &Session, action: BatchAction) -> anyhow::Result<Exit> {
        let project = match &self.project {
            Some(wanted) => Some(names::project_id(&session.client, wanted).await?),
            None => None,
        };
        let mut images = Vec::new();
        for wanted in &self.images {
            images.push(offered(&session.client, wanted).await?);
        }
        Batch::new(action, Vec::new()).project(project).run_on(session, &images).await
    }
}

/// The image with this id, or with this name among those that others share: also what is in no plain list yet.
async fn offered(client: &Client, wanted: &str) -> anyhow::Result<Image> {
    if wanted.parse::<hearth_protocol::id::ImageId>().is_ok() {
        return names::image(client, wanted).await;
    }
    let mut rows: Vec<Image> = Vec::new();
    for status in ShareStatus::ALL {
        let query = [
            ("name", Some(wanted.to_owned())),
            ("view", Some("shared".to_owned())),
            ("share_status", Some(status.to_string())),
        ];
        for row in client.list::<Image>(&["images"], &query, None).await? {
            if rows.iter().all(|other| other.id != row.id) {
                rows.push(row);
            }
        }
    }
    let describe = |image: &Image| format!("{}  {}  project {}", image.id, image.name, image.project);
    Ok(names::pick("image", wanted, &rows, |image| &image.name, describe)?.clone())
}

impl Publish {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let batch = Batch::new(BatchAction::Publish, self.images);
        let images = batch.found(session).await?;
        confirm(&publish_question(&images), self.yes)?;
        batch.run_on(session, &images).await
    }
}

fn publish_question(images: &[Image]) -> String {
    let names = |images: &[&Image]| {
        images.iter().map(|image| format!("{} ({})", image.name, image.id)).collect::<Vec<_>>().join(", ")
    };
    let all: Vec<&Image> = images.iter().collect();
    let shared: Vec<&Image> = images.iter().filter(|image| image.visibility == Visibility::Shared).collect();
    let ends =
        if shared.is_empty() { String::new() } else { format!(" Ends the shares of {}.", names(&shared)) };
    format!("Everybody may use what is public.{ends} Publish {}?", names(&all))
}

impl Owner {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let project = names::project_id(&session.client, &self.project).await?;
        Batch::new(BatchAction::Owner, self.images).project(Some(project)).run(session).await
    }
}
