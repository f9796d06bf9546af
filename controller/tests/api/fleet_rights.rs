//! Whose locations are: what administrators of a domain see and do there, and what others do not.

use hearth_protocol::id::{ImageId, LocationId};
use hearth_protocol::words::Role;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::harness::{Client, Place, body, fault, noise};
use super::places;
use super::sharing::{Tenants, tenants};

const MISSING: &str = "01234567-89ab-7def-8123-456789abcdef";

/// Two domains with a location each and one of nobody, and a private image of the first domain's that is cached at all three.
struct Fleet {
    place: Place,
    tenants: Tenants,
    manager: Client,
    other_manager: Client,
    reader: Client,
    image: ImageId,
    ours: LocationId,
    theirs: LocationId,
    nobodys: LocationId,
}

async fn assign(place: &Place, location: LocationId, domain: Value) -> Value {
    let request = place.client.ask(Method::PATCH, &format!("/locations/{location}"));
    body(request.json(&json!({ "domain": domain })).send().await.unwrap()).await
}

async fn fleet() -> Fleet {
    let place = Place::new().await;
    let tenants = tenants(&place).await;
    let of = |domain| json!({ "scope": "domain", "domain": domain });
    let manager = place.client.delegate("manager", Role::Admin, of(tenants.domain)).await;
    let other_manager = place.client.delegate("other", Role::Admin, of(tenants.elsewhere)).await;
    let reader = place.client.delegate("reader", Role::Member, of(tenants.domain)).await;
    let image = tenants.owner.image(json!({ "name": "noble" })).await;
    assert_eq!(tenants.owner.put(image, noise(100_000)).await.status(), StatusCode::ACCEPTED);
    let content = tenants.owner.ended(image).await.content.unwrap();
    let db = place.controller.db();
    let mut made = Vec::new();
    for name in ["ours-1", "theirs-1", "nobodys-1"] {
        let location = places::location(db, name).await;
        places::cached(db, location, content).await;
        made.push(location);
    }
    assert_eq!(assign(&place, made[0], json!(tenants.domain)).await["domain"], json!(tenants.domain));
    assign(&place, made[1], json!(tenants.elsewhere)).await;
    let (ours, theirs, nobodys) = (made[0], made[1], made[2]);
    Fleet { place, tenants, manager, other_manager, reader, image, ours, theirs, nobodys }
}

fn texts(page: &Value, field: &str) -> Vec<String> {
    page["items"].as_array().unwrap().iter().map(|row| row[field].as_str().unwrap().to_owned()).collect()
}

/// CA-0: lists, counts and details of a domain's administrator end where the domain does.
#[tokio::test(flavor = "multi_thread")]
async fn a_domain_sees_its_own_locations_and_copies() {
    let f = fleet().await;
    let all = ["nobodys-1", "ours-1", "theirs-1"];
    assert_eq!(texts(&f.place.client.get("/locations").await, "name"), all);
    assert_eq!(texts(&f.manager.get("/locations").await, "name"), ["ours-1"]);
    assert_eq!(texts(&f.manager.get("/locations?name=theirs-1").await, "name"), Vec::<String>::new());
    assert_eq!(texts(&f.manager.get("/locations?select=name%3D*").await, "name"), ["ours-1"]);
    assert_eq!(texts(&f.place.client.get("/cache").await, "location_name"), all);
    let (image, ours) = (f.image, f.ours);
    for path in ["/cache".to_owned(), format!("/images/{image}/cache"), format!("/cache?image={image}")] {
        assert_eq!(texts(&f.manager.get(&path).await, "location_name"), ["ours-1"], "{path}");
    }
    assert_eq!(f.manager.get(&format!("/locations/{ours}/cache")).await["entries"][0]["image_name"], "noble");
    assert_eq!(f.manager.get(&format!("/images/{image}")).await["cached_at"], 1);
    assert_eq!(f.place.client.get(&format!("/images/{image}")).await["cached_at"], 3);

    // The image is not the other domain's: its administrators do not learn of it from the copy on their host.
    assert_eq!(texts(&f.other_manager.get("/locations").await, "name"), ["theirs-1"]);
    assert_eq!(f.other_manager.get("/cache").await["items"], json!([]));
    let theirs = f.other_manager.get(&format!("/locations/{}/cache", f.theirs)).await;
    assert_eq!(theirs["entries"], json!([]));
    fault(f.other_manager.ask(Method::GET, &format!("/images/{image}/cache")).send().await.unwrap(), 404)
        .await;

    // Who administers nothing sees the mark of what was brought there for an image, and no place.
    let mark = async |who: &Client, at: &str| {
        who.get(&format!("/images?at={at}")).await["items"][0]["cached"].clone()
    };
    assert_eq!(mark(&f.tenants.owner, "ours-1").await, json!(false), "nobody said for which image it is");
    assert_eq!(mark(&f.manager, "ours-1").await, json!(true), "a copy at the domain's own location");
    for at in ["ours-1", "nobodys-1"] {
        f.tenants.owner.post(&format!("/images/{image}/launch"), json!({ "location": at })).await;
    }
    for who in [&f.reader, &f.tenants.owner] {
        for path in ["/locations", "/cache", "/prewarms"] {
            fault(who.ask(Method::GET, path).send().await.unwrap(), 403).await;
        }
        assert!(who.get(&format!("/images/{image}")).await.get("cached_at").is_none());
        assert_eq!((mark(who, "ours-1").await, mark(who, "nobodys-1").await), (json!(true), json!(true)));
        assert_eq!((mark(who, "theirs-1").await, mark(who, "nowhere").await), (json!(false), json!(false)));
    }
    f.place.stop().await;
}

