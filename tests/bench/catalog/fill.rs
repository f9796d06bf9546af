//! Writes the large catalog into a database that `hearth-controller init` made.
//!
//! **Why SQL and not the API.** A million changes through the API take hours. What is written is what the store would have
//! written: folded names, grams, name keys, and a log whose chain the controller itself then finds intact.
//! **Invariants.** Texts are made here from constants and numbers; quotes are doubled all the same.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use sqlx::{AnyConnection, AssertSqlSafe, Connection as _, Executor as _, Row as _};

use super::place::{Engine, Place};
use super::rows::{
    self, DOMAINS, ENTRIES, ENTRIES_PER_INTENT, IMAGES, Image, LOCATIONS, OPERATIONS, PROJECTS, copies,
    copy_at, copy_status, pick,
};

/// Rows of one INSERT.
const ROWS_PER_INSERT: usize = 500;
/// First bytes of what is hashed for a row of the log.
const HASH_DOMAIN: &str = "hearth operation row 1";

/// Opens the database of `place`.
pub(crate) async fn connect(place: &Place) -> Result<AnyConnection> {
    sqlx::any::install_default_drivers();
    Ok(AnyConnection::connect(&place.url()).await?)
}

/// Runs one statement.
pub(crate) async fn run(connection: &mut AnyConnection, text: impl Into<String>) -> Result<()> {
    connection.execute(AssertSqlSafe(text.into())).await?;
    Ok(())
}

/// One text of the first row and column.
pub(crate) async fn text(connection: &mut AnyConnection, query: &'static str) -> Result<Option<String>> {
    Ok(connection.fetch_optional(query).await?.map(|row| row.get::<String, _>(0)))
}

/// A text as SQL writes it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Rows on their way into one table.
struct Table<'a> {
    connection: &'a mut AnyConnection,
    head: &'static str,
    rows: Vec<String>,
}

impl<'a> Table<'a> {
    fn new(connection: &'a mut AnyConnection, head: &'static str) -> Self {
        Self { connection, head, rows: Vec::new() }
    }

