//! Users over HTTP: how they come in, what they may do to each other, and how often.

use std::time::Duration;

use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::harness::{Client, Place, body, fault};

const PASSWORD: &str = "correct horse battery";

async fn send(client: &Client, method: Method, path: &str, sent: &Value) -> Response {
    client.ask(method, path).json(sent).send().await.unwrap()
}

async fn login(place: &Place, sent: Value) -> Response {
    let url = format!("{}/api/v1/login", place.client.base);
    place.client.http.post(url).json(&sent).send().await.unwrap()
}

/// A client that logged in.
async fn entered(place: &Place, sent: Value) -> Client {
    let token = body(login(place, sent).await).await;
    place.client.with_token(token["token"].as_str().unwrap())
}

/// Makes a user of the default domain with one grant; returns its id.
async fn user(client: &Client, name: &str, grant: Value) -> String {
    let made = client.post("/users", json!({ "name": name, "password": PASSWORD })).await;
    assert!(made.get("password").is_none() && made["has_password"] == true, "{made}");
    let id = made["id"].as_str().unwrap().to_owned();
    let mut sent = json!({ "user": id });
    sent.as_object_mut().unwrap().extend(grant.as_object().unwrap().clone());
    client.post("/grants", sent).await;
    id
}

/// API-1: a login gives a token with one of the user's grants, and it ends with a logout.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_logs_in_with_a_grant_and_out_again() {
    let place = Place::new().await;
    let admin = &place.client;
    let web = admin.post("/projects", json!({ "name": "web" })).await;
    let id = user(admin, "alice", json!({ "role": "reader", "scope": "system" })).await;
    let member = json!({ "user": id, "role": "member", "scope": "project", "project": web["id"] });
    admin.post("/grants", member.clone()).await;
    fault(send(admin, Method::POST, "/grants", &member).await, 409).await;
    let wide = entered(&place, json!({ "user": "Alice", "password": PASSWORD })).await;
    let me = wide.get("/whoami").await;
    assert_eq!((&me["scope"], &me["role"], &me["user"]), (&json!("system"), &json!("reader"), &json!(id)));
    let narrow = entered(&place, json!({ "user": "alice", "password": PASSWORD, "project": "WEB" })).await;
    let me = narrow.get("/whoami").await;
    assert_eq!((&me["project"], &me["role"], &me["name"]), (&web["id"], &json!("member"), &json!("alice")));
    narrow.image(json!({ "name": "hers" })).await;
    let log = admin.get("/operations?action=user.login").await;
    assert_eq!(log["items"].as_array().unwrap().len(), 2);
    assert_eq!(admin.get("/operations?action=image.create").await["items"][0]["who"], "alice");
    let whole_log = admin.get("/operations").await.to_string();
    assert!(!whole_log.contains(PASSWORD) && !whole_log.contains("argon2"), "{whole_log}");
    assert_eq!(narrow.ask(Method::POST, "/logout").send().await.unwrap().status(), 204);
    fault(narrow.ask(Method::GET, "/whoami").send().await.unwrap(), 401).await;
    wide.get("/whoami").await;
    place.stop().await;
}

/// PE-1: one message for every failure.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_fails_does_not_say_why() {
    let place = Place::new().await;
    let admin = &place.client;
    user(admin, "alice", json!({ "role": "reader", "scope": "system" })).await;
    let closed = user(admin, "closed", json!({ "role": "reader", "scope": "system" })).await;
    body(send(admin, Method::PATCH, &format!("/users/{closed}"), &json!({ "disabled": true })).await).await;
    admin.post("/users", json!({ "name": "empty" })).await;
    admin.post("/users", json!({ "name": "idle", "password": PASSWORD })).await;
    let mut said = Vec::new();
    for sent in [
        json!({ "user": "alice", "password": "wrong password" }),
        json!({ "user": "nobody", "password": PASSWORD }),
        json!({ "user": "alice", "domain": "nowhere", "password": PASSWORD }),
        json!({ "user": "alice", "password": PASSWORD, "project": "default" }),
        json!({ "user": "alice", "password": PASSWORD, "scope": "domain" }),
        json!({ "user": "closed", "password": PASSWORD }),
        json!({ "user": "empty", "password": PASSWORD }),
        json!({ "user": "idle", "password": PASSWORD }),
    ] {
        let error = fault(login(&place, sent).await, 401).await;
        said.push((error.code, error.message, error.hint, error.field));
    }
    assert!(said.windows(2).all(|pair| pair[0] == pair[1]), "{said:#?}");
    // The log names who exists and was refused, and nobody else.
    let refused = async || admin.get("/operations?action=user.login&result=failed").await["items"].clone();
    while refused().await.as_array().unwrap().len() < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut who: Vec<Value> =
        refused().await.as_array().unwrap().iter().map(|row| row["who"].clone()).collect();
    who.sort_by_key(ToString::to_string);
    assert_eq!(who, ["alice", "closed", "empty"]);
    for (sent, field) in [
        (json!({ "user": "", "password": PASSWORD }), "user"),
        (json!({ "user": "alice", "password": "x".repeat(257) }), "password"),
        (json!({ "user": "alice", "password": 31_415_926 }), "password"),
        (json!({ "user": "alice" }), "password"),
    ] {
        let error = fault(login(&place, sent).await, 400).await;
        assert_eq!(error.field.as_deref(), Some(field));
        assert!(!error.message.contains("31415"), "{}", error.message);
    }
    for short in ["short", "ninechars"] {
        let sent = json!({ "name": "bob", "password": short });
        let error = fault(send(admin, Method::POST, "/users", &sent).await, 400).await;
        assert_eq!(error.field.as_deref(), Some("password"));
    }
    place.stop().await;
}

