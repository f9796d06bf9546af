//! Tests of the local socket: a real socket, a real store, the real client.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::message::control::Hold;
use hearth_protocol::words::ConsumerKind;
use tokio_util::sync::CancellationToken;

use super::client::{LocalCommand, ask, run};
use super::message::{Code, Refusal, Reply, Request};
use super::{Context, serve};
use crate::control::ask::AskError;
use crate::store::content::Content;
use crate::store::{ContentSpec, Store, StoreConfig, no_progress};

/// An agent's cache and socket.
struct Host {
    dir: tempfile::TempDir,
    store: Store,
    stop: CancellationToken,
}

#[derive(Debug)]
struct OneImage(ContentId);

impl Context for OneImage {
    fn contents_of(&self, name: &str) -> Vec<ContentId> {
        (name == "debian").then_some(self.0).into_iter().collect()
    }
    fn images_of(&self, content: ContentId) -> Vec<String> {
        (content == self.0).then(|| "debian".to_owned()).into_iter().collect()
    }
    fn want<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<ContentId, AskError>> {
        let text = "nobody may have it".to_owned();
        Box::pin(std::future::ready(Err(AskError::Refused { fault: FaultCode::NotFound, text })))
    }
    fn controller(&self) -> String {
        "connected".to_owned()
    }
}

