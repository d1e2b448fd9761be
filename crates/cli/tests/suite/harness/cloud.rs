//! A cloud: a data directory, and the `wisp server` that keeps it.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Connection, Finished, Output, Response, START_LIMIT, WAIT_LIMIT, finish, wait, wisp};

/// A data directory, and apps to deploy.
pub(crate) struct Cloud {
    folder: TempDir,
    address: SocketAddr,
}

/// A `wisp server` that is running. Ends with the test, whatever happens.
pub(crate) struct Running {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
}

/// Somebody who may use the API.
#[derive(Clone)]
pub(crate) struct Person {
    address: SocketAddr,
    pub(crate) token: String,
    pub(crate) team: String,
    /// Where their command line keeps what it knows.
    home: PathBuf,
}

impl Cloud {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("wisp-cloud-").tempdir().unwrap();
        // The same one after each restart.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self { folder, address }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// The same cloud on another data directory and address.
    pub(crate) fn beside(&self, data: &str) -> (PathBuf, SocketAddr) {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        (self.path(data), address)
    }

    /// Starts the server and waits until it answers.
    pub(crate) fn start(&self) -> Running {
        self.start_on(&self.path("data"), self.address)
    }

    pub(crate) fn start_on(&self, data: &Path, address: SocketAddr) -> Running {
        self.start_as(data, address, &[], &[])
    }

    /// Starts the server with variables in its environment.
    pub(crate) fn start_in(&self, environment: &[(String, String)]) -> Running {
        self.start_as(&self.path("data"), self.address, &[], environment)
    }

    /// Starts another server in the place of the one that runs.
    pub(crate) fn take_over(&self) -> Running {
        self.start_as(&self.path("data"), self.address, &["--take-over"], &[])
    }

    fn start_as(
        &self,
        data: &Path,
        address: SocketAddr,
        more: &[&str],
        environment: &[(String, String)],
    ) -> Running {
        let mut command = wisp();
        command
            .arg("server")
            .args(["--listen", &address.to_string()])
            .arg("--data-dir")
            .arg(data)
            .args(more)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = Output::of(child.stdout.take().unwrap());
        let stderr = Output::of(child.stderr.take().unwrap());
        if stdout.try_wait_for(|line| line.starts_with("API "), START_LIMIT).is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the server does not start:\n{}{}", stdout.text_at_end(), stderr.text_at_end());
        }
        Running { child, address, stdout, stderr }
    }

    /// Makes an app's folder. `{NAME}` in the manifest stands for the path of a guest.
    pub(crate) fn app(&self, name: &str, manifest: &str) -> PathBuf {
        let folder = self.path("apps").join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("spin.toml"), manifest).unwrap();
        folder
    }

    /// An app that answers everything with a text and needs no guest.
    pub(crate) fn static_app(&self, name: &str, text: &str) -> PathBuf {
        self.app(
            name,
            &format!(
                "spin_manifest_version = 2\n[application]\nname = \"{name}\"\n\
                 [[trigger.http]]\nroute = \"/...\"\nstatic_response = {{ body = \"{text}\" }}\n"
            ),
        )
    }

    /// The first person, who operates the server, with a team.
    pub(crate) fn operator(&self, running: &Running, team: &str) -> Person {
        let link = running.stderr.wait_for(|line| line.contains("/sign-in?code="));
        let (_, code) = link.trim().split_once("code=").unwrap();
        let body = json!({ "code": code, "user": "ada", "team": team });
        let signed_in = request(running.address, None, "POST", "/api/v1/sign-in", Some(&body));
        assert_eq!(signed_in.status, 201, "{}", signed_in.text());
        let token = json_of(&signed_in)["secret"].as_str().unwrap().to_owned();
        Person { address: running.address, token, team: team.to_owned(), home: self.path("home") }
    }
}

impl Running {
    /// What an app answers at its host.
    pub(crate) fn get(&self, host: &str, path: &str) -> Response {
        let mut connection = Connection::open(self.address);
        connection.ask(host, "GET", path)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends the server in order.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = wait(&mut self.child, WAIT_LIMIT);
        assert!(status.is_some_and(|status| status.success()), "{status:?}:\n{}", self.stderr.text());
    }

