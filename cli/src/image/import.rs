//! `hearth image import`: a record, the stream, and the import's stages.
//!
//! **What.** Makes the record, streams the file (a name or `-` for stdin) and follows the import until it is `active`.
//! [`super::send`] goes on after what broke; [`super::fetch`] lets the controller get a URL.
//! **Why the record first.** A name that is taken or a wrong checksum's form is told before gigabytes are sent.
//! **Invariants.** A record whose upload was refused is taken away again, so that the same command can be repeated. One whose
//! controller went away stays, and `--resume` goes on with it; one of a file with the wrong checksum stays as well, killed, with
//! its reason.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use futures::{Stream, StreamExt as _};
use hearth_protocol::api::image::{Checksums, Image, ImageCreate};
use hearth_protocol::api::key::EncryptWith;
use hearth_protocol::api::source::ImageSource;
use hearth_protocol::words::{DiskFormat, ImageKind, ImageStatus, Virtualisation};
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use super::attributes::Attributes;
use super::send::{self, Sending};
use super::unfinished::{self, Begun};
use super::{SEE, facts, fetch};
use crate::args::Session;
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::progress::{Mode, Steps};
use crate::{names, size, system};

/// Bytes per read of the file: large enough that reading costs little.
const READ_BYTES: usize = 1 << 20;
/// Pause between two looks at an import.
pub(super) const LOOK_PAUSE: Duration = Duration::from_millis(300);

/// Import a disk image or ISO file.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image import noble.qcow2 --name noble
  hearth image import install.iso --kind iso --sha256 0f1e…
  hearth image import --resume noble noble.qcow2
  hearth image import https://cloud.example/noble.qcow2.xz --check
  hearth image import https://cloud.example/noble.qcow2.xz --name noble --expect-sha256 0f1e…
  hearth image import 'ftp://user:password@files.example/noble.img'
  hearth image import s3://images/noble.qcow2 --no-wait
  hearth image import disk.vmdk --format vmdk --architecture x86_64 --os-type linux --property team=db
  hearth image import noble.qcow2 --disk-size 40GiB --tag prod --tag db --disk-driver virtio
  hearth image import payroll.qcow2 --encrypt new
  zstdcat disk.raw.zst | hearth image import - --name disk --format raw --no-wait")]
pub(crate) struct Import {
    /// The file, - for stdin, or a URL that the controller fetches: http, https, ftp, ftps or s3://BUCKET/OBJECT
    #[arg(value_name = "FILE|URL")]
    file: PathBuf,
    /// Go on with the upload of this image, which an earlier call began with the same file
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["name", "check"])]
    resume: Option<String>,
    /// Only say what the URL is: size, type, and whether a broken transfer can go on
    #[arg(long)]
    check: bool,
    /// Name in the catalog (default: the file's name without its ending)
    #[arg(long)]
    name: Option<String>,
    /// Format of the file: raw, qcow2, vmdk, vhd, vhdx or iso (default: found out)
    #[arg(long)]
    format: Option<DiskFormat>,
    /// disk or iso (default: iso for a file that ends in .iso, else disk)
    #[arg(long)]
    kind: Option<ImageKind>,
    /// Expected SHA-256 of the file; a mismatch fails the import
    #[arg(long, value_name = "HEX", visible_alias = "expect-sha256")]
    sha256: Option<String>,
    /// Expected SHA-512
    #[arg(long, value_name = "HEX")]
    sha512: Option<String>,
    /// Expected MD5
    #[arg(long, value_name = "HEX")]
    md5: Option<String>,
    /// Expected BLAKE3
    #[arg(long, value_name = "HEX")]
    blake3: Option<String>,
    /// Everybody may see it (system administrators)
    #[arg(long)]
    public: bool,
    /// Project that owns it, by name or id (default: your own)
    #[arg(long)]
    project: Option<String>,
    /// Refuse deletion
    #[arg(long)]
    protected: bool,
    /// What it was built to run on: kvm, vmware, hyperv, xen or other; cannot be changed later
    #[arg(long, value_name = "WORD")]
    virtualisation: Option<Virtualisation>,
    /// Size that the disk gets, 20GB to 500GiB: a smaller one is grown to it, a larger one refused
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    disk_size: Option<u64>,
    /// Encrypt it with a key of its project, by name or id; new makes one with the image's name. Hosts keep it as a qcow2
    /// file with LUKS inside; it has no variants and no download
    #[arg(long, value_name = "new|KEY")]
    encrypt: Option<String>,
    /// Tag; may be given again
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    #[command(flatten)]
    attributes: Attributes,
    /// Wait until the image is active (this is the default)
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Return once the file is sent
    #[arg(long)]
    no_wait: bool,
}

