//! `hearth doctor`: what is wrong, line by line, and what to do about it.
//!
//! **What.** Each check is one line: `ok`, `warn`, `fail` or `skip`, with the next step. What is asked is collected first
//! (`Facts`); what it means is decided by pure functions, so every line has a test.
//! **Why stop early.** Without a connection every later line would only say the same.
//! **Invariants.** The exit code is 1 if and only if a line says `fail`.

use std::path::Path;

use clap::Args;
use hearth_protocol::api::location::Location;
use hearth_protocol::api::system::SystemInfo;
use hearth_protocol::api::token::TokenRecord;
use hearth_protocol::words::LocationState;
use jiff::Timestamp;
use serde::Serialize;

use crate::args::Global;
use crate::client::Client;
use crate::config::{self, Config, ConfigFile};
use crate::failure::{Exit, Failure};
use crate::output::{Cell, Grid};
use crate::{clock, size};

/// Clocks further apart than this break certificates of one hour's tolerance sooner or later.
const SKEW_WARN_S: i64 = 5;
/// Agents refuse a session when clocks differ more.
const SKEW_FAIL_S: i64 = 60;
/// A token that ends sooner should be renewed now.
const TOKEN_WARN_S: i64 = 7 * 86_400;
/// Below this the next import may not fit.
const FREE_WARN_BYTES: u64 = 20 << 30;
/// Socket buffers below this lose packets at the speeds that Hearth sends at.
const SOCKET_BUFFER_BYTES: u64 = 4 << 20;
/// Names that a line lists.
const NAMES_MAX: usize = 5;

/// Check configuration, controller, agents and caches.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hearth doctor
  hearth doctor -o json | jq '.items[] | select(.level != \"ok\")'")]
pub(crate) struct Doctor {}

/// How a check went.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Ok,
    Warn,
    Fail,
    /// Not for this caller to see.
    Skip,
}

/// One line.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    level: Level,
    check: &'static str,
    found: String,
    todo: String,
}

fn ok(check: &'static str, found: impl Into<String>) -> Check {
    Check { level: Level::Ok, check, found: found.into(), todo: String::new() }
}

