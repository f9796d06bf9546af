//! Tables, CSV and the words in them.

use super::*;

fn grid() -> Grid {
    let rows = [("cn-1", "active", 1_610_612_736_u64), ("镜像主机-北京-一区-0001", "cache_fail", 512)];
    Grid::of(&["NAME", "STATUS", "SIZE", "CHANGED", "+ID"], &rows, |(name, status, bytes)| {
        vec![
            Cell::text(name),
            Cell::status(status),
            Cell::Bytes(Some(*bytes)),
            Cell::At(Some("2026-03-01T09:57:00Z".into())),
            Cell::text("0199-id"),
        ]
    })
}

fn look(width: Option<u16>, colour: bool) -> Look {
    Look { width, colour, now: "2026-03-01T10:00:00Z".parse().unwrap() }
}

#[test]
fn wide_characters_keep_the_columns_straight() {
    insta::assert_snapshot!(grid().table(look(None, false)), @r"
    NAME                     STATUS         SIZE  CHANGED
    cn-1                     active      1.5 GiB  3 min ago
    镜像主机-北京-一区-0001  cache_fail    512 B  3 min ago
    ");
}

#[test]
fn a_narrow_terminal_wraps_and_a_pipe_does_not() {
    let narrow = grid().table(look(Some(60), false));
    assert!(narrow.lines().all(|line| console::measure_text_width(line) <= 60), "{narrow}");
    let piped = grid().table(look(None, false));
    assert_eq!(piped.lines().count(), 3);
}

#[test]
fn a_narrow_terminal_leaves_columns_out_before_it_breaks_words() {
    let mut grid = Grid::new(&["IMAGE", "~MOVED", "STATUS", "~CHANGED", "WHY"]);
    let why = "no_space: 3.0 GiB are needed, 1.0 GiB is free, the rest is held by prewarm jobs";
    grid.push(vec![
        Cell::text("debian-12"),
        Cell::Bytes(Some(4096)),
        Cell::status("cache_fail"),
        Cell::At(Some("2026-03-01T09:57:00Z".into())),
        Cell::text(why),
    ]);
    let header = |width| grid.table(look(width, false)).lines().next().unwrap_or_default().to_owned();
    assert_eq!(header(Some(60)).split_whitespace().collect::<Vec<_>>(), ["IMAGE", "STATUS", "WHY"]);
    assert_eq!(header(Some(70)).split_whitespace().collect::<Vec<_>>(), ["IMAGE", "MOVED", "STATUS", "WHY"]);
    assert_eq!(header(Some(90)).split_whitespace().count(), 5);
    assert_eq!(header(None).split_whitespace().count(), 5);
    assert!(grid.table(look(Some(60), false)).contains("cache_fail"), "no word is broken");
    assert!(grid.csv().unwrap().starts_with("image,moved,status,changed,why\n"));
}

#[test]
fn people_see_the_beginning_of_a_digest_and_scripts_all_of_it() {
    let mut grid = Grid::new(&["WHO"]);
    grid.push(vec![Cell::Digest("ab".repeat(32))]);
    grid.push(vec![Cell::Digest("admin".into())]);
    assert_eq!(grid.table(look(None, false)), "WHO\nabababababababab\nadmin");
    assert_eq!(grid.csv().unwrap(), format!("who\n{}\nadmin\n", "ab".repeat(32)));
}

#[test]
fn colour_is_only_there_when_asked_for() {
    assert!(!grid().table(look(None, false)).contains('\u{1b}'));
    assert!(grid().table(look(None, true)).contains('\u{1b}'));
}

#[test]
fn csv_has_every_column_and_plain_numbers() {
    insta::assert_snapshot!(grid().csv().unwrap(), @r"
    name,status,size,changed,id
    cn-1,active,1610612736,2026-03-01T09:57:00Z,0199-id
    镜像主机-北京-一区-0001,cache_fail,512,2026-03-01T09:57:00Z,0199-id
    ");
}

#[test]
fn names_cannot_move_the_cursor() {
    let mut grid = Grid::new(&["NAME"]);
    grid.push(vec![Cell::text("a\u{1b}[2Jb\nc")]);
    let text = grid.table(look(None, false));
    assert!(!text.contains('\u{1b}') && text.lines().count() == 2, "{text}");
}
