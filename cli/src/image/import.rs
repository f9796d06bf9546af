//! `hearth image import`: a record, the stream, and the import's stages.
//!
//! **What.** Makes the record, streams the file (a name or `-` for stdin) and follows the import until it is `active`.
//! **Why the record first.** A name that is taken or a wrong checksum's form is told before gigabytes are sent.
//! **Invariants.** A record whose upload failed is taken away again, so that the same command can be repeated.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use futures::{Stream, StreamExt as _};
use hearth_protocol::api::image::{Checksums, Image, ImageCreate};
use hearth_protocol::id::ProjectId;
use hearth_protocol::words::{DiskFormat, ImageKind, ImageStatus, Virtualisation};
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use super::attributes::Attributes;
use super::facts;
use crate::args::Session;
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::progress::{Mode, Steps};
use crate::{size, system};

/// Bytes per read of the file: large enough that reading costs little.
const READ_BYTES: usize = 1 << 20;
/// Pause between two looks at an import.
const LOOK_PAUSE: Duration = Duration::from_millis(300);

/// Import a disk image or ISO file.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image import noble.qcow2 --name noble
  hearth image import install.iso --kind iso --sha256 0f1e…
  hearth image import disk.vmdk --format vmdk --architecture x86_64 --os-type linux --property team=db
  hearth image import noble.qcow2 --disk-size 40GiB --tag prod --tag db --disk-driver virtio
  zstdcat disk.raw.zst | hearth image import - --name disk --format raw --no-wait")]
pub(crate) struct Import {
    /// The file; - for stdin
    file: PathBuf,
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
    #[arg(long, value_name = "HEX")]
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
    /// Project that owns it, by id (default: your own)
    #[arg(long, value_name = "ID")]
    project: Option<ProjectId>,
    /// Refuse deletion
    #[arg(long)]
    protected: bool,
    /// What it was built to run on: kvm, vmware, hyperv, xen or other; cannot be changed later
    #[arg(long, value_name = "WORD")]
    virtualisation: Option<Virtualisation>,
    /// Size that the disk gets, 20GB to 500GiB: a smaller one is grown to it, a larger one refused
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    disk_size: Option<u64>,
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
        let record = self.record()?;
        let mode = Mode::of_stderr(session.quiet);
        let upload = upload(&session.client, &self.file, &record, mode).await?;
        let image = if self.no_wait {
            upload.steps.end("sent; the import goes on at the controller");
            upload.image
        } else {
            wait_active(&session.client, upload).await?
        };
        session.out.facts(&image, facts(&image))?;
        Ok(Exit::Ok)
    }

    fn record(&self) -> Result<ImageCreate, Failure> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => default_name(&self.file).ok_or_else(|| {
                Failure::new(Exit::Usage, "no name can be taken from this file").hint("add --name NAME")
            })?,
        };
        Ok(ImageCreate {
            name,
            kind: self.kind,
            format: self
                .format
                .or_else(|| format_of(&self.file).filter(|_| self.kind != Some(ImageKind::Disk))),
            project: self.project,
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
            properties: self.attributes.properties.iter().cloned().collect(),
        })
    }
}

fn lower_hex(text: &str) -> String {
    text.trim().to_ascii_lowercase()
}

/// Format of a file that is not declared, where its bytes cannot tell. An ISO volume can hide in any raw disk, so its ending decides, not its bytes.
pub(crate) fn format_of(file: &Path) -> Option<DiskFormat> {
    let ending = file.extension().and_then(|ending| ending.to_str());
    ending.filter(|ending| ending.eq_ignore_ascii_case("iso")).map(|_| DiskFormat::Iso)
}

/// The file's name without its ending, if it has one that can be a name.
pub(crate) fn default_name(file: &Path) -> Option<String> {
    let stem = file.file_stem()?.to_str()?;
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

/// Makes the record and streams the file.
///
/// # Errors
/// What the file system or the controller say; the record is gone again then.
pub(crate) async fn upload(
    client: &Client,
    file: &Path,
    record: &ImageCreate,
    mode: Mode,
) -> anyhow::Result<Upload> {
    let (reader, length) = open(file).await?;
    let image: Image = client.post(&["images"], record).await?;
    let id = image.id.to_string();
    let mut steps = Steps::new(mode, &record.name);
    steps.bytes("uploading", 0, length);
    let body = reqwest::Body::wrap_stream(counted(reader, &steps));
    let path = ["images", &id, "file"];
    let mut sending = std::pin::pin!(client.put_stream::<Image>(&path, body, length));
    let sent = loop {
        // The stream counts by itself; the pause lets plain lines come on time.
        tokio::select! {
            sent = &mut sending => break sent,
            () = tokio::time::sleep(LOOK_PAUSE) => steps.moved(0),
        }
    };
    match sent {
        Ok(image) => Ok(Upload { image, steps }),
        Err(error) => {
            drop(steps);
            // Best effort: without it the name stays taken, which the next try says clearly.
            drop(client.delete(&["images", &id], &[]).await);
            Err(error.context(format!("sending {}", file.display())))
        }
    }
}

type Reader = std::pin::Pin<Box<dyn AsyncRead + Send>>;

async fn open(file: &Path) -> anyhow::Result<(Reader, Option<u64>)> {
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
    let length = meta.is_file().then_some(meta.len());
    Ok((Box::pin(opened), length))
}

fn counted(reader: Reader, steps: &Steps) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
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
                    "`hearth image show {id}` keeps the reason; delete it before you import it again"
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
