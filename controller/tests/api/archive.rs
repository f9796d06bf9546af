//! Archives of the operation log, made by the real program beside a database, and killed at the worst moment.

use std::path::Path;
use std::process::{Command, Output};

use hearth_controller::config::Config;
use hearth_controller::db::operations::Draft;
use hearth_controller::db::{Db, DbError, PageRequest};
use serde_json::json;

use super::harness::{PROGRAM, config_in, init, noise, until};

fn program(config: &Config, args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("--config").arg(config.path.as_ref().unwrap()).args(args);
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn check(config: &Config, args: &[&str], code: i32) -> String {
    let output = program(config, args).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output));
    text(&output)
}

/// Writes and seals `n` rows that do not pack.
async fn filled(config: &Config, n: usize) -> Db {
    let db = Db::open(&config.database_url).await.unwrap();
    let bytes = noise(n as u64 * 32);
    let bytes = &bytes;
    db.write_tx(|tx| {
        Box::pin(async move {
            for chunk in bytes.chunks(32) {
                let details = json!({ "x": blake3::hash(chunk).to_hex().as_str() });
                tx.record(&Draft::system("test.write").on("row", "", "=1").with(details)).await?;
            }
            Ok::<_, DbError>(())
        })
    })
    .await
    .unwrap();
    while db.seal_once().await.unwrap() > 0 {}
    db
}

async fn rows(db: &Db) -> usize {
    let page = PageRequest::first(1000);
    db.operations(&Default::default(), &page).await.unwrap().items.len()
}

const LATER: &str = "2999-01-01";

/// LG-1: old rows move into a file that proves itself and its place; the rest stays proven.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_proven_and_so_is_what_stays() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_in(dir.path());
    init(&config).await;
    let db = filled(&config, 40).await;
    let head = db.verify_operations().await.unwrap().head;
    let file = dir.path().join("log.zst");
    let path = file.to_str().unwrap();
    check(&config, &["log-archive", "--before", "2020-01-01", "--to", path], 0);
    assert!(!file.exists(), "nothing is older");
    check(&config, &["log-archive", "--before", "yesterday", "--to", path], 2);
    let said = check(&config, &["log-archive", "--before", LATER, "--to", path], 0);
    assert!(said.contains("41 rows (1 to 41)") && said.contains(&head), "{said}");
    let found = db.verify_operations_from(Some(&head)).await.unwrap();
    assert_eq!((found.flaws, found.archived, found.sealed, found.unsealed), (0, 41, 1, 0));
    assert_eq!(found.known_head, Some(41), "a head that was kept is still known");
    assert_eq!(rows(&db).await, 1, "the row that tells of the archive");
    let proven = check(&config, &["log-verify", path], 0);
    assert!(proven.contains("chain: intact") && proven.contains("are known there"), "{proven}");
    check(&config, &["log-verify", path, "--no-database"], 0);
    // A second one follows the first, which stays proven; no file is written over.
    db.record(&Draft::system("test.more")).await.unwrap();
    db.seal_once().await.unwrap();
    check(&config, &["log-archive", "--before", LATER, "--to", path], 2);
    let second = dir.path().join("second.zst");
    check(&config, &["log-archive", "--before", LATER, "--to", second.to_str().unwrap()], 0);
    check(&config, &["log-verify", path], 0);
    check(&config, &["log-verify", second.to_str().unwrap()], 0);
    assert_eq!(db.verify_operations().await.unwrap().flaws, 0);
    // Another controller knows nothing of it.
    let other = tempfile::tempdir().unwrap();
    let other_config = config_in(other.path());
    init(&other_config).await;
    assert!(check(&other_config, &["log-verify", path], 1).contains("ANOTHER INSTANCE"));
    db.close().await;
}

/// LG-1: whatever is changed in an archive is found: a row, their order, its end; and garbage is no archive.
#[tokio::test(flavor = "multi_thread")]
async fn a_touched_archive_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_in(dir.path());
    init(&config).await;
    let db = filled(&config, 10).await;
    let file = dir.path().join("log.zst");
    check(&config, &["log-archive", "--before", LATER, "--to", file.to_str().unwrap()], 0);
    db.close().await;
    let packed = std::fs::read(&file).unwrap();
    let plain = String::from_utf8(zstd::decode_all(packed.as_slice()).unwrap()).unwrap();
    let lines: Vec<&str> = plain.lines().collect();
    let touched = dir.path().join("touched.zst");
    let verdict = |text: &str, code: i32| {
        std::fs::write(&touched, zstd::encode_all(text.as_bytes(), 1).unwrap()).unwrap();
        check(&config, &["log-verify", touched.to_str().unwrap()], code)
    };
    let joined = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    verdict(&plain, 0);
    let changed = verdict(&plain.replacen("\"target_name\":\"=1\"", "\"target_name\":\"=2\"", 1), 1);
    assert!(changed.contains("changed") && changed.contains("FLAWS"), "{changed}");
    let mut removed = lines.clone();
    removed.remove(4);
    verdict(&joined(&removed), 2);
    let mut swapped = lines.clone();
    swapped.swap(4, 5);
    verdict(&joined(&swapped), 2);
    assert!(verdict(&joined(&lines[..lines.len() - 1]), 2).contains("cut off"));
    verdict(&format!("{plain}{}\n", lines[1]), 2);
    verdict("", 2);
    verdict("{\"begin\":{}}\n", 2);
    verdict(&plain.replacen("\"first_seq\":1", "\"first_seq\":0", 1), 2);
    for bytes in [noise(10_000), packed[..packed.len() / 2].to_vec(), Vec::new()] {
        std::fs::write(&touched, bytes).unwrap();
        check(&config, &["log-verify", touched.to_str().unwrap()], 2);
    }
}

