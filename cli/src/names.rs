//! From what a person wrote to one record: names or ids everywhere.
//!
//! **What.** An id is taken as it is; a name is looked up and must be one record's. Locations, images, domains, projects and
//! users are looked up by name, prewarm jobs by the image's name or the end of their id.
//! **Why a list on doubt.** Two images may have one name in two projects; guessing would delete the wrong one.
//! **Invariants.** An exact name wins over one that differs in case only; never is one of several picked, but for prewarm jobs of
//! one image: there the newest is meant.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use hearth_protocol::api::host_image::HostImage;
use hearth_protocol::api::image::Image;
use hearth_protocol::api::key::KeyRecord;
use hearth_protocol::api::location::Location;
use hearth_protocol::api::market::Market;
use hearth_protocol::api::prewarm::Prewarm;
use hearth_protocol::api::tenant::{Domain, Project};
use hearth_protocol::api::user::User;
use hearth_protocol::id::{
    DomainId, HostImageId, ImageId, KeyId, MarketId, PrewarmGroupId, PrewarmId, ProjectId, UserId,
};
use hearth_protocol::words::{ImageStatus, PrewarmState};

use crate::client::Client;
use crate::failure::{Exit, Failure};

/// Candidates that an error lists; more help nobody.
const CANDIDATES_MAX: usize = 10;
/// Shortest end of an id that is taken for one.
const ID_END_CHARS_MIN: usize = 6;

/// The one record of `rows` that `wanted` names.
///
/// # Errors
/// [`Exit::NotFound`] for none, [`Exit::Usage`] with the candidates for several.
pub(crate) fn pick<'a, T>(
    what: &str,
    wanted: &str,
    rows: &'a [T],
    name: impl Fn(&T) -> &str,
    describe: impl Fn(&T) -> String,
) -> Result<&'a T, Failure> {
    let exact: Vec<&T> = rows.iter().filter(|row| name(row) == wanted).collect();
    let lower = wanted.to_lowercase();
    let found = if exact.is_empty() {
        rows.iter().filter(|row| name(row).to_lowercase() == lower).collect()
    } else {
        exact
    };
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(not_found(what, wanted)),
        several => Err(ambiguous(what, wanted, several.iter().map(|row| describe(row)))),
    }
}

fn not_found(what: &str, wanted: &str) -> Failure {
    let list = format!("`hearth {what} list` shows what there is");
    // Tenants are shared with and given things without being seen.
    let unseen =
        if matches!(what, "project" | "domain") { "; one that you may not see goes by its id" } else { "" };
    Failure::new(Exit::NotFound, format!("there is no {what} {wanted:?}")).hint(list + unseen)
}

fn ambiguous(what: &str, wanted: &str, candidates: impl ExactSizeIterator<Item = String>) -> Failure {
    let count = candidates.len();
    let mut message = format!("{count} {what}s are meant by {wanted:?}:");
    for candidate in candidates.take(CANDIDATES_MAX) {
        message.push_str(&format!("\n  {candidate}"));
    }
    if count > CANDIDATES_MAX {
        message.push_str(&format!("\n  and {} more", count - CANDIDATES_MAX));
    }
    let within = matches!(what, "project" | "user");
    let hint = if within {
        "name it by its id, or say --domain where the command has it"
    } else {
        "name it by its id"
    };
    Failure::new(Exit::Usage, message).hint(hint)
}

/// The image with this id or name. One in the recycle bin is found by its id alone.
pub(crate) async fn image(client: &Client, wanted: &str) -> anyhow::Result<Image> {
    match image_of(client, wanted, None).await {
        Err(error) if lies_in_bin(client, wanted, &error).await => {
            let failure = Failure::new(Exit::NotFound, format!("image {wanted:?} is in the recycle bin"));
            Err(failure.hint("`hearth image bin` shows it, `hearth image restore` brings it back").into())
        }
        found => found,
    }
}

