//! The program's own log, on stderr: systemd's journal or a terminal.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use hearth_controller::config::{Config, LogFormat};
use tracing_subscriber::EnvFilter;

/// Logs from now on, in the form and with the filter of the configuration.
pub(crate) fn log(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log_filter).context("log_filter in the configuration")?;
    let colours = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(colours).with_env_filter(filter);
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
