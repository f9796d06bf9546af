//! `hearth domain` and `hearth project`: the two tenant levels below the system.

use clap::{Args, Subcommand};
use hearth_protocol::api::tenant::{Domain, DomainCreate, Project, ProjectCreate, TenantUpdate};

use crate::args::{Session, confirm};
use crate::failure::Exit;
use crate::names;
use crate::output::{Cell, Grid};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum DomainCommand {
    /// List domains
    #[command(after_help = "Examples:\n  hearth domain list\n  hearth domain list --search sales -o csv")]
    List(DomainList),
    /// Make a domain
    #[command(after_help = "Examples:\n  hearth domain create sales")]
    Create(DomainCreateArgs),
    /// Show one domain
    #[command(after_help = "Examples:\n  hearth domain show sales")]
    Show(DomainName),
    /// Give a domain another name
    #[command(after_help = "Examples:\n  hearth domain rename sales retail")]
    Rename(DomainRename),
    /// Close a domain: every token of it, its projects and its users ends at once
    #[command(after_help = "Examples:\n  hearth domain disable sales")]
    Disable(DomainName),
    /// Open a domain again
    #[command(after_help = "Examples:\n  hearth domain enable sales")]
    Enable(DomainName),
    /// Delete a domain without projects and users
    #[command(visible_alias = "rm", after_help = "Examples:\n  hearth domain delete sales --yes")]
    Delete(DomainDelete),
}

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum ProjectCommand {
    /// List projects
    #[command(after_help = "Examples:\n  hearth project list\n  hearth project list --domain sales")]
    List(ProjectList),
    /// Make a project
    #[command(
        after_help = "Examples:\n  hearth project create web\n  hearth project create web --domain sales"
    )]
    Create(ProjectCreateArgs),
    /// Show one project
    #[command(after_help = "Examples:\n  hearth project show web --domain sales")]
    Show(ProjectName),
    /// Give a project another name
    #[command(after_help = "Examples:\n  hearth project rename web shop")]
    Rename(ProjectRename),
    /// Close a project: every token of it ends at once
    #[command(after_help = "Examples:\n  hearth project disable web")]
    Disable(ProjectName),
    /// Open a project again
    #[command(after_help = "Examples:\n  hearth project enable web")]
    Enable(ProjectName),
    /// Delete a project without images
    #[command(visible_alias = "rm", after_help = "Examples:\n  hearth project delete web --yes")]
    Delete(ProjectDelete),
}

/// What to list.
#[derive(Debug, Args)]
pub(crate) struct DomainList {
    /// Only those whose name holds this
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// A new domain.
#[derive(Debug, Args)]
pub(crate) struct DomainCreateArgs {
    /// Its name
    name: String,
}

/// A domain.
#[derive(Debug, Args)]
pub(crate) struct DomainName {
    /// Name or id
    domain: String,
}

/// A domain and its new name.
#[derive(Debug, Args)]
pub(crate) struct DomainRename {
    /// Name or id
    domain: String,
    /// The new name
    name: String,
}

/// A domain to delete.
#[derive(Debug, Args)]
pub(crate) struct DomainDelete {
    /// Name or id
    domain: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// What to list.
#[derive(Debug, Args)]
pub(crate) struct ProjectList {
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

/// A project.
#[derive(Debug, Args)]
pub(crate) struct ProjectName {
    /// Name or id
    project: String,
    /// Its domain, by name or id, where names are not enough
    #[arg(long)]
    domain: Option<String>,
}

/// A new project.
#[derive(Debug, Args)]
pub(crate) struct ProjectCreateArgs {
    /// Its name
    name: String,
    /// Its domain, by name or id (default: your own)
    #[arg(long)]
    domain: Option<String>,
}

/// A project and its new name.
#[derive(Debug, Args)]
pub(crate) struct ProjectRename {
    #[command(flatten)]
    which: ProjectName,
    /// The new name
    name: String,
}

/// A project to delete.
#[derive(Debug, Args)]
pub(crate) struct ProjectDelete {
    #[command(flatten)]
    which: ProjectName,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl DomainCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let (client, out) = (&session.client, session.out);
        match self {
            Self::List(list) => {
                let rows: Vec<Domain> = client.list(&["domains"], &[("q", list.search)], list.limit).await?;
                let grid = Grid::of(&["NAME", "STATE", "MADE", "ID"], &rows, |row| {
                    let made = Cell::At(Some(row.created_at.clone()));
                    vec![Cell::text(&row.name), state(row.disabled), made, Cell::text(row.id)]
                });
                out.list(&rows, &grid)?;
            }
            Self::Create(create) => {
                let made: Domain = client.post(&["domains"], &DomainCreate { name: create.name }).await?;
                out.facts(&made, domain_facts(&made))?;
            }
            Self::Show(which) => {
                let domain = names::domain(client, &which.domain).await?;
                out.facts(&domain, domain_facts(&domain))?;
            }
            Self::Rename(rename) => {
                let update = TenantUpdate { name: Some(rename.name), disabled: None };
                change_domain(session, &rename.domain, update, "renamed").await?;
            }
            Self::Disable(which) => change_domain(session, &which.domain, closed(true), "disabled").await?,
            Self::Enable(which) => change_domain(session, &which.domain, closed(false), "enabled").await?,
            Self::Delete(delete) => {
                let domain = names::domain(client, &delete.domain).await?;
                confirm(&format!("Delete the domain {} ({})?", domain.name, domain.id), delete.yes)?;
                client.delete(&["domains", &domain.id.to_string()], &[]).await?;
                out.say(&format!("deleted {}", domain.name))?;
            }
        }
        Ok(Exit::Ok)
    }
}

impl ProjectCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let (client, out) = (&session.client, session.out);
        match self {
            Self::List(list) => return list.run(session).await,
            Self::Create(create) => {
                let domain = names::maybe_domain(client, create.domain.as_deref()).await?;
                let body = ProjectCreate { name: create.name, domain };
                let made: Project = client.post(&["projects"], &body).await?;
                out.facts(&made, project_facts(&made))?;
            }
            Self::Show(which) => {
                let project = which.find(session).await?;
                out.facts(&project, project_facts(&project))?;
            }
            Self::Rename(rename) => {
                let update = TenantUpdate { name: Some(rename.name), disabled: None };
                change_project(session, &rename.which, update, "renamed").await?;
            }
            Self::Disable(which) => change_project(session, &which, closed(true), "disabled").await?,
            Self::Enable(which) => change_project(session, &which, closed(false), "enabled").await?,
            Self::Delete(delete) => {
                let project = delete.which.find(session).await?;
                confirm(&format!("Delete the project {} ({})?", project.name, project.id), delete.yes)?;
                client.delete(&["projects", &project.id.to_string()], &[]).await?;
                out.say(&format!("deleted {}", project.name))?;
            }
        }
        Ok(Exit::Ok)
    }
}

