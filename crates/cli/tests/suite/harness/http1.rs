//! HTTP/1.1 by hand, so that tests send and see the very bytes.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use serde_json::Value;

use super::WAIT_LIMIT;

/// A connection, one request after the other.
pub(crate) struct Connection {
    address: SocketAddr,
    stream: BufReader<TcpStream>,
    /// What was asked for, for messages; and whether the answer has a body.
    request: String,
}

/// A response. Headers are in the order and the spelling of the wire.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    request: String,
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
}

/// `path?name=value&…`, with values encoded.
pub(crate) fn query(path: &str, parameters: &[(&str, &str)]) -> String {
    let mut target = path.to_owned();
    for (number, (name, value)) in parameters.iter().enumerate() {
        target.push(if number == 0 { '?' } else { '&' });
        target.push_str(name);
        target.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                target.push(char::from(byte));
            } else {
                target.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    target
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Self {
        Self::try_open(address).unwrap()
    }

    pub(crate) fn try_open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, WAIT_LIMIT)?;
        stream.set_read_timeout(Some(WAIT_LIMIT))?;
        stream.set_write_timeout(Some(WAIT_LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(Self { address, stream: BufReader::new(stream), request: String::new() })
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// The client's end, as the server sees it.
    pub(crate) fn local_address(&self) -> SocketAddr {
        self.stream().local_addr().unwrap()
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// Sends a request head, `\r\n` and all, with a `host` header.
    pub(crate) fn head(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) {
        let mut head = format!("{method} {target} HTTP/1.1\r\nhost: {}\r\n", self.address);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.request = format!("{method} {target}");
        self.send(head);
    }

    /// Sends a request without a body for a host.
    pub(crate) fn ask(&mut self, host: &str, method: &str, target: &str) -> Response {
        self.request = format!("{method} {target} at {host}");
        self.send(format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n\r\n"));
        self.response()
    }

    /// Sends a request whose body, if any, has a length.
    pub(crate) fn request(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) {
        let length = body.len().to_string();
        let mut headers = headers.to_vec();
        if !body.is_empty() {
            headers.push(("content-length", &length));
        }
        self.head(method, target, &headers);
        self.send(body);
    }

    /// Sends a request to a server that may be gone at any moment.
    pub(crate) fn try_request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            head.push_str(&format!("host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        self.request = format!("{method} {target}");
        // At once: a server that does not want the body may close where it has not come yet.
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.stream.get_mut().write_all(&bytes)?;
        self.try_response()
    }

    /// Sends a piece of a chunked body; an empty one ends it.
    pub(crate) fn send_chunk(&mut self, bytes: &[u8]) {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend(bytes);
        chunk.extend(b"\r\n");
        self.send(chunk);
    }

    pub(crate) fn response(&mut self) -> Response {
        self.try_response().unwrap_or_else(|error| panic!("{}: {error}", self.request))
    }

    pub(crate) fn try_response(&mut self) -> io::Result<Response> {
        let mut response = self.try_response_head()?;
        let is_head = self.request.starts_with("HEAD ");
        if is_head || response.status == 204 || response.status == 304 {
            return Ok(response);
        }
        if response.is_chunked() {
            while let Some(chunk) = self.try_chunk()? {
                response.body.extend(chunk);
            }
            response.trailers = self.header_lines()?;
        } else if let Some(length) = response.header("content-length") {
            response.body = vec![0; length.parse().map_err(|_| invalid("content-length", length))?];
            self.stream.read_exact(&mut response.body)?;
        } else {
            self.stream.read_to_end(&mut response.body)?;
        }
        Ok(response)
    }

    /// Reads up to the empty line; the body is still to come.
    pub(crate) fn response_head(&mut self) -> Response {
        self.try_response_head().unwrap_or_else(|error| panic!("{}: {error}", self.request))
    }

    pub(crate) fn try_response_head(&mut self) -> io::Result<Response> {
        loop {
            let line = self.line()?;
            let status = line
                .strip_prefix("HTTP/1.1 ")
                .or(line.strip_prefix("HTTP/1.0 "))
                .and_then(|rest| rest.get(..3)?.parse().ok())
                .ok_or_else(|| invalid("status line", &line))?;
            let headers = self.header_lines()?;
            // What comes before the answer, such as `100 Continue`, is no answer.
            if status >= 200 {
                let request = self.request.clone();
                return Ok(Response { request, status, headers, body: Vec::new(), trailers: Vec::new() });
            }
        }
    }

    /// A piece of a chunked body; `None` at its end, before the trailers.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        self.try_chunk().unwrap_or_else(|error| panic!("{}: {error}", self.request))
    }

    pub(crate) fn try_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.line()?;
        let length = usize::from_str_radix(&line, 16).map_err(|_| invalid("chunk length", &line))?;
        if length == 0 {
            return Ok(None);
        }
        let mut chunk = vec![0; length + 2];
        self.stream.read_exact(&mut chunk)?;
        if !chunk.ends_with(b"\r\n") {
            return Err(invalid("end of a chunk", &String::from_utf8_lossy(&chunk[length..])));
        }
        chunk.truncate(length);
        Ok(Some(chunk))
    }

    /// Whether the server has closed the connection, once it says something or closes.
    pub(crate) fn is_closed(&mut self) -> bool {
        // A reset is a way of closing as well.
        self.stream
            .fill_buf()
            .map_or_else(|error| error.kind() == io::ErrorKind::ConnectionReset, <[u8]>::is_empty)
    }

    fn header_lines(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(headers);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| invalid("header", &line))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        match line.strip_suffix(b"\r\n") {
            Some(line) => Ok(String::from_utf8_lossy(line).into_owned()),
            None if line.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            None => Err(invalid("line", &String::from_utf8_lossy(&line))),
        }
    }
}

fn invalid(what: &str, found: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("invalid {what}: {found:?}"))
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers_named(name).into_iter().next()
    }

    pub(crate) fn headers_named(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }

    /// The headers without `date`, as `name: value`, in order.
    pub(crate) fn header_lines(&self) -> Vec<String> {
        let others = self.headers.iter().filter(|(name, _)| name != "date");
        others.map(|(name, value)| format!("{name}: {value}")).collect()
    }

    pub(crate) fn is_chunked(&self) -> bool {
        self.header("transfer-encoding") == Some("chunked")
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body of an answer with status 200.
    #[track_caller]
    pub(crate) fn expect(&self) -> String {
        assert_eq!(self.status, 200, "{}: {}", self.request, self.text());
        self.text()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        let text = self.expect();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}: {text}", self.request))
    }

    /// What a probe got from the host.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        let mut answer = self.json();
        assert!(answer.get("ok").is_some(), "{}: {answer}", self.request);
        answer["ok"].take()
    }

    /// What the host refused to a probe.
    #[track_caller]
    pub(crate) fn error(&self) -> String {
        let answer = self.json();
        match answer["error"].as_str() {
            Some(error) => error.to_owned(),
            None => panic!("{}: {answer}", self.request),
        }
    }
}

/// Headers as `/echo-request` shows them.
#[track_caller]
pub(crate) fn seen_header<'seen>(seen: &'seen Value, name: &str) -> Option<&'seen str> {
    let pairs = seen["headers"].as_array().expect("a list of headers");
    pairs.iter().find(|pair| pair[0] == name).map(|pair| pair[1].as_str().expect("text"))
}
