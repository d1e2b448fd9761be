//! Certificates from a real authority: Pebble, Let's Encrypt's own test server, with its
//! name server. Clients verify what they get against Pebble's root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};
use rustls_pki_types::{ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};
use wisp_ingress::{
    AcmeSettings, CertificateStore, Certificates, ChallengeKind, Choice, Door, Error, HostName, ManualClock,
    Source, Standing, StoredCertificate,
};

/// How long Pebble says its certificates hold.
const LIFETIME: Duration = Duration::from_secs(90 * 86_400);

/// The authority: Pebble and its name server, by which every name leads to this machine.
struct Pebble {
    folder: PathBuf,
    config: PathBuf,
    directory_port: u16,
    management_port: u16,
    dns_port: u16,
    names: Child,
    authority: Option<Child>,
}

/// A server with an HTTP and an HTTPS listener.
struct Server {
    certificates: Certificates,
    https: SocketAddr,
    clock: Arc<ManualClock>,
    store: Arc<MemoryStore>,
    is_ours: Arc<AtomicBool>,
}

/// Keeps what is saved in memory, and counts.
#[derive(Default)]
struct MemoryStore {
    certificates: Mutex<HashMap<HostName, StoredCertificate>>,
    account: Mutex<Option<String>>,
    saved: Mutex<Vec<HostName>>,
    accounts_count: AtomicUsize,
}

/// An authority, and a server whose hosts it checks.
struct World {
    pebble: Pebble,
    server: Server,
    folder: tempfile::TempDir,
}

fn free_port() -> u16 {
    StdTcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn free_udp_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}

/// Says that a test cannot run here, as the suite does.
fn skip() -> bool {
    let has = |program: &str| {
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .any(|folder| folder.join(program).is_file())
    };
    if has("pebble") && has("pebble-challtestsrv") {
        return false;
    }
    if let Some(path) = std::env::var_os("WISP_SKIPPED_FILE") {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{test}: Debian's package `pebble` is not installed").unwrap();
    }
    true
}

impl World {
    /// Both, running. `None` if Debian's package is not installed.
    fn new(challenges: &[ChallengeKind]) -> Option<Self> {
        Self::prepare(challenges, |_| ()).map(|mut world| {
            world.pebble.up();
            world
        })
    }

