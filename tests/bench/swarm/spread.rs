//! `plain` and `crash`: a random image to empty hosts, by every contender.
//!
//! **What.** First one host alone gets another image of the same size: what one link carries, and so the bound. Then all get
//! the image, by Hearth, by curl and by BitTorrent. In `crash` hosts die and links break at half of the bytes.
//! **Why random bytes.** They do not compress, so that bytes of the image and bytes on the wire compare.
//! **Invariants.** Contenders take turns within a round. Every copy is hashed at the end and must be the image.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use hearth_protocol::api::image::Image;

use super::Ground;
use super::figures::{Line, print_faults, print_head, print_line, print_medians};
use super::peers::{Aria, Curl};
use super::prewarm::{OwnRace, warm};
use super::race::{Contender, Faults, Outcome, watch};
use super::site::{Caps, Site};

/// What any run may take beside twice what curl needs.
const LIMIT_SPARE: Duration = Duration::from_secs(180);

/// An image file.
struct Source<'a> {
    path: &'a Path,
    hash: blake3::Hash,
}

/// Runs all rounds.
pub(crate) async fn run(ground: &Ground, crash: bool) -> Result<()> {
    let settings = &ground.settings;
    ensure!(!crash || settings.hosts >= 4, "crash: HOSTS is 4 or more");
    let faults = crash.then(|| Faults::among(settings.hosts));
    let (path, hash) = ground.room.random_file("image.raw", settings.image_bytes)?;
    let source = Source { path: &path, hash };
    if let Some(faults) = &faults {
        println!("at half of the bytes, for 5 s: hosts {:?} killed, links {:?} cut", faults.kill, faults.cut);
    }
    print_head();
    let mut lines: Vec<Line> = Vec::new();
    for round in 1..=settings.rounds {
        // The bound of a round without Hearth is what the link is set to.
        let mut bound_s = settings.image_bytes as f64 * 8e-6 / f64::from(settings.rate_mbit);
        for name in super::race::NAMES.into_iter().filter(|name| settings.takes_part(name)) {
            let outcome = match name {
                "hearth" => {
                    let (measured_s, outcome) = own(ground, &source, faults.as_ref()).await?;
                    bound_s = measured_s;
                    outcome
                }
                "curl" => {
                    race(ground, &mut Curl::prepare(ground, source.path, hash).await?, faults.as_ref())
                        .await?
                }
                _ => {
                    race(ground, &mut Aria::prepare(ground, source.path, hash).await?, faults.as_ref())
                        .await?
                }
            };
            let line = Line { round, name, outcome, image_bytes: settings.image_bytes, bound_s };
            print_line(&line);
            if let Some(faults) = &faults {
                print_faults(&line, faults);
            }
            lines.push(line);
        }
    }
    print_medians(&lines, &faults.unwrap_or_default());
    Ok(())
}

/// The seconds of one host alone, and what was seen with all.
async fn own(ground: &Ground, source: &Source<'_>, faults: Option<&Faults>) -> Result<(f64, Outcome)> {
    let settings = &ground.settings;
    let mut site = Site::start(ground, Caps::of_links(settings)).await?;
    let alone = import_random(ground, &site).await?;
    let image = site.import(source.path, "image").await?;
    let (seen, _) = warm(ground, &mut site, &alone, [1], limit(ground)).await?;
    let alone_s = seen.done_s[0].unwrap_or(f64::NAN);
    println!(
        "{:14} one host alone: {alone_s:.2} s, {:.1} Mbit/s of image over its link",
        "",
        settings.image_bytes as f64 * 8e-6 / alone_s
    );
    let mut own = OwnRace::new(&mut site, &image, 1..=settings.hosts, Some(source.hash));
    Ok((alone_s, race(ground, &mut own, faults).await?))
}

/// Another image of the same size, so that nobody has a part of the one that is measured.
async fn import_random(ground: &Ground, site: &Site<'_>) -> Result<Image> {
    let (path, _) = ground.room.random_file("alone.raw", ground.settings.image_bytes)?;
    let image = site.import(&path, "alone").await?;
    std::fs::remove_file(path)?;
    Ok(image)
}

async fn race(ground: &Ground, contender: &mut impl Contender, faults: Option<&Faults>) -> Result<Outcome> {
    let outcome = watch(&ground.bed, contender, ground.settings.image_bytes, faults, limit(ground)).await?;
    if outcome.missing().is_empty() {
        contender.check().await?;
    }
    Ok(outcome)
}

fn limit(ground: &Ground) -> Duration {
    let settings = &ground.settings;
    let one_s = settings.image_bytes as f64 * 8e-6 / f64::from(settings.rate_mbit);
    LIMIT_SPARE + Duration::from_secs_f64(2.0 * one_s * settings.hosts as f64)
}
