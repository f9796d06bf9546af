//! An agent asks what opens an encrypted content on its host.
//!
//! **What.** Answers with the passphrase of the image, if the host may run it.
//!
//! **Who may.** A host where the content is placed by the plan, whoever placed it; and one that was given it before and still holds
//! a copy, so that machines on a copy that nobody holds any more start again, also after the image was deleted. Its own word that it
//! has a copy is not enough.
//!
//! **Why asked for and not sent.** The agent knows what it holds; it asks again in every session, so nothing that was lost or
//! restarted needs to be found out here, and a right that ended ends with the session.
//!
//! **Invariants.** A passphrase is given only after the database holds that it was, and to whom. None is logged.

use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::message::control::KeyAnswer;

use super::Shared;
use super::registry::Session;
use crate::api::fault::chain;
use crate::db::DbError;
use crate::db::operations::{Draft, WhoKind};

fn refuse(fault: FaultCode, text: impl Into<String>) -> KeyAnswer {
    KeyAnswer::Refused { fault, text: text.into() }
}

/// What opens `content`, for the host of this session.
pub(super) async fn answer(shared: &Shared, session: &Session, content: ContentId) -> KeyAnswer {
    match try_to(shared, session, content).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::error!(error = chain(&error), %content, "cannot look up what opens an image");
            refuse(FaultCode::Internal, "the controller failed; its log says more")
        }
    }
}

async fn try_to(shared: &Shared, session: &Session, content: ContentId) -> Result<KeyAnswer, DbError> {
    let location = session.location;
    let Some((image, name, key)) = shared.db.encrypted_image(content).await? else {
        return Ok(KeyAnswer::Plain);
    };
    let is_placed = shared.plans.of(location).is_some_and(|plan| plan.places(content));
    if !is_placed && !shared.db.key_was_given(location, content).await? {
        return Ok(refuse(FaultCode::NotPlaced, "the image is not placed on this host"));
    }
    let passphrase = match shared.keys.passphrase(key.id, key.project, &key.sealed, image) {
        Ok(passphrase) => passphrase,
        Err(error) => {
            tracing::error!(key = %key.id, name = key.name, %error, "an agent cannot be given what opens an image");
            return Ok(refuse(FaultCode::Internal, error.to_string()));
        }
    };
    let op = Draft::new(WhoKind::Agent, session.agent.to_string(), "key.give").on("image", image, name);
    let op = op.with(serde_json::json!({ "location": location, "key": key.id, "content": content }));
    shared.db.note_key_given(location, (content, image), &op).await?;
    Ok(KeyAnswer::Given(passphrase))
}
