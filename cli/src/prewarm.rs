//! `hearth prewarm`: put an image on many hosts before machines are made of it.

use std::time::Duration;

use clap::{Args, Subcommand};
use hearth_protocol::api::prewarm::{
    DryRun, Prewarm, PrewarmCreate, PrewarmDetails, PrewarmGroup, PrewarmGroupDetails, PrewarmMade,
    PrewarmTarget,
};
use hearth_protocol::words::{EntryStatus, PrewarmState, Priority};

use crate::args::Session;
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::names::PrewarmRef;
use crate::output::{Cell, Grid};
use crate::progress::{self, Fleet, Mode, Picture};
use crate::targets::{self, KeepArgs, TargetArgs};
use crate::when::Moment;
use crate::{campaign, clock, names, size, system, when};

/// Pause between two looks at a job.
const LOOK_PAUSE: Duration = Duration::from_millis(400);
/// Looks at a job that is done, on a terminal, until the controller has counted its swarm: it does so once a second.
const LAST_LOOKS: u32 = 4;

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum PrewarmCommand {
    /// Start a job: one image or host image, many locations
    Create(Box<Create>),
    /// List jobs, newest first
    List(List),
    /// Show a job and how far each location is
    Show(Show),
    /// Stop a job for a while; copies that move come to an end
    Pause(One),
    /// Go on with a paused job
    Resume(One),
    /// End a job; copies that are there stay, but may be evicted
    Cancel(One),
    /// Try the failed locations of a job again
    Retry(One),
}

/// Start a job.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth prewarm create noble --select 'zone=z1,ip=10.0.*' --wait
  hearth prewarm create noble --to cn-1,cn-2 --deadline 2h --rate 50MB
  hearth prewarm create noble --all --start 2026-01-31T22:00:00+08:00 --keep 7d
  hearth prewarm create noble --all --dry-run
  hearth prewarm create --host-image erp --select 'zone=z1' --wait

With --host-image there is a job for each of its disks; they are shown, paused, resumed, cancelled and tried again as one.
The job is done when every location says \"verified on disk\". With --wait the exit code is 7 if a location failed.")]
pub(crate) struct Create {
    /// Image (name or id); it must be active
    #[arg(required_unless_present = "host_image")]
    image: Option<String>,
    /// Host image (name or id) instead of an image: all its disks
    #[arg(long, value_name = "NAME", conflicts_with = "image")]
    host_image: Option<String>,
    #[command(flatten)]
    targets: TargetArgs,
    /// When it must be done: a duration from now (2h) or RFC 3339
    #[arg(long, value_name = "WHEN")]
    deadline: Option<Moment>,
    /// When it begins (default: now)
    #[arg(long, value_name = "WHEN")]
    start: Option<Moment>,
    /// Most bytes per second at each location, for example 50MB
    #[arg(long, value_name = "RATE", value_parser = size::parse_bytes)]
    rate: Option<u64>,
    /// Order of work: demand, deadline, bulk or scrub (default: deadline if there is one, else bulk)
    #[arg(long)]
    priority: Option<Priority>,
    #[command(flatten)]
    keep: KeepArgs,
    /// Only say what would happen
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Show progress until the job ends
    #[arg(short, long)]
    wait: bool,
}

/// List jobs.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth prewarm list
  hearth prewarm list --limit 20 -o json")]
pub(crate) struct List {
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Show a job.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth prewarm show noble              # the job of this image that is not over, else the newest
  hearth prewarm show 5d6e7f80 --watch   # the end of a job's id is enough

Hosts that need an image at the same time pass it to each other. SWARM shows how that goes:
the time beside the least that is possible and what sets that, what the controller had to send
itself, and which hosts are slow.")]
pub(crate) struct Show {
    /// Id, the end of an id, or the name of the image or host image
    job: String,
    /// Show progress until the job ends
    #[arg(short, long)]
    watch: bool,
}

/// One job.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth prewarm pause noble
  hearth prewarm resume noble
  hearth prewarm cancel 5d6e7f80
  hearth prewarm retry noble")]
pub(crate) struct One {
    /// Id, the end of an id, or the name of the image or host image
    job: String,
}

impl PrewarmCommand {
    /// Runs the verb.
    pub(crate) async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        match self {
            Self::Create(command) => command.run(session).await,
            Self::List(command) => command.run(session).await,
            Self::Show(command) => command.run(session).await,
            Self::Pause(command) => command.act(session, "pause").await,
            Self::Resume(command) => command.act(session, "resume").await,
            Self::Cancel(command) => command.act(session, "cancel").await,
            Self::Retry(command) => command.act(session, "retry").await,
        }
    }
}

