//! The file of an archived part of the operation log: how it is written, and how it is proven.
//!
//! ```text
//! zstd( {"begin":{format, instance, first_seq, prev_hash, build, made_unix_ms}}
//!       {"row":{seq, id, time_us, who, …, details, prev_hash, hash}}      one line a row, every column as it was stored
//!       {"segment":{first_seq, last_seq, hash}}                           after each part that was removed at once
//!       {"end":{rows, last_seq, hash}} )
//! ```
//!
//! **Why JSON lines.** In ten years somebody reads this with whatever there is then: `zstd -dc FILE | jq` needs no Hearth.
//!
//! **Why columns as they were stored.** The hash covers their bytes; JSON that was read and written again may have others.
//!
//! **Invariants.** A file without its last line proves nothing. Memory is bounded by one line of [`LINE_BYTES_MAX`].

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::db::archived::{Archivable, ArchivedRow, Segment, genesis_hash};
use crate::logic::chain::{Link, Mark, Verdict, Walk};

/// Form of the file; a newer program may raise it.
const FORMAT: u32 = 1;
/// Longest line, bytes: details come from JSON bodies of a megabyte, and are a text inside a text here.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// Largest number of a row: the database's own. Protects the arithmetic of whoever reads a file of a stranger.
const SEQ_MAX: u64 = i64::MAX as u64;
/// Largest window that a file may ask for, as a power of two: 8 MiB. Protects the reader's memory.
const WINDOW_LOG_MAX: u32 = 23;
/// Level of compression: texts of one form pack well at the default.
const ZSTD_LEVEL: i32 = 3;

