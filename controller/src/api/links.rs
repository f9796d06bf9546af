//! `/api/v1/images/{id}/links`: addresses from which an image can be downloaded without a token, for a day at most.
//!
//! **What.** Making, listing and revoking them; [`super::fetch`] serves what they open.
//!
//! **Why only the owner makes them.** A link gives the bytes to anybody. Who may read somebody else's image may download it,
//! not give it away.
//!
//! **Invariants.** The secret is in the answer that makes the link and nowhere else.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use hearth_protocol::api::Page;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::api::link::{FORMAT_ORIGINAL, LINK_TTL_S_MAX, LinkCreate, LinkRecord};
use hearth_protocol::id::{ImageId, LinkId};
use hearth_protocol::words::ImageStatus;

use super::app::App;
use super::body::{Json, Path, Query};
use super::cache::PageQuery;
use super::caller::Caller;
use super::download::encoded;
use super::fault::Fault;
use super::images::find;
use super::{fetch, when};
use crate::clock;
use crate::db::images::Image;
use crate::db::links::Link;
use crate::db::new_id;

/// Links of one image that are open at a time: bounds the table, and what one has to revoke in a hurry.
const OPEN_MAX: u32 = 100;
/// Longest host name with a port.
const HOST_BYTES_MAX: usize = 262;

/// Makes a link; its address is in this answer and nowhere else.
#[utoipa::path(post, path = "/api/v1/images/{id}/links", tag = "links", params(("id" = ImageId, Path)), request_body = LinkCreate,
    responses((status = 201, body = LinkRecord),
        (status = 409, description = "The image has nothing to download, or too many links", body = ErrorBody)))]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    uri: Uri,
    headers: HeaderMap,
    Json(create): Json<LinkCreate>,
) -> Result<(StatusCode, axum::Json<LinkRecord>), Fault> {
    let image = find(&app, &caller, id).await?;
    let ttl_s = create.ttl_s.unwrap_or(LINK_TTL_S_MAX);
    if !(1..=LINK_TTL_S_MAX).contains(&ttl_s) {
        return Err(Fault::invalid("ttl_s", format!("ttl_s is {ttl_s}: 1 to {LINK_TTL_S_MAX} seconds")));
    }
    check_format(&image, create.format.as_deref())?;
    let name = &image.facts.name;
    if image.status != ImageStatus::Active {
        return Err(Fault::conflict(format!(
            "image {name} is {}: only an active one has links",
            image.status
        )));
    }
    let sha256 = image.checksums.sha256.clone().filter(|_| image.original_kept);
    let sha256 = sha256.ok_or_else(|| {
        Fault::conflict(format!("image {name} cannot be downloaded: its original was not kept"))
    })?;
    let now_us = clock::unix_us();
    let ttl_us = i64::try_from(ttl_s).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let link = Link {
        id: new_id(),
        image: id,
        format: None,
        created_by: caller.token.name.clone(),
        expires_us: now_us.saturating_add(ttl_us),
        revoked_us: None,
        first_used_us: None,
        created_us: now_us,
    };
    let (secret, hash) = fetch::new_secret(link.id);
    let details = serde_json::json!({ "link": link.id, "format": FORMAT_ORIGINAL, "ttl_s": ttl_s });
    let op = caller.draft().on("image", id, name.clone()).with(details);
    app.db.create_link(&link, &hash, OPEN_MAX, &op).await?;
    let path = format!("{}{}/{}", fetch::BASE, *secret, encoded(&fetch::file_name(&image)));
    let url = authority(&uri, &headers).map(|host| format!("https://{host}{path}"));
    let record = LinkRecord { url, path: Some(path), sha256: Some(sha256), ..record(&link, now_us) };
    Ok((StatusCode::CREATED, axum::Json(record)))
}

/// Variants are not there yet: the original is what exists.
fn check_format(image: &Image, format: Option<&str>) -> Result<(), Fault> {
    match format {
        None | Some(FORMAT_ORIGINAL) => Ok(()),
        Some(other) => {
            let shown: String = other.chars().filter(|c| !c.is_control()).take(32).collect();
            let name = &image.facts.name;
            Err(Fault::invalid(
                "format",
                format!("image {name} has no variant {shown:?}: allowed is {FORMAT_ORIGINAL}"),
            ))
        }
    }
}

/// Host and port as the caller names this controller: the address is for whoever reaches it by the same name.
fn authority(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = uri.authority().map(axum::http::uri::Authority::as_str).or(host)?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
    (host.len() <= HOST_BYTES_MAX && !host.is_empty() && host.bytes().all(plain)).then(|| host.to_owned())
}

/// Links of an image, newest first; also those that ended, for 30 days.
#[utoipa::path(get, path = "/api/v1/images/{id}/links", tag = "links", params(("id" = ImageId, Path), PageQuery),
    responses((status = 200, body = Page<LinkRecord>)))]
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<ImageId>,
    Query(query): Query<PageQuery>,
) -> Result<axum::Json<Page<LinkRecord>>, Fault> {
    find(&app, &caller, id).await?;
    let now_us = clock::unix_us();
    let page = app.db.links(id, &query.request()).await?;
    let items = page.items.iter().map(|link| record(link, now_us)).collect();
    Ok(axum::Json(Page { items, next: page.next }))
}

/// Ends a link at once. Downloads that run are finished.
#[utoipa::path(delete, path = "/api/v1/images/{id}/links/{link}", tag = "links",
    params(("id" = ImageId, Path), ("link" = LinkId, Path)), responses((status = 204, description = "Revoked")))]
pub async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Path((id, link)): Path<(ImageId, LinkId)>,
) -> Result<StatusCode, Fault> {
    let image = find(&app, &caller, id).await?;
    let details = serde_json::json!({ "link": link });
    app.db.revoke_link(id, link, &caller.draft().on("image", id, image.facts.name).with(details)).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn record(link: &Link, now_us: i64) -> LinkRecord {
    let state = match (link.is_open(now_us), link.revoked_us) {
        (true, _) => "open",
        (false, Some(_)) => "revoked",
        (false, None) => "expired",
    };
    LinkRecord {
        id: link.id,
        image: link.image,
        format: link.format.map_or_else(|| FORMAT_ORIGINAL.to_owned(), |format| format.to_string()),
        state: state.to_owned(),
        url: None,
        path: None,
        sha256: None,
        created_by: link.created_by.clone(),
        created_at: when::text(link.created_us),
        expires_at: when::text(link.expires_us),
        revoked_at: when::opt_text(link.revoked_us),
        first_used_at: when::opt_text(link.first_used_us),
    }
}
