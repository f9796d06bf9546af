//! Which campaigns should run, with whom, and whom no agent may serve: what the reconciler's model says about the swarm.
//!
//! **What.** In each pass the contents that are needed are looked through; [`membership`] decides who takes part in the
//! campaign of each.
//! **Why at most so many campaigns.** They share the controller's uplink: a hundred at once would all end last. What is not
//! among them is served directly, as many at once as the caps allow, and gets its campaign when another ends.
//! **Invariants.** Only sessions that speak version 4 and whose inventory came take part. The same model gives the same wishes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::LocationId;
use hearth_protocol::message::control::Wish;
use hearth_protocol::message::swarm::DENIED_MAX;
use hearth_protocol::words::Priority;

use super::Shared;
use super::compose::{Model, Wants};
use super::registry::Session;
use super::swarm::{CampaignWish, MemberWish, Swarms};
use crate::clock;
use crate::db::DbError;
use crate::db::locations::Location;
use crate::logic::admission;
use crate::logic::swarm::membership::{Candidate, Stand, membership};

/// Campaigns that run at once.
const CAMPAIGNS_MAX: usize = 16;
/// How long a revoked agent is on the list: the longest life of a certificate, and a day.
const DENIED_FOR_US: i64 = 31 * 24 * 3600 * 1_000_000;

/// What is wanted at each location that is online.
type Online = [(Arc<Session>, Wants)];

/// Knows where locations stand; see the module.
#[derive(Debug, Default)]
pub(super) struct Recruiter {
    /// Numbers of (zone, rack), given once and kept.
    racks: HashMap<(String, String), u32>,
    rack_of: HashMap<LocationId, u32>,
}

/// A content that somebody needs.
#[derive(Debug)]
struct Need {
    /// Places in the list of who is online.
    receivers: Vec<usize>,
    /// The least is the most urgent.
    urgency: (Priority, i64, i64),
}

impl Recruiter {
    /// Takes over where locations stand.
    pub(super) fn places<'a>(&mut self, locations: impl Iterator<Item = &'a Location>) {
        self.rack_of.clear();
        for location in locations {
            let next = u32::try_from(self.racks.len()).unwrap_or(u32::MAX);
            // Racks of two zones may have the same name.
            let key = (location.zone.clone(), location.rack.clone());
            self.rack_of.insert(location.id, *self.racks.entry(key).or_insert(next));
        }
    }

    /// The campaigns that should run now, the most urgent first.
    pub(super) fn campaigns(
        &self,
        shared: &Shared,
        model: &Model,
        online: &Online,
        candidates: &[admission::Candidate],
    ) -> Vec<CampaignWish> {
        if !shared.swarms.is_on() || model.stopped {
            return Vec::new();
        }
        let running = shared.swarms.contents();
        let places: HashMap<LocationId, usize> =
            online.iter().enumerate().map(|(at, (session, _))| (session.location, at)).collect();
        let mut needs = needs(model, online, &places, candidates);
        for content in &running {
            let empty = Need { receivers: Vec::new(), urgency: (Priority::ALL[0], 0, 0) };
            needs.entry(*content).or_insert(empty);
        }
        needs.retain(|content, need| running.contains(content) || need.receivers.len() > 1);
        let mut order: Vec<(ContentId, Need)> = needs.into_iter().collect();
        order.sort_by_key(|(content, need)| (!running.contains(content), need.urgency, *content));
        let now_ms = shared.now_ms();
        let fits = |content: &ContentId| running.contains(content) || !shared.swarms.rests(*content, now_ms);
        let order = order.into_iter().filter(|(content, _)| fits(content)).take(CAMPAIGNS_MAX);
        order
            .filter_map(|(content, need)| self.wish(shared, online, &places, content, &need.receivers))
            .collect()
    }

    fn wish(
        &self,
        shared: &Shared,
        online: &Online,
        places: &HashMap<LocationId, usize>,
        content: ContentId,
        receivers: &[usize],
    ) -> Option<CampaignWish> {
        let rack = |location: LocationId| self.rack_of.get(&location).copied().unwrap_or(u32::MAX);
        let stands = |at: usize, stand: Stand| {
            let location = online[at].0.location;
            Candidate { location, rack: rack(location), stand }
        };
        let mut candidates: Vec<Candidate> = receivers.iter().map(|at| stands(*at, Stand::Needs)).collect();
        let active = shared.picture.active_at(content);
        let holders = active.iter().filter_map(|location| places.get(location).copied());
        let serves = |at: &usize| {
            let (session, wants) = &online[*at];
            Swarms::speaks(session) && wanted(wants, content).is_none_or(|wanted| wanted.wish == Wish::Keep)
        };
        candidates.extend(holders.filter(serves).map(|at| stands(at, Stand::Has)));
        let chosen = membership(&candidates, shared.swarms.members(content).as_ref())?;
        let is_receiver: BTreeSet<LocationId> = chosen.receivers.iter().copied().collect();
        let all: BTreeSet<LocationId> = chosen.receivers.into_iter().chain(chosen.holders).collect();
        let member = |location: LocationId| {
            let (session, wants) = online.get(*places.get(&location)?)?;
            Some(MemberWish {
                session: Arc::clone(session),
                receives: is_receiver.contains(&location),
                rack: rack(location),
                deadline_us: wanted(wants, content).and_then(|wanted| wanted.deadline_us),
            })
        };
        Some(CampaignWish { content, members: all.into_iter().filter_map(member).collect() })
    }
}

/// What is needed, and by whom.
fn needs(
    model: &Model,
    online: &Online,
    places: &HashMap<LocationId, usize>,
    candidates: &[admission::Candidate],
) -> BTreeMap<ContentId, Need> {
    let mut needs: BTreeMap<ContentId, Need> = BTreeMap::new();
    let has_bytes = |content| model.contents.get(content).is_some_and(|content| content.data_bytes > 0);
    for candidate in candidates.iter().filter(|candidate| !candidate.later && has_bytes(&candidate.content)) {
        let Some(at) = places.get(&candidate.location).filter(|at| Swarms::speaks(&online[**at].0)) else {
            continue;
        };
        let deadline_us = candidate.deadline_us.unwrap_or(i64::MAX);
        let urgency = (candidate.priority, deadline_us, candidate.created_us);
        let need = needs.entry(candidate.content).or_insert(Need { receivers: Vec::new(), urgency });
        need.receivers.push(*at);
        need.urgency = need.urgency.min(urgency);
    }
    needs
}

fn wanted(wants: &Wants, content: ContentId) -> Option<&crate::logic::plan::Wanted> {
    let at = wants.binary_search_by_key(&content, |(content, _)| *content).ok()?;
    Some(&wants[at].1)
}

/// Who receives in a campaign, as entries that may take bytes.
pub(super) fn receivers(wish: &CampaignWish) -> impl Iterator<Item = (LocationId, ContentId)> + '_ {
    let all = wish.members.iter().filter(|member| member.receives);
    all.map(|member| (member.session.location, wish.content))
}

/// Reads who was revoked lately and tells it to all agents if it is news.
///
/// # Errors
/// A failed statement.
pub(super) async fn deny(shared: &Shared) -> Result<(), DbError> {
    let most = u32::try_from(DENIED_MAX).unwrap_or(u32::MAX);
    let agents = shared.db.revoked_agents(clock::unix_us().saturating_sub(DENIED_FOR_US), most).await?;
    if let Some(message) = shared.swarms.deny(agents) {
        for session in shared.registry.all().iter().filter(|session| Swarms::speaks(session)) {
            session.swarm_say(message.clone());
        }
    }
    Ok(())
}
