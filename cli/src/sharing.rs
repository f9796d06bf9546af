//! `hearth image share`, `unshare`, `shares`, `accept`, `reject`, `publish`, `unpublish`, `owner`, `feature`, `unfeature`: who
//! else uses an image, and whose it is.
//!
//! **What.** Each verb takes several images and says for each what came of it.
//! **Why one that fails does not stop the others.** Who shares fifty images wants to know which two were refused, not to try
//! again from the third on.
//! **Invariants.** With one image, exit code and hint are those of its failure; with several, the code is that of the first
//! failure.

use clap::{Args, Subcommand};
use hearth_protocol::api::Page;
use hearth_protocol::api::image::Image;
use hearth_protocol::api::share::{OwnerChange, Share as ShareBody, ShareCreate, ShareRemove};
use hearth_protocol::id::{DomainId, ProjectId};
use hearth_protocol::words::{ShareStatus, Visibility};
use serde::Serialize;

use crate::args::{Session, confirm};
use crate::client::Client;
use crate::failure::{Exit, Failure};
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
    /// These projects; each must accept
    #[arg(long = "project", value_name = "ID,ID", value_delimiter = ',', help_heading = "With whom")]
    projects: Vec<ProjectId>,
    /// All projects of these domains (system administrators)
    #[arg(long = "domain", value_name = "ID,ID", value_delimiter = ',', help_heading = "With whom")]
    domains: Vec<DomainId>,
    /// All projects of the image's domain
    #[arg(long, help_heading = "With whom")]
    whole_domain: bool,
}

/// Share images.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image share noble --project 0199c0de-0000-7000-8000-000000000001
  hearth image share noble jammy --whole-domain
  hearth image share noble --domain 0199c0de-0000-7000-8000-000000000002")]
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
  hearth image unshare noble --project 0199c0de-0000-7000-8000-000000000001
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
    /// Answer for this project (default: your own)
    #[arg(long, value_name = "ID")]
    project: Option<ProjectId>,
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
  hearth image owner noble --project 0199c0de-0000-7000-8000-000000000001")]
pub(crate) struct Owner {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// The new owner
    #[arg(long, value_name = "ID")]
    project: ProjectId,
}

/// What came of one image.
#[derive(Debug, Serialize)]
struct Outcome {
    image: String,
    ok: bool,
    message: String,
}

impl SharingCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let client = &session.client;
        match self {
            Self::Share(command) => command.run(session).await,
            Self::Unshare(command) => command.run(session).await,
            Self::Shares(command) => command.run(session).await,
            Self::Accept(command) => command.run(session, ShareStatus::Accepted).await,
            Self::Reject(command) => command.run(session, ShareStatus::Rejected).await,
            Self::Publish(command) => command.run(session).await,
            Self::Owner(command) => command.run(session).await,
            Self::Unpublish(Images { images }) => {
                each(session, &images, async |wanted| {
                    let image = names::image(client, wanted).await?;
                    let done: Image = client.act_for(&["images", &image.id.to_string(), "unpublish"]).await?;
                    Ok(format!("{} is {}", done.name, done.visibility))
                })
                .await
            }
            Self::Feature(Images { images }) => {
                each(session, &images, async |wanted| {
                    let image = names::image(client, wanted).await?;
                    client.put_for::<Image>(&["images", &image.id.to_string(), "featured"]).await?;
                    Ok(format!("{} is featured", image.name))
                })
                .await
            }
            Self::Unfeature(Images { images }) => {
                each(session, &images, async |wanted| {
                    let image = names::image(client, wanted).await?;
                    client.delete(&["images", &image.id.to_string(), "featured"], &[]).await?;
                    Ok(format!("{} is not featured", image.name))
                })
                .await
            }
        }
    }
}

/// Does something to each image and says what came of it.
async fn each(
    session: &Session,
    images: &[String],
    work: impl AsyncFn(&str) -> anyhow::Result<String>,
) -> anyhow::Result<Exit> {
    let (mut outcomes, mut first) = (Vec::new(), None);
    for wanted in images {
        let (ok, message) = match work(wanted).await {
            Ok(message) => (true, message),
            // Of the only one, the error itself tells most.
            Err(error) if images.len() == 1 => return Err(error),
            Err(error) => {
                let message = format!("{error:#}");
                first.get_or_insert(error);
                (false, message)
            }
        };
        outcomes.push(Outcome { image: wanted.clone(), ok, message });
    }
    match outcomes.as_slice() {
        [one] if session.out.for_people() => session.out.say(&one.message)?,
        all => session.out.list(all, &grid(all))?,
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.ok).count();
    let Some(error) = first else { return Ok(Exit::Ok) };
    let exit = error.downcast_ref::<Failure>().map_or(Exit::Failed, |failure| failure.exit);
    Err(Failure::new(exit, format!("{failed} of {} images failed", images.len())).into())
}

