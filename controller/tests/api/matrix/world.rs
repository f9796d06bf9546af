//! Two domains with projects, users, images and tokens, and the callers who ask for them.
//!
//! **What.** Everything that is asked for belongs to one project, `home`. Callers stand in six places around it.
//! **Why through the store.** Making thousands of tokens over HTTP would test the same call thousands of times.

use std::sync::atomic::{AtomicU64, Ordering};

use hearth_controller::clock;
use hearth_controller::db::grants::NewGrant;
use hearth_controller::db::operations::Draft;
use hearth_controller::db::tenant_changes::TenantChange;
use hearth_controller::db::tokens::{Holder, Scope, Token};
use hearth_controller::db::user_changes::NewUser;
use hearth_controller::db::{Db, new_id};
use hearth_protocol::id::{DomainId, GrantId, ImageId, ProjectId, TokenId, UserId};
use hearth_protocol::words::{Role, Visibility};
use serde_json::json;
use sqlx::Connection as _;

use super::super::harness::{Place, noise};
use super::table::{From, Seen};

pub(crate) const MISSING: &str = "01234567-89ab-7def-8123-456789abcdef";

/// What the store keeps of a password that nobody knows.
const HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGF0IGFsbCAxNg$F5tJJtYOCmbbSWtoJrcUIFnbVbFpAWpuEXOvgUcKPkw";

/// What a token may be besides good.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum State {
    Expired,
    Revoked,
    UserDisabled,
    UserDeleted,
    GrantRevoked,
    PasswordChanged,
    ProjectDisabled,
    DomainDisabled,
}

impl State {
    pub(crate) const ALL: [Self; 8] = [
        Self::Expired,
        Self::Revoked,
        Self::UserDisabled,
        Self::UserDeleted,
        Self::GrantRevoked,
        Self::PasswordChanged,
        Self::ProjectDisabled,
        Self::DomainDisabled,
    ];
}

/// A user with one grant and a token.
#[derive(Clone, Debug)]
pub(crate) struct Persona {
    pub(crate) role: Role,
    pub(crate) from: From,
    pub(crate) token: String,
    scope: Scope,
    holder: Holder,
}

/// See the module.
pub(crate) struct World {
    pub(crate) place: Place,
    pub(crate) domain: DomainId,
    pub(crate) project: ProjectId,
    pub(crate) user: UserId,
    pub(crate) grant: GrantId,
    pub(crate) token: TokenId,
    images: Vec<ImageId>,
    sibling: ProjectId,
    other_domain: DomainId,
    foreign: ProjectId,
    next: AtomicU64,
}

fn op() -> Draft {
    Draft::system("test.prepare")
}

/// A secret that no other token has, as its caller sends it, and what the store keeps of it.
fn secret() -> (String, String) {
    let (token, hash) = hearth_controller::api::caller::new_secret();
    (token.to_string(), hash)
}

impl World {
    pub(crate) async fn new() -> Self {
        let place = Place::with(|config| config.calls.per_second = 0).await;
        let db = place.controller.db();
        let (domain, other_domain, third_domain) = (new_id(), new_id(), new_id());
        let (project, sibling, foreign, stranger) = (new_id(), new_id(), new_id(), new_id());
        db.create_domain(domain, "own", &op()).await.unwrap();
        db.create_domain(other_domain, "other", &op()).await.unwrap();
        db.create_domain(third_domain, "third", &op()).await.unwrap();
        for (id, domain, name) in [
            (project, domain, "home"),
            (sibling, domain, "sibling"),
            (foreign, other_domain, "foreign"),
            (stranger, third_domain, "stranger"),
        ] {
            db.create_project(id, domain, name, &op()).await.unwrap();
        }
        let images = images(&place, project, &[sibling, foreign], other_domain, stranger).await;
        let mut world = Self {
            place,
            domain,
            project,
            user: new_id(),
            grant: new_id(),
            token: new_id(),
            images,
            sibling,
            other_domain,
            foreign,
            next: AtomicU64::new(0),
        };
        let home = Scope::Project(domain, project);
        let holder = world.user_in(domain, Role::Reader, home).await;
        (world.user, world.grant) = (holder.user, holder.grant);
        world.token = world.fresh_token().await;
        world
    }

    fn db(&self) -> &Db {
        self.place.controller.db()
    }

