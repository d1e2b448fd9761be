//! Responses that leave together.
//!
//! A worker that finds many requests at once runs one guest after the other. Were each
//! response written when it is ready, the kernel would wake its reader each time, which
//! costs more than the writing and takes cores away from guests where the reader is on
//! the same machine: a proxy. So a response that is ready waits until the worker has done
//! what it had to do then, until [`MAX_WAITING_COUNT`] others wait with it, or until a
//! guest is about to run that may take longer than [`MAX_WAIT`].
//!
//! Only small writes wait. What is larger is written at once, after what waits.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    mem,
    net::Shutdown,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// What one connection may have waiting: a response of usual size with its header.
const MAX_WAITING_BYTES: usize = 4 << 10;

/// Connections that have something waiting.
const MAX_WAITING_COUNT: usize = 32;

/// How long a response waits for guests that come after it: as long as a few of them run,
/// half of what any guest may keep a worker for.
const MAX_WAIT: Duration = Duration::from_micros(500);

/// What waits on one thread.
struct Waiting {
    connections: Vec<Arc<Shared>>,
    /// Wakes [`write_always`].
    writer: Waker,
    /// When the first of them came; known when it was first asked for.
    since: Option<Instant>,
}

thread_local! {
    /// `None` on threads where nobody would write what waits.
    static WAITING: RefCell<Option<Waiting>> = const { RefCell::new(None) };
}

/// Lets responses wait on this thread, whose runtime has to run this task beside those of
/// its connections: it is woken by the first response that waits, and so has its turn when
/// all have had theirs that could run then. Ends with the runtime.
pub(super) async fn write_always() {
    let _end = End;
    std::future::poll_fn(|context| {
        let writer = context.waker().clone();
        WAITING.with_borrow_mut(|waiting| match waiting {
            Some(waiting) => waiting.writer = writer,
            None => *waiting = Some(Waiting { connections: Vec::new(), writer, since: None }),
        });
        write_all();
        Poll::Pending
    })
    .await
}

/// When nobody writes any more, nothing may wait.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        write_all();
        WAITING.set(None);
    }
}

/// Writes what waits on this thread.
fn write_all() {
    // Nobody runs in between: writing asks the kernel and nobody else.
    let taken = WAITING.with_borrow_mut(|waiting| {
        let waiting = waiting.as_mut()?;
        waiting.since = None;
        (!waiting.connections.is_empty()).then(|| mem::take(&mut waiting.connections))
    });
    let Some(mut connections) = taken else { return };
    for connection in connections.drain(..) {
        connection.write();
    }
    // The list is kept for the next time.
    WAITING.with_borrow_mut(|waiting| {
        if let Some(waiting) = waiting
            && waiting.connections.capacity() < connections.capacity()
        {
            connections.append(&mut waiting.connections);
            waiting.connections = connections;
        }
    });
}

/// A guest is about to run for an expected time: writes what waits if it would have to
/// wait for too long.
pub(super) fn before_guest(now: Instant, expected: Duration) {
    let is_due = WAITING.with_borrow_mut(|waiting| {
        let Some(waiting) = waiting else { return false };
        if waiting.connections.is_empty() {
            return false;
        }
        let since = *waiting.since.get_or_insert(now);
        now.saturating_duration_since(since).saturating_add(expected) > MAX_WAIT
    });
    if is_due {
        write_all();
    }
}

/// A connection whose small writes wait.
pub(super) struct Gathered {
    /// Reads into memory that was not cleared before, and knows after a read that got less
    /// than it could that there is no more, without asking the kernel again.
    reading: OwnedReadHalf,
    shared: Arc<Shared>,
}

struct Shared {
    writing: OwnedWriteHalf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What is to be written.
    bytes: Vec<u8>,
    /// Whether the thread's list has it.
    is_waiting: bool,
    /// What the kernel said when it was written, for whoever writes next.
    error: Option<io::Error>,
    /// Whoever wants to know that all is written.
    waker: Option<Waker>,
}

impl Gathered {
    pub(super) fn new(stream: TcpStream) -> Self {
        let (reading, writing) = stream.into_split();
        Self { reading, shared: Arc::new(Shared { writing, state: Mutex::default() }) }
    }

