//! Lists as files for spreadsheets: rows × chosen columns → CSV or Excel.
//!
//! **What.** [`answer`] asks a list page by page, exactly as the list's own route does, and turns each row into the cells of
//! the chosen columns. CSV leaves as it is made, by a task of its own. An Excel file is written row by row to disk (constant
//! memory) and then packed into the answer.
//!
//! **Why cells are guarded.** A spreadsheet runs a CSV cell that begins like a formula, and names are chosen by others. Texts
//! that begin with `= + - @` (also the wide forms), a tab or a line end get a `'` before them; whoever reads such a file by
//! program takes it off. In Excel files texts are typed as texts and stay as they are.
//!
//! **Invariants.** At most [`ROWS_MAX`] rows and [`super::app::EXPORTS_MAX`] exports at once, of which a token has one; one page of
//! rows in memory. Who reads too slowly loses the place. A file that ends early ends with an error of the transfer, never like a
//! whole one.

pub mod sending;
mod xlsx;

use std::borrow::Cow;
use std::future::Future;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Uri, header};
use axum::response::{IntoResponse as _, Response};
use hearth_protocol::api::{PAGE_ROWS_MAX, Page};
use hearth_protocol::id::TokenId;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::app::App;
use super::body::parse_query;
use super::caller::Caller;
use super::fault::Fault;
use super::places::Held;
use crate::task;

/// Most rows of one file: what Excel can open, less the line of names.
pub const ROWS_MAX: u32 = 1_000_000;
/// Mark that makes Excel read a CSV file as UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Kind of file.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// Comma-separated values, UTF-8. Cells that spreadsheets would run as formulas begin with `'`.
    Csv,
    /// Excel.
    Xlsx,
}

/// What the file is to be.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExportQuery {
    /// `csv` or `xlsx`. Cells of CSV that a spreadsheet would run as a formula begin with `'`.
    #[param(inline)]
    pub format: FileFormat,
    /// Columns, separated by commas; absent: the usual ones.
    pub columns: Option<String>,
    /// Begin a CSV file with a byte order mark, so that Excel reads it as UTF-8.
    #[serde(default)]
    pub bom: bool,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// A text; guarded in CSV.
    Text(String),
    /// A number.
    Number(u64),
    /// Nothing.
    Empty,
}

impl Cell {
    /// The text of anything that prints.
    pub fn text(value: impl ToString) -> Self {
        Self::Text(value.to_string())
    }

    /// The text, or nothing.
    pub fn maybe<T: ToString>(value: Option<T>) -> Self {
        value.map_or(Self::Empty, Self::text)
    }

    /// The number, or nothing.
    pub fn number(value: Option<u64>) -> Self {
        value.map_or(Self::Empty, Self::Number)
    }
}

/// A column that can be chosen.
#[derive(Debug)]
pub struct Column<T> {
    /// Its name, as in the API's body where there is one.
    pub name: &'static str,
    /// Whether it is there when nobody chooses.
    pub usual: bool,
    /// Its value.
    pub cell: fn(&T) -> Cell,
}

/// What is exported: a noun for the file's name, and the columns.
#[derive(Debug)]
pub struct Sheet<T: 'static> {
    /// Plural noun.
    pub name: &'static str,
    /// All columns, in the order of a file that names none.
    pub columns: &'static [Column<T>],
}

impl<T> Sheet<T> {
    /// The chosen columns in the chosen order.
    ///
    /// # Errors
    /// 400 naming the allowed ones.
    fn chosen(&self, wanted: Option<&str>) -> Result<Vec<&'static Column<T>>, Fault> {
        let Some(wanted) = wanted else {
            return Ok(self.columns.iter().filter(|column| column.usual).collect());
        };
        let names: Vec<&str> = wanted.split(',').map(str::trim).collect();
        let allowed = || self.columns.iter().map(|column| column.name).collect::<Vec<_>>().join(", ");
        if names.len() > self.columns.len() {
            return Err(Fault::invalid("columns", format!("too many columns; there are {}", allowed())));
        }
        let find = |name: &&str| {
            self.columns.iter().find(|column| column.name == *name).ok_or_else(|| {
                let shown: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
                Fault::invalid("columns", format!("there is no column {shown:?}; allowed are {}", allowed()))
            })
        };
        names.iter().map(find).collect()
    }
}

