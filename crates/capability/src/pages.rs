//! Handing a long result to a guest as a component-model stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use futures::stream::BoxStream;
use tokio::sync::oneshot;
use wasmtime::component::{
    Destination, FutureReader, Lift, Lower, StreamProducer, StreamReader, StreamResult, VecBuffer,
};
use wasmtime::{AsContextMut, StoreContextMut};

/// A guest's two ends: the items, and how it ended.
pub(crate) type Ends<T, E> = (StreamReader<T>, FutureReader<Result<(), E>>);

/// Turns pages of items into the stream of items and the future of its result
/// that several interfaces return.
///
/// The next page is asked for when the guest has read the last one: whoever
/// produces the pages feels how fast the guest is.
pub(crate) fn ends<S, T, E>(
    mut store: S,
    pages: impl Stream<Item = Result<Vec<T>, E>> + Send + 'static,
) -> wasmtime::Result<Ends<T, E>>
where
    S: AsContextMut,
    T: Lower + Lift + Send + Sync + 'static,
    E: Lower + Lift + Send + Sync + 'static,
{
    let (result, ended) = oneshot::channel();
    let items = StreamReader::new(&mut store, Producer { pages: Box::pin(pages), result: Some(result) })?;
    let ended = FutureReader::new(&mut store, async move {
        // A guest that drops the stream early has had what it wanted.
        wasmtime::error::Ok(ended.await.unwrap_or(Ok(())))
    })?;
    Ok((items, ended))
}

struct Producer<T, E> {
    pages: BoxStream<'static, Result<Vec<T>, E>>,
    result: Option<oneshot::Sender<Result<(), E>>>,
}

impl<D, T, E> StreamProducer<D> for Producer<T, E>
where
    T: Send + Sync + 'static,
    E: Send + 'static,
{
    type Item = T;
    type Buffer = VecBuffer<T>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, T, VecBuffer<T>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        // The guest only asks whether it might read: it might.
        if destination.remaining(store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let result = loop {
            let page = match self.pages.as_mut().poll_next(context) {
                Poll::Pending if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
                page => ready!(page),
            };
            match page {
                Some(Ok(page)) if page.is_empty() => {}
                Some(Ok(page)) => {
                    destination.set_buffer(page.into());
                    return Poll::Ready(Ok(StreamResult::Completed));
                }
                Some(Err(cause)) => break Err(cause),
                None => break Ok(()),
            }
        };
        if let Some(sender) = self.result.take() {
            // A guest may have dropped the future and only want the items.
            let _ = sender.send(result);
        }
        Poll::Ready(Ok(StreamResult::Dropped))
    }
}
