//! The tools that operators use today, run as they run them.
//!
//! **What.** nginx over https with curl, then `openssl dgst` beside `qemu-img convert` (or `b3sum` for a raw file); an
//! rsync daemon. Each ends with a raw file at the path it is given.
//! **Why these commands.** They are the fastest spellings that were found: the checksum runs beside the conversion, rsync
//! neither compares nor delta-codes (`--inplace -W`).
//! **Invariants.** All listen on loopback; all are ended when [`Peers`] is dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// How a peer brings the image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Route {
    /// curl of a qcow2, checksum beside conversion.
    CurlQcow2,
    /// curl of a raw file, then b3sum.
    CurlRaw,
    /// rsync daemon of the raw file.
    Rsync,
}

/// The running servers.
#[derive(Debug)]
pub(crate) struct Peers {
    folder: PathBuf,
    https_port: u16,
    rsync_port: u16,
    nginx: Child,
    rsync: Child,
}

impl Peers {
    /// Starts nginx and an rsync daemon that serve `images`; their files go to `folder`.
    pub(crate) fn start(folder: &Path, images: &Path) -> Result<Self> {
        let (https_port, rsync_port) = (free_port()?, free_port()?);
        std::fs::create_dir_all(folder)?;
        let images = images.canonicalize()?;
        let show = |path: &Path| path.display().to_string();
        run(Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ])
            .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
            .args(["-keyout", &show(&folder.join("key.pem")), "-out", &show(&folder.join("cert.pem"))]))?;
        let (at, images) = (show(folder), show(&images));
        std::fs::write(
            folder.join("nginx.conf"),
            format!(
                "user root; worker_processes 2; daemon off; pid {at}/nginx.pid; error_log {at}/nginx.log;\n\
                 events {{ worker_connections 64; }}\n\
                 http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {at}/t1; proxy_temp_path {at}/t2;\n\
                 fastcgi_temp_path {at}/t3; uwsgi_temp_path {at}/t4; scgi_temp_path {at}/t5;\n\
                 server {{ listen 127.0.0.1:{https_port} ssl; ssl_certificate {at}/cert.pem; ssl_certificate_key {at}/key.pem;\n\
                 ssl_protocols TLSv1.3; root {images}; }} }}\n"
            ),
        )?;
        std::fs::write(
            folder.join("rsyncd.conf"),
            format!("use chroot = no\nuid = root\ngid = root\n[images]\npath = {images}\nread only = yes\n"),
        )?;
        let nginx = spawn(Command::new("nginx").arg("-c").arg(folder.join("nginx.conf")))?;
        let rsync = spawn(
            Command::new("rsync")
                .args(["--daemon", "--no-detach", "--address=127.0.0.1", &format!("--port={rsync_port}")])
                .arg(format!("--config={at}/rsyncd.conf")),
        )?;
        let peers = Self { folder: folder.to_path_buf(), https_port, rsync_port, nginx, rsync };
        for port in [https_port, rsync_port] {
            wait_for(port)?;
        }
        Ok(peers)
    }

    /// Brings `file` to `out` as a raw file. Intermediate files stand beside `out`.
    pub(crate) fn bring(&self, route: Route, file: &str, out: &Path) -> Result<()> {
        let part = out.with_extension("download");
        let (part, out) = (part.display().to_string(), out.display().to_string());
        let url = format!("https://localhost:{}/{file}", self.https_port);
        let cert = self.folder.join("cert.pem").display().to_string();
        let curl =
            |to: &str| run(Command::new("curl").args(["-sS", "--fail", "--cacert", &cert, "-o", to, &url]));
        match route {
            Route::CurlQcow2 => {
                curl(&part)?;
                let mut sum = spawn(Command::new("openssl").args(["dgst", "-sha256", &part]))?;
                run(Command::new("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw", &part, &out]))?;
                ensure!(sum.wait()?.success(), "openssl dgst failed");
            }
            Route::CurlRaw => {
                curl(&out)?;
                run(Command::new("b3sum").arg(&out))?;
            }
            Route::Rsync => {
                let from = format!("rsync://127.0.0.1:{}/images/{file}", self.rsync_port);
                run(Command::new("rsync").args(["--inplace", "-W", &from, &out]))?;
            }
        }
        Ok(())
    }

    /// CPU seconds of the servers so far.
    pub(crate) fn server_cpu_seconds(&self, route: Route) -> Result<f64> {
        let parent = if route == Route::Rsync { &self.rsync } else { &self.nginx };
        let mut seconds = super::measure::cpu_seconds(parent.id())?;
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", parent.id()))?;
        for child in children.split_whitespace() {
            seconds += super::measure::cpu_seconds(child.parse()?)?;
        }
        Ok(seconds)
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for child in [&mut self.nginx, &mut self.rsync] {
            let id = i32::try_from(child.id()).unwrap_or(0);
            // nginx ends its workers on SIGTERM; SIGKILL would leave them.
            if nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::SIGTERM).is_ok() {
                drop(child.wait());
            }
        }
    }
}

/// A port of loopback that nobody uses now.
pub(crate) fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn wait_for(port: u16) -> Result<()> {
    for _ in 0..200 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    anyhow::bail!("no server on port {port} after 4 s")
}

fn spawn(command: &mut Command) -> Result<Child> {
    let name = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().with_context(|| format!("start {name}: `make bench` installs what is missing"))
}

fn run(command: &mut Command) -> Result<()> {
    let status = spawn(command)?.wait()?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
