//! `hearth login` and `hearth logout`: address, fingerprint and token are stored, after trying them.

use clap::Args;
use hearth_protocol::api::token::TokenRecord;
use hearth_protocol::api::user::Login as LoginBody;
use hearth_protocol::words::ScopeKind;

use crate::args::Global;
use crate::client::Client;
use crate::config::{self, Config, ConfigFile};
use crate::failure::{Exit, Failure};
use crate::{password, token};

/// Store address and token of a controller, or get a token for a user's password.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth login https://controller.example:7443 --token hrt_… --fingerprint 4c1d…
  hearth login https://controller.example:7443 --fingerprint 4c1d…      # asks for the token
  pass hearth | hearth login https://controller.example:7443 --token - --fingerprint 4c1d…
  hearth login https://controller.example:7443 --fingerprint 4c1d… --user alice      # asks for the password
  hearth login --user alice --project web                               # to the controller that is stored

`hearth-controller init` prints token and fingerprint. What is given is tried before it is stored.")]
pub(crate) struct Login {
    /// Address of the controller, https://HOST:7443 (default: the one that is stored)
    url: Option<String>,
    /// Bearer token; - reads it from stdin, without it you are asked
    #[arg(long, conflicts_with = "user")]
    token: Option<String>,
    /// BLAKE3 of the controller's CA certificate, 64 hex digits (default: the one that is stored)
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
    /// Log in as this user, with a password
    #[arg(long)]
    user: Option<String>,
    /// The user's domain, by name or id (default: `default`)
    #[arg(long, requires = "user")]
    domain: Option<String>,
    /// Use the user's role in this project, by name or id
    #[arg(long, requires = "user")]
    project: Option<String>,
    /// Use the user's role at this level: system, domain or project (default: the widest)
    #[arg(long, requires = "user")]
    scope: Option<ScopeKind>,
    /// Read the password from stdin, one line
    #[arg(long, requires = "user")]
    password_stdin: bool,
}

/// End the token in use and forget it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth logout")]
pub(crate) struct Logout {}

impl Login {
    /// Tries, then stores.
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<Exit> {
        let env = |name: &str| std::env::var(name).ok();
        let path = config::path(global.config.as_deref(), env)?;
        // A file that is not there yet is about to be written.
        let stored = config::load(&path, false, env)?;
        let mut file = ConfigFile {
            url: self.url.clone().or(stored.url),
            token: None,
            fingerprint: self.fingerprint.clone().or(stored.fingerprint),
        };
        let me = if let Some(user) = self.user.clone() {
            let (url, fingerprint) = Config::place(&file)?;
            let client = Client::anonymous(url, fingerprint)?;
            let made: TokenRecord = client.post(&["login"], &self.body(user)?).await?;
            file.token.clone_from(&made.token);
            TokenRecord { token: None, ..made }
        } else {
            Config::place(&file)?;
            file.token = Some(read_token(self.token)?);
            Client::new(&Config::from_file(&file)?)?.get(&["whoami"], &[]).await?
        };
        // Written in one form, however it was given.
        let (url, fingerprint) = Config::place(&file)?;
        (file.url, file.fingerprint) = (Some(url.to_string()), Some(fingerprint.to_string()));
        config::store(&path, &file)?;
        let out = global.out();
        out.facts(&me, token::facts(&me))?;
        out.remark(&format!("stored in {}", path.display()))?;
        Ok(Exit::Ok)
    }

    fn body(&self, user: String) -> anyhow::Result<LoginBody> {
        let password = password::read(&format!("Password of {user}: "), self.password_stdin)?;
        let (domain, project, scope) = (self.domain.clone(), self.project.clone(), self.scope);
        Ok(LoginBody { domain, user, password, scope, project })
    }
}

impl Logout {
    /// Ends the token, then forgets it.
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<Exit> {
        let session = global.session()?;
        session.client.act(&["logout"]).await?;
        let path = config::path(global.config.as_deref(), |name| std::env::var(name).ok())?;
        let mut stored = config::load(&path, false, |_| None)?;
        if stored.token.as_deref() == session.client.token() {
            stored.token = None;
            config::store(&path, &stored)?;
        }
        session.out.say("logged out; the token is over")?;
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
