//! `hearth-controller init`: makes state folder, CA, database, default tenants and the first administrator's token.
//!
//! **Why the token is printed before it is stored.** A token that was stored and never seen locks everybody out; one that
//! was seen and not stored is worth nothing, and `init` can simply be run again.
//!
//! **Invariants.** A finished set-up is never set up again. A set-up that was interrupted anywhere is continued by the
//! next run: the CA stays, because an agent may trust it already.

use std::io::Write;
use std::path::Path;

use hearth_protocol::digest::CaFingerprint;
use hearth_protocol::words::Role;

use crate::api::caller::new_secret;
use crate::clock;
use crate::config::{self, Config};
use crate::db::operations::Draft;
use crate::db::tokens::{Scope, Token};
use crate::db::{Db, DbError, new_id};
use crate::fleet::ca::{Authority, CaError};
use crate::state::{StateError, StateFolder, refuse_foreign_root};

/// Name of the first token.
const FIRST_TOKEN: &str = "admin";

/// Why the set-up does not work.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// The certificate authority.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// It ran before.
    #[error(
        "this controller is set up already. Start it with `hearth-controller serve`; if the administrator's token is \
         lost, `hearth-controller init --new-admin-token` makes another"
    )]
    Done,
    /// `--new-admin-token` before the first set-up.
    #[error("this controller is not set up yet: run `hearth-controller init` without --new-admin-token")]
    NotDone,
    /// The token could not be shown.
    #[error("cannot print the token; nothing was stored, run it again")]
    Print(#[source] std::io::Error),
}

/// Sets the controller up, or makes another administrator's token, and says on `out` what to do next.
///
/// # Errors
/// [`InitError`].
pub async fn init(
    config: &Config,
    new_admin_token: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), InitError> {
    refuse_foreign_root(&config.state_dir)?;
    let state = StateFolder::take(&config.state_dir)?;
    let folder = state.ca();
    let authority = match Authority::create(&folder, clock::unix_us()) {
        Err(CaError::Exists { .. }) => Authority::load(&folder)?,
        made => made?,
    };
    let db = Db::open(&config.database_url).await?;
    let ended = first_token(&db, config, authority.fingerprint(), new_admin_token, out).await;
    db.close().await;
    ended
}

async fn first_token(
    db: &Db,
    config: &Config,
    fingerprint: CaFingerprint,
    new_admin_token: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), InitError> {
    db.default_tenants().await?;
    match (db.has_tokens().await?, new_admin_token) {
        (true, false) => return Err(InitError::Done),
        (false, true) => return Err(InitError::NotDone),
        _ => {}
    }
    let (secret, hash) = new_secret();
    print(config, fingerprint, &secret, out).map_err(InitError::Print)?;
    let token = Token {
        id: new_id(),
        name: FIRST_TOKEN.to_owned(),
        role: Role::Admin,
        scope: Scope::System,
        holder: None,
        usable: true,
        expires_us: None,
        revoked_us: None,
        last_used_us: None,
        created_us: clock::unix_us(),
    };
    let op = Draft::system("token.create").on("token", token.id, FIRST_TOKEN);
    db.create_token(&token, &hash, &op.with(serde_json::json!({ "by": "init" }))).await?;
    db.seal_once().await?;
    Ok(())
}

fn print(
    config: &Config,
    fingerprint: CaFingerprint,
    token: &str,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let host = config.public_names.first().map_or("THIS-HOST", String::as_str);
    let port = config.listen_https.port();
    let at = config.path.as_deref().filter(|path| *path != Path::new(config::PATH_DEFAULT));
    let at = at.map(|path| format!(" --config {}", path.display())).unwrap_or_default();
    write!(
        out,
        "The controller is set up in {state}.\n\n\
         Administrator's token (shown this once): {token}\n\
         CA fingerprint: {fingerprint}\n\n\
         Next:\n  \
         systemctl start hearth-controller       (without packages: hearth-controller serve{at})\n  \
         hearth login https://{host}:{port} --token {token} --fingerprint {fingerprint}\n  \
         hearth location token create            (says what to do on each host)\n",
        state = config.state_dir.display(),
    )?;
    out.flush()
}