impl Create {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let (image, host_image) =
            names::subject(&session.client, self.image.as_deref(), self.host_image.as_deref()).await?;
        let now = clock::now();
        let body = PrewarmCreate {
            image,
            host_image,
            targets: self.targets.body(),
            priority: self.priority,
            deadline: self.deadline.map(|moment| moment.rfc3339(now)),
            start: self.start.map(|moment| moment.rfc3339(now)),
            rate_bytes_per_s: self.rate,
            keep: self.keep.body(),
            dry_run: self.dry_run,
        };
        if self.dry_run {
            let plan: DryRun = session.client.post(&["prewarms"], &body).await?;
            return show_plan(session, &plan);
        }
        let made: PrewarmMade = session.client.post(&["prewarms"], &body).await?;
        let (what, id) = match &made {
            PrewarmMade::Job(job) => (PrewarmRef::Job(job.id), job.id.to_string()),
            PrewarmMade::Group(group) => (PrewarmRef::Group(group.id), group.id.to_string()),
        };
        if self.wait {
            session.out.remark(&format!("job {id}; Ctrl-C stops watching, not the job"))?;
            let ended = watch(&session.client, what, Mode::of_stderr(session.quiet)).await?;
            return show_end(session, &ended, &id);
        }
        match &made {
            PrewarmMade::Job(job) => session.out.facts(job, facts(job))?,
            PrewarmMade::Group(group) => session.out.facts(group, group_facts(group))?,
        }
        session.out.remark(&format!("\nFollow it with: hearth prewarm show {id} --watch"))?;
        Ok(Exit::Ok)
    }
}

fn show_plan(session: &Session, plan: &DryRun) -> anyhow::Result<Exit> {
    let bound = Duration::try_from_secs_f64(plan.time_bound_s).unwrap_or_default();
    let facts = vec![
        ("have it", Cell::text(locations_text(plan.warm as usize))),
        ("fetch it", Cell::text(locations_text(plan.cold as usize))),
        ("cannot", Cell::text(locations_text(plan.unfit.len()))),
        ("move at most", Cell::Bytes(Some(plan.move_bytes_max))),
        ("takes at least", Cell::text(when::human(bound))),
    ];
    session.out.facts(plan, facts)?;
    if !plan.unfit.is_empty() {
        let grid = Grid::of(&["CANNOT TAKE IT", "WHY"], &plan.unfit, |unfit| {
            vec![Cell::text(&unfit.location_name), Cell::text(&unfit.reason)]
        });
        session.out.below(&grid)?;
    }
    Ok(Exit::Ok)
}

fn locations_text(count: usize) -> String {
    if count == 1 { "1 location".to_owned() } else { format!("{count} locations") }
}

/// How a job or group stands.
///
/// # Errors
/// What the controller says; it may be away for a minute.
async fn look(client: &Client, what: PrewarmRef) -> anyhow::Result<Picture> {
    let [noun, id] = what.path();
    let path = [noun.as_str(), id.as_str()];
    Ok(match what {
        PrewarmRef::Job(_) => system::patient::<PrewarmDetails>(client, &path).await?.into(),
        PrewarmRef::Group(_) => system::patient::<PrewarmGroupDetails>(client, &path).await?.into(),
    })
}

/// Follows a job or group until it ends.
///
/// # Errors
/// What the controller says; it may be away for a minute in between.
pub(crate) async fn watch(client: &Client, what: PrewarmRef, mode: Mode) -> anyhow::Result<Picture> {
    let mut fleet = Fleet::new(mode);
    let mut last_looks = if mode == Mode::Bars { LAST_LOOKS } else { 0 };
    loop {
        let job = look(client, what).await?;
        fleet.show(&job);
        let is_over =
            matches!(job.state, PrewarmState::Done | PrewarmState::Failed | PrewarmState::Cancelled);
        let is_counted =
            job.state != PrewarmState::Done || job.campaign.as_ref().is_none_or(campaign::is_counted);
        if is_over && (is_counted || last_looks == 0) {
            fleet.end();
            return Ok(job);
        }
        last_looks = last_looks.saturating_sub(is_over.into());
        tokio::time::sleep(LOOK_PAUSE / 2).await;
        fleet.settle();
        tokio::time::sleep(LOOK_PAUSE / 2).await;
    }
}

