//! The campaign that a prewarm job shows: how its hosts pass the image to each other.
//!
//! **What.** The fleet's view of a campaign in words for people, with a reason beside each host that is slow or failed others.
//! **Why by time.** A campaign belongs to a content, not to a job: whoever needs it takes part. A job shows the newest one
//! that ran while the job did.
//! **Invariants.** A host that the caller may not see has neither id nor name. A bound that is endless is none: JSON has no
//! number for it.

use std::collections::HashMap;

use hearth_protocol::api::campaign::{BoundSetBy, Campaign, CampaignHost};
use hearth_protocol::api::prewarm::PrewarmTarget;
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::LocationId;
use hearth_protocol::words::PrewarmState;

use super::app::App;
use super::caller::Caller;
use super::fault::Fault;
use super::when;
use crate::db::prewarms::Prewarm;
use crate::fleet::{CampaignView, HostView};
use crate::logic::swarm::{Bound, Limit};

/// What stands for the name of a host that the caller may not see.
const UNSEEN: &str = "another host";

/// What is known of a host beside the campaign.
#[derive(Clone, Debug, Default)]
struct Known {
    /// `None`: the caller may not see it.
    name: Option<String>,
    online: bool,
}

/// The newest campaign that ran while the job did. `targets`: those of the job, which the caller may see.
///
/// # Errors
/// 500.
pub(super) async fn of_job(
    app: &App,
    caller: &Caller,
    job: &Prewarm,
    targets: &[PrewarmTarget],
) -> Result<Option<Campaign>, Fault> {
    let views = app.fleet.campaigns();
    let Some(view) = views.iter().find(|view| is_of(view.content, span(view), job)) else { return Ok(None) };
    let mut known: HashMap<LocationId, Known> = HashMap::new();
    for host in view.slowest.iter().chain(&view.culprits) {
        known.entry(host.location).or_default().online = app.fleet.online(host.location);
    }
    for target in targets {
        if let Some(host) = known.get_mut(&target.location) {
            host.name = Some(target.location_name.clone());
        }
    }
    // At most a handful: those that are named and no targets of the job.
    for (location, host) in known.iter_mut().filter(|(_, host)| host.name.is_none()) {
        let found = app.db.location(*location).await?;
        host.name = found.filter(|found| caller.sees_copies_at(found.domain)).map(|found| found.name);
    }
    Ok(Some(body(view, &known)))
}

/// When a campaign ran, microseconds since the epoch; without an end while it runs.
fn span(view: &CampaignView) -> (i64, Option<i64>) {
    (view.since_us, view.ended.as_ref().map(|(ended_us, _)| *ended_us))
}

/// Whether a campaign ran while the job did.
fn is_of(content: ContentId, (since_us, ended_us): (i64, Option<i64>), job: &Prewarm) -> bool {
    let begun_us = job.start_us.map_or(job.created_us, |start_us| start_us.max(job.created_us));
    content == job.content
        && job.state != PrewarmState::Scheduled
        && ended_us.is_none_or(|ended_us| ended_us >= begun_us)
        && job.finished_us.is_none_or(|finished_us| since_us <= finished_us)
}

fn body(view: &CampaignView, known: &HashMap<LocationId, Known>) -> Campaign {
    let bound = view.bound.filter(|bound| bound.seconds.is_finite());
    let elapsed_s = seconds(view.elapsed_us);
    let copies = |pieces: u64| pieces as f64 / f64::from(view.n_pieces.max(1));
    let hosts = |hosts: &[HostView]| -> Vec<CampaignHost> {
        let beside = |host: &HostView| known.get(&host.location).cloned().unwrap_or_default();
        hosts.iter().map(|host| host_body(host, view, beside(host))).collect()
    };
    Campaign {
        number: view.campaign.number,
        since: when::text(view.since_us),
        ended_at: view.ended.as_ref().map(|(ended_us, _)| when::text(*ended_us)),
        ended_why: view.ended.as_ref().map(|(_, why)| why.clone()),
        elapsed_s,
        bound_s: bound.map(|bound| bound.seconds),
        bound_set_by: bound.map(set_by),
        ratio: bound.filter(|bound| bound.seconds > 0.0).map(|bound| elapsed_s / bound.seconds),
        n_pieces: view.n_pieces,
        piece_bytes: view.piece_bytes,
        receivers: view.n_receivers,
        done: view.n_done,
        holders: view.n_holders,
        leases: view.leases,
        source_copies: copies(view.source_pieces),
        cross_rack_copies: copies(view.cross_rack_pieces),
        from_controller_bytes: view.from_controller_bytes,
        from_agents_bytes: view.from_agents_bytes,
        slowest: hosts(&view.slowest),
        culprits: hosts(&view.culprits),
    }
}

fn host_body(host: &HostView, view: &CampaignView, known: Known) -> CampaignHost {
    CampaignHost {
        location: known.name.is_some().then_some(host.location),
        receives: host.receives,
        here: host.is_here,
        percent: percent(host.n_done, view.n_pieces),
        joined_s: host.joined_us.map(seconds),
        finished_s: host.finished_us.map(seconds),
        from_controller_bytes: host.from_controller_bytes,
        from_agents_bytes: host.from_agents_bytes,
        sent_bytes: host.sent_bytes,
        late: host.failures.late,
        missing: host.failures.missing,
        silent: host.failures.silent,
        wrong: host.failures.wrong,
        reason: reason(host, known.online, view.ended.is_some()),
        location_name: known.name.unwrap_or_else(|| UNSEEN.to_owned()),
    }
}

/// Why a host is slow, or what it did to others; empty if nothing is known. What it is now says nothing of a campaign that
/// has ended.
fn reason(host: &HostView, online: bool, has_ended: bool) -> String {
    let lacks = host.receives && host.finished_us.is_none();
    // Who has everything may go; a holder that goes is missed.
    let absence = match (lacks || !host.receives, host.is_here, host.joined_us) {
        (false, ..) | (true, true, Some(_)) => None,
        (true, false, _) if has_ended => Some("left before the end"),
        (true, false, _) if !online => Some("offline"),
        (true, false, _) => Some("takes no part any more"),
        (true, true, None) if has_ended => Some("never answered"),
        (true, true, None) if !online => Some("offline"),
        (true, true, None) => Some("has not answered"),
    };
    let failures = host.failures;
    if host.is_expelled {
        return format!("{} hosts had wrong bytes from it: left out", host.accusers);
    }
    let deeds = [
        ("sent wrong bytes", failures.wrong),
        ("silent", failures.silent),
        ("lacked what it had announced", failures.missing),
    ];
    let deeds = deeds.into_iter().filter(|(_, count)| *count > 0).map(|(deed, count)| match count {
        1 => format!("{deed} once"),
        _ => format!("{deed} {count} times"),
    });
    absence.map(str::to_owned).into_iter().chain(deeds).collect::<Vec<_>>().join(", ")
}

/// Rounded down: 100 means all.
fn percent(n_done: u32, n_pieces: u32) -> u8 {
    let percent = u64::from(n_done.min(n_pieces)) * 100 / u64::from(n_pieces.max(1));
    u8::try_from(percent).unwrap_or(100)
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// The limit in the API's words.
const fn set_by(bound: Bound) -> BoundSetBy {
    match bound.set_by {
        Limit::Source => BoundSetBy::Source,
        Limit::SlowestHost => BoundSetBy::SlowestHost,
        Limit::Uplinks => BoundSetBy::Uplinks,
        Limit::Pieces => BoundSetBy::Pieces,
    }
}

#[cfg(test)]
mod tests;
