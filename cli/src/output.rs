//! What goes to stdout: tables for people, JSON and CSV for programs.
//!
//! **What.** A [`Grid`] holds typed cells. As a table they are shown in human units, as CSV in bytes and RFC 3339;
//! JSON is the API's body as it is. Progress and remarks go to stderr, so that stdout can be piped.
//! **Why typed cells.** `1.5 GiB` cannot be summed by a script and `1610612736` cannot be read by a person.
//! **Invariants.** No colour and no wrapping when stdout is no terminal; no colour when `NO_COLOR` is set. Control
//! characters in names never reach the terminal.

use std::io::{IsTerminal as _, Write as _};

use anyhow::Context as _;
use comfy_table::{Attribute, Cell as TableCell, CellAlignment, Color, ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use crate::{clock, size, when};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// The API's bodies.
    Json,
    /// All columns, plain numbers and RFC 3339 times.
    Csv,
}

/// Digits of a digest that people need to tell two apart.
const DIGEST_CHARS_SHOWN: usize = 16;
/// A longer text may be wrapped before a whole column is left out for it.
const WRAPPED_CHARS_MIN: usize = 32;
/// Blanks between two columns.
const COLUMN_GAP: u16 = 2;

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    /// Any text.
    Text(String),
    /// Any text, of which a digest is cut short for people.
    Digest(String),
    /// A state word; coloured.
    Status(String),
    /// Bytes.
    Bytes(Option<u64>),
    /// RFC 3339 time.
    At(Option<String>),
    /// 0 to 100.
    Percent(u8),
    /// A count.
    Number(u64),
}

impl Cell {
    /// Text of anything that prints.
    pub(crate) fn text(value: impl ToString) -> Self {
        Self::Text(value.to_string())
    }

    /// Text, or `-` when there is none.
    pub(crate) fn maybe<T: ToString>(value: Option<T>) -> Self {
        Self::Text(value.map(|value| value.to_string()).unwrap_or_default())
    }

    /// State word of anything that prints.
    pub(crate) fn status(value: impl ToString) -> Self {
        Self::Status(value.to_string())
    }

    /// `yes` or `no`.
    pub(crate) fn flag(value: bool) -> Self {
        Self::Text(if value { "yes" } else { "no" }.to_owned())
    }

    fn human(&self, now: Timestamp) -> String {
        let text = match self {
            Self::Text(text) | Self::Status(text) => printable(text),
            Self::Digest(text) if is_digest(text) => text.chars().take(DIGEST_CHARS_SHOWN).collect(),
            Self::Digest(text) => printable(text),
            Self::Bytes(bytes) => bytes.map(size::human).unwrap_or_default(),
            Self::At(at) => at.as_deref().map(|at| when::relative(at, now)).unwrap_or_default(),
            Self::Percent(percent) => format!("{percent}%"),
            Self::Number(number) => number.to_string(),
        };
        if text.is_empty() { "-".to_owned() } else { text }
    }

    fn raw(&self) -> String {
        match self {
            Self::Text(text) | Self::Digest(text) | Self::Status(text) => text.clone(),
            Self::Bytes(bytes) => bytes.map(|bytes| bytes.to_string()).unwrap_or_default(),
            Self::At(at) => at.clone().unwrap_or_default(),
            Self::Percent(percent) => percent.to_string(),
            Self::Number(number) => number.to_string(),
        }
    }

    const fn is_right(&self) -> bool {
        matches!(self, Self::Bytes(_) | Self::Percent(_) | Self::Number(_))
    }
}

/// The text without what would move a terminal's cursor.
#[must_use]
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Rows under named columns. A column whose name begins with `+` is left out of tables, not of CSV; one that begins with
/// `~` is left out of a table that would be wider than the terminal.
#[derive(Clone, Debug)]
pub(crate) struct Grid {
    columns: &'static [&'static str],
    rows: Vec<Vec<Cell>>,
}

