//! Excel files: rows go to disk one by one, and are packed into the answer when all are there.
//!
//! **Why on disk first.** The library keeps nothing of a row in memory once it is written, and a list that fails half-way is still
//! answered with its status: no head was sent yet.
//!
//! **Invariants.** The file on disk has no name and ends with the export. A body that ends early ends with an error.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use axum::body::{Body, Bytes};
use hearth_protocol::api::Page;
use hearth_protocol::id::TokenId;
use rust_xlsxwriter::{Workbook, XlsxError};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::sending::{self, PART_BYTES, Sink};
use super::{Cell, Lines, Rows};
use crate::api::fault::Fault;
use crate::api::places::Held;

/// Most UTF-16 units of an Excel cell (its limit is 32,767); a longer text is cut and says so.
const CELL_UNITS_MAX: usize = 32_000;
/// Integers that Excel's floating-point cells hold exactly.
const EXACT_MAX: u64 = 1 << 53;

/// Writes all rows to disk, then packs them into a body.
///
/// # Errors
/// What the list answers; 507.
pub(super) async fn body<T, P, F>(mut rows: Rows<T, P>, first: Lines) -> Result<Body, Fault>
where
    P: Fn(String) -> F,
    F: Future<Output = Result<Page<T>, Fault>>,
{
    let folder = rows.app.config.state_dir.clone();
    let names = rows.names();
    let (sender, receiver) = mpsc::channel(1);
    let writing = tokio::task::spawn_blocking(move || write_sheet(folder, &names, receiver));
    let mut lines = Some(first);
    while let Some(some) = lines {
        if sender.send(some).await.is_err() {
            break; // The writer failed, and says why below.
        }
        lines = rows.more().await?;
    }
    drop(sender);
    // The library panics where a row cannot be written; a full disk is what that is.
    let no_room = || {
        Fault::no_space("the controller cannot write the Excel file: its disk is full")
            .hint("export as CSV, which needs no room, or make room in state_dir")
    };
    let book = match writing.await {
        Ok(Ok(book)) => book,
        Ok(Err(XlsxError::IoError(error))) if error.kind() == io::ErrorKind::StorageFull => {
            return Err(no_room());
        }
        Ok(Err(error)) => return Err(Fault::internal(&error)),
        Err(error) if error.is_panic() => return Err(no_room()),
        Err(error) => return Err(Fault::internal(&error)),
    };
    Ok(packed(book, rows.place))
}

/// The bytes of the file, as they are packed. `place` is held until all are sent.
fn packed(mut book: Workbook, place: Held<TokenId>) -> Body {
    let (sink, body) = sending::body();
    let runtime = Handle::current();
    drop(tokio::task::spawn_blocking(move || {
        let mut sink = sink;
        let parts = Parts { sink: &mut sink, runtime };
        let writer = io::BufWriter::with_capacity(PART_BYTES, parts);
        let packed = catch_unwind(AssertUnwindSafe(|| book.save_to_writer(writer)));
        // The place first: who has the whole file may ask for another.
        drop(place);
        match packed {
            Ok(Ok(())) => sink.finish(),
            _ => tracing::warn!(
                "an export ended early: its client is gone or too slow, or its rows cannot be read from disk"
            ),
        }
    }));
    body
}

/// Runs on a thread of its own: takes rows until there are no more.
fn write_sheet(
    folder: PathBuf,
    names: &[&'static str],
    mut rows: mpsc::Receiver<Lines>,
) -> Result<Workbook, XlsxError> {
    let mut book = Workbook::new();
    book.set_tempdir(folder)?;
    let sheet = book.add_worksheet_with_constant_memory()?;
    for (column, name) in (0..).zip(names) {
        sheet.write_string(0, column, *name)?;
    }
    let mut row = 0;
    while let Some(lines) = rows.blocking_recv() {
        for line in lines {
            row += 1;
            for (column, cell) in (0..).zip(line) {
                match cell {
                    Cell::Text(text) => drop(sheet.write_string(row, column, shortened(text))?),
                    Cell::Number(number) if number <= EXACT_MAX => {
                        sheet.write_number(row, column, number as f64)?;
                    }
                    Cell::Number(number) => drop(sheet.write_string(row, column, number.to_string())?),
                    Cell::Empty => {}
                }
            }
        }
    }
    Ok(book)
}

/// The text as far as an Excel cell holds it.
fn shortened(text: String) -> String {
    if text.len() <= CELL_UNITS_MAX || text.encode_utf16().count() <= CELL_UNITS_MAX {
        return text;
    }
    let mut units = 0;
    let fits = |c: &char| {
        units += c.len_utf16();
        units <= CELL_UNITS_MAX
    };
    let mut short: String = text.chars().take_while(fits).collect();
    short.push_str("… (cut: Excel holds no more in a cell)");
    short
}

/// A writer whose bytes become parts of a body.
struct Parts<'a> {
    sink: &'a mut Sink,
    runtime: Handle,
}

impl io::Write for Parts<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.runtime.block_on(self.sink.send(Bytes::copy_from_slice(bytes)));
        sent.map_err(|stopped| io::Error::new(io::ErrorKind::BrokenPipe, stopped))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let short = shortened("𝄞".repeat(20_000));
        assert!(short.starts_with('𝄞') && short.contains("… (cut"));
        assert!(short.encode_utf16().count() < 32_767);
        assert_eq!(shortened("镜".repeat(32_000)).chars().count(), 32_000);
    }
}
