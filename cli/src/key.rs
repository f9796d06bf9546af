//! `hearth key`: keys that encrypt images.
//!
//! **What.** Records of keys; the keys themselves never leave the controller.

use clap::{Args, Subcommand};
use hearth_protocol::api::key::{KeyCreate, KeyRecord, KeysRotated};
use hearth_protocol::id::ProjectId;

use crate::args::{Session, confirm};
use crate::failure::Exit;
use crate::names;
use crate::output::{Cell, Grid};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key
    Create(Create),
    /// List keys
    List(List),
    /// Show one key
    Show(Show),
    /// Seal all keys by the controller's new master key
    Rotate(Rotate),
    /// Delete a key that encrypts no image
    #[command(visible_alias = "rm")]
    Delete(Delete),
}

/// Make a key.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth key create payroll
  hearth image import noble.qcow2 --encrypt payroll
  hearth image import noble.qcow2 --encrypt new       # a key of the image's own

The key itself is never shown. Each image of it is opened by a passphrase of its own, which only the agents that run
the image are given.")]
pub(crate) struct Create {
    /// Its name
    name: String,
    /// Project that owns it, by id (default: your own)
    #[arg(long, value_name = "ID")]
    project: Option<ProjectId>,
}

/// List keys.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth key list
  hearth key list -o json")]
pub(crate) struct List {
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Show one key.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth key show payroll
  hearth key show 0199c0de-0000-7000-8000-000000000001 -o json")]
pub(crate) struct Show {
    /// Name or id
    key: String,
}

/// Seal all keys by the controller's new master key.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth key rotate

This changes what protects the keys in the controller's database; keys and images stay as they are. Steps:
  1. name the old master key hearth-master-key-old and a new one hearth-master-key (credentials of the unit, or
     master_key_old and master_key in controller.toml), and restart the controller: it opens keys of both
  2. hearth key rotate                               # all keys or none; it may be repeated
  3. take the old one away (backups made before need it), and restart the controller when it suits")]
pub(crate) struct Rotate {}

/// Delete a key.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth key delete payroll
  hearth key delete payroll --yes

A key that encrypts an image stays, also while the image is in the recycle bin: without it nothing opens the image.")]
pub(crate) struct Delete {
    /// Name or id
    key: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl KeyCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let (client, out) = (&session.client, session.out);
        match self {
            Self::Create(Create { name, project }) => {
                let made: KeyRecord = client.post(&["keys"], &KeyCreate { name, project }).await?;
                out.facts(&made, facts(&made))?;
            }
            Self::List(List { limit }) => {
                let rows: Vec<KeyRecord> = client.list(&["keys"], &[], limit).await?;
                const COLUMNS: &[&str] = &["NAME", "IMAGES", "MADE", "~SEALED", "+MASTER", "+PROJECT", "~ID"];
                let grid = Grid::of(COLUMNS, &rows, |row| {
                    vec![
                        Cell::text(&row.name),
                        Cell::Number(row.images.into()),
                        Cell::At(Some(row.created_at.clone())),
                        Cell::At(Some(row.sealed_at.clone())),
                        Cell::text(&row.master),
                        Cell::text(row.project),
                        Cell::text(row.id),
                    ]
                });
                out.list(&rows, &grid)?;
            }
            Self::Show(Show { key }) => {
                let key = names::key(client, &key).await?;
                out.facts(&key, facts(&key))?;
            }
            Self::Rotate(Rotate {}) => {
                let done: KeysRotated = client.post(&["keys", "rotate"], &serde_json::json!({})).await?;
                let facts = vec![
                    ("master key", Cell::text(&done.master)),
                    ("sealed anew", Cell::Number(done.sealed.into())),
                    ("sealed by it already", Cell::Number(done.unchanged.into())),
                ];
                out.facts(&done, facts)?;
            }
            Self::Delete(Delete { key, yes }) => {
                let key = names::key(client, &key).await?;
                confirm(&format!("Delete the key {} ({})?", key.name, key.id), yes)?;
                client.delete(&["keys", &key.id.to_string()], &[]).await?;
                out.say(&format!("deleted {}", key.name))?;
            }
        }
        Ok(Exit::Ok)
    }
}

fn facts(key: &KeyRecord) -> Vec<(&'static str, Cell)> {
    vec![
        ("id", Cell::text(key.id)),
        ("name", Cell::text(&key.name)),
        ("domain", Cell::text(key.domain)),
        ("project", Cell::text(key.project)),
        ("images", Cell::Number(key.images.into())),
        ("master key", Cell::text(&key.master)),
        ("created", Cell::At(Some(key.created_at.clone()))),
        ("sealed", Cell::At(Some(key.sealed_at.clone()))),
    ]
}
