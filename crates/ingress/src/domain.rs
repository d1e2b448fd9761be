//! Whether a domain belongs to who claims it.
//!
//! That a domain leads to us shows that its owner wants that, not which team owns it. So
//! a team shows that it may change the domain, in one of three ways, all of which name
//! the team by a token that nobody can guess ([`DomainToken`]):
//!
//! - a TXT record at `_wisp.DOMAIN` with the text `wisp=TOKEN`;
//! - a CNAME record at `DOMAIN` that leads to the app's own host below the platform's
//!   domain, whose name says which team it is;
//! - a file at `http://DOMAIN/.well-known/wisp-domain/TOKEN` with the token in it, served
//!   by whoever serves the domain now.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use ring::hmac;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, TYPE, rdata::RData};
use tokio::{
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use crate::HostName;

/// How long a name server may take to answer. Two are asked, each twice.
const QUERY_LIMIT: Duration = Duration::from_secs(3);

/// Name servers of the system that are asked.
const MAX_NAME_SERVERS_COUNT: usize = 2;

/// How often a name server is asked: packets get lost.
const QUERY_TRIES_COUNT: usize = 2;

/// The largest answer that is read: what name servers send by UDP.
const MAX_ANSWER_BYTES: usize = 4_096;

/// How long it may take to fetch a token.
const FETCH_LIMIT: Duration = Duration::from_secs(10);

/// The largest answer with a token in it.
const MAX_TOKEN_ANSWER_BYTES: usize = 1_024;

/// Below this the token is looked for.
pub const TOKEN_PATH_PREFIX: &str = "/.well-known/wisp-domain/";

/// Says to which team a domain is to belong.
#[derive(Clone, PartialEq, Eq)]
pub struct DomainToken(String);

/// How a domain was found to belong to a team.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By a TXT record.
    Text,
    /// By a CNAME record.
    Alias,
    /// By a file.
    File,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// How the domain belongs to the team; `None` if that was not found.
    pub proof: Option<Proof>,
    /// Some address of the domain is one of ours: requests to it come here.
    pub leads_here: bool,
    /// What was looked at and what was there, for who wonders.
    pub findings: Vec<String>,
}

/// What a domain is compared with.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The domain.
    pub domain: HostName,
    /// The app's host below the platform's domain.
    pub app_host: HostName,
    /// The team's token for the domain.
    pub token: DomainToken,
    /// Our own addresses, as the internet sees them.
    pub addresses: Vec<IpAddr>,
}

/// Looks names up.
pub trait Resolver: Send + Sync + 'static {
    /// The addresses of a host, whatever aliases lead there.
    fn addresses<'own>(&'own self, host: &'own HostName) -> BoxFuture<'own, io::Result<Vec<IpAddr>>>;

    /// The texts at a name, which may have parts that begin with `_`.
    fn texts<'own>(&'own self, name: &'own str) -> BoxFuture<'own, io::Result<Vec<String>>>;

    /// The name that a host is an alias for.
    fn alias<'own>(&'own self, host: &'own HostName) -> BoxFuture<'own, io::Result<Option<String>>>;
}

/// Asks the name servers that the system asks.
#[derive(Clone, Debug)]
pub struct SystemResolver {
    servers: Vec<SocketAddr>,
}

/// Checks claims.
#[derive(Clone)]
pub struct DomainCheck {
    resolver: Arc<dyn Resolver>,
    http_port: u16,
    may_ask_private: bool,
}

impl DomainToken {
    /// The token of a team for a domain, which follows from a secret of the platform.
    pub fn new(secret: &[u8], team: &str, domain: &HostName) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        // Neither a team's name nor a host's has a line break.
        let tag = hmac::sign(&key, format!("wisp domain\n{team}\n{domain}").as_bytes());
        Self(tag.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The token.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the TXT record that is looked for.
    pub fn text_name(domain: &HostName) -> String {
        format!("_wisp.{domain}")
    }

    /// The text of the TXT record that is looked for.
    pub fn text(&self) -> String {
        format!("wisp={}", self.0)
    }
}

impl fmt::Debug for DomainToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DomainToken({})", self.0)
    }
}

