//! Users, grants, tenants, and the tokens that end with them.

use hearth_controller::clock;
use hearth_controller::db::grants::{GrantFilter, NewGrant};
use hearth_controller::db::images::NewImage;
use hearth_controller::db::operations::OperationFilter;
use hearth_controller::db::tenant_changes::TenantChange;
use hearth_controller::db::tenants::TenantFilter;
use hearth_controller::db::tokens::{Holder, Scope, TOKENS_PER_USER_MAX, Token};
use hearth_controller::db::user_changes::NewUser;
use hearth_controller::db::users::User;
use hearth_controller::db::{Db, DbError, PageRequest, new_id};
use hearth_protocol::api::image::Checksums;
use hearth_protocol::id::{DomainId, GrantId, ProjectId, TokenId, UserId};
use hearth_protocol::words::{ImageKind, Role};
use serde_json::json;

use crate::engines::Place;
use crate::fixture::{facts, op, queued_image};
use crate::on_both_engines;

on_both_engines! {
    a_token_ends_with_whatever_it_rests_on
    a_token_that_is_made_while_the_password_changes_is_over
    a_user_has_no_more_than_so_many_tokens
    the_last_administrator_stays
    two_administrators_cannot_end_each_other
    only_what_is_empty_is_deleted_and_its_name_is_free
    names_are_unique_in_their_domain_and_lists_have_pages
    the_log_tells_what_changed
}

/// A domain of its own with a project and a user.
struct People {
    db: Db,
    domain: DomainId,
    project: ProjectId,
    user: UserId,
}

async fn people(db: &Db, name: &str) -> People {
    let (domain, project, user) = (new_id(), new_id(), new_id());
    db.create_domain(domain, name, &op("domain.create")).await.unwrap();
    db.create_project(project, domain, "web", &op("project.create")).await.unwrap();
    let new = NewUser { id: user, domain, name: "alice".into(), password_hash: Some("$argon2id$".into()) };
    db.create_user(&new, &op("user.create")).await.unwrap();
    People { db: db.clone(), domain, project, user }
}

impl People {
    async fn grant(&self, role: Role, scope: Scope) -> GrantId {
        let new = NewGrant { id: new_id(), user: self.user, role, scope, created_by: "test".into() };
        self.db.create_grant(&new, &op("grant.create")).await.unwrap();
        new.id
    }

    async fn read(&self) -> User {
        self.db.user(self.user).await.unwrap().unwrap()
    }

    /// A token of the user with this grant.
    async fn token(&self, grant: GrantId) -> TokenId {
        let revision = self.read().await.token_revision;
        let grant = self.db.grant(grant).await.unwrap().unwrap();
        let holder = Some(Holder { user: self.user, grant: grant.id, revision });
        token(&self.db, grant.role, grant.scope, holder).await
    }
}

async fn token(db: &Db, role: Role, scope: Scope, holder: Option<Holder>) -> TokenId {
    let token = Token {
        id: new_id(),
        name: "t".into(),
        role,
        scope,
        holder,
        usable: true,
        expires_us: None,
        revoked_us: None,
        last_used_us: None,
        created_us: 0,
    };
    db.create_token(&token, &token.id.to_string(), &op("token.create")).await.unwrap();
    token.id
}

async fn opens(db: &Db, id: TokenId) -> bool {
    let now_us = clock::unix_us();
    let found = db.token_by_secret_hash(&id.to_string(), now_us).await.unwrap().is_some();
    let shown = db.token(id, now_us).await.unwrap().is_some_and(|token| token.usable);
    assert_eq!(found, shown, "what a list says is what a call meets");
    found
}

fn image_in(domain: DomainId, project: ProjectId) -> NewImage {
    NewImage {
        id: new_id(),
        kind: ImageKind::Disk,
        format: None,
        container_format: "bare".into(),
        domain,
        project,
        fixed: Default::default(),
        expected: Checksums::default(),
        facts: facts("late"),
    }
}

const CLOSE: TenantChange = TenantChange { name: None, disabled: Some(true) };
const OPEN: TenantChange = TenantChange { name: None, disabled: Some(false) };

