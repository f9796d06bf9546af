//! Lists of images: filters, orders, counts, and what is cached where.

use hearth_protocol::words::Role;
use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Client, Place, fault, noise};
use super::places;

async fn named(client: &Client, query: &str) -> Vec<String> {
    let page = client.get(&format!("/images?{query}")).await;
    let name = |image: &Value| image["name"].as_str().unwrap().to_owned();
    page["items"].as_array().unwrap().iter().map(name).collect()
}

/// LS-1: every filter finds what it says, and together they narrow.
#[tokio::test(flavor = "multi_thread")]
async fn filters_find_what_they_say() {
    let place = Place::new().await;
    let client = &place.client;
    client
        .image(json!({ "name": "a", "tags": ["Prod", "db"], "os_type": "linux", "architecture": "x86_64",
            "virtualisation": "kvm", "description": "数据库服务器 with PostgreSQL", "format": "qcow2" }))
        .await;
    client
        .image(json!({ "name": "b", "tags": ["prod"], "os_type": "windows", "architecture": "aarch64",
            "protected": true, "kind": "iso" }))
        .await;
    client.image(json!({ "name": "c", "public": true })).await;
    let id = client.image(json!({ "name": "d" })).await;
    client.put(id, noise(100_000)).await;
    client.ended(id).await;
    let project = client.get("/images?name=a").await["items"][0]["project"].as_str().unwrap().to_owned();
    for (query, expected) in [
        ("tag=PROD", "a b"),
        ("tag=prod&tag=db", "a"),
        ("tag=pro", ""),
        ("os_type=windows", "b"),
        ("architecture=x86_64", "a"),
        ("virtualisation=kvm", "a"),
        ("format=qcow2", "a"),
        ("kind=iso", "b"),
        ("protected=true", "b"),
        ("protected=false", "a c d"),
        ("visibility=public", "c"),
        ("status=active", "d"),
        ("size_min=1", "d"),
        ("size_min=1&size_max=99999", ""),
        ("size_max=100000", "a b c d"),
        (&format!("project={project}&os_type=linux"), "a"),
        ("created_after=2020-01-01T00:00:00Z", "a b c d"),
        ("created_before=2020-01-01T00:00:00Z", ""),
        ("updated_after=2020-01-01T00:00:00Z&updated_before=2999-01-01T00:00:00Z", "a b c d"),
        ("q=%E6%95%B0%E6%8D%AE", "a"),
        ("q=postgres", "a"),
        ("q=acti", "d"),
        ("q=nothing", ""),
        ("name_contains=a", "a"),
        ("name_contains=postgres", ""),
        ("name=B", "b"),
    ] {
        assert_eq!(named(client, &format!("sort=name&{query}")).await.join(" "), expected, "{query}");
    }
    let a_tag = "x".repeat(65);
    for (query, field) in [
        ("status=warm", "status"),
        ("os_type=bsd", "os_type"),
        ("size_min=20GB", "size_min"),
        ("protected=1", "protected"),
        ("created_after=yesterday", "created_after"),
        ("sort=colour", "sort"),
        ("order=up", "order"),
        ("limit=-1", "limit"),
        ("nonsense=1", "nonsense"),
        (&format!("tag={a_tag}"), "tag"),
        ("q=a%00", "q"),
        ("name_contains=%E2%80%AE", "name_contains"),
        ("at=nowhere", "at"),
    ] {
        let answer = client.ask(Method::GET, &format!("/images?{query}")).send().await.unwrap();
        let status = if field == "at" { 404 } else { 400 };
        assert_eq!(fault(answer, status).await.field.as_deref(), Some(field), "{query}");
    }
    fault(client.ask(Method::GET, "/images?q=%FF%FE").send().await.unwrap(), 400).await;
    place.stop().await;
}

