//! Rules for what may use what: crates among each other, and the pure parts.

use crate::source::{Finding, SourceFile};

/// What would let a decision depend on anything but its arguments.
const IMPURE: &[&str] = &[
    "tokio::",
    "quinn::",
    "async fn",
    ".await",
    "std::fs",
    "std::net",
    "Instant::now",
    "SystemTime",
    "tracing::",
];
/// The protocol names addresses (`std::net` types), but does nothing with them.
const IMPURE_IN_PROTOCOL: &[&str] = &[
    "tokio::",
    "quinn::",
    "async fn",
    ".await",
    "std::fs",
    "TcpStream",
    "UdpSocket",
    "Instant::now",
    "SystemTime",
];

/// Our crates: folder, package, and the packages of ours that it may use.
const CRATES: &[(&str, &str, &[&str])] = &[
    ("protocol", "hearth-protocol", &[]),
    ("udp", "hearth-udp", &[]),
    ("agent", "hearth-agent", &["hearth-protocol", "hearth-udp"]),
    ("controller", "hearth-controller", &["hearth-protocol", "hearth-udp"]),
    ("cli", "hearth", &["hearth-protocol"]),
    ("tests", "hearth-tests", &["hearth-protocol", "hearth-agent", "hearth-controller"]),
];

/// A `logic/` folder (or a `logic.rs`) decides and does nothing else.
pub(crate) fn logic_is_pure(files: &[SourceFile]) -> Vec<Finding> {
    let in_logic = |file: &SourceFile| file.is_below("logic") || file.name() == "logic.rs";
    words_in(files, in_logic, IMPURE, "logic/ takes `now`, a seed and a snapshot, and returns a plan")
}

/// The protocol has no input or output, no runtime and no clock.
pub(crate) fn protocol_is_pure(files: &[SourceFile]) -> Vec<Finding> {
    let in_protocol = |file: &SourceFile| file.path.starts_with("protocol/src/");
    words_in(files, in_protocol, IMPURE_IN_PROTOCOL, "protocol says what crosses the wire; the daemons do it")
}

fn words_in(
    files: &[SourceFile],
    applies: impl Fn(&SourceFile) -> bool,
    words: &[&str],
    cure: &str,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| applies(file)) {
        let Some(rust) = &file.rust else { continue };
        for word in words {
            findings.extend(rust.find(word).map(|at| file.finding_at(at, format!("`{word}` here: {cure}"))));
        }
    }
    findings
}

/// Arrows between our crates point one way only, in `Cargo.toml` and in the code.
pub(crate) fn crate_imports(files: &[SourceFile]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (folder, package, allowed) in CRATES {
        let others = CRATES.iter().map(|(_, other, _)| *other).filter(|other| other != package);
        let forbidden: Vec<&str> = others.filter(|other| !allowed.contains(other)).collect();
        let inside = |file: &&SourceFile| file.path.split('/').next() == Some(*folder);
        for file in files.iter().filter(inside) {
            findings.extend(forbidden.iter().flat_map(|package| imports_of(file, package)));
        }
    }
    findings
}

/// The codec of the wire is known to the protocol alone, so that it can be replaced there.
pub(crate) fn codec_stays_in_protocol(files: &[SourceFile]) -> Vec<Finding> {
    let elsewhere = |file: &SourceFile| !file.path.starts_with("protocol/");
    words_in(
        files,
        elsewhere,
        &["bincode::"],
        "use hearth_protocol::frame; the codec may have to be replaced",
    )
}

/// Places where `file` uses the package `package`.
fn imports_of(file: &SourceFile, package: &str) -> Vec<Finding> {
    let message = format!(
        "`{package}` may not be used here: protocol uses none of ours, the daemons and the command line protocol alone"
    );
    if file.name() == "Cargo.toml" {
        return dependency_lines(file, package).map(|at| file.finding_at(at, message.clone())).collect();
    }
    let Some(rust) = &file.rust else { return Vec::new() };
    let path = format!("{}::", package.replace('-', "_"));
    rust.find(&path).map(|at| file.finding_at(at, message.clone())).collect()
}

/// Offsets of the lines `package.workspace = true`, `package = { … }` and `[dependencies.package]`.
fn dependency_lines<'a>(file: &'a SourceFile, package: &'a str) -> impl Iterator<Item = usize> + 'a {
    let mut offset = 0;
    file.text.split_inclusive('\n').filter_map(move |line| {
        let at = offset;
        offset += line.len();
        let name = match line.trim().strip_prefix('[') {
            Some(table) => table.trim_end_matches(']').rsplit('.').next().unwrap_or_default(),
            None => line.split(['.', '=', ' ']).next().unwrap_or_default(),
        };
        let is_dependency =
            name == package && !line.starts_with("name") && !line.contains("package.metadata");
        is_dependency.then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::check;

    #[test]
    fn logic_that_does_something_is_found() {
        for word in IMPURE {
            let planted = format!("//! Header.\nfn f() {{ {word} }}\n");
            check(logic_is_pure, &[("agent/src/logic/evict.rs", &planted)], &["agent/src/logic/evict.rs:2:"]);
            check(logic_is_pure, &[("agent/src/store/evict.rs", &planted)], &[]);
        }
        check(logic_is_pure, &[("a/src/logic/x.rs", "//! Unlike tokio::time and std::fs.\n")], &[]);
    }

    #[test]
    fn protocol_that_does_something_is_found() {
        check(protocol_is_pure, &[("protocol/src/a.rs", "use std::fs;")], &["protocol/src/a.rs:1:"]);
        check(protocol_is_pure, &[("protocol/src/a.rs", "use std::net::SocketAddr;")], &[]);
    }

    #[test]
    fn a_codec_outside_protocol_is_found() {
        let planted = "use bincode::Encode;";
        check(
            codec_stays_in_protocol,
            &[("agent/src/a.rs", planted), ("protocol/src/a.rs", planted)],
            &["agent/src/a.rs:1:"],
        );
    }

    #[test]
    fn a_wrong_arrow_between_crates_is_found() {
        let planted = [
            (
                "protocol/Cargo.toml",
                "[package]\nname = \"hearth-protocol\"\n[dependencies]\nhearth-agent.workspace = true\n",
            ),
            ("agent/src/a.rs", "use hearth_protocol::Digest;\nuse hearth_controller::db;\n"),
            ("controller/Cargo.toml", "[dev-dependencies.hearth-agent]\npath = \"../agent\"\n"),
            ("cli/src/a.rs", "fn f() { hearth_agent::run(); }"),
        ];
        let found =
            ["protocol/Cargo.toml:4:", "agent/src/a.rs:2:", "controller/Cargo.toml:1:", "cli/src/a.rs:1:"];
        check(crate_imports, &planted, &found);
    }

    #[test]
    fn the_arrows_of_the_design_are_silent() {
        let fine = [
            (
                "agent/Cargo.toml",
                "[package]\nname = \"hearth-agent\"\n[dependencies]\nhearth-protocol.workspace = true\n",
            ),
            (
                "cli/Cargo.toml",
                "[package]\nname = \"hearth\"\n[dependencies]\nhearth-protocol.workspace = true\n",
            ),
            ("tests/src/a.rs", "use hearth_agent::x;\nuse hearth_controller::y;\n"),
        ];
        check(crate_imports, &fine, &[]);
    }
}
