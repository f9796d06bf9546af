//! Shares, publishing, owners and views over HTTP, by everybody who has a part in them.

use hearth_controller::db::new_id;
use hearth_controller::db::operations::Draft;
use hearth_protocol::id::{DomainId, ImageId, ProjectId};
use hearth_protocol::words::Role;
use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Client, Place, fault, noise};

const MISSING: &str = "01234567-89ab-7def-8123-456789abcdef";

/// Two domains: the owner and a sister project in one, a stranger in the other; each with a member's token.
pub(crate) struct Tenants {
    pub(crate) domain: DomainId,
    pub(crate) elsewhere: DomainId,
    pub(crate) own: ProjectId,
    pub(crate) sister: ProjectId,
    pub(crate) foreign: ProjectId,
    pub(crate) owner: Client,
    pub(crate) receiver: Client,
    pub(crate) stranger: Client,
}

pub(crate) async fn project(place: &Place, domain: DomainId, name: &str) -> ProjectId {
    let id = new_id();
    place.controller.db().create_project(id, domain, name, &Draft::system("project.create")).await.unwrap();
    id
}

async fn domain(place: &Place, name: &str) -> DomainId {
    let id = new_id();
    place.controller.db().create_domain(id, name, &Draft::system("domain.create")).await.unwrap();
    id
}

pub(crate) async fn member(place: &Place, project: ProjectId, role: Role) -> Client {
    let scope = json!({ "scope": "project", "project": project });
    place.client.delegate(&format!("{role}-{project}"), role, scope).await
}

pub(crate) async fn tenants(place: &Place) -> Tenants {
    let (here, elsewhere) = (domain(place, "here").await, domain(place, "elsewhere").await);
    let own = project(place, here, "own").await;
    let sister = project(place, here, "sister").await;
    let foreign = project(place, elsewhere, "foreign").await;
    let owner = member(place, own, Role::Member).await;
    let receiver = member(place, sister, Role::Member).await;
    let stranger = member(place, foreign, Role::Member).await;
    Tenants { domain: here, elsewhere, own, sister, foreign, owner, receiver, stranger }
}

/// The error of a call that must fail with this status.
async fn refused(
    who: &Client,
    method: Method,
    path: &str,
    sent: Value,
    status: u16,
) -> hearth_protocol::api::error::ErrorBody {
    fault(who.ask(method, path).json(&sent).send().await.unwrap(), status).await
}

