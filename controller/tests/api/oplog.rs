//! The operation log over HTTP: of everything, of one image, of one location; and its check.

use hearth_controller::db::new_id;
use hearth_controller::db::operations::{Draft, WhoKind};
use hearth_protocol::words::Role;
use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Client, Place, fault};

fn actions(page: &Value) -> Vec<String> {
    page["items"].as_array().unwrap().iter().map(|row| row["action"].as_str().unwrap().to_owned()).collect()
}

/// Another project of the default domain, and a client of it.
async fn stranger(place: &Place) -> Client {
    let db = place.controller.db();
    let (domain, _) = db.default_tenants().await.unwrap();
    let other = new_id();
    db.create_project(other, domain, "other", &Draft::system("project.create")).await.unwrap();
    place.client.delegate("stranger", Role::Admin, json!({ "scope": "project", "project": other })).await
}

/// LG-1: the newest 20 operations, and more on demand; what is written meanwhile moves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_newest_20_come_first_and_pages_are_stable_under_writes() {
    let place = Place::new().await;
    let db = place.controller.db();
    let id = place.client.image(json!({ "name": "noble" })).await;
    for n in 0..49 {
        let op = Draft::system("image.test").on("image", id, "noble").with(json!({ "n": n }));
        db.record(&op).await.unwrap();
    }
    let path = format!("/images/{id}/operations");
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = place.client.get(&format!("{path}?{cursor}")).await;
        seen.extend(page["items"].as_array().unwrap().clone());
        assert_eq!(page["items"].as_array().unwrap().len(), if seen.len() > 40 { 10 } else { 20 });
        db.record(&Draft::system("image.later").on("image", id, "noble")).await.unwrap();
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("cursor={next}");
    }
    assert_eq!(seen.len(), 50);
    let numbers: Vec<i64> = seen.iter().filter_map(|row| row["details"]["n"].as_i64()).collect();
    assert_eq!(numbers, (0..49).rev().collect::<Vec<_>>());
    assert_eq!(seen[49]["action"], "image.create");
    place.stop().await;
}

/// LG-1: time, who, action, result, details; each can be asked for.
#[tokio::test(flavor = "multi_thread")]
async fn filters_select_and_one_operation_shows_before_and_after() {
    let place = Place::new().await;
    let (client, db) = (&place.client, place.controller.db());
    let id = client.image(json!({ "name": "noble" })).await;
    let details = json!({ "before": { "name": "noble" }, "after": { "name": "jammy" } });
    let op =
        Draft::new(WhoKind::Token, "alice", "image.update").on("image", id, "noble").with(details.clone());
    db.record(&op).await.unwrap();
    db.record(&Draft::system("image.import").on("image", id, "noble").failed("no qcow2")).await.unwrap();
    for (query, expected) in [
        ("who=alice".to_owned(), vec!["image.update"]),
        ("action=image.create".to_owned(), vec!["image.create"]),
        (format!("target_kind=image&target={id}&result=failed"), vec!["image.import"]),
        (format!("target={id}&to=2020-01-01T00:00:00Z"), vec![]),
        (format!("target={id}&from=2020-01-01T00:00:00Z&limit=2"), vec!["image.import", "image.update"]),
    ] {
        assert_eq!(actions(&client.get(&format!("/operations?{query}")).await), expected, "{query}");
    }
    let shown = client.get(&format!("/operations/{}", op.id)).await;
    assert_eq!(
        (&shown["details"], &shown["who"], &shown["who_kind"]),
        (&details, &json!("alice"), &json!("token"))
    );
    for (query, field) in [
        ("result=good", "result"),
        ("who=a%00b", "who"),
        ("from=yesterday", "from"),
        ("limit=x", "limit"),
        ("colour=red", "colour"),
        ("columns=time", "columns"),
    ] {
        let answer = client.ask(Method::GET, &format!("/operations?{query}")).send().await.unwrap();
        assert_eq!(fault(answer, 400).await.field.as_deref(), Some(field), "{query}");
    }
    let twice = client.ask(Method::GET, &format!("/images/{id}/operations?target=x")).send().await.unwrap();
    assert_eq!(fault(twice, 400).await.field.as_deref(), Some("target"));
    place.stop().await;
}

