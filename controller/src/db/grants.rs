//! Grants: which role a user has in which scope.
//!
//! **What.** A user may have several; a token carries exactly one of them and is good only as long as it stands.
//! **Why a grant is never changed.** Another role is another grant: then there is nothing a token could carry that changed
//! under it.
//! **Invariants.** One grant per user, scope and role. A revoked grant leaves no row, so a token that names it finds none.

use hearth_protocol::api::Page;
use hearth_protocol::id::{DomainId, GrantId, ProjectId, UserId};
use hearth_protocol::words::{Role, ScopeKind};

use super::error::DbError;
use super::operations::Draft;
use super::page::PageRequest;
use super::sql::{Row, sql};
use super::store::{Db, Tx};
use super::tokens::{Scope, scope_of};

/// Most grants of one user: bounds what a login reads.
pub const GRANTS_PER_USER_MAX: i64 = 1000;

/// A grant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Grant {
    /// Its id.
    pub id: GrantId,
    /// Who has it.
    pub user: UserId,
    /// The user's name.
    pub user_name: String,
    /// Role.
    pub role: Role,
    /// Where it holds.
    pub scope: Scope,
    /// Name of the scope's domain.
    pub domain_name: Option<String>,
    /// Name of the scope's project.
    pub project_name: Option<String>,
    /// Whether neither its domain nor its project is closed.
    pub open: bool,
    /// Who gave it.
    pub created_by: String,
    /// When, microseconds since the epoch.
    pub created_us: i64,
}

/// A grant that does not exist yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewGrant {
    /// Its id.
    pub id: GrantId,
    /// Who gets it.
    pub user: UserId,
    /// Role.
    pub role: Role,
    /// Where it holds.
    pub scope: Scope,
    /// Who gives it.
    pub created_by: String,
}

/// Which grants to list. The default lists all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GrantFilter {
    /// Of this user.
    pub user: Option<UserId>,
    /// In this domain and its projects.
    pub domain: Option<DomainId>,
    /// In this project.
    pub project: Option<ProjectId>,
}

const GRANTS: &str = "SELECT role_grant.id, role_grant.user_id, user_account.name AS user_name, role_grant.role, \
     role_grant.scope, role_grant.domain_id, role_grant.project_id, domain.name AS domain_name, \
     project.name AS project_name, role_grant.created_by, role_grant.created_us, \
     CAST(CASE WHEN COALESCE(domain.disabled, 0) = 0 AND COALESCE(project.disabled, 0) = 0 THEN 1 ELSE 0 END AS BIGINT) \
     AS is_open FROM role_grant JOIN user_account ON user_account.id = role_grant.user_id \
     LEFT JOIN domain ON domain.id = role_grant.domain_id LEFT JOIN project ON project.id = role_grant.project_id \
     WHERE user_account.deleted_us IS NULL";

fn grant(row: &Row) -> Result<Grant, DbError> {
    Ok(Grant {
        id: row.parse("id")?,
        user: row.parse("user_id")?,
        user_name: row.text("user_name")?,
        role: row.parse("role")?,
        scope: scope_of(row)?,
        domain_name: row.opt_text("domain_name")?,
        project_name: row.opt_text("project_name")?,
        open: row.flag("is_open")?,
        created_by: row.text("created_by")?,
        created_us: row.int("created_us")?,
    })
}

