//! Users at the command line: made, given a role, logged in, and out at once when they are disabled.

use hearth_tests::cluster::Cluster;

use crate::typed::Person;

/// PE-1: from nothing to a user who works in a project, with names everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_works_in_a_project_until_it_is_disabled() {
    let cluster = Cluster::start(0).await.unwrap();
    let (admin, alice) = (Person::new(&cluster, "hearth"), Person::new(&cluster, "alice"));
    let admin = |args: &[&str], lines: &[&str], code: i32| admin.with_input(args, lines, code);
    let alice = |args: &[&str], lines: &[&str], code: i32| alice.with_input(args, lines, code);
    let password = "correct horse battery";
    admin(&["domain", "create", "sales"], &[], 0);
    admin(&["project", "create", "web", "--domain", "sales"], &[], 0);
    admin(&["project", "create", "web"], &[], 0);
    let told = admin(&["project", "show", "web"], &[], 2);
    assert!(told.contains("domain sales") && told.contains("domain default"), "{told}");
    admin(&["user", "create", "alice", "--domain", "sales", "--password-stdin"], &[password], 0);
    let grant = ["user", "grant", "alice", "--role", "member", "--project", "web", "--domain", "sales"];
    admin(&grant, &[], 0);
    admin(&grant, &[], 4);
    let enter = ["login", "--user", "alice", "--domain", "sales", "--project", "web", "--password-stdin"];
    let refused = alice(&enter, &["wrong horse battery"], 5);
    assert!(!refused.contains("wrong horse"), "{refused}");
    alice(&enter, &[password], 0);
    assert!(alice(&["project", "list"], &[], 0).contains("web"));
    alice(&["user", "list"], &[], 5);
    alice(&["token", "rotate"], &[], 0);
    alice(&["user", "password", "--password-stdin"], &[password, "another horse battery"], 0);
    alice(&["whoami"], &[], 0);
    admin(&["user", "disable", "alice"], &[], 0);
    alice(&["whoami"], &[], 5);
    admin(&["user", "enable", "alice"], &[], 0);
    alice(&enter, &["another horse battery"], 0);
    alice(&["logout"], &[], 0);
    alice(&["whoami"], &[], 2);
    let log = admin(&["log", "list"], &[], 0);
    assert!(log.contains("user.login") && !log.contains("horse"), "{log}");
    // The last administrator stays in.
    admin(&["logout"], &[], 4);
    admin(&["whoami"], &[], 0);
}
