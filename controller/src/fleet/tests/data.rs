//! What agents may fetch, and how fast they must read.

use hearth_protocol::fault::FaultCode;
use hearth_protocol::manifest::ManifestRoot;
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::message::control::BadChunkV1;
use hearth_protocol::message::data::{
    BytesFollowV1, ChunkHeader, ChunksFollowV1, DataReply, DataRequest, Encoding, FaultV1, FetchV1, PageV1,
    RootV1,
};
use hearth_protocol::piece::Pieces;
use std::os::unix::fs::FileExt as _;

use super::*;
use crate::content::Unpacker;
use crate::db::intents::{Intent, IntentHold};

/// A location that is told to hold the image.
async fn placed(place: &Place, agent: &Agent) -> Live {
    want(place, agent).await;
    let mut live = agent.session(place).await;
    live.plan(|plan| plan.entries.iter().any(|entry| entry.content == place.content && entry.admitted)).await;
    live
}

pub(super) async fn want(place: &Place, agent: &Agent) {
    let intent = Intent::manual(place.image, place.content, agent.location(), IntentHold::Pinned);
    place.db.put_intents(&[intent], &Draft::system("cache.add")).await.unwrap();
}

/// Asks for something and reads what follows.
pub(super) async fn ask(live: &Live, request: DataRequest) -> Result<(DataReply, Vec<u8>), FaultV1> {
    let (mut writer, recv) = live.connection.open_bi().await.unwrap();
    send(&mut writer, &request).await.unwrap();
    let mut reader = FrameReader::new(recv, BODY_BYTES_MAX);
    let reply: DataReply = reader.expect(SOON).await.unwrap();
    let bytes = match &reply {
        DataReply::BytesFollow(follow) => follow.bytes,
        DataReply::ChunksFollow(follow) => follow.bytes,
        DataReply::Fault(fault) => return Err(fault.clone()),
        other => panic!("only agents answer {other:?}"),
    };
    let mut buffer = vec![0; bytes as usize];
    tokio::time::timeout(SOON, reader.stream().read_exact(&mut buffer)).await.unwrap().unwrap();
    Ok((reply, buffer))
}

/// Takes an answer's chunks apart and unpacks them.
fn unpacked(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut unpacker = Unpacker::new().unwrap();
    let mut chunks = Vec::new();
    while !bytes.is_empty() {
        let (header, rest) = bytes.split_at(ChunkHeader::BYTES);
        let header = ChunkHeader::parse(header.try_into().unwrap()).unwrap();
        let (stored, rest) = rest.split_at(header.stored_len as usize);
        let mut raw = Vec::new();
        assert!(unpacker.unpack(header.encoding, stored, 8192, &mut raw));
        chunks.push((header.chunk, raw));
        bytes = rest;
    }
    chunks
}

