//! Reading one HTTP/1.1 response out of a buffer, and checking it.
//!
//! The load generator shares the machine with the server it drives, so it
//! parses no more than it must: where the response ends, its status, its body.

/// Header fields that a response may have; the servers measured send five or so.
const HEADER_COUNT: usize = 32;
/// Longest line of a chunked body's framing that is waited for, in bytes.
const CHUNK_LINE_BYTES: usize = 256;

/// Statuses whose responses never have a body (RFC 9110, section 6.4.1).
const BODILESS: [u16; 2] = [204, 304];

/// What a response must be.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// The status code.
    pub(crate) status: u16,
    /// The whole body.
    pub(crate) body: Vec<u8>,
}

/// A response that nothing was expected of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    /// The status code.
    pub(crate) status: u16,
    /// The whole body, without its framing.
    pub(crate) body: Vec<u8>,
}

/// What a buffer holds.
#[derive(Debug, PartialEq)]
pub(crate) enum Parsed<Response = ()> {
    /// The beginning of a response.
    Partial,
    /// A whole response in the first `bytes` bytes.
    Complete {
        /// Length of the response.
        bytes: usize,
        /// Whether the connection can carry another request.
        keep_alive: bool,
        /// What it is, for those who did not know before.
        response: Response,
    },
    /// Something else.
    Wrong(String),
}

/// What becomes of a response's parts as they are found. The parts of a response
/// that is not all there yet are found again when more of it is.
trait Reader<'buffer> {
    /// The status code.
    fn status(&mut self, status: u16) -> Result<(), String>;
    /// The length of the body in bytes, where that is said before.
    fn length(&mut self, bytes: usize) -> Result<(), String>;
    /// The next piece of the body.
    fn piece(&mut self, piece: &'buffer [u8]) -> Result<(), String>;
    /// The end of the body.
    fn end(&mut self) -> Result<(), String>;
}

/// Compares a response with what it must be.
struct Comparison<'expected> {
    status: u16,
    body_bytes: usize,
    missing: &'expected [u8],
}

/// Keeps a response.
#[derive(Default)]
struct Collection<'buffer> {
    status: u16,
    pieces: Vec<&'buffer [u8]>,
}

/// Looks for one response at the start of `buffer` that is as expected.
pub(crate) fn parse(buffer: &[u8], expected: &Expected) -> Parsed {
    let body = expected.body.as_slice();
    let mut reader = Comparison { status: expected.status, body_bytes: body.len(), missing: body };
    match scan(buffer, &mut reader) {
        Ok(Some((bytes, keep_alive))) => Parsed::Complete { bytes, keep_alive, response: () },
        Ok(None) => Parsed::Partial,
        Err(cause) => Parsed::Wrong(cause),
    }
}

/// Looks for one response at the start of `buffer`, whatever it is.
pub(crate) fn read(buffer: &[u8]) -> Parsed<Answer> {
    let mut reader = Collection::default();
    match scan(buffer, &mut reader) {
        Ok(Some((bytes, keep_alive))) => {
            let response = Answer { status: reader.status, body: reader.pieces.concat() };
            Parsed::Complete { bytes, keep_alive, response }
        }
        Ok(None) => Parsed::Partial,
        Err(cause) => Parsed::Wrong(cause),
    }
}

impl<'buffer> Reader<'buffer> for Comparison<'_> {
    fn status(&mut self, status: u16) -> Result<(), String> {
        if status == self.status { Ok(()) } else { Err(format!("status {status}")) }
    }

    fn length(&mut self, bytes: usize) -> Result<(), String> {
        if bytes == self.body_bytes {
            Ok(())
        } else {
            Err(format!("a body of {bytes} bytes instead of {}", self.body_bytes))
        }
    }

    fn piece(&mut self, piece: &'buffer [u8]) -> Result<(), String> {
        self.missing = self.missing.strip_prefix(piece).ok_or("another body")?;
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        match self.missing.len() {
            0 => Ok(()),
            bytes => Err(format!("a body that lacks {bytes} bytes")),
        }
    }
}

