//! A client that blocks: one connection, one request at a time.
//!
//! For benches that ask what a single request takes. What it measures ends with
//! the wake-up of the thread that waits, some 5 to 10 µs on a machine that is idle.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::response::{self, Answer, Expected, Parsed};

/// How much is read at once, in bytes.
const READ_BYTES: usize = 64 * 1024;
/// The longest response that is read: what an operator asks about a hundred thousand
/// apps is some 50 MB.
const RESPONSE_BYTES: usize = 512 * 1024 * 1024;
/// How long a response, and each piece of it, may let itself be waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// One connection and the buffer it uses again and again.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// A response as it came.
#[derive(Clone, Debug)]
pub(crate) struct Received<Response> {
    /// What it was.
    pub(crate) response: Response,
    /// When its first bytes were here.
    pub(crate) first_byte: Instant,
    /// Whether the connection can carry another request.
    pub(crate) keep_alive: bool,
}

/// The text of a request without a body.
pub(crate) fn request(method: &str, host: &str, path: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").into_bytes()
}

impl Client {
    /// Opens a connection.
    ///
    /// # Errors
    /// Why it could not be opened, for people.
    pub(crate) fn open(address: SocketAddr) -> Result<Self, String> {
        Self::open_with(address, PATIENCE)
    }

    /// Opens a connection that waits this long for a response and for each piece of it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_with(address: SocketAddr, patience: Duration) -> Result<Self, String> {
        let open = || {
            let stream = TcpStream::connect_timeout(&address, patience)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))?;
            Ok(stream)
        };
        let stream = open().map_err(|cause: std::io::Error| format!("cannot connect: {cause}"))?;
        Ok(Self { stream, buffer: vec![0; READ_BYTES] })
    }

    /// Sends a request and reads the response, which must be as expected.
    ///
    /// # Errors
    /// What was wrong, for people; the connection is of no further use.
    pub(crate) fn exchange(&mut self, request: &[u8], expected: &Expected) -> Result<Received<()>, String> {
        self.send(request)?;
        self.receive(|buffer| response::parse(buffer, expected))
    }

    /// Sends a request and reads the response, whatever it is.
    ///
    /// # Errors
    /// As [`exchange`](Self::exchange).
    pub(crate) fn fetch(&mut self, request: &[u8]) -> Result<Received<Answer>, String> {
        self.send(request)?;
        self.receive(response::read)
    }

    /// Sends a part of a request.
    ///
    /// # Errors
    /// That it could not be sent, for people.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).map_err(|cause| format!("cannot send: {cause}"))
    }

    fn receive<Response>(
        &mut self,
        parse: impl Fn(&[u8]) -> Parsed<Response>,
    ) -> Result<Received<Response>, String> {
        let mut filled = 0;
        let mut first_byte = None;
        loop {
            if filled == self.buffer.len() {
                if filled >= RESPONSE_BYTES {
                    return Err(format!("a response of more than {RESPONSE_BYTES} bytes"));
                }
                self.buffer.resize(filled * 2, 0);
            }
            let room = self.buffer.get_mut(filled..).unwrap_or_default();
            let received = self.stream.read(room).map_err(|cause| format!("cannot receive: {cause}"))?;
            if received == 0 {
                return Err("the connection was closed before the response's end".to_owned());
            }
            let first_byte = *first_byte.get_or_insert_with(Instant::now);
            filled += received;
            match parse(self.buffer.get(..filled).unwrap_or_default()) {
                Parsed::Partial => {}
                Parsed::Complete { bytes, keep_alive, response } if bytes == filled => {
                    return Ok(Received { response, first_byte, keep_alive });
                }
                Parsed::Complete { .. } => return Err("bytes after the response's end".to_owned()),
                Parsed::Wrong(cause) => return Err(cause),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// A server that gives one connection these bytes, in pieces, for its request.
    fn server(response: Vec<u8>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|error| unreachable!("{error}"));
        let address = listener.local_addr().unwrap_or_else(|error| unreachable!("{error}"));
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap_or_else(|error| unreachable!("{error}"));
            let mut buffer = [0; 1024];
            let _ = stream.read(&mut buffer);
            for piece in response.chunks(1000) {
                let _ = stream.write_all(piece);
            }
        });
        address
    }

    #[test]
    fn long_responses_are_read_to_their_end() {
        let body = vec![b'x'; 3 * READ_BYTES];
        let mut response = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
        response.extend_from_slice(&body);
        let mut client = Client::open(server(response)).unwrap_or_else(|error| unreachable!("{error}"));
        let received =
            client.fetch(&request("GET", "a.test", "/")).unwrap_or_else(|error| unreachable!("{error}"));
        assert_eq!(received.response, Answer { status: 200, body });
    }

    #[test]
    fn what_is_cut_off_or_not_as_expected_is_an_error() {
        let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel".to_vec();
        let mut client = Client::open(server(cut)).unwrap_or_else(|error| unreachable!("{error}"));
        assert!(client.fetch(b"x").is_err_and(|cause| cause.contains("closed")));
        let other = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".to_vec();
        let mut client = Client::open(server(other)).unwrap_or_else(|error| unreachable!("{error}"));
        let expected = Expected { status: 200, body: Vec::new() };
        assert!(client.exchange(b"x", &expected).is_err_and(|cause| cause == "status 500"));
    }
}
