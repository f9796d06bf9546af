//! The command line against a real controller: words, exit codes, and `hearth dev`.

use std::io::BufRead as _;
use std::process::{Child, Command, Output, Stdio};

use hearth_tests::cluster::Cluster;
use hearth_tests::{disk, programs};

use crate::typed::{check, json, text};

#[tokio::test(flavor = "multi_thread")]
async fn the_main_job_by_hand() {
    let cluster = Cluster::start(2).await.unwrap();
    let raw = cluster.dir().join("noble.raw");
    let file = cluster.dir().join("noble.qcow2");
    disk::ext4(&raw, 64, 10, 81).unwrap();
    disk::convert(&raw, &file, "qcow2", &["-c"]).unwrap();
    let path = file.to_str().unwrap();

    let image = json(&check(&cluster, &["image", "import", path, "-o", "json"], 0));
    assert_eq!((image["name"].as_str(), image["status"].as_str()), (Some("noble"), Some("active")));
    let again = check(&cluster, &["image", "import", path], 4);
    assert!(text(&again).contains("noble"), "{}", text(&again));
    let plan = json(&check(&cluster, &["prewarm", "create", "noble", "--all", "--dry-run", "-o", "json"], 0));
    assert_eq!((plan["warm"].as_u64(), plan["cold"].as_u64()), (Some(0), Some(2)));

    let waited = check(&cluster, &["prewarm", "create", "noble", "--select", "zone=z1", "--wait"], 0);
    assert!(text(&waited).contains("1 of 1 active"), "{}", text(&waited));
    check(&cluster, &["prewarm", "create", "noble", "--to", "host-1,host-2", "--wait", "--quiet"], 0);
    let rows = json(&check(&cluster, &["cache", "list", "--image", "noble", "-o", "json"], 0));
    let states: Vec<_> = rows["items"].as_array().unwrap().iter().map(|row| row["status"].clone()).collect();
    assert_eq!(states, ["active", "active"]);
    let csv = check(&cluster, &["cache", "list", "-o", "csv"], 0);
    assert_eq!(String::from_utf8_lossy(&csv.stdout).lines().count(), 3);
    let shown = check(&cluster, &["location", "show", "host-1"], 0);
    assert!(text(&shown).contains("noble") && text(&shown).contains("online"), "{}", text(&shown));

    check(&cluster, &["cache", "pin", "noble", "host-1"], 0);
    check(&cluster, &["cache", "unpin", "noble", "host-1"], 0);
    check(&cluster, &["location", "drain", "host-2"], 0);
    check(&cluster, &["location", "undrain", "host-2"], 0);
    check(&cluster, &["prewarm", "list"], 0);
    check(&cluster, &["log", "list"], 0);
    check(&cluster, &["log", "verify"], 0);
    check(&cluster, &["system"], 0);
    check(&cluster, &["whoami"], 0);
    check(&cluster, &["doctor"], 0);
    let deleted = check(&cluster, &["image", "delete", "noble", "--yes", "--force"], 0);
    assert!(text(&deleted).contains("hearth image restore noble"), "{}", text(&deleted));
    let gone = check(&cluster, &["image", "show", "noble"], 3);
    assert!(text(&gone).contains("recycle bin"), "{}", text(&gone));
    let typo = check(&cluster, &["image", "restore", "noble", "nobel"], 3);
    assert!(text(&typo).contains("nothing was done"), "{}", text(&typo));
}

