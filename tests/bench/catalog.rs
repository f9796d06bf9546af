//! `catalog`: a catalog of 100,000 images, 1,000,000 copies and 1,000,000 rows of the log, on both engines.
//!
//! **What.** Fills a database once ([`fill`]), starts the real controller on it, asks what people and programs ask ([`ask`])
//! through HTTPS, and prints median and 99th percentile of each request and the controller's peak memory.
//! **Why the chain is verified too.** A log that was filled wrongly would be another log than the store's.
//! **Invariants.** A filled database is used again as long as the schema and the rows are the same. No agent runs: locations
//! count as alive because their last sign of life is set before each run.

mod ask;
mod fill;
mod place;
mod rows;

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use hearth_controller::clock;
use hearth_tests::api::Api;
use hearth_tests::daemon::{Daemon, run};
use hearth_tests::wait;
use serde_json::{Value, json};

use self::ask::{Figures, Who, percentile};
use self::place::{Engine, Place};
use crate::measure;

/// The controller reads a million entries before it answers.
const START_MAX: Duration = Duration::from_secs(300);
/// One location in so many is silent.
const SILENT_EVERY: u64 = 50;

/// Runs both engines, or the one whose name is given; only requests whose name holds `only`.
pub(crate) fn run_all(programs: &Path, only: &str, times: usize) -> Result<()> {
    let parent = programs.parent().context("programs stand in target/PROFILE")?.join("bench-catalog");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for engine in [Engine::Sqlite, Engine::Postgres] {
        let word = only.strip_prefix(engine.word());
        let other = [Engine::Sqlite, Engine::Postgres].iter().any(|other| only.starts_with(other.word()));
        if word.is_some() || !other {
            let only = word.unwrap_or(only).trim_start_matches(':');
            runtime.block_on(one(&parent, programs, engine, only, times))?;
        }
    }
    Ok(())
}

async fn one(parent: &Path, programs: &Path, engine: Engine, only: &str, times: usize) -> Result<()> {
    let place = prepared(parent, programs, engine).await?;
    alive(&place).await?;
    let port = free_port()?;
    let config = configure(&place, port)?;
    let log = place.folder.join("controller.log");
    let args = ["serve", "--config", config.to_str().context("a path is text")?];
    let (begun, mut daemon) = measure::timed(|| {
        Daemon::start("the controller", &programs.join("hearth-controller"), &args, &log, None)
    })?;
    let token = std::fs::read_to_string(place.folder.join("token"))?;
    let ca = std::fs::read(place.folder.join("state/ca/ca.crt"))?;
    let api = || Api::new(&format!("https://127.0.0.1:{port}"), &token, &ca);
    let system = (0..8).map(|_| api()).collect::<Result<Vec<_>>>()?;
    wait::until("the controller answers", START_MAX, async || {
        daemon.check_alive()?;
        Ok(system[0].get::<Value>("/whoami").await.is_ok())
    })
    .await?;
    println!(
        "{}: ready after {begun:.1} s, VmHWM {} MiB",
        engine.word(),
        measure::status_kib(daemon.pid(), "VmHWM:")? / 1024
    );
    let member = member(&system[0]).await?;
    let member: Vec<Api> = system.iter().map(|api| api.with_token(&member)).collect();
    println!(
        "{:44} {:8} {:8} {:>5} {:>9} {:>9} {:>9} {:>9}",
        "request", "who", "engine", "rows", "median", "p99", "median x8", "p99 x8"
    );
    let mut slow = 0;
    for ask in ask::asks().iter().filter(|ask| ask.name.contains(only)) {
        let clients = if ask.who == Who::System { &system } else { &member };
        let figures = ask::measure(clients, ask, times).await.with_context(|| ask.name)?;
        slow += u32::from(print(engine, ask, &figures));
    }
    println!("{}: {slow} requests above {MEDIAN_MS_MAX} ms (median) or {P99_MS_MAX} ms (p99)", engine.word());
    if only.is_empty() {
        verify(&system[0]).await?;
    }
    println!(
        "{}: peak memory {} MiB (VmHWM {} MiB)",
        engine.word(),
        measure::peak_mib(daemon.pid())?,
        measure::status_kib(daemon.pid(), "VmHWM:")? / 1024
    );
    daemon.stop(Duration::from_secs(60)).await?;
    Ok(())
}

/// What one client may wait.
const MEDIAN_MS_MAX: f64 = 50.0;
const P99_MS_MAX: f64 = 150.0;

