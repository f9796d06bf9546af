//! Lists as files: `hearth image export` and `hearth log export`.
//!
//! **What.** The controller makes the file; this writes it to `FILE.part` and gives it its name when all of it came.
//!
//! **Invariants.** A file with the final name is whole. A file that is there is not written over unless the caller says so.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tokio::io::AsyncWriteExt as _;

use crate::args::Session;
use crate::failure::{Exit, Failure};

/// A stream that is silent for so long is broken.
const STREAM_WAIT_MAX: Duration = Duration::from_secs(60);

/// Kind of file.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum FileKind {
    /// Comma-separated values, UTF-8; cells that a spreadsheet would run as a formula begin with '
    Csv,
    /// Excel
    Xlsx,
}

impl FileKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Xlsx => "xlsx",
        }
    }
}

/// Where a file goes and what is in it.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Where to; its ending says csv or xlsx; - for stdout
    file: PathBuf,
    /// Columns in this order, separated by commas; a wrong one names all there are
    #[arg(long, value_name = "NAMES")]
    columns: Option<String>,
    /// Kind of file, where its ending does not say
    #[arg(long, value_enum)]
    format: Option<FileKind>,
    /// Begin CSV with a byte order mark, so that Excel reads it as UTF-8
    #[arg(long)]
    bom: bool,
    /// Replace a file that is there
    #[arg(long)]
    overwrite: bool,
}

impl Export {
    /// Fetches what `path` lists with the filters of `query`.
    pub(crate) async fn run(
        self,
        session: &Session,
        path: &[&str],
        query: &[(&str, Option<String>)],
    ) -> anyhow::Result<Exit> {
        let kind = self.kind()?;
        let to_stdout = self.file == Path::new("-");
        if !to_stdout && self.file.exists() && !self.overwrite {
            return Err(Failure::new(Exit::Usage, format!("{} is there already", self.file.display()))
                .hint("add --overwrite, or choose another file")
                .into());
        }
        let mut query = query.to_vec();
        query.push(("format", Some(kind.as_str().to_owned())));
        query.push(("columns", self.columns));
        query.push(("bom", self.bom.then(|| "true".to_owned())));
        let answer = session.client.get_file(path, &query).await?;
        if to_stdout {
            copy(answer, &mut tokio::io::stdout()).await?;
            return Ok(Exit::Ok);
        }
        let mut part = self.file.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let bytes = match save(answer, &part).await {
            Ok(bytes) => bytes,
            Err(error) => {
                // Half a table is worth nothing; the error says why.
                drop(tokio::fs::remove_file(&part).await);
                return Err(error);
            }
        };
        let naming = || format!("naming {}", self.file.display());
        tokio::fs::rename(&part, &self.file).await.with_context(naming)?;
        session.out.remark(&format!("saved {} ({})", self.file.display(), crate::size::human(bytes)))?;
        Ok(Exit::Ok)
    }

    fn kind(&self) -> Result<FileKind, Failure> {
        let ending = self.file.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
        match (self.format, ending.as_deref()) {
            (Some(kind), _) => Ok(kind),
            (None, Some("csv")) => Ok(FileKind::Csv),
            (None, Some("xlsx")) => Ok(FileKind::Xlsx),
            (None, _) => Err(Failure::new(
                Exit::Usage,
                format!("{} ends neither in .csv nor in .xlsx", self.file.display()),
            )
            .hint("say --format csv or --format xlsx")),
        }
    }
}

async fn save(answer: reqwest::Response, part: &Path) -> anyhow::Result<u64> {
    let writing = || format!("writing {}", part.display());
    let mut file = tokio::fs::File::create(part).await.with_context(writing)?;
    let bytes = copy(answer, &mut file).await?;
    file.sync_all().await.with_context(writing)?;
    Ok(bytes)
}

async fn copy(
    mut answer: reqwest::Response,
    out: &mut (impl tokio::io::AsyncWrite + Unpin),
) -> anyhow::Result<u64> {
    let mut bytes = 0;
    loop {
        let next = tokio::time::timeout(STREAM_WAIT_MAX, answer.chunk()).await;
        let next = next.map_err(|_| {
            Failure::new(Exit::Unreachable, format!("no byte arrived for {} s", STREAM_WAIT_MAX.as_secs()))
        })?;
        let next = next.map_err(|error| {
            Failure::new(Exit::Failed, format!("the export broke off: {error}"))
                .hint("the controller's log says why; export in parts, for example by time range")
        })?;
        let Some(part) = next else { break };
        out.write_all(&part).await?;
        bytes += part.len() as u64;
    }
    out.flush().await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(file: &str, format: Option<FileKind>) -> Result<FileKind, Failure> {
        Export { file: file.into(), columns: None, format, bom: false, overwrite: false }.kind()
    }

    #[test]
    fn the_ending_says_what_the_file_is() {
        assert_eq!(kind("a.xlsx", None), Ok(FileKind::Xlsx));
        assert_eq!(kind("a.CSV", None), Ok(FileKind::Csv));
        assert_eq!(kind("-", Some(FileKind::Csv)), Ok(FileKind::Csv));
        assert_eq!(kind("-", None).unwrap_err().exit, Exit::Usage);
    }
}
