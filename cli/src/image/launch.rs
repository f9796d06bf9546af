//! `hearth image launch`: has an image cached where a machine of it is about to run.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use hearth_protocol::api::cache::{Launch as Body, LaunchState};
use hearth_protocol::words::EntryStatus;

use crate::args::Session;
use crate::failure::{Exit, Failure};
use crate::names;
use crate::output::Cell;
use crate::progress::{Mode, Steps};
use crate::{clock, when};

/// Time between two looks.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Cache an image where a machine of it will run.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image launch noble --at cn-17
  hearth image launch noble --at cn-17 --wait --timeout 10m

It is fetched before everything else, kept for a day, and needs no right over caches.")]
pub(crate) struct Launch {
    /// Name or id
    image: String,
    /// Name or id of the host or region
    #[arg(long, value_name = "LOCATION")]
    at: String,
    /// Wait until the copy is verified on disk
    #[arg(long)]
    wait: bool,
    /// Give up waiting after this long
    #[arg(long, value_name = "DURATION", value_parser = when::parse_duration, requires = "wait", default_value = "1h")]
    timeout: Duration,
}

impl Launch {
    /// Asks, and asks again while it waits.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let image = names::image(&session.client, &self.image).await?;
        let id = image.id.to_string();
        let body = Body { location: self.at.clone() };
        let ask = async || -> anyhow::Result<LaunchState> {
            session.client.post(&["images", &id, "launch"], &body).await.context("asking for the copy")
        };
        let mut state = ask().await?;
        if self.wait {
            let mut steps = Steps::new(
                Mode::of_stderr(session.quiet),
                &format!("{} at {}", image.name, state.location_name),
            );
            let begun = clock::monotonic();
            while state.status != EntryStatus::Active {
                steps.percent(state.status.as_str(), state.percent);
                if begun.elapsed() > self.timeout {
                    let text = format!("{} is still {} at {}", image.name, state.status, state.location_name);
                    return Err(Failure::new(Exit::Failed, text)
                        .hint("it goes on without you: ask again with --wait")
                        .into());
                }
                tokio::time::sleep(LOOK_PAUSE).await;
                state = ask().await?;
            }
            steps.end("verified on disk");
        }
        session.out.facts(&state, facts(&state))?;
        Ok(Exit::Ok)
    }
}

fn facts(state: &LaunchState) -> Vec<(&'static str, Cell)> {
    vec![
        ("location", Cell::text(&state.location_name)),
        ("status", Cell::Status(state.status.to_string())),
        ("done", Cell::text(format!("{} %", state.percent))),
        ("reason", Cell::text(&state.reason)),
        ("content", Cell::text(state.content)),
    ]
}
