//! `hearth image download`: the file as it was imported or in another format, checked, and resumed where it broke off.
//!
//! **What.** Bytes go to `FILE.part` and are hashed on the way; after a broken connection, or in the next call, the rest
//! is asked for with `Range`. The file gets its name when its SHA-256 is right.
//! **Why the part file is hashed again on resume.** What an earlier call left behind is not trusted.
//! **Invariants.** A file with the final name holds exactly the bytes that the controller vouches for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use hearth_protocol::api::image::Image;
use hearth_protocol::words::DiskFormat;
use reqwest::{Response, StatusCode, header};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::variant;
use crate::args::Session;
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::names;
use crate::output::printable;
use crate::progress::{Mode, Steps};

/// A stream that is silent for so long is broken.
const STREAM_WAIT_MAX: Duration = Duration::from_secs(60);
/// Tries in a row that bring no byte before the command gives up.
const IDLE_TRIES_MAX: u32 = 5;
/// Pause before the connection is made again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Bytes per read when a part file is hashed again.
const READ_BYTES: usize = 1 << 20;

/// What is downloaded.
#[derive(Clone, Debug)]
struct Wanted {
    /// Path of the call.
    path: Vec<String>,
    /// Name of the image.
    name: String,
    sha256: String,
    bytes: Option<u64>,
}

impl Wanted {
    /// The file as it was imported.
    fn original(image: &Image) -> Result<Self, Failure> {
        let sha256 = image.checksums.sha256.clone().ok_or_else(|| {
            Failure::new(Exit::Refused, format!("{} is {} and has no file yet", image.name, image.status))
        })?;
        let path = vec!["images".to_owned(), image.id.to_string(), "file".to_owned()];
        Ok(Self { path, name: image.name.clone(), sha256, bytes: image.original_bytes })
    }

    /// The image in `format`; has it made and waits if need be.
    async fn variant(session: &Session, image: &Image, format: DiskFormat) -> anyhow::Result<Self> {
        let variant = variant::ready(session, image, format).await?;
        let (id, word) = (image.id.to_string(), format.to_string());
        let path = vec!["images".to_owned(), id, "variants".to_owned(), word, "file".to_owned()];
        let sha256 = variant.sha256.context("the controller names no sha256 of the variant")?;
        Ok(Self { path, name: image.name.clone(), sha256, bytes: variant.bytes })
    }

    fn path(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).collect()
    }
}

/// Download the file as it was imported, or in another format.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image download noble
  hearth image download noble --file /srv/noble.qcow2     # resumes /srv/noble.qcow2.part
  hearth image download noble --format vmdk               # has it made if need be, and waits
  hearth image download noble --file - | qemu-img info /dev/stdin")]
pub(crate) struct Download {
    /// Name or id
    image: String,
    /// raw, qcow2, vmdk, vhd or vhdx, made from the image (default: the file as it was imported)
    #[arg(long)]
    format: Option<DiskFormat>,
    /// Where to (default: the image's name and format in this folder); - for stdout
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Replace a file that is there
    #[arg(long)]
    overwrite: bool,
}

impl Download {
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let image = names::image(&session.client, &self.image).await?;
        // Before a variant is made for nothing.
        let path =
            self.file.clone().unwrap_or_else(|| default_path(&image.name, self.format.or(image.format)));
        let to_stdout = path == Path::new("-");
        if !to_stdout && path.exists() && !self.overwrite {
            return Err(Failure::new(Exit::Usage, format!("{} is there already", path.display()))
                .hint("add --overwrite, or choose another --file")
                .into());
        }
        let wanted = match self.format {
            Some(format) => Wanted::variant(session, &image, format).await?,
            None => Wanted::original(&image)?,
        };
        let mut steps = Steps::new(Mode::of_stderr(session.quiet), &image.name);
        if to_stdout {
            print(&session.client, &wanted, &mut steps).await?;
            return Ok(Exit::Ok);
        }
        to_file(&session.client, &wanted, &path, &mut steps).await?;
        steps.end(&format!("saved as {}, sha256 {}", path.display(), wanted.sha256));
        Ok(Exit::Ok)
    }
}

fn default_path(name: &str, format: Option<DiskFormat>) -> PathBuf {
    let name: String = printable(name).replace('/', "_");
    let name = name.trim_start_matches('.');
    let ending = format.map(|format| format!(".{format}")).unwrap_or_default();
    PathBuf::from(if name.ends_with(&ending) { name.to_owned() } else { format!("{name}{ending}") })
}

fn wrong_hash(name: &str, got: &str, expected: &str) -> Failure {
    Failure::new(Exit::Failed, format!("{name} arrived with sha256 {got}, expected is {expected}"))
        .hint("the partial file was removed; try again, and run `hearth doctor` if it happens twice")
}

async fn print(client: &Client, wanted: &Wanted, steps: &mut Steps) -> anyhow::Result<()> {
    let answer = client.get_stream(&wanted.path(), 0, None).await?;
    steps.bytes("downloading", 0, wanted.bytes);
    let mut hash = Sha256::new();
    let mut stdout = tokio::io::stdout();
    copy(answer, &mut stdout, &mut hash, steps).await?;
    stdout.flush().await?;
    let got = hex(&hash.finalize());
    if got != wanted.sha256 {
        return Err(wrong_hash(&wanted.name, &got, &wanted.sha256).into());
    }
    Ok(())
}

