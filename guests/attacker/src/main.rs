//! Takes what it can get, in one way for each path:
//!
//! | path | does, without end |
//! | --- | --- |
//! | `/spin` | computes |
//! | `/allocate` | allocates and touches memory until there is none, and begins again |
//! | `/log` | writes lines of 1 KiB to standard error |
//! | `/connect/PORT` | opens connections to that port of 127.0.0.1 until it may not, and begins again |
//! | `/read` | reads the request's body, however long that takes; answers its length |
//!
//! Only the host ends the first four.

use std::hint::black_box;
use std::net::{Ipv4Addr, TcpStream};

use wstd::http::{Body, Error, Request, Response, StatusCode};

/// How much is allocated at a time, in bytes.
const PIECE_BYTES: usize = 1 << 20;
/// Length of a page of memory in bytes: what is written to once is really there.
const PAGE_BYTES: usize = 4096;
/// Length of a logged line in bytes, with its end.
const LINE_BYTES: usize = 1024;

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/spin" => spin(),
        "/allocate" => allocate(),
        "/log" => log(),
        "/read" => {
            let mut body = request.into_body();
            let bytes = body.contents().await?.len();
            Ok(Response::new(format!("{bytes}\n").into()))
        }
        _ => match path.strip_prefix("/connect/").and_then(|port| port.parse().ok()) {
            Some(port) => connect(port),
            None => Ok(Response::builder().status(StatusCode::NOT_FOUND).body(Body::empty())?),
        },
    }
}

fn spin() -> ! {
    let mut number = 0_u64;
    loop {
        number = black_box(number.wrapping_add(1));
    }
}

fn allocate() -> ! {
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut piece = Vec::new();
        if piece.try_reserve_exact(PIECE_BYTES).is_err() {
            pieces.clear();
            continue;
        }
        piece.resize(PIECE_BYTES, 0);
        piece.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
        pieces.push(black_box(piece));
    }
}

fn log() -> ! {
    let line = "x".repeat(LINE_BYTES - 1);
    loop {
        eprintln!("{line}");
    }
}

fn connect(port: u16) -> ! {
    let mut connections = Vec::new();
    loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Ok(connection) => connections.push(connection),
            Err(_) => connections.clear(),
        }
    }
}
