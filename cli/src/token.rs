//! `hearth token` and `hearth whoami`: who may do what.

use std::time::Duration;

use clap::{Args, Subcommand};
use hearth_protocol::api::token::{TokenCreate, TokenRecord};
use hearth_protocol::id::TokenId;
use hearth_protocol::words::{Role, ScopeKind};

use crate::args::{Global, Session};
use crate::failure::Exit;
use crate::output::{Cell, Grid};
use crate::{config, names, when};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a bearer token
    Create(Create),
    /// List bearer tokens
    List(List),
    /// Give a bearer token another secret; the old one ends at once
    Rotate(Rotate),
    /// End a bearer token at once
    Revoke(Revoke),
}

/// Make a bearer token.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth token create alice --role admin
  hearth token create monitoring --role reader --ttl 365d
  hearth token create build --role member --scope project --project web")]
pub(crate) struct Create {
    /// Who will use it
    name: String,
    /// admin, member or reader
    #[arg(long)]
    role: Role,
    /// system, domain or project
    #[arg(long, default_value = "system")]
    scope: ScopeKind,
    /// The domain, by name or id, for the scope domain; for the scope project, where the project's name is not enough
    #[arg(long)]
    domain: Option<String>,
    /// The project, by name or id, for the scope project
    #[arg(long)]
    project: Option<String>,
    /// The user to whom it belongs, by name or id: it ends with the user, who must have this role there
    #[arg(long)]
    user: Option<String>,
    /// How long it is good (default 90d)
    #[arg(long, value_name = "DURATION", value_parser = when::parse_duration)]
    ttl: Option<Duration>,
}

/// List bearer tokens.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth token list")]
pub(crate) struct List {}

/// End a bearer token.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth token revoke alice")]
pub(crate) struct Revoke {
    /// Name or id
    token: String,
}

/// Give a bearer token another secret.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth token rotate                     # the one in use; the new one is stored
  hearth token rotate monitoring          # prints the new one")]
pub(crate) struct Rotate {
    /// Name or id; without it the one in use is rotated
    token: Option<String>,
}

/// Who the configured token is.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth whoami
  hearth whoami -o json")]
pub(crate) struct Whoami {}

impl TokenCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<Exit> {
        let session = &global.session()?;
        match self {
            Self::Create(command) => command.run(session).await,
            Self::List(_) => list(session).await,
            Self::Rotate(command) => command.run(global, session).await,
            Self::Revoke(command) => command.run(session).await,
        }
    }
}

impl Whoami {
    /// Asks the controller.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let me: TokenRecord = session.client.get(&["whoami"], &[]).await?;
        session.out.facts(&me, facts(&me))?;
        Ok(Exit::Ok)
    }
}

/// What a token is, line by line.
pub(crate) fn facts(token: &TokenRecord) -> Vec<(&'static str, Cell)> {
    vec![
        ("token", Cell::maybe(token.token.as_ref())),
        ("id", Cell::text(token.id)),
        ("name", Cell::text(&token.name)),
        ("role", Cell::text(token.role)),
        ("scope", Cell::text(token.scope)),
        ("domain", Cell::maybe(token.domain)),
        ("project", Cell::maybe(token.project)),
        ("user", Cell::maybe(token.user)),
        ("ends", Cell::At(token.expires_at.clone())),
        ("revoked", Cell::At(token.revoked_at.clone())),
        ("used", Cell::At(token.last_used_at.clone())),
    ]
}

impl Create {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let client = &session.client;
        let project = match &self.project {
            Some(project) => Some(names::project(client, project, self.domain.as_deref()).await?.id),
            None => None,
        };
        let domain = names::maybe_domain(client, self.domain.as_deref()).await?;
        let user = match &self.user {
            Some(user) => Some(names::user(client, user, None).await?.id),
            None => None,
        };
        let body = TokenCreate {
            name: self.name,
            role: self.role,
            scope: self.scope,
            domain,
            project,
            ttl_s: self.ttl.map(|ttl| ttl.as_secs()),
            user,
        };
        let made: TokenRecord = session.client.post(&["tokens"], &body).await?;
        session.out.facts(&made, facts(&made))?;
        session.out.remark("\nThe token is shown this once.")?;
        Ok(Exit::Ok)
    }
}

async fn list(session: &Session) -> anyhow::Result<Exit> {
    let tokens: Vec<TokenRecord> = session.client.list(&["tokens"], &[], None).await?;
    let columns =
        &["NAME", "ROLE", "SCOPE", "ENDS", "~USED", "~REVOKED", "GOOD", "ID", "+DOMAIN", "+PROJECT", "+USER"];
    let grid = Grid::of(columns, &tokens, |token| {
        vec![
            Cell::text(&token.name),
            Cell::text(token.role),
            Cell::text(token.scope),
            Cell::At(token.expires_at.clone()),
            Cell::At(token.last_used_at.clone()),
            Cell::At(token.revoked_at.clone()),
            Cell::flag(token.usable),
            Cell::text(token.id),
            Cell::maybe(token.domain),
            Cell::maybe(token.project),
            Cell::maybe(token.user),
        ]
    });
    session.out.list(&tokens, &grid)?;
    Ok(Exit::Ok)
}

impl Rotate {
    async fn run(self, global: &Global, session: &Session) -> anyhow::Result<Exit> {
        let client = &session.client;
        let rotate = async |id: TokenId| -> anyhow::Result<TokenRecord> {
            client.act_for(&["tokens", &id.to_string(), "rotate"]).await
        };
        if let Some(wanted) = &self.token {
            let tokens: Vec<TokenRecord> = client.list(&["tokens"], &[], None).await?;
            let token =
                names::by_id_or_name("token", wanted, &tokens, |token| token.id, |token| &token.name)?;
            let made = rotate(token.id).await?;
            session.out.facts(&made, facts(&made))?;
            session.out.remark("\nThe token is shown this once; the old one is over.")?;
            return Ok(Exit::Ok);
        }
        let path = config::path(global.config.as_deref(), |name| std::env::var(name).ok())?;
        let mut file = config::load(&path, false, |_| None)?;
        let is_stored = file.token.as_deref() == client.token();
        let me: TokenRecord = client.get(&["whoami"], &[]).await?;
        let made = rotate(me.id).await?;
        file.token.clone_from(&made.token);
        if is_stored && config::store(&path, &file).is_ok() {
            session.out.say(&format!("rotated {}; stored in {}", made.name, path.display()))?;
            return Ok(Exit::Ok);
        }
        // It came from the environment, or the file cannot be written: the secret must not be lost.
        session.out.facts(&made, facts(&made))?;
        session.out.remark("\nThe token is shown this once and is not stored; the old one is over.")?;
        Ok(Exit::Ok)
    }
}

impl Revoke {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let tokens: Vec<TokenRecord> = session.client.list(&["tokens"], &[], None).await?;
        let token =
            names::by_id_or_name("token", &self.token, &tokens, |token| token.id, |token| &token.name)?;
        session.client.delete(&["tokens", &token.id.to_string()], &[]).await?;
        session.out.say(&format!("revoked {}", token.name))?;
        Ok(Exit::Ok)
    }
}
