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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::sync::{Arc, Mutex};

    use futures::stream;
    use wasmtime::component::{Source, StreamConsumer};
    use wasmtime::{Config, Engine, Store};

    use super::*;

    /// Stands for a guest: takes items, `step` at a time.
    struct Reader {
        step: usize,
        taken: Arc<Mutex<Vec<u32>>>,
        ended: Option<oneshot::Sender<()>>,
    }

    impl<D> StreamConsumer<D> for Reader {
        type Item = u32;

        fn poll_consume(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            store: StoreContextMut<'_, D>,
            mut source: Source<'_, u32>,
            _: bool,
        ) -> Poll<wasmtime::Result<StreamResult>> {
            let mut items = Vec::with_capacity(self.step);
            source.read(store, &mut items)?;
            self.taken.lock().unwrap().extend(items);
            Poll::Ready(Ok(StreamResult::Completed))
        }
    }

    impl Drop for Reader {
        fn drop(&mut self) {
            let _ = self.ended.take().map(|ended| ended.send(()));
        }
    }

    async fn read(pages: Vec<Result<Vec<u32>, String>>, step: usize) -> (Vec<u32>, Result<(), String>) {
        let mut config = Config::new();
        config.concurrency_support(true);
        let engine = Engine::new(&config).unwrap();
        let mut store = Store::new(&engine, ());
        let (items, result) = super::ends(&mut store, stream::iter(pages)).unwrap();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let (ended, end) = oneshot::channel();
        items.pipe(&mut store, Reader { step, taken: taken.clone(), ended: Some(ended) }).unwrap();
        let (report, reported) = oneshot::channel();
        result.pipe(&mut store, Report { report: Some(report) }).unwrap();
        let result = store
            .run_concurrent(async move |_| {
                end.await.unwrap();
                reported.await.unwrap()
            })
            .await
            .unwrap();
        let taken = std::mem::take(&mut *taken.lock().unwrap());
        (taken, result)
    }

    /// Takes the result.
    struct Report {
        report: Option<oneshot::Sender<Result<(), String>>>,
    }

    impl<D> wasmtime::component::FutureConsumer<D> for Report {
        type Item = Result<(), String>;

        fn poll_consume(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            store: StoreContextMut<'_, D>,
            mut source: Source<'_, Self::Item>,
            _: bool,
        ) -> Poll<wasmtime::Result<()>> {
            let mut result = None;
            source.read(store, &mut result)?;
            if let (Some(result), Some(report)) = (result, self.report.take()) {
                report.send(result).unwrap();
            }
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_guest_gets_every_item_and_the_result() {
        for step in [1, 3, 100] {
            let pages = vec![Ok(vec![1, 2, 3, 4]), Ok(vec![]), Ok(vec![5])];
            assert_eq!(read(pages, step).await, (vec![1, 2, 3, 4, 5], Ok(())), "{step}");
            let pages = vec![Ok(vec![1, 2]), Err("broken".to_owned())];
            assert_eq!(read(pages, step).await, (vec![1, 2], Err("broken".to_owned())), "{step}");
            assert_eq!(read(vec![], step).await, (vec![], Ok(())), "{step}");
        }
    }
}
