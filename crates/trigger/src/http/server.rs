//! The server: connections in, requests out to their apps, an orderly end.
//!
//! One thread accepts, from all listeners, and hands each connection to the worker
//! with the fewest.
//! Each worker is a thread with a runtime of its own; a connection, its requests
//! and their guests stay on it, so that nothing is shared between cores on the
//! way from the socket to the guest. Responses that are ready at once are written
//! together ([`super::gather`]).
//!
//! # The end
//!
//! On shutdown the listener takes what the kernel has already accepted and
//! closes. Connections get a moment in which each response tells its client to
//! close ([`LINGER`]), so that a request that is on its way is not cut off; then
//! idle connections are closed and running requests have the grace period.
//!
//! A server whose listeners were handed to a successor leaves the kernel's queue to
//! that, and has time: idle connections get [`HANDOVER_LINGER`] for a last request.

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpStream as StdTcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use futures::{FutureExt as _, future::join_all};
use http::{HeaderValue, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    app::BodyLimits,
    apps::{Apps, Found},
    body::{RequestBody, ResponseBody},
    cores,
    front::{self, Arrival, Decision, Front, Observation, Observer},
    gather::{self, Gathered},
    listener::Listener,
    shape::Connection,
    tls::{SelectTls, TlsChoice},
};
use crate::Error;

/// How long a TLS handshake may take, beside [`TLS_WAIT_LIMIT`].
const TLS_HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// How long a handshake may wait for a certificate that is being obtained. Authorities
/// answer within seconds; clients give up after some ten.
const TLS_WAIT_LIMIT: Duration = Duration::from_secs(30);

/// How long clients have to learn from a response that the server is closing.
const LINGER: Duration = Duration::from_millis(500);

/// The same when a successor has the listeners, so that nobody waits for the address.
/// Clients that reuse a connection after more than this are rare, and know that an idle
/// connection may be closed.
const HANDOVER_LINGER: Duration = Duration::from_secs(10);

/// Pause after the operating system had no descriptor for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The shortest time between two looks for idle instances.
const MIN_SWEEP: Duration = Duration::from_millis(10);

/// Streams that one HTTP/2 connection may have open.
const HTTP2_MAX_STREAMS_COUNT: u32 = 256;

/// Memory for a request's header block in HTTP/2.
const HTTP2_MAX_HEADER_BYTES: u32 = 64 << 10;

/// How often an HTTP/2 client is asked whether it is still there.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(30);

/// How long it has to answer.
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// A handshake with this protocol is all that an authority wants of its connection
/// (RFC 8737).
const ACME_PROTOCOL: &[u8] = b"acme-tls/1";

/// What every HTTP/2 connection begins with.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a server puts up with.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Connections open at once; more wait in the kernel's queue.
    pub max_connections_count: usize,
    /// How long a client may take to send a request's header; also how long a
    /// connection may be idle between requests.
    pub header_timeout: Duration,
    /// How long a client may stall while it sends a body.
    pub body_stall_timeout: Duration,
    /// Memory for a request line and header block in HTTP/1.1.
    pub max_header_bytes: usize,
    /// The largest body of a request.
    pub max_body_bytes: u64,
    /// How long running requests may go on after a signal to stop.
    pub grace_period: Duration,
}

impl Default for ServerConfig {
    /// What suits a server on the open internet.
    fn default() -> Self {
        Self {
            max_connections_count: 10_000,
            // Longer than the 60 seconds after which common load balancers close
            // idle connections themselves.
            header_timeout: Duration::from_secs(75),
            body_stall_timeout: Duration::from_secs(60),
            max_header_bytes: 64 << 10,
            max_body_bytes: 1 << 30,
            grace_period: Duration::from_secs(30),
        }
    }
}

/// A server that has its addresses but does not answer yet.
pub struct Server {
    config: ServerConfig,
    listeners: Vec<Listener>,
    front: Option<Arc<dyn Front>>,
    observer: Option<Arc<dyn Observer>>,
}

/// Why a server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nobody listens any more.
    Stop,
    /// Another process has the same sockets and accepts from now on.
    HandedOver,
}

/// What a worker thread needs for each connection.
struct Worker {
    apps: Arc<dyn Apps>,
    config: ServerConfig,
    front: Option<Arc<dyn Front>>,
    observer: Option<Arc<dyn Observer>>,
    /// The server is ending, as each response tells its client.
    is_draining: Arc<AtomicBool>,
    /// The server is ending: responses close, idle connections end after a moment.
    draining: CancellationToken,
    /// Idle connections end now.
    closing: CancellationToken,
}

