//! The HTTPS listener: who may connect, for how long, with how much.
//!
//! **What.** [`build`] registers every route; [`Server::start`] listens with the controller's certificate.
//!
//! **Why limits at the socket.** Threat 16: a client that opens connections and says nothing, or reads nothing. Counts,
//! handshakes, heads and silent peers are bounded here, before any handler runs.
//!
//! **Invariants.** TLS 1.3 only. Bytes that are no TLS, no HTTP or no request end their own connection and nothing else.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum_server::accept::Accept;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use futures::future::{BoxFuture, FutureExt as _};
use hyper_util::rt::TokioTimer;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use utoipa_axum::routes;

use super::app::App;
use super::linger::Linger;
use super::routes::{Pace, Routes, Row};
use super::{
    cache, download, events, health, images, join_tokens, locations, openapi, operations, prewarms, sources,
    system, tokens, upload, upload_form, uploads,
};
use crate::logic::authz::Action;
use crate::task;

/// Connections at once: each costs about 50 KiB before it has said anything.
pub const CONNECTIONS_MAX: usize = 1024;
/// Longest TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Longest time for the head of a request, and for silence between two.
const HEAD_TIME_MAX: Duration = Duration::from_secs(30);
/// Largest head of an HTTP/2 request (design: 16 KiB). The buffer of HTTP/1, through which uploads are read, is four times
/// as large and bounds a head there.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Streams of one HTTP/2 connection.
const STREAMS_MAX: u32 = 64;
/// Bytes that a peer may leave unacknowledged for this long, a stuck reader for example.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(120);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Time that running calls get when the controller stops.
pub const DRAIN_MAX: Duration = Duration::from_secs(20);

/// Every route, each with its row in the rights table.
#[must_use]
pub fn build(app: App) -> Routes {
    use Action as A;
    let quick = Pace::Quick;
    let public_metrics = app.config.metrics_public;
    let routes = Routes::new(app)
        .open(routes!(health::healthz))
        .open(routes!(health::readyz))
        .open(routes!(openapi::show))
        .guarded(A::WhoAmI, quick, routes!(tokens::whoami))
        .guarded(A::TokenCreate, quick, routes!(tokens::create))
        .guarded(A::TokenList, quick, routes!(tokens::list))
        .guarded(A::TokenRevoke, quick, routes!(tokens::revoke))
        .guarded(A::ImageCreate, quick, routes!(images::create))
        .guarded(A::ImageList, quick, routes!(images::list))
        .guarded(A::ImageShow, quick, routes!(images::show))
        .guarded(A::ImageDelete, quick, routes!(images::delete))
        .guarded(A::ImageRetry, quick, routes!(images::retry))
        .guarded(A::CacheList, quick, routes!(images::cache))
        .guarded(A::ImageUpload, Pace::Stream, routes!(upload::upload))
        .guarded(A::ImageUpload, Pace::Stream, routes!(upload_form::form))
        .guarded(A::ImageUpload, quick, routes!(uploads::open))
        .guarded(A::ImageUpload, quick, routes!(uploads::list))
        .guarded(A::ImageUpload, quick, routes!(uploads::show))
        .guarded(A::ImageUpload, Pace::Stream, routes!(uploads::append))
        .guarded(A::ImageUpload, quick, routes!(uploads::abort))
        .guarded(A::ImageFetch, quick, routes!(sources::import))
        .guarded(A::SourceCheck, quick, routes!(sources::check))
        .guarded(A::ImageDownload, Pace::Stream, routes!(download::download))
        .guarded(A::CacheList, quick, routes!(cache::list))
        .guarded(A::CacheCreate, quick, routes!(cache::create))
        .guarded(A::CacheRemove, quick, routes!(cache::remove))
        .guarded(A::CachePin, quick, routes!(cache::pin))
        .guarded(A::CachePin, quick, routes!(cache::unpin))
        .guarded(A::LocationList, quick, routes!(locations::list))
        .guarded(A::LocationList, quick, routes!(locations::show))
        .guarded(A::LocationList, quick, routes!(locations::cache))
        .guarded(A::LocationUpdate, quick, routes!(locations::update))
        .guarded(A::LocationUpdate, quick, routes!(locations::drain))
        .guarded(A::LocationUpdate, quick, routes!(locations::undrain))
        .guarded(A::LocationRemove, quick, routes!(locations::remove))
        .guarded(A::JoinTokenCreate, quick, routes!(join_tokens::create))
        .guarded(A::JoinTokenList, quick, routes!(join_tokens::list))
        .guarded(A::JoinTokenRevoke, quick, routes!(join_tokens::revoke));
    let routes = routes
        .guarded(A::PrewarmCreate, quick, routes!(prewarms::create))
        .guarded(A::PrewarmList, quick, routes!(prewarms::list))
        .guarded(A::PrewarmList, quick, routes!(prewarms::show))
        .guarded(A::PrewarmSteer, quick, routes!(prewarms::pause))
        .guarded(A::PrewarmSteer, quick, routes!(prewarms::resume))
        .guarded(A::PrewarmSteer, quick, routes!(prewarms::cancel))
        .guarded(A::PrewarmSteer, quick, routes!(prewarms::retry))
        .guarded(A::OperationList, quick, routes!(operations::list))
        .guarded(A::OperationVerify, Pace::Stream, routes!(operations::verify))
        .guarded(A::SystemShow, quick, routes!(system::show))
        .guarded(A::TransfersSteer, quick, routes!(system::stop))
        .guarded(A::TransfersSteer, quick, routes!(system::start))
        .guarded(A::EventRead, Pace::Stream, routes!(events::events));
    if public_metrics {
        routes.open(routes!(health::figures))
    } else {
        routes.guarded(A::MetricsRead, quick, routes!(health::figures))
    }
}