/// PE-1: disabling a user, domain or project, revoking a grant or changing a password ends tokens at once.
async fn a_token_ends_with_whatever_it_rests_on(place: Place) {
    let db = place.open().await;
    let one = people(&db, "one").await;
    let other = people(&db, "other").await;
    // Alice of `one` works in a project of `other`.
    let grant = one.grant(Role::Member, Scope::Project(other.domain, other.project)).await;
    let good = one.token(grant).await;
    let script = token(&db, Role::Reader, Scope::Project(other.domain, other.project), None).await;
    let beside = token(&db, Role::Reader, Scope::Domain(one.domain), None).await;
    let check = async |alice: bool, script_opens: bool, beside_opens: bool| {
        assert_eq!(
            (opens(&db, good).await, opens(&db, script).await, opens(&db, beside).await),
            (alice, script_opens, beside_opens)
        );
    };
    check(true, true, true).await;
    db.update_project(other.project, &CLOSE, &op("project.update")).await.unwrap();
    check(false, false, true).await;
    db.update_domain(other.domain, &CLOSE, &op("domain.update")).await.unwrap();
    db.update_project(other.project, &OPEN, &op("project.update")).await.unwrap();
    check(false, false, true).await;
    db.update_domain(other.domain, &OPEN, &op("domain.update")).await.unwrap();
    check(true, true, true).await;
    db.update_domain(one.domain, &CLOSE, &op("domain.update")).await.unwrap();
    check(false, true, false).await;
    db.update_domain(one.domain, &OPEN, &op("domain.update")).await.unwrap();
    check(true, true, true).await;
    let second = one.token(grant).await;
    db.set_password(one.user, "$new", Some(good), &op("user.change_password")).await.unwrap();
    assert!(opens(&db, good).await && !opens(&db, second).await, "all but the one that changed it");
    db.update_user(one.user, &CLOSE, &op("user.update")).await.unwrap();
    check(false, true, true).await;
    db.update_user(one.user, &OPEN, &op("user.update")).await.unwrap();
    check(false, true, true).await;
    let again = one.token(grant).await;
    assert!(opens(&db, again).await);
    db.revoke_grant(grant, &op("grant.revoke")).await.unwrap();
    assert!(!opens(&db, again).await);
    let grant = one.grant(Role::Reader, Scope::Domain(one.domain)).await;
    let last = one.token(grant).await;
    assert!(opens(&db, last).await);
    db.delete_user(one.user, &op("user.delete")).await.unwrap();
    assert!(!opens(&db, last).await && db.user(one.user).await.unwrap().is_none());
    assert_eq!(db.credentials("one", "alice").await.unwrap(), None);
}

async fn a_token_that_is_made_while_the_password_changes_is_over(place: Place) {
    let db = place.open().await;
    let one = people(&db, "one").await;
    let grant = one.grant(Role::Member, Scope::Domain(one.domain)).await;
    let compared_with = db.credentials("ONE", "Alice").await.unwrap().unwrap();
    db.set_password(one.user, "$new", None, &op("user.set_password")).await.unwrap();
    let holder = Holder { user: one.user, grant, revision: compared_with.user.token_revision };
    let late = token(&db, Role::Member, Scope::Domain(one.domain), Some(holder)).await;
    assert!(!opens(&db, late).await);
}

async fn a_user_has_no_more_than_so_many_tokens(place: Place) {
    let db = place.open().await;
    let one = people(&db, "one").await;
    let grant = one.grant(Role::Member, Scope::Domain(one.domain)).await;
    let first = one.token(grant).await;
    let mut last = first;
    for _ in 0..TOKENS_PER_USER_MAX {
        last = one.token(grant).await;
    }
    let now_us = clock::unix_us();
    let page = PageRequest::first(1000);
    let all = db.tokens(Scope::System, Some(one.user), &page, now_us).await.unwrap();
    assert_eq!(i64::try_from(all.items.len()).unwrap(), TOKENS_PER_USER_MAX);
    assert!(!opens(&db, first).await && opens(&db, last).await);
    // Whoever worked with the one that is gone finds it in the log.
    let log = db.operations(&OperationFilter::default(), &PageRequest::first(1)).await.unwrap();
    assert_eq!(log.items[0].draft.details["removed_tokens"], json!([first]));
}

