//! Which controller to talk to, as whom: file and environment.
//!
//! **What.** `~/.config/hearth/config.toml` holds url, token and the CA's fingerprint; `HEARTH_URL`, `HEARTH_TOKEN` and
//! `HEARTH_FINGERPRINT` win over it, one by one.
//! **Why a fingerprint and no CA file.** 64 digits can be read aloud and pasted from `hearth-controller init`.
//! **Invariants.** The file is written with mode 0600 and replaced whole, so a token is never readable by others, not
//! even for a moment.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use hearth_protocol::digest::CaFingerprint;
use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure};

/// Largest configuration file that is read; protects against a wrong path.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// What the file holds; every key may be absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigFile {
    /// Base address, for example `https://controller.example:7443`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    /// Bearer token, `hrt_` and 64 hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    /// BLAKE3 of the controller's CA certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fingerprint: Option<String>,
}

/// A complete, checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// Base address.
    pub(crate) url: reqwest::Url,
    /// Bearer token.
    pub(crate) token: String,
    /// CA that is trusted, and no other.
    pub(crate) fingerprint: CaFingerprint,
}

impl Config {
    /// Checks what file and environment gave together.
    ///
    /// # Errors
    /// A [`Failure`] that names the first missing or wrong value.
    pub(crate) fn from_file(file: &ConfigFile) -> Result<Self, Failure> {
        let (url, fingerprint) = Self::place(file)?;
        let token = file.token.clone().ok_or_else(|| missing("token", "HEARTH_TOKEN"))?;
        Ok(Self { url, token: check_token(token)?, fingerprint })
    }

    /// Which controller, without who calls it.
    ///
    /// # Errors
    /// As [`Config::from_file`].
    pub(crate) fn place(file: &ConfigFile) -> Result<(reqwest::Url, CaFingerprint), Failure> {
        let url = file.url.as_deref().ok_or_else(|| missing("controller", "HEARTH_URL"))?;
        let fingerprint = file.fingerprint.as_deref();
        let fingerprint = fingerprint.ok_or_else(|| missing("CA fingerprint", "HEARTH_FINGERPRINT"))?;
        Ok((parse_url(url)?, parse_fingerprint(fingerprint)?))
    }
}

fn missing(what: &str, env: &str) -> Failure {
    Failure::new(Exit::Usage, format!("no {what} is configured")).hint(format!(
        "run `hearth login https://HOST:7443 --fingerprint …` with --token … or --user NAME, or set {env}"
    ))
}

/// A base address; only `https`, because a token goes over it.
pub(crate) fn parse_url(text: &str) -> Result<reqwest::Url, Failure> {
    let wrong = |why: String| {
        Failure::new(Exit::Usage, format!("{text:?} is not a controller's address: {why}"))
            .hint("write https://HOST:7443")
    };
    let url = reqwest::Url::parse(text).map_err(|e| wrong(e.to_string()))?;
    if url.scheme() != "https" {
        return Err(wrong(format!("the scheme is {}, and only https is spoken", url.scheme())));
    }
    if url.host_str().is_none() || url.cannot_be_a_base() {
        return Err(wrong("it names no host".into()));
    }
    Ok(url)
}

fn check_token(token: String) -> Result<String, Failure> {
    let token = token.trim().to_owned();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Failure::new(Exit::Usage, "the token holds characters that no token has")
            .hint("a token is hrt_ and 64 hex digits; make one with `hearth token create`"));
    }
    Ok(token)
}

/// A fingerprint; colons and upper case, as other tools print them, are taken.
pub(crate) fn parse_fingerprint(text: &str) -> Result<CaFingerprint, Failure> {
    let plain: String = text.trim().chars().filter(|c| *c != ':').collect::<String>().to_ascii_lowercase();
    plain.parse().map_err(|_| {
        Failure::new(Exit::Usage, format!("{text:?} is not a CA fingerprint: 64 hex digits are expected"))
            .hint("`hearth-controller init` prints it; `hearth system` of somebody who is logged in shows it too")
    })
}

/// Where the configuration is: `--config`, else `$XDG_CONFIG_HOME/hearth`, else `~/.config/hearth`.
pub(crate) fn path(flag: Option<&Path>, env: impl Fn(&str) -> Option<String>) -> Result<PathBuf, Failure> {
    if let Some(path) = flag {
        return Ok(path.to_owned());
    }
    let folder = match env("XDG_CONFIG_HOME").filter(|dir| dir.starts_with('/')) {
        Some(dir) => PathBuf::from(dir),
        None => {
            let home = env("HOME").filter(|home| !home.is_empty());
            let home = home
                .ok_or_else(|| Failure::new(Exit::Usage, "HOME is not set; name the file with --config"))?;
            Path::new(&home).join(".config")
        }
    };
    Ok(folder.join("hearth").join("config.toml"))
}