/// A connection on its way to a worker.
struct Accepted {
    stream: StdTcpStream,
    client: SocketAddr,
    tls: Option<Arc<dyn SelectTls>>,
    load: LoadGuard,
    _permit: OwnedSemaphorePermit,
}

/// Counts a worker's connections.
struct LoadGuard(Arc<AtomicUsize>);

impl LoadGuard {
    fn new(load: &Arc<AtomicUsize>) -> Self {
        load.fetch_add(1, Ordering::Relaxed);
        Self(load.clone())
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    /// A server with these listeners.
    pub fn new(config: ServerConfig, listeners: Vec<Listener>) -> Self {
        Self { config, listeners, front: None, observer: None }
    }

    /// Puts `front` before the apps.
    #[must_use]
    pub fn front(self, front: Arc<dyn Front>) -> Self {
        Self { front: Some(front), ..self }
    }

    /// Tells `observer` how requests end.
    #[must_use]
    pub fn observer(self, observer: Arc<dyn Observer>) -> Self {
        Self { observer: Some(observer), ..self }
    }

    /// Where it listens.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Answers requests until `shutdown` resolves, then ends in order. Blocks.
    ///
    /// # Errors
    /// [`Error::Start`] if threads or runtimes cannot be made.
    pub fn run(self, apps: Arc<dyn Apps>, shutdown: impl Future<Output = Ending>) -> Result<(), Error> {
        let start_error = |cause| Error::Start { cause };
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(start_error)?;
        let is_draining = Arc::new(AtomicBool::new(false));
        let draining = CancellationToken::new();
        let closing = CancellationToken::new();
        let connections = TaskTracker::new();
        let threads_count = wisp_engine::cores_count();
        let mut workers = Vec::with_capacity(threads_count);
        for number in 0..threads_count {
            let worker = Worker {
                apps: apps.clone(),
                config: self.config.clone(),
                front: self.front.clone(),
                observer: self.observer.clone(),
                is_draining: is_draining.clone(),
                draining: draining.clone(),
                closing: closing.clone(),
            };
            // Unbounded in type only: what is in it holds a connection permit.
            let (sender, receiver) = mpsc::unbounded_channel();
            let tracker = connections.clone();
            let thread = thread::Builder::new()
                .name(format!("wisp-worker-{number}"))
                .spawn(move || worker.run(receiver, tracker))
                .map_err(start_error)?;
            workers.push((sender, Arc::new(AtomicUsize::new(0)), thread));
        }

        runtime.block_on(async {
            let sweeper = tokio::spawn({
                let apps = apps.clone();
                async move {
                    loop {
                        tokio::time::sleep(apps.sweep().max(MIN_SWEEP)).await;
                    }
                }
            });
            let mut listeners = Vec::with_capacity(self.listeners.len());
            for listener in self.listeners {
                let (socket, tls) = listener.into_parts();
                listeners.push((TcpListener::from_std(socket).map_err(start_error)?, tls));
            }
            let places = Arc::new(Semaphore::new(self.config.max_connections_count));
            let hand_over = |stream: TcpStream,
                             client: SocketAddr,
                             tls: &Option<Arc<dyn SelectTls>>,
                             permit: OwnedSemaphorePermit| {
                let least = workers.iter().min_by_key(|(_, load, _)| load.load(Ordering::Relaxed));
                if let (Some((sender, load, _)), Ok(stream)) = (least, stream.into_std()) {
                    let (tls, load) = (tls.clone(), LoadGuard::new(load));
                    // Fails only if the worker has ended, which closes the stream.
                    let _ = sender.send(Accepted { stream, client, tls, load, _permit: permit });
                }
            };
            let accept = join_all(listeners.iter().map(|(listener, tls)| {
                let (places, hand_over) = (&places, &hand_over);
                async move {
                    loop {
                        let Ok(permit) = places.clone().acquire_owned().await else { return };
                        match listener.accept().await {
                            Ok((stream, client)) => hand_over(stream, client, tls, permit),
                            Err(error) if is_of_one_connection(&error) => {}
                            Err(error) => {
                                tracing::error!(
                                    code = "WISP-E0413",
                                    "connections cannot be accepted: {error}"
                                );
                                tokio::time::sleep(ACCEPT_PAUSE).await;
                            }
                        }
                    }
                }
            }));
            let ending = tokio::select! {
                biased;
                ending = shutdown => ending,
                _ = accept => Ending::Stop,
            };

            is_draining.store(true, Ordering::Relaxed);
            let linger = match ending {
                Ending::Stop => LINGER,
                Ending::HandedOver => HANDOVER_LINGER,
            };
            if ending == Ending::Stop {
                for (listener, tls) in &listeners {
                    while let Some(Ok((stream, client))) = listener.accept().now_or_never() {
                        if let Ok(permit) = places.clone().try_acquire_owned() {
                            hand_over(stream, client, tls, permit);
                        }
                    }
                }
            }
            drop(listeners);
            draining.cancel();
            sweeper.abort();
            connections.close();
            apps.tracker().close();
            let ended = async {
                connections.wait().await;
                apps.tracker().wait().await;
            };
            tokio::pin!(ended);
            if tokio::time::timeout(linger.min(self.config.grace_period), &mut ended).await.is_err() {
                closing.cancel();
                if tokio::time::timeout(self.config.grace_period, ended).await.is_err() {
                    tracing::warn!(
                        code = "WISP-E0414",
                        "{} connections were cut off after the grace period of {:?}",
                        connections.len(),
                        self.config.grace_period
                    );
                }
            }
            Ok(())
        })?;
        // Without senders the workers end, and with them what is still running.
        for (sender, _, thread) in workers {
            drop(sender);
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
        Ok(())
    }
}

/// Answers a request with the app that was found for it, once it is there.
async fn answer(
    found: Found,
    request: http::Request<Incoming>,
    connection: &Connection,
    limits: BodyLimits,
) -> http::Response<ResponseBody> {
    let app = match found {
        Found::App(app) => Ok(app),
        Found::Wait(app) => app.await,
        Found::Refused(refusal) => Err(refusal),
    };
    match app {
        Ok(app) => {
            let request =
                request.map(|body| RequestBody::network(body, limits.max_bytes, limits.stall_timeout));
            let mut response = app.answer(request, connection, limits).await;
            response.body_mut().keep(app);
            response
        }
        Err(refusal) => refusal.response(),
    }
}

/// Answers a request that no app is asked for.
async fn answer_before(
    decision: Decision,
    request: http::Request<Incoming>,
    arrival: Arrival,
) -> http::Response<ResponseBody> {
    match decision {
        // Boxed, so that requests of apps do not carry the room for it.
        Decision::Service(service) => Box::pin(front::serve(service, request, arrival)).await,
        Decision::Answer(answer) => answer.map(ResponseBody::full),
        Decision::App => http::Response::new(ResponseBody::Empty),
    }
}

/// Reads what a client says first, chooses a certificate, and does the rest.
/// `None` if the client was refused.
async fn shake_hands(
    stream: Gathered,
    tls: &dyn SelectTls,
) -> io::Result<Option<tokio_rustls::server::TlsStream<Gathered>>> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "it took too long");
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
    let deadline = tokio::time::Instant::now() + TLS_HANDSHAKE_LIMIT;
    let start = tokio::time::timeout_at(deadline, start).await.map_err(|_| late())??;
    let (config, deadline) = match tls.select(&start.client_hello()) {
        TlsChoice::Config(config) => (Some(config), deadline),
        TlsChoice::Wait(config) => {
            let config = tokio::time::timeout(TLS_WAIT_LIMIT, config).await.map_err(|_| late())?;
            (config, tokio::time::Instant::now() + TLS_HANDSHAKE_LIMIT)
        }
        TlsChoice::Refuse => (None, deadline),
    };
    let Some(config) = config else { return Ok(None) };
    tokio::time::timeout_at(deadline, start.into_stream(config)).await.map_err(|_| late())?.map(Some)
}

