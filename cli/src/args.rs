//! The command line as a whole: global options and the nouns.
//!
//! **What.** One noun per file; this file only puts them together and sets up what every command needs.
//! **Invariants.** Every command has examples in its help (held by a test over the whole tree).

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use crate::client::Client;
use crate::config::{self, Config};
use crate::failure::{EXIT_CODES, Exit, Failure, report};
use crate::output::{Format, Out};
use crate::{
    cache, completion, dev, doctor, host_image, image, key, location, log, login, market, prewarm, quota,
    system, tenant, token, user,
};

/// The way from nothing to warm hosts.
const EXAMPLES: &str = "Examples:
  hearth login https://controller.example:7443 --token hrt_… --fingerprint 4c1d…
  hearth image import noble.qcow2 --name noble
  hearth prewarm create noble --select 'zone=z1' --wait
  hearth cache list --image noble
  hearth dev                              # try it out on this machine alone";

/// Keeps virtual-machine images warm on every host of a cloud.
#[derive(Debug, Parser)]
#[command(name = "hearth", version, propagate_version = true, max_term_width = 110)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Configuration file (default: ~/.config/hearth/config.toml); HEARTH_URL, HEARTH_TOKEN and HEARTH_FINGERPRINT
    /// win over it
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "HEARTH_CONFIG",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub(crate) config: Option<PathBuf>,
    /// How results are printed: tables for people, the API's JSON bodies, or CSV with all columns
    #[arg(short, long, global = true, value_enum, default_value_t, help_heading = "Global options")]
    pub(crate) output: Format,
    /// No remarks and no progress on stderr
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Store address and token of a controller, or get a token for a user's password
    Login(login::Login),
    /// End the token in use and forget it
    Logout(login::Logout),
    /// Who the configured token is
    Whoami(token::Whoami),
    /// Import, list, download and delete images
    #[command(subcommand, visible_alias = "images")]
    Image(image::ImageCommand),
    /// Disk images merged into what a whole machine starts from
    #[command(subcommand, visible_alias = "host-images")]
    HostImage(host_image::HostImageCommand),
    /// Keys that encrypt images
    #[command(subcommand, visible_alias = "keys")]
    Key(key::KeyCommand),
    /// Hosts and regions that hold a cache, and the tokens with which they join
    #[command(subcommand, visible_alias = "locations")]
    Location(location::LocationCommand),
    /// Signed catalogs of images to import from
    #[command(subcommand)]
    Market(market::MarketCommand),
    /// Which image is where, and keeping or removing single copies
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Put an image on many hosts before machines are made of it
    #[command(subcommand, visible_alias = "prewarms")]
    Prewarm(prewarm::PrewarmCommand),
    /// What projects may have, and have
    #[command(subcommand, visible_alias = "quotas")]
    Quota(quota::QuotaCommand),
    /// What projects have stored, and for how long
    #[command(subcommand)]
    Usage(quota::UsageCommand),
    /// The operation log: who did what
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Bearer tokens for people and programs
    #[command(subcommand, visible_alias = "tokens")]
    Token(token::TokenCommand),
    /// People, their passwords, and what they may do
    #[command(subcommand, visible_alias = "users")]
    User(user::UserCommand),
    /// Projects, which own images
    #[command(subcommand, visible_alias = "projects")]
    Project(tenant::ProjectCommand),
    /// Domains, which hold projects and users
    #[command(subcommand, visible_alias = "domains")]
    Domain(tenant::DomainCommand),
    /// Facts of the controller
    System(system::System),
    /// Stop and start all transfers of the fleet
    #[command(subcommand)]
    Transfer(system::TransferCommand),
    /// Check configuration, controller, agents and caches, line by line
    Doctor(doctor::Doctor),
    /// Run a controller and some agents on this machine, to try Hearth out
    Dev(dev::Dev),
    /// Print completions for a shell
    Completion(completion::Completion),
}

