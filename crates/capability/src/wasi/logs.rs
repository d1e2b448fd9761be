//! Where the standard output and standard error of guests go.
//!
//! Guests write; one thread of the process puts lines into the component's log
//! file and, where the operator follows the component, onto Wisp's own standard
//! streams with the component's name before each line.
//!
//! Between the two is a bounded queue. A guest that writes faster than the
//! disk takes it waits a moment for room ([`ROOM_WAIT_MS`]); if there is still
//! none, lines are dropped, counted, and the log says how many. A guest neither
//! blocks a thread nor waits without end nor grows the process.
//!
//! A log file is opened when there is something to write to it, and closed again when
//! `OPEN_FILES_COUNT` others were used since: a process with many thousands of
//! components has a bounded number of them open.
//!
//! Life of a line: [`LogStream`] (one per guest and stream) collects bytes up
//! to a line feed → the queue, as one message for all complete lines of a write
//! → the writer thread → file and followed stream. Lines of several instances
//! interleave, but never within a line. What is left without a line feed when
//! the guest ends is a line too.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tokio::sync::Notify;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};
use wisp_telemetry::export::{LogEntry, LogSource, Severity, export};
use wisp_telemetry::trace::{KeyValue, Origin, Scope};

use crate::Error;

/// Longest line in bytes; a longer one is broken. Bounds what an instance
/// buffers for a guest that never writes a line feed.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// How much of the queue a message takes at least, in bytes: as much as handling it
/// costs more than its bytes. Keeps a flood of short lines from taking the places of
/// all other components.
const MESSAGE_COST_BYTES: usize = 512;

/// How much a component may write at once beyond its rate, as time at that rate. A
/// start-up or an error is noisy for a moment.
const RATE_BURST: Duration = Duration::from_secs(4);

/// How much one component's stream may have in the queue: enough for a burst
/// of some ten thousand lines, and little beside what an instance takes.
const STREAM_QUEUE_BYTES: usize = 1024 * 1024;

/// How many messages the queue holds for all components together. Each is at
/// most one guest write, so with [`STREAM_QUEUE_BYTES`] this bounds memory.
const QUEUE_MESSAGES_COUNT: usize = 8192;

/// How long a guest waits for room in the queue before its lines are dropped.
/// Long enough for a disk's hiccup, short enough not to look like a hang.
pub const ROOM_WAIT_MS: u64 = 250;

/// How long [`Logs::flush`] waits for the writer at most, in milliseconds.
const FLUSH_WAIT_MS: u64 = 2_000;

/// How many bytes a guest may write in one call.
const WRITE_PERMIT_BYTES: usize = 64 * 1024;

/// Colours that tell components apart on a terminal (ANSI foreground codes):
/// all but red, which reads as an error, and those that vanish on a background.
const PREFIX_COLOURS: [u8; 5] = [32, 33, 34, 35, 36];

/// Log files that are open at once. Those that are written to all the time stay open;
/// opening costs some 10 microseconds for the others.
const OPEN_FILES_COUNT: usize = 64;

/// How much less priority the writer thread has (`nice`, which ends at 19): behind what
/// serves, before guests that compute.
const NICE: i32 = 5;

/// So many messages in [`FLOOD_TIME`] are a flood: then the writer pauses, so that it is not
/// woken for each of them and takes a core from others. What comes meanwhile waits in the
/// queue, which has room for all that can be written in a hundred such pauses.
const FLOOD_COUNT: u32 = 64;
const FLOOD_TIME: Duration = Duration::from_millis(20);
const FLOOD_PAUSE: Duration = Duration::from_millis(1);

/// Which of its two standard streams a guest writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandardStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Which components' lines appear on Wisp's own standard streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Follow {
    /// All components.
    #[default]
    All,
    /// No component.
    None,
    /// The components with these ids.
    Some(HashSet<String>),
}

/// Takes the lines of apps in the place of files.
pub trait LogReceiver: std::fmt::Debug + Send + Sync + 'static {
    /// Complete lines, each with its line feed. Called by the one thread that writes
    /// logs, which must not be held up for long.
    fn receive(&self, source: &LineSource<'_>, lines: &[u8]);
}

