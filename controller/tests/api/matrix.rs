//! The matrix of rights: every route, every role, every place, every state of a token, every way an image is seen.
//!
//! **What.** A controller with two domains, and thousands of calls, judged by [`table`], which knows nothing of the code.
//! A route or action that the table does not know fails the test.
//! **How to extend.** A new action: one line in `table.rs`. A route that needs a body to get past its decoder: one line
//! in [`body`]. A path with an id of a new kind of thing that belongs to a project or domain: one line in [`target`].

use std::collections::BTreeSet;

use futures::StreamExt as _;
use hearth_controller::api::routes::Row;
use hearth_controller::clock;
use hearth_controller::logic::authz::Action;
use hearth_protocol::words::Role;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use table::{Expect, From, Of, Seen, line};
use world::{MISSING, Persona, State, World};

mod table;
mod world;

/// Calls at once; fewer than the uploads that the controller takes at once, or it rightly says "not now".
const PARALLEL: usize = 12;
/// The least number of cases; fewer means that something was left out.
const CASES_MIN: usize = 3000;

/// The body of a call, if its decoder asks for more than `{}`.
fn body(world: &World, row: &Row) -> Value {
    let (project, domain, name) = (world.project, world.domain, world.name());
    match (row.method.as_str(), row.path.as_str()) {
        ("POST", "/api/v1/tokens") => {
            json!({ "name": name, "role": "reader", "scope": "project", "project": project })
        }
        ("POST", "/api/v1/grants") => {
            json!({ "user": world.user, "role": "reader", "scope": "project", "project": project })
        }
        ("POST", "/api/v1/images") => json!({ "name": name, "project": project }),
        ("POST", "/api/v1/domains") => json!({ "name": name }),
        ("POST", "/api/v1/projects" | "/api/v1/users") => json!({ "name": name, "domain": domain }),
        ("PUT", "/api/v1/users/{id}/password") => json!({ "password": "long enough for all" }),
        ("POST", "/api/v1/password") => json!({ "old": "not the old one", "new": "long enough for all" }),
        ("POST", "/api/v1/images/{id}/launch") => json!({ "location": "nowhere" }),
        ("POST", "/api/v1/images/{id}/variants") => json!({ "format": "vmdk" }),
        ("POST", "/api/v1/images/{id}/owner") => json!({ "project": project }),
        _ => json!({}),
    }
}

/// The id of an existing thing for a path, by the noun before its parameter; `None`: the world has no such thing.
async fn target(world: &World, row: &Row, seen: Seen, fresh: bool) -> Option<String> {
    let noun = row.path.split('/').skip_while(|part| *part != "v1").nth(1).unwrap_or_default();
    let ends = fresh && (row.method == "DELETE" || row.path.ends_with("/rotate"));
    Some(match noun {
        "images" => world.image(seen).to_string(),
        "domains" => world.domain.to_string(),
        "projects" => world.project.to_string(),
        "users" if ends => world.fresh_user().await.user.to_string(),
        "users" => world.user.to_string(),
        "grants" if ends => world.fresh_user().await.grant.to_string(),
        "grants" => world.grant.to_string(),
        "tokens" if ends => world.fresh_token().await.to_string(),
        "tokens" => world.token.to_string(),
        _ => return None,
    })
}

/// A call of the route for `id`, without a token.
fn call(world: &World, row: &Row, id: &str, sent: &Value) -> RequestBuilder {
    let path = row.path.split('/').map(|part| match part {
        "{format}" => "qcow2",
        part if part.starts_with('{') => id,
        part => part,
    });
    let path = path.collect::<Vec<_>>().join("/");
    let method: Method = row.method.parse().unwrap();
    let request =
        world.place.client.http.request(method.clone(), format!("{}{path}", world.place.client.base));
    // A revision that nothing has: what may be deleted or changed is still there for the next caller.
    let request = request.header("if-match", "999999");
    if row.path.ends_with("/file") && method == Method::PUT {
        return request.body("x");
    }
    if [Method::POST, Method::PATCH, Method::PUT].contains(&method) { request.json(sent) } else { request }
}

/// What an answer says, without what differs from call to call.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Said {
    status: StatusCode,
    headers: BTreeSet<String>,
    text: String,
}

