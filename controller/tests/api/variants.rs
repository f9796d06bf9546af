//! Variants over HTTP: made after an import, on demand and again; served like originals; gone with their image.

use std::path::PathBuf;
use std::time::Duration;

use hearth_controller::admin::{backup, fsck, restore};
use hearth_controller::clock;
use hearth_controller::config::Config;
use hearth_protocol::api::variant::{Variant, VariantList};
use hearth_protocol::id::ImageId;
use hearth_protocol::words::{DiskFormat, ImageStatus, Role, VariantStatus};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::harness::{
    Client, PROGRAM, Place, body, config_in, fault, files, noise, qcow2, sha256, start, until,
};

/// An active image of a small disk.
async fn disk(client: &Client, name: &str, bytes: Vec<u8>) -> ImageId {
    let id = client.image(json!({ "name": name })).await;
    assert_eq!(client.put(id, bytes).await.status(), StatusCode::ACCEPTED);
    let image = client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Active, "{}", image.reason);
    id
}

async fn list(client: &Client, id: ImageId) -> VariantList {
    serde_json::from_value(client.get(&format!("/images/{id}/variants")).await).unwrap()
}

/// Waits until no variant of the image waits or is being made.
async fn settled(client: &Client, id: ImageId) -> Vec<Variant> {
    let begun = clock::monotonic();
    loop {
        let items = list(client, id).await.items;
        let busy =
            |variant: &Variant| matches!(variant.status, VariantStatus::Queued | VariantStatus::Saving);
        if !items.iter().any(busy) {
            return items;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "{items:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn ask(client: &Client, id: ImageId, format: &str) -> reqwest::Response {
    client
        .ask(Method::POST, &format!("/images/{id}/variants"))
        .json(&json!({ "format": format }))
        .send()
        .await
        .unwrap()
}

async fn get(client: &Client, id: ImageId, format: &str) -> reqwest::Response {
    client.ask(Method::GET, &format!("/images/{id}/variants/{format}/file")).send().await.unwrap()
}

fn folder(config: &Config) -> PathBuf {
    config.state_dir.join("variants")
}

async fn check(config: &Config, deep: bool, repair: bool) -> (usize, String) {
    let mut out = Vec::new();
    let left = fsck::fsck(config, fsck::Options { deep, repair }, PROGRAM.into(), &mut out).await.unwrap();
    (left, String::from_utf8(out).unwrap())
}

/// IMG-2: an import has its variants made after it is active, each with checksums, format, size and status.
#[tokio::test(flavor = "multi_thread")]
async fn an_import_has_the_configured_variants_made() {
    let place = Place::with(|config| config.variants = config_variants()).await;
    let file = std::fs::read(qcow2(place.dir.path(), 3 << 20)).unwrap();
    let id = disk(&place.client, "disk", file).await;
    let made = settled(&place.client, id).await;
    assert_eq!(
        made.iter().map(|variant| variant.format.as_str()).collect::<Vec<_>>(),
        ["qcow2", "vhd", "vmdk"]
    );
    for variant in made {
        assert_eq!((variant.status, variant.reason.as_str()), (VariantStatus::Active, ""));
        let answer = get(&place.client, id, variant.format.as_str()).await;
        let name = answer.headers()["content-disposition"].to_str().unwrap().to_owned();
        assert!(name.ends_with(&format!("disk.{}", variant.format)), "{name}");
        let bytes = answer.bytes().await.unwrap();
        assert_eq!(Some(bytes.len() as u64), variant.bytes);
        assert_eq!(Some(sha256(&bytes)), variant.sha256);
        assert_eq!(Some(blake3::hash(&bytes).to_hex().to_string()), variant.blake3);
        assert_eq!(variant.md5.unwrap().len(), 32);
    }
    let log = place.client.get("/operations?limit=1000").await;
    let rows = log["items"].as_array().unwrap();
    let place_of = |action: &str| rows.iter().position(|row| row["action"] == action).unwrap();
    assert!(
        place_of("variant.make") < place_of("image.import"),
        "newest first: variants come after the import"
    );
    assert_eq!(place.client.get("/operations/verify").await["intact"], true);
    place.stop().await;
}

fn config_variants() -> Vec<DiskFormat> {
    hearth_controller::config::VARIANTS_DEFAULT.to_vec()
}

/// DW-1: Range, ETag and resume hold for variants as for originals.
#[tokio::test(flavor = "multi_thread")]
async fn a_variant_is_sent_in_ranges_and_never_mixed() {
    let place = Place::new().await;
    let id = disk(&place.client, "disk", noise(700_000)).await;
    assert_eq!(ask(&place.client, id, "vmdk").await.status(), StatusCode::ACCEPTED);
    settled(&place.client, id).await;
    let path = format!("/images/{id}/variants/vmdk/file");
    let whole = place.client.ask(Method::GET, &path).send().await.unwrap();
    let tag = whole.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(whole.headers()["accept-ranges"], "bytes");
    let bytes = whole.bytes().await.unwrap();
    assert_eq!(tag, format!("\"{}\"", sha256(&bytes)));
    let range = |range: &str, tag: &str| {
        place.client.ask(Method::GET, &path).header("range", range).header("if-range", tag).send()
    };
    let part = range("bytes=1000-", &tag).await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap(), bytes[1000..]);
    assert_eq!(range("bytes=1000-", "\"of another file\"").await.unwrap().status(), StatusCode::OK);
    fault(range("bytes=99999999999-", &tag).await.unwrap(), 416).await;
    let have = place.client.ask(Method::GET, &path).header("if-none-match", &tag).send().await.unwrap();
    assert_eq!(have.status(), StatusCode::NOT_MODIFIED);
    // The file that goes out stays whole although it is removed and made again meanwhile, and the old tag gets no range of it.
    let slow = place.client.ask(Method::GET, &path).send().await.unwrap();
    let removed =
        place.client.ask(Method::DELETE, &format!("/images/{id}/variants/vmdk")).send().await.unwrap();
    assert_eq!(removed.status(), StatusCode::NO_CONTENT);
    ask(&place.client, id, "vmdk").await;
    settled(&place.client, id).await;
    assert_eq!(slow.bytes().await.unwrap(), bytes);
    let again = range("bytes=1000-", &tag).await.unwrap();
    let new_tag = again.headers()["etag"].to_str().unwrap().to_owned();
    let expected = if new_tag == tag { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    assert_eq!(again.status(), expected);
    place.stop().await;
}

/// IMG-2: a format that is not there is an error that names those that are and those that can be made (never another file).
#[tokio::test(flavor = "multi_thread")]
async fn a_format_that_is_not_there_is_named_and_made_on_demand() {
    let place = Place::new().await;
    let client = &place.client;
    let id = disk(client, "disk", noise(300_000)).await;
    let listed = list(client, id).await;
    assert_eq!((listed.items.len(), listed.makeable.len()), (0, 5), "nothing is configured, all can be made");
    for format in ["vhdx", "vdi", "iso", "VHD", "a%2fb"] {
        let error = fault(get(client, id, format).await, 404).await;
        assert!(
            error.message.contains("there are none; can be made: raw, qcow2, vmdk, vhd, vhdx"),
            "{error:?}"
        );
    }
    assert_eq!(fault(ask(client, id, "iso").await, 400).await.field.as_deref(), Some("format"));
    assert_eq!(fault(ask(client, id, "vdi").await, 400).await.field.as_deref(), Some("format"));
    let asked = ask(client, id, "vhdx").await;
    assert_eq!(asked.status(), StatusCode::ACCEPTED);
    let asked: Variant = serde_json::from_value(body(asked).await).unwrap();
    assert!(matches!(asked.status, VariantStatus::Queued | VariantStatus::Saving), "{asked:?}");
    let early = get(client, id, "vhdx").await;
    if early.status() != StatusCode::OK {
        assert!(early.headers().contains_key("retry-after"));
        assert!(fault(early, 409).await.message.contains("vhdx of image disk"));
    }
    settled(client, id).await;
    assert_eq!(get(client, id, "vhdx").await.status(), StatusCode::OK);
    assert_eq!(ask(client, id, "vhdx").await.status(), StatusCode::OK, "it is there");
    let error = fault(get(client, id, "raw").await, 404).await;
    assert!(error.message.contains("there are vhdx; can be made: raw, qcow2, vmdk, vhd"), "{error:?}");
    // A file that vanished is made again: at once when it is asked for.
    for file in files(&folder(&place.config)) {
        std::fs::remove_file(file).unwrap();
    }
    assert!(fault(get(client, id, "vhdx").await, 409).await.message.contains("made again"));
    settled(client, id).await;
    assert_eq!(get(client, id, "vhdx").await.status(), StatusCode::OK);
    for file in files(&folder(&place.config)) {
        std::fs::remove_file(file).unwrap();
    }
    assert_eq!(ask(client, id, "vhdx").await.status(), StatusCode::ACCEPTED);
    settled(client, id).await;
    assert_eq!(get(client, id, "vhdx").await.status(), StatusCode::OK);
    place.stop().await;
}

/// IMG-4: ISO images have no variants, neither by configuration nor on demand.
#[tokio::test(flavor = "multi_thread")]
async fn an_iso_has_no_variants() {
    let place = Place::with(|config| config.variants = config_variants()).await;
    let mut iso = vec![0x5A; 300 * 2048];
    iso[..32768].fill(0);
    iso[32768..32775].copy_from_slice(b"\x01CD001\x01");
    iso[32848..32852].copy_from_slice(&300u32.to_le_bytes());
    iso[32896..32898].copy_from_slice(&2048u16.to_le_bytes());
    let id = place.client.image(json!({ "name": "medium", "kind": "iso" })).await;
    place.client.put(id, iso).await;
    let image = place.client.ended(id).await;
    assert_eq!(image.status, ImageStatus::Active, "{}", image.reason);
    let listed = list(&place.client, id).await;
    assert_eq!((listed.items, listed.makeable), (vec![], vec![]));
    assert!(fault(ask(&place.client, id, "qcow2").await, 409).await.message.contains("ISO"));
    fault(get(&place.client, id, "qcow2").await, 404).await;
    let queued = place.client.image(json!({ "name": "empty" })).await;
    assert!(fault(ask(&place.client, queued, "qcow2").await, 409).await.message.contains("queued"));
    place.stop().await;
}

/// IMG-2: a variant for which there is no room is `save_fail` with the figures, and is made when it is asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn no_room_is_a_save_fail_with_figures_and_can_be_tried_again() {
    let place = Place::new().await;
    let id = disk(&place.client, "disk", noise(300_000)).await;
    let mut taken = Vec::new();
    let mut step = 1 << 50;
    while step > 1 << 20 {
        match place.controller.ingest().space.reserve(step) {
            Ok(reservation) => taken.push(reservation),
            Err(_) => step /= 2,
        }
    }
    ask(&place.client, id, "qcow2").await;
    let failed = settled(&place.client, id).await.remove(0);
    assert_eq!(failed.status, VariantStatus::SaveFail);
    assert!(
        failed.reason.contains("bytes are needed") && failed.reason.contains("are free"),
        "{}",
        failed.reason
    );
    let error = fault(get(&place.client, id, "qcow2").await, 409).await;
    assert!(error.message.contains("bytes are needed") && error.hint.unwrap().contains("variant create"));
    assert_eq!(place.client.get(&format!("/images/{id}")).await["status"], "active");
    drop(taken);
    assert_eq!(ask(&place.client, id, "qcow2").await.status(), StatusCode::ACCEPTED);
    assert_eq!(settled(&place.client, id).await[0].status, VariantStatus::Active);
    place.stop().await;
}

/// DL-2, IMG-2: what is deleted leaves no file of a variant, be it made, being made, or waiting.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_image_takes_its_variants_along() {
    let place = Place::new().await;
    let (one, two) =
        (disk(&place.client, "one", noise(300_000)).await, disk(&place.client, "two", noise(300_000)).await);
    for id in [one, two] {
        ask(&place.client, id, "raw").await;
        settled(&place.client, id).await;
    }
    assert_eq!(files(&folder(&place.config)).len(), 2, "equal contents, and each image has its own");
    let delete = |path: String| place.client.ask(Method::DELETE, &path).send();
    let gone = delete(format!("/images/{one}/variants/raw")).await.unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    fault(delete(format!("/images/{one}/variants/raw")).await.unwrap(), 404).await;
    fault(delete(format!("/images/{one}/variants/vdi")).await.unwrap(), 404).await;
    assert_eq!(files(&folder(&place.config)).len(), 1);
    assert_eq!(get(&place.client, two, "raw").await.bytes().await.unwrap(), noise(300_000));
    for format in ["qcow2", "vmdk", "vhd"] {
        ask(&place.client, two, format).await;
    }
    assert_eq!(delete(format!("/images/{two}?now=true")).await.unwrap().status(), StatusCode::NO_CONTENT);
    until("the variants are gone", || files(&folder(&place.config)).is_empty()).await;
    until("staging is empty", || files(&place.config.state_dir.join("staging")).is_empty()).await;
    fault(get(&place.client, two, "raw").await, 404).await;
    let (_dir, config, _) = place.stop().await;
    assert_eq!(check(&config, true, false).await.0, 0);
}

