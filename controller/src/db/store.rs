//! The store itself: connections, the one way to write, the way to read.
//!
//! **What.** [`Db`] holds two pools. [`Db::write_tx`] runs a closure in a transaction; readers use the other pool.
//!
//! **Why the closure may run again.** PostgreSQL's SERIALIZABLE finds lost updates by failing one of the two transactions
//! (40001, 40P01); the only cure is to run it again from its first read. A plain `BEGIN` failed 350 of 400 increments on
//! SQLite and silently lost 318 on PostgreSQL. On SQLite one connection and `BEGIN IMMEDIATE` put writers in a row.
//!
//! **Why a [`Tx`] with a lifetime.** `for<'t> FnMut(&'t mut Tx<'a>) -> BoxFuture<'t, _>` carries the implied bound
//! `'a: 't`, which is what lets the future borrow the caller's arguments; with a plain `&'t mut AnyConnection` it could
//! borrow nothing but statics.
//!
//! **Invariants.** The closure has no effects outside the transaction. Changes are announced only after the commit.
//! A future that is dropped rolls back.

use std::cell::Cell;
use std::future::Future;
use std::marker::PhantomData;
use std::path::Path;
use std::str::FromStr as _;
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use hearth_protocol::id::ImageId;
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::{Any, AnyPool, Connection as _, Executor as _, Transaction};
use tokio::sync::broadcast;

use super::changes::{BEHIND_MAX, Change};
use super::error::{DbError, is_conflict};
use super::schema;
use super::sql::{Row, Stmt};
use crate::clock;
use crate::logic::quota::Figures;

/// Readers at the same time. On SQLite each has a page cache of 2 MB; on PostgreSQL each is a server process.
const READERS_MAX: u32 = 8;
/// Writers at the same time on PostgreSQL. More only raises the number of conflicts.
const PG_WRITERS_MAX: u32 = 4;
/// Tries of one transaction before the caller hears of it. With the pause below: about 10 s under constant conflict.
const WRITE_ATTEMPTS_MAX: u32 = 60;
/// Longest pause between two tries.
const PAUSE_MS_MAX: u64 = 200;
/// Longest wait for a connection: a stuck database must become an error, not a queue of requests.
const ACQUIRE_MAX: Duration = Duration::from_secs(30);
/// How long SQLite waits for another process's lock (a backup, a second controller), in milliseconds.
const SQLITE_PRAGMAS: &str = "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;";
/// Every statement looks up few rows of tables that memory mostly holds: compiling one takes longer than running it, and a
/// page that is read out of order costs hardly more than the next one. Helpers for one statement start later than it ends.
const POSTGRES_SETTINGS: &str =
    "SET jit = off; SET random_page_cost = 1.1; SET max_parallel_workers_per_gather = 0";

tokio::task_local! {
    /// Whether the call that runs in this task has, or may have, written something.
    static WRITTEN: Cell<bool>;
}

/// Runs `future`; says beside its output whether one of its transactions was, or may have been, committed. What it spawns does
/// not count.
pub async fn noting_writes<F: Future>(future: F) -> (F::Output, bool) {
    let noted = async {
        let output = future.await;
        (output, WRITTEN.with(Cell::get))
    };
    WRITTEN.scope(Cell::new(false), noted).await
}

/// Notes that something was written, if anybody wants to know.
fn note_write() {
    // An error says that nobody does.
    WRITTEN.try_with(|written| written.set(true)).ok();
}

/// Which database holds the data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Engine {
    /// A file of this machine.
    Sqlite,
    /// A server.
    Postgres,
}

/// The store. Cheap to clone; all clones are one store.
#[derive(Clone, Debug)]
pub struct Db {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    engine: Engine,
    url: String,
    writer: AnyPool,
    reader: AnyPool,
    changes: broadcast::Sender<Change>,
    limits: OnceLock<Figures>,
}

impl Db {
    /// Opens the database at `place`; an empty one gets this program's schema.
    ///
    /// `place` is a file path (or `sqlite:PATH`; made if missing, its folder must exist) or `postgres://…`.
    ///
    /// # Errors
    /// [`DbError::Address`], [`DbError::Open`], [`DbError::OlderVersion`] (see [`Db::upgrade`]), [`DbError::NewerVersion`], or
    /// a failed statement, after which the database is as before.
    pub async fn open(place: &str) -> Result<Self, DbError> {
        let db = Self::connect_writer(place).await?;
        schema::settle(&db).await?;
        let inner = Arc::into_inner(db.inner).expect("nobody else has seen this store");
        let reader = connect(inner.engine, &inner.url, READERS_MAX, true).await?;
        Ok(Self { inner: Arc::new(Inner { reader, ..inner }) })
    }

