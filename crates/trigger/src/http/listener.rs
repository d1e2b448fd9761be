//! Sockets that a server accepts from.

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    sync::Arc,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::tls::SelectTls;
use crate::Error;

/// Connections that the kernel holds for us until they are accepted.
const BACKLOG_COUNT: i32 = 4096;

/// How many ports after the wanted one are tried when a free one is looked for.
const FREE_PORT_TRIES_COUNT: u16 = 9;

/// A socket that listens, and whether connections to it speak TLS.
pub struct Listener {
    socket: StdTcpListener,
    address: SocketAddr,
    tls: Option<Arc<dyn SelectTls>>,
}

impl Listener {
    /// Takes an address; port 0 is any free one.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub fn bind(address: SocketAddr) -> Result<Self, Error> {
        listen(address).and_then(Self::of).map_err(|cause| Error::Listen { address, cause })
    }

    /// Takes an address, or the first free one of the few ports after it.
    ///
    /// # Errors
    /// [`Error::Listen`] or [`Error::NoFreePort`].
    pub fn bind_near(wanted: SocketAddr) -> Result<Self, Error> {
        let mut address = wanted;
        loop {
            match Self::bind(address) {
                Err(Error::Listen { cause, .. }) if cause.kind() == io::ErrorKind::AddrInUse => {
                    let tried_count = address.port() - wanted.port();
                    match address.port().checked_add(1) {
                        Some(port) if tried_count < FREE_PORT_TRIES_COUNT => address.set_port(port),
                        _ => return Err(Error::NoFreePort { address: wanted, tried_count }),
                    }
                }
                other => return other,
            }
        }
    }

    /// A socket that listens already, such as one that another process handed over.
    ///
    /// # Errors
    /// [`Error::Adopt`] if it is none.
    pub fn adopt(socket: StdTcpListener) -> Result<Self, Error> {
        Self::of(socket).map_err(|cause| Error::Adopt { cause })
    }

    /// Speaks TLS on this socket.
    #[must_use]
    pub fn tls(self, tls: Arc<dyn SelectTls>) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// The address that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// The same socket once more, to hand it over.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn try_clone_socket(&self) -> io::Result<StdTcpListener> {
        self.socket.try_clone()
    }

    pub(super) fn into_parts(self) -> (StdTcpListener, Option<Arc<dyn SelectTls>>) {
        (self.socket, self.tls)
    }

    fn of(socket: StdTcpListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        Ok(Self { socket, address, tls: None })
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Listener({}://{})", self.scheme(), self.address)
    }
}

fn listen(address: SocketAddr) -> io::Result<StdTcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted server takes its port again although old connections linger.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG_COUNT)?;
    Ok(socket.into())
}