/// Whether an image that was not found can still be brought back.
async fn lies_in_bin(client: &Client, wanted: &str, error: &anyhow::Error) -> bool {
    let unknown = error.downcast_ref::<Failure>().is_some_and(|failure| failure.exit == Exit::NotFound);
    unknown && image_of(client, wanted, Some(ImageStatus::PendingDelete)).await.is_ok()
}

/// The image in the recycle bin with this id or name.
pub(crate) async fn binned_image(client: &Client, wanted: &str) -> anyhow::Result<Image> {
    image_of(client, wanted, Some(ImageStatus::PendingDelete)).await
}

async fn image_of(client: &Client, wanted: &str, status: Option<ImageStatus>) -> anyhow::Result<Image> {
    if wanted.parse::<ImageId>().is_ok() {
        return client.get(&["images", wanted], &[]).await;
    }
    let status = status.map(|status| status.to_string());
    let query = [("name", Some(wanted.to_owned())), ("status", status)];
    let rows: Vec<Image> = client.list(&["images"], &query, None).await?;
    let describe = |image: &Image| {
        format!(
            "{}  {}  {}, project {}, made {}",
            image.id, image.name, image.status, image.project, image.created_at
        )
    };
    Ok(pick("image", wanted, &rows, |image| &image.name, describe)?.clone())
}

/// The host image with this id or name.
pub(crate) async fn host_image(client: &Client, wanted: &str) -> anyhow::Result<HostImage> {
    if wanted.parse::<HostImageId>().is_ok() {
        return client.get(&["host-images", wanted], &[]).await;
    }
    let query = [("name", Some(wanted.to_owned()))];
    let rows: Vec<HostImage> = client.list(&["host-images"], &query, None).await?;
    let describe = |found: &HostImage| {
        format!("{}  {}  project {}, made {}", found.id, found.name, found.project, found.created_at)
    };
    Ok(pick("host-image", wanted, &rows, |found| &found.name, describe)?.clone())
}

/// The image or the host image that a command is about; clap has seen to it that there is exactly one.
pub(crate) async fn subject(
    client: &Client,
    image_name: Option<&str>,
    host_image_name: Option<&str>,
) -> anyhow::Result<(Option<ImageId>, Option<HostImageId>)> {
    if let Some(wanted) = host_image_name {
        return Ok((None, Some(host_image(client, wanted).await?.id)));
    }
    match image_name {
        Some(wanted) => Ok((Some(image(client, wanted).await?.id), None)),
        None => Ok((None, None)),
    }
}

/// The key with this id or name.
pub(crate) async fn key(client: &Client, wanted: &str) -> anyhow::Result<KeyRecord> {
    if wanted.parse::<KeyId>().is_ok() {
        return client.get(&["keys", wanted], &[]).await;
    }
    let rows: Vec<KeyRecord> = client.list(&["keys"], &[("name", Some(wanted.to_owned()))], None).await?;
    let describe = |key: &KeyRecord| format!("{}  {}  project {}", key.id, key.name, key.project);
    Ok(pick("key", wanted, &rows, |key| &key.name, describe)?.clone())
}

/// The location with this id or name.
pub(crate) async fn location(client: &Client, wanted: &str) -> anyhow::Result<Location> {
    if wanted.parse::<hearth_protocol::id::LocationId>().is_ok() {
        return client.get(&["locations", wanted], &[]).await;
    }
    let rows: Vec<Location> = client.list(&["locations"], &[("name", Some(wanted.to_owned()))], None).await?;
    let describe = |location: &Location| format!("{}  {}  {}", location.id, location.name, location.state);
    Ok(pick("location", wanted, &rows, |location| &location.name, describe)?.clone())
}

/// The market with this id or name.
pub(crate) async fn market(client: &Client, wanted: &str) -> anyhow::Result<Market> {
    if wanted.parse::<MarketId>().is_ok() {
        return client.get(&["markets", wanted], &[]).await;
    }
    let rows: Vec<Market> = client.list(&["markets"], &[("name", Some(wanted.to_owned()))], None).await?;
    let describe = |market: &Market| format!("{}  {}", market.id, market.name);
    Ok(pick("market", wanted, &rows, |market| &market.name, describe)?.clone())
}

