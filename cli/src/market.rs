//! `hearth market`: signed catalogs of images: added, imported from, and made.
//!
//! **What.** Most verbs ask the controller. `keygen` and `sign` work on files alone: who runs a market needs no controller.
//! **Invariants.** A private key is read from a file, never from an argument, which other users of the machine could see. The file
//! of a new one is readable by its owner alone and replaces nothing.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use clap::{Args, Subcommand};
use hearth_protocol::api::image::Image;
use hearth_protocol::api::market::{
    Catalog, FILE_BYTES_MAX, KEY_DIGITS, Market, MarketCreate, MarketEntry, MarketImport, MarketRefresh,
    SignedCatalog, signed_bytes,
};
use zeroize::Zeroizing;

use crate::args::{Global, Session, confirm};
use crate::failure::{Exit, Failure};
use crate::image;
use crate::names;
use crate::output::{Cell, Grid};
use crate::progress::{Mode, Steps};

/// Bytes of an Ed25519 seed.
const SEED_BYTES: usize = KEY_DIGITS / 2;

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum MarketCommand {
    /// Add a market: a signed catalog of images
    Add(Add),
    /// List markets
    List(List),
    /// List what markets offer, and what of it is imported
    Entries(Entries),
    /// Import an image that a market offers, as a public image
    Import(Import),
    /// Take a newer edition of a market's catalog
    Refresh(Refresh),
    /// Remove a market; imported images stay
    #[command(visible_alias = "rm")]
    Remove(Remove),
    /// Make a key with which catalogs are signed
    Keygen(Keygen),
    /// Sign a catalog
    Sign(Sign),
}

/// Add a market.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth market add official --file https://images.example/market.json --key 8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c
  hearth market add ours --file market.json --key market.key.pub

A catalog that was changed, or that another key signed, is refused. The key must come from its owner, by another way than
the catalog.")]
pub(crate) struct Add {
    /// Name of the market here
    name: String,
    /// The signed catalog: a file, or a URL from which the controller gets it now and later
    #[arg(long, value_name = "FILE|URL")]
    file: String,
    /// Public key of its signer: 64 hex digits, or a file with them
    #[arg(long, value_name = "KEY|FILE")]
    key: String,
}

/// List markets.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth market list
  hearth market list -o json")]
pub(crate) struct List {}

/// List what markets offer.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth market entries
  hearth market entries official -o csv")]
pub(crate) struct Entries {
    /// Only of this market (name or id)
    market: Option<String>,
}

/// Import an image that a market offers.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth market import ubuntu-24.04-x86_64
  hearth market import official/ubuntu-24.04-x86_64 --name noble --no-wait

The image is public. Its file must have the size and the SHA-256 that were signed. When the image is deleted, the entry
shows as not imported again.")]
pub(crate) struct Import {
    /// Key of the entry, or MARKET/KEY
    entry: String,
    /// Name of the image (default: that of the entry)
    #[arg(long)]
    name: Option<String>,
    /// Project that owns it, by name or id (default: your own)
    #[arg(long)]
    project: Option<String>,
    /// Return at once
    #[arg(long)]
    no_wait: bool,
}

/// Take a newer edition.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth market refresh official
  hearth market refresh ours --file market.json

An older edition than one that was here is refused.")]
pub(crate) struct Refresh {
    /// Name or id
    market: String,
    /// The signed catalog (default: from the market's URL)
    #[arg(long)]
    file: Option<PathBuf>,
}

/// Remove a market.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth market remove official
  hearth market remove official --yes")]
