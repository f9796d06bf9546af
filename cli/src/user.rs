//! `hearth user`: people, their passwords, and what they may do.

use clap::{Args, Subcommand};
use hearth_protocol::api::tenant::TenantUpdate;
use hearth_protocol::api::user::{PasswordChange, PasswordSet, User, UserCreate};

use crate::args::{Session, confirm};
use crate::failure::Exit;
use crate::output::{Cell, Grid};
use crate::tenant::{state, told};
use crate::{names, password};

mod grant;

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// List users
    #[command(after_help = "Examples:\n  hearth user list\n  hearth user list --domain sales -o csv")]
    List(List),
    /// Make a user
    #[command(after_help = "Examples:
  hearth user create alice
  hearth user create bob --domain sales --no-password
  pass new-bob | hearth user create bob --password-stdin")]
    Create(Create),
    /// Show one user and what it may do
    #[command(after_help = "Examples:\n  hearth user show alice")]
    Show(Which),
    /// Give a user another name
    #[command(after_help = "Examples:\n  hearth user rename alice alice.b")]
    Rename(Rename),
    /// Close a user: it cannot log in, and all its tokens end at once and for good
    #[command(after_help = "Examples:\n  hearth user disable alice")]
    Disable(Which),
    /// Open a user again
    #[command(after_help = "Examples:\n  hearth user enable alice")]
    Enable(Which),
    /// Delete a user; its tokens end at once
    #[command(visible_alias = "rm", after_help = "Examples:\n  hearth user delete alice --yes")]
    Delete(Delete),
    /// Change your own password, or set that of another user; ends the user's other tokens
    #[command(after_help = "Examples:
  hearth user password                    # your own: asks for the old one and the new one
  hearth user password alice              # another user's
  pass new-bob | hearth user password bob --password-stdin")]
    Password(SetPassword),
    /// Give a user a role
    #[command(after_help = "Examples:
  hearth user grant alice --role member --project web
  hearth user grant alice --role admin --domain sales
  hearth user grant alice --role reader --system")]
    Grant(grant::Give),
    /// Take a role from a user; its tokens with that role end at once
    #[command(after_help = "Examples:\n  hearth user revoke alice --role member --project web")]
    Revoke(grant::Give),
    /// List who has which role where
    #[command(after_help = "Examples:
  hearth user grants
  hearth user grants alice
  hearth user grants --project web")]
    Grants(grant::List),
}

/// What to list.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only those of this domain, by name or id
    #[arg(long)]
    domain: Option<String>,
    /// Only those whose name holds this
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// A new user.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The name to log in with
    name: String,
    /// Its domain, by name or id (default: yours, or `default`)
    #[arg(long)]
    domain: Option<String>,
    /// Read the password from stdin, one line
    #[arg(long)]
    password_stdin: bool,
    /// Set none: the user cannot log in until there is one
    #[arg(long, conflicts_with = "password_stdin")]
    no_password: bool,
}

/// A user.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Name or id
    user: String,
    /// The user's domain, by name or id, where the name is not enough
    #[arg(long, value_name = "DOMAIN")]
    user_domain: Option<String>,
}

/// A user and its new name.
#[derive(Debug, Args)]
pub(crate) struct Rename {
    #[command(flatten)]
    which: Which,
    /// The new name
    name: String,
}

/// A user to delete.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    #[command(flatten)]
    which: Which,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Whose password.
#[derive(Debug, Args)]
pub(crate) struct SetPassword {
    /// Name or id; without it your own is changed
    user: Option<String>,
    /// The user's domain, by name or id, where the name is not enough
    #[arg(long, value_name = "DOMAIN", requires = "user")]
    user_domain: Option<String>,
    /// Read from stdin: the new password, or for your own the old and the new one, a line each
    #[arg(long)]
    password_stdin: bool,
}

impl Which {
    async fn find(&self, session: &Session) -> anyhow::Result<User> {
        names::user(&session.client, &self.user, self.user_domain.as_deref()).await
    }
}