async fn create_grant(tx: &mut Tx<'_>, new: &NewGrant, op: &Draft) -> Result<(), DbError> {
    let user = tx.live_user(new.user).await?;
    match new.scope {
        Scope::System => {}
        Scope::Domain(domain) => drop(tx.live_domain(domain).await?),
        Scope::Project(_, project) => drop(tx.live_project(project).await?),
    }
    let count = "SELECT CAST(COUNT(id) AS BIGINT) AS n FROM role_grant WHERE user_id = $1";
    let held = tx.row(sql("role_grant", count).bind(new.user)).await?.map_or(Ok(0), |row| row.int("n"))?;
    if held >= GRANTS_PER_USER_MAX {
        let state = format!("at the limit of {GRANTS_PER_USER_MAX} grants");
        let allowed = "revoke some, or grant in the domain";
        return Err(DbError::State { what: "user", key: user.name, state, allowed });
    }
    let key = match new.scope {
        Scope::System => ScopeKind::System.to_string(),
        Scope::Domain(domain) => domain.to_string(),
        Scope::Project(_, project) => project.to_string(),
    };
    let insert = "INSERT INTO role_grant (id, user_id, role, scope, domain_id, project_id, scope_key, created_by, \
         created_us) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    let stmt = sql("role_grant", insert).bind(new.id).bind(new.user).bind(new.role).bind(new.scope.kind());
    let stmt = stmt.bind(new.scope.domain()).bind(new.scope.project()).bind(key).bind(&new.created_by);
    let what = format!("{} for user {} there", new.role, user.name);
    tx.run(stmt.bind(tx.now_us())).await.map_err(|error| error.or_exists("grant of", &what))?;
    tx.record(op).await
}

async fn revoke_grant(tx: &mut Tx<'_>, id: GrantId, op: &Draft) -> Result<(), DbError> {
    if tx.run(sql("role_grant", "DELETE FROM role_grant WHERE id = $1").bind(id)).await? == 0 {
        return Err(DbError::NotFound { what: "grant", key: id.to_string() });
    }
    let end = "UPDATE token SET revoked_us = COALESCE(revoked_us, $1), updated_us = $1 WHERE grant_id = $2";
    tx.run(sql("token", end).bind(tx.now_us()).bind(id)).await?;
    tx.record(op).await
}

impl Db {
    /// Gives a user a role in a scope.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::Exists`], [`DbError::State`] (too many) or a failed statement.
    pub async fn create_grant(&self, new: &NewGrant, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| Box::pin(create_grant(tx, new, op))).await
    }

    /// Takes a grant away; tokens with it end.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::LastAdministrator`] or a failed statement.
    pub async fn revoke_grant(&self, id: GrantId, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(tx.keeping_an_administrator(move |tx| Box::pin(revoke_grant(tx, id, op))))
        })
        .await
    }

    /// One grant.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn grant(&self, id: GrantId) -> Result<Option<Grant>, DbError> {
        let row = self.row(sql("role_grant", GRANTS).text(" AND role_grant.id = ").arg(id)).await?;
        row.as_ref().map(grant).transpose()
    }

    /// All grants of a user, oldest first; at most [`GRANTS_PER_USER_MAX`].
    ///
    /// # Errors
    /// A failed statement.
    pub async fn grants_of(&self, user: UserId) -> Result<Vec<Grant>, DbError> {
        let stmt = sql("role_grant", GRANTS).text(" AND role_grant.user_id = ").arg(user);
        self.rows(stmt.text(" ORDER BY role_grant.id")).await?.iter().map(grant).collect()
    }

    /// Grants in scopes that `seen` covers, newest first.
    ///
    /// # Errors
    /// [`DbError::Cursor`] or a failed statement.
    pub async fn grants(
        &self,
        seen: Scope,
        filter: &GrantFilter,
        page: &PageRequest,
    ) -> Result<Page<Grant>, DbError> {
        let mut stmt = sql("role_grant", GRANTS).when(seen.domain(), " AND role_grant.domain_id = ");
        stmt = stmt.when(seen.project(), " AND role_grant.project_id = ");
        stmt = stmt.when(filter.user, " AND role_grant.user_id = ");
        stmt = stmt.when(filter.domain, " AND role_grant.domain_id = ");
        stmt = stmt.when(filter.project, " AND role_grant.project_id = ");
        if let Some([id]) = page.key()? {
            stmt = stmt.text(" AND role_grant.id < ").arg(id);
        }
        let rows = self.rows(stmt.text(" ORDER BY role_grant.id DESC LIMIT ").arg(page.fetch())).await?;
        let rows = rows.iter().map(grant).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(rows, |row| [row.id.to_string()]))
    }
}
