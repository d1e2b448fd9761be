//! A policy: whatever the text, it becomes one, or errors with lines. What it lets a manifest
//! ask for is within what it grants.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use wisp_control::{Error, Policy, names::TeamName};
use wisp_manifest::allowed_hosts::AllowedHost;

fuzz_target!(|text: &str| {
    let (policy, asked) = text.rsplit_once('\n').unwrap_or((text, ""));
    match Policy::parse(Path::new("policy.toml"), policy) {
        Ok(policy) => {
            let (Ok(team), Ok(asked)) = (TeamName::new("shop"), AllowedHost::parse(asked)) else { return };
            let team = policy.of(&team);
            for entry in &team.grants().outbound {
                let entry = AllowedHost::parse(entry).expect("what is granted can be read");
                let allows = |host: &AllowedHost| host.allows("https", "a.example", 443);
                assert!(!entry.covers(&asked) || !allows(&asked) || allows(&entry));
            }
        }
        Err(Error::Policy(problems)) => {
            assert!(!problems.is_empty());
            assert!(problems.iter().all(|problem| problem.starts_with("policy.toml:")));
        }
        Err(other) => panic!("{other}"),
    }
});
