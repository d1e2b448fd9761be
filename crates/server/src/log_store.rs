//! What apps write and who asked for them, for people to read.
//!
//! Each app has a folder with *segments*: files of JSON lines, one record each, in the
//! order in which they happened. When a segment is full the next one begins; when an app
//! has too much, or it is too old, whole segments are removed. So a noisy app costs a
//! bounded part of the disk and nobody else's log.
//!
//! One thread writes. Records come to it through a bounded queue: guests' output from
//! the thread that collects it, records of requests from the threads that answer them.
//! What does not fit is dropped and counted, and the log says so. Logs are for people:
//! they are not synced, and the last moment before a power cut may be missing.
//!
//! Readers read files, then follow what the writer passes on. Each record has a place in
//! the app's count, so that what a reader finds in both is told once.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::broadcast;
use wisp_capability::wasi::{LineSource, LogReceiver, StandardStream};
use wisp_control::{LogQuery, LogRecord};

/// How long a segment becomes: what is removed at once, and read at least by a search.
const SEGMENT_BYTES: u64 = 1 << 20;

/// Records that wait for the writer. A burst of a busy second.
const QUEUE_COUNT: usize = 16_384;

/// Records that a reader may be behind before it misses some.
const FOLLOW_COUNT: usize = 1_024;

/// Segments that are open for writing at once.
const OPEN_SEGMENTS_COUNT: usize = 64;

/// How much of a line is kept in one record; a longer one is cut.
const TEXT_BYTES: usize = 16 << 10;

/// How often old segments are looked for.
const SWEEP: Duration = Duration::from_secs(600);

/// Records that a query without `last` reads from files at most. People page by time.
const MAX_RECORDS_COUNT: usize = 100_000;

/// How much is kept of each app's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes of all of an app's segments together.
    pub max_bytes: u64,
    /// How old a segment may become.
    pub max_age: Duration,
}

/// The logs of all apps.
#[derive(Debug)]
pub struct LogStore {
    folder: PathBuf,
    queue: SyncSender<Message>,
    dropped_count: AtomicU64,
    /// Nobody may follow any more.
    is_closed: AtomicBool,
    /// Who follows which app.
    followers: Mutex<HashMap<Box<str>, broadcast::Sender<Arc<Numbered>>>>,
}

/// A record and its place in its app's log.
#[derive(Debug)]
struct Numbered {
    /// The bytes of the app's log that were written when this was, by this process.
    end: (u64, u64),
    record: LogRecord,
}

enum Message {
    Record {
        app: Box<str>,
        record: Box<LogRecord>,
    },
    /// The app is gone.
    Forget {
        app: Box<str>,
        done: SyncSender<()>,
    },
    /// Tells when all before it is written.
    Flush {
        done: SyncSender<()>,
    },
}

/// Where a segment that is written to stands.
struct Segment {
    app: Box<str>,
    file: File,
    number: u64,
    size_bytes: u64,
}

struct Writer {
    store: Arc<LogStore>,
    limits: LogLimits,
    /// Open segments, the one that was used last at the end.
    open: Vec<Segment>,
}

/// A log that is being read.
pub(crate) struct Reading {
    /// What there was, oldest first.
    pub(crate) records: Vec<LogRecord>,
    /// What comes from now on.
    pub(crate) live: Option<Live>,
}

/// The live end of a log.
pub(crate) struct Live {
    receiver: broadcast::Receiver<Arc<Numbered>>,
    /// What was read from files already.
    from: (u64, u64),
    query: LogQuery,
}

impl LogLimits {
    /// What holds unless the operator says otherwise: a week, and enough to find out what
    /// happened, without a thousand apps filling a disk.
    pub const DEFAULT: Self = Self { max_bytes: 16 << 20, max_age: Duration::from_secs(7 * 24 * 60 * 60) };
}

impl LogStore {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start(folder: PathBuf, limits: LogLimits) -> io::Result<Arc<Self>> {
        let (queue, messages) = sync_channel(QUEUE_COUNT);
        let store = Arc::new(Self {
            folder,
            queue,
            dropped_count: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
            followers: Mutex::default(),
        });
        let writer = Writer { store: store.clone(), limits, open: Vec::new() };
        thread::Builder::new().name("wisp-app-logs".into()).spawn(move || writer.run(&messages))?;
        Ok(store)
    }

