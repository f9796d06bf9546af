//! The command line of `hearth-agent`.
//!
//! **What.** `serve` runs the daemon, `enrol` gets it a certificate, and everything else asks a running agent over the
//! local socket. Exit codes: 0 done, 1 failed, 2 usage, [`EXIT_CONFIGURATION`], and those of the local commands.
//! **Why in the library.** `main.rs` only starts it; tests parse the same definitions.
//! **Invariants.** Secrets are taken from the command line or from `HEARTH_JOIN_TOKEN` and never logged.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use hearth_protocol::message::enrol::JoinToken;
use tracing_subscriber::EnvFilter;

use crate::config::{self, Config, ConfigError};
use crate::control::enrol::{self, EnrolError};
use crate::control::identity::{AgentKey, Enrolment, IdentityError};
use crate::daemon::{self, DaemonError};
use crate::local::client::{self, LocalCommand};
use crate::nic;
use crate::transfer::endpoint::{Endpoint, EndpointError};

/// Exit code for what only a person can mend: a wrong configuration, a host that is not enrolled. The number is that of
/// sysexits.h; the units name it in `RestartPreventExitStatus=`, because starting again would change nothing.
pub const EXIT_CONFIGURATION: u8 = 78;

/// Shown below `hearth-agent --help`.
const EXAMPLES: &str = "Examples:
  hearth-agent enrol --controller controller.example:7443 --token hj1_…
  hearth-agent status
  hearth-agent path noble --wait 600
  hearth-agent lease noble vm-17 --wait      # prints the lease, then the path
  hearth-agent release 0199c0de-0000-7000-8000-000000000001

Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  not found
  4  not active, also when --wait ran out
  5  in use, held or pinned
  6  the agent cannot be reached
  7  the agent is busy
  78 wrong configuration, or this host is not enrolled";

/// Hearth's agent: keeps verified copies of images on this host.
#[derive(Debug, Parser)]
#[command(name = "hearth-agent", version, propagate_version = true, max_term_width = 110, after_help = EXAMPLES)]
pub struct CommandLine {
    /// Configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = config::PATH_DEFAULT, env = "HEARTH_AGENT_CONFIG")]
    config: PathBuf,
    /// Socket of the running agent, if not that of the configuration.
    #[arg(long, global = true, value_name = "PATH", env = "HEARTH_AGENT_SOCKET")]
    socket: Option<PathBuf>,
    /// Check the configuration and stop; an unknown key is an error.
    #[arg(long)]
    check_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Serve {
        /// Check the configuration and stop; an unknown key is an error.
        #[arg(long)]
        check_config: bool,
    },
    /// Get a certificate with a join token; makes the key on this host.
    Enrol(Box<Enrol>),
    #[command(flatten)]
    Local(LocalCommand),
}

