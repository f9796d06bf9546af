//! Locks the process that unpacks untrusted images into its own two files.
//!
//! **What.** The controller starts itself as `hearth-controller convert-child …`; [`run_child`] sets resource limits,
//! Landlock rules and a system call filter for itself and then becomes `qemu-img`, which inherits all three.
//!
//! **Why this way.** No root, no namespaces, no unsafe code, and nothing to set up on the host: a child that limits
//! itself before `exec` works in every unit file and in a test. A container would need rights the daemon must not have.
//!
//! **Invariants**, tested against the real programs in `controller/tests/sandbox.rs`:
//! 1. The child reads the input, what was named besides, the system's libraries and nothing else; it writes the one output
//!    file.
//! 2. It cannot make a socket, start a process, trace or signal another one.
//! 3. With `required` it does not start where the kernel cannot enforce 1.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::str::FromStr;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;

mod calls;
mod files;

pub use files::landlock_available;

/// Name of the hidden sub-command.
pub const SUBCOMMAND: &str = "convert-child";
/// Exit status when the sandbox could not be set up; `qemu-img` itself uses 1.
pub const EXIT_NO_SANDBOX: u8 = 125;
/// Exit status when the program could not be started.
pub const EXIT_NO_PROGRAM: u8 = 126;

/// Address space of the converter. 64 KiB to 2 MiB clusters in 16 coroutines need far less; protects the controller
/// and the host's memory from images whose tables ask for more.
pub const MEMORY_BYTES: u64 = 2 << 30;
/// Open files of the converter: it uses about ten.
const OPEN_FILES: u64 = 64;

/// What to do where the kernel has no Landlock.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SandboxMode {
    /// Refuse to convert. The default: Debian 12 and every later kernel we support has Landlock.
    #[default]
    Required,
    /// Convert with the system call filter and the limits alone, and say so loudly at every start.
    BestEffort,
}

impl SandboxMode {
    /// The word in the configuration file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::BestEffort => "best-effort",
        }
    }
}

/// The word is not one of the two.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("sandbox is {given:?}; allowed: \"required\", \"best-effort\"")]
pub struct SandboxModeError {
    /// What stood there.
    pub given: String,
}

impl FromStr for SandboxMode {
    type Err = SandboxModeError;

    fn from_str(text: &str) -> Result<Self, SandboxModeError> {
        match text {
            "required" => Ok(Self::Required),
            "best-effort" => Ok(Self::BestEffort),
            other => Err(SandboxModeError { given: other.to_owned() }),
        }
    }
}

/// Why the sandbox could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel cannot enforce the file rules.
    #[error(
        "this kernel has no Landlock (needs Linux 5.13 with \"landlock\" in the lsm= list); images that need \
         conversion are refused. Boot a kernel with it, import raw files only, or set sandbox = \"best-effort\""
    )]
    NoLandlock,
    /// The kernel refused the file rules.
    #[error("cannot set up the Landlock rules")]
    Landlock(#[from] landlock::RulesetError),
    /// A path of the rules cannot be opened.
    #[error("cannot open {path} for the Landlock rules")]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: landlock::PathFdError,
    },
    /// The system call filter could not be made for this processor.
    #[error("cannot build the system call filter")]
    Filter(#[from] seccompiler::BackendError),
    /// The kernel refused the system call filter.
    #[error("cannot apply the system call filter")]
    Apply(#[from] seccompiler::Error),
    /// A limit could not be set.
    #[error("cannot set the limit {limit}")]
    Limit {
        /// Which.
        limit: &'static str,
        /// Why.
        #[source]
        source: nix::Error,
    },
    /// The arguments are not what the controller passes.
    #[error("convert-child is started by the controller itself: {argument} is missing or wrong")]
    Arguments {
        /// Which.
        argument: &'static str,
    },
}

/// What one sandboxed run may do; becomes the arguments of the child.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// Whether Landlock must be there.
    pub mode: SandboxMode,
    /// The one file to read.
    pub read: PathBuf,
    /// The one file to write; exists already.
    pub write: PathBuf,
    /// Length the written file may reach, in bytes.
    pub file_bytes: u64,
    /// Processor time of all threads, in seconds.
    pub cpu_s: u64,
    /// Files and folders to read beside the one file.
    pub also_read: Vec<PathBuf>,
}

impl Confinement {
    /// Arguments for `hearth-controller` that run `program` under this confinement.
    #[must_use]
    pub fn arguments(&self, program: &[OsString]) -> Vec<OsString> {
        let mut arguments = vec![
            SUBCOMMAND.into(),
            self.mode.as_str().into(),
            self.read.clone().into(),
            self.write.clone().into(),
            self.file_bytes.to_string().into(),
            self.cpu_s.to_string().into(),
            std::process::id().to_string().into(),
            self.also_read.len().to_string().into(),
        ];
        arguments.extend(self.also_read.iter().map(OsString::from));
        arguments.extend_from_slice(program);
        arguments
    }

