//! `hearth-rogue`: an agent that takes part in campaigns and harms them, for tests.
//!
//! **What.** It has the identity of an agent that was enrolled, joins every campaign with the claim to have everything, and does to
//! those who ask it what its first argument says (see [`Harm`]). The second is that agent's configuration file.
//! **Why a program of its own.** The real agent cannot be made to do any of this, and shall not be.
//! **Invariants.** What it tries and what came of it stands in its output, a line each.

#![expect(clippy::print_stdout, reason = "its output is what a test reads")]

mod harm;
mod session;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use hearth_agent::config::Config;
use hearth_agent::control::credentials::Credentials;
use hearth_agent::transfer::endpoint::Endpoint;

use harm::{Harm, Loot};

#[tokio::main]
async fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let harm =
        words.next().and_then(|word| Harm::of(&word)).context("the first argument is a kind of harm")?;
    let config = words.next().context("the second argument is an agent.toml")?;
    let (config, _) = Config::read(Path::new(&config))?;
    let credentials = Arc::new(Credentials::load(&config.data_dir)?);
    let endpoint = Endpoint::bind(config.listen, b"rogue")?;
    let loot = Arc::<Loot>::default();
    harm::listen(&endpoint, &credentials, harm, Arc::clone(&loot))?;
    session::run(&config, &endpoint, &credentials, harm, &loot).await
}
