//! What the probe guests share.
//!
//! A probe guest does one thing per path, so that a test can say in one URL
//! what it wants to see from inside the sandbox. This crate reads the request
//! target and serves the paths that need nothing but `std`; each guest adds
//! the paths that depend on its SDK. The list of paths is in `guests/README.md`.
//!
//! Whatever asks the host for something answers status 200 with either
//! `{"ok": …}` or `{"error": "…"}`, so that a refusal by the host is never
//! mistaken for a broken guest.

use std::fmt::Debug;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

/// The path and the decoded query of a request.
pub struct Target {
    /// The part of the path that this guest dispatches on.
    pub path: String,
    pairs: Vec<(String, String)>,
}

/// An answer whose body is known at once.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Target {
    /// Reads `uri`, absolute or not. `path_info` is the value of the header
    /// `spin-path-info`: it replaces the path where the app is mounted below
    /// a prefix.
    pub fn new(uri: &str, path_info: Option<&str>) -> Self {
        let after_scheme = uri.split_once("://").map_or(uri, |(_, rest)| rest);
        let target = if uri.contains("://") {
            after_scheme.find(['/', '?']).map_or("/", |at| &after_scheme[at..])
        } else {
            uri
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = path_info.filter(|info| !info.is_empty()).unwrap_or(path);
        let pairs = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (decode(name), decode(value)))
            .collect();
        Self { path: path.to_owned(), pairs }
    }

    /// The first value of a query parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// A query parameter, or what stands in for it.
    pub fn get_or<'a>(&'a self, name: &str, otherwise: &'a str) -> &'a str {
        self.get(name).unwrap_or(otherwise)
    }

    /// A numeric query parameter, or what stands in for it.
    pub fn number(&self, name: &str, otherwise: u64) -> u64 {
        self.get(name).and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    }

    /// Every value of a query parameter that may repeat.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The header fields that repeated `header=name:value` parameters ask for.
    pub fn headers(&self) -> Vec<(String, String)> {
        self.all("header")
            .filter_map(|field| field.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }
}

impl Reply {
    pub fn text(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("content-type".to_owned(), "text/plain".to_owned())];
        Self { status, headers, body: body.into() }
    }

    pub fn json(value: &Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self { status: 200, headers, body: value.to_string().into_bytes() }
    }

    /// `{"ok": …}` or `{"error": "…"}`.
    pub fn outcome<E: Debug>(result: Result<Value, E>) -> Self {
        Self::json(&match result {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({ "error": format!("{error:?}") }),
        })
    }

    pub fn not_found(path: &str) -> Self {
        Self::text(404, format!("this guest has no {path}\n"))
    }
}

/// The bytes as text where they are text, else as `{"hex": "…"}`.
pub fn bytes_to_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": to_hex(bytes) }),
    }
}

pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn from_hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks_exact(2)
        .filter_map(|pair| std::str::from_utf8(pair).ok())
        .filter_map(|pair| u8::from_str_radix(pair, 16).ok())
        .collect()
}

/// A body of which every byte can be checked: the alphabet, over and over.
pub fn pattern(length: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(length).collect()
}

