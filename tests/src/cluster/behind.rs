//! What a test sees and changes behind the API: clocks, logs, local sockets, identities.
//!
//! **Invariants.** Nothing here asks the controller: what it says must not depend on what is tested.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use hearth_agent::local::client;
use hearth_agent::local::message::{Reply, Request, Status};

use super::{Cluster, START_WAIT_MAX, agent_name};
use crate::daemon::Daemon;
use crate::wall_clock::WallClock;
use crate::{programs, wait};

impl Cluster {
    /// Daemons that are started from now on live by wall clocks that the test can set.
    pub const fn movable_clocks(&mut self) {
        self.movable_clocks = true;
    }

    /// The wall clock of the controller and of command lines; right until it is set.
    ///
    /// # Errors
    /// As [`WallClock::new`].
    pub fn controller_clock(&self) -> anyhow::Result<WallClock> {
        WallClock::new(&self.dir.path().join("controller.clock"))
    }

    /// The wall clock of agent `index`; right until it is set.
    ///
    /// # Errors
    /// As [`WallClock::new`].
    pub fn agent_clock(&self, index: usize) -> anyhow::Result<WallClock> {
        WallClock::new(&self.dir.path().join(format!("{}.clock", agent_name(index))))
    }

    /// Sets all clocks, that of [`Cluster::api`] too.
    ///
    /// # Errors
    /// As [`WallClock::set`].
    pub fn set_clocks(&self, offset_s: i64) -> anyhow::Result<()> {
        self.controller_clock()?.set(offset_s)?;
        (0..self.agents.len()).try_for_each(|index| self.agent_clock(index)?.set(offset_s))?;
        self.api.set_clock(offset_s);
        Ok(())
    }

    /// All that agent `index` has logged so far; empty if it cannot be read.
    #[must_use]
    pub fn agent_log(&self, index: usize) -> String {
        self.log(&agent_name(index))
    }

    /// What agent `index` has logged behind byte `from`.
    #[must_use]
    pub fn agent_log_from(&self, index: usize, from: usize) -> String {
        self.agent_log(index).get(from..).unwrap_or_default().to_owned()
    }

    /// All that the controller has logged so far; empty if it cannot be read.
    #[must_use]
    pub fn controller_log(&self) -> String {
        self.log("controller")
    }

    fn log(&self, name: &str) -> String {
        let bytes = std::fs::read(self.dir.path().join(format!("{name}.log"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Asks agent `index` on its local socket, as `hearth-agent` does.
    ///
    /// # Errors
    /// If it does not answer or refuses.
    pub fn agent_ask(&self, index: usize, request: &Request) -> anyhow::Result<Reply> {
        let asked = client::ask(&self.agent_dir(index).join("agent.sock"), request);
        asked.map_err(|refusal| anyhow::anyhow!("{}: {refusal:?}", agent_name(index)))
    }

    /// What `hearth-agent status` shows of agent `index`; waits while it starts.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub async fn agent_status(&self, index: usize) -> anyhow::Result<Status> {
        wait::for_some(&format!("{} answers", agent_name(index)), START_WAIT_MAX, async || {
            match self.agent_ask(index, &Request::Status { target: None }) {
                Ok(Reply::Status(status)) => Ok(Some(status)),
                _ => Ok(None),
            }
        })
        .await
    }

    /// Certificate and place of agent `index`, as they stand in its `identity.json`.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn identity(&self, index: usize) -> anyhow::Result<String> {
        std::fs::read_to_string(self.identity_file(index)).context("reading an identity")
    }

    /// Replaces what [`Cluster::identity`] reads.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set_identity(&self, index: usize, text: &str) -> anyhow::Result<()> {
        std::fs::write(self.identity_file(index), text).context("writing an identity")
    }

    fn identity_file(&self, index: usize) -> PathBuf {
        self.agent_dir(index).join("state/identity/identity.json")
    }

    /// Starts a rogue with the identity and the configuration of agent `index`, which must not run. Its output is that
    /// agent's log.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_rogue(&mut self, index: usize, harm: &str) -> anyhow::Result<()> {
        let config = self.agent_dir(index).join("agent.toml");
        let args = [harm, config.to_str().context("a path is text")?];
        let log = self.dir.path().join(format!("{}.log", agent_name(index)));
        let daemon = Daemon::start(&agent_name(index), &programs::get().rogue, &args, &log, None)?;
        self.agents[index] = Some(daemon);
        Ok(())
    }

    /// Starts a second process with key and certificate of agent `index`, and everything else of its own. Its log is
    /// `NAME-copy.log` in [`Cluster::dir`].
    ///
    /// # Errors
    /// If its files cannot be made or it cannot be started.
    pub fn start_copy_of_agent(&self, index: usize) -> anyhow::Result<Daemon> {
        let name = format!("{}-copy", agent_name(index));
        let dir = self.dir.path().join(&name);
        let identity = dir.join("state/identity");
        std::fs::create_dir_all(&identity)?;
        std::fs::create_dir_all(dir.join("cache"))?;
        for file in ["key.pem", "identity.json"] {
            std::fs::copy(self.agent_dir(index).join("state/identity").join(file), identity.join(file))?;
        }
        let config = std::fs::read_to_string(self.agent_dir(index).join("agent.toml"))?;
        let own = |text: &Path| text.display().to_string();
        let config = config
            .replace(&own(&self.agent_dir(index)), &own(&dir))
            .replace(&format!(":{}\"", self.agent_ports[index]), ":0\"")
            .lines()
            .filter(|line| !line.starts_with("advertised"))
            .fold(String::new(), |text, line| text + line + "\n");
        let file = dir.join("agent.toml");
        std::fs::write(&file, config)?;
        let args = ["serve", "--config", file.to_str().context("a path is text")?];
        let log = self.dir.path().join(format!("{name}.log"));
        Daemon::start(&name, &programs::get().agent, &args, &log, None)
    }
}
