//! Orders, tags, counts and the quick search of images.

use hearth_controller::db::image_list::{ImageFilter, ImageOrder};
use hearth_controller::db::images::ImageFacts;
use hearth_controller::db::tokens::Scope;
use hearth_controller::db::{Db, DbError, PageRequest};
use hearth_protocol::api::image::Count;
use hearth_protocol::words::{ImageSort, SortOrder};
use sqlx::{AnyConnection, Executor as _, Row as _};

use crate::engines::Place;
use crate::fixture::{active_image, op, queued_image};
use crate::on_both_engines;

on_both_engines! {
    every_order_pages_each_image_once_although_keys_repeat
    tags_are_found_whatever_their_case
    a_search_finds_descriptions_and_states
    counts_end_at_ten_thousand
    a_database_of_version_one_is_searched_by_description_too
    each_order_has_an_index
}

/// Pages of two rows, with a change to a row that was not shown yet between them.
async fn paged(db: &Db, order: ImageOrder, filter: &ImageFilter) -> Vec<String> {
    let (mut page, mut seen) = (PageRequest::first(2), Vec::new());
    loop {
        let rows = db.images_by(Scope::System, filter, order, &page).await.unwrap();
        seen.extend(rows.items.into_iter().map(|image| image.facts.name));
        let Some(next) = rows.next else { return seen };
        page.cursor = Some(next);
    }
}

async fn every_order_pages_each_image_once_although_keys_repeat(place: Place) {
    let db = place.open().await;
    for name in ["b", "a", "d", "c", "e"] {
        queued_image(&db, name).await;
    }
    active_image(&db, "z").await;
    let mut intruder = place.connect().await;
    intruder.execute("UPDATE image SET created_us = 7, updated_us = 7").await.unwrap();
    let all = ImageFilter::default();
    for by in [ImageSort::Name, ImageSort::Size, ImageSort::Created, ImageSort::Updated, ImageSort::Status] {
        let up = paged(&db, ImageOrder { by, order: SortOrder::Asc }, &all).await;
        let mut down = paged(&db, ImageOrder { by, order: SortOrder::Desc }, &all).await;
        down.reverse();
        assert_eq!(up, down, "{by}: the two ways are one order");
        let mut once = up.clone();
        once.sort_unstable();
        assert_eq!(once, ["a", "b", "c", "d", "e", "z"], "{by}");
        match by {
            ImageSort::Name => assert_eq!(up, once),
            ImageSort::Size => assert_eq!(up.last().unwrap(), "z"),
            ImageSort::Status => assert_eq!(up.first().unwrap(), "z", "active comes before queued"),
            _ => assert_eq!(up, ["b", "a", "d", "c", "e", "z"], "equal times go by age"),
        }
    }
    let name = ImageOrder { by: ImageSort::Name, order: SortOrder::Asc };
    let mut page = PageRequest::first(2);
    page.cursor = db.images_by(Scope::System, &all, name, &page).await.unwrap().next;
    for other in [ImageOrder::default(), ImageOrder { order: SortOrder::Desc, ..name }] {
        let refused = db.images_by(Scope::System, &all, other, &page).await;
        assert!(matches!(refused, Err(DbError::Cursor)), "a cursor of another order");
    }
}

