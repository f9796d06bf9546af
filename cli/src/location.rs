//! `hearth location`: hosts and regions that hold a cache, and the tokens with which they join.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, Subcommand};
use hearth_protocol::api::cache::LocationCache;
use hearth_protocol::api::image_update::Edit;
use hearth_protocol::api::location::{
    DuplicateAgent, JoinTokenCreate, JoinTokenRecord, Location, LocationUpdate,
};

use crate::args::{Session, confirm};
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Grid};
use crate::{cache, names, targets, when};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum LocationCommand {
    /// List locations
    List(List),
    /// Show a location and what it caches
    Show(One),
    /// Change domain or rack of locations
    Set(Set),
    /// Place nothing new there; what is there may be used
    Drain(One),
    /// Place new copies there again
    Undrain(One),
    /// Take a location out of the fleet and revoke its certificate
    Remove(Remove),
    /// Tokens with which agents join
    #[command(subcommand)]
    Token(JoinTokenCommand),
}

/// List locations.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth location list
  hearth location list --select 'zone=z1,name=cn-*'
  hearth location list -o csv > hosts.csv")]
pub(crate) struct List {
    /// Only those that match: FIELD=PATTERN, separated by commas
    #[arg(long, value_name = "SELECTOR", value_parser = targets::parse_selector)]
    select: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// One location.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth location show cn-1
  hearth location drain cn-1
  hearth location undrain cn-1")]
pub(crate) struct One {
    /// Name or id
    location: String,
}

/// Change domain or rack of locations.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth location set cn-1 cn-2 --domain sales
  hearth location set cn-1 --no-domain
  hearth location set cn-1 --rack r7

The administrators of a domain see and manage its locations, and the copies and prewarm jobs there; machines of other
domains cannot be launched there. A location of no domain is managed by system administrators alone, who also say whose
it is.")]
pub(crate) struct Set {
    /// Names or ids
    #[arg(required = true, value_name = "LOCATION")]
    locations: Vec<String>,
    /// Give it to this domain, by name or id (system administrators)
    #[arg(long)]
    domain: Option<String>,
    /// Take it back from its domain (system administrators)
    #[arg(long, conflicts_with = "domain")]
    no_domain: bool,
    /// Its rack
    #[arg(long)]
    rack: Option<String>,
}

/// Take a location out of the fleet.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth location remove cn-1
  hearth location remove cn-1 --yes")]
pub(crate) struct Remove {
    /// Name or id
    location: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Join tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum JoinTokenCommand {
    /// Make a token for one agent or many
    Create(TokenCreate),
    /// List tokens that are still good
    List(TokenList),
    /// Make a token useless; agents that joined with it stay
    Revoke(TokenRevoke),
}

/// Make a join token.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth location token create
  hearth location token create --uses 200 --ttl 24h --match 'cn-*' --zone z1
  sudo -u hearth hearth-agent enrol --controller controller.example:7443 --token hj1_…")]
pub(crate) struct TokenCreate {
    /// How many agents may use it
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// How long it is good, 1m to 7d
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = when::parse_duration)]
    ttl: Duration,
    /// Pattern that the name of the location must match, for example cn-*
    #[arg(long = "match", value_name = "PATTERN")]
    name_match: Option<String>,
    /// Zone of the agents that use it, whatever they say
    #[arg(long)]
    zone: Option<String>,
    /// Region of the agents that use it
    #[arg(long)]
    region: Option<String>,
    /// Rack of the agents that use it
    #[arg(long)]
    rack: Option<String>,
    /// Platform of the agents that use it
    #[arg(long)]
    platform: Option<String>,
    /// Account of the agents that use it
    #[arg(long)]
    account: Option<String>,
}

/// List join tokens.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth location token list")]
pub(crate) struct TokenList {}

/// Revoke a join token.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth location token revoke 0199c0de-0000-7000-8000-000000000001")]
pub(crate) struct TokenRevoke {
    /// Id, as `hearth location token list` shows it
    id: hearth_protocol::id::JoinTokenId,
}

impl LocationCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        match self {
            Self::List(command) => command.run(session).await,
            Self::Show(command) => command.show(session).await,
            Self::Set(command) => command.run(session).await,
            Self::Drain(command) => command.act(session, "drain").await,
            Self::Undrain(command) => command.act(session, "undrain").await,
            Self::Remove(command) => command.run(session).await,
            Self::Token(JoinTokenCommand::Create(command)) => command.run(session).await,
            Self::Token(JoinTokenCommand::List(_)) => list_tokens(session).await,
            Self::Token(JoinTokenCommand::Revoke(command)) => command.run(session).await,
        }
    }
}