/// The domain with this id or name.
pub(crate) async fn domain(client: &Client, wanted: &str) -> anyhow::Result<Domain> {
    if wanted.parse::<DomainId>().is_ok() {
        return client.get(&["domains", wanted], &[]).await;
    }
    let rows: Vec<Domain> = client.list(&["domains"], &[("name", Some(wanted.to_owned()))], None).await?;
    Ok(pick(
        "domain",
        wanted,
        &rows,
        |domain| &domain.name,
        |domain| format!("{}  {}", domain.id, domain.name),
    )?
    .clone())
}

/// The id of the domain with this id or name, if one is named.
pub(crate) async fn maybe_domain(client: &Client, wanted: Option<&str>) -> anyhow::Result<Option<DomainId>> {
    match wanted {
        Some(wanted) => Ok(Some(domain(client, wanted).await?.id)),
        None => Ok(None),
    }
}

/// Names of all domains that one may see, for tables.
pub(crate) async fn domain_names(client: &Client) -> anyhow::Result<BTreeMap<DomainId, String>> {
    let rows: Vec<Domain> = client.list(&["domains"], &[], None).await?;
    Ok(rows.into_iter().map(|row| (row.id, row.name)).collect())
}

/// The project with this id or name, in the domain with this id or name where one is given.
pub(crate) async fn project(client: &Client, wanted: &str, domain: Option<&str>) -> anyhow::Result<Project> {
    if wanted.parse::<ProjectId>().is_ok() {
        return client.get(&["projects", wanted], &[]).await;
    }
    let domain = maybe_domain(client, domain).await?.map(|id| id.to_string());
    let query = [("name", Some(wanted.to_owned())), ("domain", domain)];
    let rows: Vec<Project> = client.list(&["projects"], &query, None).await?;
    let domains = domain_names(client).await?;
    let describe = |project: &Project| {
        let domain = domains.get(&project.domain).map(String::as_str).unwrap_or_default();
        format!("{}  {}, domain {domain}", project.id, project.name)
    };
    Ok(pick("project", wanted, &rows, |project| &project.name, describe)?.clone())
}

/// The id of the project with this id or name. An id is not looked up: who names one need not be able to see the project.
pub(crate) async fn project_id(client: &Client, wanted: &str) -> anyhow::Result<ProjectId> {
    match wanted.parse() {
        Ok(id) => Ok(id),
        Err(_) => Ok(project(client, wanted, None).await?.id),
    }
}

/// As [`project_id`], where one is given.
pub(crate) async fn maybe_project(
    client: &Client,
    wanted: Option<&str>,
) -> anyhow::Result<Option<ProjectId>> {
    match wanted {
        Some(wanted) => Ok(Some(project_id(client, wanted).await?)),
        None => Ok(None),
    }
}

/// The id of the domain with this id or name; as [`project_id`].
pub(crate) async fn domain_id(client: &Client, wanted: &str) -> anyhow::Result<DomainId> {
    match wanted.parse() {
        Ok(id) => Ok(id),
        Err(_) => Ok(domain(client, wanted).await?.id),
    }
}

/// The user with this id or name, in the domain with this id or name where one is given.
pub(crate) async fn user(client: &Client, wanted: &str, domain: Option<&str>) -> anyhow::Result<User> {
    if wanted.parse::<UserId>().is_ok() {
        return client.get(&["users", wanted], &[]).await;
    }
    let domain = maybe_domain(client, domain).await?.map(|id| id.to_string());
    let query = [("name", Some(wanted.to_owned())), ("domain", domain)];
    let rows: Vec<User> = client.list(&["users"], &query, None).await?;
    let domains = domain_names(client).await?;
    let describe = |user: &User| {
        let domain = domains.get(&user.domain).map(String::as_str).unwrap_or_default();
        format!("{}  {}, domain {domain}", user.id, user.name)
    };
    Ok(pick("user", wanted, &rows, |user| &user.name, describe)?.clone())
}

