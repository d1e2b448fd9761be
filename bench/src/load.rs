//! A closed-loop HTTP/1.1 load generator.
//!
//! Each connection sends a request, waits for the whole response, checks it and
//! sends the next one. It runs in this process on as many threads as the
//! machine has cores, each with its own single-threaded runtime, and shares the
//! machine with the server: requests per second are therefore a lower bound.
//!
//! A client on the same machine that waits for a response has to be woken up by
//! the server, which pays for that inside its own `write`: 3 to 5 µs a request on a
//! virtual machine, but next to nothing when the server is so quick that its client
//! never gets to sleep. A *busy* client never sleeps and so costs no server
//! anything, but it takes its share of every core: then a server never runs on all
//! of them at once and does not pay what that costs (unmapping memory interrupts
//! the other cores). Neither is the truth about a client on another machine; the
//! ordinary client is the default, since servers in production have their cores
//! to themselves.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::client;
use crate::error::Error;
use crate::histogram::Histogram;
use crate::response::{self, Expected, Parsed};

/// Room for one response; a hello with its headers needs some 200 bytes, and a
/// response that does not fit is counted as an error.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long requests that were sent inside the window may take to be answered
/// after it; a server that stalls is found out by it.
const STRAGGLER_MS: u64 = 10_000;
/// Pause after a failed connection, so that a dead server costs no core.
const RECONNECT_PAUSE_MS: u64 = 10;

/// Requests before the window: the server fills its pools and caches.
const WARMING: u8 = 0;
/// Responses are counted.
const MEASURING: u8 = 1;
/// Connections finish their request and end.
const ENDING: u8 = 2;

/// What to send where, and what must come back.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Where the server listens.
    pub(crate) address: SocketAddr,
    /// The host that every request names.
    pub(crate) host: String,
    /// The path of every request.
    pub(crate) path: String,
    /// What every response must be.
    pub(crate) expected: Expected,
    /// Connections, each with one request under way.
    pub(crate) connections: usize,
    /// Whether the client's threads never sleep.
    pub(crate) is_busy: bool,
}

/// What a measured window showed.
pub(crate) struct Window {
    /// Length of the window.
    pub(crate) elapsed: Duration,
    /// Nanoseconds from the first byte sent to the last byte received, of the
    /// responses that were as expected.
    pub(crate) latency_ns: Histogram,
    /// Responses that were not as expected, and connections that broke.
    pub(crate) errors: u64,
    /// Requests that were due but could not be sent before patience was over: of an
    /// open loop, and not among the errors.
    pub(crate) unsent: u64,
    /// What the first of all these was.
    pub(crate) first_error: Option<String>,
}

impl Window {
    /// Everything that was due and did not end as it should.
    pub(crate) fn failures(&self) -> u64 {
        self.errors + self.unsent
    }
}

/// What one thread of a load generator counted.
pub(crate) struct Tally {
    latency_ns: Histogram,
    errors: u64,
    unsent: u64,
    first_error: Option<String>,
}

impl Tally {
    /// Nothing counted yet.
    pub(crate) fn new() -> Self {
        Self { latency_ns: Histogram::new(), errors: 0, unsent: 0, first_error: None }
    }

    /// Counts a response that was as expected.
    pub(crate) fn record(&mut self, latency: Duration) {
        self.latency_ns.record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Counts one that was not.
    pub(crate) fn fail(&mut self, cause: String) {
        self.errors += 1;
        self.first_error.get_or_insert(cause);
    }

    /// Counts a request that was due this long ago and is given up: it would have
    /// taken at least that.
    pub(crate) fn give_up(&mut self, late: Duration) {
        self.record(late);
        self.unsent += 1;
        self.first_error.get_or_insert_with(|| format!("not sent {late:?} after it was due"));
    }

    /// Adds what another thread counted.
    pub(crate) fn merge(&mut self, other: Self) {
        self.latency_ns.merge(&other.latency_ns);
        self.errors += other.errors;
        self.unsent += other.unsent;
        if let (None, Some(cause)) = (&self.first_error, other.first_error) {
            self.first_error = Some(cause);
        }
    }

    /// What was counted, as the result of a window of this length.
    pub(crate) fn over(self, elapsed: Duration) -> Window {
        let Self { latency_ns, errors, unsent, first_error } = self;
        Window { elapsed, latency_ns, errors, unsent, first_error }
    }
}

/// Drives the server for `warm_up`, then for `window`, and calls `observe` at
/// both ends of the window.
///
/// # Errors
/// If this process cannot get threads or sockets, or `observe` fails. What the
/// server does wrong is counted, not returned.
pub(crate) fn run<Observation>(
    load: &Load,
    warm_up: Duration,
    window: Duration,
    observe: impl Fn() -> Result<Observation, Error>,
) -> Result<(Window, Observation, Observation), Error> {
    let phase = Arc::new(AtomicU8::new(WARMING));
    let threads = thread::available_parallelism().map_or(1, usize::from).min(load.connections.max(1));
    let patience = warm_up + window + Duration::from_millis(STRAGGLER_MS);
    let mut workers = Vec::with_capacity(threads);
    for index in 0..threads {
        let connections = load.connections / threads + usize::from(index < load.connections % threads);
        let load = Load { connections, ..load.clone() };
        let phase = Arc::clone(&phase);
        let worker = thread::Builder::new()
            .name(format!("load-{index}"))
            .spawn(move || drive(load, &phase, patience))
            .map_err(Error::io("cannot start a thread of the load generator"))?;
        workers.push(worker);
    }
    thread::sleep(warm_up);
    let before = observe();
    let start = Instant::now();
    phase.store(MEASURING, Ordering::Relaxed);
    thread::sleep(window);
    phase.store(ENDING, Ordering::Relaxed);
    let elapsed = start.elapsed();
    let after = observe();
    let mut tally = Tally::new();
    for worker in workers {
        match worker.join() {
            Ok(result) => tally.merge(result?),
            Err(_) => tally.fail("a thread of the load generator ended early".to_owned()),
        }
    }
    Ok((tally.over(elapsed), before?, after?))
}

/// Sends one request and says what was wrong with the response, if anything.
///
/// # Errors
/// If this process cannot get a socket.
pub(crate) fn probe(load: &Load) -> Result<Option<String>, Error> {
    let runtime = runtime()?;
    Ok(runtime.block_on(async {
        let once = async {
            let mut connection = Connection::open(load).await?;
            connection.exchange(&load.expected).await
        };
        match tokio::time::timeout(Duration::from_millis(STRAGGLER_MS), once).await {
            Ok(result) => result.err(),
            Err(_) => Some(format!("no response within {STRAGGLER_MS} ms")),
        }
    }))
}

/// A runtime for one thread of connections.
fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::io("cannot start a runtime of the load generator"))
}

