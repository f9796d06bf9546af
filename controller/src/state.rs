//! The state folder: its lay-out and its lock.
//!
//! ```text
//! <state_dir>/LOCK            one controller at a time (flock)
//!             VERSION         number of this lay-out
//!             before-upgrade/ the database as it was before each upgrade
//!             ca/             ca.key, ca.crt
//!             hearth.sqlite   the database, unless it is elsewhere
//!             content/        content objects      originals/  uploaded files
//!             variants/       other formats        staging/    imports that run
//! ```
//!
//! **Invariants.** Folders are made with mode 0700, keys with 0600. Two processes never work on one folder: the lock belongs to the open
//! file, so a killed process leaves none behind.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::clock;

/// How long the lock is waited for. A controller that was killed while it started a program leaves the lock to that child until
/// the program runs: milliseconds, more on a busy machine.
const LOCK_WAIT: Duration = Duration::from_secs(2);
/// Pause between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be made or opened.
    #[error("cannot use {path} as state folder")]
    Folder {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process has it.
    #[error(
        "{path} is in use by another hearth-controller: stop it first (systemctl stop hearth-controller)"
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// Root would make files that the daemon's own user cannot read.
    #[error("{path} belongs to {user}, and so must what is made in it: run this as sudo -u {user} …")]
    ForeignRoot {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        user: String,
    },
    /// The folder is of a newer program.
    #[error(
        "{path} says {found:?}, this program knows lay-outs up to {known}: start the newer program, or restore a backup"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// Newest lay-out of this program.
        known: u32,
    },
    /// `init` did not run, or not to its end.
    #[error("{path} holds no controller yet: run `hearth-controller init` first")]
    Empty {
        /// The folder.
        path: PathBuf,
    },
}

/// Number of the lay-out. The first release wrote none: no number means 1.
const LAYOUT_VERSION: u32 = 1;
/// Largest file that may hold it.
const VERSION_BYTES_MAX: u64 = 64;

/// The folder, held by this process until dropped.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Takes the lock, or says after [`LOCK_WAIT`] why it cannot be had.
fn lock(mut file: File) -> Result<Flock<File>, Errno> {
    let begun = clock::monotonic();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((again, Errno::EWOULDBLOCK)) if begun.elapsed() < LOCK_WAIT => file = again,
            Err((_, errno)) => return Err(errno),
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

impl StateFolder {
    /// Makes the folder if it is missing, and takes it; blocks for [`LOCK_WAIT`] at most.
    ///
    /// # Errors
    /// [`StateError::Folder`], [`StateError::Locked`].
    pub fn take(path: &Path) -> Result<Self, StateError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Folder { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path))?;
        let file = path.join("LOCK");
        let opened =
            OpenOptions::new().create(true).truncate(false).write(true).open(&file).map_err(failed(&file))?;
        let lock = lock(opened).map_err(|errno| match errno {
            Errno::EWOULDBLOCK => StateError::Locked { path: file.clone() },
            other => StateError::Folder { path: file.clone(), source: other.into() },
        })?;
        note_version(&path.join("VERSION"))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Folder of the certificate authority.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        ca_folder(&self.path)
    }

    /// Says so if `init` did not run.
    ///
    /// # Errors
    /// [`StateError::Empty`].
    pub fn must_be_set_up(&self) -> Result<(), StateError> {
        if self.ca().join("ca.crt").exists() {
            Ok(())
        } else {
            Err(StateError::Empty { path: self.path.clone() })
        }
    }
}

/// Refuses a lay-out that this program does not know; writes the number where there is none.
fn note_version(file: &Path) -> Result<(), StateError> {
    use std::io::Read as _;
    let failed = |source| StateError::Folder { path: file.to_owned(), source };
    let mut found = String::new();
    match File::open(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return write_private(file, format!("{LAYOUT_VERSION}\n").as_bytes()).map_err(failed);
        }
        opened => {
            opened.map_err(failed)?.take(VERSION_BYTES_MAX).read_to_string(&mut found).map_err(failed)?
        }
    };
    let found = found.trim().to_owned();
    let is_known = found.parse().is_ok_and(|number: u32| (1..=LAYOUT_VERSION).contains(&number));
    let path = file.to_owned();
    if is_known { Ok(()) } else { Err(StateError::Version { path, found, known: LAYOUT_VERSION }) }
}

/// Folder of the copies of the database that upgrades make, under `state_dir`.
#[must_use]
pub fn upgrade_folder(state_dir: &Path) -> PathBuf {
    state_dir.join("before-upgrade")
}

/// Refuses root in a folder of another user, or where the folder is to be made in that of another user.
///
/// # Errors
/// [`StateError::ForeignRoot`].
pub fn refuse_foreign_root(path: &Path) -> Result<(), StateError> {
    let owner =
        path.ancestors().find_map(|folder| std::fs::metadata(folder).ok()).map_or(0, |meta| meta.uid());
    if owner == 0 || !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let named = nix::unistd::User::from_uid(owner.into()).ok().flatten();
    let user = named.map_or_else(|| format!("#{owner}"), |user| user.name);
    Err(StateError::ForeignRoot { path: path.to_owned(), user })
}

/// Writes a file of mode 0600 so that after a crash it is whole or not there, and so after an error.
///
/// # Errors
/// What the file system says.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let write = || {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
        file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))?;
        std::fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or_else(|| Path::new("."))).and_then(|folder| folder.sync_all())
    };
    let written = write();
    if written.is_err() {
        drop(std::fs::remove_file(&new));
    }
    written
}

/// Folder of the certificate authority under `state_dir`.
#[must_use]
pub fn ca_folder(state_dir: &Path) -> PathBuf {
    state_dir.join("ca")
}

/// The database's file under `state_dir`, if `database_url` names one.
#[must_use]
pub fn sqlite_file(database_url: &str) -> Option<PathBuf> {
    let path = database_url.strip_prefix("sqlite:")?;
    Some(PathBuf::from(path.strip_prefix("//").unwrap_or(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_controller() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateFolder::take(&path).unwrap();
        assert!(matches!(StateFolder::take(&path), Err(StateError::Locked { .. })));
        assert!(matches!(first.must_be_set_up(), Err(StateError::Empty { .. })));
        drop(first);
        StateFolder::take(&path).unwrap();
    }

    #[test]
    fn a_lock_that_is_about_to_go_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateFolder::take(&path).unwrap();
        let goes = std::thread::spawn(move || {
            std::thread::sleep(LOCK_PAUSE * 5);
            drop(first);
        });
        StateFolder::take(&path).unwrap();
        goes.join().unwrap();
    }

    #[test]
    fn a_layout_of_a_newer_program_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        drop(StateFolder::take(dir.path()).unwrap());
        let file = dir.path().join("VERSION");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "1\n");
        drop(StateFolder::take(dir.path()).unwrap());
        for found in ["2", "0", "", "x"] {
            std::fs::write(&file, found).unwrap();
            let refused = StateFolder::take(dir.path()).unwrap_err();
            assert!(matches!(refused, StateError::Version { known: 1, .. }), "{found}: {refused}");
        }
    }

    #[test]
    fn root_makes_nothing_among_the_files_of_another_user() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("state/deep");
        refuse_foreign_root(&missing).unwrap();
        // Only root can give a folder away, and only root is refused.
        if std::os::unix::fs::chown(dir.path(), Some(65534), None).is_ok() {
            for path in [dir.path(), &missing] {
                assert!(matches!(refuse_foreign_root(path), Err(StateError::ForeignRoot { .. })));
            }
        }
    }
}
