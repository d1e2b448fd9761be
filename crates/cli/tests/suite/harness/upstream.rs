//! Servers for guests to reach.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use serde_json::{Value, json};

/// An HTTP/1.1 server that keeps connections open.
///
/// `/echo` sends the request's body back piece by piece, as it comes. Every other
/// path answers with what it was asked, as JSON.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    accepted_count: Arc<AtomicUsize>,
}

impl Upstream {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accepted_count = Arc::new(AtomicUsize::new(0));
        let count = accepted_count.clone();
        // Ends with the process: a test's last connection may still be open.
        thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                // A client that goes away ends its connection and nothing else.
                thread::spawn(move || drop(serve(stream.unwrap())));
            }
        });
        Self { address, accepted_count }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// How many connections have come in.
    pub(crate) fn accepted_count(&self) -> usize {
        self.accepted_count.load(Ordering::SeqCst)
    }
}

fn serve(stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let (method, target) =
            (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default());
        let target = target.to_owned();
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let header =
            |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        let mut length = match (header("transfer-encoding"), header("content-length")) {
            (Some("chunked"), _) => None,
            (_, length) => Some(length.and_then(|length| length.parse().ok()).unwrap_or(0)),
        };
        let is_echo = target == "/echo";
        if is_echo {
            writer.write_all(b"HTTP/1.1 200 OK\r\nx-upstream: yes\r\ntransfer-encoding: chunked\r\n\r\n")?;
        }
        let mut body = Vec::new();
        while let Some(piece) = read_piece(&mut reader, &mut length)? {
            if is_echo {
                write!(writer, "{:x}\r\n", piece.len())?;
                writer.write_all(&piece)?;
                writer.write_all(b"\r\n")?;
            } else {
                body.extend(piece);
            }
        }
        if is_echo {
            writer.write_all(b"0\r\n\r\n")?;
        } else {
            let seen: Vec<Value> = headers.iter().map(|(name, value)| json!([name, value])).collect();
            let answer = json!({
                "method": method,
                "target": target,
                "headers": seen,
                "body": String::from_utf8_lossy(&body),
            })
            .to_string();
            write!(
                writer,
                "HTTP/1.1 200 OK\r\nx-upstream: yes\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n\
                 content-length: {}\r\n\r\n{answer}",
                answer.len()
            )?;
        }
    }
}

/// The next piece of a body; `length` is `None` for a chunked one.
fn read_piece(
    reader: &mut BufReader<TcpStream>,
    length: &mut Option<usize>,
) -> std::io::Result<Option<Vec<u8>>> {
    match length {
        Some(0) => Ok(None),
        Some(left) => {
            let available = reader.fill_buf()?;
            let piece = available[..available.len().min(*left)].to_vec();
            if piece.is_empty() {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            *left -= piece.len();
            reader.consume(piece.len());
            Ok(Some(piece))
        }
        None => {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
            let mut piece = vec![0; size + 2];
            reader.read_exact(&mut piece)?;
            piece.truncate(size);
            Ok(if size == 0 { None } else { Some(piece) })
        }
    }
}

/// Sends back what comes in over TCP.
pub(crate) fn tcp_echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || {
                let stream = stream.unwrap();
                std::io::copy(&mut &stream, &mut &stream)
            });
        }
    });
    address
}

/// Sends back what comes in over UDP.
pub(crate) fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            drop(socket.send_to(&buffer[..length], from));
        }
    });
    address
}