/// Who wrote lines.
#[derive(Clone, Copy, Debug)]
pub struct LineSource<'source> {
    /// The app, by the name that its operator knows it by.
    pub app: &'source str,
    /// The component.
    pub component: &'source str,
    /// Where it wrote them to.
    pub stream: StandardStream,
    /// In which request.
    pub origin: Origin,
}

/// What happens to the output of guests.
#[derive(Clone, Debug, Default)]
pub struct LogSettings {
    /// Takes the lines of apps among many; then they are in no files.
    pub receiver: Option<Arc<dyn LogReceiver>>,
    /// Where the log files go: `<component>_stdout.txt` and `_stderr.txt`.
    pub directory: Option<PathBuf>,
    /// Whether log files begin empty.
    pub truncate: bool,
    /// What appears on Wisp's own standard streams.
    pub follow: Follow,
}

/// The logs of all components; one per process.
///
/// Dropping it does not lose lines that are queued, but nobody waits for them:
/// call [`Logs::flush`] before the process ends.
pub struct Logs {
    settings: LogSettings,
    queue: SyncSender<Message>,
    is_stdout_terminal: bool,
    is_stderr_terminal: bool,
}

/// Where one component's standard output or standard error goes. Cheap to
/// clone; the default one discards everything.
#[derive(Clone, Default)]
pub struct LogSink {
    inner: Option<Arc<Sink>>,
    /// What the request may still write, where it is bounded.
    budget: Option<Arc<LogBudget>>,
}

/// How many bytes a request may still write to its logs.
#[derive(Debug, Default)]
pub struct LogBudget(AtomicU64);

impl LogBudget {
    /// A request that may write this much begins.
    pub fn begin(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn take(&self, bytes: usize) -> bool {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let rest = self.0.load(Ordering::Relaxed).checked_sub(bytes);
        self.0.store(rest.unwrap_or(0), Ordering::Relaxed);
        rest.is_some()
    }
}

struct Sink {
    app: Box<str>,
    component: Box<str>,
    /// Who takes the lines in the place of a file.
    receiver: Option<Arc<dyn LogReceiver>>,
    queue: SyncSender<Message>,
    stream: StandardStream,
    path: Option<PathBuf>,
    /// What stands before each line on Wisp's own stream, if it is followed.
    prefix: Option<String>,
    queued_bytes: AtomicUsize,
    dropped_lines: AtomicU64,
    /// Bytes per second in the long run; zero is no bound.
    rate_bytes: AtomicU64,
    /// When all that was written would have been written at that rate, in nanoseconds
    /// since the sink was made.
    rate_ns: AtomicU64,
    start: Instant,
    /// Told when there is room in the queue again.
    room: Notify,
}

enum Message {
    Lines { sink: Arc<Sink>, lines: Vec<u8>, origin: Origin },
    Flush(SyncSender<()>),
}

/// One guest's end of a log: collects bytes into lines.
pub struct LogStream {
    sink: LogSink,
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    /// Set while the guest waits for room.
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
    /// Set when waiting did not help: no more waiting until there was room.
    gave_up: bool,
}

impl Logs {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// [`Error::LogFile`] if the directory cannot be made or the thread cannot
    /// be started.
    pub fn new(settings: LogSettings) -> Result<Self, Error> {
        if let Some(directory) = &settings.directory {
            std::fs::create_dir_all(directory)
                .map_err(|cause| Error::LogFile { path: directory.clone(), cause })?;
        }
        let (queue, messages) = sync_channel(QUEUE_MESSAGES_COUNT);
        thread::Builder::new().name("wisp-logs".into()).spawn(move || write_all(&messages)).map_err(
            |cause| Error::LogFile { path: settings.directory.clone().unwrap_or_default(), cause },
        )?;
        Ok(Self {
            settings,
            queue,
            is_stdout_terminal: io::IsTerminal::is_terminal(&io::stdout()),
            is_stderr_terminal: io::IsTerminal::is_terminal(&io::stderr()),
        })
    }