impl<'buffer> Reader<'buffer> for Collection<'buffer> {
    fn status(&mut self, status: u16) -> Result<(), String> {
        self.status = status;
        Ok(())
    }

    fn length(&mut self, _bytes: usize) -> Result<(), String> {
        Ok(())
    }

    fn piece(&mut self, piece: &'buffer [u8]) -> Result<(), String> {
        self.pieces.push(piece);
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// Reads one response at the start of `buffer`: its length and whether the
/// connection can carry another request, or `None` while it is not all there.
fn scan<'buffer>(
    buffer: &'buffer [u8],
    reader: &mut impl Reader<'buffer>,
) -> Result<Option<(usize, bool)>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADER_COUNT];
    let mut head = httparse::Response::new(&mut headers);
    let head_bytes = match head.parse(buffer) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(cause) => return Err(format!("no HTTP response: {cause}")),
    };
    let status = head.code.unwrap_or(0);
    reader.status(status)?;
    let mut keep_alive = true;
    let mut length = None;
    let mut is_chunked = false;
    for header in head.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            length =
                std::str::from_utf8(header.value).ok().and_then(|value| value.trim().parse::<usize>().ok());
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            is_chunked = header.value.eq_ignore_ascii_case(b"chunked");
        } else if header.name.eq_ignore_ascii_case("connection") {
            keep_alive = !header.value.eq_ignore_ascii_case(b"close");
        }
    }
    let rest = buffer.get(head_bytes..).unwrap_or_default();
    let body_bytes = match (is_chunked, length) {
        (true, _) => chunked_body(rest, reader)?,
        (false, Some(length)) => sized_body(rest, length, reader)?,
        (false, None) if BODILESS.contains(&status) => sized_body(rest, 0, reader)?,
        (false, None) => return Err("neither a length nor chunks".to_owned()),
    };
    Ok(body_bytes.map(|bytes| (head_bytes + bytes, keep_alive)))
}

/// A body of `length` bytes: `None` while it is not all there.
fn sized_body<'buffer>(
    rest: &'buffer [u8],
    length: usize,
    reader: &mut impl Reader<'buffer>,
) -> Result<Option<usize>, String> {
    reader.length(length)?;
    let Some(body) = rest.get(..length) else { return Ok(None) };
    reader.piece(body)?;
    reader.end()?;
    Ok(Some(length))
}

/// A body in chunks: `None` while it is not all there.
fn chunked_body<'buffer>(
    rest: &'buffer [u8],
    reader: &mut impl Reader<'buffer>,
) -> Result<Option<usize>, String> {
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
            reader.end()?;
            return trailers(rest, position);
        }
        let chunk_end = position.checked_add(size).ok_or("a chunk without end")?;
        let Some(chunk) = rest.get(position..chunk_end) else { return Ok(None) };
        reader.piece(chunk)?;
        position = chunk_end;
        match rest.get(position..position + 2) {
            None => return Ok(None),
            Some(b"\r\n") => position += 2,
            Some(_) => return Err("a chunk that does not end".to_owned()),
        }
    }
}

/// The lines after the last chunk, up to the empty one.
fn trailers(rest: &[u8], mut position: usize) -> Result<Option<usize>, String> {
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
            let complete = Parsed::Complete { bytes: whole.len(), keep_alive: true, response: () };
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
        let complete = Parsed::Complete { bytes: response.len(), keep_alive: false, response: () };
        assert_eq!(parse(response, &hello()), complete);
    }

    #[test]
    fn what_is_not_known_before_is_read() {
        for whole in [SIZED, CHUNKED] {
            for end in 0..whole.len() {
                assert_eq!(read(&whole[..end]), Parsed::Partial, "{end} bytes");
            }
            let response = Answer { status: 200, body: b"hello".to_vec() };
            assert_eq!(read(whole), Parsed::Complete { bytes: whole.len(), keep_alive: true, response });
        }
        let empty = b"HTTP/1.1 204 No Content\r\n\r\n";
        let response = Answer { status: 204, body: Vec::new() };
        assert_eq!(read(empty), Parsed::Complete { bytes: empty.len(), keep_alive: true, response });
    }
}
