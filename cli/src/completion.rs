//! `hearth completion`: completions for a shell.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::args::Cli;
use crate::failure::Exit;
use crate::output;

/// Shells that are supported.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ShellName {
    Bash,
    Zsh,
    Fish,
}

/// Print completions for a shell.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth completion bash > /etc/bash_completion.d/hearth
  hearth completion zsh > ~/.zfunc/_hearth
  hearth completion fish > ~/.config/fish/completions/hearth.fish")]
pub(crate) struct Completion {
    /// Which shell
    shell: ShellName,
}

impl Completion {
    /// Prints the script.
    pub(crate) fn run(&self) -> anyhow::Result<Exit> {
        output::print(&script(self.shell)?)?;
        Ok(Exit::Ok)
    }
}

fn script(shell: ShellName) -> anyhow::Result<String> {
    let shell = match shell {
        ShellName::Bash => Shell::Bash,
        ShellName::Zsh => Shell::Zsh,
        ShellName::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hearth", &mut script);
    Ok(String::from_utf8(script)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_knows_the_nouns() {
        for shell in [ShellName::Bash, ShellName::Zsh, ShellName::Fish] {
            let script = script(shell).unwrap();
            for noun in ["prewarm", "location", "cache", "doctor"] {
                assert!(script.contains(noun), "{shell:?} lacks {noun}");
            }
        }
    }
}
