//! Domains and projects: the two tenant levels below the system.
//!
//! **Invariants.** Names are unique without regard to case: domains in the system, projects in their domain. A fresh
//! database gets a domain and a project named `default`, so that one operator need not learn about tenants.

use hearth_protocol::id::{DomainId, ProjectId};

use super::error::DbError;
use super::grams::fold;
use super::ids::new_id;
use super::operations::Draft;
use super::sql::{Row, sql};
use super::store::{Db, Tx};

/// Name of the first domain and its first project.
pub const DEFAULT_NAME: &str = "default";

/// A domain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Domain {
    /// Its id.
    pub id: DomainId,
    /// Its name.
    pub name: String,
    /// Closed to its users.
    pub disabled: bool,
    /// When it was made, microseconds since the epoch.
    pub created_us: i64,
}

/// A project.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Its domain.
    pub domain: DomainId,
    /// Its name.
    pub name: String,
    /// Closed to its users.
    pub disabled: bool,
    /// When it was made, microseconds since the epoch.
    pub created_us: i64,
}

const DOMAINS: &str = "SELECT id, name, disabled, created_us FROM domain";
const PROJECTS: &str = "SELECT id, domain_id, name, disabled, created_us FROM project";

fn domain(row: &Row) -> Result<Domain, DbError> {
    Ok(Domain {
        id: row.parse("id")?,
        name: row.text("name")?,
        disabled: row.flag("disabled")?,
        created_us: row.int("created_us")?,
    })
}

fn project(row: &Row) -> Result<Project, DbError> {
    Ok(Project {
        id: row.parse("id")?,
        domain: row.parse("domain_id")?,
        name: row.text("name")?,
        disabled: row.flag("disabled")?,
        created_us: row.int("created_us")?,
    })
}

async fn insert_domain(tx: &mut Tx<'_>, id: DomainId, name: &str) -> Result<(), DbError> {
    let insert = "INSERT INTO domain (id, name, name_folded, disabled, created_us, updated_us) VALUES ($1, $2, $3, 0, $4, $4)";
    let stmt = sql("domain", insert).bind(id).bind(name).bind(fold(name)).bind(tx.now_us());
    tx.run(stmt).await.map_err(|error| error.or_exists("domain", name)).map(|_| ())
}

async fn insert_project(tx: &mut Tx<'_>, id: ProjectId, domain: DomainId, name: &str) -> Result<(), DbError> {
    let insert = "INSERT INTO project (id, domain_id, name, name_folded, disabled, created_us, updated_us) \
         VALUES ($1, $2, $3, $4, 0, $5, $5)";
    let stmt = sql("project", insert).bind(id).bind(domain).bind(name).bind(fold(name)).bind(tx.now_us());
    tx.run(stmt).await.map_err(|error| error.or_exists("project", name)).map(|_| ())
}

impl Tx<'_> {
    /// One project.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub(super) async fn project(&mut self, id: ProjectId) -> Result<Project, DbError> {
        let row = self.row(sql("project", PROJECTS).text(" WHERE id = ").arg(id)).await?;
        let found = row.as_ref().map(project).transpose()?;
        found.ok_or_else(|| DbError::NotFound { what: "project", key: id.to_string() })
    }
}

impl Db {
    /// The domain and project named `default`; made on the first call. That project has no limits until somebody sets some:
    /// one operator alone should not meet any.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn default_tenants(&self) -> Result<(DomainId, ProjectId), DbError> {
        let (new_domain, new_project) = (new_id(), new_id());
        self.write_tx(move |tx| {
            Box::pin(async move {
                let found = sql("domain", DOMAINS).text(" WHERE name_folded = ").arg(DEFAULT_NAME);
                let found = tx.row(found).await?.map(|row| row.parse("id")).transpose()?;
                let domain = match found {
                    Some(id) => id,
                    None => insert_domain(tx, new_domain, DEFAULT_NAME).await.map(|()| new_domain)?,
                };
                let found = sql("project", PROJECTS).text(" WHERE domain_id = ").arg(domain);
                let found = tx.row(found.text(" AND name_folded = ").arg(DEFAULT_NAME)).await?;
                let project = match found.map(|row| row.parse("id")).transpose()? {
                    Some(id) => id,
                    None => {
                        insert_project(tx, new_project, domain, DEFAULT_NAME).await?;
                        let endless = "INSERT INTO quota (project_id, images, bytes, imports, updated_us) \
                             VALUES ($1, 0, 0, 0, $2)";
                        tx.run(sql("quota", endless).bind(new_project).bind(tx.now_us())).await?;
                        new_project
                    }
                };
                Ok((domain, project))
            })
        })
        .await
    }

    /// Makes a domain.
    ///
    /// # Errors
    /// [`DbError::Exists`] or a failed statement.
    pub async fn create_domain(&self, id: DomainId, name: &str, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                insert_domain(tx, id, name).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// Makes a project in a domain.
    ///
    /// # Errors
    /// [`DbError::NotFound`] (domain), [`DbError::Exists`] or a failed statement.
    pub async fn create_project(
        &self,
        id: ProjectId,
        domain: DomainId,
        name: &str,
        op: &Draft,
    ) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let found = tx.row(sql("domain", "SELECT id FROM domain WHERE id = $1").bind(domain)).await?;
                found.ok_or_else(|| DbError::NotFound { what: "domain", key: domain.to_string() })?;
                insert_project(tx, id, domain, name).await?;
                tx.record(op).await
            })
        })
        .await
    }

    /// All domains by name. An operator makes dozens, not thousands: no pages.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn domains(&self) -> Result<Vec<Domain>, DbError> {
        self.rows(sql("domain", DOMAINS).text(" ORDER BY name_folded")).await?.iter().map(domain).collect()
    }

    /// The projects of a domain by name.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn projects(&self, of: DomainId) -> Result<Vec<Project>, DbError> {
        let stmt = sql("project", PROJECTS).text(" WHERE domain_id = ").arg(of).text(" ORDER BY name_folded");
        self.rows(stmt).await?.iter().map(project).collect()
    }

    /// One domain.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn domain(&self, id: DomainId) -> Result<Option<Domain>, DbError> {
        let row = self.row(sql("domain", DOMAINS).text(" WHERE id = ").arg(id)).await?;
        row.as_ref().map(domain).transpose()
    }

    /// One project.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn project(&self, id: ProjectId) -> Result<Option<Project>, DbError> {
        let row = self.row(sql("project", PROJECTS).text(" WHERE id = ").arg(id)).await?;
        row.as_ref().map(project).transpose()
    }
}
