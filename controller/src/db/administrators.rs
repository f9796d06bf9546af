//! The promise that somebody can always administer the system.
//!
//! **What.** [`Tx::keeping_an_administrator`] looks before and after a change whether anybody is left who could make tokens of any kind.
//! **Why inside the transaction.** Two administrators who end each other's rights at the same time would both be told
//! that the other one is left.
//! **Why both times.** Where nobody is left already (all tokens expired), a change is not refused for it; there is
//! `hearth-controller init --new-admin-token`.
//! **Invariants.** An administrator is a token of no user that is good now, or a user who can log in: neither
//! disabled nor without password nor in a closed domain.

use futures::future::BoxFuture;

use super::error::DbError;
use super::sql::sql;
use super::store::Tx;

impl<'a> Tx<'a> {
    /// Runs `change`, and refuses it if it took the last administrator away.
    ///
    /// # Errors
    /// [`DbError::LastAdministrator`], what `change` returns, or a failed statement.
    pub(super) async fn keeping_an_administrator<T, F>(&mut self, change: F) -> Result<T, DbError>
    where
        F: for<'t> FnOnce(&'t mut Self) -> BoxFuture<'t, Result<T, DbError>>,
    {
        let before = self.is_administered().await?;
        let done = change(self).await?;
        if before && !self.is_administered().await? {
            return Err(DbError::LastAdministrator);
        }
        Ok(done)
    }

    async fn is_administered(&mut self) -> Result<bool, DbError> {
        let token = "SELECT id FROM token WHERE role = 'admin' AND scope = 'system' AND user_id IS NULL \
             AND revoked_us IS NULL AND (expires_us IS NULL OR expires_us > $1) LIMIT 1";
        if self.row(sql("token", token).bind(self.now_us())).await?.is_some() {
            return Ok(true);
        }
        let user = "SELECT role_grant.id FROM role_grant JOIN user_account ON user_account.id = role_grant.user_id \
             JOIN domain ON domain.id = user_account.domain_id WHERE role_grant.role = 'admin' \
             AND role_grant.scope = 'system' AND user_account.password_hash IS NOT NULL AND user_account.disabled = 0 \
             AND user_account.deleted_us IS NULL AND domain.disabled = 0 AND domain.deleted_us IS NULL LIMIT 1";
        Ok(self.row(sql("role_grant", user)).await?.is_some())
    }
}
