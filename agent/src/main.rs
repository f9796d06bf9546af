//! Starts what the library defines: the agent's daemon and its commands.

use std::process::ExitCode;

use clap::Parser as _;
use hearth_agent::command::CommandLine;

fn main() -> ExitCode {
    let line = CommandLine::parse();
    match line.run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            use std::io::Write as _;
            let code = error.exit_code();
            let error = anyhow::Error::new(error).context("hearth-agent");
            // Without a terminal there is nobody to tell; the exit code says it all the same.
            let told = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::from(if told.is_ok() { code } else { 74 })
        }
    }
}
