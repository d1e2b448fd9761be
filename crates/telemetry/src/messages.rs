//! Exports Wisp's own messages, where logs are exported.

use std::{fmt, time::SystemTime};

use opentelemetry::{KeyValue, Value, logs::Severity};
use tracing::{Event, Level, Subscriber, field};
use tracing_subscriber::layer::{Context, Layer};

use crate::{
    export::{LogEntry, LogSource, export},
    trace::Scope,
};

/// What this crate says itself is not exported: it is about exporting.
const OWN_TARGET: &str = env!("CARGO_CRATE_NAME");

/// Requests are exported as records of their own.
const REQUESTS_TARGET: &str = "wisp::request";

/// Passes messages on to the export.
pub(crate) struct Messages;

/// A message on its way.
#[derive(Default)]
struct Message {
    text: String,
    attributes: Vec<KeyValue>,
}

impl<S: Subscriber> Layer<S> for Messages {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let Some(export) = export().filter(|export| export.exports_logs()) else { return };
        let target = event.metadata().target();
        // What libraries say while they send would have to be sent, and so on.
        if !target.starts_with("wisp") || target.starts_with(OWN_TARGET) || target == REQUESTS_TARGET {
            return;
        }
        let mut message = Message::default();
        event.record(&mut message);
        message.attributes.push(KeyValue::new("wisp.module", target.to_owned()));
        let scope = Scope::current();
        if let Some(scope) = &scope {
            message.attributes.push(KeyValue::new("wisp.app", scope.app().clone()));
        }
        export.log(LogEntry {
            source: LogSource::Own,
            time: SystemTime::now(),
            severity: match *event.metadata().level() {
                Level::ERROR => Severity::Error,
                Level::WARN => Severity::Warn,
                Level::INFO => Severity::Info,
                Level::DEBUG => Severity::Debug,
                Level::TRACE => Severity::Trace,
            },
            text: message.text,
            attributes: message.attributes,
            context: scope.and_then(|scope| scope.context()),
        });
    }
}

impl Message {
    fn add(&mut self, field: &field::Field, value: impl Into<Value>) {
        let name = match field.name() {
            "code" => "wisp.code",
            "component" => "wisp.component",
            // The request's scope says which app it is.
            "app" => return,
            name => name,
        };
        self.attributes.push(KeyValue::new(name, value));
    }
}

impl field::Visit for Message {
    fn record_debug(&mut self, field: &field::Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.text = format!("{value:?}");
        } else {
            self.add(field, format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &field::Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.text);
        } else {
            self.add(field, value.to_owned());
        }
    }

    fn record_i64(&mut self, field: &field::Field, value: i64) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &field::Field, value: u64) {
        match i64::try_from(value) {
            Ok(value) => self.add(field, value),
            Err(_) => self.add(field, value.to_string()),
        }
    }

    fn record_bool(&mut self, field: &field::Field, value: bool) {
        self.add(field, value);
    }
}
