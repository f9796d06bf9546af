//! `hearth`: the command line of a Hearth administrator.
//!
//! **What.** Nouns and verbs over the controller's HTTP API, and `hearth dev`, which starts real daemons to try things
//! out. One file per noun; `args.rs` puts them together.
//! **Why it knows only the protocol.** What it can do, any program with a token can do.
//! **Invariants.** Results go to stdout, everything else to stderr; exit codes are those of `failure.rs`.

mod args;
mod cache;
mod campaign;
mod client;
mod clock;
mod completion;
mod config;
mod dev;
mod doctor;
mod export;
mod failure;
mod host_image;
mod image;
mod key;
mod location;
mod log;
mod login;
mod market;
mod names;
mod output;
mod password;
mod prewarm;
mod progress;
mod quota;
mod sharing;
mod size;
mod system;
mod targets;
mod tenant;
mod tls;
mod token;
mod user;
mod when;

fn main() -> std::process::ExitCode {
    args::main()
}
