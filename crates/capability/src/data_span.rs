//! What a guest asks of its stores and databases, as parts of its request's trace.

use wisp_telemetry::trace::{Scope, SpanKind};

/// Waits for an operation of a store or a database. Neither keys nor statements are told:
/// they are the app's own.
pub(crate) async fn of<T, E>(
    system: &'static str,
    operation: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    // Without an export this is all that it costs.
    let exports = wisp_telemetry::export().is_some_and(|export| export.exports_traces());
    let scope = if exports { Scope::current() } else { None };
    let Some(mut span) = scope.and_then(|scope| scope.begin(SpanKind::Client, operation)) else {
        return work.await;
    };
    span.set("db.system.name", system);
    span.set("db.operation.name", operation);
    let done = work.await;
    if done.is_err() {
        span.fail("_OTHER");
    }
    span.end();
    done
}
