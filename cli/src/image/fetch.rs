//! Images that the controller gets by itself: `hearth image import URL`, `--check`, and `hearth image retry`.
//!
//! **Invariants.** A URL is sent to the controller and printed nowhere: it may hold a password.

use clap::Args;
use hearth_protocol::api::image::{Image, ImageCreate};
use hearth_protocol::api::source::{ImageSource, SourceFacts};

use super::facts;
use super::import::{Upload, wait_active};
use crate::args::Session;
use crate::failure::Exit;
use crate::names;
use crate::output::Cell;
use crate::progress::{Mode, Steps};

/// Endings of packed files, which are not part of a name.
const PACKED: [&str; 3] = [".gz", ".xz", ".zst"];

/// The text if it is a URL, of whatever scheme: the controller says which ones it takes.
pub(super) fn url_of(file: &std::path::Path) -> Option<&str> {
    let text = file.to_str()?;
    let (scheme, _) = text.split_once("://")?;
    (!scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())).then_some(text)
}

/// The last part of a path or URL without what says how it is packed.
pub(super) fn file_name(text: &str) -> &str {
    let path = text.split_once('?').map_or(text, |(path, _)| path);
    let name = path.rsplit('/').next().unwrap_or(path);
    PACKED.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name)
}

/// Says what a source is.
pub(super) async fn check(session: &Session, url: &str) -> anyhow::Result<Exit> {
    let asked = ImageSource { url: url.to_owned() };
    let found: SourceFacts = session.client.post(&["sources", "check"], &asked).await?;
    let facts = vec![
        ("source", Cell::text(&found.url)),
        ("redirected to", Cell::maybe(found.final_url.as_ref())),
        ("size", Cell::Bytes(found.size_bytes)),
        ("type", Cell::maybe(found.content_type.as_ref())),
        ("looks like", Cell::text(&found.looks_like)),
        ("can go on", Cell::text(if found.resumable { "yes" } else { "no: a broken transfer begins again" })),
    ];
    session.out.facts(&found, facts)?;
    Ok(Exit::Ok)
}

/// Makes the record with its source, and follows the import.
pub(super) async fn import(session: &Session, record: &ImageCreate, wait: bool) -> anyhow::Result<Exit> {
    let image: Image = session.client.post(&["images"], record).await?;
    follow(session, image, wait, "queued; the controller fetches it").await
}

async fn follow(session: &Session, image: Image, wait: bool, said: &str) -> anyhow::Result<Exit> {
    let steps = Steps::new(Mode::of_stderr(session.quiet), &image.name);
    let image = if wait {
        wait_active(&session.client, Upload { image, steps }).await?
    } else {
        steps.end(said);
        image
    };
    session.out.facts(&image, facts(&image))?;
    Ok(Exit::Ok)
}

/// Try a failed import again: from the file if it was kept, else from its source.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth image retry noble
  hearth image retry noble --url 'https://user:password@mirror.example/noble.qcow2'")]
pub(crate) struct Retry {
    /// Name or id
    image: String,
    /// Fetch from here; needed if the first URL held a password or a query, which are not kept
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Return at once
    #[arg(long)]
    no_wait: bool,
}

impl Retry {
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let id = names::image(&session.client, &self.image).await?.id.to_string();
        let image: Image = match self.url {
            Some(url) => session.client.post(&["images", &id, "import"], &ImageSource { url }).await?,
            None => session.client.act_for(&["images", &id, "retry"]).await?,
        };
        follow(session, image, !self.no_wait, "queued").await
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_url_is_no_file_and_a_file_no_url() {
        for url in ["http://x/y", "HTTPS://x/y", "ftp://x/y", "ftps://x/y", "s3://bucket/y"] {
            assert_eq!(url_of(Path::new(url)), Some(url));
        }
        for file in ["-", "http", "http:/x", "./http://x", "a.qcow2"] {
            assert_eq!(url_of(Path::new(file)), None, "{file}");
        }
    }

    #[test]
    fn a_name_leaves_out_query_and_packing() {
        assert_eq!(file_name("https://u:p@x/images/noble.qcow2.xz?sig=a/b"), "noble.qcow2");
        assert_eq!(file_name("dir/disk.raw.zst"), "disk.raw");
        assert_eq!(file_name("disk.img"), "disk.img");
    }
}
