//! `kill -9` of the real daemons at random moments, under load, again and again.
//!
//! **What.** Each round lets the load work, kills the controller and one of two agents at moments of their own, looks at
//! what the dead left on disk, starts both, and compares what they say with what had been acknowledged.
//! **Why both in a round.** An agent that lost its controller comes back with jitter, seconds later; one that starts
//! connects at once, so the next round finds both at work. The other agent lives through it all.
//! **Invariants.** Nothing acknowledged is lost: images, finished jobs, pinned copies, leases, rows of the log. Nothing bad
//! is visible: a file in `objects/` always has the bytes of its source, and what is shown `active` is there.
//!
//! `HEARTH_KILL_ROUNDS` (default 100: 200 kills) and `HEARTH_KILL_SEED` repeat a run; the moments of death differ.

mod ledger;
mod load;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hearth_agent::local::message::{Reply, Request};
use hearth_protocol::api::cache::CacheEntry;
use hearth_protocol::api::image::Image;
use hearth_protocol::api::location::Location;
use hearth_protocol::api::operation::Operation;
use hearth_protocol::api::prewarm::PrewarmDetails;
use hearth_protocol::words::{EntryStatus, ImageStatus, PrewarmState};
use hearth_tests::cluster::{Cluster, Extra, START_WAIT_MAX, WORK_WAIT_MAX, agent_name};
use hearth_tests::{disk, wait};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::RwLock;

use ledger::{AGENTS, Ledger};
use load::Load;

/// Files that are imported over and over; neighbours share half of their blocks.
const SOURCES: usize = 6;
/// Room for three of them and a bit: unheld copies are evicted all the time.
const BUDGET: &str = "budget = \"48 MiB\"\nfloor = \"64 MiB\"\nlog = \"warn\"\n";
/// Longest life after both are at work, and longest time between the two kills.
const LIFE_MS_MAX: u64 = 700;
const APART_MS_MAX: u64 = 200;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// A running test.
struct Rounds {
    cluster: Cluster,
    load: Load,
    /// Raw bytes of each source.
    raw: Vec<Vec<u8>>,
}

/// Raw bytes of 8 MiB, in blocks of 64 KiB with a hole now and then.
fn source(number: u64) -> Vec<u8> {
    let mut raw = Vec::with_capacity(8 << 20);
    for block in number * 64..number * 64 + 128 {
        let mut bytes = vec![0; 64 << 10];
        if block % 9 > 0 {
            StdRng::seed_from_u64(block).fill(bytes.as_mut_slice());
        }
        raw.extend(bytes);
    }
    raw
}

impl Rounds {
    async fn start() -> Self {
        let extra =
            Extra { agent: BUDGET.into(), controller: "parallel_imports = 2\n".into(), ..Extra::default() };
        let cluster = Cluster::start_with(AGENTS, extra).await.unwrap();
        let (mut files, mut raw) = (Vec::new(), Vec::new());
        let mut ledger = Ledger::default();
        for number in 0..SOURCES {
            raw.push(source(number as u64));
            let path = cluster.dir().join(format!("source-{number}.raw"));
            std::fs::write(&path, &raw[number]).unwrap();
            let mut file = path.clone();
            // Half of them are converted, so that kills meet qemu-img too.
            if number % 2 == 1 {
                file = path.with_extension("qcow2");
                disk::convert(&path, &file, "qcow2", &[]).unwrap();
            }
            let image = cluster.import(&file, &format!("first-{number}")).await.unwrap();
            let content = image.content.unwrap();
            ledger.sources.insert(content, number);
            ledger.images.insert(image.id, ledger::Kept { source: number, content: Some(content) });
            files.push(file);
        }
        let load = Load {
            api: cluster.api.clone(),
            sockets: (0..AGENTS).map(|index| cluster.agent_dir(index).join("agent.sock")).collect(),
            files: Arc::new(files),
            ledger: Arc::new(Mutex::new(ledger)),
            gate: Arc::new(RwLock::new(())),
        };
        Self { cluster, load, raw }
    }

