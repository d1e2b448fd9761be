//! What a process prints, line by line, while it runs.

use std::{
    io::{BufRead as _, BufReader, Read},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::WAIT_LIMIT;

/// Lines that a process has printed so far.
#[derive(Clone)]
pub(crate) struct Output(Arc<Shared>);

#[derive(Default)]
struct Shared {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    lines: Vec<String>,
    has_ended: bool,
}

impl Output {
    /// Collects what comes from a pipe until it ends.
    pub(crate) fn of(pipe: impl Read + Send + 'static) -> Self {
        let output = Self(Arc::default());
        let shared = output.0.clone();
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(pipe.read_until(b'\n', &mut line), Ok(length) if length > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                shared.lines.lock().unwrap_or_else(PoisonError::into_inner).lines.push(text);
                shared.changed.notify_all();
                line.clear();
            }
            shared.lines.lock().unwrap_or_else(PoisonError::into_inner).has_ended = true;
            shared.changed.notify_all();
        });
        output
    }

    /// The first line that fits, as soon as there is one.
    pub(crate) fn wait_for(&self, fits: impl Fn(&str) -> bool) -> String {
        match self.try_wait_for(fits, WAIT_LIMIT) {
            Some(line) => line,
            None => panic!("no line fits:\n{}", self.text()),
        }
    }

    /// A line that holds this text.
    pub(crate) fn wait_for_text(&self, text: &str) -> String {
        match self.try_wait_for(|line| line.contains(text), WAIT_LIMIT) {
            Some(line) => line,
            None => panic!("no line has `{text}`:\n{}", self.text()),
        }
    }

    /// `None` if the output ends or the limit passes before a line fits.
    pub(crate) fn try_wait_for(&self, fits: impl Fn(&str) -> bool, limit: Duration) -> Option<String> {
        let end = Instant::now() + limit;
        let mut seen_count = 0;
        let mut lines = self.0.lines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(line) = lines.lines[seen_count..].iter().find(|line| fits(line)) {
                return Some(line.clone());
            }
            seen_count = lines.lines.len();
            let left = end.saturating_duration_since(Instant::now());
            if lines.has_ended || left.is_zero() {
                return None;
            }
            lines = self.0.changed.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All lines so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner).lines.clone()
    }

    /// Everything so far.
    pub(crate) fn text(&self) -> String {
        self.lines().iter().map(|line| format!("{line}\n")).collect()
    }

    /// Everything, once the pipe has ended.
    pub(crate) fn text_at_end(&self) -> String {
        let line = self.try_wait_for(|_| false, WAIT_LIMIT);
        debug_assert!(line.is_none(), "no line was asked for");
        self.text()
    }
}