/// Serves the paths that need nothing but `std`; `None` for any other.
pub fn serve(target: &Target) -> Option<Reply> {
    Some(match target.path.as_str() {
        "/" => Reply::text(200, "Hello from a probe\n"),
        "/status" => Reply::text(target.number("code", 200) as u16, ""),
        "/headers" => Reply {
            status: 200,
            headers: [
                ("x-one", "1"),
                ("x-two", "a"),
                ("x-two", "b"),
                ("set-cookie", "a=1"),
                ("set-cookie", "b=2"),
            ]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .chain(target.headers())
            .collect(),
            body: b"headers\n".to_vec(),
        },
        "/big" => Reply::text(200, pattern(target.number("bytes", 1 << 20) as usize)),
        "/count" => {
            static REQUESTS: AtomicU64 = AtomicU64::new(0);
            Reply::text(200, (REQUESTS.fetch_add(1, Ordering::Relaxed) + 1).to_string())
        }
        "/env" => {
            Reply::json(&Value::Object(std::env::vars().map(|(name, value)| (name, json!(value))).collect()))
        }
        "/args" => Reply::json(&json!(std::env::args().collect::<Vec<_>>())),
        "/file" => Reply::outcome(
            std::fs::read(target.get_or("path", "/")).map(|bytes| bytes_to_json(&bytes)).map_err(describe),
        ),
        "/files" => Reply::outcome(list_files(target.get_or("path", "/")).map_err(describe)),
        "/write-file" => Reply::outcome(
            std::fs::write(target.get_or("path", "/"), target.get_or("text", "written"))
                .map(|()| json!(true))
                .map_err(describe),
        ),
        "/stdout" => {
            println!("{}", target.get_or("line", "a line on stdout"));
            Reply::json(&json!({ "ok": true }))
        }
        "/stderr" => {
            eprintln!("{}", target.get_or("line", "a line on stderr"));
            Reply::json(&json!({ "ok": true }))
        }
        "/memory" => {
            let length_bytes = (target.number("mb", 1) as usize) << 20;
            let mut memory = Vec::new();
            match memory.try_reserve_exact(length_bytes) {
                Ok(()) => memory.resize(length_bytes, 1_u8),
                Err(error) => return Some(Reply::outcome::<String>(Err(error.to_string()))),
            }
            // Read it back, or the optimiser would see that nobody needs it.
            let sum: usize = std::hint::black_box(&memory).iter().map(|byte| usize::from(*byte)).sum();
            Reply::json(&json!({ "ok": sum }))
        }
        "/trap" => deliberate_trap(),
        "/exit" => std::process::exit(target.number("code", 1) as i32),
        "/spin" => spin_forever(),
        "/block" => {
            std::thread::sleep(std::time::Duration::from_millis(target.number("ms", 100)));
            Reply::text(200, "awake\n")
        }
        "/tcp" => Reply::outcome(tcp(target).map_err(describe)),
        "/udp" => Reply::outcome(udp(target).map_err(describe)),
        "/dns" => Reply::outcome(
            (target.get_or("host", "localhost"), 80_u16)
                .to_socket_addrs()
                .map(|addresses| json!(addresses.map(|address| address.ip().to_string()).collect::<Vec<_>>()))
                .map_err(describe),
        ),
        _ => return None,
    })
}

/// Stands in the backtrace that the tests look for.
#[inline(never)]
pub fn deliberate_trap() -> ! {
    panic!("this guest was asked to trap");
}

/// Never gives control back: only the host's limits can end it.
#[inline(never)]
pub fn spin_forever() -> ! {
    let mut number = 0_u64;
    loop {
        number = std::hint::black_box(number.wrapping_add(1));
    }
}

fn describe(error: std::io::Error) -> String {
    format!("{:?}: {error}", error.kind())
}

fn list_files(path: &str) -> std::io::Result<Value> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(json!(names))
}

/// Connects to `addr`, sends `send` and answers what comes back first.
fn tcp(target: &Target) -> std::io::Result<Value> {
    let mut stream = TcpStream::connect(target.get_or("addr", "127.0.0.1:1"))?;
    let Some(text) = target.get("send") else { return Ok(json!("connected")) };
    stream.write_all(text.as_bytes())?;
    let mut buffer = [0; 4096];
    let length = stream.read(&mut buffer)?;
    Ok(bytes_to_json(&buffer[..length]))
}

/// Sends `send` to `addr` and answers the first datagram that comes back.
fn udp(target: &Target) -> std::io::Result<Value> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(target.get_or("addr", "127.0.0.1:1"))?;
    socket.send(target.get_or("send", "ping").as_bytes())?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer)?;
    Ok(bytes_to_json(&buffer[..length]))
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                from_hex(&String::from_utf8_lossy(&digits)).first().copied().unwrap_or(b'%')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