async fn said(request: RequestBuilder) -> Said {
    let answer = request.send().await.unwrap();
    let status = answer.status();
    let request_id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let kept = |name: &str| !["x-request-id", "date"].contains(&name);
    let headers = answer.headers().iter().filter(|(name, _)| kept(name.as_str()));
    let headers: BTreeSet<String> =
        headers.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or_default())).collect();
    let endless = headers.contains("content-type: text/event-stream");
    let text = if endless {
        String::new()
    } else {
        String::from_utf8_lossy(&answer.bytes().await.unwrap()).into_owned()
    };
    // The id of a request has always the same length.
    Said { status, headers, text: text.replace(&request_id, "-") }
}

/// One case of a good token: the call, what must come, and nothing that may not be seen.
async fn judge_good(world: &World, row: &Row, persona: &Persona, seen: Seen) -> usize {
    let action = row.action.expect("the route is guarded").as_str();
    let (least, of) = line(action).unwrap();
    let expected = table::expect((least, of), persona.role, persona.from, seen);
    if expected == Expect::Allow && table::CHANGES.contains(&action) {
        return 0;
    }
    let case =
        format!("{:?} {:?} {} {} ({action}) {seen:?}", persona.role, persona.from, row.method, row.path);
    let leaving = if action == "token.logout" { Some(world.again(persona).await) } else { None };
    let persona = leaving.as_ref().unwrap_or(persona);
    let has_target = row.path.contains('{');
    let found = if has_target { target(world, row, seen, expected == Expect::Allow).await } else { None };
    assert!(!has_target || found.is_some() || matches!(of, Of::System | Of::Own), "{case}: no target");
    let id = found.unwrap_or_else(|| MISSING.to_owned());
    let sent = body(world, row);
    let said_here = said(call(world, row, &id, &sent).bearer_auth(&persona.token)).await;
    let (status, text) = (said_here.status, &said_here.text);
    assert_ne!(status, StatusCode::UNAUTHORIZED, "{case}: {text}");
    assert!(!status.is_server_error(), "{case}: {status} {text}");
    match expected {
        Expect::Allow => {
            assert_ne!(status, StatusCode::FORBIDDEN, "{case}: {text}");
            // Something beside it may be missing, but not what is asked for.
            let beside = ["{format}", "{link}", "{kind}"].iter().any(|part| row.path.contains(part));
            let gone = status == StatusCode::NOT_FOUND && id != MISSING && text.contains(&id) && !beside;
            assert!(!gone, "{case}: {text}");
        }
        Expect::Deny => {
            assert_eq!(status, StatusCode::FORBIDDEN, "{case}: {text}");
            assert!(text.contains("\"denied\""), "{case}: {text}");
        }
        Expect::Hide => {
            assert_eq!(status, StatusCode::NOT_FOUND, "{case}: {text}");
            let nothing = no_such_thing(world, row, persona, &sent).await;
            let same = Said { text: hidden(world, text, &id), ..said_here.clone() };
            assert_eq!(same, nothing, "{case}: what may not be seen answers like what does not exist");
        }
    }
    if status.is_success() {
        must_not_tell(world, persona, text, &case);
    }
    1
}

/// The answer for ids of which nothing exists.
async fn no_such_thing(world: &World, row: &Row, persona: &Persona, sent: &Value) -> Said {
    let sent: Value = serde_json::from_str(&hidden(world, &sent.to_string(), MISSING)).unwrap();
    said(call(world, row, MISSING, &sent).bearer_auth(&persona.token)).await
}

/// A text with the ids of the home project's things replaced.
fn hidden(world: &World, text: &str, id: &str) -> String {
    let ids = [world.project.to_string(), world.domain.to_string(), world.user.to_string(), id.to_owned()];
    ids.iter().fold(text.to_owned(), |text, id| text.replace(id.as_str(), MISSING))
}

/// No answer holds the id of something that the caller may not see.
fn must_not_tell(world: &World, persona: &Persona, text: &str, case: &str) {
    for seen in Seen::ALL {
        let tells = text.contains(&world.image(seen).to_string());
        assert!(!tells || seen.by(persona.from), "{case} tells of an image: {text}");
    }
    let of_home = [world.user.to_string(), world.grant.to_string(), world.token.to_string()];
    let tells = of_home.iter().any(|id| text.contains(id));
    assert!(!tells || persona.from.owns(), "{case} tells of the home project: {text}");
}