fn warn(check: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Check {
    Check { level: Level::Warn, check, found: found.into(), todo: todo.into() }
}

fn fail(check: &'static str, found: impl Into<String>, todo: impl Into<String>) -> Check {
    Check { level: Level::Fail, check, found: found.into(), todo: todo.into() }
}

fn failed(check: &'static str, error: &anyhow::Error) -> Check {
    let hint = error.downcast_ref::<Failure>().and_then(|failure| failure.hint.clone());
    fail(check, format!("{error:#}"), hint.unwrap_or_default())
}

/// What could not be read of the system. That a tenant may not read it is as it should be.
fn unread(check: &'static str, error: &anyhow::Error) -> Check {
    match error.downcast_ref::<Failure>() {
        Some(failure) if failure.exit == Exit::Denied => Check {
            level: Level::Skip,
            check,
            found: "needs an administrator of the system".to_owned(),
            todo: String::new(),
        },
        _ => failed(check, error),
    }
}

impl Doctor {
    /// Runs the checks.
    pub(crate) async fn run(self, global: &Global) -> anyhow::Result<Exit> {
        let mut checks = Vec::new();
        if let Some(config) = check_config(global, &mut checks) {
            check_controller(&config, &mut checks).await;
        }
        checks.extend(check_host(Path::new("/etc/hearth"), Path::new("/proc/sys/net/core")));
        let grid = Grid::of(&["", "CHECK", "FOUND", "WHAT TO DO"], &checks, |check| {
            let level = match check.level {
                Level::Ok => "ok",
                Level::Warn => "warn",
                Level::Fail => "fail",
                Level::Skip => "skip",
            };
            vec![
                Cell::status(level),
                Cell::text(check.check),
                Cell::text(&check.found),
                Cell::text(&check.todo),
            ]
        });
        global.out().list(&checks, &grid)?;
        let bad = checks.iter().any(|check| check.level == Level::Fail);
        Ok(if bad { Exit::Failed } else { Exit::Ok })
    }
}

fn check_config(global: &Global, checks: &mut Vec<Check>) -> Option<Config> {
    let env = |name: &str| std::env::var(name).ok();
    let read = || -> anyhow::Result<(std::path::PathBuf, ConfigFile)> {
        let path = config::path(global.config.as_deref(), env)?;
        let file = config::load(&path, global.config.is_some(), env)?;
        Ok((path, file))
    };
    let result = read().and_then(|(path, file)| Ok((path, Config::from_file(&file)?)));
    match result {
        Ok((path, config)) => {
            let shown = path.display();
            checks.push(if config::readable_by_others(&path) {
                warn("configuration", format!("{shown} can be read by others"), format!("chmod 600 {shown}"))
            } else {
                ok("configuration", format!("{} as set in {shown} or the environment", config.url))
            });
            Some(config)
        }
        Err(error) => {
            checks.push(failed("configuration", &error));
            None
        }
    }
}

async fn check_controller(config: &Config, checks: &mut Vec<Check>) {
    let client = match Client::new(config) {
        Ok(client) => client,
        Err(error) => return checks.push(failed("controller", &error)),
    };
    // A denied token is an answer too: the controller is there.
    let me = client.get::<TokenRecord>(&["whoami"], &[]).await;
    let reached = me.as_ref().err().and_then(|error| error.downcast_ref::<Failure>());
    if reached.is_some_and(|failure| failure.exit == Exit::Unreachable) {
        return checks.extend(me.err().map(|error| failed("controller", &error)));
    }
    checks.push(ok("controller", format!("{} answers with the pinned CA", config.url)));
    match me {
        Ok(me) => checks.push(judge_token(&me, clock::now())),
        Err(error) => return checks.push(failed("token", &error)),
    }
    match client.get::<SystemInfo>(&["system"], &[]).await {
        Ok(system) => checks.extend(judge_system(&system, clock::now())),
        Err(error) => checks.push(unread("system", &error)),
    }
    match client.list::<Location>(&["locations"], &[], None).await {
        Ok(locations) => checks.extend(judge_locations(&locations)),
        Err(error) => checks.push(unread("agents", &error)),
    }
    let failing = [("status", Some("cache_fail".to_owned()))];
    match client.list::<hearth_protocol::api::cache::CacheEntry>(&["cache"], &failing, Some(1000)).await {
        Ok(entries) if entries.is_empty() => checks.push(ok("copies", "none failed")),
        Ok(entries) => {
            let names =
                entries.iter().map(|entry| format!("{} at {}", entry.image_name, entry.location_name));
            let found = format!("{} failed: {}", entries.len(), some_of(names.collect()));
            checks.push(warn("copies", found, "`hearth cache list --status cache_fail` shows the reasons"));
        }
        Err(error) => checks.push(unread("copies", &error)),
    }
}

fn judge_token(token: &TokenRecord, now: Timestamp) -> Check {
    let text = format!("{}, {} of {}", token.name, token.role, token.scope);
    let left_s = token.expires_at.as_deref().and_then(|at| at.parse::<Timestamp>().ok());
    match left_s.map(|end| end.duration_since(now).as_secs()) {
        // One from a login lives for hours: that is as it should be.
        Some(left_s) if left_s < TOKEN_WARN_S && token.user.is_none() => {
            let todo = "make a new one with `hearth token create` and log in with it";
            warn("token", format!("{text}, ends in {} h", left_s / 3600), todo)
        }
        _ => ok("token", text),
    }
}

fn judge_system(system: &SystemInfo, now: Timestamp) -> Vec<Check> {
    let mut checks = Vec::new();
    checks.push(
        match system.now.parse::<Timestamp>().map(|there| there.duration_since(now).as_secs().abs()) {
            Ok(skew_s) if skew_s >= SKEW_FAIL_S => fail(
                "clock",
                format!("{skew_s} s apart from the controller"),
                "set both clocks (chrony or systemd-timesyncd)",
            ),
            Ok(skew_s) if skew_s >= SKEW_WARN_S => warn(
                "clock",
                format!("{skew_s} s apart from the controller"),
                "check chrony or systemd-timesyncd on both",
            ),
            Ok(_) => ok("clock", "agrees with the controller"),
            Err(_) => warn(
                "clock",
                format!("the controller's time {:?} is not understood", system.now),
                "compare versions",
            ),
        },
    );
    let build = env!("CARGO_PKG_VERSION");
    checks.push(if system.build == build || system.build.starts_with(&format!("{build}+")) {
        ok("version", format!("controller and command line are {build}"))
    } else {
        warn(
            "version",
            format!("controller is {}, command line is {build}", system.build),
            "install the same version",
        )
    });
    checks.push(if system.free_bytes < FREE_WARN_BYTES {
        let found = format!("{} free at the controller", size::human(system.free_bytes));
        warn(
            "disk",
            found,
            "delete images nobody needs, or give it more room; an import needs its full size for a while",
        )
    } else {
        let (free, stored) = (size::human(system.free_bytes), size::human(system.stored_bytes));
        ok("disk", format!("{free} free at the controller, {stored} stored"))
    });
    checks.push(if system.transfers_stopped {
        warn("transfers", "stopped by an operator", "`hearth transfer start --all` lets them go on")
    } else {
        ok("transfers", "allowed")
    });
    checks
}

fn judge_locations(locations: &[Location]) -> Vec<Check> {
    let present: Vec<&Location> = locations.iter().filter(|l| l.state != LocationState::Removed).collect();
    if present.is_empty() {
        return vec![warn("agents", "no agent has enrolled yet", "`hearth location token create` says how")];
    }
    let names = |rows: Vec<&&Location>| some_of(rows.iter().map(|location| location.name.clone()).collect());
    let offline: Vec<&&Location> = present.iter().filter(|location| !location.online).collect();
    let degraded: Vec<&&Location> = present.iter().filter(|location| !location.degraded.is_empty()).collect();
    let mut checks = Vec::new();
    checks.push(if offline.is_empty() {
        ok("agents", format!("all {} online", present.len()))
    } else {
        let found = format!("{} of {} offline: {}", offline.len(), present.len(), names(offline));
        warn(
            "agents",
            found,
            "on the host: `systemctl status hearth-agent`; is 7443/udp open towards the controller?",
        )
    });
    let twice = present.iter().filter_map(|l| Some((l.name.as_str(), l.duplicate.as_ref()?)));
    let twice: Vec<String> = twice.map(|(name, seen)| format!("{name} (also at {})", seen.address)).collect();
    if !twice.is_empty() {
        checks.push(fail(
            "identities",
            format!("an agent's key is used in two places: {}", some_of(twice)),
            "stop the agent that is not the real one, or enrol it with a key of its own: empty its data_dir first",
        ));
    }
    checks.push(match degraded.first() {
        None => ok("caches", "none degraded"),
        Some(first) => {
            let found =
                format!("{} degraded ({}): {}", degraded.len(), first.degraded, names(degraded.clone()));
            fail("caches", found, "the cache is read-only there: look at the host's disk and the agent's log")
        }
    });
    checks
}

fn some_of(names: Vec<String>) -> String {
    let more = names.len().saturating_sub(NAMES_MAX);
    let mut text = names.into_iter().take(NAMES_MAX).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// On a machine that runs a daemon: whether the kernel lets it have the socket buffers it wants.
fn check_host(etc: &Path, sysctl: &Path) -> Option<Check> {
    let has_daemon = ["agent.toml", "controller.toml"].iter().any(|file| etc.join(file).exists());
    if !has_daemon {
        return None;
    }
    let read = |name: &str| std::fs::read_to_string(sysctl.join(name)).ok()?.trim().parse::<u64>().ok();
    let (Some(rmem), Some(wmem)) = (read("rmem_max"), read("wmem_max")) else {
        return Some(warn(
            "socket buffers",
            "the kernel does not tell",
            "see net.core.rmem_max and wmem_max",
        ));
    };
    Some(if rmem.min(wmem) < SOCKET_BUFFER_BYTES {
        let found = format!("net.core.rmem_max is {}, wmem_max is {}", size::human(rmem), size::human(wmem));
        let todo = "sysctl -w net.core.rmem_max=4194304 net.core.wmem_max=4194304; the packages ship a sysctl.d file";
        warn("socket buffers", found, todo)
    } else {
        ok("socket buffers", format!("{} allowed", size::human(rmem.min(wmem))))
    })
}

#[cfg(test)]
mod tests;
