//! Files, ports and command lines of the daemons that `hearth dev` starts.
//!
//! **What.** Writes `controller.toml` and one `agent.toml` per agent into the data folder and knows which agents have
//! enrolled in an earlier run. Ports are free ones, chosen anew each time.
//! **Invariants.** Everything listens on loopback. A token that was shown once is stored with mode 0600 before the
//! controller starts.

use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::children::{Children, Program};
use crate::config::{self, Config, ConfigFile};
use crate::failure::{Exit, Failure};

/// Tries to find a port that is free for TCP and UDP.
const PORT_TRIES: u32 = 50;
/// Longest path of a Unix socket on Linux, without the zero at its end.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What the daemons are started with.
#[derive(Debug)]
pub(super) struct Setup {
    root: PathBuf,
    controller: PathBuf,
    agent: PathBuf,
    port: u16,
    agents: u16,
}

impl Setup {
    /// Finds the programs and writes the configurations.
    ///
    /// # Errors
    /// If the daemons do not stand beside this program, or the folder cannot be written.
    pub(super) fn new(root: &Path, agents: u16) -> anyhow::Result<Self> {
        let here = std::env::current_exe().context("finding this program's own file")?;
        let folder = here.parent().unwrap_or_else(|| Path::new("."));
        let beside = |name: &str| {
            let file = folder.join(name);
            let missing = || {
                Failure::new(Exit::Failed, format!("{} is not there", file.display())).hint(
                    "`cargo build --workspace` makes all three programs; packages install them together",
                )
            };
            if file.is_file() { Ok(file.clone()) } else { Err(missing()) }
        };
        let (controller, agent) = (beside("hearth-controller")?, beside("hearth-agent")?);
        let setup = Self { root: root.to_owned(), controller, agent, port: free_port()?, agents };
        std::fs::create_dir_all(root.join("log")).with_context(|| format!("making {}", root.display()))?;
        setup.write_configs()?;
        Ok(setup)
    }

    /// The data folder.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Numbers of the agents, from 1.
    pub(super) fn agents(&self) -> impl Iterator<Item = u16> + use<> {
        1..=self.agents
    }

    /// Name of an agent and of its location.
    pub(super) fn agent_name(agent: u16) -> String {
        format!("dev-{agent}")
    }