/// Whether accepting failed because of the one connection that was to be accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

impl Worker {
    fn run(self, mut accepted: mpsc::UnboundedReceiver<Accepted>, connections: TaskTracker) {
        if let Err(error) = wisp_engine::prefer_short_slices() {
            // It waits a little longer for a core that a guest computes on.
            tracing::debug!("a worker cannot ask for short slices: {error}");
        }
        let _worker = cores::Worker::join();
        let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!("a worker cannot start: {error}");
                return;
            }
        };
        let worker = Arc::new(self);
        runtime.block_on(async {
            tokio::spawn(gather::write_always());
            while let Some(connection) = accepted.recv().await {
                connections.spawn(worker.clone().serve(connection));
            }
        });
        runtime.shutdown_background();
    }

    async fn serve(self: Arc<Self>, accepted: Accepted) {
        let Accepted { stream, client, tls, load: _load, _permit } = accepted;
        let Ok(stream) = TcpStream::from_std(stream) else { return };
        // Responses are written whole; waiting for more would only delay them.
        if stream.set_nodelay(true).is_err() {
            return;
        }
        let arrival = Arrival { client, is_tls: tls.is_some() };
        match tls {
            None => {
                if let Some(is_http2) = self.speaks_http2(&stream).await {
                    self.serve_stream(Gathered::new(stream), is_http2, arrival).await;
                }
            }
            Some(tls) => match shake_hands(Gathered::new(stream), &*tls).await {
                Ok(Some(stream)) => {
                    let protocol = stream.get_ref().1.alpn_protocol();
                    if protocol != Some(ACME_PROTOCOL) {
                        let is_http2 = protocol == Some(b"h2");
                        self.serve_stream(stream, is_http2, arrival).await;
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(%client, "TLS handshake failed: {error}"),
            },
        }
    }

    /// Looks at a connection's first bytes without taking them. `None` if there
    /// are none to come.
    async fn speaks_http2(&self, stream: &TcpStream) -> Option<bool> {
        let look = async {
            let mut start = [0; HTTP2_PREFACE.len()];
            loop {
                let count = stream.peek(&mut start).await.ok().filter(|count| *count > 0)?;
                if start[..count] != HTTP2_PREFACE[..count] {
                    return Some(false);
                }
                if count == HTTP2_PREFACE.len() {
                    return Some(true);
                }
                // Part of the preface; the rest is on its way. Peeking again would
                // return at once with the same, so wait for a moment instead.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            biased;
            found = tokio::time::timeout(self.config.header_timeout, look) => found.ok().flatten(),
            () = self.closing.cancelled() => None,
        }
    }

    async fn serve_stream<S>(&self, stream: S, is_http2: bool, arrival: Arrival)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let limits = BodyLimits {
            max_bytes: self.config.max_body_bytes,
            stall_timeout: self.config.body_stall_timeout,
        };
        let apps = self.apps.clone();
        let (front, observer) = (self.front.clone(), self.observer.clone());
        let connection = Connection::new(arrival.client, arrival.is_tls);
        let shared = Arc::new((connection, self.is_draining.clone()));
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            let shared = shared.clone();
            let decision = front.as_ref().map_or(Decision::App, |front| front.decide(&request, &arrival));
            let found = match decision {
                Decision::App => Ok(apps.find(request.uri(), request.headers())),
                other => Err(other),
            };
            let observation =
                observer.as_ref().map(|observer| Observation::new(observer.clone(), &mut request, arrival));
            async move {
                let (connection, is_draining) = &*shared;
                let mut response = match found {
                    Ok(found) => answer(found, request, connection, limits).await,
                    Err(decision) => answer_before(decision, request, arrival).await,
                };
                if let Some(observation) = observation {
                    response = observation.follow(response);
                }
                // HTTP/2 has a goodbye of its own.
                if !is_http2 && is_draining.load(Ordering::Relaxed) {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        });
        let stream = TokioIo::new(stream);
        let result = if is_http2 {
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(HTTP2_MAX_STREAMS_COUNT)
                .max_header_list_size(HTTP2_MAX_HEADER_BYTES)
                .keep_alive_interval(HTTP2_PING_INTERVAL)
                .keep_alive_timeout(HTTP2_PING_TIMEOUT)
                .serve_connection(stream, service);
            tokio::pin!(serving);
            tokio::select! {
                biased;
                result = &mut serving => result,
                // HTTP/2 says goodbye without cutting anything off: no need to linger.
                () = self.draining.cancelled() => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            }
        } else {
            let serving = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(self.config.header_timeout)
                .max_buf_size(self.config.max_header_bytes)
                .serve_connection(stream, service);
            tokio::pin!(serving);
            tokio::select! {
                biased;
                result = &mut serving => result,
                () = self.closing.cancelled() => {
                    serving.as_mut().graceful_shutdown();
                    serving.await
                }
            }
        };
        if let Err(error) = result {
            tracing::debug!("a connection ended early: {error}");
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
