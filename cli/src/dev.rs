//! `hearth dev`: a controller and some agents on this machine, and the main job run once.
//!
//! **What.** Starts the real daemons that stand beside this program, on loopback and free ports; makes a join token
//! through the API, enrols the agents, imports an image (one that it makes, or `--image`), prewarms it everywhere and
//! shows the cache list. Then it stays until Ctrl-C, or with `--once` ends with the result as exit code.
//! **Why real processes.** What is tried out here is what is installed: the same programs, files, ports and API.
//! **Invariants.** No child outlives this process, however that ends. A folder that was not asked for with `--data` is
//! gone at the end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use hearth_protocol::api::cache::{CacheEntry, Targets};
use hearth_protocol::api::image::{Image, ImageCreate};
use hearth_protocol::api::location::{JoinTokenCreate, JoinTokenRecord, Location};
use hearth_protocol::api::prewarm::{Prewarm, PrewarmCreate};
use hearth_protocol::api::system::SystemInfo;
use hearth_protocol::words::{EntryStatus, ImageStatus};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Global;
use crate::client::Client;
use crate::config::{self, Config};
use crate::failure::{Exit, Failure};
use crate::names::PrewarmRef;
use crate::output::Out;
use crate::progress::Mode;
use crate::{cache, clock, image, prewarm};

mod children;
mod disk;
mod setup;

use children::Children;
use setup::Setup;

/// Most agents on one machine: each is a process with its own cache.
const AGENTS_MAX: u16 = 64;
/// A daemon that is not ready by then will not be.
const READY_WAIT_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Run a controller and some agents on this machine.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth dev
  hearth dev --agents 5 --image debian-12.qcow2
  hearth dev --data ./dev-data      # is kept, and used again next time
  hearth dev --once                 # for scripts: ends when every copy is verified")]
pub(crate) struct Dev {
    /// How many agents, each with its own cache
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(AGENTS_MAX)))]
    agents: u16,
    /// Disk image or ISO file (default: a 256 MiB disk that is made for it)
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Folder that is kept (default: one that is removed at the end)
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// End when every copy is verified: exit code 0, or 7 if some are not
    #[arg(long)]
    once: bool,
}

impl Dev {
    /// Starts everything, runs the main job, and stops everything.
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<Exit> {
        let out = global.out();
        let mode = Mode::of_stderr(global.quiet);
        let folder = Folder::open(self.data.as_deref())?;
        let setup = Setup::new(folder.path(), self.agents)?;
        let mut children = Children::new(folder.is_temporary().then(|| folder.path()))?;
        let ended = tokio::select! {
            ended = Box::pin(self.work(&setup, &mut children, out, mode)) => ended,
            name = stop_signal() => {
                out.remark(&format!("\n{name}: stopping"))?;
                Ok(if self.once { Exit::Failed } else { Exit::Ok })
            }
        };
        children.stop().await;
        if let Err(error) = &ended {
            folder.keep_logs_of(error);
        }
        ended
    }

    async fn work(
        &self,
        setup: &Setup,
        children: &mut Children,
        out: Out,
        mode: Mode,
    ) -> anyhow::Result<Exit> {
        let client = self.start_controller(setup, children, out).await?;
        self.start_agents(setup, children, &client, out).await?;
        let main_job = self.main_job(setup, &client, out, mode);
        let exit = children.unless_one_ends(Box::pin(main_job)).await?;
        if self.once {
            return Ok(exit);
        }
        out.say(&setup.try_next(&self.image_name()?))?;
        children.unless_one_ends(std::future::pending()).await
    }