    /// A store whose readers use the writer's connections, and whose schema nobody looked at yet.
    pub(super) async fn connect_writer(place: &str) -> Result<Self, DbError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let (engine, url) = address(place)?;
        let (changes, _) = broadcast::channel(BEHIND_MAX);
        let writers = if engine == Engine::Sqlite { 1 } else { PG_WRITERS_MAX };
        let writer = connect(engine, &url, writers, false).await?;
        let (reader, limits) = (writer.clone(), OnceLock::new());
        Ok(Self { inner: Arc::new(Inner { engine, reader, url, writer, changes, limits }) })
    }

    /// Sets the limits of projects that have none of their own; the first call holds. Without it there are none: tools that
    /// work beside the controller are not refused.
    pub fn set_default_limits(&self, limits: Figures) {
        self.inner.limits.get_or_init(|| limits);
    }

    fn default_limits(&self) -> Figures {
        self.inner.limits.get().copied().unwrap_or_default()
    }

    /// The engine that holds the data.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.inner.engine
    }

    /// The address with which the store was opened; it may hold a password.
    pub(super) fn url(&self) -> &str {
        &self.inner.url
    }

    /// Closes all connections; on SQLite the log is merged into the file. Calls that run are finished first.
    pub async fn close(&self) {
        self.inner.writer.close().await;
        self.inner.reader.close().await;
    }

    /// What changes from now on. A reader that falls behind gets `Lagged` and must read everything again.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.inner.changes.subscribe()
    }

    /// Runs `body` in one transaction and commits it if it returns `Ok`; any error rolls it back.
    ///
    /// `body` may run several times: it must have no effect outside `tx` and must not keep what an earlier run read.
    ///
    /// # Errors
    /// What `body` returns; [`DbError::Conflict`] after [`WRITE_ATTEMPTS_MAX`] tries; a failed commit.
    ///
    /// # Cancel safety
    /// Dropped before the commit was sent: nothing happened. Dropped while it commits: it may have happened.
    pub async fn write_tx<'a, T, E, F>(&self, mut body: F) -> Result<T, E>
    where
        F: for<'t> FnMut(&'t mut Tx<'a>) -> BoxFuture<'t, Result<T, E>>,
        E: From<DbError>,
    {
        for attempt in 0..WRITE_ATTEMPTS_MAX {
            let mut tx = self.begin_write().await?;
            let done = match body(&mut tx).await {
                Ok(value) => tx.settle_tenures().await.map(|()| value).map_err(E::from),
                Err(error) => Err(error),
            };
            match done {
                Ok(value) => match tx.commit(&self.inner.changes).await {
                    Ok(()) => {
                        note_write();
                        return Ok(value);
                    }
                    Err(error) if is_conflict(&error) => {}
                    Err(error) => {
                        // The engine may have done it, and its answer was lost.
                        note_write();
                        return Err(DbError::sql("COMMIT", error).into());
                    }
                },
                Err(error) => {
                    let conflict = tx.conflict;
                    tx.roll_back().await;
                    if !conflict {
                        return Err(error);
                    }
                }
            }
            tokio::time::sleep(pause(attempt)).await;
        }
        Err(DbError::Conflict { attempts: WRITE_ATTEMPTS_MAX }.into())
    }

    async fn begin_write<'a>(&self) -> Result<Tx<'a>, DbError> {
        let begin = match self.inner.engine {
            Engine::Sqlite => "BEGIN IMMEDIATE",
            Engine::Postgres => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        };
        let tx = self.inner.writer.begin_with(begin).await.map_err(|error| DbError::sql(begin, error))?;
        Ok(Tx::new(tx, clock::unix_us(), self.default_limits()))
    }

    /// A transaction that reads one snapshot, for calls that need several statements.
    pub(super) async fn begin_read<'a>(&self) -> Result<Tx<'a>, DbError> {
        let begin = match self.inner.engine {
            Engine::Sqlite => "BEGIN",
            Engine::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        };
        let tx = self.inner.reader.begin_with(begin).await.map_err(|error| DbError::sql(begin, error))?;
        Ok(Tx::new(tx, clock::unix_us(), self.default_limits()))
    }

    /// All rows of a reading statement.
    pub(super) async fn rows(&self, stmt: Stmt) -> Result<Vec<Row>, DbError> {
        let (table, text) = (stmt.table(), stmt.as_str().to_owned());
        let rows = stmt.into_query().fetch_all(&self.inner.reader).await;
        let rows = rows.map_err(|error| DbError::sql(&text, error))?;
        Ok(rows.into_iter().map(|row| Row { row, table }).collect())
    }

    /// All rows of a reading statement, each read as it comes: for tables, of which a list of rows as the driver holds them
    /// would take twenty times the memory of what they say.
    pub(super) async fn each<T>(
        &self,
        stmt: Stmt,
        read: impl Fn(&Row) -> Result<T, DbError>,
    ) -> Result<Vec<T>, DbError> {
        let (table, text) = (stmt.table(), stmt.as_str().to_owned());
        let mut rows = stmt.into_query().fetch(&self.inner.reader);
        let mut all = Vec::new();
        while let Some(row) = rows.try_next().await.map_err(|error| DbError::sql(&text, error))? {
            all.push(read(&Row { row, table })?);
        }
        Ok(all)
    }

    /// The first row of a reading statement.
    pub(super) async fn row(&self, stmt: Stmt) -> Result<Option<Row>, DbError> {
        let (table, text) = (stmt.table(), stmt.as_str().to_owned());
        let row = stmt.into_query().fetch_optional(&self.inner.reader).await;
        Ok(row.map_err(|error| DbError::sql(&text, error))?.map(|row| Row { row, table }))
    }
}