/// The listener that runs.
#[derive(Debug)]
pub struct Server {
    /// Its address; with port 0 in the configuration, the port that was given.
    pub address: SocketAddr,
    /// Every route.
    pub table: Vec<Row>,
    handle: axum_server::Handle<SocketAddr>,
    task: tokio::task::JoinHandle<io::Result<()>>,
}

impl Server {
    /// Listens and serves.
    ///
    /// # Errors
    /// The address cannot be had.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(app: App, tls: Arc<rustls::ServerConfig>) -> io::Result<Self> {
        let listener = listen(app.config.listen_https)?;
        let address = listener.local_addr()?;
        let routes = build(app);
        let table = routes.table().to_vec();
        let (router, text) = routes.done();
        openapi::publish(&text);
        let handle = axum_server::Handle::new();
        let task = task::spawn("https", serve(listener, tls, handle.clone(), router));
        Ok(Self { address, table, handle, task })
    }

    /// Takes no new connection, lets calls that run end, and waits for them, at most [`DRAIN_MAX`].
    pub async fn stop(self) {
        self.handle.graceful_shutdown(Some(DRAIN_MAX));
        match self.task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the HTTPS listener failed"),
            Err(error) => tracing::error!(%error, "the HTTPS listener ended"),
        }
    }

    /// Waits until the listener ends by itself, which it should not.
    ///
    /// # Errors
    /// Why it ended.
    pub async fn failed(&mut self) -> io::Result<()> {
        (&mut self.task).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// A socket whose connections do not live on silence.
fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

async fn serve(
    listener: std::net::TcpListener,
    tls: Arc<rustls::ServerConfig>,
    handle: axum_server::Handle<SocketAddr>,
    router: Router,
) -> io::Result<()> {
    let counted = Counted { places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };
    let acceptor = RustlsAcceptor::new(RustlsConfig::from_config(tls)).handshake_timeout(HANDSHAKE_MAX);
    let mut server = axum_server::from_tcp(listener)?.acceptor(acceptor.acceptor(counted)).handle(handle);
    let http = server.http_builder();
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIME_MAX).max_buf_size(HEAD_BYTES_MAX * 4);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).expect("16 KiB fit"))
        .keep_alive_interval(HEAD_TIME_MAX)
        .keep_alive_timeout(HEAD_TIME_MAX);
    server.serve(router.into_make_service()).await
}

/// Gives each connection a place, or closes it at once when all are taken.
#[derive(Clone, Debug)]
struct Counted {
    places: Arc<Semaphore>,
}

impl<S: Send + 'static> Accept<TcpStream, S> for Counted {
    type Stream = Linger<TcpStream>;
    type Service = Placed<S>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Placed<S>)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let place = self.places.clone().try_acquire_owned();
        async move {
            let place = place.map_err(|_| io::Error::other("too many connections"))?;
            stream.set_nodelay(true)?;
            let socket = SockRef::from(&stream);
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(HEAD_TIME_MAX))?;
            socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
            Ok((Linger::new(stream), Placed { service, _place: Arc::new(place) }))
        }
        .boxed()
    }
}

/// A service that holds its connection's place.
#[derive(Clone, Debug)]
struct Placed<S> {
    service: S,
    _place: Arc<OwnedSemaphorePermit>,
}

impl<R, S: tower::Service<R>> tower::Service<R> for Placed<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: R) -> S::Future {
        self.service.call(request)
    }
}