/// LG-1, LS-2, DW-1: the log, files of lists, and download links.
#[tokio::test(flavor = "multi_thread")]
async fn logs_files_and_links_by_hand() {
    let cluster = Cluster::start(0).await.unwrap();
    let raw = cluster.dir().join("=noble.raw");
    disk::ext4(&raw, 16, 1, 81).unwrap();
    check(&cluster, &["image", "import", raw.to_str().unwrap(), "--name", "=noble"], 0);

    let rows = json(&check(&cluster, &["log", "list", "--target", "image", "=noble", "-o", "json"], 0));
    let rows = rows["items"].as_array().unwrap();
    assert_eq!(rows.last().unwrap()["action"], "image.create");
    let id = rows.last().unwrap()["id"].as_str().unwrap();
    let shown = text(&check(&cluster, &["log", "show", id], 0));
    assert!(shown.contains("image.create") && shown.contains("\"kind\": \"disk\""), "{shown}");
    check(&cluster, &["log", "list", "--target", "image", "nothing"], 3);
    check(&cluster, &["log", "list", "--result", "good"], 2);
    check(&cluster, &["log", "list", "--since", "2026-01-31", "--until", "2100-01-31 18:00"], 0);
    assert!(text(&check(&cluster, &["log", "show", "1"], 2)).contains("hearth log list -o json"));
    let verified = json(&check(&cluster, &["log", "verify", "-o", "json"], 0));
    check(&cluster, &["log", "verify", "--head", verified["head"].as_str().unwrap()], 0);
    check(&cluster, &["log", "verify", "--head", &"0".repeat(64)], 1);

    let file = cluster.dir().join("log.csv");
    let path = file.to_str().unwrap();
    check(
        &cluster,
        &["log", "export", path, "--target", "image", "=noble", "--columns", "action,target_name"],
        0,
    );
    let csv = std::fs::read_to_string(&file).unwrap();
    assert!(
        csv.starts_with("\"action\",\"target_name\"\r\n") && csv.contains("\"image.create\",\"'=noble\""),
        "{csv}"
    );
    check(&cluster, &["log", "export", path], 2);
    let wrong = check(&cluster, &["image", "export", path, "--overwrite", "--columns", "size"], 2);
    assert!(text(&wrong).contains("virtual_bytes") && file.exists(), "{}", text(&wrong));
    let sheet = cluster.dir().join("images.xlsx");
    check(&cluster, &["image", "export", sheet.to_str().unwrap()], 0);
    assert!(std::fs::read(&sheet).unwrap().starts_with(b"PK"));
    let piped = check(&cluster, &["image", "export", "-", "--format", "csv", "--columns", "name"], 0);
    assert_eq!(String::from_utf8_lossy(&piped.stdout), "\"name\"\r\n\"'=noble\"\r\n");

    let made = check(&cluster, &["image", "link", "create", "=noble", "--ttl", "1h"], 0);
    let url = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    assert!(url.starts_with("https://") && url.ends_with("/%3Dnoble.raw"), "{url}");
    let got = cluster.dir().join("got.raw");
    let ca = cluster.dir().join("ca.crt");
    std::fs::write(&ca, check(&cluster, &["system", "ca"], 0).stdout).unwrap();
    let curl =
        Command::new("curl").args(["-sSf", "--cacert"]).arg(&ca).arg("-o").arg(&got).arg(&url).status();
    assert!(curl.expect("curl is installed (apt install curl)").success());
    assert_eq!(std::fs::read(&got).unwrap(), std::fs::read(&raw).unwrap());
    let listed = json(&check(&cluster, &["image", "link", "list", "=noble", "-o", "json"], 0));
    assert!(listed["items"][0]["first_used_at"].is_string(), "{listed}");
    check(&cluster, &["image", "link", "create", "=noble", "--ttl", "25h"], 2);
    check(&cluster, &["image", "link", "revoke", "=noble", "--all"], 0);
    let gone = Command::new("curl").args(["-sk", "-w", "%{http_code}", "-o", "/dev/null"]).arg(&url).output();
    assert_eq!(String::from_utf8_lossy(&gone.unwrap().stdout), "410");
}

