//! A line for each request, in files that are bounded.
//!
//! Lines are JSON objects. Whoever answers a request hands a [`Line`] over and goes on;
//! a thread writes them. When it cannot keep up, lines are dropped and counted, and
//! requests are not held up.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::{
    Error,
    certificates::make_private_folder,
    clock::{Clock, SystemClock, unix_s},
};

/// Lines that wait to be written, some 300 bytes each.
const MAX_WAITING_COUNT: usize = 16_384;

/// The longest path that a line repeats.
const MAX_PATH_BYTES: usize = 1_024;

/// How large a file grows before the next one is begun.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// How old a file grows before the next one is begun.
pub const MAX_FILE_AGE: Duration = Duration::from_secs(86_400);

/// Files that are kept beside the one that is written to.
pub const MAX_OLD_FILES_COUNT: usize = 7;

/// The name of the file that is written to; others have a number after it, 1 for the
/// newest.
const FILE_NAME: &str = "access.log";

/// What is kept of a request.
#[derive(Clone, Debug)]
pub struct Line {
    /// When its response was complete.
    pub time: SystemTime,
    /// Names it among all of this process.
    pub request_id: String,
    /// The client.
    pub client: IpAddr,
    /// It came by `https`.
    pub is_tls: bool,
    /// The host as the client wrote it.
    pub host: Option<Box<str>>,
    /// Its method.
    pub method: http::Method,
    /// Its path. What follows a `?` is not written: people put secrets there.
    pub path: String,
    /// The status of the response.
    pub status: u16,
    /// Bytes of the response's body.
    pub response_bytes: u64,
    /// From the end of the request's header to the end of the response.
    pub duration: Duration,
    /// CPU time of the guest, if the request met one.
    pub cpu: Option<Duration>,
    /// The trace that the request is part of, in hexadecimal.
    pub trace_id: Option<String>,
    /// The response was sent to its end.
    pub is_complete: bool,
}

/// Bounds of the files.
#[derive(Clone, Copy, Debug)]
pub struct FileLimits {
    /// How large a file grows.
    pub max_bytes: u64,
    /// How old a file grows.
    pub max_age: Duration,
    /// Files that are kept beside the one that is written to.
    pub max_old_count: usize,
}

/// Writes lines. Dropping it writes those that wait.
pub struct AccessLog {
    sender: Option<SyncSender<Line>>,
    dropped_count: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

struct Writer {
    folder: PathBuf,
    limits: FileLimits,
    clock: Arc<dyn Clock>,
    file: BufWriter<File>,
    file_bytes: u64,
    begun_at: SystemTime,
}

/// As it is written: names that stay.
#[derive(Serialize)]
struct Written<'line> {
    time: String,
    id: &'line str,
    client: IpAddr,
    scheme: &'static str,
    host: Option<&'line str>,
    method: &'line str,
    path: &'line str,
    status: u16,
    bytes: u64,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<&'line str>,
    complete: bool,
}

impl Default for FileLimits {
    fn default() -> Self {
        Self { max_bytes: MAX_FILE_BYTES, max_age: MAX_FILE_AGE, max_old_count: MAX_OLD_FILES_COUNT }
    }
}

