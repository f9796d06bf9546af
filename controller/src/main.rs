//! Hearth controller.

use std::ffi::OsString;
use std::process::ExitCode;

use hearth_controller::ingest::sandbox;

fn main() -> ExitCode {
    // Before anything else: the sandbox holds for threads that are started later, not for those that run already.
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|name| name == sandbox::SUBCOMMAND) {
        return sandbox::run_child(&arguments[1..]);
    }
    ExitCode::SUCCESS
}
