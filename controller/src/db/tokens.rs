//! Bearer tokens of people and scripts.
//!
//! **What.** A record per token; of the secret only the BLAKE3 hash is stored. 256 random bits need no slow hash, and a
//! look-up by hash leaks nothing through its timing.
//!
//! **Why the look-up asks for everything.** A token ends with its domain, its project, its user, the user's domain, password and
//! grant. Whoever changes one of these need not remember tokens: [`GOOD`] is asked at every look-up.
//!
//! **Invariants.** [`Db::token_by_secret_hash`] finds no token that is over for any of these reasons. A user has at most
//! [`TOKENS_PER_USER_MAX`] tokens; the oldest goes first.

use hearth_protocol::api::Page;
use hearth_protocol::id::{DomainId, GrantId, ProjectId, TokenId, UserId};
use hearth_protocol::words::{Role, ScopeKind};

use super::error::DbError;
use super::operations::Draft;
use super::page::PageRequest;
use super::sql::{Row, sql};
use super::store::{Db, Tx};

/// Where a role holds.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Scope {
    /// Everywhere.
    System,
    /// In a domain and its projects.
    Domain(DomainId),
    /// In a project.
    Project(DomainId, ProjectId),
}

impl Scope {
    /// Its level.
    #[must_use]
    pub const fn kind(self) -> ScopeKind {
        match self {
            Self::System => ScopeKind::System,
            Self::Domain(_) => ScopeKind::Domain,
            Self::Project(..) => ScopeKind::Project,
        }
    }

    /// Its domain.
    #[must_use]
    pub const fn domain(self) -> Option<DomainId> {
        match self {
            Self::System => None,
            Self::Domain(domain) | Self::Project(domain, _) => Some(domain),
        }
    }

    /// Its project.
    #[must_use]
    pub const fn project(self) -> Option<ProjectId> {
        match self {
            Self::System | Self::Domain(_) => None,
            Self::Project(_, project) => Some(project),
        }
    }
}

/// Most tokens of one user: bounds what logging in again and again leaves behind.
pub const TOKENS_PER_USER_MAX: i64 = 100;

/// The user behind a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Holder {
    /// Whose it is.
    pub user: UserId,
    /// The grant that it carries.
    pub grant: GrantId,
    /// The user's `token_revision` when it was made.
    pub revision: i64,
}

/// A token's record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// Who uses it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Where.
    pub scope: Scope,
    /// The user behind it; `None`: a program's.
    pub holder: Option<Holder>,
    /// Whether it opens anything now.
    pub usable: bool,
    /// When it ends, microseconds since the epoch; `None`: never.
    pub expires_us: Option<i64>,
    /// When it was revoked.
    pub revoked_us: Option<i64>,
    /// When it was last used, to the minute.
    pub last_used_us: Option<i64>,
    /// When it was made.
    pub created_us: i64,
}

const COLUMNS: &str = "SELECT id, name, role, scope, domain_id, project_id, expires_us, revoked_us, last_used_us, \
     created_us, user_id, grant_id, user_revision, CAST(CASE WHEN ";

/// Follows [`COLUMNS`] and [`GOOD`].
const USABLE: &str = ") THEN 1 ELSE 0 END AS BIGINT) AS usable FROM token WHERE 1 = 1";

/// What makes a token good; the time and `)` follow.
const GOOD: &str = "token.revoked_us IS NULL \
     AND NOT EXISTS (SELECT domain.id FROM domain WHERE domain.id = token.domain_id \
         AND (domain.disabled <> 0 OR domain.deleted_us IS NOT NULL)) \
     AND NOT EXISTS (SELECT project.id FROM project WHERE project.id = token.project_id \
         AND (project.disabled <> 0 OR project.deleted_us IS NOT NULL)) \
     AND (token.user_id IS NULL OR EXISTS (SELECT user_account.id FROM user_account \
         JOIN domain ON domain.id = user_account.domain_id \
         JOIN role_grant ON role_grant.user_id = user_account.id \
         WHERE user_account.id = token.user_id AND user_account.token_revision = token.user_revision \
         AND user_account.disabled = 0 AND user_account.deleted_us IS NULL \
         AND domain.disabled = 0 AND domain.deleted_us IS NULL \
         AND role_grant.id = token.grant_id AND role_grant.role = token.role)) \
     AND (token.expires_us IS NULL OR token.expires_us > ";

