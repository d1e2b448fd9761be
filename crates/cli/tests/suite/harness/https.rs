//! HTTP/1.1 over TLS, for those who look at certificates.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

use super::WAIT_LIMIT;

/// A connection to a host, one request after the other.
pub(crate) struct Https {
    host: String,
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

impl Https {
    /// A client that trusts one authority.
    pub(crate) fn trusting(root_pem: &str) -> Arc<ClientConfig> {
        // Only the first of a process counts.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(root_pem.as_bytes()).unwrap()).unwrap();
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        // Each handshake shows the certificate.
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    }

    /// Connects, and shakes hands.
    pub(crate) fn open(address: SocketAddr, host: &str, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
        let socket = TcpStream::connect_timeout(&address, WAIT_LIMIT)?;
        socket.set_read_timeout(Some(WAIT_LIMIT))?;
        socket.set_nodelay(true)?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self { host: host.to_owned(), stream: BufReader::new(stream) })
    }

    /// The certificate that the server showed.
    pub(crate) fn certificate(&self) -> Vec<u8> {
        self.stream.get_ref().conn.peer_certificates().unwrap()[0].to_vec()
    }

    /// Asks for `/`: status, body, and whether the connection stays.
    pub(crate) fn get(&mut self) -> io::Result<(u16, String, bool)> {
        let head = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", self.host);
        self.stream.get_mut().write_all(head.as_bytes())?;
        let (mut status, mut length, mut stays) = (0, 0, true);
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest.get(..3).and_then(|digits| digits.parse().ok()).unwrap_or(0);
            } else if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().map_err(io::Error::other)?;
            } else if line == "connection: close" {
                stays = false;
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((status, String::from_utf8_lossy(&body).into_owned(), stays))
    }
}
