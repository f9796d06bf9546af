//! Reading passwords: from a terminal without echo, or from stdin for scripts.
//!
//! **Why never as an argument.** Arguments stand in the list of processes and in the history of the shell.
//! **Invariants.** A password is printed nowhere.

use std::io::{BufRead as _, IsTerminal as _};

use hearth_protocol::api::user::Password;

use crate::failure::{Exit, Failure};

/// Longest line that is read as a password; protects against a wrong file on stdin.
const LINE_BYTES_MAX: u64 = 4096;

/// A password that exists. `stdin`: the next line of stdin is it.
///
/// # Errors
/// [`Exit::Usage`] when nobody can be asked, or nothing was given.
pub(crate) fn read(prompt: &str, stdin: bool) -> anyhow::Result<Password> {
    let text = if stdin { next_line()? } else { ask(prompt)? };
    if text.is_empty() {
        return Err(Failure::new(Exit::Usage, "no password was given").into());
    }
    Ok(Password::new(text))
}

/// A new password, asked for twice.
///
/// # Errors
/// As [`read`], and when the two differ.
pub(crate) fn read_new(prompt: &str, stdin: bool) -> anyhow::Result<Password> {
    let password = read(prompt, stdin)?;
    if !stdin && read("Again: ", false)? != password {
        return Err(Failure::new(Exit::Usage, "the two passwords differ, nothing was done").into());
    }
    Ok(password)
}

fn ask(prompt: &str) -> anyhow::Result<String> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, "there is no terminal to ask for the password on")
            .hint("give it as a line on stdin with --password-stdin")
            .into());
    }
    let terminal = console::Term::stderr();
    terminal.write_str(prompt)?;
    Ok(terminal.read_secure_line()?)
}

fn next_line() -> anyhow::Result<String> {
    use std::io::Read as _;
    let mut line = String::new();
    std::io::stdin().lock().take(LINE_BYTES_MAX).read_line(&mut line)?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}