impl Default for DomainCheck {
    fn default() -> Self {
        Self::new(Arc::new(SystemResolver::system()))
    }
}

impl DomainCheck {
    /// Checks by what this resolver says.
    pub fn new(resolver: Arc<dyn Resolver>) -> Self {
        Self { resolver, http_port: 80, may_ask_private: false }
    }

    /// Fetches files from this port, also of private addresses: for networks of one's
    /// own.
    #[must_use]
    pub fn private(self, http_port: u16) -> Self {
        Self { http_port, may_ask_private: true, ..self }
    }

    /// Looks whether a claim is right.
    pub async fn check(&self, claim: &Claim) -> Ownership {
        let Claim { domain, app_host, token, addresses: own } = claim;
        let mut findings = Vec::new();
        let addresses = match self.resolver.addresses(domain).await {
            Ok(found) => {
                findings.push(format!("{domain} has the addresses {}", list(&found)));
                found
            }
            Err(cause) => {
                findings.push(format!("{domain} has no address: {cause}"));
                Vec::new()
            }
        };
        let leads_here = addresses.iter().any(|address| own.contains(&address.to_canonical()));
        let mut proof = None;

        let name = DomainToken::text_name(domain);
        match self.resolver.texts(&name).await {
            Ok(texts) if texts.iter().any(|text| text.trim() == token.text()) => proof = Some(Proof::Text),
            Ok(texts) => findings.push(format!("{} TXT records at {name}, none is ours", texts.len())),
            Err(cause) => findings.push(format!("no TXT record at {name}: {cause}")),
        }
        if proof.is_none() {
            match self.resolver.alias(domain).await {
                Ok(Some(alias)) if HostName::new(&alias).is_ok_and(|alias| alias == *app_host) => {
                    proof = Some(Proof::Alias);
                }
                Ok(Some(alias)) => findings.push(format!("{domain} is an alias for {alias}")),
                Ok(None) => findings.push(format!("{domain} is no alias")),
                Err(cause) => findings.push(format!("{domain} is no alias: {cause}")),
            }
        }
        if proof.is_none() {
            match self.fetch(domain, token, &addresses).await {
                Ok(()) => proof = Some(Proof::File),
                Err(cause) => findings.push(format!("no token by HTTP: {cause}")),
            }
        }
        Ownership { proof, leads_here, findings }
    }

    /// Fetches the token from the domain itself.
    async fn fetch(
        &self,
        domain: &HostName,
        token: &DomainToken,
        addresses: &[IpAddr],
    ) -> Result<(), String> {
        let Some(address) = addresses.iter().find(|address| self.may_ask_private || is_public(**address))
        else {
            return Err("it has no public address".into());
        };
        let fetch = async {
            let stream = TcpStream::connect((*address, self.http_port)).await.map_err(text)?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
            let request = Request::get(format!("{TOKEN_PATH_PREFIX}{}", token.as_str()))
                .header(header::HOST, domain.as_str())
                .header(header::CONNECTION, "close")
                .body(Empty::<Bytes>::new())
                .map_err(text)?;
            let answer = async {
                let response = sender.send_request(request).await.map_err(text)?;
                if response.status() != StatusCode::OK {
                    return Err(format!("{address} answers {}", response.status()));
                }
                let body = Limited::new(response.into_body(), MAX_TOKEN_ANSWER_BYTES).collect().await;
                let body = body.map_err(text)?.to_bytes();
                match body.trim_ascii() == token.as_str().as_bytes() {
                    true => Ok(()),
                    false => Err(format!("{address} answers something else")),
                }
            };
            tokio::pin!(connection);
            let mut answer = std::pin::pin!(answer);
            tokio::select! {
                answer = &mut answer => answer,
                _ = &mut connection => answer.await,
            }
        };
        timeout(FETCH_LIMIT, fetch).await.map_err(|_| format!("{address} takes too long"))?
    }
}