    /// The same with an authority that is not there yet. `change` may lead it elsewhere: to
    /// other ports for `http` and `https`.
    fn prepare(challenges: &[ChallengeKind], change: impl FnOnce(&mut (u16, u16))) -> Option<Self> {
        if skip() {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let (http, https) = sockets();
        let mut ports = (port(&http), port(&https));
        change(&mut ports);
        let pebble = Pebble::prepare(folder.path(), ports.0, ports.1);
        let server = Server::start(Arc::default(), pebble.settings(challenges), http, https);
        Some(Self { pebble, server, folder })
    }
}

impl Pebble {
    /// Prepares an authority that checks hosts at these ports of this machine.
    fn prepare(folder: &Path, http_port: u16, https_port: u16) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let own = rcgen::generate_simple_self_signed(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        fs::write(folder.join("pebble.pem"), own.cert.pem()).unwrap();
        fs::write(folder.join("pebble.key"), own.signing_key.serialize_pem()).unwrap();
        let (directory_port, management_port, dns_port) = (free_port(), free_port(), free_udp_port());
        let config = folder.join("pebble.json");
        let text = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{directory_port}"),
            "managementListenAddress": format!("127.0.0.1:{management_port}"),
            "certificate": folder.join("pebble.pem"),
            "privateKey": folder.join("pebble.key"),
            "httpPort": http_port,
            "tlsPort": https_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": LIFETIME.as_secs(),
        }});
        fs::write(&config, text.to_string()).unwrap();
        let mut names = Command::new("pebble-challtestsrv")
            .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""])
            .args(["-http01", "", "-https01", "", "-tlsalpn01", ""])
            .args(["-dns01", &format!("127.0.0.1:{dns_port}")])
            .args(["-management", &format!("127.0.0.1:{}", free_port())])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for(&mut names, "Starting management server");
        Self {
            folder: folder.to_owned(),
            config,
            directory_port,
            management_port,
            dns_port,
            names,
            authority: None,
        }
    }

    /// Starts the authority. It has forgotten all that was before.
    fn up(&mut self) {
        let mut authority = Command::new("pebble")
            .arg("-config")
            .arg(&self.config)
            .args(["-dnsserver", &format!("127.0.0.1:{}", self.dns_port)])
            .env("PEBBLE_VA_NOSLEEP", "1")
            // Every order is checked, so that every challenge is tested.
            .env("PEBBLE_AUTHZREUSE", "0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for(&mut authority, "ACME directory available");
        self.authority = Some(authority);
        // It says so a moment before it listens.
        let deadline = Instant::now() + Duration::from_secs(30);
        for port in [self.directory_port, self.management_port] {
            while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
                assert!(Instant::now() < deadline, "the authority does not listen");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn down(&mut self) {
        if let Some(mut authority) = self.authority.take() {
            authority.kill().unwrap();
            authority.wait().unwrap();
        }
    }

    fn settings(&self, challenges: &[ChallengeKind]) -> AcmeSettings {
        AcmeSettings {
            root_certificate: Some(self.folder.join("pebble.pem")),
            contacts: vec!["mailto:operator@example.com".into()],
            challenges: challenges.to_vec(),
            ..AcmeSettings::new(format!("https://localhost:{}/dir", self.directory_port))
        }
    }

    /// What clients of the certificates trust.
    async fn root(&self) -> RootCertStore {
        let pem = fs::read(self.folder.join("pebble.pem")).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        let address = (Ipv4Addr::LOCALHOST, self.management_port).into();
        let mut stream = connect(address, "localhost", roots).await.unwrap();
        stream.write_all(b"GET /roots/0 HTTP/1.0\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let pem = answer.split("\r\n\r\n").nth(1).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        roots
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.down();
        let _ = self.names.kill();
        let _ = self.names.wait();
    }
}

/// Waits until a process says something, and goes on reading what it says.
fn wait_for(child: &mut Child, text: &str) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.by_ref().map_while(Result::ok).any(|line| line.contains(text)), "`{text}` was never said");
    std::thread::spawn(move || lines.map_while(Result::ok).count());
}

impl CertificateStore for MemoryStore {
    fn load(&self, host: &HostName) -> Result<Option<StoredCertificate>, Error> {
        Ok(self.certificates.lock().unwrap().get(host).cloned())
    }

    fn save(&self, host: &HostName, certificate: &StoredCertificate) -> Result<(), Error> {
        self.saved.lock().unwrap().push(host.clone());
        self.certificates.lock().unwrap().insert(host.clone(), certificate.clone());
        Ok(())
    }

    fn remove(&self, host: &HostName) -> Result<(), Error> {
        self.certificates.lock().unwrap().remove(host);
        Ok(())
    }

    fn due(&self, time: SystemTime, max_count: usize) -> Result<Vec<HostName>, Error> {
        let certificates = self.certificates.lock().unwrap();
        let due = certificates.iter().filter(|(_, certificate)| certificate.renew_at() < time);
        Ok(due.map(|(host, _)| host.clone()).take(max_count).collect())
    }

    fn load_account(&self, _: &str) -> Result<Option<String>, Error> {
        Ok(self.account.lock().unwrap().clone())
    }

    fn save_account(&self, _: &str, credentials: &str) -> Result<(), Error> {
        self.accounts_count.fetch_add(1, Ordering::SeqCst);
        *self.account.lock().unwrap() = Some(credentials.to_owned());
        Ok(())
    }
}

impl Server {
    fn start(
        store: Arc<MemoryStore>,
        settings: AcmeSettings,
        http: StdTcpListener,
        https: StdTcpListener,
    ) -> Self {
        let clock = Arc::new(ManualClock::new(SystemTime::now()));
        let is_ours = Arc::new(AtomicBool::new(true));
        let allowed = {
            let is_ours = is_ours.clone();
            Arc::new(move |host: &HostName| -> futures::future::BoxFuture<'static, bool> {
                let allowed = is_ours.load(Ordering::SeqCst) && !host.is_within("stranger.example");
                Box::pin(async move { allowed })
            })
        };
        let certificates = Certificates::builder()
            .clock(clock.clone())
            .acme(settings, store.clone(), allowed, tokio::runtime::Handle::current())
            .build()
            .unwrap();
        let address = https.local_addr().unwrap();
        tokio::spawn(serve_http(listener(http), Door::new(certificates.clone(), None)));
        tokio::spawn(serve_https(listener(https), certificates.clone()));
        Self { certificates, https: address, clock, store, is_ours }
    }

    /// The certificate that a client gets, if it accepts it.
    async fn certificate(
        &self,
        name: &str,
        roots: &RootCertStore,
    ) -> std::io::Result<CertificateDer<'static>> {
        let stream = connect(self.https, name, roots.clone()).await?;
        let (_, connection) = stream.get_ref();
        assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
        Ok(connection.peer_certificates().unwrap()[0].clone().into_owned())
    }

    async fn standing(&self, host: &HostName) -> Standing {
        match self.certificates.source(host).await.unwrap() {
            Source::Authority(standing) => standing,
            other => panic!("{other:?}"),
        }
    }

    fn saved(&self) -> Vec<HostName> {
        self.store.saved.lock().unwrap().clone()
    }
}