#[derive(Debug, Args)]
struct Enrol {
    /// Address of a controller; may be given several times. Without it those of the configuration.
    #[arg(long, value_name = "HOST:PORT")]
    controller: Vec<String>,
    /// Join token as `hearth location token create` prints it.
    #[arg(long, value_name = "hj1_...", env = "HEARTH_JOIN_TOKEN", hide_env_values = true)]
    token: JoinToken,
    /// Enrol although there is an enrolment; the key stays.
    #[arg(long)]
    again: bool,
    /// Name of the location, if not that of the configuration.
    #[arg(long)]
    name: Option<String>,
    /// Zone.
    #[arg(long)]
    zone: Option<String>,
    /// Rack; without one the zone.
    #[arg(long)]
    rack: Option<String>,
    /// Region.
    #[arg(long)]
    region: Option<String>,
    /// Platform, for example kvm.
    #[arg(long)]
    platform: Option<String>,
    /// Account.
    #[arg(long)]
    account: Option<String>,
    /// Management address, if not the one from which this host reaches the controller.
    #[arg(long)]
    ip: Option<String>,
    /// Serial number of the machine.
    #[arg(long)]
    serial: Option<String>,
    /// A label; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Keys that nothing reads, under `--check-config`.
    #[error("configuration {}: unknown keys: {}; see the example agent.toml", path.display(), keys.join(", "))]
    UnknownKeys {
        /// The file.
        path: PathBuf,
        /// The keys.
        keys: Vec<String>,
    },
    /// No command was given.
    #[error("no command: run `hearth-agent serve`, or see `hearth-agent --help`")]
    NoCommand,
    /// The log filter.
    #[error(
        "configuration key log: {given:?} is not a filter ({why}); write for example \"info\" or \"info,quinn=warn\""
    )]
    Log {
        /// What was given.
        given: String,
        /// What is wrong.
        why: String,
    },
    /// Already enrolled.
    #[error(
        "this agent is enrolled already as location {location}; pass --again to enrol it anew with the same key"
    )]
    Enrolled {
        /// The location.
        location: hearth_protocol::id::LocationId,
    },
    /// Root would make a key that the daemon's own user cannot read.
    #[error("{} belongs to {user}, and so must the key that is made in it: run this as sudo -u {user} …", path.display())]
    ForeignRoot {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        user: String,
    },
    /// No controller was named.
    #[error("no controller: pass --controller HOST:PORT or set `controllers` in the configuration")]
    NoController,
    /// A label is not one.
    #[error("label {given:?}: write KEY=VALUE")]
    Label {
        /// What was given.
        given: String,
    },
    /// Enrolment.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// Key or certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The QUIC socket.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The daemon.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The terminal or a thread.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl CommandError {
    /// Exit code of a process that failed with this.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        use DaemonError as Daemon;
        use IdentityError::NotEnrolled;
        match self {
            Self::Config(_)
            | Self::UnknownKeys { .. }
            | Self::Log { .. }
            | Self::NoController
            | Self::Identity(NotEnrolled { .. })
            | Self::Daemon(Daemon::NoController | Daemon::Identity(NotEnrolled { .. })) => EXIT_CONFIGURATION,
            _ => 1,
        }
    }
}

impl CommandLine {
    /// Runs the command; returns the exit code.
    ///
    /// # Errors
    /// [`CommandError`]; its text is for people.
    pub fn run(self) -> Result<u8, CommandError> {
        match self.command {
            Some(Command::Local(command)) => {
                let socket = match self.socket {
                    Some(socket) => socket,
                    None => socket_of(&self.config)?,
                };
                let terminal = |source| CommandError::System { what: "write to the terminal", source };
                client::run(&command, &socket, &mut std::io::stdout(), &mut std::io::stderr())
                    .map_err(terminal)
            }
            Some(Command::Serve { check_config }) if !check_config && !self.check_config => {
                let mut config = read(&self.config)?;
                config.socket = self.socket.unwrap_or(config.socket);
                start_log(&config)?;
                runtime()?.block_on(daemon::serve(config))?;
                Ok(0)
            }
            Some(Command::Enrol(enrol)) if !self.check_config => {
                enrol.run(&self.config)?;
                Ok(0)
            }
            None if !self.check_config => Err(CommandError::NoCommand),
            _ => check(&self.config).map(|()| 0),
        }
    }
}

/// The socket of the configuration; the default where there is no configuration that we may read.
fn socket_of(path: &Path) -> Result<PathBuf, CommandError> {
    match Config::read(path) {
        Ok((config, _)) => Ok(config.socket),
        Err(ConfigError::Read { .. }) => Ok(config::SOCKET_DEFAULT.into()),
        Err(error) => Err(error.into()),
    }
}

fn check(path: &Path) -> Result<(), CommandError> {
    let (config, keys) = Config::read(path)?;
    filter(&config.log)?;
    if !keys.is_empty() {
        return Err(CommandError::UnknownKeys { path: path.to_owned(), keys });
    }
    tell(&format!("{} is fine", path.display()))
}

/// Reads the configuration; unknown keys are said loudly and not followed.
fn read(path: &Path) -> Result<Config, CommandError> {
    let (config, keys) = Config::read(path)?;
    if !keys.is_empty() {
        let keys = keys.join(", ");
        let line = format!("WARNING: {}: unknown keys, not followed: {keys}\n", path.display());
        std::io::stderr()
            .write_all(line.as_bytes())
            .map_err(|source| CommandError::System { what: "write to the terminal", source })?;
    }
    Ok(config)
}

fn tell(line: &str) -> Result<(), CommandError> {
    writeln!(std::io::stdout(), "{line}")
        .map_err(|source| CommandError::System { what: "write to the terminal", source })
}