    /// Where the stream of a component of the only app goes; makes sure that its log file
    /// can be written.
    ///
    /// # Errors
    /// [`Error::LogFile`].
    pub fn sink(&self, app: &str, component: &str, stream: StandardStream) -> Result<LogSink, Error> {
        let path = match &self.settings.directory {
            Some(directory) => {
                let path = log_path(directory, component, stream);
                open_log(&path, self.settings.truncate)
                    .map_err(|cause| Error::LogFile { path: path.clone(), cause })?;
                Some(path)
            }
            None => None,
        };
        let is_followed = self.settings.follow.includes(component);
        Ok(self.sink_to(path, None, is_followed.then_some(component), (app, component), stream))
    }

    /// Where the stream of a component of one app among many goes: a file in the app's
    /// own folder, which is made when there is something to write.
    pub fn sink_of(&self, app: &str, component: &str, stream: StandardStream) -> LogSink {
        let directory = self.settings.directory.as_ref().map(|directory| directory.join(file_name(app)));
        let receiver = self.settings.receiver.clone();
        let path =
            directory.filter(|_| receiver.is_none()).map(|directory| log_path(&directory, component, stream));
        let name = self.settings.follow.includes(app).then(|| format!("{app} {component}"));
        self.sink_to(path, receiver, name.as_deref(), (app, component), stream)
    }

    fn sink_to(
        &self,
        path: Option<PathBuf>,
        receiver: Option<Arc<dyn LogReceiver>>,
        followed_name: Option<&str>,
        (app, component): (&str, &str),
        stream: StandardStream,
    ) -> LogSink {
        let is_exported = export().is_some_and(|export| export.exports_logs());
        if path.is_none() && receiver.is_none() && followed_name.is_none() && !is_exported {
            return LogSink::default();
        }
        let is_terminal = match stream {
            StandardStream::Stdout => self.is_stdout_terminal,
            StandardStream::Stderr => self.is_stderr_terminal,
        };
        let sink = Sink {
            app: app.into(),
            component: component.into(),
            receiver,
            queue: self.queue.clone(),
            stream,
            path,
            prefix: followed_name.map(|name| prefix(name, is_terminal)),
            queued_bytes: AtomicUsize::new(0),
            dropped_lines: AtomicU64::new(0),
            rate_bytes: AtomicU64::new(0),
            rate_ns: AtomicU64::new(0),
            start: Instant::now(),
            room: Notify::new(),
        };
        LogSink { inner: Some(Arc::new(sink)), budget: None }
    }

    /// Waits, for a bounded time, until what was queued before is written.
    /// Blocks the thread: for the end of the process.
    pub fn flush(&self) {
        let (done, is_done) = sync_channel(1);
        if self.queue.send(Message::Flush(done)).is_ok() {
            // Timing out is all right: whoever ends the process must end.
            match is_done.recv_timeout(Duration::from_millis(FLUSH_WAIT_MS)) {
                Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
    }
}

/// Exports complete lines, if logs are exported: what was let through to here is within
/// the component's limits.
fn export_lines(source: &LineSource<'_>, lines: &[u8]) {
    let Some(export) = export().filter(|export| export.exports_logs()) else { return };
    let (stream, severity) = match source.stream {
        StandardStream::Stdout => ("stdout", Severity::Info),
        StandardStream::Stderr => ("stderr", Severity::Warn),
    };
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let mut attributes = vec![
            KeyValue::new("wisp.app", source.app.to_owned()),
            KeyValue::new("wisp.component", source.component.to_owned()),
            KeyValue::new("log.iostream", stream),
        ];
        if let Some(request) = source.origin.request {
            attributes.push(KeyValue::new("wisp.request", request.to_string()));
        }
        export.log(LogEntry {
            source: LogSource::Guest,
            time: SystemTime::now(),
            severity,
            text: String::from_utf8_lossy(line).into_owned(),
            attributes,
            context: source.origin.context,
        });
    }
}

impl Follow {
    fn includes(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Some(names) => names.contains(name),
        }
    }
}

/// A name that does not climb out of its folder, wherever it comes from.
fn file_name(name: &str) -> String {
    match name {
        "." | ".." => "_".into(),
        name => name.replace(['/', '\\', '\0'], "_"),
    }
}

fn log_path(directory: &Path, component: &str, stream: StandardStream) -> PathBuf {
    let suffix = match stream {
        StandardStream::Stdout => "stdout",
        StandardStream::Stderr => "stderr",
    };
    directory.join(format!("{}_{suffix}.txt", file_name(component)))
}

fn open_log(path: &Path, truncate: bool) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    if truncate {
        file.set_len(0)?;
    }
    Ok(file)
}

