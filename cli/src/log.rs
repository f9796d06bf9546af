//! `hearth log`: the operation log.

use clap::{Args, Subcommand};
use hearth_protocol::api::operation::{LogVerification, Operation};

use crate::args::Session;
use crate::clock;
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Grid};
use crate::when::Moment;

/// Rows of `log list` when nobody says how many: the newest that fit on a few screens.
const ROWS_DEFAULT: usize = 100;

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// List operations, newest first
    List(List),
    /// Check that no row was changed or taken away
    Verify(Verify),
}

/// List operations.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth log list
  hearth log list --who alice --since 24h
  hearth log list --action image.delete --limit 1000 -o json")]
pub(crate) struct List {
    /// Only operations on this target (id)
    #[arg(long, value_name = "ID")]
    target: Option<String>,
    /// Only operations of this token, agent or person
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    /// Only this action, for example prewarm.create
    #[arg(long)]
    action: Option<String>,
    /// From here on: a duration back from now (24h) or RFC 3339
    #[arg(long, value_name = "WHEN")]
    since: Option<Moment>,
    /// Up to here
    #[arg(long, value_name = "WHEN")]
    until: Option<Moment>,
    /// At most so many rows
    #[arg(long, value_name = "N", default_value_t = ROWS_DEFAULT)]
    limit: usize,
}

/// Check the log.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth log verify && echo intact
  hearth log verify -o json > head.json    # keep the head elsewhere, compare later")]
pub(crate) struct Verify {}

impl LogCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        match self {
            Self::List(command) => command.run(session).await,
            Self::Verify(_) => verify(session).await,
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

impl List {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let query = [
            ("target", self.target),
            ("who", self.who),
            ("action", self.action),
            ("from", self.since.map(back)),
            ("to", self.until.map(back)),
        ];
        let rows: Vec<Operation> = session.client.list(&["operations"], &query, Some(self.limit)).await?;
        const COLUMNS: &[&str] = &[
            "SEQ",
            "WHEN",
            "WHO",
            "ACTION",
            "TARGET",
            "RESULT",
            "+TARGET KIND",
            "+TARGET ID",
            "+ID",
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
                Cell::text(&row.target_kind),
                Cell::text(&row.target_id),
                Cell::text(&row.id),
                Cell::text(&row.details),
            ]
        });
        session.out.list(&rows, &grid)?;
        Ok(Exit::Ok)
    }
}

async fn verify(session: &Session) -> anyhow::Result<Exit> {
    let found: LogVerification = session.client.get(&["operations", "verify"], &[]).await?;
    let facts = vec![
        ("intact", Cell::flag(found.intact)),
        ("sealed", Cell::Number(found.sealed)),
        ("unsealed", Cell::Number(found.unsealed)),
        ("first bad", Cell::maybe(found.first_bad_seq)),
        ("head", Cell::text(&found.head)),
    ];
    session.out.facts(&found, facts)?;
    if found.intact {
        return Ok(Exit::Ok);
    }
    let place = found.first_bad_seq.map(|seq| format!(" at row {seq}")).unwrap_or_default();
    Err(Failure::new(Exit::Failed, format!("the operation log was changed{place}"))
        .hint(
            "compare with a backup: `hearth-controller restore` into another folder, then `hearth log list`",
        )
        .into())
}
