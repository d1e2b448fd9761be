#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig as TlsConfig, StreamOwned, crypto::ring,
    server::ClientHello,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::*;
use crate::http::{Access, Refusal, Service, ServiceBody};

/// No app at all.
#[derive(Default)]
struct NoApps(TaskTracker);

impl Apps for NoApps {
    fn find(&self, _uri: &Uri, _headers: &HeaderMap) -> Found {
        let (status, code) = (StatusCode::NOT_FOUND, "WISP-E0709");
        Found::Refused(Refusal { status, code, message: "no app is served here" })
    }

    fn sweep(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn tracker(&self) -> &TaskTracker {
        &self.0
    }
}

/// Answers `/answer` and lets a service answer `/service`.
struct Reception;

/// Says what it got.
struct Echo;

impl Front for Reception {
    fn decide(&self, request: &Request<Incoming>, _arrival: &Arrival) -> Decision {
        match request.uri().path() {
            "/answer" => Decision::Answer(Box::new(Response::new(Bytes::from_static(b"answer")))),
            "/service" => Decision::Service(Arc::new(Echo)),
            _ => Decision::App,
        }
    }
}

impl Service for Echo {
    fn call(
        self: Arc<Self>,
        request: Request<Incoming>,
        arrival: Arrival,
    ) -> BoxFuture<'static, Response<ServiceBody>> {
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let text = format!("{} by TLS: {}", String::from_utf8_lossy(&body), arrival.is_tls);
            Response::new(Full::from(text).map_err(|never| match never {}).boxed_unsync())
        }
        .boxed()
    }
}

#[derive(Default)]
struct Seen(Mutex<Vec<Access>>);

impl Observer for Seen {
    fn observe(&self, access: Access) {
        self.0.lock().unwrap().push(access);
    }
}

/// Has a certificate for `now.example`, gets one for `later.example`, and meets an
/// authority's challenge.
struct Select {
    config: Arc<TlsConfig>,
    challenge: Arc<TlsConfig>,
}

impl SelectTls for Select {
    fn select(&self, hello: &ClientHello<'_>) -> TlsChoice {
        if hello.alpn().is_some_and(|mut protocols| protocols.any(|protocol| protocol == ACME_PROTOCOL)) {
            return TlsChoice::Config(self.challenge.clone());
        }
        match hello.server_name() {
            Some("now.example") => TlsChoice::Config(self.config.clone()),
            Some("later.example") => {
                let config = self.config.clone();
                TlsChoice::Wait(
                    async move {
                        tokio::task::yield_now().await;
                        Some(config)
                    }
                    .boxed(),
                )
            }
            Some("never.example") => TlsChoice::Wait(async { None }.boxed()),
            _ => TlsChoice::Refuse,
        }
    }
}

struct Running {
    http: SocketAddr,
    https: SocketAddr,
    /// The listener of `http` once more, as a successor has it.
    socket: std::net::TcpListener,
    roots: RootCertStore,
    seen: Arc<Seen>,
    stop: oneshot::Sender<Ending>,
    thread: JoinHandle<()>,
}

fn start() -> Running {
    let own = rcgen::generate_simple_self_signed(
        ["now.example", "later.example", "never.example", "other.example"].map(String::from).to_vec(),
    )
    .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(own.cert.der().clone()).unwrap();
    let key = own.signing_key.serialize_der();
    let config = |protocols: &[&[u8]]| {
        let chain: Vec<CertificateDer<'static>> = vec![own.cert.der().clone()];
        let key = PrivateKeyDer::try_from(key.clone()).unwrap();
        let mut config = TlsConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    };
    let select = Select { config: config(&[b"h2", b"http/1.1"]), challenge: config(&[ACME_PROTOCOL]) };
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (http, https) = (Listener::bind(any).unwrap(), Listener::bind(any).unwrap().tls(Arc::new(select)));
    assert_eq!((http.scheme(), https.scheme()), ("http", "https"));
    let socket = http.try_clone_socket().unwrap();
    let (http_address, https_address) = (http.address(), https.address());
    let seen = Arc::new(Seen::default());
    let server = Server::new(ServerConfig::default(), vec![http, https])
        .front(Arc::new(Reception))
        .observer(seen.clone());
    let (stop, stopped) = oneshot::channel();
    let thread = thread::spawn(move || {
        let ending = async { stopped.await.unwrap_or(Ending::Stop) };
        server.run(Arc::new(NoApps::default()), ending).unwrap();
    });
    Running { http: http_address, https: https_address, socket, roots, seen, stop, thread }
}

