//! The programs under test.
//!
//! **What.** [`get`] gives the paths of the programs beside the running test.
//! **Why it may build.** Cargo builds programs of other packages only when asked. Under nextest (`make test`) the Makefile
//! has built them before; a bare `cargo test -p hearth-tests` builds them here, once per process, so that no test ever
//! runs against a stale program. The selection is the same in both places, or cargo would build dependencies twice.
//! **Invariants.** The programs have the profile of the test itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Paths of the programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `hearth-controller`.
    pub controller: PathBuf,
    /// `hearth-agent`.
    pub agent: PathBuf,
    /// `hearth`.
    pub hearth: PathBuf,
    /// `hearth-rogue`.
    pub rogue: PathBuf,
}

/// The programs; built first unless the test runs under nextest.
///
/// # Panics
/// If they cannot be built or are not there.
#[must_use]
pub fn get() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(find)
}

/// A program that `scripts/prerequisites test` installed from PyPI; it may be missing.
#[must_use]
pub fn python_tool(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python/bin").join(name)
}

fn find() -> Programs {
    let test = std::env::current_exe().expect("a running program has a file");
    // A test is target/PROFILE/deps/it-HASH, a benchmark program target/PROFILE/NAME.
    let folder =
        test.ancestors().skip(1).find(|dir| !dir.ends_with("deps")).expect("a file stands in a folder");
    if std::env::var_os("NEXTEST").is_none() {
        build(folder);
    }
    let program = |name: &str| {
        let file = folder.join(name);
        assert!(file.is_file(), "{} is missing: run `cargo build --workspace --bins` first", file.display());
        file
    };
    Programs {
        controller: program("hearth-controller"),
        agent: program("hearth-agent"),
        hearth: program("hearth"),
        rogue: program("hearth-rogue"),
    }
}

fn build(folder: &Path) {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ stands in the repository");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--locked", "--quiet", "--workspace", "--bins"]).current_dir(top);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "the programs under test do not build");
}
