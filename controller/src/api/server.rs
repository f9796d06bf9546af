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
use super::once::Kept;
use super::routes::{Pace, Routes, Row};
use super::{
    cache, distributions, domains, download, events, fetch, grants, health, host_image_batch,
    host_image_cache, host_images, image_batch, image_edits, image_ends, image_export, image_list, images,
    join_tokens, launch, links, locations, login, openapi, operations, ownership, prewarm_groups, prewarms,
    projects, quotas, shares, system, tokens, upload, usage, users, variants,
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
    let publish = ownership::publishing(app.config.sharing.members_may_publish);
    let routes = Routes::new(app)
        .open(routes!(health::healthz))
        .open(routes!(health::readyz))
        .open(routes!(openapi::show))
        .open(routes!(fetch::fetch))
        .guarded(A::WhoAmI, quick, routes!(tokens::whoami))
        .creating(A::TokenCreate, Kept::Nothing, routes!(tokens::create))
        .guarded(A::TokenList, quick, routes!(tokens::list))
        .guarded(A::TokenRevoke, quick, routes!(tokens::revoke))
        .creating(A::ImageCreate, Kept::Answer, routes!(images::create))
        .guarded(A::ImageList, quick, routes!(image_list::list))
        .guarded(A::ImageList, quick, routes!(distributions::list))
        .guarded(A::ImageShow, quick, routes!(images::show))
        .guarded(A::ImageLaunch, quick, routes!(launch::launch))
        .guarded(A::ImageRetry, quick, routes!(images::retry))
        .guarded(A::CacheList, quick, routes!(images::cache))
        .guarded(A::ImageUpload, Pace::Stream, routes!(upload::upload))
        .guarded(A::ImageDownload, Pace::Stream, routes!(download::download))
        .guarded(A::ImageShow, quick, routes!(variants::list))
        .guarded(A::VariantCreate, quick, routes!(variants::create))
        .guarded(A::VariantDelete, quick, routes!(variants::delete))
        .guarded(A::ImageDownload, Pace::Stream, routes!(variants::download))
        .guarded(A::CacheList, quick, routes!(cache::list))
        .creating(A::CacheCreate, Kept::Answer, routes!(cache::create))
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
        .creating(A::JoinTokenCreate, Kept::Nothing, routes!(join_tokens::create))
        .guarded(A::JoinTokenList, quick, routes!(join_tokens::list))
        .guarded(A::JoinTokenRevoke, quick, routes!(join_tokens::revoke));
    let routes = routes
        .creating(A::PrewarmCreate, Kept::Answer, routes!(prewarms::create))
        .guarded(A::PrewarmList, quick, routes!(prewarms::list))
        .guarded(A::PrewarmList, quick, routes!(prewarms::show))
        .guarded(A::PrewarmSteer, quick, routes!(prewarms::pause))
        .guarded(A::PrewarmSteer, quick, routes!(prewarms::resume))
        .guarded(A::PrewarmSteer, quick, routes!(prewarms::cancel))
        .guarded(A::PrewarmSteer, quick, routes!(prewarms::retry))
        .guarded(A::OperationList, Pace::Stream, routes!(operations::list))
        .guarded(A::OperationList, Pace::Stream, routes!(operations::of_location))
        .guarded(A::OperationShow, quick, routes!(operations::show))
        .guarded(A::OperationVerify, Pace::Stream, routes!(operations::verify))
        .guarded(A::SystemShow, quick, routes!(system::show))
        .guarded(A::TransfersSteer, quick, routes!(system::stop))
        .guarded(A::TransfersSteer, quick, routes!(system::start))
        .guarded(A::EventRead, Pace::Stream, routes!(events::events));
    let routes = image_changes(files_and_links(routes));
    let routes = with_host_images(routes);
    let routes = sharing(routes, publish);
    let routes = people(routes);
    if public_metrics {
        routes.open(routes!(health::figures))
    } else {
        routes.guarded(A::MetricsRead, quick, routes!(health::figures))
    }
}

/// Files of lists, the log of an image, and links to its bytes.
fn files_and_links(routes: Routes) -> Routes {
    use Action as A;
    let quick = Pace::Quick;
    routes
        .guarded(A::ImageList, Pace::Stream, routes!(image_export::export))
        .guarded(A::ImageLog, Pace::Stream, routes!(operations::of_image))
        .creating(A::ImageLink, Kept::Nothing, routes!(links::create))
        .guarded(A::ImageLinkList, quick, routes!(links::list))
        .guarded(A::ImageLinkRevoke, quick, routes!(links::revoke))
}

