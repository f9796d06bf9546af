//! The OpenAPI text against the running controller, by a program that does not know us.
//!
//! **What.** schemathesis reads the text, makes thousands of calls from it (right ones, wrong ones, at the edges) and
//! compares every answer with what the text promises: status, headers, body.
//!
//! **Why some checks are left out.** `positive_data_acceptance` holds every 400 against us whose rule JSON Schema cannot
//! say (a cursor that no list gave, a date, a selector). `missing_required_header` does not know 428, which is what an edit
//! without `If-Match` gets.

use std::fmt::Write as _;
use std::process::Command;

use hearth_protocol::api::location::{JoinTokenCreate, JoinTokenRecord};
use hearth_protocol::api::system::SystemInfo;
use hearth_tests::cluster::{Cluster, Extra};
use hearth_tests::{disk, programs};
use serde_json::{Value, json};

/// Calls with made-up data per operation and phase; with the fixed ones of the coverage phase about 2,500 in all.
const EXAMPLES: u32 = 40;
/// Operations that end what the test stands on, or never end.
const LEFT_OUT: &str = r"^/api/v1/(events|logout|login|openapi.json|tokens/\{id\})$|/rotate$";

fn small_qcow2(cluster: &Cluster) -> std::path::PathBuf {
    let (raw, file) = (cluster.dir().join("api.raw"), cluster.dir().join("api.qcow2"));
    disk::ext4(&raw, 16, 2, 1).unwrap();
    disk::convert(&raw, &file, "qcow2", &[]).unwrap();
    file
}

/// The id of a thing that is made at `path`.
async fn made(cluster: &Cluster, path: &str, asked: &Value) -> String {
    let made: Value = cluster.api.post(path, asked).await.unwrap();
    made["id"].as_str().unwrap().to_owned()
}

/// Proves API-1: no 5xx, no undocumented status, header or body, on any route.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_openapi_text_says_is_what_the_server_does() {
    // The program makes as many calls as it can.
    let extra = Extra { controller: "api_requests_per_second = 0\n".to_owned(), ..Extra::default() };
    let cluster = Cluster::start_with(1, extra).await.unwrap();
    let file = small_qcow2(&cluster);
    let image = cluster.import(&file, "api").await.unwrap();
    let locations: Vec<hearth_protocol::api::location::Location> =
        cluster.api.list("/locations").await.unwrap();
    let join = JoinTokenCreate { uses: 1, ttl_s: 900, name_match: None, presets: [].into() };
    let join: JoinTokenRecord = cluster.api.post("/join-tokens", &join).await.unwrap();
    let before: SystemInfo = cluster.api.get("/system").await.unwrap();
    let second = cluster.import(&file, "api-data").await.unwrap();
    let disks = json!({ "name": "api-host", "images": [image.id, second.id] });
    let host_image = made(&cluster, "/host-images", &disks).await;
    let group = json!({ "host_image": host_image, "targets": { "all": true } });
    // Ids of what is there: without them nearly every call would end at 404.
    let ids = [
        ("images/\\{id\\}", image.id.to_string()),
        ("locations/", locations[0].id.to_string()),
        ("join-tokens/", join.id.to_string()),
        ("domains/", made(&cluster, "/domains", &json!({ "name": "api" })).await),
        ("projects/", made(&cluster, "/projects", &json!({ "name": "api" })).await),
        ("users/", made(&cluster, "/users", &json!({ "name": "api" })).await),
        ("prewarm-groups/", made(&cluster, "/prewarms", &group).await),
        (
            "prewarms/",
            made(&cluster, "/prewarms", &json!({ "image": image.id, "targets": { "all": true } })).await,
        ),
        ("host-images/", host_image),
    ];
    let mut config = String::new();
    for (path, id) in ids {
        writeln!(
            config,
            "[[operations]]\ninclude-path-regex = '^/api/v1/{path}'\nparameters = {{ 'path.id' = '{id}' }}"
        )
        .unwrap();
    }
    writeln!(
        config,
        "[[operations]]\ninclude-path-regex = '^/api/v1/cache/'\n\
         parameters = {{ 'path.image' = '{}', 'path.location' = '{}' }}",
        image.id, locations[0].id
    )
    .unwrap();
    std::fs::write(cluster.dir().join("schemathesis.toml"), config).unwrap();
    let mut command = Command::new(programs::python_tool("schemathesis"));
    command.current_dir(cluster.dir()).args(["--config-file", "schemathesis.toml", "--no-color", "run"]);
    command.arg(format!("https://127.0.0.1:{}/api/v1/openapi.json", cluster.port()));
    command.arg("--tls-verify").arg(cluster.state_dir().join("ca/ca.crt"));
    command.arg("--header").arg(format!("Authorization: Bearer {}", cluster.api.token()));
    command.args(["--phases", "examples,coverage,fuzzing", "--max-examples", &EXAMPLES.to_string()]);
    command.args([
        "--exclude-checks",
        "positive_data_acceptance,missing_required_header",
        "--exclude-path-regex",
        LEFT_OUT,
    ]);
    command.args(["--generation-deterministic", "--continue-on-failure", "--request-timeout", "60"]);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    let output = output.expect("schemathesis is installed (scripts/prerequisites test)");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let made = text.lines().find(|line| line.contains(" generated, ")).unwrap_or_default();
    println!("schemathesis: {}", made.trim());
    let calls: u32 =
        made.split_whitespace().find_map(|word| word.replace(',', "").parse().ok()).unwrap_or_default();
    assert!(calls > 1000, "{text}");
    let after: SystemInfo = cluster.api.get("/system").await.unwrap();
    assert_eq!(before.build, after.build, "it still runs");
}

/// The text itself: every operation has a name of its own, says how it refuses, and promises no failure.
#[tokio::test(flavor = "multi_thread")]
async fn the_openapi_text_is_complete() {
    let cluster = Cluster::start(0).await.unwrap();
    let text: Value = cluster.api.get("/openapi.json").await.unwrap();
    let mut names = std::collections::BTreeSet::new();
    for (path, item) in text["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap_or_default();
            assert!(names.insert(name.to_owned()), "{method} {path}: {name:?} is taken");
            assert!(operation["summary"].is_string(), "{method} {path} says nothing");
            for status in operation["responses"].as_object().unwrap().keys() {
                assert!(status.parse::<u16>().is_ok_and(|status| status < 500), "{method} {path}: {status}");
            }
        }
    }
    assert!(names.len() > 40, "{names:?}");
}
