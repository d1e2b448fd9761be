//! What Wisp says about itself while it runs.
//!
//! For: setting up where the process's own messages go and how they look. Code
//! everywhere uses `tracing`'s macros; this crate decides, once at the start,
//! what becomes of them. For writing figures down as Prometheus reads them
//! ([`metrics`]). And for exporting all of it, with traces, to a collector of
//! OpenTelemetry's ([`export`](mod@export)), where the operator asks for that; [`trace`]
//! says on whose behalf something happens.
//!
//! Not for: output of guests (`wisp_capability::wasi::logs`), results of commands
//! (standard output of `wisp`), errors that end a command (`wisp` prints them).
//!
//! # Form
//!
//! One line an event on standard error, as the command line speaks:
//!
//! ```text
//! warning[WISP-E0411]: no instance was free component=hello
//! ```
//!
//! The level is `error`, `warning`, `info`, `debug` or `trace`; a stable code
//! follows in brackets where the event has one. With [`Format::Json`] each event
//! is one JSON object instead. `WISP_LOG` chooses what is shown, in the syntax of
//! `tracing-subscriber`'s `EnvFilter`; by default everything from `info` on that
//! Wisp itself says, and warnings of its libraries.
#![forbid(unsafe_code)]

pub mod export;
mod messages;
pub mod metrics;
pub mod trace;

use std::{fmt, io, io::IsTerminal as _};

pub use export::{export, flush, start};
use tracing::{Event, Level, Subscriber, field};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    fmt::{FmtContext, FormatEvent, FormatFields, format},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

/// The environment variable that chooses what is shown.
pub const FILTER_VARIABLE: &str = "WISP_LOG";

/// What is shown unless [`FILTER_VARIABLE`] says otherwise.
const DEFAULT_FILTER: &str = "warn,wisp=info,wisp_capability=info,wisp_engine=info,wisp_node=info,wisp_telemetry=info,wisp_trigger=info";

/// How events look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object for machines.
    Json,
}

/// Why messages or their export cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not one.
    #[error("`{FILTER_VARIABLE}` is not a filter: {message}")]
    Filter {
        /// What is wrong with it.
        message: String,
    },
    /// A variable of OpenTelemetry asks for something that does not exist here.
    #[error("`{variable}` is `{value}`; there is {known}")]
    Variable {
        /// The variable.
        variable: String,
        /// Its value.
        value: String,
        /// What it could be.
        known: &'static str,
    },
    /// An exporter cannot be made, such as for an endpoint that is no URL.
    #[error("the export cannot be set up: {message}")]
    Exporter {
        /// What is wrong.
        message: String,
    },
    /// The operating system refused a thread.
    #[error("the export cannot be started: {cause}")]
    Start {
        /// What the operating system said.
        cause: io::Error,
    },
}

impl Error {
    /// The stable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Filter { .. } => "WISP-E0601",
            Self::Variable { .. } => "WISP-E0602",
            Self::Exporter { .. } => "WISP-E0603",
            Self::Start { .. } => "WISP-E0604",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Filter { .. } => Some(format!(
                "for example `{FILTER_VARIABLE}=debug` or `{FILTER_VARIABLE}=wisp_trigger=debug`"
            )),
            Self::Variable { .. } => {
                Some("set it to one of these, or export nothing with `OTEL_SDK_DISABLED=true`".to_owned())
            }
            Self::Exporter { .. } => Some(
                "look at `OTEL_EXPORTER_OTLP_ENDPOINT` and what begins with `OTEL_EXPORTER_OTLP_`".to_owned(),
            ),
            Self::Start { .. } => None,
        }
    }
}

/// Sets up this process's messages. Later calls change nothing.
///
/// # Errors
/// [`Error::Filter`] if the environment variable cannot be understood.
pub fn init(format: Format) -> Result<(), Error> {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) if !text.is_empty() => {
            EnvFilter::try_new(text).map_err(|error| Error::Filter { message: error.to_string() })?
        }
        _ => EnvFilter::new(DEFAULT_FILTER),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match format {
        Format::Text => {
            let has_color = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            lines.with_ansi(has_color).event_format(Line).boxed()
        }
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    // A second subscriber is refused; the first one stays, as documented.
    let _ = tracing_subscriber::registry().with(filter).with(lines).with(messages::Messages).try_init();
    Ok(())
}

/// `level[code]: message field=value …`
struct Line;

/// What of an event has a place of its own in the line.
#[derive(Default)]
struct Parts {
    code: Option<String>,
    message: String,
    fields: String,
}

impl field::Visit for Parts {
    fn record_debug(&mut self, field: &field::Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            "code" => self.code = Some(format!("{value:?}").trim_matches('"').to_owned()),
            name => self.fields.push_str(&format!(" {name}={value:?}")),
        }
    }

    fn record_str(&mut self, field: &field::Field, value: &str) {
        match field.name() {
            "code" => self.code = Some(value.to_owned()),
            name => self.fields.push_str(&format!(" {name}={value}")),
        }
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: format::Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut parts = Parts::default();
        event.record(&mut parts);
        let (name, color_code) = match *event.metadata().level() {
            Level::ERROR => ("error", 31),
            Level::WARN => ("warning", 33),
            Level::INFO => ("info", 36),
            Level::DEBUG => ("debug", 90),
            Level::TRACE => ("trace", 90),
        };
        let code = parts.code.map(|code| format!("[{code}]")).unwrap_or_default();
        if writer.has_ansi_escapes() {
            write!(writer, "\x1b[1;{color_code}m{name}{code}\x1b[0m: ")?;
        } else {
            write!(writer, "{name}{code}: ")?;
        }
        // Fields before the message's further lines, such as a backtrace's.
        match parts.message.split_once('\n') {
            Some((first, rest)) => writeln!(writer, "{first}{}\n{rest}", parts.fields),
            None => writeln!(writer, "{}{}", parts.message, parts.fields),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines_of(emit: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .event_format(Line)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, emit);
        let bytes = captured.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn an_event_is_a_line_with_its_code_first() {
        let line =
            lines_of(|| tracing::warn!(component = %"hello", code = "WISP-E0411", "no instance was free"));
        assert_eq!(line, "warning[WISP-E0411]: no instance was free component=hello\n");
    }

    #[test]
    fn further_lines_of_a_message_come_after_the_fields() {
        let line = lines_of(|| tracing::error!(component = %"a", "it trapped:\n  0: main\n  1: start"));
        assert_eq!(line, "error: it trapped: component=a\n  0: main\n  1: start\n");
    }
}