/// What people change in images, and how images end.
fn image_changes(routes: Routes) -> Routes {
    use Action as A;
    let quick = Pace::Quick;
    routes
        .guarded(A::ImageUpdate, quick, routes!(image_edits::update))
        .guarded(A::ImageProtect, quick, routes!(image_edits::protect))
        .guarded(A::ImageUnprotect, quick, routes!(image_edits::unprotect))
        .guarded(A::ImageDeactivate, quick, routes!(image_edits::deactivate))
        .guarded(A::ImageReactivate, quick, routes!(image_edits::reactivate))
        .guarded(A::ImageDelete, quick, routes!(image_ends::delete))
        .guarded(A::ImageRestore, quick, routes!(image_ends::restore))
        .guarded(A::ImageCancel, quick, routes!(image_ends::cancel))
        // A hundred files may take a while to go; the number of images bounds it.
        .guarded(A::ImageBatch, Pace::Stream, routes!(image_batch::batch))
}

/// Host images, and the prewarm jobs of all their disks.
fn with_host_images(routes: Routes) -> Routes {
    use Action as A;
    let quick = Pace::Quick;
    routes
        .guarded(A::HostImageCreate, quick, routes!(host_images::create))
        .guarded(A::HostImageList, quick, routes!(host_images::list))
        .guarded(A::HostImageShow, quick, routes!(host_images::show))
        .guarded(A::HostImageUpdate, quick, routes!(host_images::update))
        .guarded(A::HostImageProtect, quick, routes!(host_images::protect))
        .guarded(A::HostImageProtect, quick, routes!(host_images::unprotect))
        .guarded(A::HostImageDelete, quick, routes!(host_images::delete))
        .guarded(A::HostImageProtect, quick, routes!(host_image_batch::protect))
        .guarded(A::HostImageProtect, quick, routes!(host_image_batch::unprotect))
        .guarded(A::HostImageDelete, quick, routes!(host_image_batch::delete))
        .guarded(A::CacheList, quick, routes!(host_image_cache::list))
        .guarded(A::PrewarmList, quick, routes!(prewarm_groups::show))
        .guarded(A::PrewarmSteer, quick, routes!(prewarm_groups::pause))
        .guarded(A::PrewarmSteer, quick, routes!(prewarm_groups::resume))
        .guarded(A::PrewarmSteer, quick, routes!(prewarm_groups::cancel))
        .guarded(A::PrewarmSteer, quick, routes!(prewarm_groups::retry))
}

/// Who else uses an image, whose it is, and what projects may have.
fn sharing(routes: Routes, publish: Action) -> Routes {
    use Action as A;
    let quick = Pace::Quick;
    routes
        .guarded(publish, quick, routes!(ownership::publish))
        .guarded(publish, quick, routes!(ownership::unpublish))
        .guarded(A::ImageFeature, quick, routes!(ownership::feature))
        .guarded(A::ImageFeature, quick, routes!(ownership::unfeature))
        .guarded(A::ImageOwner, quick, routes!(ownership::owner))
        .guarded(A::ShareList, quick, routes!(shares::list))
        .guarded(A::ShareCreate, quick, routes!(shares::create))
        .guarded(A::ShareRemove, quick, routes!(shares::remove))
        .guarded(A::ShareRemove, quick, routes!(shares::remove_many))
        .guarded(A::ShareAccept, quick, routes!(shares::accept))
        .guarded(A::ShareReject, quick, routes!(shares::reject))
        .guarded(A::QuotaShow, quick, routes!(quotas::show))
        .guarded(A::QuotaUpdate, quick, routes!(quotas::update))
        .guarded(A::UsageRead, quick, routes!(usage::report))
}

/// Tenants, users, what they may do, and how they come in.
fn people(routes: Routes) -> Routes {
    use Action as A;
    let quick = Pace::Quick;
    routes
        .open(routes!(login::login))
        .guarded(A::Logout, quick, routes!(login::logout))
        .guarded(A::PasswordChange, quick, routes!(login::change_password))
        .guarded(A::TokenRotate, quick, routes!(tokens::rotate))
        .guarded(A::DomainList, quick, routes!(domains::list))
        .guarded(A::DomainCreate, quick, routes!(domains::create))
        .guarded(A::DomainShow, quick, routes!(domains::show))
        .guarded(A::DomainUpdate, quick, routes!(domains::update))
        .guarded(A::DomainDelete, quick, routes!(domains::delete))
        .guarded(A::ProjectList, quick, routes!(projects::list))
        .guarded(A::ProjectCreate, quick, routes!(projects::create))
        .guarded(A::ProjectShow, quick, routes!(projects::show))
        .guarded(A::ProjectUpdate, quick, routes!(projects::update))
        .guarded(A::ProjectDelete, quick, routes!(projects::delete))
        .guarded(A::UserList, quick, routes!(users::list))
        .guarded(A::UserCreate, quick, routes!(users::create))
        .guarded(A::UserShow, quick, routes!(users::show))
        .guarded(A::UserUpdate, quick, routes!(users::update))
        .guarded(A::UserDelete, quick, routes!(users::delete))
        .guarded(A::UserPassword, quick, routes!(users::set_password))
        .guarded(A::GrantList, quick, routes!(grants::list))
        .guarded(A::GrantCreate, quick, routes!(grants::create))
        .guarded(A::GrantRevoke, quick, routes!(grants::revoke))
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
    server.serve(router.into_make_service_with_connect_info::<SocketAddr>()).await
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
