//! `hearth quota` and `hearth usage`: what projects may have, have, and had.

use clap::{Args, Subcommand};
use hearth_protocol::api::quota::{Quota, QuotaLine, QuotaUpdate};
use hearth_protocol::api::token::TokenRecord;
use hearth_protocol::api::usage::Usage;

use crate::args::Session;
use crate::failure::{Exit, Failure};
use crate::log::back;
use crate::names;
use crate::output::{Cell, Grid, print};
use crate::size;
use crate::when::{Moment, parse_past};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum QuotaCommand {
    /// What a project may have, and has
    Show(Show),
    /// Set limits of a project
    Set(Set),
}

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum UsageCommand {
    /// Images, bytes, and bytes times days of each project
    Report(Report),
}

/// What a project may have, and has.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth quota show
  hearth quota show web -o json")]
pub(crate) struct Show {
    /// The project, by name or id (default: your own)
    #[arg(value_name = "PROJECT")]
    project: Option<String>,
}

/// Set limits of a project; what is not named stays.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth quota set web --images 50 --bytes 2TiB
  hearth quota set web --images unlimited --imports default")]
pub(crate) struct Set {
    /// The project, by name or id
    #[arg(value_name = "PROJECT")]
    project: String,
    /// Images that are not public: a number, unlimited or default
    #[arg(long, value_name = "N", value_parser = count)]
    images: Option<Limit>,
    /// Bytes of their files: a size such as 500GiB, unlimited or default
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    bytes: Option<Limit>,
    /// Uploads and imports at once: a number, unlimited or default
    #[arg(long, value_name = "N", value_parser = count)]
    imports: Option<Limit>,
}

/// Images, bytes, and bytes times days of each project.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth usage report
  hearth usage report --from 2026-11-01T00:00:00Z --to 2026-12-01T00:00:00Z -o csv > november.csv
  hearth usage report --from 7d")]
pub(crate) struct Report {
    /// From here on: a duration back from now (30d), a date (UTC) or RFC 3339 (default: 30 days before the end)
    #[arg(long, value_name = "WHEN", value_parser = parse_past)]
    from: Option<Moment>,
    /// Up to here (default: now)
    #[arg(long, value_name = "WHEN", value_parser = parse_past)]
    to: Option<Moment>,
    /// Only this project, by name or id
    #[arg(long, value_name = "PROJECT")]
    project: Option<String>,
}

/// A limit as people write it; the inside is as the API takes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Limit(Option<u64>);

fn limit(text: &str, parse: impl Fn(&str) -> Result<u64, String>) -> Result<Limit, String> {
    match text {
        "default" => Ok(Limit(None)),
        "unlimited" => Ok(Limit(Some(0))),
        _ => match parse(text)? {
            0 => Err("0 would be no limit: write unlimited if you mean it".to_owned()),
            number => Ok(Limit(Some(number))),
        },
    }
}

fn count(text: &str) -> Result<Limit, String> {
    let number =
        |text: &str| text.parse().map_err(|_| format!("{text:?} is none of a number, unlimited and default"));
    limit(text, number)
}

fn bytes(text: &str) -> Result<Limit, String> {
    limit(text, size::parse_bytes)
}

impl QuotaCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        match self {
            Self::Show(command) => command.run(session).await,
            Self::Set(command) => command.run(session).await,
        }
    }
}

impl UsageCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        match self {
            Self::Report(command) => command.run(session).await,
        }
    }
}

impl Show {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let project = match self.project {
            Some(project) => names::project_id(&session.client, &project).await?,
            None => session.client.get::<TokenRecord>(&["whoami"], &[]).await?.project.ok_or_else(|| {
                Failure::new(Exit::Usage, "your token is not one of a project: say which project you mean")
            })?,
        };
        let quota: Quota = session.client.get(&["projects", &project.to_string(), "quota"], &[]).await?;
        shown(session, &quota)
    }
}

impl Set {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        if self.images.is_none() && self.bytes.is_none() && self.imports.is_none() {
            return Err(Failure::new(Exit::Usage, "say --images, --bytes or --imports").into());
        }
        let project = names::project_id(&session.client, &self.project).await?;
        let path = ["projects", &project.to_string(), "quota"];
        let now: Quota = session.client.get(&path, &[]).await?;
        let keep = |line: QuotaLine| line.own.then(|| line.limit.unwrap_or(0));
        let sent = QuotaUpdate {
            images: self.images.map_or_else(|| keep(now.images), |limit| limit.0),
            bytes: self.bytes.map_or_else(|| keep(now.bytes), |limit| limit.0),
            imports: self.imports.map_or_else(|| keep(now.imports), |limit| limit.0),
        };
        let set: Quota = session.client.put(&path, &sent).await?;
        shown(session, &set)
    }
}

fn shown(session: &Session, quota: &Quota) -> anyhow::Result<Exit> {
    let facts = vec![
        ("project", Cell::text(quota.project)),
        ("images", Cell::text(line(quota.images, |n| n.to_string()))),
        ("bytes", Cell::text(line(quota.bytes, size::human))),
        ("imports at once", Cell::text(line(quota.imports, |n| n.to_string()))),
    ];
    session.out.facts(quota, facts)?;
    Ok(Exit::Ok)
}

/// `3 of 10 (default)`.
fn line(line: QuotaLine, text: impl Fn(u64) -> String) -> String {
    let limit = line.limit.map_or_else(|| "unlimited".to_owned(), &text);
    let whose = if line.own { "set for this project" } else { "default" };
    format!("{} of {limit} ({whose})", text(line.used))
}

impl Report {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let project = names::maybe_project(&session.client, self.project.as_deref()).await?;
        let query = [
            ("from", self.from.map(back)),
            ("to", self.to.map(back)),
            ("project", project.map(|id| id.to_string())),
        ];
        if session.out.is_csv() {
            // The controller's own table: a name that a spreadsheet would run is text in it.
            let mut query = query.to_vec();
            query.push(("format", Some("csv".to_owned())));
            print(&session.client.get_text(&["usage"], &query).await?)?;
            return Ok(Exit::Ok);
        }
        let rows: Vec<Usage> = session.client.list(&["usage"], &query, None).await?;
        let columns = &["DOMAIN", "PROJECT", "IMAGES", "BYTES", "BYTES x DAYS", "~ID"];
        let grid = Grid::of(columns, &rows, |row| {
            vec![
                Cell::text(&row.domain_name),
                Cell::text(&row.project_name),
                Cell::Number(row.images),
                Cell::Bytes(Some(row.bytes)),
                Cell::Bytes(Some(row.byte_days)),
                Cell::text(row.project),
            ]
        });
        session.out.list(&rows, &grid)?;
        Ok(Exit::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_numbers_or_words() {
        assert_eq!(count("12"), Ok(Limit(Some(12))));
        assert_eq!(bytes("2KiB"), Ok(Limit(Some(2048))));
        assert_eq!((count("unlimited"), bytes("default")), (Ok(Limit(Some(0))), Ok(Limit(None))));
        assert!(count("0").unwrap_err().contains("unlimited"));
        assert!(count("many").is_err() && bytes("many").is_err());
    }

    #[test]
    fn a_line_says_whose_limit_it_is() {
        let line_of = |limit, own| line(QuotaLine { used: 3, limit, own }, |n| n.to_string());
        assert_eq!(line_of(Some(10), false), "3 of 10 (default)");
        assert_eq!(line_of(None, true), "3 of unlimited (set for this project)");
    }
}