impl Import {
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let url = fetch::url_of(&self.file);
        match (url, self.check) {
            (Some(url), true) => return fetch::check(session, url).await,
            (None, true) => {
                return Err(Failure::new(Exit::Usage, "--check looks at a URL")
                    .hint("begin it with http://, https://, ftp://, ftps:// or s3://")
                    .into());
            }
            (Some(url), false) if self.resume.is_none() => {
                let source = Some(ImageSource { url: url.to_owned() });
                let record = ImageCreate { source, ..self.record(&session.client).await? };
                return fetch::import(session, &record, !self.no_wait).await;
            }
            _ => {}
        }
        let begun = Begun::default();
        let image = tokio::select! {
            image = self.sent(session, &begun) => image?,
            () = unfinished::interrupted() => {
                return Err(begun.stopped(&session.client, &self.file).await.into());
            }
        };
        session.out.facts(&image, facts(&image))?;
        Ok(Exit::Ok)
    }

    /// Sends the file and follows the import, as far as was asked for.
    async fn sent(&self, session: &Session, begun: &Begun) -> anyhow::Result<Image> {
        let (client, mode) = (&session.client, Mode::of_stderr(session.quiet));
        let upload = match &self.resume {
            Some(image) => resume(client, &self.file, image, mode, begun).await?,
            None => upload(client, &self.file, &self.record(client).await?, mode, begun).await?,
        };
        begun.sent();
        if self.no_wait {
            upload.steps.end("sent; the import goes on at the controller");
            return Ok(upload.image);
        }
        wait_active(client, upload).await
    }

    async fn record(&self, client: &Client) -> anyhow::Result<ImageCreate> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => default_name(&self.file).ok_or_else(|| {
                Failure::new(Exit::Usage, "no name can be taken from this file").hint("add --name NAME")
            })?,
        };
        let encryption = self.encrypt.as_ref().map(|key| match key.as_str() {
            "new" => EncryptWith::NewKey(name.clone()),
            key => EncryptWith::Key(key.to_owned()),
        });
        Ok(ImageCreate {
            encryption,
            name,
            kind: self.kind,
            format: self
                .format
                .or_else(|| format_of(&self.file).filter(|_| self.kind != Some(ImageKind::Disk))),
            project: names::maybe_project(client, self.project.as_deref()).await?,
            public: self.public,
            expected: Checksums {
                sha256: self.sha256.as_deref().map(lower_hex),
                sha512: self.sha512.as_deref().map(lower_hex),
                md5: self.md5.as_deref().map(lower_hex),
                blake3: self.blake3.as_deref().map(lower_hex),
            },
            architecture: self.attributes.architecture,
            os_type: self.attributes.os_type,
            distribution: self.attributes.distribution.clone(),
            version: self.attributes.os_version.clone(),
            description: self.attributes.description.clone(),
            min_disk_bytes: self.attributes.min_disk,
            min_memory_bytes: self.attributes.min_memory,
            virtualisation: self.virtualisation,
            disk_bytes: self.disk_size,
            disk_driver: self.attributes.disk_driver,
            network_driver: self.attributes.network_driver,
            os_language: self.attributes.os_language.clone(),
            app_platform: self.attributes.app_platform.clone(),
            password_enabled: self.attributes.password_enabled.unwrap_or(false),
            tags: self.tags.iter().cloned().collect(),
            protected: self.protected,
            source: None,
            properties: self.attributes.properties.iter().cloned().collect(),
        })
    }
}