    /// A name that nothing has yet.
    pub(crate) fn name(&self) -> String {
        format!("n-{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn image(&self, seen: Seen) -> ImageId {
        self.images[Seen::ALL.iter().position(|one| *one == seen).unwrap()]
    }

    /// A new user with one grant.
    async fn user_in(&self, domain: DomainId, role: Role, scope: Scope) -> Holder {
        let (id, password_hash) = (new_id(), Some(HASH.to_owned()));
        let new = NewUser { id, domain, name: self.name(), password_hash };
        self.db().create_user(&new, &op()).await.unwrap();
        let grant = NewGrant { id: new_id(), user: id, role, scope, created_by: "test".into() };
        self.db().create_grant(&grant, &op()).await.unwrap();
        Holder { user: id, grant: grant.id, revision: 1 }
    }

    /// A user of the home domain that may be deleted.
    pub(crate) async fn fresh_user(&self) -> Holder {
        self.user_in(self.domain, Role::Reader, Scope::Project(self.domain, self.project)).await
    }

    /// A program's token of the home project that may be ended.
    pub(crate) async fn fresh_token(&self) -> TokenId {
        let scope = Scope::Project(self.domain, self.project);
        self.mint(Role::Reader, scope, None, None).await.1
    }

    async fn mint(
        &self,
        role: Role,
        scope: Scope,
        holder: Option<Holder>,
        expires_us: Option<i64>,
    ) -> (String, TokenId) {
        let (secret, hash) = secret();
        let token = Token {
            id: new_id(),
            name: self.name(),
            role,
            scope,
            holder,
            usable: true,
            expires_us,
            revoked_us: None,
            last_used_us: None,
            created_us: 0,
        };
        self.db().create_token(&token, &hash, &op()).await.unwrap();
        (secret, token.id)
    }

    /// A caller whose token is good.
    pub(crate) async fn persona(&self, role: Role, from: From) -> Persona {
        let (home, scope) = match from {
            From::System => (self.db().default_tenants().await.unwrap().0, Scope::System),
            From::OwnDomain => (self.domain, Scope::Domain(self.domain)),
            From::OtherDomain => (self.other_domain, Scope::Domain(self.other_domain)),
            From::OwnProject => (self.domain, Scope::Project(self.domain, self.project)),
            From::Sibling => (self.domain, Scope::Project(self.domain, self.sibling)),
            From::Foreign => (self.other_domain, Scope::Project(self.other_domain, self.foreign)),
        };
        let holder = self.user_in(home, role, scope).await;
        let (token, _) = self.mint(role, scope, Some(holder), None).await;
        Persona { role, from, token, scope, holder }
    }

    /// The same caller with a token that may be ended.
    pub(crate) async fn again(&self, persona: &Persona) -> Persona {
        let (token, _) = self.mint(persona.role, persona.scope, Some(persona.holder), None).await;
        Persona { token, ..persona.clone() }
    }

    /// A token that was good and is not any more; `None`: the state cannot be in this place.
    pub(crate) async fn dead(&self, role: Role, from: From, state: State) -> Option<String> {
        let db = self.db();
        let (domain, project) = (new_id(), new_id());
        db.create_domain(domain, &self.name(), &op()).await.unwrap();
        db.create_project(project, domain, &self.name(), &op()).await.unwrap();
        let scope = match from {
            From::System => Scope::System,
            From::OwnDomain | From::OtherDomain => Scope::Domain(domain),
            From::OwnProject | From::Sibling | From::Foreign => Scope::Project(domain, project),
        };
        let holder = self.user_in(domain, role, scope).await;
        let expires_us = (state == State::Expired).then(|| clock::unix_us() - 1);
        let (token, id) = self.mint(role, scope, Some(holder), expires_us).await;
        let closed = TenantChange { name: None, disabled: Some(true) };
        match state {
            State::Expired => {}
            State::Revoked => db.revoke_token(id, &op()).await.unwrap(),
            State::UserDisabled => db.update_user(holder.user, &closed, &op()).await.unwrap(),
            State::UserDeleted => db.delete_user(holder.user, &op()).await.unwrap(),
            State::GrantRevoked => db.revoke_grant(holder.grant, &op()).await.unwrap(),
            State::PasswordChanged => db.set_password(holder.user, "$x", None, &op()).await.unwrap(),
            State::ProjectDisabled if scope.project().is_none() => return None,
            State::ProjectDisabled => db.update_project(project, &closed, &op()).await.unwrap(),
            State::DomainDisabled => db.update_domain(domain, &closed, &op()).await.unwrap(),
        }
        Some(token)
    }
}

/// One active image for each way of being seen, in the order of [`Seen::ALL`].
async fn images(
    place: &Place,
    project: ProjectId,
    receivers: &[ProjectId],
    receiver: DomainId,
    stranger: ProjectId,
) -> Vec<ImageId> {
    let (db, client) = (place.controller.db(), &place.client);
    let mut images = Vec::new();
    for seen in Seen::ALL {
        let name = format!("{seen:?}");
        let sent = json!({ "name": name, "project": project, "public": seen == Seen::Public });
        let id = client.image(sent).await;
        client.put(id, noise(50_000)).await;
        client.ended(id).await;
        if matches!(seen, Seen::SharedWithCaller | Seen::SharedWithOthers) {
            let shared = |facts: &mut hearth_controller::db::images::ImageFacts| {
                facts.visibility = Visibility::Shared;
            };
            db.update_image(id, None, shared, &op()).await.unwrap();
        }
        images.push(id);
    }
    let path = place.config.state_dir.join("hearth.sqlite");
    let mut database = sqlx::AnyConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    let mut shares =
        vec![(images[1], "domain", receiver.to_string()), (images[2], "project", stranger.to_string())];
    shares.extend(receivers.iter().map(|project| (images[1], "project", project.to_string())));
    for (image, kind, target) in shares {
        let insert = "INSERT INTO share (image_id, kind, target, status, created_us, updated_us) \
             VALUES ($1, $2, $3, 'accepted', 0, 0)";
        let insert = sqlx::query(insert).bind(image.to_string()).bind(kind).bind(target);
        insert.execute(&mut database).await.unwrap();
    }
    database.close().await.unwrap();
    images
}
