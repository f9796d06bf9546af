//! Search for a part of an image's name.

use hearth_controller::db::image_list::ImageFilter;
use hearth_controller::db::tokens::Scope;
use hearth_controller::db::{Db, PageRequest};
use sqlx::{Executor as _, Row as _};

use crate::engines::Place;
use crate::fixture::{op, queued_image};
use crate::on_both_engines;

on_both_engines! {
    one_character_and_two_find_in_any_language
    case_does_not_matter
    wildcards_of_a_reader_are_plain_text
    a_search_of_any_length_is_answered
    a_search_follows_renames_and_deletions
    two_characters_are_found_by_an_index
}

/// Names that hold `text`, in the order of their making.
async fn found(db: &Db, text: &str) -> Vec<String> {
    let filter = ImageFilter { name_contains: Some(text.to_owned()), ..ImageFilter::default() };
    let page = db.images(Scope::System, &filter, &PageRequest::default()).await.unwrap();
    page.items.into_iter().rev().map(|image| image.facts.name).collect()
}

async fn with_names(place: &Place, names: &[&str]) -> Db {
    let db = place.open().await;
    for name in names {
        queued_image(&db, name).await;
    }
    db
}

async fn one_character_and_two_find_in_any_language(place: Place) {
    let names = ["系统镜像 一", "镜 像", "Ubuntu 镜像", "x", "🦀🦀 crab"];
    let db = with_names(&place, &names).await;
    assert_eq!(found(&db, "镜像").await, [names[0], names[2]]);
    assert_eq!(found(&db, "镜").await, [names[0], names[1], names[2]]);
    assert_eq!(found(&db, "系统镜").await, [names[0]]);
    assert_eq!(found(&db, "像镜").await, [""; 0], "the order counts");
    assert_eq!(found(&db, "x").await, ["x"]);
    assert_eq!(found(&db, "🦀🦀").await, [names[4]]);
    assert_eq!(found(&db, "🦀").await, [names[4]]);
    assert_eq!(found(&db, " ").await, [names[0], names[1], names[2], names[4]]);
    assert_eq!(found(&db, "").await, names, "an empty text is in every name");
}

async fn case_does_not_matter(place: Place) {
    let names = ["DeBiAn-12", "ÉTÉ", "ΟΔΟΣΑ", "İstanbul"];
    let db = with_names(&place, &names).await;
    assert_eq!(found(&db, "dEbIaN").await, ["DeBiAn-12"]);
    assert_eq!(found(&db, "BI").await, ["DeBiAn-12"]);
    assert_eq!(found(&db, "D").await, ["DeBiAn-12"]);
    assert_eq!(found(&db, "été").await, ["ÉTÉ"]);
    for sigma in ["ΟΔΟΣ", "οδος", "οδοσ"] {
        assert_eq!(found(&db, sigma).await, ["ΟΔΟΣΑ"], "{sigma}");
    }
    assert_eq!(found(&db, "İST").await, ["İstanbul"]);
}

async fn wildcards_of_a_reader_are_plain_text(place: Place) {
    let names = ["100%_a", "100xya", r"back\slash", "100%"];
    let db = with_names(&place, &names).await;
    for (text, expected) in [
        ("%", vec![names[0], names[3]]),
        ("_", vec![names[0]]),
        ("%_", vec![names[0]]),
        ("0%", vec![names[0], names[3]]),
        ("0%_a", vec![names[0]]),
        ("1%0", vec![]),
        ("1_0", vec![]),
        (r"\", vec![names[2]]),
        (r"k\s", vec![names[2]]),
        ("'; DROP TABLE image; --", vec![]),
    ] {
        assert_eq!(found(&db, text).await, expected, "{text}");
    }
}

async fn a_search_of_any_length_is_answered(place: Place) {
    let whole: String = (0..255).map(|n| char::from_u32(0x4E00 + n).unwrap()).collect();
    let db = with_names(&place, &[&whole, "镜像"]).await;
    assert_eq!(found(&db, &whole).await, std::slice::from_ref(&whole));
    let without_first: String = whole.chars().skip(1).collect();
    assert_eq!(found(&db, &without_first).await, std::slice::from_ref(&whole));
    // Each pair of characters is in the name, the whole is not.
    let swapped: String = whole.chars().skip(100).chain(whole.chars().take(100)).collect();
    assert_eq!(found(&db, &swapped).await, [""; 0]);
    assert_eq!(found(&db, &"镜像".repeat(5000)).await, [""; 0]);
}

async fn a_search_follows_renames_and_deletions(place: Place) {
    let db = place.open().await;
    let id = queued_image(&db, "before").await;
    db.update_image(id, None, |facts| "after".clone_into(&mut facts.name), &op("image.update"))
        .await
        .unwrap();
    assert_eq!((found(&db, "before").await, found(&db, "b").await), (vec![], vec![]));
    assert_eq!(found(&db, "after").await, ["after"]);
    db.delete_image(id, None, &op("image.delete")).await.unwrap();
    assert_eq!(found(&db, "af").await, [""; 0]);
    let mut intruder = place.connect().await;
    let left = intruder.fetch_one("SELECT CAST(COUNT(*) AS BIGINT) FROM image_gram").await.unwrap();
    assert_eq!(left.get::<i64, _>(0), 0, "rows of an image that is gone");
}

/// Asks the engine how it would look up a gram.
async fn two_characters_are_found_by_an_index(place: Place) {
    let db = with_names(&place, &["系统镜像"]).await;
    db.close().await;
    let mut intruder = place.connect().await;
    let search = "SELECT image_id FROM image_gram WHERE gram = '镜像'";
    let explain = if place.is_sqlite() {
        format!("EXPLAIN QUERY PLAN {search}")
    } else {
        // A table of four rows is read whole unless that is forbidden.
        intruder.execute("SET enable_seqscan = off").await.unwrap();
        format!("EXPLAIN {search}")
    };
    let rows = intruder.fetch_all(sqlx::AssertSqlSafe(explain)).await.unwrap();
    let column = if place.is_sqlite() { "detail" } else { "QUERY PLAN" };
    let plan: Vec<String> = rows.iter().map(|row| row.get::<String, _>(column)).collect();
    let plan = plan.join("\n");
    assert!(plan.contains("INDEX") || plan.contains("Index"), "{plan}");
    assert!(!plan.contains("SCAN image_gram") && !plan.contains("Seq Scan"), "{plan}");
}
