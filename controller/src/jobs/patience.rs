//! Waiting for a database that does not answer for a moment.
//!
//! **Why for reads too.** A job that a passing fault ended would stay `running` until the next start, the source's password in its
//! spec, and its image would say for ever that it is being made.
//!
//! **Invariants.** What will fail again and again is not waited for, and nothing is once the controller stops.

use hearth_protocol::id::ImageId;
use tokio_util::sync::CancellationToken;

use super::LOOK_EVERY;
use crate::db::DbError;

/// Waits a little where a statement failed that may succeed later, as on a full disk; `false`: it never will, or the
/// controller stops.
pub(super) async fn may_work_later(closing: &CancellationToken, image: ImageId, error: &DbError) -> bool {
    if !error.is_passing() {
        return false;
    }
    tracing::error!(%image, error = crate::api::fault::chain(error), "a job cannot go on without the database; tried again");
    tokio::select! {
        () = closing.cancelled() => false,
        () = tokio::time::sleep(LOOK_EVERY) => true,
    }
}

/// What `ask` gets, as soon as the database answers.
///
/// # Errors
/// One that does not pass, or any once the controller stops.
pub(super) async fn patiently<T, F: Future<Output = Result<T, DbError>>>(
    closing: &CancellationToken,
    image: ImageId,
    ask: impl Fn() -> F,
) -> Result<T, DbError> {
    loop {
        match ask().await {
            Err(error) if may_work_later(closing, image, &error).await => {}
            answer => return answer,
        }
    }
}
