//! A controller at the source and an agent at every host of the bed.
//!
//! **What.** [`Site::start`] sets them up and enrols all agents with one join token; then it imports and kills.
//! **Why not the cluster of the tests.** That one lives on loopback, where no link is narrow.
//! **Invariants.** Caches and states of agents are in memory, the controller's on disk. All of it ends and is removed when
//! the value is dropped, so that every site begins with empty hosts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hearth_controller::ingest::sandbox::{SandboxMode, landlock_available};
use hearth_protocol::api::image::{Image, ImageCreate};
use hearth_protocol::api::location::{JoinTokenCreate, JoinTokenRecord, Location};
use hearth_protocol::api::system::SystemInfo;
use hearth_protocol::words::ImageStatus;
use hearth_tests::api::Api;
use hearth_tests::daemon::run;
use hearth_tests::wait;

use super::Ground;
use super::bed::{Bed, Node, Running};
use super::settings::Settings;

/// Port of the controller and of every agent: each has an address of its own.
const PORT: u16 = 7440;
/// Dozens of daemons start on two cores.
const START_WAIT_MAX: Duration = Duration::from_secs(180);
/// Longest import.
const IMPORT_WAIT_MAX: Duration = Duration::from_secs(1800);

/// The running daemons. Fields are dropped in this order: the folder goes last.
pub(crate) struct Site<'a> {
    /// The API as the first administrator.
    pub(crate) api: Api,
    agents: Vec<Option<Running>>,
    _controller: Running,
    ground: &'a Ground,
    _folders: Folders,
}

/// Removed with all they hold.
struct Folders(Vec<PathBuf>);

impl Drop for Folders {
    fn drop(&mut self) {
        for folder in &self.0 {
            if let Err(error) = std::fs::remove_dir_all(folder) {
                eprintln!("{} stays: {error}", folder.display());
            }
        }
    }
}

/// What an agent may take of its link.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Caps {
    /// So many Mbit/s.
    Fixed { up: u32, down: u32 },
    /// As the agent decides, and with the lines for it that the environment gave.
    Adaptive,
}

impl Caps {
    /// As much as the links carry.
    pub(crate) const fn of_links(settings: &Settings) -> Self {
        Self::Fixed { up: settings.rate_mbit, down: settings.rate_mbit }
    }
}

impl<'a> Site<'a> {
    /// A controller, and agents with empty caches that are online.
    pub(crate) async fn start(ground: &'a Ground, caps: Caps) -> Result<Self> {
        let (state, hosts) = (ground.room.slow().join("controller"), ground.room.fast().join("hosts"));
        std::fs::create_dir_all(&state)?;
        std::fs::create_dir_all(&hosts)?;
        let folders = Folders(vec![state.clone(), hosts]);
        let config = state.join("controller.toml");
        std::fs::write(&config, controller_toml(ground, &state))?;
        let controller = ground.settings.programs.join("hearth-controller");
        let command = |word: &str| {
            let mut command = ground.bed.command(Node::Source, &controller);
            command.args([word, "--config"]).arg(&config);
            command
        };
        let printed = run(&mut command("init"))?;
        let words = printed.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let token = words.into_iter().find(|word| word.starts_with("hrt_")).context("init prints a token")?;
        let ca = std::fs::read(state.join("state/ca/ca.crt"))?;
        let api = Api::new(&format!("https://{}:{PORT}", Node::Source.address()), token, &ca)?;
        let mut running = Bed::start(&mut command("serve"), &ground.room.log("controller"))?;
        wait::until("the controller answers", START_WAIT_MAX, async || {
            alive("the controller", &mut running)?;
            Ok(api.get::<SystemInfo>("/system").await.is_ok())
        })
        .await?;
        let mut site = Self { api, agents: Vec::new(), _controller: running, ground, _folders: folders };
        site.enrol(caps).await?;
        Ok(site)
    }

    async fn enrol(&mut self, caps: Caps) -> Result<()> {
        let hosts = self.ground.settings.hosts;
        let body = JoinTokenCreate {
            uses: u32::try_from(hosts)?,
            ttl_s: 900,
            name_match: Some("host-*".into()),
            presets: BTreeMap::new(),
        };
        let made: JoinTokenRecord = self.api.post("/join-tokens", &body).await?;
        let token = made.token.context("a new join token is shown")?;
        for host in 1..=hosts {
            let folder = self.host_folder(host);
            std::fs::create_dir_all(folder.join("state"))?;
            std::fs::create_dir_all(folder.join("cache"))?;
            std::fs::write(folder.join("agent.toml"), agent_toml(self.ground, host, caps, &folder))?;
            let mut command = self.agent_command(host, "enrol");
            command.args(["--controller", &format!("{}:{PORT}", Node::Source.address()), "--token", &token]);
            run(&mut command)?;
            self.agents.push(None);
            self.restart(host)?;
        }
        let Self { api, agents, .. } = self;
        wait::until("the agents are online", START_WAIT_MAX, async || {
            agents.iter_mut().flatten().try_for_each(|agent| alive("an agent", agent))?;
            let locations: Vec<Location> = api.list("/locations").await?;
            Ok(locations.iter().filter(|location| location.online).count() >= hosts)
        })
        .await
    }

