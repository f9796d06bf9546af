//! `/api/v1/host-images/{id}/cache`: where all disks of a host image are, and what prewarm and cache calls are about.
//!
//! **Invariants.** A host image is `active` at a location only when every one of its disks is. Nobody places a disk that he may
//! not see.

use std::collections::HashSet;

use axum::extract::State;
use hearth_protocol::api::Page;
use hearth_protocol::api::host_image::HostImageCache;
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{HostImageId, ImageId};
use hearth_protocol::words::{EntryStatus, HostEntryStatus, ImageStatus};

use super::app::App;
use super::body::{Path, Query};
use super::cache::{PageQuery, cacheable, percent};
use super::caller::Caller;
use super::fault::Fault;
use crate::clock;
use crate::db::host_image_cache::HostCacheRow;
use crate::db::host_images::HostImage;
use crate::db::images::Image;
use crate::logic::host_state;

/// Where a host image is cached: one row per location, with the worst state of its disks there.
#[utoipa::path(get, path = "/api/v1/host-images/{id}/cache", tag = "host-images",
    params(("id" = HostImageId, Path), PageQuery), responses((status = 200, body = Page<HostImageCache>)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<HostImageId>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<HostImageCache>>, Fault> {
    let found = app.db.host_image_seen_by(caller.scope(), id).await?;
    let found = found.ok_or_else(|| Fault::not_found("host image", id))?;
    let images: Vec<ImageId> = found.disks.iter().map(|disk| disk.id).collect();
    let data_bytes = found.disks.iter().map(|disk| disk.data_bytes.unwrap_or(0)).sum();
    let page =
        app.db.host_cache_rows(&images, caller.bound()?, &query.request(), clock::steady_unix_us()).await?;
    let items = page.items.into_iter().map(|row| body(row, images.len(), data_bytes)).collect();
    Ok(axum::Json(Page { items, next: page.next }))
}

fn body(row: HostCacheRow, disks: usize, data_bytes: u64) -> HostImageCache {
    let status = host_state::entry_status(&row.entries, disks);
    let active = row.entries.iter().filter(|entry| **entry == EntryStatus::Active).count();
    let whole = if status == HostEntryStatus::Active { EntryStatus::Active } else { EntryStatus::Caching };
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    HostImageCache {
        location: row.location,
        location_name: row.location_name,
        location_kind: row.location_kind,
        platform: row.platform,
        region: row.region,
        zone: row.zone,
        status,
        active: count(active),
        disks: count(disks),
        percent: percent(whole, row.done_bytes, data_bytes),
        done_bytes: row.done_bytes,
        data_bytes,
    }
}

/// What a cache or prewarm call is about: an image, or a host image with all its disks.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The host image, if it is one.
    pub(super) host_image: Option<HostImage>,
    /// The images to place with their contents, the system disk first.
    pub(super) disks: Vec<(Image, ContentId)>,
}

impl Wanted {
    /// Finds what the request names: exactly one of the two.
    ///
    /// # Errors
    /// 400, 404, 409 if an image is not active or may not be seen.
    pub(super) async fn find(
        app: &App,
        caller: &Caller,
        image: Option<ImageId>,
        host_image: Option<HostImageId>,
    ) -> Result<Self, Fault> {
        match (image, host_image) {
            (Some(image), None) => {
                Ok(Self { host_image: None, disks: vec![cacheable(app, caller, image).await?] })
            }
            (None, Some(id)) => Self::whole(app, caller, id).await,
            (Some(_), Some(_)) => Err(Fault::invalid("host_image", "say image or host_image, not both")),
            (None, None) => Err(Fault::invalid("image", "say which image or host_image")),
        }
    }

    async fn whole(app: &App, caller: &Caller, id: HostImageId) -> Result<Self, Fault> {
        let found = app.db.host_image_seen_by(caller.scope(), id).await?;
        let found = found.ok_or_else(|| Fault::not_found("host image", id))?;
        let ids: Vec<ImageId> = found.disks.iter().map(|disk| disk.id).collect();
        let seen = app.db.images_seen_by(caller.scope(), &ids).await?;
        let refused = |position: usize, why: &str| {
            let role = if position == 0 { "system disk".to_owned() } else { format!("data disk {position}") };
            let message = format!("host image {} cannot be cached: its {role} is {why}", found.facts.name);
            Fault::conflict(message).field("host_image")
        };
        let mut disks = Vec::with_capacity(found.disks.len());
        for (position, disk) in found.disks.iter().enumerate() {
            // Whose host image it is says nothing of whose its disks are.
            if !seen.contains(&disk.id) {
                return Err(refused(position, "an image that you may not see")
                    .hint("somebody who sees all its disks can cache it"));
            }
            match disk.content {
                Some(content) if disk.status == ImageStatus::Active => disks.push((disk.clone(), content)),
                _ => {
                    return Err(refused(position, disk.status.as_str())
                        .hint("hearth host-image show tells the state of every disk"));
                }
            }
        }
        Ok(Self { host_image: Some(found), disks })
    }

    /// The different contents: two disks may have the same bytes.
    pub(super) fn contents(&self) -> Vec<ContentId> {
        let mut seen = HashSet::new();
        self.disks.iter().map(|(_, content)| *content).filter(|content| seen.insert(*content)).collect()
    }

    /// The target of its row in the operation log: kind, id and name.
    pub(super) fn target(&self) -> (&'static str, String, String) {
        match (&self.host_image, self.disks.first()) {
            (Some(found), _) => ("host_image", found.id.to_string(), found.facts.name.clone()),
            (None, Some((image, _))) => ("image", image.id.to_string(), image.facts.name.clone()),
            (None, None) => ("image", String::new(), String::new()),
        }
    }
}
