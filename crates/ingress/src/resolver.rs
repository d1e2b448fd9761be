//! What name servers say of a domain.
//!
//! Whoever decides whether a domain is a team's own asks for a TXT record or an alias: that a
//! domain leads to us shows that its owner wants that, not which team owns it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, TYPE, rdata::RData};
use tokio::{net::UdpSocket, time::timeout};

use crate::HostName;

/// How long a name server may take to answer. Two are asked, each twice.
const QUERY_LIMIT: Duration = Duration::from_secs(3);

/// Name servers of the system that are asked.
const MAX_NAME_SERVERS_COUNT: usize = 2;

/// How often a name server is asked: packets get lost.
const QUERY_TRIES_COUNT: usize = 2;

/// The largest answer that is read: what name servers send by UDP.
const MAX_ANSWER_BYTES: usize = 4_096;

/// Asks the name servers that the system asks.
#[derive(Clone, Debug)]
pub struct SystemResolver {
    servers: Vec<SocketAddr>,
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

    /// The texts at a name, which may have parts that begin with `_`.
    ///
    /// # Errors
    /// What name servers say: [`io::ErrorKind::NotFound`] if there is no such name.
    pub async fn texts(&self, name: &str) -> io::Result<Vec<String>> {
        let answers = self.query(name, TYPE::TXT).await?;
        Ok(answers.into_iter().filter_map(Answer::into_text).collect())
    }

    /// The name that a host is an alias for.
    ///
    /// # Errors
    /// As [`SystemResolver::texts`].
    pub async fn alias(&self, host: &HostName) -> io::Result<Option<String>> {
        let answers = self.query(host.as_str(), TYPE::CNAME).await?;
        Ok(answers.into_iter().find_map(Answer::into_alias))
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

/// What a name server says.
#[derive(Debug)]
enum Answer {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::collections::HashMap;

    use simple_dns::{ResourceRecord, rdata};

    use super::*;

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

    #[tokio::test]
    async fn texts_and_aliases_are_what_the_name_server_says() {
        let mut txt = rdata::TXT::new();
        txt.add_string("wisp-0123").unwrap();
        let alias = RData::CNAME(rdata::CNAME(Name::new_unchecked("shop.team.cloud.example")));
        let address = RData::A(rdata::A { address: Ipv4Addr::LOCALHOST.into() });
        let resolver = name_server(vec![
            ("_wisp.text.example", RData::TXT(txt)),
            ("alias.example", alias),
            ("address.example", address),
        ])
        .await;
        let host = |name: &str| HostName::new(name).unwrap();
        assert_eq!(resolver.texts("_wisp.text.example").await.unwrap(), ["wisp-0123"]);
        let alias = resolver.alias(&host("alias.example")).await.unwrap();
        assert_eq!(alias.as_deref(), Some("shop.team.cloud.example"));
        assert_eq!(resolver.alias(&host("address.example")).await.unwrap(), None);
        assert_eq!(resolver.texts("address.example").await.unwrap(), [] as [String; 0]);
        let missing = resolver.texts("_wisp.nowhere.example").await.unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn name_servers_are_read_from_the_systems_file() {
        let text = "# comment\nnameserver 192.0.2.1\nsearch example\nnameserver fe80::1%eth0\nnameserver x\n";
        let found: Vec<_> = name_servers(text).iter().map(SocketAddr::ip).map(|ip| ip.to_string()).collect();
        assert_eq!(found, ["192.0.2.1", "fe80::1"]);
    }
}
