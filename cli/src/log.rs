//! `hearth log`: the operation log.

use clap::{Args, Subcommand};
use hearth_protocol::api::operation::{LogAnchor, LogVerification, Operation};

use crate::args::Session;
use crate::clock;
use crate::export::Export;
use crate::failure::{Exit, Failure};
use crate::names;
use crate::output::{Cell, Grid};
use crate::when::{Moment, parse_past};

/// Rows of `log list` when nobody says how many: what people look at first.
const ROWS_DEFAULT: usize = 20;

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// List operations, newest first
    List(List),
    /// Show one operation with its details
    Show(Show),
    /// Save operations as CSV or Excel
    Export(Box<ExportLog>),
    /// Check that no row was changed, moved or taken away
    Verify(Verify),
}

/// Which operations.
#[derive(Clone, Debug, Args)]
pub(crate) struct Filter {
    /// Only operations on this record: its kind and its name or id, or an id alone
    #[arg(long, num_args = 1..=2, value_names = ["KIND", "NAME"])]
    target: Vec<String>,
    /// Only operations of this token, agent or person
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    /// Only this action, for example prewarm.create
    #[arg(long)]
    action: Option<String>,
    /// Only those that ended so: ok or failed
    #[arg(long, value_parser = ["ok", "failed"])]
    result: Option<String>,
    /// From here on: a duration back from now (24h), a date (2026-01-31 or "2026-01-31 18:00", UTC) or RFC 3339
    #[arg(long, value_name = "WHEN", value_parser = parse_past)]
    since: Option<Moment>,
    /// Up to here, likewise
    #[arg(long, value_name = "WHEN", value_parser = parse_past)]
    until: Option<Moment>,
}

/// List operations.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth log list
  hearth log list --target image noble --since 7d
  hearth log list --target host-image erp
  hearth log list --who alice --since 24h
  hearth log list --since 2026-11-27 --until '2026-11-27 18:00'
  hearth log list --action image.delete --limit 1000 -o json")]
pub(crate) struct List {
    #[command(flatten)]
    filter: Filter,
    /// At most so many rows
    #[arg(long, value_name = "N", default_value_t = ROWS_DEFAULT)]
    limit: usize,
}

/// Show one operation.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth log show 0199c0de-0000-7000-8000-000000000001
  hearth log show 0199c0de-0000-7000-8000-000000000001 -o json | jq .details")]
pub(crate) struct Show {
    /// Id, as `hearth log list` shows it in a wide terminal, and with -o json
    id: String,
}

/// Save operations.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth log export log.csv --since 30d
  hearth log export noble.xlsx --target image noble --columns time,who,action,result,details
  hearth log export - --format csv --action image.download

Columns: time, who, who_kind, action, target_kind, target_name, target_id, result, details, seq, id, hash.
In CSV, a cell that a spreadsheet would run as a formula (= + - @ tab, line end) begins with '.")]
pub(crate) struct ExportLog {
    #[command(flatten)]
    export: Export,
    #[command(flatten)]
    filter: Filter,
}

/// Check the log.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth log verify && echo intact
  hearth log verify -o json | jq -r .head > head.txt    # keep it where the database's owner cannot write
  hearth log verify --head 806d9f04e94807b0c02edbd9a72915d49026749f3d00a89bc967f4cdf280123e    # is it still part of the log?")]
pub(crate) struct Verify {
    /// A head that was kept elsewhere: fails unless it is still part of the log
    #[arg(long, value_name = "HASH")]
    head: Option<String>,
}

impl LogCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        match self {
            Self::List(command) => command.run(session).await,
            Self::Show(command) => command.run(session).await,
            Self::Export(command) => command.run(session).await,
            Self::Verify(command) => command.run(session).await,
        }
    }
}

/// RFC 3339 text of a moment where durations count backwards.
pub(crate) fn back(moment: Moment) -> String {
    let now = clock::now();
    match moment {
        Moment::At(at) => at.to_string(),
        Moment::In(ago) => {
            let ago = jiff::SignedDuration::try_from(ago).unwrap_or(jiff::SignedDuration::MAX);
            now.saturating_sub(ago).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
        }
    }
}