    /// Takes in a record of an app (`team/app`). Never waits.
    pub fn add(&self, app: &str, record: LogRecord) {
        let message = Message::Record { app: app.into(), record: Box::new(record) };
        if let Err(TrySendError::Full(_)) = self.queue.try_send(message) {
            self.dropped_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets an app's log. Blocks until it is gone.
    pub fn forget(&self, app: &str) {
        let (done, is_done) = sync_channel(1);
        if self.queue.send(Message::Forget { app: app.into(), done }).is_ok() {
            // If the writer has ended there is nothing to wait for.
            let _ = is_done.recv();
        }
    }

    /// Blocks until what was taken in before is in files.
    pub fn flush(&self) {
        let (done, is_done) = sync_channel(1);
        if self.queue.send(Message::Flush { done }).is_ok() {
            let _ = is_done.recv();
        }
    }

    /// Ends what follows logs, now and from now on: the server is ending, and would wait
    /// for responses that never end by themselves.
    pub(crate) fn stop_following(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.followers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Reads an app's log. Blocks.
    pub(crate) fn read(&self, app: &str, query: &LogQuery) -> Reading {
        // Enlisted first, so that nothing falls between the files and what follows.
        let may_follow = query.follow && !self.is_closed.load(Ordering::Relaxed);
        let receiver = may_follow.then(|| self.subscribe(app));
        self.flush();
        let folder = self.folder_of(app);
        let mut records = std::collections::VecDeque::new();
        let mut end = (0, 0);
        let last = query.last.unwrap_or(MAX_RECORDS_COUNT).min(MAX_RECORDS_COUNT);
        for number in segments(&folder) {
            let Ok(file) = File::open(segment_path(&folder, number)) else { continue };
            if query.since_ms.is_some_and(|since_ms| modified_ms(&file) < since_ms) {
                continue;
            }
            let mut reader = BufReader::new(file);
            let mut line = String::new();
            let mut offset_bytes = 0;
            while let Ok(count) = reader.read_line(&mut line) {
                // What is being written just now has no end yet.
                if count == 0 || !line.ends_with('\n') {
                    break;
                }
                offset_bytes += count as u64;
                end = (number, offset_bytes);
                if let Ok(record) = serde_json::from_str::<LogRecord>(&line)
                    && matches(&record, query)
                {
                    if records.len() >= last {
                        records.pop_front();
                    }
                    if last > 0 {
                        records.push_back(record);
                    }
                }
                line.clear();
            }
        }
        let live = receiver.map(|receiver| Live { receiver, from: end, query: query.clone() });
        Reading { records: records.into(), live }
    }

    fn subscribe(&self, app: &str) -> broadcast::Receiver<Arc<Numbered>> {
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        followers.retain(|_, sender| sender.receiver_count() > 0);
        followers.entry(app.into()).or_insert_with(|| broadcast::Sender::new(FOLLOW_COUNT)).subscribe()
    }

    fn folder_of(&self, app: &str) -> PathBuf {
        // Names of teams and apps are words of letters, digits and hyphens.
        self.folder.join(app)
    }
}

impl Live {
    /// The next record; `None` when the log ends.
    pub(crate) async fn next(&mut self) -> Option<LogRecord> {
        loop {
            match self.receiver.recv().await {
                Ok(numbered) if numbered.end > self.from && matches(&numbered.record, &self.query) => {
                    return Some(numbered.record.clone());
                }
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(count)) => {
                    return Some(platform_record(format!(
                        "{count} records were missed here: they came too fast"
                    )));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl LogReceiver for LogStore {
    fn receive(&self, source: &LineSource<'_>, lines: &[u8]) {
        let at_ms = now_ms();
        let request = source.origin.request.map(|request| request.to_string());
        let trace = source.origin.context.map(|context| context.trace_id.to_string());
        let stream = match source.stream {
            StandardStream::Stdout => "stdout",
            StandardStream::Stderr => "stderr",
        };
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let text = String::from_utf8_lossy(&line[..line.len().min(TEXT_BYTES)]).into_owned();
            let record = LogRecord {
                at_ms,
                stream: stream.into(),
                component: Some(source.component.to_owned()),
                request: request.clone(),
                trace: trace.clone(),
                text,
                fields: serde_json::Map::new(),
            };
            self.add(source.app, record);
        }
    }
}

impl Writer {
    fn run(mut self, messages: &Receiver<Message>) {
        let mut swept = std::time::Instant::now();
        loop {
            match messages.recv_timeout(SWEEP) {
                Ok(Message::Record { app, record }) => self.write(&app, *record),
                Ok(Message::Forget { app, done }) => {
                    self.open.retain(|segment| segment.app != app);
                    let folder = self.store.folder_of(&app);
                    // It may never have written anything.
                    drop(fs::remove_dir_all(&folder));
                    let _ = done.send(());
                }
                Ok(Message::Flush { done }) => {
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if swept.elapsed() >= SWEEP {
                swept = std::time::Instant::now();
                self.sweep();
            }
        }
    }

    /// Writes a record. Errors are ignored: there is no better place to report that a log
    /// cannot be written, and apps do not depend on it.
    fn write(&mut self, app: &str, record: LogRecord) {
        let dropped_count = self.store.dropped_count.swap(0, Ordering::Relaxed);
        if dropped_count > 0 {
            let text = format!(
                "{dropped_count} records of apps were dropped: they came faster than they could be written"
            );
            self.write_one(app, platform_record(text));
        }
        self.write_one(app, record);
    }

    fn write_one(&mut self, app: &str, record: LogRecord) {
        let Ok(mut line) = serde_json::to_vec(&record) else { return };
        line.push(b'\n');
        let limits = self.limits;
        let store = self.store.clone();
        let Ok(segment) = self.segment(app) else { return };
        if segment.file.write_all(&line).is_err() {
            return;
        }
        segment.size_bytes += line.len() as u64;
        let end = (segment.number, segment.size_bytes);
        if segment.size_bytes >= SEGMENT_BYTES {
            let _ = self.open.pop();
            trim(&store.folder_of(app), limits);
        }
        let followers = store.followers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = followers.get(app) {
            // Nobody follows any more: that is all right.
            let _ = sender.send(Arc::new(Numbered { end, record }));
        }
    }

    /// The segment of an app that is written to.
    fn segment(&mut self, app: &str) -> io::Result<&mut Segment> {
        match self.open.iter().rposition(|segment| &*segment.app == app) {
            Some(position) if position + 1 == self.open.len() => {}
            Some(position) => {
                let segment = self.open.remove(position);
                self.open.push(segment);
            }
            None => {
                let folder = self.store.folder_of(app);
                fs::create_dir_all(&folder)?;
                let mut number = segments(&folder).last().copied().unwrap_or(1);
                let mut segment = open_segment(app, &folder, number)?;
                if segment.size_bytes >= SEGMENT_BYTES {
                    number += 1;
                    segment = open_segment(app, &folder, number)?;
                }
                if self.open.len() >= OPEN_SEGMENTS_COUNT {
                    self.open.remove(0);
                }
                self.open.push(segment);
            }
        }
        self.open.last_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Removes what is too old.
    fn sweep(&self) {
        for team in fs::read_dir(&self.store.folder).into_iter().flatten().flatten() {
            for app in fs::read_dir(team.path()).into_iter().flatten().flatten() {
                trim(&app.path(), self.limits);
            }
        }
    }
}

fn open_segment(app: &str, folder: &Path, number: u64) -> io::Result<Segment> {
    let path = segment_path(folder, number);
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    let size_bytes = file.seek(SeekFrom::End(0))?;
    let mut segment = Segment { app: app.into(), file, number, size_bytes };
    // What a kill cut off in the middle ends here; readers pass over it.
    if size_bytes > 0 {
        let mut last = [0; 1];
        segment.file.seek(SeekFrom::End(-1))?;
        io::Read::read_exact(&mut segment.file, &mut last)?;
        if last != [b'\n'] {
            segment.file.write_all(b"\n")?;
            segment.size_bytes += 1;
        }
    }
    Ok(segment)
}

fn segment_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:010}.jsonl"))
}

/// The numbers of an app's segments, the oldest first.
fn segments(folder: &Path) -> Vec<u64> {
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".jsonl")?.parse().ok();
    let mut numbers: Vec<u64> =
        fs::read_dir(folder).into_iter().flatten().flatten().filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// Removes an app's oldest segments until the rest is within the limits. The newest one
/// stays, unless it is too old.
fn trim(folder: &Path, limits: LogLimits) {
    let mut kept_bytes = 0;
    let numbers = segments(folder);
    for (position, number) in numbers.iter().rev().enumerate() {
        let path = segment_path(folder, *number);
        let Ok(metadata) = fs::metadata(&path) else { continue };
        kept_bytes += metadata.len();
        let age = metadata.modified().ok().and_then(|modified| modified.elapsed().ok()).unwrap_or_default();
        if (kept_bytes > limits.max_bytes && position > 0) || age > limits.max_age {
            drop(fs::remove_file(path));
        }
    }
}

fn modified_ms(file: &File) -> u64 {
    let modified = file.metadata().and_then(|metadata| metadata.modified());
    modified.map_or(u64::MAX, milliseconds)
}

fn matches(record: &LogRecord, query: &LogQuery) -> bool {
    let is_since = query.since_ms.is_none_or(|since_ms| record.at_ms >= since_ms);
    let is_until = query.until_ms.is_none_or(|until_ms| record.at_ms < until_ms);
    let is_of_request = query.request.as_ref().is_none_or(|id| record.request.as_ref() == Some(id));
    let contains = query.contains.as_ref().is_none_or(|text| record.text.contains(text.as_str()));
    is_since && is_until && is_of_request && contains
}

/// What the platform itself has to say in an app's log.
pub(crate) fn platform_record(text: String) -> LogRecord {
    LogRecord {
        at_ms: now_ms(),
        stream: "platform".into(),
        component: None,
        request: None,
        trace: None,
        text,
        fields: serde_json::Map::new(),
    }
}

/// The time, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    milliseconds(SystemTime::now())
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use wisp_telemetry::trace::Origin;

    use super::*;

    fn source<'source>(
        app: &'source str,
        component: &'source str,
        stream: StandardStream,
    ) -> LineSource<'source> {
        LineSource { app, component, stream, origin: Origin::default() }
    }

    fn texts(reading: &Reading) -> Vec<&str> {
        reading.records.iter().map(|record| record.text.as_str()).collect()
    }

    #[tokio::test]
    async fn what_apps_write_is_found_again_and_followed() {
        let folder = tempfile::tempdir().unwrap();
        let store = LogStore::start(folder.path().to_owned(), LogLimits::DEFAULT).unwrap();
        store.receive(&source("team/one", "cart", StandardStream::Stdout), b"first\nsecond\n");
        store.receive(&source("team/other", "cart", StandardStream::Stdout), b"of another\n");
        let all = store.read("team/one", &LogQuery::default());
        assert_eq!(texts(&all), ["first", "second"]);
        let grep = LogQuery { contains: Some("eco".into()), ..LogQuery::default() };
        assert_eq!(texts(&store.read("team/one", &grep)), ["second"]);
        let follow = LogQuery { last: Some(1), follow: true, ..LogQuery::default() };
        let mut following = store.read("team/one", &follow);
        assert_eq!(texts(&following), ["second"]);
        store.receive(&source("team/one", "cart", StandardStream::Stderr), b"third\n");
        let next = following.live.as_mut().unwrap().next().await.unwrap();
        assert_eq!((next.text.as_str(), next.stream.as_str()), ("third", "stderr"));
        store.stop_following();
        assert!(following.live.as_mut().unwrap().next().await.is_none());
        store.forget("team/one");
        assert_eq!(texts(&store.read("team/one", &LogQuery::default())), [] as [&str; 0]);
        assert_eq!(texts(&store.read("team/other", &LogQuery::default())), ["of another"]);
    }

    #[test]
    fn an_app_keeps_no_more_than_its_limit_and_a_torn_line_harms_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let limits = LogLimits { max_bytes: 2 * SEGMENT_BYTES, ..LogLimits::DEFAULT };
        let store = LogStore::start(folder.path().to_owned(), limits).unwrap();
        let line = [vec![b'x'; 1_000], b"\n".to_vec()].concat();
        for _ in 0..5_000 {
            store.receive(&source("team/app", "c", StandardStream::Stdout), &line);
            if store.queue.try_send(Message::Flush { done: sync_channel(1).0 }).is_err() {
                store.flush();
            }
        }
        store.flush();
        let app = folder.path().join("team/app");
        let kept_bytes: u64 = segments(&app)
            .iter()
            .map(|number| fs::metadata(segment_path(&app, *number)).unwrap().len())
            .sum();
        assert!(kept_bytes <= 3 * SEGMENT_BYTES, "{kept_bytes}");
        assert!(kept_bytes >= SEGMENT_BYTES);
        let newest = segment_path(&app, *segments(&app).last().unwrap());
        drop(store);
        let mut torn = OpenOptions::new().append(true).open(newest).unwrap();
        torn.write_all(b"{\"at_ms\":1,").unwrap();
        let store = LogStore::start(folder.path().to_owned(), limits).unwrap();
        store.receive(&source("team/app", "c", StandardStream::Stdout), b"after\n");
        let last = LogQuery { last: Some(1), ..LogQuery::default() };
        assert_eq!(texts(&store.read("team/app", &last)), ["after"]);
    }
}
