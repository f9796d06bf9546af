//! Lists as files: CSV that no spreadsheet runs, Excel that opens, and nobody else's rows.

use std::io::{Cursor, Read as _};

use hearth_controller::db::operations::{Draft, WhoKind};
use hearth_protocol::words::Role;
use reqwest::Method;
use serde_json::json;

use super::harness::{Client, Place, fault};

async fn file(client: &Client, path: &str) -> Vec<u8> {
    let answer = client.ask(Method::GET, path).send().await.unwrap();
    assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
    let disposition = answer.headers()["content-disposition"].to_str().unwrap().to_owned();
    assert!(disposition.starts_with("attachment; filename=\""), "{disposition}");
    answer.bytes().await.unwrap().to_vec()
}

fn records(bytes: &[u8]) -> Vec<Vec<String>> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(bytes);
    reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect()
}

/// The text of the only sheet.
fn sheet(bytes: Vec<u8>) -> String {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).unwrap();
    let mut text = String::new();
    archive.by_name("xl/worksheets/sheet1.xml").unwrap().read_to_string(&mut text).unwrap();
    text
}

/// LS-2: the image list as CSV and Excel, with chosen columns and the list's own filters and rights.
#[tokio::test(flavor = "multi_thread")]
async fn the_image_list_is_a_file_with_chosen_columns() {
    let place = Place::new().await;
    let client = &place.client;
    let (_, project) = place.controller.db().default_tenants().await.unwrap();
    for name in ["a", "系统镜像", "c,\"d\"\u{a0}e"] {
        client.image(json!({ "name": name, "min_disk_bytes": 1 << 30 })).await;
    }
    let rows = records(&file(client, "/images/export?format=csv&columns=name,min_disk_bytes,status").await);
    assert_eq!(rows[0], ["name", "min_disk_bytes", "status"]);
    let names: Vec<&str> = rows[1..].iter().map(|row| row[0].as_str()).collect();
    assert_eq!(names, ["c,\"d\"\u{a0}e", "系统镜像", "a"], "newest first, as the list");
    assert!(rows[1..].iter().all(|row| row[1] == "1073741824" && row[2] == "queued"));
    let found = records(&file(client, "/images/export?format=csv&columns=name&q=%E9%95%9C%E5%83%8F").await);
    assert_eq!(found, [["name"], ["系统镜像"]]);
    assert!(file(client, "/images/export?format=csv&bom=true").await.starts_with(b"\xef\xbb\xbf\"id\""));
    assert!(file(client, "/images/export?format=csv").await.starts_with(b"\"id\""));
    let text = sheet(file(client, "/images/export?format=xlsx&columns=name,min_disk_bytes").await);
    assert!(text.contains("系统镜像") && text.contains("<v>1073741824</v>"), "{text}");

    let reader = client.delegate("r", Role::Reader, json!({ "scope": "project", "project": project })).await;
    let cached = records(&file(&reader, "/images/export?format=csv&columns=name,cached_at").await);
    assert!(cached[1..].iter().all(|row| row[1].is_empty()), "tenants do not see caches: {cached:?}");
    for (query, field, said) in [
        ("format=csv&columns=name,size", "columns", "created_at"),
        ("format=csv&columns=", "columns", "name"),
        ("format=pdf", "format", "csv"),
        ("status=active", "format", "xlsx"),
        ("format=csv&status=good", "status", ""),
        ("format=csv&colour=red", "colour", ""),
        ("format=csv&limit=3", "limit", "all rows"),
    ] {
        let answer = client.ask(Method::GET, &format!("/images/export?{query}")).send().await.unwrap();
        let error = fault(answer, 400).await;
        assert_eq!(error.field.as_deref(), Some(field), "{query}: {error:?}");
        assert!(error.message.contains(said), "{query}: {error:?}");
    }
    place.stop().await;
}

