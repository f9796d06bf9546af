//! Bearer tokens of people and scripts.
//!
//! **What.** A record per token; of the secret only the BLAKE3 hash is stored. 256 random bits need no slow hash, and a
//! look-up by hash leaks nothing through its timing.
//! **Invariants.** A revoked or ended token is never found by [`Db::token_by_secret_hash`].

use hearth_protocol::id::{DomainId, ProjectId, TokenId};
use hearth_protocol::words::{Role, ScopeKind};

use super::error::DbError;
use super::operations::Draft;
use super::sql::{Row, sql};
use super::store::Db;

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
     created_us FROM token";

fn token(row: &Row) -> Result<Token, DbError> {
    let scope = match row.parse("scope")? {
        ScopeKind::System => Scope::System,
        ScopeKind::Domain => Scope::Domain(row.parse("domain_id")?),
        ScopeKind::Project => Scope::Project(row.parse("domain_id")?, row.parse("project_id")?),
    };
    Ok(Token {
        id: row.parse("id")?,
        name: row.text("name")?,
        role: row.parse("role")?,
        scope,
        expires_us: row.opt_int("expires_us")?,
        revoked_us: row.opt_int("revoked_us")?,
        last_used_us: row.opt_int("last_used_us")?,
        created_us: row.int("created_us")?,
    })
}

impl Db {
    /// Stores a token; `created_us`, `revoked_us` and `last_used_us` of `token` are ignored.
    ///
    /// # Errors
    /// [`DbError::Exists`] if the secret is known already, or a failed statement.
    pub async fn create_token(&self, token: &Token, secret_hash: &str, op: &Draft) -> Result<(), DbError> {
        let insert = "INSERT INTO token (id, secret_hash, name, role, scope, domain_id, project_id, expires_us, \
             created_us, updated_us) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)";
        self.write_tx(move |tx| {
            Box::pin(async move {
                let stmt =
                    sql("token", insert).bind(token.id).bind(secret_hash).bind(&token.name).bind(token.role);
                let stmt =
                    stmt.bind(token.scope.kind()).bind(token.scope.domain()).bind(token.scope.project());
                let stmt = stmt.bind(token.expires_us).bind(tx.now_us());
                tx.run(stmt).await.map_err(|error| error.or_exists("token", &token.name))?;
                tx.record(op).await
            })
        })
        .await
    }

    /// The token with this secret, if it is valid at `now_us`.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn token_by_secret_hash(
        &self,
        secret_hash: &str,
        now_us: i64,
    ) -> Result<Option<Token>, DbError> {
        let stmt = sql("token", COLUMNS).text(" WHERE secret_hash = ").arg(secret_hash);
        let stmt = stmt.text(" AND revoked_us IS NULL AND (expires_us IS NULL OR expires_us > ").arg(now_us);
        self.row(stmt.text(")")).await?.as_ref().map(token).transpose()
    }

    /// All tokens, newest first.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn tokens(&self) -> Result<Vec<Token>, DbError> {
        self.rows(sql("token", COLUMNS).text(" ORDER BY id DESC")).await?.iter().map(token).collect()
    }

    /// Revokes a token at once; doing it twice keeps the first time.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn revoke_token(&self, id: TokenId, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let update =
                    "UPDATE token SET revoked_us = COALESCE(revoked_us, $1), updated_us = $1 WHERE id = $2";
                if tx.run(sql("token", update).bind(tx.now_us()).bind(id)).await? == 0 {
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
