//! An open-loop load generator: requests are due at fixed times, whether or not
//! the server has answered the ones before.
//!
//! A request's latency counts from when it was due, not from when it could be
//! sent, so that a server that stalls is charged for every request that had to
//! wait meanwhile (no *coordinated omission*). Each connection has a thread that
//! sleeps until its next request is due and then blocks on the response; the kernel
//! wakes a sleeper some 60 µs late, which is part of every latency.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::error::Error;
use crate::load::{Tally, Window};
use crate::random::Random;
use crate::response::Expected;

/// How long after the window its late requests are still sent; what is left
/// then is given up, and counts as having taken until then.
const LATE_MS: u64 = 10_000;
/// Pause after a failed request, so that a dead server costs no core.
const RECONNECT_PAUSE_MS: u64 = 10;

/// How much to send where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Where the server listens.
    pub(crate) address: SocketAddr,
    /// Requests a second, over all connections.
    pub(crate) rate: f64,
    /// Connections, each with a thread.
    pub(crate) connections: usize,
}

/// What is sent, and what must come back.
pub(crate) trait Script: Sync {
    /// What a connection remembers from one request to the next.
    type Memory: Default;

    /// Sends one request and reads the response; whether the connection can carry
    /// another one.
    ///
    /// # Errors
    /// What was wrong, for people; the connection is of no further use.
    fn exchange(
        &self,
        client: &mut Client,
        random: &mut Random,
        memory: &mut Self::Memory,
    ) -> Result<bool, String>;
}

/// The same request again and again.
pub(crate) struct Same {
    /// The request.
    pub(crate) request: Vec<u8>,
    /// What must come back.
    pub(crate) expected: Expected,
}

/// From when latencies are counted, and until when requests are due.
struct Span {
    start: Instant,
    measured_from: Instant,
    end: OnceLock<Instant>,
}

impl Script for Same {
    type Memory = ();

    fn exchange(&self, client: &mut Client, _: &mut Random, _memory: &mut ()) -> Result<bool, String> {
        Ok(client.exchange(&self.request, &self.expected)?.keep_alive)
    }
}

/// Sends requests for `warm_up` and then for `window`, of which the latencies are
/// counted. Errors count from the beginning.
///
/// # Errors
/// If this process cannot get threads. What the server does wrong is counted.
pub(crate) fn run(
    pace: Pace,
    script: &impl Script,
    warm_up: Duration,
    window: Duration,
) -> Result<Window, Error> {
    let start = Instant::now();
    let measured_from = start + warm_up;
    let end = OnceLock::from(measured_from + window);
    let (tally, ()) = drive(pace, script, &Span { start, measured_from, end }, || Ok(()))?;
    Ok(tally.over(window))
}

/// Sends requests for as long as `beside` runs, and counts all of them.
///
/// # Errors
/// If this process cannot get threads, or `beside` fails.
pub(crate) fn run_beside<Outcome>(
    pace: Pace,
    script: &impl Script,
    beside: impl FnOnce() -> Result<Outcome, Error>,
) -> Result<(Window, Outcome), Error> {
    let start = Instant::now();
    let (tally, outcome) =
        drive(pace, script, &Span { start, measured_from: start, end: OnceLock::new() }, beside)?;
    Ok((tally.over(start.elapsed()), outcome))
}

/// One thread for each connection, and `beside` on this one; when that returns and
/// the span has no end yet, it ends.
fn drive<Outcome>(
    pace: Pace,
    script: &impl Script,
    span: &Span,
    beside: impl FnOnce() -> Result<Outcome, Error>,
) -> Result<(Tally, Outcome), Error> {
    let connections = pace.connections.max(1);
    let interval = Duration::from_secs_f64(connections as f64 / pace.rate.max(f64::MIN_POSITIVE));
    let mut tally = Tally::new();
    let outcome = thread::scope(|scope| {
        let mut workers = Vec::with_capacity(connections);
        for index in 0..connections {
            // Evenly spread, so that the server sees a steady stream.
            let first = span.start + interval.mul_f64(index as f64 / connections as f64);
            let worker = thread::Builder::new()
                .name(format!("pace-{index}"))
                .spawn_scoped(scope, move || {
                    let mut random = Random::new(index as u64);
                    follow(pace.address, script, &mut random, (first, interval), span)
                })
                .map_err(Error::io("cannot start a thread of the load generator"));
            match worker {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    // The scope waits for those that have started.
                    let _ = span.end.set(Instant::now());
                    return Err(error);
                }
            }
        }
        let outcome = beside();
        // It is set already where the span was known before.
        let _ = span.end.set(Instant::now());
        for worker in workers {
            match worker.join() {
                Ok(of_worker) => tally.merge(of_worker),
                Err(_) => tally.fail("a thread of the load generator ended early".to_owned()),
            }
        }
        outcome
    })?;
    Ok((tally, outcome))
}

