//! Real servers that images are fetched from, and what makes their connections break.
//!
//! **What.** [`Nginx`], [`Ftp`] (pyftpdlib, with users, TLS and a slow mode), [`anonymous_ftp`] (vsftpd) and [`Store`] (s3s-fs),
//! each on a free port, gone with its value. [`Wire`] stands before a server, counts what it sends and cuts it off.
//! **Why no skip.** A missing server is a failure that names its package.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hearth_controller::{clock, task};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// A port that is free now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A program that is killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn start(command: &mut Command, port: u16, package: &str) -> Server {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = child.unwrap_or_else(|error| panic!("{package} is needed ({error})"));
    let server = Server { child, port };
    let begun = clock::monotonic();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{package} does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    server
}

/// nginx with `locations` and the files of `root`.
pub(crate) fn nginx(dir: &Path, port: u16, locations: &str) -> Server {
    let file = dir.join("nginx.conf");
    let d = dir.display();
    let text = format!(
        "daemon off; master_process off; pid {d}/nginx.pid; error_log {d}/nginx.log;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; sendfile on; default_type application/octet-stream;\n\
         client_body_temp_path {d}/t1; proxy_temp_path {d}/t2; fastcgi_temp_path {d}/t3; uwsgi_temp_path {d}/t4;\n\
         scgi_temp_path {d}/t5;\n\
         server {{ listen 127.0.0.1:{port}; root {d}/www; {locations} }} }}\n"
    );
    std::fs::create_dir_all(dir.join("www")).unwrap();
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new("nginx");
    start(command.arg("-c").arg(&file), port, "nginx (apt install nginx-light)")
}

/// An FTP server with a user `me`, password `p@ss`, and the files of `dir`. With `tls` (a PEM file of key and certificate)
/// it wants it; `bytes_per_s` slows it down; every command goes to `dir/../ftp.log`.
pub(crate) fn ftp(root: &Path, port: u16, tls: Option<&Path>, bytes_per_s: u32) -> Server {
    let script = r#"
import sys, logging
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler, TLS_FTPHandler, ThrottledDTPHandler
from pyftpdlib.servers import FTPServer
root, port, pem, rate, log = sys.argv[1:6]
logging.basicConfig(filename=log, level=logging.DEBUG)
users = DummyAuthorizer()
users.add_user("me", "p@ss", root, perm="elr")
users.add_anonymous(root)
handler = TLS_FTPHandler if pem else FTPHandler
handler.authorizer = users
if pem:
    handler.certfile = pem
    handler.tls_control_required = handler.tls_data_required = True
elif int(rate):
    class Slow(ThrottledDTPHandler):
        read_limit = write_limit = int(rate)
    handler.dtp_handler = Slow
FTPServer(("127.0.0.1", int(port)), handler).serve_forever()
"#;
    let log = root.parent().unwrap().join("ftp.log");
    let pem = tls.map(Path::display).map(|pem| pem.to_string()).unwrap_or_default();
    // Debian's own: another Python on the path does not see its packages.
    let mut command = Command::new("/usr/bin/python3");
    command
        .args(["-c", script])
        .arg(root)
        .arg(port.to_string())
        .arg(pem)
        .arg(bytes_per_s.to_string())
        .arg(log);
    start(&mut command, port, "pyftpdlib (apt install python3-pyftpdlib python3-openssl)")
}

/// vsftpd for everybody, with the files of `root`.
pub(crate) fn anonymous_ftp(dir: &Path, root: &Path, port: u16) -> Server {
    let (file, empty) = (dir.join("vsftpd.conf"), dir.join("empty"));
    std::fs::create_dir_all(&empty).unwrap();
    let text = format!(
        "listen=YES\nlisten_address=127.0.0.1\nlisten_port={port}\nanonymous_enable=YES\nanon_root={}\nbackground=NO\n\
         seccomp_sandbox=NO\nsecure_chroot_dir={}\nrun_as_launching_user=YES\nxferlog_enable=NO\n",
        root.display(),
        empty.display()
    );
    std::fs::write(&file, text).unwrap();
    start(Command::new("/usr/sbin/vsftpd").arg(&file), port, "vsftpd (apt install vsftpd)")
}

/// An object store with the buckets of `root`.
pub(crate) fn store(root: &Path, port: u16) -> Server {
    let program = cargo_bin("s3s-fs");
    let mut command = Command::new(program);
    command.args(["--access-key", "AKHEARTH", "--secret-key", "secret-of-the-store", "--host", "127.0.0.1"]);
    command.arg("--port").arg(port.to_string()).arg(root);
    start(&mut command, port, "s3s-fs (cargo install --locked s3s-fs@0.14.1 --features binary)")
}

fn cargo_bin(name: &str) -> PathBuf {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    home.map(|home| home.join("bin").join(name)).filter(|path| path.exists()).unwrap_or_else(|| name.into())
}

/// A piece of network before a server.
pub(crate) struct Wire {
    pub(crate) port: u16,
    sent: Arc<AtomicU64>,
    cut: watch::Sender<u64>,
}

impl Wire {
    /// To 127.0.0.1:`to`, at `bytes_per_s`.
    pub(crate) async fn new(to: u16, bytes_per_s: u64) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sent, (cut, cuts)) = (Arc::new(AtomicU64::new(0)), watch::channel(0));
        let counter = Arc::clone(&sent);
        task::spawn("wire", async move {
            while let Ok((client, _)) = listener.accept().await {
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                let counter = Arc::clone(&counter);
                task::spawn("wire-carry", async move {
                    tokio::select! {
                        () = carry(client, to, bytes_per_s, counter) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { port, sent, cut }
    }

    /// Bytes that the server sent through it.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Breaks every connection.
    pub(crate) fn cut(&self) {
        self.cut.send_modify(|n| *n += 1);
    }
}

async fn carry(client: TcpStream, to: u16, bytes_per_s: u64, counter: Arc<AtomicU64>) {
    let Ok(server) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], to))).await else { return };
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let up = async move {
        drop(tokio::io::copy(&mut from_client, &mut to_server).await);
    };
    let down = async move {
        let mut buf = vec![0; 64 << 10];
        while let Ok(n) = from_server.read(&mut buf).await {
            if n == 0 || to_client.write_all(&buf[..n]).await.is_err() {
                return;
            }
            counter.fetch_add(n as u64, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_micros(n as u64 * 1_000_000 / bytes_per_s)).await;
        }
    };
    tokio::join!(up, down);
}

/// A key and certificate of `localhost`, and the authority that signed it: files in `dir`.
pub(crate) fn certificate(dir: &Path) -> (PathBuf, PathBuf) {
    let (ca_key, key) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, ca_key);
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let own = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let (ca_file, pem) = (dir.join("ca.pem"), dir.join("server.pem"));
    std::fs::write(&ca_file, ca.pem()).unwrap();
    std::fs::write(&pem, format!("{}{}", key.serialize_pem(), own.pem())).unwrap();
    (ca_file, pem)
}
