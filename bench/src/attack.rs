//! Clients that do their worst, and what they drive guests to do.
//!
//! All connections of an attack live in one thread with a runtime of its own, so
//! that ending the attack closes all of them at once.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::error::Error;
use crate::report::progress;

/// Requests that are under way at once, where a request costs the client nothing.
const REQUESTS_COUNT: usize = 200;
/// Requests at once that allocate: with the memory that each may have, what the
/// machine can spare.
const ALLOCATING_COUNT: usize = 16;
/// Requests at once whose bodies arrive slowly.
const SLOW_COUNT: usize = 500;
/// The length of a slow body in bytes, and the pause between two of them.
const SLOW_BODY_BYTES: usize = 1_000_000;
const SLOW_PAUSE: Duration = Duration::from_millis(200);
/// Pause after a request that was answered, refused or broken off: 200 of them that
/// are refused at once are 2,000 a second, which is rude, but no flood of requests.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// The attack's clients and targets would be on machines of their own: here they take
/// from A's clients and from the server's workers what nobody else wants.
const NICE: i32 = 15;
/// How much of a response is looked at to tell its status, in bytes.
const STATUS_BYTES: usize = 12;

/// What an attacker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Computes without end.
    Spin,
    /// Allocates up to its limit, again and again.
    Allocate,
    /// Writes log lines without end.
    Log,
    /// Opens outbound connections without end.
    Connect,
    /// Sends the bodies of its requests byte by byte.
    SlowBody,
}

/// A running attack; it ends when this is dropped.
pub(crate) struct Attack {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Kind {
    /// All of them, in the order of the tables.
    pub(crate) const ALL: [Self; 5] = [Self::Spin, Self::Allocate, Self::Log, Self::Connect, Self::SlowBody];

    /// What figures call it.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Spin => "spin",
            Self::Allocate => "allocate",
            Self::Log => "log",
            Self::Connect => "connect",
            Self::SlowBody => "slow_body",
        }
    }

    /// What tables call it.
    pub(crate) fn title(self) -> String {
        match self {
            Self::Spin => format!("B: {REQUESTS_COUNT} requests spin"),
            Self::Allocate => format!("C: {ALLOCATING_COUNT} requests allocate"),
            Self::Log => format!("D: {REQUESTS_COUNT} requests flood logs"),
            Self::Connect => format!("E: {REQUESTS_COUNT} requests open connections"),
            Self::SlowBody => format!("F: {SLOW_COUNT} requests with slow bodies"),
        }
    }

    fn connections(self) -> usize {
        match self {
            Self::Spin | Self::Log | Self::Connect => REQUESTS_COUNT,
            Self::Allocate => ALLOCATING_COUNT,
            Self::SlowBody => SLOW_COUNT,
        }
    }

    /// The head of each request; each has a connection of its own.
    fn head(self, host: &str, sink: SocketAddr) -> String {
        let (method, path) = match self {
            Self::Spin => ("GET", "/spin".to_owned()),
            Self::Allocate => ("GET", "/allocate".to_owned()),
            Self::Log => ("GET", "/log".to_owned()),
            Self::Connect => ("GET", format!("/connect/{}", sink.port())),
            Self::SlowBody => ("POST", "/read".to_owned()),
        };
        let length = match self {
            Self::SlowBody => format!("content-length: {SLOW_BODY_BYTES}\r\n"),
            _ => String::new(),
        };
        format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{length}connection: close\r\n\r\n")
    }
}

impl Attack {
    /// Begins to attack the app at `host`.
    ///
    /// # Errors
    /// If this process cannot get a thread or a socket.
    pub(crate) fn start(kind: Kind, server: SocketAddr, host: &str) -> Result<Self, Error> {
        let host = host.to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::io("cannot start a runtime of the attack"))?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("attack".to_owned())
            .spawn(move || {
                if let Err(cause) = rustix::process::setpriority_process(None, NICE) {
                    progress(&format!("the attack has the priority of A's clients: {cause}"));
                }
                let tasks = LocalSet::new();
                tasks.block_on(&runtime, async {
                    if let Err(cause) = attack(kind, server, &host, stopped).await {
                        progress(&format!("the attack fails: {cause}"));
                    }
                });
            })
            .map_err(Error::io("cannot start a thread of the attack"))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It has ended already if nobody listens.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Attacks until it is told to stop, then says how its requests ended.
async fn attack(
    kind: Kind,
    server: SocketAddr,
    host: &str,
    stopped: oneshot::Receiver<()>,
) -> std::io::Result<()> {
    let sink = TcpListener::bind("127.0.0.1:0").await?;
    let head: Rc<str> = kind.head(host, sink.local_addr()?).into();
    let [served, refused, broken] = [0, 0, 0].map(|none| Rc::new(Cell::new(none)));
    let accepted = Cell::new(0);
    for index in 0..kind.connections() {
        let head = Rc::clone(&head);
        let [served, refused, broken] = [&served, &refused, &broken].map(Rc::clone);
        // Clients who know nothing of each other do not all send in the same millisecond.
        let delay = SLOW_PAUSE.mul_f64(index as f64 / kind.connections() as f64);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(delay).await;
            loop {
                match request(kind, server, &head).await {
                    Ok(b'2') => count(&served),
                    Ok(_) => count(&refused),
                    Err(_) => count(&broken),
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        });
    }
    let sink_task = async {
        loop {
            // Out of descriptors: the attacker has got what it wanted.
            let Ok((mut stream, _)) = sink.accept().await else {
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            };
            count(&accepted);
            tokio::task::spawn_local(async move {
                let mut buffer = [0; 1024];
                while stream.read(&mut buffer).await.is_ok_and(|bytes| bytes > 0) {}
            });
        }
    };
    tokio::select! {
        () = sink_task => {}
        _ = stopped => {}
    }
    progress(&format!(
        "{}: {} requests answered, {} refused, {} broken off, {} connections opened",
        kind.title(),
        served.get(),
        refused.get(),
        broken.get(),
        accepted.get()
    ));
    Ok(())
}

fn count(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

/// One request to its end; the first digit of its status.
async fn request(kind: Kind, server: SocketAddr, head: &str) -> std::io::Result<u8> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.into_split();
    writer.write_all(head.as_bytes()).await?;
    let slowly = async {
        if kind == Kind::SlowBody {
            for _ in 0..SLOW_BODY_BYTES {
                if writer.write_all(b"x").await.is_err() {
                    break;
                }
                tokio::time::sleep(SLOW_PAUSE).await;
            }
        }
        std::future::pending::<()>().await;
    };
    let answered = async {
        let mut beginning = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let bytes = reader.read(&mut buffer).await?;
            if bytes == 0 {
                break;
            }
            let room = STATUS_BYTES.saturating_sub(beginning.len()).min(bytes);
            beginning.extend_from_slice(buffer.get(..room).unwrap_or_default());
        }
        // `HTTP/1.1 200`
        beginning.get(STATUS_BYTES - 3).copied().ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    };
    tokio::select! {
        () = slowly => Err(std::io::ErrorKind::TimedOut.into()),
        digit = answered => digit,
    }
}
