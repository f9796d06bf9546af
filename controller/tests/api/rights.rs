//! Single promises about rights, step by step. The `matrix` module asks about every route and every caller.

use hearth_protocol::words::Role;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::harness::{Client, Place, fault, noise};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_ends_at_once_when_it_is_revoked_and_in_time_when_it_expires() {
    let place = Place::new().await;
    let made = place
        .client
        .post("/tokens", json!({ "name": "short", "role": "reader", "scope": "system", "ttl_s": 1 }))
        .await;
    let short = place.client.with_token(made["token"].as_str().unwrap());
    short.get("/whoami").await;
    let made =
        place.client.post("/tokens", json!({ "name": "gone", "role": "reader", "scope": "system" })).await;
    let gone = place.client.with_token(made["token"].as_str().unwrap());
    assert_eq!(gone.get("/whoami").await["name"], "gone");
    let id = made["id"].as_str().unwrap();
    let revoked = place.client.ask(Method::DELETE, &format!("/tokens/{id}")).send().await.unwrap();
    assert_eq!(revoked.status(), StatusCode::NO_CONTENT);
    fault(gone.ask(Method::GET, "/whoami").send().await.unwrap(), 401).await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    fault(short.ask(Method::GET, "/whoami").send().await.unwrap(), 401).await;
    let list = place.client.get("/tokens").await;
    assert!(
        list["items"].as_array().unwrap().iter().all(|token| token.get("token").is_none()),
        "secrets stay secret"
    );
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_administrator_cannot_lock_everybody_out() {
    let place = Place::new().await;
    let id = place.client.get("/whoami").await["id"].as_str().unwrap().to_owned();
    let answer = place.client.ask(Method::DELETE, &format!("/tokens/{id}")).send().await.unwrap();
    assert!(fault(answer, 409).await.message.contains("last"));
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gives_away_more_than_he_has() {
    let place = Place::new().await;
    let (domain, project) = place.controller.db().default_tenants().await.unwrap();
    let scope = json!({ "scope": "project", "project": project });
    let admin = place.client.delegate("p-admin", Role::Admin, scope).await;
    admin
        .post("/tokens", json!({ "name": "x", "role": "reader", "scope": "project", "project": project }))
        .await;
    for more in [
        json!({ "name": "x", "role": "reader", "scope": "system" }),
        json!({ "name": "x", "role": "reader", "scope": "domain", "domain": domain }),
    ] {
        fault(admin.ask(Method::POST, "/tokens").json(&more).send().await.unwrap(), 403).await;
    }
    let list = admin.get("/tokens").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 2, "its own and the one it made: {list}");
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_of_other_domains_and_projects_cannot_be_tried_out() {
    let place = Place::new().await;
    let db = place.controller.db();
    let (domain, project) = db.default_tenants().await.unwrap();
    let op = || hearth_controller::db::operations::Draft::system("tenant.create");
    let (beside, elsewhere, there) = (
        hearth_controller::db::new_id::<hearth_protocol::id::ProjectId>(),
        hearth_controller::db::new_id::<hearth_protocol::id::DomainId>(),
        hearth_controller::db::new_id::<hearth_protocol::id::ProjectId>(),
    );
    db.create_project(beside, domain, "beside", &op()).await.unwrap();
    db.create_domain(elsewhere, "elsewhere", &op()).await.unwrap();
    db.create_project(there, elsewhere, "there", &op()).await.unwrap();
    let of_project = json!({ "scope": "project", "project": project });
    let of_domain = json!({ "scope": "domain", "domain": domain });
    let in_project = place.client.delegate("p-admin", Role::Admin, of_project).await;
    let in_domain = place.client.delegate("d-admin", Role::Admin, of_domain).await;
    let missing = "01234567-89ab-7def-8123-456789abcdef";
    let token = |scope: &str, id: &str| json!({ "name": "x", "role": "reader", "scope": scope, scope: id });
    let both = |id: &str| json!({ "name": "x", "role": "reader", "scope": "project", "domain": elsewhere, "project": id });
    let image = |id: &str| json!({ "name": "x", "project": id });
    let public = |id: &str| json!({ "name": "x", "project": id, "public": true });
    let same = async |who: &Client, path: &str, sent: &dyn Fn(&str) -> Value, id: String| {
        let ask = |id: &str| who.ask(Method::POST, path).json(&sent(id)).send();
        let hidden = fault(ask(&id).await.unwrap(), 404).await;
        let none = fault(ask(missing).await.unwrap(), 404).await;
        assert_eq!(hidden.message.replace(&id, missing), none.message, "{path} {}", sent(&id));
        assert_eq!((hidden.code, hidden.hint, hidden.field), (none.code, none.hint, none.field));
    };
    for who in [&in_project, &in_domain] {
        same(who, "/tokens", &|id| token("domain", id), elsewhere.to_string()).await;
        same(who, "/tokens", &|id| token("project", id), there.to_string()).await;
        same(who, "/tokens", &both, there.to_string()).await;
        same(who, "/images", &image, there.to_string()).await;
        same(who, "/images", &public, there.to_string()).await;
    }
    same(&in_project, "/tokens", &|id| token("project", id), beside.to_string()).await;
    same(&in_project, "/images", &image, beside.to_string()).await;
    // What is one's own is there, and what one is part of is refused by name.
    in_domain.post("/tokens", token("project", &beside.to_string())).await;
    let more = in_project.ask(Method::POST, "/tokens").json(&token("domain", &domain.to_string()));
    assert_eq!(fault(more.send().await.unwrap(), 403).await.code, "denied");
    place.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_another_project_looks_like_none() {
    let place = Place::new().await;
    let db = place.controller.db();
    let (domain, mine) = db.default_tenants().await.unwrap();
    let other = hearth_controller::db::new_id();
    let op = hearth_controller::db::operations::Draft::system("project.create");
    db.create_project(other, domain, "other", &op).await.unwrap();
    let owner =
        place.client.delegate("owner", Role::Admin, json!({ "scope": "project", "project": mine })).await;
    let stranger =
        place.client.delegate("stranger", Role::Admin, json!({ "scope": "project", "project": other })).await;
    let id = owner.image(json!({ "name": "secret" })).await;
    assert_eq!(owner.put(id, noise(100_000)).await.status(), StatusCode::ACCEPTED);
    owner.ended(id).await;
    let missing = "01234567-89ab-7def-8123-456789abcdef";
    let calls = [
        (Method::GET, ""),
        (Method::DELETE, ""),
        (Method::PUT, "/file"),
        (Method::GET, "/file"),
        (Method::POST, "/retry"),
        (Method::GET, "/variants"),
        (Method::GET, "/variants/qcow2/file"),
        (Method::DELETE, "/variants/qcow2"),
    ];
    for (method, tail) in calls {
        let ask = |id: &str| stranger.ask(method.clone(), &format!("/images/{id}{tail}")).body("x").send();
        let hidden = fault(ask(&id.to_string()).await.unwrap(), 404).await;
        let none = fault(ask(missing).await.unwrap(), 404).await;
        assert_eq!(hidden.message.replace(&id.to_string(), missing), none.message);
        assert_eq!((hidden.code, hidden.hint, hidden.field), (none.code, none.hint, none.field));
    }
    assert_eq!(stranger.get("/images").await["items"], json!([]));
    assert_eq!(stranger.get("/images?name=secret").await["items"], json!([]));
    // The same name is free in another project: a refusal would tell that it exists.
    stranger.image(json!({ "name": "secret" })).await;
    assert!(
        owner.get(&format!("/images/{id}")).await.get("cached_at").is_none(),
        "tenants do not see caches"
    );
    assert!(owner.get("/images").await["items"][0].get("cached_at").is_none(), "nor in the list");
    assert_eq!(place.client.get(&format!("/images/{id}")).await["cached_at"], 0);
    assert_eq!(place.client.get("/images").await["items"][0]["cached_at"], 0);
    place.stop().await;
}
