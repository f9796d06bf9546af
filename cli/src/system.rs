//! `hearth system` and `hearth transfer`: the controller itself.

use std::time::Duration;

use clap::{Args, Subcommand};
use hearth_protocol::api::system::SystemInfo;
use serde::de::DeserializeOwned;

use crate::args::Session;
use crate::client::Client;
use crate::clock;
use crate::failure::{Exit, Failure};
use crate::output::{Cell, print};

/// A controller that is restarted is back within this.
const AWAY_MAX: Duration = Duration::from_secs(120);
/// Pause before it is asked again.
const AWAY_PAUSE: Duration = Duration::from_secs(1);

/// Facts of the controller.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth system
  hearth system -o json
  hearth system ca > ca.crt")]
pub(crate) struct System {
    #[command(subcommand)]
    command: Option<SystemCommand>,
}

/// Verbs.
#[derive(Debug, Subcommand)]
enum SystemCommand {
    /// Print the certificate of the controller's CA, for curl, browsers and other programs
    Ca(Ca),
}

/// Print the certificate of the controller's CA: the one whose fingerprint is stored, and no other.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth system ca > ca.crt
  hearth system ca > ca.crt && curl --cacert ca.crt -C - -O \"$(hearth image link create noble -o json | jq -r .url)\"")]
struct Ca {}

/// Transfers of the whole fleet.
#[derive(Debug, Subcommand)]
pub(crate) enum TransferCommand {
    /// Stop all transfers at once; copies that are there may be used
    Stop(Transfer),
    /// Let transfers go on
    Start(Transfer),
}

/// All transfers.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth transfer stop --all
  hearth transfer start --all")]
pub(crate) struct Transfer {
    /// Of every location; there is no other choice yet
    #[arg(long)]
    all: bool,
}

impl System {
    /// Asks the controller.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        if let Some(SystemCommand::Ca(Ca {})) = self.command {
            print(&session.client.ca().await?)?;
            return Ok(Exit::Ok);
        }
        let system: SystemInfo = session.client.get(&["system"], &[]).await?;
        let facts = vec![
            ("controller", Cell::text(session.client.base())),
            ("build", Cell::text(&system.build)),
            ("protocol", Cell::Number(u64::from(system.protocol))),
            ("fingerprint", Cell::text(system.ca_fingerprint)),
            ("clock", Cell::text(&system.now)),
            ("agents", Cell::text(format!("{} of {} online", system.agents_online, system.locations))),
            ("images", Cell::text(format!("{} active", system.images_active))),
            ("prewarms", Cell::text(format!("{} running", system.prewarms_running))),
            ("stored", Cell::Bytes(Some(system.stored_bytes))),
            ("free", Cell::Bytes(Some(system.free_bytes))),
            ("transfers", Cell::text(if system.transfers_stopped { "stopped" } else { "allowed" })),
        ];
        session.out.facts(&system, facts)?;
        Ok(Exit::Ok)
    }
}

impl TransferCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let (verb, transfer, text) = match self {
            Self::Stop(transfer) => {
                ("stop", transfer, "all transfers stop; `hearth transfer start --all` lets them go on")
            }
            Self::Start(transfer) => ("start", transfer, "transfers go on"),
        };
        if !transfer.all {
            return Err(Failure::new(Exit::Usage, "say --all: it concerns every location").into());
        }
        session.client.act(&["transfers", verb]).await?;
        session.out.say(text)?;
        Ok(Exit::Ok)
    }
}

/// `GET` for a command that waits: a controller that is restarted meanwhile does not end it.
///
/// # Errors
/// Any refusal at once; not reached, after two minutes.
pub(crate) async fn patient<T: DeserializeOwned>(client: &Client, path: &[&str]) -> anyhow::Result<T> {
    let began = clock::monotonic();
    loop {
        match client.get(path, &[]).await {
            Err(error) if is_away(&error) && clock::monotonic().duration_since(began) < AWAY_MAX => {
                tokio::time::sleep(AWAY_PAUSE).await;
            }
            answered => return answered,
        }
    }
}

fn is_away(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Failure>().is_some_and(|failure| failure.exit == Exit::Unreachable)
}