async fn to_file(client: &Client, wanted: &Wanted, path: &Path, steps: &mut Steps) -> anyhow::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let mut hash = Sha256::new();
    let mut file = tokio::fs::OpenOptions::new();
    let opened = file.create(true).truncate(false).read(true).write(true).open(&part).await;
    let mut file = opened.with_context(|| format!("writing {}", part.display()))?;
    let mut done = hash_existing(&mut file, &mut hash).await?;
    let mut idle_tries = 0;
    let mut last_error = None;
    while wanted.bytes.is_none_or(|total| done < total) {
        if idle_tries >= IDLE_TRIES_MAX {
            let error = last_error.unwrap_or_else(|| anyhow::anyhow!("the stream ended early"));
            return Err(
                error.context(format!("{done} bytes are kept in {}; call again to go on", part.display()))
            );
        }
        let before = done;
        match once(client, wanted, &mut file, &mut hash, &mut done, steps).await {
            Ok(Progress::Complete) => break,
            Ok(Progress::Broken) => {}
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => last_error = Some(error),
        }
        idle_tries = if done > before { 0 } else { idle_tries + 1 };
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    let got = hex(&hash.finalize());
    if got != wanted.sha256 {
        tokio::fs::remove_file(&part).await.ok();
        return Err(wrong_hash(&wanted.name, &got, &wanted.sha256).into());
    }
    file.sync_all().await.with_context(|| format!("writing {}", part.display()))?;
    tokio::fs::rename(&part, path).await.with_context(|| format!("naming {}", path.display()))
}

/// How one connection ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Progress {
    Complete,
    Broken,
}

/// One connection: asks for what is missing and appends it.
async fn once(
    client: &Client,
    wanted: &Wanted,
    file: &mut tokio::fs::File,
    hash: &mut Sha256,
    done: &mut u64,
    steps: &mut Steps,
) -> anyhow::Result<Progress> {
    let etag = format!("\"{}\"", wanted.sha256);
    let answer = client.get_stream(&wanted.path(), *done, Some(&etag)).await?;
    if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE
        || (*done > 0 && answer.status() == StatusCode::OK)
    {
        // More than the file has, or another file: begin anew.
        file.set_len(0).await?;
        tokio::io::AsyncSeekExt::rewind(file).await?;
        *hash = Sha256::new();
        *done = 0;
        if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(Progress::Broken);
        }
    }
    let length =
        answer.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let total = wanted.bytes.or_else(|| length.map(|length| *done + length));
    steps.bytes("downloading", *done, total);
    let mut counted = Counted { file, done };
    let copied = copy(answer, &mut counted, hash, steps).await;
    file.flush().await.context("writing the partial file")?;
    copied?;
    Ok(if total.is_none_or(|total| *done >= total) { Progress::Complete } else { Progress::Broken })
}

/// A local write error or a refusal does not go away by connecting again.
fn is_final(error: &anyhow::Error) -> bool {
    let refused = error.downcast_ref::<Failure>().is_some_and(|failure| failure.exit != Exit::Unreachable);
    refused || error.chain().any(|cause| cause.is::<std::io::Error>() && !cause.is::<reqwest::Error>())
}

struct Counted<'a> {
    file: &'a mut tokio::fs::File,
    done: &'a mut u64,
}

impl Counted<'_> {
    async fn append(&mut self, part: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(part).await.context("writing the partial file")?;
        *self.done += part.len() as u64;
        Ok(())
    }
}

/// Where a stream goes.
trait Sink {
    async fn take(&mut self, part: &[u8]) -> anyhow::Result<()>;
}

impl Sink for Counted<'_> {
    async fn take(&mut self, part: &[u8]) -> anyhow::Result<()> {
        self.append(part).await
    }
}

impl Sink for tokio::io::Stdout {
    async fn take(&mut self, part: &[u8]) -> anyhow::Result<()> {
        write_out(self, part).await
    }
}

async fn write_out<W: AsyncWrite + Unpin>(writer: &mut W, part: &[u8]) -> anyhow::Result<()> {
    Ok(writer.write_all(part).await?)
}

async fn copy<S: Sink>(
    mut answer: Response,
    sink: &mut S,
    hash: &mut Sha256,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    loop {
        let next = tokio::time::timeout(STREAM_WAIT_MAX, answer.chunk()).await;
        let next = next.map_err(|_| {
            Failure::new(Exit::Unreachable, format!("no byte arrived for {} s", STREAM_WAIT_MAX.as_secs()))
        })?;
        let next = next.map_err(|e| Failure::new(Exit::Unreachable, format!("the connection broke: {e}")))?;
        let Some(part) = next else { return Ok(()) };
        sink.take(&part).await?;
        hash.update(&part);
        steps.moved(part.len() as u64);
    }
}

/// Hashes what is there and leaves the file at its end.
async fn hash_existing(file: &mut tokio::fs::File, hash: &mut Sha256) -> anyhow::Result<u64> {
    let mut buffer = vec![0; READ_BYTES];
    let mut done = 0;
    loop {
        let count = file.read(&mut buffer).await.context("reading the partial file")?;
        if count == 0 {
            return Ok(done);
        }
        hash.update(&buffer[..count]);
        done += count as u64;
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}
