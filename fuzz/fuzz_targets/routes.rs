//! Routes, one in each line, and a path in the last line: the table finds what
//! the patterns find one by one, and the most specific of them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wisp_manifest::route::{RoutePattern, RouteTable};

fuzz_target!(|text: &str| {
    let (routes, path) = text.rsplit_once('\n').unwrap_or(("", text));
    let patterns: Vec<RoutePattern> =
        routes.lines().take(32).filter_map(|route| RoutePattern::parse(route).ok()).collect();
    for pattern in &patterns {
        let again = RoutePattern::parse(pattern.as_str()).expect("a route stays one");
        assert!(again.is_same_shape(pattern));
    }
    let (table, shadowed) = RouteTable::new(patterns.iter().cloned().zip(0..));
    for shadowed in &shadowed {
        assert!(shadowed.shadowed < shadowed.by);
        assert!(patterns[shadowed.shadowed].is_same_shape(&patterns[shadowed.by]));
    }
    let matching = patterns.iter().filter(|pattern| pattern.matches(path).is_some());
    match table.find(path) {
        None => assert_eq!(matching.count(), 0),
        Some((found, position, matched)) => {
            assert!(shadowed.iter().all(|shadowed| shadowed.shadowed != *position));
            assert_eq!(found.matches(path).as_ref(), Some(&matched));
            assert_eq!(matched.named.len(), found.names().count());
            assert_eq!(matched.trailing_wildcard.is_some(), found.has_wildcard());
            for other in matching {
                assert!(found.cmp_specificity(other).is_le(), "{other} before {found}");
            }
        }
    }
});