    /// Log file of a daemon.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.root.join("log").join(format!("{name}.log"))
    }

    fn controller_toml(&self) -> PathBuf {
        self.root.join("controller.toml")
    }

    fn agent_folder(&self, agent: u16) -> PathBuf {
        self.root.join(Self::agent_name(agent))
    }

    fn agent_toml(&self, agent: u16) -> PathBuf {
        self.agent_folder(agent).join("agent.toml")
    }

    /// Written after enrolment; its presence says that the agent has a certificate.
    fn enrolled_mark(&self, agent: u16) -> PathBuf {
        self.agent_folder(agent).join("enrolled")
    }

    fn write_configs(&self) -> anyhow::Result<()> {
        let state = self.root.join("controller");
        std::fs::create_dir_all(&state).with_context(|| format!("making {}", state.display()))?;
        write(&self.controller_toml(), &controller_text(&state, self.port)?)?;
        for agent in self.agents() {
            let folder = self.agent_folder(agent);
            std::fs::create_dir_all(folder.join("cache"))
                .with_context(|| format!("making {}", folder.display()))?;
            std::fs::create_dir_all(folder.join("state"))
                .with_context(|| format!("making {}", folder.display()))?;
            write(&self.agent_toml(agent), &self.agent_text(agent, &folder)?)?;
        }
        Ok(())
    }

    fn agent_text(&self, agent: u16, folder: &Path) -> anyhow::Result<String> {
        let socket = folder.join("agent.sock");
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let message = format!("{} is too long a path for a Unix socket", socket.display());
            return Err(Failure::new(Exit::Usage, message)
                .hint("choose a --data folder with a shorter path")
                .into());
        }
        let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        let name = Self::agent_name(agent);
        // Zones in turn, so that selectors have something to select.
        let zone = 1 + (agent - 1) % 2;
        Ok(format!(
            "# Written by `hearth dev`.\n\
             data_dir = {state}\ncache_dir = {cache}\nsocket = {socket}\ngroup = \"\"\n\
             budget = \"50%\"\nfloor = \"1 GiB\"\n\
             controllers = [\"127.0.0.1:{controller}\"]\nadvertised = [\"127.0.0.1:{port}\"]\n\
             listen = \"127.0.0.1:{port}\"\n\n\
             [location]\nname = \"{name}\"\nplatform = \"kvm\"\nregion = \"local\"\nzone = \"z{zone}\"\n\
             ip = \"127.0.0.1\"\nserial = \"DEV-{agent}\"\n",
            state = quoted(&folder.join("state"))?,
            cache = quoted(&folder.join("cache"))?,
            socket = quoted(&socket)?,
            controller = self.port,
        ))
    }

    /// The client's configuration; on the first run the controller is set up.
    ///
    /// # Errors
    /// If `hearth-controller init` fails or prints something else than it should.
    pub(super) async fn init_controller(&self, children: &mut Children) -> anyhow::Result<Config> {
        let url = format!("https://127.0.0.1:{}", self.port);
        if let Some(stored) = super::stored_client_config(&self.root)? {
            return super::store_client_config(&self.root, &ConfigFile { url: Some(url), ..stored });
        }
        let args = vec!["init".into(), "--config".into(), self.controller_toml().display().to_string()];
        let init = Program { file: self.controller.clone(), args };
        let printed = children.finish("hearth-controller init", &init, &self.log("controller")).await?;
        let (token, fingerprint) = token_and_fingerprint(&printed).context(
            "`hearth-controller init` printed no token or no fingerprint; are the programs of one version?",
        )?;
        let file = ConfigFile { url: Some(url), token: Some(token), fingerprint: Some(fingerprint) };
        super::store_client_config(&self.root, &file)
    }

    /// How the controller is started.
    pub(super) fn controller_serve(&self) -> Program {
        let args = vec!["serve".into(), "--config".into(), self.controller_toml().display().to_string()];
        Program { file: self.controller.clone(), args }
    }

    /// How an agent is started.
    pub(super) fn agent_serve(&self, agent: u16) -> Program {
        let args = vec!["serve".into(), "--config".into(), self.agent_toml(agent).display().to_string()];
        Program { file: self.agent.clone(), args }
    }

    /// Agents without a certificate.
    pub(super) fn agents_to_enrol(&self) -> Vec<u16> {
        self.agents().filter(|agent| !self.enrolled_mark(*agent).exists()).collect()
    }

    /// Lets an agent enrol.
    ///
    /// # Errors
    /// If the agent or the controller refuse; the agent's log is in the error.
    pub(super) async fn enrol(&self, children: &mut Children, agent: u16, token: &str) -> anyhow::Result<()> {
        let args = ["enrol", "--config", &self.agent_toml(agent).display().to_string(), "--controller"];
        let mut args: Vec<String> = args.iter().map(ToString::to_string).collect();
        args.extend([format!("127.0.0.1:{}", self.port), "--token".into(), token.to_owned()]);
        let name = Self::agent_name(agent);
        let enrol = Program { file: self.agent.clone(), args };
        let printed =
            children.finish(&format!("hearth-agent enrol of {name}"), &enrol, &self.log(&name)).await?;
        write(&self.enrolled_mark(agent), &printed)
    }

    /// What a person can do now: lines that can be pasted into another terminal as they are.
    pub(super) fn try_next(&self, image: &str) -> String {
        let programs = self.agent.parent().unwrap_or_else(|| Path::new("."));
        let path = |path: &Path| shell_word(&path.display().to_string());
        format!(
            "\nRunning until Ctrl-C. In another terminal, first:\n  \
             export HEARTH_CONFIG={config}\n  \
             export HEARTH_AGENT_CONFIG={agent}\n  \
             export PATH={programs}:\"$PATH\"\n\
             then try:\n  \
             hearth cache list\n  \
             hearth location list\n  \
             hearth image show {image}\n  \
             hearth prewarm create {image} --select 'zone=z1' --keep 7d --wait\n  \
             hearth log list\n  \
             hearth doctor\n  \
             hearth-agent lease {image} vm-1\n  \
             hearth-agent status\n\
             The last two ask the agent dev-1, as the scripts of a hypervisor do.\n\
             An image of yours: hearth image import FILE\n\
             Logs: {logs}",
            config = path(&super::client_config_path(&self.root)),
            agent = path(&self.agent_toml(1)),
            programs = path(programs),
            image = shell_word(image),
            logs = self.root.join("log").display(),
        )
    }
}

