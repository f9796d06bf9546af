//! How the engines look up what people ask of a large catalog: through the indexes that are there for it.
//!
//! **What.** Runs the store's own calls, hears from the driver which statements they were, and asks the engine for its plan.
//! **Why not a clock.** On a few rows everything is quick. `make bench BENCH=catalog` measures a million.
//! **Why the driver's log.** A statement that is written here again would stay right while the store's own changes.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use hearth_controller::clock;
use hearth_controller::db::cache_list::CacheFilter;
use hearth_controller::db::image_list::{ImageFilter, ImageOrder};
use hearth_controller::db::intents::{Intent, IntentHold};
use hearth_controller::db::operations::OperationFilter;
use hearth_controller::db::shares::View;
use hearth_controller::db::tokens::Scope;
use hearth_controller::db::{Db, DbError, PageRequest};
use hearth_protocol::words::{EntryStatus, ImageKind, ImageSort, ImageStatus, ShareStatus, SortOrder};
use sqlx::{AssertSqlSafe, Executor as _, Row as _};
use tracing::Instrument as _;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use crate::engines::Place;
use crate::fixture::{active_image, locations, observed, op, queued_image};
use crate::on_both_engines;

on_both_engines! {
    what_a_project_sees_is_found_by_indexes
    rare_images_and_parts_of_names_are_found_by_indexes
    views_tags_and_searches_are_found_by_indexes
    every_order_of_images_is_that_of_an_index
    copies_are_found_by_indexes
    the_log_is_found_by_indexes
    sums_read_no_records
}

/// Tables that may have hundreds of thousands of rows, and their other names in statements.
const LARGE: [&str; 15] = [
    "image",
    "im",
    "own",
    "public",
    "featured",
    "rare",
    "iso",
    "entry",
    "e",
    "intent",
    "w",
    "operation",
    "image_gram",
    "image_tag",
    "content",
];

/// Name of the span whose statements are heard.
const SPAN: &str = "explained";

/// What the driver said.
#[derive(Clone, Debug, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    /// The ear of this process.
    fn start() -> Self {
        static HEARD: OnceLock<Heard> = OnceLock::new();
        let heard = HEARD.get_or_init(|| {
            let heard = Self::default();
            tracing::subscriber::set_global_default(tracing_subscriber::registry().with(heard.clone()))
                .unwrap();
            heard
        });
        heard.clone()
    }

    fn texts(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Heard {
    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let mut scope = context.event_scope(event).into_iter().flatten();
        if scope.any(|span| span.name() == SPAN) {
            event.record(&mut Statement(self));
        }
    }
}

struct Statement<'a>(&'a Heard);

