//! Host images from the command line: merged, cached on real hosts with all their disks, and deleted.

use std::process::Output;

use hearth_tests::cluster::Cluster;
use hearth_tests::disk;
use serde_json::Value;

#[track_caller]
fn check(cluster: &Cluster, args: &[&str], code: i32) -> Output {
    let output = cluster.hearth(args).unwrap();
    assert_eq!(output.status.code(), Some(code), "hearth {args:?}: {}", text(&output));
    output
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(output)))
}

/// HI-1, HI-2, HI-3: the life of a host image: merge, prewarm, cache, protection, deletion.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_image_brings_all_its_disks_to_every_host() {
    let cluster = Cluster::start(2).await.unwrap();
    let mut images = Vec::new();
    for (name, seed) in [("erp-system", 91), ("erp-data", 92)] {
        let file = cluster.dir().join(format!("{name}.raw"));
        disk::ext4(&file, 32, 6, seed).unwrap();
        images.push((cluster.import(&file, name).await.unwrap(), file));
    }
    check(&cluster, &["host-image", "create", "erp", "erp-system"], 2);
    let twice = check(&cluster, &["host-image", "create", "erp", "erp-system", "erp-system"], 2);
    assert!(text(&twice).contains("images[1]"), "{}", text(&twice));
    let made =
        json(&check(&cluster, &["host-image", "create", "erp", "erp-system", "erp-data", "-o", "json"], 0));
    assert_eq!(
        (made["status"].as_str(), made["images"][1]["name"].as_str()),
        (Some("active"), Some("erp-data"))
    );

    let dry = ["prewarm", "create", "--host-image", "erp", "--all", "--dry-run", "-o", "json"];
    let plan = json(&check(&cluster, &dry, 0));
    let stored: u64 = images.iter().map(|(image, _)| image.stored_bytes.unwrap()).sum();
    assert_eq!((plan["cold"].as_u64(), plan["move_bytes_max"].as_u64()), (Some(2), Some(2 * stored)));
    // Half of it is there: the host still lacks the other disk.
    check(&cluster, &["prewarm", "create", "erp-system", "--to", "host-1", "--wait", "--quiet"], 0);
    let plan = json(&check(&cluster, &dry, 0));
    assert_eq!((plan["warm"].as_u64(), plan["cold"].as_u64()), (Some(0), Some(2)));
    assert_eq!(plan["move_bytes_max"].as_u64(), Some(2 * stored - images[0].0.stored_bytes.unwrap()));
    let rows = json(&check(&cluster, &["host-image", "cache", "erp", "-o", "json"], 0));
    assert_eq!(
        (rows["items"][0]["status"].as_str(), rows["items"][0]["active"].as_u64()),
        (Some("partial"), Some(1))
    );

    let waited = check(&cluster, &["prewarm", "create", "--host-image", "erp", "--all", "--wait"], 0);
    assert!(text(&waited).contains("erp is done: 2 of 2 active"), "{}", text(&waited));
    for index in 0..2 {
        for (image, file) in &images {
            disk::same(&cluster.cached_file(image, index).unwrap(), file).unwrap();
        }
    }
    let rows = json(&check(&cluster, &["host-image", "cache", "erp", "-o", "json"], 0));
    for row in rows["items"].as_array().unwrap() {
        assert_eq!(
            (row["status"].as_str(), row["active"].as_u64(), row["percent"].as_u64()),
            (Some("active"), Some(2), Some(100))
        );
    }
    let group = json(&check(&cluster, &["prewarm", "show", "erp", "-o", "json"], 0));
    assert_eq!((group["state"].as_str(), group["jobs"].as_array().unwrap().len()), (Some("done"), 2));
    let id = group["id"].as_str().unwrap();
    assert_eq!(json(&check(&cluster, &["prewarm", "show", id, "-o", "json"], 0))["id"], group["id"]);
    let over = check(&cluster, &["prewarm", "cancel", id], 4);
    assert!(text(&over).contains("is done"), "{}", text(&over));
    check(&cluster, &["cache", "add", "--host-image", "erp", "--to", "host-1,host-2", "--pin"], 0);
    let pinned = json(&check(&cluster, &["cache", "list", "-o", "json"], 0));
    assert!(pinned["items"].as_array().unwrap().iter().all(|row| row["pinned"] == true), "{pinned}");

    check(&cluster, &["host-image", "set", "erp", "--name", "erp-2", "--os-type", "linux"], 0);
    let member = check(&cluster, &["image", "delete", "erp-data", "--yes", "--force"], 4);
    assert!(text(&member).contains("erp-2"), "{}", text(&member));
    check(&cluster, &["host-image", "protect", "erp-2"], 0);
    let kept = check(&cluster, &["host-image", "delete", "erp-2", "--yes"], 7);
    assert!(text(&kept).contains("protected"), "{}", text(&kept));
    check(&cluster, &["host-image", "unprotect", "erp-2"], 0);
    check(&cluster, &["host-image", "delete", "erp-2", "--members", "--yes"], 0);
    check(&cluster, &["host-image", "show", "erp-2"], 3);
    check(&cluster, &["image", "show", "erp-data"], 3);
}

/// HI-3: a group that waits for a host is paused, resumed and cancelled as one.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_steered_as_one() {
    let mut cluster = Cluster::start(1).await.unwrap();
    for (name, seed) in [("system", 93), ("data", 94)] {
        let file = cluster.dir().join(format!("{name}.raw"));
        disk::ext4(&file, 32, 2, seed).unwrap();
        cluster.import(&file, name).await.unwrap();
    }
    check(&cluster, &["host-image", "create", "erp", "system", "data"], 0);
    cluster.kill_agent(0).unwrap();
    let made =
        json(&check(&cluster, &["prewarm", "create", "--host-image", "erp", "--all", "-o", "json"], 0));
    assert_eq!(
        (made["state"].as_str(), made["total"].as_u64(), made["active"].as_u64()),
        (Some("running"), Some(1), Some(0))
    );
    for (verb, state) in [("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")] {
        let group = json(&check(&cluster, &["prewarm", verb, "erp", "-o", "json"], 0));
        let states: Vec<_> =
            group["jobs"].as_array().unwrap().iter().map(|job| job["state"].clone()).collect();
        assert_eq!(
            (group["state"].as_str(), states),
            (Some(state), vec![state.into(), state.into()]),
            "{verb}"
        );
    }
    check(&cluster, &["prewarm", "resume", "erp"], 4);
    let listed = json(&check(&cluster, &["prewarm", "list", "-o", "json"], 0));
    assert_eq!(listed["items"][0]["host_image_name"], "erp");
}