    async fn start_controller(
        &self,
        setup: &Setup,
        children: &mut Children,
        out: Out,
    ) -> anyhow::Result<Client> {
        out.remark(&format!("data in {}", setup.root().display()))?;
        let client_config = setup.init_controller(children).await?;
        children.start("controller", &setup.controller_serve(), &setup.log("controller")).await?;
        let client = Client::new(&client_config)?;
        let ready =
            until("the controller", async || match client.get::<SystemInfo>(&["system"], &[]).await {
                Ok(_) => Ok(true),
                Err(error) => match error.downcast_ref::<Failure>() {
                    Some(failure) if failure.exit == Exit::Unreachable => Ok(false),
                    _ => Err(error),
                },
            });
        children.unless_one_ends(Box::pin(ready)).await?;
        out.remark(&format!("controller   {}", client.base()))?;
        Ok(client)
    }

    async fn start_agents(
        &self,
        setup: &Setup,
        children: &mut Children,
        client: &Client,
        out: Out,
    ) -> anyhow::Result<()> {
        let new = setup.agents_to_enrol();
        if !new.is_empty() {
            let body = JoinTokenCreate {
                uses: u32::try_from(new.len()).unwrap_or(u32::MAX),
                ttl_s: 900,
                name_match: None,
                presets: std::collections::BTreeMap::new(),
            };
            let made: JoinTokenRecord =
                client.post(&["join-tokens"], &body).await.context("making a join token")?;
            let token = made.token.context("the controller made a join token but did not show it")?;
            for agent in new {
                setup.enrol(children, agent, &token).await?;
            }
        }
        for agent in setup.agents() {
            let name = Setup::agent_name(agent);
            children.start(&name, &setup.agent_serve(agent), &setup.log(&name)).await?;
        }
        let wanted = usize::from(self.agents);
        let ready = until("the agents", async || {
            let locations: Vec<Location> = client.list(&["locations"], &[], None).await?;
            Ok(locations.iter().filter(|location| location.online).count() >= wanted)
        });
        children.unless_one_ends(Box::pin(ready)).await?;
        out.remark(&format!("agents       {wanted} enrolled and online"))
    }

    async fn main_job(&self, setup: &Setup, client: &Client, out: Out, mode: Mode) -> anyhow::Result<Exit> {
        let image = self.imported(setup, client, out, mode).await?;
        let body = PrewarmCreate {
            image: Some(image.id),
            host_image: None,
            targets: Targets { all: true, ..Targets::default() },
            priority: None,
            deadline: None,
            start: None,
            rate_bytes_per_s: None,
            keep: hearth_protocol::api::cache::Keep::default(),
            dry_run: false,
        };
        let began = clock::monotonic();
        let job: Prewarm = client.post(&["prewarms"], &body).await.context("starting the prewarm job")?;
        let ended = prewarm::watch(client, PrewarmRef::Job(job.id), mode).await?;
        let took = clock::monotonic().duration_since(began);
        let entries: Vec<CacheEntry> =
            client.list(&["cache"], &[("image", Some(image.id.to_string()))], None).await?;
        out.list(&entries, &cache::grid(&entries))?;
        let active = entries.iter().filter(|entry| entry.status == EntryStatus::Active).count();
        let text = format!(
            "prewarm {} in {:.1} s: {active} of {} copies verified",
            ended.state,
            took.as_secs_f64(),
            self.agents
        );
        out.remark(&text)?;
        Ok(if active >= usize::from(self.agents) { Exit::Ok } else { Exit::Incomplete })
    }

    fn image_name(&self) -> anyhow::Result<String> {
        self.image.as_deref().map_or_else(|| Ok(disk::NAME.to_owned()), image_name)
    }

    /// The image of an earlier run in the same folder, or a new one.
    async fn imported(&self, setup: &Setup, client: &Client, out: Out, mode: Mode) -> anyhow::Result<Image> {
        let name = self.image_name()?;
        let there: Vec<Image> = client.list(&["images"], &[("name", Some(name.clone()))], None).await?;
        let usable = |image: &&Image| image.name == name && image.status == ImageStatus::Active;
        if let Some(image) = there.iter().find(usable) {
            out.remark(&format!("image        {name} is there already"))?;
            return Ok(image.clone());
        }
        let file = match &self.image {
            Some(file) => file.clone(),
            None => disk::make(setup.root()).await?,
        };
        let record = ImageCreate { name, format: image::format_of(&file), ..ImageCreate::default() };
        let upload = image::upload(client, &file, &record, mode, &image::Begun::default()).await?;
        image::wait_active(client, upload).await
    }
}

