//! A guest that handles a request: where it runs, and its bill.
//!
//! A guest starts on the thread of its connection, polled by the connection's own
//! task. When it has used up a slice there, or was run very often, it moves to the
//! compute lane (see [`super::compute`]) and is only watched from here; one that is
//! expected to need more than a moment, or whose app is over its share, starts there.
//!
//! Whoever has the [`Guest`] has the request: when it is dropped, the guest is
//! cancelled if it still runs, and the request is entered into its component's
//! accounts.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use wisp_engine::{SLICE, Slice, SliceEnd};

use super::{
    account::{Outcome, Record, wait},
    body::{GuestFailed, GuestFuture, Reply},
    component::Component,
    compute::Task,
    gather,
};

/// A request that is likely to need more than this starts on the compute lane
/// where apps compete: moving it costs about a fiftieth of that.
const LONG: Duration = Duration::from_micros(500);

/// A guest that was run more often than this and has not ended is not waiting for one
/// answer: it moves to the compute lane. Hundreds of clients that send a byte now and then
/// would otherwise have their guests run before others, all of them at once.
const MANY_POLLS_COUNT: u32 = 64;

/// A guest, somewhere.
pub(super) struct Guest {
    place: Place,
    /// `None` without accounting.
    bill: Option<Bill>,
}

enum Place {
    /// Polled by whoever has it.
    Here(GuestFuture),
    /// On the compute lane.
    Away(Arc<Task>),
    /// It has come to its end.
    Ended,
}

/// What is known of a request beside what its instance used.
struct Bill {
    reply: Reply,
    /// When the guest began, and when it came to its end: both are known from its
    /// slices, so that the clock need not be read again.
    start: Option<Instant>,
    end: Option<Instant>,
    /// CPU time on this thread, which is not in the shares yet.
    cpu_here_ns: u64,
    /// How often it was run on this thread.
    polls_count: u32,
    response_bytes: u64,
    status: u16,
    outcome: Option<Outcome>,
}

impl Guest {
    /// A guest that begins with its first poll.
    pub(super) fn new(reply: &Reply, guest: GuestFuture) -> Self {
        let component = reply.component();
        if !component.commons.settings.accounting {
            return Self { place: Place::Here(guest), bill: None };
        }
        let mut bill = Bill {
            reply: reply.clone(),
            start: None,
            end: None,
            cpu_here_ns: 0,
            polls_count: 0,
            response_bytes: 0,
            status: 0,
            outcome: None,
        };
        let place = match &component.commons.compute {
            Some(compute) if starts_away(component) => {
                bill.start = Some(Instant::now());
                Place::Away(Task::start(compute.lane(), reply, guest))
            }
            _ => Place::Here(guest),
        };
        Self { place, bill: Some(bill) }
    }

    /// Whether the guest has come to its end.
    pub(super) fn is_ended(&self) -> bool {
        matches!(self.place, Place::Ended)
    }