/// SH-7: who may not see an image learns nothing of its variants; who may only see it has none made.
#[tokio::test(flavor = "multi_thread")]
async fn variants_follow_the_rights_of_their_image() {
    let place = Place::new().await;
    let db = place.controller.db();
    let (domain, mine) = db.default_tenants().await.unwrap();
    let other = hearth_controller::db::new_id();
    let op = hearth_controller::db::operations::Draft::system("project.create");
    db.create_project(other, domain, "other", &op).await.unwrap();
    let who = async |name: &str, role, project| {
        place.client.delegate(name, role, json!({ "scope": "project", "project": project })).await
    };
    let reader = who("reader", Role::Reader, mine).await;
    let stranger = who("stranger", Role::Admin, other).await;
    let id = disk(&place.client, "secret", noise(300_000)).await;
    ask(&place.client, id, "raw").await;
    settled(&place.client, id).await;
    assert_eq!(list(&reader, id).await.items.len(), 1);
    fault(get(&reader, id, "raw").await, 403).await;
    fault(ask(&reader, id, "vhd").await, 403).await;
    let missing: ImageId = "01234567-89ab-7def-8123-456789abcdef".parse().unwrap();
    let hidden = fault(ask(&stranger, id, "vhd").await, 404).await;
    let none = fault(ask(&stranger, missing, "vhd").await, 404).await;
    assert_eq!(hidden.message.replace(&id.to_string(), &missing.to_string()), none.message);
    fault(get(&stranger, id, "raw").await, 404).await;
    let public = place.client.image(json!({ "name": "public", "public": true })).await;
    place.client.put(public, noise(300_000)).await;
    place.client.ended(public).await;
    ask(&place.client, public, "raw").await;
    settled(&place.client, public).await;
    assert_eq!(get(&stranger, public, "raw").await.status(), StatusCode::OK, "what is there may be taken");
    fault(ask(&stranger, public, "vhd").await, 403).await;
    let delete =
        stranger.ask(Method::DELETE, &format!("/images/{public}/variants/raw")).send().await.unwrap();
    fault(delete, 403).await;
    place.stop().await;
}

