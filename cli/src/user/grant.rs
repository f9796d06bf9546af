//! `hearth user grant`, `revoke` and `grants`: roles of users.

use clap::Args;
use hearth_protocol::api::user::{Grant, GrantCreate, User};
use hearth_protocol::id::{DomainId, ProjectId};
use hearth_protocol::words::{Role, ScopeKind};

use super::Which;
use crate::args::Session;
use crate::failure::{Exit, Failure};
use crate::names;
use crate::output::{Cell, Grid};

/// A user, a role, and where.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("where").required(true).multiple(true).args(["system", "domain", "project"])))]
pub(crate) struct Give {
    #[command(flatten)]
    which: Which,
    /// admin, member or reader
    #[arg(long)]
    role: Role,
    /// Everywhere
    #[arg(long, conflicts_with_all = ["domain", "project"])]
    system: bool,
    /// In this domain and its projects, by name or id; with --project: the project's domain
    #[arg(long)]
    domain: Option<String>,
    /// In this project, by name or id
    #[arg(long)]
    project: Option<String>,
}

/// What to list.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only those of this user, by name or id
    user: Option<String>,
    /// The user's domain, by name or id, where the name is not enough
    #[arg(long, value_name = "DOMAIN", requires = "user")]
    user_domain: Option<String>,
    /// Only those in this domain and its projects, by name or id
    #[arg(long)]
    domain: Option<String>,
    /// Only those in this project, by name or id
    #[arg(long)]
    project: Option<String>,
}

/// Where a role holds: level, domain, project.
type Place = (ScopeKind, Option<DomainId>, Option<ProjectId>);

impl Give {
    async fn place(&self, session: &Session) -> anyhow::Result<Place> {
        let client = &session.client;
        if let Some(project) = &self.project {
            let project = names::project(client, project, self.domain.as_deref()).await?;
            return Ok((ScopeKind::Project, None, Some(project.id)));
        }
        let domain = names::maybe_domain(client, self.domain.as_deref()).await?;
        Ok((if self.system { ScopeKind::System } else { ScopeKind::Domain }, domain, None))
    }

    /// Gives the role.
    pub(super) async fn give(self, session: &Session) -> anyhow::Result<()> {
        let user = self.which.find(session).await?;
        let (scope, domain, project) = self.place(session).await?;
        let body = GrantCreate { user: user.id, role: self.role, scope, domain, project };
        let made: Grant = session.client.post(&["grants"], &body).await?;
        if session.out.for_people() {
            return session.out.say(&format!("{} is now {} of {}", user.name, made.role, place_of(&made)));
        }
        session.out.facts(&made, facts(&made))
    }

    /// Takes the role.
    pub(super) async fn take(self, session: &Session) -> anyhow::Result<()> {
        let user = self.which.find(session).await?;
        let (scope, domain, project) = self.place(session).await?;
        let grants = of_user(session, &user).await?;
        let is_meant = |grant: &&Grant| {
            grant.role == self.role
                && grant.scope == scope
                && (scope != ScopeKind::Domain || grant.domain == domain)
                && grant.project == project
        };
        let grant = grants.iter().find(is_meant).ok_or_else(|| {
            let message = format!("{} has no such role there: {}", user.name, self.role);
            Failure::new(Exit::NotFound, message).hint("`hearth user grants` shows who has which")
        })?;
        session.client.delete(&["grants", &grant.id.to_string()], &[]).await?;
        session.out.say(&format!("{} is no longer {} of {}", user.name, grant.role, place_of(grant)))
    }
}

impl List {
    /// Prints the list.
    pub(super) async fn run(self, session: &Session) -> anyhow::Result<()> {
        let client = &session.client;
        let user = match &self.user {
            Some(user) => Some(names::user(client, user, self.user_domain.as_deref()).await?.id.to_string()),
            None => None,
        };
        let project = match &self.project {
            Some(project) => {
                Some(names::project(client, project, self.domain.as_deref()).await?.id.to_string())
            }
            None => None,
        };
        let domain = names::maybe_domain(client, self.domain.as_deref()).await?.map(|id| id.to_string());
        let query = [("user", user), ("project", project), ("domain", domain)];
        let rows: Vec<Grant> = client.list(&["grants"], &query, None).await?;
        session.out.list(&rows, &grid(&rows))
    }
}

/// The grants of a user that the caller may see.
pub(super) async fn of_user(session: &Session, user: &User) -> anyhow::Result<Vec<Grant>> {
    session.client.list(&["grants"], &[("user", Some(user.id.to_string()))], None).await
}

fn place_of(grant: &Grant) -> String {
    match grant.scope {
        ScopeKind::System => "the system".to_owned(),
        ScopeKind::Domain => format!("domain {}", grant.domain_name.as_deref().unwrap_or_default()),
        ScopeKind::Project => format!("project {}", grant.project_name.as_deref().unwrap_or_default()),
    }
}

/// Grants as a table.
pub(super) fn grid(grants: &[Grant]) -> Grid {
    let columns = &[
        "USER",
        "ROLE",
        "SCOPE",
        "DOMAIN",
        "PROJECT",
        "~GIVEN BY",
        "~GIVEN",
        "ID",
        "+USER ID",
        "+DOMAIN ID",
        "+PROJECT ID",
    ];
    Grid::of(columns, grants, |grant| {
        vec![
            Cell::text(&grant.user_name),
            Cell::text(grant.role),
            Cell::text(grant.scope),
            Cell::maybe(grant.domain_name.as_ref()),
            Cell::maybe(grant.project_name.as_ref()),
            Cell::text(&grant.created_by),
            Cell::At(Some(grant.created_at.clone())),
            Cell::text(grant.id),
            Cell::text(grant.user),
            Cell::maybe(grant.domain),
            Cell::maybe(grant.project),
        ]
    })
}

fn facts(grant: &Grant) -> Vec<(&'static str, Cell)> {
    vec![
        ("id", Cell::text(grant.id)),
        ("user", Cell::text(&grant.user_name)),
        ("role", Cell::text(grant.role)),
        ("scope", Cell::text(grant.scope)),
        ("domain", Cell::maybe(grant.domain_name.as_ref())),
        ("project", Cell::maybe(grant.project_name.as_ref())),
    ]
}