/// PE-1: guesses of one user's password are few, and of a user that does not exist as few.
#[tokio::test(flavor = "multi_thread")]
async fn guesses_are_counted_per_user() {
    let place = Place::new().await;
    user(&place.client, "alice", json!({ "role": "reader", "scope": "system" })).await;
    user(&place.client, "bob", json!({ "role": "reader", "scope": "system" })).await;
    let guess = |name: &str| login(&place, json!({ "user": name, "password": "wrong password" }));
    for name in ["alice", "nobody"] {
        let mut tries = 0;
        let answer = loop {
            let answer = guess(name).await;
            if answer.status() != 401 {
                break answer;
            }
            tries += 1;
            assert!(tries < 20, "{name} is not counted");
        };
        assert!(tries >= 10, "{tries}");
        let wait: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&wait), "{wait}");
        assert_eq!(fault(answer, 429).await.code, "too_many");
    }
    entered(&place, json!({ "user": "bob", "password": PASSWORD })).await;
    place.stop().await;
}

/// PE-1: a new password ends the other tokens, a rotated token its old secret.
#[tokio::test(flavor = "multi_thread")]
async fn passwords_and_tokens_are_renewed() {
    let place = Place::new().await;
    let admin = &place.client;
    let id = user(admin, "alice", json!({ "role": "member", "scope": "system" })).await;
    let sent = json!({ "user": "alice", "password": PASSWORD });
    let (here, there) = (entered(&place, sent.clone()).await, entered(&place, sent.clone()).await);
    let change = |old: &str, new: &str| json!({ "old": old, "new": new });
    let wrong = send(&here, Method::POST, "/password", &change("not the old one", "another one")).await;
    assert_eq!(fault(wrong, 400).await.field.as_deref(), Some("old"));
    let short = send(&here, Method::POST, "/password", &change(PASSWORD, "short")).await;
    assert_eq!(fault(short, 400).await.field.as_deref(), Some("new"));
    there.get("/whoami").await;
    let done = send(&here, Method::POST, "/password", &change(PASSWORD, "another password")).await;
    assert_eq!(done.status(), 204);
    here.get("/whoami").await;
    fault(there.ask(Method::GET, "/whoami").send().await.unwrap(), 401).await;
    fault(login(&place, sent).await, 401).await;
    fault(send(admin, Method::POST, "/password", &change(PASSWORD, "another password")).await, 409).await;
    let token = here.get("/whoami").await["id"].as_str().unwrap().to_owned();
    let rotated = here.post(&format!("/tokens/{token}/rotate"), json!({})).await;
    fault(here.ask(Method::GET, "/whoami").send().await.unwrap(), 401).await;
    let again = here.with_token(rotated["token"].as_str().unwrap());
    assert_eq!(again.get("/whoami").await["id"], json!(token));
    let others = admin.ask(Method::POST, &format!("/tokens/{token}/rotate")).send().await.unwrap();
    assert!(fault(others, 409).await.message.contains("nobody else"));
    let set = json!({ "password": "set by somebody" });
    let done = send(admin, Method::PUT, &format!("/users/{id}/password"), &set).await;
    assert_eq!(done.status(), 204);
    fault(again.ask(Method::GET, "/whoami").send().await.unwrap(), 401).await;
    let listed = admin.get(&format!("/tokens?user={id}")).await;
    assert!(listed["items"].as_array().unwrap().iter().all(|token| token["usable"] == false), "{listed}");
    place.stop().await;
}

