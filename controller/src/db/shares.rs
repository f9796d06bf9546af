//! Shares: who else may use an image, and the lists that follow from it.
//!
//! **What.** The conditions that cut lists to what a scope may use; the look-up of one image with the share through which it is
//! known; adding, ending and answering shares.
//! **Why the conditions stand here.** Four lists and the look-up by name ask the same question; asked in two texts, one of
//! them would show what the other hides. [`crate::logic::authz`] asks it of single images, and a test of random worlds
//! holds both to one model.
//! **Invariants.** An image has visibility `shared` exactly while it has a share. Sharing twice keeps the receiver's answer.
//! A project that is unknown or out of reach is refused in the same words. In the recycle bin an image is its owner's alone.

use std::collections::BTreeSet;

use hearth_protocol::id::{DomainId, ImageId, ProjectId};
use hearth_protocol::words::{ImageStatus, ShareKind, ShareStatus, Visibility};

use super::changes::Change;
use super::error::DbError;
use super::grams::fold;
use super::images::{COLUMNS, Image, image, seen_as};
use super::operations::Draft;
use super::sql::{Row, Stmt, sql};
use super::store::{Db, Tx};
use super::tokens::Scope;
use crate::logic::sharing::{Receiver, is_within_reach, strongest};

/// Which part of the catalog a list shows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum View {
    /// Everything that the scope may use.
    #[default]
    All,
    /// Of that, what is featured.
    Featured,
    /// What everybody has.
    Public,
    /// What lies inside the scope and is not public.
    Private,
    /// What a share with this status brings into the scope; not a project's own images.
    Shared(ShareStatus),
}

/// How far somebody may share, and with how many.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reach {
    /// Also beyond the image's domain.
    pub by_system: bool,
    /// Most receivers of one image.
    pub receivers_max: u32,
}

/// One share of an image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Share {
    /// Who receives.
    pub receiver: Receiver,
    /// Domain of the receiver.
    pub domain: DomainId,
    /// Name of the receiver.
    pub name: String,
    /// What the receiver says.
    pub status: ShareStatus,
    /// When it was shared, microseconds since the epoch.
    pub created_us: i64,
    /// When the receiver last answered.
    pub updated_us: i64,
}

/// Appends the condition that an image lies inside `scope`. As an expression, which no index serves: a large project would be
/// collected and sorted for each page ([`super::narrow`] begins with a small one).
pub(super) fn owned_by(stmt: Stmt, scope: Scope) -> Stmt {
    match scope {
        Scope::System => stmt.text("1 = 1"),
        Scope::Domain(domain) => stmt.text("COALESCE(image.domain_id, '') = ").arg(domain),
        Scope::Project(_, project) => stmt.text("COALESCE(image.project_id, '') = ").arg(project),
    }
}

/// Appends the condition that a share reaches `scope`: its project, its domain, for a domain also its projects.
pub(super) fn reaches(stmt: Stmt, scope: Scope) -> Stmt {
    let Some(domain) = scope.domain() else { return stmt.text("1 = 1") };
    let stmt = stmt.text("((share.kind = 'domain' AND share.target = ").arg(domain);
    let stmt = stmt.text(") OR (share.kind = 'project' AND share.target ");
    match scope.project() {
        Some(project) => stmt.text("= ").arg(project).text("))"),
        None => stmt.text("IN (SELECT id FROM project WHERE domain_id = ").arg(domain).text(")))"),
    }
}

/// Appends the condition that an image is shared into `scope` with this status.
pub(super) fn shared_with(stmt: Stmt, scope: Scope, status: ShareStatus) -> Stmt {
    let stmt = stmt.text("(image.visibility = 'shared' AND image.status <> 'pending_delete' AND EXISTS (");
    let stmt =
        stmt.text("SELECT share.status FROM share WHERE share.image_id = image.id AND share.status = ");
    let stmt = stmt.arg(status);
    reaches(stmt.text(" AND "), scope).text("))")
}

/// Images of a view, as far as `scope` goes.
pub(super) fn viewed(scope: Scope, view: View) -> Stmt {
    viewed_as(COLUMNS, scope, view)
}

/// The same, with other columns.
pub(super) fn viewed_as(columns: &'static str, scope: Scope, view: View) -> Stmt {
    let all = || sql("image", columns).text(" WHERE ");
    match view {
        View::All => seen_as(columns, scope),
        View::Featured => seen_as(columns, scope).text(" AND image.featured = 1"),
        View::Public => {
            let stmt = all().text("COALESCE(image.visibility, '') = 'public'");
            match scope {
                Scope::System => stmt,
                _ => owned_by(stmt.text(" AND (image.status <> 'pending_delete' OR "), scope).text(")"),
            }
        }
        View::Private => owned_by(all(), scope).text(" AND image.visibility <> 'public'"),
        View::Shared(status) => {
            let stmt = shared_with(all(), scope, status);
            stmt.when(scope.project(), " AND image.project_id <> ")
        }
    }
}

/// Whether an image lies inside a scope.
fn owns(scope: Scope, image: &Image) -> bool {
    match scope {
        Scope::System => true,
        Scope::Domain(domain) => domain == image.domain,
        Scope::Project(_, project) => project == image.project,
    }
}

