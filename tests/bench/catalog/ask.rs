//! What is asked of the large catalog, and how long the answers take.
//!
//! **What.** [`asks`] is a plain table: a name, who asks, a path. To measure another request, add its line.
//! **Why through HTTPS and with the body parsed afterwards.** A person waits for handler, database, JSON and TLS together; what
//! the client does with the answer is not the controller's time.
//! **Invariants.** A request that is not answered with 200 ends the bench: a quick refusal is no quick answer.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use hearth_tests::api::Api;
use reqwest::Method;
use serde_json::Value;

use super::rows;

/// Requests before the clock runs.
const WARM_UP: usize = 5;
/// Clients at the same time.
const CLIENTS: usize = 8;

/// Who asks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Who {
    /// The administrator of the system.
    System,
    /// A member of one project of sixty: sees its own images, public ones and those shared with it.
    Member,
}

/// One request.
pub(crate) struct Ask {
    pub(crate) name: &'static str,
    pub(crate) who: Who,
    /// Below `/api/v1`, with a query.
    pub(crate) path: String,
    /// Pages of 1,000 rows to go before the page that is measured.
    pub(crate) deep: usize,
}

/// The table.
pub(crate) fn asks() -> Vec<Ask> {
    let image = rows::image_cached_everywhere();
    let images = [listed(), counted()].concat();
    let mut all = Vec::new();
    for who in [Who::System, Who::Member] {
        for (name, query, pages) in &images {
            // A member sees little of another project.
            if who == Who::Member && name.contains("largest project") {
                continue;
            }
            // A member's list is shorter.
            let deep = if who == Who::Member { pages / 20 } else { *pages };
            all.push(Ask { name, who, path: format!("/images?{query}"), deep });
        }
        let one = if who == Who::System { image.clone() } else { rows::own_image() };
        all.push(Ask { name: "one image", who, path: format!("/images/{one}"), deep: 0 });
    }
    let system = [caches(&image), logs(&image)].concat();
    all.extend(system.into_iter().map(|(name, path, deep)| Ask { name, who: Who::System, path, deep }));
    all
}

