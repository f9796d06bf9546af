//! Users as they are read. [`super::user_changes`] changes them, [`super::grants`] holds what they may do.
//!
//! **Why the password's hash is not in the record.** A record is shown and printed; the hash is read by the one call that
//! compares it.
//! **Invariants.** A deleted user is never found. Names are unique in a domain without regard to case.

use hearth_protocol::api::Page;
use hearth_protocol::id::{DomainId, UserId};

use super::error::DbError;
use super::grams::fold;
use super::page::PageRequest;
use super::sql::{Row, sql};
use super::store::{Db, Tx};
use super::tenants::{TenantFilter, paged};
use super::tokens::Scope;

/// A user.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// Its domain.
    pub domain: DomainId,
    /// The name to log in with.
    pub name: String,
    /// Whether a password is set.
    pub has_password: bool,
    /// Cannot log in.
    pub disabled: bool,
    /// Tokens with an older one are over.
    pub token_revision: i64,
    /// When it was made, microseconds since the epoch.
    pub created_us: i64,
}

/// What a login compares with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Credentials {
    /// Who would log in.
    pub user: User,
    /// Argon2id of the password; `None`: none is set.
    pub password_hash: Option<String>,
    /// Neither the user nor its domain is closed.
    pub open: bool,
}

const USERS: &str = "SELECT id, domain_id, name, name_folded, disabled, token_revision, created_us, \
     CAST(CASE WHEN password_hash IS NULL THEN 0 ELSE 1 END AS BIGINT) AS has_password \
     FROM user_account WHERE deleted_us IS NULL";

fn user(row: &Row) -> Result<User, DbError> {
    Ok(User {
        id: row.parse("id")?,
        domain: row.parse("domain_id")?,
        name: row.text("name")?,
        has_password: row.flag("has_password")?,
        disabled: row.flag("disabled")?,
        token_revision: row.int("token_revision")?,
        created_us: row.int("created_us")?,
    })
}

impl Tx<'_> {
    /// The user with this id, unless it is deleted.
    pub(super) async fn live_user(&mut self, id: UserId) -> Result<User, DbError> {
        let row = self.row(sql("user_account", USERS).text(" AND id = ").arg(id)).await?;
        let found = row.as_ref().map(user).transpose()?;
        found.ok_or_else(|| DbError::NotFound { what: "user", key: id.to_string() })
    }
}

impl Db {
    /// One user.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn user(&self, id: UserId) -> Result<Option<User>, DbError> {
        let row = self.row(sql("user_account", USERS).text(" AND id = ").arg(id)).await?;
        row.as_ref().map(user).transpose()
    }

    /// Users of domains that `seen` covers, by name.
    ///
    /// # Errors
    /// [`DbError::Cursor`] or a failed statement.
    pub async fn users(
        &self,
        seen: Scope,
        filter: &TenantFilter,
        page: &PageRequest,
    ) -> Result<Page<User>, DbError> {
        let stmt = sql("user_account", USERS).when(seen.domain(), " AND domain_id = ");
        let stmt = paged(stmt.when(filter.domain, " AND domain_id = "), filter, page)?;
        let rows = self.rows(stmt).await?;
        let rows = rows.iter().map(user).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(rows, |row| [fold(&row.name), row.id.to_string()]))
    }

    /// What a login as `name` in the domain with this name or id compares with.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn credentials(&self, domain: &str, name: &str) -> Result<Option<Credentials>, DbError> {
        let stmt = sql("user_account", CREDENTIALS).text(" AND user_account.name_folded = ").arg(fold(name));
        let stmt = stmt.text(" AND (domain.name_folded = ").arg(fold(domain));
        let row = self.row(stmt.text(" OR domain.id = ").arg(domain).text(")")).await?;
        row.as_ref().map(credentials).transpose()
    }

    /// As [`Db::credentials`], of a user who is known.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn credentials_of(&self, id: UserId) -> Result<Option<Credentials>, DbError> {
        let stmt = sql("user_account", CREDENTIALS).text(" AND user_account.id = ").arg(id);
        self.row(stmt).await?.as_ref().map(credentials).transpose()
    }
}

const CREDENTIALS: &str = "SELECT user_account.id, user_account.domain_id, user_account.name, user_account.disabled, \
     user_account.token_revision, user_account.created_us, user_account.password_hash, \
     CAST(CASE WHEN user_account.password_hash IS NULL THEN 0 ELSE 1 END AS BIGINT) AS has_password, \
     CAST(CASE WHEN user_account.disabled = 0 AND domain.disabled = 0 THEN 1 ELSE 0 END AS BIGINT) AS is_open \
     FROM user_account JOIN domain ON domain.id = user_account.domain_id \
     WHERE user_account.deleted_us IS NULL AND domain.deleted_us IS NULL";

fn credentials(row: &Row) -> Result<Credentials, DbError> {
    Ok(Credentials {
        user: user(row)?,
        password_hash: row.opt_text("password_hash")?,
        open: row.flag("is_open")?,
    })
}