impl List {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let query = [("select", self.select)];
        let locations: Vec<Location> = session.client.list(&["locations"], &query, self.limit).await?;
        session.out.list(&locations, &grid(&locations))?;
        Ok(Exit::Ok)
    }
}

fn grid(locations: &[Location]) -> Grid {
    const COLUMNS: &[&str] = &[
        "NAME",
        "STATE",
        "AGENT",
        "ZONE",
        "~RACK",
        "~IP",
        "ACTIVE",
        "USED",
        "BUDGET",
        "FREE",
        "~SEEN",
        "+ID",
        "+KIND",
        "+PLATFORM",
        "+REGION",
        "+ACCOUNT",
        "+SERIAL",
        "+DOMAIN",
        "+NIC MBPS",
        "+DUPLICATE",
        "+DEGRADED",
        "+LABELS",
    ];
    Grid::of(COLUMNS, locations, |location| {
        vec![
            Cell::text(&location.name),
            Cell::status(location.state),
            Cell::status(agent_text(location)),
            Cell::text(&location.zone),
            Cell::text(&location.rack),
            Cell::text(&location.ip),
            Cell::Number(u64::from(location.active_entries)),
            Cell::Bytes(Some(location.used_bytes)),
            Cell::Bytes(Some(location.budget_bytes)),
            Cell::Bytes(Some(location.free_bytes)),
            Cell::At(location.last_seen_at.clone()),
            Cell::text(location.id),
            Cell::text(location.kind),
            Cell::text(&location.platform),
            Cell::text(&location.region),
            Cell::text(&location.account),
            Cell::text(&location.serial),
            Cell::maybe(location.domain),
            Cell::Number(u64::from(location.nic_mbps)),
            Cell::maybe(location.duplicate.as_ref().map(|seen| &seen.address)),
            Cell::text(&location.degraded),
            Cell::text(labels(location)),
        ]
    })
}

const fn agent_text(location: &Location) -> &'static str {
    match (location.online, location.duplicate.is_some(), location.degraded.is_empty()) {
        (true, true, _) => "duplicate",
        (true, false, true) => "online",
        (true, false, false) => "degraded",
        (false, ..) => "offline",
    }
}

fn duplicate_text(seen: &DuplicateAgent) -> String {
    format!("refused: the same key from {}; stop that agent or give it a key of its own", seen.address)
}

fn labels(location: &Location) -> String {
    location.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

impl One {
    async fn show(self, session: &Session) -> anyhow::Result<Exit> {
        let location = names::location(&session.client, &self.location).await?;
        let there: LocationCache =
            session.client.get(&["locations", &location.id.to_string(), "cache"], &[]).await?;
        session.out.facts(&there, facts(&there.location))?;
        if !there.entries.is_empty() {
            session.out.below(&cache::grid(&there.entries))?;
        }
        Ok(Exit::Ok)
    }

    async fn act(self, session: &Session, verb: &str) -> anyhow::Result<Exit> {
        let location = names::location(&session.client, &self.location).await?;
        session.client.act(&["locations", &location.id.to_string(), verb]).await?;
        let text = if verb == "drain" { "gets no new copies" } else { "gets new copies again" };
        session.out.say(&format!("{} {text}", location.name))?;
        Ok(Exit::Ok)
    }
}

fn facts(location: &Location) -> Vec<(&'static str, Cell)> {
    vec![
        ("id", Cell::text(location.id)),
        ("name", Cell::text(&location.name)),
        ("kind", Cell::text(location.kind)),
        ("state", Cell::status(location.state)),
        ("agent", Cell::status(agent_text(location))),
        ("duplicate", Cell::maybe(location.duplicate.as_ref().map(duplicate_text))),
        ("degraded", Cell::text(&location.degraded)),
        ("platform", Cell::text(&location.platform)),
        ("region", Cell::text(&location.region)),
        ("zone", Cell::text(&location.zone)),
        ("rack", Cell::text(&location.rack)),
        ("account", Cell::text(&location.account)),
        ("ip", Cell::text(&location.ip)),
        ("serial", Cell::text(&location.serial)),
        ("domain", Cell::maybe(location.domain)),
        ("labels", Cell::text(labels(location))),
        ("advertised", Cell::text(location.advertised.join(", "))),
        ("nic", Cell::text(format!("{} Mbit/s", location.nic_mbps))),
        ("agent id", Cell::maybe(location.agent)),
        ("certificate", Cell::At(location.certificate_ends_at.clone())),
        ("seen", Cell::At(location.last_seen_at.clone())),
        ("budget", Cell::Bytes(Some(location.budget_bytes))),
        ("used", Cell::Bytes(Some(location.used_bytes))),
        ("free", Cell::Bytes(Some(location.free_bytes))),
        ("floor", Cell::Bytes(Some(location.floor_bytes))),
        ("active", Cell::text(format!("{} entries", location.active_entries))),
        ("enrolled", Cell::At(Some(location.created_at.clone()))),
    ]
}

impl Set {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let domain = match &self.domain {
            Some(wanted) => Edit::Set(names::domain_id(&session.client, wanted).await?),
            None if self.no_domain => Edit::Clear,
            None => Edit::Keep,
        };
        let update = LocationUpdate { rack: self.rack, domain, ..LocationUpdate::default() };
        if update == LocationUpdate::default() {
            return Err(
                Failure::new(Exit::Usage, "say what to change: --domain, --no-domain or --rack").into()
            );
        }
        let mut locations = Vec::with_capacity(self.locations.len());
        for wanted in &self.locations {
            locations.push(names::location(&session.client, wanted).await?);
        }
        let mut changed: Vec<Location> = Vec::with_capacity(locations.len());
        for location in locations {
            let path = ["locations", &location.id.to_string()];
            changed.push(session.client.patch(&path, &update, None).await?);
        }
        match changed.as_slice() {
            [one] => session.out.facts(one, facts(one))?,
            several => session.out.list(several, &grid(several))?,
        }
        Ok(Exit::Ok)
    }
}

