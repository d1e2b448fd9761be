//! Against real servers on this machine.

#![allow(clippy::unwrap_used, clippy::panic, clippy::allow_attributes, reason = "tests")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use wisp_manifest::allowed_hosts::{AllowedHost, AllowedHosts, BlockedNetworks};

use super::*;
use crate::outbound::Limits;

type Answer = Response<WasiBody>;
type Handler = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Answer> + Send + Sync>;

/// What a request needs that is bounded by nothing but its grants.
fn sending(outbound: outbound::Grant, grant: Grant, depth: LocalDepth) -> Sending {
    let open = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
    Sending { outbound, grant, depth, open, open_limit_count: u32::MAX, scope: None }
}

/// How a [`Server`] speaks.
enum Speech {
    Http1,
    Http2,
    Tls(Arc<rustls::ServerConfig>),
}

/// A server of this test's own.
struct Server {
    address: SocketAddr,
    accepted_count: Arc<AtomicUsize>,
}

impl Server {
    async fn start<F, R>(speech: Speech, handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Answer> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| handler(request).boxed());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted_count = Arc::new(AtomicUsize::new(0));
        let count = accepted_count.clone();
        let speech = Arc::new(speech);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(speech.clone(), stream, handler.clone()));
            }
        });
        Self { address, accepted_count }
    }

    async fn hello() -> Self {
        Self::start(Speech::Http1, |_| async { Response::new(text("hello")) }).await
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    fn accepted_count(&self) -> usize {
        self.accepted_count.load(Ordering::SeqCst)
    }
}

