//! Names of the agent's metrics, with unit and meaning. They are an interface: dashboards are built on them.
//!
//! **What.** One constant per metric, and [`describe`], which tells the exporter what each is.
//! **Why constants.** A name written twice by hand drifts apart, and the dashboard shows nothing instead of an error.
//! **Invariants.** Counters end in `_total`, sizes in `_bytes`, times in `_seconds`.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Stored bytes received for fetches, bytes.
pub const FETCH_STORED_BYTES: &str = "hearth_agent_fetch_stored_bytes_total";
/// Raw bytes of chunks verified and written by fetches, bytes.
pub const FETCH_RAW_BYTES: &str = "hearth_agent_fetch_raw_bytes_total";
/// Chunks that failed their hash, by a source.
pub const FETCH_BAD_CHUNKS: &str = "hearth_agent_fetch_bad_chunks_total";
/// Requests that were repeated, by label `reason`.
pub const FETCH_RETRIES: &str = "hearth_agent_fetch_retries_total";
/// Fetches that ended, by label `result` (`active`, `failed`, `stopped`).
pub const FETCHES: &str = "hearth_agent_fetches_total";
/// Fetches that run now.
pub const FETCHES_RUNNING: &str = "hearth_agent_fetches_running";
/// Time from the first request to the verified file, seconds.
pub const FETCH_SECONDS: &str = "hearth_agent_fetch_seconds";
/// Stored or raw bytes served to others, bytes.
pub const SERVE_BYTES: &str = "hearth_agent_serve_bytes_total";
/// Requests answered, by label `result` (`served` or a fault word).
pub const SERVE_REQUESTS: &str = "hearth_agent_serve_requests_total";
/// 1 while a session to a controller is up, else 0.
pub const SESSION_UP: &str = "hearth_agent_session_up";
/// Sessions begun.
pub const SESSIONS: &str = "hearth_agent_sessions_total";
/// Difference between the controller's clock and ours, seconds.
pub const CLOCK_SKEW: &str = "hearth_agent_clock_skew_seconds";
/// Time until our certificate ends, seconds.
pub const CERTIFICATE_SECONDS: &str = "hearth_agent_certificate_remaining_seconds";
/// Generation of the plan that is followed.
pub const PLAN_GENERATION: &str = "hearth_agent_plan_generation";
/// Entries by label `status`.
pub const ENTRIES: &str = "hearth_agent_entries";
/// Bytes the cache may allocate, bytes.
pub const CACHE_BUDGET: &str = "hearth_agent_cache_budget_bytes";
/// Bytes the cache has allocated or reserved, bytes.
pub const CACHE_USED: &str = "hearth_agent_cache_used_bytes";
/// Free bytes of the file system, bytes.
pub const CACHE_FREE: &str = "hearth_agent_cache_free_bytes";
/// 1 while the cache is read-only after a fault, else 0.
pub const CACHE_DEGRADED: &str = "hearth_agent_cache_degraded";
/// Files hashed again by the scrub, by label `result` (`good`, `bad`).
pub const SCRUBS: &str = "hearth_agent_scrubs_total";
/// Requests of other agents that ended, by label `result` (`served`, `cut`).
pub const UPLOADS: &str = "hearth_agent_uploads_total";
/// Bytes of chunks sent to other agents, bytes.
pub const UPLOAD_BYTES: &str = "hearth_agent_upload_bytes_total";
/// Stored bytes that came from other agents, bytes.
pub const PEER_BYTES: &str = "hearth_agent_peer_received_bytes_total";
/// Requests to holders of a piece that failed, by label `how` (`late`, `missing`, `silent`, `wrong`).
pub const HOLDER_FAILURES: &str = "hearth_agent_holder_failures_total";

/// Tells the exporter unit and meaning of every metric.
pub fn describe() {
    describe_counter!(FETCH_STORED_BYTES, Unit::Bytes, "Stored bytes received for fetches");
    describe_counter!(FETCH_RAW_BYTES, Unit::Bytes, "Raw bytes verified and written by fetches");
    describe_counter!(FETCH_BAD_CHUNKS, Unit::Count, "Chunks that failed their hash");
    describe_counter!(FETCH_RETRIES, Unit::Count, "Requests that were repeated, by reason");
    describe_counter!(FETCHES, Unit::Count, "Fetches that ended, by result");
    describe_gauge!(FETCHES_RUNNING, Unit::Count, "Fetches that run now");
    describe_histogram!(FETCH_SECONDS, Unit::Seconds, "Time from first request to verified file");
    describe_counter!(SERVE_BYTES, Unit::Bytes, "Bytes served to others");
    describe_counter!(SERVE_REQUESTS, Unit::Count, "Requests answered, by result");
    describe_gauge!(SESSION_UP, Unit::Count, "1 while a session to a controller is up");
    describe_counter!(SESSIONS, Unit::Count, "Sessions begun");
    describe_gauge!(CLOCK_SKEW, Unit::Seconds, "Controller's clock less ours");
    describe_gauge!(CERTIFICATE_SECONDS, Unit::Seconds, "Time until the certificate ends");
    describe_gauge!(PLAN_GENERATION, Unit::Count, "Generation of the plan that is followed");
    describe_gauge!(ENTRIES, Unit::Count, "Cache entries, by status");
    describe_gauge!(CACHE_BUDGET, Unit::Bytes, "Bytes the cache may allocate");
    describe_gauge!(CACHE_USED, Unit::Bytes, "Bytes the cache has allocated or reserved");
    describe_gauge!(CACHE_FREE, Unit::Bytes, "Free bytes of the file system");
    describe_gauge!(CACHE_DEGRADED, Unit::Count, "1 while the cache is read-only after a fault");
    describe_counter!(SCRUBS, Unit::Count, "Files hashed again, by result");
    describe_counter!(UPLOADS, Unit::Count, "Requests of other agents that ended, by result");
    describe_counter!(UPLOAD_BYTES, Unit::Bytes, "Bytes of chunks sent to other agents");
    describe_counter!(PEER_BYTES, Unit::Bytes, "Stored bytes that came from other agents");
    describe_counter!(HOLDER_FAILURES, Unit::Count, "Holders that did not give a piece, by reason");
}