/// One case of a token that is none.
async fn judge_dead(world: &World, row: &Row, token: &str, case: &str, refused: &Said) -> usize {
    let sent = body(world, row);
    let id = target(world, row, Seen::Public, false).await.unwrap_or_else(|| MISSING.to_owned());
    let said_here = said(call(world, row, &id, &sent).bearer_auth(token)).await;
    assert_eq!(&said_here, refused, "{case} {row:?}");
    1
}

async fn run<F: Future<Output = usize>>(cases: impl Iterator<Item = F>) -> usize {
    futures::stream::iter(cases).buffer_unordered(PARALLEL).fold(0, async |sum, one| sum + one).await
}

/// SH-7, API-1, PE-1: the rights of every role at every place over every route.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_keeps_to_the_table() {
    let begun = clock::monotonic();
    let world = World::new().await;
    let rows: Vec<Row> = world.place.controller.routes().to_vec();
    let unknown: Vec<&str> = Action::ALL.iter().map(|a| a.as_str()).filter(|a| line(a).is_none()).collect();
    assert!(unknown.is_empty(), "actions without a line in table.rs: {unknown:?}");
    let open: Vec<&Row> = rows.iter().filter(|row| row.action.is_none()).collect();
    for row in &open {
        assert!(table::OPEN.contains(&row.path.as_str()), "{row:?} is open and not in table.rs");
    }
    let guarded: Vec<&Row> = rows.iter().filter(|row| row.action.is_some()).collect();
    let mut personas = Vec::new();
    for from in From::ALL {
        for role in Role::ALL {
            personas.push(world.persona(*role, from).await);
        }
    }
    let mut good = Vec::new();
    for row in guarded.iter().filter(|row| !table::has_tests_of_its_own(row.action.unwrap().as_str())) {
        let of = line(row.action.unwrap().as_str()).unwrap().1;
        let ways = if matches!(of, Of::Image | Of::ImageLook) { &Seen::ALL[..] } else { &[Seen::Private] };
        for persona in &personas {
            good.extend(ways.iter().map(|seen| (*row, persona, *seen)));
        }
    }
    let mut cases = run(good.into_iter().map(|(row, who, seen)| judge_good(&world, row, who, seen))).await;
    let refused = said(call(&world, guarded[0], MISSING, &json!({}))).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{refused:?}");
    let mut dead = Vec::new();
    for state in State::ALL {
        for from in From::ALL {
            for role in Role::ALL {
                if let Some(token) = world.dead(*role, from, state).await {
                    dead.push((token, format!("{state:?} {role:?} {from:?}")));
                }
            }
        }
    }
    dead.push((format!("hrt_{}", "0".repeat(64)), "garbage".to_owned()));
    dead.push(("hrt_' OR 1=1 --".to_owned(), "garbage".to_owned()));
    let (world, refused) = (&world, &refused);
    let all = dead.iter().flat_map(|(token, case)| guarded.iter().map(move |row| (*row, token, case)));
    cases += run(all.map(|(row, token, case)| judge_dead(world, row, token, case, refused))).await;
    cases += run(guarded.iter().map(|row| judge_nobody(world, row, refused))).await;
    println!("{cases} cases of {} routes in {:?}", rows.len(), begun.elapsed());
    assert!(cases >= CASES_MIN, "{cases}");
}

/// Nobody is let in by a header that says who calls.
async fn judge_nobody(world: &World, row: &Row, refused: &Said) -> usize {
    let request = || call(world, row, MISSING, &body(world, row));
    let forged = ["x-roles", "x-is-admin-project", "x-project-id", "x-forwarded-user", "x-auth-token"];
    let forged = forged.iter().fold(request(), |request, name| request.header(*name, "admin"));
    let basic = request().header("authorization", "Basic YWRtaW46YWRtaW4=");
    let nothing = request().header("authorization", "Bearer ");
    let mut cases = 0;
    for request in [request(), forged, basic, nothing] {
        assert_eq!(&said(request).await, refused, "{row:?}");
        cases += 1;
    }
    cases
}
