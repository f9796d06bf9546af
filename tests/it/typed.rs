//! `hearth` run as people run it: exit codes are checked, what it says is read.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use hearth_tests::cluster::Cluster;
use hearth_tests::programs;
use serde_json::Value;

/// Runs `hearth` as the administrator; it must end with `code`.
#[track_caller]
pub(crate) fn check(cluster: &Cluster, args: &[&str], code: i32) -> Output {
    let output = cluster.hearth(args).unwrap();
    assert_eq!(output.status.code(), Some(code), "hearth {args:?}: {}", text(&output));
    output
}

/// All that it said.
pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What it said with `-o json`.
pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(output)))
}

/// Somebody with a configuration of their own.
pub(crate) struct Person<'a> {
    cluster: &'a Cluster,
    file: String,
}

impl<'a> Person<'a> {
    /// Who was given the address of the controller, and no token.
    pub(crate) fn new(cluster: &'a Cluster, name: &str) -> Self {
        let file = format!("{name}.toml");
        if name != "hearth" {
            std::fs::copy(cluster.dir().join("hearth.toml"), cluster.dir().join(&file)).unwrap();
        }
        Self { cluster, file }
    }

    /// Runs `hearth` with one line per element of `lines` on stdin, in the cluster's folder; it must end with `code`.
    #[track_caller]
    pub(crate) fn with_input(&self, args: &[&str], lines: &[&str], code: i32) -> String {
        let mut command = Command::new(&programs::get().hearth);
        command.arg("--config").arg(&self.file).args(args).current_dir(self.cluster.dir());
        command.env_remove("HEARTH_URL").env_remove("HEARTH_TOKEN").env_remove("HEARTH_FINGERPRINT");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // Who refuses at once reads nothing.
        drop(lines.iter().try_for_each(|line| writeln!(stdin, "{line}")));
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "hearth {args:?}: {}", text(&output));
        text(&output)
    }
}