/// One thread: all its connections until the end, or until `patience` is over.
fn drive(load: Load, phase: &Arc<AtomicU8>, patience: Duration) -> Result<Tally, Error> {
    let runtime = runtime()?;
    let load = Rc::new(load);
    let tally = Rc::new(RefCell::new(Tally::new()));
    let tasks = LocalSet::new();
    let handles = (0..load.connections)
        .map(|_| tasks.spawn_local(connection_loop(Rc::clone(&load), Arc::clone(phase), Rc::clone(&tally))))
        .collect::<Vec<_>>();
    // One timer for the thread instead of one for each request: setting and
    // clearing those would take a share of the machine from the server.
    tasks.block_on(&runtime, async {
        let is_busy = load.is_busy;
        let restless = tokio::task::spawn_local(async move {
            if !is_busy {
                return;
            }
            loop {
                tokio::task::yield_now().await;
            }
        });
        let deadline = tokio::time::Instant::now() + patience;
        for handle in handles {
            match tokio::time::timeout_at(deadline, handle).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => tally.borrow_mut().fail("a connection's task ended early".to_owned()),
                Err(_) => tally.borrow_mut().fail(format!("no response within {STRAGGLER_MS} ms")),
            }
        }
        restless.abort();
    });
    Ok(tally.replace(Tally::new()))
}

/// One connection, opened again when it breaks.
async fn connection_loop(load: Rc<Load>, phase: Arc<AtomicU8>, tally: Rc<RefCell<Tally>>) {
    let mut connection = None;
    while phase.load(Ordering::Relaxed) != ENDING {
        match turn(&load, &mut connection).await {
            Ok(latency) if phase.load(Ordering::Relaxed) == MEASURING => tally.borrow_mut().record(latency),
            Ok(_) => {}
            // Errors count from the beginning: a server that fails while it
            // warms up is not one whose figures are worth having.
            Err(cause) => {
                tally.borrow_mut().fail(cause);
                connection = None;
                tokio::time::sleep(Duration::from_millis(RECONNECT_PAUSE_MS)).await;
            }
        }
    }
}

/// One request on a connection that may have to be opened first.
async fn turn(load: &Load, connection: &mut Option<Connection>) -> Result<Duration, String> {
    let open = match connection {
        Some(open) => open,
        None => connection.insert(Connection::open(load).await?),
    };
    let start = Instant::now();
    let keep_alive = open.exchange(&load.expected).await?;
    let latency = start.elapsed();
    if !keep_alive {
        *connection = None;
    }
    Ok(latency)
}

/// One connection and the buffers it uses again and again.
struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(load: &Load) -> Result<Self, String> {
        let stream =
            TcpStream::connect(load.address).await.map_err(|cause| format!("cannot connect: {cause}"))?;
        stream.set_nodelay(true).map_err(|cause| format!("cannot set TCP_NODELAY: {cause}"))?;
        let request = client::request("GET", &load.host, &load.path);
        Ok(Self { stream, request, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Sends a request and reads its response; whether the connection can
    /// carry another one.
    async fn exchange(&mut self, expected: &Expected) -> Result<bool, String> {
        self.stream.write_all(&self.request).await.map_err(|cause| format!("cannot send: {cause}"))?;
        let mut filled = 0;
        loop {
            let room = self.buffer.get_mut(filled..).unwrap_or_default();
            if room.is_empty() {
                return Err(format!("a response of more than {BUFFER_BYTES} bytes"));
            }
            let received =
                self.stream.read(room).await.map_err(|cause| format!("cannot receive: {cause}"))?;
            if received == 0 {
                return Err("the connection was closed before the response's end".to_owned());
            }
            filled += received;
            match response::parse(self.buffer.get(..filled).unwrap_or_default(), expected) {
                Parsed::Partial => {}
                Parsed::Complete { bytes, keep_alive, .. } if bytes == filled => return Ok(keep_alive),
                Parsed::Complete { .. } => return Err("bytes after the response's end".to_owned()),
                Parsed::Wrong(cause) => return Err(cause),
            }
        }
    }
}