impl SystemResolver {
    /// Asks who the system asks, by `/etc/resolv.conf`.
    pub fn system() -> Self {
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        Self { servers: name_servers(&text) }
    }

    /// Asks these name servers.
    pub fn of(servers: Vec<SocketAddr>) -> Self {
        Self { servers }
    }

    /// The answers to a question.
    async fn query(&self, name: &str, kind: TYPE) -> io::Result<Vec<Answer>> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "there is no name server");
        for _ in 0..QUERY_TRIES_COUNT {
            for server in self.servers.iter().take(MAX_NAME_SERVERS_COUNT) {
                match timeout(QUERY_LIMIT, ask(*server, name, kind)).await {
                    Ok(Ok(answers)) => return Ok(answers),
                    Ok(Err(cause)) => last = cause,
                    Err(_) => last = io::ErrorKind::TimedOut.into(),
                }
            }
        }
        Err(last)
    }
}

impl Resolver for SystemResolver {
    fn addresses<'own>(&'own self, host: &'own HostName) -> BoxFuture<'own, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let (four, six) =
                tokio::join!(self.query(host.as_str(), TYPE::A), self.query(host.as_str(), TYPE::AAAA));
            let mut addresses = Vec::new();
            for answers in [&four, &six] {
                addresses.extend(answers.iter().flatten().filter_map(|answer| match answer {
                    Answer::Address(address) => Some(*address),
                    _ => None,
                }));
            }
            match four {
                Err(cause) if addresses.is_empty() => Err(cause),
                _ => Ok(addresses),
            }
        })
    }

    fn texts<'own>(&'own self, name: &'own str) -> BoxFuture<'own, io::Result<Vec<String>>> {
        Box::pin(async move {
            let answers = self.query(name, TYPE::TXT).await?;
            Ok(answers.into_iter().filter_map(Answer::into_text).collect())
        })
    }

    fn alias<'own>(&'own self, host: &'own HostName) -> BoxFuture<'own, io::Result<Option<String>>> {
        Box::pin(async move {
            let answers = self.query(host.as_str(), TYPE::CNAME).await?;
            Ok(answers.into_iter().find_map(Answer::into_alias))
        })
    }
}

/// What a name server says.
#[derive(Debug)]
enum Answer {
    Address(IpAddr),
    Text(String),
    Alias(String),
}

impl Answer {
    fn into_text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn into_alias(self) -> Option<String> {
        match self {
            Self::Alias(alias) => Some(alias),
            _ => None,
        }
    }
}

/// Asks a name server.
async fn ask(server: SocketAddr, name: &str, kind: TYPE) -> io::Result<Vec<Answer>> {
    let wrong =
        |cause: simple_dns::SimpleDnsError| io::Error::new(io::ErrorKind::InvalidData, cause.to_string());
    let mut id = [0; 2];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut id)
        .map_err(|_| io::Error::other("no random numbers"))?;
    let mut packet = Packet::new_query(u16::from_ne_bytes(id));
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let question = Name::new(name).map_err(wrong)?;
    packet.questions.push(Question::new(question, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    let query = packet.build_bytes_vec().map_err(wrong)?;
    let own: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A connected socket, on a port that nobody can guess, hears this server only.
    let socket = UdpSocket::bind(own).await?;
    socket.connect(server).await?;
    socket.send(&query).await?;
    let mut bytes = vec![0; MAX_ANSWER_BYTES];
    loop {
        let count = socket.recv(&mut bytes).await?;
        let Ok(answer) = Packet::parse(&bytes[..count]) else { continue };
        let is_ours = answer.id() == u16::from_ne_bytes(id)
            && answer.has_flags(PacketFlag::RESPONSE)
            && answer
                .questions
                .first()
                .is_some_and(|question| question.qname.to_string().eq_ignore_ascii_case(name));
        if !is_ours {
            continue;
        }
        return match answer.rcode() {
            simple_dns::RCODE::NoError => Ok(read(&answer)),
            simple_dns::RCODE::NameError => {
                Err(io::Error::new(io::ErrorKind::NotFound, "there is no such name"))
            }
            other => Err(io::Error::other(format!("the name server says {other:?}"))),
        };
    }
}

fn read(packet: &Packet<'_>) -> Vec<Answer> {
    packet
        .answers
        .iter()
        .filter_map(|record| match &record.rdata {
            RData::A(a) => Some(Answer::Address(Ipv4Addr::from(a.address).into())),
            RData::AAAA(aaaa) => Some(Answer::Address(Ipv6Addr::from(aaaa.address).into())),
            RData::CNAME(cname) => Some(Answer::Alias(cname.0.to_string())),
            RData::TXT(txt) => String::try_from(txt.clone()).ok().map(Answer::Text),
            _ => None,
        })
        .collect()
}

/// The name servers in the text of a `resolv.conf`.
fn name_servers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().split('%').next()?.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

/// Whether an address is one of the internet's, and not of a network that is somebody's
/// own: what a stranger's name resolves to must not lead us there.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            !(address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_broadcast()
                || address.is_documentation()
                || address.is_multicast()
                || a == 0
                || a >= 240
                // Shared by carriers (RFC 6598), of protocols (RFC 6890), for benchmarks.
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && (18..20).contains(&b)))
        }
        // Of those of IPv6, what is global is 2000::/3, without what is mapped from
        // addresses of IPv4 (6to4, Teredo) and documentation.
        IpAddr::V6(address) => {
            let [a, b, ..] = address.segments();
            (0x2000..0x4000).contains(&a) && a != 0x2002 && !(a == 0x2001 && (b == 0 || b == 0x0db8))
        }
    }
}