/// Reads the file, if it is there, and puts the environment over it.
///
/// # Errors
/// A file that cannot be read or holds something else; a missing file named with `--config`.
pub(crate) fn load(
    path: &Path,
    must_exist: bool,
    env: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<ConfigFile> {
    let mut file = match std::fs::metadata(path) {
        Ok(meta) if meta.len() > FILE_BYTES_MAX => {
            anyhow::bail!("{} is larger than 64 KiB: not a configuration file", path.display())
        }
        Ok(_) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            toml::from_str(&text).map_err(|e| {
                Failure::new(Exit::Usage, format!("{} is not a valid configuration: {e}", path.display()))
                    .hint("allowed keys are url, token and fingerprint; `hearth login` writes the file anew")
            })?
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !must_exist => ConfigFile::default(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let told = format!("there is no configuration file {}", path.display());
            return Err(Failure::new(Exit::Usage, told).hint("`hearth login URL` writes it").into());
        }
        Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
    };
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    file.url = set("HEARTH_URL").or(file.url);
    file.token = set("HEARTH_TOKEN").or(file.token);
    file.fingerprint = set("HEARTH_FINGERPRINT").or(file.fingerprint);
    Ok(file)
}

/// Whether others than the owner may read the file.
pub(crate) fn readable_by_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0)
}

/// Replaces the file; folders are made as needed.
///
/// # Errors
/// When folder or file cannot be written.
pub(crate) fn store(path: &Path, file: &ConfigFile) -> anyhow::Result<()> {
    let text = format!(
        "# Written by `hearth login`.\n{}",
        toml::to_string(file).context("encoding the configuration")?
    );
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    // tempfile creates with mode 0600, and the rename keeps it.
    let mut temp = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("writing in {}", folder.display()))?;
    temp.write_all(text.as_bytes())
        .and_then(|()| temp.as_file().sync_all())
        .context("writing the configuration")?;
    temp.persist(path).with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> ConfigFile {
        ConfigFile {
            url: Some("https://c.example:7443".into()),
            token: Some(format!("hrt_{}", "a".repeat(64))),
            fingerprint: Some("AB:".repeat(31) + "AB"),
        }
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/config.toml");
        store(&path, &complete()).unwrap();
        assert!(!readable_by_others(&path));
        assert_eq!(load(&path, true, |_| None).unwrap(), complete());
        let env = |name: &str| (name == "HEARTH_URL").then(|| "https://other:1".to_owned());
        let loaded = load(&path, true, env).unwrap();
        assert_eq!((loaded.url.as_deref(), loaded.token), (Some("https://other:1"), complete().token));
    }

    #[test]
    fn a_missing_file_counts_only_when_it_was_named() {
        let nowhere = Path::new("/nonexistent/config.toml");
        assert_eq!(load(nowhere, false, |_| None).unwrap(), ConfigFile::default());
        assert!(load(nowhere, true, |_| None).is_err());
    }

    #[test]
    fn an_unknown_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, "url = \"https://a\"\npasswort = 1\n").unwrap();
        let error = format!("{:#}", load(&path, true, |_| None).unwrap_err());
        assert!(error.contains("passwort"), "{error}");
    }

    #[test]
    fn each_missing_or_wrong_value_is_named() {
        assert!(Config::from_file(&complete()).is_ok());
        let check = |change: fn(&mut ConfigFile), expected: &str| {
            let mut file = complete();
            change(&mut file);
            let message = Config::from_file(&file).unwrap_err().message;
            assert!(message.contains(expected), "{message}");
        };
        check(|f| f.url = None, "no controller");
        check(|f| f.token = None, "no token");
        check(|f| f.fingerprint = None, "no CA fingerprint");
        check(|f| f.url = Some("http://c:7443".into()), "only https");
        check(|f| f.url = Some("c:7443".into()), "controller's address");
        check(|f| f.token = Some("a b".into()), "characters");
        check(|f| f.fingerprint = Some("1234".into()), "64 hex digits");
    }

    #[test]
    fn the_path_follows_the_xdg_rule() {
        let home = |name: &str| (name == "HOME").then(|| "/home/a".to_owned());
        assert_eq!(path(None, home).unwrap(), Path::new("/home/a/.config/hearth/config.toml"));
        let xdg = |name: &str| Some(if name == "HOME" { "/home/a" } else { "/x" }.to_owned());
        assert_eq!(path(None, xdg).unwrap(), Path::new("/x/hearth/config.toml"));
        assert_eq!(path(Some(Path::new("f")), home).unwrap(), Path::new("f"));
        assert!(path(None, |_| None).is_err());
    }
}