    /// Lets the load work, then kills the controller and agent `victim`, each at its own moment.
    async fn kill(&mut self, victim: usize, dice: &mut StdRng) {
        let before = self.load.ledger().counts.all();
        let name = agent_name(victim);
        wait::until("both are at work again", START_WAIT_MAX, async || {
            let locations: Vec<Location> = self.cluster.api.list("/locations").await?;
            let online = locations.iter().any(|location| location.name == name && location.online);
            Ok(online && self.load.ledger().counts.all() > before)
        })
        .await
        .unwrap();
        tokio::time::sleep(Duration::from_millis(dice.random_range(0..LIFE_MS_MAX))).await;
        let agent_first: bool = dice.random();
        for agent in [agent_first, !agent_first] {
            let killed = if agent { self.cluster.kill_agent(victim) } else { self.cluster.kill_controller() };
            killed.unwrap();
            tokio::time::sleep(Duration::from_millis(dice.random_range(0..APART_MS_MAX))).await;
        }
    }

    /// Starts what was killed and waits until it answers. The controller first: an agent that finds none waits seconds.
    async fn revive(&mut self, victim: usize) {
        self.cluster.start_controller().await.unwrap();
        self.cluster.start_agent(victim).unwrap();
        let Self { cluster, .. } = self;
        wait::until("the agent answers", START_WAIT_MAX, async || {
            cluster.agent(victim).check_alive()?;
            Ok(cluster.ask_agent(victim, &Request::Leases {}).is_ok())
        })
        .await
        .unwrap();
    }

    /// Everything in `objects/` is what it is called. Returns what is there.
    fn check_objects(&self, agent: usize) -> BTreeMap<String, PathBuf> {
        let sources: BTreeMap<String, usize> = self
            .load
            .ledger()
            .sources
            .iter()
            .map(|(content, source)| (content.to_string(), *source))
            .collect();
        let objects = self.cluster.objects(agent).unwrap();
        for (content, path) in &objects {
            let source =
                *sources.get(content).unwrap_or_else(|| panic!("{} is nothing we know", path.display()));
            // Evicted between the look at the folder and this one: it may be gone, never wrong.
            if let Ok(bytes) = std::fs::read(path) {
                assert!(bytes == self.raw[source], "{} has wrong bytes", path.display());
            }
        }
        objects.into_iter().collect()
    }

    /// What agent `agent` has on disk and says, against what was acknowledged.
    fn check_agent(&self, agent: usize) {
        let objects = self.check_objects(agent);
        let ledger = self.load.ledger();
        for (_, content) in ledger.held.iter().filter(|(of, _)| *of == agent) {
            assert!(
                objects.contains_key(&content.to_string()),
                "agent {agent} lost {content}, which is pinned"
            );
        }
        let Ok(Reply::Leases { leases }) = self.cluster.ask_agent(agent, &Request::Leases {}) else {
            panic!("agent {agent} does not answer");
        };
        for (lease, content) in &ledger.leases[agent] {
            let there = leases.iter().any(|other| other.lease == *lease && other.content == *content);
            assert!(there, "agent {agent} lost lease {lease}");
            assert!(
                objects.contains_key(&content.to_string()),
                "agent {agent} lost {content}, which is leased"
            );
        }
        let Ok(Reply::Status(status)) = self.cluster.ask_agent(agent, &Request::Status { target: None })
        else {
            panic!("agent {agent} does not answer");
        };
        for row in status.entries.iter().filter(|row| row.status == "active") {
            // Its bytes were compared above; it may have been evicted since.
            let gone = row.path.as_deref().is_none_or(|path| !path.exists());
            let request = Request::Path { target: row.content.to_string(), wait_s: 0 };
            assert!(!gone || self.cluster.ask_agent(agent, &request).is_err(), "{row:?} is not there");
        }
    }

    /// The catalog, against what was acknowledged.
    async fn check_catalog(&self) {
        let shown: Vec<Image> = self.cluster.api.list("/images").await.unwrap();
        let shown: BTreeMap<_, _> = shown.into_iter().map(|image| (image.id, image)).collect();
        self.load.look_at_images().await;
        let ledger = self.load.ledger();
        for (id, kept) in &ledger.images {
            let image = shown.get(id).unwrap_or_else(|| panic!("image {id} was accepted and is gone"));
            let fits = match kept.content {
                Some(content) if image.status == ImageStatus::Active => image.content == Some(content),
                _ => matches!(image.status, ImageStatus::Importing | ImageStatus::Active),
            };
            assert!(fits, "{kept:?} was accepted, is {image:#?}");
        }
        let back = ledger.deleted.iter().find(|id| {
            shown.get(id).is_some_and(|image| {
                !matches!(image.status, ImageStatus::Deleted | ImageStatus::PendingDelete)
            })
        });
        assert_eq!(back, None, "an image came back");
    }

