//! The processes of `hearth dev`, and their certain end.
//!
//! **What.** All daemons run in one process group whose leader is a small shell. It waits on a pipe from this process; when
//! this process is gone, however it went, the pipe closes and the shell ends the group.
//! **Why a shell.** "Die with the parent" can only be asked of the kernel between fork and exec, which safe Rust does
//! not reach. The pipe works for `kill -9` too, and the group's number cannot be reused while its leader lives.
//! **Invariants.** Output of a child goes to its log file; when one ends early, the last lines of it are in the error.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::failure::{Exit, Failure};

/// A daemon that drains gets so long before it is killed.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(10);
/// Pause between two looks whether a child has ended.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// Lines of a log that an error shows.
const LOG_LINES_SHOWN: usize = 15;
/// Bytes of a log's end that are read for them.
const LOG_BYTES_READ: u64 = 16 << 10;
/// Waits until its parent is gone, then ends everybody in its process group.
const GUARD: &str = r#"
trap '' TERM INT HUP
read -r _
kill -TERM 0
sleep 5
test -z "$1" || rm -rf -- "$1"
kill -KILL 0
"#;

/// A program with its arguments.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// Its file.
    pub(super) file: PathBuf,
    /// Its arguments.
    pub(super) args: Vec<String>,
}

/// Running daemons.
#[derive(Debug)]
pub(super) struct Children {
    guard: Child,
    group: i32,
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Children {
    /// Starts the guard. It removes `remove_at_end` if this process is killed.
    ///
    /// # Errors
    /// If there is no `/bin/sh`.
    pub(super) fn new(remove_at_end: Option<&Path>) -> anyhow::Result<Self> {
        let guard = Command::new("/bin/sh")
            .args(["-c", GUARD, "hearth-dev-guard"])
            .arg(remove_at_end.unwrap_or_else(|| Path::new("")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("starting /bin/sh")?;
        let group = guard.id().and_then(|id| i32::try_from(id).ok()).context("the guard ended at once")?;
        Ok(Self { guard, group, running: Vec::new() })
    }

    /// Starts a daemon; its output is appended to `log`.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub(super) async fn start(&mut self, name: &str, program: &Program, log: &Path) -> anyhow::Result<()> {
        let child = self.command(program, log).await?.spawn();
        let child = child.with_context(|| format!("starting {}", program.file.display()))?;
        self.running.push(Running { name: name.to_owned(), child, log: log.to_owned() });
        Ok(())
    }

    /// Runs a program to its end and returns what it wrote to stdout.
    ///
    /// # Errors
    /// If it cannot be started or ends with anything but 0; the error holds the end of its log.
    pub(super) async fn finish(
        &mut self,
        name: &str,
        program: &Program,
        log: &Path,
    ) -> anyhow::Result<String> {
        let mut command = self.command(program, log).await?;
        command.stdout(Stdio::piped());
        let child = command.spawn().with_context(|| format!("starting {}", program.file.display()))?;
        let output = child.wait_with_output().await?;
        if !output.status.success() {
            return Err(ended(name, output.status, log).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    async fn command(&self, program: &Program, log: &Path) -> anyhow::Result<Command> {
        let to = std::fs::OpenOptions::new().create(true).append(true).open(log);
        let to = to.with_context(|| format!("writing {}", log.display()))?;
        let mut command = Command::new(&program.file);
        command
            .args(&program.args)
            .stdin(Stdio::null())
            .stdout(to.try_clone().with_context(|| format!("writing {}", log.display()))?)
            .stderr(to)
            .process_group(self.group)
            .kill_on_drop(true);
        Ok(command)
    }

    /// The result of `work`, or an error as soon as a daemon ends.
    pub(super) async fn unless_one_ends<T>(
        &mut self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        tokio::select! {
            done = work => done,
            failure = self.first_end() => Err(failure.into()),
        }
    }

    async fn first_end(&mut self) -> Failure {
        loop {
            for running in &mut self.running {
                if let Ok(Some(status)) = running.child.try_wait() {
                    return ended(&running.name, status, &running.log);
                }
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Asks all to end, agents first; what does not end in time is killed.
    pub(super) async fn stop(mut self) {
        while let Some(mut last) = self.running.pop() {
            if let Some(pid) = last.child.id().and_then(|id| i32::try_from(id).ok()) {
                // A child that is gone already is what is wanted.
                kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
            }
            if tokio::time::timeout(DRAIN_WAIT_MAX, last.child.wait()).await.is_err() {
                drop(last.child.kill().await);
            }
        }
        drop(self.guard.kill().await);
    }
}

fn ended(name: &str, status: ExitStatus, log: &Path) -> Failure {
    let mut message = format!("{name} ended ({status}); the end of {}:", log.display());
    for line in last_lines(log) {
        message.push_str("\n  | ");
        message.push_str(&crate::output::printable(&line));
    }
    Failure::new(Exit::Failed, message)
}

fn last_lines(log: &Path) -> Vec<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let Ok(mut file) = std::fs::File::open(log) else { return Vec::new() };
    let length = file.metadata().map(|meta| meta.len()).unwrap_or_default();
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_READ))).is_err()
        || file.take(LOG_BYTES_READ).read_to_end(&mut bytes).is_err()
    {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(LOG_LINES_SHOWN)).map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program {
        Program { file: "/bin/sh".into(), args: vec!["-c".into(), script.into()] }
    }

    #[tokio::test]
    async fn a_child_that_ends_shows_the_end_of_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("a.log");
        let mut children = Children::new(None).unwrap();
        children.start("agent-1", &shell("echo no disk >&2; exit 3"), &log).await.unwrap();
        let error = children.unless_one_ends(std::future::pending::<anyhow::Result<()>>()).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("agent-1 ended") && text.contains("| no disk"), "{text}");
        children.stop().await;
    }

    #[tokio::test]
    async fn what_a_program_prints_is_returned() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("a.log");
        let mut children = Children::new(None).unwrap();
        assert_eq!(
            children.finish("init", &shell("echo hello; echo odd >&2"), &log).await.unwrap(),
            "hello\n"
        );
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "odd\n");
        assert!(children.finish("init", &shell("exit 1"), &log).await.is_err());
        children.stop().await;
    }

    #[tokio::test]
    async fn children_end_when_the_pipe_of_the_parent_closes() {
        let dir = tempfile::tempdir().unwrap();
        let mut children = Children::new(None).unwrap();
        children.start("sleeper", &shell("exec sleep 600"), &dir.path().join("a.log")).await.unwrap();
        // What the kernel does when this process is killed.
        drop(children.guard.stdin.take());
        let status = tokio::time::timeout(Duration::from_secs(20), children.running[0].child.wait()).await;
        assert!(!status.expect("the guard ends its group").unwrap().success());
        children.stop().await;
    }
}
