//! Wrong certificates and copied keys, with real agents: each is refused, and an operator reads why.

use std::path::Path;

use hearth_protocol::api::operation::Operation;
use hearth_tests::cluster::{Cluster, START_WAIT_MAX};
use hearth_tests::{disk, wait};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A certificate for the agent's own key and with all its names, signed by a CA that somebody made at home.
fn made_at_home(agent: &Path, location: &str) -> String {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = Issuer::new(params, ca_key);
    let pem = std::fs::read_to_string(agent.join("state/identity/key.pem")).unwrap();
    let key = KeyPair::from_pem(&pem).unwrap();
    let names = vec!["agent.hearth.internal".to_owned(), location.to_owned()];
    let params = CertificateParams::new(names).unwrap();
    hex(params.signed_by(&key, &issuer).unwrap().der())
}

/// Starts the agent with another identity and waits until its log and its status say `expected`.
async fn refused(cluster: &mut Cluster, identity: &Value, expected: &str) {
    cluster.kill_agent(0).unwrap();
    cluster.set_identity(0, &identity.to_string()).unwrap();
    let begun = cluster.agent_log(0).len();
    cluster.start_agent(0).unwrap();
    wait::until(&format!("the agent says {expected:?}"), START_WAIT_MAX, async || {
        let said = cluster.agent_log_from(0, begun);
        Ok(said.contains(expected) && cluster.agent_status(0).await?.controller.contains(expected))
    })
    .await
    .unwrap_or_else(|error| panic!("{error}: {}", cluster.agent_log_from(0, begun)));
    let said = cluster.agent_log_from(0, begun);
    assert!(!said.contains("session is up"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_another_ca_are_refused_and_the_agent_says_why() {
    let mut cluster = Cluster::start(1).await.unwrap();
    let other = Cluster::start(1).await.unwrap();
    let own: Value = serde_json::from_str(&cluster.identity(0).unwrap()).unwrap();
    let foreign: Value = serde_json::from_str(&other.identity(0).unwrap()).unwrap();
    let at_home = made_at_home(&cluster.agent_dir(0), own["location"].as_str().unwrap());

    let mut self_made = own.clone();
    self_made["chain"][0] = at_home.into();
    refused(&mut cluster, &self_made, "does not accept our certificate").await;

    // An agent of another controller: it does not believe this one either.
    let mut stranger = own.clone();
    stranger["chain"] = foreign["chain"].clone();
    std::fs::copy(
        other.agent_dir(0).join("state/identity/key.pem"),
        cluster.agent_dir(0).join("state/identity/key.pem"),
    )
    .unwrap();
    refused(&mut cluster, &stranger, "is not the controller that our token or certificate is from").await;

    // The same, but it was told to believe this controller's CA.
    let mut believer = stranger;
    believer["chain"][1] = own["chain"][1].clone();
    refused(&mut cluster, &believer, "does not accept our certificate").await;
    let log = cluster.controller_log();
    assert_eq!(log.matches("session up").count(), 1, "only the real one had a session: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_identity_is_refused_and_shown() {
    let cluster = Cluster::start(1).await.unwrap();
    let file = cluster.dir().join("a.raw");
    disk::ext4(&file, 64, 4, 311).unwrap();
    let image = cluster.import(&file, "a").await.unwrap();
    let mut copy = cluster.start_copy_of_agent(0).unwrap();
    wait::until("the copy is refused", START_WAIT_MAX, async || {
        let log = std::fs::read_to_string(cluster.dir().join("host-1-copy.log"))?;
        Ok(log.contains("the same key is connected from 127.0.0.1") && log.contains("a key of its own"))
    })
    .await
    .unwrap();

    let run = |args: &[&str]| {
        let output = cluster.hearth(args).unwrap();
        assert!(output.status.success(), "hearth {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let shown: Value = serde_json::from_str(&run(&["location", "show", "host-1", "-o", "json"])).unwrap();
    let duplicate = &shown["location"]["duplicate"];
    assert!(duplicate["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{shown}");
    assert_eq!(shown["location"]["online"], true, "{shown}");
    let text = run(&["location", "show", "host-1"]);
    assert!(text.contains("the same key from 127.0.0.1:"), "{text}");
    let list = run(&["location", "list"]);
    assert!(list.lines().any(|line| line.contains("host-1") && line.contains("duplicate")), "{list}");
    let doctor = cluster.hearth(&["doctor"]).unwrap();
    let doctor = String::from_utf8(doctor.stdout).unwrap();
    assert!(doctor.contains("key is used in two places"), "{doctor}");
    let log: Vec<Operation> = cluster.api.list("/operations").await.unwrap();
    let row = log.iter().find(|row| row.action == "agent.duplicate").expect("it is in the log");
    assert_eq!((row.target_name.as_str(), row.result.as_str()), ("host-1", "failed"), "{row:?}");

    // The copy waits for an operator, the first agent did not notice.
    copy.check_alive().unwrap();
    cluster.warm_all(&image).await.unwrap();
    let log = cluster.agent_log(0);
    assert_eq!(log.matches("session is up").count(), 1, "{log}");
}