fn prefix(component: &str, is_terminal: bool) -> String {
    if !is_terminal {
        return format!("[{component}] ");
    }
    // The same component has the same colour in every run.
    let sum = component.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let colour = PREFIX_COLOURS[sum % PREFIX_COLOURS.len()];
    format!("\u{1b}[{colour}m[{component}]\u{1b}[0m ")
}

/// The writer thread: ends when nobody can send any more.
fn write_all(messages: &Receiver<Message>) {
    if let Err(error) = wisp_engine::lower_priority(NICE) {
        tracing::debug!("the priority of the thread that writes logs cannot be lowered: {error}");
    }
    let mut writer = Writer::default();
    let (mut count, mut since) = (0, Instant::now());
    while let Ok(message) = messages.recv() {
        message.handle(&mut writer);
        count += 1;
        if count == FLOOD_COUNT {
            if since.elapsed() < FLOOD_TIME {
                thread::sleep(FLOOD_PAUSE);
            }
            (count, since) = (0, Instant::now());
        }
    }
}

/// What the writer thread keeps between messages.
#[derive(Default)]
struct Writer {
    prefixed: Vec<u8>,
    /// Open files with the stream they belong to, the one that was used last at the end.
    files: Vec<(Weak<Sink>, File)>,
}

impl Writer {
    /// The file of a stream, opened if need be.
    fn file(&mut self, sink: &Arc<Sink>) -> Option<&mut File> {
        let path = sink.path.as_ref()?;
        let of_sink = |(owner, _): &(Weak<Sink>, File)| std::ptr::eq(owner.as_ptr(), Arc::as_ptr(sink));
        match self.files.iter().rposition(of_sink) {
            Some(position) if position + 1 == self.files.len() => {}
            Some(position) => {
                let used = self.files.remove(position);
                self.files.push(used);
            }
            None => {
                let opened = open_log(path, false).or_else(|_| {
                    std::fs::create_dir_all(path.parent().unwrap_or(path))
                        .and_then(|()| open_log(path, false))
                });
                let file = opened.ok()?;
                self.files.retain(|(owner, _)| owner.strong_count() > 0);
                if self.files.len() >= OPEN_FILES_COUNT {
                    self.files.remove(0);
                }
                self.files.push((Arc::downgrade(sink), file));
            }
        }
        self.files.last_mut().map(|(_, file)| file)
    }

    /// Writes complete lines. Errors are ignored: there is no better place to
    /// report that a log cannot be written, and guests do not depend on it.
    fn write(&mut self, sink: &Arc<Sink>, lines: &[u8], origin: Origin) {
        if let Some(file) = self.file(sink) {
            drop(file.write_all(lines));
        }
        let Sink { app, component, stream, .. } = &**sink;
        let source = LineSource { app, component, stream: *stream, origin };
        if let Some(receiver) = &sink.receiver {
            receiver.receive(&source, lines);
        }
        export_lines(&source, lines);
        let Some(prefix) = &sink.prefix else { return };
        let prefixed = &mut self.prefixed;
        prefixed.clear();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            prefixed.extend_from_slice(prefix.as_bytes());
            prefixed.extend_from_slice(line);
        }
        match sink.stream {
            StandardStream::Stdout => {
                let mut stdout = io::stdout().lock();
                drop(stdout.write_all(prefixed).and_then(|()| stdout.flush()));
            }
            StandardStream::Stderr => drop(io::stderr().lock().write_all(prefixed)),
        }
    }
}

impl Message {
    fn handle(self, writer: &mut Writer) {
        match self {
            Self::Lines { sink, lines, origin } => {
                writer.write(&sink, &lines, origin);
                sink.give_back(lines.len().max(MESSAGE_COST_BYTES));
                let dropped = sink.dropped_lines.swap(0, Ordering::Relaxed);
                if dropped > 0 {
                    let note = format!(
                        "wisp: {dropped} lines were dropped here (WISP-E0356), since they came faster than \
                         they could be written or than the component's limits allow\n"
                    );
                    writer.write(&sink, note.as_bytes(), Origin::default());
                }
            }
            Self::Flush(done) => {
                // Whoever asked may have stopped waiting.
                let _ = done.send(());
            }
        }
    }
}