/// Why a file cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogFileError {
    /// The operating system.
    #[error("cannot {verb} {path}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{path}, line {line}: {what}")]
    Form {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What is wrong.
        what: String,
    },
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> LogFileError {
    let path = path.to_owned();
    move |source| LogFileError::File { verb, path, source }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Begin(Begin),
    Row(Box<ArchivedRow>),
    Segment(Segment),
    End(End),
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Begin {
    format: u32,
    instance: String,
    first_seq: u64,
    prev_hash: String,
    build: String,
    made_unix_ms: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct End {
    rows: u64,
    last_seq: u64,
    hash: String,
}

/// A file that is written. Dropped before [`Writer::finish`], it leaves only `FILE.part`.
pub struct Writer {
    path: PathBuf,
    part: PathBuf,
    out: zstd::Encoder<'static, BufWriter<File>>,
    rows: u64,
    first_seq: u64,
    last: Mark,
    segments: Vec<Segment>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("path", &self.path).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Writer {
    /// Begins `path`, which must not exist, beside it as `path.part`.
    ///
    /// # Errors
    /// [`LogFileError::File`].
    pub fn begin(path: &Path, what: &Archivable, made_unix_ms: u64) -> Result<Self, LogFileError> {
        use std::os::unix::fs::OpenOptionsExt as _;
        if path.exists() {
            let exists = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(failed("write over", path)(exists));
        }
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        // One that a crash left behind: nothing was removed for it.
        let opened = File::options().create(true).truncate(true).write(true).mode(0o600).open(&part);
        let file = opened.map_err(failed("make", &part))?;
        let out = zstd::Encoder::new(BufWriter::new(file), ZSTD_LEVEL).map_err(failed("write", &part))?;
        let first_seq = what.begin.seq + 1;
        let begin = Begin {
            format: FORMAT,
            instance: what.instance.clone(),
            first_seq,
            prev_hash: what.begin.hash.clone(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            made_unix_ms,
        };
        let (path, last) = (path.to_owned(), what.begin.clone());
        let mut this = Self { path, part, out, rows: 0, first_seq, last, segments: Vec::new() };
        this.line(&Line::Begin(begin))?;
        Ok(this)
    }

    /// Writes one segment.
    ///
    /// # Errors
    /// [`LogFileError::Form`] for a row that does not follow the one before: a damaged log is not archived.
    pub fn segment(&mut self, rows: Vec<ArchivedRow>) -> Result<(), LogFileError> {
        let Some(first_seq) = rows.first().map(|row| row.seq) else { return Ok(()) };
        for row in rows {
            let follows = row.seq == self.last.seq + 1 && row.prev_hash == self.last.hash;
            if !follows || row.hash != row.computed() {
                let what = format!(
                    "row {} of the log was changed or does not follow; see `hearth log verify`",
                    row.seq
                );
                return Err(LogFileError::Form { path: self.part.clone(), line: self.rows + 2, what });
            }
            self.last = Mark { seq: row.seq, hash: row.hash.clone() };
            self.rows += 1;
            self.line(&Line::Row(Box::new(row)))?;
        }
        let segment = Segment { first_seq, last_seq: self.last.seq, hash: self.last.hash.clone() };
        self.line(&Line::Segment(segment.clone()))?;
        self.segments.push(segment);
        Ok(())
    }

    /// Ends the file, syncs it, gives it its name, and syncs its folder. What may be removed now.
    ///
    /// # Errors
    /// [`LogFileError::File`]; then nothing may be removed.
    pub fn finish(mut self) -> Result<Vec<Segment>, LogFileError> {
        let end = End { rows: self.rows, last_seq: self.last.seq, hash: self.last.hash.clone() };
        self.line(&Line::End(end))?;
        let Self { path, part, out, segments, .. } = self;
        let buffer = out.finish().map_err(failed("write", &part))?;
        let file = buffer.into_inner().map_err(|error| failed("write", &part)(error.into_error()))?;
        file.sync_all().map_err(failed("sync", &part))?;
        // Fails if the name was taken meanwhile; a rename would put an older archive aside.
        std::fs::hard_link(&part, &path).map_err(failed("give its name to", &path))?;
        std::fs::remove_file(&part).map_err(failed("remove the other name of", &part))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or_else(|| Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync", folder))?;
        Ok(segments)
    }

    /// Number of the first row.
    #[must_use]
    pub const fn first_seq(&self) -> u64 {
        self.first_seq
    }

    fn line(&mut self, line: &Line) -> Result<(), LogFileError> {
        let mut text = serde_json::to_vec(line).expect("plain texts and numbers");
        text.push(b'\n');
        self.out.write_all(&text).map_err(failed("write", &self.part))
    }
}

/// What a file says, and whether it is so.
#[derive(Clone, Debug, PartialEq)]
pub struct Proof {
    /// Id of the instance whose log it is.
    pub instance: String,
    /// Number of its first row.
    pub first_seq: u64,
    /// Its last row.
    pub last: Mark,
    /// Rows in it.
    pub rows: u64,
    /// The chain in it.
    pub verdict: Verdict,
    /// Marks of the database that have another hash here.
    pub strangers: Vec<Mark>,
}

/// Reads a whole file and checks its chain. `marks` are rows of the database, by number, that it must agree with.
///
/// # Errors
/// [`LogFileError`] if it is no whole archive. A broken chain is a result.
pub fn read(path: &Path, marks: &[Mark]) -> Result<Proof, LogFileError> {
    let mut lines = Lines::open(path)?;
    let begin = match lines.next()? {
        Some(Line::Begin(begin)) if begin.format == FORMAT => begin,
        Some(Line::Begin(begin)) => {
            return Err(lines.wrong(format!("form {} is newer than this program", begin.format)));
        }
        _ => return Err(lines.wrong("this is no archive of an operation log")),
    };
    let genesis = || genesis_hash(&begin.instance);
    if !(1..=SEQ_MAX).contains(&begin.first_seq) || begin.first_seq == 1 && begin.prev_hash != genesis() {
        return Err(lines.wrong("it does not begin where the log of its instance does"));
    }
    let mut walk = Walk::new(&Mark { seq: begin.first_seq - 1, hash: begin.prev_hash.clone() });
    let (mut rows, mut strangers) = (0, Vec::new());
    let mut last = Mark { seq: begin.first_seq - 1, hash: begin.prev_hash };
    loop {
        match lines.next()? {
            Some(Line::Row(row)) => {
                let computed = row.computed();
                let (seq, id) = (row.seq, row.id.as_str());
                if seq > SEQ_MAX {
                    return Err(lines.wrong(format!("no log has a row {seq}")));
                }
                if seq <= last.seq {
                    return Err(lines.wrong(format!("row {seq} stands after row {}", last.seq)));
                }
                walk.see(&Link { seq, id, prev_hash: &row.prev_hash, hash: &row.hash, computed: &computed });
                let mark = marks.binary_search_by_key(&seq, |mark| mark.seq).ok().map(|at| &marks[at]);
                strangers.extend(mark.filter(|mark| mark.hash != computed).cloned());
                (rows, last) = (rows + 1, Mark { seq, hash: row.hash });
            }
            Some(Line::Segment(segment)) if segment.last_seq == last.seq && segment.hash == last.hash => {}
            Some(Line::End(end)) if (end.rows, end.last_seq, &end.hash) == (rows, last.seq, &last.hash) => {
                break;
            }
            Some(_) => return Err(lines.wrong("it does not say what stands before it")),
            None => return Err(lines.wrong("the file ends before its end: it was cut off")),
        }
    }
    if lines.next()?.is_some() {
        return Err(lines.wrong("there is more after the end"));
    }
    let (instance, first_seq) = (begin.instance, begin.first_seq);
    Ok(Proof { instance, first_seq, verdict: walk.end(&last), last, rows, strangers })
}

struct Lines {
    path: PathBuf,
    input: BufReader<zstd::Decoder<'static, BufReader<File>>>,
    line: u64,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, LogFileError> {
        let file = File::open(path).map_err(failed("open", path))?;
        let mut input = zstd::Decoder::new(file).map_err(failed("read", path))?;
        input.window_log_max(WINDOW_LOG_MAX).map_err(failed("read", path))?;
        Ok(Self { path: path.to_owned(), input: BufReader::new(input), line: 0 })
    }

    fn next(&mut self) -> Result<Option<Line>, LogFileError> {
        self.line += 1;
        let mut text = Vec::new();
        let read = (&mut self.input).take(LINE_BYTES_MAX).read_until(b'\n', &mut text);
        if read.map_err(failed("unpack", &self.path))? == 0 {
            return Ok(None);
        }
        if text.last() != Some(&b'\n') {
            return Err(self.wrong("the line has no end: it was cut off, or is too long"));
        }
        serde_json::from_slice(&text).map(Some).map_err(|error| self.wrong(error.to_string()))
    }

    fn wrong(&self, what: impl Into<String>) -> LogFileError {
        LogFileError::Form { path: self.path.clone(), line: self.line, what: what.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_no_log_has_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.zst");
        let begin = |first_seq: u64| {
            let (instance, prev_hash, build) = ("i".to_owned(), String::new(), String::new());
            Line::Begin(Begin { format: FORMAT, instance, first_seq, prev_hash, build, made_unix_ms: 0 })
        };
        let row = serde_json::json!({ "row": {
            "seq": u64::MAX, "id": "", "time_us": 0, "who": "", "who_kind": "", "action": "", "target_kind": "",
            "target_id": "", "target_name": "", "result": "", "details": "", "prev_hash": "", "hash": "",
        }});
        for (begin, wrong) in [(begin(u64::MAX), "does not begin"), (begin(2), "no log has a row")] {
            let lines = format!("{}\n{row}\n", serde_json::to_string(&begin).unwrap());
            std::fs::write(&path, zstd::encode_all(lines.as_bytes(), 1).unwrap()).unwrap();
            let error = read(&path, &[]).unwrap_err();
            assert!(error.to_string().contains(wrong), "{error}");
        }
    }
}
