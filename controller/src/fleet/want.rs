//! A host asks for an image: a consumer there wants it, and nobody placed it.
//!
//! **What.** Finds the image, asks [`crate::config::HostsMayAsk`], and puts an intent of origin `launch`: first in the queue, held for a day.
//! **Why not every image.** An agent speaks for whoever is root on its host. What everybody may use costs no secret; anything
//! else is placed by somebody with a right to it (`POST /images/{id}/launch`).
//!
//! **Invariants.** An image that may not be asked for is refused in the words of one that does not exist.

use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::message::control::WantResult;
use hearth_protocol::words::{ImageStatus, LocationState, Visibility};

use super::Shared;
use super::registry::Session;
use crate::clock;
use crate::config::HostsMayAsk;
use crate::db::images::Image;
use crate::db::intents::Intent;
use crate::db::operations::{Draft, WhoKind};
use crate::db::tokens::Scope;
use crate::db::{Db, DbError};

/// How a wish ends badly.
struct Refusal {
    fault: FaultCode,
    text: String,
}

fn refuse<T>(fault: FaultCode, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { fault, text: text.into() })
}

fn none<T>() -> Result<T, Refusal> {
    refuse(FaultCode::NotFound, "no active image that hosts may ask for has this name or id")
}

impl From<DbError> for Refusal {
    fn from(error: DbError) -> Self {
        tracing::error!(error = crate::api::fault::chain(&error), "cannot place what a host wants");
        Self { fault: FaultCode::Internal, text: "the controller failed; its log says more".to_owned() }
    }
}

/// Places the image called `wanted` (id or name) at the session's location.
pub(super) async fn place(shared: &Shared, session: &Session, wanted: &str) -> WantResult {
    match try_to(shared, session, wanted).await {
        Ok(content) => WantResult::Placed { content },
        Err(Refusal { fault, text }) => WantResult::Refused { fault, text },
    }
}

async fn try_to(shared: &Shared, session: &Session, wanted: &str) -> Result<ContentId, Refusal> {
    let here = shared.db.location(session.location).await?;
    let Some(here) = here.filter(|here| here.state == LocationState::Active) else {
        return refuse(FaultCode::NotPlaced, "this location takes no new copies: it is drained or removed");
    };
    let (image, content) = find(&shared.db, shared.config.hosts_may_ask, wanted).await?;
    let who = session.agent.to_string();
    let op = Draft::new(WhoKind::Agent, who, "cache.want").on("image", image.id, image.facts.name.clone());
    let op = op.with(serde_json::json!({ "location": here.id, "location_name": here.name }));
    let intent = Intent::launch(image.id, content, here.id, clock::unix_us());
    match shared.db.put_intents(&[intent], &op).await {
        Ok(()) => {}
        // Deleted, or closed to all, since it was found.
        Err(DbError::NotFound { .. } | DbError::State { .. }) => return none(),
        Err(error) => return Err(error.into()),
    }
    shared.wake();
    Ok(content)
}

async fn find(db: &Db, may: HostsMayAsk, wanted: &str) -> Result<(Image, ContentId), Refusal> {
    let found = match wanted.parse() {
        Ok(id) => db.image(id).await?.into_iter().collect(),
        Err(_) => db.images_named(Scope::System, wanted).await?,
    };
    let eligible = |image: &Image| {
        image.deleted_us.is_none()
            && image.status == ImageStatus::Active
            && match may {
                HostsMayAsk::None => false,
                HostsMayAsk::Public => image.facts.visibility == Visibility::Public,
                HostsMayAsk::All => true,
            }
    };
    let mut found = found.into_iter().filter(eligible);
    match (found.next(), found.next()) {
        (Some(image), None) => match image.content {
            Some(content) => Ok((image, content)),
            None => refuse(FaultCode::Internal, "the image has no bytes"),
        },
        (Some(_), Some(_)) => refuse(FaultCode::NotFound, "several images have this name: give the id"),
        (None, _) => none(),
    }
}
