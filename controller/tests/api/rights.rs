//! Every route with every kind of caller, judged by a table that stands here and not in the code.

use hearth_controller::logic::authz::Action;
use hearth_protocol::words::Role;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::harness::{Client, Place, fault, noise};

/// What a caller with this role and scope may do at all: from the text of the design.
fn may(role: Role, scope: &str, action: Action) -> bool {
    let (noun, verb) = action.as_str().split_once('.').unwrap();
    match (noun, verb) {
        ("token", "whoami") => true,
        ("token", _) => role == Role::Admin,
        ("image", "list" | "show") => true,
        ("image", "publish") => scope == "system" && role == Role::Admin,
        ("image", _) | ("source", "check") => role != Role::Reader,
        (_, "list" | "show" | "verify" | "read") => scope == "system",
        _ => scope == "system" && role == Role::Admin,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_asks_for_a_token_and_for_the_right() {
    let place = Place::new().await;
    let domain = place.client.get("/images").await; // the default project exists from `init` on
    assert_eq!(domain["items"], json!([]));
    let (domain, project) = place.controller.db().default_tenants().await.unwrap();
    let scopes = [
        ("system", json!({ "scope": "system" })),
        ("domain", json!({ "scope": "domain", "domain": domain })),
        ("project", json!({ "scope": "project", "project": project })),
    ];
    let mut personas = Vec::new();
    for (scope, sent) in &scopes {
        for role in Role::ALL {
            let name = format!("{scope}-{role}");
            personas.push((*scope, *role, place.client.delegate(&name, *role, sent.clone()).await));
        }
    }
    let missing = "01234567-89ab-7def-8123-456789abcdef";
    let mut asked = 0;
    for row in place.controller.routes() {
        let path = ["{id}", "{image}", "{location}", "{upload}"]
            .iter()
            .fold(row.path.clone(), |path, name| path.replace(name, missing));
        let url = format!("{}{path}", place.client.base);
        let method: Method = row.method.parse().unwrap();
        let request = || place.client.http.request(method.clone(), &url);
        let Some(action) = row.action else {
            assert!(
                ["/healthz", "/readyz", "/api/v1/openapi.json"].contains(&row.path.as_str()),
                "{row:?} is open"
            );
            assert_eq!(request().send().await.unwrap().status(), StatusCode::OK, "{row:?}");
            continue;
        };
        let forged = ["x-roles", "x-is-admin-project", "x-project-id", "x-forwarded-user", "x-auth-token"];
        let forged = forged.iter().fold(request(), |request, name| request.header(*name, "admin"));
        for unknown in [
            request(),
            forged,
            request().header("authorization", "Basic YWRtaW46YWRtaW4="),
            request().header("authorization", "Bearer "),
            request().bearer_auth(format!("hrt_{}", "0".repeat(64))),
            request().bearer_auth("hrt_' OR 1=1 --"),
        ] {
            fault(unknown.send().await.unwrap(), 401).await;
        }
        for (scope, role, client) in &personas {
            let request = request().bearer_auth(&client.token).header("x-is-admin-project", "true");
            let request = if [Method::POST, Method::PATCH].contains(&method) {
                request.json(&json!({}))
            } else {
                request
            };
            // Stopping transfers would change what the others see; its right is asked all the same.
            let answer = request.send().await.unwrap();
            let allowed = may(*role, scope, action);
            assert_eq!(
                answer.status() != StatusCode::FORBIDDEN,
                allowed,
                "{scope} {role} {row:?}: {answer:?}"
            );
            assert_ne!(answer.status(), StatusCode::UNAUTHORIZED, "{scope} {role} {row:?}");
            assert!(!answer.status().is_server_error(), "{scope} {role} {row:?}: {answer:?}");
            if !allowed {
                assert_eq!(fault(answer, 403).await.code, "denied");
            }
            asked += 1;
        }
    }
    assert!(asked > 300, "{asked}");
    place.stop().await;
}

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
