//! What components write during a test.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use wisp_capability::wasi::{LineSource, LogReceiver, StandardStream};
use wisp_node::TEST_COMPONENT_ID;

/// How much one test's components may write before the rest is dropped: it is held in
/// memory to be compared and shown.
const MAX_BYTES: usize = 4 << 20;

/// What components write, by the name that their app has in the logs.
#[derive(Default)]
pub(super) struct Outputs {
    by_test: Mutex<HashMap<String, Output>>,
}

/// What was written during one test, in order.
#[derive(Clone, Default)]
pub(super) struct Output {
    /// Of the app's components.
    lines: Vec<(StandardStream, Vec<u8>)>,
    /// Of the component that tests it.
    of_test: Vec<u8>,
    bytes: usize,
}

impl Outputs {
    fn by_test(&self) -> MutexGuard<'_, HashMap<String, Output>> {
        self.by_test.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was written so far.
    pub(super) fn get(&self, test: &str) -> Output {
        self.by_test().get(test).cloned().unwrap_or_default()
    }

    /// What was written; the test is over.
    pub(super) fn take(&self, test: &str) -> Output {
        self.by_test().remove(test).unwrap_or_default()
    }
}

impl Output {
    /// What the app's components wrote to one of their streams.
    pub(super) fn of(&self, wanted: StandardStream) -> String {
        self.collect(|stream| stream == wanted)
    }

    /// What the app's components wrote.
    pub(super) fn of_app(&self) -> String {
        self.collect(|_| true)
    }

    fn collect(&self, is_wanted: impl Fn(StandardStream) -> bool) -> String {
        let lines = self.lines.iter().filter(|(stream, _)| is_wanted(*stream));
        lines.map(|(_, bytes)| String::from_utf8_lossy(bytes)).collect()
    }

    /// What the component that tests the app wrote.
    pub(super) fn of_test(&self) -> String {
        String::from_utf8_lossy(&self.of_test).into_owned()
    }
}

impl LogReceiver for Outputs {
    fn receive(&self, source: &LineSource<'_>, lines: &[u8]) {
        let mut by_test = self.by_test();
        let output = by_test.entry(source.app.to_owned()).or_default();
        let lines = &lines[..lines.len().min(MAX_BYTES - output.bytes)];
        output.bytes += lines.len();
        if source.component == TEST_COMPONENT_ID {
            output.of_test.extend_from_slice(lines);
        } else {
            output.lines.push((source.stream, lines.to_vec()));
        }
    }
}

impl std::fmt::Debug for Outputs {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Outputs").finish_non_exhaustive()
    }
}

/// The end of a text that fits into a message.
pub(super) fn end_of(mut text: String, max_bytes: usize) -> String {
    let start = text.len().saturating_sub(max_bytes);
    let start = (start..text.len()).find(|start| text.is_char_boundary(*start)).unwrap_or(text.len());
    if start == 0 { mem::take(&mut text) } else { text.split_off(start) }
}