async fn serve(speech: Arc<Speech>, stream: tokio::net::TcpStream, handler: Handler) {
    let service = service_fn(move |request| {
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let http1 = hyper::server::conn::http1::Builder::new();
    let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    // A client that goes away is no failure of the server.
    let _ = match &*speech {
        Speech::Http1 => http1.serve_connection(TokioIo::new(stream), service).await,
        Speech::Http2 => http2.serve_connection(TokioIo::new(stream), service).await,
        Speech::Tls(config) => {
            let acceptor = tokio_rustls::TlsAcceptor::from(config.clone());
            let Ok(stream) = acceptor.accept(stream).await else { return };
            match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => http2.serve_connection(TokioIo::new(stream), service).await,
                _ => http1.serve_connection(TokioIo::new(stream), service).await,
            }
        }
    };
}

fn text(text: impl Into<Bytes>) -> WasiBody {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

fn empty() -> WasiBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that is written while it is read.
fn channel() -> (mpsc::Sender<Result<Frame<Bytes>, HttpError>>, WasiBody) {
    let (sender, mut receiver) = mpsc::channel(1);
    let frames = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
    (sender, StreamBody::new(frames).boxed_unsync())
}

/// One component.
struct Guest {
    outbound: outbound::Grant,
    grant: Grant,
    client: Arc<Client>,
}

impl Guest {
    fn new(settings: &Settings) -> Self {
        Self::of(Arc::new(Client::new(settings).unwrap()), "shop", &["*://*:*"], &[], LocalSlot::default())
    }

    fn of(
        client: Arc<Client>,
        component: &str,
        allowed: &[&str],
        blocked: &[&str],
        local: LocalSlot,
    ) -> Self {
        let allowed = allowed.iter().map(|entry| AllowedHost::parse(entry).unwrap()).collect();
        let blocked = BlockedNetworks::parse(blocked.iter().copied()).unwrap();
        let outbound =
            outbound::Grant::new(component, AllowedHosts::new(allowed), blocked, Limits::default());
        Self { outbound, grant: Grant::new(component, &client, local), client }
    }

    async fn send(&self, request: Request<WasiBody>, options: RequestOptions) -> Result<Answer, HttpError> {
        let (outbound, grant) = (self.outbound.clone(), self.grant.clone());
        let sent = send(sending(outbound, grant, LocalDepth::default()), request, options).await;
        sent.map(|(response, _)| response)
    }

    async fn get(&self, url: &str) -> Result<Answer, HttpError> {
        self.send(request(url, empty()), RequestOptions::default()).await
    }

    async fn get_text(&self, url: &str) -> Result<String, HttpError> {
        let body = self.get(url).await?.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8(body.to_vec()).unwrap())
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::new(&Settings::default())
    }
}

fn request(url: &str, body: WasiBody) -> Request<WasiBody> {
    Request::builder().uri(url).body(body).unwrap()
}

fn post(url: &str, body: WasiBody) -> Request<WasiBody> {
    Request::post(url).body(body).unwrap()
}

fn short() -> Option<Duration> {
    Some(Duration::from_millis(50))
}

macro_rules! assert_refused {
    ($result:expr, $pattern:pat) => {
        match $result {
            Err($pattern) => {}
            Err(other) => panic!("another error: {other:?}"),
            Ok(_) => panic!("no error"),
        }
    };
}

#[tokio::test]
async fn connections_are_reused() {
    let server = Server::hello().await;
    let guest = Guest::default();
    for _ in 0..5 {
        assert_eq!(guest.get_text(&server.url()).await.unwrap(), "hello");
    }
    assert_eq!(server.accepted_count(), 1);
    assert_eq!(guest.client.idle_count(), 1);
}

#[tokio::test]
async fn a_body_that_turns_out_empty_does_not_cost_the_connection() {
    let server = Server::hello().await;
    let guest = Guest::default();
    for method in ["GET", "POST", "GET"] {
        let (_, body) = channel();
        let mut request = request(&server.url(), body);
        *request.method_mut() = method.parse().unwrap();
        let response = guest.send(request, RequestOptions::default()).await.unwrap();
        response.into_body().collect().await.unwrap();
    }
    assert_eq!(server.accepted_count(), 1);
}

#[tokio::test]
async fn what_a_guest_writes_into_a_body_that_is_not_sent_is_taken_from_it() {
    let server = Server::hello().await;
    let guest = Guest::default();
    let (writer, body) = channel();
    let response = guest.send(request(&server.url(), body), RequestOptions::default()).await.unwrap();
    response.into_body().collect().await.unwrap();
    let piece = || Ok(Frame::data(Bytes::from_static(&[0; 1024])));
    for _ in 0..2 {
        writer.send(piece()).await.unwrap();
    }
    // To an end: nobody may write forever what nobody reads.
    while writer.send(piece()).await.is_ok() {}
}

#[tokio::test]
async fn connections_are_not_reused_where_that_is_off() {
    let server = Server::hello().await;
    let guest = Guest::new(&Settings { connection_pooling: false, ..Settings::default() });
    for _ in 0..3 {
        assert_eq!(guest.get_text(&server.url()).await.unwrap(), "hello");
    }
    assert_eq!(server.accepted_count(), 3);
}

#[tokio::test]
async fn components_do_not_share_connections() {
    let server = Server::hello().await;
    let client: Arc<Client> = Arc::default();
    for _ in 0..2 {
        let guest = Guest::of(client.clone(), "shop", &["http://*:*"], &[], LocalSlot::default());
        guest.get_text(&server.url()).await.unwrap();
    }
    assert_eq!(server.accepted_count(), 2);
}

#[tokio::test]
async fn a_response_that_is_not_read_does_not_come_back() {
    let server = Server::hello().await;
    let guest = Guest::default();
    drop(guest.get(&server.url()).await.unwrap());
    assert_eq!(guest.get_text(&server.url()).await.unwrap(), "hello");
    assert_eq!(server.accepted_count(), 2);
}

#[test]
fn runtimes_do_not_share_connections() {
    let guest = Arc::new(Guest::default());
    let servers = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = servers.block_on(Server::hello());
    for count in 1..=2 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for _ in 0..2 {
            runtime.block_on(guest.get_text(&server.url())).unwrap();
        }
        assert_eq!(server.accepted_count(), count);
        // The runtime's connection goes with it.
        drop(runtime);
        assert_eq!(guest.client.idle_count(), 0);
    }
}

