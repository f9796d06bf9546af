//! `GET /d/{link}/{name}`: what a download link opens. No token is needed: who has the address may fetch the file.
//!
//! **What.** The address holds the link's id and 256 random bits; the store is asked for the hash of both, once. The name at
//! its end is for people and programs that name files by it; it is not looked at.
//!
//! **Why an ended link says so and a forged one does not.** Who has the secret had the address from somebody who could tell
//! the same. Whoever tries others learns nothing: they all answer alike.
//!
//! **Invariants.** Nothing but the bytes of one file leaves here: no record, no name of another. The first use of a link is
//! in the operation log before its first byte leaves. An address never stands in our own log.

use std::net::{IpAddr, SocketAddr};
use std::sync::PoisonError;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use hearth_protocol::api::error::ErrorBody;
use hearth_protocol::id::LinkId;
use hearth_protocol::words::{DiskFormat, ImageStatus};
use zeroize::Zeroizing;

use super::app::App;
use super::body::Path;
use super::caller::secret_hash;
use super::download::{FileToServe, original_of, serve_file};
use super::fault::Fault;
use super::variants::variant_of;
use crate::clock;
use crate::db::images::Image;
use crate::db::links::Link;
use crate::db::operations::{Draft, WhoKind};

/// Begin of the path of every link.
pub const BASE: &str = "/d/";
/// Bytes of `id.secret`: a UUID, a dot, 64 hex digits.
const ADDRESS_BYTES: usize = 36 + 1 + 64;

/// Whether this path holds a secret.
#[must_use]
pub fn is_link(path: &str) -> bool {
    path.starts_with(BASE)
}

/// `id.secret` of a new link as its user gets it, and what the store keeps of it.
#[must_use]
pub fn new_secret(id: LinkId) -> (Zeroizing<String>, String) {
    let secret = blake3::Hash::from_bytes(rand::random()).to_hex();
    let address = Zeroizing::new(format!("{id}.{secret}"));
    let hash = secret_hash(&address);
    (address, hash)
}

/// The file that a download link opens; `Range`, `If-Range` and `If-None-Match` are understood.
#[utoipa::path(get, path = "/d/{link}/{name}", tag = "links",
    params(("link" = String, Path, description = "Id and secret of the link"), ("name" = String, Path, description = "Any name")),
    responses((status = 200, description = "The file", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, description = "A range of it"), (status = 304, description = "You have it already"),
        (status = 404, description = "There is no such link", body = ErrorBody),
        (status = 410, description = "It has ended; ask for a new one", body = ErrorBody),
        (status = 416, description = "There is no such range", body = ErrorBody),
        (status = 429, description = "Too many wrong addresses from where you are", body = ErrorBody),
        (status = 503, description = "Too many downloads run", body = ErrorBody)))]
pub async fn fetch(
    State(app): State<App>,
    Path((address, _name)): Path<(String, String)>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
) -> Result<Response, Fault> {
    let from = peer.ip();
    let wait =
        app.guesses.lock().unwrap_or_else(PoisonError::into_inner).may_try(place(from), clock::monotonic());
    if let Err(wait) = wait {
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        return Err(Fault::too_many("too many wrong addresses were tried from where you are", wait_ms));
    }
    let Some(link) = find(&app, &address).await? else {
        app.guesses.lock().unwrap_or_else(PoisonError::into_inner).missed(place(from), clock::monotonic());
        return Err(Fault::not_found("download link", "with this address"));
    };
    let (image, file) = opened(&app, &link).await?;
    let method = request.method().clone();
    let mut answer = serve_file(&app, file, request).await?;
    let sends = matches!(answer.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT);
    if method == Method::GET && sends && link.first_used_us.is_none() {
        app.db.use_link(link.id, &used(&link, &image, from)).await?;
    }
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    Ok(answer)
}

/// The link with this address, whatever has become of it.
async fn find(app: &App, address: &str) -> Result<Option<Link>, Fault> {
    // What has not the form of an address is not looked up, but it is a miss all the same.
    let form = address.len() == ADDRESS_BYTES
        && address.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-' | b'.'));
    if !form {
        return Ok(None);
    }
    Ok(app.db.link_by_secret_hash(&secret_hash(address)).await?)
}

/// The image that a link opens now, and its file.
async fn opened(app: &App, link: &Link) -> Result<(Image, FileToServe), Fault> {
    if !link.is_open(clock::unix_us()) {
        let what = if link.revoked_us.is_some() { "was revoked" } else { "has expired" };
        return Err(Fault::gone(format!("this download link {what}")).hint(
            "ask whoever gave it to you for a new one: `hearth image link create IMAGE`, or POST /api/v1/images/{id}/links",
        ));
    }
    let image = app.db.image(link.image).await?;
    let image = image.filter(|image| image.deleted_us.is_none() && image.status == ImageStatus::Active);
    let Some(image) = image else { return Err(not_available()) };
    match file_of(app, &image, link.format).await {
        Ok(Some(file)) => Ok((image, file)),
        // Programs that follow a link know 503 alone as "try again".
        Err(fault) if fault.parts().code == "not_ready" => {
            Err(Fault::unavailable(fault.parts().message.clone()))
        }
        // The store has trouble: the same address will do later.
        Err(fault) if fault.parts().status.is_server_error() => Err(fault),
        Ok(None) | Err(_) => Err(not_available()),
    }
}

fn not_available() -> Fault {
    Fault::gone("what this download link opened is not available any more")
        .hint("ask whoever gave it to you; a new link can be made when the image is active again")
}

/// The file of an image in `format`, or as it was imported; `None`: that one was not kept.
///
/// # Errors
/// As [`variant_of`].
pub async fn file_of(
    app: &App,
    image: &Image,
    format: Option<DiskFormat>,
) -> Result<Option<FileToServe>, Fault> {
    match format {
        Some(format) => variant_of(app, image, format, None).await.map(Some),
        None => original_of(app, image).await,
    }
}

/// The row of the first use.
fn used(link: &Link, image: &Image, from: IpAddr) -> Draft {
    let details =
        serde_json::json!({ "link": link.id, "made_by": link.created_by, "from": from.to_canonical() });
    let op = Draft::new(WhoKind::Link, link.id.to_string(), "image.link_use");
    op.on("image", image.id, image.facts.name.clone()).with(details)
}

/// Where a caller is, for the count of guesses: its IPv4 address, or the network that one customer has in IPv6.
fn place(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits() >> 64 << 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_machine_and_one_customer_are_one_place() {
        let of = |text: &str| place(text.parse().unwrap());
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("2001:db8:0:7::1"), of("2001:db8:0:7:ffff::2"));
        assert_ne!(of("2001:db8:0:7::1"), of("2001:db8:0:8::1"));
    }

    #[test]
    fn an_address_holds_256_random_bits_and_the_store_their_hash() {
        let id = crate::db::new_id();
        let (address, hash) = new_secret(id);
        assert_eq!((address.len(), secret_hash(&address)), (ADDRESS_BYTES, hash));
        assert_ne!(new_secret(id).0, address);
    }
}