impl Host {
    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    /// Asks on a thread of its own, as a script would.
    async fn ask(&self, request: Request) -> Result<Reply, Refusal> {
        let socket = self.socket();
        tokio::task::spawn_blocking(move || ask(&socket, &request)).await.unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn start(content: &Content) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(&StoreConfig::new(dir.path().join("cache"), 1 << 30)).unwrap();
    let stop = CancellationToken::new();
    let context = Arc::new(OneImage(content.content));
    let server = serve(&dir.path().join("agent.sock"), None, store.clone(), context, stop.clone()).unwrap();
    crate::task::spawn("local", server);
    Host { dir, store, stop }
}

fn spec(content: &Content) -> ContentSpec {
    let Content { content, raw_bytes, data_bytes, .. } = *content;
    ContentSpec { content, kind: hearth_protocol::words::ContentKind::Disk, raw_bytes, data_bytes }
}

/// Fetches at the pace of a network, so that a waiter waits.
fn fetch(store: &Store, content: &Content, pause: Duration) {
    let staging = store.begin(spec(content)).unwrap();
    staging.put_root(&content.root).unwrap();
    staging.put_page(0, &content.pages[0]).unwrap();
    for chunk in staging.prepare(&no_progress).unwrap().iter() {
        let record = staging.records(chunk..chunk + 1).unwrap()[0];
        staging.write_run(record.offset, &content.chunks[&record.offset]).unwrap();
        staging.mark_done(&[chunk]).unwrap();
        std::thread::sleep(pause);
    }
    staging.finish(&no_progress).unwrap();
}

fn code(result: Result<Reply, Refusal>) -> Code {
    result.unwrap_err().code
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_on_a_content_that_is_on_its_way_waits_and_gets_the_path() {
    let content = Content::disk(0..20);
    let host = start(&content);
    let target = || "debian".to_owned();
    assert_eq!(code(host.ask(Request::Path { target: target(), wait_s: 0 }).await), Code::NotFound);
    host.store.want(spec(&content));
    assert_eq!(code(host.ask(Request::Path { target: target(), wait_s: 0 }).await), Code::NotActive);
    let (store, other) = (host.store.clone(), content.clone());
    let fetching = tokio::task::spawn_blocking(move || fetch(&store, &other, Duration::from_millis(5)));
    let request =
        Request::Lease { target: target(), kind: ConsumerKind::Vm, consumer: "web".to_owned(), wait_s: 60 };
    let Ok(Reply::Lease { lease, path }) = host.ask(request).await else { panic!("no lease") };
    assert_eq!(std::fs::read(path).unwrap(), content.raw());
    fetching.await.unwrap();
    let in_use = host.ask(Request::Evict { target: target() }).await.unwrap_err();
    assert_eq!(in_use.code, Code::InUse);
    assert!(in_use.message.contains("leased by vm web"), "{}", in_use.message);
    host.ask(Request::Release { lease: lease.lease }).await.unwrap();
    assert_eq!(code(host.ask(Request::Release { lease: lease.lease }).await), Code::NotFound);
    host.ask(Request::Evict { target: target() }).await.unwrap();
    assert_eq!(host.store.entries(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_an_unknown_image_hears_what_the_controller_says_of_it() {
    let host = start(&Content::disk(0..5));
    let path = |wait_s| Request::Path { target: "other".to_owned(), wait_s };
    let without = host.ask(path(0)).await.unwrap_err();
    assert!(!without.message.contains("nobody may have it"), "who does not wait asks nobody: {without:?}");
    let refused = host.ask(path(5)).await.unwrap_err();
    assert_eq!(refused.code, Code::NotFound);
    assert!(refused.message.contains("nobody may have it"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_runs_out_gives_its_lease_back() {
    let content = Content::disk(0..5);
    let host = start(&content);
    host.store.want(spec(&content));
    let target = content.content.to_string();
    let request = Request::Lease { target, kind: ConsumerKind::Vm, consumer: "web".to_owned(), wait_s: 1 };
    assert_eq!(code(host.ask(request).await), Code::NotActive);
    assert_eq!(host.store.leases(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_pin_keeps_an_entry_and_verify_hashes_it() {
    let content = Content::disk(0..5);
    let host = start(&content);
    fetch(&host.store, &content, Duration::ZERO);
    let target = || content.content.to_string().chars().take(12).collect::<String>();
    host.ask(Request::Pin { target: target(), pinned: true }).await.unwrap();
    assert_eq!(code(host.ask(Request::Evict { target: target() }).await), Code::InUse);
    host.ask(Request::Verify { target: target() }).await.unwrap();
    host.ask(Request::Pin { target: target(), pinned: false }).await.unwrap();
    let Ok(Reply::Status(status)) = host.ask(Request::Status { target: None }).await else {
        panic!("no status")
    };
    let entry = &status.entries[0];
    assert_eq!((entry.status.as_str(), entry.pinned, entry.hold), ("active", false, Hold::Released));
    assert_eq!(entry.images, ["debian"]);
    host.ask(Request::Evict { target: target() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_endless_lines_are_refused_and_the_agent_lives() {
    use std::io::{Read as _, Write as _};
    let content = Content::disk(0..5);
    let host = start(&content);
    for garbage in
        [b"{}\n".to_vec(), b"\xff\xfe\n".to_vec(), vec![b'x'; 100_000], b"{\"op\":\"x\"}\n".to_vec()]
    {
        let socket = host.socket();
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
            // The agent may hang up in the middle of an endless line.
            let written = stream.write_all(&garbage);
            drop(written);
            let mut answer = [0; 8];
            stream.read(&mut answer).map_or(0, |n| n)
        });
        answer.await.unwrap();
    }
    assert!(matches!(host.ask(Request::Leases {}).await, Ok(Reply::Leases { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_print_what_scripts_need_and_exit_as_documented() {
    let content = Content::disk(0..5);
    let host = start(&content);
    fetch(&host.store, &content, Duration::ZERO);
    let (socket, gone) = (host.socket(), host.dir.path().join("nobody.sock"));
    tokio::task::spawn_blocking(move || {
        let check = |command: &LocalCommand, socket: &PathBuf, expected: u8| {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            assert_eq!(run(command, socket, &mut out, &mut err).unwrap(), expected, "{command:?}");
            assert_eq!(err.is_empty(), expected == 0);
            String::from_utf8(out).unwrap()
        };
        let target = || "debian".to_owned();
        let path = check(&LocalCommand::Path { target: target(), wait: None }, &socket, 0);
        assert_eq!(std::fs::read(path.trim_end()).unwrap(), content.raw());
        let lease = LocalCommand::Lease {
            target: target(),
            consumer: "web".to_owned(),
            kind: ConsumerKind::Vm,
            wait: None,
            json: false,
        };
        let leased = check(&lease, &socket, 0);
        assert_eq!(leased.lines().last(), path.lines().last());
        check(&LocalCommand::Evict { target: target() }, &socket, 5);
        let status = check(&LocalCommand::Status { target: None, json: false }, &socket, 0);
        assert!(status.contains("active") && status.contains("debian"), "{status}");
        check(&LocalCommand::Path { target: "nope".to_owned(), wait: None }, &socket, 3);
        check(&LocalCommand::Leases { json: true }, &gone, 6);
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_served_is_not_taken_over_and_a_dead_one_is() {
    let content = Content::disk(0..5);
    let host = start(&content);
    let again = |stop| serve(&host.socket(), None, host.store.clone(), Arc::new(super::NoContext), stop);
    assert!(matches!(again(host.stop.clone()).map(|_| ()), Err(super::LocalError::Taken { .. })));
    let dead = host.dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let context = Arc::new(super::NoContext);
    assert!(serve(&dead, None, host.store.clone(), context, host.stop.clone()).is_ok());
}
