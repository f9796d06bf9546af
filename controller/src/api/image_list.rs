//! `GET /api/v1/images`: the catalog as lists.
//!
//! **What.** Turns query parameters into a filter, an order and a page of the store, and marks what is cached at a location.
//! **Why filters stand in one struct.** The command line and the console offer the same ones; the OpenAPI text lists them.
//! **Invariants.** Everything is cut to the caller's scope by the store. Who may not see copies learns of a location no more than
//! which of the images that he sees were brought there, and not that bytes of his are there for somebody else.

use std::collections::HashSet;

use axum::extract::State;
use hearth_protocol::api::image::{Count, Image as ImageBody, ImagePage, TAG_CHARS_MAX, TAGS_MAX};
use hearth_protocol::id::{DomainId, ImageId, LocationId, ProjectId};
use hearth_protocol::words::{
    Architecture, DiskFormat, ImageKind, ImageSort, ImageStatus, ImageView, OsType, ShareStatus, SortOrder,
    Virtualisation, Visibility,
};
use serde::Deserialize;

use super::app::App;
use super::body::Query;
use super::caller::Caller;
use super::fault::Fault;
use super::images::bodies;
use super::when;
use crate::clock;
use crate::db::PageRequest;
use crate::db::image_list::{ImageFilter, ImageOrder};
use crate::db::shares::View;
use crate::logic::authz;
use crate::logic::catalog::{SIZE_BYTES_MAX, check_search};

/// What to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Exactly this name, without regard to case.
    name: Option<String>,
    /// Part of the name, without regard to case; at most 255 characters. `%` and `_` are plain characters.
    name_contains: Option<String>,
    /// Quick search: part of name or description, or the begin of the status; at most 255 characters.
    q: Option<String>,
    /// Tag, without regard to case; given again: all of them.
    #[serde(default)]
    tag: Vec<String>,
    /// State. `pending_delete` lists the recycle bin, which is hidden otherwise.
    status: Option<ImageStatus>,
    /// Disk or ISO.
    kind: Option<ImageKind>,
    /// Format of the original.
    format: Option<DiskFormat>,
    /// Operating system.
    os_type: Option<OsType>,
    /// CPU architecture.
    architecture: Option<Architecture>,
    /// What it was built to run on.
    virtualisation: Option<Virtualisation>,
    /// Who may see it.
    visibility: Option<Visibility>,
    /// Part of the catalog; absent: all.
    #[param(inline)]
    view: Option<ImageView>,
    /// With `view=shared`: what the receiver said; absent: accepted.
    share_status: Option<ShareStatus>,
    /// Owning domain.
    domain: Option<DomainId>,
    /// Owning project.
    project: Option<ProjectId>,
    /// Whether it refuses deletion.
    protected: Option<bool>,
    /// Smallest disk as a guest sees it, bytes.
    size_min: Option<u64>,
    /// Largest disk, bytes.
    size_max: Option<u64>,
    /// Made at this time or later, RFC 3339.
    created_after: Option<String>,
    /// Made before this time.
    created_before: Option<String>,
    /// Changed at this time or later.
    updated_after: Option<String>,
    /// Last changed before this time.
    updated_before: Option<String>,
    /// By what to sort; default `created`.
    sort: Option<ImageSort>,
    /// Default: `desc` for sizes and times, `asc` for words.
    order: Option<SortOrder>,
    /// Id or name of a location: each row says with `cached` whether it is there.
    at: Option<String>,
    /// Also say how many images match; exact up to 10,000.
    #[serde(default)]
    count: bool,
    /// `next` of the page before; with the same order.
    cursor: Option<String>,
    /// Rows of the page, 1 to 1,000; default 100.
    limit: Option<u32>,
}

impl ListQuery {
    fn order(&self) -> ImageOrder {
        let by = self.sort.unwrap_or(ImageSort::Created);
        let usual = match by {
            ImageSort::Name | ImageSort::Status => SortOrder::Asc,
            ImageSort::Size | ImageSort::Created | ImageSort::Updated => SortOrder::Desc,
        };
        ImageOrder { by, order: self.order.unwrap_or(usual) }
    }

    fn view(&self) -> Result<View, Fault> {
        match (self.view.unwrap_or(ImageView::All), self.share_status) {
            (ImageView::Shared, status) => Ok(View::Shared(status.unwrap_or(ShareStatus::Accepted))),
            (_, Some(_)) => Err(Fault::invalid("share_status", "share_status goes with view=shared alone")),
            (ImageView::All, None) => Ok(View::All),
            (ImageView::Featured, None) => Ok(View::Featured),
            (ImageView::Public, None) => Ok(View::Public),
            (ImageView::Private, None) => Ok(View::Private),
        }
    }

