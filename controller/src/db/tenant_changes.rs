//! Domains and projects: renamed, closed, opened, deleted.
//!
//! **Why a deleted row stays.** Images that are gone, ended tokens and the operation log name it. Its folded name becomes its id, which
//! frees the name.
//!
//! **Invariants.** Only what is empty is deleted; its grants and tokens go in the same transaction. The domain and
//! the project named `default` keep their name and stay: system tokens that name no project put images there.
//! A closed or deleted tenant ends its tokens where they are looked up ([`super::tokens`]), not here.

use hearth_protocol::id::{DomainId, ProjectId};
use serde_json::{Map, Value, json};

use super::error::DbError;
use super::grams::fold;
use super::operations::Draft;
use super::sql::{Stmt, sql};
use super::store::{Db, Tx};
use super::tenants::DEFAULT_NAME;

/// What to change; what is `None` stays.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TenantChange {
    /// The new name.
    pub name: Option<String>,
    /// Closed, or open again.
    pub disabled: Option<bool>,
}

impl TenantChange {
    /// What of it differs from `name` and `disabled`, as the operation log tells it; `None`: nothing does.
    pub(super) fn details(&self, name: &str, disabled: bool) -> Option<Value> {
        let (mut before, mut after) = (Map::new(), Map::new());
        if let Some(new) = self.name.as_deref().filter(|new| *new != name) {
            before.insert("name".to_owned(), json!(name));
            after.insert("name".to_owned(), json!(new));
        }
        if let Some(new) = self.disabled.filter(|new| *new != disabled) {
            before.insert("disabled".to_owned(), json!(disabled));
            after.insert("disabled".to_owned(), json!(new));
        }
        (!after.is_empty()).then(|| json!({ "before": before, "after": after }))
    }
}

/// A change of `default` that its job does not allow.
fn refuse_default(what: &'static str, name: &str) -> Result<(), DbError> {
    if fold(name) != DEFAULT_NAME {
        return Ok(());
    }
    Err(DbError::State {
        what,
        key: name.to_owned(),
        state: "where images go that name no project".to_owned(),
        allowed: "it keeps its name and stays; make another one and use that",
    })
}

