//! Sharing from the command line: several images at once, projects by name.

use hearth_tests::cluster::Cluster;
use hearth_tests::disk;
use serde_json::Value;

use crate::typed::{check, json, text};

/// SH-3, SH-4, SH-5, SH-8: whom an image meets is named by name, and one answer tells of all images.
#[tokio::test(flavor = "multi_thread")]
async fn many_images_are_shared_by_name() {
    let cluster = Cluster::start(0).await.unwrap();
    check(&cluster, &["project", "create", "web"], 0);
    check(&cluster, &["project", "create", "db"], 0);
    for (name, seed) in [("noble", 81), ("jammy", 82)] {
        let raw = cluster.dir().join(format!("{name}.raw"));
        disk::ext4(&raw, 16, 1, seed).unwrap();
        check(&cluster, &["image", "import", raw.to_str().unwrap(), "--project", "db"], 0);
    }
    let path = cluster.dir().join("noble.raw");
    check(&cluster, &["image", "import", path.to_str().unwrap(), "--name", "x", "--project", "nowhere"], 3);

    let shared = text(&check(&cluster, &["image", "share", "noble", "jammy", "--with", "web"], 0));
    assert!(shared.contains("shared noble") && shared.contains("shared jammy"), "{shared}");
    assert!(shared.contains("hearth image accept"), "{shared}");
    check(&cluster, &["image", "share", "noble", "nothing", "--whole-domain"], 3);
    let shares = json(&check(&cluster, &["image", "shares", "noble", "-o", "json"], 0));
    assert_eq!(shares["items"].as_array().unwrap().len(), 1, "a wrong name stopped all: {shares}");
    check(&cluster, &["image", "accept", "noble", "jammy", "--project", "web"], 0);
    let shares = json(&check(&cluster, &["image", "shares", "jammy", "-o", "json"], 0));
    assert_eq!(
        (&shares["items"][0]["name"], &shares["items"][0]["status"]),
        (&"web".into(), &"accepted".into())
    );

    check(&cluster, &["image", "owner", "noble", "--project", "web"], 0);
    let both = check(&cluster, &["image", "share", "noble", "jammy", "--with", "web", "-o", "json"], 2);
    let results = json(&both);
    let oks: Vec<_> = results["items"].as_array().unwrap().iter().map(|one| one["ok"].clone()).collect();
    assert_eq!(oks, [Value::from(false), Value::from(true)], "who owns it needs no share: {results}");
    check(&cluster, &["image", "unshare", "noble", "jammy", "--all"], 0);
    check(&cluster, &["image", "feature", "noble", "jammy"], 0);
    check(&cluster, &["image", "unfeature", "noble", "jammy"], 0);
    // It is asked, and nobody is there to answer.
    assert!(text(&check(&cluster, &["image", "publish", "noble", "jammy"], 2)).contains("--yes"));
    check(&cluster, &["image", "publish", "noble", "jammy", "--yes"], 0);
    check(&cluster, &["image", "unpublish", "noble"], 0);
    let list = json(&check(&cluster, &["image", "list", "--visibility", "public", "-o", "json"], 0));
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    check(&cluster, &["image", "share", "noble"], 2);
}
