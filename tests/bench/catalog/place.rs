//! Where the catalog of one engine stands, and the server that PostgreSQL needs.
//!
//! **Why not a temporary folder.** Filling takes minutes: what was filled stays under `target/` for the next run.
//! **Invariants.** The server is Debian's with Debian's settings, on a socket of its own; it ends with this process.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::{Uid, User};

/// Longest start of the server, recovery after a lost machine included.
const START_STEPS_MAX: u32 = 1200;

/// Which database.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// A folder with state and database of one engine.
pub(crate) struct Place {
    pub(crate) engine: Engine,
    pub(crate) folder: PathBuf,
    server: Option<Server>,
}

impl Place {
    /// The place in `parent`; starts the server.
    pub(crate) fn open(parent: &Path, engine: Engine) -> Result<Self> {
        let folder = parent.join(engine.word());
        std::fs::create_dir_all(folder.join("state"))?;
        let server = if engine == Engine::Postgres { Some(Server::start(&folder)?) } else { None };
        Ok(Self { engine, folder, server })
    }

    /// `database_url` of the controller.
    pub(crate) fn url(&self) -> String {
        match &self.server {
            None => format!("sqlite://{}", self.folder.join("state/hearth.sqlite").display()),
            Some(server) => {
                format!("postgres://hearth@localhost/postgres?host={}", server.socket.path().display())
            }
        }
    }
}

struct Server {
    shell: Child,
    socket: tempfile::TempDir,
}

impl Server {
    fn start(folder: &Path) -> Result<Self> {
        let programs = programs()?;
        let user = user()?;
        let data = folder.join("server");
        // Short: the path of a socket has at most 107 bytes.
        let socket = tempfile::Builder::new().prefix("hearth-pg-").tempdir_in("/tmp")?;
        std::fs::create_dir_all(&data)?;
        for folder in [data.as_path(), socket.path()] {
            if let Some(user) = &user {
                chown(folder, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
            }
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
        }
        if !data.join("PG_VERSION").exists() {
            let mut initdb = as_user(user.as_ref(), &programs.join("initdb"));
            initdb.args(["--username=hearth", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "-D"]);
            let made = initdb.arg(&data).current_dir("/tmp").output()?;
            ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        }
        // The shell reads until this process is gone or closes the pipe, then stops the server in an orderly way.
        let script = r#""$0" "$@" <&- & server=$!; read -r _; kill -INT $server; wait $server"#;
        let mut shell = as_user(user.as_ref(), Path::new("/bin/sh"));
        shell.arg("-c").arg(script).arg(programs.join("postgres")).arg("-D").arg(&data);
        // Debian's settings, but for the log of changes: filling writes gigabytes at once.
        shell.args([
            "-c",
            "listen_addresses=",
            "-c",
            "max_wal_size=4GB",
            "-c",
            "log_min_messages=fatal",
            "-k",
        ]);
        let log = std::fs::File::create(folder.join("server.log"))?;
        let shell = shell.arg(socket.path()).current_dir("/tmp").stdin(Stdio::piped());
        let shell = shell.stdout(log.try_clone()?).stderr(log).spawn().context("starting PostgreSQL")?;
        let server = Self { shell, socket };
        server.wait_until_ready(&programs, folder)?;
        Ok(server)
    }

    fn wait_until_ready(&self, programs: &Path, folder: &Path) -> Result<()> {
        for _ in 0..START_STEPS_MAX {
            let mut ready = Command::new(programs.join("pg_isready"));
            if ready.arg("-q").arg("-h").arg(self.socket.path()).status()?.success() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("PostgreSQL did not start: {}", std::fs::read_to_string(folder.join("server.log"))?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        drop(self.shell.wait());
    }
}

/// The folder of Debian's newest server programs.
fn programs() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let with_server =
        versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("postgres").exists());
    let number = |bin: &PathBuf| -> u32 {
        bin.parent().and_then(Path::file_name).and_then(|name| name.to_str()?.parse().ok()).unwrap_or(0)
    };
    with_server.max_by_key(number).context(
        "PostgreSQL's server programs are not in /usr/lib/postgresql: \
         apt-get install -y --no-install-recommends postgresql",
    )
}

/// Who runs the server: it refuses root.
fn user() -> Result<Option<User>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let named = User::from_name("postgres")?;
    named
        .map_or_else(|| User::from_name("nobody"), |user| Ok(Some(user)))
        .context("looking for a user that runs PostgreSQL")
}

fn as_user(user: Option<&User>, program: &Path) -> Command {
    let Some(user) = user else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    let (uid, gid) = (format!("--reuid={}", user.uid), format!("--regid={}", user.gid));
    command.args([&uid, &gid, "--clear-groups"]).arg(program);
    command
}
