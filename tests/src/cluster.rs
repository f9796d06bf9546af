//! A controller and agents on loopback.
//!
//! **What.** Starts, kills and restarts real daemons; imports and prewarms through the API.
//! **Why one file.** It is one list of short verbs on one site, read by whoever writes a test.
//! **Invariants.** Ports and folders belong to one cluster; all of it is gone when it is dropped.

use std::collections::BTreeMap;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::Context as _;
use hearth_agent::local::message::{Refusal, Reply, Request};
use hearth_controller::ingest::sandbox::{SandboxMode, landlock_available};
use hearth_protocol::api::cache::{CacheEntry, Keep, Targets};
use hearth_protocol::api::image::{Image, ImageCreate};
use hearth_protocol::api::location::{JoinTokenCreate, JoinTokenRecord, Location};
use hearth_protocol::api::prewarm::{Prewarm, PrewarmCreate, PrewarmDetails};
use hearth_protocol::api::system::SystemInfo;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::{DiskFormat, EntryStatus, ImageKind, ImageStatus, PrewarmState};

use crate::api::Api;
use crate::daemon::{Daemon, run};
use crate::small_disk::SmallDisk;
use crate::{programs, wait};

/// A daemon that is not up by then never is; generous, because tests share two cores.
pub const START_WAIT_MAX: Duration = Duration::from_secs(60);
/// A small image is imported and fetched by then.
pub const WORK_WAIT_MAX: Duration = Duration::from_secs(180);

mod behind;

/// Lines added to the configuration files.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// To `controller.toml`.
    pub controller: String,
    /// To every `agent.toml`, before the table `[location]`. Replaces the usual budget and floor if it names them.
    pub agent: String,
    /// The controller's state folder is a tmpfs of this size.
    pub controller_disk_bytes: Option<u64>,
    /// The cache folder of every agent is a tmpfs of this size.
    pub agent_disk_bytes: Option<u64>,
    /// Seconds between two pulses; 4 unless said, so that a test does not wait long for an agent to miss its controller.
    pub heartbeat_seconds: Option<u32>,
}

/// Running daemons and their folders.
#[derive(Debug)]
pub struct Cluster {
    /// The API as the first administrator.
    pub api: Api,
    controller: Option<Daemon>,
    agents: Vec<Option<Daemon>>,
    port: u16,
    agent_ports: Vec<u16>,
    extra: Extra,
    /// The controller's first, then one per agent; empty without small disks.
    disks: Vec<SmallDisk>,
    movable_clocks: bool,
    // Last: folders go away after the daemons and what is mounted in them.
    dir: tempfile::TempDir,
}

impl Cluster {
    /// A controller and `agents` agents that are online. Agents are named `host-1`, `host-2` and so on.
    ///
    /// # Errors
    /// With the end of the log of the daemon that did not start.
    pub async fn start(agents: usize) -> anyhow::Result<Self> {
        Self::start_with(agents, Extra::default()).await
    }

