//! Any command that serves an app in the end: `wisp build --up`, `wisp watch`.

use std::{
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use super::{Connection, Output, Response, START_LIMIT};

/// An app that is served. Ends with the test, whatever happens.
pub(crate) struct Served {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) stderr: Output,
}

impl Served {
    /// Waits until a command says where it serves; what it printed if it does not.
    pub(crate) fn start(mut command: Command) -> Result<Self, String> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = Output::of(child.stderr.take().unwrap());
        Self::of(child, stderr)
    }

    /// The same for one that was started before.
    pub(crate) fn of(mut child: Child, stderr: Output) -> Result<Self, String> {
        let stdout = Output::of(child.stdout.take().unwrap());
        let line = stdout.try_wait_for(|line| line.starts_with("Serving "), START_LIMIT);
        let address = line.as_deref().and_then(|line| line.split_once("://")?.1.parse().ok());
        match address {
            Some(address) => Ok(Self { child, address, stderr }),
            None => {
                drop(child.kill());
                child.wait().unwrap();
                Err(format!("{}{}", stdout.text_at_end(), stderr.text_at_end()))
            }
        }
    }

    pub(crate) fn get(&self, target: &str) -> Response {
        self.request("GET", target, &[])
    }

    /// One request on a connection of its own.
    pub(crate) fn request(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
        let mut connection = Connection::open(self.address);
        connection.request(method, target, headers, b"");
        connection.response()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("--- standard error\n{}", self.stderr.text());
        }
    }
}
