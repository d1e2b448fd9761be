//! Allowed hosts, one in each line, and a host in the last line; and the same
//! lines as networks to block.

#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use wisp_manifest::allowed_hosts::{
    AllowedHost, AllowedHosts, BlockedNetworks, chained_component, translate_allowed_http_hosts,
};

fuzz_target!(|text: &str| {
    let (entries, host) = text.rsplit_once('\n').unwrap_or(("", text));
    let parsed: Vec<AllowedHost> =
        entries.lines().filter_map(|entry| AllowedHost::parse(entry).ok()).collect();
    for entry in &parsed {
        assert_eq!(AllowedHost::parse(entry.source()).as_ref(), Ok(entry));
        entry.chained();
    }
    let hosts = AllowedHosts::new(parsed);
    let mut blocked = BlockedNetworks::default();
    for entry in entries.lines() {
        // Networks that cannot be read are not blocked; that is all.
        let _ = blocked.add(entry);
    }
    chained_component(host);
    hosts.allows_self("http");
    for (scheme, port) in [("http", 80), ("tcp", 0), ("TCP", u16::MAX)] {
        let is_allowed = hosts.allows(scheme, host, port);
        assert_eq!(is_allowed, hosts.allows(&scheme.to_ascii_uppercase(), &host.to_ascii_uppercase(), port));
        if let Ok(address) = host.parse::<IpAddr>() {
            // An address may be written in a way that no entry spells out.
            assert!(!hosts.allows_ip(scheme, address, port) || is_allowed);
            blocked.blocks(address);
        }
    }
    if let Ok(translated) = translate_allowed_http_hosts(entries.lines(), true) {
        for entry in translated {
            AllowedHost::parse(&entry).expect("what is translated can be read");
        }
    }
});