/// LG-1: a damaged log is not archived, and an anchor that nobody set is found.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_not_archived_away() {
    use sqlx::{Connection as _, Executor as _};
    let dir = tempfile::tempdir().unwrap();
    let config = config_in(dir.path());
    init(&config).await;
    let db = filled(&config, 10).await;
    let url = format!("sqlite://{}", config.state_dir.join("hearth.sqlite").display());
    let mut intruder = sqlx::AnyConnection::connect(&url).await.unwrap();
    intruder.execute("UPDATE operation SET who = 'mallory' WHERE seq = 4").await.unwrap();
    let file = dir.path().join("log.zst");
    let said = check(&config, &["log-archive", "--before", LATER, "--to", file.to_str().unwrap()], 2);
    assert!(said.contains("row 4") && !file.exists(), "{said}");
    assert_eq!(rows(&db).await, 11);
    intruder
        .execute("INSERT INTO operation_anchor SELECT 4, hash, id, 0, '' FROM operation WHERE seq = 4")
        .await
        .unwrap();
    intruder.execute("DELETE FROM operation WHERE seq <= 4").await.unwrap();
    let found = db.verify_operations().await.unwrap();
    assert_eq!(found.first_bad, Some(4), "{found:?}");
    db.close().await;
}

/// LG-1: a process that dies while it writes the file has removed nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_while_the_file_is_written_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_in(dir.path());
    init(&config).await;
    let db = filled(&config, 500).await;
    let file = dir.path().join("log.zst");
    // The kernel kills it (SIGXFSZ) when the file is longer than 16 KiB: in the middle. The database is not written meanwhile.
    let mut limited = Command::new("prlimit");
    limited.arg("--fsize=16384").arg(PROGRAM).arg("--config").arg(config.path.as_ref().unwrap());
    let output = limited.args(["log-archive", "--before", LATER, "--to"]).arg(&file).output().unwrap();
    assert!(!output.status.success(), "{}", text(&output));
    assert!(!file.exists());
    assert!(dir.path().join("log.zst.part").exists(), "it had begun: {}", text(&output));
    let found = db.verify_operations().await.unwrap();
    assert_eq!((found.flaws, found.archived, found.sealed), (0, 0, 501));
    // What it left does not stand in the way.
    check(&config, &["log-archive", "--before", LATER, "--to", file.to_str().unwrap()], 0);
    check(&config, &["log-verify", file.to_str().unwrap()], 0);
    db.close().await;
}

/// LG-1: a process that dies between two segments leaves each row in the file or in the database, and both proven.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_two_segments_is_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_in(dir.path());
    init(&config).await;
    let db = filled(&config, 17_000).await;
    let first = dir.path().join("first.zst");
    let mut child =
        program(&config, &["log-archive", "--before", LATER, "--to"]).arg(&first).spawn().unwrap();
    let mut archived = 0;
    while archived == 0 {
        archived = db.anchors(0, u64::MAX >> 1, 10).await.unwrap().len();
        assert!(child.try_wait().unwrap().is_none() || archived > 0, "it ended without an anchor");
    }
    // It may be done already on a quick machine: then this is one more whole archive.
    drop(child.kill());
    child.wait().unwrap();
    let found = db.verify_operations().await.unwrap();
    assert_eq!(found.flaws, 0, "{found:?}");
    assert!(found.archived >= 5000, "{found:?}");
    check(&config, &["log-verify", first.to_str().unwrap()], 0);
    let second = dir.path().join("second.zst");
    check(&config, &["log-archive", "--before", LATER, "--to", second.to_str().unwrap()], 0);
    for file in [&first, &second] {
        check(&config, &["log-verify", file.to_str().unwrap()], 0);
    }
    until("the parts to be gone", || !Path::new(&format!("{}.part", second.display())).exists()).await;
    let found = db.verify_operations().await.unwrap();
    assert_eq!((found.flaws, found.archived >= 17_001), (0, true), "{found:?}");
    db.close().await;
}