/// PE-1: the last system administrator cannot lock everybody out, whichever way.
async fn the_last_administrator_stays(place: Place) {
    let db = place.open().await;
    let script = token(&db, Role::Admin, Scope::System, None).await;
    let refused = |error: DbError| assert!(matches!(error, DbError::LastAdministrator), "{error}");
    refused(db.revoke_token(script, &op("token.revoke")).await.unwrap_err());
    assert!(opens(&db, script).await, "a refused change changed nothing");
    let one = people(&db, "one").await;
    let grant = one.grant(Role::Admin, Scope::System).await;
    db.revoke_token(script, &op("token.revoke")).await.unwrap();
    refused(db.update_user(one.user, &CLOSE, &op("user.update")).await.unwrap_err());
    refused(db.delete_user(one.user, &op("user.delete")).await.unwrap_err());
    refused(db.update_domain(one.domain, &CLOSE, &op("domain.update")).await.unwrap_err());
    refused(db.revoke_grant(grant, &op("grant.revoke")).await.unwrap_err());
    // A token of the user is nothing that stays: the user can log in again.
    let mine = one.token(grant).await;
    db.revoke_token(mine, &op("token.logout")).await.unwrap();
    db.update_project(one.project, &CLOSE, &op("project.update")).await.unwrap();
    token(&db, Role::Admin, Scope::System, None).await;
    db.revoke_grant(grant, &op("grant.revoke")).await.unwrap();
}

async fn two_administrators_cannot_end_each_other(place: Place) {
    let db = place.open().await;
    let (one, two) = (
        token(&db, Role::Admin, Scope::System, None).await,
        token(&db, Role::Admin, Scope::System, None).await,
    );
    let (op_one, op_two) = (op("token.revoke"), op("token.revoke"));
    let (first, second) = tokio::join!(db.revoke_token(one, &op_one), db.revoke_token(two, &op_two));
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    assert!(opens(&db, one).await != opens(&db, two).await);
}

/// PE-1: domains and projects are deleted when they are empty.
async fn only_what_is_empty_is_deleted_and_its_name_is_free(place: Place) {
    let db = place.open().await;
    let one = people(&db, "one").await;
    let state = |error: DbError| assert!(matches!(error, DbError::State { .. }), "{error}");
    let (default_domain, default_project) = db.default_tenants().await.unwrap();
    let image = queued_image(&db, "here").await;
    let rename = TenantChange { name: Some("first".into()), disabled: None };
    state(db.delete_project(default_project, &op("project.delete")).await.unwrap_err());
    state(db.delete_domain(default_domain, &op("domain.delete")).await.unwrap_err());
    state(db.update_project(default_project, &rename, &op("project.update")).await.unwrap_err());
    state(db.update_domain(default_domain, &rename, &op("domain.update")).await.unwrap_err());
    assert!(db.image(image).await.unwrap().is_some());
    state(db.delete_domain(one.domain, &op("domain.delete")).await.unwrap_err());
    let in_project = token(&db, Role::Reader, Scope::Project(one.domain, one.project), None).await;
    let grant = one.grant(Role::Reader, Scope::Project(one.domain, one.project)).await;
    db.delete_project(one.project, &op("project.delete")).await.unwrap();
    assert!(!opens(&db, in_project).await && db.grant(grant).await.unwrap().is_none());
    assert!(db.project(one.project).await.unwrap().is_none());
    let again = db.delete_project(one.project, &op("project.delete")).await;
    assert!(matches!(again, Err(DbError::NotFound { .. })));
    let late = db.create_image(&image_in(one.domain, one.project), &op("image.create")).await;
    assert!(matches!(late, Err(DbError::NotFound { what: "project", .. })), "{late:?}");
    db.create_project(new_id(), one.domain, "WEB", &op("project.create")).await.unwrap();
    state(db.delete_domain(one.domain, &op("domain.delete")).await.unwrap_err());
    let two = people(&db, "two").await;
    db.delete_project(two.project, &op("project.delete")).await.unwrap();
    state(db.delete_domain(two.domain, &op("domain.delete")).await.unwrap_err());
    db.delete_user(two.user, &op("user.delete")).await.unwrap();
    let of_domain = token(&db, Role::Reader, Scope::Domain(two.domain), None).await;
    db.delete_domain(two.domain, &op("domain.delete")).await.unwrap();
    assert!(!opens(&db, of_domain).await && db.domain(two.domain).await.unwrap().is_none());
    let nowhere = db.create_project(new_id(), two.domain, "x", &op("project.create")).await;
    assert!(matches!(nowhere, Err(DbError::NotFound { .. })));
    people(&db, "Two").await;
}