/// LG-1: the log of an image is for those who own it; of a public one too, and nothing tells where copies are.
#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_question_for_a_log_looks_like_one_for_nothing() {
    let place = Place::new().await;
    let db = place.controller.db();
    let (_, project) = db.default_tenants().await.unwrap();
    let owner = json!({ "scope": "project", "project": project });
    let reader = place.client.delegate("reader", Role::Reader, owner).await;
    let stranger = stranger(&place).await;
    let missing = "01234567-89ab-7def-8123-456789abcdef";
    for (name, public) in [("private", false), ("public", true)] {
        let id = place.client.image(json!({ "name": name, "public": public })).await;
        let cached = Draft::system("cache.create").on("image", id, name).with(json!({ "to": "cn-1" }));
        db.record(&cached).await.unwrap();
        let path = format!("/images/{id}/operations");
        assert_eq!(actions(&reader.get(&path).await), ["image.create"]);
        assert_eq!(actions(&place.client.get(&path).await), ["cache.create", "image.create"]);
        let created = reader.get(&path).await["items"][0]["id"].as_str().unwrap().to_owned();
        assert_eq!(reader.get(&format!("/operations/{created}")).await["action"], "image.create");
        let hide = async |who: &Client, path: &str, id: &str| {
            let hidden = fault(who.ask(Method::GET, path).send().await.unwrap(), 404).await;
            let none = path.replace(id, missing);
            let none = fault(who.ask(Method::GET, &none).send().await.unwrap(), 404).await;
            assert_eq!(hidden.message.replace(id, missing), none.message, "{path}");
            assert_eq!((hidden.code, hidden.hint), (none.code, none.hint), "{path}");
        };
        hide(&stranger, &path, &id.to_string()).await;
        hide(&stranger, &format!("{path}?format=csv"), &id.to_string()).await;
        hide(&stranger, &format!("/operations/{created}"), &created).await;
        hide(&reader, &format!("/operations/{}", cached.id), &cached.id.to_string()).await;
    }
    fault(reader.ask(Method::GET, "/operations").send().await.unwrap(), 403).await;
    let location = format!("/locations/{missing}/operations");
    fault(reader.ask(Method::GET, &location).send().await.unwrap(), 403).await;
    fault(place.client.ask(Method::GET, &location).send().await.unwrap(), 404).await;
    place.stop().await;
}

/// LG-1: the check names what was touched, and finds a head that was kept.
#[tokio::test(flavor = "multi_thread")]
async fn the_check_names_the_rows_that_somebody_touched() {
    use sqlx::{Connection as _, Executor as _};
    let place = Place::new().await;
    let (client, db) = (&place.client, place.controller.db());
    for n in 0..8 {
        db.record(&Draft::system("test.write").with(json!({ "n": n }))).await.unwrap();
    }
    while db.seal_once().await.unwrap() > 0 {}
    let good = client.get("/operations/verify").await;
    assert_eq!((&good["intact"], &good["findings"]), (&json!(true), &json!([])));
    let head = good["head"].as_str().unwrap();
    let kept = client.get(&format!("/operations/verify?head={head}")).await;
    assert_eq!(kept["known_head_seq"], good["sealed"]);
    let other = "0".repeat(64);
    assert_eq!(client.get(&format!("/operations/verify?head={other}")).await["intact"], false);
    let wrong = client.ask(Method::GET, "/operations/verify?head=abc").send().await.unwrap();
    assert_eq!(fault(wrong, 400).await.field.as_deref(), Some("head"));

    sqlx::any::install_default_drivers();
    let file = place.config.state_dir.join("hearth.sqlite");
    let mut intruder = sqlx::AnyConnection::connect(&format!("sqlite://{}", file.display())).await.unwrap();
    for text in [
        "UPDATE operation SET details = '{\"n\":100}' WHERE seq = 3",
        "DELETE FROM operation WHERE seq = 5",
        "UPDATE operation SET seq = 1000 WHERE seq = 7",
        "UPDATE operation SET seq = 7 WHERE seq = 8",
        "UPDATE operation SET seq = 8 WHERE seq = 1000",
    ] {
        intruder.execute(text).await.unwrap();
    }
    let bad = client.get("/operations/verify").await;
    let found: Vec<(u64, &str)> = bad["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| (f["seq"].as_u64().unwrap(), f["flaw"].as_str().unwrap()))
        .collect();
    let expected = [(3, "changed"), (5, "missing"), (7, "out_of_order"), (8, "out_of_order")];
    assert_eq!(found, expected);
    assert_eq!((&bad["intact"], &bad["first_bad_seq"], &bad["flaws"]), (&json!(false), &json!(3), &json!(4)));
    place.stop().await;
}