/// Prints a line; says whether the request was too slow.
fn print(engine: Engine, ask: &ask::Ask, figures: &Figures) -> bool {
    let (median, p99) = (percentile(&figures.alone_ms, 50), percentile(&figures.alone_ms, 99));
    let (median_8, p99_8) = (percentile(&figures.together_ms, 50), percentile(&figures.together_ms, 99));
    let slow = median > MEDIAN_MS_MAX || p99 > P99_MS_MAX;
    let who = if ask.who == Who::System { "system" } else { "member" };
    let mark = if slow { " SLOW" } else { "" };
    println!(
        "{:44} {who:8} {:8} {:>5} {median:>9.2} {p99:>9.2} {median_8:>9.2} {p99_8:>9.2}{mark}",
        ask.name,
        engine.word(),
        figures.rows
    );
    slow
}

/// The place with a filled database: that of an earlier run, if schema and rows are the same.
async fn prepared(parent: &Path, programs: &Path, engine: Engine) -> Result<Place> {
    let schema = schema(parent, programs).await?;
    let text = [include_str!("catalog/rows.rs"), include_str!("catalog/fill.rs")].concat();
    let wanted = format!("{schema} {}", blake3::hash(text.as_bytes()));
    let stamp = parent.join(engine.word()).join("filled");
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Place::open(parent, engine);
    }
    match std::fs::remove_dir_all(parent.join(engine.word())) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    println!("{}: filling the database, once; some minutes", engine.word());
    let place = Place::open(parent, engine)?;
    init(&place, programs)?;
    let (seconds, ()) = {
        #[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
        let start = std::time::Instant::now();
        fill::fill(&place).await?;
        (start.elapsed().as_secs_f64(), ())
    };
    println!("{}: filled in {seconds:.0} s", engine.word());
    std::fs::write(stamp, wanted)?;
    Ok(place)
}

/// What identifies this program's schema, read from a database that it made.
async fn schema(parent: &Path, programs: &Path) -> Result<String> {
    std::fs::create_dir_all(parent)?;
    let folder = tempfile::tempdir_in(parent)?;
    let place = Place::open(folder.path(), Engine::Sqlite)?;
    init(&place, programs)?;
    let mut connection = fill::connect(&place).await?;
    let found = fill::text(&mut connection, "SELECT value FROM meta WHERE key = 'schema_blake3'").await?;
    found.context("the database says of which schema it is")
}

/// State folder, schema and first token.
fn init(place: &Place, programs: &Path) -> Result<()> {
    let config = configure(place, 0)?;
    let printed =
        run(Command::new(programs.join("hearth-controller")).arg("init").arg("--config").arg(config))?;
    let words = printed.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let token = words.into_iter().find(|word| word.starts_with("hrt_")).context("init prints a token")?;
    Ok(std::fs::write(place.folder.join("token"), token)?)
}

/// Writes the configuration; the database's address is another one for each run.
fn configure(place: &Place, port: u16) -> Result<std::path::PathBuf> {
    let config = place.folder.join("controller.toml");
    let text = format!(
        "state_dir = {:?}\ndatabase_url = {:?}\nlisten_https = \"127.0.0.1:{port}\"\nlisten_quic = \"127.0.0.1:{port}\"\n\
         public_names = [\"127.0.0.1\"]\nsandbox = \"best-effort\"\nlog_filter = \"info\"\napi_requests_per_second = 0\n",
        place.folder.join("state"),
        place.url()
    );
    std::fs::write(&config, text)?;
    Ok(config)
}

/// Lets every location but a few have spoken just now, and for the hours of this run.
async fn alive(place: &Place) -> Result<()> {
    let mut connection = fill::connect(place).await?;
    let now_us = clock::unix_us() + 12 * 3600 * 1_000_000;
    fill::run(&mut connection, format!("UPDATE location SET last_seen_us = {now_us}")).await?;
    for n in (0..rows::LOCATIONS).step_by(usize::try_from(SILENT_EVERY)?) {
        let silent = format!("UPDATE location SET last_seen_us = 1 WHERE id = '{}'", rows::location(n));
        fill::run(&mut connection, silent).await?;
    }
    Ok(())
}

/// A token of a member of one project.
async fn member(api: &Api) -> Result<String> {
    let project = rows::PROJECT_OF_MEMBER;
    let (domain, project) = (rows::domain(rows::domain_of(project)), rows::project(project));
    let body = json!({ "name": "member", "role": "member", "scope": "project", "domain": domain, "project": project });
    let made: Value = api.post("/tokens", &body).await?;
    made["token"].as_str().map(str::to_owned).context("a new token is shown")
}

/// The controller finds the log intact.
async fn verify(api: &Api) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
    let start = std::time::Instant::now();
    let found: Value = api.get("/operations/verify").await?;
    anyhow::ensure!(found["intact"] == true, "the chain of the filled log is broken: {found}");
    println!("log verify: {} rows intact, {:.1} s", found["sealed"], start.elapsed().as_secs_f64());
    Ok(())
}

fn free_port() -> Result<u16> {
    for _ in 0..50 {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port of loopback is free for TCP and UDP")
}
