//! The file rules of the converter, by Landlock.
//!
//! **What.** Read the input, read and write the output, read the system's libraries, execute the one program and the
//! dynamic loader. On kernels that can (6.7, 6.12): no TCP, no signals or abstract sockets out of the sandbox.
//!
//! **Why the output file and not its folder.** A second file in the folder would escape the watcher that counts
//! what was allocated.
//!
//! **Invariants.** File rights of the first Landlock version are always enforced or, with `required`, the program does
//! not start; later rights as far as the kernel knows them.

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

use super::{Confinement, SandboxError, SandboxMode};

/// What a dynamically linked program needs beside itself; what does not exist on a system is left out.
const LIBRARIES: [&str; 8] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
    "/etc/ld-musl-x86_64.path",
    "/dev/urandom",
    "/dev/null",
];
/// Dynamic loaders; the kernel executes them on behalf of the program.
const LOADERS: [&str; 4] = [
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
];

fn ruleset() -> Result<Ruleset, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .map(|ruleset| ruleset.set_compatibility(CompatLevel::BestEffort))
}

/// Whether the running kernel enforces file rules. Nothing is restricted by asking.
#[must_use]
pub fn landlock_available() -> bool {
    ruleset().and_then(Ruleset::create).is_ok()
}

/// Restricts this thread and everything it starts.
///
/// # Errors
/// [`SandboxError`] where the rules cannot be enforced, but for a kernel without Landlock under `best-effort`.
pub(super) fn restrict(confinement: &Confinement, program: &Path) -> Result<(), SandboxError> {
    if !landlock_available() {
        return match confinement.mode {
            SandboxMode::Required => Err(SandboxError::NoLandlock),
            SandboxMode::BestEffort => Ok(()),
        };
    }
    let mut rules = ruleset()?
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?;
    let read = AccessFs::ReadFile;
    for path in LIBRARIES.iter().map(Path::new).filter(|path| path.exists()) {
        let access = if path.is_dir() { read | AccessFs::ReadDir } else { read.into() };
        rules = allow(rules, path, access)?;
    }
    for path in LOADERS.iter().map(Path::new).filter(|path| path.exists()).chain([program]) {
        rules = allow(rules, path, read | AccessFs::Execute)?;
    }
    rules = allow(rules, Path::new("/dev/null"), read | AccessFs::WriteFile)?;
    rules = allow(rules, &confinement.read, read.into())?;
    for path in &confinement.also_read {
        let access = if path.is_dir() { read | AccessFs::ReadDir } else { read.into() };
        rules = allow(rules, path, access)?;
    }
    rules = allow(rules, &confinement.write, read | AccessFs::WriteFile | AccessFs::Truncate)?;
    match rules.restrict_self()?.ruleset {
        RulesetStatus::NotEnforced => Err(SandboxError::NoLandlock),
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
    }
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, SandboxError> {
    let fd = PathFd::new(path).map_err(|source| SandboxError::Path { path: path.to_owned(), source })?;
    Ok(rules.add_rule(PathBeneath::new(fd, access))?)
}
