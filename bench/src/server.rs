//! A server in a process of its own.

use std::collections::VecDeque;
use std::io::Read;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;

/// How long a server may take until it says where it listens: compiling a
/// JavaScript guest takes some 10 s on a busy machine with two cores.
const START_MS: u64 = 120_000;
/// How often a server that has not said anything is looked at.
const LOOK_MS: u64 = 50;
/// How much of a server's output is kept for the message when it fails.
const OUTPUT_BYTES: usize = 8 * 1024;
/// What comes before an address in what servers print.
const SCHEME: &str = "http://";
/// How the line begins that names the operator's address.
const ADMIN: &str = "Admin ";

/// What to start.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The server as the tables name it.
    pub(crate) name: String,
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments; it is told to choose a free port itself.
    pub(crate) arguments: Vec<String>,
    /// Whether it listens for its operator too, and says where.
    pub(crate) has_admin: bool,
}

/// A running server; it is ended when this is dropped.
pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
    admin: Option<SocketAddr>,
    start: Duration,
    output: Output,
}

/// The addresses that a server has said so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Addresses {
    /// Where it answers requests.
    serving: Option<SocketAddr>,
    /// Where it answers its operator.
    admin: Option<SocketAddr>,
}

/// The last bytes that a server wrote, for people.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<VecDeque<u8>>>);

impl Plan {
    /// Starts it, and waits until it has printed the address it listens on.
    ///
    /// # Errors
    /// If it does not start, ends, or says nothing for [`START_MS`].
    pub(crate) fn start(&self) -> Result<Server, Error> {
        let started = Instant::now();
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            // Capturing backtraces would be paid by whoever builds errors on its
            // hot path, which Wasmtime does for every request.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Error::io(format!("cannot start `{}`", self.program.display())))?;
        let output = Output::default();
        let (sender, receiver) = mpsc::channel();
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>),
            child.stderr.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>),
        ];
        for stream in streams.into_iter().flatten() {
            let (output, sender) = (output.clone(), sender.clone());
            // Ends by itself when the server has closed its end of the pipe.
            thread::spawn(move || output.follow(stream, &sender));
        }
        drop(sender);
        // From here on, dropping it ends the process.
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server =
            Server { child, address, admin: None, start: Duration::ZERO, output: output.clone() };
        let failed = |cause: String| Error::Server { name: self.name.clone(), cause, output: output.text() };
        let deadline = Instant::now() + Duration::from_millis(START_MS);
        while Instant::now() < deadline {
            match receiver.recv_timeout(Duration::from_millis(LOOK_MS)) {
                Ok((Addresses { serving: Some(serving), admin }, at))
                    if admin.is_some() || !self.has_admin =>
                {
                    server.address = serving;
                    server.admin = admin;
                    server.start = at.saturating_duration_since(started);
                    return Ok(server);
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {}
                // It has closed both streams, which is the first thing that the
                // kernel does for a process that ends.
                Err(RecvTimeoutError::Disconnected) => {
                    let _ = server.child.kill();
                    return match server.child.wait() {
                        Ok(status) => Err(failed(format!("it ended ({status})"))),
                        Err(cause) => Err(failed(format!("it ended ({cause})"))),
                    };
                }
            }
        }
        Err(failed(format!("it did not say where it listens within {START_MS} ms")))
    }
}

impl Server {
    /// The id of its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens for its operator, if its plan says that it does.
    pub(crate) fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// The last of what it has printed.
    pub(crate) fn output(&self) -> String {
        self.output.text()
    }

