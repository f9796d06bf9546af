//! Places for databases: a temporary folder for SQLite, a private PostgreSQL server for the other half.
//!
//! **What.** [`Place::sqlite`] and [`Place::postgres`] give an address of an empty database that goes away when dropped.
//! The server is Debian's, started on a socket in a temporary folder, shared by the tests that run at the same time.
//! **Why no skip.** A suite that passes where PostgreSQL is missing says nothing about PostgreSQL: it fails and names the
//! package.
//! **Invariants.** The server dies with the test process, however that ends: its shell waits for the end of its input.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hearth_controller::db::Db;
use nix::unistd::{Uid, User};
use sqlx::{AnyConnection, Connection as _, Executor as _};
use tempfile::TempDir;

/// An empty database, or one that a test has filled.
pub(crate) struct Place {
    pub(crate) url: String,
    pub(crate) folder: TempDir,
    _server: Option<Arc<Server>>,
}

impl Place {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Spaces and other letters than ASCII: the address must carry any path.
        let url = folder.path().join("dat en é.db").display().to_string();
        Self { url, folder, _server: None }
    }

    pub(crate) async fn postgres() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let server = tokio::task::spawn_blocking(Server::shared).await.unwrap();
        let name = format!("hearth_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut admin = connect(&server.url("postgres")).await;
        let create = format!("CREATE DATABASE {name}");
        admin.execute(sqlx::AssertSqlSafe(create)).await.unwrap();
        Self { url: server.url(&name), folder: tempfile::tempdir().unwrap(), _server: Some(server) }
    }

    pub(crate) fn is_sqlite(&self) -> bool {
        self._server.is_none()
    }

    pub(crate) async fn open(&self) -> Db {
        Db::open(&self.url).await.unwrap()
    }

    /// A connection beside the store: an intruder, or a program that does it wrong.
    pub(crate) async fn connect(&self) -> AnyConnection {
        if self.is_sqlite() {
            connect(&sqlite_url(Path::new(&self.url))).await
        } else {
            connect(&self.url).await
        }
    }
}

fn sqlite_url(path: &Path) -> String {
    let escaped: String = path.display().to_string().bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("sqlite://{escaped}?mode=rwc")
}

async fn connect(url: &str) -> AnyConnection {
    sqlx::any::install_default_drivers();
    AnyConnection::connect(url).await.unwrap()
}

struct Server {
    shell: Child,
    folder: TempDir,
}

impl Server {
    /// The server of this process; started if no test has it now.
    fn shared() -> Arc<Self> {
        static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start());
            *shared = Arc::downgrade(&server);
            server
        })
    }

    fn start() -> Self {
        let programs = programs();
        // Short: the path of a socket has at most 107 bytes.
        let folder = tempfile::Builder::new().prefix("hearth-pg-").tempdir_in("/tmp").unwrap();
        let user = user();
        if let Some(user) = &user {
            chown(folder.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let data = folder.path().join("data");
        let mut initdb = as_user(user.as_ref(), &programs.join("initdb"));
        initdb.args([
            "--username=hearth",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
            "-D",
        ]);
        let made = initdb.arg(&data).current_dir("/tmp").output().unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        // The shell reads until the test process is gone or closes the pipe, then stops the server at once.
        let script = r#""$0" "$@" <&- & server=$!; read -r _; kill -QUIT $server; wait $server"#;
        let mut shell = as_user(user.as_ref(), Path::new("/bin/sh"));
        shell.arg("-c").arg(script).arg(programs.join("postgres")).arg("-D").arg(&data);
        shell.args([
            "-c",
            "listen_addresses=",
            "-c",
            "max_connections=200",
            "-c",
            "log_min_messages=fatal",
            "-k",
        ]);
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let shell = shell.arg(folder.path()).current_dir("/tmp").stdin(Stdio::piped());
        let shell = shell.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let server = Self { shell, folder };
        server.wait_until_ready(&programs);
        server
    }

    fn wait_until_ready(&self, programs: &Path) {
        for _ in 0..300 {
            let mut ready = Command::new(programs.join("pg_isready"));
            let ready = ready.arg("-q").arg("-h").arg(self.folder.path()).status().unwrap();
            if ready.success() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        panic!("PostgreSQL did not start within 30 s: {log}");
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://hearth@localhost/{database}?host={}", self.folder.path().display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        if let Err(error) = self.shell.wait() {
            eprintln!("PostgreSQL's shell: {error}");
        }
    }
}

/// The folder of Debian's newest server programs.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let with_server =
        versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("postgres").exists());
    let number = |bin: &PathBuf| -> u32 {
        bin.parent().and_then(Path::file_name).and_then(|name| name.to_str()?.parse().ok()).unwrap_or(0)
    };
    with_server.max_by_key(number).expect(
        "PostgreSQL's server programs are not in /usr/lib/postgresql: \
         apt-get install -y --no-install-recommends postgresql",
    )
}

/// Who runs the server: it refuses root.
fn user() -> Option<User> {
    let named = |name| User::from_name(name).unwrap();
    Uid::effective().is_root().then(|| named("postgres").or_else(|| named("nobody")).unwrap())
}

fn as_user(user: Option<&User>, program: &Path) -> Command {
    let Some(user) = user else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={}", user.uid))
        .arg(format!("--regid={}", user.gid))
        .arg("--clear-groups")
        .arg(program);
    command
}