    /// Writes what waits on this connection and answers when the kernel has it.
    fn poll_written(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut state = self.shared.state();
            if let Some(error) = state.error.take() {
                return Poll::Ready(Err(error));
            }
            if state.bytes.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if state.try_write(self.shared.stream())? {
                return Poll::Ready(Ok(()));
            }
            drop(state);
            ready!(self.shared.stream().poll_write_ready(context))?;
        }
    }
}

impl Shared {
    fn stream(&self) -> &TcpStream {
        self.writing.as_ref()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what waits, as far as the kernel takes it; the connection's task has to see
    /// to the rest.
    fn write(&self) {
        let mut state = self.state();
        state.is_waiting = false;
        if state.bytes.is_empty() {
            return;
        }
        let wakes = match state.try_write(self.stream()) {
            Ok(is_all) => !is_all,
            Err(error) => {
                state.error = Some(error);
                true
            }
        };
        if wakes && let Some(waker) = state.waker.take() {
            drop(state);
            waker.wake();
        }
    }
}

impl State {
    /// Whether the kernel took all of it.
    fn try_write(&mut self, stream: &TcpStream) -> io::Result<bool> {
        let mut written = 0;
        let result = loop {
            match stream.try_write(&self.bytes[written..]) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(false),
                Err(error) => break Err(error),
            }
            if written == self.bytes.len() {
                break Ok(true);
            }
        };
        match &result {
            Ok(false) => drop(self.bytes.drain(..written)),
            // After an error nothing more is to be written.
            Ok(true) | Err(_) => self.bytes.clear(),
        }
        result
    }
}

