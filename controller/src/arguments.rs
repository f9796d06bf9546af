//! The command line of the controller's program.

use std::path::{Path, PathBuf};
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
    /// Move old rows of the operation log into a file, while the controller runs; what stays is proven from an anchor
    ///
    /// Nothing is removed before the file is synced and was read back. The rows are JSON lines with their hashes, packed
    /// with zstd. What was removed is told by rows `log.archive`. Keep the file: nothing else has these rows any more.
    #[command(verbatim_doc_comment)]
    LogArchive {
        /// Rows older than this: RFC 3339 (2026-01-31T18:00:00Z), or a day (2026-01-31, from its begin in UTC)
        #[arg(long, value_name = "TIME", value_parser = moment)]
        before: Moment,
        /// The file; it must not exist
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Prove an archive of the operation log, and that it belongs to this database. Exit status: 0 proven, 1 not, 2 not read
    LogVerify {
        /// The archive
        file: PathBuf,
        /// Check the file alone, on a machine without the database
        #[arg(long)]
        no_database: bool,
    },
}

/// A time, microseconds since the epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(pub(crate) i64);

fn moment(text: &str) -> Result<Moment, String> {
    let day = || text.parse::<jiff::civil::Date>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok();
    let at = text.parse::<jiff::Timestamp>().ok().or_else(|| day().map(|day| day.timestamp()));
    let at = at.ok_or_else(|| "write RFC 3339 (2026-01-31T18:00:00Z) or a day (2026-01-31)".to_owned())?;
    Ok(Moment(at.as_microsecond()))
}

/// What `--check-config` says of a file that can be used.
pub(crate) fn checked(loaded: &config::Loaded) -> ExitCode {
    let file = loaded.config.path.as_deref().unwrap_or_else(|| Path::new(config::PATH_DEFAULT)).display();
    for key in &loaded.unknown_keys {
        eprintln!("{file}: unknown key: {key}; the example in /etc/hearth names all there are");
    }
    if !loaded.unknown_keys.is_empty() {
        return ExitCode::FAILURE;
    }
    eprintln!("{file} is fine");
    ExitCode::SUCCESS
}
