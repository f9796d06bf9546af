//! Makes a whole content again from an agent that has it verified on disk.
//!
//! **What.** The manifest and then every piece are fetched over the agent's session, checked, packed and published in the
//! place of the damaged files.
//! **Why two walks over the manifest.** A request names a piece, and a piece may span two pages: the cut is computed
//! first, from lengths alone, so that nothing but the cut stays in memory.
//! **Invariants.** What is published has the content id that was asked for: root, pages and chunks are checked on the way.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use hearth_protocol::digest::ContentId;
use hearth_protocol::manifest::{ChunkRecord, ManifestRoot, PAGE_BYTES_MAX, ROOT_BYTES_MAX};
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::message::data::{DataRequest, PageV1, RootV1};
use hearth_protocol::piece::Pieces;
use tokio::runtime::Handle;

use super::Shared;
use super::ask::{self, AskError, Want};
use super::registry::Session;
use crate::content::{ContentError, ContentSource, restage};

/// Why an agent could not help.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemakeError {
    /// It did not send what was asked for.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// What came is not the content, or cannot be stored.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The thread that stored it panicked.
    #[error("the thread that stored it panicked")]
    Panicked,
}

/// Makes `content` again from the agent of `session`. Takes as long as the content takes to travel.
///
/// # Errors
/// [`RemakeError`]; nothing has changed then.
pub(super) async fn from_agent(
    shared: &Arc<Shared>,
    session: Arc<Session>,
    content: ContentId,
) -> Result<(), RemakeError> {
    let (root, pieces) = cut(&session, content).await?;
    let (store, runtime) = (Arc::clone(&shared.store), Handle::current());
    let work = move || {
        let staging = store.staging(content);
        let mut source = Source { session, runtime, content, root, pieces, asked: None };
        let staged = restage(content, &mut source, &staging).map_err(|error| match source.asked.take() {
            Some(asked) => RemakeError::Ask(asked),
            None => RemakeError::Content(error),
        })?;
        store.publish(staged, &AtomicBool::new(false))?;
        Ok(())
    };
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(RemakeError::Panicked))
}

/// The checked root, encoded, and the cut into pieces.
async fn cut(session: &Session, content: ContentId) -> Result<(Bytes, Pieces), RemakeError> {
    let bytes = ask::bytes(session, DataRequest::Root(RootV1 { content }), ROOT_BYTES_MAX).await?;
    let root = ManifestRoot::decode_as(&bytes, content).map_err(ContentError::Manifest)?;
    let mut pieces = Pieces::new(root.data_bytes());
    for page in 0..root.n_pages() {
        let request = DataRequest::Page(PageV1 { content, page });
        let encoded = ask::bytes(session, request, PAGE_BYTES_MAX).await?;
        let page = root.decode_page(page, &encoded).map_err(ContentError::Manifest)?;
        page.records().iter().for_each(|record| pieces.push(record.raw_len));
    }
    Ok((bytes, pieces))
}

/// An agent as a source of parts. One chunk per request: a whole content is mended so rarely that a round trip per chunk
/// is a fair price for not holding pieces and their records.
struct Source {
    session: Arc<Session>,
    runtime: Handle,
    content: ContentId,
    root: Bytes,
    pieces: Pieces,
    /// Why the last request failed; the store's error says less.
    asked: Option<AskError>,
}

impl Source {
    fn failed(&mut self, error: AskError) -> ContentError {
        self.asked = Some(error);
        ContentError::Damaged { content: self.content, part: "agent's copy" }
    }
}

impl ContentSource for Source {
    fn root(&mut self) -> Result<Bytes, ContentError> {
        Ok(self.root.clone())
    }

    fn page(&mut self, index: u32) -> Result<Bytes, ContentError> {
        let request = DataRequest::Page(PageV1 { content: self.content, page: index });
        let page = self.runtime.block_on(ask::bytes(&self.session, request, PAGE_BYTES_MAX));
        page.map_err(|error| self.failed(error))
    }

    fn chunk(&mut self, index: u32, record: &ChunkRecord) -> Result<Bytes, ContentError> {
        let of_piece =
            self.pieces.piece_of(index).and_then(|piece| Some((piece, self.pieces.chunks(piece)?)));
        let Some((piece, range)) = of_piece else {
            return Err(self.failed(AskError::WrongAnswer));
        };
        let mut mask = ChunkMask::empty(range.end - range.start);
        mask.insert(index - range.start);
        let want = Want {
            content: self.content,
            piece,
            first: range.start,
            mask,
            records: std::slice::from_ref(record),
        };
        let chunks = self.runtime.block_on(ask::chunks(&self.session, &want));
        let mut chunks = chunks.map_err(|error| self.failed(error))?;
        chunks.pop().ok_or_else(|| self.failed(AskError::WrongAnswer))
    }
}
