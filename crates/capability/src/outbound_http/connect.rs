//! Opening connections: name → addresses → TCP → TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wasmtime_wasi_http::Error as HttpError;

use super::tls::ComponentTls;
use crate::outbound::{self, Destination};

/// How long one address may keep others waiting for their turn: what RFC 8305
/// recommends, so that a dead IPv6 route does not hold up a request.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// How many addresses of a name are tried.
const TRIED_ADDRESSES_COUNT: usize = 8;

/// A connection, with or without TLS.
pub(super) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// Whether both ends agreed on HTTP/2.
    pub(super) fn has_agreed_on_http2(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }
}

/// Connects to a destination that was checked against the allow-list.
pub(super) async fn connect(
    outbound: &outbound::Grant,
    tls: &ComponentTls,
    destination: &Destination,
) -> Result<Transport, HttpError> {
    let addresses = resolve(destination).await?;
    // From here on only these addresses count, however often the name changes.
    let addresses =
        outbound.filter(destination, addresses).map_err(|_| HttpError::DestinationIpProhibited)?;
    let stream = connect_first(&addresses).await.map_err(|cause| connect_error(&cause))?;
    // Small requests must not wait for an acknowledgement. Only speed is lost.
    drop(stream.set_nodelay(true));
    if destination.scheme != "https" {
        return Ok(Transport::Plain(stream));
    }
    let config = if tls.must_load(&destination.host) {
        // Reads some hundred files, once in the life of the process.
        tokio::task::spawn_blocking(super::tls::default_config)
            .await
            .map_err(|_| HttpError::InternalError(None))?
    } else {
        tls.towards(&destination.host)
    };
    let name =
        ServerName::try_from(destination.host.clone()).map_err(|_| HttpError::HttpRequestUriInvalid)?;
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|cause| tls_error(&cause))?;
    Ok(Transport::Tls(Box::new(stream)))
}

async fn resolve(destination: &Destination) -> Result<Vec<SocketAddr>, HttpError> {
    if let Ok(address) = destination.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, destination.port)]);
    }
    let not_found = |cause: String| HttpError::DnsError { rcode: Some(cause), info_code: None };
    let addresses: Vec<_> = tokio::net::lookup_host((destination.host.as_str(), destination.port))
        .await
        .map_err(|cause| not_found(cause.to_string()))?
        .collect();
    if addresses.is_empty() {
        return Err(not_found("the name has no address".into()));
    }
    Ok(addresses)
}

/// The first of the addresses that answers. Each has a head start before the
/// next one is tried beside it.
async fn connect_first(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut running = FuturesUnordered::new();
    let mut last_error = None;
    for address in addresses.iter().take(TRIED_ADDRESSES_COUNT) {
        running.push(TcpStream::connect(*address));
        match tokio::time::timeout(NEXT_ADDRESS_AFTER, running.next()).await {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => last_error = Some(error),
            Ok(None) | Err(_) => {}
        }
    }
    while let Some(result) = running.next().await {
        match result {
            Ok(stream) => return Ok(stream),
            Err(error) => last_error = Some(error),
        }
    }
    Err(last_error.unwrap_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable)))
}

fn connect_error(error: &io::Error) -> HttpError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => HttpError::ConnectionRefused,
        io::ErrorKind::TimedOut => HttpError::ConnectionTimeout,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            HttpError::DestinationIpUnroutable
        }
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => HttpError::ConnectionTerminated,
        _ => HttpError::DestinationUnavailable,
    }
}

fn tls_error(error: &io::Error) -> HttpError {
    let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => HttpError::ConnectionTerminated,
            _ => HttpError::TlsProtocolError,
        };
    };
    match cause {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
            tracing::debug!("server certificate refused: {cause}");
            HttpError::TlsCertificateError
        }
        rustls::Error::AlertReceived(alert) => HttpError::TlsAlertReceived {
            alert_id: Some(u8::from(*alert)),
            alert_message: alert.as_str().map(str::to_owned),
        },
        _ => HttpError::TlsProtocolError,
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