#[tokio::test]
async fn a_connection_that_the_server_closed_is_replaced() {
    // Answers one request per connection without announcing its end.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            assert!(stream.read(&mut buffer).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
        }
    });
    let guest = Guest::default();
    for _ in 0..3 {
        assert_eq!(guest.get_text(&url).await.unwrap(), "hi");
        // The end of the connection has to arrive here first.
        while guest.client.idle_count() > 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn what_is_not_allowed_is_denied() {
    let server = Server::hello().await;
    let guest = Guest::of(Arc::default(), "shop", &["https://example.com"], &[], LocalSlot::default());
    assert_refused!(guest.get(&server.url()).await, HttpError::HttpRequestDenied);
    assert_refused!(guest.get("http://example.com/").await, HttpError::HttpRequestDenied);
    assert_refused!(guest.get("https://user@example.com/").await, HttpError::HttpRequestUriInvalid);
    assert_eq!(server.accepted_count(), 0);
}

#[tokio::test]
async fn blocked_addresses_are_not_connected_to() {
    let server = Server::hello().await;
    let guest = Guest::of(Arc::default(), "shop", &["*://*:*"], &["private"], LocalSlot::default());
    assert_refused!(guest.get(&server.url()).await, HttpError::DestinationIpProhibited);
    let by_name = format!("http://localhost:{}/", server.address.port());
    assert_refused!(guest.get(&by_name).await, HttpError::DestinationIpProhibited);
    assert_eq!(server.accepted_count(), 0);
}

#[tokio::test]
async fn failures_have_their_codes() {
    let guest = Guest::default();
    assert_refused!(guest.get("http://no-such-host.invalid/").await, HttpError::DnsError { .. });

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    assert_refused!(guest.get(&url).await, HttpError::ConnectionRefused);

    let mut tunnel = request("http://127.0.0.1:1/", empty());
    *tunnel.method_mut() = http::Method::CONNECT;
    let result = guest.send(tunnel, RequestOptions::default()).await;
    assert_refused!(result, HttpError::HttpRequestMethodInvalid);
}

/// Accepts connections, sends some bytes on each, and keeps or closes it.
async fn raw_server(bytes: &'static [u8], keep: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            assert!(stream.read(&mut buffer).await.unwrap() > 0);
            stream.write_all(bytes).await.unwrap();
            if keep {
                kept.push(stream);
            }
        }
    });
    address.to_string()
}

#[tokio::test]
async fn broken_responses_have_their_codes() {
    let guest = Guest::default();
    let closing = format!("http://{}/", raw_server(b"", false).await);
    assert_refused!(guest.get(&closing).await, HttpError::ConnectionTerminated);
    let odd = format!("http://{}/", raw_server(b"SSH-2.0 hello\r\n\r\n", true).await);
    assert_refused!(guest.get(&odd).await, HttpError::HttpProtocolError);
    let cut = raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", false).await;
    assert_refused!(guest.get_text(&format!("http://{cut}/")).await, HttpError::HttpResponseIncomplete);
}