impl AsyncRead for Gathered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reading).poll_read(context, buffer)
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length_bytes = slices.iter().map(|slice| slice.len()).sum::<usize>();
        let queued = WAITING.with_borrow_mut(|waiting| {
            let waiting = waiting.as_mut()?;
            let mut state = self.shared.state();
            if state.error.is_some()
                || (!state.is_waiting && !state.bytes.is_empty())
                || state.bytes.len() + length_bytes > MAX_WAITING_BYTES
            {
                return None;
            }
            for slice in slices {
                state.bytes.extend_from_slice(slice);
            }
            if !mem::replace(&mut state.is_waiting, true) {
                if waiting.connections.is_empty() {
                    waiting.writer.wake_by_ref();
                }
                waiting.connections.push(self.shared.clone());
            }
            Some(waiting.connections.len())
        });
        if let Some(queued_count) = queued {
            if queued_count >= MAX_WAITING_COUNT {
                write_all();
            }
            return Poll::Ready(Ok(length_bytes));
        }
        ready!(self.poll_written(context))?;
        loop {
            ready!(self.shared.stream().poll_write_ready(context))?;
            match self.shared.stream().try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        {
            let mut state = self.shared.state();
            if state.is_waiting {
                // It is written soon. If the kernel does not take it then, this task must
                // see to it.
                if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                    state.waker = Some(context.waker().clone());
                }
                return Poll::Ready(Ok(()));
            }
        }
        self.poll_written(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_written(context))?;
        match SockRef::from(self.shared.stream()).shutdown(Shutdown::Write) {
            // The other side was quicker.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        runtime::Builder,
    };

    use super::*;

    /// Runs a test on a thread that writes what waits when it comes to that only if
    /// `writes`.
    fn run<F: Future<Output = ()>>(writes: bool, test: impl FnOnce() -> F) {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            if writes {
                tokio::spawn(write_always());
                tokio::task::yield_now().await;
            } else {
                let writer = Waker::noop().clone();
                WAITING.set(Some(Waiting { connections: Vec::new(), writer, since: None }));
            }
            test().await;
        });
        drop(runtime);
        WAITING.set(None);
    }

    async fn pair() -> (Gathered, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Gathered::new(listener.accept().await.unwrap().0), client)
    }

    /// What has arrived; on loopback a write returns after that.
    fn arrived(client: &TcpStream) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        let count = io::Read::read(&mut &*SockRef::from(client), &mut bytes).unwrap_or(0);
        bytes.truncate(count);
        bytes
    }

    #[test]
    fn small_writes_wait_until_there_is_nothing_else_to_do() {
        run(false, async || {
            let (mut server, client) = pair().await;
            server.write_all(b"one").await.unwrap();
            server.write_all(b" two").await.unwrap();
            server.flush().await.unwrap();
            assert_eq!(arrived(&client), b"");
            write_all();
            assert_eq!(arrived(&client), b"one two");
            write_all();
            assert_eq!(arrived(&client), b"");
        });
        run(true, async || {
            let (mut server, mut client) = pair().await;
            server.write_all(b"pong").await.unwrap();
            let mut bytes = [0; 4];
            client.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"pong");
        });
    }

    /// A thread that always has something to do writes nevertheless.
    #[test]
    fn nothing_waits_for_ever() {
        run(true, async || {
            let (mut server, client) = pair().await;
            server.write_all(b"pong").await.unwrap();
            assert_eq!(arrived(&client), b"");
            // Each of these puts this task behind all others that can run.
            let mut yields_count = 0;
            while arrived(&client).is_empty() {
                tokio::task::yield_now().await;
                yields_count += 1;
                assert!(yields_count < 10);
            }
        });
    }

    #[test]
    fn nothing_waits_for_many_others_or_for_long_guests() {
        run(false, async || {
            let mut pairs = Vec::new();
            for number in 0..MAX_WAITING_COUNT {
                let (mut server, client) = pair().await;
                if number > 0 {
                    assert_eq!(arrived(pairs.first().map(|(_, client)| client).unwrap()), b"");
                }
                server.write_all(b"x").await.unwrap();
                pairs.push((server, client));
            }
            assert!(pairs.iter().all(|(_, client)| arrived(client) == b"x"));

            let (server, client) = &mut pairs[0];
            let now = Instant::now();
            server.write_all(b"y").await.unwrap();
            before_guest(now, MAX_WAIT / 2);
            assert_eq!(arrived(client), b"");
            before_guest(now + MAX_WAIT, Duration::ZERO);
            assert_eq!(arrived(client), b"");
            before_guest(now + MAX_WAIT, Duration::from_nanos(1));
            assert_eq!(arrived(client), b"y");
            server.write_all(b"z").await.unwrap();
            before_guest(now, MAX_WAIT * 2);
            assert_eq!(arrived(client), b"z");
        });
    }

    #[test]
    fn large_writes_come_after_what_waits() {
        run(false, async || {
            let (mut server, client) = pair().await;
            server.write_all(b"small").await.unwrap();
            server.write_all(&[b'l'; MAX_WAITING_BYTES]).await.unwrap();
            let bytes = arrived(&client);
            assert!(bytes.starts_with(b"smalll"));
            assert_eq!(bytes.len(), 5 + MAX_WAITING_BYTES);
            server.write_all(b"last").await.unwrap();
            server.shutdown().await.unwrap();
            assert_eq!(arrived(&client), b"last");
        });
    }

    /// What a client gets that reads nothing until the kernel takes nothing more.
    #[test]
    fn a_slow_client_gets_everything_in_order() {
        run(true, async || {
            let (mut server, mut client) = pair().await;
            SockRef::from(server.shared.stream()).set_send_buffer_size(8 << 10).unwrap();
            let numbers = 0..200_000_u32;
            let writing = async {
                for number in numbers.clone() {
                    server.write_all(&number.to_be_bytes()).await.unwrap();
                    server.flush().await.unwrap();
                }
                server.shutdown().await.unwrap();
            };
            let reading = async {
                // The writer runs until it must wait.
                tokio::task::yield_now().await;
                let mut bytes = Vec::new();
                client.read_to_end(&mut bytes).await.unwrap();
                bytes
            };
            let ((), bytes) = tokio::join!(writing, reading);
            assert!(bytes.chunks(4).eq(numbers.map(u32::to_be_bytes)));
        });
    }

    #[test]
    fn a_client_that_is_gone_is_an_error() {
        run(true, async || {
            let (mut server, client) = pair().await;
            SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            drop(client);
            let failed = async {
                loop {
                    if let Err(error) = server.write_all(b"hello").await {
                        return error;
                    }
                    if let Err(error) = server.flush().await {
                        return error;
                    }
                    tokio::task::yield_now().await;
                }
            };
            let error = tokio::time::timeout(Duration::from_secs(10), failed).await.unwrap();
            assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe));
        });
    }

    #[test]
    fn threads_that_never_write_let_nothing_wait() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut server, client) = pair().await;
            server.write_all(b"now").await.unwrap();
            assert_eq!(arrived(&client), b"now");
        });
    }
}
