//! The `guests` bench: what a large guest costs with a fresh instance for each
//! request. Nearly all of it is memory: pages that an instance touches, and
//! that must be as before for the next one.

use std::collections::BTreeMap;

use crate::contest::{Contest, Groups, Kind, Options, Results, ratio};
use crate::error::Error;
use crate::guest::Guest;
use crate::report::Target;

/// The guests that every server can run, in the order of the tables.
const SHARED: [Guest; 2] = [Guest::JavaScript, Guest::Python];

/// The guests that import interfaces of Spin, which only Wisp has.
const OURS: [Guest; 2] = [Guest::PythonSdk4, Guest::PythonSdk5];

/// What the figures are to be.
const TARGETS: [(&str, Target); 2] = [
    ("js_rps_over_wasmtime_serve", Target::AtLeast(8.0)),
    ("python_rps_over_wasmtime_serve", Target::AtLeast(8.0)),
];

/// Runs the bench.
///
/// # Errors
/// As every contest.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let contest = Contest {
        name: "guests",
        title: "What a large guest costs",
        groups: groups(),
        ratios,
        targets: &TARGETS,
    };
    contest.run(options)
}

/// The ways of serving each guest, in the order of the tables.
fn groups() -> Groups {
    let wisp = Kind::Wisp { reused: false, unaccounted: false };
    let wasmtime = |tuned| Kind::Wasmtime { tuned, reused: false };
    let shared = SHARED.map(|guest| (guest, vec![Kind::Native, wisp, wasmtime(false), wasmtime(true)]));
    let ours = OURS.map(|guest| (guest, vec![Kind::Native, wisp]));
    shared.into_iter().chain(ours).collect()
}

/// The figures by name.
fn ratios(results: &Results) -> BTreeMap<String, f64> {
    let fresh = Kind::Wisp { reused: false, unaccounted: false };
    let mut figures = BTreeMap::new();
    for guest in SHARED {
        for (peer, tuned) in [("wasmtime_serve", false), ("wasmtime_serve_tuned", true)] {
            let wasmtime = Kind::Wasmtime { tuned, reused: false };
            let rps = ratio(results, guest, fresh, wasmtime, |of| of.requests_per_second);
            let cpu = ratio(results, guest, wasmtime, fresh, |of| of.cpu_us_per_request);
            figures.extend(rps.map(|ratio| (format!("{}_rps_over_{peer}", guest.key()), ratio)));
            figures.extend(cpu.map(|ratio| (format!("{}_{peer}_cpu_over_fresh", guest.key()), ratio)));
        }
    }
    for guest in SHARED.into_iter().chain(OURS) {
        let over_native = ratio(results, guest, fresh, Kind::Native, |of| of.cpu_us_per_request);
        figures.extend(over_native.map(|ratio| (format!("{}_cpu_over_native", guest.key()), ratio)));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contest::{Contestant, Measurement};

    #[test]
    fn every_target_names_a_figure() {
        let mut results = Results::new();
        for (guest, kinds) in groups() {
            for kind in kinds {
                let measured = Measurement {
                    cpu_us_per_request: 1.0,
                    requests_per_second: 1.0,
                    ..Measurement::default()
                };
                results.insert(Contestant { guest, kind }, vec![measured]);
            }
        }
        let figures = ratios(&results);
        assert!(TARGETS.iter().all(|(name, _)| figures.contains_key(*name)), "{figures:?}");
    }
}
