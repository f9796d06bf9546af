//! `hearth token` and `hearth whoami`: who may do what.

use std::time::Duration;

use clap::{Args, Subcommand};
use hearth_protocol::api::token::{TokenCreate, TokenRecord};
use hearth_protocol::id::{DomainId, ProjectId};
use hearth_protocol::words::{Role, ScopeKind};

use crate::args::Session;
use crate::failure::Exit;
use crate::output::{Cell, Grid};
use crate::{names, when};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a bearer token
    Create(Create),
    /// List bearer tokens
    List(List),
    /// End a bearer token at once
    Revoke(Revoke),
}

/// Make a bearer token.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth token create alice --role admin
  hearth token create monitoring --role reader --ttl 365d
  hearth token create build --role member --scope project --project 0199c0de-0000-7000-8000-000000000001")]
pub(crate) struct Create {
    /// Who will use it
    name: String,
    /// admin, member or reader
    #[arg(long)]
    role: Role,
    /// system, domain or project
    #[arg(long, default_value = "system")]
    scope: ScopeKind,
    /// The domain, for the scopes domain and project
    #[arg(long, value_name = "ID")]
    domain: Option<DomainId>,
    /// The project, for the scope project
    #[arg(long, value_name = "ID")]
    project: Option<ProjectId>,
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

/// Who the configured token is.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth whoami
  hearth whoami -o json")]
pub(crate) struct Whoami {}

impl TokenCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        match self {
            Self::Create(command) => command.run(session).await,
            Self::List(_) => list(session).await,
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
        ("ends", Cell::At(token.expires_at.clone())),
        ("revoked", Cell::At(token.revoked_at.clone())),
        ("used", Cell::At(token.last_used_at.clone())),
    ]
}

impl Create {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let body = TokenCreate {
            name: self.name,
            role: self.role,
            scope: self.scope,
            domain: self.domain,
            project: self.project,
            ttl_s: self.ttl.map(|ttl| ttl.as_secs()),
        };
        let made: TokenRecord = session.client.post(&["tokens"], &body).await?;
        session.out.facts(&made, facts(&made))?;
        session.out.remark("\nThe token is shown this once.")?;
        Ok(Exit::Ok)
    }
}

async fn list(session: &Session) -> anyhow::Result<Exit> {
    let tokens: Vec<TokenRecord> = session.client.list(&["tokens"], &[], None).await?;
    let columns = &["NAME", "ROLE", "SCOPE", "ENDS", "~USED", "~REVOKED", "ID", "+DOMAIN", "+PROJECT"];
    let grid = Grid::of(columns, &tokens, |token| {
        vec![
            Cell::text(&token.name),
            Cell::text(token.role),
            Cell::text(token.scope),
            Cell::At(token.expires_at.clone()),
            Cell::At(token.last_used_at.clone()),
            Cell::At(token.revoked_at.clone()),
            Cell::text(token.id),
            Cell::maybe(token.domain),
            Cell::maybe(token.project),
        ]
    });
    session.out.list(&tokens, &grid)?;
    Ok(Exit::Ok)
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
