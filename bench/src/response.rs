//! Reading one HTTP/1.1 response out of a buffer, and checking it.
//!
//! The load generator shares the machine with the server it drives, so it
//! parses no more than it must: where the response ends, its status, its body.

/// Header fields that a response may have; the servers measured send five or so.
const HEADER_COUNT: usize = 32;
/// Longest line of a chunked body's framing that is waited for, in bytes.
const CHUNK_LINE_BYTES: usize = 256;

/// What every response must be.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// The status code.
    pub(crate) status: u16,
    /// The whole body.
    pub(crate) body: Vec<u8>,
}

/// What the buffer holds.
#[derive(Debug, PartialEq)]
pub(crate) enum Parsed {
    /// The beginning of a response.
    Partial,
    /// A whole response, as expected, in the first `bytes` bytes.
    Complete {
        /// Length of the response.
        bytes: usize,
        /// Whether the connection can carry another request.
        keep_alive: bool,
    },
    /// Something else.
    Wrong(String),
}

/// Looks for one response at the start of `buffer`.
pub(crate) fn parse(buffer: &[u8], expected: &Expected) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; HEADER_COUNT];
    let mut head = httparse::Response::new(&mut headers);
    let head_bytes = match head.parse(buffer) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) => return Parsed::Partial,
        Err(cause) => return Parsed::Wrong(format!("no HTTP response: {cause}")),
    };
    let status = head.code.unwrap_or(0);
    if status != expected.status {
        return Parsed::Wrong(format!("status {status}"));
    }
    let mut keep_alive = true;
    let mut length = None;
    let mut chunked = false;
    for header in head.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            length =
                std::str::from_utf8(header.value).ok().and_then(|value| value.trim().parse::<usize>().ok());
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = header.value.eq_ignore_ascii_case(b"chunked");
        } else if header.name.eq_ignore_ascii_case("connection") {
            keep_alive = !header.value.eq_ignore_ascii_case(b"close");
        }
    }
    let rest = buffer.get(head_bytes..).unwrap_or_default();
    let body = match (chunked, length) {
        (true, _) => chunked_body(rest, &expected.body),
        (false, Some(length)) => sized_body(rest, length, &expected.body),
        (false, None) => Err("neither a length nor chunks".to_owned()),
    };
    match body {
        Ok(Some(bytes)) => Parsed::Complete { bytes: head_bytes + bytes, keep_alive },
        Ok(None) => Parsed::Partial,
        Err(cause) => Parsed::Wrong(cause),
    }
}

/// A body of `length` bytes: `None` while it is not all there.
fn sized_body(rest: &[u8], length: usize, expected: &[u8]) -> Result<Option<usize>, String> {
    if length != expected.len() {
        return Err(format!("a body of {length} bytes instead of {}", expected.len()));
    }
    match rest.get(..length) {
        None => Ok(None),
        Some(body) if body == expected => Ok(Some(length)),
        Some(_) => Err("another body".to_owned()),
    }
}

/// A body in chunks: `None` while it is not all there.
fn chunked_body(rest: &[u8], mut expected: &[u8]) -> Result<Option<usize>, String> {
    let mut position = 0;
    loop {
        let Some(line) = line(rest, position)? else { return Ok(None) };
        let digits = line.split(|byte| matches!(byte, b';' | b' ')).next().unwrap_or_default();
        let size = std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| usize::from_str_radix(digits, 16).ok())
            .ok_or("a chunk without a size")?;
        position += line.len() + 2;
        if size == 0 {
            return trailers(rest, position, expected);
        }
        let chunk_end = position.checked_add(size).ok_or("a chunk without end")?;
        let Some(chunk) = rest.get(position..chunk_end) else { return Ok(None) };
        expected = expected.strip_prefix(chunk).ok_or("another body")?;
        position = chunk_end;
        match rest.get(position..position + 2) {
            None => return Ok(None),
            Some(b"\r\n") => position += 2,
            Some(_) => return Err("a chunk that does not end".to_owned()),
        }
    }
}

/// The lines after the last chunk, up to the empty one.
fn trailers(rest: &[u8], mut position: usize, missing: &[u8]) -> Result<Option<usize>, String> {
    if !missing.is_empty() {
        return Err(format!("a body that lacks {} bytes", missing.len()));
    }
    loop {
        let Some(line) = line(rest, position)? else { return Ok(None) };
        position += line.len() + 2;
        if line.is_empty() {
            return Ok(Some(position));
        }
    }
}

/// The line that starts at `position`, without its end.
fn line(rest: &[u8], position: usize) -> Result<Option<&[u8]>, String> {
    let line = rest.get(position..).unwrap_or_default();
    match line.windows(2).take(CHUNK_LINE_BYTES).position(|pair| pair == b"\r\n") {
        Some(end) => Ok(line.get(..end)),
        None if line.len() > CHUNK_LINE_BYTES => Err("a chunk's size that does not end".to_owned()),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\ndate: x\r\n\r\nhello";
    const CHUNKED: &[u8] =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\na: b\r\n\r\n";

    fn hello() -> Expected {
        Expected { status: 200, body: b"hello".to_vec() }
    }

    #[test]
    fn every_prefix_is_partial_and_the_whole_is_complete() {
        for whole in [SIZED, CHUNKED] {
            for end in 0..whole.len() {
                assert_eq!(parse(&whole[..end], &hello()), Parsed::Partial, "{end} bytes");
            }
            let complete = Parsed::Complete { bytes: whole.len(), keep_alive: true };
            assert_eq!(parse(whole, &hello()), complete);
            let two = [whole, whole].concat();
            assert_eq!(parse(&two, &hello()), complete);
        }
    }

    #[test]
    fn what_differs_is_wrong() {
        for (response, cause) in [
            (&b"HTTP/1.1 500 Oh\r\nContent-Length: 5\r\n\r\nhello"[..], "status 500"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhallo", "another body"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello!", "a body of 6 bytes instead of 5"),
            (b"HTTP/1.1 200 OK\r\n\r\nhello", "neither a length nor chunks"),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n0\r\n\r\n",
                "a body that lacks 2 bytes",
            ),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\nhello!\r\n0\r\n\r\n",
                "another body",
            ),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nz\r\n", "a chunk without a size"),
        ] {
            assert_eq!(parse(response, &hello()), Parsed::Wrong(cause.to_owned()));
        }
    }

    #[test]
    fn a_close_is_seen() {
        let response = b"HTTP/1.1 200 OK\r\nconnection: close\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(parse(response, &hello()), Parsed::Complete { bytes: response.len(), keep_alive: false });
    }
}
