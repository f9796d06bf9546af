//! What operators use instead: curl of one server by all hosts at once, and BitTorrent with aria2c.
//!
//! **What.** [`Curl`] fetches from nginx at the source; [`Aria`] seeds at the source, with mktorrent's file and our
//! tracker, and every host fetches from all others.
//! **Why these words.** Those of aria2c let it use as many peers as there are and keep nobody waiting for a tracker.
//! **Invariants.** Files are in memory, like our caches, and are removed with the value. A program that fails is an error.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hearth_controller::clock::unix_us;
use hearth_tests::daemon::run;
use hearth_tests::wait;

use super::Ground;
use super::bed::{Bed, Node, Running};
use super::race::Contender;
use super::room::hash_of;

/// Ports at the source.
const HTTP_PORT: u16 = 8000;
const TRACKER_PORT: u16 = 6969;
/// A server that is not up by then never is.
const START_WAIT_MAX: Duration = Duration::from_secs(30);
/// 2^20 bytes a piece, as BitTorrent clients make of such files.
const PIECE_BITS: &str = "20";
/// Of aria2c, at the source and at hosts.
const ARIA_WORDS: [&str; 9] = [
    "--quiet",
    "--seed-ratio=0",
    "--enable-dht=false",
    "--enable-dht6=false",
    "--bt-enable-lpd=false",
    "--bt-max-peers=128",
    "--listen-port=6881",
    "--bt-tracker-interval=5",
    "--file-allocation=none",
];

/// The programs at the hosts, and their files; removed when dropped.
struct Fetchers<'a> {
    ground: &'a Ground,
    folder: PathBuf,
    file: String,
    hash: blake3::Hash,
    running: Vec<Option<Running>>,
}

impl<'a> Fetchers<'a> {
    fn new(ground: &'a Ground, name: &str, image: &Path, hash: blake3::Hash) -> Result<Self> {
        let file = image.file_name().and_then(|file| file.to_str()).context("an image has a name")?;
        let folder = ground.room.fast().join(name);
        let hosts = ground.settings.hosts;
        for host in 1..=hosts {
            std::fs::create_dir_all(folder.join(host.to_string()))?;
        }
        let running = std::iter::repeat_with(|| None).take(hosts).collect();
        Ok(Self { ground, folder, file: file.to_owned(), hash, running })
    }

    fn host_folder(&self, host: usize) -> PathBuf {
        self.folder.join(host.to_string())
    }

    fn kill(&mut self, host: usize) -> Result<()> {
        self.running[host - 1].take().map_or(Ok(()), |mut running| running.kill())
    }

    async fn check(&self) -> Result<()> {
        for host in 1..=self.running.len() {
            let hash = hash_of(self.host_folder(host).join(&self.file)).await?;
            ensure!(hash == self.hash, "the file at host {host} is another one");
        }
        Ok(())
    }
}

impl Drop for Fetchers<'_> {
    fn drop(&mut self) {
        self.running.clear();
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            eprintln!("{} stays: {error}", self.folder.display());
        }
    }
}

/// curl at every host.
pub(crate) struct Curl<'a> {
    fetchers: Fetchers<'a>,
    done_us: Vec<Option<i64>>,
    _server: Running,
}

impl<'a> Curl<'a> {
    /// Starts nginx at the source.
    pub(crate) async fn prepare(ground: &'a Ground, image: &Path, hash: blake3::Hash) -> Result<Self> {
        let (folder, log) = (ground.room.slow().display(), ground.room.log("nginx"));
        let config = ground.room.slow().join("nginx.conf");
        let address = format!("{}:{HTTP_PORT}", Node::Source.address());
        let text = format!(
            "user root; daemon off; master_process off; pid {folder}/nginx.pid; error_log {};\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {folder}/t1;\n\
             proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4;\n\
             scgi_temp_path {folder}/t5; server {{ listen {address}; root {folder}; }} }}\n",
            log.display()
        );
        std::fs::write(&config, text)?;
        let mut command = ground.bed.command(Node::Source, Path::new("nginx"));
        let mut server = Bed::start(command.arg("-c").arg(&config), &log)?;
        wait::until("nginx listens", START_WAIT_MAX, async || {
            ensure!(server.ended()?.is_none(), "nginx ended: see {}", log.display());
            Ok(std::net::TcpStream::connect(&address).is_ok())
        })
        .await?;
        let fetchers = Fetchers::new(ground, "curl", image, hash)?;
        Ok(Self { fetchers, done_us: vec![None; ground.settings.hosts], _server: server })
    }

    fn start(&mut self, host: usize) -> Result<()> {
        let Fetchers { ground, file, .. } = &self.fetchers;
        let mut command = ground.bed.command(Node::Host(host), Path::new("curl"));
        command.args(["-sS", "--fail", "-C", "-", "-o"]).arg(self.fetchers.host_folder(host).join(file));
        command.arg(format!("http://{}:{HTTP_PORT}/{file}", Node::Source.address()));
        self.fetchers.running[host - 1] = Some(Bed::start(&mut command, &ground.room.log("curl"))?);
        Ok(())
    }
}