    /// Reads back what [`Self::arguments`] wrote, without the sub-command's name; also returns the process that wrote
    /// it and the program.
    fn parse(arguments: &[OsString]) -> Result<(Self, u32, &[OsString]), SandboxError> {
        let wrong = |argument| SandboxError::Arguments { argument };
        let [mode, read, write, file_bytes, cpu_s, parent, n_also, rest @ ..] = arguments else {
            return Err(wrong("the list"));
        };
        let mode = mode.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| wrong("the mode"))?;
        let number = |text: &OsString| text.to_str().and_then(|text| text.parse::<u64>().ok());
        let n_also = number(n_also).and_then(|n| usize::try_from(n).ok());
        let parts =
            n_also.and_then(|n| rest.split_at_checked(n)).ok_or_else(|| wrong("the paths to read"))?;
        let (also_read, program) = parts;
        if program.is_empty() {
            return Err(wrong("the program"));
        }
        let confinement = Self {
            mode,
            read: read.into(),
            write: write.into(),
            file_bytes: number(file_bytes).ok_or_else(|| wrong("the file size"))?,
            cpu_s: number(cpu_s).ok_or_else(|| wrong("the processor time"))?,
            also_read: also_read.iter().map(PathBuf::from).collect(),
        };
        let parent = parent.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| wrong("the parent"))?;
        Ok((confinement, parent, program))
    }
}

/// Entry point of the child: limits this process and replaces it by the program. Returns only when that failed.
///
/// Must run on the main thread before any other thread exists, because the rules hold for the calling thread and
/// what it starts. `arguments` are those behind the sub-command's name.
#[must_use]
pub fn run_child(arguments: &[OsString]) -> ExitCode {
    match confine(arguments) {
        Err(error) => {
            let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
            let causes: String = causes.map(|cause| format!(": {cause}")).collect();
            eprintln!("hearth-controller {SUBCOMMAND}: {error}{causes}");
            ExitCode::from(EXIT_NO_SANDBOX)
        }
        Ok(program) => {
            let [name, rest @ ..] = program else { return ExitCode::from(EXIT_NO_PROGRAM) };
            let error = Command::new(name).args(rest).exec();
            eprintln!("hearth-controller {SUBCOMMAND}: cannot start {}: {error}", name.display());
            ExitCode::from(EXIT_NO_PROGRAM)
        }
    }
}

/// Sets all limits on this process; returns the program to become.
fn confine(arguments: &[OsString]) -> Result<&[OsString], SandboxError> {
    let (confinement, parent, program) = Confinement::parse(arguments)?;
    let death = |source| SandboxError::Limit { limit: "death signal", source };
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(death)?;
    // The controller may have died before that line: then nobody watches this process.
    if u32::try_from(nix::unistd::getppid().as_raw()) != Ok(parent) {
        return Err(SandboxError::Arguments { argument: "the living parent" });
    }
    let limits = [
        (Resource::RLIMIT_AS, MEMORY_BYTES, "address space"),
        (Resource::RLIMIT_CORE, 0, "core size"),
        (Resource::RLIMIT_CPU, confinement.cpu_s, "processor time"),
        (Resource::RLIMIT_FSIZE, confinement.file_bytes, "file size"),
        (Resource::RLIMIT_NOFILE, OPEN_FILES, "open files"),
        (Resource::RLIMIT_MEMLOCK, 0, "locked memory"),
    ];
    for (resource, value, limit) in limits {
        // A little room above the processor time makes the end a SIGXCPU, which names its reason; SIGKILL does not.
        let hard = if matches!(resource, Resource::RLIMIT_CPU) { value.saturating_add(5) } else { value };
        setrlimit(resource, value, hard).map_err(|source| SandboxError::Limit { limit, source })?;
    }
    let name = program.first().ok_or(SandboxError::Arguments { argument: "the program" })?;
    files::restrict(&confinement, name.as_ref())?;
    calls::restrict()?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_back_as_written() {
        let written = Confinement {
            mode: SandboxMode::BestEffort,
            read: "/in put".into(),
            write: "/out".into(),
            file_bytes: 7,
            cpu_s: 9,
            also_read: vec!["/signatures".into(), "/a b".into()],
        };
        let arguments = written.arguments(&["/usr/bin/qemu-img".into(), "convert".into()]);
        assert_eq!(arguments[0], SUBCOMMAND);
        let (read, parent, program) = Confinement::parse(&arguments[1..]).unwrap();
        assert_eq!(parent, std::process::id());
        assert_eq!(format!("{read:?}"), format!("{written:?}"));
        assert_eq!(program, ["/usr/bin/qemu-img", "convert"]);
        for cut in 1..11 {
            assert!(Confinement::parse(&arguments[1..cut]).is_err(), "{cut} arguments");
        }
    }

    #[test]
    fn the_mode_is_one_of_two_words() {
        for mode in [SandboxMode::Required, SandboxMode::BestEffort] {
            assert_eq!(mode.as_str().parse(), Ok(mode));
        }
        assert!("off".parse::<SandboxMode>().unwrap_err().to_string().contains("best-effort"));
    }
}