impl Filter {
    /// Where the log is asked for, and with which parameters.
    async fn asked(
        self,
        session: &Session,
    ) -> anyhow::Result<(Vec<String>, Vec<(&'static str, Option<String>)>)> {
        let mut query = vec![
            ("who", self.who),
            ("action", self.action),
            ("result", self.result),
            ("from", self.since.map(back)),
            ("to", self.until.map(back)),
        ];
        let path = match self.target.as_slice() {
            // An image's own log is there for its project too, not only for the system.
            [kind, name] if kind == "image" => {
                let image = names::image(&session.client, name).await?;
                vec!["images".to_owned(), image.id.to_string(), "operations".to_owned()]
            }
            [kind, name] if matches!(kind.as_str(), "host-image" | "host_image") => {
                let found = names::host_image(&session.client, name).await?;
                vec!["host-images".to_owned(), found.id.to_string(), "operations".to_owned()]
            }
            [kind, name] if kind == "location" => {
                let location = names::location(&session.client, name).await?;
                vec!["locations".to_owned(), location.id.to_string(), "operations".to_owned()]
            }
            [kind, id] => {
                query.extend([("target_kind", Some(kind.clone())), ("target", Some(id.clone()))]);
                vec!["operations".to_owned()]
            }
            [id] => {
                query.push(("target", Some(id.clone())));
                vec!["operations".to_owned()]
            }
            _ => vec!["operations".to_owned()],
        };
        Ok((path, query))
    }
}

impl List {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let (path, query) = self.filter.asked(session).await?;
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let rows: Vec<Operation> = session.client.list(&path, &query, Some(self.limit)).await?;
        const COLUMNS: &[&str] = &[
            "SEQ",
            "WHEN",
            "WHO",
            "ACTION",
            "TARGET",
            "RESULT",
            "+WHO KIND",
            "+TARGET KIND",
            "+TARGET ID",
            "~ID",
            "+DETAILS",
        ];
        let grid = Grid::of(COLUMNS, &rows, |row| {
            vec![
                Cell::maybe(row.seq),
                Cell::At(Some(row.at.clone())),
                Cell::Digest(row.who.clone()),
                Cell::text(&row.action),
                Cell::text(if row.target_name.is_empty() { &row.target_id } else { &row.target_name }),
                Cell::status(&row.result),
                Cell::text(&row.who_kind),
                Cell::text(&row.target_kind),
                Cell::text(&row.target_id),
                Cell::text(&row.id),
                Cell::text(&row.details),
            ]
        });
        session.out.list(&rows, &grid)?;
        if session.out.for_people() && rows.len() == self.limit {
            let more = self.limit.saturating_mul(5);
            session.out.remark(&format!(
                "the newest {}; for older ones add --limit {more} or --until",
                self.limit
            ))?;
        }
        Ok(Exit::Ok)
    }
}

impl Show {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        if self.id.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(Failure::new(
                Exit::Usage,
                format!("{} is the place of a row (SEQ), not its id", self.id),
            )
            .hint("write the id: `hearth log list -o json` shows it, and so does a wide terminal")
            .into());
        }
        let row: Operation = session.client.get(&["operations", &self.id], &[]).await?;
        let facts = vec![
            ("id", Cell::text(&row.id)),
            ("seq", Cell::maybe(row.seq)),
            ("time", Cell::text(&row.at)),
            ("who", Cell::text(&row.who)),
            ("who kind", Cell::text(&row.who_kind)),
            ("action", Cell::text(&row.action)),
            ("target", Cell::text(format!("{} {}", row.target_kind, row.target_name).trim())),
            ("target id", Cell::text(&row.target_id)),
            ("result", Cell::status(&row.result)),
            ("hash", Cell::maybe(row.hash.as_ref())),
        ];
        session.out.facts(&row, facts)?;
        if session.out.for_people() && !row.details.is_null() {
            // As JSON, so that it can be copied; serde_json escapes control characters.
            session.out.say(&format!("\ndetails\n{}", serde_json::to_string_pretty(&row.details)?))?;
        }
        Ok(Exit::Ok)
    }
}

impl ExportLog {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let (path, query) = self.filter.asked(session).await?;
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        self.export.run(session, &path, &query).await
    }
}

/// What an anchor is worth.
const ANCHORS: &str = "Whoever can write the database can plant one. What proves it is the file (hearth-controller log-verify FILE),
or a head that was kept elsewhere (--head).";

fn anchors(anchors: &[LogAnchor]) -> Grid {
    const COLUMNS: &[&str] = &["ARCHIVED UP TO", "FILE", "TOLD IN ROW", "HASH"];
    Grid::of(COLUMNS, anchors, |anchor| {
        vec![
            Cell::Number(anchor.seq),
            Cell::maybe(anchor.file.as_ref()),
            Cell::maybe(anchor.told_seq),
            Cell::text(&anchor.hash),
        ]
    })
}

impl Verify {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let asked = self.head.is_some();
        let found: LogVerification =
            session.client.get(&["operations", "verify"], &[("head", self.head)]).await?;
        let facts = vec![
            ("intact", Cell::flag(found.intact)),
            ("sealed", Cell::Number(found.sealed)),
            ("unsealed", Cell::Number(found.unsealed)),
            ("archived up to", Cell::maybe((found.archived_seq > 0).then_some(found.archived_seq))),
            ("first bad", Cell::maybe(found.first_bad_seq)),
            ("head", Cell::text(&found.head)),
            ("given head", Cell::maybe(found.known_head_seq.map(|seq| format!("is row {seq}")))),
        ];
        session.out.facts(&found, facts)?;
        if !found.anchors.is_empty() {
            session.out.below(&anchors(&found.anchors))?;
            session.out.say(ANCHORS)?;
        }
        if found.intact {
            return Ok(Exit::Ok);
        }
        const COLUMNS: &[&str] = &["ROW", "TO", "FLAW", "ID"];
        let grid = Grid::of(COLUMNS, &found.findings, |finding| {
            vec![
                Cell::Number(finding.seq),
                Cell::Number(finding.last_seq),
                Cell::status(&finding.flaw),
                Cell::maybe(finding.id.as_ref()),
            ]
        });
        if !found.findings.is_empty() {
            session.out.below(&grid)?;
        }
        if found.flaws == 0 && asked {
            return Err(Failure::new(Exit::Failed, "the given head is no part of this log")
                .hint("the log was replaced since that head was kept, or the head is of another controller")
                .into());
        }
        let place = found.first_bad_seq.map(|seq| format!(" at row {seq}")).unwrap_or_default();
        Err(Failure::new(Exit::Failed, format!("the operation log was changed{place}"))
            .hint(
                "compare with a backup: `hearth-controller restore` into another folder, then `hearth log list`",
            )
            .into())
    }
}