impl Contender for Curl<'_> {
    async fn begin(&mut self) -> Result<()> {
        (1..=self.done_us.len()).try_for_each(|host| self.start(host))
    }

    async fn done(&mut self) -> Result<Vec<Option<i64>>> {
        for (running, done) in self.fetchers.running.iter_mut().zip(&mut self.done_us) {
            let Some(running) = running.as_mut().filter(|_| done.is_none()) else { continue };
            match running.ended()? {
                Some(status) if status.success() => *done = Some(unix_us()),
                Some(status) => bail!("curl ended with {status}"),
                None => {}
            }
        }
        Ok(self.done_us.clone())
    }

    fn kill(&mut self, host: usize) -> Result<()> {
        self.fetchers.kill(host)
    }

    fn restart(&mut self, host: usize) -> Result<()> {
        if self.done_us[host - 1].is_some() { Ok(()) } else { self.start(host) }
    }

    async fn check(&mut self) -> Result<()> {
        self.fetchers.check().await
    }
}

/// aria2c at every host and at the source.
pub(crate) struct Aria<'a> {
    fetchers: Fetchers<'a>,
    torrent: PathBuf,
    /// Run by aria2c when a file is complete.
    hook: PathBuf,
    _seed: Running,
    _tracker: Running,
}

impl<'a> Aria<'a> {
    /// Makes the torrent, starts the tracker and the first seed.
    pub(crate) async fn prepare(ground: &'a Ground, image: &Path, hash: blake3::Hash) -> Result<Self> {
        let fetchers = Fetchers::new(ground, "aria2c", image, hash)?;
        let (torrent, hook) = (fetchers.folder.join("torrent"), fetchers.folder.join("hook"));
        let tracker_address = format!("{}:{TRACKER_PORT}", Node::Source.address());
        let announce = format!("http://{tracker_address}/announce");
        run(Command::new("mktorrent")
            .args(["-l", PIECE_BITS, "-a", &announce, "-o"])
            .arg(&torrent)
            .arg(image))?;
        // Words: download, number of files, path of the file. The time in nanoseconds goes beside it.
        std::fs::write(
            &hook,
            "#!/bin/sh\ndate +%s%N >\"${3%/*}/now\" && mv \"${3%/*}/now\" \"${3%/*}/done\"\n",
        )?;
        std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let log = ground.room.log("tracker");
        // Of the round before: its lines would be taken for this one's.
        drop(std::fs::remove_file(&log));
        let mut command = ground.bed.command(Node::Source, &std::env::current_exe()?);
        let tracker = Bed::start(command.args(["swarm", "tracker", &tracker_address]), &log)?;
        wait::until("the tracker listens", START_WAIT_MAX, async || {
            Ok(std::net::TcpStream::connect(&tracker_address).is_ok())
        })
        .await?;
        let mut command = ground.bed.command(Node::Source, Path::new("aria2c"));
        command
            .args(ARIA_WORDS)
            .arg("--bt-seed-unverified=true")
            .arg("-d")
            .arg(ground.room.slow())
            .arg(&torrent);
        let mut seed = Bed::start(&mut command, &ground.room.log("aria2c"))?;
        let peer = format!("peer {}:", Node::Source.address());
        wait::until("the seed announces itself", START_WAIT_MAX, async || {
            ensure!(seed.ended()?.is_none(), "aria2c ended at the source");
            Ok(std::fs::read_to_string(&log)?.contains(&peer))
        })
        .await?;
        Ok(Self { fetchers, torrent, hook, _seed: seed, _tracker: tracker })
    }

    fn start(&mut self, host: usize) -> Result<()> {
        let ground = self.fetchers.ground;
        let mut command = ground.bed.command(Node::Host(host), Path::new("aria2c"));
        // The last three let a killed one go on with what it has.
        command
            .args(ARIA_WORDS)
            .args(["--bt-request-peer-speed-limit=1024M", "--enable-peer-exchange=true"])
            .args(["--auto-save-interval=1", "--check-integrity=true", "--allow-overwrite=true"])
            .arg(format!("--on-bt-download-complete={}", self.hook.display()))
            .arg("-d")
            .arg(self.fetchers.host_folder(host))
            .arg(&self.torrent);
        self.fetchers.running[host - 1] = Some(Bed::start(&mut command, &ground.room.log("aria2c"))?);
        Ok(())
    }
}

impl Contender for Aria<'_> {
    async fn begin(&mut self) -> Result<()> {
        (1..=self.fetchers.running.len()).try_for_each(|host| self.start(host))
    }

    async fn done(&mut self) -> Result<Vec<Option<i64>>> {
        let mut done = Vec::with_capacity(self.fetchers.running.len());
        for host in 1..=self.fetchers.running.len() {
            if let Some(running) = &mut self.fetchers.running[host - 1] {
                ensure!(running.ended()?.is_none(), "aria2c ended at host {host}");
            }
            let text = std::fs::read_to_string(self.fetchers.host_folder(host).join("done"));
            done.push(text.ok().map(|ns| ns.trim().parse::<i64>()).transpose()?.map(|ns| ns / 1000));
        }
        Ok(done)
    }

    fn kill(&mut self, host: usize) -> Result<()> {
        self.fetchers.kill(host)
    }

    fn restart(&mut self, host: usize) -> Result<()> {
        self.start(host)
    }

    async fn check(&mut self) -> Result<()> {
        self.fetchers.check().await
    }
}
