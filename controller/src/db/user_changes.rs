//! Users made, renamed, closed, deleted, and their passwords.
//!
//! **Invariants.** Whoever is disabled or gets another password has a new `token_revision`: tokens that carry the old one are
//! over, also one that is being made at this moment. Nobody takes the last administrator away.

use hearth_protocol::id::{DomainId, TokenId, UserId};

use super::error::DbError;
use super::grams::fold;
use super::operations::Draft;
use super::sql::sql;
use super::store::{Db, Tx};
use super::tenant_changes::TenantChange;

/// A user that does not exist yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewUser {
    /// Its id.
    pub id: UserId,
    /// Its domain.
    pub domain: DomainId,
    /// The name to log in with.
    pub name: String,
    /// Argon2id of its password; `None`: none is set.
    pub password_hash: Option<String>,
}

async fn create_user(tx: &mut Tx<'_>, new: &NewUser, op: &Draft) -> Result<(), DbError> {
    tx.live_domain(new.domain).await?;
    let insert = "INSERT INTO user_account (id, domain_id, name, name_folded, password_hash, disabled, token_revision, \
         created_us, updated_us) VALUES ($1, $2, $3, $4, $5, 0, 1, $6, $6)";
    let stmt =
        sql("user_account", insert).bind(new.id).bind(new.domain).bind(&new.name).bind(fold(&new.name));
    let stmt = stmt.bind(new.password_hash.clone()).bind(tx.now_us());
    tx.run(stmt).await.map_err(|error| error.or_exists("user", &new.name))?;
    tx.record(op).await
}

async fn update_user(tx: &mut Tx<'_>, id: UserId, change: &TenantChange, op: &Draft) -> Result<(), DbError> {
    let old = tx.live_user(id).await?;
    let Some(details) = change.details(&old.name, old.disabled) else { return Ok(()) };
    let name = change.name.as_ref().unwrap_or(&old.name);
    let disabled = change.disabled.unwrap_or(old.disabled);
    let revision = old.token_revision + i64::from(disabled && !old.disabled);
    let update = "UPDATE user_account SET name = $1, name_folded = $2, disabled = $3, token_revision = $4, \
         updated_us = $5 WHERE id = $6";
    let stmt = sql("user_account", update).bind(name).bind(fold(name)).bind(disabled).bind(revision);
    tx.run(stmt.bind(tx.now_us()).bind(id)).await.map_err(|error| error.or_exists("user", name))?;
    tx.record(&op.clone().on("user", id, old.name).with(details)).await
}

async fn delete_user(tx: &mut Tx<'_>, id: UserId, op: &Draft) -> Result<(), DbError> {
    let old = tx.live_user(id).await?;
    let update = "UPDATE user_account SET deleted_us = $1, updated_us = $1, name_folded = id, password_hash = NULL, \
         token_revision = token_revision + 1 WHERE id = $2";
    tx.run(sql("user_account", update).bind(tx.now_us()).bind(id)).await?;
    tx.run(sql("role_grant", "DELETE FROM role_grant WHERE user_id = $1").bind(id)).await?;
    let end = "UPDATE token SET revoked_us = COALESCE(revoked_us, $1), updated_us = $1 WHERE user_id = $2";
    tx.run(sql("token", end).bind(tx.now_us()).bind(id)).await?;
    tx.record(&op.clone().on("user", id, old.name)).await
}

async fn set_password(
    tx: &mut Tx<'_>,
    id: UserId,
    hash: &str,
    kept: Option<TokenId>,
    op: &Draft,
) -> Result<(), DbError> {
    let old = tx.live_user(id).await?;
    let update = "UPDATE user_account SET password_hash = $1, token_revision = token_revision + 1, updated_us = $2 \
         WHERE id = $3";
    tx.run(sql("user_account", update).bind(hash).bind(tx.now_us()).bind(id)).await?;
    if let Some(token) = kept {
        let keep = "UPDATE token SET user_revision = user_revision + 1, updated_us = $1 \
             WHERE id = $2 AND user_id = $3 AND user_revision = $4";
        let keep = sql("token", keep).bind(tx.now_us()).bind(token).bind(id).bind(old.token_revision);
        tx.run(keep).await?;
    }
    tx.record(&op.clone().on("user", id, old.name)).await
}

impl Db {
    /// Makes a user.
    ///
    /// # Errors
    /// [`DbError::NotFound`] (domain), [`DbError::Exists`] or a failed statement.
    pub async fn create_user(&self, new: &NewUser, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| Box::pin(create_user(tx, new, op))).await
    }

    /// Renames, closes or opens a user. A change that changes nothing is no operation.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::Exists`], [`DbError::LastAdministrator`] or a failed statement.
    pub async fn update_user(&self, id: UserId, change: &TenantChange, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(tx.keeping_an_administrator(move |tx| Box::pin(update_user(tx, id, change, op))))
        })
        .await
    }

    /// Deletes a user with all grants; its tokens end.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::LastAdministrator`] or a failed statement.
    pub async fn delete_user(&self, id: UserId, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(tx.keeping_an_administrator(move |tx| Box::pin(delete_user(tx, id, op))))
        })
        .await
    }

    /// Sets a password; ends the user's tokens, all but `kept`.
    ///
    /// # Errors
    /// [`DbError::NotFound`] or a failed statement.
    pub async fn set_password(
        &self,
        id: UserId,
        hash: &str,
        kept: Option<TokenId>,
        op: &Draft,
    ) -> Result<(), DbError> {
        self.write_tx(move |tx| Box::pin(set_password(tx, id, hash, kept, op))).await
    }
}