    /// As [`Cluster::start`], with more lines in the configuration.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn start_with(agents: usize, extra: Extra) -> anyhow::Result<Self> {
        let base = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let dir = tempfile::Builder::new().prefix("hearth-it-").tempdir_in(base)?;
        let (port, state) = (free_port()?, dir.path().join("controller"));
        std::fs::create_dir(&state)?;
        let small = extra.controller_disk_bytes.map(|bytes| SmallDisk::mount(&state, bytes)).transpose()?;
        let text = format!(
            "state_dir = {:?}\nlisten_https = \"127.0.0.1:{port}\"\nlisten_quic = \"127.0.0.1:{port}\"\nvariants = []\n\
             public_names = [\"127.0.0.1\"]\nsandbox = \"{}\"\nlog_filter = \"info\"\n\
             heartbeat_seconds = {}\n{}",
            state,
            sandbox_mode().as_str(),
            extra.heartbeat_seconds.unwrap_or(4),
            extra.controller
        );
        std::fs::write(dir.path().join("controller.toml"), text)?;
        let config = dir.path().join("controller.toml");
        let printed =
            run(Command::new(&programs::get().controller).arg("init").arg("--config").arg(&config))?;
        let (token, fingerprint) = token_and_fingerprint(&printed)?;
        let url = format!("https://127.0.0.1:{port}");
        std::fs::write(
            dir.path().join("hearth.toml"),
            format!("url = {url:?}\ntoken = {token:?}\nfingerprint = {fingerprint:?}\n"),
        )?;
        let ca = find_ca(&state)?;
        let api = Api::new(&url, &token, &std::fs::read(ca)?)?;
        let mut cluster = Self {
            api,
            controller: None,
            agents: Vec::new(),
            port,
            agent_ports: Vec::new(),
            extra,
            disks: small.into_iter().collect(),
            movable_clocks: false,
            dir,
        };
        cluster.start_controller().await?;
        cluster.enrol(agents).await?;
        Ok(cluster)
    }

    /// Folder of the whole cluster.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// State folder of the controller.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("controller")
    }

    /// Port of the controller, TCP and UDP.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Folder of agent `index` (from 0): `state/`, `cache/`, `agent.toml`, `agent.sock`.
    #[must_use]
    pub fn agent_dir(&self, index: usize) -> PathBuf {
        self.dir.path().join(agent_name(index))
    }

    /// The small disk of the controller, or that of the agent whose cache was made last.
    ///
    /// # Panics
    /// If the cluster was started without.
    #[must_use]
    pub fn disk(&self) -> &SmallDisk {
        self.disks.last().expect("the cluster has a small disk")
    }

    /// The controller, which must run.
    ///
    /// # Panics
    /// If it was killed and not started again.
    pub fn controller(&mut self) -> &mut Daemon {
        self.controller.as_mut().expect("the controller runs")
    }

    /// Agent `index` (from 0), which must run.
    ///
    /// # Panics
    /// If it was killed and not started again.
    pub fn agent(&mut self, index: usize) -> &mut Daemon {
        self.agents[index].as_mut().expect("the agent runs")
    }

    /// Starts the controller and waits until it answers.
    ///
    /// # Errors
    /// With the end of its log if it ends.
    pub async fn start_controller(&mut self) -> anyhow::Result<()> {
        let config = self.dir.path().join("controller.toml");
        let args = ["serve", "--config", config.to_str().context("a path is text")?];
        let log = self.dir.path().join("controller.log");
        let clock = self.movable_clocks.then(|| self.controller_clock()).transpose()?;
        let mut daemon =
            Daemon::start("the controller", &programs::get().controller, &args, &log, clock.as_ref())?;
        wait::until("the controller answers", START_WAIT_MAX, async || {
            daemon.check_alive()?;
            Ok(self.api.get::<SystemInfo>("/system").await.is_ok())
        })
        .await?;
        self.controller = Some(daemon);
        Ok(())
    }

    /// `kill -9` of the controller.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn kill_controller(&mut self) -> anyhow::Result<()> {
        self.controller.take().map_or(Ok(()), |mut daemon| daemon.kill().map(drop))
    }

    /// Runs `hearth-controller` with this cluster's configuration to its end; returns what it printed.
    ///
    /// # Errors
    /// If it fails; with its stderr.
    pub fn administer(&self, args: &[&str]) -> anyhow::Result<String> {
        let config = self.dir.path().join("controller.toml");
        run(Command::new(&programs::get().controller).args(args).arg("--config").arg(config))
    }

    /// Another machine takes the controller's place: same addresses, the empty state folder `state`. The old one must be
    /// killed; nothing is set up or started.
    ///
    /// # Errors
    /// If the configuration cannot be written.
    pub fn move_controller(&mut self, state: &Path) -> anyhow::Result<()> {
        let config = self.dir.path().join("controller.toml");
        let text = std::fs::read_to_string(&config)?;
        let rest = text.lines().filter(|line| !line.starts_with("state_dir = "));
        let text: String = rest.map(|line| format!("{line}\n")).collect();
        std::fs::write(&config, format!("state_dir = {state:?}\n{text}")).context("writing controller.toml")
    }

    /// Enrols `count` more agents with one join token and waits until they are online.
    ///
    /// # Errors
    /// With what the agent or the controller said.
    pub async fn enrol(&mut self, count: usize) -> anyhow::Result<()> {
        if count == 0 {
            return Ok(());
        }
        let body = JoinTokenCreate {
            uses: u32::try_from(count)?,
            ttl_s: 900,
            name_match: Some("host-*".into()),
            presets: BTreeMap::new(),
        };
        let made: JoinTokenRecord = self.api.post("/join-tokens", &body).await?;
        let token = made.token.context("a new join token is shown")?;
        let first = self.agents.len();
        for index in first..first + count {
            self.write_agent(index)?;
            let config = self.agent_dir(index).join("agent.toml");
            let mut command = Command::new(&programs::get().agent);
            command.args(["enrol", "--config"]).arg(config);
            command.args(["--controller", &format!("127.0.0.1:{}", self.port), "--token", &token]);
            run(&mut command)?;
            self.agents.push(None);
            self.start_agent(index)?;
        }
        self.wait_online(first + count).await
    }

    fn write_agent(&mut self, index: usize) -> anyhow::Result<()> {
        let dir = self.agent_dir(index);
        std::fs::create_dir_all(dir.join("state"))?;
        std::fs::create_dir_all(dir.join("cache"))?;
        if let Some(bytes) = self.extra.agent_disk_bytes {
            self.disks.push(SmallDisk::mount(&dir.join("cache"), bytes)?);
        }
        let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        self.agent_ports.push(port);
        let has = |key: &str| self.extra.agent.lines().any(|line| line.starts_with(key));
        let budget = if has("budget") { "" } else { "budget = \"50%\"\n" };
        let floor = if has("floor") { "" } else { "floor = \"64 MiB\"\n" };
        let text = format!(
            "data_dir = {:?}\ncache_dir = {:?}\nsocket = {:?}\ngroup = \"\"\n{budget}{floor}\
             controllers = [\"127.0.0.1:{}\"]\nadvertised = [\"127.0.0.1:{port}\"]\nlisten = \"127.0.0.1:{port}\"\n\
             {}\n[location]\nname = \"{}\"\nplatform = \"kvm\"\nregion = \"local\"\nzone = \"z{}\"\nip = \"127.0.0.1\"\n",
            dir.join("state"),
            dir.join("cache"),
            dir.join("agent.sock"),
            self.port,
            self.extra.agent,
            agent_name(index),
            1 + index % 2,
        );
        std::fs::write(dir.join("agent.toml"), text).context("writing agent.toml")
    }

    /// Starts agent `index`; does not wait for its session.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn start_agent(&mut self, index: usize) -> anyhow::Result<()> {
        let config = self.agent_dir(index).join("agent.toml");
        let args = ["serve", "--config", config.to_str().context("a path is text")?];
        let log = self.dir.path().join(format!("{}.log", agent_name(index)));
        let clock = self.movable_clocks.then(|| self.agent_clock(index)).transpose()?;
        let program = &programs::get().agent;
        self.agents[index] = Some(Daemon::start(&agent_name(index), program, &args, &log, clock.as_ref())?);
        Ok(())
    }

    /// `kill -9` of agent `index`.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn kill_agent(&mut self, index: usize) -> anyhow::Result<()> {
        self.agents[index].take().map_or(Ok(()), |mut daemon| daemon.kill().map(drop))
    }

    /// Waits until `count` locations have a session.
    ///
    /// # Errors
    /// With the end of the log of an agent that ended.
    pub async fn wait_online(&mut self, count: usize) -> anyhow::Result<()> {
        let Self { api, agents, .. } = self;
        wait::until("the agents are online", START_WAIT_MAX, async || {
            agents.iter_mut().flatten().try_for_each(Daemon::check_alive)?;
            let locations: Vec<Location> = api.list("/locations").await?;
            Ok(locations.iter().filter(|location| location.online).count() >= count)
        })
        .await
    }

    /// Sends a file and waits until the import ended, well or not.
    ///
    /// # Errors
    /// What the API says.
    pub async fn import_ended(&self, file: &Path, create: &ImageCreate) -> anyhow::Result<Image> {
        let made: Image = self.api.post("/images", create).await?;
        let _: Image = self.api.put_file(&format!("/images/{}/file", made.id), file).await?;
        wait::for_some("the import ends", WORK_WAIT_MAX, async || {
            let image: Image = self.api.get(&format!("/images/{}", made.id)).await?;
            Ok(matches!(image.status, ImageStatus::Active | ImageStatus::Killed).then_some(image))
        })
        .await
    }

    /// Sends a file and waits until the image is active. An `.iso` file is imported as ISO.
    ///
    /// # Errors
    /// The reason if the import was killed.
    pub async fn import(&self, file: &Path, name: &str) -> anyhow::Result<Image> {
        let format = file.extension().filter(|ending| *ending == "iso").map(|_| DiskFormat::Iso);
        let create = ImageCreate { name: name.to_owned(), format, ..ImageCreate::default() };
        let image = self.import_ended(file, &create).await?;
        anyhow::ensure!(image.status == ImageStatus::Active, "the import of {name} failed: {}", image.reason);
        Ok(image)
    }

    /// Starts a job over all locations.
    ///
    /// # Errors
    /// What the API says.
    pub async fn prewarm(&self, image: ImageId, targets: Targets, keep: Keep) -> anyhow::Result<Prewarm> {
        let body = PrewarmCreate {
            image: Some(image),
            host_image: None,
            targets,
            priority: None,
            deadline: None,
            start: None,
            rate_bytes_per_s: None,
            keep,
            dry_run: false,
        };
        self.api.post("/prewarms", &body).await
    }

    /// Waits until a job ended.
    ///
    /// # Errors
    /// If it does not in time.
    pub async fn prewarm_ended(&self, job: &Prewarm) -> anyhow::Result<PrewarmDetails> {
        wait::for_some("the prewarm job ends", WORK_WAIT_MAX, async || {
            let job: PrewarmDetails = self.api.get(&format!("/prewarms/{}", job.id)).await?;
            let ended = matches!(
                job.prewarm.state,
                PrewarmState::Done | PrewarmState::Failed | PrewarmState::Cancelled
            );
            Ok(ended.then_some(job))
        })
        .await
    }

    /// Puts an image on every location and waits until all copies are verified.
    ///
    /// # Errors
    /// With the targets if the job failed.
    pub async fn warm_all(&self, image: &Image) -> anyhow::Result<PrewarmDetails> {
        let everywhere = Targets { all: true, ..Targets::default() };
        let job = self.prewarm(image.id, everywhere, Keep::default()).await?;
        let ended = self.prewarm_ended(&job).await?;
        anyhow::ensure!(ended.prewarm.state == PrewarmState::Done, "the job ended as {ended:#?}");
        Ok(ended)
    }

    /// The cache list of one image, in the order of the locations' names.
    ///
    /// # Errors
    /// What the API says.
    pub async fn entries(&self, image: ImageId) -> anyhow::Result<Vec<CacheEntry>> {
        let mut entries: Vec<CacheEntry> = self.api.list(&format!("/cache?image={image}")).await?;
        entries.sort_by(|a, b| a.location_name.cmp(&b.location_name));
        Ok(entries)
    }

    /// Waits until the entry of an image at agent `index` has a status.
    ///
    /// # Errors
    /// If it does not in time.
    pub async fn wait_entry(
        &self,
        image: ImageId,
        index: usize,
        status: EntryStatus,
    ) -> anyhow::Result<CacheEntry> {
        let name = agent_name(index);
        wait::for_some(&format!("the entry at {name} is {status}"), WORK_WAIT_MAX, async || {
            let entries = self.entries(image).await?;
            Ok(entries.into_iter().find(|entry| entry.location_name == name && entry.status == status))
        })
        .await
    }

    /// Where agent `index` keeps the copy of an image.
    ///
    /// # Errors
    /// If the image has no content yet.
    pub fn cached_file(&self, image: &Image, index: usize) -> anyhow::Result<PathBuf> {
        let content = image.content.context("an active image has a content")?.to_string();
        let ending = if image.kind == ImageKind::Iso { "file" } else { "raw" };
        let (folder, _) = content.split_at(2);
        Ok(self.agent_dir(index).join("cache/objects").join(folder).join(format!("{content}.{ending}")))
    }

    /// The objects in the cache of agent `index`: content id and file.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn objects(&self, index: usize) -> anyhow::Result<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        for folder in std::fs::read_dir(self.agent_dir(index).join("cache/objects"))? {
            for file in std::fs::read_dir(folder?.path())? {
                let path = file?.path();
                let content = path.file_stem().and_then(|name| name.to_str()).context("a name is text")?;
                found.push((content.to_owned(), path));
            }
        }
        Ok(found)
    }

    /// Asks agent `index` on its local socket; blocks.
    ///
    /// # Errors
    /// The agent's refusal, or that it cannot be reached.
    pub fn ask_agent(&self, index: usize, request: &Request) -> Result<Reply, Refusal> {
        hearth_agent::local::client::ask(&self.agent_dir(index).join("agent.sock"), request)
    }

    /// Runs `hearth-agent` with the configuration of agent `index`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn hearth_agent(&self, index: usize, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(&programs::get().agent);
        command.args(args).arg("--config").arg(self.agent_dir(index).join("agent.toml"));
        command.output().context("starting hearth-agent")
    }

    /// Runs `hearth-controller` with the configuration of this controller.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn hearth_controller(&self, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(&programs::get().controller);
        command.args(args).arg("--config").arg(self.dir.path().join("controller.toml"));
        command.output().context("starting hearth-controller")
    }

    /// Runs the command line against this controller.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn hearth(&self, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(&programs::get().hearth);
        command.arg("--config").arg(self.dir.path().join("hearth.toml")).args(args);
        command.env_remove("HEARTH_URL").env_remove("HEARTH_TOKEN").env_remove("HEARTH_FINGERPRINT");
        if self.movable_clocks {
            command.envs(self.controller_clock()?.environment());
        }
        command.output().context("starting hearth")
    }
}

