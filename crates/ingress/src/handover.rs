//! Sockets that go from a server to its successor.
//!
//! A server that is restarted or upgraded hands its listening sockets over, so that no
//! connection is refused in between: the kernel goes on collecting connections in the
//! same queues, and somebody always takes them out.
//!
//! ```text
//!  old                     handover.sock                    new
//!  Offer::bind ───────────────────────────────────────────  take_over
//!                 ◀── "wisp-handover 1" ─────────────────
//!                 ─── names, sockets (SCM_RIGHTS) ──────▶   starts, accepts
//!                 ◀── "ready" ───────────────────────────   Inheritance::ready
//!  stops accepting ── "draining" ───────────────────────▶
//!  answers what it has                                      Offer::bind
//!  drops HandedOver ─── end of the stream ──────────────▶   Predecessor::gone
//! ```
//!
//! A successor that dies before it is ready changes nothing: the old one has not stopped
//! and waits for the next. For what two processes must not do at once there is the end of
//! the stream: the old one lets go of its [`HandedOver`] when it has stopped doing that, or
//! dies. A lock on a file can be handed over like a socket. Both ends refuse a process of another user. The socket's path
//! belongs to whoever bound it last; nobody removes it, since a path that leads nowhere
//! says the same as none.

use std::{
    fs::{self, File},
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
    time::timeout,
};

use crate::Error;

/// Sockets that are handed over at once.
pub const MAX_SOCKETS_COUNT: usize = 16;

/// How long a successor may take to start, once it has the sockets.
pub const START_LIMIT: Duration = Duration::from_secs(300);

/// How long either side may take for a word.
const WORD_LIMIT: Duration = Duration::from_secs(10);

/// The longest message.
const MAX_MESSAGE_BYTES: usize = 4_096;

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const HELLO: &str = "wisp-handover 1";
const READY: &str = "ready";
const DRAINING: &str = "draining";

/// What a running server offers to its successor.
#[derive(Debug)]
pub struct Offer {
    path: PathBuf,
    listener: UnixListener,
}

/// What a successor got.
#[derive(Debug)]
pub struct Inheritance {
    sockets: Vec<(String, OwnedFd)>,
    stream: UnixStream,
}

/// A successor accepts connections. Dropping this tells it that this process has let go of
/// all that it is not to share.
#[derive(Debug)]
#[must_use = "dropping it tells the successor that this process has let go"]
pub struct HandedOver {
    _stream: UnixStream,
}

/// A process whose sockets were taken over, and which comes to its end.
#[derive(Debug)]
pub struct Predecessor {
    stream: UnixStream,
}

