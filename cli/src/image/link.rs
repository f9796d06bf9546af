//! `hearth image link`: addresses from which an image can be downloaded without a token.

use std::time::Duration;

use clap::{Args, Subcommand};
use hearth_protocol::api::link::{LinkCreate, LinkRecord};
use hearth_protocol::id::LinkId;

use crate::args::Session;
use crate::failure::{Exit, Failure};
use crate::names;
use crate::output::{Cell, Grid};
use crate::when::{self, parse_duration};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum LinkCommand {
    /// Make a link; the address is shown once
    Create(Create),
    /// List the links of an image
    List(List),
    /// End a link at once
    Revoke(Revoke),
}

/// Make a link.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image link create noble
  hearth image link create noble --ttl 2h
  hearth image link create noble --format vmdk    # `hearth image variants noble` shows what there is
  hearth system ca > ca.crt
  curl --cacert ca.crt -C - -O \"$(hearth image link create noble -o json | jq -r .url)\"

Whoever has the address may download the file until the link ends; it needs no login. curl -C - and aria2c go on
where a download broke off. They must trust the controller's certificate authority, which `hearth system ca` prints:
give ca.crt to whom you give the address.")]
pub(crate) struct Create {
    /// Name or id
    image: String,
    /// Life: at most 24h
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
    ttl: Duration,
    /// What to download: original, or the format of a variant
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// List links.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image link list noble
  hearth image link list noble -o json")]
pub(crate) struct List {
    /// Name or id
    image: String,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// End a link.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image link revoke noble 0199c0de-0000-7000-8000-000000000001
  hearth image link revoke noble --all")]
pub(crate) struct Revoke {
    /// Name or id of the image
    image: String,
    /// Ids of links, as `link list` shows them
    #[arg(required_unless_present = "all", value_name = "LINK")]
    links: Vec<LinkId>,
    /// Every open link of the image
    #[arg(long, conflicts_with = "links")]
    all: bool,
}

impl LinkCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        match self {
            Self::Create(command) => command.run(session).await,
            Self::List(command) => command.run(session).await,
            Self::Revoke(command) => command.run(session).await,
        }
    }
}

impl Create {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let image = names::image(&session.client, &self.image).await?;
        let sent = LinkCreate { format: self.format, ttl_s: Some(self.ttl.as_secs()) };
        let mut made: LinkRecord =
            session.client.post(&["images", &image.id.to_string(), "links"], &sent).await?;
        // As this machine reaches the controller, also through a proxy with a path of its own.
        if let Some(path) = &made.path {
            let base = session.client.base().as_str().trim_end_matches('/');
            made.url = Some(format!("{base}{path}"));
        }
        let url = made.url.clone().ok_or_else(|| Failure::new(Exit::Failed, "the answer has no address"))?;
        if !session.out.for_people() {
            session.out.facts(&made, facts(&made))?;
            return Ok(Exit::Ok);
        }
        session.out.say(&url)?;
        let ends = when::relative(&made.expires_at, crate::clock::now());
        session.out.remark(&format!("ends {ends} ({}); it is not shown again", made.expires_at))?;
        let sha256 = made.sha256.as_deref().unwrap_or("-");
        session.out.remark(&format!("sha256 {sha256}"))?;
        session.out.remark("with curl: hearth system ca > ca.crt; curl --cacert ca.crt -C - -O URL")?;
        Ok(Exit::Ok)
    }
}

fn facts(link: &LinkRecord) -> Vec<(&'static str, Cell)> {
    vec![
        ("id", Cell::text(link.id)),
        ("url", Cell::maybe(link.url.as_ref())),
        ("format", Cell::text(&link.format)),
        ("ends", Cell::At(Some(link.expires_at.clone()))),
        ("sha256", Cell::maybe(link.sha256.as_ref())),
    ]
}

impl List {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let image = names::image(&session.client, &self.image).await?;
        let path = ["images", &image.id.to_string(), "links"];
        let links: Vec<LinkRecord> = session.client.list(&path, &[], self.limit).await?;
        const COLUMNS: &[&str] = &["ID", "STATE", "FORMAT", "ENDS", "FIRST USED", "~MADE", "~BY", "+REVOKED"];
        let grid = Grid::of(COLUMNS, &links, |link| {
            vec![
                Cell::text(link.id),
                Cell::status(&link.state),
                Cell::text(&link.format),
                Cell::At(Some(link.expires_at.clone())),
                Cell::At(link.first_used_at.clone()),
                Cell::At(Some(link.created_at.clone())),
                Cell::text(&link.created_by),
                Cell::At(link.revoked_at.clone()),
            ]
        });
        session.out.list(&links, &grid)?;
        Ok(Exit::Ok)
    }
}

impl Revoke {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let image = names::image(&session.client, &self.image).await?;
        let id = image.id.to_string();
        let mut ids = self.links;
        if self.all {
            let links: Vec<LinkRecord> = session.client.list(&["images", &id, "links"], &[], None).await?;
            ids.extend(links.iter().filter(|link| link.state == "open").map(|link| link.id));
        }
        for link in &ids {
            session.client.delete(&["images", &id, "links", &link.to_string()], &[]).await?;
            session.out.say(&format!("revoked {link}"))?;
        }
        if ids.is_empty() {
            session.out.remark("no link is open")?;
        }
        Ok(Exit::Ok)
    }
}