/// IMG-2: a backup holds no variants; after a restore they are made again, and `fsck` knows lost, damaged and unknown files.
#[tokio::test(flavor = "multi_thread")]
async fn lost_variants_are_made_again_after_fsck_and_restore() {
    let place = Place::new().await;
    let id = disk(&place.client, "disk", noise(300_000)).await;
    for format in ["raw", "qcow2"] {
        ask(&place.client, id, format).await;
    }
    settled(&place.client, id).await;
    let (dir, config, token) = place.stop().await;
    assert_eq!(check(&config, true, false).await.0, 0);
    let saved = dir.path().join("saved");
    let mut said = Vec::new();
    backup::backup(&config, &saved, true, &mut said).await.unwrap();
    assert!(
        String::from_utf8(said).unwrap().contains("Variants are not in it")
            && !saved.join("variants").exists()
    );
    // A byte that changed, a file that went, one that nobody knows.
    let all = files(&folder(&config));
    let raw = all.iter().find(|file| file.extension().unwrap() == "raw").unwrap();
    let mut bytes = std::fs::read(raw).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(raw, bytes).unwrap();
    std::fs::remove_file(all.iter().find(|file| file.extension().unwrap() == "qcow2").unwrap()).unwrap();
    let unknown = folder(&config).join("01234567-89ab-7def-8123-456789abcdef.0123456789abcdef.vhd");
    std::fs::write(&unknown, "x").unwrap();
    let (left, said) = check(&config, true, false).await;
    assert!(left == 3 && said.contains("has no file") && said.contains("other bytes"), "{said}");
    assert!(said.contains("a file that no record knows"), "{said}");
    assert_eq!(check(&config, true, true).await.0, 0);
    assert!(files(&folder(&config)).is_empty());
    let there = async |config: &Config| {
        let controller = start(config).await;
        let client = Client::new(config, controller.https.port(), &token);
        let made = settled(&client, id).await;
        assert!(made.iter().all(|variant| variant.status == VariantStatus::Active), "{made:?}");
        assert_eq!(get(&client, id, "raw").await.bytes().await.unwrap(), noise(300_000));
        controller.stop().await;
        assert_eq!(check(config, true, false).await.0, 0);
    };
    there(&config).await;
    let other = tempfile::tempdir().unwrap();
    let restored = config_in(other.path());
    let mut said = Vec::new();
    let problems = restore::restore(&restored, &saved, &mut said).await.unwrap();
    let said = String::from_utf8(said).unwrap();
    assert!(problems == 0 && said.contains("2 variants are made again"), "{said}");
    there(&restored).await;
}