impl Sink {
    /// Queues complete lines, or counts them as dropped.
    fn send(self: &Arc<Self>, lines: Vec<u8>) {
        let length = lines.len().max(MESSAGE_COST_BYTES);
        let queued = self.queued_bytes.fetch_add(length, Ordering::Relaxed);
        if queued + length <= STREAM_QUEUE_BYTES && self.is_within_rate(lines.len()) {
            let origin = Scope::origin();
            match self.queue.try_send(Message::Lines { sink: self.clone(), lines, origin }) {
                Ok(()) => return,
                Err(refused) => {
                    let (std::sync::mpsc::TrySendError::Full(message)
                    | std::sync::mpsc::TrySendError::Disconnected(message)) = refused;
                    if let Message::Lines { lines, .. } = message {
                        self.count_dropped(&lines);
                    }
                }
            }
        } else {
            self.count_dropped(&lines);
        }
        self.give_back(length);
    }

    /// Whether so much more is within the component's rate, which it then counts for.
    fn is_within_rate(&self, bytes: usize) -> bool {
        let rate_bytes = self.rate_bytes.load(Ordering::Relaxed);
        if rate_bytes == 0 {
            return true;
        }
        let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let now_ns = nanoseconds(self.start.elapsed());
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let cost_ns = bytes.saturating_mul(1_000_000_000) / rate_bytes;
        let next = |at_ns: u64| {
            let then_ns = at_ns.max(now_ns).saturating_add(cost_ns);
            (then_ns <= now_ns.saturating_add(nanoseconds(RATE_BURST))).then_some(then_ns)
        };
        self.rate_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    fn count_dropped(&self, lines: &[u8]) {
        let count = lines.iter().filter(|byte| **byte == b'\n').count();
        self.dropped_lines.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Takes bytes off the account of what is queued.
    fn give_back(&self, length: usize) {
        let before = self.queued_bytes.fetch_sub(length, Ordering::Relaxed);
        if before > STREAM_QUEUE_BYTES / 2 && before - length <= STREAM_QUEUE_BYTES / 2 {
            self.room.notify_waiters();
        }
    }

    fn is_congested(&self) -> bool {
        self.queued_bytes.load(Ordering::Relaxed) > STREAM_QUEUE_BYTES / 2
    }

    /// Waits until the queue is at most half full, for a bounded time.
    async fn wait_for_room(self: Arc<Self>) {
        let mut told = std::pin::pin!(self.room.notified());
        // Enlisted before looking, so that room made in between is not missed.
        told.as_mut().enable();
        if self.is_congested() {
            // Waiting too long only means that lines are dropped.
            drop(tokio::time::timeout(Duration::from_millis(ROOM_WAIT_MS), told).await);
        }
    }
}

impl LogSink {
    /// Whether nothing of what is written arrives anywhere.
    pub fn is_discarding(&self) -> bool {
        self.inner.is_none()
    }

    /// Whether so much more is within the component's rate, which it then counts for.
    pub(crate) fn is_within_rate(&self, bytes: usize) -> bool {
        self.inner.as_ref().is_none_or(|sink| sink.is_within_rate(bytes))
    }

    /// Lets so much through per second in the long run, for all who write here.
    #[must_use]
    pub fn with_rate(self, bytes_per_second: u64) -> Self {
        if let Some(sink) = &self.inner {
            sink.rate_bytes.store(bytes_per_second.max(1), Ordering::Relaxed);
        }
        self
    }

    /// The same for one instance, whose requests have a budget.
    #[must_use]
    pub fn with_budget(&self, budget: &Arc<LogBudget>) -> Self {
        Self { inner: self.inner.clone(), budget: Some(budget.clone()) }
    }

    /// A new end for a guest to write to.
    pub fn open(&self) -> LogStream {
        LogStream { sink: self.clone(), partial: Vec::new(), waiting: None, gave_up: false }
    }
}

impl LogStream {
    /// Takes bytes and passes on the lines that they complete.
    fn take(&mut self, mut bytes: &[u8]) {
        let Some(sink) = &self.sink.inner else { return };
        if let Some(budget) = &self.sink.budget
            && !budget.take(bytes.len())
        {
            // What is left of the budget is not worth a line that is cut off.
            sink.count_dropped(bytes);
            return;
        }
        if let Some(last) = bytes.iter().rposition(|byte| *byte == b'\n') {
            let (complete, rest) = bytes.split_at(last + 1);
            let mut lines = std::mem::take(&mut self.partial);
            append_broken(&mut lines, complete);
            sink.send(lines);
            bytes = rest;
        }
        while self.partial.len() + bytes.len() >= MAX_LINE_BYTES {
            let (piece, rest) = bytes.split_at(MAX_LINE_BYTES - 1 - self.partial.len());
            let mut line = std::mem::take(&mut self.partial);
            line.extend_from_slice(piece);
            line.push(b'\n');
            sink.send(line);
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
    }

    /// Whether the guest has to wait before it writes.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(sink) = &self.sink.inner else { return Poll::Ready(()) };
        if self.waiting.is_none() {
            if !sink.is_congested() {
                self.gave_up = false;
                return Poll::Ready(());
            }
            if self.gave_up {
                return Poll::Ready(());
            }
            self.waiting = Some(Box::pin(sink.clone().wait_for_room()));
        }
        if let Some(waiting) = &mut self.waiting {
            ready!(waiting.as_mut().poll(context));
            self.waiting = None;
            self.gave_up = sink.is_congested();
        }
        Poll::Ready(())
    }
}

/// Appends complete lines, breaking those that are too long.
fn append_broken(to: &mut Vec<u8>, complete: &[u8]) {
    if to.len() + complete.len() <= MAX_LINE_BYTES {
        to.extend_from_slice(complete);
        return;
    }
    let mut length = to.len();
    for line in complete.split_inclusive(|byte| *byte == b'\n') {
        for byte in line {
            if length == MAX_LINE_BYTES - 1 && *byte != b'\n' {
                to.push(b'\n');
                length = 0;
            }
            to.push(*byte);
            length += 1;
        }
        length = 0;
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        if !self.partial.is_empty()
            && let Some(sink) = &self.sink.inner
        {
            let mut line = std::mem::take(&mut self.partial);
            line.push(b'\n');
            sink.send(line);
        }
    }
}

impl IsTerminal for LogSink {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogSink {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.open())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.open())
    }
}

