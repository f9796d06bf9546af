//! Names of the controller's figures: they are interface, like the paths of the API.
//!
//! **What.** One constant per figure with unit and meaning, and the few functions that count where several places would
//! otherwise spell the labels.
//!
//! **Why here.** A dashboard breaks silently when a name changes; in one file the change is seen.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Counter: answered HTTP requests; labels method, path (pattern), status.
pub const REQUESTS: &str = "hearth_http_requests_total";
/// Histogram, seconds: time until the head of the answer; labels method, path.
pub const REQUEST_SECONDS: &str = "hearth_http_request_seconds";
/// Counter: bytes of uploaded files that arrived.
pub const UPLOAD_BYTES: &str = "hearth_upload_bytes_total";
/// Counter: imports that ended; label result (`ok`, `failed`).
pub const IMPORTS: &str = "hearth_imports_total";
/// Histogram, seconds: time of an import job.
pub const IMPORT_SECONDS: &str = "hearth_import_seconds";
/// Gauge: import jobs that run.
pub const IMPORTS_RUNNING: &str = "hearth_imports_running";
/// Gauge: agents with a session.
pub const AGENTS_ONLINE: &str = "hearth_agents_online";
/// Gauge: images that are active.
pub const IMAGES_ACTIVE: &str = "hearth_images_active";
/// Gauge, bytes: free space where contents are stored.
pub const STORE_FREE_BYTES: &str = "hearth_store_free_bytes";

/// Bounds of the request histogram, seconds.
const REQUEST_BUCKETS: &[f64] = &[0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0];
/// Bounds of the import histogram, seconds.
const IMPORT_BUCKETS: &[f64] = &[1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0];

/// Starts collecting; once per process.
///
/// # Errors
/// [`BuildError`] if something collects already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = builder()?.install_recorder()?;
    metrics::describe_counter!(REQUESTS, "Answered HTTP requests");
    metrics::describe_histogram!(
        REQUEST_SECONDS,
        metrics::Unit::Seconds,
        "Time until the head of the answer"
    );
    metrics::describe_counter!(UPLOAD_BYTES, metrics::Unit::Bytes, "Bytes of uploaded files");
    metrics::describe_counter!(IMPORTS, "Imports that ended, by result");
    metrics::describe_histogram!(IMPORT_SECONDS, metrics::Unit::Seconds, "Time of an import job");
    metrics::describe_gauge!(IMPORTS_RUNNING, "Import jobs that run");
    metrics::describe_gauge!(AGENTS_ONLINE, "Agents with a session");
    metrics::describe_gauge!(IMAGES_ACTIVE, "Images that are active");
    metrics::describe_gauge!(STORE_FREE_BYTES, metrics::Unit::Bytes, "Free space of the content store");
    Ok(handle)
}

/// A reader of figures that nothing writes to: for tests, which share one process.
#[must_use]
pub fn detached() -> PrometheusHandle {
    PrometheusBuilder::new().build_recorder().handle()
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(REQUEST_SECONDS.to_owned()), REQUEST_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(IMPORT_SECONDS.to_owned()), IMPORT_BUCKETS)
}

/// Counts an answered request.
pub fn request(method: &str, path: &str, status: u16, took: Duration) {
    let (method, path) = (method.to_owned(), path.to_owned());
    metrics::histogram!(REQUEST_SECONDS, "method" => method.clone(), "path" => path.clone()).record(took);
    metrics::counter!(REQUESTS, "method" => method, "path" => path, "status" => status.to_string())
        .increment(1);
}

/// Counts an import that ended.
pub fn import(ok: bool, took: Duration) {
    metrics::counter!(IMPORTS, "result" => if ok { "ok" } else { "failed" }).increment(1);
    metrics::histogram!(IMPORT_SECONDS).record(took);
}

/// Adds to a counter.
pub fn counter_add(name: &'static str, n: u64) {
    metrics::counter!(name).increment(n);
}

/// Moves a gauge.
pub fn gauge_add(name: &'static str, by: f64) {
    metrics::gauge!(name).increment(by);
}

/// Sets a gauge.
#[expect(clippy::cast_precision_loss, reason = "a gauge above 2^53 may lose its last digits")]
pub fn gauge_set(name: &'static str, to: u64) {
    metrics::gauge!(name).set(to as f64);
}