const SHARES: &str = "SELECT share.kind, share.target, share.status, share.created_us, share.updated_us, \
     COALESCE(project.name, domain.name, '') AS name, COALESCE(project.domain_id, share.target) AS domain_id FROM share \
     LEFT JOIN project ON share.kind = 'project' AND project.id = share.target \
     LEFT JOIN domain ON share.kind = 'domain' AND domain.id = share.target \
     WHERE share.image_id = $1 ORDER BY share.kind, share.target";

fn share(row: &Row) -> Result<Share, DbError> {
    let receiver = match row.parse("kind")? {
        ShareKind::Project => Receiver::Project(row.parse("target")?),
        ShareKind::Domain => Receiver::Domain(row.parse("target")?),
    };
    Ok(Share {
        receiver,
        domain: row.parse("domain_id")?,
        name: row.text("name")?,
        status: row.parse("status")?,
        created_us: row.int("created_us")?,
        updated_us: row.int("updated_us")?,
    })
}

/// The receivers as the operation log shows them.
pub(super) fn receivers_of(shares: &[Share]) -> Vec<String> {
    shares.iter().map(|share| share.receiver.to_string()).collect()
}

impl Tx<'_> {
    /// All shares of an image.
    pub(super) async fn shares_of(&mut self, id: ImageId) -> Result<Vec<Share>, DbError> {
        self.rows(sql("share", SHARES).bind(id)).await?.iter().map(share).collect()
    }

    /// Ends all shares of an image.
    pub(super) async fn delete_shares(&mut self, id: ImageId) -> Result<(), DbError> {
        self.run(sql("share", "DELETE FROM share WHERE image_id = $1").bind(id)).await.map(|_| ())
    }

    /// Ends one share; whether there was one.
    pub(super) async fn delete_share(&mut self, id: ImageId, receiver: Receiver) -> Result<bool, DbError> {
        let delete = "DELETE FROM share WHERE image_id = $1 AND kind = $2 AND target = $3";
        let stmt = sql("share", delete).bind(id).bind(receiver.kind()).bind(receiver.target());
        Ok(self.run(stmt).await? > 0)
    }

    async fn domain_of(&mut self, receiver: Receiver) -> Result<Option<DomainId>, DbError> {
        let stmt = match receiver {
            Receiver::Project(id) => {
                sql("project", "SELECT domain_id AS found FROM project WHERE id = $1").bind(id)
            }
            Receiver::Domain(id) => sql("domain", "SELECT id AS found FROM domain WHERE id = $1").bind(id),
        };
        self.row(stmt).await?.map(|row| row.parse("found")).transpose()
    }

    /// Follows the shares with the visibility and counts the edit.
    async fn shares_changed(
        &mut self,
        id: ImageId,
        before: &[Share],
        after: &[Share],
        op: &Draft,
    ) -> Result<(), DbError> {
        let visibility = if after.is_empty() { Visibility::Private } else { Visibility::Shared };
        let update =
            "UPDATE image SET visibility = $1, revision = revision + 1, updated_us = $2 WHERE id = $3";
        self.run(sql("image", update).bind(visibility).bind(self.now_us()).bind(id)).await?;
        self.changed(Change::Image(id));
        let details = serde_json::json!({
            "before": { "shares": receivers_of(before) }, "after": { "shares": receivers_of(after) },
        });
        self.record(&op.clone().with(details)).await
    }
}