pub(crate) struct Remove {
    /// Name or id
    market: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Make a key.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth market keygen market.key      # the public key is in market.key.pub

Keep the private key where the catalog is not. Who has it can sign for you; a new key means that everybody adds the market
again.")]
pub(crate) struct Keygen {
    /// File for the private key; it must not exist
    file: PathBuf,
}

/// Sign a catalog.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth market sign catalog.json --key market.key > market.json

A catalog is JSON:
{ \"name\": \"ours\", \"serial\": 1, \"entries\": [ {
    \"key\": \"ubuntu-24.04-x86_64\", \"name\": \"Ubuntu 24.04\", \"os_type\": \"linux\", \"distribution\": \"Ubuntu\",
    \"version\": \"24.04\", \"architecture\": \"x86_64\", \"format\": \"qcow2\", \"compression\": \"none\",
    \"url\": \"https://images.example/noble.qcow2\", \"size_bytes\": 613154816, \"sha256\": \"…\" } ] }
compression: none, gzip, xz or zstd; size and SHA-256 are those of the file at the URL. Raise serial with each edition.")]
pub(crate) struct Sign {
    /// The catalog; - for stdin
    file: PathBuf,
    /// File with the private key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

impl MarketCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<Exit> {
        match self {
            Self::Keygen(command) => command.run(),
            Self::Sign(command) => command.run(),
            Self::Add(command) => command.run(&global.session()?).await,
            Self::List(List {}) => list(&global.session()?).await,
            Self::Entries(command) => command.run(&global.session()?).await,
            Self::Import(command) => Box::pin(command.run(&global.session()?)).await,
            Self::Refresh(command) => command.run(&global.session()?).await,
            Self::Remove(command) => command.run(&global.session()?).await,
        }
    }
}

/// A file of at most [`FILE_BYTES_MAX`] bytes; `-` is stdin.
fn read(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    let unreadable = |error: std::io::Error| {
        Failure::new(Exit::Usage, format!("cannot read {}: {error}", file.display()))
            .hint("name a text file that you may read")
    };
    let reader: Box<dyn std::io::Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).map_err(unreadable)?)
    };
    let mut text = Zeroizing::new(String::new());
    reader.take(FILE_BYTES_MAX as u64 + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() > FILE_BYTES_MAX {
        let message = format!("{} is larger than {FILE_BYTES_MAX} bytes", file.display());
        return Err(Failure::new(Exit::Usage, message).into());
    }
    Ok(text)
}

fn signed(file: &Path) -> anyhow::Result<SignedCatalog> {
    let text = read(file)?;
    let read = serde_json::from_str(&text);
    Ok(read.map_err(|error| {
        Failure::new(Exit::Usage, format!("{} is no signed catalog: {error}", file.display()))
            .hint("`hearth market sign` makes one of a catalog")
    })?)
}

/// Hex digits of a key: as given, or from the file with this name.
fn public_key(given: &str) -> anyhow::Result<String> {
    let plain = given.len() == KEY_DIGITS && given.bytes().all(|b| b.is_ascii_hexdigit());
    let text = if plain { given.to_owned() } else { read(Path::new(given))?.trim().to_owned() };
    Ok(text.to_ascii_lowercase())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn key_pair(seed: &[u8; SEED_BYTES]) -> anyhow::Result<Ed25519KeyPair> {
    Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| anyhow::anyhow!("the key cannot be used"))
}