    /// Waits for the server to end by itself, in order.
    pub(crate) fn wait(&mut self) {
        let status = wait(&mut self.child, WAIT_LIMIT);
        assert!(status.is_some_and(|status| status.success()), "{status:?}:\n{}", self.stderr.text());
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
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

impl Person {
    /// The same person with another team, which is made.
    pub(crate) fn in_team(&self, team: &str) -> Self {
        let made = self.ask("POST", "/api/v1/teams", Some(&json!({ "name": team })));
        assert_eq!(made.status, 201, "{}", made.text());
        Self { team: team.to_owned(), ..self.clone() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same person at another server that has the same state.
    pub(crate) fn at(&self, running: &Running) -> Self {
        Self { address: running.address, ..self.clone() }
    }

    /// A request to the API.
    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Response {
        request(self.address, Some(&self.token), method, path, body)
    }

    /// A request below the team, which is expected to succeed.
    pub(crate) fn of_team(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let response = self.ask(method, &format!("/api/v1/teams/{}/{path}", self.team), body);
        assert!(
            (200..300).contains(&response.status),
            "{method} {path}: {} {}",
            response.status,
            response.text()
        );
        if response.body.is_empty() { Value::Null } else { json_of(&response) }
    }

    /// The command line as this person.
    pub(crate) fn wisp(&self, arguments: &[&str]) -> Command {
        let mut command = wisp();
        command
            .args(arguments)
            .env("WISP_SERVER", format!("http://{}", self.address))
            .env("WISP_TOKEN", &self.token)
            .env("WISP_TEAM", &self.team)
            .env("HOME", &self.home);
        command
    }

    /// Deploys the app in a folder, and returns the report.
    pub(crate) fn deploy(&self, folder: &Path, more: &[&str]) -> Value {
        let finished = self.try_deploy(folder, more);
        assert!(finished.status.success(), "{}", finished.stderr);
        serde_json::from_str(&finished.stdout).unwrap()
    }

    pub(crate) fn try_deploy(&self, folder: &Path, more: &[&str]) -> Finished {
        let mut command = self.wisp(&["deploy", "--yes", "--format", "json", "--from"]);
        command.arg(folder).args(more);
        finish(command)
    }

    /// Somebody new, who owns a team of their own and nothing else. This person operates the
    /// server.
    pub(crate) fn stranger(&self, user: &str, team: &str) -> Self {
        let invited = json_of(&self.ask("POST", "/api/v1/users", Some(&json!({}))));
        let (_, code) = invited["link"].as_str().unwrap().split_once("code=").unwrap();
        let body = json!({ "code": code, "user": user });
        let signed_in = request(self.address, None, "POST", "/api/v1/sign-in", Some(&body));
        assert_eq!(signed_in.status, 201, "{}", signed_in.text());
        let made = self.ask("POST", "/api/v1/teams", Some(&json!({ "name": team, "owner": user })));
        assert_eq!(made.status, 201, "{}", made.text());
        let token = json_of(&signed_in)["secret"].as_str().unwrap().to_owned();
        Self { token, team: team.to_owned(), ..self.clone() }
    }

    /// The host of one of the team's apps.
    pub(crate) fn host(&self, app: &str) -> String {
        format!("{app}.{}.localhost", self.team)
    }

    /// Waits for the end of an operation that the API began.
    pub(crate) fn follow(&self, operation: &Value) -> Value {
        let id = operation["id"].as_str().unwrap();
        loop {
            let now = self.of_team("GET", &format!("operations/{id}?wait_ms=20000"), None);
            match now["progress"].as_str().unwrap() {
                "done" | "failed" => return now,
                _ => {}
            }
        }
    }
}

/// The body of a response as JSON.
pub(crate) fn json_of(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap_or_else(|_| panic!("no JSON: {}", response.text()))
}

fn request(
    address: SocketAddr,
    token: Option<&str>,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Response {
    try_request(address, token, method, path, body).unwrap()
}

/// A request to a server that may be gone at any moment.
pub(crate) fn try_request(
    address: SocketAddr,
    token: Option<&str>,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Option<Response> {
    let mut connection = Connection::try_open(address).ok()?;
    let bearer = token.map(|token| format!("Bearer {token}"));
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let mut headers = vec![("content-type", "application/json")];
    if let Some(bearer) = &bearer {
        headers.push(("authorization", bearer));
    }
    connection.try_request(method, path, &headers, body.as_bytes()).ok()
}