fn image_name(file: &Path) -> anyhow::Result<String> {
    let name = file.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
    let readable = name.filter(|_| file.is_file());
    let wrong = || Failure::new(Exit::Usage, format!("{} is no file that can be imported", file.display()));
    Ok(readable.ok_or_else(|| wrong().hint("name a disk image or an ISO file"))?)
}

/// Asks again and again until the answer is yes.
async fn until(what: &str, mut ask: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let began = clock::monotonic();
    while !ask().await? {
        if clock::monotonic().duration_since(began) > READY_WAIT_MAX {
            anyhow::bail!("{what} did not get ready within {} s", READY_WAIT_MAX.as_secs());
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    Ok(())
}

/// The name of the first signal that asks this process to end.
async fn stop_signal() -> &'static str {
    let wait = async |kind: SignalKind, name: &'static str| {
        match signal(kind) {
            Ok(mut stream) => drop(stream.recv().await),
            // Without a handler the signal keeps its default action, which ends the process.
            Err(_) => std::future::pending().await,
        }
        name
    };
    tokio::select! {
        name = wait(SignalKind::interrupt(), "interrupted") => name,
        name = wait(SignalKind::terminate(), "terminated") => name,
        name = wait(SignalKind::hangup(), "terminal closed") => name,
    }
}

/// The data folder: kept if it was named, else removed at the end.
#[derive(Debug)]
enum Folder {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Folder {
    fn open(named: Option<&Path>) -> anyhow::Result<Self> {
        match named {
            Some(path) => {
                std::fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
                let path = path.canonicalize().with_context(|| format!("finding {}", path.display()))?;
                Ok(Self::Kept(path))
            }
            None => {
                // /tmp is often memory; images belong on a disk.
                let chosen = std::env::var_os("TMPDIR").map(PathBuf::from);
                let base = chosen.unwrap_or_else(|| PathBuf::from("/var/tmp"));
                let base = if base.is_dir() { base } else { std::env::temp_dir() };
                let made = tempfile::Builder::new().prefix("hearth-dev-").tempdir_in(&base);
                Ok(Self::Temporary(made.with_context(|| format!("making a folder in {}", base.display()))?))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }

    const fn is_temporary(&self) -> bool {
        matches!(self, Self::Temporary(_))
    }

    /// After a failure that is not the user's the folder is worth more than the room it takes.
    fn keep_logs_of(self, error: &anyhow::Error) {
        let theirs = error.downcast_ref::<Failure>().is_some_and(|failure| failure.exit == Exit::Usage);
        if let (Self::Temporary(dir), false) = (self, theirs) {
            let path = dir.keep();
            let remark = format!("logs are kept in {}", path.join("log").display());
            drop(Out::new(crate::output::Format::Table, false).remark(&remark));
            for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
                if entry.file_name() != "log" {
                    let removed = if entry.path().is_dir() {
                        std::fs::remove_dir_all(entry.path())
                    } else {
                        std::fs::remove_file(entry.path())
                    };
                    drop(removed);
                }
            }
        }
    }
}

/// The client's configuration in a data folder.
fn client_config_path(root: &Path) -> PathBuf {
    root.join("hearth.toml")
}

/// The client's configuration of an earlier run.
fn stored_client_config(root: &Path) -> anyhow::Result<Option<config::ConfigFile>> {
    let path = client_config_path(root);
    if !path.exists() {
        return Ok(None);
    }
    config::load(&path, true, |_| None).map(Some)
}

/// Stores and checks the client's configuration.
fn store_client_config(root: &Path, file: &config::ConfigFile) -> anyhow::Result<Config> {
    config::store(&client_config_path(root), file)?;
    Ok(Config::from_file(file)?)
}