/// The text as one word of a shell.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn controller_text(state: &Path, port: u16) -> anyhow::Result<String> {
    Ok(format!(
        "# Written by `hearth dev`.\nstate_dir = {}\nlisten_https = \"127.0.0.1:{port}\"\n\
         listen_quic = \"127.0.0.1:{port}\"\npublic_names = [\"127.0.0.1\", \"localhost\"]\n\
         sandbox = \"best-effort\"\n",
        quoted(state)?
    ))
}

fn quoted(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("{} is no text", path.display()))?;
    Ok(toml::Value::String(text.to_owned()).to_string())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// A port of loopback that is free for TCP and UDP now.
fn free_port() -> anyhow::Result<u16> {
    for _ in 0..PORT_TRIES {
        let tcp = TcpListener::bind("127.0.0.1:0").context("opening a port on loopback")?;
        let port = tcp.local_addr()?.port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port of 127.0.0.1 is free for both TCP and UDP")
}

/// The admin token and the CA's fingerprint in what `init` printed.
fn token_and_fingerprint(printed: &str) -> Option<(String, String)> {
    let is_hex = |word: &str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let words: Vec<&str> = printed.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let token = words.iter().find(|word| word.strip_prefix("hrt_").is_some_and(is_hex))?;
    let fingerprint = words.iter().find(|word| is_hex(word))?;
    config::parse_fingerprint(fingerprint).ok()?;
    Some(((*token).to_owned(), (*fingerprint).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_and_fingerprint_are_found_in_any_sentence() {
        let (token, print) = (format!("hrt_{}", "ab".repeat(32)), "0c".repeat(32));
        let printed = format!("Admin token (shown once): {token}\nlogin with --fingerprint {print}.\n");
        assert_eq!(token_and_fingerprint(&printed), Some((token.clone(), print.clone())));
        assert_eq!(token_and_fingerprint(&token), None);
        assert_eq!(token_and_fingerprint(&print), None);
    }

    #[test]
    fn a_shell_reads_back_the_word_that_was_quoted() {
        for word in ["/var/tmp/a-1", "my image", "it's", "$HOME", "", "镜像", "a;b"] {
            let script = format!("printf %s {}", shell_word(word));
            let shell = std::process::Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(shell.stdout).unwrap(), word);
        }
    }

    #[test]
    fn configurations_are_toml_and_paths_are_quoted() {
        let text = controller_text(Path::new("/tmp/a \"b\""), 7443).unwrap();
        let value: toml::Table = text.parse().unwrap();
        assert_eq!(value["state_dir"].as_str(), Some("/tmp/a \"b\""));
        assert_eq!(value["listen_quic"].as_str(), Some("127.0.0.1:7443"));
    }

    #[test]
    fn a_free_port_is_free() {
        let port = free_port().unwrap();
        TcpListener::bind(("127.0.0.1", port)).unwrap();
    }
}
