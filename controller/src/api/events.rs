//! `GET /api/v1/events`: says what to read again, as server-sent events.
//!
//! **Why so little.** An event names a record, never its content: a lost or doubled one does no harm, and nothing is
//! shown that the next read would not show.
//!
//! **Invariants.** A reader that is too slow gets `lost` and reads everything again; it never makes the controller wait
//! or hold more than the feed's own queue.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use futures::Stream;
use hearth_protocol::api::system::Event;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::app::App;
use super::fault::Fault;
use crate::db::Change;

/// A comment keeps connections alive through proxies that cut silent ones after a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Changes as they happen, one JSON object per event.
#[utoipa::path(get, path = "/api/v1/events", tag = "system",
    responses((status = 200, description = "A stream of events", content_type = "text/event-stream", body = Event)))]
pub async fn events(
    State(app): State<App>,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, Fault> {
    let place = app.event_streams.clone().try_acquire_owned();
    let place = place.map_err(|_| Fault::unavailable("too many event streams are open"))?;
    let (stored, sessions) = (app.db.subscribe(), app.fleet.subscribe());
    let feed = Feed { app, stored, sessions, _place: place };
    let stream = futures::stream::unfold(feed, |mut feed| async move {
        let event = feed.next().await?;
        let event =
            SseEvent::default().json_data(&event).unwrap_or_else(|_| SseEvent::default().comment("?"));
        Some((Ok(event), feed))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

struct Feed {
    app: App,
    stored: Receiver<Change>,
    sessions: Receiver<Change>,
    _place: tokio::sync::OwnedSemaphorePermit,
}

impl Feed {
    /// The next event; `None` when the controller stops.
    async fn next(&mut self) -> Option<Event> {
        loop {
            let change = tokio::select! {
                () = self.app.closing.cancelled() => return None,
                change = self.stored.recv() => change,
                change = self.sessions.recv() => change,
            };
            match change {
                Ok(change) => {
                    if let Some(event) = event(change) {
                        return Some(event);
                    }
                }
                Err(RecvError::Lagged(_)) => return Some(Event::Lost),
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

/// What readers are told of a change.
const fn event(change: Change) -> Option<Event> {
    match change {
        Change::Image(id) => Some(Event::Image { id }),
        Change::HostImage(id) => Some(Event::HostImage { id }),
        Change::Location(id) => Some(Event::Location { id }),
        Change::Entries(location) => Some(Event::Entries { location }),
        Change::Prewarm(id) => Some(Event::Prewarm { id }),
        Change::Intents | Change::Jobs | Change::Operations | Change::Settings => None,
    }
}