#[tokio::test]
async fn timeouts_are_honoured() {
    let guest = Guest::default();
    // Never answers.
    let silent = raw_server(b"", true).await;
    let options = RequestOptions { first_byte_timeout: short(), ..RequestOptions::default() };
    let result = guest.send(request(&format!("http://{silent}/"), empty()), options).await;
    assert_refused!(result, HttpError::ConnectionReadTimeout);

    // Accepts, but never greets.
    let options = RequestOptions { connect_timeout: short(), ..RequestOptions::default() };
    let result = guest.send(request(&format!("https://{silent}/"), empty()), options).await;
    assert_refused!(result, HttpError::ConnectionTimeout);

    // Stops in the middle.
    let stuck = raw_server(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", true).await;
    let options = RequestOptions { between_bytes_timeout: short(), ..RequestOptions::default() };
    let response = guest.send(request(&format!("http://{stuck}/"), empty()), options).await.unwrap();
    assert_refused!(response.into_body().collect().await, HttpError::ConnectionReadTimeout);

    // Times beyond what clocks can hold are no reason to panic.
    let longest = Some(Duration::MAX);
    let options = RequestOptions {
        connect_timeout: longest,
        first_byte_timeout: longest,
        between_bytes_timeout: longest,
    };
    let server = Server::hello().await;
    guest.send(request(&server.url(), empty()), options).await.unwrap();
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    for speech in [Speech::Http1, Speech::Http2] {
        let is_http2 = matches!(speech, Speech::Http2);
        let server = Server::start(speech, |request: Request<Incoming>| async {
            Response::new(request.into_body().map_err(HttpError::from).boxed_unsync())
        })
        .await;
        let http2_prior_knowledge = is_http2.then(|| format!("other:80, {}", server.address));
        let guest = Guest::new(&Settings { http2_prior_knowledge, ..Settings::default() });
        let (sender, body) = channel();
        let response = guest.send(post(&server.url(), body), RequestOptions::default()).await.unwrap();
        let mut body = response.into_body();
        for number in 0..10 {
            let piece = Bytes::from(format!("piece {number}"));
            sender.send(Ok(Frame::data(piece.clone()))).await.unwrap();
            // Comes back before the next one is written.
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
        }
        drop(sender);
        assert!(body.collect().await.unwrap().to_bytes().is_empty());
    }
}

/// An endless body that counts how many bytes were asked of it.
fn endless(count: Arc<AtomicUsize>) -> WasiBody {
    const PIECE: &[u8] = &[b'x'; 16 * 1024];
    let frames = futures::stream::repeat_with(move || {
        count.fetch_add(PIECE.len(), Ordering::SeqCst);
        Ok(Frame::data(Bytes::from_static(PIECE)))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// What may be on its way in buffers of sockets, hyper and this crate.
const ON_THE_WAY_BYTES: usize = 16 * 1024 * 1024;

#[tokio::test]
async fn a_slow_reader_slows_the_server_down() {
    let produced = Arc::new(AtomicUsize::new(0));
    let count = produced.clone();
    let server = Server::start(Speech::Http1, move |_| {
        let body = endless(count.clone());
        async { Response::new(body) }
    })
    .await;
    let mut body = Guest::default().get(&server.url()).await.unwrap().into_body();
    let mut read = 0;
    while read < 4 * ON_THE_WAY_BYTES {
        read += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
        assert!(produced.load(Ordering::SeqCst) < read + ON_THE_WAY_BYTES);
        // Give a server that does not wait every chance to run ahead.
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_slow_server_slows_the_guest_down() {
    let read = Arc::new(AtomicUsize::new(0));
    let count = read.clone();
    let server = Server::start(Speech::Http1, move |request| {
        let count = count.clone();
        async move {
            let mut body = request.into_body();
            while count.load(Ordering::SeqCst) < 4 * ON_THE_WAY_BYTES {
                let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
                count.fetch_add(piece.len(), Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
            Response::new(text("enough"))
        }
    })
    .await;
    let written = Arc::new(AtomicUsize::new(0));
    let ahead = Arc::new(AtomicUsize::new(0));
    let body = {
        let (read, written, ahead) = (read.clone(), written.clone(), ahead.clone());
        endless(written.clone())
            .map_frame(move |frame| {
                let now = written.load(Ordering::SeqCst).saturating_sub(read.load(Ordering::SeqCst));
                ahead.fetch_max(now, Ordering::SeqCst);
                frame
            })
            .boxed_unsync()
    };
    let guest = Guest::default();
    let response = guest.send(post(&server.url(), body), RequestOptions::default()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(ahead.load(Ordering::SeqCst) < ON_THE_WAY_BYTES);
}

#[tokio::test]
async fn trailers_travel_both_ways_over_http2() {
    let (seen, seen_trailers) = oneshot::channel();
    let seen = Mutex::new(Some(seen));
    let server = Server::start(Speech::Http2, move |request| {
        let seen = seen.lock().unwrap().take();
        async move {
            assert_eq!(request.version(), Version::HTTP_2);
            assert!(request.headers().get(header::HOST).is_none());
            let trailers = request.into_body().collect().await.unwrap().trailers().cloned();
            seen.unwrap().send(trailers).unwrap();
            Response::new(with_trailers("answer", "of-response"))
        }
    })
    .await;
    let settings =
        Settings { http2_prior_knowledge: Some(server.address.to_string()), ..Settings::default() };
    let guest = Guest::new(&settings);
    let request = request(&server.url(), with_trailers("question", "of-request"));
    let response = guest.send(request, RequestOptions::default()).await.unwrap();
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["of-response"], "yes");
    assert_eq!(body.to_bytes(), "answer");
    assert_eq!(seen_trailers.await.unwrap().unwrap()["of-request"], "yes");
}

#[tokio::test]
async fn trailers_arrive_over_http1() {
    let server = raw_server(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: of-response\r\n\r\n2\r\nhi\r\n0\r\nof-response: yes\r\n\r\n",
        true,
    )
    .await;
    let response = Guest::default().get(&format!("http://{server}/")).await.unwrap();
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["of-response"], "yes");
    assert_eq!(body.to_bytes(), "hi");
}

fn with_trailers(data: &'static str, name: &'static str) -> WasiBody {
    let mut trailers = HeaderMap::new();
    trailers.insert(name, HeaderValue::from_static("yes"));
    let frames = [Ok(Frame::data(Bytes::from_static(data.as_bytes()))), Ok(Frame::trailers(trailers))];
    StreamBody::new(futures::stream::iter(frames)).boxed_unsync()
}

#[tokio::test]
async fn a_guest_that_breaks_its_body_off_gets_its_own_error() {
    let server = Server::start(Speech::Http1, |request: Request<Incoming>| async {
        let result = request.into_body().collect().await;
        assert!(result.is_err());
        Response::new(text("never seen"))
    })
    .await;
    let (sender, body) = channel();
    sender.send(Ok(Frame::data(Bytes::from_static(b"half")))).await.unwrap();
    tokio::spawn(async move { sender.send(Err(HttpError::HttpRequestBodySize(Some(9)))).await });
    let result = Guest::default().send(post(&server.url(), body), RequestOptions::default()).await;
    assert_refused!(result, HttpError::HttpRequestBodySize(Some(9)));
}

#[tokio::test]
async fn the_host_is_that_of_the_uri() {
    let server = Server::start(Speech::Http1, |request: Request<Incoming>| async move {
        let hosts: Vec<_> = request.headers().get_all(header::HOST).iter().cloned().collect();
        assert_eq!(hosts.len(), 1);
        Response::new(text(format!("{} {}", hosts[0].to_str().unwrap(), request.uri())))
    })
    .await;
    let guest = Guest::default();
    let mut request = request(&format!("{}path?query", server.url()), empty());
    request.headers_mut().insert(header::HOST, HeaderValue::from_static("other.example"));
    let response = guest.send(request, RequestOptions::default()).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, format!("{} /path?query", server.address));
}

#[tokio::test]
async fn a_bound_on_connections_is_kept() {
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let server = Server::start(Speech::Http1, move |_| {
        let arrived = arrived.clone();
        async move {
            let (go, wait) = oneshot::channel::<()>();
            arrived.send(go).unwrap();
            let _ = wait.await;
            Response::new(text("hello"))
        }
    })
    .await;
    let guest = Arc::new(Guest::new(&Settings { max_connections_count: Some(1), ..Settings::default() }));
    let first = tokio::spawn({
        let (guest, url) = (guest.clone(), server.url());
        async move { guest.get_text(&url).await }
    });
    let go = arrivals.recv().await.unwrap();
    assert_refused!(guest.get(&server.url()).await, HttpError::ConnectionLimitReached);
    go.send(()).unwrap();
    assert_eq!(first.await.unwrap().unwrap(), "hello");
    // The connection waits now, and makes room for one to another server.
    let other = Server::hello().await;
    assert_eq!(guest.get_text(&other.url()).await.unwrap(), "hello");
    assert_eq!(guest.client.idle_count(), 1);
}

/// Certificates of this test's own.
struct Authority {
    directory: tempfile::TempDir,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    certificate: rcgen::Certificate,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { directory, issuer: rcgen::Issuer::new(params, key), certificate }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes `NAME.pem` and `NAME.key`.
    fn issue(&self, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        (certificate, key)
    }

    fn server_config(&self, wants_client_certificate: bool) -> Arc<rustls::ServerConfig> {
        let (certificate, key) = self.issue("localhost");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if wants_client_certificate {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(self.certificate.der().clone()).unwrap();
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    fn client_tls(&self) -> ClientTls {
        ClientTls {
            component_ids: vec!["shop".into()],
            hosts: vec!["Localhost".into()],
            ca_roots_file: Some(self.path("ca.pem")),
            ..ClientTls::default()
        }
    }
}

fn guest_with(client_tls: ClientTls, component: &str) -> Guest {
    let settings = Settings { client_tls: vec![client_tls], ..Settings::default() };
    let client = Arc::new(Client::new(&settings).unwrap());
    Guest::of(client, component, &["https://localhost:*"], &[], LocalSlot::default())
}

#[tokio::test]
async fn tls_trusts_whom_it_is_told_to() {
    let authority = Authority::new();
    let server = Server::start(Speech::Tls(authority.server_config(false)), |request| async move {
        assert_eq!(request.version(), Version::HTTP_2);
        Response::new(text("secret"))
    })
    .await;
    let url = format!("https://localhost:{}/", server.address.port());
    let guest = guest_with(authority.client_tls(), "shop");
    for _ in 0..2 {
        assert_eq!(guest.get_text(&url).await.unwrap(), "secret");
    }
    assert_eq!(server.accepted_count(), 1);
    // The table is for another component.
    let other = guest_with(authority.client_tls(), "other");
    assert_refused!(other.get(&url).await, HttpError::TlsCertificateError);
    // The certificate is for another host.
    let url = format!("https://127.0.0.1:{}/", server.address.port());
    let mut table = authority.client_tls();
    table.hosts.push("127.0.0.1".into());
    let settings = Settings { client_tls: vec![table], ..Settings::default() };
    assert_refused!(Guest::new(&settings).get(&url).await, HttpError::TlsCertificateError);
}

#[tokio::test]
async fn tls_shows_the_identity_of_the_component() {
    let authority = Authority::new();
    let server =
        Server::start(Speech::Tls(authority.server_config(true)), |_| async { Response::new(text("known")) })
            .await;
    let url = format!("https://localhost:{}/", server.address.port());
    authority.issue("shop");
    let with_identity = ClientTls {
        client_cert_file: Some(authority.path("shop.pem")),
        client_private_key_file: Some(authority.path("shop.key")),
        ..authority.client_tls()
    };
    assert_eq!(guest_with(with_identity.clone(), "shop").get_text(&url).await.unwrap(), "known");
    let without = guest_with(authority.client_tls(), "shop");
    assert!(without.get_text(&url).await.is_err());

    let incomplete = ClientTls { client_private_key_file: None, ..with_identity.clone() };
    let missing = ClientTls { ca_roots_file: Some(authority.path("none.pem")), ..with_identity.clone() };
    let no_certificate = ClientTls { ca_roots_file: Some(authority.path("shop.key")), ..with_identity };
    for (table, code) in [(incomplete, "WISP-E0341"), (missing, "WISP-E0340"), (no_certificate, "WISP-E0340")]
    {
        let settings = Settings { client_tls: vec![table], ..Settings::default() };
        assert_eq!(Client::new(&settings).err().unwrap().code(), code);
    }
}

#[test]
fn prior_knowledge_is_a_list() {
    for (value, is_good) in
        [("", true), ("a:80,[::1]:8080 , B:1", true), ("a", false), ("a:b", false), (":80", false)]
    {
        let settings = Settings { http2_prior_knowledge: Some(value.into()), ..Settings::default() };
        assert_eq!(Client::new(&settings).is_ok(), is_good, "{value}");
    }
}

/// A trigger whose components do nothing but call each other in a circle.
struct Circle {
    guest: Guest,
    calls_count: AtomicUsize,
    targets: Mutex<Vec<LocalTarget>>,
}

impl LocalDispatch for Circle {
    fn dispatch(
        &self,
        target: LocalTarget,
        request: Request<WasiBody>,
    ) -> BoxFuture<'static, Result<Answer, HttpError>> {
        self.calls_count.fetch_add(1, Ordering::SeqCst);
        self.targets.lock().unwrap().push(target);
        let depth = *request.extensions().get::<LocalDepth>().unwrap();
        let (outbound, grant) = (self.guest.outbound.clone(), self.guest.grant.clone());
        async move {
            if request.uri().path() == "/leaf" {
                return Ok(Response::new(text("leaf")));
            }
            let sent = send(sending(outbound, grant, depth), request, RequestOptions::default()).await;
            sent.map(|(response, _)| response)
        }
        .boxed()
    }
}

#[tokio::test]
async fn requests_within_the_app_stay_there() {
    let local = LocalSlot::default();
    let allowed = ["http://cart.spin.internal", "http://self"];
    let guest = Guest::of(Arc::default(), "shop", &allowed, &[], local.clone());
    // Nothing serves the app yet.
    assert_refused!(guest.get("http://self.alt/leaf").await, HttpError::DestinationUnavailable);
    let circle = Arc::new(Circle { guest, calls_count: AtomicUsize::new(0), targets: Mutex::default() });
    let weak: std::sync::Weak<dyn LocalDispatch> =
        Arc::downgrade(&(circle.clone() as Arc<dyn LocalDispatch>));
    local.set(weak);

    let guest = &circle.guest;
    assert_eq!(guest.get_text("http://self.alt/leaf").await.unwrap(), "leaf");
    assert_eq!(guest.get_text("http://Cart.spin.internal/leaf").await.unwrap(), "leaf");
    let targets = std::mem::take(&mut *circle.targets.lock().unwrap());
    assert_eq!(targets, [LocalTarget::Route, LocalTarget::Component("cart".into())]);
    assert_refused!(guest.get("http://stock.spin.internal/leaf").await, HttpError::HttpRequestDenied);
    let nobody = Guest::of(Arc::default(), "shop", &["http://cart.spin.internal"], &[], local.clone());
    assert_refused!(nobody.get("http://self.alt/leaf").await, HttpError::HttpRequestDenied);

    // A circle ends.
    circle.calls_count.store(0, Ordering::SeqCst);
    assert_refused!(guest.get("http://self.alt/again").await, HttpError::LoopDetected);
    assert_eq!(circle.calls_count.load(Ordering::SeqCst), usize::from(MAX_LOCAL_DEPTH_COUNT));
}

/// A trigger that answers with a body it is given.
struct Answering {
    body: Mutex<Option<WasiBody>>,
    task: Mutex<Option<tokio::task::Id>>,
}

impl LocalDispatch for Answering {
    fn dispatch(
        &self,
        _: LocalTarget,
        _: Request<WasiBody>,
    ) -> BoxFuture<'static, Result<Answer, HttpError>> {
        *self.task.lock().unwrap() = tokio::task::try_id();
        let body = self.body.lock().unwrap().take().unwrap();
        async { Ok(Response::new(body)) }.boxed()
    }
}

fn answering(body: WasiBody) -> (Guest, Arc<Answering>) {
    let local = LocalSlot::default();
    let trigger = Arc::new(Answering { body: Mutex::new(Some(body)), task: Mutex::default() });
    local.set(Arc::downgrade(&(trigger.clone() as Arc<dyn LocalDispatch>)));
    (Guest::of(Arc::default(), "shop", &["http://self"], &[], local), trigger)
}

#[tokio::test]
async fn answers_from_within_the_app_stream() {
    let (sender, body) = channel();
    let (guest, trigger) = answering(body);
    tokio::spawn(async move {
        let mut body = guest.get("http://self.alt/").await.unwrap().into_body();
        for number in 0..10 {
            let piece = Bytes::from(format!("piece {number}"));
            sender.send(Ok(Frame::data(piece.clone()))).await.unwrap();
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
        }
        sender.send(Err(HttpError::HttpProtocolError)).await.unwrap();
        assert_refused!(body.frame().await.unwrap(), HttpError::HttpProtocolError);
        // A guest must not be polled where another one is.
        let asking = tokio::task::try_id();
        assert_ne!(*trigger.task.lock().unwrap(), asking);
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn the_length_of_an_answer_from_within_the_app_is_known() {
    let (guest, _trigger) = answering(text("hello"));
    let mut body = guest.get("http://self.alt/").await.unwrap().into_body();
    assert_eq!(http_body::Body::size_hint(&body).exact(), Some(5));
    body.frame().await.unwrap().unwrap();
    assert_eq!(http_body::Body::size_hint(&body).exact(), Some(0));
    let (guest, _trigger) = answering(empty());
    assert!(http_body::Body::is_end_stream(&guest.get("http://self.alt/").await.unwrap().into_body()));
}

#[tokio::test]
async fn an_answer_that_nobody_wants_ends_its_guest() {
    let (sender, body) = channel();
    let (guest, _trigger) = answering(body);
    drop(guest.get("http://self.alt/").await.unwrap());
    // Returns when the body, which stands for its guest, is dropped.
    sender.closed().await;
}

#[tokio::test]
async fn an_answer_from_within_the_app_waits_for_its_reader() {
    let produced = Arc::new(AtomicUsize::new(0));
    let (guest, _trigger) = answering(endless(produced.clone()));
    let mut body = guest.get("http://self.alt/").await.unwrap().into_body();
    let mut read = 0;
    while read < 4 * 1024 * 1024 {
        read += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
        // The buffer, and the pieces in the hands of the two tasks.
        assert!(produced.load(Ordering::SeqCst) <= read + 256 * 1024 + 2 * 16 * 1024);
        tokio::task::yield_now().await;
    }
    assert!(produced.load(Ordering::SeqCst) > read);
}