impl AccessLog {
    /// Writes to files in a folder, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn start(folder: &Path, limits: FileLimits) -> Result<Self, Error> {
        Self::with_clock(folder, limits, Arc::new(SystemClock))
    }

    fn with_clock(folder: &Path, limits: FileLimits, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        make_private_folder(folder)?;
        let writer =
            Writer::open(folder.to_owned(), limits, clock).map_err(Error::write(folder.join(FILE_NAME)))?;
        let (sender, receiver) = sync_channel(MAX_WAITING_COUNT);
        let dropped_count = Arc::new(AtomicU64::new(0));
        let thread = thread::Builder::new()
            .name("wisp-access-log".into())
            .spawn({
                let dropped_count = dropped_count.clone();
                move || writer.run(&receiver, &dropped_count)
            })
            .map_err(Error::write(folder.join(FILE_NAME)))?;
        Ok(Self { sender: Some(sender), dropped_count, thread: Some(thread) })
    }

    /// Hands a line over. Does not wait.
    pub fn write(&self, line: Line) {
        let is_taken = self.sender.as_ref().is_some_and(|sender| sender.try_send(line).is_ok());
        if !is_taken {
            self.dropped_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that could not be written, since it was last said in the log.
    pub fn dropped_count(&self) -> u64 {
        self.dropped_count.load(Ordering::Relaxed)
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Writer {
    fn open(folder: PathBuf, limits: FileLimits, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let path = folder.join(FILE_NAME);
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        let metadata = file.metadata()?;
        // A file that goes on is as old as its beginning, where the system knows that.
        let begun_at = match metadata.len() {
            0 => clock.now(),
            _ => metadata.created().unwrap_or_else(|_| clock.now()),
        };
        Ok(Self { folder, limits, clock, file_bytes: metadata.len(), file: BufWriter::new(file), begun_at })
    }

    fn run(mut self, receiver: &Receiver<Line>, dropped_count: &AtomicU64) {
        let mut is_failing = false;
        while let Ok(first) = receiver.recv() {
            let mut next = Ok(first);
            let mut result = Ok(());
            while let Ok(line) = next {
                if result.is_ok() {
                    result = self.write(&line);
                }
                if result.is_err() {
                    dropped_count.fetch_add(1, Ordering::Relaxed);
                }
                next = receiver.try_recv();
            }
            let result = result.and_then(|()| self.file.flush());
            match &result {
                Err(cause) if !is_failing => {
                    let path = self.folder.join(FILE_NAME);
                    tracing::error!(code = "WISP-E1015", "`{}` cannot be written: {cause}", path.display());
                }
                _ => {}
            }
            is_failing = result.is_err();
            let count = if is_failing { 0 } else { dropped_count.swap(0, Ordering::Relaxed) };
            if count > 0 {
                tracing::warn!(code = "WISP-E1015", "{count} lines of the access log were dropped");
            }
        }
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        let now = self.clock.now();
        let is_old = now.duration_since(self.begun_at).is_ok_and(|age| age >= self.limits.max_age);
        if self.file_bytes >= self.limits.max_bytes || (is_old && self.file_bytes > 0) {
            self.rotate()?;
        }
        let text = serde_json::to_vec(&Written::new(line)).map_err(io::Error::other)?;
        self.file.write_all(&text)?;
        self.file.write_all(b"\n")?;
        self.file_bytes += text.len() as u64 + 1;
        Ok(())
    }

    /// Begins the next file.
    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let path = |number: usize| match number {
            0 => self.folder.join(FILE_NAME),
            _ => self.folder.join(format!("{FILE_NAME}.{number}")),
        };
        let gone = |result: io::Result<()>| match result {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
            _ => Ok(()),
        };
        gone(fs::remove_file(path(self.limits.max_old_count)))?;
        for number in (0..self.limits.max_old_count).rev() {
            gone(fs::rename(path(number), path(number + 1)))?;
        }
        let next = Self::open(self.folder.clone(), self.limits, self.clock.clone())?;
        *self = Self { begun_at: self.clock.now(), ..next };
        Ok(())
    }
}

impl<'line> Written<'line> {
    fn new(line: &'line Line) -> Self {
        let path = line.path.split('?').next().unwrap_or_default();
        Self {
            time: rfc3339(line.time),
            id: &line.request_id,
            client: line.client,
            scheme: if line.is_tls { "https" } else { "http" },
            host: line.host.as_deref(),
            method: line.method.as_str(),
            path: &path[..path.floor_char_boundary(MAX_PATH_BYTES)],
            status: line.status,
            bytes: line.response_bytes,
            duration_ms: milliseconds(line.duration),
            cpu_ms: line.cpu.map(milliseconds),
            trace: line.trace_id.as_deref(),
            complete: line.is_complete,
        }
    }
}

/// To the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// A time as `2026-11-20T17:00:00.123Z`.
fn rfc3339(time: SystemTime) -> String {
    let seconds = unix_s(time);
    let millis = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_millis());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March have their odd day at their end; 1968-03-01 is 671 days
    // before 1970, and until 2100 each fourth year has one.
    let days = days + 671;
    let (cycle, day) = (days / 1_461, days % 1_461);
    let year_of_cycle = (day / 365).min(3);
    let day_of_year = day - year_of_cycle * 365;
    // Months from March on have 31, 30, 31, 30, 31 days, and again.
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = match month {
        0..10 => (1_968 + 4 * cycle + year_of_cycle, month + 3),
        _ => (1_969 + 4 * cycle + year_of_cycle, month - 9),
    };
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::ManualClock;

    fn line(path: &str) -> Line {
        Line {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_194_000_123),
            request_id: "00c0ffee".into(),
            client: "192.0.2.1".parse().unwrap(),
            is_tls: true,
            host: Some("shop.example".into()),
            method: http::Method::GET,
            path: path.into(),
            status: 200,
            response_bytes: 12,
            duration: Duration::from_micros(1_500),
            cpu: Some(Duration::from_micros(250)),
            trace_id: None,
            is_complete: true,
        }
    }

    fn read(folder: &Path, name: &str) -> Option<String> {
        fs::read_to_string(folder.join(name)).ok()
    }

    #[test]
    fn a_request_is_a_line_without_its_query() {
        let folder = tempfile::tempdir().unwrap();
        let log = AccessLog::start(folder.path(), FileLimits::default()).unwrap();
        log.write(line("/a\"b?token=secret"));
        drop(log);
        let text = read(folder.path(), FILE_NAME).unwrap();
        assert_eq!(
            text,
            "{\"time\":\"2026-11-20T17:00:00.123Z\",\"id\":\"00c0ffee\",\"client\":\"192.0.2.1\",\
             \"scheme\":\"https\",\"host\":\"shop.example\",\"method\":\"GET\",\"path\":\"/a\\\"b\",\
             \"status\":200,\"bytes\":12,\"duration_ms\":1.5,\"cpu_ms\":0.25,\"complete\":true}\n"
        );
    }

    #[test]
    fn files_are_bounded_in_size_age_and_number() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(SystemTime::now()));
        let limits = FileLimits { max_bytes: 1_000, max_age: Duration::from_secs(60), max_old_count: 2 };
        let log = AccessLog::with_clock(folder.path(), limits, clock.clone()).unwrap();
        for _ in 0..100 {
            log.write(line("/some/path/of/some/length"));
        }
        drop(log);
        let names = || {
            let mut names: Vec<_> = fs::read_dir(folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["access.log", "access.log.1", "access.log.2"]);
        assert!((1_000..1_400).contains(&read(folder.path(), "access.log.2").unwrap().len()));

        let log = AccessLog::with_clock(folder.path(), limits, clock.clone()).unwrap();
        clock.advance(Duration::from_secs(61));
        log.write(line("/new"));
        drop(log);
        assert_eq!(read(folder.path(), FILE_NAME).unwrap().lines().count(), 1);
    }

    #[test]
    fn times_are_written_as_people_read_them() {
        let written = |seconds| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(written(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(written(951_782_399), "2000-02-28T23:59:59.000Z");
        assert_eq!(written(951_782_400), "2000-02-29T00:00:00.000Z");
        assert_eq!(written(951_868_800), "2000-03-01T00:00:00.000Z");
        assert_eq!(written(1_735_689_599), "2024-12-31T23:59:59.000Z");
        assert_eq!(written(1_735_689_600), "2025-01-01T00:00:00.000Z");
    }
}
