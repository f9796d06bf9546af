//! What is said of an upload that came to no end: stopped with Ctrl-C, or left by an earlier call.
//!
//! **What.** [`Begun`] notes how far an import is, so that whoever stops it is told how to go on; [`taken`] says of a name
//! that is taken what the image with it is.
//! **Why.** A part of hours is kept at the controller. Without the line to go on with, people delete it to begin anew.
//! **Invariants.** A file that cannot be read twice leaves no record behind.

use std::borrow::Cow;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use hearth_protocol::api::Page;
use hearth_protocol::api::image::{Image, ImageCreate};
use hearth_protocol::api::upload::Upload;
use hearth_protocol::words::ImageStatus;

use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::size;

/// How far an import is.
#[derive(Debug, Default)]
pub(crate) struct Begun {
    sending: OnceLock<Part>,
    sent: AtomicBool,
}

/// A record whose file is on its way.
#[derive(Debug)]
struct Part {
    id: String,
    name: String,
    /// Whether the file can be read again.
    again: bool,
}

impl Begun {
    /// The record is there. `again`: its file can be read again.
    pub(super) fn sending(&self, image: &Image, again: bool) {
        let (id, name) = (image.id.to_string(), image.name.clone());
        // It begins once.
        drop(self.sending.set(Part { id, name, again }));
    }

    /// The file is at the controller.
    pub(super) fn sent(&self) {
        self.sent.store(true, Ordering::Relaxed);
    }

    /// What to say when somebody stops here.
    pub(super) async fn stopped(&self, client: &Client, file: &Path) -> Failure {
        let Some(part) = self.sending.get() else {
            return Failure::new(Exit::Interrupted, "stopped before anything was sent");
        };
        let sent = self.sent.load(Ordering::Relaxed);
        if !sent && !part.again {
            // Best effort: without it the name stays taken, which the next try says clearly.
            drop(client.delete(&["images", &part.id], &[]).await);
        }
        // What was read here is no measure: much of it waits in buffers on the way.
        let kept =
            if sent { None } else { open_upload(client, &part.id).await.map(|upload| upload.offset_bytes) };
        part.stopped(file, sent, kept)
    }
}

impl Part {
    fn stopped(&self, file: &Path, sent: bool, kept_bytes: Option<u64>) -> Failure {
        let Self { id, name, again } = self;
        let text = if sent {
            format!("stopped watching; the import goes on: hearth image show {}", word_or(name, id))
        } else if *again {
            let at = kept_bytes.map(|bytes| format!(" at {}", size::human(bytes))).unwrap_or_default();
            format!("stopped{at}; go on with: {}", resume_line(word_or(name, id), file))
        } else {
            "stopped; what comes through a pipe cannot go on, so nothing was kept".to_owned()
        };
        Failure::new(Exit::Interrupted, text)
    }
}

/// Comes back when somebody presses Ctrl-C. From then on the key no longer ends the process by itself.
pub(super) async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a handler the signal keeps its default action, which ends the process.
        std::future::pending().await
    }
}

/// The command that goes on with an upload.
pub(super) fn resume_line(image: &str, file: &Path) -> String {
    format!("hearth image import --resume {image} {}", quoted(&file.display().to_string()))
}

/// The name if a shell and the command line take it as it is, else the id.
fn word_or<'a>(name: &'a str, id: &'a str) -> &'a str {
    if name.starts_with('-') || quoted(name) != name { id } else { name }
}

/// The text as one word of a shell.
fn quoted(text: &str) -> Cow<'_, str> {
    // No path and no name has a NUL, which no shell takes.
    shlex::try_quote(text).unwrap_or(Cow::Borrowed(text))
}

/// The refusal of a new record; where its name is one whose import came to no end, with what to do about that one.
pub(super) async fn taken(
    client: &Client,
    record: &ImageCreate,
    file: &Path,
    error: anyhow::Error,
) -> anyhow::Error {
    let refused = error.downcast_ref::<Failure>().filter(|failure| failure.exit == Exit::Refused).cloned();
    let Some(refused) = refused else { return error };
    match look(client, record).await {
        Some((image, open)) => match hint_for(&image, open, file) {
            Some(hint) => refused.hint(hint).into(),
            None => error,
        },
        None => error,
    }
}

/// The only image with the name of `record`, and whether an upload of it is open.
async fn look(client: &Client, record: &ImageCreate) -> Option<(Image, bool)> {
    let query = [("name", Some(record.name.clone()))];
    let mut rows: Vec<Image> = client.list(&["images"], &query, None).await.ok()?;
    rows.retain(|image| record.project.is_none_or(|project| project == image.project));
    let image = rows.pop().filter(|_| rows.is_empty())?;
    let open = open_upload(client, &image.id.to_string()).await;
    Some((image, open.is_some()))
}

/// The upload of an image that can be gone on with.
async fn open_upload(client: &Client, image: &str) -> Option<Upload> {
    let mut open: Page<Upload> = client.get(&["images", image, "uploads"], &[]).await.ok()?;
    open.items.pop()
}

fn hint_for(image: &Image, open: bool, file: &Path) -> Option<String> {
    let id = image.id.to_string();
    let name = word_or(&image.name, &id);
    match image.status {
        ImageStatus::Saving if open => Some(format!(
            "an upload of it is open; go on with: {} (or take another name)",
            resume_line(name, file)
        )),
        ImageStatus::Killed => Some(format!(
            "its import failed (hearth image show {name}); take another name, or first: hearth image delete {name}"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, again: bool) -> Part {
        Part { id: "0199c0de".into(), name: name.into(), again }
    }

    #[test]
    fn who_stops_is_told_how_to_go_on() {
        let failure = part("big-v2i", true).stopped(Path::new("big v2.img"), false, Some(76 << 20));
        let told = "stopped at 76.0 MiB; go on with: hearth image import --resume big-v2i 'big v2.img'";
        assert_eq!((failure.exit, failure.message.as_str()), (Exit::Interrupted, told));
        let odd = part("a b", true).stopped(Path::new("/a.img"), false, None);
        assert!(odd.message.ends_with("--resume 0199c0de /a.img"), "{}", odd.message);
        let watched = part("big", true).stopped(Path::new("a.img"), true, None);
        assert!(watched.message.ends_with("hearth image show big"), "{}", watched.message);
        let piped = part("big", false).stopped(Path::new("-"), false, None);
        assert!(piped.message.contains("nothing was kept"), "{}", piped.message);
    }

    #[test]
    fn a_shell_gets_one_word() {
        assert_eq!(quoted("/srv/a_1.img"), "/srv/a_1.img");
        for text in ["noble.qcow2", "/srv/镜像/a_1.img", "it's", "-x", "a b", "$(reboot)", "\"`~\\", ""] {
            let echo = format!("printf %s {}", quoted(text));
            let said = std::process::Command::new("sh").arg("-c").arg(&echo).output().unwrap();
            assert_eq!(said.stdout, text.as_bytes(), "{echo}");
        }
        assert_eq!((word_or("-x", "0199"), word_or("noble", "0199")), ("0199", "noble"));
    }
}
