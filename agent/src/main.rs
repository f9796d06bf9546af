//! Starts what the library defines: the agent's daemon and its commands.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use hearth_agent::command::CommandLine;

fn main() -> ExitCode {
    let line = CommandLine::parse();
    match line.run().context("hearth-agent") {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            use std::io::Write as _;
            // Without a terminal there is nobody to tell; the exit code says it all the same.
            let told = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::from(if told.is_ok() { 1 } else { 74 })
        }
    }
}