/// A transaction that is open. See [`Db::write_tx`].
#[derive(Debug)]
pub struct Tx<'a> {
    tx: Transaction<'static, Any>,
    now_us: i64,
    changes: Vec<Change>,
    conflict: bool,
    limits: Figures,
    scope: PhantomData<&'a ()>,
}

impl Tx<'_> {
    const fn new(tx: Transaction<'static, Any>, now_us: i64, limits: Figures) -> Self {
        Self { tx, now_us, changes: Vec::new(), conflict: false, limits, scope: PhantomData }
    }

    /// Limits of projects that have none of their own.
    pub(super) const fn default_limits(&self) -> Figures {
        self.limits
    }

    /// Images that changed so far.
    pub(super) fn changed_images(&self) -> Vec<ImageId> {
        let image = |change: &Change| match change {
            Change::Image(id) => Some(*id),
            _ => None,
        };
        self.changes.iter().filter_map(image).collect()
    }

    /// When the transaction began, microseconds since the epoch: one time for all its rows.
    #[must_use]
    pub const fn now_us(&self) -> i64 {
        self.now_us
    }

    /// Announces a change after the commit.
    pub(super) fn changed(&mut self, change: Change) {
        if !self.changes.contains(&change) {
            self.changes.push(change);
        }
    }

    /// All rows of a statement.
    pub(super) async fn rows(&mut self, stmt: Stmt) -> Result<Vec<Row>, DbError> {
        let (table, text) = (stmt.table(), stmt.as_str().to_owned());
        let rows = stmt.into_query().fetch_all(&mut *self.tx).await;
        let rows = rows.map_err(|error| self.failed(&text, error))?;
        Ok(rows.into_iter().map(|row| Row { row, table }).collect())
    }

    /// The first row of a statement.
    pub(super) async fn row(&mut self, stmt: Stmt) -> Result<Option<Row>, DbError> {
        let (table, text) = (stmt.table(), stmt.as_str().to_owned());
        let row = stmt.into_query().fetch_optional(&mut *self.tx).await;
        Ok(row.map_err(|error| self.failed(&text, error))?.map(|row| Row { row, table }))
    }

    /// Runs a statement; the number of rows it changed.
    pub(super) async fn run(&mut self, stmt: Stmt) -> Result<u64, DbError> {
        let text = stmt.as_str().to_owned();
        let result = stmt.into_query().execute(&mut *self.tx).await;
        Ok(result.map_err(|error| self.failed(&text, error))?.rows_affected())
    }

    fn failed(&mut self, text: &str, error: sqlx::Error) -> DbError {
        self.conflict |= is_conflict(&error);
        DbError::sql(text, error)
    }

    async fn commit(self, changes: &broadcast::Sender<Change>) -> Result<(), sqlx::Error> {
        self.tx.commit().await?;
        for change in self.changes {
            // An error says that nobody listens.
            drop(changes.send(change));
        }
        Ok(())
    }

    async fn roll_back(self) {
        if let Err(error) = self.tx.rollback().await {
            tracing::debug!(%error, "roll back failed; the connection is closed and the engine rolls back");
        }
    }
}

/// Pause before try `attempt + 1`: doubles up to the largest, a random half of it, so that two rivals part.
fn pause(attempt: u32) -> Duration {
    let most_ms = (2_u64 << attempt.min(10)).min(PAUSE_MS_MAX);
    Duration::from_micros(most_ms * 500 + rand::random_range(0..=most_ms * 500))
}

