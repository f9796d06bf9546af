//! A controller and agents for a bench: `hearth dev` with the release programs, driven by the command line.
//!
//! **What.** Starts the site, runs `hearth` commands against it, finds the daemons' processes and cache folders.
//! **Why the command line.** A bench should pay what a user pays, process start and TLS handshake included.
//! **Invariants.** The site ends with this value; its folder is the caller's.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hearth_protocol::digest::ContentId;
use hearth_protocol::words::ContentKind;
use serde_json::Value;

/// Longest wait for the site, an import or a copy.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// The running daemons.
#[derive(Debug)]
pub(crate) struct Site {
    folder: PathBuf,
    hearth: PathBuf,
    dev: Child,
}

impl Site {
    /// Starts a controller and `agents` agents in `folder`, with the programs that stand in `programs`.
    pub(crate) fn start(folder: &Path, programs: &Path, agents: u16) -> Result<Self> {
        let hearth = programs.join("hearth");
        ensure!(hearth.is_file(), "{} is not there: run `make bench`, which builds it", hearth.display());
        let seed = folder.join("seed.raw");
        std::fs::create_dir_all(folder)?;
        // The main job of `hearth dev` needs an image; a small one of random bytes is quick.
        std::fs::write(&seed, (0..1 << 20).map(|_| rand::random::<u8>()).collect::<Vec<u8>>())?;
        let log = std::fs::File::create(folder.join("dev.log"))?;
        let dev = Command::new(&hearth)
            .args(["dev", "--agents", &agents.to_string()])
            .arg("--data")
            .arg(folder.join("data"))
            .arg("--image")
            .arg(&seed)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", hearth.display()))?;
        let mut site = Self { folder: folder.to_path_buf(), hearth, dev };
        wait(|| {
            if let Some(status) = site.dev.try_wait()? {
                bail!(
                    "hearth dev ended with {status}:\n{}",
                    std::fs::read_to_string(site.folder.join("dev.log"))?
                );
            }
            Ok(std::fs::read_to_string(site.folder.join("dev.log"))?.contains("Running until").then_some(()))
        })?;
        Ok(site)
    }

    /// Runs `hearth` with these words and returns what it printed.
    pub(crate) fn hearth(&self, words: &[&str]) -> Result<String> {
        let output = Command::new(&self.hearth)
            .arg("--quiet")
            .arg("--config")
            .arg(self.folder.join("data/hearth.toml"))
            .args(words)
            .stdin(Stdio::null())
            .output()?;
        ensure!(output.status.success(), "hearth {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Imports `file` as `name` and waits until it is active.
    pub(crate) fn import(&self, file: &Path, name: &str) -> Result<Imported> {
        self.hearth(&["image", "import", &file.display().to_string(), "--name", name, "--wait"])?;
        let image: Value = serde_json::from_str(&self.hearth(&["-o", "json", "image", "show", name])?)?;
        let text =
            |field: &str| image[field].as_str().with_context(|| format!("{name} has no {field}: {image}"));
        Ok(Imported {
            name: name.to_owned(),
            content: text("content")?.parse()?,
            kind: if text("kind")? == "iso" { ContentKind::File } else { ContentKind::Disk },
            stored_bytes: image["stored_bytes"].as_u64().context("stored_bytes")?,
        })
    }

    /// Where agent `n` (from 1) shows the copy once it is verified.
    pub(crate) fn copy_path(&self, agent: u16, image: &Imported) -> PathBuf {
        let ending = if image.kind == ContentKind::Disk { "raw" } else { "file" };
        let content = image.content.to_string();
        let (folder, _) = content.split_at(2);
        self.folder.join(format!("data/dev-{agent}/cache/objects/{folder}/{content}.{ending}"))
    }

    /// Asks for a copy at agent `n` and waits until it is there.
    pub(crate) fn fetch(&self, agent: u16, image: &Imported) -> Result<()> {
        self.hearth(&["cache", "add", &image.name, "--to", &format!("dev-{agent}")])?;
        let path = self.copy_path(agent, image);
        wait(|| Ok(path.exists().then_some(())))
    }

    /// Removes the copy at agent `n` and waits until file and list row are gone.
    pub(crate) fn forget(&self, agent: u16, image: &Imported) -> Result<()> {
        self.hearth(&["cache", "rm", &image.name, &format!("dev-{agent}"), "--force", "--yes"])?;
        let path = self.copy_path(agent, image);
        wait(|| Ok((!path.exists() && self.entry(agent, image)?.is_none()).then_some(())))
    }

    /// The row of the cache list.
    pub(crate) fn entry(&self, agent: u16, image: &Imported) -> Result<Option<Value>> {
        let words =
            ["-o", "json", "cache", "list", "--image", &image.name, "--location", &format!("dev-{agent}")];
        let rows: Value = serde_json::from_str(&self.hearth(&words)?)?;
        let rows = rows.get("items").cloned().unwrap_or(rows);
        Ok(rows.as_array().and_then(|rows| rows.first().cloned()))
    }

    /// Log of a daemon: `controller`, `dev-1`, ….
    pub(crate) fn log(&self, name: &str) -> Result<String> {
        Ok(std::fs::read_to_string(self.folder.join(format!("data/log/{name}.log")))?)
    }

    /// Process id of the controller.
    pub(crate) fn controller(&self) -> Result<u32> {
        self.child("hearth-controll")
    }

    /// Process id of the first agent.
    pub(crate) fn agent(&self) -> Result<u32> {
        self.child("hearth-agent")
    }

    fn child(&self, name: &str) -> Result<u32> {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.dev.id()))?;
        let is = |pid: &&str| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        let all_threads = std::fs::read_dir(format!("/proc/{}/task", self.dev.id()))?;
        let mut all = children;
        for thread in all_threads {
            all += &std::fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
        }
        let pid =
            all.split_whitespace().find(is).with_context(|| format!("no process {name} under hearth dev"))?;
        Ok(pid.parse()?)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.dev.id()).unwrap_or(0));
        if nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).is_ok() {
            drop(self.dev.wait());
        }
    }
}

/// An image in the catalog.
#[derive(Clone, Debug)]
pub(crate) struct Imported {
    pub(crate) name: String,
    pub(crate) content: ContentId,
    pub(crate) kind: ContentKind,
    pub(crate) stored_bytes: u64,
}

/// Looks every millisecond until `done` gives a value.
pub(crate) fn wait<T>(mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    for _ in 0..WAIT_MAX.as_millis() {
        if let Some(value) = done()? {
            return Ok(value);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("waited {} s in vain", WAIT_MAX.as_secs())
}