/// How imports are confined: as in production, wherever the kernel can.
fn sandbox_mode() -> SandboxMode {
    if landlock_available() { SandboxMode::Required } else { SandboxMode::BestEffort }
}

/// Name of agent `index` (from 0).
#[must_use]
pub fn agent_name(index: usize) -> String {
    format!("host-{}", index + 1)
}

fn free_port() -> anyhow::Result<u16> {
    for _ in 0..50 {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let port = tcp.local_addr()?.port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port of loopback is free for TCP and UDP")
}

/// The CA's certificate, wherever in the state folder it is.
fn find_ca(state: &Path) -> anyhow::Result<PathBuf> {
    let mut folders = vec![state.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_name() == "ca.crt" {
                return Ok(entry.path());
            }
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    anyhow::bail!("no ca.crt below {}", state.display())
}

fn token_and_fingerprint(printed: &str) -> anyhow::Result<(String, String)> {
    let is_hex = |word: &&str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let words: Vec<&str> = printed.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let token = words.iter().find(|word| word.strip_prefix("hrt_").as_ref().is_some_and(is_hex));
    let fingerprint = words.iter().find(|word| is_hex(word));
    match (token, fingerprint) {
        (Some(token), Some(fingerprint)) => Ok(((*token).to_owned(), (*fingerprint).to_owned())),
        _ => anyhow::bail!("init printed no token or no fingerprint: {printed}"),
    }
}
