//! Names of the fleet's metrics. They are interface: dashboards and alerts use them.

/// Gauge: sessions that are up.
pub const SESSIONS: &str = "hearth_fleet_sessions";
/// Counter: sessions refused (version, clock, denied, duplicate), label `fault`.
pub const SESSIONS_REFUSED: &str = "hearth_fleet_sessions_refused_total";
/// Counter: connections sent away before their handshake, label `how` (`retry`, `refused`).
pub const CONNECTIONS_TURNED_AWAY: &str = "hearth_fleet_connections_turned_away_total";
/// Counter: certificates given, label `how` (`token`, `key`, `session`).
pub const CERTIFICATES: &str = "hearth_fleet_certificates_total";
/// Counter: enrolments refused.
pub const ENROLMENTS_REFUSED: &str = "hearth_fleet_enrolments_refused_total";
/// Counter: bytes of chunks served to agents, as stored.
pub const SERVED_BYTES: &str = "hearth_fleet_served_bytes_total";
/// Counter: requests answered `Busy`.
pub const BUSY: &str = "hearth_fleet_busy_total";
/// Counter: transfers cut off because the receiver stalled.
pub const STALLED: &str = "hearth_fleet_stalled_total";
/// Counter: chunks of our own copies that were damaged, label `outcome` (`mended`, `lost`).
pub const DAMAGED_CHUNKS: &str = "hearth_fleet_damaged_chunks_total";
/// Histogram: duration of a reconciler pass, seconds.
pub const PASS_SECONDS: &str = "hearth_fleet_pass_seconds";
/// Gauge: transfers that may run now.
pub const ADMITTED: &str = "hearth_fleet_admitted_transfers";
/// Gauge: campaigns that run.
pub const CAMPAIGNS: &str = "hearth_swarm_campaigns";
/// Counter: leases given to hosts.
pub const LEASES: &str = "hearth_swarm_leases_total";
/// Counter: pieces that the controller has sent in campaigns.
pub const SOURCE_PIECES: &str = "hearth_swarm_source_pieces_total";
/// Counter: pieces that hosts have finished in campaigns.
pub const PIECES: &str = "hearth_swarm_pieces_total";
/// Counter: failures that hosts report of each other, label `kind` (`late`, `missing`, `silent`, `wrong`).
pub const PIECE_FAILURES: &str = "hearth_swarm_failures_total";
