//! The first and the last step of every import, plain or encrypted: the original's checksums, and the way into the store.

use std::sync::atomic::AtomicBool;

use hearth_protocol::api::image::Checksums;
use hearth_protocol::words::ImportStage;

use super::inspect::Inspection;
use super::job::{ImportError, ImportSpec, Imported, Ingest, Progress};
use crate::content::{Staged, Sums};
use crate::logic::catalog::first_mismatch;

/// A staged content and what it was made of.
pub(super) struct Made {
    pub(super) inspection: Inspection,
    pub(super) staged: Staged,
    pub(super) scan: Option<String>,
}

impl Ingest {
    /// The original's checksums, if they are what was expected.
    pub(super) fn expected_sums(&self, spec: &ImportSpec, cancel: &AtomicBool) -> Result<Sums, ImportError> {
        let original = self.originals.open(spec.image)?;
        let original = original.ok_or(ImportError::NoOriginal { image: spec.image })?;
        let sums = spec.sums.clone().map_or_else(|| original.sums_unless(cancel), Ok)?;
        compare(&spec.expected, &sums)?;
        Ok(sums)
    }

    /// Publishes what was made: the content is in the store from here on.
    pub(super) fn publish(
        &self,
        made: Made,
        sums: Sums,
        cancel: &AtomicBool,
        progress: &mut Progress<'_>,
    ) -> Result<Imported, ImportError> {
        let root = made.staged.root().clone();
        let stored_bytes = made.staged.stored_bytes();
        let published = self.content.publish(made.staged, cancel)?;
        progress(ImportStage::Checksumming, 100);
        Ok(Imported {
            format: made.inspection.format,
            content: root.content_id(),
            kind: root.kind(),
            virtual_bytes: root.raw_bytes(),
            data_bytes: root.data_bytes(),
            stored_bytes,
            n_chunks: root.n_chunks(),
            sums,
            partition_table: made.inspection.partition_table,
            warnings: made.inspection.warnings,
            scan: made.scan,
            published,
        })
    }
}

/// Compares whatever the uploader gave.
fn compare(expected: &Checksums, sums: &Sums) -> Result<(), ImportError> {
    let counted = sums.clone().into();
    let Some((algorithm, expected, got)) = first_mismatch(expected, &counted) else { return Ok(()) };
    Err(ImportError::Checksum { algorithm, expected: expected.to_owned(), got: got.to_owned() })
}