    async fn check_jobs(&self) {
        let done: Vec<_> =
            self.load.ledger().jobs.iter().filter(|(_, job)| job.done).map(|(id, _)| *id).collect();
        for id in done {
            let job: PrewarmDetails = self.cluster.api.get(&format!("/prewarms/{id}")).await.unwrap();
            assert_eq!(job.prewarm.state, PrewarmState::Done, "{job:#?}");
        }
    }

    /// What the cache list shows as `active` at a location with a session is there. An eviction may be on its way.
    async fn check_cache_list(&self) {
        wait::until("the cache list shows only what is there", START_WAIT_MAX, async || {
            let locations: Vec<Location> = self.cluster.api.list("/locations").await?;
            let entries: Vec<CacheEntry> = self.cluster.api.list("/cache").await?;
            let is_false = |entry: &CacheEntry| {
                let agent = (0..AGENTS).find(|index| agent_name(*index) == entry.location_name).unwrap();
                let online =
                    locations.iter().any(|location| location.id == entry.location && location.online);
                let content = entry.content.to_string();
                let folder = self.cluster.agent_dir(agent).join("cache/objects").join(content.split_at(2).0);
                online
                    && entry.status == EntryStatus::Active
                    && !folder.join(format!("{content}.raw")).exists()
            };
            Ok(!entries.iter().any(is_false))
        })
        .await
        .unwrap();
    }

    async fn check(&self) {
        let _still = self.load.gate.write().await;
        (0..AGENTS).for_each(|agent| self.check_agent(agent));
        self.check_catalog().await;
        self.check_jobs().await;
        self.check_cache_list().await;
        let ledger = self.load.ledger();
        assert!(ledger.wrong.is_empty(), "{:#?}", ledger.wrong);
    }

    /// Every row of the log that an answer promised, and the chain.
    async fn check_log(&self) {
        let rows: Vec<Operation> = self.cluster.api.list("/operations").await.unwrap();
        let rows: std::collections::BTreeSet<(&str, &str)> =
            rows.iter().map(|row| (row.action.as_str(), row.target_id.as_str())).collect();
        let ledger = self.load.ledger();
        let lost: Vec<_> =
            ledger.rows.iter().filter(|(what, target)| !rows.contains(&(*what, target.as_str()))).collect();
        assert!(lost.is_empty(), "rows of the log are lost: {lost:#?}");
    }

    /// Lets everything come to rest and looks once more, with the daemons' own tools.
    async fn settle(mut self) {
        let ledger =
            |this: &Self| this.load.ledger().images.values().filter(|kept| kept.content.is_none()).count();
        wait::until("every accepted image is active", WORK_WAIT_MAX, async || {
            self.load.look_at_images().await;
            Ok(ledger(&self) == 0)
        })
        .await
        .unwrap();
        self.check().await;
        self.check_log().await;
        let verified = self.cluster.hearth(&["log", "verify"]).unwrap();
        assert!(verified.status.success(), "{verified:?}");
        for agent in 0..AGENTS {
            for content in self.check_objects(agent).keys() {
                // An entry may be evicted at this moment; one that is there must be right.
                let request = Request::Verify { target: content.clone() };
                if let Err(refusal) = self.cluster.ask_agent(agent, &request) {
                    let code = refusal.code;
                    assert!(matches!(code, hearth_agent::local::message::Code::NotFound), "{refusal:?}");
                }
            }
        }
        self.cluster.controller().stop(WORK_WAIT_MAX).await.unwrap();
        let checked = self.cluster.hearth_controller(&["fsck", "--deep"]).unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        assert_eq!(n_files(&self.cluster.state_dir().join("staging")), 0);
    }
}

fn n_files(folder: &Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_and_nothing_bad_is_seen() {
    let rounds = number("HEARTH_KILL_ROUNDS", 100);
    let seed = number("HEARTH_KILL_SEED", rand::random_range(1..1_000_000));
    println!("HEARTH_KILL_SEED={seed}");
    let mut dice = StdRng::seed_from_u64(seed);
    let mut test = Rounds::start().await;
    let tasks = test.load.start(seed);
    for _ in 0..rounds {
        let victim = dice.random_range(0..AGENTS);
        test.kill(victim, &mut dice).await;
        test.check_objects(victim);
        test.revive(victim).await;
        test.check().await;
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    let counts = test.load.ledger().counts;
    println!("{} kills of daemons; acknowledged: {counts:?}", 2 * rounds);
    test.settle().await;
}
