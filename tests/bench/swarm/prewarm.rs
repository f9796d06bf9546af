//! The contender of our own: one prewarm of the hosts.
//!
//! **What.** [`OwnRace`] makes the job through the API and reads from it when each host verified its copy on disk.
//! **Why the job's times and not the moment they were seen.** They are exact to what the controller knows, whatever the
//! pause between two looks.
//! **Invariants.** A job that failed is an error; its targets' reasons are told.

use std::time::Duration;

use anyhow::{Result, ensure};
use hearth_protocol::api::cache::{Keep, Targets};
use hearth_protocol::api::image::Image;
use hearth_protocol::api::prewarm::{Prewarm, PrewarmCreate, PrewarmDetails};
use hearth_protocol::words::PrewarmState;

use super::Ground;
use super::race::{Contender, Outcome, watch};
use super::room::hash_of;
use super::site::{Site, location_name};

/// One prewarm.
pub(crate) struct OwnRace<'a, 'b> {
    site: &'a mut Site<'b>,
    image: &'a Image,
    hosts: Vec<usize>,
    /// What the copies must be; `None`: the agents' own checks suffice.
    hash: Option<blake3::Hash>,
    job: Option<Prewarm>,
    /// Stored bytes that moved, per host, at the last look.
    pub(crate) moved_bytes: Vec<u64>,
}

impl<'a, 'b> OwnRace<'a, 'b> {
    /// Of `image` to `hosts`.
    pub(crate) fn new(
        site: &'a mut Site<'b>,
        image: &'a Image,
        hosts: impl IntoIterator<Item = usize>,
        hash: Option<blake3::Hash>,
    ) -> Self {
        let hosts: Vec<usize> = hosts.into_iter().collect();
        let moved_bytes = vec![0; hosts.len()];
        Self { site, image, hosts, hash, job: None, moved_bytes }
    }
}

impl Contender for OwnRace<'_, '_> {
    async fn begin(&mut self) -> Result<()> {
        let to = self.hosts.iter().map(|host| location_name(*host)).collect();
        let body = PrewarmCreate {
            image: Some(self.image.id),
            targets: Targets { to, ..Targets::default() },
            keep: Keep::default(),
            ..PrewarmCreate::default()
        };
        self.job = Some(self.site.api.post("/prewarms", &body).await?);
        Ok(())
    }

    async fn done(&mut self) -> Result<Vec<Option<i64>>> {
        let Some(job) = &self.job else { return Ok(vec![None; self.hosts.len()]) };
        let details: PrewarmDetails = self.site.api.get(&format!("/prewarms/{}", job.id)).await?;
        let ended = matches!(details.prewarm.state, PrewarmState::Failed | PrewarmState::Cancelled);
        let reasons =
            || details.locations.iter().map(|at| (&at.location_name, &at.reason)).collect::<Vec<_>>();
        ensure!(!ended, "the prewarm ended as {}: {:?}", details.prewarm.state, reasons());
        let mut done = Vec::with_capacity(self.hosts.len());
        for (host, moved) in self.hosts.iter().zip(&mut self.moved_bytes) {
            let name = location_name(*host);
            let target = details.locations.iter().find(|target| target.location_name == name);
            *moved = target.map_or(0, |target| target.moved_bytes);
            let time = target.and_then(|target| target.done_at.as_deref()).map(str::parse::<jiff::Timestamp>);
            done.push(time.transpose()?.map(jiff::Timestamp::as_microsecond));
        }
        Ok(done)
    }

    fn kill(&mut self, host: usize) -> Result<()> {
        self.site.kill(host)
    }

    fn restart(&mut self, host: usize) -> Result<()> {
        self.site.restart(host)
    }

    async fn check(&mut self) -> Result<()> {
        let Some(hash) = self.hash else { return Ok(()) };
        for host in &self.hosts {
            let path = self.site.copy_path(*host, self.image)?;
            ensure!(hash_of(path).await? == hash, "the copy at host {host} is another one");
        }
        Ok(())
    }
}

/// One prewarm to some hosts, without faults: what was seen, and the stored bytes that moved to each of them.
pub(crate) async fn warm(
    ground: &Ground,
    site: &mut Site<'_>,
    image: &Image,
    hosts: impl IntoIterator<Item = usize>,
    limit: Duration,
) -> Result<(Outcome, Vec<u64>)> {
    let mut race = OwnRace::new(site, image, hosts, None);
    let outcome = watch(&ground.bed, &mut race, image.stored_bytes.unwrap_or(0), None, limit).await?;
    ensure!(
        outcome.missing().is_empty(),
        "{} was not at all hosts after {} s: {:?}",
        image.name,
        limit.as_secs(),
        outcome.done_s
    );
    Ok((outcome, race.moved_bytes))
}
