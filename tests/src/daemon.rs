//! One process under test: started, killed, waited for; its output in a file.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;
use crate::wall_clock::WallClock;

/// Bytes of a log that a failed test shows.
const LOG_BYTES_SHOWN: usize = 4096;

/// A daemon, killed when it is dropped.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program` with `args`; output is appended to `log`. With a clock it lives by that wall clock.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(
        name: &str,
        program: &Path,
        args: &[&str],
        log: &Path,
        clock: Option<&WallClock>,
    ) -> anyhow::Result<Self> {
        let out = OpenOptions::new().create(true).append(true).open(log).context("opening a log")?;
        let child = Command::new(program)
            .args(args)
            .envs(clock.map(WallClock::environment).unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Number of the process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, and waits until it is gone.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Sends a signal, for example `SIGSTOP`; a stopped daemon is killed like any other.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.pid())?), signal)?)
    }

    /// Asks it to end and waits at most `limit`.
    ///
    /// # Errors
    /// If it does not end in time.
    pub async fn stop(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let what = format!("{} ends after SIGTERM", self.name);
        wait::for_some(&what, limit, async || Ok(self.child.try_wait()?)).await
    }

    /// An error with the end of the log, if the process has ended.
    ///
    /// # Errors
    /// Exactly then.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            anyhow::bail!("{} ended ({status}):\n{}", self.name, self.log_end());
        }
        Ok(())
    }

    /// The end of its log.
    #[must_use]
    pub fn log_end(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_BYTES_SHOWN)..]).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only for a process that is gone.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("--- end of the log of {} ---\n{}", self.name, self.log_end());
        }
    }
}

/// Runs a program to its end.
///
/// # Errors
/// If it cannot be started or fails; with its stderr.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("starting {:?}", command.get_program()))?;
    anyhow::ensure!(
        output.status.success(),
        "{command:?} failed ({}): {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