    fn host_folder(&self, host: usize) -> PathBuf {
        self.ground.room.fast().join("hosts").join(host.to_string())
    }

    fn agent_command(&self, host: usize, word: &str) -> std::process::Command {
        let program = self.ground.settings.programs.join("hearth-agent");
        let mut command = self.ground.bed.command(Node::Host(host), &program);
        command.args([word, "--config"]).arg(self.host_folder(host).join("agent.toml"));
        command
    }

    /// `kill -9` of an agent.
    pub(crate) fn kill(&mut self, host: usize) -> Result<()> {
        self.agents[host - 1].take().map_or(Ok(()), |mut agent| agent.kill())
    }

    /// Starts an agent; does not wait for its session.
    pub(crate) fn restart(&mut self, host: usize) -> Result<()> {
        let log = self.ground.room.log(&location_name(host));
        self.agents[host - 1] = Some(Bed::start(&mut self.agent_command(host, "serve"), &log)?);
        Ok(())
    }

    /// Sends a file and waits until the image is active.
    pub(crate) async fn import(&self, file: &Path, name: &str) -> Result<Image> {
        let create = ImageCreate { name: name.to_owned(), ..ImageCreate::default() };
        let made: Image = self.api.post("/images", &create).await?;
        let _: Image = self.api.put_file(&format!("/images/{}/file", made.id), file).await?;
        let image = wait::for_some("the import ends", IMPORT_WAIT_MAX, async || {
            let image: Image = self.api.get(&format!("/images/{}", made.id)).await?;
            Ok(matches!(image.status, ImageStatus::Active | ImageStatus::Killed).then_some(image))
        })
        .await?;
        ensure!(image.status == ImageStatus::Active, "the import of {name} failed: {}", image.reason);
        Ok(image)
    }

    /// Where a host keeps the copy of a disk image.
    pub(crate) fn copy_path(&self, host: usize, image: &Image) -> Result<PathBuf> {
        let content = image.content.context("an active image has a content")?.to_string();
        let (folder, _) = content.split_at(2);
        Ok(self.host_folder(host).join("cache/objects").join(folder).join(format!("{content}.raw")))
    }
}

/// Name of the location at a host.
pub(crate) fn location_name(host: usize) -> String {
    format!("host-{host}")
}

fn alive(name: &str, program: &mut Running) -> Result<()> {
    let ended = program.ended()?;
    ensure!(ended.is_none(), "{name} ended: {ended:?}");
    Ok(())
}

fn controller_toml(ground: &Ground, state: &Path) -> String {
    let sandbox = if landlock_available() { SandboxMode::Required } else { SandboxMode::BestEffort };
    let address = Node::Source.address();
    format!(
        "state_dir = {:?}\nlisten_https = \"{address}:{PORT}\"\nlisten_quic = \"{address}:{PORT}\"\n\
         public_names = [\"{address}\"]\nvariants = []\nsandbox = \"{}\"\nlog_filter = \"info\"\n\
         api_requests_per_second = 0\nswarm_source_mbps = {}\n{}\n",
        state.join("state"),
        sandbox.as_str(),
        ground.settings.rate_mbit,
        ground.settings.controller_extra,
    )
}

fn agent_toml(ground: &Ground, host: usize, caps: Caps, folder: &Path) -> String {
    let (settings, address) = (&ground.settings, Node::Host(host).address());
    let caps = match caps {
        Caps::Fixed { up, down } => format!("upload_mbps = {up}\ndownload_mbps = {down}"),
        Caps::Adaptive => settings.adaptive.clone(),
    };
    // All caches share one file system: each may use all of it, and leaves no floor to itself.
    format!(
        "data_dir = {:?}\ncache_dir = {:?}\nsocket = {:?}\ngroup = \"\"\nbudget = \"90%\"\nfloor = \"16 MiB\"\n\
         controllers = [\"{}:{PORT}\"]\nadvertised = [\"{address}:{PORT}\"]\nlisten = \"{address}:{PORT}\"\n\
         nic_mbps = {}\n{caps}\n{}\n\n\
         [location]\nname = \"{}\"\nplatform = \"kvm\"\nregion = \"bed\"\nzone = \"z1\"\nip = \"{address}\"\n",
        folder.join("state"),
        folder.join("cache"),
        folder.join("agent.sock"),
        Node::Source.address(),
        settings.rate_mbit,
        settings.agent_extra,
        location_name(host),
    )
}
