//! Puts plans together: what each location should hold, and which transfers may run.
//!
//! **What.** Pure functions over the reconciler's model: intents are merged per (location, content), and the entries of a
//! plan are written out.
//! **Why only for locations that are online.** Nobody reads the plan of a silent host; making it would raise generations
//! of a thousand locations at every restart of the controller, twice.

use std::collections::{HashMap, HashSet};

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{ImageId, LocationId, PrewarmId};
use hearth_protocol::message::control::{Hold, ImageName, PlanEntry, Wish};

use crate::db::contents::Content;
use crate::db::intents::{Intent, IntentHold as StoredHold, IntentWish};
use crate::db::locations::Location;
use crate::logic::hold::IntentHold;
use crate::logic::plan::{IntentView, Wanted, merge};

/// Images named beside one content; more share it, but a plan is read by people only for a hint.
const IMAGES_MAX: usize = 4;
/// Longest image name in a plan, in bytes; keeps 256 entries in a frame.
const NAME_BYTES_MAX: usize = 128;

/// What the reconciler knows.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) locations: HashMap<LocationId, Location>,
    pub(super) intents: HashMap<LocationId, Vec<Intent>>,
    pub(super) contents: HashMap<ContentId, Content>,
    /// Images that are `active`: of others nothing is begun, and no plan names them.
    pub(super) names: HashMap<ImageId, String>,
    pub(super) paused: HashSet<PrewarmId>,
    pub(super) stopped: bool,
}

/// All that is wanted at one location, sorted by content.
pub(super) type Wants = Vec<(ContentId, Wanted)>;

impl Model {
    /// Merges the intents of a location.
    pub(super) fn wants(&self, location: LocationId) -> Wants {
        let mut views: HashMap<ContentId, Vec<IntentView>> = HashMap::new();
        for intent in self.intents.get(&location).into_iter().flatten() {
            views.entry(intent.content).or_default().push(self.view(intent));
        }
        let mut wants: Wants =
            views.into_iter().filter_map(|(content, views)| Some((content, merge(&views)?))).collect();
        wants.sort_unstable_by_key(|(content, _)| *content);
        wants
    }

    fn view(&self, intent: &Intent) -> IntentView {
        IntentView {
            image: intent.image,
            wish: match intent.wish {
                IntentWish::Keep => Wish::Keep,
                IntentWish::Remove => Wish::Remove,
            },
            priority: intent.priority,
            deadline_us: intent.deadline_us,
            hold: match intent.hold {
                StoredHold::Until(us) => IntentHold::Until(us),
                StoredHold::Pinned => IntentHold::Open,
            },
            rate_bytes_per_s: intent.rate_bytes_per_s,
            paused: intent.prewarm.is_some_and(|job| self.paused.contains(&job))
                || !self.names.contains_key(&intent.image),
            created_us: intent.created_us,
        }
    }

    /// The entry as it goes to the agent; `None` if the content's record is not there.
    pub(super) fn plan_entry(
        &self,
        content: ContentId,
        wanted: &Wanted,
        admitted: bool,
    ) -> Option<PlanEntry> {
        let Content { kind, raw_bytes, data_bytes, .. } = self.contents.get(&content)?;
        let named = wanted.images.iter().filter_map(|image| Some((*image, self.names.get(image)?)));
        let images =
            named.take(IMAGES_MAX).map(|(image, name)| ImageName { image, name: cut(name) }).collect();
        Some(PlanEntry {
            content,
            kind: *kind,
            raw_bytes: *raw_bytes,
            data_bytes: *data_bytes,
            images,
            wish: wanted.wish,
            priority: wanted.priority,
            deadline_unix_ms: wanted.deadline_us.map(|us| u64::try_from(us / 1000).unwrap_or(0)),
            hold: wanted.hold.map_or(Hold::Released, IntentHold::on_wire),
            admitted,
            rate_bytes_per_s: wanted.rate_bytes_per_s,
        })
    }
}

fn cut(name: &str) -> String {
    let mut name = name.to_owned();
    while name.len() > NAME_BYTES_MAX {
        name.pop();
    }
    name
}