/// A query in two parts: what the file is to be, and what the list takes. `None` if it asks for no file.
///
/// # Errors
/// 400 for a part that cannot be used.
pub fn split(raw: &str) -> Result<Option<(ExportQuery, String)>, Fault> {
    let is_ours = |pair: &&str| matches!(pair.split('=').next(), Some("format" | "columns" | "bom"));
    let (ours, rest): (Vec<&str>, Vec<&str>) =
        raw.split('&').filter(|pair| !pair.is_empty()).partition(is_ours);
    if !ours.iter().any(|pair| pair.split('=').next() == Some("format")) {
        if let Some(pair) = ours.first() {
            let name = pair.split('=').next().unwrap_or_default();
            return Err(Fault::invalid(
                name.to_owned(),
                format!("{name} belongs to an export: add format=csv or xlsx"),
            ));
        }
        return Ok(None);
    }
    for name in ["limit", "cursor"] {
        if rest.iter().any(|pair| pair.split('=').next() == Some(name)) {
            return Err(Fault::invalid(name, format!("a file has all rows: leave {name} out")));
        }
    }
    Ok(Some((parse_list(&ours.join("&"))?, rest.join("&"))))
}

/// A query string as the list's own type.
///
/// # Errors
/// 400 naming the parameter.
pub fn parse_list<T: DeserializeOwned>(query: &str) -> Result<T, Fault> {
    let uri: Result<Uri, _> = format!("/?{query}").parse();
    parse_query(&uri.map_err(|_| Fault::bad_request("the query cannot be used"))?)
}

/// A place among the exports; a token has one of them.
///
/// # Errors
/// 503 if there is none.
pub fn place_of(app: &App, caller: &Caller) -> Result<Held<TokenId>, Fault> {
    app.exports.take(Some(caller.token.id)).ok_or_else(|| {
        Fault::unavailable("too many exports run, or one of your token; try again when one has ended")
    })
}

/// Exports a list. `page` answers like the list's own route and is asked with `list` and a place in it.
///
/// # Errors
/// What `page` answers to its first question; 400 for columns; 413 for too many rows; 503.
pub async fn answer<T, P, F>(
    app: &App,
    caller: &Caller,
    sheet: &'static Sheet<T>,
    export: ExportQuery,
    list: String,
    page: P,
) -> Result<Response, Fault>
where
    T: Send + 'static,
    P: Fn(String) -> F + Send + 'static,
    F: Future<Output = Result<Page<T>, Fault>> + Send + 'static,
{
    let columns = sheet.chosen(export.columns.as_deref())?;
    let place = place_of(app, caller)?;
    let mut rows = Rows { app: app.clone(), columns, page, list, next: None, sent: 0, place };
    // Before the head of the answer: a filter that cannot be used is a 400.
    let first = rows.first().await?;
    let (body, kind, ending) = match export.format {
        FileFormat::Csv => (csv_body(rows, first, export.bom), "text/csv; charset=utf-8", "csv"),
        FileFormat::Xlsx => {
            let kind = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet";
            (xlsx::body(rows, first).await?, kind, "xlsx")
        }
    };
    let mut answer = body.into_response();
    let name = format!("attachment; filename=\"{}.{ending}\"", sheet.name);
    for (key, value) in [(header::CONTENT_TYPE, kind), (header::CONTENT_DISPOSITION, &name)] {
        let value = HeaderValue::from_str(value).map_err(|error| Fault::internal(&error))?;
        answer.headers_mut().insert(key, value);
    }
    Ok(answer)
}

/// A list that is read.
struct Rows<T: 'static, P> {
    app: App,
    columns: Vec<&'static Column<T>>,
    page: P,
    list: String,
    next: Option<String>,
    sent: u32,
    place: Held<TokenId>,
}

type Lines = Vec<Vec<Cell>>;

impl<T, P, F> Rows<T, P>
where
    P: Fn(String) -> F,
    F: Future<Output = Result<Page<T>, Fault>>,
{
    fn names(&self) -> Vec<&'static str> {
        self.columns.iter().map(|column| column.name).collect()
    }

    async fn first(&mut self) -> Result<Lines, Fault> {
        self.read(String::new()).await
    }

    /// The next rows; `None` after the last.
    async fn more(&mut self) -> Result<Option<Lines>, Fault> {
        match self.next.take() {
            Some(cursor) => self.read(format!("&cursor={cursor}")).await.map(Some),
            None => Ok(None),
        }
    }

    async fn read(&mut self, place: String) -> Result<Lines, Fault> {
        if self.app.closing.is_cancelled() {
            return Err(Fault::unavailable("the controller stops"));
        }
        let joint = if self.list.is_empty() { "" } else { "&" };
        let query = format!("{}{joint}limit={PAGE_ROWS_MAX}{place}", self.list);
        let page = (self.page)(query).await?;
        self.sent = self.sent.saturating_add(u32::try_from(page.items.len()).unwrap_or(u32::MAX));
        if self.sent > ROWS_MAX {
            return Err(too_many());
        }
        self.next = page.next;
        let line = |item: &T| self.columns.iter().map(|column| (column.cell)(item)).collect();
        Ok(page.items.iter().map(line).collect())
    }
}