/// Engine and address of `place`.
fn address(place: &str) -> Result<(Engine, String), DbError> {
    if place.starts_with("postgres://") || place.starts_with("postgresql://") {
        return Ok((Engine::Postgres, place.to_owned()));
    }
    let path = match place.split_once(':') {
        Some(("sqlite", path)) => path.strip_prefix("//").unwrap_or(path),
        Some((scheme, rest)) if rest.starts_with("//") => {
            return Err(DbError::Address { given: scheme.to_owned() });
        }
        _ => place,
    };
    Ok((Engine::Sqlite, sqlite_url(Path::new(path))))
}

/// The driver's address of a file: every byte that has a meaning in addresses is escaped.
pub(super) fn sqlite_url(path: &Path) -> String {
    let mut url = String::from("sqlite://");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => {
                url.push(char::from(*byte))
            }
            other => url.push_str(&format!("%{other:02X}")),
        }
    }
    url + "?mode=rwc"
}

/// The address without user and password, for messages.
pub(super) fn without_secrets(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, after))) => format!("{scheme}://{after}"),
        _ => url.to_owned(),
    }
}

async fn connect(engine: Engine, url: &str, connections: u32, read_only: bool) -> Result<AnyPool, DbError> {
    let failed = |source| DbError::Open { place: without_secrets(url), source };
    let options = AnyConnectOptions::from_str(url).map_err(failed)?;
    let pool =
        AnyPoolOptions::new().max_connections(connections).min_connections(1).acquire_timeout(ACQUIRE_MAX);
    let pool = pool.after_connect(move |connection, _| {
        Box::pin(async move {
            match engine {
                Engine::Sqlite => connection.execute(SQLITE_PRAGMAS).await?,
                Engine::Postgres => connection.execute(POSTGRES_SETTINGS).await?,
            };
            if engine == Engine::Sqlite && read_only {
                connection.execute("PRAGMA query_only = ON").await?;
            }
            Ok(())
        })
    });
    // SQLite ends a transaction by itself when its disk is full; the driver still counts it as open, and its connection
    // would refuse every later BEGIN. Such a connection is closed. (The ping lets a roll back that waits run first.)
    let pool = pool.after_release(|connection, _| {
        Box::pin(async move {
            connection.ping().await?;
            Ok(!connection.is_in_transaction())
        })
    });
    pool.connect_with(options).await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_its_engine() {
        let postgres = "postgres://hearth@db.example/hearth";
        assert_eq!(address(postgres).unwrap(), (Engine::Postgres, postgres.to_owned()));
        for (place, path) in [("/a b/x.db", "/a%20b/x.db"), ("sqlite:///x.db", "/x.db"), ("x?.db", "x%3F.db")]
        {
            assert_eq!(address(place).unwrap(), (Engine::Sqlite, format!("sqlite://{path}?mode=rwc")));
        }
        assert!(matches!(address("mysql://x"), Err(DbError::Address { given }) if given == "mysql"));
    }

    #[test]
    fn messages_show_no_password() {
        assert_eq!(without_secrets("postgres://u:p@ss@h/db"), "postgres://h/db");
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        assert!(pause(0) <= Duration::from_millis(2));
        assert!((0..WRITE_ATTEMPTS_MAX).all(|attempt| pause(attempt) <= Duration::from_millis(PAUSE_MS_MAX)));
    }

    #[tokio::test]
    async fn a_write_is_noted_for_the_call_that_made_it() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(folder.path().join("hearth.db").to_str().unwrap()).await.unwrap();
        let write = |good: bool| {
            db.write_tx(move |_| {
                Box::pin(async move { if good { Ok(()) } else { Err(DbError::Conflict { attempts: 1 }) } })
            })
        };
        write(true).await.unwrap();
        assert!(
            !noting_writes(db.unfinished_jobs()).await.1,
            "a read is no write, and an earlier call is another"
        );
        assert!(!noting_writes(write(false)).await.1, "what was rolled back changed nothing");
        let (answer, written) = noting_writes(async {
            write(true).await?;
            write(false).await
        })
        .await;
        assert!(answer.is_err() && written);
        db.close().await;
    }

    #[tokio::test]
    async fn a_transaction_that_the_engine_ended_does_not_stop_the_writer() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(folder.path().join("hearth.db").to_str().unwrap()).await.unwrap();
        let fill = || {
            db.write_tx(|tx| {
                Box::pin(async move {
                    let stmt = "INSERT INTO filling (text) VALUES (hex(zeroblob(2097152)))";
                    let done = tx.tx.execute(stmt).await;
                    done.map(|_| ()).map_err(|error| DbError::sql(stmt, error))
                })
            })
        };
        db.inner.writer.execute("CREATE TABLE filling (text TEXT)").await.unwrap();
        db.inner.writer.execute("PRAGMA max_page_count = 200").await.unwrap();
        fill().await.unwrap_err();
        db.inner.writer.execute("PRAGMA max_page_count = 1000000").await.unwrap();
        fill().await.unwrap();
    }
}