/// Name, path or query, and pages to go first.
type Row = (&'static str, String, usize);

/// Image lists.
fn listed() -> Vec<Row> {
    let name = encoded(&rows::Image::new(77_770).name);
    vec![
        ("images, first page", String::new(), 0),
        ("images, page far behind", String::new(), 60),
        ("images by status (3 %)", "status=killed".to_owned(), 0),
        ("images by status (1 in 200)", "status=importing".to_owned(), 0),
        ("images by status and kind", "status=deactivated&kind=iso".to_owned(), 0),
        ("images by kind", "kind=iso".to_owned(), 0),
        ("images by name", format!("name={name}"), 0),
        ("search of 2 Chinese characters", format!("q={}", encoded("麒麟")), 0),
        ("search of 4 Chinese characters", format!("q={}", encoded("生产环境")), 0),
        ("search of a common word", "q=ubuntu".to_owned(), 0),
        ("search of a common character", "q=0".to_owned(), 0),
        ("search of a serial number", "q=54321".to_owned(), 0),
        ("search without hit", "q=xyzzy".to_owned(), 0),
    ]
}

/// Image lists that are counted, sorted and filtered.
fn counted() -> Vec<Row> {
    let location = rows::location(1_234);
    let made = "created_after=2025-03-01T00:00:00Z&created_before=2025-03-02T00:00:00Z";
    let changed = made.replace("created", "updated");
    let large = rows::project(rows::PROJECT_LARGE);
    vec![
        ("images with count", "count=true".to_owned(), 0),
        ("images by status with count", "status=active&count=true".to_owned(), 0),
        ("images by name, sorted", "sort=name".to_owned(), 0),
        ("images sorted by name, far behind", "sort=name".to_owned(), 60),
        ("images sorted by size", "sort=size".to_owned(), 0),
        ("images sorted by change", "sort=updated".to_owned(), 0),
        ("images sorted by status", "sort=status".to_owned(), 0),
        ("active images sorted by name", "status=active&sort=name".to_owned(), 0),
        ("ISO images sorted by size, count", "kind=iso&sort=size&count=true".to_owned(), 0),
        ("images of a system, count", "os_type=other&architecture=aarch64&count=true".to_owned(), 0),
        ("images for VMware (1 in 500), count", "virtualisation=vmware&count=true".to_owned(), 0),
        ("images for nothing there, count", "virtualisation=xen&count=true".to_owned(), 0),
        ("protected VMDK images, count", "format=vmdk&protected=true&count=true".to_owned(), 0),
        ("images of a size, count", format!("size_min={}&count=true", 200_u64 << 30), 0),
        ("images made in a day, count", format!("{made}&count=true"), 0),
        ("images changed in a day, by name", format!("{changed}&sort=name"), 0),
        ("images by tag (1 in 12), count", "tag=team-3&count=true".to_owned(), 0),
        ("images by tag (1 in 100)", "tag=golden&count=true".to_owned(), 0),
        ("images that are public, count", "view=public&count=true".to_owned(), 0),
        ("images that are private, count", "view=private&count=true".to_owned(), 0),
        ("images that are featured", "view=featured&count=true".to_owned(), 0),
        ("images that are shared, count", "view=shared&count=true".to_owned(), 0),
        ("images by visibility", "visibility=shared&count=true".to_owned(), 0),
        ("images of the largest project, count", format!("project={large}&count=true"), 0),
        ("the largest project by size", format!("project={large}&sort=size"), 0),
        ("images, cached at a location?", format!("at={location}"), 0),
        ("name of 2 Chinese characters", format!("name_contains={}", encoded("麒麟")), 0),
        ("search, 2 Chinese characters, count", format!("q={}&count=true", encoded("生产")), 0),
        ("search, common characters, count", format!("q={}&count=true", encoded("构建")), 0),
        ("search of a common word, by name", "q=ubuntu&sort=name&count=true".to_owned(), 0),
        ("search of a status word, count", "q=import&count=true".to_owned(), 0),
        ("search, common parts, no hit", format!("q={}", encoded("untu 22.04 lts 9")), 0),
    ]
}

/// The cache list, locations and the system.
fn caches(image: &str) -> Vec<Row> {
    let location = rows::location(1_234);
    vec![
        ("system with its counts", "/system".to_owned(), 0),
        ("cache list, first page", "/cache".to_owned(), 0),
        ("cache list, page far behind", "/cache".to_owned(), 40),
        ("cache list of an image", format!("/cache?image={image}"), 0),
        ("cache of an image", format!("/images/{image}/cache"), 0),
        ("cache list of a location", format!("/cache?location={location}"), 0),
        ("cache of a location", format!("/locations/{location}/cache"), 0),
        ("cache list by status (common)", "/cache?status=active".to_owned(), 0),
        ("cache list by status (2 %)", "/cache?status=queued".to_owned(), 0),
        ("cache list by status (rare)", "/cache?status=delete_failed".to_owned(), 0),
        ("cache list by status (stale)", "/cache?status=stale".to_owned(), 0),
        ("cache list by status (wishes)", "/cache?status=deleting".to_owned(), 0),
        ("cache list of a zone", "/cache?zone=z07".to_owned(), 0),
        ("cache list of a zone by status", "/cache?zone=z07&status=cache_fail".to_owned(), 0),
        ("locations, first page", "/locations".to_owned(), 0),
        ("locations by selector", "/locations?select=zone%3Dz07".to_owned(), 0),
        ("one location", format!("/locations/{location}"), 0),
    ]
}

/// The operation log.
fn logs(image: &str) -> Vec<Row> {
    let location = rows::location(1_234);
    let day = "from=2025-03-01T00:00:00Z&to=2025-03-02T00:00:00Z";
    vec![
        ("log, first page", "/operations".to_owned(), 0),
        ("log, newest 20", "/operations?limit=20".to_owned(), 0),
        ("log, page far behind", "/operations".to_owned(), 100),
        ("log of an image", format!("/operations?target_kind=image&target={image}"), 0),
        ("log of a target", format!("/operations?target={image}"), 0),
        ("log of a kind of target", "/operations?target_kind=token".to_owned(), 0),
        ("log by who", "/operations?who=user-07".to_owned(), 0),
        ("log by action", "/operations?action=image.delete".to_owned(), 0),
        ("log of what failed", "/operations?result=failed".to_owned(), 0),
        ("log of what failed by who", "/operations?result=failed&who=user-07".to_owned(), 0),
        ("log of an image by path", format!("/images/{image}/operations"), 0),
        ("log of a location by path", format!("/locations/{location}/operations"), 0),
        ("log by who and action", "/operations?who=user-07&action=image.delete".to_owned(), 0),
        ("log of somebody unknown", "/operations?who=nobody".to_owned(), 0),
        ("log of a day long ago", format!("/operations?{day}"), 0),
        ("log of a day long ago by who", format!("/operations?{day}&who=user-07"), 0),
    ]
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// What was measured of one request.
pub(crate) struct Figures {
    pub(crate) rows: usize,
    /// Milliseconds of each request of one client, then of several clients.
    pub(crate) alone_ms: Vec<f64>,
    pub(crate) together_ms: Vec<f64>,
}

/// Value below which `percent` of all lie.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
        .get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

async fn once(api: &Api, path: &str) -> Result<(f64, Vec<u8>)> {
    #[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
    let start = Instant::now();
    let answer = api.request(Method::GET, path).send().await?;
    let status = answer.status();
    let body = answer.bytes().await?;
    let took_ms = start.elapsed().as_secs_f64() * 1000.0;
    ensure!(status.is_success(), "{path}: {status}: {}", String::from_utf8_lossy(&body));
    Ok((took_ms, body.into()))
}

/// The path of the page that lies `deep` pages of 1,000 rows behind the first.
async fn page_behind(api: &Api, ask: &Ask) -> Result<String> {
    let glue = if ask.path.contains('?') { '&' } else { '?' };
    let mut cursor = String::new();
    for _ in 0..ask.deep {
        let page = once(api, &format!("{}{glue}limit=1000{cursor}", ask.path)).await?.1;
        let next: Value = serde_json::from_slice(&page)?;
        cursor = format!(
            "&cursor={}",
            next["next"].as_str().context("the list is shorter than the bench thinks")?
        );
    }
    Ok(if cursor.is_empty() {
        ask.path.clone()
    } else {
        format!("{}{glue}{}", ask.path, cursor.trim_start_matches('&'))
    })
}

/// Measures one request: `times` by one client, then half as often by each of several. `clients` hold tokens of who asks.
pub(crate) async fn measure(clients: &[Api], ask: &Ask, times: usize) -> Result<Figures> {
    let first = clients.first().context("there are clients")?;
    let path = page_behind(first, ask).await?;
    let mut body = Vec::new();
    for _ in 0..WARM_UP {
        body = once(first, &path).await?.1;
    }
    let body: Value = serde_json::from_slice(&body)?;
    let list = body.get("items").or_else(|| body.get("entries")).and_then(Value::as_array);
    let rows = list.map_or(1, Vec::len);
    let mut alone_ms = Vec::with_capacity(times);
    for _ in 0..times {
        alone_ms.push(once(first, &path).await?.0);
    }
    let many = clients.iter().take(CLIENTS).map(async |client| {
        let mut took = Vec::with_capacity(times / 2);
        for _ in 0..times / 2 {
            took.push(once(client, &path).await?.0);
        }
        Ok::<_, anyhow::Error>(took)
    });
    let together_ms = try_join_all(many).await?.concat();
    Ok(Figures { rows, alone_ms, together_ms })
}