impl ProjectList {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let client = &session.client;
        let domain = names::maybe_domain(client, self.domain.as_deref()).await?;
        let query = [("q", self.search), ("domain", domain.map(|domain| domain.to_string()))];
        let rows: Vec<Project> = client.list(&["projects"], &query, self.limit).await?;
        let domains = names::domain_names(client).await?;
        let grid = Grid::of(&["NAME", "DOMAIN", "STATE", "~MADE", "ID", "+DOMAIN ID"], &rows, |row| {
            vec![
                Cell::text(&row.name),
                Cell::maybe(domains.get(&row.domain)),
                state(row.disabled),
                Cell::At(Some(row.created_at.clone())),
                Cell::text(row.id),
                Cell::text(row.domain),
            ]
        });
        session.out.list(&rows, &grid)?;
        Ok(Exit::Ok)
    }
}

impl ProjectName {
    async fn find(&self, session: &Session) -> anyhow::Result<Project> {
        names::project(&session.client, &self.project, self.domain.as_deref()).await
    }
}

const fn closed(disabled: bool) -> TenantUpdate {
    TenantUpdate { name: None, disabled: Some(disabled) }
}

/// `active` or `disabled`.
pub(crate) fn state(disabled: bool) -> Cell {
    Cell::status(if disabled { "disabled" } else { "active" })
}

async fn change_domain(
    session: &Session,
    wanted: &str,
    update: TenantUpdate,
    done: &str,
) -> anyhow::Result<()> {
    let domain = names::domain(&session.client, wanted).await?;
    let now: Domain = session.client.amend(&["domains", &domain.id.to_string()], &update).await?;
    told(session, &now, &domain.name, &now.name, done)
}

async fn change_project(
    session: &Session,
    which: &ProjectName,
    update: TenantUpdate,
    done: &str,
) -> anyhow::Result<()> {
    let project = which.find(session).await?;
    let now: Project = session.client.amend(&["projects", &project.id.to_string()], &update).await?;
    told(session, &now, &project.name, &now.name, done)
}

/// Says what was done to people, and shows the record to programs.
pub(crate) fn told<T: serde::Serialize>(
    session: &Session,
    now: &T,
    was: &str,
    name: &str,
    done: &str,
) -> anyhow::Result<()> {
    if !session.out.for_people() {
        return session.out.facts(now, vec![("name", Cell::text(name))]);
    }
    let to = if was == name { String::new() } else { format!(" to {name}") };
    session.out.say(&format!("{done} {was}{to}"))
}

fn domain_facts(domain: &Domain) -> Vec<(&'static str, Cell)> {
    vec![
        ("id", Cell::text(domain.id)),
        ("name", Cell::text(&domain.name)),
        ("state", state(domain.disabled)),
        ("made", Cell::At(Some(domain.created_at.clone()))),
    ]
}

fn project_facts(project: &Project) -> Vec<(&'static str, Cell)> {
    vec![
        ("id", Cell::text(project.id)),
        ("name", Cell::text(&project.name)),
        ("domain", Cell::text(project.domain)),
        ("state", state(project.disabled)),
        ("made", Cell::At(Some(project.created_at.clone()))),
    ]
}