fn grid(outcomes: &[Outcome]) -> Grid {
    Grid::of(&["IMAGE", "RESULT", "DETAIL"], outcomes, |outcome| {
        vec![
            Cell::text(&outcome.image),
            Cell::status(if outcome.ok { "ok" } else { "failed" }),
            Cell::text(&outcome.message),
        ]
    })
}

/// `1 receiver`, `3 receivers`.
fn receivers(n: usize) -> String {
    if n == 1 { "1 receiver".to_owned() } else { format!("{n} receivers") }
}

impl Share {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let Receivers { projects, domains, whole_domain } = self.with;
        let sent = ShareCreate { projects, domains, whole_domain };
        if sent == ShareCreate::default() {
            return Err(nobody("--project ID, --domain ID or --whole-domain").into());
        }
        each(session, &self.images, async |wanted| {
            let image = names::image(&session.client, wanted).await?;
            let path = ["images", &image.id.to_string(), "shares"];
            let now: Page<ShareBody> = session.client.post(&path, &sent).await?;
            let waiting = now.items.iter().filter(|share| share.status == ShareStatus::Pending).count();
            let waiting = if waiting > 0 { format!(", {waiting} not accepted yet") } else { String::new() };
            Ok(format!("{} is shared with {}{waiting}", image.name, receivers(now.items.len())))
        })
        .await
    }
}

fn nobody(options: &str) -> Failure {
    Failure::new(Exit::Usage, format!("say with whom: {options}"))
}

impl Unshare {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let Receivers { projects, domains, whole_domain } = self.with;
        let sent = ShareRemove { projects, domains, whole_domain, all: self.all };
        if sent == ShareRemove::default() {
            return Err(nobody("--project ID, --domain ID, --whole-domain or --all").into());
        }
        each(session, &self.images, async |wanted| {
            let image = names::image(&session.client, wanted).await?;
            let path = ["images", &image.id.to_string(), "shares", "remove"];
            let left: Page<ShareBody> = session.client.post(&path, &sent).await?;
            Ok(match left.items.len() {
                0 => format!("{} is shared with nobody", image.name),
                n => format!("{} is shared with {}", image.name, receivers(n)),
            })
        })
        .await
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
    async fn run(self, session: &Session, status: ShareStatus) -> anyhow::Result<Exit> {
        let verb = if status == ShareStatus::Accepted { "accept" } else { "reject" };
        let query = [("project", self.project.map(|id| id.to_string()))];
        each(session, &self.images, async |wanted| {
            let image = offered(&session.client, wanted).await?;
            let path = ["images", &image.id.to_string(), "share", verb];
            session.client.act_with::<Image>(&path, &query).await?;
            Ok(format!("{} is {status}", image.name))
        })
        .await
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
        let mut shared = Vec::new();
        for wanted in &self.images {
            // Who is not found is told below, with the others.
            if let Ok(image) = names::image(&session.client, wanted).await
                && image.visibility == Visibility::Shared
            {
                shared.push(image.name);
            }
        }
        if !shared.is_empty() {
            let question = format!("Publishing ends the shares of {}. Publish?", shared.join(", "));
            confirm(&question, self.yes)?;
        }
        each(session, &self.images, async |wanted| {
            let image = names::image(&session.client, wanted).await?;
            let path = ["images", &image.id.to_string(), "publish"];
            let done: Image = session.client.act_for(&path).await?;
            Ok(format!("{} is {}", done.name, done.visibility))
        })
        .await
    }
}

impl Owner {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let sent = OwnerChange { project: self.project };
        each(session, &self.images, async |wanted| {
            let image = names::image(&session.client, wanted).await?;
            let path = ["images", &image.id.to_string(), "owner"];
            let done: Image = session.client.post(&path, &sent).await?;
            Ok(format!("{} belongs to project {}", done.name, done.project))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_image_has_its_line() {
        let outcomes = [
            Outcome { image: "noble".into(), ok: true, message: "noble is public".into() },
            Outcome { image: "jammy".into(), ok: false, message: "there is no image \"jammy\"".into() },
        ];
        let csv = grid(&outcomes).csv().unwrap();
        let expected = "image,result,detail\nnoble,ok,noble is public\njammy,failed,\"there is no image \"\"jammy\"\"\"\n";
        assert_eq!(csv, expected);
        assert_eq!((receivers(1).as_str(), receivers(2).as_str()), ("1 receiver", "2 receivers"));
    }
}