async fn names_are_unique_in_their_domain_and_lists_have_pages(place: Place) {
    let db = place.open().await;
    let (one, two) = (people(&db, "one").await, people(&db, "two").await);
    let same = NewUser { id: new_id(), domain: one.domain, name: "ALICE".into(), password_hash: None };
    assert!(matches!(db.create_user(&same, &op("user.create")).await, Err(DbError::Exists { .. })));
    let other = NewUser { name: "bob".into(), ..same };
    db.create_user(&other, &op("user.create")).await.unwrap();
    let rename = TenantChange { name: Some("Bob".into()), disabled: None };
    let taken = db.update_user(one.user, &rename, &op("user.update")).await;
    assert!(matches!(taken, Err(DbError::Exists { .. })));
    let names = async |seen: Scope, filter: TenantFilter| {
        let (mut names, mut page) = (Vec::new(), PageRequest::first(1));
        loop {
            let rows = db.users(seen, &filter, &page).await.unwrap();
            assert!(rows.items.len() <= 1);
            names.extend(rows.items.into_iter().map(|user| user.name));
            let Some(next) = rows.next else { return names };
            page.cursor = Some(next);
        }
    };
    assert_eq!(names(Scope::System, TenantFilter::default()).await, ["alice", "alice", "bob"]);
    assert_eq!(names(Scope::Domain(one.domain), TenantFilter::default()).await, ["alice", "bob"]);
    let in_one = TenantFilter { domain: Some(one.domain), ..TenantFilter::default() };
    assert!(names(Scope::Domain(two.domain), in_one).await.is_empty());
    let part = TenantFilter { part: Some("%".into()), ..TenantFilter::default() };
    assert!(names(Scope::System, part).await.is_empty());
    let seen = Scope::Project(one.domain, one.project);
    let page = PageRequest::default();
    let projects = db.projects(seen, &TenantFilter::default(), &page).await.unwrap().items;
    assert_eq!(projects.iter().map(|project| project.id).collect::<Vec<_>>(), [one.project]);
    let domains = db.domains(seen, &TenantFilter::default(), &page).await.unwrap().items;
    assert_eq!(domains.iter().map(|domain| domain.id).collect::<Vec<_>>(), [one.domain]);
    let grant = one.grant(Role::Reader, Scope::Project(two.domain, two.project)).await;
    let new = NewGrant {
        id: new_id(),
        user: one.user,
        role: Role::Reader,
        scope: Scope::Project(two.domain, two.project),
        created_by: "test".into(),
    };
    assert!(matches!(db.create_grant(&new, &op("grant.create")).await, Err(DbError::Exists { .. })));
    let seen_by_two = db.grants(Scope::Domain(two.domain), &GrantFilter::default(), &page).await.unwrap();
    assert_eq!(seen_by_two.items.iter().map(|grant| grant.id).collect::<Vec<_>>(), [grant]);
    assert_eq!(seen_by_two.items[0].project_name.as_deref(), Some("web"));
    let seen_by_one = db.grants(Scope::Domain(one.domain), &GrantFilter::default(), &page).await.unwrap();
    assert_eq!(seen_by_one.items, vec![]);
}

/// LG-1: the log shows what was and what is, and nothing where nothing changed.
async fn the_log_tells_what_changed(place: Place) {
    let db = place.open().await;
    let one = people(&db, "one").await;
    let change = TenantChange { name: Some("uno".into()), disabled: Some(false) };
    db.update_domain(one.domain, &change, &op("domain.update")).await.unwrap();
    db.update_domain(one.domain, &change, &op("domain.update")).await.unwrap();
    db.set_password(one.user, "$argon2id$secret", None, &op("user.set_password")).await.unwrap();
    let filter = OperationFilter { action: Some("domain.update".into()), ..OperationFilter::default() };
    let rows = db.operations(&filter, &PageRequest::default()).await.unwrap().items;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].draft.details, json!({ "before": { "name": "one" }, "after": { "name": "uno" } }));
    let all = db.operations(&OperationFilter::default(), &PageRequest::default()).await.unwrap().items;
    assert!(all.iter().all(|row| !row.draft.details.to_string().contains("argon2")), "{all:?}");
}