/// How a job that was waited for ended.
fn show_end(session: &Session, job: &Picture, id: &str) -> anyhow::Result<Exit> {
    session.out.list(&job.locations, &locations(&job.locations))?;
    let text = format!(
        "{} is {}: {}, {} moved",
        job.name,
        job.state,
        progress::summary(job),
        size::human(job.moved_bytes)
    );
    session.out.remark(&text)?;
    let swarm = job.campaign.as_ref().filter(|campaign| campaign::is_counted(campaign));
    if let Some(line) = swarm.and_then(campaign::line) {
        session.out.remark(&line)?;
    }
    if job.state == PrewarmState::Done {
        return Ok(Exit::Ok);
    }
    let failure = Failure::new(Exit::Incomplete, format!("the job ended {}", job.state));
    if job.state == PrewarmState::Cancelled {
        // Somebody wanted it so: there is nothing to mend.
        return Err(failure.into());
    }
    Err(failure.hint(format!("mend what the reasons name, then `hearth prewarm retry {id}`")).into())
}

impl List {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let jobs: Vec<Prewarm> = session.client.list(&["prewarms"], &[], self.limit).await?;
        const COLUMNS: &[&str] = &[
            "ID",
            "IMAGE",
            "STATE",
            "ACTIVE",
            "FAILED",
            "WHERE",
            "~MADE",
            "~HOST IMAGE",
            "+GROUP",
            "+DEADLINE",
            "+START",
            "+FINISHED",
            "+DONE BYTES",
            "+DATA BYTES",
            "+MOVED BYTES",
            "+MADE BY",
        ];
        let grid = Grid::of(COLUMNS, &jobs, |job| {
            vec![
                Cell::text(job.id),
                Cell::text(&job.image_name),
                Cell::status(job.state),
                Cell::text(format!("{}/{}", job.active, job.total)),
                Cell::Number(u64::from(job.failed)),
                Cell::text(targets::describe(&job.targets)),
                Cell::At(Some(job.created_at.clone())),
                Cell::maybe(job.host_image_name.as_ref()),
                Cell::maybe(job.group),
                Cell::At(job.deadline.clone()),
                Cell::At(Some(job.start.clone())),
                Cell::At(job.finished_at.clone()),
                Cell::Bytes(Some(job.done_bytes)),
                Cell::Bytes(Some(job.data_bytes)),
                Cell::Bytes(Some(job.moved_bytes)),
                Cell::text(&job.created_by),
            ]
        });
        session.out.list(&jobs, &grid)?;
        Ok(Exit::Ok)
    }
}

impl Show {
    async fn run(self, session: &Session) -> anyhow::Result<Exit> {
        let what = names::prewarm(&session.client, &self.job).await?;
        let [noun, id] = what.path();
        if self.watch {
            let ended = watch(&session.client, what, Mode::of_stderr(session.quiet)).await?;
            return show_end(session, &ended, &id);
        }
        let path = [noun.as_str(), id.as_str()];
        match what {
            PrewarmRef::Job(_) => {
                let job: PrewarmDetails = session.client.get(&path, &[]).await?;
                session.out.facts(&job, facts(&job.prewarm))?;
                if let Some(campaign) = &job.campaign {
                    campaign::show(session.out, campaign)?;
                }
                session.out.below(&locations(&job.locations))?;
            }
            PrewarmRef::Group(_) => {
                let group: PrewarmGroupDetails = session.client.get(&path, &[]).await?;
                session.out.facts(&group, group_facts(&group.group))?;
                session.out.below(&jobs(&group.group))?;
                session.out.below(&locations(&group.locations))?;
            }
        }
        Ok(Exit::Ok)
    }
}

