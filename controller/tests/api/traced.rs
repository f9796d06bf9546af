//! What the program touches while bad images and bad addresses are thrown at it, as the kernel saw it.
//!
//! **What.** The controller runs under `strace`, with all the programs that it starts; afterwards the trace is searched for files
//! and hosts that the senders named.
//! **Why not only the answers.** A refusal says nothing of what was opened or asked before it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hearth_protocol::words::ImageStatus;
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::crash::{set_up, wait_until_it_answers};
use super::harness::{PROGRAM, fault, noise};

/// The controller and its children under `strace`, killed when dropped.
struct Traced(Child);

impl Traced {
    /// Starts the program; every call that names a file or a host goes to `out`.
    fn start(config: &Path, out: &Path) -> Self {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-s", "4096", "-e", "trace=%file,connect,sendto,sendmsg", "-o"]).arg(out);
        command.arg(PROGRAM).arg("serve").arg("--config").arg(config);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.expect("strace is needed (apt install strace)"))
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // The program, not who looks at it: that one would leave it running.
        let children = format!("/proc/{0}/task/{0}/children", self.0.id());
        let program = std::fs::read_to_string(children).unwrap_or_default();
        if let Some(pid) = program.split_whitespace().next().and_then(|pid| pid.parse().ok()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        }
        drop(self.0.wait());
    }
}

/// Images that name another file: as a backing file, as an extent, as the place of their data.
fn images_that_name(secret: &Path, dir: &Path) -> Vec<(&'static str, PathBuf)> {
    let at = |name: &str| dir.join(name);
    let secret = secret.to_str().unwrap();
    let descriptor = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
         RW 2048 FLAT \"{secret}\" 0\n"
    );
    std::fs::write(at("extent.vmdk"), descriptor).unwrap();
    for (name, args) in [
        ("backing.qcow2", ["create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw"].as_slice()),
        ("json.qcow2", &["create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b"]),
        ("data.qcow2", &["create", "-q", "-f", "qcow2"]),
    ] {
        let mut qemu = Command::new("qemu-img");
        qemu.args(args);
        match name {
            "json.qcow2" => {
                qemu.arg(format!("json:{{\"driver\":\"file\",\"filename\":\"{secret}\"}}"));
            }
            "data.qcow2" => {
                qemu.arg("-o").arg(format!("data_file={secret},data_file_raw=on"));
            }
            _ => {}
        }
        let made = qemu.arg(at(name)).arg("1M").output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    ["extent.vmdk", "backing.qcow2", "json.qcow2", "data.qcow2"].map(|name| (name, at(name))).into()
}

/// Addresses that nobody may be sent to, whatever they are called.
const CLOSED: &[&str] = &[
    "http://169.254.169.254/latest/meta-data/",
    "http://2852039166/",
    "http://0xa9fea9fe/",
    "http://[::ffff:169.254.169.254]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[fd00:ec2::254]/",
    "http://10.11.12.13/disk.img",
    "ftp://10.11.12.13/disk.img",
    "ftps://192.168.77.77/disk.img",
    "http://127.0.0.1:22/",
    "file:///etc/shadow",
    "s3://no-such-bucket/x",
];

/// IN-2, IN-8: hostile images open no other file and hostile addresses reach no other host; the kernel is the witness.
#[tokio::test(flavor = "multi_thread")]
async fn what_hostile_senders_name_is_never_touched() {
    let dir = tempfile::tempdir().unwrap();
    let (config, client) = set_up(dir.path(), "").await;
    let secret = dir.path().join("secret-of-the-host");
    std::fs::write(&secret, noise(1 << 20)).unwrap();
    let bad = images_that_name(&secret, dir.path());
    let trace = dir.path().join("trace");
    let running = Traced::start(config.path.as_ref().unwrap(), &trace);
    wait_until_it_answers(&client).await;
    for (name, file) in &bad {
        let id = client.image(json!({ "name": name })).await;
        let sent = client.put(id, std::fs::read(file).unwrap()).await;
        assert!(
            [StatusCode::ACCEPTED, StatusCode::BAD_REQUEST, StatusCode::CONFLICT].contains(&sent.status())
        );
        let image = client.ended(id).await;
        assert_eq!(image.status, ImageStatus::Killed, "{name}");
        assert!(!image.reason.is_empty(), "{name}");
    }
    for url in CLOSED {
        let sent = json!({ "name": "x", "source": { "url": url } });
        let answer = client.ask(Method::POST, "/images").json(&sent).send().await.unwrap();
        if answer.status() == StatusCode::CREATED {
            let id =
                answer.json::<serde_json::Value>().await.unwrap()["id"].as_str().unwrap().parse().unwrap();
            assert_eq!(client.ended(id).await.status, ImageStatus::Killed, "{url}");
            client.ask(Method::DELETE, &format!("/images/{id}?now=true")).send().await.unwrap();
        } else {
            fault(answer, 400).await;
        }
    }
    // The trace sees what is done: a good image is opened by the programs that convert it.
    let good = client.image(json!({ "name": "good" })).await;
    client.put(good, noise(1 << 20)).await;
    assert_eq!(client.ended(good).await.status, ImageStatus::Active);
    drop(running);
    let trace = std::fs::read_to_string(trace).unwrap();
    assert!(trace.contains(&good.to_string()), "the trace is of this run");
    let named = secret.file_name().unwrap().to_str().unwrap();
    let touched: Vec<&str> =
        trace.lines().filter(|line| line.contains(named) || line.contains("shadow")).collect();
    assert!(touched.is_empty(), "{touched:#?}");
    let reached: Vec<&str> = trace
        .lines()
        .filter(|line| {
            (line.contains("AF_INET"))
                && (line.contains("connect(") || line.contains("sendto(") || line.contains("sendmsg("))
        })
        .collect();
    assert!(reached.is_empty(), "{reached:#?}");
}
