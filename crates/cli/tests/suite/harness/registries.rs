//! Registries to push to: Debian's, and our own.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
};

use futures::future::BoxFuture;
use tempfile::TempDir;
use wisp_image::{
    Blobs,
    registry::{Access, Action, Credentials, Denial, Registry, RegistryLimits, RegistrySettings},
};

use super::{Output, START_LIMIT, skip};

const PROGRAM: &str = "docker-registry";

/// Debian's `docker-registry`. Ends with the test, whatever happens.
pub(crate) struct DockerRegistry {
    child: Child,
    pub(crate) address: SocketAddr,
    /// A line for each request, among others.
    pub(crate) log: Output,
    _folder: TempDir,
}

/// The registry of `wisp server`, alone. Who has the password may do everything.
pub(crate) struct OwnRegistry {
    pub(crate) address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
    _folder: TempDir,
}

impl DockerRegistry {
    /// Starts one on a free port, if it is installed.
    pub(crate) fn start() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|folder| folder.join(PROGRAM).is_file()) {
            skip("the Debian package `docker-registry` is not installed; `cargo xtask setup` does that");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("wisp-registry-").tempdir().unwrap();
        let config = folder.path().join("config.yml");
        let text = format!(
            "version: 0.1\n\
             log: {{ level: info }}\n\
             storage: {{ filesystem: {{ rootdirectory: {} }} }}\n\
             http: {{ addr: 127.0.0.1:0 }}\n",
            folder.path().join("data").display()
        );
        fs::write(&config, text).unwrap();
        let mut child = Command::new(PROGRAM)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Output::of(child.stdout.take().unwrap());
        let messages = Output::of(child.stderr.take().unwrap());
        const LISTENING: &str = "listening on ";
        let line = messages.try_wait_for(|line| line.contains(LISTENING), START_LIMIT);
        let Some(line) = line else {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it does not start:\n{}", messages.text_at_end());
        };
        let (_, rest) = line.split_once(LISTENING).unwrap();
        let address = rest.chars().take_while(|character| !"\" ".contains(*character)).collect::<String>();
        Some(Self { child, address: address.parse().unwrap(), log, _folder: folder })
    }

    /// The requests so far that say this.
    pub(crate) fn requests(&self, text: &str) -> usize {
        self.log.text().lines().filter(|line| line.contains(text)).count()
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl OwnRegistry {
    /// Starts one on a free port.
    pub(crate) fn start(password: &'static str) -> Self {
        let folder = tempfile::Builder::new().prefix("wisp-registry-").tempdir().unwrap();
        let registry = open(folder.path(), password);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, registry.router()).await.unwrap() });
        Self { address, _runtime: runtime, _folder: folder }
    }
}

fn open(folder: &Path, password: &'static str) -> Registry {
    let settings = RegistrySettings {
        blobs: Blobs::open(&folder.join("blobs")).unwrap(),
        database: folder.join("registry.db"),
        uploads: folder.join("uploads"),
        limits: RegistryLimits::default(),
    };
    Registry::open(settings, Arc::new(Password(password))).unwrap()
}

struct Password(&'static str);

impl Access for Password {
    fn authenticate<'a>(&'a self, credentials: &'a Credentials) -> BoxFuture<'a, Result<(), Denial>> {
        let is_known = matches!(credentials, Credentials::Basic { password, .. } if password == self.0);
        Box::pin(async move { if is_known { Ok(()) } else { Err(Denial::Unknown) } })
    }

    fn authorize<'a>(
        &'a self,
        credentials: &'a Credentials,
        _: &'a str,
        _: Action,
    ) -> BoxFuture<'a, Result<(), Denial>> {
        self.authenticate(credentials)
    }
}

/// An address that leads to another one, until this many bytes have come from there:
/// then nothing comes any more, and nothing ends.
pub(crate) fn stalling_proxy(to: SocketAddr, limit_bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(mut client), Ok(mut server)) = (client, TcpStream::connect(to)) else { return };
            let (Ok(mut from_client), Ok(mut to_server)) = (client.try_clone(), server.try_clone()) else {
                return;
            };
            thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
            thread::spawn(move || {
                let mut left = limit_bytes;
                let mut piece = [0; 16 * 1024];
                while left > 0 {
                    let size = piece.len().min(left);
                    let Ok(read) = server.read(&mut piece[..size]) else { return };
                    if read == 0 || client.write_all(&piece[..read]).is_err() {
                        return;
                    }
                    left -= read;
                }
                // Both ends stay open until the client has had enough.
                let mut rest = [0; 1];
                while matches!(client.read(&mut rest), Ok(read) if read > 0) {}
            });
        }
    });
    address
}