fn list(addresses: &[IpAddr]) -> String {
    let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    if texts.is_empty() { "(none)".into() } else { texts.join(", ") }
}

fn text(cause: impl fmt::Display) -> String {
    cause.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::collections::HashMap;

    use simple_dns::{ResourceRecord, rdata};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn host(name: &str) -> HostName {
        HostName::new(name).unwrap()
    }

    /// A name server with these records, until the test ends.
    async fn name_server(records: Vec<(&'static str, RData<'static>)>) -> SystemResolver {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let records: HashMap<_, Vec<_>> =
            records.into_iter().fold(HashMap::new(), |mut all, (name, data)| {
                all.entry(name.to_owned()).or_insert_with(Vec::new).push(data);
                all
            });
        tokio::spawn(async move {
            let mut bytes = [0; 1_024];
            while let Ok((count, client)) = socket.recv_from(&mut bytes).await {
                let query = Packet::parse(&bytes[..count]).unwrap();
                let question = &query.questions[0];
                let QTYPE::TYPE(kind) = question.qtype else { continue };
                let mut reply = Packet::new_reply(query.id());
                reply.questions.push(question.clone());
                match records.get(&question.qname.to_string()) {
                    None => *reply.rcode_mut() = simple_dns::RCODE::NameError,
                    Some(data) => {
                        for data in data.iter().filter(|data| data.type_code() == kind) {
                            let name = question.qname.clone();
                            reply.answers.push(ResourceRecord::new(name, CLASS::IN, 60, data.clone()));
                        }
                    }
                }
                socket.send_to(&reply.build_bytes_vec().unwrap(), client).await.unwrap();
            }
        });
        SystemResolver::of(vec![address])
    }

    fn claim(domain: &str) -> Claim {
        Claim {
            domain: host(domain),
            app_host: host("shop.team.cloud.example"),
            token: DomainToken::new(b"secret", "team", &host(domain)),
            addresses: vec!["127.0.0.1".parse().unwrap()],
        }
    }

    #[tokio::test]
    async fn a_domain_belongs_to_whose_token_its_records_name() {
        let text = claim("text.example").token.text();
        let mut txt = rdata::TXT::new();
        txt.add_string(Box::leak(text.into_boxed_str())).unwrap();
        let mut other = rdata::TXT::new();
        other.add_string("wisp=0123").unwrap();
        let loopback = || RData::A(rdata::A { address: Ipv4Addr::LOCALHOST.into() });
        let alias = |name| RData::CNAME(rdata::CNAME(Name::new_unchecked(name)));
        let resolver = name_server(vec![
            ("text.example", loopback()),
            ("_wisp.text.example", RData::TXT(other.clone())),
            ("_wisp.text.example", RData::TXT(txt)),
            ("alias.example", alias("Shop.Team.cloud.example")),
            ("foreign.example", alias("shop.other.cloud.example")),
            ("_wisp.foreign.example", RData::TXT(other)),
            ("foreign.example", loopback()),
        ])
        .await;
        let check = DomainCheck::new(Arc::new(resolver));
        let found = check.check(&claim("text.example")).await;
        assert_eq!((found.proof, found.leads_here), (Some(Proof::Text), true));
        let found = check.check(&claim("alias.example")).await;
        assert_eq!((found.proof, found.leads_here), (Some(Proof::Alias), false));
        // It leads here, but nothing says that it is this team's.
        let found = check.check(&claim("foreign.example")).await;
        assert_eq!((found.proof, found.leads_here), (None, true), "{found:?}");
        assert!(found.findings.iter().any(|finding| finding.contains("shop.other.cloud.example")));
        assert!(found.findings.iter().any(|finding| finding.contains("no public address")));
        let found = check.check(&claim("nowhere.example")).await;
        assert_eq!((found.proof, found.leads_here), (None, false));
    }

    #[tokio::test]
    async fn a_domain_belongs_to_whose_token_it_serves() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                let mut bytes = vec![0; 4_096];
                let count = stream.read(&mut bytes).await.unwrap();
                let head = String::from_utf8_lossy(&bytes[..count]).into_owned();
                let token = head
                    .strip_prefix(&format!("GET {TOKEN_PATH_PREFIX}"))
                    .and_then(|rest| rest.split(' ').next())
                    .unwrap_or_default();
                let body = match head.contains("host: file.example") {
                    true => format!("{token}\n"),
                    false => "something else".to_owned(),
                };
                let length = body.len();
                let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
                stream.write_all(response.as_bytes()).await.unwrap();
            }
        });
        let loopback = || RData::A(rdata::A { address: Ipv4Addr::LOCALHOST.into() });
        let resolver = name_server(vec![("file.example", loopback()), ("other.example", loopback())]).await;
        let check = DomainCheck::new(Arc::new(resolver)).private(port);
        assert_eq!(check.check(&claim("file.example")).await.proof, Some(Proof::File));
        let found = check.check(&claim("other.example")).await;
        assert_eq!(found.proof, None);
        assert!(found.findings.iter().any(|finding| finding.contains("something else")), "{found:?}");
    }

    #[test]
    fn tokens_differ_by_team_domain_and_secret() {
        let token = |secret: &[u8], team, domain| DomainToken::new(secret, team, &host(domain)).0;
        let one = token(b"a", "team", "shop.example");
        assert_eq!(one, token(b"a", "team", "shop.example"));
        assert_eq!(one.len(), 32);
        for other in [
            token(b"b", "team", "shop.example"),
            token(b"a", "other", "shop.example"),
            token(b"a", "team", "a.example"),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn private_addresses_are_no_public_ones() {
        let public = |address: &str| is_public(address.parse().unwrap());
        for address in ["1.1.1.1", "172.15.0.1", "100.63.0.1", "2606:4700::1111", "::ffff:1.1.1.1"] {
            assert!(public(address), "{address}");
        }
        for address in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:127.0.0.1",
            "2002:7f00:1::",
            "2001::1",
            "64:ff9b::7f00:1",
        ] {
            assert!(!public(address), "{address}");
        }
    }

    #[test]
    fn name_servers_are_read_from_the_systems_file() {
        let text = "# comment\nnameserver 192.0.2.1\nsearch example\nnameserver fe80::1%eth0\nnameserver x\n";
        let found: Vec<_> = name_servers(text).iter().map(SocketAddr::ip).map(|ip| ip.to_string()).collect();
        assert_eq!(found, ["192.0.2.1", "fe80::1"]);
    }
}
