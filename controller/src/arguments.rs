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
    /// Save everything into a new folder, while the controller runs: database, certificate authority, configuration,
    /// and the contents and originals that this database refers to. Exit status: 0 all, 1 something is missing, 2 not done
    ///
    /// Contents and originals are hard links where the folder is on the file system of state_dir (they take no room, and are
    /// lost with that disk: copy the folder to another machine), else copies. Nothing is written over. What is missing or
    /// damaged already is named, and the rest is a whole backup. PostgreSQL: the database is a dump of pg_dump.
    #[command(verbatim_doc_comment)]
    Backup {
        /// The folder; it must not exist, or be empty
        folder: PathBuf,
        /// Leave contents and originals out: a small backup every hour, where the files are safe otherwise
        #[arg(long)]
        no_contents: bool,
    },
    /// Put a backup in place of a controller that is gone, and read every byte of it. Exit status: 0 clean, 1 problems, 2 not done
    ///
    /// Run it as the user of the controller, with its configuration and an empty state_dir. Agents come back by themselves
    /// if the new machine has the old one's name or address; they keep their copies, also of images that the backup
    /// does not know. PostgreSQL: it says which pg_restore to run.
    #[command(verbatim_doc_comment)]
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