/// 413: the file would have too many rows.
#[must_use]
pub fn too_many() -> Fault {
    Fault::too_large(format!("more than {ROWS_MAX} rows match, and a file holds no more"))
        .hint("narrow it down with a filter, for example a time range, and export in parts")
}

/// A body that is written as its rows are read.
fn csv_body<T, P, F>(mut rows: Rows<T, P>, first: Lines, bom: bool) -> Body
where
    T: Send + 'static,
    P: Fn(String) -> F + Send + 'static,
    F: Future<Output = Result<Page<T>, Fault>> + Send + 'static,
{
    let names = vec![rows.names().into_iter().map(|name| Cell::Text(name.to_owned())).collect()];
    let mut text = if bom { BOM.to_vec() } else { Vec::new() };
    text.extend(csv_text(&names));
    text.extend(csv_text(&first));
    let (mut sink, body) = sending::body();
    task::spawn("export", async move {
        loop {
            if let Err(stopped) = sink.send(Bytes::from(text)).await {
                tracing::info!(%stopped, "an export ended early");
                return;
            }
            text = match rows.more().await {
                Ok(Some(lines)) => csv_text(&lines),
                Ok(None) => break,
                Err(fault) => {
                    let parts = fault.parts();
                    tracing::warn!(message = parts.message, cause = parts.cause, "an export ended early");
                    return;
                }
            };
        }
        // The place first: who has the whole file may ask for another.
        drop(rows);
        sink.finish();
    });
    body
}

/// Lines of CSV, with CR LF as RFC 4180 wants it. Texts are quoted, so that no list separator of a locale splits them.
fn csv_text(lines: &[Vec<Cell>]) -> Vec<u8> {
    let mut writer = csv::WriterBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .quote_style(csv::QuoteStyle::NonNumeric)
        .from_writer(Vec::new());
    for line in lines {
        let cells = line.iter().map(|cell| match cell {
            Cell::Text(text) => guarded(text),
            Cell::Number(number) => Cow::Owned(number.to_string()),
            Cell::Empty => Cow::Borrowed(""),
        });
        writer.write_record(cells.map(|cell| cell.into_owned())).expect("a Vec takes everything");
    }
    writer.into_inner().expect("a Vec takes everything")
}

/// The text so that no spreadsheet runs it.
#[must_use]
pub fn guarded(text: &str) -> Cow<'_, str> {
    let runs = |c: char| matches!(c, '=' | '+' | '-' | '@' | '\t' | '\r' | '\n' | '＝' | '＋' | '－' | '＠');
    if text.starts_with(runs) { Cow::Owned(format!("'{text}")) } else { Cow::Borrowed(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_of_csv_begins_like_a_formula() {
        for text in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "=cmd|' /C calc'!A0"] {
            let line = String::from_utf8(csv_text(&[vec![Cell::Text(text.to_owned())]])).unwrap();
            assert!(line.starts_with("\"'"), "{line:?}");
            let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(line.as_bytes());
            let read = reader.records().next().unwrap().unwrap();
            assert_eq!(&read[0], format!("'{text}"), "nothing is lost");
        }
        for text in ["a=1", "1", "镜像", "'=1", ""] {
            assert_eq!(guarded(text), text);
        }
        assert_eq!(csv_text(&[vec![Cell::Number(7), Cell::Empty]]), b"7,\"\"\r\n");
    }

    #[test]
    fn quotes_commas_and_lines_stay_in_their_cell() {
        let line = csv_text(&[vec![Cell::text("a\",=1\r\n=2"), Cell::text("b;=3")]]);
        assert_eq!(line, b"\"a\"\",=1\r\n=2\",\"b;=3\"\r\n");
    }

    #[test]
    fn a_query_is_split_between_file_and_list() {
        assert!(split("status=active&q=a").unwrap().is_none());
        let (export, list) = split("q=%3D&format=csv&columns=a%2Cb&status=active&bom=true").unwrap().unwrap();
        assert_eq!(
            (export.format, export.columns.as_deref(), export.bom),
            (FileFormat::Csv, Some("a,b"), true)
        );
        assert_eq!(list, "q=%3D&status=active");
        for (query, field) in [
            ("format=pdf", "format"),
            ("format=csv&limit=1", "limit"),
            ("format=csv&cursor=", "cursor"),
            ("columns=a", "columns"),
            ("format=csv&bom=perhaps", "bom"),
        ] {
            assert_eq!(split(query).unwrap_err().parts().field.as_deref(), Some(field), "{query}");
        }
    }
}
