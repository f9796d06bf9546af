//! The controller's program: reads the command line, the configuration, and does what was said.

mod arguments;
mod exit;
mod stderr;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use arguments::{Arguments, Command};
use clap::Parser as _;
use hearth_controller::config::{self, Config};
use hearth_controller::serve::Controller;
use hearth_controller::{admin, ingest, metrics, sys};

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
    stderr::log(&config)?;
    for key in &loaded.unknown_keys {
        tracing::warn!(key, "UNKNOWN KEY in the configuration: nothing reads it (see --check-config)");
    }
    let Some(command) = arguments.command else {
        anyhow::bail!(
            "say what to do: init, serve, backup, restore, fsck, log-archive or log-verify (--help)"
        );
    };
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(perform(command, config))
}

async fn perform(command: Command, config: Config) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout();
    let clean = match command {
        Command::Init { new_admin_token } => {
            admin::init::init(&config, new_admin_token, &mut out).await?;
            true
        }
        Command::Serve => {
            let figures = metrics::install().context("starting to collect figures")?;
            let controller = Box::pin(Controller::start(config, executable()?, figures)).await?;
            controller.run().await?;
            true
        }
        Command::Backup { folder, no_contents } => {
            admin::backup::backup(&config, &folder, !no_contents, &mut out).await?.missing.is_empty()
        }
        Command::Restore { folder } => admin::restore::restore(&config, &folder, &mut out).await? == 0,
        Command::Fsck { deep, repair } => {
            let options = admin::fsck::Options { deep, repair };
            admin::fsck::fsck(&config, options, executable()?, &mut out).await? == 0
        }
        Command::LogArchive { before, to } => {
            admin::log_archive::archive(&config, before.0, &to, &mut out).await?;
            true
        }
        Command::LogVerify { file, no_database } => {
            let database = (!no_database).then_some(&config);
            admin::log_archive::verify(database, &file, &mut out).await?
        }
    };
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn executable() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("finding this program's own file")
}