impl UserCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        match self {
            Self::List(command) => command.run(session).await?,
            Self::Create(command) => command.run(session).await?,
            Self::Show(which) => {
                let user = which.find(session).await?;
                session.out.facts(&user, facts(&user))?;
                if session.out.for_people() {
                    match grant::of_user(session, &user).await?.as_slice() {
                        [] => session
                            .out
                            .remark("\nIt may do nothing yet: `hearth user grant` gives it a role.")?,
                        grants => session.out.below(&grant::grid(grants))?,
                    }
                }
            }
            Self::Rename(rename) => {
                let update = TenantUpdate { name: Some(rename.name), disabled: None };
                change(session, &rename.which, update, "renamed").await?;
            }
            Self::Disable(which) => {
                let update = TenantUpdate { name: None, disabled: Some(true) };
                change(session, &which, update, "disabled").await?;
            }
            Self::Enable(which) => {
                let update = TenantUpdate { name: None, disabled: Some(false) };
                change(session, &which, update, "enabled").await?;
            }
            Self::Delete(delete) => {
                let user = delete.which.find(session).await?;
                confirm(&format!("Delete the user {} ({})?", user.name, user.id), delete.yes)?;
                session.client.delete(&["users", &user.id.to_string()], &[]).await?;
                session.out.say(&format!("deleted {}", user.name))?;
            }
            Self::Password(command) => command.run(session).await?,
            Self::Grant(command) => command.give(session).await?,
            Self::Revoke(command) => command.take(session).await?,
            Self::Grants(command) => command.run(session).await?,
        }
        Ok(Exit::Ok)
    }
}

async fn change(session: &Session, which: &Which, update: TenantUpdate, done: &str) -> anyhow::Result<()> {
    let user = which.find(session).await?;
    let now: User = session.client.amend(&["users", &user.id.to_string()], &update).await?;
    told(session, &now, &user.name, &now.name, done)
}

impl List {
    async fn run(self, session: &Session) -> anyhow::Result<()> {
        let client = &session.client;
        let domain = names::maybe_domain(client, self.domain.as_deref()).await?;
        let query = [("q", self.search), ("domain", domain.map(|domain| domain.to_string()))];
        let rows: Vec<User> = client.list(&["users"], &query, self.limit).await?;
        let domains = names::domain_names(client).await?;
        let columns = &["NAME", "DOMAIN", "STATE", "PASSWORD", "~MADE", "ID", "+DOMAIN ID"];
        let grid = Grid::of(columns, &rows, |row| {
            vec![
                Cell::text(&row.name),
                Cell::maybe(domains.get(&row.domain)),
                state(row.disabled),
                Cell::flag(row.has_password),
                Cell::At(Some(row.created_at.clone())),
                Cell::text(row.id),
                Cell::text(row.domain),
            ]
        });
        session.out.list(&rows, &grid)
    }
}

impl Create {
    async fn run(self, session: &Session) -> anyhow::Result<()> {
        let domain = names::maybe_domain(&session.client, self.domain.as_deref()).await?;
        let password = match self.no_password {
            true => None,
            false => Some(password::read_new("Password: ", self.password_stdin)?),
        };
        let body = UserCreate { name: self.name, domain, password };
        let made: User = session.client.post(&["users"], &body).await?;
        session.out.facts(&made, facts(&made))?;
        session.out.remark("\nIt may do nothing yet: `hearth user grant` gives it a role.")
    }
}

impl SetPassword {
    async fn run(self, session: &Session) -> anyhow::Result<()> {
        let client = &session.client;
        let Some(name) = self.user else {
            let old = password::read("Old password: ", self.password_stdin)?;
            let new = password::read_new("New password: ", self.password_stdin)?;
            client.post_only(&["password"], &PasswordChange { old, new }).await?;
            return session.out.say("changed your password; your other tokens are over");
        };
        let user = names::user(client, &name, self.user_domain.as_deref()).await?;
        let password = password::read_new("New password: ", self.password_stdin)?;
        client.put_only(&["users", &user.id.to_string(), "password"], &PasswordSet { password }).await?;
        session.out.say(&format!("set the password of {}; all tokens of the user are over", user.name))
    }
}

fn facts(user: &User) -> Vec<(&'static str, Cell)> {
    vec![
        ("id", Cell::text(user.id)),
        ("name", Cell::text(&user.name)),
        ("domain", Cell::text(user.domain)),
        ("state", state(user.disabled)),
        ("password", Cell::flag(user.has_password)),
        ("made", Cell::At(Some(user.created_at.clone()))),
    ]
}
