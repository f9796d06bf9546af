//! A backup that was made under load, restored on another machine.

use hearth_protocol::api::cache::{CacheEntry, Keep, Targets};
use hearth_protocol::api::image::{Image, ImageCreate};
use hearth_protocol::api::location::Location;
use hearth_protocol::api::operation::LogVerification;
use hearth_protocol::words::{EntryStatus, ImageStatus};
use hearth_tests::cluster::{Cluster, WORK_WAIT_MAX, agent_name};
use hearth_tests::{api, disk, wait};
use reqwest::Method;

/// Puts an image on the first host.
async fn warm_first(cluster: &Cluster, image: &Image) {
    let to_first = Targets { to: vec![agent_name(0)], ..Targets::default() };
    let job = cluster.prewarm(image.id, to_first, Keep::default()).await.unwrap();
    cluster.prewarm_ended(&job).await.unwrap();
    cluster.wait_entry(image.id, 0, EntryStatus::Active).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_a_running_import_brings_the_controller_back_elsewhere() {
    let mut cluster = Cluster::start(2).await.unwrap();
    let (first, second) = (cluster.dir().join("a.raw"), cluster.dir().join("late.raw"));
    disk::ext4(&first, 64, 24, 81).unwrap();
    disk::ext4(&second, 64, 16, 91).unwrap();
    let image = cluster.import(&first, "a").await.unwrap();
    warm_first(&cluster, &image).await;
    // An upload that goes on until it is told to end.
    let sent: Image = cluster
        .api
        .post("/images", &ImageCreate { name: "slow".into(), ..ImageCreate::default() })
        .await
        .unwrap();
    let (more, parts) = tokio::sync::mpsc::channel::<std::io::Result<Vec<u8>>>(1);
    let stream = futures::stream::unfold(parts, async |mut parts| Some((parts.recv().await?, parts)));
    let body = reqwest::Body::wrap_stream(stream);
    let request = cluster.api.request(Method::PUT, &format!("/images/{}/file", sent.id)).body(body);
    let sending = async move { api::checked(request.send().await?).await };
    let upload = hearth_controller::task::spawn("test-upload", sending);
    more.send(Ok(disk::file(4))).await.unwrap();
    wait::until("the upload runs", WORK_WAIT_MAX, async || {
        let image: Image = cluster.api.get(&format!("/images/{}", sent.id)).await?;
        Ok(image.status == ImageStatus::Saving)
    })
    .await
    .unwrap();
    let saved = cluster.dir().join("saved");
    let said = cluster.administer(&["backup", saved.to_str().unwrap()]).unwrap();
    assert!(said.contains("1 contents and 1 originals") && !said.contains("MISSING"), "{said}");
    more.send(Ok(disk::file(6))).await.unwrap();
    drop(more);
    upload.await.unwrap().unwrap();
    // The backup does not know this one.
    let late = cluster.import(&second, "late").await.unwrap();
    warm_first(&cluster, &late).await;
    let before = std::fs::metadata(cluster.cached_file(&image, 0).unwrap()).unwrap().modified().unwrap();

    cluster.kill_controller().unwrap();
    let elsewhere = cluster.dir().join("elsewhere");
    cluster.move_controller(&elsewhere).unwrap();
    let said = cluster.administer(&["restore", saved.to_str().unwrap()]).unwrap();
    assert!(said.contains("0 problems"), "{said}");
    let said = cluster.administer(&["fsck", "--deep"]).unwrap();
    assert!(said.contains("0 problems"), "{said}");
    cluster.start_controller().await.unwrap();
    cluster.wait_online(2).await.unwrap();
    let slow: Image = cluster.api.get(&format!("/images/{}", sent.id)).await.unwrap();
    assert_eq!(slow.status, ImageStatus::Queued, "half an upload is no image: {}", slow.reason);
    // Agents keep their copies; a restored image goes to a host that has it not.
    cluster.wait_entry(image.id, 0, EntryStatus::Active).await.unwrap();
    cluster.warm_all(&image).await.unwrap();
    let listed: Vec<Image> = cluster.api.list("/images?q=a").await.unwrap();
    assert_eq!(listed.iter().map(|image| image.cached_at).collect::<Vec<_>>(), [Some(2)]);
    disk::same(&cluster.cached_file(&image, 1).unwrap(), &first).unwrap();
    let after = std::fs::metadata(cluster.cached_file(&image, 0).unwrap()).unwrap().modified().unwrap();
    assert_eq!(before, after, "the copy was written again");
    assert_nothing_is_wrong(&cluster, &image, &late).await;
    disk::same(&cluster.cached_file(&late, 0).unwrap(), &second).unwrap();
    // Imported again it has a name again, and no byte moves.
    let again = cluster.import(&second, "late").await.unwrap();
    assert_eq!(again.content, late.content);
    let entry = cluster.wait_entry(again.id, 0, EntryStatus::Active).await.unwrap();
    assert!(entry.origins.is_empty() && !entry.pinned, "nobody asked for it: {entry:?}");
    let log: LogVerification = cluster.api.get("/operations/verify").await.unwrap();
    assert!(log.intact, "{log:?}");
}

/// The copy of an image that the database does not know is cache like any other: counted, not listed, no fault.
async fn assert_nothing_is_wrong(cluster: &Cluster, known: &Image, unknown: &Image) {
    let missing = api::refused(cluster.api.get::<Image>(&format!("/images/{}", unknown.id)).await);
    assert_eq!(missing.status, 404);
    let entries: Vec<CacheEntry> = cluster.api.list("/cache").await.unwrap();
    assert_eq!(entries.len(), 2, "{entries:#?}");
    assert!(entries.iter().all(|entry| entry.image == known.id && entry.status == EntryStatus::Active));
    let locations: Vec<Location> = cluster.api.list("/locations").await.unwrap();
    let counts: Vec<_> =
        locations.iter().map(|at| (at.name.as_str(), at.active_entries, at.degraded.as_str())).collect();
    assert_eq!(counts, [("host-1", 2, ""), ("host-2", 1, "")]);
    let doctor = cluster.hearth(&["doctor"]).unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.status.success(), "{said}");
}