/// CA-0: what lies in another domain, or in none, answers to a domain's administrator like what does not exist.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_domains_looks_like_nothing() {
    let f = fleet().await;
    let image = f.image;
    for location in [f.theirs, f.nobodys] {
        let calls = [
            (Method::GET, format!("/locations/{location}")),
            (Method::PATCH, format!("/locations/{location}")),
            (Method::POST, format!("/locations/{location}/drain")),
            (Method::POST, format!("/locations/{location}/undrain")),
            (Method::GET, format!("/locations/{location}/cache")),
            (Method::DELETE, format!("/cache/{image}/{location}")),
            (Method::DELETE, format!("/cache/{image}/{location}?force=true")),
            (Method::POST, format!("/cache/{image}/{location}/pin")),
            (Method::POST, format!("/cache/{image}/{location}/unpin")),
        ];
        for (method, path) in calls {
            let ask = |path: &str| f.manager.ask(method.clone(), path).json(&json!({})).send();
            let hidden = fault(ask(&path).await.unwrap(), 404).await;
            let none = fault(ask(&path.replace(&location.to_string(), MISSING)).await.unwrap(), 404).await;
            assert_eq!(
                hidden.message.replace(&location.to_string(), MISSING),
                none.message,
                "{method} {path}"
            );
            assert_eq!((hidden.code, hidden.hint), (none.code, none.hint), "{method} {path}");
        }
        for path in ["/cache", "/prewarms"] {
            let ask = |to: String| {
                f.manager
                    .ask(Method::POST, path)
                    .json(&json!({ "image": image, "targets": { "to": [to] } }))
                    .send()
            };
            let hidden = fault(ask(location.to_string()).await.unwrap(), 404).await;
            let none = fault(ask(MISSING.to_owned()).await.unwrap(), 404).await;
            assert_eq!(hidden.message.replace(&location.to_string(), MISSING), none.message, "{path}");
        }
    }
    // Machines of others are not put on a domain's hosts.
    let launch = |who: &Client, at: &str| {
        who.ask(Method::POST, &format!("/images/{image}/launch")).json(&json!({ "location": at })).send()
    };
    let hidden = fault(launch(&f.tenants.owner, "theirs-1").await.unwrap(), 404).await;
    assert_eq!(hidden.message, "no location theirs-1");
    assert_eq!(launch(&f.tenants.owner, "ours-1").await.unwrap().status(), StatusCode::OK);
    // Whose a location is, and whether it is part of the fleet, says the system alone.
    let update = f.manager.ask(Method::PATCH, &format!("/locations/{}", f.ours));
    let theirs = json!({ "domain": f.tenants.elsewhere });
    assert_eq!(fault(update.json(&theirs).send().await.unwrap(), 403).await.code, "denied");
    fault(f.manager.ask(Method::DELETE, &format!("/locations/{}", f.ours)).send().await.unwrap(), 403).await;
    fault(f.manager.ask(Method::POST, "/join-tokens").json(&json!({})).send().await.unwrap(), 403).await;
    let nowhere = f.place.client.ask(Method::PATCH, &format!("/locations/{}", f.ours));
    fault(nowhere.json(&json!({ "domain": MISSING })).send().await.unwrap(), 404).await;
    f.place.stop().await;
}