impl Running {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.http).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn connect_tls(&self, name: &str, protocol: &[u8]) -> StreamOwned<ClientConnection, TcpStream> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let stream = TcpStream::connect(self.https).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        StreamOwned::new(connection, stream)
    }

    fn end(self, ending: Ending) -> Arc<Seen> {
        self.stop.send(ending).unwrap();
        self.thread.join().unwrap();
        self.seen
    }
}

/// Sends a request on a connection that ends with it, and reads the whole response.
fn exchange(mut stream: impl std::io::Read + std::io::Write, path: &str, body: &str) -> String {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: a.example:1\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let mut response = String::new();
    // A client of TLS that is not told goodbye calls that an error.
    let _ = stream.read_to_string(&mut response);
    response
}

#[test]
fn a_front_answers_before_apps_do_and_an_observer_sees_all() {
    let server = start();
    let answer = exchange(server.connect(), "/answer", "");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nanswer"), "{answer}");
    let service = exchange(server.connect(), "/service", "hello");
    assert!(service.ends_with("hello by TLS: false"), "{service}");
    let service = exchange(server.connect_tls("now.example", b"http/1.1"), "/service", "hello");
    assert!(service.ends_with("hello by TLS: true"), "{service}");
    let app = exchange(server.connect(), "/app?secret", "");
    assert!(app.starts_with("HTTP/1.1 404 Not Found\r\n") && app.contains("WISP-E0709"), "{app}");

    let seen = server.end(Ending::Stop);
    let seen = seen.0.lock().unwrap();
    let what: Vec<_> = seen
        .iter()
        .map(|access| (access.uri.path(), access.status.as_u16(), access.response_bytes))
        .collect();
    let length = "WISP-E0709: no app is served here\n".len() as u64;
    assert_eq!(
        what,
        [("/answer", 200, 6), ("/service", 200, 19), ("/service", 200, 18), ("/app", 404, length)]
    );
    assert!(seen.iter().all(|access| access.is_complete && access.host.as_deref() == Some("a.example")));
    assert_eq!(
        seen.iter().map(|access| access.arrival.is_tls).collect::<Vec<_>>(),
        [false, false, true, false]
    );
    for (access, response) in [(&seen[0], &answer), (&seen[3], &app)] {
        assert!(response.contains(&format!("x-request-id: {}\r\n", access.id)), "{response}");
    }
    let mut ids: Vec<_> = seen.iter().map(|access| access.id.to_string()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4);
}

#[test]
fn certificates_are_chosen_by_name_and_may_be_waited_for() {
    let server = start();
    for name in ["now.example", "later.example"] {
        let answer = exchange(server.connect_tls(name, b"http/1.1"), "/answer", "");
        assert!(answer.ends_with("answer"), "{name}: {answer}");
    }
    for name in ["never.example", "other.example"] {
        let mut stream = server.connect_tls(name, b"http/1.1");
        assert!(stream.write_all(b"x").and_then(|()| stream.flush()).is_err(), "{name}");
    }
    // An authority wants the handshake, and nothing more.
    let mut stream = server.connect_tls("now.example", ACME_PROTOCOL);
    stream.conn.complete_io(&mut stream.sock).unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(ACME_PROTOCOL));
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    let seen = server.end(Ending::Stop);
    assert_eq!(seen.0.lock().unwrap().len(), 2);
}

#[test]
fn a_server_that_handed_over_leaves_the_queue_and_lets_clients_finish() {
    let server = start();
    let mut kept = server.connect();
    let request = |stream: &mut TcpStream| {
        stream.write_all(b"GET /answer HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        let mut response = Vec::new();
        while !response.ends_with(b"answer") {
            let mut bytes = [0; 1_024];
            let count = stream.read(&mut bytes).unwrap();
            assert_ne!(count, 0, "closed before the response: {}", String::from_utf8_lossy(&response));
            response.extend_from_slice(&bytes[..count]);
        }
        String::from_utf8(response).unwrap()
    };
    assert!(!request(&mut kept).contains("connection: close"));
    let (address, socket) = (server.http, server.socket.try_clone().unwrap());
    server.stop.send(Ending::HandedOver).unwrap();

    // The kernel goes on taking connections; from some moment on they are ours.
    socket.set_nonblocking(false).unwrap();
    let accepting = thread::spawn(move || socket.accept().unwrap().0);
    let mut waiting = Vec::new();
    while !accepting.is_finished() {
        waiting.push(TcpStream::connect(address).unwrap());
        thread::sleep(Duration::from_millis(5));
    }
    accepting.join().unwrap();
    drop(waiting);
    // A client that kept its connection is served, and told that it was the last time.
    assert!(request(&mut kept).contains("connection: close"));
    server.thread.join().unwrap();
    assert!(server.seen.0.lock().unwrap().len() >= 2);
}