/// Reads the columns `scope`, `domain_id` and `project_id`.
pub(super) fn scope_of(row: &Row) -> Result<Scope, DbError> {
    Ok(match row.parse("scope")? {
        ScopeKind::System => Scope::System,
        ScopeKind::Domain => Scope::Domain(row.parse("domain_id")?),
        ScopeKind::Project => Scope::Project(row.parse("domain_id")?, row.parse("project_id")?),
    })
}

fn token(row: &Row) -> Result<Token, DbError> {
    let holder = match row.opt_parse("user_id")? {
        Some(user) => {
            Some(Holder { user, grant: row.parse("grant_id")?, revision: row.int("user_revision")? })
        }
        None => None,
    };
    Ok(Token {
        id: row.parse("id")?,
        name: row.text("name")?,
        role: row.parse("role")?,
        scope: scope_of(row)?,
        holder,
        usable: row.flag("usable")?,
        expires_us: row.opt_int("expires_us")?,
        revoked_us: row.opt_int("revoked_us")?,
        last_used_us: row.opt_int("last_used_us")?,
        created_us: row.int("created_us")?,
    })
}

/// Removes what is over of a user's tokens, and the oldest beyond the limit, so that one more fits. Returns those that opened
/// something until now.
async fn make_room(tx: &mut Tx<'_>, user: UserId) -> Result<Vec<TokenId>, DbError> {
    let over = "DELETE FROM token WHERE user_id = $1 AND (revoked_us IS NOT NULL OR expires_us <= $2 \
         OR user_revision < (SELECT token_revision FROM user_account WHERE user_account.id = token.user_id))";
    tx.run(sql("token", over).bind(user).bind(tx.now_us())).await?;
    let beyond = "DELETE FROM token WHERE user_id = $1 AND id NOT IN \
         (SELECT id FROM token WHERE user_id = $1 ORDER BY id DESC LIMIT $2) RETURNING id";
    let rows = tx.rows(sql("token", beyond).bind(user).bind(TOKENS_PER_USER_MAX - 1)).await?;
    rows.iter().map(|row| row.parse("id")).collect()
}

async fn create_token(tx: &mut Tx<'_>, token: &Token, secret_hash: &str, op: &Draft) -> Result<(), DbError> {
    let removed = match token.holder {
        Some(holder) => make_room(tx, holder.user).await?,
        None => Vec::new(),
    };
    let insert = "INSERT INTO token (id, secret_hash, name, role, scope, domain_id, project_id, expires_us, \
         created_us, updated_us, user_id, grant_id, user_revision) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, $10, $11, $12)";
    let stmt = sql("token", insert).bind(token.id).bind(secret_hash).bind(&token.name).bind(token.role);
    let stmt = stmt.bind(token.scope.kind()).bind(token.scope.domain()).bind(token.scope.project());
    let stmt = stmt.bind(token.expires_us).bind(tx.now_us());
    let stmt =
        stmt.bind(token.holder.map(|holder| holder.user)).bind(token.holder.map(|holder| holder.grant));
    let stmt = stmt.bind(token.holder.map(|holder| holder.revision));
    tx.run(stmt).await.map_err(|error| error.or_exists("token", &token.name))?;
    if removed.is_empty() {
        return tx.record(op).await;
    }
    // Somebody works with them: the log must say why they open nothing any more.
    let mut op = op.clone();
    op.details["removed_tokens"] = serde_json::json!(removed);
    tx.record(&op).await
}

async fn revoke_token(tx: &mut Tx<'_>, id: TokenId, op: &Draft) -> Result<(), DbError> {
    let update = "UPDATE token SET revoked_us = COALESCE(revoked_us, $1), updated_us = $1 WHERE id = $2";
    if tx.run(sql("token", update).bind(tx.now_us()).bind(id)).await? == 0 {
        return Err(DbError::NotFound { what: "token", key: id.to_string() });
    }
    tx.record(op).await
}