/// A prewarm job, or the group of a host image's jobs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PrewarmRef {
    /// Of an image.
    Job(PrewarmId),
    /// Of a host image.
    Group(PrewarmGroupId),
}

impl PrewarmRef {
    /// Where the API has it.
    pub(crate) fn path(self) -> [String; 2] {
        match self {
            Self::Job(id) => ["prewarms".to_owned(), id.to_string()],
            Self::Group(id) => ["prewarm-groups".to_owned(), id.to_string()],
        }
    }
}

/// The job or group with this id, this end of an id, or of the image or host image with this name: the unfinished one, else
/// the newest.
pub(crate) async fn prewarm(client: &Client, wanted: &str) -> anyhow::Result<PrewarmRef> {
    if let Ok(id) = wanted.parse::<PrewarmGroupId>() {
        let jobs: Vec<Prewarm> =
            client.list(&["prewarms"], &[("group", Some(id.to_string()))], Some(1)).await?;
        let job = PrewarmRef::Job(PrewarmId::from_bytes(*id.as_bytes()));
        return Ok(if jobs.is_empty() { job } else { PrewarmRef::Group(id) });
    }
    let rows: Vec<Prewarm> = client.list(&["prewarms"], &[], None).await?;
    Ok(pick_prewarm(wanted, &rows)?)
}

/// A job or a group that may be meant.
struct Candidate {
    target: PrewarmRef,
    open: bool,
    text: String,
}

fn pick_prewarm(wanted: &str, rows: &[Prewarm]) -> Result<PrewarmRef, Failure> {
    let ends = |id: String| wanted.len() >= ID_END_CHARS_MIN && id.ends_with(wanted);
    let by_id = candidates(rows, |row| ends(row.id.to_string()), |group, _| ends(group.to_string()));
    let named = by_id.is_empty();
    let found = if named {
        candidates(rows, |row| row.image_name == wanted, |_, name| name == wanted)
    } else {
        by_id
    };
    let unfinished: Vec<&Candidate> = found.iter().filter(|candidate| candidate.open).collect();
    match (found.as_slice(), unfinished.as_slice()) {
        ([one], _) => Ok(one.target),
        (_, [one]) => Ok(one.target),
        ([], _) => Err(not_found("prewarm", wanted)),
        // Rows come newest first.
        ([newest, ..], []) if named => Ok(newest.target),
        (several, _) => Err(ambiguous("prewarm", wanted, several.iter().map(|one| one.text.clone()))),
    }
}

fn candidates(
    rows: &[Prewarm],
    job: impl Fn(&Prewarm) -> bool,
    group: impl Fn(PrewarmGroupId, &str) -> bool,
) -> Vec<Candidate> {
    let open = |row: &Prewarm| {
        matches!(row.state, PrewarmState::Scheduled | PrewarmState::Running | PrewarmState::Paused)
    };
    let mut found: Vec<Candidate> = Vec::new();
    for row in rows {
        if job(row) {
            let text = format!("{}  {}  {}, made {}", row.id, row.image_name, row.state, row.created_at);
            found.push(Candidate { target: PrewarmRef::Job(row.id), open: open(row), text });
        }
        let (Some(id), Some(name)) = (row.group, &row.host_image_name) else { continue };
        let target = PrewarmRef::Group(id);
        match found.iter_mut().find(|candidate| candidate.target == target) {
            Some(known) => known.open |= open(row),
            None if group(id, name) => {
                let text = format!("{id}  {name}  host image, made {}", row.created_at);
                found.push(Candidate { target, open: open(row), text });
            }
            None => {}
        }
    }
    found
}