    async fn put(&mut self, row: String) -> Result<()> {
        self.rows.push(row);
        if self.rows.len() == ROWS_PER_INSERT { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<()> {
        if !self.rows.is_empty() {
            let values = std::mem::take(&mut self.rows).join("), (");
            run(self.connection, format!("INSERT INTO {} VALUES ({values})", self.head)).await?;
        }
        Ok(())
    }
}

/// Writes everything, in one transaction.
pub(crate) async fn fill(place: &Place) -> Result<()> {
    let mut connection = connect(place).await?;
    let db = &mut connection;
    if place.engine == Engine::Sqlite {
        run(db, "PRAGMA synchronous = OFF; PRAGMA cache_size = -1000000").await?;
    }
    run(db, "BEGIN").await?;
    tenants(db).await?;
    locations(db).await?;
    contents(db).await?;
    images(db).await?;
    shares(db).await?;
    grams(db).await?;
    tags(db).await?;
    entries(db).await?;
    operations(db).await?;
    run(db, "COMMIT").await?;
    match place.engine {
        // What the server's own housekeeping does within minutes.
        Engine::Postgres => run(db, "VACUUM ANALYZE").await?,
        Engine::Sqlite => run(db, "PRAGMA wal_checkpoint(TRUNCATE)").await?,
    }
    connection.close().await?;
    Ok(())
}

async fn tenants(db: &mut AnyConnection) -> Result<()> {
    let mut table = Table::new(db, "domain (id, name, name_folded, disabled, created_us, updated_us)");
    for n in 0..DOMAINS {
        table.put(format!("'{}', '域 {n}', '域 {n}', 0, 0, 0", rows::domain(n))).await?;
    }
    table.flush().await?;
    let mut table =
        Table::new(db, "project (id, domain_id, name, name_folded, disabled, created_us, updated_us)");
    for n in 0..PROJECTS {
        let (id, domain) = (rows::project(n), rows::domain(rows::domain_of(n)));
        table.put(format!("'{id}', '{domain}', '项目 {n}', '项目 {n}', 0, 0, 0")).await?;
    }
    table.flush().await
}

async fn locations(db: &mut AnyConnection) -> Result<()> {
    let head = "location (id, name, name_folded, kind, state, platform, region, zone, rack, account, ip, serial, labels, advertised, \
         nic_mbps, cert_serial, budget_bytes, used_bytes, free_bytes, floor_bytes, degraded, generation, created_us, updated_us)";
    let mut table = Table::new(db, head);
    for n in 0..LOCATIONS {
        let (id, name, zone) = (rows::location(n), rows::location_name(n), rows::zone(n));
        let place = format!(
            "'{id}', '{name}', '{name}', 'host', 'active', 'openstack', 'cn-east-{}', '{zone}', 'r{:02}'",
            n % 4,
            n % 100
        );
        let facts = format!(
            "'', '10.{}.{}.{}', 'SN{n:06}', '{{\"gpu\":\"no\"}}', '[]', 25000, ''",
            n / 4000,
            n / 200 % 250,
            n % 200
        );
        table.put(format!("{place}, {facts}, {0}, {0}, {0}, 1, '', 0, {n}, {n}", 1_u64 << 40)).await?;
    }
    table.flush().await
}

async fn contents(db: &mut AnyConnection) -> Result<()> {
    let head = "content (content_id, kind, raw_bytes, data_bytes, stored_bytes, n_chunks, damaged, created_us, updated_us)";
    let mut table = Table::new(db, head);
    for n in 0..IMAGES {
        let image = Image::new(n);
        if image.content == Some(n) {
            let (kind, raw) = (if image.kind == "iso" { "file" } else { "disk" }, image.virtual_bytes);
            let sizes = format!("{raw}, {}, {}, {}", raw / 4, raw / 10, raw >> 18);
            table
                .put(format!("'{}', '{kind}', {sizes}, 0, {1}, {1}", rows::content(n), image.created_us))
                .await?;
        }
    }
    table.flush().await
}

async fn images(db: &mut AnyConnection) -> Result<()> {
    let head = "image (id, name, name_folded, name_key, kind, status, percent, reason, format, container_format, visibility, domain_id, \
         project_id, architecture, os_type, distribution, version, description, min_disk_bytes, min_memory_bytes, protected, \
         properties, expected, original_bytes, original_kept, sha256, sha512, md5, blake3, virtual_bytes, data_bytes, content_id, \
         revision, deleted_us, created_us, updated_us, description_folded, tags, virtualisation, featured)";
    let mut table = Table::new(db, head);
    for n in 0..IMAGES {
        let image = Image::new(n);
        let is_deleted = image.status == "deleted";
        let (project, folded) = (rows::project(image.project), image.name.to_lowercase());
        let key = if is_deleted { image.id.clone() } else { format!("{project} {folded}") };
        let named = format!("'{}', {}, {}, {}", image.id, quoted(&image.name), quoted(&folded), quoted(&key));
        let state = format!(
            "'{}', '{}', 0, '', '{}', 'bare', '{}'",
            image.kind, image.status, image.format, image.visibility
        );
        let owner = format!("'{}', '{project}'", rows::domain(rows::domain_of(image.project)));
        let system = format!(
            "'{}', '{}', '{}', '{}'",
            image.architecture, image.os_type, image.distribution, image.version
        );
        let facts = format!(
            "{}, 0, 0, {}, '{{\"hw_disk_bus\":\"virtio\"}}', '{{}}'",
            quoted(&rows::description(n)),
            u64::from(n % 50 == 0)
        );
        let sums = rows::content(n);
        let file = format!(
            "{}, 1, '{sums}', '{sums}{sums}', '{}', '{sums}', {}",
            image.virtual_bytes / 8,
            sums.split_at(32).0,
            image.virtual_bytes
        );
        let content = image
            .content
            .map_or_else(|| "NULL".to_owned(), |content| format!("'{}'", rows::content(content)));
        let deleted = if is_deleted { image.created_us.to_string() } else { "NULL".to_owned() };
        let (created, updated) = (image.created_us, rows::updated_us(n));
        let times = format!("{}, {content}, 1, {deleted}, {created}, {updated}", image.virtual_bytes / 4);
        let tags: Vec<String> = rows::tags(n).iter().map(|tag| format!("\"{tag}\"")).collect();
        let more = format!(
            "{}, '[{}]', '{}', {}",
            quoted(&rows::description(n).to_lowercase()),
            tags.join(","),
            rows::virtualisation(n),
            u64::from(image.visibility == "public" && n % 5 == 0)
        );
        table.put(format!("{named}, {state}, {owner}, {system}, {facts}, {file}, {times}, {more}")).await?;
    }
    table.flush().await
}

/// Every shared image with three projects; two in three accepted.
async fn shares(db: &mut AnyConnection) -> Result<()> {
    let mut table = Table::new(db, "share (image_id, kind, target, status, created_us, updated_us)");
    for n in 0..IMAGES {
        let image = Image::new(n);
        if image.visibility == "shared" {
            for j in 0..3 {
                let (target, status) =
                    ((pick(51, n, PROJECTS) + j) % PROJECTS, if j == 2 { "pending" } else { "accepted" });
                table
                    .put(format!("'{}', 'project', '{}', '{status}', 0, 0", image.id, rows::project(target)))
                    .await?;
            }
        }
    }
    table.flush().await
}

async fn grams(db: &mut AnyConnection) -> Result<()> {
    let mut table = Table::new(db, "image_gram (gram, image_id)");
    for n in 0..IMAGES {
        let image = Image::new(n);
        if image.status == "deleted" {
            continue;
        }
        let mut grams: BTreeSet<String> = BTreeSet::new();
        for text in [&image.name, &rows::description(n)] {
            let chars: Vec<char> = text.to_lowercase().chars().collect();
            grams.extend(
                [1, 2]
                    .iter()
                    .flat_map(|size| chars.windows(*size))
                    .map(|gram| gram.iter().collect::<String>()),
            );
        }
        for gram in grams {
            table.put(format!("{}, '{}'", quoted(&gram), image.id)).await?;
        }
    }
    table.flush().await
}

async fn tags(db: &mut AnyConnection) -> Result<()> {
    let mut table = Table::new(db, "image_tag (tag_folded, image_id)");
    for n in 0..IMAGES {
        for tag in rows::tags(n) {
            table.put(format!("'{tag}', '{}'", rows::image_id(n))).await?;
        }
    }
    table.flush().await
}

async fn entries(db: &mut AnyConnection) -> Result<()> {
    let head = "entry (location_id, content_id, status, reason, done_bytes, data_bytes, moved_bytes, reused_bytes, allocated_bytes, leases, \
         last_used_us, reported_us, created_us, updated_us)";
    let mut table = Table::new(db, head);
    let mut wanted = Vec::new();
    let mut n_entries = 0;
    for (slot, number) in (0..).zip(&rows::cached()) {
        let (rank, content, image) = (rows::rank(slot), rows::content(*number), Image::new(*number));
        for j in 0..copies(rank) {
            let (location, status) = (rows::location(copy_at(rank, j)), copy_status(rank, j));
            let data = image.virtual_bytes / 4;
            let done = if status == "active" { data } else { data / 3 };
            let leases = u64::from(status == "active" && pick(53, n_entries, 40) == 0);
            let times = format!("{0}, {0}, {0}, {0}", image.created_us + j);
            table.put(format!("'{location}', '{content}', '{status}', '', {done}, {data}, {done}, 0, {done}, {leases}, {times}")).await?;
            if pick(54, n_entries, ENTRIES_PER_INTENT) == 0 || status == "deleting" {
                let wish = if status == "deleting" { "remove" } else { "keep" };
                wanted.push((n_entries, *number, location.clone(), wish, leases));
            } else if leases > 0 {
                wanted.push((n_entries, *number, location.clone(), "", leases));
            }
            n_entries += 1;
        }
    }
    table.flush().await?;
    anyhow::ensure!(n_entries.abs_diff(ENTRIES) < ENTRIES / 50, "{n_entries} entries");
    let head = "intent (id, image_id, content_id, location_id, origin, prewarm_id, priority, hold, wish, force, created_us, updated_us)";
    let mut table = Table::new(db, head);
    for (n, number, location, wish, _) in wanted.iter().filter(|(_, _, _, wish, _)| !wish.is_empty()) {
        let (image, content) = (rows::image_id(*number), rows::content(*number));
        let id = rows::id(5, *n, rows::time_us(*n, ENTRIES));
        table.put(format!("'{id}', '{image}', '{content}', '{location}', 'manual', '', 'bulk', 'pinned', '{wish}', 0, 0, 0")).await?;
    }
    table.flush().await?;
    let mut table = Table::new(db, "lease (location_id, lease_id, content_id, kind, consumer, since_us)");
    for (n, number, location, _, leases) in &wanted {
        if *leases > 0 {
            let (id, content) = (rows::id(6, *n, rows::time_us(*n, ENTRIES)), rows::content(*number));
            table.put(format!("'{location}', '{id}', '{content}', 'vm', 'vm-{n}', 0")).await?;
        }
    }
    table.flush().await
}

const ACTIONS: [(&str, &str); 8] = [
    ("image.update", "image"),
    ("image.create", "image"),
    ("image.import", "image"),
    ("image.delete", "image"),
    ("cache.create", "image"),
    ("cache.remove", "entry"),
    ("location.update", "location"),
    ("token.create", "token"),
];

/// The log behind what `init` wrote, sealed as the store seals it.
async fn operations(db: &mut AnyConnection) -> Result<()> {
    let found = text(db, "SELECT value FROM meta WHERE key = 'operation_head'").await?;
    let found = found.context("init sealed the rows that it wrote")?;
    let (sealed, hash) = found.split_once(' ').context("the head is a number and a hash")?;
    let (sealed, mut last): (u64, String) = (sealed.parse()?, hash.to_owned());
    let head = "operation (id, seq, time_us, who, who_kind, action, target_kind, target_id, target_name, result, details, prev_hash, hash)";
    let mut table = Table::new(db, head);
    for n in 0..OPERATIONS {
        let time_us = rows::time_us(n, OPERATIONS);
        let (action, kind) = ACTIONS[usize::try_from(pick(42, n, 8)).unwrap_or(0)];
        let (id, name) = match kind {
            "location" => {
                (rows::location(pick(43, n, LOCATIONS)), rows::location_name(pick(43, n, LOCATIONS)))
            }
            _ => (rows::image_id(pick(43, n, IMAGES)), format!("镜像 {n}")),
        };
        let details =
            format!(r#"{{"after":{{"description":"次 {n}"}},"before":{{"description":"次 {}"}}}}"#, n / 2);
        let (row_id, seq, time, who) =
            (rows::id(7, n, time_us), (sealed + 1 + n).to_string(), time_us.to_string(), rows::who(n));
        let result = if pick(44, n, 50) == 0 { "failed" } else { "ok" };
        let columns = [
            HASH_DOMAIN,
            &last,
            &seq,
            &row_id,
            &time,
            &who,
            "token",
            action,
            kind,
            &id,
            &name,
            result,
            &details,
        ];
        let mut hasher = blake3::Hasher::new();
        for column in columns {
            hasher.update(&(column.len() as u64).to_le_bytes());
            hasher.update(column.as_bytes());
        }
        let hash = hasher.finalize().to_hex().to_string();
        let what = format!(
            "'{row_id}', {seq}, {time}, '{who}', 'token', '{action}', '{kind}', '{id}', '{name}', '{result}'"
        );
        table.put(format!("{what}, '{details}', '{last}', '{hash}'")).await?;
        last = hash;
    }
    table.flush().await?;
    let head = format!("{} {last}", sealed + OPERATIONS);
    run(db, format!("UPDATE meta SET value = '{head}' WHERE key = 'operation_head'")).await
}