fn facts(job: &Prewarm) -> Vec<(&'static str, Cell)> {
    vec![
        ("id", Cell::text(job.id)),
        ("image", Cell::text(&job.image_name)),
        ("state", Cell::status(job.state)),
        ("where", Cell::text(targets::describe(&job.targets))),
        ("active", Cell::text(format!("{} of {}", job.active, job.total))),
        ("failed", Cell::Number(u64::from(job.failed))),
        (
            "verified",
            Cell::text(format!("{} of {}", size::human(job.done_bytes), size::human(job.data_bytes))),
        ),
        ("moved", Cell::Bytes(Some(job.moved_bytes))),
        ("priority", Cell::text(job.priority)),
        ("deadline", Cell::At(job.deadline.clone())),
        ("start", Cell::At(Some(job.start.clone()))),
        ("rate", Cell::maybe(job.rate_bytes_per_s.map(|rate| format!("{}/s", size::human(rate))))),
        ("made by", Cell::text(&job.created_by)),
        ("made", Cell::At(Some(job.created_at.clone()))),
        ("finished", Cell::At(job.finished_at.clone())),
    ]
}

fn group_facts(group: &PrewarmGroup) -> Vec<(&'static str, Cell)> {
    vec![
        ("id", Cell::text(group.id)),
        ("host image", Cell::text(&group.host_image_name)),
        ("state", Cell::status(group.state)),
        ("where", Cell::text(targets::describe(&group.targets))),
        ("disks", Cell::Number(group.jobs.len() as u64)),
        ("active", Cell::text(format!("{} of {}", group.active, group.total))),
        ("failed", Cell::Number(u64::from(group.failed))),
        (
            "verified",
            Cell::text(format!("{} of {}", size::human(group.done_bytes), size::human(group.data_bytes))),
        ),
        ("moved", Cell::Bytes(Some(group.moved_bytes))),
        ("priority", Cell::text(group.priority)),
        ("deadline", Cell::At(group.deadline.clone())),
        ("start", Cell::At(Some(group.start.clone()))),
        ("rate", Cell::maybe(group.rate_bytes_per_s.map(|rate| format!("{}/s", size::human(rate))))),
        ("made by", Cell::text(&group.created_by)),
        ("made", Cell::At(Some(group.created_at.clone()))),
        ("finished", Cell::At(group.finished_at.clone())),
    ]
}

/// The jobs of a group, one per disk.
fn jobs(group: &PrewarmGroup) -> Grid {
    Grid::of(&["DISK", "STATE", "ACTIVE", "FAILED", "MOVED"], &group.jobs, |job| {
        vec![
            Cell::text(&job.image_name),
            Cell::status(job.state),
            Cell::text(format!("{}/{}", job.active, job.total)),
            Cell::Number(u64::from(job.failed)),
            Cell::Bytes(Some(job.moved_bytes)),
        ]
    })
}

fn locations(hosts: &[PrewarmTarget]) -> Grid {
    const COLUMNS: &[&str] = &[
        "LOCATION",
        "STATUS",
        "DONE",
        "MOVED",
        "~REUSED",
        "~TRIES",
        "~FINISHED",
        "WHY",
        "+LOCATION ID",
        "+ONLINE",
        "+DONE BYTES",
        "+DATA BYTES",
    ];
    Grid::of(COLUMNS, hosts, |host| {
        let offline = !host.online && host.status != EntryStatus::Stale;
        let status = if offline { format!("{} (offline)", host.status) } else { host.status.to_string() };
        vec![
            Cell::text(&host.location_name),
            Cell::Status(status),
            Cell::Percent(host.percent),
            Cell::Bytes(Some(host.moved_bytes)),
            Cell::Bytes(Some(host.reused_bytes)),
            Cell::Number(u64::from(host.attempts)),
            Cell::At(host.done_at.clone()),
            Cell::text(&host.reason),
            Cell::text(host.location),
            Cell::flag(host.online),
            Cell::Bytes(Some(host.done_bytes)),
            Cell::Bytes(Some(host.data_bytes)),
        ]
    })
}

impl One {
    async fn act(self, session: &Session, verb: &str) -> anyhow::Result<Exit> {
        let what = names::prewarm(&session.client, &self.job).await?;
        let [noun, id] = what.path();
        let path = [noun.as_str(), id.as_str(), verb];
        match what {
            PrewarmRef::Job(_) => {
                let job: Prewarm = session.client.act_for(&path).await?;
                session.out.facts(&job, facts(&job))?;
            }
            PrewarmRef::Group(_) => {
                let group: PrewarmGroup = session.client.act_for(&path).await?;
                session.out.facts(&group, group_facts(&group))?;
            }
        }
        Ok(Exit::Ok)
    }
}
