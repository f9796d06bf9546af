//! Who gets in: join tokens, bearer tokens, and what the operation log says of it.

use std::process::Command;

use hearth_protocol::api::location::{JoinTokenCreate, JoinTokenRecord};
use hearth_protocol::api::operation::{LogVerification, Operation};
use hearth_protocol::api::token::{TokenCreate, TokenRecord};
use hearth_protocol::words::{Role, ScopeKind};
use hearth_tests::api::refused;
use hearth_tests::cluster::{Cluster, WORK_WAIT_MAX};
use hearth_tests::{programs, wait};
use reqwest::Method;

/// Lets a new agent named `name` enrol; whether it could.
fn enrol(cluster: &Cluster, name: &str, token: &str) -> std::process::Output {
    let dir = cluster.dir().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let text = format!(
        "data_dir = {:?}\ncache_dir = {:?}\nsocket = {:?}\ngroup = \"\"\n[location]\nname = {name:?}\n",
        dir.join("state"),
        dir.join("cache"),
        dir.join("agent.sock")
    );
    std::fs::write(dir.join("agent.toml"), text).unwrap();
    let mut command = Command::new(&programs::get().agent);
    command.args(["enrol", "--config"]).arg(dir.join("agent.toml"));
    command.args(["--controller", &format!("127.0.0.1:{}", cluster.port()), "--token", token]);
    command.output().unwrap()
}

/// Proves PE-1.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_is_good_once_and_for_its_names_only() {
    let cluster = Cluster::start(0).await.unwrap();
    let body = JoinTokenCreate {
        uses: 1,
        ttl_s: 900,
        name_match: Some("cn-*".into()),
        presets: [("zone".to_owned(), "z9".to_owned())].into(),
    };
    let made: JoinTokenRecord = cluster.api.post("/join-tokens", &body).await.unwrap();
    let token = made.token.unwrap();
    let wrong_name = enrol(&cluster, "other", &token);
    assert!(!wrong_name.status.success(), "{wrong_name:?}");
    let first = enrol(&cluster, "cn-1", &token);
    assert!(first.status.success(), "{first:?}");
    let second = enrol(&cluster, "cn-2", &token);
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && said.contains("used up"), "{second:?}");
    // Somebody has a copy of the token: it stands in the log, with who tried and from where.
    let log: Vec<Operation> = cluster.api.list("/operations").await.unwrap();
    let reuse = log.iter().find(|row| row.action == "join_token.reuse").expect("the second use is shown");
    assert_eq!((reuse.target_name.as_str(), reuse.result.as_str()), ("cn-2", "failed"), "{reuse:?}");
    assert!(reuse.who.starts_with("127.0.0.1:"), "{reuse:?}");
    let ca = token.rsplit('_').next().unwrap();
    let forged = enrol(&cluster, "cn-3", &format!("hj1_{}_{ca}", "0".repeat(64)));
    assert!(!forged.status.success(), "{forged:?}");
    let locations: Vec<hearth_protocol::api::location::Location> =
        cluster.api.list("/locations").await.unwrap();
    assert_eq!(
        locations.iter().map(|l| (l.name.as_str(), l.zone.as_str())).collect::<Vec<_>>(),
        [("cn-1", "z9")]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_reads_and_a_revoked_token_does_nothing() {
    let cluster = Cluster::start(0).await.unwrap();
    let body = TokenCreate {
        name: "watcher".into(),
        role: Role::Reader,
        scope: ScopeKind::System,
        domain: None,
        project: None,
        ttl_s: Some(3600),
        user: None,
    };
    let made: TokenRecord = cluster.api.post("/tokens", &body).await.unwrap();
    let reader = cluster.api.with_token(&made.token.unwrap());
    let me: TokenRecord = reader.get("/whoami").await.unwrap();
    assert_eq!((me.name.as_str(), me.role), ("watcher", Role::Reader));
    let more = JoinTokenCreate { uses: 1, ttl_s: 900, name_match: None, presets: [].into() };
    assert_eq!(refused(reader.post::<JoinTokenRecord>("/join-tokens", &more).await).status, 403);
    cluster.api.act(Method::DELETE, &format!("/tokens/{}", made.id)).await.unwrap();
    assert_eq!(refused(reader.get::<TokenRecord>("/whoami").await).status, 401);
    let nobody = cluster.api.with_token(&format!("hrt_{}", "0".repeat(64)));
    assert_eq!(refused(nobody.get::<TokenRecord>("/whoami").await).status, 401);
}

/// Proves LG-1.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_names_what_was_done_and_verifies() {
    let cluster = Cluster::start(1).await.unwrap();
    let log = wait::for_some("the log is sealed", WORK_WAIT_MAX, async || {
        let log: LogVerification = cluster.api.get("/operations/verify").await?;
        Ok((log.unsealed == 0 && log.sealed > 0).then_some(log))
    })
    .await
    .unwrap();
    assert!(log.intact, "{log:?}");
    let rows: Vec<Operation> = cluster.api.list("/operations").await.unwrap();
    let enrolled = rows.iter().find(|row| row.target_kind == "location" && row.target_name == "host-1");
    let enrolled = enrolled.unwrap_or_else(|| panic!("no row about host-1 in {rows:#?}"));
    assert_eq!(enrolled.result, "ok");
}