fn filter(text: &str) -> Result<EnvFilter, CommandError> {
    EnvFilter::try_new(text)
        .map_err(|error| CommandError::Log { given: text.to_owned(), why: error.to_string() })
}

fn start_log(config: &Config) -> Result<(), CommandError> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => filter(&text)?,
        _ => filter(&config.log)?,
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.log_json {
        true => log.json().try_init(),
        false => log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
    };
    started
        .map_err(|error| CommandError::System { what: "start the log", source: std::io::Error::other(error) })
}

/// One thread for packets and timers: fastest in measurement. Disk work and unpacking have threads of their own.
fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CommandError::System { what: "start the runtime", source })
}

/// The address from which this host reaches the first controller that it can.
fn own_address(controllers: &[String]) -> Option<IpAddr> {
    let mut addresses = controllers.iter().filter_map(|name| name.to_socket_addrs().ok()).flatten();
    addresses.find_map(nic::towards)
}

/// Refuses root in a folder of another user.
fn refuse_foreign_root(path: &Path) -> Result<(), CommandError> {
    use std::os::unix::fs::MetadataExt as _;
    let owner = std::fs::metadata(path).map_or(0, |meta| meta.uid());
    if owner == 0 || !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let named = nix::unistd::User::from_uid(owner.into()).ok().flatten();
    let user = named.map_or_else(|| format!("#{owner}"), |user| user.name);
    Err(CommandError::ForeignRoot { path: path.to_owned(), user })
}

impl Enrol {
    fn run(self, path: &Path) -> Result<(), CommandError> {
        let config = match Config::read(path) {
            // An agent may be enrolled before its configuration is written.
            Err(ConfigError::Read { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound
                    && path == Path::new(config::PATH_DEFAULT) =>
            {
                Config::parse("")?.0
            }
            other => other?.0,
        };
        refuse_foreign_root(&config.data_dir)?;
        let mut facts = self.facts(&config)?;
        let controllers: Result<Vec<String>, ConfigError> =
            self.controller.iter().map(|text| config::controller_address(text)).collect();
        let controllers = Some(controllers?).filter(|given| !given.is_empty()).unwrap_or(config.controllers);
        if controllers.is_empty() {
            return Err(CommandError::NoController);
        }
        if facts.ip.is_empty() {
            facts.ip = own_address(&controllers).map(|ip| ip.to_string()).unwrap_or_default();
        }
        if let (Ok(enrolment), false) = (Enrolment::load(&config.data_dir), self.again) {
            return Err(CommandError::Enrolled { location: enrolment.location });
        }
        let enrolment = runtime()?.block_on(async {
            // Any free port: the daemon may hold the configured one.
            let endpoint =
                Endpoint::bind(SocketAddr::new(config.listen.ip(), 0), &rand::random::<[u8; 32]>())?;
            let joined = enrol::join(&endpoint, &config.data_dir, &controllers, &self.token, &facts).await;
            endpoint.quinn().wait_idle().await;
            Ok::<_, CommandError>(joined?)
        })?;
        let agent = AgentKey::load(&config.data_dir)?.agent_id();
        tell(&format!("enrolled {:?} as location {} (agent {agent})", facts.name, enrolment.location))
    }

    fn facts(&self, config: &Config) -> Result<hearth_protocol::message::enrol::LocationFacts, CommandError> {
        let mut facts = config.facts.clone();
        let given = [
            (&self.name, &mut facts.name),
            (&self.zone, &mut facts.zone),
            (&self.rack, &mut facts.rack),
            (&self.region, &mut facts.region),
            (&self.platform, &mut facts.platform),
            (&self.account, &mut facts.account),
            (&self.ip, &mut facts.ip),
            (&self.serial, &mut facts.serial),
        ];
        for (given, fact) in given {
            if let Some(given) = given {
                fact.clone_from(given);
            }
        }
        for label in &self.label {
            let (key, text) =
                label.split_once('=').ok_or_else(|| CommandError::Label { given: label.clone() })?;
            facts.labels.retain(|(old, _)| old != key);
            facts.labels.push((key.to_owned(), text.to_owned()));
        }
        config::check_facts(&facts)?;
        Ok(facts)
    }
}

#[cfg(test)]
mod tests;
