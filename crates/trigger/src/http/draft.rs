//! A response whose guest is still at work.
//!
//! A guest with streams gives its response away before it writes the body, and as a rule
//! writes all of it a moment later, without waiting for anything. What is written until
//! the guest has to wait is taken in here: a response that is complete by then goes out
//! in one piece, with its length, and the guest need not be run once more for it.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use http::response::Parts;
use http_body::Body as _;
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use wasmtime_wasi_http::WasiBody;

use super::{
    body::{WasiFrame, whole},
    component::content_length,
};

/// As much of a body is taken in before its client must have some of it.
const MAX_AHEAD_BYTES: usize = 64 << 10;

/// A response, and what was written of its body so far.
pub(super) struct Draft {
    parts: Parts,
    /// `None` after its end.
    body: Option<WasiBody>,
    /// In the order in which they were written.
    frames: Vec<WasiFrame>,
    bytes: usize,
}

impl Draft {
    pub(super) fn new(response: http::Response<WasiBody>) -> Self {
        let (parts, body) = response.into_parts();
        Self { parts, body: Some(body), frames: Vec::new(), bytes: 0 }
    }

    /// Takes in what the guest has written, up to a bound.
    pub(super) fn take_in(&mut self) {
        // The guest is being run; whoever polls the rest says whom to wake.
        let context = &mut Context::from_waker(Waker::noop());
        while self.bytes < MAX_AHEAD_BYTES
            && let Some(body) = &mut self.body
            && let Poll::Ready(frame) = Pin::new(body).poll_frame(context)
        {
            match frame {
                Some(frame) => {
                    self.bytes += data(&frame).map_or(0, Bytes::len);
                    self.frames.push(frame);
                }
                None => self.body = None,
            }
        }
    }

    /// The response as it is now; more of its body may follow.
    pub(super) fn finish(self) -> http::Response<WasiBody> {
        let Self { parts, body, frames, bytes } = self;
        let is_as_declared = content_length(&parts.headers).is_none_or(|length| length == bytes as u64);
        let body = match body {
            None if is_as_declared && frames.iter().all(|frame| data(frame).is_some()) => {
                whole(joined(&frames, bytes))
            }
            Some(body) if frames.is_empty() => body,
            // Of unknown length: it may have trailers, or be shorter than it says.
            rest => StreamBody::new(stream::iter(frames).chain(BodyStream::new(rest.unwrap_or_default())))
                .boxed_unsync(),
        };
        http::Response::from_parts(parts, body)
    }
}

/// All data in one piece.
fn joined(frames: &[WasiFrame], bytes: usize) -> Bytes {
    match frames {
        [only] => data(only).cloned().unwrap_or_default(),
        frames => {
            let mut joined = BytesMut::with_capacity(bytes);
            frames.iter().filter_map(data).for_each(|data| joined.extend_from_slice(data));
            joined.freeze()
        }
    }
}

fn data(frame: &WasiFrame) -> Option<&Bytes> {
    frame.as_ref().ok()?.data_ref()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use futures::channel::mpsc;
    use http::{HeaderMap, HeaderValue, header};
    use http_body::Frame;

    use super::*;

    type Writer = mpsc::UnboundedSender<WasiFrame>;

    /// A response with a body that somebody writes to.
    fn draft() -> (Writer, Draft) {
        let (writer, reader) = mpsc::unbounded();
        let mut draft = Draft::new(http::Response::new(StreamBody::new(reader).boxed_unsync()));
        draft.take_in();
        (writer, draft)
    }

    fn write(writer: &Writer, data: impl Into<Bytes>) {
        writer.unbounded_send(Ok(Frame::data(data.into()))).unwrap();
    }

    fn next(body: &mut WasiBody) -> Poll<Option<WasiFrame>> {
        Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()))
    }

    fn next_data(body: &mut WasiBody) -> Option<Bytes> {
        match next(body) {
            Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
            _ => None,
        }
    }

    #[tokio::test]
    async fn what_is_complete_has_a_length() {
        for (pieces, expected) in [(&[][..], ""), (&["one"][..], "one"), (&["one", "", "two"][..], "onetwo")]
        {
            let (writer, mut draft) = draft();
            for piece in pieces {
                write(&writer, *piece);
                draft.take_in();
            }
            drop(writer);
            draft.take_in();
            let body = draft.finish().into_body();
            assert_eq!(body.size_hint().exact(), Some(expected.len() as u64));
            let collected = body.collect().await.unwrap();
            assert_eq!(collected.to_bytes(), expected);
        }
    }

    #[test]
    fn what_is_not_complete_goes_on() {
        let (writer, mut draft) = draft();
        write(&writer, "one");
        draft.take_in();
        let mut body = draft.finish().into_body();
        assert_eq!(body.size_hint().exact(), None);
        write(&writer, "two");
        assert_eq!(next_data(&mut body).unwrap(), "one");
        assert_eq!(next_data(&mut body).unwrap(), "two");
        assert!(next(&mut body).is_pending());
        drop(writer);
        assert!(matches!(next(&mut body), Poll::Ready(None)));
    }

    #[test]
    fn trailers_and_errors_keep_their_place() {
        let (writer, mut draft) = draft();
        write(&writer, "one");
        writer.unbounded_send(Ok(Frame::trailers(HeaderMap::new()))).unwrap();
        writer.unbounded_send(Err(wasmtime_wasi_http::Error::HttpResponseIncomplete)).unwrap();
        drop(writer);
        draft.take_in();
        let mut body = draft.finish().into_body();
        assert_eq!(body.size_hint().exact(), None);
        assert_eq!(next_data(&mut body).unwrap(), "one");
        assert!(matches!(next(&mut body), Poll::Ready(Some(Ok(frame))) if frame.is_trailers()));
        assert!(matches!(next(&mut body), Poll::Ready(Some(Err(_)))));
    }

    #[test]
    fn what_is_not_as_long_as_it_says_has_no_other_length() {
        for (declared, exact) in [("3", Some(3)), ("5", None), ("0", None)] {
            let (writer, mut draft) = draft();
            draft.parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static(declared));
            write(&writer, "one");
            drop(writer);
            draft.take_in();
            let body = draft.finish().into_body();
            assert_eq!(body.size_hint().exact(), exact, "{declared}");
        }
        let (writer, mut draft) = draft();
        draft.parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("5"));
        drop(writer);
        draft.take_in();
        let mut body = draft.finish().into_body();
        assert_eq!(body.size_hint().exact(), None);
        assert!(matches!(next(&mut body), Poll::Ready(None)));
    }

    #[test]
    fn no_more_is_taken_in_than_some() {
        let (writer, mut draft) = draft();
        let piece = Bytes::from(vec![0; MAX_AHEAD_BYTES / 2]);
        for _ in 0..5 {
            write(&writer, piece.clone());
            draft.take_in();
        }
        assert_eq!(draft.frames.len(), 2);
        let mut body = draft.finish().into_body();
        for _ in 0..5 {
            assert_eq!(next_data(&mut body).unwrap().len(), piece.len());
        }
        assert!(next(&mut body).is_pending());
    }
}