/// DW-1: a link to a variant gives that file, in ranges; its format is one that the image has.
#[tokio::test(flavor = "multi_thread")]
async fn a_variant_is_fetched_by_a_link() {
    let place = Place::new().await;
    let client = &place.client;
    let id = disk(client, "../noble", noise(300_000)).await;
    let links = format!("/images/{id}/links");
    let send = |sent: Value| client.ask(Method::POST, &links).json(&sent).send();
    let missing = fault(send(json!({ "format": "vmdk" })).await.unwrap(), 400).await;
    assert!(missing.message.contains("allowed is original"), "{missing:?}");
    assert!(missing.hint.unwrap().contains("hearth image variant create"));
    assert_eq!(ask(client, id, "vmdk").await.status(), StatusCode::ACCEPTED);
    let file = settled(client, id).await[0].clone();
    let wrong = fault(send(json!({ "format": "vhd" })).await.unwrap(), 400).await;
    assert!(wrong.message.contains("original, vmdk"), "{wrong:?}");

    let made = client.post(&links, json!({ "format": "vmdk" })).await;
    assert_eq!((&made["format"], &made["sha256"]), (&json!("vmdk"), &json!(file.sha256)));
    let path = made["path"].as_str().unwrap().to_owned();
    assert!(path.ends_with(".vmdk") && path.matches('/').count() == 3, "{path}");
    let open = || client.http.get(format!("{}{path}", client.base));
    let whole = open().send().await.unwrap();
    assert_eq!(whole.headers()["etag"].to_str().unwrap(), format!("\"{}\"", file.sha256.clone().unwrap()));
    let whole = whole.bytes().await.unwrap();
    assert_eq!((sha256(&whole), Some(whole.len() as u64)), (file.sha256.unwrap(), file.bytes));
    let part = open().header("range", "bytes=100-199").send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap(), whole[100..200]);
    let uses = client.get(&format!("/images/{id}/operations?action=image.link_use")).await;
    assert_eq!(uses["items"].as_array().unwrap().len(), 1, "{uses}");
    assert_eq!(client.get(&links).await["items"][0]["format"], "vmdk");

    let gone = client.ask(Method::DELETE, &format!("/images/{id}/variants/vmdk")).send().await.unwrap();
    assert_eq!(gone.status(), StatusCode::NO_CONTENT);
    let gone = fault(open().send().await.unwrap(), 410).await;
    assert!(gone.message.contains("not available"), "{gone:?}");
    place.stop().await;
}