/// SH-7: an administrator of a domain does not become one of the system through a user of the domain.
#[tokio::test(flavor = "multi_thread")]
async fn a_domain_does_not_take_over_who_may_do_more() {
    let place = Place::new().await;
    let admin = &place.client;
    let domain = admin.get("/domains?name=default").await["items"][0]["id"].clone();
    let boss = user(admin, "boss", json!({ "role": "admin", "scope": "system" })).await;
    let alice = user(admin, "alice", json!({ "role": "reader", "scope": "domain", "domain": domain })).await;
    user(admin, "head", json!({ "role": "admin", "scope": "domain", "domain": domain })).await;
    let head = entered(&place, json!({ "user": "head", "password": PASSWORD })).await;
    assert_eq!(head.get("/users").await["items"].as_array().unwrap().len(), 3);
    let set = json!({ "password": "taken over now" });
    fault(send(&head, Method::PUT, &format!("/users/{boss}/password"), &set).await, 403).await;
    fault(send(&head, Method::PATCH, &format!("/users/{boss}"), &json!({ "disabled": true })).await, 403)
        .await;
    fault(head.ask(Method::DELETE, &format!("/users/{boss}")).send().await.unwrap(), 403).await;
    let more = json!({ "user": alice, "role": "admin", "scope": "system" });
    fault(send(&head, Method::POST, "/grants", &more).await, 403).await;
    assert_eq!(send(&head, Method::PUT, &format!("/users/{alice}/password"), &set).await.status(), 204);
    let bound = json!({ "name": "x", "role": "admin", "scope": "domain", "domain": domain, "user": alice });
    assert_eq!(
        fault(send(&head, Method::POST, "/tokens", &bound).await, 409).await.field.as_deref(),
        Some("user")
    );
    let bound = json!({ "name": "x", "role": "reader", "scope": "domain", "domain": domain, "user": alice });
    let script = head.with_token(head.post("/tokens", bound).await["token"].as_str().unwrap());
    script.get("/whoami").await;
    body(send(&head, Method::PATCH, &format!("/users/{alice}"), &json!({ "disabled": true })).await).await;
    fault(script.ask(Method::GET, "/whoami").send().await.unwrap(), 401).await;
    place.stop().await;
}

/// API-1: a token that asks too often hears when to come again, and the others are not kept waiting.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_has_a_rate() {
    let place = Place::with(|config| {
        config.calls.per_second = 1;
        config.calls.burst = 20;
    })
    .await;
    let other = place
        .client
        .delegate("other", hearth_protocol::words::Role::Reader, json!({ "scope": "system" }))
        .await;
    let mut served = 0;
    let answer = loop {
        let answer = place.client.ask(Method::GET, "/whoami").send().await.unwrap();
        if answer.status() != 200 {
            break answer;
        }
        served += 1;
        assert!(served < 500, "nothing stops it");
    };
    assert!(served >= 18, "{served}");
    assert_eq!(answer.headers()["retry-after"], "1");
    assert_eq!(fault(answer, 429).await.code, "too_many");
    other.get("/whoami").await;
    place.stop().await;
}

/// PE-1: domains and projects are made, renamed, closed and deleted; lists have pages.
#[tokio::test(flavor = "multi_thread")]
async fn tenants_come_and_go() {
    let place = Place::new().await;
    let admin = &place.client;
    let sales = admin.post("/domains", json!({ "name": "sales" })).await;
    let path = format!("/domains/{}", sales["id"].as_str().unwrap());
    fault(send(admin, Method::POST, "/domains", &json!({ "name": "SALES" })).await, 409).await;
    let renamed = body(send(admin, Method::PATCH, &path, &json!({ "name": "retail" })).await).await;
    assert_eq!(renamed["name"], "retail");
    for name in ["a", "b", "c"] {
        admin.post("/projects", json!({ "name": name, "domain": sales["id"] })).await;
    }
    let (mut names, mut cursor) = (Vec::new(), String::new());
    loop {
        let page =
            admin.get(&format!("/projects?limit=2&domain={}{cursor}", sales["id"].as_str().unwrap())).await;
        let items = page["items"].as_array().unwrap();
        names.extend(items.iter().map(|project| project["name"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(names, ["a", "b", "c"]);
    let head = json!({ "scope": "domain", "domain": sales["id"] });
    let head = admin.delegate("head", hearth_protocol::words::Role::Admin, head).await;
    head.get("/projects").await;
    body(send(admin, Method::PATCH, &path, &json!({ "disabled": true })).await).await;
    fault(head.ask(Method::GET, "/projects").send().await.unwrap(), 401).await;
    let full = admin.ask(Method::DELETE, &path).send().await.unwrap();
    assert!(fault(full, 409).await.message.contains("projects"));
    for project in admin.get("/projects?q=").await["items"].as_array().unwrap() {
        if project["domain"] == sales["id"] {
            let path = format!("/projects/{}", project["id"].as_str().unwrap());
            assert_eq!(admin.ask(Method::DELETE, &path).send().await.unwrap().status(), 204);
        }
    }
    assert_eq!(admin.ask(Method::DELETE, &path).send().await.unwrap().status(), 204);
    fault(admin.ask(Method::GET, &path).send().await.unwrap(), 404).await;
    for (path, sent, field) in [
        ("/domains", json!({ "name": "a\u{0}" }), "name"),
        ("/projects", json!({ "name": " " }), "name"),
        ("/users", json!({ "name": "x".repeat(256) }), "name"),
        ("/projects", json!({ "name": "x", "nonsense": 1 }), "nonsense"),
    ] {
        let error = fault(send(admin, Method::POST, path, &sent).await, 400).await;
        assert_eq!(error.field.as_deref(), Some(field), "{path} {sent}");
    }
    place.stop().await;
}