impl Offer {
    /// Waits for a successor at this path from now on, in the place of whoever did so
    /// before. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`Error::Handover`].
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let bind = || {
            let (folder, name) = parts(path)?;
            let own_name = format!("{name}.{}", std::process::id());
            let own_path = path.with_file_name(&own_name);
            match fs::remove_file(&own_path) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
                _ => {}
            }
            let listener = UnixListener::bind(within(&folder, &own_name))?;
            fs::set_permissions(&own_path, fs::Permissions::from_mode(0o600))?;
            fs::rename(&own_path, path)?;
            Ok(listener)
        };
        let listener = bind().map_err(|cause| Error::handover(format!("`{}`: {cause}", path.display())))?;
        Ok(Self { path: path.to_owned(), listener })
    }

    /// Gives `sockets`, or other descriptors, each with a name, to whoever asks; resolves when a successor
    /// accepts connections from them. The caller stops accepting then.
    ///
    /// # Errors
    /// [`Error::Handover`] if there are more than [`MAX_SOCKETS_COUNT`].
    pub async fn handed_over(&self, sockets: &[(&str, BorrowedFd<'_>)]) -> Result<HandedOver, Error> {
        if sockets.len() > MAX_SOCKETS_COUNT {
            return Err(Error::handover(format!("more than {MAX_SOCKETS_COUNT} sockets")));
        }
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(cause) => {
                    tracing::warn!("a successor cannot be heard: {cause}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match self.give(&stream, sockets).await {
                Ok(()) => return Ok(HandedOver { _stream: stream }),
                Err(error) => {
                    tracing::warn!(code = error.code(), "no successor yet, this process goes on: {error}");
                }
            }
        }
    }

    async fn give(&self, stream: &UnixStream, sockets: &[(&str, BorrowedFd<'_>)]) -> Result<(), Error> {
        check_peer(stream, &self.path)?;
        let mut inbox = Inbox::default();
        inbox.expect(stream, HELLO, WORD_LIMIT).await?;
        let names: Vec<&str> = sockets.iter().map(|(name, _)| *name).collect();
        let names = serde_json::to_string(&names).map_err(Error::handover)?;
        let sockets: Vec<_> = sockets.iter().map(|(_, socket)| *socket).collect();
        send(stream, &names, &sockets).await?;
        inbox.expect(stream, READY, START_LIMIT).await?;
        // From here on there is a successor, whether it hears this or not.
        if let Err(error) = send(stream, DRAINING, &[]).await {
            tracing::debug!("the successor did not wait for our end: {error}");
        }
        Ok(())
    }
}

/// Asks the server that waits at this path for its sockets. `None` if there is none.
///
/// # Errors
/// [`Error::Stranger`] or [`Error::Handover`].
pub async fn take_over(path: &Path) -> Result<Option<Inheritance>, Error> {
    let (folder, name) = match parts(path) {
        Ok(parts) => parts,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(Error::handover(format!("`{}`: {cause}", path.display()))),
    };
    let stream = match UnixStream::connect(within(&folder, &name)).await {
        Ok(stream) => stream,
        Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(cause) => return Err(Error::handover(format!("`{}`: {cause}", path.display()))),
    };
    check_peer(&stream, path)?;
    send(&stream, HELLO, &[]).await?;
    let mut inbox = Inbox::default();
    let names = inbox.word(&stream, WORD_LIMIT).await?;
    let names: Vec<String> = serde_json::from_str(&names).map_err(Error::handover)?;
    if names.len() != inbox.sockets.len() {
        let message = format!("{} names came with {} sockets", names.len(), inbox.sockets.len());
        return Err(Error::handover(message));
    }
    Ok(Some(Inheritance { sockets: names.into_iter().zip(inbox.sockets).collect(), stream }))
}

impl Inheritance {
    /// The socket with a name, once.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let index = self.sockets.iter().position(|(of, _)| of == name)?;
        Some(self.sockets.swap_remove(index).1)
    }

    /// The names of what was not taken.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sockets.iter().map(|(name, _)| name.as_str())
    }

    /// Tells the old server that this one accepts connections; resolves when the old one
    /// knows, and accepts no more. Sockets that were not taken are closed.
    ///
    /// # Errors
    /// [`Error::Handover`] if it does not answer, as when it has ended meanwhile: nobody
    /// else accepts then either.
    pub async fn ready(self) -> Result<Predecessor, Error> {
        send(&self.stream, READY, &[]).await?;
        Inbox::default().expect(&self.stream, DRAINING, WORD_LIMIT).await?;
        Ok(Predecessor { stream: self.stream })
    }
}

impl Predecessor {
    /// Resolves when the old process has let go of what it does not share, or is gone.
    pub async fn gone(self) {
        let mut inbox = Inbox::default();
        // It says nothing more; whatever this reads, the end comes.
        while let Ok(1..) = inbox.receive(&self.stream).await {
            inbox = Inbox::default();
        }
    }
}

/// What was received and not read yet.
#[derive(Default)]
struct Inbox {
    text: Vec<u8>,
    sockets: Vec<OwnedFd>,
}

impl Inbox {
    async fn expect(&mut self, stream: &UnixStream, wanted: &str, limit: Duration) -> Result<(), Error> {
        let word = self.word(stream, limit).await?;
        if word == wanted {
            return Ok(());
        }
        let word: String = word.chars().take(64).flat_map(char::escape_default).collect();
        Err(Error::handover(format!("the other process said `{word}`, not `{wanted}`")))
    }

    /// The next line.
    async fn word(&mut self, stream: &UnixStream, limit: Duration) -> Result<String, Error> {
        let word = async {
            loop {
                if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                    let line = self.text.drain(..=end).take(end).collect();
                    return String::from_utf8(line).map_err(Error::handover);
                }
                if self.text.len() >= MAX_MESSAGE_BYTES {
                    return Err(Error::handover("the other process says too much"));
                }
                if self.receive(stream).await.map_err(Error::handover)? == 0 {
                    return Err(Error::handover("the other process has ended"));
                }
            }
        };
        timeout(limit, word).await.map_err(|_| Error::handover("the other process takes too long"))?
    }

    async fn receive(&mut self, stream: &UnixStream) -> io::Result<usize> {
        stream
            .async_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS_COUNT))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let mut bytes = [0; MAX_MESSAGE_BYTES];
                let received = rustix::net::recvmsg(
                    stream,
                    &mut [IoSliceMut::new(&mut bytes)],
                    &mut control,
                    RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
                )?;
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(sockets) = message {
                        self.sockets.extend(sockets);
                    }
                }
                self.text.extend_from_slice(&bytes[..received.bytes]);
                Ok(received.bytes)
            })
            .await
    }
}

