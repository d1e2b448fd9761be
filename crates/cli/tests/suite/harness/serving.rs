//! Many apps: a folder of them, and the `wisp serve` that serves it.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{Connection, Output, Response, START_LIMIT, WAIT_LIMIT, guest, wait, wisp};

/// A folder of apps, and beside it one of versions to link to.
pub(crate) struct Apps {
    folder: TempDir,
    cache_dir: PathBuf,
}

/// A `wisp serve` that is running. Ends with the test, whatever happens.
pub(crate) struct Serving {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
}

/// A manifest with one guest behind all routes, which calls itself `version`.
/// `settings` are lines of its component.
pub(crate) fn manifest_of(name: &str, version: &str, settings: &str) -> String {
    let source = guest(name).unwrap();
    format!(
        "spin_manifest_version = 2\n\
         [application]\n\
         name = \"{name}\"\n\
         version = \"{version}\"\n\
         [[trigger.http]]\n\
         route = \"/...\"\n\
         component = \"{name}\"\n\
         [component.{name}]\n\
         source = \"{}\"\n\
         environment = {{ VERSION = \"{version}\" }}\n\
         {settings}\n",
        source.display()
    )
}

impl Apps {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("wisp-serve-").tempdir().unwrap();
        for name in ["apps", "versions", "state", "logs"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self { folder, cache_dir: Path::new(env!("CARGO_TARGET_TMPDIR")).join("suite-cache/images") }
    }

    /// Keeps compiled images apart from those of other tests.
    pub(crate) fn own_cache(mut self) -> Self {
        self.cache_dir = self.path("cache");
        self
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// Makes a version, which no host has yet.
    pub(crate) fn version(&self, name: &str, manifest: &str) -> PathBuf {
        let folder = self.path("versions").join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("spin.toml"), manifest).unwrap();
        folder
    }

    /// Puts an app into place in one step, as a folder.
    pub(crate) fn put(&self, host: &str, manifest: &str) {
        let folder = self.version(&format!("of-{host}"), manifest);
        fs::rename(folder, self.path("apps").join(host)).unwrap();
    }

    /// Makes a host have this version, in one step.
    pub(crate) fn link(&self, host: &str, version: &str) {
        let next = self.path("versions").join(format!(".link-to-{host}"));
        symlink(self.path("versions").join(version), &next).unwrap();
        fs::rename(next, self.path("apps").join(host)).unwrap();
    }

    pub(crate) fn remove(&self, host: &str) {
        let path = self.path("apps").join(host);
        match fs::symlink_metadata(&path).unwrap().is_symlink() {
            true => fs::remove_file(path).unwrap(),
            false => fs::rename(path, self.path("versions").join(format!("removed-{host}"))).unwrap(),
        }
    }

    pub(crate) fn serve(&self, arguments: &[&str]) -> Serving {
        self.serve_with(arguments, |_| {})
    }

    /// The same with what else the process gets.
    pub(crate) fn serve_with(
        &self,
        arguments: &[&str],
        prepare: impl FnOnce(&mut std::process::Command),
    ) -> Serving {
        let mut command = wisp();
        command.arg("serve").arg("--apps").arg(self.path("apps"));
        command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        if !arguments.contains(&"--state-dir") {
            command.arg("--state-dir").arg(self.path("state"));
        }
        command.arg("--log-dir").arg(self.path("logs"));
        command.arg("--image-dir").arg(&self.cache_dir).args(arguments);
        command.env("HOME", self.folder.path());
        prepare(&mut command);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = Output::of(child.stdout.take().unwrap());
        let stderr = Output::of(child.stderr.take().unwrap());
        let address = |name: &str| {
            let line = stdout.try_wait_for(|line| line.starts_with(name), START_LIMIT);
            let (_, address) = line.as_ref()?.split_once("://")?;
            address.parse().ok()
        };
        match (address("Serving "), address("Admin ")) {
            (Some(address), Some(admin)) => Serving { child, address, admin, stdout, stderr },
            _ => {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("it does not start:\n{}{}", stdout.text_at_end(), stderr.text_at_end());
            }
        }
    }
}

impl Serving {
    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.address)
    }

    /// One request on a connection of its own.
    pub(crate) fn get(&self, host: &str, target: &str) -> Response {
        self.connect().ask(host, "GET", target)
    }

    /// The version that an app's guest calls itself.
    pub(crate) fn version(&self, host: &str) -> String {
        version_in(&self.get(host, "/env"))
    }

    pub(crate) fn admin(&self, method: &str, target: &str) -> Response {
        Connection::open(self.admin).ask("admin", method, target)
    }

    pub(crate) fn health(&self) -> Value {
        self.admin("GET", "/health").json()
    }

    pub(crate) fn facts(&self, host: &str) -> Value {
        self.admin("GET", &format!("/apps/{host}")).json()
    }

    /// The value of a metric.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.admin("GET", "/metrics").expect();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no metric `{name}`:\n{text}")).parse().unwrap()
    }

    /// Waits until something is so that no event tells.
    pub(crate) fn wait_until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let end = Instant::now() + WAIT_LIMIT;
        while !is_so(self) {
            assert!(Instant::now() < end, "{what}: not within {WAIT_LIMIT:?}: {}", self.health());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Asks the process to end and waits until it has.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for the end of the process.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        match wait(&mut self.child, WAIT_LIMIT) {
            Some(status) => status,
            None => panic!("it does not end:\n{}{}", self.stdout.text(), self.stderr.text()),
        }
    }
}

/// The version that a guest calls itself in its answer to `/env`.
#[track_caller]
pub(crate) fn version_in(response: &Response) -> String {
    let answer = response.json();
    answer["VERSION"].as_str().unwrap_or_else(|| panic!("no version: {answer}")).to_owned()
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!(
                "--- standard output\n{}--- standard error\n{}",
                self.stdout.text(),
                self.stderr.text()
            );
        }
    }
}
