//! Launches, by those who see copies and those who do not.

use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::Role;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::harness::{Client, Place, fault, noise};
use super::places;

/// A reader and a member of the default project, and an active image of it.
async fn tenants(place: &Place) -> (Client, Client, ImageId) {
    let (_, project) = place.controller.db().default_tenants().await.unwrap();
    let scope = || json!({ "scope": "project", "project": project });
    let reader = place.client.delegate("reader", Role::Reader, scope()).await;
    let member = place.client.delegate("member", Role::Member, scope()).await;
    let id = member.image(json!({ "name": "noble" })).await;
    assert_eq!(member.put(id, noise(1000)).await.status(), StatusCode::ACCEPTED);
    member.ended(id).await;
    (reader, member, id)
}

async fn launch(who: &Client, id: ImageId, at: &str) -> Value {
    who.post(&format!("/images/{id}/launch"), json!({ "location": at })).await
}

/// CA-4, LG-1: asked ten times, a launch is one operation; where it was is not for those who see no copies.
#[tokio::test(flavor = "multi_thread")]
async fn a_launch_is_noted_once_and_hidden_from_tenants() {
    let place = Place::new().await;
    let (reader, member, id) = tenants(&place).await;
    for name in ["host-1", "host-2"] {
        places::location(place.controller.db(), name).await;
        for _ in 0..5 {
            launch(&member, id, name).await;
        }
    }
    let path = format!("/images/{id}/operations?action=image.launch");
    let all = place.client.get(&path).await["items"].as_array().unwrap().clone();
    let names: Vec<&Value> = all.iter().map(|row| &row["details"]["location_name"]).collect();
    assert_eq!(names, [&json!("host-2"), &json!("host-1")]);
    for who in [&reader, &member] {
        assert_eq!(who.get(&path).await["items"], json!([]));
        let table = format!("/images/{id}/operations?format=csv");
        let table = who.ask(Method::GET, &table).send().await.unwrap().text().await.unwrap();
        assert!(table.contains("image.create") && !table.contains("launch"), "{table}");
        let one = format!("/operations/{}", all[0]["id"].as_str().unwrap());
        fault(who.ask(Method::GET, &one).send().await.unwrap(), 404).await;
    }
    place.stop().await;
}

/// CA-4: the text of a host is for operators: it names what others have there.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_not_told_what_fills_a_host() {
    let place = Place::new().await;
    let (_, member, id) = tenants(&place).await;
    let db = place.controller.db();
    let content = db.image(id).await.unwrap().unwrap().content.unwrap();
    let at = places::location(db, "host-1").await;
    launch(&member, id, "host-1").await;
    let said = "5 GiB needed, 1 GiB free, the rest is held: 40 GiB by vm-7";
    places::failed(db, at, content, FaultCode::NoSpace, said).await;
    assert_eq!(launch(&member, id, "host-1").await["reason"], "no room at this location");
    let told = launch(&place.client, id, "host-1").await;
    assert!(told["reason"].as_str().unwrap().contains("vm-7"), "{told}");
    place.stop().await;
}

/// CA-4: what no location can be called is refused before the database is asked, which knows no NUL.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_location_can_be_called_is_refused() {
    let place = Place::new().await;
    let (_, member, id) = tenants(&place).await;
    for name in ["a\0b".to_owned(), "x".repeat(1000)] {
        let sent =
            member.ask(Method::POST, &format!("/images/{id}/launch")).json(&json!({ "location": name }));
        let refused = fault(sent.send().await.unwrap(), 400).await;
        assert_eq!(refused.field.as_deref(), Some("location"));
        assert!(refused.message.len() < 500, "{refused:?}");
        let zone = format!("/cache?zone={}", name.replace('\0', "%00"));
        let zone = place.client.ask(Method::GET, &zone).send().await.unwrap();
        assert_eq!(fault(zone, 400).await.field.as_deref(), Some("zone"));
    }
    place.stop().await;
}