/// Sends a line, and sockets with it.
async fn send(stream: &UnixStream, line: &str, sockets: &[BorrowedFd<'_>]) -> Result<(), Error> {
    let text = format!("{line}\n");
    let mut rest = text.as_bytes();
    let mut sockets = sockets;
    let sending = async {
        while !rest.is_empty() {
            let sent = stream
                .async_io(Interest::WRITABLE, || {
                    let mut space =
                        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS_COUNT))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(sockets)) {
                        return Err(io::Error::other("too many sockets"));
                    }
                    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                    Ok(rustix::net::sendmsg(stream, &[IoSlice::new(rest)], &mut control, flags)?)
                })
                .await?;
            // They went with the first byte.
            sockets = &[];
            rest = &rest[sent..];
        }
        Ok::<_, io::Error>(())
    };
    timeout(WORD_LIMIT, sending)
        .await
        .map_err(|_| Error::handover("the other process does not listen"))?
        .map_err(Error::handover)
}

/// Refuses a process of another user.
fn check_peer(stream: &UnixStream, path: &Path) -> Result<(), Error> {
    let uid = stream.peer_cred().map_err(Error::handover)?.uid();
    if uid == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(Error::Stranger { path: path.to_owned(), uid })
}

/// A path's folder, opened, and the name in it.
fn parts(path: &Path) -> io::Result<(File, String)> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok((File::open(folder)?, name.to_owned()))
}

/// A short path to a file: addresses of sockets have room for 107 bytes, which data
/// directories exceed.
fn within(folder: &File, name: &str) -> PathBuf {
    format!("/proc/self/fd/{}/{name}", folder.as_fd().as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[tokio::test]
    async fn sockets_arrive_under_their_names_and_accept() {
        let folder = tempfile::tempdir().unwrap();
        // Longer than a socket's address may be.
        let deep = folder.path().join("a".repeat(120));
        fs::create_dir(&deep).unwrap();
        let path = deep.join("handover.sock");
        assert!(take_over(&path).await.unwrap().is_none());

        let (http, https) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = https.local_addr().unwrap();
        let offer = Offer::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let old = tokio::spawn(async move {
            offer.handed_over(&[("http", http.as_fd()), ("https", https.as_fd())]).await
        });

        // One that dies before it is ready changes nothing.
        drop(take_over(&path).await.unwrap().unwrap());
        let mut inheritance = take_over(&path).await.unwrap().unwrap();
        let https = TcpListener::from(inheritance.take("https").unwrap());
        assert!(inheritance.take("https").is_none());
        assert_eq!(inheritance.names().collect::<Vec<_>>(), ["http"]);
        assert!(!old.is_finished());
        // The next server may offer before this one is done.
        let next = Offer::bind(&path).unwrap();
        let predecessor = inheritance.ready().await.unwrap();
        let handed_over = old.await.unwrap().unwrap();
        let mut gone = std::pin::pin!(predecessor.gone());
        let is_gone = timeout(Duration::from_millis(50), &mut gone).await;
        assert!(is_gone.is_err(), "the old process has not let go yet");
        drop(handed_over);
        gone.await;

        let client = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"hello").unwrap();
        });
        let mut text = String::new();
        https.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        client.join().unwrap();
        drop(next);
        assert!(take_over(&path).await.unwrap().is_none(), "a path that leads nowhere is as good as none");
    }

    #[tokio::test]
    async fn who_says_something_else_gets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover.sock");
        let offer = Offer::bind(&path).unwrap();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let old = tokio::spawn(async move { offer.handed_over(&[("http", socket.as_fd())]).await });
        let stream = UnixStream::connect(&path).await.unwrap();
        send(&stream, "GET / HTTP/1.1", &[]).await.unwrap();
        let error = Inbox::default().word(&stream, WORD_LIMIT).await.unwrap_err();
        assert_eq!(error.code(), "WISP-E1011");
        assert!(!old.is_finished());
        old.abort();
    }
}