/// Refuses with `state` if `stmt` finds anything.
async fn refuse_if_any(
    tx: &mut Tx<'_>,
    stmt: Stmt,
    (what, key): (&'static str, &str),
    state: &str,
) -> Result<(), DbError> {
    if tx.row(stmt).await?.is_none() {
        return Ok(());
    }
    let allowed = "only what is empty can be deleted; disable it to close it at once";
    Err(DbError::State { what, key: key.to_owned(), state: state.to_owned(), allowed })
}

async fn update_domain(
    tx: &mut Tx<'_>,
    id: DomainId,
    change: &TenantChange,
    op: &Draft,
) -> Result<(), DbError> {
    let old = tx.live_domain(id).await?;
    let Some(details) = change.details(&old.name, old.disabled) else { return Ok(()) };
    let name = change.name.as_ref().unwrap_or(&old.name);
    if fold(name) != fold(&old.name) {
        refuse_default("domain", &old.name)?;
    }
    let update =
        "UPDATE domain SET name = $1, name_folded = $2, disabled = $3, updated_us = $4 WHERE id = $5";
    let stmt =
        sql("domain", update).bind(name).bind(fold(name)).bind(change.disabled.unwrap_or(old.disabled));
    tx.run(stmt.bind(tx.now_us()).bind(id)).await.map_err(|error| error.or_exists("domain", name))?;
    tx.record(&op.clone().on("domain", id, old.name).with(details)).await
}

async fn update_project(
    tx: &mut Tx<'_>,
    id: ProjectId,
    change: &TenantChange,
    op: &Draft,
) -> Result<(), DbError> {
    let old = tx.live_project(id).await?;
    let Some(details) = change.details(&old.name, old.disabled) else { return Ok(()) };
    let name = change.name.as_ref().unwrap_or(&old.name);
    if fold(name) != fold(&old.name) && tx.live_domain(old.domain).await?.name == DEFAULT_NAME {
        refuse_default("project", &old.name)?;
    }
    let update =
        "UPDATE project SET name = $1, name_folded = $2, disabled = $3, updated_us = $4 WHERE id = $5";
    let stmt =
        sql("project", update).bind(name).bind(fold(name)).bind(change.disabled.unwrap_or(old.disabled));
    tx.run(stmt.bind(tx.now_us()).bind(id)).await.map_err(|error| error.or_exists("project", name))?;
    tx.record(&op.clone().on("project", id, old.name).with(details)).await
}

async fn delete_domain(tx: &mut Tx<'_>, id: DomainId, op: &Draft) -> Result<(), DbError> {
    let old = tx.live_domain(id).await?;
    refuse_default("domain", &old.name)?;
    let named = ("domain", old.name.as_str());
    let projects =
        sql("project", "SELECT id FROM project WHERE domain_id = $1 AND deleted_us IS NULL LIMIT 1");
    refuse_if_any(tx, projects.bind(id), named, "not empty: it has projects").await?;
    let users = sql(
        "user_account",
        "SELECT id FROM user_account WHERE domain_id = $1 AND deleted_us IS NULL LIMIT 1",
    );
    refuse_if_any(tx, users.bind(id), named, "not empty: it has users").await?;
    tx.run(sql("role_grant", "DELETE FROM role_grant WHERE domain_id = $1").bind(id)).await?;
    tx.run(sql("share", "DELETE FROM share WHERE kind = 'domain' AND target = $1").bind(id)).await?;
    let end = "UPDATE token SET revoked_us = COALESCE(revoked_us, $1), updated_us = $1 WHERE domain_id = $2";
    tx.run(sql("token", end).bind(tx.now_us()).bind(id)).await?;
    let update = "UPDATE domain SET deleted_us = $1, updated_us = $1, name_folded = id WHERE id = $2";
    tx.run(sql("domain", update).bind(tx.now_us()).bind(id)).await?;
    tx.record(&op.clone().on("domain", id, old.name)).await
}

async fn delete_project(tx: &mut Tx<'_>, id: ProjectId, op: &Draft) -> Result<(), DbError> {
    let old = tx.live_project(id).await?;
    if tx.live_domain(old.domain).await?.name == DEFAULT_NAME {
        refuse_default("project", &old.name)?;
    }
    let images = sql("image", "SELECT id FROM image WHERE project_id = $1 AND deleted_us IS NULL LIMIT 1");
    refuse_if_any(tx, images.bind(id), ("project", &old.name), "not empty: it has images").await?;
    tx.run(sql("role_grant", "DELETE FROM role_grant WHERE project_id = $1").bind(id)).await?;
    tx.run(sql("share", "DELETE FROM share WHERE kind = 'project' AND target = $1").bind(id)).await?;
    let end = "UPDATE token SET revoked_us = COALESCE(revoked_us, $1), updated_us = $1 WHERE project_id = $2";
    tx.run(sql("token", end).bind(tx.now_us()).bind(id)).await?;
    let update = "UPDATE project SET deleted_us = $1, updated_us = $1, name_folded = id WHERE id = $2";
    tx.run(sql("project", update).bind(tx.now_us()).bind(id)).await?;
    tx.record(&op.clone().on("project", id, old.name)).await
}

impl Db {
    /// Renames, closes or opens a domain. A change that changes nothing is no operation.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::Exists`], [`DbError::State`] (the name `default`),
    /// [`DbError::LastAdministrator`] or a failed statement.
    pub async fn update_domain(
        &self,
        id: DomainId,
        change: &TenantChange,
        op: &Draft,
    ) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(tx.keeping_an_administrator(move |tx| Box::pin(update_domain(tx, id, change, op))))
        })
        .await
    }

    /// Deletes a domain without projects and users.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] or a failed statement.
    pub async fn delete_domain(&self, id: DomainId, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| Box::pin(delete_domain(tx, id, op))).await
    }

    /// Renames, closes or opens a project. A change that changes nothing is no operation.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::Exists`], [`DbError::State`] (the name `default`) or a failed statement.
    pub async fn update_project(
        &self,
        id: ProjectId,
        change: &TenantChange,
        op: &Draft,
    ) -> Result<(), DbError> {
        self.write_tx(move |tx| Box::pin(update_project(tx, id, change, op))).await
    }

    /// Deletes a project without images.
    ///
    /// # Errors
    /// [`DbError::NotFound`], [`DbError::State`] or a failed statement.
    pub async fn delete_project(&self, id: ProjectId, op: &Draft) -> Result<(), DbError> {
        self.write_tx(move |tx| Box::pin(delete_project(tx, id, op))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_only_what_changed() {
        let change = TenantChange { name: Some("b".into()), disabled: Some(false) };
        let told = change.details("a", false).unwrap();
        assert_eq!(told, json!({ "before": { "name": "a" }, "after": { "name": "b" } }));
        assert_eq!(change.details("b", false), None);
        assert_eq!(TenantChange::default().details("a", true), None);
    }
}