    /// Runs the guest, or looks after it. What it answers is in its reply.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), GuestFailed>> {
        let polled = match &mut self.place {
            Place::Ended => return Poll::Ready(Ok(())),
            Place::Away(task) => {
                if let Some(bill) = &self.bill {
                    bill.reply.watch(context);
                }
                match task.outcome() {
                    Some(outcome) => Poll::Ready(outcome),
                    None => Poll::Pending,
                }
            }
            Place::Here(guest) => match &mut self.bill {
                None => {
                    gather::before_guest(Instant::now(), Duration::ZERO);
                    guest.as_mut().poll(context)
                }
                Some(bill) => {
                    let component = bill.reply.component();
                    component.pulse.beat();
                    if let Some(compute) = &component.commons.compute {
                        compute.lane().note_worker();
                    }
                    let slice = Slice::begin();
                    let expected_ns = component.totals.expected_cpu_ns();
                    gather::before_guest(slice.start(), Duration::from_nanos(expected_ns));
                    bill.start.get_or_insert(slice.start());
                    let polled = guest.as_mut().poll(context);
                    let SliceEnd { cpu_ns, is_used_up, at } = slice.end();
                    bill.cpu_here_ns += cpu_ns;
                    bill.polls_count = bill.polls_count.saturating_add(1);
                    let used_ns = bill.reply.usage().add_cpu_ns(cpu_ns);
                    if polled.is_pending() {
                        let checked = bill.reply.in_scope(|| bill.reply.component().check_cpu(used_ns));
                        if let Err(failed) = checked {
                            Poll::Ready(Err(failed))
                        } else if is_used_up {
                            // Those of its kind that come next should not begin here, each
                            // with a slice, before this one is over.
                            bill.reply.component().totals.expect_cpu_ns(nanoseconds(SLICE));
                            return self.move_away(context);
                        } else if bill.polls_count > MANY_POLLS_COUNT {
                            return self.move_away(context);
                        } else {
                            Poll::Pending
                        }
                    } else {
                        bill.end = Some(at);
                        polled
                    }
                }
            },
        };
        if let Poll::Ready(outcome) = &polled {
            self.place = Place::Ended;
            if let (Some(bill), Err(failed)) = (&mut self.bill, outcome) {
                bill.outcome = Some(failed.outcome());
            }
        }
        polled
    }

    /// Waits until what the guest did is all to be seen. On the lane its response may
    /// end before it is known that the guest failed, which makes a difference to the
    /// client: an end, or an end that came too soon.
    pub(super) fn settle(&mut self, context: &mut Context<'_>) -> Poll<Result<(), GuestFailed>> {
        let Place::Away(task) = &self.place else { return Poll::Ready(Ok(())) };
        if let Some(bill) = &self.bill {
            bill.reply.watch(context);
        }
        if !task.is_settled() {
            return Poll::Pending;
        }
        match self.poll(context) {
            Poll::Ready(outcome) => Poll::Ready(outcome),
            // It has more to do, but not for this response.
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    /// Lets it go on elsewhere.
    fn move_away(&mut self, context: &mut Context<'_>) -> Poll<Result<(), GuestFailed>> {
        let place = std::mem::replace(&mut self.place, Place::Ended);
        self.place = match (place, &self.bill) {
            (Place::Here(guest), Some(bill)) => match &bill.reply.component().commons.compute {
                Some(compute) => {
                    bill.reply.watch(context);
                    Place::Away(Task::start(compute.lane(), &bill.reply, guest))
                }
                None => Place::Here(guest),
            },
            (place, _) => place,
        };
        Poll::Pending
    }

    /// What the client was told.
    pub(super) fn set_status(&mut self, status: http::StatusCode) {
        if let Some(bill) = &mut self.bill {
            bill.status = status.as_u16();
        }
    }

    /// How the request ends, if not as its guest did.
    pub(super) fn set_outcome(&mut self, outcome: Outcome) {
        if let Some(bill) = &mut self.bill {
            bill.outcome = Some(outcome);
        }
    }

    /// Counts bytes of the response's body; false if they are too many.
    pub(super) fn add_response_bytes(&mut self, bytes: u64) -> bool {
        let Some(bill) = &mut self.bill else { return true };
        bill.response_bytes = bill.response_bytes.saturating_add(bytes);
        if bill.reply.in_scope(|| bill.reply.component().allows_response(bill.response_bytes)) {
            return true;
        }
        bill.outcome = Some(Outcome::ResponseSize);
        false
    }

    /// What the request took so far, for a `Server-Timing` header.
    pub(super) fn server_timing(&self) -> Option<http::HeaderValue> {
        let bill = self.bill.as_ref()?;
        let usage = bill.reply.usage();
        let total = bill.total();
        let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        let text = format!(
            "total;dur={:.3}, cpu;dur={:.3}, instantiate;dur={:.3}, wait;dur={:.3}, queue;dur={:.3}",
            ms(total),
            ms(usage.cpu()),
            ms(usage.instantiate()),
            ms(wait(total, usage)),
            ms(usage.queue()),
        );
        http::HeaderValue::try_from(text).ok()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // A guest that is here goes with this; its end is part of the bill.
        let place = std::mem::replace(&mut self.place, Place::Ended);
        let was_running = !matches!(place, Place::Ended);
        if let Place::Away(task) = &place {
            task.cancel();
        }
        drop(place);
        if let Some(bill) = &mut self.bill
            && was_running
        {
            bill.outcome.get_or_insert(Outcome::Cancelled);
        }
    }
}

impl Bill {
    /// From the guest's beginning until now; until its end where nothing came after it.
    fn total(&self) -> Duration {
        let Some(start) = self.start else { return Duration::ZERO };
        self.end.unwrap_or_else(Instant::now).saturating_duration_since(start)
    }
}

impl Drop for Bill {
    fn drop(&mut self) {
        let usage = self.reply.usage();
        let record = Record {
            outcome: self.outcome.unwrap_or(Outcome::Answered),
            total: self.total(),
            response_bytes: self.response_bytes,
        };
        let component = self.reply.component();
        component.totals.enter(&record, usage);
        if let Some(trace) = self.reply.trace() {
            self.reply.set_end(record.outcome, wait(record.total, usage));
            trace.end(self.status, &record, usage);
        }
        component.commons.shares.count(&component.account, &component.totals, self.cpu_here_ns);
        // Off unless asked for: `WISP_LOG=wisp::request=debug`.
        if tracing::enabled!(target: "wisp::request", tracing::Level::DEBUG) {
            let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
            tracing::debug!(
                target: "wisp::request",
                app = component.account.name(),
                component = %component.grants.component,
                status = self.status,
                outcome = record.outcome.name(),
                total_us = us(record.total),
                cpu_us = us(usage.cpu()),
                instantiate_us = us(usage.instantiate()),
                wait_us = us(wait(record.total, usage)),
                queue_us = us(usage.queue()),
                peak_memory_bytes = usage.peak_memory_bytes(),
                request_bytes = usage.request_bytes(),
                response_bytes = record.response_bytes,
                "request"
            );
        }
    }
}

/// Whether a guest should not even begin on the thread of its connection.
fn starts_away(component: &Component) -> bool {
    let shares = &component.commons.shares;
    let expected_ns = component.totals.expected_cpu_ns();
    expected_ns >= nanoseconds(SLICE)
        || (expected_ns >= nanoseconds(LONG) && shares.has_competition())
        || shares.is_over(&component.account)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