/// AT-1, AT-3, DL-1, DL-2, LS-1: the catalog's verbs, on one image and on many.
#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_by_hand() {
    let cluster = Cluster::start(0).await.unwrap();
    for (n, name) in ["noble", "jammy"].iter().enumerate() {
        let raw = cluster.dir().join(format!("{name}.raw"));
        disk::ext4(&raw, 16, 2, 90 + n as u64).unwrap();
        let import = ["image", "import", raw.to_str().unwrap(), "--tag", "base", "--virtualisation", "kvm"];
        check(&cluster, &import, 0);
    }
    let set = [
        "image",
        "set",
        "noble",
        "--os-type",
        "linux",
        "--description",
        "网页 server",
        "--property",
        "team=db",
    ];
    assert!(text(&check(&cluster, &set, 0)).contains("team=db"));
    let stale = check(&cluster, &["image", "set", "noble", "--name", "x", "--revision", "1"], 4);
    assert!(text(&stale).contains("revision"), "{}", text(&stale));
    let shown = json(&check(&cluster, &["image", "show", "noble", "-o", "json"], 0));
    assert_eq!((shown["os_type"].as_str(), shown["virtualisation"].as_str()), (Some("linux"), Some("kvm")));
    check(&cluster, &["image", "set", "noble", "--clear", "description", "--remove-property", "team"], 0);
    check(&cluster, &["image", "set", "noble"], 2);

    check(&cluster, &["image", "tag", "noble", "jammy", "--tag", "Prod"], 0);
    check(&cluster, &["image", "untag", "jammy", "--tag", "prod"], 0);
    let names = |output: &Output| -> Vec<String> {
        let rows = json(output)["items"].as_array().unwrap().clone();
        rows.iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    let list = |args: &[&str]| names(&check(&cluster, &[&["image", "list", "-o", "json"], args].concat(), 0));
    assert_eq!(list(&["--tag", "prod", "--tag", "BASE"]), ["noble"]);
    assert_eq!(list(&["--sort", "name"]), ["jammy", "noble"]);
    assert_eq!(list(&["--sort", "name", "--order", "desc", "--created-after", "1h"]), ["noble", "jammy"]);
    assert!(list(&["--created-before", "1h"]).is_empty());
    assert!(text(&check(&cluster, &["image", "list", "--count"], 0)).contains('2'));
    check(&cluster, &["image", "list", "--at", "nowhere"], 3);

    check(&cluster, &["image", "protect", "noble"], 0);
    let some = check(&cluster, &["image", "delete", "noble", "jammy", "--yes"], 4);
    assert!(text(&some).contains("protected") && text(&some).contains("ok"), "{}", text(&some));
    assert_eq!(list(&[]), ["noble"]);
    assert!(text(&check(&cluster, &["image", "bin"], 0)).contains("jammy"));
    check(&cluster, &["image", "unprotect", "noble"], 0);
    check(&cluster, &["image", "deactivate", "noble"], 0);
    check(&cluster, &["image", "reactivate", "noble"], 0);
    check(&cluster, &["image", "set", "noble", "--name", "jammy"], 0);
    let taken = check(&cluster, &["image", "restore", "jammy"], 4);
    assert!(text(&taken).contains("jammy-2"), "{}", text(&taken));
    check(&cluster, &["image", "restore", "jammy", "--name", "jammy-2"], 0);
    check(&cluster, &["image", "delete", "jammy", "jammy-2"], 2);
    check(&cluster, &["image", "delete", "jammy", "jammy-2", "--yes"], 0);
    assert!(
        text(&check(&cluster, &["image", "delete", "jammy", "jammy-2", "--now", "--yes"], 0))
            .contains("destroyed")
    );
    assert!(names(&check(&cluster, &["image", "bin", "-o", "json"], 0)).is_empty());
    check(&cluster, &["image", "restore", "jammy"], 3);
    check(&cluster, &["image", "cancel", "jammy", "--yes"], 3);
    assert!(text(&check(&cluster, &["image", "distributions"], 0)).contains("Ubuntu"));
}

/// Proves GD-1: the guide is printed without a controller, and lists and refusals name it.
#[tokio::test(flavor = "multi_thread")]
async fn the_guide_is_printed_and_named_by_refusals() {
    let output = Command::new(&programs::get().hearth).args(["image", "guide"]).env_clear().output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout), include_str!("../../docs/making-images.md"));
    let cluster = Cluster::start(0).await.unwrap();
    let empty = check(&cluster, &["image", "list"], 0);
    assert!(text(&empty).contains("hearth image guide"), "{}", text(&empty));
    let file = cluster.dir().join("noble.qcow2");
    std::fs::write(&file, "no disk at all").unwrap();
    let refused = check(&cluster, &["image", "import", file.to_str().unwrap(), "--format", "qcow2"], 1);
    assert!(text(&refused).contains("hearth image guide"), "{}", text(&refused));
}