    fn filter(&self) -> Result<ImageFilter, Fault> {
        for (field, text) in [("name", &self.name), ("name_contains", &self.name_contains), ("q", &self.q)] {
            text.as_deref().map_or(Ok(()), |text| check_search(field, text))?;
        }
        if self.tag.len() > TAGS_MAX || self.tag.iter().any(|tag| tag.chars().count() > TAG_CHARS_MAX) {
            let allowed = format!("at most {TAGS_MAX} tags of at most {TAG_CHARS_MAX} characters");
            return Err(Fault::invalid("tag", allowed));
        }
        for (field, bytes) in [("size_min", self.size_min), ("size_max", self.size_max)] {
            if bytes.is_some_and(|bytes| bytes > SIZE_BYTES_MAX) {
                return Err(Fault::invalid(field, format!("at most {SIZE_BYTES_MAX} bytes")));
            }
        }
        self.tag.iter().try_for_each(|tag| check_search("tag", tag))?;
        let time =
            |field, text: &Option<String>| text.as_deref().map(|text| when::parse(field, text)).transpose();
        Ok(ImageFilter {
            name: self.name.clone(),
            name_contains: self.name_contains.clone(),
            search: self.q.clone(),
            tags: self.tag.clone(),
            status: self.status,
            kind: self.kind,
            format: self.format,
            os_type: self.os_type,
            architecture: self.architecture,
            virtualisation: self.virtualisation,
            visibility: self.visibility,
            domain: self.domain,
            project: self.project,
            protected: self.protected,
            bytes_min: self.size_min,
            bytes_max: self.size_max,
            created_from_us: time("created_after", &self.created_after)?,
            created_to_us: time("created_before", &self.created_before)?,
            updated_from_us: time("updated_after", &self.updated_after)?,
            updated_to_us: time("updated_before", &self.updated_before)?,
            view: self.view()?,
        })
    }
}

/// Images that the caller may see, newest first unless another order is asked for.
#[utoipa::path(get, path = "/api/v1/images", tag = "images", params(ListQuery),
    responses((status = 200, body = ImagePage)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<ImagePage>, Fault> {
    let (filter, order) = (query.filter()?, query.order());
    let at = match &query.at {
        Some(wanted) => Some(location(&app, &caller, wanted).await?),
        None => None,
    };
    let request = PageRequest { limit: query.limit, cursor: query.cursor };
    let page = app.db.images_by(caller.scope(), &filter, order, &request).await?;
    let count = match page.next {
        _ if !query.count => None,
        // The whole list is one page, which is counted.
        None if request.cursor.is_none() => {
            Some(Count { rows: u32::try_from(page.items.len()).unwrap_or(u32::MAX), more: false })
        }
        _ => Some(app.db.count_images(caller.scope(), &filter).await?),
    };
    let mut items = bodies(&app, &caller, &page.items).await?;
    if let Some(location) = at {
        let ids: Vec<ImageId> = items.iter().map(|image| image.id).collect();
        let cached = match location {
            Some((location, placed)) => {
                app.db.active_at(location, &ids, placed, clock::steady_unix_us()).await?
            }
            None => HashSet::new(),
        };
        items.iter_mut().for_each(|image| image.cached = Some(cached.contains(&image.id)));
    }
    show_shares(&caller, filter.view, &mut items);
    Ok(axum::Json(ImagePage { items, next: page.next, count }))
}

/// Says of images that others own how the caller's project answered the share through which it sees them.
fn show_shares(caller: &Caller, view: View, items: &mut [ImageBody]) {
    for item in items {
        let owned = caller.principal.scope.covers(authz::Scope::Project(item.domain, item.project));
        item.share_status = match view {
            View::Shared(status) => Some(status),
            // What is listed and neither one's own nor public was accepted.
            _ => (item.visibility == Visibility::Shared && !owned).then_some(ShareStatus::Accepted),
        };
    }
}

/// The location of this id or name, and whether only what is placed there may be told; `None` if there is none and the caller may
/// not know that.
async fn location(app: &App, caller: &Caller, wanted: &str) -> Result<Option<(LocationId, bool)>, Fault> {
    check_search("at", wanted)?;
    let name = wanted.to_lowercase();
    let rows = app.db.locations(false).await?;
    let found = rows.iter().find(|row| match wanted.parse::<LocationId>() {
        Ok(id) => row.id == id,
        Err(_) => row.name.to_lowercase() == name,
    });
    match found {
        Some(row) if authz::may_launch_at(caller.principal, row.domain) => {
            Ok(Some((row.id, !caller.sees_copies_at(row.domain))))
        }
        _ if caller.sees_caches() => Err(Fault::not_found("location", wanted)
            .field("at")
            .hint("hearth location list shows what there is")),
        _ => Ok(None),
    }
}