/// A controller to talk to and a place to print to.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// The API.
    pub(crate) client: Client,
    /// Stdout and stderr.
    pub(crate) out: Out,
    /// No progress on stderr.
    pub(crate) quiet: bool,
}

impl Global {
    /// Where results go.
    pub(crate) const fn out(&self) -> Out {
        Out::new(self.output, self.quiet)
    }

    /// Reads the configuration. Nothing is connected yet.
    pub(crate) fn session(&self) -> anyhow::Result<Session> {
        let env = |name: &str| std::env::var(name).ok();
        let path = config::path(self.config.as_deref(), env)?;
        let file = config::load(&path, self.config.is_some(), env)?;
        let client = Client::new(&Config::from_file(&file)?)?;
        Ok(Session { client, out: self.out(), quiet: self.quiet })
    }
}

/// Parses, runs, and says how it ended.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.kind() == ErrorKind::MissingSubcommand => {
            // A noun without a verb is a question: what is there?
            let help = Cli::try_parse_from(std::env::args_os().chain(["--help".into()]));
            drop(std::io::Write::write_all(
                &mut std::io::stderr(),
                help.err().unwrap_or(error).to_string().as_bytes(),
            ));
            return Exit::Usage.into();
        }
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Ok };
            return error.print().map_or(Exit::Failed, |()| exit).into();
        }
    };
    let result = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            let ended = runtime.block_on(Box::pin(run(cli)));
            if ended.as_ref().is_err_and(|error| report(error).0 == Exit::Interrupted) {
                // A read of a terminal that nobody types at must not hold the process.
                runtime.shutdown_background();
            }
            ended
        });
    let (exit, text) = result.map_or_else(|error| report(&error), |exit| (exit, String::new()));
    // Nothing more can be said if even stderr is closed.
    drop(std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()));
    exit.into()
}

async fn run(cli: Cli) -> anyhow::Result<Exit> {
    let global = cli.global;
    match cli.command {
        Command::Login(command) => command.run(&global).await,
        Command::Logout(command) => command.run(&global).await,
        Command::Completion(command) => command.run(),
        Command::Dev(command) => Box::pin(command.run(&global)).await,
        Command::Doctor(command) => command.run(&global).await,
        Command::Whoami(command) => command.run(&global.session()?).await,
        // It is read before there is a controller.
        Command::Image(image::ImageCommand::Guide(command)) => command.run(),
        Command::Image(command) => command.run(&global.session()?).await,
        Command::HostImage(command) => command.run(&global.session()?).await,
        Command::Key(command) => command.run(&global.session()?).await,
        Command::Location(command) => command.run(&global.session()?).await,
        Command::Market(command) => Box::pin(command.run(&global)).await,
        Command::Cache(command) => command.run(&global.session()?).await,
        Command::Prewarm(command) => command.run(&global.session()?).await,
        Command::Quota(command) => command.run(&global.session()?).await,
        Command::Usage(command) => command.run(&global.session()?).await,
        Command::Log(command) => command.run(&global.session()?).await,
        Command::Token(command) => command.run(&global).await,
        Command::User(command) => command.run(&global.session()?).await,
        Command::Project(command) => command.run(&global.session()?).await,
        Command::Domain(command) => command.run(&global.session()?).await,
        Command::System(command) => command.run(&global.session()?).await,
        Command::Transfer(command) => command.run(&global.session()?).await,
    }
}

/// Asks before something that cannot be undone. `yes` answers beforehand.
///
/// # Errors
/// [`Exit::Usage`] when nobody can be asked; [`Exit::Failed`] when the answer is no.
pub(crate) fn confirm(question: &str, yes: bool) -> anyhow::Result<()> {
    use std::io::{BufRead as _, IsTerminal as _, Write as _};
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, "this must be confirmed, and there is no terminal to ask on")
            .hint("add --yes if you mean it")
            .into());
    }
    write!(std::io::stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, "not done").into())
}

#[cfg(test)]
mod tests;