pub(super) fn fetch(content: ContentId, piece: u32, mask: &ChunkMask) -> DataRequest {
    DataRequest::Fetch(FetchV1 { content, piece, mask: mask.as_bytes().to_vec() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placed_content_is_fetched_whole_and_in_parts() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let live = placed(&place, &agent).await;
    let content = place.content;
    let (_, root) = ask(&live, DataRequest::Root(RootV1 { content })).await.unwrap();
    let root = ManifestRoot::decode_as(&root, content).unwrap();
    let (_, page) = ask(&live, DataRequest::Page(PageV1 { content, page: 0 })).await.unwrap();
    let page = root.decode_page(0, &page).unwrap();
    let mut pieces = Pieces::new(root.data_bytes());
    page.records().iter().for_each(|record| pieces.push(record.raw_len));
    let mut got = Vec::new();
    for piece in 0..pieces.len() {
        let range = pieces.chunks(piece).unwrap();
        let mask = ChunkMask::full(range.end - range.start);
        let (reply, bytes) = ask(&live, fetch(content, piece, &mask)).await.unwrap();
        let expected = ChunksFollowV1 { chunks: mask.count(), bytes: u32::try_from(bytes.len()).unwrap() };
        assert_eq!(reply, DataReply::ChunksFollow(expected));
        got.extend(unpacked(&bytes));
    }
    assert_eq!(got, (0..place.n_chunks).map(|n| (n, raw(n))).collect::<Vec<_>>());

    let range = pieces.chunks(1).unwrap();
    let mut some = ChunkMask::empty(range.end - range.start);
    [0, 1, 5, 40].into_iter().for_each(|chunk| some.insert(chunk));
    let (_, bytes) = ask(&live, fetch(content, 1, &some)).await.unwrap();
    let expected: Vec<_> = [0, 1, 5, 40].map(|n| (range.start + n, raw(range.start + n))).into();
    assert_eq!(unpacked(&bytes), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_placed_or_does_not_exist_is_refused() {
    let place = Place::new().await;
    let (holder, other) = (place.agent("cn-1").await, place.agent("cn-2").await);
    let live = placed(&place, &holder).await;
    let idle = other.session(&place).await;
    let content = place.content;
    let root = |content| DataRequest::Root(RootV1 { content });
    until("the idle agent's plan is made", || async {
        let refused = ask(&idle, root(content)).await.unwrap_err();
        refused.fault == FaultCode::NotPlaced
    })
    .await;
    let full = ChunkMask::full(128);
    for (request, expected) in [
        (root(ContentId::of(b"x")), FaultCode::NotPlaced),
        (DataRequest::Page(PageV1 { content, page: 1 }), FaultCode::NotFound),
        (fetch(content, 99, &full), FaultCode::NotFound),
        (fetch(content, 0, &ChunkMask::full(3)), FaultCode::Protocol),
        (fetch(content, 0, &ChunkMask::empty(128)), FaultCode::Protocol),
    ] {
        let refused = ask(&live, request.clone()).await.unwrap_err();
        assert_eq!(refused.fault, expected, "{request:?}: {}", refused.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_does_not_read_is_cut_off() {
    let place = Place::with(|config| config.stall = Duration::from_millis(300)).await;
    let agent = place.agent("cn-1").await;
    want(&place, &agent).await;
    let mut live = agent.greet(&place, agent.hello(), Some(64 * 1024)).await.unwrap();
    live.observe(Some(true), vec![]).await;
    live.plan(|plan| !plan.entries.is_empty()).await;
    let (mut writer, mut recv) = live.connection.open_bi().await.unwrap();
    writer.write_all(&frame(&fetch(place.content, 0, &ChunkMask::full(128)))).await.unwrap();
    let reset = tokio::time::timeout(SOON, recv.received_reset()).await.unwrap().unwrap();
    assert_eq!(reset, Some(VarInt::from_u32(FaultCode::Unreachable.number().into())));
    assert_eq!(place.fleet.inner.shared.slots.lock().unwrap().in_use(), 0, "its slot is free again");
    assert!(live.connection.close_reason().is_none(), "the session goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_takes_a_few_bytes_at_a_time_is_cut_off() {
    let place = Place::with(|config| config.stall = Duration::from_secs(1)).await;
    let agent = place.agent("cn-1").await;
    want(&place, &agent).await;
    // Room is told in eighths of the window: the sender sees every 64 bytes that are read.
    let mut live = agent.greet(&place, agent.hello(), Some(512)).await.unwrap();
    live.observe(Some(true), vec![]).await;
    live.plan(|plan| !plan.entries.is_empty()).await;
    let (mut writer, mut recv) = live.connection.open_bi().await.unwrap();
    writer.write_all(&frame(&fetch(place.content, 0, &ChunkMask::full(128)))).await.unwrap();
    let drip = async {
        let mut few = [0; 64];
        loop {
            match recv.read(&mut few).await {
                Ok(Some(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
                ended => return ended,
            }
        }
    };
    let ended = tokio::time::timeout(SOON, drip).await.unwrap();
    let reset = VarInt::from_u32(FaultCode::Unreachable.number().into());
    assert_eq!(ended, Err(quinn::ReadError::Reset(reset)));
    assert_eq!(place.fleet.inner.shared.slots.lock().unwrap().in_use(), 0, "its slot is free again");
    assert!(live.connection.close_reason().is_none(), "the session goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_fleet_serves_no_chunks() {
    let place = Place::new().await;
    let agent = place.agent("cn-1").await;
    let mut live = placed(&place, &agent).await;
    let op = || Draft::system("transfers.stop");
    place.db.set_setting(super::super::STOPPED_SETTING, "true", &op()).await.unwrap();
    live.plan(|plan| plan.stopped).await;
    let refused = ask(&live, fetch(place.content, 0, &ChunkMask::full(128))).await.unwrap_err();
    assert_eq!(refused.fault, FaultCode::Stopped);
    place.db.set_setting(super::super::STOPPED_SETTING, "false", &op()).await.unwrap();
    live.plan(|plan| !plan.stopped).await;
    ask(&live, fetch(place.content, 0, &ChunkMask::full(128))).await.unwrap();
}

/// The agent's side of mending: answers what the controller asks, from a good copy, until the session ends.
async fn hold(connection: Connection, root: bytes::Bytes, page: bytes::Bytes) {
    while let Ok((mut writer, recv)) = connection.accept_bi().await {
        let bytes = match FrameReader::new(recv, BODY_BYTES_MAX).expect(SOON).await.unwrap() {
            DataRequest::Root(_) => &root,
            DataRequest::Page(_) => &page,
            DataRequest::Fetch(fetch) => {
                give_chunks(&mut writer, &fetch).await;
                continue;
            }
            other => panic!("the controller asks for {other:?}"),
        };
        let follow = BytesFollowV1 { bytes: u32::try_from(bytes.len()).unwrap() };
        send(&mut writer, &DataReply::BytesFollow(follow)).await.unwrap();
        writer.write_all(bytes).await.unwrap();
        writer.finish().unwrap();
    }
}

async fn give_chunks(writer: &mut SendStream, fetch: &FetchV1) {
    // 128 chunks a piece, 44 in the last one.
    let mask = ChunkMask::from_bytes(&fetch.mask, if fetch.piece == 2 { 44 } else { 128 }).unwrap();
    let mut bytes = Vec::new();
    for chunk in mask.iter().map(|chunk| fetch.piece * 128 + chunk) {
        let header = ChunkHeader { chunk, encoding: Encoding::Raw, stored_len: 8192 };
        bytes.extend(header.encode());
        bytes.extend(raw(chunk));
    }
    let follow = ChunksFollowV1 { chunks: mask.count(), bytes: u32::try_from(bytes.len()).unwrap() };
    send(writer, &DataReply::ChunksFollow(follow)).await.unwrap();
    writer.write_all(&bytes).await.unwrap();
    writer.finish().unwrap();
}

/// Two locations: the first says it has the content and answers for it, the second is to fetch it.
async fn holder_and_asker(place: &Place) -> (Live, Live) {
    let (holder, asker) = (place.agent("cn-1").await, place.agent("cn-2").await);
    let mut held = placed(place, &holder).await;
    held.report_active(place.content).await;
    let live = placed(place, &asker).await;
    until("the holder is known", || async {
        place.fleet.inner.shared.picture.active_at(place.content) == [holder.location()]
    })
    .await;
    let object = place.store.open(place.content).unwrap();
    let (root, page) = (object.manifest_root(), object.manifest_page(0).unwrap());
    crate::task::spawn("holder", hold(held.connection.clone(), root, page));
    (held, live)
}

fn object_file(place: &Place, suffix: &str) -> std::fs::File {
    let id = place.content.to_string();
    let shard: String = id.chars().take(2).collect();
    let path = place.folder.path().join("objects").join(shard).join(format!("{id}{suffix}"));
    std::fs::OpenOptions::new().write(true).open(path).unwrap()
}

async fn until_mended(place: &Place) {
    until("the content is whole again", || async {
        !place.db.content(place.content).await.unwrap().unwrap().damaged
            && place.actions().await.contains(&"content.mended".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_chunk_is_mended_from_an_agent() {
    let place = Place::new().await;
    let (_held, mut live) = holder_and_asker(&place).await;
    // Chunk 1 is noise, stored as it is behind chunk 0.
    let before = place.store.open(place.content).unwrap().stored_chunks(0, 1).unwrap();
    let at = u64::from(before[0].stored_len) + 100;
    object_file(&place, "").write_all_at(b"bad", at).unwrap();
    assert!(!place.store.open(place.content).unwrap().verify_chunk(1).unwrap());
    live.say(BadChunkV1 { content: place.content, chunk: 1, source: None }).await;
    until_mended(&place).await;
    assert!(place.store.open(place.content).unwrap().verify_chunk(1).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_whose_index_is_damaged_is_made_again_from_an_agent() {
    let place = Place::new().await;
    std::fs::create_dir(place.folder.path().join("staging")).unwrap();
    let (_held, live) = holder_and_asker(&place).await;
    object_file(&place, ".index").write_all_at(b"bad", 200).unwrap();
    // Open files do not notice; a restarted controller would.
    place.store.close_files();
    let refused = ask(&live, fetch(place.content, 0, &ChunkMask::full(128))).await.unwrap_err();
    assert_eq!(refused.fault, FaultCode::Damaged);
    until_mended(&place).await;
    ask(&live, fetch(place.content, 0, &ChunkMask::full(128))).await.unwrap();
    let bad =
        place.store.open(place.content).unwrap().verify_all(1, &AtomicBool::new(false), &|_| ()).unwrap();
    assert_eq!(bad, [0_u32; 0]);
}