/// How a table is drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// Columns of the terminal; `None`: never wrap.
    pub(crate) width: Option<u16>,
    /// Whether states are coloured.
    pub(crate) colour: bool,
    /// What times are relative to.
    pub(crate) now: Timestamp,
}

impl Grid {
    /// An empty grid.
    pub(crate) const fn new(columns: &'static [&'static str]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row with one cell per column.
    pub(crate) fn push(&mut self, row: Vec<Cell>) {
        debug_assert_eq!(row.len(), self.columns.len(), "a row has one cell per column");
        self.rows.push(row);
    }

    /// A grid of `items`.
    pub(crate) fn of<T>(
        columns: &'static [&'static str],
        items: &[T],
        row: impl Fn(&T) -> Vec<Cell>,
    ) -> Self {
        let mut grid = Self::new(columns);
        items.iter().for_each(|item| grid.push(row(item)));
        grid
    }

    /// The table as text, without a line end after the last row.
    #[must_use]
    pub(crate) fn table(&self, look: Look) -> String {
        let shown = self.shown(look);
        let mut table = Table::new();
        table.load_style(presets::NOTHING).force_no_tty();
        if look.colour {
            table.enforce_styling();
        }
        match look.width {
            Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
            None => table.set_content_arrangement(ContentArrangement::Disabled),
        };
        let header =
            shown.iter().map(|i| TableCell::new(plain(self.columns[*i])).add_attribute(Attribute::Bold));
        table.set_header(header.collect::<Vec<_>>());
        for row in &self.rows {
            table.add_row(shown.iter().map(|i| table_cell(&row[*i], look)).collect::<Vec<_>>());
        }
        for (place, index) in shown.iter().enumerate() {
            if let Some(column) = table.column_mut(place) {
                column.set_padding((0, COLUMN_GAP));
                if self.rows.first().is_some_and(|row| row[*index].is_right()) {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n")
    }

    /// The columns of a table; those that may be left out go from the right until the rest fits.
    fn shown(&self, look: Look) -> Vec<usize> {
        let mut shown: Vec<usize> =
            (0..self.columns.len()).filter(|i| !self.columns[*i].starts_with('+')).collect();
        let Some(width) = look.width else { return shown };
        let wanted = |index: usize| {
            let texts = self.rows.iter().map(|row| console::measure_text_width(&row[index].human(look.now)));
            let longest = texts.max().unwrap_or(0).min(WRAPPED_CHARS_MIN);
            longest.max(plain(self.columns[index]).len()) + usize::from(COLUMN_GAP)
        };
        while shown.iter().map(|index| wanted(*index)).sum::<usize>() > usize::from(width + COLUMN_GAP) {
            let Some(place) = shown.iter().rposition(|index| self.columns[*index].starts_with('~')) else {
                break;
            };
            shown.remove(place);
        }
        shown
    }

    /// The rows as CSV, with a header line.
    ///
    /// # Errors
    /// Never in memory; the signature follows the csv crate.
    pub(crate) fn csv(&self) -> anyhow::Result<String> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let names = self.columns.iter().map(|name| plain(name).to_lowercase().replace(' ', "_"));
        writer.write_record(names)?;
        for row in &self.rows {
            writer.write_record(row.iter().map(Cell::raw))?;
        }
        let bytes = writer.into_inner().context("writing CSV")?;
        String::from_utf8(bytes).context("CSV of texts is text")
    }
}

/// The name of a column without its mark.
fn plain(column: &'static str) -> &'static str {
    column.trim_start_matches(['+', '~'])
}

fn table_cell(cell: &Cell, look: Look) -> TableCell {
    let drawn = TableCell::new(cell.human(look.now));
    match cell {
        Cell::Status(word) if look.colour => match colour_of(word) {
            Some(colour) => drawn.fg(colour),
            None => drawn,
        },
        _ => drawn,
    }
}

fn colour_of(word: &str) -> Option<Color> {
    match word {
        "active" | "done" | "online" | "ok" | "accepted" => Some(Color::Green),
        "cache_fail" | "delete_failed" | "killed" | "failed" | "offline" | "fail" | "duplicate"
        | "rejected" => Some(Color::Red),
        "stale" | "paused" | "draining" | "cancelled" | "deactivated" | "warn" | "pending" => {
            Some(Color::Yellow)
        }
        "caching" | "verifying" | "saving" | "importing" | "running" => Some(Color::Cyan),
        _ => None,
    }
}

/// Where results go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Out {
    format: Format,
    quiet: bool,
}

impl Out {
    /// Prints in `format`; `quiet` leaves remarks out.
    pub(crate) const fn new(format: Format, quiet: bool) -> Self {
        Self { format, quiet }
    }

    /// Whether a person reads the result, not a program.
    pub(crate) const fn for_people(self) -> bool {
        matches!(self.format, Format::Table)
    }

    /// Whether a spreadsheet reads the result.
    pub(crate) const fn is_csv(self) -> bool {
        matches!(self.format, Format::Csv)
    }

    /// How a table looks on this stdout.
    pub(crate) fn look(self) -> Look {
        let terminal = std::io::stdout().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Look { width: terminal.then(terminal_columns), colour: terminal && !no_colour, now: clock::now() }
    }

    /// A list: JSON is `{"items": […]}`, as the API answers it.
    pub(crate) fn list<T: Serialize>(self, items: &[T], grid: &Grid) -> anyhow::Result<()> {
        #[derive(Serialize)]
        struct Items<'a, T> {
            items: &'a [T],
        }
        match self.format {
            Format::Json => json(&Items { items }),
            Format::Csv => print(&grid.csv()?),
            Format::Table if items.is_empty() => self.remark("nothing found"),
            Format::Table => print(&format!("{}\n", grid.table(self.look()))),
        }
    }

    /// One body: facts line by line for people, `field,value` rows as CSV.
    pub(crate) fn facts<T: Serialize>(
        self,
        body: &T,
        facts: Vec<(&'static str, Cell)>,
    ) -> anyhow::Result<()> {
        let rows = facts.into_iter().map(|(name, cell)| vec![Cell::text(name), cell]).collect();
        match self.format {
            Format::Json => json(body),
            Format::Csv => print(&Grid { columns: &["FIELD", "VALUE"], rows }.csv()?),
            Format::Table => {
                let filled: Vec<Vec<Cell>> =
                    rows.into_iter().filter(|row: &Vec<Cell>| !row[1].raw().is_empty()).collect();
                let text = Grid { columns: &["", ""], rows: filled }.table(self.look());
                print(&format!("{}\n", text.trim_start_matches('\n')))
            }
        }
    }

    /// A grid without a body of its own, below other output, for people only.
    pub(crate) fn below(self, grid: &Grid) -> anyhow::Result<()> {
        if self.for_people() { print(&format!("\n{}\n", grid.table(self.look()))) } else { Ok(()) }
    }

    /// A sentence for people about what was done; nothing with `-o json` or `csv`.
    pub(crate) fn say(self, text: &str) -> anyhow::Result<()> {
        if self.for_people() { print(&format!("{text}\n")) } else { Ok(()) }
    }

    /// A remark on stderr.
    pub(crate) fn remark(self, text: &str) -> anyhow::Result<()> {
        if self.quiet {
            return Ok(());
        }
        let mut stderr = std::io::stderr().lock();
        writeln!(stderr, "{text}").context("writing to stderr")
    }
}

/// Pretty JSON to stdout.
pub(crate) fn json<T: Serialize>(body: &T) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(body).context("encoding JSON")?))
}

/// Text to stdout.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Width of the terminal, at least 60.
fn terminal_columns() -> u16 {
    console::Term::stdout().size().1.max(60)
}

#[cfg(test)]
mod tests;