/// LS-2: no text that somebody chose is run by a spreadsheet, in whatever column it stands.
#[tokio::test(flavor = "multi_thread")]
async fn a_formula_in_any_text_column_is_defused() {
    let place = Place::new().await;
    let (client, db) = (&place.client, place.controller.db());
    let formulas = ["=cmd|'/C calc'!A0", "+1", "-1", "@SUM(A1)", "＝1+1"];
    for (n, formula) in formulas.iter().enumerate() {
        let image = json!({
            "name": formula, "distribution": formula, "version": formula, "description": formula,
            "properties": { "p": formula },
        });
        client.image(image).await;
        let op =
            Draft::new(WhoKind::Agent, *formula, *formula).on(*formula, formula, format!("{formula}{n}"));
        db.record(&op.with(json!(formula))).await.unwrap();
    }
    // A description may begin with a tab or a line end.
    client.image(json!({ "name": "tab", "description": "\t=1" })).await;
    client.image(json!({ "name": "line", "description": "\n=1" })).await;
    let runs =
        |cell: &String| cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠']);
    let all = "id,name,kind,status,format,visibility,domain,project,os_type,distribution,version,architecture,description,\
        properties,reason,sha256";
    let images = records(&file(client, &format!("/images/export?format=csv&columns={all}")).await);
    assert_eq!(images.len(), 8);
    assert!(!images.iter().flatten().any(runs), "{images:?}");
    assert!(images.iter().flatten().filter(|cell| cell.starts_with('\'')).count() >= 4 * formulas.len() + 2);
    let all = "time,who,who_kind,action,target_kind,target_name,target_id,result,details,seq,id,hash";
    let log = records(&file(client, &format!("/operations?format=csv&columns={all}")).await);
    assert!(!log.iter().flatten().any(runs), "{log:?}");
    for formula in formulas {
        assert!(log.iter().any(|row| row[1] == format!("'{formula}")), "{formula}");
    }
    // Excel gets texts as texts: as they are, and never as a formula.
    let text = sheet(file(client, "/operations?format=xlsx").await);
    assert!(text.contains("=cmd|") && !text.contains("<f>") && !text.contains("'=cmd"), "{text}");
    place.stop().await;
}

/// LG-1: the log as a file: of everything, of one image, in a time range, more than one page of it.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_a_file_of_many_pages() {
    let place = Place::new().await;
    let (client, db) = (&place.client, place.controller.db());
    let id = client.image(json!({ "name": "noble" })).await;
    db.write_tx(|tx| {
        Box::pin(async move {
            for n in 0..2500 {
                let op = Draft::system("image.test").on("image", id, "noble").with(json!({ "n": n }));
                tx.record(&op).await?;
            }
            Ok::<_, hearth_controller::db::DbError>(())
        })
    })
    .await
    .unwrap();
    let path = format!("/images/{id}/operations");
    let rows = records(&file(client, &format!("{path}?format=csv&columns=details,action")).await);
    assert_eq!(rows.len(), 2502);
    assert_eq!(rows[1], ["{\"n\":2499}", "image.test"]);
    assert_eq!(rows[2501][1], "image.create");
    let none = records(&file(client, &format!("{path}?format=csv&to=2020-01-01T00:00:00Z")).await);
    assert_eq!(none.len(), 1, "names alone");
    let text = sheet(file(client, &format!("{path}?format=xlsx&columns=seq,details")).await);
    assert_eq!(text.matches("<row ").count(), 2502);
    let left: Vec<_> =
        std::fs::read_dir(&place.config.state_dir).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("tmp")), "{left:?}");
    let wrong = client.ask(Method::GET, &format!("{path}?format=csv&columns=when")).send().await.unwrap();
    assert!(fault(wrong, 400).await.message.contains("target_name"));
    place.stop().await;
}

/// LS-2: who has a file on its way gets no second one, and is in nobody else's way; nor is a report of usage uncounted.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_has_one_export_at_a_time() {
    let place = Place::new().await;
    let (client, db) = (&place.client, place.controller.db());
    for n in 0..1200 {
        let op = Draft::new(WhoKind::Agent, "a", "test").on("image", format!("{n}"), "x".repeat(4000));
        db.record(&op.with(json!("y".repeat(2000)))).await.unwrap();
    }
    // A reader that takes the head and then nothing: what is left is more than the way holds.
    let slow = client.narrow(&place.config);
    let kept = slow.ask(Method::GET, "/operations?format=csv").send().await.unwrap();
    assert!(kept.status().is_success());
    for path in ["/operations?format=csv", "/images/export?format=xlsx", "/usage?format=csv"] {
        let refused = client.ask(Method::GET, path).send().await.unwrap();
        assert!(refused.headers().contains_key("retry-after"));
        assert!(fault(refused, 503).await.message.contains("exports"), "{path}");
    }
    let other = client.delegate("other", Role::Admin, json!({ "scope": "system" })).await;
    assert!(file(&other, "/usage?format=csv").await.starts_with(b"domain,"));
    // One behind the other they are no trouble, and a reader that goes on gets its file.
    for path in ["/usage?format=csv", "/images/export?format=xlsx", "/images/export?format=csv"] {
        file(&other, path).await;
    }
    let rows = records(&kept.bytes().await.unwrap());
    assert!(rows.len() > 1200, "{} rows", rows.len());
    file(client, "/usage?format=csv").await;
    place.stop().await;
}