async fn tags_are_found_whatever_their_case(place: Place) {
    let db = place.open().await;
    let (one, two) = (queued_image(&db, "one").await, queued_image(&db, "two").await);
    let tagged = |tags: &'static [&'static str]| {
        move |facts: &mut ImageFacts| facts.tags = tags.iter().map(|tag| (*tag).to_owned()).collect()
    };
    db.update_image(one, None, tagged(&["Prod", "数据库"]), &op("image.update")).await.unwrap();
    db.update_image(two, None, tagged(&["prod"]), &op("image.update")).await.unwrap();
    let found = async |tags: &[&str]| {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let filter = ImageFilter { tags, ..ImageFilter::default() };
        paged(&db, ImageOrder { by: ImageSort::Name, order: SortOrder::Asc }, &filter).await
    };
    assert_eq!(found(&["PROD"]).await, ["one", "two"]);
    assert_eq!(found(&["prod", "数据库"]).await, ["one"]);
    assert_eq!(found(&["pro"]).await, [""; 0], "a tag is found whole");
    let tags = db.image(one).await.unwrap().unwrap().facts.tags;
    assert_eq!(tags.into_iter().collect::<Vec<_>>(), ["Prod", "数据库"], "as they were written");
    db.update_image(one, None, tagged(&[]), &op("image.update")).await.unwrap();
    assert_eq!(found(&["prod"]).await, ["two"]);
    db.delete_image(two, None, &op("image.destroy")).await.unwrap();
    let mut intruder = place.connect().await;
    let left = intruder.fetch_one("SELECT CAST(COUNT(*) AS BIGINT) FROM image_tag").await.unwrap();
    assert_eq!(left.get::<i64, _>(0), 0, "rows of an image that is gone");
}

async fn a_search_finds_descriptions_and_states(place: Place) {
    let db = place.open().await;
    let id = queued_image(&db, "one").await;
    let long: String = (0..4096).map(|n| char::from_u32(0x4E00 + n).unwrap()).collect();
    let text = format!("Web 服务器 {}", &long.chars().take(4000).collect::<String>());
    let edit = move |facts: &mut ImageFacts| facts.description.clone_from(&text);
    db.update_image(id, None, edit, &op("image.update")).await.unwrap();
    active_image(&db, "服务 two").await;
    let found = async |text: &str| {
        let filter = ImageFilter { search: Some(text.to_owned()), ..ImageFilter::default() };
        paged(&db, ImageOrder { by: ImageSort::Created, order: SortOrder::Asc }, &filter).await
    };
    assert_eq!(found("服务").await, ["one", "服务 two"], "two Chinese characters, in name or description");
    assert_eq!(found("服务器").await, ["one"]);
    assert_eq!(found("WEB 服").await, ["one"]);
    assert_eq!(found(&long.chars().take(200).collect::<String>()).await, ["one"]);
    assert_eq!(found("act").await, ["服务 two"], "the begin of a state");
    assert_eq!(found("ti").await, [""; 0]);
    assert_eq!(found("").await, ["one", "服务 two"]);
    let by_name = ImageFilter { name_contains: Some("服务器".to_owned()), ..ImageFilter::default() };
    assert_eq!(paged(&db, ImageOrder::default(), &by_name).await, [""; 0], "not in a name");
}

/// Makes many rows at once, as no caller could.
async fn copies(intruder: &mut AnyConnection, n: u32) {
    let columns = "kind, status, percent, reason, container_format, visibility, domain_id, project_id, architecture, \
         os_type, distribution, version, description, min_disk_bytes, min_memory_bytes, protected, properties, \
         expected, original_kept, revision, created_us, updated_us";
    let numbers = format!(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {n}) \
         INSERT INTO image (id, name, name_folded, name_key, {columns}) \
         SELECT 'copy ' || i, 'copy', 'copy', 'copy ' || i, {columns} FROM n, image WHERE image.name = 'first'"
    );
    intruder.execute(sqlx::AssertSqlSafe(numbers)).await.unwrap();
}

async fn counts_end_at_ten_thousand(place: Place) {
    let db = place.open().await;
    queued_image(&db, "first").await;
    let count = async || db.count_images(Scope::System, &ImageFilter::default()).await.unwrap();
    assert_eq!(count().await, Count { rows: 1, more: false });
    let mut intruder = place.connect().await;
    copies(&mut intruder, 9_999).await;
    assert_eq!(count().await, Count { rows: 10_000, more: false });
    queued_image(&db, "one more").await;
    assert_eq!(count().await, Count { rows: 10_000, more: true });
    assert_eq!(count().await.to_string(), "10,000+");
}

