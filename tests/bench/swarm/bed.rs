//! Hosts as network namespaces: a source and N hosts behind one bridge, every link shaped both ways.
//!
//! **What.** [`Bed::build`] makes them with `ip`, starts programs in them, and removes them with all that runs there.
//! Links are shaped, cut, healed and counted in [`super::links`].
//! **Why a bridge in a namespace of its own.** The namespace of the caller stays as it is, and two benches do not meet.
//! **Invariants.** Names bear the number of this process; when the value is dropped no process and no namespace is left.

use std::fs::{File, OpenOptions};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use hearth_tests::daemon::run;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::links::Shape;
use super::room::is_gone;
use super::settings::Settings;

/// Begin of the names; the number of the process and the node follow.
const PREFIX: &str = "hearth-swarm-";
/// Looks for the end of killed processes, and the pause between two.
const END_LOOKS: usize = 100;
const END_PAUSE: Duration = Duration::from_millis(20);

/// A machine of the bed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Node {
    /// Where the controller is.
    Source,
    /// A host, from 1.
    Host(usize),
}

impl Node {
    /// 0 is the source.
    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Source => 0,
            Self::Host(host) => host,
        }
    }

    /// Its address, the same in every bed.
    pub(crate) fn address(self) -> Ipv4Addr {
        match self {
            Self::Source => Ipv4Addr::new(10, 77, 0, 1),
            Self::Host(host) => Ipv4Addr::new(10, 77, 1, u8::try_from(host).unwrap_or(u8::MAX)),
        }
    }

    /// Its end of the link, at the bridge.
    pub(crate) fn port(self) -> String {
        format!("p{}", self.index())
    }
}

/// The namespaces.
#[derive(Debug)]
pub(crate) struct Bed {
    prefix: String,
    hosts: usize,
    /// The network namespace of the caller.
    home: File,
}

impl Bed {
    /// Makes all of it.
    pub(crate) fn build(settings: &Settings) -> Result<Self> {
        let Settings { hosts, rate_mbit, mtu, .. } = *settings;
        let home = File::open("/proc/thread-self/ns/net")?;
        // From here on an error drops the bed, which removes what there is of it.
        let bed = Self { prefix: format!("{PREFIX}{}-", std::process::id()), hosts, home };
        let switch = bed.switch();
        ip(&["netns", "add", &switch])?;
        for words in ["link add br0 type bridge", "link set lo up", "link set br0 up"] {
            ip_in(&switch, words)?;
        }
        // The packet filter of the machine has no say in what a bridge passes; without its module there is nothing to say.
        let unfiltered = ["netns", "exec", &switch, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0"];
        drop(ip(&unfiltered));
        let mtu = mtu.to_string();
        for node in bed.nodes() {
            let (name, port) = (bed.namespace(node), node.port());
            ip(&["netns", "add", &name])?;
            ip(&[
                "link", "add", "eth0", "mtu", &mtu, "netns", &name, "type", "veth", "peer", "name", &port,
                "mtu", &mtu, "netns", &switch,
            ])?;
            ip_in(&name, &format!("addr add {}/16 dev eth0", node.address()))?;
            ip_in(&name, "link set lo up")?;
            ip_in(&name, "link set eth0 up")?;
            ip_in(&switch, &format!("link set {port} master br0 up"))?;
            bed.shape(node, Shape::Plain { rate_mbit })?;
        }
        Ok(bed)
    }

    /// The source, then the hosts.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = Node> + use<> {
        std::iter::once(Node::Source).chain((1..=self.hosts).map(Node::Host))
    }

    /// The namespace of the bridge.
    pub(super) fn switch(&self) -> String {
        format!("{}switch", self.prefix)
    }

    /// The namespace of a node.
    pub(super) fn namespace(&self, node: Node) -> String {
        match node {
            Node::Source => format!("{}source", self.prefix),
            Node::Host(host) => format!("{}{host}", self.prefix),
        }
    }

    /// Moves this thread, and threads it makes from now on, into the namespace of `node`, until the bed is dropped.
    pub(crate) fn enter(&self, node: Node) -> Result<()> {
        let file = File::open(Path::new("/run/netns").join(self.namespace(node)))?;
        setns(file, CloneFlags::CLONE_NEWNET).context("entering a network namespace")
    }

    /// A program at a node, not yet started.
    pub(crate) fn command(&self, node: Node, program: &Path) -> Command {
        let mut command = Command::new("ip");
        // `ip netns exec` becomes the program, so that the number of the child is that of the program.
        command.args(["netns", "exec", &self.namespace(node)]).arg(program).stdin(Stdio::null());
        command
    }

    /// Starts a command of [`Bed::command`]; its output is appended to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Running> {
        let out = OpenOptions::new().create(true).append(true).open(log).context("opening a log")?;
        command.stdout(out.try_clone()?).stderr(out);
        Ok(Running(command.spawn().with_context(|| format!("starting {command:?}"))?))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // Else the programs that remove the bed would run in it.
        if let Err(error) = setns(&self.home, CloneFlags::CLONE_NEWNET) {
            eprintln!("this thread stays in the bed: {error}");
        }
        remove(&self.prefix);
    }
}

/// A program in the bed, killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only for a process that is gone.
        drop(self.kill());
    }
}

/// Removes the namespaces of runs that are no more.
pub(crate) fn remove_leftovers() -> Result<()> {
    let mut prefixes: Vec<String> = namespaces()?
        .iter()
        .filter_map(|name| {
            let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
            pid.parse().is_ok_and(is_gone).then(|| format!("{PREFIX}{pid}-"))
        })
        .collect();
    prefixes.dedup();
    for prefix in prefixes {
        eprintln!("namespaces {prefix}* are left from a killed run: removed");
        remove(&prefix);
    }
    Ok(())
}

/// Kills what runs in the namespaces with this prefix and removes them; says what cannot be removed.
fn remove(prefix: &str) {
    let names: Vec<String> =
        namespaces().unwrap_or_default().into_iter().filter(|name| name.starts_with(prefix)).collect();
    for _ in 0..END_LOOKS {
        let pids: Vec<i32> = names.iter().flat_map(|name| processes(name)).collect();
        if pids.is_empty() {
            break;
        }
        for pid in pids {
            if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGKILL)
                && error != Errno::ESRCH
            {
                eprintln!("process {pid} stays: {error}");
            }
        }
        std::thread::sleep(END_PAUSE);
    }
    for name in names {
        if let Err(error) = ip(&["netns", "del", &name]) {
            eprintln!("the namespace {name} stays: {error:#}");
        }
    }
}

fn namespaces() -> Result<Vec<String>> {
    let listed = ip(&["netns", "list"])?;
    Ok(listed.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// All but this one, which may have entered a namespace.
fn processes(namespace: &str) -> Vec<i32> {
    let listed = ip(&["netns", "pids", namespace]).unwrap_or_default();
    let own = std::process::id().cast_signed();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid != own).collect()
}

/// Runs `ip`.
pub(super) fn ip(words: &[&str]) -> Result<String> {
    run(Command::new("ip").args(words))
}

/// Runs `ip` on a namespace, with words that are parted by spaces.
pub(super) fn ip_in(namespace: &str, words: &str) -> Result<String> {
    run(Command::new("ip").args(["-n", namespace]).args(words.split(' ')))
}