impl Visit for Statement<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "db.statement" && value.contains("SELECT") {
            self.0.texts().push(value.trim().to_owned());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

/// The plans of all statements of `call`.
async fn plans<T>(place: &Place, call: impl Future<Output = Result<T, DbError>>) -> String {
    // Tests of one process take turns: there is one ear.
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _turn = TURN.lock().await;
    let heard = Heard::start();
    heard.texts().clear();
    call.instrument(tracing::info_span!("explained")).await.unwrap();
    let texts = std::mem::take(&mut *heard.texts());
    assert!(!texts.is_empty(), "the driver said nothing");
    let mut plans = String::new();
    for text in texts {
        plans += &format!("{text}\n{}\n", plan(place, &text).await);
    }
    plans
}

async fn plan(place: &Place, text: &str) -> String {
    let mut connection = place.connect().await;
    if place.is_sqlite() {
        let rows = connection.fetch_all(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {text}"))).await.unwrap();
        return rows.iter().map(|row| row.get::<String, _>("detail") + "\n").collect();
    }
    // A table of four rows is read whole unless the engine takes it for a large one.
    let large = "UPDATE pg_class SET relpages = 1, reltuples = 1000000 WHERE relkind = 'r' AND relname IN ('image', 'image_gram', \
         'entry', 'intent', 'operation', 'content')";
    connection.execute(large).await.unwrap();
    // As the store's connections are, and without values.
    let settings = "SET jit = off; SET random_page_cost = 1.1; SET max_parallel_workers_per_gather = 0; \
         SET plan_cache_mode = force_generic_plan";
    connection.execute(settings).await.unwrap();
    connection.execute(AssertSqlSafe(format!("PREPARE asked AS {text}"))).await.unwrap();
    let n_values = (1..).take_while(|n| text.contains(&format!("${n}"))).count();
    let values =
        if n_values == 0 { String::new() } else { format!("({})", vec!["NULL"; n_values].join(", ")) };
    let rows = connection.fetch_all(AssertSqlSafe(format!("EXPLAIN EXECUTE asked{values}"))).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>("QUERY PLAN") + "\n").collect()
}

/// Each of `indexes` is used, and no large table is read whole.
#[track_caller]
fn check(plans: &str, indexes: &[&str]) {
    for index in indexes {
        assert!(plans.contains(index), "{index} is not used:\n{plans}");
    }
    for line in plans.lines().map(str::trim) {
        let whole =
            |table: &&str| line == format!("SCAN {table}") || line.contains(&format!("Seq Scan on {table} "));
        assert!(!LARGE.iter().any(whole), "{line}:\n{plans}");
    }
}

/// One image at three locations: wanted at all, seen at two.
async fn filled(place: &Place) -> Db {
    let db = place.open().await;
    let image = active_image(&db, "系统镜像 Debian").await;
    queued_image(&db, "Ubuntu 24.04").await;
    let ids = locations(&db, 3).await;
    let content = image.content.unwrap();
    let wish = |id: &_| Intent::manual(image.id, content, *id, IntentHold::Pinned);
    db.put_intents(&ids.iter().map(wish).collect::<Vec<_>>(), &op("cache.create")).await.unwrap();
    for id in ids.iter().take(2) {
        db.apply_inventory(*id, &[observed(content, EntryStatus::Active, 1 << 20)]).await.unwrap();
    }
    db
}

async fn what_a_project_sees_is_found_by_indexes(place: Place) {
    let db = filled(&place).await;
    let (domain, project) = db.default_tenants().await.unwrap();
    let (all, page) = (ImageFilter::default(), PageRequest::default());
    let found = plans(&place, db.images(Scope::Project(domain, project), &all, &page)).await;
    check(&found, &["image_project", "image_public", "share_target"]);
    let found = plans(&place, db.images(Scope::Domain(domain), &all, &page)).await;
    check(&found, &["image_domain", "image_public", "share_target"]);
    let found = plans(&place, db.images_named(Scope::System, "ubuntu 24.04")).await;
    check(&found, &["image_name"]);
}

async fn rare_images_and_parts_of_names_are_found_by_indexes(place: Place) {
    let db = filled(&place).await;
    let page = PageRequest::default();
    let rare = ImageFilter { status: Some(ImageStatus::Queued), ..ImageFilter::default() };
    check(&plans(&place, db.images(Scope::System, &rare, &page)).await, &["image_rare"]);
    let iso = ImageFilter { kind: Some(ImageKind::Iso), ..ImageFilter::default() };
    check(&plans(&place, db.images(Scope::System, &iso, &page)).await, &["image_iso"]);
    let grams = if place.is_sqlite() { "autoindex_image_gram_1" } else { "image_gram_pkey" };
    let part = ImageFilter { name_contains: Some("系统".to_owned()), ..ImageFilter::default() };
    check(&plans(&place, db.images(Scope::System, &part, &page)).await, &[grams]);
}

/// LS-1: whatever a list begins with, an index has it; its count too.
async fn views_tags_and_searches_are_found_by_indexes(place: Place) {
    let db = filled(&place).await;
    let (domain, project) = db.default_tenants().await.unwrap();
    let grams = if place.is_sqlite() { "autoindex_image_gram_1" } else { "image_gram_pkey" };
    let member = Scope::Project(domain, project);
    let of_view = |view| ImageFilter { view, ..ImageFilter::default() };
    let text = |text: &str| Some(text.to_owned());
    let asked = [
        (Scope::System, of_view(View::Public), "image_public"),
        (Scope::System, of_view(View::Featured), "image_featured"),
        (member, of_view(View::Private), "image_project"),
        (member, of_view(View::Shared(ShareStatus::Accepted)), "share_target"),
        (Scope::System, ImageFilter { domain: Some(domain), ..ImageFilter::default() }, "image_domain"),
        (
            Scope::System,
            ImageFilter { tags: vec!["gold".to_owned()], ..ImageFilter::default() },
            "image_tag_tag",
        ),
        (Scope::System, ImageFilter { search: text("系统"), ..ImageFilter::default() }, grams),
        (member, ImageFilter { search: text("镜像"), ..ImageFilter::default() }, grams),
        (Scope::System, ImageFilter { name: text("Ubuntu 24.04"), ..ImageFilter::default() }, "image_name"),
    ];
    for (scope, filter, index) in asked {
        check(&plans(&place, db.images(scope, &filter, &PageRequest::default())).await, &[index]);
        check(&plans(&place, db.count_images(scope, &filter)).await, &[index]);
    }
}

/// LS-1: a page costs a page in every order: nothing is sorted.
async fn every_order_of_images_is_that_of_an_index(place: Place) {
    let db = filled(&place).await;
    let orders = [
        (ImageSort::Name, "image_name"),
        (ImageSort::Size, "image_size"),
        (ImageSort::Created, "image_created"),
        (ImageSort::Updated, "image_updated"),
        (ImageSort::Status, "image_state"),
    ];
    for (by, index) in orders {
        for order in [SortOrder::Asc, SortOrder::Desc] {
            let (all, order) = (ImageFilter::default(), ImageOrder { by, order });
            let found =
                plans(&place, db.images_by(Scope::System, &all, order, &PageRequest::default())).await;
            check(&found, &[index]);
            assert!(!found.contains("TEMP B-TREE FOR ORDER BY") && !found.contains("Sort Key"), "{found}");
        }
    }
}

/// CA-1: the cache list, from the image's side and from the location's.
async fn copies_are_found_by_indexes(place: Place) {
    let db = filled(&place).await;
    let (now_us, page) = (clock::unix_us(), PageRequest::default());
    let (keys, wishes) = ("autoindex_entry_1", "autoindex_intent_2");
    // In which order PostgreSQL joins depends on the rows that there are; that it reads no large table whole does not.
    let check = |plans: &str, indexes: &[&str]| check(plans, if place.is_sqlite() { indexes } else { &[] });
    let all = db.cache_rows(&CacheFilter::default(), &page, now_us).await.unwrap().items;
    assert_eq!(all.len(), 3);
    let (image, location) = (all[0].image, all[0].location);
    let found = plans(&place, db.cache_rows(&CacheFilter::default(), &page, now_us)).await;
    check(&found, &["image_name", "entry_content", wishes]);
    assert!(!found.contains("content_id>?"), "all images with a content are sorted:\n{found}");
    let of_image = CacheFilter { image: Some(image), ..CacheFilter::default() };
    check(&plans(&place, db.cache_rows(&of_image, &page, now_us)).await, &["entry_content", wishes]);
    let at = CacheFilter { location: Some(location), ..CacheFilter::default() };
    check(
        &plans(&place, db.cache_rows(&at, &page, now_us)).await,
        &[keys, "image_content", "intent_location"],
    );
    let active = CacheFilter { status: Some(EntryStatus::Active), ..CacheFilter::default() };
    check(&plans(&place, db.cache_rows(&active, &page, now_us)).await, &["entry_status", "image_content"]);
    check(&plans(&place, db.active_copies(&[image], None, now_us)).await, &["entry_content"]);
    check(&plans(&place, db.active_counts(&[location])).await, &["entry_status"]);
}

/// LG-1: a page of the log costs a page, whatever is asked for.
async fn the_log_is_found_by_indexes(place: Place) {
    let db = filled(&place).await;
    let page = PageRequest::default();
    let text = |text: &str| Some(text.to_owned());
    let asked = [
        (OperationFilter::default(), "operation_time"),
        (
            OperationFilter { from_us: Some(1), to_us: Some(2), ..OperationFilter::default() },
            "operation_time",
        ),
        (OperationFilter { target_id: text("x"), ..OperationFilter::default() }, "operation_target"),
        (
            OperationFilter {
                target_kind: text("image"),
                target_id: text("x"),
                ..OperationFilter::default()
            },
            "operation_target",
        ),
        (OperationFilter { target_kind: text("image"), ..OperationFilter::default() }, "operation_kind"),
        (OperationFilter { who: text("x"), ..OperationFilter::default() }, "operation_who"),
        (OperationFilter { action: text("x"), ..OperationFilter::default() }, "operation_action"),
    ];
    for (filter, index) in asked {
        let found = plans(&place, db.operations(&filter, &page)).await;
        check(&found, &[index]);
        // In the index's order: nothing is sorted.
        assert!(!found.contains("TEMP B-TREE FOR ORDER BY") || index == "operation_target", "{found}");
    }
}

async fn sums_read_no_records(place: Place) {
    let db = filled(&place).await;
    // PostgreSQL reads the index alone once its housekeeping has looked at the table.
    if place.is_sqlite() {
        let whole = "SCAN image USING COVERING INDEX image_sums";
        check(&plans(&place, db.image_totals()).await, &[whole]);
        check(&plans(&place, db.stored_bytes()).await, &["SCAN content USING COVERING INDEX content_sums"]);
    }
    assert_eq!(db.image_totals().await.unwrap(), (1, 1000), "one active image with a kept original");
}
