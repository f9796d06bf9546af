//! Every promise of the store, on both engines.
//!
//! Each test runs twice, as `sqlite::NAME` and `postgres::NAME`; see [`engines`] for what PostgreSQL needs.

#![expect(clippy::unwrap_used, reason = "helpers of a test binary; a failed unwrap is a failed test")]

mod archive;
mod catalog;
mod chain;
mod engines;
mod fixture;
mod fleet;
mod forgetting;
mod host_images;
mod image_lists;
mod jobs;
mod keys;
mod people;
mod placements;
mod plans;
mod quotas;
mod recycle;
mod safety;
mod search;
mod sharing;
mod stranded;
mod upgrade;
mod uploads;
mod variants;
mod worlds;

/// Runs each function once per engine.
macro_rules! on_both_engines {
    ($($name:ident)*) => {
        mod sqlite {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::engines::Place::sqlite()).await;
            }
        )*}
        mod postgres {$(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::engines::Place::postgres().await).await;
            }
        )*}
    };
}
pub(crate) use on_both_engines;