async fn names(who: &Client, query: &str) -> Vec<String> {
    let page = who.get(&format!("/images{query}")).await;
    let items = page["items"].as_array().unwrap();
    let mut names: Vec<String> =
        items.iter().map(|image| image["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// SH-4: a project is asked; it accepts, rejects, and changes its mind.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_is_asked_and_answers() {
    let place = Place::new().await;
    let t = tenants(&place).await;
    let id = t.owner.image(json!({ "name": "noble" })).await;
    assert_eq!(t.owner.put(id, noise(100_000)).await.status(), 202);
    t.owner.ended(id).await;
    let path = format!("/images/{id}");
    refused(&t.receiver, Method::POST, &format!("{path}/share/accept"), json!({}), 404).await;
    let shared = t.owner.post(&format!("{path}/shares"), json!({ "projects": [t.sister] })).await;
    assert_eq!(shared["items"][0]["status"], "pending");
    assert_eq!(shared["items"][0]["target"], json!(t.sister));

    // Offered: known by its id and in the list of what is offered, nowhere else, and not used.
    assert_eq!(t.receiver.get(&path).await["share_status"], "pending");
    assert_eq!(names(&t.receiver, "").await, Vec::<String>::new());
    assert_eq!(names(&t.receiver, "?name=noble").await, Vec::<String>::new());
    assert_eq!(names(&t.receiver, "?view=shared").await, Vec::<String>::new());
    assert_eq!(names(&t.receiver, "?view=shared&share_status=pending&name=noble").await, ["noble"]);
    let denied = fault(t.receiver.ask(Method::GET, &format!("{path}/file")).send().await.unwrap(), 403).await;
    assert!(denied.hint.unwrap().contains("accept"));
    refused(&t.stranger, Method::GET, &path, json!({}), 404).await;

    let accepted = t.receiver.post(&format!("{path}/share/accept"), json!({})).await;
    assert_eq!(accepted["share_status"], "accepted");
    assert_eq!(
        (names(&t.receiver, "").await, names(&t.receiver, "?view=shared").await),
        (vec!["noble".to_owned()], vec!["noble".to_owned()])
    );
    assert_eq!(t.receiver.get("/images").await["items"][0]["share_status"], "accepted");
    assert!(t.owner.get("/images").await["items"][0].get("share_status").is_none());
    let file = t.receiver.ask(Method::GET, &format!("{path}/file")).send().await.unwrap();
    assert_eq!(file.status(), 200);
    // It is used, not owned: nothing of it is changed by its receiver.
    refused(&t.receiver, Method::DELETE, &path, json!({}), 403).await;
    refused(&t.receiver, Method::POST, &format!("{path}/shares"), json!({ "projects": [t.own] }), 403).await;

    t.receiver.post(&format!("{path}/share/reject"), json!({})).await;
    assert_eq!(names(&t.receiver, "").await, Vec::<String>::new());
    assert_eq!(names(&t.receiver, "?view=shared&share_status=rejected").await, ["noble"]);
    t.receiver.post(&format!("{path}/share/accept"), json!({})).await;
    assert_eq!(names(&t.receiver, "").await, ["noble"]);
    let gone =
        t.owner.ask(Method::DELETE, &format!("{path}/shares/project/{}", t.sister)).send().await.unwrap();
    assert_eq!(gone.status(), 204);
    refused(&t.receiver, Method::GET, &path, json!({}), 404).await;
    refused(&t.owner, Method::DELETE, &format!("{path}/shares/project/{}", t.sister), json!({}), 404).await;
    assert_eq!(t.owner.get(&path).await["visibility"], "private");
    place.stop().await;
}

/// SH-4: readers do not answer, and administrators above answer for a project that they name.
#[tokio::test(flavor = "multi_thread")]
async fn who_answers_for_a_project() {
    let place = Place::new().await;
    let t = tenants(&place).await;
    let id = t.owner.image(json!({ "name": "noble" })).await;
    t.owner.post(&format!("/images/{id}/shares"), json!({ "projects": [t.sister] })).await;
    let accept = format!("/images/{id}/share/accept");
    let reader = member(&place, t.sister, Role::Reader).await;
    assert_eq!(reader.get(&format!("/images/{id}")).await["name"], "noble");
    refused(&reader, Method::POST, &accept, json!({}), 403).await;
    // The owner is no receiver.
    refused(&t.owner, Method::POST, &accept, json!({}), 404).await;
    let scope = json!({ "scope": "domain", "domain": t.domain });
    let above = place.client.delegate("above", Role::Admin, scope).await;
    assert_eq!(
        refused(&above, Method::POST, &accept, json!({}), 400).await.field.as_deref(),
        Some("project")
    );
    // A project that it may not know is none.
    let foreign = format!("{accept}?project={}", t.foreign);
    let hidden = refused(&above, Method::POST, &foreign, json!({}), 404).await;
    let none = refused(&above, Method::POST, &format!("{accept}?project={MISSING}"), json!({}), 404).await;
    assert_eq!(hidden.message.replace(&t.foreign.to_string(), MISSING), none.message);
    above.post(&format!("{accept}?project={}", t.sister), json!({})).await;
    assert_eq!(names(&t.receiver, "").await, ["noble"]);
    place.stop().await;
}

/// SH-2, SH-3: who is unknown or out of reach is refused alike; too many ids and too many receivers with figure and limit.
#[tokio::test(flavor = "multi_thread")]
async fn shares_are_bounded_and_tell_nothing() {
    let place = Place::new().await;
    let t = tenants(&place).await;
    let id = t.owner.image(json!({ "name": "noble" })).await;
    let path = format!("/images/{id}/shares");
    let send = |who: &Client, sent: Value, status| {
        let (who, path) = (who.clone(), path.clone());
        async move { refused(&who, Method::POST, &path, sent, status).await }
    };
    let scope = json!({ "scope": "domain", "domain": t.domain });
    let above = place.client.delegate("above", Role::Admin, scope).await;
    for who in [&t.owner, &above] {
        let hidden = send(who, json!({ "projects": [t.sister, t.foreign] }), 404).await;
        let none = send(who, json!({ "projects": [t.sister, MISSING] }), 404).await;
        assert_eq!(hidden.message.replace(&t.foreign.to_string(), MISSING), none.message);
        assert_eq!((hidden.code, hidden.hint, hidden.field), (none.code, none.hint, none.field));
        send(who, json!({ "domains": [t.elsewhere] }), 403).await;
        send(who, json!({ "domains": [MISSING] }), 403).await;
    }
    for (sent, field) in [
        (json!({}), "projects"),
        (json!({ "projects": [t.own] }), "projects"),
        (json!({ "projects": vec![MISSING; 101] }), "projects"),
        (json!({ "domains": vec![MISSING; 101] }), "domains"),
        (json!({ "projects": ["x"] }), "projects[0]"),
        (json!({ "everybody": true }), "everybody"),
    ] {
        assert_eq!(send(&t.owner, sent.clone(), 400).await.field.as_deref(), Some(field), "{sent}");
    }
    assert_eq!(t.owner.get(&path).await["items"], json!([]), "nothing was shared");
    let mut projects = Vec::new();
    for n in 0..11 {
        projects.push(project(&place, t.domain, &format!("p{n}")).await);
    }
    t.owner.post(&path, json!({ "projects": projects[..10] })).await;
    let error = send(&t.owner, json!({ "projects": [projects[10]] }), 409).await;
    assert_eq!(error.code, "quota");
    assert!(error.message.contains("10 receivers of at most 10"), "{error:?}");
    let left = t.owner.post(&format!("{path}/remove"), json!({ "projects": projects[..9] })).await;
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    // A receiver sees its own share alone.
    t.owner.post(&path, json!({ "projects": [t.sister] })).await;
    let seen = t.receiver.get(&path).await;
    assert_eq!((seen["items"].as_array().unwrap().len(), &seen["items"][0]["name"]), (1, &json!("sister")));
    let left = t.owner.post(&format!("{path}/remove"), json!({ "all": true })).await;
    assert_eq!(left["items"], json!([]));
    place.stop().await;
}

/// SH-2: whole domain by its owner; other domains by the system alone, and only with the switch.
#[tokio::test(flavor = "multi_thread")]
async fn domains_have_an_image_at_once() {
    let place = Place::new().await;
    let t = tenants(&place).await;
    let id = t.owner.image(json!({ "name": "noble" })).await;
    let shared = t.owner.post(&format!("/images/{id}/shares"), json!({ "whole_domain": true })).await;
    assert_eq!(
        (&shared["items"][0]["kind"], &shared["items"][0]["status"]),
        (&json!("domain"), &json!("accepted"))
    );
    assert_eq!(names(&t.receiver, "?view=shared").await, ["noble"]);
    assert_eq!(
        names(&t.owner, "?view=shared").await,
        Vec::<String>::new(),
        "one's own is not shared with one"
    );
    assert_eq!(names(&t.stranger, "").await, Vec::<String>::new());
    // Nobody answers for a domain.
    refused(&t.receiver, Method::POST, &format!("/images/{id}/share/reject"), json!({}), 404).await;
    let path = format!("/images/{id}/shares");
    let off = refused(&place.client, Method::POST, &path, json!({ "domains": [t.elsewhere] }), 409).await;
    assert!(off.hint.unwrap().contains("three_level_sharing"));
    // Single projects of other domains are the system's to add, without the switch.
    place.client.post(&path, json!({ "projects": [t.foreign] })).await;
    t.stranger.post(&format!("/images/{id}/share/accept"), json!({})).await;
    assert_eq!(names(&t.stranger, "").await, ["noble"]);
    place.stop().await;

    let place = Place::with(|config| config.sharing.three_level = true).await;
    let t = tenants(&place).await;
    let id = t.owner.image(json!({ "name": "noble" })).await;
    let path = format!("/images/{id}/shares");
    refused(&t.owner, Method::POST, &path, json!({ "domains": [t.elsewhere] }), 403).await;
    refused(&place.client, Method::POST, &path, json!({ "domains": [MISSING] }), 404).await;
    place.client.post(&path, json!({ "domains": [t.elsewhere, t.domain] })).await;
    assert_eq!(
        (names(&t.stranger, "").await, names(&t.receiver, "").await),
        (vec!["noble".to_owned()], vec!["noble".to_owned()])
    );
    place.stop().await;
}

/// SH-1: administrators publish; users see and use public images, and change nothing of them.
#[tokio::test(flavor = "multi_thread")]
async fn administrators_publish_and_members_where_the_setting_says_so() {
    let place = Place::new().await;
    let t = tenants(&place).await;
    let id = t.owner.image(json!({ "name": "noble" })).await;
    let path = format!("/images/{id}");
    for who in [&t.owner, &t.receiver] {
        refused(who, Method::POST, &format!("{path}/publish"), json!({}), 403).await;
    }
    t.owner.post(&format!("{path}/shares"), json!({ "projects": [t.sister] })).await;
    assert_eq!(place.client.post(&format!("{path}/publish"), json!({})).await["visibility"], "public");
    assert_eq!(names(&t.stranger, "?view=public").await, ["noble"]);
    assert_eq!(names(&t.owner, "?view=private").await, Vec::<String>::new());
    refused(&t.stranger, Method::DELETE, &path, json!({}), 403).await;
    refused(&t.owner, Method::POST, &format!("{path}/shares"), json!({ "projects": [t.sister] }), 409).await;
    refused(&t.owner, Method::PUT, &format!("{path}/featured"), json!({}), 403).await;
    assert_eq!(names(&t.stranger, "?view=featured").await, Vec::<String>::new());
    let featured = place.client.ask(Method::PUT, &format!("{path}/featured")).send().await.unwrap();
    assert_eq!(super::harness::body(featured).await["featured"], true);
    assert_eq!(names(&t.stranger, "?view=featured").await, ["noble"]);
    let plain = place.client.ask(Method::DELETE, &format!("{path}/featured")).send().await.unwrap();
    assert_eq!(super::harness::body(plain).await["featured"], false);
    let stale = place.client.ask(Method::POST, &format!("{path}/unpublish")).header("if-match", "1");
    assert_eq!(fault(stale.send().await.unwrap(), 412).await.code, "revision");
    assert_eq!(place.client.post(&format!("{path}/unpublish"), json!({})).await["visibility"], "private");
    refused(&t.receiver, Method::GET, &path, json!({}), 404).await;
    for (query, field) in [("?share_status=pending", "share_status"), ("?view=mine", "view")] {
        let answer = t.owner.ask(Method::GET, &format!("/images{query}")).send().await.unwrap();
        assert_eq!(fault(answer, 400).await.field.as_deref(), Some(field));
    }
    place.stop().await;

    let place = Place::with(|config| config.sharing.members_may_publish = true).await;
    let t = tenants(&place).await;
    let id: ImageId = t.owner.image(json!({ "name": "noble" })).await;
    let path = format!("/images/{id}");
    refused(&t.receiver, Method::POST, &format!("{path}/publish"), json!({}), 404).await;
    assert_eq!(t.owner.post(&format!("{path}/publish"), json!({})).await["visibility"], "public");
    // Seen now, but still not its own.
    refused(&t.receiver, Method::POST, &format!("{path}/unpublish"), json!({}), 403).await;
    assert_eq!(t.owner.post(&format!("{path}/unpublish"), json!({})).await["visibility"], "private");
    t.owner.image(json!({ "name": "at once", "public": true })).await;
    let reader = member(&place, t.own, Role::Reader).await;
    refused(&reader, Method::POST, &format!("{path}/publish"), json!({}), 403).await;
    place.stop().await;
}

/// SH-5: who changes an owner has both projects in his scope, and leaves nobody with a share beyond it.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_is_changed_by_who_has_both_projects() {
    let place = Place::new().await;
    let t = tenants(&place).await;
    let id = t.owner.image(json!({ "name": "noble" })).await;
    let path = format!("/images/{id}/owner");
    let to = |project: ProjectId| json!({ "project": project });
    refused(&t.owner, Method::POST, &path, to(t.sister), 403).await;
    let admin = member(&place, t.own, Role::Admin).await;
    let scope = json!({ "scope": "domain", "domain": t.domain });
    let above = place.client.delegate("above", Role::Admin, scope).await;
    for (who, hidden) in [(&admin, t.sister), (&above, t.foreign)] {
        let error = refused(who, Method::POST, &path, to(hidden), 404).await;
        let none = refused(who, Method::POST, &path, json!({ "project": MISSING }), 404).await;
        assert_eq!(error.message.replace(&hidden.to_string(), MISSING), none.message);
    }
    t.owner.post(&format!("/images/{id}/shares"), json!({ "projects": [t.sister] })).await;
    let beyond = refused(&place.client, Method::POST, &path, to(t.foreign), 409).await;
    assert!(beyond.message.contains("shared beyond"), "{beyond:?}");
    let given = above.post(&path, to(t.sister)).await;
    assert_eq!((&given["project"], &given["visibility"]), (&json!(t.sister), &json!("private")));
    refused(&t.owner, Method::GET, &format!("/images/{id}"), json!({}), 404).await;
    let rows = place.client.get(&format!("/operations?target={id}&action=image.owner")).await;
    assert_eq!(rows["items"][0]["details"], json!({ "before": to(t.own), "after": to(t.sister) }));
    t.stranger.image(json!({ "name": "NOBLE" })).await;
    assert_eq!(refused(&place.client, Method::POST, &path, to(t.foreign), 409).await.code, "conflict");
    place.stop().await;
}