fn lower_hex(text: &str) -> String {
    text.trim().to_ascii_lowercase()
}

/// Format of a file that is not declared, where its bytes cannot tell. An ISO volume can hide in any raw disk, so its ending decides, not its bytes.
pub(crate) fn format_of(file: &Path) -> Option<DiskFormat> {
    let file = Path::new(fetch::file_name(file.to_str()?));
    let ending = file.extension().and_then(|ending| ending.to_str());
    ending.filter(|ending| ending.eq_ignore_ascii_case("iso")).map(|_| DiskFormat::Iso)
}

/// The file's name without its ending, if it has one that can be a name.
pub(crate) fn default_name(file: &Path) -> Option<String> {
    let stem = Path::new(fetch::file_name(file.to_str()?)).file_stem()?.to_str()?;
    (stem != "-" && !stem.is_empty()).then(|| stem.to_owned())
}

/// A file that was sent, and its progress so far.
#[derive(Debug)]
pub(crate) struct Upload {
    /// The image as the controller answered.
    pub(crate) image: Image,
    /// Progress to go on with.
    pub(crate) steps: Steps,
}

/// Makes the record and streams the file; `begun` learns how far it is.
///
/// # Errors
/// What the file system or the controller say; the record is gone again then, unless the file has the wrong checksum.
pub(crate) async fn upload(
    client: &Client,
    file: &Path,
    record: &ImageCreate,
    mode: Mode,
    begun: &Begun,
) -> anyhow::Result<Upload> {
    let (reader, meta) = open(file).await?;
    let image: Image = match client.post(&["images"], record).await {
        Ok(image) => image,
        Err(error) => return Err(unfinished::taken(client, record, file, error).await),
    };
    let id = image.id.to_string();
    let mut steps = Steps::new(mode, &record.name);
    let again = meta.filter(|meta| meta.len() > 0);
    begun.sending(&image, again.is_some());
    let sent = match &again {
        Some(meta) => {
            drop(reader);
            let sending = Sending { client, file, image: id.clone() };
            match sending.open(meta).await {
                Ok(upload) => sending.run(upload, &mut steps).await,
                Err(error) => Err(error),
            }
        }
        None => send_once(client, &id, reader, &mut steps).await,
    };
    match sent {
        Ok(image) => Ok(Upload { image, steps }),
        Err(error) if again.is_some() && send::may_pass(&error) => {
            let hint = format!("`{}` goes on where it stopped", unfinished::resume_line(&id, file));
            let failure = Failure::new(Exit::Unreachable, format!("sending {}: {error}", file.display()));
            Err(failure.hint(hint).into())
        }
        Err(error) => {
            drop(steps);
            Err(refused(client, &id, file, record, error).await)
        }
    }
}

/// What to say of a file that was refused. The record of one with the wrong checksum stays, as with a URL: it says what came.
/// Any other one goes.
async fn refused(
    client: &Client,
    id: &str,
    file: &Path,
    record: &ImageCreate,
    error: anyhow::Error,
) -> anyhow::Error {
    let sending = format!("sending {}", file.display());
    let killed = record.expected != Checksums::default()
        && client.get::<Image>(&["images", id], &[]).await.is_ok_and(|now| now.status == ImageStatus::Killed);
    if !killed {
        // Best effort: without it the name stays taken, which the next try says clearly.
        drop(client.delete(&["images", id], &[]).await);
        return error.context(sending);
    }
    let hint = format!(
        "nothing of the file was kept. `hearth image show {id}` keeps the reason; once the file is right: \
         `hearth image delete {id}`, and import it anew"
    );
    match error.downcast::<Failure>() {
        Ok(failure) => anyhow::Error::new(failure.hint(hint)).context(sending),
        Err(error) => error.context(sending),
    }
}

/// Goes on with the upload of an image that an earlier call began.
async fn resume(
    client: &Client,
    file: &Path,
    image: &str,
    mode: Mode,
    begun: &Begun,
) -> anyhow::Result<Upload> {
    let image = names::image(client, image).await?;
    let sending = Sending { client, file, image: image.id.to_string() };
    let upload = sending.reopen(&image.name).await?;
    let mut steps = Steps::new(mode, &image.name);
    begun.sending(&image, true);
    let image = sending.run(upload, &mut steps).await?;
    Ok(Upload { image, steps })
}