impl Db {
    /// Stores a token; `created_us`, `revoked_us`, `last_used_us` and `usable` of `token` are ignored. A user's oldest
    /// tokens make room, and the row of the log names them.
    ///
    /// # Errors
    /// [`DbError::Exists`] if the secret is known already, or a failed statement.
    pub async fn create_token(&self, token: &Token, secret_hash: &str, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| Box::pin(create_token(tx, token, secret_hash, op))).await
    }

    /// The token with this secret, if it is good at `now_us`.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn token_by_secret_hash(
        &self,
        secret_hash: &str,
        now_us: i64,
    ) -> Result<Option<Token>, DbError> {
        let stmt = sql("token", COLUMNS).text(GOOD).arg(now_us).text(USABLE);
        let row = self.row(stmt.text(" AND secret_hash = ").arg(secret_hash)).await?;
        Ok(row.as_ref().map(token).transpose()?.filter(|token| token.usable))
    }

    /// The token with this id, good or not.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn token(&self, id: TokenId, now_us: i64) -> Result<Option<Token>, DbError> {
        let stmt = sql("token", COLUMNS).text(GOOD).arg(now_us).text(USABLE).text(" AND id = ").arg(id);
        self.row(stmt).await?.as_ref().map(token).transpose()
    }

    /// Whether there is any token at all: the controller is set up.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn has_tokens(&self) -> Result<bool, DbError> {
        Ok(self.row(sql("token", "SELECT id FROM token LIMIT 1")).await?.is_some())
    }

    /// Tokens in scopes that `seen` covers, newest first.
    ///
    /// # Errors
    /// [`DbError::Cursor`] or a failed statement.
    pub async fn tokens(
        &self,
        seen: Scope,
        user: Option<UserId>,
        page: &PageRequest,
        now_us: i64,
    ) -> Result<Page<Token>, DbError> {
        let mut stmt = sql("token", COLUMNS).text(GOOD).arg(now_us).text(USABLE);
        stmt = stmt.when(seen.domain(), " AND domain_id = ").when(seen.project(), " AND project_id = ");
        stmt = stmt.when(user, " AND user_id = ");
        if let Some([id]) = page.key()? {
            stmt = stmt.text(" AND id < ").arg(id);
        }
        let rows = self.rows(stmt.text(" ORDER BY id DESC LIMIT ").arg(page.fetch())).await?;
        let rows = rows.iter().map(token).collect::<Result<Vec<_>, _>>()?;
        Ok(page.page(rows, |row| [row.id.to_string()]))
    }

    /// Revokes a token at once; doing it twice keeps the first time.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::LastAdministrator`] or a failed statement.
    pub async fn revoke_token(&self, id: TokenId, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(tx.keeping_an_administrator(move |tx| Box::pin(revoke_token(tx, id, op))))
        })
        .await
    }

    /// Gives a token that is not revoked another secret; the old one opens nothing from then on.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn rotate_token(&self, id: TokenId, secret_hash: &str, op: &Draft) -> Result<(), DbError> {
        let update =
            "UPDATE token SET secret_hash = $1, updated_us = $2 WHERE id = $3 AND revoked_us IS NULL";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let stmt = sql("token", update).bind(secret_hash).bind(tx.now_us()).bind(id);
                if tx.run(stmt).await? == 0 {
                    return Err(DbError::NotFound { what: "token", key: id.to_string() });
                }
                tx.record(op).await
            })
        })
        .await
    }

    /// Notes that a token was used, at most once a minute: a look must not cost a write.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn touch_token(&self, token: &Token, now_us: i64) -> Result<(), DbError> {
        const MINUTE_US: i64 = 60 * 1_000_000;
        if token.last_used_us.is_some_and(|last| now_us < last.saturating_add(MINUTE_US)) {
            return Ok(());
        }
        let update = "UPDATE token SET last_used_us = $1 WHERE id = $2";
        self.write_tx(move |tx| {
            Box::pin(
                async move { tx.run(sql("token", update).bind(now_us).bind(token.id)).await.map(|_| ()) },
            )
        })
        .await
    }
}