/// The seed that a private key's file holds.
fn seed(text: &str) -> Option<Zeroizing<[u8; SEED_BYTES]>> {
    let text = text.trim();
    let mut seed = Zeroizing::new([0; SEED_BYTES]);
    if text.len() != KEY_DIGITS || !text.is_ascii() {
        return None;
    }
    for (byte, at) in seed.iter_mut().zip((0..KEY_DIGITS).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(seed)
}

fn new_file(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file =
        made.map_err(|error| Failure::new(Exit::Usage, format!("cannot make {}: {error}", path.display())))?;
    writeln!(file, "{text}")?;
    file.sync_all().with_context(|| format!("writing {}", path.display()))
}

impl Keygen {
    fn run(self) -> anyhow::Result<Exit> {
        let mut seed = Zeroizing::new([0; SEED_BYTES]);
        aws_lc_rs::rand::fill(seed.as_mut_slice()).map_err(|_| anyhow::anyhow!("there is no randomness"))?;
        let public = hex(key_pair(&seed)?.public_key().as_ref());
        let mut beside = self.file.clone().into_os_string();
        beside.push(".pub");
        let beside = PathBuf::from(beside);
        new_file(&beside, 0o644, &public)?;
        if let Err(error) = new_file(&self.file, 0o600, &Zeroizing::new(hex(seed.as_slice()))) {
            drop(std::fs::remove_file(&beside));
            return Err(error);
        }
        writeln!(std::io::stdout(), "{public}")?;
        Ok(Exit::Ok)
    }
}

impl Sign {
    fn run(self) -> anyhow::Result<Exit> {
        let text = read(&self.file)?;
        let read_as: Result<Catalog, _> = serde_json::from_str(&text);
        let catalog = read_as.map_err(|error| {
            Failure::new(Exit::Usage, format!("{} is no catalog: {error}", self.file.display()))
                .hint("`hearth market sign --help` shows one")
        })?;
        let no_key = || {
            Failure::new(Exit::Usage, format!("{} holds no private key", self.key.display()))
                .hint("`hearth market keygen` makes one")
        };
        let pair = key_pair(&*seed(&read(&self.key)?).ok_or_else(no_key)?)?;
        let signature = hex(pair.sign(&signed_bytes(&text)).as_ref());
        let file = SignedCatalog { catalog: text.to_string(), signature };
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&file)?)?;
        let (n, key) = (catalog.entries.len(), hex(pair.public_key().as_ref()));
        writeln!(
            std::io::stderr(),
            "edition {} of {}, {n} entries, key {key}",
            catalog.serial,
            catalog.name
        )?;
        Ok(Exit::Ok)
    }
}

impl Add {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let key = public_key(&self.key)?;
        let is_url = self.file.contains("://");
        let file = if is_url { None } else { Some(signed(Path::new(&self.file))?) };
        let sent = MarketCreate { name: self.name, key, file, url: is_url.then_some(self.file) };
        let made: Market = session.client.post(&["markets"], &sent).await?;
        session.out.facts(&made, facts(&made))?;
        Ok(Exit::Ok)
    }
}

fn facts(market: &Market) -> Vec<(&'static str, Cell)> {
    vec![
        ("id", Cell::text(market.id)),
        ("name", Cell::text(&market.name)),
        ("catalog", Cell::text(&market.catalog)),
        ("edition", Cell::Number(market.serial)),
        ("entries", Cell::Number(u64::from(market.entries))),
        ("url", Cell::maybe(market.url.as_ref())),
        ("key", Cell::text(&market.key)),
        ("added", Cell::At(Some(market.created_at.clone()))),
        ("edition came", Cell::At(Some(market.updated_at.clone()))),
    ]
}

async fn list(session: &Session) -> anyhow::Result<Exit> {
    let markets: Vec<Market> = session.client.list(&["markets"], &[], None).await?;
    const COLUMNS: &[&str] =
        &["NAME", "CATALOG", "EDITION", "ENTRIES", "~CAME", "URL", "+ID", "+KEY", "+ADDED"];
    let grid = Grid::of(COLUMNS, &markets, |market| {
        vec![
            Cell::text(&market.name),
            Cell::text(&market.catalog),
            Cell::Number(market.serial),
            Cell::Number(u64::from(market.entries)),
            Cell::At(Some(market.updated_at.clone())),
            Cell::maybe(market.url.as_ref()),
            Cell::text(market.id),
            Cell::text(&market.key),
            Cell::At(Some(market.created_at.clone())),
        ]
    });
    session.out.list(&markets, &grid)?;
    Ok(Exit::Ok)
}

/// The entries of these markets.
async fn entries_of(session: &Session, markets: &[Market]) -> anyhow::Result<Vec<MarketEntry>> {
    let mut entries = Vec::new();
    for market in markets {
        let path = ["markets", &market.id.to_string(), "entries"];
        entries.extend(session.client.list::<MarketEntry>(&path, &[], None).await?);
    }
    Ok(entries)
}

/// The market that is named, else all.
async fn markets(session: &Session, wanted: Option<&str>) -> anyhow::Result<Vec<Market>> {
    match wanted {
        Some(wanted) => Ok(vec![names::market(&session.client, wanted).await?]),
        None => session.client.list(&["markets"], &[], None).await,
    }
}

