//! `hearth login`: stores address, token and fingerprint, after trying them.

use clap::Args;
use hearth_protocol::api::token::TokenRecord;

use crate::args::Global;
use crate::client::Client;
use crate::config::{self, Config, ConfigFile};
use crate::failure::{Exit, Failure};
use crate::token;

/// Store address and token of a controller.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth login https://controller.example:7443 --token hrt_… --fingerprint 4c1d…
  hearth login https://controller.example:7443 --fingerprint 4c1d…      # asks for the token
  pass hearth | hearth login https://controller.example:7443 --token - --fingerprint 4c1d…

`hearth-controller init` prints token and fingerprint. What is given is tried before it is stored.")]
pub(crate) struct Login {
    /// Address of the controller, https://HOST:7443
    url: String,
    /// Bearer token; - reads it from stdin, without it you are asked
    #[arg(long)]
    token: Option<String>,
    /// BLAKE3 of the controller's CA certificate, 64 hex digits
    #[arg(long, value_name = "HEX")]
    fingerprint: String,
}

impl Login {
    /// Tries, then stores.
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<Exit> {
        let url = config::parse_url(&self.url)?;
        let fingerprint = config::parse_fingerprint(&self.fingerprint)?;
        let file = ConfigFile {
            url: Some(url.to_string()),
            token: Some(read_token(self.token)?),
            fingerprint: Some(fingerprint.to_string()),
        };
        let client = Client::new(&Config::from_file(&file)?)?;
        let me: TokenRecord = client.get(&["whoami"], &[]).await?;
        let path = config::path(global.config.as_deref(), |name| std::env::var(name).ok())?;
        config::store(&path, &file)?;
        let out = global.out();
        out.facts(&me, token::facts(&me))?;
        out.remark(&format!("stored in {}", path.display()))?;
        Ok(Exit::Ok)
    }
}

fn read_token(given: Option<String>) -> anyhow::Result<String> {
    use std::io::{BufRead as _, IsTerminal as _};
    match given {
        Some(token) if token != "-" => Ok(token),
        given => {
            let terminal = console::Term::stderr();
            if given.is_none() && std::io::stdin().is_terminal() {
                terminal.write_str("Token: ")?;
                return Ok(terminal.read_secure_line()?);
            }
            let mut line = String::new();
            std::io::stdin().lock().read_line(&mut line)?;
            if line.trim().is_empty() {
                return Err(Failure::new(Exit::Usage, "no token was given").hint("add --token hrt_…").into());
            }
            Ok(line.trim().to_owned())
        }
    }
}