/// What the program of version 1 wrote.
const SPINE: &str = include_str!("../../src/db/migrations/0001_spine.sql");

async fn a_database_of_version_one_is_searched_by_description_too(place: Place) {
    let mut old = place.connect().await;
    let lines = SPINE.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("--"));
    let mut hasher = blake3::Hasher::new();
    for line in lines {
        hasher.update(line.as_bytes()).update(b"\n");
    }
    old.execute(SPINE).await.unwrap();
    let id = "01234567-89ab-7def-8123-456789abcdef";
    let rows = format!(
        "CREATE TABLE schema_version (version BIGINT NOT NULL PRIMARY KEY, applied_us BIGINT NOT NULL); \
         INSERT INTO schema_version VALUES (1, 0); \
         INSERT INTO meta VALUES ('schema_blake3', '{}'), ('instance_id', '{id}'), ('data_version', '1'); \
         INSERT INTO domain VALUES ('{id}', 'd', 'd', 0, 0, 0); \
         INSERT INTO project VALUES ('{id}', '{id}', 'p', 'p', 0, 0, 0); \
         INSERT INTO image (id, name, name_folded, name_key, kind, status, percent, reason, container_format, visibility, \
         domain_id, project_id, architecture, os_type, distribution, version, description, min_disk_bytes, \
         min_memory_bytes, protected, properties, expected, original_kept, revision, created_us, updated_us) VALUES \
         ('{id}', 'Old', 'old', 'k', 'disk', 'queued', 0, '', 'bare', 'private', '{id}', '{id}', 'x86_64', '', '', '', \
         'Web 服务器', 0, 0, 0, '{{}}', '{{}}', 0, 1, 0, 0)",
        hasher.finalize().to_hex()
    );
    old.execute(sqlx::AssertSqlSafe(rows)).await.unwrap();
    Db::upgrade(&place.url, &place.folder.path().join("before")).await.unwrap().unwrap();
    let db = place.open().await;
    for (text, expected) in [("服务", 1), ("web 服", 1), ("old", 1), ("new", 0)] {
        let filter = ImageFilter { search: Some(text.to_owned()), ..ImageFilter::default() };
        let page = db.images(Scope::System, &filter, &PageRequest::default()).await.unwrap();
        assert_eq!(page.items.len(), expected, "{text}");
    }
    let image = db.image(id.parse().unwrap()).await.unwrap().unwrap();
    assert!(
        image.facts.tags.is_empty() && image.facts.architecture.is_some() && image.facts.os_type.is_none()
    );
}

/// Asks the engine how it would sort.
async fn each_order_has_an_index(place: Place) {
    place.open().await.close().await;
    let mut intruder = place.connect().await;
    if !place.is_sqlite() {
        // An empty table is read whole unless that is forbidden.
        intruder.execute("SET enable_seqscan = off").await.unwrap();
        intruder.execute("SET enable_sort = off").await.unwrap();
    }
    for key in
        ["name_folded", "COALESCE(virtual_bytes, 0)", "created_us", "updated_us", "COALESCE(status, '')"]
    {
        let explain = if place.is_sqlite() { "EXPLAIN QUERY PLAN" } else { "EXPLAIN" };
        let order = ["ORDER", "BY"].join(" ");
        let search = format!("{explain} SELECT * FROM image {order} {key} DESC, id DESC LIMIT 10");
        let rows = intruder.fetch_all(sqlx::AssertSqlSafe(search)).await.unwrap();
        let column = if place.is_sqlite() { "detail" } else { "QUERY PLAN" };
        let plan: Vec<String> = rows.iter().map(|row| row.get::<String, _>(column)).collect();
        let plan = plan.join("\n");
        assert!(
            plan.contains("INDEX image_") || plan.contains("Index Scan Backward using image_"),
            "{key}: {plan}"
        );
        assert!(!plan.contains("TEMP B-TREE") && !plan.contains("Sort"), "{key}: {plan}");
    }
}
