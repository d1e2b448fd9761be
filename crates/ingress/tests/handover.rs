//! A server that is replaced by another process, again and again, under load.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]
#![allow(clippy::print_stdout, reason = "how the two processes of this test talk, and what it counted")]

use std::{
    collections::BTreeSet,
    convert::Infallible,
    io::{BufRead as _, BufReader},
    net::TcpListener as StdTcpListener,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{client::conn::http1::SendRequest, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wisp_ingress::handover::{Offer, take_over};

const NAME: &str = "no_request_fails_while_processes_replace_each_other";

/// Tells this program that it is to be a server, with its data in this folder.
const SERVER_VARIABLE: &str = "WISP_TEST_HANDOVER_SERVER";

/// How often the server is replaced.
const REPLACEMENTS_COUNT: usize = 5;

/// Requests that each server answers before it is replaced.
const REQUESTS_EACH_COUNT: usize = 1_000;

/// Clients that use a connection for each request, and as many that keep theirs.
const CLIENTS_COUNT: usize = 4;

/// Answers with its process's id until a successor takes over.
async fn server(folder: &Path) {
    let path = folder.join("handover.sock");
    let inheritance = take_over(&path).await.unwrap();
    let (socket, inheritance) = match inheritance {
        Some(mut inheritance) => (StdTcpListener::from(inheritance.take("http").unwrap()), Some(inheritance)),
        None => (StdTcpListener::bind("127.0.0.1:0").unwrap(), None),
    };
    socket.set_nonblocking(true).unwrap();
    let kept = socket.try_clone().unwrap();
    let listener = TcpListener::from_std(socket).unwrap();
    let address = listener.local_addr().unwrap();
    let (is_draining, closing) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
    let connections = TaskTracker::new();
    let accepting = tokio::spawn({
        let (is_draining, closing, connections) = (is_draining.clone(), closing.clone(), connections.clone());
        async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(answer(stream, is_draining.clone(), closing.clone()));
            }
        }
    });
    if let Some(inheritance) = inheritance {
        drop(inheritance.ready().await.unwrap());
    }
    let offer = Offer::bind(&path).unwrap();
    println!("ready {address}");
    let _handed_over = offer.handed_over(&[("http", kept.as_fd())]).await.unwrap();

    accepting.abort();
    is_draining.store(true, Ordering::SeqCst);
    connections.close();
    if tokio::time::timeout(Duration::from_secs(10), connections.wait()).await.is_err() {
        closing.cancel();
        connections.wait().await;
    }
}

/// Answers on one connection; while draining, answers say that it is the last.
async fn answer(stream: TcpStream, is_draining: Arc<AtomicBool>, closing: CancellationToken) {
    let service = service_fn(move |_request| {
        let is_draining = is_draining.load(Ordering::SeqCst);
        async move {
            let mut response = Response::new(Full::new(Bytes::from(std::process::id().to_string())));
            if is_draining {
                response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        _ = &mut serving => {}
        () = closing.cancelled() => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.await;
        }
    }
}

struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// Starts a process; it is ready when this returns.
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(SERVER_VARIABLE, folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        // The harness begins the line.
        let address = lines.by_ref().find_map(|line| Some(line.split_once("ready ")?.1.to_owned())).unwrap();
        std::thread::spawn(move || lines.count());
        Self { child, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What clients saw.
#[derive(Default)]
struct Seen {
    failures: Vec<String>,
    processes: BTreeSet<String>,
}

async fn client(
    address: String,
    keeps_connection: bool,
    is_over: Arc<AtomicBool>,
    requests_count: Arc<AtomicUsize>,
) -> Seen {
    let mut seen = Seen::default();
    let mut kept: Option<SendRequest<Empty<Bytes>>> = None;
    while !is_over.load(Ordering::SeqCst) {
        requests_count.fetch_add(1, Ordering::SeqCst);
        match request(&address, &mut kept).await {
            Ok(process) => {
                seen.processes.insert(process);
            }
            Err(error) => seen.failures.push(error),
        }
        if !keeps_connection {
            kept = None;
        }
    }
    seen
}

/// One request, on the connection that was kept unless its last answer said that it ends.
async fn request(address: &str, kept: &mut Option<SendRequest<Empty<Bytes>>>) -> Result<String, String> {
    let text = |error: &dyn std::error::Error| format!("{error:?}");
    let mut sender = match kept.take() {
        Some(sender) => sender,
        None => {
            let stream = TcpStream::connect(address).await.map_err(|error| text(&error))?;
            let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| text(&error))?;
            tokio::spawn(connection);
            sender
        }
    };
    let request = Request::get("/").header(header::HOST, "localhost").body(Empty::new()).unwrap();
    let response = sender.send_request(request).await.map_err(|error| text(&error))?;
    let is_last = response.headers().get(header::CONNECTION).is_some_and(|value| value == "close");
    let body = response.into_body().collect().await.map_err(|error| text(&error))?.to_bytes();
    if !is_last && sender.ready().await.is_ok() {
        *kept = Some(sender);
    }
    String::from_utf8(body.to_vec()).map_err(|error| text(&error))
}

#[test]
fn no_request_fails_while_processes_replace_each_other() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(folder) = std::env::var_os(SERVER_VARIABLE) {
        return runtime.block_on(server(&PathBuf::from(folder)));
    }
    let folder = tempfile::tempdir().unwrap();
    let mut current = Server::start(folder.path());
    let mut processes = BTreeSet::from([current.child.id().to_string()]);
    let is_over = Arc::new(AtomicBool::new(false));
    let requests_count = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..CLIENTS_COUNT * 2)
        .map(|index| {
            let (is_over, requests_count) = (is_over.clone(), requests_count.clone());
            runtime.spawn(client(current.address.clone(), index % 2 == 0, is_over, requests_count))
        })
        .collect();
    let wait_for_load = || {
        let enough_count = requests_count.load(Ordering::SeqCst) + REQUESTS_EACH_COUNT;
        while requests_count.load(Ordering::SeqCst) < enough_count {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    for _ in 0..REPLACEMENTS_COUNT {
        wait_for_load();
        let next = Server::start(folder.path());
        assert_eq!(next.address, current.address);
        assert!(current.child.wait().unwrap().success(), "the old process ends by itself");
        processes.insert(next.child.id().to_string());
        current = next;
    }
    wait_for_load();
    // A successor that dies half-way changes nothing.
    let path = folder.path().join("handover.sock");
    drop(runtime.block_on(take_over(&path)).unwrap().unwrap());
    wait_for_load();
    assert!(current.child.try_wait().unwrap().is_none());
    is_over.store(true, Ordering::SeqCst);

    let mut all = Seen::default();
    for client in clients {
        let seen = runtime.block_on(client).unwrap();
        all.failures.extend(seen.failures);
        all.processes.extend(seen.processes);
    }
    let requests_count = requests_count.load(Ordering::SeqCst);
    assert!(all.failures.is_empty(), "of {requests_count} requests: {:?}", all.failures);
    assert_eq!(all.processes, processes, "each process answered");
    println!("{requests_count} requests, {} processes, no failure", processes.len());
}
