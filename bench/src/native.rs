//! What a server costs that does nothing but answer: hyper with a fixed
//! response, one single-threaded runtime for each core, each with a listener of
//! its own on the same port (`SO_REUSEPORT`). Its CPU per request is nearly all
//! the kernel's; it is what the others are divided by.

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::LocalSet;

use crate::error::Error;

/// Connections that wait to be accepted, for each thread.
const BACKLOG_COUNT: i32 = 1024;

/// What to serve.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The body of every response
    #[arg(long, default_value = "Hello, world!\n")]
    body: String,
    /// Threads, each with a runtime and a listener; the number of cores unless told
    #[arg(long)]
    threads: Option<usize>,
}

/// Serves until the process is ended.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let threads = options.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let body = Bytes::from(options.body.clone());
    let first = listener(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address = first.local_addr().map_err(Error::io("cannot read the port"))?;
    let mut listeners = vec![first];
    for _ in 1..threads {
        listeners.push(listener(address)?);
    }
    let workers = listeners
        .into_iter()
        .map(|listener| {
            let body = body.clone();
            thread::spawn(move || serve(listener, &body))
        })
        .collect::<Vec<_>>();
    writeln!(io::stdout(), "Serving http://{address}")
        .map_err(Error::io("cannot write to standard output"))?;
    for worker in workers {
        if let Ok(result) = worker.join() {
            result?;
        }
    }
    Ok(())
}

/// One of several listeners on the same address.
fn listener(address: SocketAddr) -> Result<TcpListener, Error> {
    let bound = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG_COUNT)?;
        Ok(socket.into())
    };
    bound().map_err(Error::io(format!("cannot listen on `{address}`")))
}

/// One thread: accepts, and serves each connection in a task.
fn serve(listener: TcpListener, body: &Bytes) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::io("cannot start a runtime"))?;
    LocalSet::new().block_on(&runtime, async {
        let listener =
            tokio::net::TcpListener::from_std(listener).map_err(Error::io("cannot use the listener"))?;
        loop {
            let (stream, _) = listener.accept().await.map_err(Error::io("cannot accept a connection"))?;
            stream.set_nodelay(true).map_err(Error::io("cannot set TCP_NODELAY"))?;
            let body = body.clone();
            tokio::task::spawn_local(async move {
                let service = service_fn(|_request: Request<Incoming>| {
                    let mut response = Response::new(Full::new(body.clone()));
                    let text = HeaderValue::from_static("text/plain; charset=utf-8");
                    response.headers_mut().insert(CONTENT_TYPE, text);
                    std::future::ready(Ok::<_, Infallible>(response))
                });
                // A connection that breaks is the load generator's to report.
                let _ = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    })
}
