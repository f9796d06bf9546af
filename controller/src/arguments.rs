//! The command line of the controller's program.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hearth_controller::config;

/// Hearth controller: catalog of images, and the fleet of caches that hold them.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// Configuration file; default /etc/hearth/controller.toml, if it exists
    #[arg(long, global = true, value_name = "FILE", env = "HEARTH_CONTROLLER_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Only check the configuration: unknown keys are errors
    #[arg(long, global = true)]
    pub(crate) check_config: bool,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Set this controller up: certificate authority, database, the first administrator's token
    Init {
        /// Make another administrator's token for a controller that is set up
        #[arg(long)]
        new_admin_token: bool,
    },
    /// Run
    Serve,
    /// Save database, certificate authority and configuration into a new folder, while it runs
    Backup {
        /// The folder
        folder: PathBuf,
    },
    /// Put a backup in place of a controller that is gone
    Restore {
        /// The folder
        folder: PathBuf,
    },
    /// Compare the database with the files (the controller must be stopped). Exit status: 0 clean, 1 problems, 2 not checked
    Fsck {
        /// Hash every byte
        #[arg(long)]
        deep: bool,
        /// Remove files that no record knows; make damaged contents again from their originals
        #[arg(long)]
        repair: bool,
    },
}

/// What `--check-config` says of a file that can be used.
pub(crate) fn checked(loaded: &config::Loaded) -> ExitCode {
    for key in &loaded.unknown_keys {
        eprintln!("unknown key: {key}");
    }
    if loaded.unknown_keys.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