impl Remove {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let location = names::location(&session.client, &self.location).await?;
        let question =
            format!("Remove {} from the fleet? Its agent must enrol again to come back.", location.name);
        confirm(&question, self.yes)?;
        session.client.delete(&["locations", &location.id.to_string()], &[]).await?;
        session.out.say(&format!("removed {}", location.name))?;
        Ok(Exit::Ok)
    }
}

impl TokenCreate {
    fn body(&self) -> JoinTokenCreate {
        let presets = [
            ("zone", &self.zone),
            ("region", &self.region),
            ("rack", &self.rack),
            ("platform", &self.platform),
            ("account", &self.account),
        ];
        let presets: BTreeMap<String, String> =
            presets.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))).collect();
        JoinTokenCreate {
            uses: self.uses,
            ttl_s: self.ttl.as_secs(),
            name_match: self.name_match.clone(),
            presets,
        }
    }

    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let made: JoinTokenRecord = session.client.post(&["join-tokens"], &self.body()).await?;
        let facts = vec![
            ("token", Cell::maybe(made.token.as_ref())),
            ("id", Cell::text(made.id)),
            ("uses", Cell::Number(u64::from(made.uses_left))),
            ("ends", Cell::At(Some(made.expires_at.clone()))),
            ("names", Cell::maybe(made.name_match.as_ref())),
        ];
        session.out.facts(&made, facts)?;
        let Some(token) = made.token.as_ref().filter(|_| session.out.for_people()) else {
            return Ok(Exit::Ok);
        };
        let host = session.client.base().host_str().unwrap_or("HOST");
        let port = session.client.base().port_or_known_default().unwrap_or(7443);
        session.out.remark(&format!(
            "\nThe token is shown this once. On each host:\n  sudo -u hearth hearth-agent enrol --controller \
             {host}:{port} --token {token}\n  sudo systemctl start hearth-agent"
        ))?;
        Ok(Exit::Ok)
    }
}

async fn list_tokens(session: &Session) -> anyhow::Result<Exit> {
    let tokens: Vec<JoinTokenRecord> = session.client.list(&["join-tokens"], &[], None).await?;
    let grid = Grid::of(&["ID", "USES LEFT", "ENDS", "NAMES", "PRESETS", "MADE BY"], &tokens, |token| {
        let presets: Vec<String> =
            token.presets.iter().map(|(key, value)| format!("{key}={value}")).collect();
        vec![
            Cell::text(token.id),
            Cell::Number(u64::from(token.uses_left)),
            Cell::At(Some(token.expires_at.clone())),
            Cell::maybe(token.name_match.as_ref()),
            Cell::text(presets.join(",")),
            Cell::text(&token.created_by),
        ]
    });
    session.out.list(&tokens, &grid)?;
    Ok(Exit::Ok)
}

impl TokenRevoke {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        session.client.delete(&["join-tokens", &self.id.to_string()], &[]).await?;
        session.out.say(&format!("revoked join token {}", self.id))?;
        Ok(Exit::Ok)
    }
}