/// The token or join token with this id or name.
pub(crate) fn by_id_or_name<'a, T, I>(
    what: &str,
    wanted: &str,
    rows: &'a [T],
    id: impl Fn(&T) -> I,
    name: impl Fn(&T) -> &str,
) -> Result<&'a T, Failure>
where
    I: FromStr + PartialEq + Display,
{
    if let Ok(wanted) = wanted.parse::<I>() {
        return rows.iter().find(|row| id(row) == wanted).ok_or_else(|| not_found(what, &wanted.to_string()));
    }
    pick(what, wanted, rows, &name, |row| format!("{}  {}", id(row), name(row)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named<'a>(wanted: &str, rows: &'a [(&'a str, u32)]) -> Result<u32, Failure> {
        pick("image", wanted, rows, |row| row.0, |row| format!("id {}", row.1)).map(|row| row.1)
    }

    #[test]
    fn an_exact_name_wins_over_case() {
        let rows = [("Noble", 1), ("noble", 2), ("jammy", 3)];
        assert_eq!(named("noble", &rows), Ok(2));
        assert_eq!(named("JAMMY", &rows), Ok(3));
    }

    #[test]
    fn doubt_lists_the_candidates() {
        let rows = [("Noble", 1), ("noble", 2)];
        let failure = named("NOBLE", &rows).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("id 1") && failure.message.contains("id 2"), "{}", failure.message);
        let many: Vec<(&str, u32)> = (0..25).map(|n| ("same", n)).collect();
        assert!(named("same", &many).unwrap_err().message.ends_with("and 15 more"));
        let user = ambiguous("user", "ann", ["1".to_owned(), "2".to_owned()].into_iter());
        assert!(user.hint.unwrap().contains("--domain"));
    }

    fn job(id: u8, image: &str, state: &str, group: Option<(u8, &str)>) -> Prewarm {
        let long = |n: u8| format!("01234567-89ab-7def-8123-4567890000{n:02}");
        let mut row = serde_json::json!({
            "id": long(id), "image": long(90), "image_name": image, "content": "0".repeat(64), "state": state,
            "targets": { "all": true }, "priority": "bulk", "start": "", "keep": "pinned", "total": 1, "active": 0,
            "failed": 0, "done_bytes": 0, "data_bytes": 0, "moved_bytes": 0, "created_by": "", "created_at": "",
        });
        if let Some((id, name)) = group {
            row["group"] = long(id).into();
            row["host_image_name"] = name.into();
        }
        serde_json::from_value(row).unwrap()
    }

    /// HI-3: the jobs of a host image are one thing under its name, and single ones under those of its disks.
    #[test]
    fn the_jobs_of_a_host_image_are_named_as_one() {
        let erp = |id, image, state| job(id, image, state, Some((50, "erp")));
        let rows = [
            erp(1, "erp-system", "done"),
            erp(2, "erp-data", "running"),
            job(3, "noble", "done", None),
            job(4, "erp", "done", None),
        ];
        let pick = |wanted: &str| pick_prewarm(wanted, &rows);
        let group = PrewarmRef::Group(rows[0].group.unwrap());
        assert_eq!(pick("erp"), Ok(group), "the unfinished one of two that have the name");
        assert_eq!(pick("000050"), Ok(group));
        assert_eq!(pick("erp-data"), Ok(PrewarmRef::Job(rows[1].id)));
        assert_eq!(pick("000003"), Ok(PrewarmRef::Job(rows[2].id)));
        assert_eq!(pick("focal").unwrap_err().exit, Exit::NotFound);
        let over = [job(5, "noble", "done", None), job(3, "noble", "cancelled", None)];
        assert_eq!(pick_prewarm("noble", &over), Ok(PrewarmRef::Job(over[0].id)), "the newest of those over");
        let both = [job(5, "noble", "paused", None), job(3, "noble", "running", None)];
        assert_eq!(pick_prewarm("noble", &both).unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn an_unknown_name_is_not_found() {
        let failure = named("focal", &[("noble", 1)]).unwrap_err();
        assert_eq!(failure.exit, Exit::NotFound);
        assert_eq!(failure.hint.as_deref(), Some("`hearth image list` shows what there is"));
    }
}