/// One connection: sends what is due until the end.
fn follow<Of: Script>(
    address: SocketAddr,
    script: &Of,
    random: &mut Random,
    (first, interval): (Instant, Duration),
    span: &Span,
) -> Tally {
    let mut tally = Tally::new();
    let mut client = None;
    let mut memory = Of::Memory::default();
    let mut due = first;
    let has_ended = |due| span.end.get().is_some_and(|&end| due >= end);
    while !has_ended(due) {
        let now = Instant::now();
        if let Some(&end) = span.end.get().filter(|&&end| now > end + Duration::from_millis(LATE_MS)) {
            while due < end {
                tally.give_up(now.saturating_duration_since(due));
                due += interval;
            }
            break;
        }
        thread::sleep(due.saturating_duration_since(now));
        if has_ended(due) {
            break;
        }
        match turn(address, script, &mut client, random, &mut memory) {
            Ok(()) if due >= span.measured_from => tally.record(due.elapsed()),
            Ok(()) => {}
            Err(cause) => {
                tally.fail(cause);
                client = None;
                thread::sleep(Duration::from_millis(RECONNECT_PAUSE_MS));
            }
        }
        due += interval;
    }
    tally
}

/// One request on a connection that may have to be opened first.
fn turn<Of: Script>(
    address: SocketAddr,
    script: &Of,
    client: &mut Option<Client>,
    random: &mut Random,
    memory: &mut Of::Memory,
) -> Result<(), String> {
    let open = match client {
        Some(open) => open,
        None => client.insert(Client::open(address)?),
    };
    if !script.exchange(open, random, memory)? {
        *client = None;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// A server that takes `pause` for each request of its one connection, but
    /// `stall` for the tenth.
    fn server(pause: Duration, stall: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|error| unreachable!("{error}"));
        let address = listener.local_addr().unwrap_or_else(|error| unreachable!("{error}"));
        thread::spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut buffer = [0; 1024];
            let mut count = 0;
            while stream.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {
                count += 1;
                thread::sleep(if count == 10 { stall } else { pause });
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
            }
        });
        address
    }

    fn same() -> Same {
        Same { request: b"x".to_vec(), expected: Expected { status: 200, body: b"ok".to_vec() } }
    }

    #[test]
    fn a_stall_is_charged_to_every_request_that_was_due_meanwhile() {
        let address = server(Duration::ZERO, Duration::from_millis(300));
        let pace = Pace { address, rate: 100.0, connections: 1 };
        let window = run(pace, &same(), Duration::ZERO, Duration::from_secs(1))
            .unwrap_or_else(|error| unreachable!("{error}"));
        assert_eq!((window.errors, window.latency_ns.count()), (0, 100));
        // Thirty of the hundred were due while it stalled: half of them for 150 ms.
        assert!(window.latency_ns.quantile(0.85) > 100_000_000);
    }

    #[test]
    fn wrong_answers_are_errors() {
        let address = server(Duration::ZERO, Duration::ZERO);
        let expected = Expected { status: 200, body: b"no".to_vec() };
        let script = Same { request: b"x".to_vec(), expected };
        let pace = Pace { address, rate: 100.0, connections: 1 };
        let window = run(pace, &script, Duration::ZERO, Duration::from_millis(50))
            .unwrap_or_else(|error| unreachable!("{error}"));
        assert_eq!(window.latency_ns.count(), 0);
        assert!(window.errors > 0 && window.first_error.is_some());
    }

    #[test]
    fn load_runs_for_as_long_as_what_it_runs_beside() {
        let address = server(Duration::ZERO, Duration::ZERO);
        let pace = Pace { address, rate: 1000.0, connections: 1 };
        let (window, outcome) = run_beside(pace, &same(), || {
            let mut client = Client::open(server(Duration::from_millis(100), Duration::ZERO));
            client.as_mut().map_or(Ok(false), |client| Ok(client.fetch(b"x").is_ok()))
        })
        .unwrap_or_else(|error| unreachable!("{error}"));
        assert!(outcome && window.errors == 0 && window.latency_ns.count() > 10);
    }
}