/// CA-0: on its own locations an administrator of a domain pins, evicts, prewarms and drains; "all" is all of the domain's.
#[tokio::test(flavor = "multi_thread")]
async fn a_domain_manages_its_own_locations_and_copies() {
    let f = fleet().await;
    let (image, ours) = (f.image, f.ours);
    let pinned = f.manager.post(&format!("/cache/{image}/{ours}/pin"), json!({})).await;
    assert_eq!(pinned["pinned"], true);
    f.manager.post(&format!("/cache/{image}/{ours}/unpin"), json!({})).await;
    let made = f.manager.post("/cache", json!({ "image": image, "targets": { "all": true } })).await;
    assert_eq!(made.as_array().unwrap().len(), 1, "{made}");
    let dry = json!({ "image": image, "targets": { "all": true }, "dry_run": true });
    let dry = f.manager.post("/prewarms", dry).await;
    assert_eq!((&dry["warm"], &dry["cold"]), (&json!(1), &json!(0)));
    let job = f.manager.post("/prewarms", json!({ "image": image, "targets": { "all": true } })).await;
    assert_eq!(job["total"], 1, "{job}");
    let whole = f.place.client.post("/prewarms", json!({ "image": image, "targets": { "all": true } })).await;
    assert_eq!(whole["total"], 3, "{whole}");
    let (job, whole) = (job["id"].as_str().unwrap(), whole["id"].as_str().unwrap());
    assert_eq!(
        texts(&f.manager.get("/prewarms").await, "id"),
        [job],
        "a job that goes further is not the domain's"
    );
    assert_eq!(texts(&f.other_manager.get("/prewarms").await, "id"), Vec::<String>::new());
    assert_eq!(f.manager.get(&format!("/prewarms/{job}")).await["locations"][0]["location_name"], "ours-1");
    for who in [&f.manager, &f.other_manager] {
        for tail in ["/pause", "/cancel", "/retry"] {
            fault(who.ask(Method::POST, &format!("/prewarms/{whole}{tail}")).send().await.unwrap(), 404)
                .await;
        }
        fault(who.ask(Method::GET, &format!("/prewarms/{whole}")).send().await.unwrap(), 404).await;
    }
    assert_eq!(f.manager.post(&format!("/prewarms/{job}/cancel"), json!({})).await["state"], "cancelled");
    let drained = f.manager.post(&format!("/locations/{ours}/drain"), json!({})).await;
    assert_eq!(drained["state"], "draining");
    let gone =
        f.manager.ask(Method::DELETE, &format!("/cache/{image}/{ours}?force=true")).send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);

    // A location that changes hands takes its jobs along.
    assign(&f.place, ours, json!(null)).await;
    assert_eq!(f.manager.get("/locations").await["items"], json!([]));
    assert_eq!(f.manager.get("/prewarms").await["items"], json!([]));
    let log = f.place.client.get(&format!("/locations/{ours}/operations?action=location.update")).await;
    let change = &log["items"][0]["details"];
    assert_eq!(
        (&change["before"]["domain"], &change["after"]["domain"]),
        (&json!(f.tenants.domain), &json!(null))
    );
    f.place.stop().await;
}

/// CA-0, PE-1: the locations of a deleted domain are the system's again.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_domain_leaves_its_locations_to_the_system() {
    let place = Place::new().await;
    let made = place.client.post("/domains", json!({ "name": "short" })).await;
    let location = places::location(place.controller.db(), "host-1").await;
    assign(&place, location, made["id"].clone()).await;
    let gone = format!("/domains/{}", made["id"].as_str().unwrap());
    let gone = place.client.ask(Method::DELETE, &gone).send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    assert!(place.client.get(&format!("/locations/{location}")).await.get("domain").is_none());
    place.stop().await;
}
