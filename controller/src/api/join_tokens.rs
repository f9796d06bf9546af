//! `/api/v1/join-tokens`: how agents are let in.

use axum::extract::State;
use axum::http::StatusCode;
use hearth_protocol::api::Page;
use hearth_protocol::api::location::{JoinTokenCreate, JoinTokenRecord};
use hearth_protocol::id::JoinTokenId;
use hearth_protocol::message::enrol::JoinToken as Secret;

use super::app::App;
use super::body::{Json, Path};
use super::caller::Caller;
use super::fault::Fault;
use super::when;
use crate::clock;
use crate::db::join_tokens::JoinToken;
use crate::db::new_id;
use crate::logic::catalog::check_name;

/// Most agents that one token lets in.
const USES_MAX: u32 = 100_000;
/// Shortest and longest life, seconds: a minute to type it, a week for a roll-out.
const TTL_S: std::ops::RangeInclusive<u64> = 60..=604_800;
/// Facts that a token may set.
const PRESETS: &[&str] = &["zone", "region", "rack", "platform", "account"];

/// Makes a join token; the token itself is in this answer and nowhere else.
#[utoipa::path(post, path = "/api/v1/join-tokens", tag = "locations", request_body = JoinTokenCreate,
    responses((status = 201, body = JoinTokenRecord)))]
pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(create): Json<JoinTokenCreate>,
) -> Result<(StatusCode, axum::Json<JoinTokenRecord>), Fault> {
    check(&create)?;
    let now_us = clock::unix_us();
    let ttl_us = i64::try_from(create.ttl_s).unwrap_or(i64::MAX).saturating_mul(1_000_000);
    let secret = Secret { secret: rand::random(), ca: app.authority.fingerprint() };
    let token = JoinToken {
        id: new_id(),
        uses_left: create.uses,
        expires_us: now_us.saturating_add(ttl_us),
        name_glob: create.name_match.unwrap_or_default(),
        presets: create.presets,
        revoked_us: None,
        created_by: caller.token.name.clone(),
        created_us: now_us,
    };
    let details =
        serde_json::json!({ "uses": token.uses_left, "ttl_s": create.ttl_s, "names": token.name_glob });
    let op = caller.draft().on("join_token", token.id, String::new()).with(details);
    // The same hash that enrolment looks up: of the 32 bytes, not of their hex digits.
    let hash = blake3::hash(&secret.secret).to_hex().to_string();
    app.db.create_join_token(&token, &hash, &op).await?;
    Ok((StatusCode::CREATED, axum::Json(record(token, Some(secret.to_string())))))
}

fn check(create: &JoinTokenCreate) -> Result<(), Fault> {
    if !(1..=USES_MAX).contains(&create.uses) {
        return Err(Fault::invalid("uses", format!("uses is {}: 1 to {USES_MAX}", create.uses)));
    }
    if !TTL_S.contains(&create.ttl_s) {
        let (least, most) = (TTL_S.start(), TTL_S.end());
        return Err(Fault::invalid("ttl_s", format!("ttl_s is {}: {least} to {most} seconds", create.ttl_s)));
    }
    if let Some(pattern) = &create.name_match {
        check_name("name_match", pattern)?;
    }
    for (name, value) in &create.presets {
        if !PRESETS.contains(&name.as_str()) {
            return Err(Fault::invalid("presets", format!("presets may hold {}", PRESETS.join(", "))));
        }
        check_name(&format!("presets.{name}"), value)?;
    }
    Ok(())
}

/// Join tokens that can still be used.
#[utoipa::path(get, path = "/api/v1/join-tokens", tag = "locations", params(super::cache::PageQuery),
    responses((status = 200, body = Page<JoinTokenRecord>)))]
pub async fn list(
    State(app): State<App>,
    super::body::Query(_all): super::body::Query<super::cache::PageQuery>,
) -> Result<axum::Json<Page<JoinTokenRecord>>, Fault> {
    let tokens = app.db.join_tokens(clock::unix_us()).await?;
    Ok(axum::Json(Page { items: tokens.into_iter().map(|token| record(token, None)).collect(), next: None }))
}

/// Ends a join token; agents that used it stay.
#[utoipa::path(delete, path = "/api/v1/join-tokens/{id}", tag = "locations", params(("id" = JoinTokenId, Path)),
    responses((status = 204, description = "Revoked")))]
pub async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<JoinTokenId>,
) -> Result<StatusCode, Fault> {
    app.db.revoke_join_token(id, &caller.draft().on("join_token", id, String::new())).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn record(token: JoinToken, secret: Option<String>) -> JoinTokenRecord {
    JoinTokenRecord {
        id: token.id,
        token: secret,
        uses_left: token.uses_left,
        expires_at: when::text(token.expires_us),
        name_match: (!token.name_glob.is_empty()).then_some(token.name_glob),
        presets: token.presets,
        created_by: token.created_by,
    }
}