/// LS-1: pages in every order hold each image once, whatever is written meanwhile, and a cursor is of one order.
#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_each_image_once_in_every_order() {
    let place = Place::new().await;
    let client = &place.client;
    for n in 0..7 {
        client.image(json!({ "name": format!("image-{n}") })).await;
    }
    for sort in ["name", "size", "created", "updated", "status"] {
        for order in ["asc", "desc"] {
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            loop {
                let query = format!("/images?name_contains=image&sort={sort}&order={order}&limit=2{cursor}");
                let page = client.get(&query).await;
                seen.extend(page["items"].as_array().unwrap().iter().map(|image| image["name"].clone()));
                client.image(json!({ "name": format!("new {sort} {order} {}", seen.len()) })).await;
                let Some(next) = page["next"].as_str() else { break };
                cursor = format!("&cursor={next}");
            }
            let mut once = seen.clone();
            once.sort_by_key(|name| name.as_str().unwrap().to_owned());
            once.dedup();
            assert_eq!((seen.len(), once.len()), (7, 7), "{sort} {order}: {seen:?}");
            if sort == "name" {
                once.reverse();
                assert_eq!(seen.first() == once.first(), order == "desc", "{seen:?}");
            }
        }
    }
    let next = client.get("/images?sort=name&limit=2").await["next"].as_str().unwrap().to_owned();
    for other in ["sort=size", "sort=name&order=desc", "sort=status"] {
        let answer = client.ask(Method::GET, &format!("/images?{other}&cursor={next}")).send().await.unwrap();
        assert_eq!(fault(answer, 400).await.field.as_deref(), Some("cursor"), "{other}");
    }
    place.stop().await;
}

/// LS-1: the number of images is told on request alone, and is that of the filter and the scope.
#[tokio::test(flavor = "multi_thread")]
async fn a_count_is_of_what_the_caller_may_see() {
    let place = Place::new().await;
    let db = place.controller.db();
    let (domain, _) = db.default_tenants().await.unwrap();
    let other = hearth_controller::db::new_id();
    let op = hearth_controller::db::operations::Draft::system("project.create");
    db.create_project(other, domain, "other", &op).await.unwrap();
    for name in ["a", "b", "c"] {
        place.client.image(json!({ "name": name })).await;
    }
    let stranger =
        place.client.delegate("s", Role::Reader, json!({ "scope": "project", "project": other })).await;
    let page = place.client.get("/images?count=true&limit=1").await;
    assert_eq!(page["count"], json!({ "rows": 3, "more": false }));
    assert_eq!(place.client.get("/images?count=true&name=b").await["count"]["rows"], 1);
    assert_eq!(stranger.get("/images?count=true").await["count"]["rows"], 0);
    assert!(place.client.get("/images").await.get("count").is_none());
    place.stop().await;
}

/// LS-4: a list marks what is cached at a location, also for those who may not see copies.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_marks_what_is_cached_at_a_location() {
    let place = Place::new().await;
    let (client, db) = (&place.client, place.controller.db());
    let (_, project) = db.default_tenants().await.unwrap();
    let tenant = client.delegate("t", Role::Reader, json!({ "scope": "project", "project": project })).await;
    let at = places::location(db, "host-1").await;
    let elsewhere = places::location(db, "host-2").await;
    for (n, name) in ["cold", "warm"].iter().enumerate() {
        let id = client.image(json!({ "name": name })).await;
        client.put(id, noise(1000 + n as u64)).await;
        let content = client.ended(id).await.content.unwrap();
        places::cached(db, if *name == "warm" { at } else { elsewhere }, content).await;
        if *name == "warm" {
            places::wanted(db, at, id, content).await;
        }
    }
    for caller in [client, &tenant] {
        for query in [format!("at={at}"), "at=HOST-1".to_owned()] {
            let page = caller.get(&format!("/images?sort=name&{query}")).await;
            let marks: Vec<&Value> =
                page["items"].as_array().unwrap().iter().map(|image| &image["cached"]).collect();
            assert_eq!(marks, [&json!(false), &json!(true)], "{query}");
        }
    }
    let page = tenant.get("/images?sort=name&at=nowhere").await;
    assert_eq!(page["items"][1]["cached"], false, "which locations there are is no tenant's business");
    assert!(page["items"][1].get("cached_at").is_none());
    assert!(client.get("/images").await["items"][0].get("cached").is_none());
    place.stop().await;
}