impl Db {
    /// The image with this id, unless it is deleted or in the recycle bin of somebody else, with the strongest share that
    /// reaches `scope`. It says nothing about rights: whoever asks must ask [`crate::logic::authz::authorize`] too.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn image_known_to(
        &self,
        scope: Scope,
        id: ImageId,
    ) -> Result<Option<(Image, Option<ShareStatus>)>, DbError> {
        let Some(image) = self.image(id).await?.filter(|image| image.deleted_us.is_none()) else {
            return Ok(None);
        };
        if owns(scope, &image) {
            return Ok(Some((image, None)));
        }
        if image.status == ImageStatus::PendingDelete {
            return Ok(None);
        }
        if image.facts.visibility != Visibility::Shared {
            return Ok(Some((image, None)));
        }
        let stmt = sql("share", "SELECT share.status FROM share WHERE share.image_id = $1 AND ").bind(id);
        let rows = self.rows(reaches(stmt, scope)).await?;
        let statuses = rows.iter().map(|row| row.parse("status")).collect::<Result<Vec<_>, _>>()?;
        Ok(Some((image, strongest(statuses))))
    }

    /// Images of a view with exactly this name, oldest first, at most 10.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn images_named_in(&self, scope: Scope, view: View, name: &str) -> Result<Vec<Image>, DbError> {
        let stmt =
            viewed(scope, view).text(" AND image.deleted_us IS NULL AND image.status <> 'pending_delete'");
        let stmt = stmt.text(" AND image.name_folded = ");
        let stmt = stmt.arg(fold(name)).text(" ORDER BY image.id LIMIT 10");
        self.rows(stmt).await?.iter().map(image).collect()
    }

    /// All shares of an image; [`Reach::receivers_max`] bounds them.
    ///
    /// # Errors
    /// A failed statement.
    pub async fn shares(&self, id: ImageId) -> Result<Vec<Share>, DbError> {
        self.rows(sql("share", SHARES).bind(id)).await?.iter().map(share).collect()
    }

    /// Shares an image, as `seen`, with more receivers; who has it keeps it and the answer.
    ///
    /// # Errors
    /// [`DbError::NotFound`] for the image, or for a receiver that is unknown or out of reach; [`DbError::State`] if it is
    /// public or in the recycle bin; [`DbError::Quota`] for too many receivers; or a failed statement.
    pub async fn add_shares(
        &self,
        seen: &Image,
        receivers: &BTreeSet<Receiver>,
        reach: Reach,
        op: &Draft,
    ) -> Result<(), DbError> {
        self.write_tx(move |tx| Box::pin(add_in(tx, seen, receivers, reach, op))).await
    }

    /// Ends shares of an image, as `seen`: these, or all. The number that there were.
    ///
    /// # Errors
    /// [`DbError::NotFound`] for the image, or a failed statement.
    pub async fn remove_shares(
        &self,
        seen: &Image,
        losers: Option<&BTreeSet<Receiver>>,
        op: &Draft,
    ) -> Result<usize, DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                let image = tx.image_as_seen(seen, None).await?;
                let before = tx.shares_of(image.id).await?;
                match losers {
                    None => tx.delete_shares(image.id).await?,
                    Some(losers) => {
                        for loser in losers {
                            tx.delete_share(image.id, *loser).await?;
                        }
                    }
                }
                let after = tx.shares_of(image.id).await?;
                let ended = before.len() - after.len();
                if ended > 0 {
                    tx.shares_changed(image.id, &before, &after, op).await?;
                }
                Ok(ended)
            })
        })
        .await
    }

    /// Notes what a project says to an image that is shared with it.
    ///
    /// # Errors
    /// [`DbError::NotFound`] if it is not, or a failed statement.
    pub async fn answer_share(
        &self,
        id: ImageId,
        project: ProjectId,
        status: ShareStatus,
        op: &Draft,
    ) -> Result<(), DbError> {
        self.write_tx(move |tx| {
            Box::pin(async move {
                tx.live_image(id).await?;
                let shares = tx.shares_of(id).await?;
                let share = shares.iter().find(|share| share.receiver == Receiver::Project(project));
                let key = project.to_string();
                let share = share.ok_or(DbError::NotFound { what: "share with project", key })?;
                if share.status == status {
                    return Ok(());
                }
                let update = "UPDATE share SET status = $1, updated_us = $2 WHERE image_id = $3 AND kind = 'project' \
                     AND target = $4";
                let stmt = sql("share", update).bind(status).bind(tx.now_us()).bind(id).bind(project);
                tx.run(stmt).await?;
                tx.changed(Change::Image(id));
                let details = serde_json::json!({
                    "project": project, "before": { "status": share.status }, "after": { "status": status },
                });
                tx.record(&op.clone().with(details)).await
            })
        })
        .await
    }
}

async fn add_in(
    tx: &mut Tx<'_>,
    seen: &Image,
    receivers: &BTreeSet<Receiver>,
    reach: Reach,
    op: &Draft,
) -> Result<(), DbError> {
    let image = tx.image_as_seen(seen, None).await?;
    if image.facts.visibility == Visibility::Public {
        let allowed = "everybody has it; make it custom first (hearth image unpublish)";
        return Err(DbError::State { what: "image", key: image.facts.name, state: "public".into(), allowed });
    }
    for receiver in receivers {
        let there = tx.domain_of(*receiver).await?;
        if !there.is_some_and(|there| is_within_reach(image.domain, there, reach.by_system)) {
            return Err(DbError::NotFound { what: receiver.kind().as_str(), key: receiver.target() });
        }
    }
    let before = tx.shares_of(image.id).await?;
    let insert = "INSERT INTO share (image_id, kind, target, status, created_us, updated_us) \
         VALUES ($1, $2, $3, $4, $5, $5) ON CONFLICT (image_id, kind, target) DO NOTHING";
    for receiver in receivers {
        let stmt = sql("share", insert).bind(image.id).bind(receiver.kind()).bind(receiver.target());
        tx.run(stmt.bind(receiver.first_status()).bind(tx.now_us())).await?;
    }
    let after = tx.shares_of(image.id).await?;
    let (had, has) = (before.len() as u64, after.len() as u64);
    if had == has {
        return Ok(());
    }
    if has > u64::from(reach.receivers_max) {
        return Err(DbError::Quota {
            what: "receivers",
            of: format!("image {}", image.facts.name),
            used: had,
            wanted: has - had,
            limit: reach.receivers_max.into(),
            cure: "end shares that are not needed (hearth image unshare), or share with the whole domain; \
                   an administrator can raise share_receivers_max in controller.toml",
        });
    }
    tx.shares_changed(image.id, &before, &after, op).await
}
