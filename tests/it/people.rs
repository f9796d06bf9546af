//! Users at the command line: made, given a role, logged in, and out at once when they are disabled.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use hearth_tests::cluster::Cluster;
use hearth_tests::programs;

/// Runs `hearth` with the configuration `file` and one line per element of `lines` on stdin.
#[track_caller]
fn run(cluster: &Cluster, file: &str, args: &[&str], lines: &[&str], code: i32) -> String {
    let mut command = Command::new(&programs::get().hearth);
    command.arg("--config").arg(cluster.dir().join(file)).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Who refuses at once reads nothing.
    drop(lines.iter().try_for_each(|line| writeln!(stdin, "{line}")));
    drop(stdin);
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert_eq!(status.code(), Some(code), "hearth {args:?}: {text}");
    text
}

/// PE-1: from nothing to a user who works in a project, with names everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_works_in_a_project_until_it_is_disabled() {
    let cluster = Cluster::start(0).await.unwrap();
    let admin = |args: &[&str], lines: &[&str], code: i32| run(&cluster, "hearth.toml", args, lines, code);
    std::fs::copy(cluster.dir().join("hearth.toml"), cluster.dir().join("alice.toml")).unwrap();
    let alice = |args: &[&str], lines: &[&str], code: i32| run(&cluster, "alice.toml", args, lines, code);
    let password = "correct horse battery";
    admin(&["domain", "create", "sales"], &[], 0);
    admin(&["project", "create", "web", "--domain", "sales"], &[], 0);
    admin(&["project", "create", "web"], &[], 0);
    let told = admin(&["project", "show", "web"], &[], 2);
    assert!(told.contains("domain sales") && told.contains("domain default"), "{told}");
    admin(&["user", "create", "alice", "--domain", "sales", "--password-stdin"], &[password], 0);
    let grant = ["user", "grant", "alice", "--role", "member", "--project", "web", "--domain", "sales"];
    admin(&grant, &[], 0);
    admin(&grant, &[], 4);
    let enter = ["login", "--user", "alice", "--domain", "sales", "--project", "web", "--password-stdin"];
    let refused = alice(&enter, &["wrong horse battery"], 5);
    assert!(!refused.contains("wrong horse"), "{refused}");
    alice(&enter, &[password], 0);
    assert!(alice(&["project", "list"], &[], 0).contains("web"));
    alice(&["user", "list"], &[], 5);
    alice(&["token", "rotate"], &[], 0);
    alice(&["user", "password", "--password-stdin"], &[password, "another horse battery"], 0);
    alice(&["whoami"], &[], 0);
    admin(&["user", "disable", "alice"], &[], 0);
    alice(&["whoami"], &[], 5);
    admin(&["user", "enable", "alice"], &[], 0);
    alice(&enter, &["another horse battery"], 0);
    alice(&["logout"], &[], 0);
    alice(&["whoami"], &[], 2);
    let log = admin(&["log", "list"], &[], 0);
    assert!(log.contains("user.login") && !log.contains("horse"), "{log}");
    // The last administrator stays in.
    admin(&["logout"], &[], 4);
    admin(&["whoami"], &[], 0);
}
