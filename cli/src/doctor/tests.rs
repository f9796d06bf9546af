//! Every judgement of the doctor.

use hearth_protocol::digest::CaFingerprint;
use hearth_protocol::id::{LocationId, TokenId, UserId};
use hearth_protocol::words::{LocationKind, Role, ScopeKind};

use super::*;

fn now() -> Timestamp {
    "2026-03-01T10:00:00Z".parse().unwrap()
}

fn system() -> SystemInfo {
    SystemInfo {
        build: env!("CARGO_PKG_VERSION").into(),
        protocol: 1,
        ca_fingerprint: CaFingerprint::of(b"ca"),
        now: "2026-03-01T10:00:01Z".into(),
        agents_online: 1,
        locations: 1,
        images_active: 0,
        prewarms_running: 0,
        stored_bytes: 1 << 30,
        free_bytes: 1 << 40,
        transfers_stopped: false,
    }
}

fn location(name: &str) -> Location {
    Location {
        id: LocationId::from_bytes([1; 16]),
        name: name.into(),
        kind: LocationKind::Host,
        state: LocationState::Active,
        online: true,
        degraded: String::new(),
        platform: String::new(),
        region: String::new(),
        zone: String::new(),
        rack: String::new(),
        account: String::new(),
        ip: String::new(),
        domain: None,
        serial: String::new(),
        labels: std::collections::BTreeMap::new(),
        advertised: Vec::new(),
        nic_mbps: 1000,
        agent: None,
        certificate_ends_at: None,
        last_seen_at: None,
        duplicate: None,
        budget_bytes: 0,
        used_bytes: 0,
        free_bytes: 0,
        floor_bytes: 0,
        active_entries: 0,
        created_at: String::new(),
    }
}

/// The levels of the named checks after a change of a healthy system.
#[track_caller]
fn check_system(change: fn(&mut SystemInfo), name: &str, level: Level) {
    let mut changed = system();
    change(&mut changed);
    let checks = judge_system(&changed, now());
    let found = checks.iter().find(|check| check.check == name).unwrap();
    assert_eq!(found.level, level, "{found:?}");
    assert_eq!(found.todo.is_empty(), level == Level::Ok, "{found:?}");
}

#[test]
fn a_healthy_system_is_ok() {
    assert!(judge_system(&system(), now()).iter().all(|check| check.level == Level::Ok));
    assert!(judge_locations(&[location("a")]).iter().all(|check| check.level == Level::Ok));
}

#[test]
fn each_trouble_has_its_line() {
    check_system(|s| s.now = "2026-03-01T10:00:20Z".into(), "clock", Level::Warn);
    check_system(|s| s.now = "2026-03-01T09:00:00Z".into(), "clock", Level::Fail);
    check_system(|s| s.free_bytes = 1 << 30, "disk", Level::Warn);
    check_system(|s| s.transfers_stopped = true, "transfers", Level::Warn);
    check_system(|s| s.build = "9.9.9".into(), "version", Level::Warn);
}

#[test]
fn offline_and_degraded_hosts_are_named() {
    let mut away = location("cn-9");
    away.online = false;
    let mut sick = location("cn-8");
    sick.degraded = "read-only file system".into();
    let checks = judge_locations(&[location("cn-1"), away, sick]);
    assert_eq!((checks[0].level, checks[1].level), (Level::Warn, Level::Fail));
    assert!(checks[0].found.contains("1 of 3 offline: cn-9"), "{}", checks[0].found);
    assert!(checks[1].found.contains("cn-8") && checks[1].found.contains("read-only"), "{}", checks[1].found);
    assert_eq!(judge_locations(&[])[0].level, Level::Warn);
}

#[test]
fn a_token_that_ends_soon_is_told() {
    let mut token = TokenRecord {
        id: TokenId::from_bytes([1; 16]),
        token: None,
        name: "alice".into(),
        role: Role::Admin,
        scope: ScopeKind::System,
        domain: None,
        project: None,
        user: None,
        usable: true,
        expires_at: None,
        revoked_at: None,
        last_used_at: None,
    };
    assert_eq!(judge_token(&token, now()).level, Level::Ok);
    token.expires_at = Some("2026-03-02T10:00:00Z".into());
    assert_eq!(judge_token(&token, now()).level, Level::Warn);
    token.user = Some(UserId::from_bytes([2; 16]));
    assert_eq!(judge_token(&token, now()).level, Level::Ok, "a login");
    token.user = None;
    token.expires_at = Some("2026-06-02T10:00:00Z".into());
    assert_eq!(judge_token(&token, now()).level, Level::Ok);
}

#[test]
fn what_a_tenant_may_not_read_is_skipped_and_no_fault() {
    let check = |exit| unread("system", &Failure::new(exit, "why").into()).level;
    assert_eq!(check(Exit::Denied), Level::Skip);
    assert_eq!(check(Exit::Failed), Level::Fail);
}

#[test]
fn socket_buffers_are_only_checked_where_a_daemon_runs() {
    let dir = tempfile::tempdir().unwrap();
    assert!(check_host(dir.path(), dir.path()).is_none());
    std::fs::write(dir.path().join("agent.toml"), "").unwrap();
    for (bytes, level) in [("212992\n", Level::Warn), ("8388608\n", Level::Ok)] {
        std::fs::write(dir.path().join("rmem_max"), bytes).unwrap();
        std::fs::write(dir.path().join("wmem_max"), bytes).unwrap();
        assert_eq!(check_host(dir.path(), dir.path()).unwrap().level, level);
    }
}
