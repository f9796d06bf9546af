//! The controller's program: reads the command line, the configuration, and does what was said.

mod arguments;
mod exit;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use arguments::{Arguments, Command};
use clap::Parser as _;
use hearth_controller::config::{self, Config, LogFormat};
use hearth_controller::serve::Controller;
use hearth_controller::{admin, ingest, metrics, sys};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    // Before anything else: the child must confine itself while it has one thread.
    if words.nth(1).is_some_and(|word| word == ingest::sandbox::SUBCOMMAND) {
        return ingest::sandbox::run_child(&words.collect::<Vec<_>>());
    }
    sys::few_arenas();
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hearth-controller: {error:#}");
            ExitCode::from(exit::code(&error))
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let loaded = config::load(arguments.config.as_deref())?;
    if arguments.check_config {
        return Ok(arguments::checked(&loaded));
    }
    let config = loaded.config;
    log_to_stderr(&config)?;
    for key in &loaded.unknown_keys {
        tracing::warn!(key, "UNKNOWN KEY in the configuration: nothing reads it (see --check-config)");
    }
    let Some(command) = arguments.command else {
        anyhow::bail!("say what to do: init, serve, backup, restore or fsck (--help)");
    };
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(perform(command, config))
}

async fn perform(command: Command, config: Config) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout();
    match command {
        Command::Init { new_admin_token } => admin::init::init(&config, new_admin_token, &mut out).await?,
        Command::Serve => {
            let figures = metrics::install().context("starting to collect figures")?;
            let controller = Box::pin(Controller::start(config, executable()?, figures)).await?;
            controller.run().await?;
        }
        Command::Backup { folder, no_contents } => {
            let saved = admin::backup::backup(&config, &folder, !no_contents, &mut out).await?;
            return Ok(if saved.missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Restore { folder } => {
            let problems = admin::restore::restore(&config, &folder, &mut out).await?;
            return Ok(if problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Fsck { deep, repair } => {
            let options = admin::fsck::Options { deep, repair };
            let left = admin::fsck::fsck(&config, options, executable()?, &mut out).await?;
            return Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn executable() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("finding this program's own file")
}

fn log_to_stderr(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log_filter).context("log_filter in the configuration")?;
    let colours = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(colours).with_env_filter(filter);
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