/// IMG-2, DW-1: another format is made, downloaded with its checksum compared, resumed, and removed by hand.
#[tokio::test(flavor = "multi_thread")]
async fn another_format_by_hand() {
    let cluster = Cluster::start(0).await.unwrap();
    let raw = cluster.dir().join("noble.raw");
    disk::ext4(&raw, 64, 10, 81).unwrap();
    check(&cluster, &["image", "import", raw.to_str().unwrap(), "--format", "raw"], 0);
    let made = check(&cluster, &["image", "variant", "create", "noble", "vhdx", "--wait", "-o", "json"], 0);
    assert_eq!(json(&made)["status"], "active");
    let listed = check(&cluster, &["image", "variants", "noble"], 0);
    assert!(text(&listed).contains("vhdx") && text(&listed).contains("active"), "{}", text(&listed));
    let to = cluster.dir().join("noble.vmdk");
    let path = to.to_str().unwrap();
    // It is made because it is asked for, and what was begun before is gone on with.
    check(&cluster, &["image", "download", "noble", "--format", "vmdk", "--file", path], 0);
    let whole = std::fs::read(&to).unwrap();
    std::fs::rename(&to, format!("{path}.part")).unwrap();
    let part = std::fs::File::options().write(true).open(format!("{path}.part")).unwrap();
    part.set_len(whole.len() as u64 / 2).unwrap();
    check(&cluster, &["image", "download", "noble", "--format", "vmdk", "--file", path], 0);
    assert!(std::fs::read(&to).unwrap() == whole);
    let same =
        Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "vmdk"]).args([&raw, &to]).output();
    let same = same.unwrap();
    assert!(same.status.success(), "{}", text(&same));
    check(&cluster, &["image", "download", "noble", "--format", "vmdk", "--file", path], 2);
    check(&cluster, &["image", "download", "noble", "--format", "iso"], 2);
    check(&cluster, &["image", "variant", "delete", "noble", "vmdk", "--yes"], 0);
    check(&cluster, &["image", "variant", "delete", "noble", "vmdk", "--yes"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_what_went_wrong() {
    let cluster = Cluster::start(0).await.unwrap();
    check(&cluster, &["image", "show", "nothing"], 3);
    check(&cluster, &["image", "delete", "nothing"], 3);
    check(&cluster, &["image", "import", "/nonexistent.qcow2"], 2);
    check(&cluster, &["prewarm", "create", "nothing"], 2);
    check(&cluster, &["transfer", "stop"], 2);
    // A noun alone is answered with its verbs.
    assert!(
        text(&check(&cluster, &["image"], 2))
            .contains("Download the file as it was imported, or in another format")
    );

    let run = |name: &str, value: &str| {
        let mut command = Command::new(&programs::get().hearth);
        command.arg("--config").arg(cluster.dir().join("hearth.toml")).arg("whoami").env(name, value);
        command.output().unwrap()
    };
    let denied = run("HEARTH_TOKEN", &format!("hrt_{}", "0".repeat(64)));
    assert_eq!(denied.status.code(), Some(5), "{}", text(&denied));
    let untrusted = run("HEARTH_FINGERPRINT", &"0".repeat(64));
    assert_eq!(untrusted.status.code(), Some(6), "{}", text(&untrusted));
    assert!(text(&untrusted).contains("fingerprint"), "{}", text(&untrusted));
    let away = run("HEARTH_URL", "https://127.0.0.1:1");
    assert_eq!(away.status.code(), Some(6), "{}", text(&away));
    assert!(text(&away).contains("hint: check that hearth-controller runs"), "{}", text(&away));
}

#[tokio::test(flavor = "multi_thread")]
async fn login_tries_and_stores() {
    let cluster = Cluster::start(0).await.unwrap();
    let stored = std::fs::read_to_string(cluster.dir().join("hearth.toml")).unwrap();
    let value = |key: &str| {
        let line = stored.lines().find(|line| line.starts_with(key)).unwrap();
        line.split('"').nth(1).unwrap().to_owned()
    };
    let home = cluster.dir().join("home");
    let login = |token: &str| {
        let mut command = Command::new(&programs::get().hearth);
        command.env("HOME", &home).env_remove("XDG_CONFIG_HOME").env_remove("HEARTH_CONFIG");
        command.args(["login", &value("url"), "--token", token, "--fingerprint", &value("fingerprint")]);
        command.output().unwrap()
    };
    let wrong = login(&format!("hrt_{}", "0".repeat(64)));
    assert_eq!(wrong.status.code(), Some(5), "{}", text(&wrong));
    assert!(!home.join(".config/hearth/config.toml").exists());
    let right = login(&value("token"));
    assert_eq!(right.status.code(), Some(0), "{}", text(&right));
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(home.join(".config/hearth/config.toml")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn dev_once_ends_with_every_copy_verified_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(&programs::get().hearth);
    let output = command.args(["dev", "--once", "--agents", "3"]).env("TMPDIR", dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(table.lines().filter(|line| line.contains(" active ")).count(), 3, "{}", text(&output));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the data folder was left behind");
}

/// Ends with the test, also with one that fails.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        // Gone already is what is wanted.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn what_dev_prints_can_be_pasted_into_a_shell() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(&programs::get().hearth);
    command.args(["dev", "--agents", "1"]).env("TMPDIR", dir.path()).stdout(Stdio::piped());
    let mut dev = Dev(command.spawn().unwrap());
    let lines = std::io::BufReader::new(dev.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let printed: Vec<String> = lines.take_while(|line| !line.starts_with("Logs: ")).collect();
    // The table of copies comes first.
    let advice = printed.iter().skip_while(|line| !line.starts_with("Running until Ctrl-C"));
    let pasted: Vec<&str> = advice.filter_map(|line| line.strip_prefix("  ")).collect();
    assert!(pasted.len() >= 8, "{printed:#?}");
    let shell = Command::new("/bin/sh").args(["-exc", &pasted.join("\n")]).current_dir("/").output().unwrap();
    assert!(shell.status.success(), "{}", text(&shell));
    assert!(text(&shell).contains("1 of 1 active") && text(&shell).contains("vm-1"), "{}", text(&shell));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(dev.0.id().try_into().unwrap()),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    assert_eq!(dev.0.wait().unwrap().code(), Some(0));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the data folder was left behind");
}