/// Sends what cannot be read twice: stdin, a pipe, a device.
async fn send_once(client: &Client, id: &str, reader: Reader, steps: &mut Steps) -> anyhow::Result<Image> {
    steps.bytes("uploading", 0, None);
    let body = reqwest::Body::wrap_stream(counted(reader, steps));
    let path = ["images", id, "file"];
    let mut sending = std::pin::pin!(client.put_stream::<Image>(&path, body, None));
    loop {
        // The stream counts by itself; the pause lets plain lines come on time.
        tokio::select! {
            sent = &mut sending => return sent,
            () = tokio::time::sleep(LOOK_PAUSE) => steps.moved(0),
        }
    }
}

pub(super) type Reader = std::pin::Pin<Box<dyn AsyncRead + Send>>;

/// The file, and what is known of it if it can be read again.
async fn open(file: &Path) -> anyhow::Result<(Reader, Option<std::fs::Metadata>)> {
    if file == Path::new("-") {
        return Ok((Box::pin(tokio::io::stdin()), None));
    }
    let unreadable = |e: std::io::Error| {
        Failure::new(Exit::Usage, format!("cannot read {}: {e}", file.display()))
            .hint("name a file that you may read")
    };
    let opened = tokio::fs::File::open(file).await.map_err(unreadable)?;
    let meta = opened.metadata().await.map_err(unreadable)?;
    if meta.is_dir() {
        return Err(Failure::new(Exit::Usage, format!("{} is a folder", file.display())).into());
    }
    // A block device or a pipe has no length that could be promised.
    let again = meta.is_file().then_some(meta);
    Ok((Box::pin(opened), again))
}

pub(super) fn counted(
    reader: Reader,
    steps: &Steps,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let bar = steps.counter();
    ReaderStream::with_capacity(reader, READ_BYTES).inspect(move |part| {
        if let Ok(part) = part {
            bar.inc(part.len() as u64);
        }
    })
}

/// Follows the import until the image is `active`.
///
/// # Errors
/// [`Exit::Failed`] with the reason when it is killed; what the controller says otherwise.
pub(crate) async fn wait_active(client: &Client, upload: Upload) -> anyhow::Result<Image> {
    let Upload { mut image, mut steps } = upload;
    let id = image.id.to_string();
    loop {
        match image.status {
            ImageStatus::Active => {
                let stored = image.stored_bytes.map(size::human).unwrap_or_default();
                let data = image.data_bytes.map(size::human).unwrap_or_default();
                steps.end(&format!("active, {data} of data stored as {stored}"));
                return Ok(image);
            }
            ImageStatus::Queued | ImageStatus::Saving | ImageStatus::Importing => {
                let step = image.stage.map_or_else(|| image.status.to_string(), |stage| stage.to_string());
                steps.percent(&step, image.percent);
            }
            ImageStatus::Killed => {
                return Err(Failure::new(
                    Exit::Failed,
                    format!("the import of {} failed: {}", image.name, image.reason),
                )
                .hint(format!(
                    "`hearth image show {id}` keeps the reason; `hearth image retry {id}` tries again, or delete it and import anew; {SEE}"
                ))
                .into());
            }
            other => anyhow::bail!("{} became {other} while it was imported", image.name),
        }
        tokio::time::sleep(LOOK_PAUSE).await;
        image = system::patient(client, &["images", &id]).await.context("looking at the import")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_comes_from_the_file() {
        assert_eq!(default_name(Path::new("/a/noble.qcow2")).as_deref(), Some("noble"));
        assert_eq!(default_name(Path::new("-")), None);
        assert_eq!(default_name(Path::new("/")), None);
    }

    #[test]
    fn an_iso_is_known_by_its_ending() {
        assert_eq!(format_of(Path::new("a/b.ISO")), Some(DiskFormat::Iso));
        assert_eq!(format_of(Path::new("a/iso.raw")), None);
    }
}
