//! A response whose guest is still at work.
//!
//! A guest with streams gives its response away before it writes the body, and as a rule
//! writes all of it a moment later, without waiting for anything. What is written until
//! the guest has to wait is taken in here: a response that is complete by then goes out
//! in one piece, with its length, and the guest need not be run once more for it.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use http::response::Parts;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use wasmtime_wasi_http::WasiBody;

use super::body::{WasiFrame, whole};

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
    pub(super) fn finish(mut self) -> http::Response<WasiBody> {
        let body = match (&mut self.body, self.frames.as_slice()) {
            (None, frames) if frames.iter().all(|frame| data(frame).is_some()) => whole(self.joined()),
            (Some(body), []) => mem::take(body),
            _ => Resumed { frames: self.frames.into_iter(), body: self.body.unwrap_or_default() }
                .boxed_unsync(),
        };
        http::Response::from_parts(self.parts, body)
    }

    /// All data in one piece.
    fn joined(&self) -> Bytes {
        match self.frames.as_slice() {
            [only] => data(only).cloned().unwrap_or_default(),
            frames => {
                let mut joined = BytesMut::with_capacity(self.bytes);
                frames.iter().filter_map(data).for_each(|data| joined.extend_from_slice(data));
                joined.freeze()
            }
        }
    }
}

fn data(frame: &WasiFrame) -> Option<&Bytes> {
    frame.as_ref().ok()?.data_ref()
}

/// A body of which some was taken in.
struct Resumed {
    frames: std::vec::IntoIter<WasiFrame>,
    body: WasiBody,
}

impl Body for Resumed {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.frames.next() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.as_slice().is_empty() && self.body.is_end_stream()
    }

    /// A length that is known leaves no room for trailers.
    fn size_hint(&self) -> SizeHint {
        let frames = self.frames.as_slice();
        match (self.body.size_hint().exact(), frames.iter().all(|frame| data(frame).is_some())) {
            (Some(rest_bytes), true) => {
                let ahead_bytes: u64 = frames.iter().filter_map(data).map(|data| data.len() as u64).sum();
                SizeHint::with_exact(rest_bytes.saturating_add(ahead_bytes))
            }
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use http::HeaderMap;
    use tokio::sync::mpsc;

    use super::*;

    /// A body that somebody writes to.
    struct Written(mpsc::UnboundedReceiver<WasiFrame>);

    impl Body for Written {
        type Data = Bytes;
        type Error = wasmtime_wasi_http::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            self.0.poll_recv(context)
        }
    }

    fn draft() -> (mpsc::UnboundedSender<WasiFrame>, Draft) {
        let (writer, reader) = mpsc::unbounded_channel();
        let mut draft = Draft::new(http::Response::new(Written(reader).boxed_unsync()));
        draft.take_in();
        (writer, draft)
    }

    fn write(writer: &mpsc::UnboundedSender<WasiFrame>, data: impl Into<Bytes>) {
        writer.send(Ok(Frame::data(data.into()))).unwrap();
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
        writer.send(Ok(Frame::trailers(HeaderMap::new()))).unwrap();
        writer.send(Err(wasmtime_wasi_http::Error::HttpResponseIncomplete)).unwrap();
        drop(writer);
        draft.take_in();
        let mut body = draft.finish().into_body();
        assert_eq!(body.size_hint().exact(), None);
        assert_eq!(next_data(&mut body).unwrap(), "one");
        assert!(matches!(next(&mut body), Poll::Ready(Some(Ok(frame))) if frame.is_trailers()));
        assert!(matches!(next(&mut body), Poll::Ready(Some(Err(_)))));
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