fn listener(socket: StdTcpListener) -> TcpListener {
    socket.set_nonblocking(true).unwrap();
    TcpListener::from_std(socket).unwrap()
}

async fn serve_http(listener: TcpListener, door: Door) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let door = door.clone();
        tokio::spawn(async move {
            let mut bytes = vec![0; 4_096];
            let count = stream.read(&mut bytes).await.unwrap_or(0);
            let head = String::from_utf8_lossy(&bytes[..count]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or("/");
            let response = match door.answer(false, None, path) {
                Some(answer) => {
                    let body = String::from_utf8(answer.into_body().to_vec()).unwrap();
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
                }
                None => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".into(),
            };
            let _ = stream.write_all(response.as_bytes()).await;
        });
    }
}

async fn serve_https(listener: TcpListener, certificates: Certificates) {
    while let Ok((stream, _)) = listener.accept().await {
        let certificates = certificates.clone();
        tokio::spawn(async move {
            let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
            let config = match certificates.choose(&start.client_hello()) {
                Choice::Config(config) => config,
                Choice::Wait(config) => config.await,
            };
            let mut stream = start.into_stream(config).await?;
            stream.shutdown().await
        });
    }
}

async fn connect(
    address: SocketAddr,
    name: &str,
    roots: RootCertStore,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    if name != "localhost" {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await
}

fn sockets() -> (StdTcpListener, StdTcpListener) {
    (StdTcpListener::bind("127.0.0.1:0").unwrap(), StdTcpListener::bind("127.0.0.1:0").unwrap())
}

fn port(socket: &StdTcpListener) -> u16 {
    socket.local_addr().unwrap().port()
}

/// Obtains a certificate by one kind of challenge, for many clients at once, and serves
/// it without the authority after a restart.
async fn obtains_on_demand(kind: ChallengeKind) {
    let Some(World { mut pebble, server, folder }) = World::new(&[kind]) else { return };
    let roots = pebble.root().await;

    let clients = (0..20).map(|_| server.certificate("shop.example", &roots));
    let first = futures::future::join_all(clients).await;
    let certificate = first[0].as_ref().unwrap().clone();
    for other in first {
        assert_eq!(other.unwrap(), certificate, "all clients that waited got the same one");
    }
    assert_eq!(server.saved(), [host("shop.example")], "one flight for twenty clients");
    assert_eq!(server.certificate("shop.example", &roots).await.unwrap(), certificate);

    server.certificates.stop();
    pebble.down();
    let (http, https) = sockets();
    let restarted = Server::start(server.store.clone(), pebble.settings(&[kind]), http, https);
    assert_eq!(restarted.certificate("shop.example", &roots).await.unwrap(), certificate);
    assert_eq!(restarted.saved().len(), 1, "nothing was ordered again");
    drop(folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_obtained_by_tls_alpn_01() {
    obtains_on_demand(ChallengeKind::TlsAlpn01).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_obtained_by_http_01() {
    obtains_on_demand(ChallengeKind::Http01).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_ours_is_refused_without_asking_the_authority() {
    let Some(world) = World::new(&[ChallengeKind::TlsAlpn01]) else { return };
    let World { pebble, server, .. } = &world;
    let roots = pebble.root().await;
    server.certificate("shop.stranger.example", &roots).await.unwrap_err();
    let error = server.certificates.prepare(&host("shop.stranger.example")).await.unwrap_err();
    assert_eq!(error.code(), "WISP-E1007");
    assert_eq!(server.store.accounts_count.load(Ordering::SeqCst), 0, "there is not even an account");
    server.certificate("shop.example", &roots).await.unwrap();
    assert_eq!(server.store.accounts_count.load(Ordering::SeqCst), 1);
    assert_eq!(server.saved(), [host("shop.example")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_at_two_thirds_of_its_life_while_it_is_served() {
    let Some(world) = World::new(&[ChallengeKind::TlsAlpn01]) else { return };
    let World { pebble, server, .. } = &world;
    let roots = pebble.root().await;
    let first = server.certificate("shop.example", &roots).await.unwrap();
    let kept = server.store.load(&host("shop.example")).unwrap().unwrap();

    server.clock.advance(LIFETIME / 2);
    assert_eq!(server.certificate("shop.example", &roots).await.unwrap(), first, "not before its time");
    // Clients come all the time, and none of them waits or fails.
    server.clock.advance(LIFETIME * 2 / 3 - LIFETIME / 2);
    let renewed = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let certificate = server.certificate("shop.example", &roots).await.unwrap();
            if certificate != first {
                return certificate;
            }
        }
    })
    .await
    .expect("a renewed certificate");
    assert_eq!(server.saved(), [host("shop.example"), host("shop.example")]);
    let now_kept = server.store.load(&host("shop.example")).unwrap().unwrap();
    assert!(now_kept.renew_at() > kept.renew_at());
    assert!(now_kept.renew_at() > wisp_ingress::Clock::now(&*server.clock));

    // A domain that was given up is not renewed, and not kept.
    server.is_ours.store(false, Ordering::SeqCst);
    server.clock.advance(LIFETIME);
    tokio::time::timeout(Duration::from_secs(60), async {
        while server.store.load(&host("shop.example")).unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("a certificate that is given up");
    assert_eq!(server.saved().len(), 2);
    drop(renewed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_was_away_is_asked_again_after_a_pause() {
    let Some(mut world) = World::prepare(&[ChallengeKind::TlsAlpn01], |_| ()) else { return };
    let World { pebble, server, .. } = &mut world;
    let code = async |name: &str| server.certificates.prepare(&host(name)).await.unwrap_err().code();
    assert_eq!(code("one.example").await, "WISP-E1006");
    assert_eq!(code("other.example").await, "WISP-E1008", "nobody is asked for another host either");
    pebble.up();
    assert_eq!(code("one.example").await, "WISP-E1008", "not before the pause is over");
    server.clock.advance(wisp_ingress::acme::FIRST_AUTHORITY_PAUSE);
    server.certificates.prepare(&host("one.example")).await.unwrap();
    let roots = pebble.root().await;
    server.certificate("one.example", &roots).await.unwrap();

    // It comes back without its memory: another root, and an account that it never saw.
    pebble.down();
    assert_eq!(code("two.example").await, "WISP-E1006");
    pebble.up();
    server.clock.advance(wisp_ingress::acme::FIRST_AUTHORITY_PAUSE);
    server.certificates.prepare(&host("two.example")).await.unwrap();
    server.certificate("two.example", &pebble.root().await).await.unwrap();
    assert_eq!(server.store.accounts_count.load(Ordering::SeqCst), 2);
    server.certificate("one.example", &roots).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_check_the_other_challenge_is_tried_after_a_pause() {
    let challenges = [ChallengeKind::Http01, ChallengeKind::TlsAlpn01];
    // The authority looks for HTTP where nobody listens.
    let Some(mut world) = World::prepare(&challenges, |ports| ports.0 = free_port()) else { return };
    world.pebble.up();
    let World { pebble, server, .. } = &world;
    let shop = host("shop.example");
    let error = server.certificates.prepare(&shop).await.unwrap_err();
    assert_eq!(error.code(), "WISP-E1005");
    assert!(error.to_string().contains("connection refused"), "the authority's own words: {error}");
    assert_eq!(server.certificates.prepare(&shop).await.unwrap_err().code(), "WISP-E1008");
    // Whoever asks is told why, and when it is tried again.
    let standing = server.standing(&shop).await;
    let failed = standing.failed.unwrap();
    assert_eq!((failed.error.code(), standing.held), ("WISP-E1005", None));
    let (next_try, _) = standing.paused.unwrap();
    assert_eq!(next_try, failed.at + wisp_ingress::acme::FIRST_HOST_PAUSE);
    server.certificates.prepare(&host("other.example")).await.unwrap_err();
    server.clock.advance(wisp_ingress::acme::FIRST_HOST_PAUSE);
    server.certificates.prepare(&shop).await.unwrap();
    let standing = server.standing(&shop).await;
    assert!(standing.held.is_some() && standing.failed.is_none() && standing.paused.is_none());
    server.certificate("shop.example", &pebble.root().await).await.unwrap();
}