impl Entries {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let entries = entries_of(session, &markets(session, self.market.as_deref()).await?).await?;
        const COLUMNS: &[&str] = &[
            "MARKET",
            "KEY",
            "NAME",
            "OS",
            "VERSION",
            "ARCHITECTURE",
            "FORMAT",
            "SIZE",
            "STATE",
            "+DISTRIBUTION",
            "+COMPRESSION",
            "+URL",
            "+SHA256",
            "+IMAGE",
        ];
        let grid = Grid::of(COLUMNS, &entries, |row| {
            vec![
                Cell::text(&row.market_name),
                Cell::text(&row.entry.key),
                Cell::text(&row.entry.name),
                Cell::text(row.entry.os_type),
                Cell::text(&row.entry.version),
                Cell::text(row.entry.architecture),
                Cell::text(row.entry.format),
                Cell::Bytes(Some(row.entry.size_bytes)),
                Cell::status(row.state),
                Cell::text(&row.entry.distribution),
                Cell::text(row.entry.compression),
                Cell::text(&row.entry.url),
                Cell::text(&row.entry.sha256),
                Cell::maybe(row.image),
            ]
        });
        session.out.list(&entries, &grid)?;
        Ok(Exit::Ok)
    }
}

impl Import {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let (market, key) = match self.entry.split_once('/') {
            Some((market, key)) => (Some(market), key),
            None => (None, self.entry.as_str()),
        };
        let entries = entries_of(session, &markets(session, market).await?).await?;
        let describe = |row: &MarketEntry| format!("{}/{}", row.market_name, row.entry.key);
        let found = names::pick("market entry", key, &entries, |row| &row.entry.key, describe).map_err(
            |failure| failure.hint("name it as MARKET/KEY; `hearth market entries` shows what there is"),
        )?;
        let project = match &self.project {
            Some(wanted) => Some(names::project_id(&session.client, wanted).await?),
            None => None,
        };
        let path = ["markets", &found.market.to_string(), "entries", &found.entry.key, "import"];
        let sent = MarketImport { name: self.name, project };
        let image: Image = session.client.post(&path, &sent).await?;
        let image = if self.no_wait {
            image
        } else {
            let steps = Steps::new(Mode::of_stderr(session.quiet), &image.name);
            image::wait_active(&session.client, image::Upload { image, steps }).await?
        };
        session.out.facts(&image, image::facts(&image))?;
        Ok(Exit::Ok)
    }
}

impl Refresh {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let market = names::market(&session.client, &self.market).await?;
        let file = self.file.as_deref().map(signed).transpose()?;
        let path = ["markets", &market.id.to_string(), "refresh"];
        let now: Market = session.client.post(&path, &MarketRefresh { file }).await?;
        if now.serial == market.serial {
            session.out.remark(&format!("edition {} was here already", now.serial))?;
        }
        session.out.facts(&now, facts(&now))?;
        Ok(Exit::Ok)
    }
}

impl Remove {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let market = names::market(&session.client, &self.market).await?;
        confirm(&format!("Remove market {} ({})? Its images stay.", market.name, market.id), self.yes)?;
        session.client.delete(&["markets", &market.id.to_string()], &[]).await?;
        session.out.say(&format!("removed {}", market.name))?;
        Ok(Exit::Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_is_64_hex_digits() {
        assert_eq!(*seed(&format!("{}\n", "0f".repeat(32))).unwrap(), [15; 32]);
        for wrong in ["", "0f", &"0g".repeat(32), &"0f".repeat(33), &"é".repeat(32)] {
            assert!(seed(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_new_key_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("market.key");
        Keygen { file: file.clone() }.run().unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let before = std::fs::read(&file).unwrap();
        assert!(Keygen { file: file.clone() }.run().is_err());
        std::fs::remove_file(dir.path().join("market.key.pub")).unwrap();
        assert!(Keygen { file: file.clone() }.run().is_err());
        assert_eq!(std::fs::read(&file).unwrap(), before);
        assert!(!dir.path().join("market.key.pub").exists(), "a public key of no private one stays");
    }
}