    /// How long it took from the start of the process until it had said where it
    /// listens.
    pub(crate) fn start(&self) -> Duration {
        self.start
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It fails only if the process has ended already, and then that is
        // what was wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Output {
    /// Reads a stream to its end, keeps the last of it, and reports the addresses
    /// in its beginning as they come.
    fn follow(&self, mut stream: impl Read, found: &mpsc::Sender<(Addresses, Instant)>) {
        let mut buffer = [0; 1024];
        let mut beginning = Vec::new();
        let mut known = Addresses::default();
        let mut searching = true;
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            let bytes = buffer.get(..length).unwrap_or_default();
            if searching {
                beginning.extend_from_slice(bytes);
                let now_known = addresses_in(&String::from_utf8_lossy(&beginning));
                if now_known != known {
                    // Nobody listens any more once all that is needed is known.
                    let _ = found.send((now_known, Instant::now()));
                    known = now_known;
                }
                let is_complete = known.serving.is_some() && known.admin.is_some();
                searching = !is_complete && beginning.len() <= OUTPUT_BYTES;
            }
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(bytes);
            let excess = kept.len().saturating_sub(OUTPUT_BYTES);
            kept.drain(..excess);
        }
    }

    fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept.iter().copied().collect::<Vec<_>>()).into_owned()
    }
}

/// The first address to answer requests and the first for the operator among the
/// whole `http://ADDRESS` in `text`.
fn addresses_in(text: &str) -> Addresses {
    let mut found = Addresses::default();
    for line in text.split_inclusive('\n') {
        let Some((before, rest)) = line.split_once(SCHEME) else { continue };
        let Some(end) = rest.find(|letter: char| letter.is_whitespace() || letter == '/') else { continue };
        let address =
            rest.get(..end).and_then(|address| address.to_socket_addrs().ok()).and_then(|mut all| all.next());
        let place = if before.starts_with(ADMIN) { &mut found.admin } else { &mut found.serving };
        *place = place.or(address);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Plan {
        Plan {
            name: "shell".to_owned(),
            program: PathBuf::from("/bin/sh"),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            has_admin: false,
        }
    }

    #[test]
    fn addresses_are_found_only_when_whole() {
        let at = |port| Some(SocketAddr::from(([127, 0, 0, 1], port)));
        let serving = |port| Addresses { serving: at(port), admin: None };
        assert_eq!(addresses_in("Serving http://127.0.0.1:30"), Addresses::default());
        assert_eq!(addresses_in("\nServing http://127.0.0.1:3000\nAvailable"), serving(3000));
        assert_eq!(addresses_in("Serving HTTP on http://127.0.0.1:3000/\n"), serving(3000));
        let both = "Admin http://127.0.0.1:4000\nServing http://127.0.0.1:3000\n";
        assert_eq!(addresses_in(both), Addresses { serving: at(3000), admin: at(4000) });
        assert_eq!(addresses_in("Serving"), Addresses::default());
    }

    #[test]
    fn a_server_with_an_operator_is_waited_for_until_both_are_known() {
        let mut plan = shell(
            "echo 'Serving http://127.0.0.1:1'; echo 'Admin http://127.0.0.1:2'; exec tail -f /dev/null",
        );
        plan.has_admin = true;
        let server = plan.start().unwrap_or_else(|error| unreachable!("{error}"));
        assert_eq!(server.admin(), Some(SocketAddr::from(([127, 0, 0, 1], 2))));
        assert!(server.start() > Duration::ZERO);
    }

    #[test]
    fn a_server_says_where_it_listens_and_ends_when_dropped() {
        let plan = shell("echo 'Serving http://127.0.0.1:4321'; exec tail -f /dev/null");
        let server = plan.start().unwrap_or_else(|error| unreachable!("{error}"));
        assert_eq!(server.address().port(), 4321);
        let proc = PathBuf::from(format!("/proc/{}", server.pid()));
        assert!(proc.exists());
        drop(server);
        assert!(!proc.exists());
    }

    #[test]
    fn a_server_that_ends_is_an_error_with_its_last_words() {
        match shell("echo no such file >&2; exit 3").start() {
            Err(Error::Server { cause, output, .. }) => {
                assert!(cause.contains("ended"), "{cause}");
                assert_eq!(output, "no such file\n");
            }
            _ => unreachable!("it must not be taken for a server"),
        }
    }
}