impl AsyncWrite for LogStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_room(context));
        let taken = buffer.len().min(WRITE_PERMIT_BYTES);
        self.take(&buffer[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {
        std::future::poll_fn(|context| self.poll_room(context)).await;
    }
}

impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_PERMIT_BYTES)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

    use futures::FutureExt;
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn logs(directory: &std::path::Path, truncate: bool) -> Logs {
        let directory = Some(directory.to_owned());
        Logs::new(LogSettings { receiver: None, directory, truncate, follow: Follow::None }).unwrap()
    }

    fn stdout(logs: &Logs) -> LogSink {
        logs.sink("app", "shop", StandardStream::Stdout).unwrap()
    }

    fn read(directory: &std::path::Path) -> String {
        std::fs::read_to_string(directory.join("shop_stdout.txt")).unwrap()
    }

    /// A sink whose queue nobody empties until the test does.
    fn stuck(queue_messages_count: usize) -> (LogSink, Receiver<Message>, tempfile::NamedTempFile) {
        let (queue, messages) = sync_channel(queue_messages_count);
        let file = tempfile::NamedTempFile::new().unwrap();
        let sink = Sink {
            app: "app".into(),
            component: "shop".into(),
            receiver: None,
            queue,
            stream: StandardStream::Stdout,
            path: Some(file.path().to_owned()),
            prefix: None,
            queued_bytes: AtomicUsize::new(0),
            dropped_lines: AtomicU64::new(0),
            rate_bytes: AtomicU64::new(0),
            rate_ns: AtomicU64::new(0),
            start: Instant::now(),
            room: Notify::new(),
        };
        (LogSink { inner: Some(Arc::new(sink)), budget: None }, messages, file)
    }

    fn written(file: tempfile::NamedTempFile) -> String {
        std::fs::read_to_string(file.path()).unwrap()
    }

    #[test]
    fn each_app_has_files_of_its_own_and_few_are_open() {
        let directory = tempfile::tempdir().unwrap();
        let logs = logs(directory.path(), false);
        let count = OPEN_FILES_COUNT + 10;
        let sinks: Vec<_> = (0..count)
            .map(|number| logs.sink_of(&format!("app-{number}"), "shop", StandardStream::Stdout))
            .collect();
        assert!(!directory.path().join("app-0").exists(), "nothing was written yet");
        for round in 0..2 {
            for (number, sink) in sinks.iter().enumerate() {
                sink.open().take(format!("{number} in round {round}\n").as_bytes());
            }
        }
        logs.flush();
        for number in 0..count {
            let folder = directory.path().join(format!("app-{number}"));
            assert_eq!(read(&folder), format!("{number} in round 0\n{number} in round 1\n"));
        }
        let open = std::fs::read_dir("/proc/self/fd").unwrap().filter(|entry| {
            let target = std::fs::read_link(entry.as_ref().unwrap().path());
            target.is_ok_and(|target| target.starts_with(directory.path()))
        });
        assert!(open.count() <= OPEN_FILES_COUNT);
        // A name does not climb out of the folder.
        logs.sink_of("..", "../x", StandardStream::Stdout).open().take(b"here\n");
        logs.flush();
        assert!(directory.path().join("_/.._x_stdout.txt").exists());
    }

    #[test]
    fn lines_arrive_whole() {
        let directory = tempfile::tempdir().unwrap();
        let logs = logs(directory.path(), false);
        let sink = stdout(&logs);
        let (mut one, mut two) = (sink.open(), sink.open());
        one.take(b"one ");
        two.take(b"two\nthree ");
        one.take(b"ends\n");
        two.take(b"ends");
        drop(two);
        drop(one);
        logs.flush();
        assert_eq!(read(directory.path()), "two\none ends\nthree ends\n");
    }

    #[tokio::test]
    async fn both_generations_of_streams_write() {
        let directory = tempfile::tempdir().unwrap();
        let logs = logs(directory.path(), false);
        let sink = stdout(&logs);
        let mut older = sink.p2_stream();
        older.ready().await;
        assert!(older.check_write().unwrap() > 0);
        older.write(Bytes::from_static(b"older\n")).unwrap();
        older.flush().unwrap();
        let mut newer = Box::into_pin(sink.async_stream());
        newer.write_all(b"newer\n").await.unwrap();
        newer.flush().await.unwrap();
        logs.flush();
        assert_eq!(read(directory.path()), "older\nnewer\n");
    }

    #[test]
    fn logs_are_continued_or_begun_again() {
        let directory = tempfile::tempdir().unwrap();
        for (truncate, expected) in [(false, "x\n"), (false, "x\nx\n"), (true, "x\n")] {
            let logs = logs(directory.path(), truncate);
            stdout(&logs).open().take(b"x\n");
            logs.flush();
            assert_eq!(read(directory.path()), expected);
        }
    }

    #[test]
    fn long_lines_are_broken() {
        let directory = tempfile::tempdir().unwrap();
        let logs = logs(directory.path(), false);
        let sink = stdout(&logs);
        let long = "x".repeat(MAX_LINE_BYTES * 2 + 10);
        sink.open().take(long.as_bytes());
        sink.open().take(format!("{long}\nshort\n").as_bytes());
        logs.flush();
        let text = read(directory.path());
        assert!(text.ends_with("\nshort\n"));
        assert!(text.lines().all(|line| line.len() < MAX_LINE_BYTES));
        assert_eq!(text.matches('x').count(), 2 * long.len());
    }

    #[test]
    fn the_queue_is_bounded_and_says_what_it_dropped() {
        // By number of messages.
        let (sink, messages, file) = stuck(2);
        let mut stream = sink.open();
        for number in 0..5 {
            stream.take(format!("{number}\n").as_bytes());
        }
        drop((stream, sink));
        write_all(&messages);
        let text = written(file);
        assert!(text.starts_with("0\nwisp: 3 lines were dropped"), "{text}");
        assert!(text.ends_with("\n1\n"), "{text}");

        // By bytes.
        let (sink, messages, file) = stuck(1000);
        let mut stream = sink.open();
        let line = format!("{}\n", "x".repeat(MAX_LINE_BYTES / 2));
        for _ in 0..100 {
            stream.take(line.as_bytes());
        }
        drop((stream, sink));
        write_all(&messages);
        let text = written(file);
        assert!(text.len() <= STREAM_QUEUE_BYTES + 200, "{}", text.len());
        assert!(text.contains("lines were dropped here"));
    }

    #[test]
    fn a_component_has_a_rate_and_a_request_a_budget() {
        let (sink, messages, file) = stuck(1000);
        let sink = sink.with_rate(250);
        let line = format!("{}\n", "x".repeat(99));
        // Four seconds' worth may come at once: ten lines of a hundred bytes.
        let mut stream = sink.open();
        for _ in 0..30 {
            stream.take(line.as_bytes());
        }
        drop((stream, sink));
        write_all(&messages);
        let text = written(file);
        assert!((10..13).contains(&text.matches("xxx\n").count()), "{text}");
        assert!(text.contains("lines were dropped here (WISP-E0356)"), "{text}");

        let (sink, messages, file) = stuck(1000);
        let budget = Arc::new(LogBudget::default());
        budget.begin(250);
        let bounded = sink.with_budget(&budget);
        for _ in 0..5 {
            bounded.open().take(line.as_bytes());
        }
        budget.begin(100);
        bounded.open().take(line.as_bytes());
        drop((bounded, sink));
        write_all(&messages);
        let text = written(file);
        assert_eq!(text.matches("xxx\n").count(), 3, "{text}");
        assert!(text.contains("wisp: 3 lines were dropped"), "{text}");
    }

    #[tokio::test]
    async fn a_guest_waits_for_room_but_not_for_ever() {
        let (sink, messages, _file) = stuck(1000);
        let mut stream = sink.open();
        let line = format!("{}\n", "x".repeat(MAX_LINE_BYTES / 2));
        while !sink.inner.as_ref().unwrap().is_congested() {
            stream.take(line.as_bytes());
        }
        let before = tokio::time::Instant::now();
        stream.ready().await;
        assert!(before.elapsed() >= Duration::from_millis(ROOM_WAIT_MS));
        // Waiting did not help, so it does not wait again.
        assert!(stream.ready().now_or_never().is_some());
        // Another guest waits until there is room.
        let mut other = sink.open();
        let waiting = tokio::spawn(async move { other.ready().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let mut writer = Writer::default();
        while let Ok(message) = messages.try_recv() {
            message.handle(&mut writer);
        }
        tokio::task::yield_now().await;
        assert!(waiting.is_finished());
    }

    #[test]
    fn prefixes_have_colours_only_on_terminals() {
        assert_eq!(prefix("shop", false), "[shop] ");
        assert!(prefix("shop", true).contains("[shop]\u{1b}[0m "));
    }

    #[test]
    fn what_goes_nowhere_is_not_kept() {
        let logs = Logs::new(LogSettings { follow: Follow::None, ..LogSettings::default() }).unwrap();
        let sink = stdout(&logs);
        assert!(sink.is_discarding());
        let mut stream = sink.open();
        stream.take(b"no line feed");
        assert!(stream.partial.is_empty());
    }

    #[test]
    fn only_followed_components_are_followed() {
        let follow = Follow::Some(["shop".to_owned()].into());
        let logs = Logs::new(LogSettings { follow, ..LogSettings::default() }).unwrap();
        assert!(!stdout(&logs).is_discarding());
        assert!(logs.sink("app", "other", StandardStream::Stdout).unwrap().is_discarding());
    }

    #[test]
    fn a_directory_that_cannot_be_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let settings = LogSettings { directory: Some(file), ..LogSettings::default() };
        assert_eq!(Logs::new(settings).err().unwrap().code(), "WISP-E0355");
    }
}
